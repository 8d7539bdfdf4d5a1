//! A job and where it stands. Pure: no clock, no I/O.

use super::{Wall, run::Run, text::Text};
use std::{fmt, sync::Arc};

/// A moment, as the machine sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Now {
    /// UTC milliseconds since 1970: for what is stored and shown.
    pub wall: i64,
    /// Milliseconds on a clock that never jumps: for spans.
    pub mono: u64,
    /// A number from 0 to 1, drawn anew: for jitter.
    pub chance: f64,
}

/// Number of a job that rises with every visible change, crashes included:
/// an epoch, committed before anything is accepted under it, and a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(u64);

impl Revision {
    /// None comes after it, and no job ever has it.
    pub const LAST: Self = Self(i64::MAX as u64);

    /// The revision of a stored row.
    pub fn from_stored(stored: i64) -> Self {
        Self(u64::try_from(stored).unwrap_or(0))
    }

    /// As it is stored; never negative.
    pub fn stored(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// As a caller gave it back.
    pub fn from_wire(revision: u64) -> Self {
        Self(revision)
    }

    /// As callers see it.
    pub fn get(self) -> u64 {
        self.0
    }

    /// Rises with each claim, adoption and restart.
    pub fn epoch(self) -> u64 {
        self.0 >> 32
    }

    /// After one more visible change.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The first of the next epoch.
    #[must_use]
    pub fn next_epoch(self) -> Self {
        Self((self.epoch() + 1) << 32)
    }
}

/// Why a job or an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
#[allow(missing_docs)] // said in job.proto, value by value
pub enum Reason {
    ActionFailed = 1,
    HttpStatus = 2,
    BadResponse = 3,
    Redirect = 4,
    Connect = 5,
    Lost = 6,
    Stalled = 7,
    Deadline = 8,
    Expired = 9,
    Blocked = 10,
    Internal = 11,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 11] = [
        Self::ActionFailed,
        Self::HttpStatus,
        Self::BadResponse,
        Self::Redirect,
        Self::Connect,
        Self::Lost,
        Self::Stalled,
        Self::Deadline,
        Self::Expired,
        Self::Blocked,
        Self::Internal,
    ];

    /// As it is stored and sent.
    pub fn number(self) -> i16 {
        self as i16
    }

    /// Its name in upper snake case.
    pub fn name(self) -> &'static str {
        match self {
            Self::ActionFailed => "ACTION_FAILED",
            Self::HttpStatus => "HTTP_STATUS",
            Self::BadResponse => "BAD_RESPONSE",
            Self::Redirect => "REDIRECT",
            Self::Connect => "CONNECT",
            Self::Lost => "LOST",
            Self::Stalled => "STALLED",
            Self::Deadline => "DEADLINE",
            Self::Expired => "EXPIRED",
            Self::Blocked => "BLOCKED",
            Self::Internal => "INTERNAL",
        }
    }

    /// From the stored number.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.number() == number)
    }
}

/// How an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub reason: Reason,
    /// For people; at most 4 KiB.
    pub message: String,
    /// The action's HTTP status, if there was one.
    pub http_status: Option<u16>,
}

/// How far the action is, in its own terms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detail {
    /// Units done.
    pub done: u64,
    /// Units in all; 0 if not known.
    pub total: u64,
    /// What is counted.
    pub unit: String,
    /// What the action is doing now.
    pub stage: String,
}

/// What a job leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// Media type; may be empty.
    pub content_type: String,
    /// The first 64 KiB.
    pub data: Vec<u8>,
    /// Whether there was more.
    pub truncated: bool,
}

/// What holds for a job from its start to its end. Spans in milliseconds.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Rules {
    /// Silence after which an attempt is given up, where it rules.
    #[serde(rename = "e")]
    pub error_timeout: u64,
    /// Whether the caller set it: then it rules from the beginning.
    #[serde(rename = "g", default, skip_serializing_if = "std::ops::Not::not")]
    pub error_timeout_given: bool,
    /// Silence allowed to an open connection of an action that never reported;
    /// none means without bound.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub response_timeout: Option<u64>,
    /// From the first claim to the end, back-off included.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<u64>,
    /// UTC milliseconds by which the first attempt must have begun.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub expire_at: Option<i64>,
    /// From a cancel to the end of a running job.
    #[serde(rename = "c")]
    pub cancel_grace: u64,
    /// Attempts in all.
    #[serde(rename = "a")]
    pub max_attempts: u32,
    /// First wait before a retry.
    #[serde(rename = "i")]
    pub initial_backoff: u64,
    /// Longest wait before a retry.
    #[serde(rename = "b")]
    pub max_backoff: u64,
    /// Factor from one wait to the next.
    #[serde(rename = "f")]
    pub multiplier: f64,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Waits for `scheduled_at`.
    Scheduled,
    /// Is due and waits for a slot.
    Queued,
    /// An attempt is under way.
    Running(Run),
    /// Final.
    Succeeded,
    /// Final.
    Failed,
    /// Final.
    Cancelled,
}

/// A state's name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
#[allow(missing_docs)] // said in job.proto, value by value
pub enum StateName {
    Scheduled = 1,
    Queued = 2,
    Running = 3,
    Succeeded = 4,
    Failed = 5,
    Cancelled = 6,
}

impl StateName {
    /// Every name, in the order of its number.
    pub const ALL: [Self; 6] =
        [Self::Scheduled, Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// As it is stored and sent.
    pub fn number(self) -> i16 {
        self as i16
    }

    /// From the stored number.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.number() == number)
    }

    /// Whether nothing ever changes it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheduled => "SCHEDULED",
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        })
    }
}

/// A job: its rules, where it stands, and what its action said. Times in UTC
/// milliseconds. What most jobs lack is in boxes: one that runs is kept in memory.
#[derive(Debug, Clone)]
pub struct Job {
    /// What holds from start to end.
    pub rules: Arc<Rules>,
    /// Where it stands.
    pub state: State,
    /// Rises with every visible change.
    pub revision: Revision,
    /// Number of the present or last attempt; 0 before the first.
    pub attempt: u32,
    /// Whole percent.
    pub progress: u8,
    /// In the action's own terms.
    pub detail: Option<Box<Detail>>,
    /// What the action wrote in this attempt.
    pub text: Text,
    /// When it is or was due.
    pub scheduled_at: i64,
    /// When its first attempt was claimed.
    pub started_at: Option<Wall>,
    /// When it last changed.
    pub updated_at: i64,
    /// Whether somebody cancelled it while it ran.
    pub cancel_requested: bool,
    /// Why it, or its last attempt, failed.
    pub failure: Option<Box<Failure>>,
    /// What it left behind.
    pub output: Option<Box<Output>>,
}

impl Job {
    /// A job that begins to wait at `now` for `scheduled_at`.
    pub fn new(rules: Arc<Rules>, scheduled_at: i64, now: Now) -> Self {
        let state = if scheduled_at > now.wall { State::Scheduled } else { State::Queued };
        Self {
            rules,
            state,
            revision: Revision::default().next(),
            attempt: 0,
            progress: 0,
            detail: None,
            text: Text::default(),
            scheduled_at,
            started_at: None,
            updated_at: now.wall,
            cancel_requested: false,
            failure: None,
            output: None,
        }
    }

    /// A copy that leaves the text and the output behind.
    #[must_use]
    pub fn without_text(&self) -> Self {
        Self {
            rules: Arc::clone(&self.rules),
            state: self.state.clone(),
            revision: self.revision,
            attempt: self.attempt,
            progress: self.progress,
            detail: self.detail.clone(),
            text: Text::default(),
            scheduled_at: self.scheduled_at,
            started_at: self.started_at,
            updated_at: self.updated_at,
            cancel_requested: self.cancel_requested,
            failure: self.failure.clone(),
            output: None,
        }
    }

    /// When a waiting job is given up, UTC milliseconds.
    pub fn give_up_at(&self) -> Option<i64> {
        if !matches!(self.state, State::Scheduled | State::Queued) {
            return None;
        }
        let expiry = if self.attempt == 0 { self.rules.expire_at } else { None };
        [expiry, self.must_end_by()].into_iter().flatten().min()
    }

    /// When `max_duration` is over, UTC milliseconds; known from its first claim on.
    pub fn must_end_by(&self) -> Option<i64> {
        let from = self.started_at.zip(self.rules.max_duration);
        from.map(|(at, span)| i64::from(at).saturating_add_unsigned(span))
    }

    /// When it became final, UTC milliseconds: what is final never changes.
    pub fn ended_at(&self) -> Option<i64> {
        self.state_name().is_final().then_some(self.updated_at)
    }

    /// When it should be done, from the pace of its reports, UTC milliseconds.
    pub fn estimated_end_at(&self) -> Option<i64> {
        match &self.state {
            State::Running(run) => run.pace.as_deref().and_then(|pace| pace.end_at),
            _ => None,
        }
    }

    /// Where it stands, by name.
    pub fn state_name(&self) -> StateName {
        match self.state {
            State::Scheduled => StateName::Scheduled,
            State::Queued => StateName::Queued,
            State::Running(_) => StateName::Running,
            State::Succeeded => StateName::Succeeded,
            State::Failed => StateName::Failed,
            State::Cancelled => StateName::Cancelled,
        }
    }

    /// When the silence of a running attempt ends it, mono. None where an open
    /// connection may be silent without bound.
    pub fn stall_at(&self, run: &Run) -> Option<u64> {
        let rules = &self.rules;
        if rules.error_timeout_given || run.reported || !run.connected {
            return Some(run.heard_at.saturating_add(rules.error_timeout));
        }
        rules.response_timeout.map(|span| run.heard_at.saturating_add(span))
    }

    /// When the grace of a cancel is over, mono.
    pub fn grace_ends_at(&self, run: &Run) -> Option<u64> {
        run.cancel.as_deref().map(|cancel| cancel.since.saturating_add(self.rules.cancel_grace))
    }

    /// When something falls due that nobody has to trigger, mono; for running
    /// jobs. The earliest of stall, `max_duration` and the grace of a cancel.
    pub fn due_at(&self) -> Option<u64> {
        let State::Running(run) = &self.state else { return None };
        let grace = self.grace_ends_at(run);
        [self.stall_at(run), run.must_end_at.map(u64::from), grace].into_iter().flatten().min()
    }
}
