//! A job with all that stands beside it.

use super::{id::JobId, spec::Spec, state::Job};
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
