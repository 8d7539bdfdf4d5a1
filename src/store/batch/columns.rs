//! Columns that are written, and the values of rows in their order.

use super::Batch;
use crate::store::entity::{attempt, job, job_label, job_request, job_text, start_key};

/// Columns of a new job; all others are NULL.
pub(in crate::store) const NEW: &[&str] = &[
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
pub(in crate::store) const REQUEST: &[&str] =
    &["job_id", "retry_of", "route", "spec", "root_id", "sealed", "credentials"];
pub(in crate::store) const LABEL: &[&str] = &["job_id", "name", "value", "created_at"];
pub(in crate::store) const KEY: &[&str] = &["caller", "key_hash", "job_id", "request_hash"];
/// What an action reports.
pub(in crate::store) const PROGRESS: &[&str] =
    &["revision", "progress", "done", "total", "unit", "stage", "updated_at", "changed_at"];
/// What else may change of a job; `merge_key` stays or goes.
pub(in crate::store) const CHANGED: &[&str] = &[
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
pub(in crate::store) const ATTEMPT: &[&str] = &[
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
pub(in crate::store) const BEGUN: &[&str] =
    &["job_id", "attempt", "node", "claimed_at", "reported", "last_sequence"];
pub(in crate::store) const TEXT: &[&str] = &[
    "job_id",
    "attempt",
    "text",
    "text_written",
    "text_truncated",
    "result_type",
    "result",
    "result_truncated",
];

impl Batch {
    /// In the order of [`NEW`].
    pub(super) fn new_job(&mut self, job: &job::Model) {
        self.add(job.id.as_slice());
        for number in [job.state, job.revision, job.attempt] {
            self.add(number);
        }
        self.add(job.owner.as_deref());
        self.add(job.started_at);
        self.add(job.progress);
        for at in [job.created_at, job.scheduled_at, job.updated_at, job.changed_at] {
            self.add(at);
        }
        self.add(job.give_up_at);
        self.add(job.cancel_requested);
        self.add(job.merged_count);
        self.add(job.merge_key.as_deref());
        self.add_text(&job.target);
        self.add(job.priority);
        self.add_text(&job.created_by);
    }

    /// In the order of [`REQUEST`].
    pub(super) fn request(&mut self, request: &job_request::Model) {
        self.add(request.job_id.as_slice());
        self.add(request.retry_of.as_deref());
        self.add_text(&request.route);
        self.add_text(&request.spec);
        self.add(request.root_id.as_slice());
        self.add(request.sealed.as_slice());
        self.add(request.credentials.as_deref());
    }

    /// In the order of [`LABEL`].
    pub(super) fn label(&mut self, label: &job_label::Model) {
        self.add(label.job_id.as_slice());
        self.add_text(&label.name);
        self.add_text(&label.value);
        self.add(label.created_at);
    }

    /// In the order of [`KEY`].
    pub(super) fn key(&mut self, key: &start_key::Model) {
        self.add_text(&key.caller);
        self.add(key.key_hash.as_slice());
        self.add(key.job_id.as_slice());
        self.add(key.request_hash.as_slice());
    }

    /// What a change of a job begins with.
    pub(super) fn from(&mut self, from: i64, job: &job::Model) {
        self.add(job.id.as_slice());
        self.add(from);
    }

    /// In the order of [`PROGRESS`].
    pub(super) fn progress(&mut self, job: &job::Model) {
        self.add(job.revision);
        self.add(job.progress);
        self.add(job.done);
        self.add(job.total);
        self.add(job.unit.as_deref());
        self.add(job.stage.as_deref());
        self.add(job.updated_at);
        self.add(job.changed_at);
    }

    /// The rest of [`CHANGED`].
    pub(super) fn state(&mut self, job: &job::Model, closed: bool) {
        self.add(job.state);
        self.add(job.attempt);
        self.add(job.owner.as_deref());
        self.add(job.scheduled_at);
        for at in [job.started_at, job.ended_at, job.give_up_at] {
            self.add(at);
        }
        self.add(job.cancel_requested);
        self.add(job.failure_reason);
        self.add(job.failure_message.as_deref());
        self.add(job.failure_status);
        self.add(closed);
    }

    /// In the order of [`ATTEMPT`].
    pub(super) fn attempt(&mut self, attempt: &attempt::Model) {
        self.add(attempt.job_id.as_slice());
        self.add(attempt.attempt);
        self.add_text(&attempt.node);
        self.add(attempt.claimed_at);
        self.add(attempt.sent_at);
        self.add(attempt.reported);
        self.add(attempt.ended_at);
        self.add(attempt.http_status);
        self.add(attempt.failure_reason);
        self.add(attempt.failure_message.as_deref());
        self.add(attempt.last_sequence);
        self.add(attempt.end_sequence);
        self.add(attempt.end_hash.as_deref());
    }

    /// In the order of [`BEGUN`].
    pub(super) fn begun(&mut self, attempt: &attempt::Model) {
        self.add(attempt.job_id.as_slice());
        self.add(attempt.attempt);
        self.add_text(&attempt.node);
        self.add(attempt.claimed_at);
        self.add(attempt.reported);
        self.add(attempt.last_sequence);
    }

    /// In the order of [`TEXT`].
    pub(super) fn job_text(&mut self, text: &job_text::Model) {
        self.add(text.job_id.as_slice());
        self.add(text.attempt);
        self.add(text.text.as_deref());
        self.add(text.text_written);
        self.add(text.text_truncated);
        self.add(text.result_type.as_deref());
        self.add(text.result.as_deref());
        self.add(text.result_truncated);
    }
}
