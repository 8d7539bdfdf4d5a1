//! Columns of rows, one value each.

#[cfg(doc)]
use crate::store::columns;

use crate::store::entity::{attempt, job, job_label, job_request, job_text, start_key};
use rusqlite::{Result, Statement, ToSql};

/// The values of a statement, bound one after the other.
pub(super) struct Values<'s, 'c> {
    statement: &'s mut Statement<'c>,
    bound: usize,
}

impl<'s, 'c> Values<'s, 'c> {
    pub(super) fn of(statement: &'s mut Statement<'c>) -> Self {
        Self { statement, bound: 0 }
    }

    pub(super) fn add(&mut self, value: impl ToSql) -> Result<()> {
        self.bound += 1;
        self.statement.raw_bind_parameter(self.bound, value)
    }

    /// How many rows that wrote.
    pub(super) fn run(self) -> Result<usize> {
        self.statement.raw_execute()
    }
}

impl Values<'_, '_> {
    /// In the order of [`columns::NEW`].
    pub(super) fn new_job(&mut self, job: &job::Model) -> Result<()> {
        self.add(job.id.as_slice())?;
        for number in [job.state, job.revision, job.attempt] {
            self.add(number)?;
        }
        self.add(job.owner.as_deref())?;
        self.add(job.started_at)?;
        self.add(job.progress)?;
        for at in [job.created_at, job.scheduled_at, job.updated_at, job.changed_at] {
            self.add(at)?;
        }
        self.add(job.give_up_at)?;
        self.add(job.cancel_requested)?;
        self.add(job.merged_count)?;
        self.add(job.merge_key.as_deref())?;
        self.add(&job.target)?;
        self.add(job.priority)?;
        self.add(&job.created_by)
    }

    /// In the order of [`columns::REQUEST`].
    pub(super) fn request(&mut self, request: &job_request::Model) -> Result<()> {
        self.add(request.job_id.as_slice())?;
        self.add(request.retry_of.as_deref())?;
        self.add(&request.route)?;
        self.add(&request.spec)?;
        self.add(request.root_id.as_slice())?;
        self.add(request.sealed.as_slice())?;
        self.add(request.credentials.as_deref())
    }

    /// In the order of [`columns::LABEL`].
    pub(super) fn label(&mut self, label: &job_label::Model) -> Result<()> {
        self.add(label.job_id.as_slice())?;
        self.add(&label.name)?;
        self.add(&label.value)?;
        self.add(label.created_at)
    }

    /// In the order of [`columns::KEY`].
    pub(super) fn key(&mut self, key: &start_key::Model) -> Result<()> {
        self.add(&key.caller)?;
        self.add(key.key_hash.as_slice())?;
        self.add(key.job_id.as_slice())?;
        self.add(key.request_hash.as_slice())
    }

    /// What a change of a job begins with.
    pub(super) fn from(&mut self, from: i64, job: &job::Model) -> Result<()> {
        self.add(job.id.as_slice())?;
        self.add(from)
    }

    /// In the order of [`columns::PROGRESS`].
    pub(super) fn progress(&mut self, job: &job::Model) -> Result<()> {
        self.add(job.revision)?;
        self.add(job.progress)?;
        self.add(job.done)?;
        self.add(job.total)?;
        self.add(job.unit.as_deref())?;
        self.add(job.stage.as_deref())?;
        self.add(job.updated_at)?;
        self.add(job.changed_at)
    }

    /// The rest of [`columns::CHANGED`].
    pub(super) fn state(&mut self, job: &job::Model, closed: bool) -> Result<()> {
        self.add(job.state)?;
        self.add(job.attempt)?;
        self.add(job.owner.as_deref())?;
        self.add(job.scheduled_at)?;
        for at in [job.started_at, job.ended_at, job.give_up_at] {
            self.add(at)?;
        }
        self.add(job.cancel_requested)?;
        self.add(job.failure_reason)?;
        self.add(job.failure_message.as_deref())?;
        self.add(job.failure_status)?;
        self.add(closed)
    }

    /// In the order of [`columns::ATTEMPT`].
    pub(super) fn attempt(&mut self, attempt: &attempt::Model) -> Result<()> {
        self.add(attempt.job_id.as_slice())?;
        self.add(attempt.attempt)?;
        self.add(&attempt.node)?;
        self.add(attempt.claimed_at)?;
        self.add(attempt.sent_at)?;
        self.add(attempt.reported)?;
        self.add(attempt.ended_at)?;
        self.add(attempt.http_status)?;
        self.add(attempt.failure_reason)?;
        self.add(attempt.failure_message.as_deref())?;
        self.add(attempt.last_sequence)?;
        self.add(attempt.end_sequence)?;
        self.add(attempt.end_hash.as_deref())
    }

    /// In the order of [`columns::BEGUN`].
    pub(super) fn begun(&mut self, attempt: &attempt::Model) -> Result<()> {
        self.add(attempt.job_id.as_slice())?;
        self.add(attempt.attempt)?;
        self.add(&attempt.node)?;
        self.add(attempt.claimed_at)?;
        self.add(attempt.reported)?;
        self.add(attempt.last_sequence)
    }

    /// In the order of [`columns::TEXT`].
    pub(super) fn job_text(&mut self, text: &job_text::Model) -> Result<()> {
        self.add(text.job_id.as_slice())?;
        self.add(text.attempt)?;
        self.add(text.text.as_deref())?;
        self.add(text.text_written)?;
        self.add(text.text_truncated)?;
        self.add(text.result_type.as_deref())?;
        self.add(text.result.as_deref())?;
        self.add(text.result_truncated)
    }
}
