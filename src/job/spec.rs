//! What a job was asked to do: checked once, at Start, and never changed.

use super::{identity::Credentials, state::Rules};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// The part of a request that is kept in clear and shown to callers. Stored with
/// short names, and without what is empty: each job has one. Texts that jobs have in
/// common may be one in memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Name for people.
    #[serde(rename = "n", default, skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Labels.
    #[serde(rename = "l", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Name of a configured target.
    #[serde(rename = "t")]
    pub target: Arc<str>,
    /// HTTP method.
    #[serde(rename = "m")]
    pub method: Arc<str>,
    /// Route as given.
    #[serde(rename = "r")]
    pub route: Arc<str>,
    /// Query parameters as given, without those in `route`.
    #[serde(rename = "q", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, String>,
    /// Path and query as sent.
    #[serde(rename = "u")]
    pub url: Arc<str>,
    /// Names of the further headers, in lower case.
    #[serde(rename = "h", default, skip_serializing_if = "Vec::is_empty")]
    pub header_names: Vec<String>,
    /// Order among waiting jobs, 0 to 9.
    #[serde(rename = "p")]
    pub priority: u8,
    /// What holds from its start to its end.
    #[serde(rename = "x")]
    pub rules: Arc<Rules>,
    /// Whether identical Starts may join it, and for how long.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<MergeClass>,
    /// Whether it is triggered with a user's credentials.
    #[serde(rename = "a", default, skip_serializing_if = "std::ops::Not::not")]
    pub as_user: bool,
}

/// Until when identical Starts find a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeClass {
    /// Until its first attempt begins.
    Pending,
    /// Until it ends.
    Active,
}

/// What a Start does where an identical job is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergePolicy {
    /// Joins one that waits and has not begun.
    JoinPending,
    /// Joins one that has not ended.
    JoinActive,
    /// Is refused while one has not ended.
    Reject,
    /// Makes a job of its own.
    Never,
}

impl MergePolicy {
    /// Which jobs it sees, and what is seen of its own.
    #[must_use]
    pub fn class(self) -> Option<MergeClass> {
        match self {
            Self::JoinPending => Some(MergeClass::Pending),
            Self::JoinActive | Self::Reject => Some(MergeClass::Active),
            Self::Never => None,
        }
    }
}

/// The part of a request that is sealed at rest, and needed for the trigger
/// alone.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Payload {
    /// Names in lower case, sorted, and values.
    pub headers: Vec<(String, String)>,
    /// Media type of the body; none without a body.
    pub content_type: Option<String>,
    /// Body as sent.
    pub body: Bytes,
    /// The user's; none where it is triggered as nobody. Sealed by itself.
    #[serde(skip)]
    pub credentials: Option<Credentials>,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Payload(redacted)")
    }
}

#[cfg(test)]
impl Rules {
    /// Those that callers get who say nothing.
    pub(crate) fn plain() -> Self {
        Self {
            error_timeout: 60_000,
            error_timeout_given: false,
            response_timeout: Some(3_600_000),
            max_duration: None,
            expire_at: None,
            cancel_grace: 10_000,
            max_attempts: 1,
            initial_backoff: 1_000,
            max_backoff: 60_000,
            multiplier: 2.0,
        }
    }
}

#[cfg(test)]
impl Spec {
    /// That of a caller who says nothing.
    pub(crate) fn plain(rules: Arc<Rules>) -> Self {
        Self {
            display_name: String::new(),
            labels: BTreeMap::new(),
            target: "default".into(),
            method: "GET".into(),
            route: "/".into(),
            query: BTreeMap::new(),
            url: "/".into(),
            header_names: Vec::new(),
            priority: 5,
            rules,
            merge: None,
            as_user: false,
        }
    }
}
