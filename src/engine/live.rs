//! A running job in memory: one lock, one update under way at a time.

use super::{
    Engine, Error,
    attempt::Attempt,
    lock,
    signals::{Signal as Told, Signals},
    timers::Armed,
};
use crate::{
    job::{
        Connection, Event, Job, JobId, Record, Refused, Revision, Signal, Spec, State, Transition,
        transition::Save,
    },
    store::{AttemptRow, Ended, Outcome, Permit, Update, Write},
};
use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

/// Text of one job is stored at most this often, milliseconds.
const TEXT_EVERY: u64 = 1_000;

/// Every running job of this process.
#[derive(Default)]
pub(super) struct Map(Mutex<HashSet<ById>>);

/// Known by its id, which it has in itself.
struct ById(Arc<Live>);

impl Borrow<JobId> for ById {
    fn borrow(&self) -> &JobId {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl Map {
    pub(super) fn get(&self, id: JobId) -> Option<Arc<Live>> {
        lock(&self.0).get(&id).map(|live| Arc::clone(&live.0))
    }

    pub(super) fn insert(&self, live: &Arc<Live>) {
        lock(&self.0).replace(ById(Arc::clone(live)));
    }

    /// Forgets this attempt, not one that came after it. `recent` forgets it under the
    /// same lock: who finds it here no more must not be shown what it was while it ran,
    /// and what somebody who found it here keeps of it comes too late.
    fn remove(&self, live: &Arc<Live>, recent: &super::recent::Recent) {
        let mut map = lock(&self.0);
        recent.forget(live.id);
        if map.get(&live.id).is_some_and(|there| Arc::ptr_eq(&there.0, live)) {
            map.remove(&live.id);
        }
    }

    /// In the order of their ids.
    pub(super) fn all(&self) -> Vec<Arc<Live>> {
        let mut all: Vec<Arc<Live>> = lock(&self.0).iter().map(|live| Arc::clone(&live.0)).collect();
        all.sort_by_key(|live| live.id);
        all
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

/// One attempt of a job that runs.
pub(super) struct Live {
    pub(super) id: JobId,
    pub(super) attempt: u32,
    /// Of the record, what never changes.
    spec: Arc<Spec>,
    created_at: i64,
    created_by: Arc<str>,
    retry_of: Option<JobId>,
    /// How many later Starts joined it.
    merged: AtomicU32,
    pub(super) inner: Mutex<Inner>,
    /// Told whenever an update of this job is no longer under way.
    pub(super) settled: Notify,
    pub(super) signals: Signals,
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
    /// For the row of this attempt.
    pub(super) row: Attempt,
    /// What a timer is set for.
    pub(super) armed: Option<Armed>,
    /// Held until the attempt is over.
    slot: Option<Arc<OwnedSemaphorePermit>>,
}

/// A change on its way to the tables that is shown only when it is there.
struct Commit {
    /// What callers are shown meanwhile.
    before: Job,
    /// Starts that joined since then.
    joining: u32,
    /// Who waits for it.
    waiting: Vec<oneshot::Sender<Result<(), Error>>>,
}

impl Commit {
    /// Tells all who wait. Whoever hung up is not told.
    fn tell(&mut self, result: impl Fn() -> Result<(), Error>) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(result());
        }
    }
}

impl Live {
    /// A job that runs, as it is stored.
    pub(super) fn new(record: Record, row: AttemptRow, slot: Option<Arc<OwnedSemaphorePermit>>) -> Arc<Self> {
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
            retry_of,
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
                row: Attempt::new(row),
                armed: None,
                slot,
            }),
            settled: Notify::new(),
            signals: Signals::new(Told { stop, ..Told::default() }),
        })
    }

    fn record(&self, job: Job) -> Record {
        Record {
            id: self.id,
            spec: Arc::clone(&self.spec),
            created_at: self.created_at,
            created_by: Arc::clone(&self.created_by),
            retry_of: self.retry_of,
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
    /// Whether a change that callers can see must wait.
    pub(super) fn committing(&self) -> bool {
        self.commit.is_some()
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
    pub(super) fn update(&mut self, live: &Live, text: bool, now: u64) -> Update {
        self.saving = true;
        self.dirty = false;
        let job = if text {
            self.text_dirty = false;
            self.text_rests_until = now.saturating_add(TEXT_EVERY);
            self.job.clone()
        } else {
            self.job.without_text()
        };
        Update { from: self.stored, record: live.record(job), text, attempt: Some(self.row.row(&self.job)) }
    }

    /// An update is no longer under way.
    pub(super) fn saved(&mut self, engine: &Engine, live: &Arc<Live>, revision: Option<Revision>) {
        self.saving = false;
        if self.lost {
            return live.settled.notify_waiters();
        }
        match revision {
            Some(revision) => self.stored = revision,
            None => self.dirty = true,
        }
        if self.dirty || self.text_dirty {
            engine.flusher.add(live);
        }
        live.settled.notify_waiters();
    }
}

impl Engine {
    /// Shows the job's present state to its watchers. Under the job's lock, so
    /// that states are shown in their order.
    pub(super) fn publish(&self, live: &Live, inner: &Inner) {
        if self.hub.is_watched(live.id) {
            self.hub.publish(&Arc::new(crate::watch::Frame::new(live.record(inner.job.clone()))));
        }
    }

    /// Shows a job that does not run here to its watchers, if it has any.
    pub(super) fn publish_record(&self, record: &Record) {
        if self.hub.is_watched(record.id) {
            self.hub.publish(&Arc::new(crate::watch::Frame::new(record.clone())));
        }
    }

    /// Applies an event that may have to be committed, and waits until it is.
    /// `ended_by` is the report behind it.
    pub(super) async fn commit(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Event,
        ended_by: Option<Ended>,
    ) -> Result<Transition, Uncommitted> {
        let permit = self.store.reserve().await.map_err(|_| Error::Draining)?;
        let (transition, done) = loop {
            let settled = live.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            {
                let mut inner = lock(&live.inner);
                if inner.lost {
                    return Err(taken_over().into());
                }
                if inner.failing {
                    return Err(Uncommitted::Failed(Error::Unavailable(
                        "an earlier change is not stored yet".into(),
                    )));
                }
                if matches!(inner.job.state, State::Scheduled | State::Queued) && !inner.saving {
                    // The attempt ended while we waited: the job is the tables' again.
                    return Err(Refused::StaleAttempt(live.attempt).into());
                }
                if !inner.saving {
                    match self.apply_and_submit(live, &mut inner, event, ended_by, permit)? {
                        (transition, None) => return Ok(transition),
                        (transition, Some(done)) => break (transition, done),
                    }
                }
            }
            settled.await;
        };
        match self.told(done).await {
            Ok(Ok(())) => Ok(transition),
            Ok(Err(error)) | Err(error) => Err(Uncommitted::Failed(error)),
        }
    }

    #[allow(clippy::type_complexity)]
    fn apply_and_submit(
        self: &Arc<Self>,
        live: &Arc<Live>,
        inner: &mut Inner,
        event: Event,
        ended_by: Option<Ended>,
        permit: Permit,
    ) -> Result<(Transition, Option<oneshot::Receiver<Result<(), Error>>>), Refused> {
        let status = match &event {
            Event::Of(_, Signal::Response(response)) => Some(response.status),
            _ => None,
        };
        let now = self.clock.now();
        let before = inner.job.clone();
        let text_at = before.text.cursor();
        let transition = inner.job.apply(event, now)?;
        inner.row.http_status = status.or(inner.row.http_status);
        inner.text_dirty |= inner.job.text.cursor() != text_at;
        if transition.save != Save::Commit {
            self.timers.arm(live, inner);
            return Ok((transition, None));
        }
        if transition.attempt_ended {
            let Inner { row, job, .. } = &mut *inner;
            row.end(&before, job, now.wall, ended_by);
        }
        if transition.connection == Connection::Close {
            // Closed before anything is retried.
            live.signals.change(|told| told.connection = Connection::Close);
        }
        inner.commit = Some(Box::new(Commit { before, joining: 0, waiting: Vec::with_capacity(1) }));
        let text = transition.attempt_ended && (inner.text_dirty || inner.job.output.is_some());
        let update = inner.update(live, text, now.mono);
        let done = inner.join();
        self.submit(live, update, transition, permit);
        Ok((transition, Some(done)))
    }

    fn submit(self: &Arc<Self>, live: &Arc<Live>, update: Update, transition: Transition, permit: Permit) {
        let (engine, live) = (Arc::clone(self), Arc::clone(live));
        let again = update.clone();
        permit.write(
            Write::Update(Box::new(update)),
            Box::new(move |result| match result {
                Ok(Outcome::Done) => engine.committed(&live, transition),
                Ok(Outcome::Lost | Outcome::Existing(_)) => engine.commit_lost(&live, again, transition),
                Err(error) => engine.commit_failed(&live, again, transition, error),
            }),
        );
    }

    /// On the writer's side: the change is durable. Shows it and carries out
    /// what follows.
    fn committed(self: &Arc<Self>, live: &Arc<Live>, transition: Transition) {
        let mut inner = lock(&live.inner);
        let mut commit = inner.commit.take();
        inner.failing = false;
        live.merged.fetch_add(commit.as_ref().map_or(0, |commit| commit.joining), Ordering::Relaxed);
        let running = matches!(inner.job.state, State::Running(_));
        if !running {
            // Out of the map before anybody is shown that it ended: a reader
            // then finds the row.
            self.live.remove(live, &self.recent);
            inner.slot = None;
            inner.dirty = false;
            inner.text_dirty = false;
        }
        let revision = inner.job.revision;
        inner.saved(self, live, Some(revision));
        if inner.job.state_name().is_final() {
            let shown = Arc::new(crate::watch::Frame::new(live.record(inner.job.clone())));
            self.recent.put(&shown);
            if self.hub.is_watched(live.id) {
                self.hub.publish(&shown);
            }
        } else {
            self.publish(live, &inner);
        }
        if let Some(commit) = &mut commit {
            commit.tell(|| Ok(()));
        }
        let waits =
            (!running && !inner.job.state_name().is_final()).then(|| live.record(inner.job.without_text()));
        self.timers.arm(live, &mut inner);
        drop(inner);
        live.signals.change(|told| {
            told.stop |= running;
            told.over = !running;
            if transition.connection != Connection::Keep {
                told.connection = transition.connection;
            }
        });
        if let Some(record) = waits {
            // Not refused, whatever the limit: it was accepted long ago.
            self.pending.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            self.waits(record, None);
        }
        self.dispatcher.wake();
    }

    /// Whoever waits may repeat; the change itself is tried again until it is
    /// in the tables.
    fn commit_failed(
        self: &Arc<Self>,
        live: &Arc<Live>,
        update: Update,
        transition: Transition,
        error: crate::store::Error,
    ) {
        let mut inner = lock(&live.inner);
        if inner.lost {
            return; // what it was is told already
        }
        if !std::mem::replace(&mut inner.failing, true) {
            tracing::warn!(job = %live.id, %error, "a change could not be committed and is tried again");
        }
        inner.tell(|| Err(Error::from(error.clone())));
        drop(inner);
        live.settled.notify_waiters();
        let (engine, live) = (Arc::clone(self), Arc::clone(live));
        self.tasks.spawn("commit again", async move {
            tokio::select! {
                biased;
                () = tokio::time::sleep(Duration::from_millis(250)) => {}
                () = engine.tasks.stop().cancelled() => {}
            }
            engine.store_is_back().await; // if it is not, one last try
            if let Ok(permit) = engine.store.reserve().await {
                engine.submit(&live, update, transition, permit);
            }
        });
    }

    /// The row was not as it was left: either an earlier try did commit, or
    /// somebody changed the tables behind our back.
    fn commit_lost(self: &Arc<Self>, live: &Arc<Live>, update: Update, transition: Transition) {
        let (engine, live) = (Arc::clone(self), Arc::clone(live));
        self.tasks.spawn("commit lost", async move {
            match engine.store.records(&[live.id], false).await {
                Ok(rows)
                    if rows.first().is_some_and(|row| row.job.revision == update.record.job.revision) =>
                {
                    engine.committed(&live, transition);
                }
                Ok(rows) => engine.lose(&live, rows.first()),
                Err(error) => engine.commit_failed(&live, update, transition, error),
            }
        });
    }

    /// The row is another one than this engine left: `row`, or gone. Another node has
    /// adopted the job, having not heard of this one for a lease; or somebody changed
    /// the tables by hand. Nothing more of this attempt is written from here.
    pub(super) fn lose(self: &Arc<Self>, live: &Arc<Live>, row: Option<&Record>) {
        let adopted = row
            .is_some_and(|row| matches!(row.job.state, State::Running(_)) && row.job.attempt == live.attempt);
        self.live.remove(live, &self.recent);
        let mut inner = lock(&live.inner);
        if std::mem::replace(&mut inner.lost, true) {
            return;
        }
        if self.store.is_shared() {
            tracing::warn!(job = %live.id, attempt = live.attempt, "another node has taken the job over");
        } else {
            tracing::error!(job = %live.id, "the job was changed or deleted in the tables by another hand");
        }
        inner.slot = None;
        inner.dirty = false;
        inner.text_dirty = false;
        self.timers.disarm(&mut inner);
        inner.tell(|| Err(taken_over()));
        drop(inner);
        live.settled.notify_waiters();
        live.signals.change(|told| {
            // The action goes on for its new owner, and reports to it.
            if !adopted {
                told.connection = Connection::Close;
            }
            told.over = true;
        });
    }
}

/// Worth repeating: then the new owner is found.
pub(super) fn taken_over() -> Error {
    Error::Unavailable("the job was taken over by another node".into())
}

/// Why an event was not committed.
#[derive(Debug)]
pub(super) enum Uncommitted {
    /// The machine refuses it.
    Refused(Refused),
    /// It could not be written, or not yet.
    Failed(Error),
}

impl From<Refused> for Uncommitted {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Error> for Uncommitted {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_job_takes_little_memory() {
        // With the two counters before it, half a KiB of the allocator.
        assert!(size_of::<Live>() + 16 <= 512, "{}", size_of::<Live>());
        assert!(size_of::<Spec>() + 16 <= 192, "{}", size_of::<Spec>());
    }
}
