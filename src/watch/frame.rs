//! A change, encoded once for all who watch it.

use crate::job::{JobId, Revision};
use bytes::Bytes;
use std::sync::OnceLock;

/// What can be watched.
pub trait Subject: Send + Sync + 'static {
    /// Whose state it is.
    fn id(&self) -> JobId;
    /// Which state it is.
    fn revision(&self) -> Revision;
    /// Whether no other will follow.
    fn is_final(&self) -> bool;
}

/// Which encoding of a change is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextMode {
    /// Without the status text.
    None,
    /// With all of it.
    Full,
}

/// One state of a job, and its bytes once somebody needed them.
#[derive(Debug)]
pub struct Frame<S> {
    /// The state.
    pub subject: S,
    none: OnceLock<Bytes>,
    full: OnceLock<Bytes>,
}

impl<S> Frame<S> {
    /// A frame that nobody has encoded yet.
    pub fn new(subject: S) -> Self {
        Self { subject, none: OnceLock::new(), full: OnceLock::new() }
    }

    /// The bytes for `mode`, made by `encode` the first time they are asked for.
    pub fn bytes(&self, mode: TextMode, encode: impl FnOnce(&S) -> Bytes) -> Bytes {
        let slot = match mode {
            TextMode::None => &self.none,
            TextMode::Full => &self.full,
        };
        slot.get_or_init(|| encode(&self.subject)).clone()
    }
}
