//! Columns that a transaction writes most, in the order in which their values are bound.

use super::entity::job;

/// Columns of a new job; all others are NULL.
pub(super) const NEW: &[&str] = &[
    "id",
    "state",
    "revision",
    "attempt",
    "owner",
    "started_at",
    "progress",
    "created_at",
    "scheduled_at",
    "updated_at",
    "changed_at",
    "give_up_at",
    "cancel_requested",
    "merged_count",
    "merge_key",
    "target",
    "priority",
    "created_by",
];
pub(super) const REQUEST: &[&str] =
    &["job_id", "retry_of", "route", "spec", "root_id", "sealed", "credentials"];
pub(super) const LABEL: &[&str] = &["job_id", "name", "value", "created_at"];
pub(super) const KEY: &[&str] = &["caller", "key_hash", "job_id", "request_hash"];
/// What an action reports.
pub(super) const PROGRESS: &[&str] =
    &["revision", "progress", "done", "total", "unit", "stage", "updated_at", "changed_at"];
/// What else may change of a job; `merge_key` stays or goes.
pub(super) const CHANGED: &[&str] = &[
    "revision",
    "progress",
    "done",
    "total",
    "unit",
    "stage",
    "updated_at",
    "changed_at",
    "state",
    "attempt",
    "owner",
    "scheduled_at",
    "started_at",
    "ended_at",
    "give_up_at",
    "cancel_requested",
    "failure_reason",
    "failure_message",
    "failure_status",
    "merge_key",
];
pub(super) const ATTEMPT: &[&str] = &[
    "job_id",
    "attempt",
    "node",
    "claimed_at",
    "sent_at",
    "reported",
    "ended_at",
    "http_status",
    "failure_reason",
    "failure_message",
    "last_sequence",
    "end_sequence",
    "end_hash",
];
/// Columns of an attempt that begins with its job.
pub(super) const BEGUN: &[&str] = &["job_id", "attempt", "node", "claimed_at", "reported", "last_sequence"];
pub(super) const TEXT: &[&str] = &[
    "job_id",
    "attempt",
    "text",
    "text_written",
    "text_truncated",
    "result_type",
    "result",
    "result_truncated",
];

/// Whether all that is not in [`NEW`] is NULL.
pub(super) fn is_new(job: &job::Model) -> bool {
    let job::Model { done, total, unit, stage, ended_at, .. } = job;
    done.is_none()
        && total.is_none()
        && unit.is_none()
        && stage.is_none()
        && ended_at.is_none()
        && job.failure_reason.is_none()
        && job.failure_message.is_none()
        && job.failure_status.is_none()
}
