//! A change of a running job that has to be in the tables before anybody is shown it;
//! and what becomes of the job where it cannot be written, or was changed there.

use super::{Inner, Live, taken_over};
use crate::{
    engine::{Engine, Error, lock},
    job::{Connection, Event, Job, Record, Refused, Signal, State, Transition, transition::Save},
    store::{Ended, Outcome, Permit, Update, Write},
    watch::Frame,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::oneshot;

/// A change on its way to the tables that is shown only when it is there.
pub(super) struct Commit {
    /// What callers are shown meanwhile.
    pub(super) before: Job,
    /// Starts that joined since then.
    pub(super) joining: u32,
    /// Who waits for it.
    pub(super) waiting: Vec<oneshot::Sender<Result<(), Error>>>,
}

impl Commit {
    /// Tells all who wait. Whoever hung up is not told.
    pub(super) fn tell(&mut self, result: impl Fn() -> Result<(), Error>) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(result());
        }
    }
}

impl Engine {
    /// Applies an event that may have to be committed, and waits until it is.
    /// `ended_by` is the report behind it.
    pub(in crate::engine) async fn commit(
        self: &Arc<Self>,
        live: &Arc<Live>,
        event: Event,
        ended_by: Option<Ended>,
    ) -> Result<Transition, Uncommitted> {
        let permit = self.store.reserve().await.map_err(|_| Error::Draining)?;
        let (transition, done) = {
            let mut inner = live.when(|inner| !inner.saving || inner.check().is_err()).await;
            inner.check()?;
            if matches!(inner.job.state, State::Scheduled | State::Queued) {
                // The attempt ended while we waited: the job is the tables' again.
                return Err(Refused::StaleAttempt(live.attempt).into());
            }
            match self.apply_and_submit(live, &mut inner, event, ended_by, permit)? {
                (transition, None) => return Ok(transition),
                (transition, Some(done)) => (transition, done),
            }
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
        inner.text_dirty |= inner.job.text.cursor() != text_at;
        if transition.save != Save::Commit {
            self.timers.arm(live, inner);
            return Ok((transition, None));
        }
        if transition.attempt_ended {
            let Inner { row, job, .. } = &mut *inner;
            let as_it_ran = row.row(&before, &self.settings.node);
            row.end(as_it_ran, job, now.wall, status, ended_by);
        }
        if transition.connection == Connection::Close {
            // Closed before anything is retried.
            inner.told.connection = Connection::Close;
            inner.wake();
        }
        inner.commit = Some(Box::new(Commit { before, joining: 0, waiting: Vec::with_capacity(1) }));
        let text = transition.attempt_ended && (inner.text_dirty || inner.job.output.is_some());
        let update = inner.update(self, live, text, now.mono);
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
            inner.end_attempt();
        }
        let revision = inner.job.revision;
        inner.saved(self, live, Some(revision));
        if inner.job.state_name().is_final() {
            self.shows(&Arc::new(Frame::new(live.record(inner.job.clone()))));
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
        live.tell(|told| {
            told.stop |= running;
            if transition.connection != Connection::Keep {
                told.connection = transition.connection;
            }
        });
        if let Some(record) = waits {
            // Not refused, whatever the limit: it was accepted long ago.
            self.pending.fetch_add(1, Ordering::AcqRel);
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
        inner.wake();
        drop(inner);
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
    pub(in crate::engine) fn lose(self: &Arc<Self>, live: &Arc<Live>, row: Option<&Record>) {
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
        inner.end_attempt();
        self.timers.disarm(&mut inner);
        inner.tell(|| Err(taken_over()));
        drop(inner);
        live.tell(|told| {
            // The action goes on for its new owner, and reports to it.
            if !adopted {
                told.connection = Connection::Close;
            }
        });
    }
}

/// Why an event was not committed.
#[derive(Debug)]
pub(in crate::engine) enum Uncommitted {
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
