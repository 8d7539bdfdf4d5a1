//! What falls due while a job waits: its start, `expire_after`, and
//! `max_duration` during a back-off.
//!
//! What it examines: the rows whose time has come. What it does: queues them,
//! or gives them up. It sleeps until the earliest time that is known, looks at
//! the wall clock at least once a second (it may be set), and into the tables
//! at least once a minute, or every five seconds beside other nodes. A change is
//! compared and set, so doing it twice does no harm.

use super::{Engine, Error, live::Uncommitted};
use crate::job::{Event, JobId, Record};
use futures_util::future::join_all;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// Rows in one look.
const ROWS: u64 = 500;
/// Between two looks into the tables that nobody asked for, milliseconds.
const PERIOD: i64 = 60_000;
/// The same where other nodes start jobs too, and may die before these are due.
const SHARED_PERIOD: i64 = 5_000;

/// When to look into the tables next.
pub(super) struct Schedule {
    /// UTC milliseconds.
    next: AtomicI64,
    earlier: Notify,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { next: AtomicI64::new(0), earlier: Notify::new() }
    }
}

impl Schedule {
    /// Something falls due then.
    pub(super) fn wake_at(&self, at: i64) {
        if self.next.fetch_min(at, Ordering::AcqRel) > at {
            self.earlier.notify_one();
        }
    }

    /// The same, told by the loop itself: it wakes nobody.
    fn look_at(&self, at: i64) {
        self.next.fetch_min(at, Ordering::AcqRel);
    }
}

impl Engine {
    pub(super) async fn run_schedule(self: Arc<Self>) {
        loop {
            let changed = self.store_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = self.clock.wall();
            let next = self.schedule.next.load(Ordering::Acquire);
            let rest = if next > now {
                Duration::from_millis(u64::try_from(next - now).unwrap_or(0).min(1_000))
            } else if !self.store.healthy() {
                Duration::from_secs(1)
            } else {
                match self.carry_on(now).await {
                    Ok(()) => continue,
                    Err(error) => {
                        tracing::warn!(%error, "waiting jobs cannot be read now");
                        self.schedule.look_at(now);
                        Duration::from_secs(1)
                    }
                }
            };
            let waiting = next > now;
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return,
                // After a failure the rest is kept, unless the store is back.
                () = self.schedule.earlier.notified(), if waiting => {}
                () = changed, if !waiting => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Queues and gives up what is due, and finds out what is next.
    async fn carry_on(self: &Arc<Self>, now: i64) -> Result<(), Error> {
        // What comes while we read is noticed: it only moves this earlier.
        let period = if self.store.is_shared() { SHARED_PERIOD } else { PERIOD };
        self.schedule.next.store(now.saturating_add(period), Ordering::Release);
        let mut overdue = self.store.overdue(now, ROWS).await?;
        let mut due = self.store.due(now, ROWS).await?;
        let more = overdue.len() as u64 == ROWS || due.len() as u64 == ROWS;
        self.with_texts(&mut overdue).await?;
        self.with_texts(&mut due).await?;
        self.change_all(overdue, &Event::Timer).await?;
        self.change_all(due, &Event::Due).await?;
        if more {
            self.schedule.wake_at(now);
            return Ok(());
        }
        for at in [self.store.next_due().await?, self.store.next_give_up().await?].into_iter().flatten() {
            // A row that is due and was not changed has lost a race: its turn
            // comes with the next change, or the next period.
            if at > now {
                self.schedule.wake_at(at);
            }
        }
        Ok(())
    }

    /// Those that were tried before keep the text of their last attempt, and who
    /// watches them is shown it.
    async fn with_texts(&self, records: &mut [Record]) -> Result<(), Error> {
        let tried: Vec<JobId> =
            records.iter().filter(|record| record.job.attempt > 0).map(|record| record.id).collect();
        if tried.is_empty() {
            return Ok(());
        }
        let whole = self.store.records(&tried, true).await?;
        let mut whole: HashMap<JobId, Record> = whole.into_iter().map(|record| (record.id, record)).collect();
        for record in records {
            if let Some(whole) = whole.remove(&record.id) {
                *record = whole;
            }
        }
        Ok(())
    }

    /// All at once, so that they share a transaction.
    async fn change_all(self: &Arc<Self>, records: Vec<Record>, event: &Event) -> Result<(), Error> {
        let changes = records.into_iter().map(|record| self.change_waiting(record, event.clone()));
        let failed = join_all(changes).await.into_iter().find_map(|changed| match changed {
            Err(Uncommitted::Failed(error)) => Some(error),
            _ => None,
        });
        failed.map_or(Ok(()), Err)
    }
}
