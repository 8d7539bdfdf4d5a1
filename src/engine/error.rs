//! Why a use case failed.

use crate::{
    job::{JobId, StateName, draft::Violation},
    store,
};

/// Why a use case failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something in the request does not hold.
    #[error("{}", describe(.0))]
    Invalid(Vec<Violation>),
    /// No such target is configured.
    #[error("no target is named {0:?}")]
    UnknownTarget(String),
    /// No such job.
    #[error("no job has the id {0}")]
    NotFound(JobId),
    /// The job has ended.
    #[error("job {id} has ended: {state}")]
    Final {
        /// The job.
        id: JobId,
        /// How.
        state: StateName,
    },
    /// The attempt is not the one that runs.
    #[error("attempt {attempt} of job {id} is over")]
    Stale {
        /// The job.
        id: JobId,
        /// Its attempt.
        attempt: u32,
    },
    /// `stopped` was reported, but nobody cancelled the job.
    #[error("nobody cancelled the job: report finish or fail")]
    NotCancelled,
    /// The job has not ended.
    #[error("job {id} has not ended: {state}")]
    NotFinal {
        /// The job.
        id: JobId,
        /// Where it stands.
        state: StateName,
    },
    /// The job ran with a user's credentials, which are not kept.
    #[error("job {0} ran as a user whose credentials are gone: run_as must give them anew")]
    CredentialsGone(JobId),
    /// An identical job has not ended.
    #[error("job {0} is the same and has not ended")]
    Duplicate(JobId),
    /// The key stands for another request.
    #[error("the idempotency key was given with another request, which made job {0}")]
    KeyMismatch(JobId),
    /// More jobs than one stream may carry.
    #[error("more than {0} jobs match")]
    TooManyJobs(usize),
    /// As many streams of reports are open for one attempt as may.
    #[error("{0} streams of reports are open for this attempt already, which is as many as may")]
    TooManyStreams(usize),
    /// The job runs on another node, which has to be asked.
    #[error("job {job} runs on node {node}")]
    Elsewhere {
        /// The job.
        job: JobId,
        /// The node's name.
        node: String,
        /// Where it is reached; none if it does not say.
        advertise: Option<String>,
    },
    /// A node of this name lives.
    #[error("a node named {0:?} uses the database already: give each a node.name of its own")]
    NameTaken(String),
    /// As many jobs wait as may.
    #[error("{0} jobs wait already, which is as many as may")]
    TooManyPending(u64),
    /// The server goes away.
    #[error("the server is shutting down")]
    Draining,
    /// The store cannot be reached now; worth repeating.
    #[error("not available now: {0}")]
    Unavailable(String),
    /// A fault of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

fn describe(violations: &[Violation]) -> String {
    let all: Vec<String> = violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    all.join("; ")
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        if error.is_transient() {
            Self::Unavailable(error.to_string())
        } else {
            Self::Internal(error.to_string())
        }
    }
}
