//! The row of a running attempt, kept without what its job knows anyway.

use crate::{
    job::{Job, State, run::Run},
    store::{AttemptRow, Ended},
};
use std::sync::Arc;

/// What the row has beside the job.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Who claimed it, if another node did.
    other: Option<Box<Arc<str>>>,
    claimed_at: i64,
    /// The whole row, once the attempt has ended.
    ended: Option<Box<AttemptRow>>,
}

impl Attempt {
    /// Of an attempt that runs at `node`: what else `row` says is in its job.
    pub(super) fn new(row: AttemptRow, node: &Arc<str>) -> Self {
        let other = (row.node != *node).then(|| Box::new(row.node));
        Self { other, claimed_at: row.claimed_at, ended: None }
    }

    /// As it is to be stored by `node`, where it runs.
    pub(super) fn row(&self, job: &Job, node: &Arc<str>) -> AttemptRow {
        if let Some(ended) = &self.ended {
            return (**ended).clone();
        }
        let run = run(job);
        let by = self.other.as_deref().unwrap_or(node);
        AttemptRow {
            sent_at: run.and_then(|run| run.sent_at).map(i64::from),
            reported: run.is_some_and(|run| run.reported),
            sequence: run.map_or(0, |run| run.sequence),
            http_status: run.and_then(|run| run.http_status),
            ..AttemptRow::claimed(job.attempt, Arc::clone(by), self.claimed_at)
        }
    }

    /// It has ended: `row` is what was to be stored while it ran, `job` as it is now.
    /// `status` and `ended_by` are what ended it, if the action did.
    pub(super) fn end(
        &mut self,
        mut row: AttemptRow,
        job: &Job,
        at: i64,
        status: Option<u16>,
        ended_by: Option<Ended>,
    ) {
        row.http_status = status.or(row.http_status);
        if let Some(ended_by) = &ended_by {
            row.sequence = ended_by.sequence.unwrap_or(row.sequence).max(row.sequence);
            row.reported = true;
        }
        row.ended_at = Some(at);
        row.failure = job.failure.as_deref().cloned();
        row.ended_by = ended_by;
        self.ended = Some(Box::new(row));
    }

    /// The highest sequence applied.
    pub(super) fn sequence(&self, job: &Job) -> u64 {
        match &self.ended {
            Some(ended) => ended.sequence,
            None => run(job).map_or(0, |run| run.sequence),
        }
    }

    /// The report that ended it, if one did.
    pub(super) fn ended_by(&self) -> Option<&Ended> {
        self.ended.as_deref()?.ended_by.as_ref()
    }
}

fn run(job: &Job) -> Option<&Run> {
    match &job.state {
        State::Running(run) => Some(run),
        _ => None,
    }
}
