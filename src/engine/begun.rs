//! A new job that finds a slot free, and nobody who waits for it, is stored as one that
//! runs: one write less, and one commit sooner, than to store it and then to claim it.
//!
//! A target with a rate queues all, since a slot alone does not say when one may begin.
//!
//! Identical Starts that come to this node while it is on its way to the tables join it,
//! as they would if it waited there; one that comes when it is stored finds that it has
//! begun. Of what is on its way other nodes know nothing: while there are others, a job
//! that identical ones may join is queued, where its key is for all to find. A node that
//! has just come is known from the next look on, a fifth of a lease later.

use super::{Engine, lock};
use crate::{
    job::{Event, JobId, MergeClass, Payload, Record, State},
    store::{AttemptRow, Error, New},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::OwnedSemaphorePermit;

/// Between two looks for what became of a write that failed.
const LOOK: Duration = Duration::from_millis(250);

/// Those on their way to the tables that waiting jobs may join, by their merge keys.
#[derive(Debug, Default)]
pub(super) struct Beginning(Mutex<HashMap<[u8; 32], JobId>>);

/// How a new job goes to the tables.
pub(super) enum Way {
    /// It is not due yet.
    Later,
    /// It waits for a slot.
    Queued,
    /// It runs.
    Begun(Box<Begun>),
}

/// What a job has that runs once it is stored.
pub(super) struct Begun {
    row: AttemptRow,
    slot: OwnedSemaphorePermit,
    key: Option<[u8; 32]>,
}

impl Engine {
    /// To be asked right before `new` is handed to the writer, which makes it a job that
    /// runs if it can be one.
    pub(super) fn way(&self, new: &mut New) -> Way {
        if !matches!(new.record.job.state, State::Queued) {
            return Way::Later;
        }
        let target = Arc::clone(&new.record.spec.target);
        let pending = new.record.spec.merge == Some(MergeClass::Pending);
        let key = new.merge.map(|merge| merge.key).filter(|_| pending);
        let mut beginning = lock(&self.beginning.0);
        new.twin = key.and_then(|key| beginning.get(&key).copied());
        let alone = key.is_none() || !self.store.others_live();
        let open = new.twin.is_none() && alone && self.healthy();
        let begun = open.then(|| self.dispatcher.place(&target)).flatten().and_then(|slot| {
            let (mut job, now) = (new.record.job.clone(), self.clock.now());
            // If its time is over already that is for the schedule.
            job.apply(Event::Claim, now).ok()?;
            matches!(job.state, State::Running(_)).then(|| {
                let row = AttemptRow::claimed(job.attempt, Arc::clone(&self.settings.node), now.wall);
                new.record.job = job;
                Begun { row, slot, key }
            })
        });
        let Some(begun) = begun else {
            self.dispatcher.comes(&target);
            return Way::Queued;
        };
        if let Some(key) = key {
            beginning.insert(key, new.record.id);
        }
        new.attempt = Some(begun.row.clone());
        Way::Begun(Box::new(begun))
    }

    /// On the writer's side: it is durable.
    pub(super) fn begins(self: &Arc<Self>, begun: Begun, record: Record, payload: Arc<Payload>) {
        self.passed(&begun);
        let Begun { row, slot, .. } = begun;
        self.begin_attempt(record, row, Some(payload), slot);
    }

    /// On the writer's side: another job stands for it.
    pub(super) fn begins_not(&self, begun: Begun) {
        self.passed(&begun);
        drop(begun);
        self.dispatcher.wake();
    }

    /// On the writer's side: it could not be written. Should it be in the tables all the
    /// same, nobody but this node carries it on.
    pub(super) fn begins_perhaps(self: &Arc<Self>, begun: Begun, record: Record, error: &Error) {
        if !error.is_transient() {
            return self.begins_not(begun);
        }
        self.passed(&begun);
        let engine = Arc::clone(self);
        self.tasks.spawn("begun perhaps", async move {
            match engine.is_stored(&record).await {
                Some(merged_count) => {
                    let Begun { row, slot, .. } = begun;
                    engine.begin_attempt(Record { merged_count, ..record }, row, None, slot);
                }
                None => {
                    drop(begun);
                    engine.dispatcher.wake();
                }
            }
        });
    }

    /// Once the store is back: how many have joined a job, if it is there as `record`.
    async fn is_stored(&self, record: &Record) -> Option<u32> {
        while self.store_is_back().await {
            match self.store.records(&[record.id], false).await {
                Ok(rows) => {
                    let row = rows.into_iter().next()?;
                    return (row.job.revision == record.job.revision).then_some(row.merged_count);
                }
                Err(error) if error.is_transient() => {
                    tracing::debug!(job = %record.id, %error, "whether it is stored cannot be read now");
                }
                Err(error) => {
                    tracing::error!(job = %record.id, %error, "whether it is stored cannot be read");
                    return None;
                }
            }
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return None,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        None
    }

    fn passed(&self, begun: &Begun) {
        if let Some(key) = &begun.key {
            lock(&self.beginning.0).remove(key);
        }
    }
}
