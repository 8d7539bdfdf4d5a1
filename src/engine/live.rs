//! A running job in memory: one lock, one update under way at a time.

use super::{Engine, Error, lock, timers::Armed};
use crate::{
    job::{
        Connection, Event, Job, JobId, Record, Refused, Revision, Signal, Spec, State, Transition,
        transition::Save,
    },
    store::{AttemptRow, Ended, Outcome, Permit, Update, Write},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot, watch};

/// Every running job of this process.
#[derive(Default)]
pub(super) struct Map(Mutex<HashMap<JobId, Arc<Live>>>);

impl Map {
    pub(super) fn get(&self, id: JobId) -> Option<Arc<Live>> {
        lock(&self.0).get(&id).cloned()
    }

    pub(super) fn insert(&self, live: &Arc<Live>) {
        lock(&self.0).insert(live.id, Arc::clone(live));
    }

    /// Forgets this attempt, not one that came after it. `recent` forgets it under the
    /// same lock: who finds it here no more must not be shown what it was while it ran,
    /// and what somebody who found it here keeps of it comes too late.
    fn remove(&self, live: &Arc<Live>, recent: &super::recent::Recent) {
        let mut map = lock(&self.0);
        recent.forget(live.id);
        if map.get(&live.id).is_some_and(|there| Arc::ptr_eq(there, live)) {
            map.remove(&live.id);
        }
    }

    /// In the order of their ids.
    pub(super) fn all(&self) -> Vec<Arc<Live>> {
        let mut all: Vec<Arc<Live>> = lock(&self.0).values().cloned().collect();
        all.sort_by_key(|live| live.id);
        all
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

/// What those who serve an attempt are told.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signals {
    /// Somebody cancelled the job.
    pub(super) stop: bool,
    /// What becomes of the connection to the action.
    pub(super) connection: Connection,
    /// Open ReportStreams.
    pub(super) streams: usize,
    /// The attempt is over, and that is committed.
    pub(super) over: bool,
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
    pub(super) signals: watch::Sender<Signals>,
}

/// What the lock guards.
pub(super) struct Inner {
    pub(super) job: Job,
    /// What callers are shown while a commit is under way.
    before: Option<Box<Job>>,
    /// Starts that joined since then.
    joining: u32,
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
    /// When text was last handed to the writer, mono.
    pub(super) text_saved_at: Option<u64>,
    /// Row of this attempt, as it is to be stored.
    pub(super) row: AttemptRow,
    /// What a timer is set for.
    pub(super) armed: Option<Armed>,
    /// Held until the attempt is over.
    slot: Option<Arc<OwnedSemaphorePermit>>,
    /// Who waits for the commit under way.
    waiting: Vec<oneshot::Sender<Result<(), Error>>>,
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
                before: None,
                joining: 0,
                stored,
                saving: false,
                failing: false,
                lost: false,
                dirty: false,
                text_dirty: false,
                text_saved_at: None,
                row,
                armed: None,
                slot,
                waiting: Vec::new(),
            }),
            settled: Notify::new(),
            signals: watch::Sender::new(Signals { stop, ..Signals::default() }),
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
        if inner.committing() {
            // Nothing else may change the job now: what is shown after the commit
            // shows the number too, and what is shown before it does not.
            inner.joining += 1;
            return;
        }
        self.merged.fetch_add(1, Ordering::Relaxed);
        let _ = inner.apply(engine, self, Event::Joined); // a job that ended meanwhile is as it is
    }

    /// What callers are shown.
    pub(super) fn snapshot(&self, text: bool) -> Record {
        let inner = lock(&self.inner);
        let job = inner.before.as_deref().unwrap_or(&inner.job);
        self.record(if text { job.clone() } else { job.without_text() })
    }

    /// Which state callers are shown.
    pub(super) fn shown_revision(&self) -> Revision {
        let inner = lock(&self.inner);
        inner.before.as_deref().unwrap_or(&inner.job).revision
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
        self.before.is_some()
    }

    /// Whether an update is in the writer's queue.
    pub(super) fn saving(&self) -> bool {
        self.saving
    }

    /// Waits for the commit under way.
    pub(super) fn join(&mut self) -> oneshot::Receiver<Result<(), Error>> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.push(sender);
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
        self.note();
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

    /// Keeps the attempt's row in step with the run.
    fn note(&mut self) {
        if let State::Running(run) = &self.job.state {
            self.row.sent_at = run.sent_at;
            self.row.reported = run.reported;
            self.row.sequence = run.sequence;
        }
    }

    /// The update that brings the tables up to date.
    pub(super) fn update(&mut self, live: &Live, text: bool, now: u64) -> Update {
        self.saving = true;
        self.dirty = false;
        let job = if text {
            self.text_dirty = false;
            self.text_saved_at = Some(now);
            self.job.clone()
        } else {
            self.job.without_text()
        };
        Update { from: self.stored, record: live.record(job), text, attempt: Some(self.row.clone()) }
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
        match done.await {
            Ok(Ok(())) => Ok(transition),
            Ok(Err(error)) => Err(Uncommitted::Failed(error)),
            Err(_) => Err(Uncommitted::Failed(Error::Draining)),
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
        if let Event::Of(attempt, Signal::Response(response)) = &event
            && *attempt == live.attempt
        {
            inner.row.http_status = Some(response.status);
        }
        let now = self.clock.now();
        let before = inner.job.clone();
        let text_at = before.text.cursor();
        if let Event::Of(_, Signal::Report(report)) = &event {
            // The row must know the last sequence even though the run is over.
            inner.row.sequence = report.sequence.unwrap_or(inner.row.sequence).max(inner.row.sequence);
            inner.row.reported = true;
        }
        let transition = inner.job.apply(event, now)?;
        inner.note();
        inner.text_dirty |= inner.job.text.cursor() != text_at;
        if transition.save != Save::Commit {
            self.timers.arm(live, inner);
            return Ok((transition, None));
        }
        if transition.attempt_ended {
            inner.row.ended_at = Some(now.wall);
            inner.row.failure.clone_from(&inner.job.failure);
            inner.row.ended_by = ended_by;
        }
        if transition.connection == Connection::Close {
            // Closed before anything is retried.
            live.signals.send_modify(|signals| signals.connection = Connection::Close);
        }
        inner.before = Some(Box::new(before));
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
        inner.before = None;
        inner.failing = false;
        live.merged.fetch_add(std::mem::take(&mut inner.joining), Ordering::Relaxed);
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
        for waiting in inner.waiting.drain(..) {
            let _ = waiting.send(Ok(())); // whoever hung up is not told
        }
        let waits =
            (!running && !inner.job.state_name().is_final()).then(|| live.record(inner.job.without_text()));
        self.timers.arm(live, &mut inner);
        drop(inner);
        live.signals.send_modify(|signals| {
            signals.stop |= running;
            signals.over = !running;
            if transition.connection != Connection::Keep {
                signals.connection = transition.connection;
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
        for waiting in inner.waiting.drain(..) {
            let _ = waiting.send(Err(Error::from(error.clone())));
        }
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
        for waiting in inner.waiting.drain(..) {
            let _ = waiting.send(Err(taken_over()));
        }
        drop(inner);
        live.settled.notify_waiters();
        live.signals.send_modify(|signals| {
            // The action goes on for its new owner, and reports to it.
            if !adopted {
                signals.connection = Connection::Close;
            }
            signals.over = true;
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
