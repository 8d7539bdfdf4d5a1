//! Columns of rows, one value each.

#[cfg(doc)]
use crate::store::columns;

use super::text::{Batch, Change, New};
use crate::store::entity::{attempt, job_label, job_text, start_key};

impl Batch {
    /// In the order of [`columns::NEW`].
    pub(super) fn new_jobs(&mut self, new: &[New<'_>]) {
        self.array(new.iter().map(|(job, ..)| job.id.as_slice()));
        self.column(new.iter().map(|(job, ..)| job.state));
        self.column(new.iter().map(|(job, ..)| job.revision));
        self.column(new.iter().map(|(job, ..)| job.attempt));
        self.column(new.iter().map(|(job, ..)| job.owner.as_deref()));
        self.column(new.iter().map(|(job, ..)| job.started_at));
        self.column(new.iter().map(|(job, ..)| job.progress));
        self.column(new.iter().map(|(job, ..)| job.created_at));
        self.column(new.iter().map(|(job, ..)| job.scheduled_at));
        self.column(new.iter().map(|(job, ..)| job.updated_at));
        self.column(new.iter().map(|(job, ..)| job.changed_at));
        self.column(new.iter().map(|(job, ..)| job.give_up_at));
        self.column(new.iter().map(|(job, ..)| job.cancel_requested));
        self.column(new.iter().map(|(job, ..)| job.merged_count));
        self.column(new.iter().map(|(job, ..)| job.merge_key.as_deref()));
        self.column(new.iter().map(|(job, ..)| job.target.as_str()));
        self.column(new.iter().map(|(job, ..)| job.priority));
        self.column(new.iter().map(|(job, ..)| job.created_by.as_str()));
    }

    /// In the order of [`columns::REQUEST`].
    pub(super) fn requests(&mut self, new: &[New<'_>]) {
        self.array(new.iter().map(|(_, request, ..)| request.job_id.as_slice()));
        self.column(new.iter().map(|(_, request, ..)| request.retry_of.as_deref()));
        self.column(new.iter().map(|(_, request, ..)| request.route.as_str()));
        self.column(new.iter().map(|(_, request, ..)| request.spec.as_str()));
        self.column(new.iter().map(|(_, request, ..)| request.root_id.as_slice()));
        self.column(new.iter().map(|(_, request, ..)| request.sealed.as_slice()));
        self.column(new.iter().map(|(_, request, ..)| request.credentials.as_deref()));
    }

    /// In the order of [`columns::LABEL`].
    pub(super) fn labels(&mut self, labels: &[&job_label::Model]) {
        self.array(labels.iter().map(|label| label.job_id.as_slice()));
        self.column(labels.iter().map(|label| label.name.as_str()));
        self.column(labels.iter().map(|label| label.value.as_str()));
        self.column(labels.iter().map(|label| label.created_at));
    }

    /// In the order of [`columns::KEY`].
    pub(super) fn keys(&mut self, keys: &[&start_key::Model]) {
        self.array(keys.iter().map(|key| key.caller.as_str()));
        self.column(keys.iter().map(|key| key.key_hash.as_slice()));
        self.column(keys.iter().map(|key| key.job_id.as_slice()));
        self.column(keys.iter().map(|key| key.request_hash.as_slice()));
    }

    /// In the order of [`columns::PROGRESS`].
    pub(super) fn progress(&mut self, changes: &[Change<'_>]) {
        self.column(changes.iter().map(|change| change.job.revision));
        self.column(changes.iter().map(|change| change.job.progress));
        self.column(changes.iter().map(|change| change.job.done));
        self.column(changes.iter().map(|change| change.job.total));
        self.column(changes.iter().map(|change| change.job.unit.as_deref()));
        self.column(changes.iter().map(|change| change.job.stage.as_deref()));
        self.column(changes.iter().map(|change| change.job.updated_at));
        self.column(changes.iter().map(|change| change.job.changed_at));
    }

    /// The rest of [`columns::CHANGED`].
    pub(super) fn state(&mut self, changes: &[Change<'_>]) {
        self.column(changes.iter().map(|change| change.job.state));
        self.column(changes.iter().map(|change| change.job.attempt));
        self.column(changes.iter().map(|change| change.job.owner.as_deref()));
        self.column(changes.iter().map(|change| change.job.scheduled_at));
        self.column(changes.iter().map(|change| change.job.started_at));
        self.column(changes.iter().map(|change| change.job.ended_at));
        self.column(changes.iter().map(|change| change.job.give_up_at));
        self.column(changes.iter().map(|change| change.job.cancel_requested));
        self.column(changes.iter().map(|change| change.job.failure_reason));
        self.column(changes.iter().map(|change| change.job.failure_message.as_deref()));
        self.column(changes.iter().map(|change| change.job.failure_status));
        self.column(changes.iter().map(|change| change.closed));
    }

    /// In the order of [`columns::ATTEMPT`].
    pub(super) fn attempt(&mut self, attempts: &[&attempt::Model]) {
        self.array(attempts.iter().map(|attempt| attempt.job_id.as_slice()));
        self.column(attempts.iter().map(|attempt| attempt.attempt));
        self.column(attempts.iter().map(|attempt| attempt.node.as_str()));
        self.column(attempts.iter().map(|attempt| attempt.claimed_at));
        self.column(attempts.iter().map(|attempt| attempt.sent_at));
        self.column(attempts.iter().map(|attempt| attempt.reported));
        self.column(attempts.iter().map(|attempt| attempt.ended_at));
        self.column(attempts.iter().map(|attempt| attempt.http_status));
        self.column(attempts.iter().map(|attempt| attempt.failure_reason));
        self.column(attempts.iter().map(|attempt| attempt.failure_message.as_deref()));
        self.column(attempts.iter().map(|attempt| attempt.last_sequence));
        self.column(attempts.iter().map(|attempt| attempt.end_sequence));
        self.column(attempts.iter().map(|attempt| attempt.end_hash.as_deref()));
    }

    /// In the order of [`columns::BEGUN`].
    pub(super) fn begun(&mut self, attempts: &[&attempt::Model]) {
        self.array(attempts.iter().map(|attempt| attempt.job_id.as_slice()));
        self.column(attempts.iter().map(|attempt| attempt.attempt));
        self.column(attempts.iter().map(|attempt| attempt.node.as_str()));
        self.column(attempts.iter().map(|attempt| attempt.claimed_at));
        self.column(attempts.iter().map(|attempt| attempt.reported));
        self.column(attempts.iter().map(|attempt| attempt.last_sequence));
    }

    /// In the order of [`columns::TEXT`].
    pub(super) fn job_text(&mut self, texts: &[&job_text::Model]) {
        self.array(texts.iter().map(|text| text.job_id.as_slice()));
        self.column(texts.iter().map(|text| text.attempt));
        self.column(texts.iter().map(|text| text.text.as_deref()));
        self.column(texts.iter().map(|text| text.text_written));
        self.column(texts.iter().map(|text| text.text_truncated));
        self.column(texts.iter().map(|text| text.result_type.as_deref()));
        self.column(texts.iter().map(|text| text.result.as_deref()));
        self.column(texts.iter().map(|text| text.result_truncated));
    }
}
