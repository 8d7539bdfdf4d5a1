//! What the running action says.

use super::{
    Engine, Error,
    live::{Live, Uncommitted, taken_over},
    lock,
};
use crate::{
    job::{Event, JobId, Refused, Revision, Signal, State, event::Report},
    secret::ReportToken,
    store::Ended,
};
use std::{sync::Arc, time::Duration};

/// The answer to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Whether the action should stop.
    pub stop: bool,
    /// The job's revision.
    pub revision: Revision,
    /// When it is given up if nothing else comes, UTC milliseconds.
    pub deadline: Option<i64>,
    /// The highest sequence applied.
    pub sequence: u64,
}

/// How often a row that says RUNNING is looked for in memory again: between a
/// commit and its effects there are microseconds.
const LOOKS: u32 = 200;

/// Streams of reports of one attempt, at most.
const MAX_STREAMS: usize = 16;
/// From the end of an attempt to that of its streams, and what a stream that comes
/// later has for its first report: a client repeats what was not acknowledged.
const REPEATS: Duration = Duration::from_secs(10);

impl Engine {
    /// Applies one report. What ends the attempt is acknowledged after its
    /// commit. `hash` tells an exact repeat.
    ///
    /// # Errors
    /// Not found, final, stale, not cancelled, elsewhere, unavailable.
    pub async fn report(
        self: &Arc<Self>,
        token: ReportToken,
        report: Report,
        hash: [u8; 32],
    ) -> Result<Acknowledged, Error> {
        let ended = report.end.is_some().then_some(Ended { sequence: report.sequence, hash });
        for _ in 0..LOOKS {
            match self.live.get(token.job).filter(|live| live.attempt == token.attempt) {
                Some(live) => match self.report_to(&live, report.clone(), ended).await {
                    Err(Uncommitted::Refused(Refused::Final(_) | Refused::StaleAttempt(_))) => {}
                    Err(Uncommitted::Refused(Refused::NotCancelled)) => return Err(Error::NotCancelled),
                    Err(Uncommitted::Refused(refused)) => return Err(Error::Internal(refused.to_string())),
                    Err(Uncommitted::Failed(error)) => return Err(error),
                    Ok(acknowledged) => return Ok(acknowledged),
                },
                None => {
                    // In boxes, as most reports come while the attempt runs.
                    let over = Box::pin(self.report_over(token, &report, ended.as_ref()));
                    if let Some(answer) = over.await? {
                        return Ok(answer);
                    }
                    Box::pin(self.find_owner(token.job)).await?;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(Error::Unavailable("the job's state is not settled".into()))
    }

    async fn report_to(
        self: &Arc<Self>,
        live: &Arc<Live>,
        report: Report,
        ended: Option<Ended>,
    ) -> Result<Acknowledged, Uncommitted> {
        let event = |report| Event::Of(live.attempt, Signal::Report(report));
        let Some(ended) = ended else {
            let mut inner = live.when(|inner| !inner.committing() || inner.check().is_err()).await;
            inner.check()?;
            return match inner.apply(self, live, event(report)) {
                Ok(_) | Err(Refused::Repeat) => Ok(self.acknowledge(live, &mut inner)),
                Err(refused) => Err(refused.into()),
            };
        };
        let repeated = {
            let mut inner = lock(&live.inner);
            if inner.lost {
                return Err(taken_over().into());
            }
            let repeated = inner.committing() && inner.row.ended_by() == Some(&ended);
            if repeated && inner.failing {
                return Err(Error::Unavailable("the end of the job is not stored yet".into()).into());
            }
            repeated.then(|| inner.join())
        };
        if let Some(done) = repeated {
            self.told(done).await??;
        } else {
            match self.commit(live, event(report), Some(ended)).await {
                Ok(_) | Err(Uncommitted::Refused(Refused::Repeat)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.acknowledge(live, &mut lock(&live.inner)))
    }

    fn acknowledge(self: &Arc<Self>, live: &Arc<Live>, inner: &mut super::live::Inner) -> Acknowledged {
        let running = matches!(inner.job.state, State::Running(_));
        let stop = running && inner.job.cancel_requested && !inner.committing();
        if stop {
            let _ = inner.apply(self, live, Event::Of(live.attempt, Signal::StopDelivered));
        }
        let now = self.clock.now();
        let deadline =
            inner.job.due_at().map(|at| now.wall.saturating_add_unsigned(at.saturating_sub(now.mono)));
        Acknowledged {
            stop,
            revision: inner.job.revision,
            deadline,
            sequence: inner.row.sequence(&inner.job),
        }
    }

    /// The attempt does not run here. None if it may in a moment.
    async fn report_over(
        &self,
        token: ReportToken,
        report: &Report,
        ended: Option<&Ended>,
    ) -> Result<Option<Acknowledged>, Error> {
        let records = self.store.records(&[token.job], false).await?;
        let Some(record) = records.into_iter().next() else { return Err(Error::NotFound(token.job)) };
        let attempts = self.store.attempts(token.job).await?;
        if let Some(row) = attempts.into_iter().find(|row| row.attempt == token.attempt) {
            let repeat = match ended {
                Some(ended) => row.ended_by.as_ref() == Some(ended),
                None => {
                    report.sequence.is_some_and(|sequence| sequence <= row.sequence) && row.ended_at.is_some()
                }
            };
            if repeat {
                let (revision, sequence) = (record.job.revision, row.sequence);
                return Ok(Some(Acknowledged { stop: false, revision, deadline: None, sequence }));
            }
        }
        let state = record.job.state_name();
        if record.job.attempt != token.attempt {
            Err(Error::Stale { id: token.job, attempt: token.attempt })
        } else if state.is_final() {
            Err(Error::Final { id: token.job, state })
        } else if matches!(record.job.state, State::Running(_)) {
            Ok(None)
        } else {
            Err(Error::Stale { id: token.job, attempt: token.attempt })
        }
    }

    /// Whether the job runs here: then no other node has to be asked.
    pub fn runs_here(&self, job: JobId) -> bool {
        self.live.get(job).is_some()
    }

    /// Opens a stream of reports: a 2xx of the action waits for its end.
    ///
    /// # Errors
    /// [`Error::TooManyStreams`].
    pub fn reporting(self: &Arc<Self>, token: ReportToken) -> Result<Reporting, Error> {
        let live = self.live.get(token.job).filter(|live| live.attempt == token.attempt);
        if let Some(live) = &live {
            let opened = live.tell(|told| {
                let fits = usize::from(told.streams) < MAX_STREAMS;
                told.streams += u16::from(fits);
                fits
            });
            if !opened {
                return Err(Error::TooManyStreams(MAX_STREAMS));
            }
        }
        Ok(Reporting { engine: Arc::clone(self), token, live })
    }
}

/// An open stream of reports.
pub struct Reporting {
    engine: Arc<Engine>,
    token: ReportToken,
    live: Option<Arc<Live>>,
}

impl Reporting {
    /// As [`Engine::report`].
    ///
    /// # Errors
    /// As [`Engine::report`].
    pub async fn report(&self, report: Report, hash: [u8; 32]) -> Result<Acknowledged, Error> {
        if report.end.is_none()
            && let Some(live) = &self.live
        {
            // The common case, without a look into the map.
            let mut inner = lock(&live.inner);
            if !inner.committing() && !inner.failing {
                let event = Event::Of(live.attempt, Signal::Report(report.clone()));
                if let Ok(_) | Err(Refused::Repeat) = inner.apply(&self.engine, live, event) {
                    return Ok(self.engine.acknowledge(live, &mut inner));
                }
            }
        }
        Box::pin(self.engine.report(self.token, report, hash)).await
    }

    /// Returns once somebody wants the action to stop, with what to tell it.
    /// Cancel safe.
    pub async fn stopped(&self) -> Acknowledged {
        if let Some(live) = &self.live {
            live.until(|told| told.stop).await;
            let mut inner = lock(&live.inner);
            if matches!(inner.job.state, State::Running(_)) {
                return self.engine.acknowledge(live, &mut inner);
            }
        }
        std::future::pending().await
    }

    /// Whether the attempt ran when the stream was opened.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Returns a while after the attempt is over: then nobody has a report to
    /// repeat any more.
    pub async fn outlived(&self) {
        if let Some(live) = &self.live {
            live.until(|told| told.over).await;
        }
        tokio::time::sleep(REPEATS).await;
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        if let Some(live) = &self.live {
            live.tell(|told| told.streams -= 1);
        }
    }
}
