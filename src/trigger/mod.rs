//! The trigger: one signed HTTP/1.1 request to an action of the application.
//!
//! ```text
//!   Request ─▶ client ─▶ message (headers, sign) ──┐
//!                │                                 ▼
//!                ├─▶ pool ── an idle connection ─▶ exchange ─▶ response ─▶ Outcome
//!                └─▶ connect (who may be called) ──▲   │
//!                                                      └─ Sink: sent, heard
//! ```
//!
//! May import `clock`, `descriptors`, `job`, `secret`, `signature` and `tasks`.
//!
//! Invariants, each held by a test:
//! - no byte goes to an address that is neither loopback nor allowed;
//! - what is signed is what is sent, byte by byte;
//! - [`Sink::sent`] is called once at most, and before anything of a response;
//! - memory is bounded whatever the application answers;
//! - a call that is dropped closes its connection at once, and a connection is
//!   used again only after its response was wholly read;
//! - no header's value and no query stands in a message or a log.
//!
//! When it fails, it says how far it came: [`Outcome::NotSent`] only where the
//! application surely did not begin, else [`Outcome::Lost`]. It never repeats a
//! request by itself, but for the keep-alive rule in `client.rs`.

mod client;
mod connect;
mod connection;
mod exchange;
mod lookup;
mod message;
mod origin;
mod pool;
mod response;
pub mod sign;
mod target;
mod tls;
mod wire;

#[cfg(test)]
mod tests;

pub use client::{Client, Settings};
pub use target::{BadTarget, Target, TargetOptions};

use crate::job::{JobId, Payload, Reason, event::Response};
use std::{fmt, future::Future, pin::Pin, sync::Arc};

/// One triggering of a job's action.
#[derive(Clone)]
pub struct Request {
    /// Name of a configured target.
    pub target: String,
    /// Any method token but CONNECT, sent as it is.
    pub method: String,
    /// Path and query as sent, the target's base included.
    pub url: String,
    /// Headers, content type and body.
    pub payload: Arc<Payload>,
    /// `Backjob-Job-Id`.
    pub job: JobId,
    /// `Backjob-Attempt`, from 1.
    pub attempt: u32,
    /// `Backjob-Report-Token`.
    pub report_token: String,
    /// `Backjob-Deadline`: seconds until the job is given up without a report.
    pub deadline: Option<u64>,
    /// The user's cookies, for CURRENT_USER.
    pub cookie: Option<String>,
    /// The user's `Authorization`, for CURRENT_USER.
    pub authorization: Option<String>,
}

impl Request {
    /// The path alone: queries may hold secrets.
    pub fn path(&self) -> &str {
        self.url.split('?').next().unwrap_or("")
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("target", &self.target)
            .field("method", &self.method)
            .field("path", &self.path())
            .field("job", &self.job)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// What the trigger tells while it runs. Called from within the call's future:
/// it must not block.
pub trait Sink: Send + Sync + 'static {
    /// The request was wholly written. Once at most, and before anything of the
    /// response is told.
    fn sent(&self);
    /// A piece of the response's body came.
    fn heard(&self);
    /// Whether the action has reported in this attempt: then it surely runs.
    fn has_reported(&self) -> bool;
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A response came, and its body has ended.
    Response(Response),
    /// The action did not begin: `Connect`, `Blocked` or `Internal`, and why.
    NotSent(Reason, String),
    /// What came back is not HTTP, or too large.
    BadResponse(String),
    /// The connection broke after the request was sent and before the response
    /// ended: the action may still run.
    Lost(String),
}

/// Calls actions. A seam: in simulations a scripted trigger stands here.
pub trait Trigger: Send + Sync + 'static {
    /// Calls an action and waits until its response has ended, without a bound
    /// in time. Dropping the future closes the connection at once.
    fn call(&self, request: Request, sink: Arc<dyn Sink>) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;
}
