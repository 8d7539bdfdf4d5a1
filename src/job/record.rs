//! A job with all that stands beside it.

use super::{
    id::JobId,
    spec::{MergeClass, Spec},
    state::Job,
};
use std::sync::Arc;

/// What the store keeps of a job and callers are shown of it, but its payload.
#[derive(Debug, Clone)]
pub struct Record {
    /// Id.
    pub id: JobId,
    /// What it was asked to do.
    pub spec: Arc<Spec>,
    /// When it was stored, UTC milliseconds.
    pub created_at: i64,
    /// Name of the caller's token; empty without one.
    pub created_by: Arc<str>,
    /// The job that it runs again.
    pub retry_of: Option<JobId>,
    /// How many later Starts joined it.
    pub merged_count: u32,
    /// Where it stands.
    pub job: Job,
}

impl Record {
    /// Whether no later Start can join it any more.
    pub fn is_closed(&self) -> bool {
        match self.spec.merge {
            Some(MergeClass::Pending) => self.job.attempt > 0 || self.job.state_name().is_final(),
            Some(MergeClass::Active) => self.job.state_name().is_final(),
            None => true,
        }
    }
}
