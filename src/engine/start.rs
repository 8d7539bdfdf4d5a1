//! A job begins, and may be cancelled.

use super::{Engine, Error, live::Uncommitted};
use crate::{
    job::{
        Event, Job, JobId, Payload, Record, Refused, State,
        draft::{self, Checked, Defaults, Draft},
    },
    store::{New, Outcome, Update, Write},
    watch::Frame,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// A stored job.
#[derive(Debug)]
pub struct Started {
    /// As stored.
    pub record: Record,
    /// Whether it is an earlier job that was joined.
    pub merged: bool,
}

/// How often a cancel that lost a race looks again.
const LOOKS: u32 = 1_000;

impl Engine {
    /// Stores a job, and answers when it is durable.
    ///
    /// # Errors
    /// Invalid, unknown target, draining, unavailable.
    pub async fn start(self: &Arc<Self>, draft: Draft, created_by: &str) -> Result<Started, Error> {
        if self.is_draining() {
            return Err(Error::Draining);
        }
        let name = if draft.target.is_empty() { "default" } else { &draft.target };
        let target = self.settings.targets.get(name).ok_or_else(|| Error::UnknownTarget(name.to_owned()))?;
        let defaults = Defaults {
            base_path: &target.base_path,
            allow_headers: &target.allow_headers,
            error_timeout: self.settings.error_timeout,
            response_timeout: self.settings.response_timeout,
            max_duration: self.settings.max_duration,
            cancel_grace: self.settings.cancel_grace,
        };
        let now = self.clock.now();
        let Checked { spec, payload, scheduled_at } =
            draft::check(draft, &defaults, now.wall).map_err(Error::Invalid)?;
        let record = Record {
            id: self.clock.job_id(),
            created_at: now.wall,
            created_by: created_by.into(),
            retry_of: None,
            merged_count: 0,
            job: Job::new(Arc::clone(&spec.rules), scheduled_at, now),
            spec: Arc::new(spec),
        };
        let permit = self.store.reserve().await.map_err(|_| Error::Draining)?;
        if !self.one_more_waits() {
            return Err(Error::TooManyPending(self.settings.max_pending));
        }
        let (sender, done) = oneshot::channel();
        let (engine, stored, kept) = (Arc::clone(self), record.clone(), payload.clone());
        permit.write(
            Write::Insert(Box::new(New { record: record.clone(), payload })),
            Box::new(move |result| {
                let stored = result.map(|_| engine.begins(stored, kept));
                if stored.is_err() {
                    engine.one_less_waits();
                }
                let _ = sender.send(stored); // whoever hung up is not told
            }),
        );
        done.await.map_err(|_| Error::Draining)??;
        Ok(Started { record, merged: false })
    }

    /// On the writer's side: a new job is durable.
    fn begins(self: &Arc<Self>, record: Record, payload: Payload) {
        if self.hub.is_watched(record.id) {
            self.hub.publish(&Arc::new(Frame::new(record.clone())));
        }
        self.waits(record, Some(payload));
    }

    /// A waiting job is in the tables: whoever carries it on should know.
    pub(super) fn waits(&self, record: Record, payload: Option<Payload>) {
        if let Some(at) = record.job.give_up_at() {
            self.schedule.wake_at(at);
        }
        match record.job.state {
            State::Scheduled => self.schedule.wake_at(record.job.scheduled_at),
            State::Queued => self.dispatcher.hint(record, payload),
            State::Running(_) | State::Succeeded | State::Failed | State::Cancelled => {}
        }
    }

    /// Cancels a job: a waiting one at once, a running one within its grace.
    ///
    /// # Errors
    /// Not found, final, unavailable.
    pub async fn cancel(self: &Arc<Self>, id: JobId) -> Result<Record, Error> {
        for _ in 0..LOOKS {
            if let Some(live) = self.live.get(id) {
                match self.commit(&live, Event::Cancel, None).await {
                    Ok(_) => return Ok(live.snapshot(true)),
                    Err(Uncommitted::Refused(_)) => {} // it ended meanwhile
                    Err(Uncommitted::Failed(error)) => return Err(error),
                }
            } else {
                let records = self.store.records(&[id], true).await?;
                let Some(record) = records.into_iter().next() else { return Err(Error::NotFound(id)) };
                match self.change_waiting(record, Event::Cancel).await {
                    Ok(Some(record)) => return Ok(record),
                    Ok(None) => {} // somebody was faster
                    Err(Uncommitted::Refused(Refused::Final(state))) => {
                        return Err(Error::Final { id, state });
                    }
                    Err(Uncommitted::Refused(refused)) => return Err(Error::Internal(refused.to_string())),
                    Err(Uncommitted::Failed(error)) => return Err(error),
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(Error::Unavailable("the job's state is not settled".into()))
    }

    /// Applies an event to a job that waits, and commits it. None if the row
    /// has changed meanwhile, or the job runs.
    pub(super) async fn change_waiting(
        self: &Arc<Self>,
        mut record: Record,
        event: Event,
    ) -> Result<Option<Record>, Uncommitted> {
        if matches!(record.job.state, State::Running(_)) {
            return Ok(None);
        }
        let from = record.job.revision;
        record.job.apply(event, self.clock.now())?;
        if record.job.revision == from {
            return Ok(Some(record)); // as it was
        }
        let permit = self.store.reserve().await.map_err(|_| Error::Draining)?;
        let (sender, done) = oneshot::channel();
        let (engine, changed) = (Arc::clone(self), record.clone());
        let update = Update { from, record: record.clone(), text: false, attempt: None };
        permit.write(
            Write::Update(Box::new(update)),
            Box::new(move |result| {
                let won = result.map(|outcome| {
                    let won = outcome == Outcome::Done;
                    if won {
                        if changed.job.state_name().is_final() {
                            engine.one_less_waits();
                        }
                        if engine.hub.is_watched(changed.id) {
                            engine.hub.publish(&Arc::new(Frame::new(changed.clone())));
                        }
                        engine.waits(changed, None);
                    }
                    won
                });
                let _ = sender.send(won); // whoever hung up is not told
            }),
        );
        let won = done.await.map_err(|_| Error::Draining)?.map_err(Error::from)?;
        Ok(won.then_some(record))
    }
}
