//! One attempt: triggers the action and tells the machine what came of it.

use super::{AttemptRow, Engine, dispatcher::Connected, live::Live, live::Uncommitted, lock};
use crate::{
    job::{Connection, Event, Payload, Reason, Record, Signal, State, Transition, event::Response},
    secret::ReportToken,
    store,
    trigger::{Outcome, Request, Sink},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;

/// How long a 2xx waits for the attempt's open streams of reports.
const LAST_REPORTS: Duration = Duration::from_secs(1);

/// Hears of the request while it is under way.
struct Ears {
    engine: Arc<Engine>,
    live: Arc<Live>,
}

impl Ears {
    fn tell(&self, signal: Signal) {
        // Neither can be final, so neither has to wait for a commit; a job that
        // ended meanwhile refuses them, which is right.
        let _ = lock(&self.live.inner).apply(&self.engine, &self.live, Event::Of(self.live.attempt, signal));
    }
}

impl Sink for Ears {
    fn sent(&self) {
        tracing::debug!("sent");
        self.tell(Signal::Sent);
    }

    fn heard(&self) {
        self.tell(Signal::Heard);
    }

    fn has_reported(&self) -> bool {
        match &lock(&self.live.inner).job.state {
            State::Running(run) => run.reported,
            _ => true,
        }
    }
}

/// The call of an action, until it is over however it ends.
struct Calling {
    engine: Arc<Engine>,
    live: Arc<Live>,
    connected: Option<Connected>,
}

impl Drop for Calling {
    fn drop(&mut self) {
        lock(&self.live.inner).end_call();
        drop(self.connected.take());
        self.engine.dispatcher.wake();
    }
}

impl Engine {
    /// On the writer's side: the claim is durable.
    pub(super) fn begin_attempt(
        self: &Arc<Self>,
        record: Record,
        row: AttemptRow,
        payload: Option<Arc<Payload>>,
        slot: OwnedSemaphorePermit,
    ) {
        let live = Live::new(record, row, &self.settings.node, Some(slot), true);
        {
            let mut inner = lock(&live.inner);
            self.live.insert(&live);
            self.publish(&live, &inner);
            self.timers.arm(&live, &mut inner);
        }
        let connected = Some(self.dispatcher.connections.open());
        let span = tracing::info_span!("attempt", job = %live.id, attempt = live.attempt);
        let calling = Calling { engine: Arc::clone(self), live, connected };
        let _entered = span.enter();
        self.tasks.spawn("attempt", async move {
            calling.engine.run_attempt(&calling.live, payload).await;
        });
    }

    pub(super) async fn run_attempt(self: &Arc<Self>, live: &Arc<Live>, payload: Option<Arc<Payload>>) {
        let spec = live.spec();
        let path = spec.url.split('?').next().unwrap_or_default();
        tracing::debug!(target_name = &*spec.target, method = &*spec.method, path, "triggering");
        let payload = match payload {
            Some(payload) => Ok(payload),
            None => match Box::pin(self.payload(live)).await {
                Ok(Some(payload)) => payload.map(Arc::new).ok_or_else(|| "its row is gone".to_owned()),
                Ok(None) => return self.lost_by_us(live),
                Err(error) => Err(error.to_string()),
            },
        };
        let signal = match payload {
            Ok(payload) => match self.call(live, payload).await {
                Some(outcome) => signal(outcome),
                None => return, // the job ended first, and the connection with it
            },
            Err(error) => {
                tracing::error!(error, "the request cannot be read");
                Signal::NotSent(
                    Reason::Internal,
                    "the request could not be read; see the server's log".into(),
                )
            }
        };
        if matches!(signal, Signal::Response(Response { status: 200..=201 | 203..=299, .. })) {
            let read = live.until(|told| told.streams == 0 || told.over);
            let _ = tokio::time::timeout(LAST_REPORTS, read).await; // then the 2xx counts
        }
        match self.commit(live, Event::Of(live.attempt, signal), None).await {
            Ok(Transition { attempt_ended, .. }) => {
                let state = lock(&live.inner).job.state_name();
                let (target_name, method) = (&*spec.target, &*spec.method);
                tracing::info!(target_name, method, path, attempt_ended, %state, "the action answered");
            }
            Err(Uncommitted::Refused(_)) => {} // it ended first
            Err(Uncommitted::Failed(error)) => tracing::warn!(%error, "the outcome is not stored yet"),
        }
    }

    /// The request of a job, once the store can be read. None if the end of the
    /// process comes first: the next one finds that nothing was sent.
    async fn payload(&self, live: &Live) -> Result<Option<Option<Payload>>, store::Error> {
        loop {
            match self.store.payload(live.id).await {
                Ok(payload) => return Ok(Some(payload)),
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => tracing::warn!(%error, "the request cannot be read now"),
            }
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return Ok(None),
                () = tokio::time::sleep(Duration::from_millis(250)) => {}
            }
            if !self.store_is_back().await {
                return Ok(None);
            }
        }
    }

    /// Calls the action. None if the connection had to be closed.
    async fn call(self: &Arc<Self>, live: &Arc<Live>, payload: Arc<Payload>) -> Option<Outcome> {
        let spec = live.spec();
        let now = self.clock.now();
        let due_at = lock(&live.inner).job.due_at();
        let credentials = payload.credentials.clone().unwrap_or_default();
        let request = Request {
            target: spec.target.to_string(),
            method: spec.method.to_string(),
            url: spec.url.to_string(),
            payload,
            job: live.id,
            attempt: live.attempt,
            report_token: ReportToken { job: live.id, attempt: live.attempt }.mint(&self.keys),
            deadline: due_at.map(|at| at.saturating_sub(now.mono).div_ceil(1_000)),
            cookie: credentials.cookie,
            authorization: credentials.authorization,
        };
        let ears = Ears { engine: Arc::clone(self), live: Arc::clone(live) };
        if !self.is_ours(live).await {
            return None;
        }
        let mut called = self.trigger.call(request, Arc::new(ears));
        let changed = live.until(|told| told.connection != Connection::Keep);
        tokio::select! {
            biased;
            () = self.tasks.stop().cancelled() => {
                // The connection goes with the process; the next one adopts the job.
                self.lost_by_us(live);
                None
            }
            told = changed => {
                if told.connection == Connection::Linger {
                    let _ = tokio::time::timeout(self.settings.linger, called).await; // whatever comes
                }
                None
            }
            outcome = &mut called => Some(outcome),
        }
    }

    /// Whether the request may be sent. A node that was paused since it claimed the job
    /// may have been taken for dead, and the job be another's.
    async fn is_ours(self: &Arc<Self>, live: &Arc<Live>) -> bool {
        loop {
            match self.may_send(live).await {
                Ok(ours) => return ours,
                Err(error) => {
                    tracing::warn!(%error, "whether the job is still this node's cannot be read now")
                }
            }
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => {
                    self.lost_by_us(live);
                    return false;
                }
                () = tokio::time::sleep(Duration::from_millis(250)) => {}
            }
        }
    }

    fn lost_by_us(self: &Arc<Self>, live: &Arc<Live>) {
        tracing::info!(job = %live.id, "left to the next server");
    }
}

fn signal(outcome: Outcome) -> Signal {
    match outcome {
        Outcome::Response(response) => Signal::Response(response),
        Outcome::NotSent(reason, message) => Signal::NotSent(reason, message),
        Outcome::BadResponse(message) => Signal::BadResponse(message),
        Outcome::Lost(message) => Signal::Lost(message),
    }
}
