//! What may happen to a job, and what is heard of one attempt.

use super::state::{Detail, Output, Reason};

/// Something that happens to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its time may have come.
    Due,
    /// A slot is free: begin an attempt.
    Claim,
    /// Somebody wants it to end.
    Cancel,
    /// Look at the clock.
    Timer,
    /// A process takes over what another one left running.
    Adopt,
    /// Later Starts joined it.
    Joined,
    /// Something that concerns one attempt only.
    Of(u32, Signal),
}

/// What is heard of one attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// The request was wholly written.
    Sent,
    /// A piece of the response's body came.
    Heard,
    /// The action reported.
    Report(Report),
    /// The action was told to stop.
    StopDelivered,
    /// A response came, and its body has ended.
    Response(Response),
    /// The request was never sent.
    NotSent(Reason, String),
    /// What came back was no response, or too large a one.
    BadResponse(String),
    /// The connection broke after the request was sent.
    Lost(String),
}

/// One report, already checked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Rising within the attempt.
    pub sequence: Option<u64>,
    /// Progress.
    pub progress: Option<Progress>,
    /// In the action's own terms.
    pub detail: Option<Detail>,
    /// Text.
    pub text: Option<TextChange>,
    /// The end of the attempt.
    pub end: Option<End>,
}

/// A change of the percentage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// To this, 0 to 100.
    To(u32),
    /// By this; a sum over 100 is 100.
    By(u32),
}

/// A change of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextChange {
    /// Another text.
    Replace(String),
    /// More text.
    Append(String),
}

/// How the action says that it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Done.
    Finish(Option<Output>),
    /// Failed.
    Fail {
        /// For people.
        message: String,
        /// Whether another attempt may succeed.
        retryable: bool,
    },
    /// Obeyed a cancel.
    Stopped,
}

/// A response whose body has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// What the job keeps of it.
    pub output: Option<Output>,
    /// The body, where it is text.
    pub text: Option<String>,
    /// `Retry-After`, milliseconds.
    pub retry_after: Option<u64>,
}
