//! A running job in memory: one lock, one update under way at a time.

mod commit;
mod map;
mod told;

pub(super) use commit::Uncommitted;
pub(super) use map::Map;

use super::{Engine, Error, attempt::Attempt, lock, timers::Armed};
use crate::{
    job::{Event, Job, JobId, Record, Refused, Revision, Spec, Transition, transition::Save},
    store::{AttemptRow, Update},
    watch::Frame,
};
use commit::Commit;
use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU32, Ordering},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use told::Told;

/// Text of one job is stored at most this often, milliseconds.
const TEXT_EVERY: u64 = 1_000;

/// One attempt of a job that runs.
pub(super) struct Live {
    pub(super) id: JobId,
    pub(super) attempt: u32,
    /// Of the record, what never changes.
    spec: Arc<Spec>,
    created_at: i64,
    created_by: Arc<str>,
    retry_of: Option<Box<JobId>>,
    /// How many later Starts joined it.
    merged: AtomicU32,
    pub(super) inner: Mutex<Inner>,
}

/// What the lock guards.
pub(super) struct Inner {
    pub(super) job: Job,
    /// The commit that callers wait for, if one is under way.
    commit: Option<Box<Commit>>,
    /// The revision in the table.
    stored: Revision,
    /// An update is in the writer's queue.
    saving: bool,
    /// The commit under way has failed and is tried again.
    pub(super) failing: bool,
    /// The row is another's now: nothing is applied any more.
    pub(super) lost: bool,
    /// Something is not in the tables yet.
    pub(super) dirty: bool,
    /// The same, for text.
    pub(super) text_dirty: bool,
    /// When text may be handed to the writer again, mono.
    pub(super) text_rests_until: u64,
    /// For those who serve it.
    pub(super) told: Told,
    /// Where those wait who wait for something of all this. Once an action has answered
    /// 202 nobody does, mostly.
    waiting: Option<Arc<Notify>>,
    /// For the row of this attempt.
    pub(super) row: Attempt,
    /// What a timer is set for.
    pub(super) armed: Option<Armed>,
    /// Held until the attempt and the call of its action are both over.
    slot: Option<OwnedSemaphorePermit>,
    /// Whether the action is (about to be) called.
    calling: bool,
}

impl Live {
    /// A job that runs at `node`, as it is stored. `calling`: its action is about to be
    /// called.
    pub(super) fn new(
        record: Record,
        row: AttemptRow,
        node: &Arc<str>,
        slot: Option<OwnedSemaphorePermit>,
        calling: bool,
    ) -> Arc<Self> {
        let Record { id, spec, created_at, created_by, retry_of, merged_count, job } = record;
        let stored = job.revision;
        let stop = job.cancel_requested;
        Arc::new(Self {
            merged: AtomicU32::new(merged_count),
            id,
            attempt: job.attempt,
            spec,
            created_at,
            created_by,
            retry_of: retry_of.map(Box::new),
            inner: Mutex::new(Inner {
                job,
                commit: None,
                stored,
                saving: false,
                failing: false,
                lost: false,
                dirty: false,
                text_dirty: false,
                text_rests_until: 0,
                told: Told { stop, ..Told::default() },
                waiting: None,
                row: Attempt::new(row, node),
                armed: None,
                slot,
                calling,
            }),
        })
    }

    fn record(&self, job: Job) -> Record {
        Record {
            id: self.id,
            spec: Arc::clone(&self.spec),
            created_at: self.created_at,
            created_by: Arc::clone(&self.created_by),
            retry_of: self.retry_of.as_deref().copied(),
            merged_count: self.merged.load(Ordering::Relaxed),
            job,
        }
    }

    /// A later Start joined it, and the tables have that.
    pub(super) fn joined(self: &Arc<Self>, engine: &Arc<Engine>) {
        let mut inner = lock(&self.inner);
        if let Some(commit) = &mut inner.commit {
            // Nothing else may change the job now: what is shown after the commit
            // shows the number too, and what is shown before it does not.
            commit.joining += 1;
            return;
        }
        self.merged.fetch_add(1, Ordering::Relaxed);
        let _ = inner.apply(engine, self, Event::Joined); // a job that ended meanwhile is as it is
    }

    /// What callers are shown.
    pub(super) fn snapshot(&self, text: bool) -> Record {
        let inner = lock(&self.inner);
        let job = inner.shown();
        self.record(if text { job.clone() } else { job.without_text() })
    }

    /// The job, locked, as soon as it is `ready`. Cancel safe.
    pub(super) async fn when(&self, ready: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        loop {
            let place;
            let changed = {
                let mut inner = lock(&self.inner);
                if ready(&inner) {
                    return inner;
                }
                place = Arc::clone(inner.waiting.get_or_insert_default());
                // Under the lock: it hears of whatever changes from now on.
                place.notified()
            };
            changed.await;
        }
    }

    /// Which state callers are shown.
    pub(super) fn shown_revision(&self) -> Revision {
        lock(&self.inner).shown().revision
    }

    /// Whether its row is as this engine left it: who adopts the job gives it another
    /// epoch.
    pub(super) fn is_still(&self, row: &Record) -> bool {
        row.job.revision.epoch() == lock(&self.inner).stored.epoch()
    }

    pub(super) fn spec(&self) -> &crate::job::Spec {
        &self.spec
    }
}

impl Inner {
    /// All who wait look again: an update of this job is no longer under way, or what those
    /// are told who serve it is another.
    fn wake(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.notify_waiters();
        }
    }

    /// Whether a change that callers can see must wait.
    pub(super) fn committing(&self) -> bool {
        self.commit.is_some()
    }

    /// Whether it is still ours to change, and what was changed before can be stored.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.lost {
            return Err(taken_over());
        }
        if self.failing {
            return Err(Error::Unavailable("an earlier change is not stored yet".into()));
        }
        Ok(())
    }

    /// The call of its action is over.
    pub(super) fn end_call(&mut self) {
        self.calling = false;
        self.let_go();
        self.wake(); // who called waited, and was perhaps the only one: their place goes
    }

    /// The attempt is over.
    fn end_attempt(&mut self) {
        self.told.over = true;
        self.dirty = false;
        self.text_dirty = false;
        self.let_go();
    }

    fn let_go(&mut self) {
        if self.told.over && !self.calling {
            self.slot = None;
        }
    }

    /// What callers are shown.
    fn shown(&self) -> &Job {
        self.commit.as_deref().map_or(&self.job, |commit| &commit.before)
    }

    /// Who waits for the commit under way hears what came of it.
    fn tell(&mut self, result: impl Fn() -> Result<(), Error>) {
        if let Some(commit) = &mut self.commit {
            commit.tell(result);
        }
    }

    /// Whether an update is in the writer's queue.
    pub(super) fn saving(&self) -> bool {
        self.saving
    }

    /// Waits for the commit under way; fails at once where there is none.
    pub(super) fn join(&mut self) -> oneshot::Receiver<Result<(), Error>> {
        let (sender, receiver) = oneshot::channel();
        if let Some(commit) = &mut self.commit {
            commit.waiting.push(sender);
        }
        receiver
    }

    /// Applies what can be neither final nor a cancel. What it changes is
    /// saved with the next flush.
    pub(super) fn apply(
        &mut self,
        engine: &Arc<Engine>,
        live: &Arc<Live>,
        event: Event,
    ) -> Result<Transition, Refused> {
        if self.lost {
            return Err(Refused::StaleAttempt(live.attempt));
        }
        let text_at = self.job.text.cursor();
        let transition = self.job.apply(event, engine.clock.now())?;
        self.text_dirty |= self.job.text.cursor() != text_at;
        if transition.save == Save::Flush && !self.dirty {
            self.dirty = true;
            if !self.saving {
                engine.flusher.add(live);
            }
        }
        if transition.visible {
            engine.publish(live, self);
        }
        engine.timers.arm(live, self);
        Ok(transition)
    }

    /// Text is stored now that came with a revision which is stored already: it gets one
    /// of its own, or nobody who watches on another node would be shown it.
    pub(super) fn raise_for_text(&mut self, engine: &Engine, live: &Live) {
        if engine.store.is_shared() && self.job.revision == self.stored {
            self.job.revision = self.job.revision.next();
            engine.publish(live, self);
        }
    }

    /// The update that brings the tables up to date.
    pub(super) fn update(&mut self, engine: &Engine, live: &Live, text: bool, now: u64) -> Update {
        self.saving = true;
        self.dirty = false;
        let job = if text {
            self.text_dirty = false;
            self.text_rests_until = now.saturating_add(TEXT_EVERY);
            self.job.clone()
        } else {
            self.job.without_text()
        };
        let attempt = Some(self.row.row(&self.job, &engine.settings.node));
        Update { from: self.stored, record: live.record(job), text, attempt }
    }

    /// An update is no longer under way.
    pub(super) fn saved(&mut self, engine: &Engine, live: &Arc<Live>, revision: Option<Revision>) {
        self.saving = false;
        if self.lost {
            return self.wake();
        }
        match revision {
            Some(revision) => self.stored = revision,
            None => self.dirty = true,
        }
        if self.dirty || self.text_dirty {
            engine.flusher.add(live);
        }
        self.wake();
    }
}

impl Engine {
    /// Shows the job's present state to its watchers. Under the job's lock, so
    /// that states are shown in their order.
    pub(super) fn publish(&self, live: &Live, inner: &Inner) {
        if self.hub.is_watched(live.id) {
            self.hub.publish(&Arc::new(Frame::new(live.record(inner.job.clone()))));
        }
    }

    /// Shows a job that does not run here to its watchers, if it has any.
    pub(super) fn publish_record(&self, record: &Record) {
        if self.hub.is_watched(record.id) {
            self.hub.publish(&Arc::new(Frame::new(record.clone())));
        }
    }
}

/// Worth repeating: then the new owner is found.
pub(super) fn taken_over() -> Error {
    Error::Unavailable("the job was taken over by another node".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_job_takes_little_memory() {
        // With the two counters before it, a class of the allocator.
        assert!(size_of::<Live>() + 16 <= 320, "{}", size_of::<Live>());
        assert!(size_of::<Spec>() + 16 <= 192, "{}", size_of::<Spec>());
    }
}
