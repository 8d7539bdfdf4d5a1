//! What an earlier process, or a node that is dead, left running is taken over.
//!
//! Each RUNNING row gets the next epoch before any report is accepted, so that
//! no revision that a watcher saw can come again. An attempt that surely never
//! began is queued again; any other is adopted and has `error_timeout` to be
//! heard of.

use super::{Engine, Error, live::Live};
use crate::{
    job::{Event, Record, State},
    store::{AttemptRow, Outcome, Update, Write},
};
use futures_util::future::join_all;
use std::sync::{Arc, atomic::Ordering};
use tokio::sync::oneshot;

impl Engine {
    pub(super) async fn adopt_running(self: &Arc<Self>) -> Result<(), Error> {
        // Those that other nodes run are theirs; those of no node are seen to later.
        let left = match self.store.is_shared() {
            true => self.store.running_of(&self.settings.node, None).await?,
            false => self.store.running().await?,
        };
        if left.is_empty() {
            return Ok(());
        }
        tracing::info!(jobs = left.len(), "taking over what was left running");
        for result in join_all(left.into_iter().map(|record| self.adopt(record))).await {
            result?;
        }
        Ok(())
    }

    /// Takes over a running job; false if another node was faster.
    pub(super) async fn adopt(self: &Arc<Self>, mut record: Record) -> Result<bool, Error> {
        let from = record.job.revision;
        let attempt = record.job.attempt;
        let rows = self.store.attempts(record.id).await?;
        let Some(mut row) = rows.into_iter().find(|row| row.attempt == attempt) else {
            return Err(Error::Internal(format!("job {} runs without a row for its attempt", record.id)));
        };
        let now = self.clock.now();
        if let Err(refused) = record.job.apply(Event::Adopt, now) {
            return Err(Error::Internal(format!("job {} cannot be taken over: {refused}", record.id)));
        }
        if !matches!(record.job.state, State::Running(_)) {
            row.ended_at = Some(now.wall);
            row.failure = record.job.failure.as_deref().cloned();
        }
        let update = Update { from, record: record.clone(), text: false, attempt: Some(row.clone()) };
        let permit = self.store.reserve().await.map_err(|_| Error::Draining)?;
        let (sender, done) = oneshot::channel();
        let (engine, id) = (Arc::clone(self), record.id);
        permit.write(
            Write::Update(Box::new(update)),
            Box::new(move |result| {
                let result = result.map(|outcome| outcome == Outcome::Done);
                if result == Ok(true) {
                    engine.adopted(record, row);
                }
                let _ = sender.send(result); // whoever hung up is not told
            }),
        );
        let adopted = done.await.map_err(|_| Error::Draining)??;
        if !adopted && !self.store.is_shared() {
            return Err(Error::Internal(format!("job {id} was changed by another hand")));
        }
        Ok(adopted)
    }

    /// On the writer's side: the job is this engine's.
    fn adopted(self: &Arc<Self>, record: Record, row: AttemptRow) {
        if !matches!(record.job.state, State::Running(_)) {
            tracing::info!(job = %record.id, state = %record.job.state_name(), "its attempt had not begun");
            self.publish_record(&record);
            self.pending.fetch_add(1, Ordering::AcqRel);
            self.waits(record, None);
            return;
        }
        tracing::info!(job = %record.id, attempt = record.job.attempt, "adopted");
        let slot = self.dispatcher.slot(&record.spec.target);
        let live = Live::new(record, row, &self.settings.node, slot, false);
        let mut inner = super::lock(&live.inner);
        self.live.insert(&live);
        self.publish(&live, &inner);
        self.timers.arm(&live, &mut inner);
    }
}
