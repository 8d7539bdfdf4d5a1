//! The machine: `Job::apply(event, now)`.
//!
//! It changes the job and says, as data, what follows; the caller saves first
//! and carries the rest out afterwards. A refused event changes nothing.

use super::{
    Mono,
    event::{End, Event, Progress, Report, Response, Signal, TextChange},
    run::{Cancel, Pace, Run},
    state::{Detail, Failure, Job, Now, Reason, State, StateName},
};

/// How soon a change must be in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Save {
    /// Not at all.
    #[default]
    Not,
    /// With the next flush.
    Flush,
    /// Before anybody is told.
    Commit,
}

/// What becomes of the connection to the action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Connection {
    /// It stays as it is.
    #[default]
    Keep,
    /// It may live for `trigger.linger`.
    Linger,
    /// It is closed before anything else.
    Close,
}

/// What follows from an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transition {
    /// How soon it is saved.
    pub save: Save,
    /// Whether callers can see a difference.
    pub visible: bool,
    /// What becomes of the connection.
    pub connection: Connection,
    /// Whether the action is to be triggered now.
    pub trigger: bool,
    /// Whether the attempt ended.
    pub attempt_ended: bool,
}

/// Why an event has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The job has ended.
    #[error("the job has ended: {0}")]
    Final(StateName),
    /// A newer attempt has begun, or this one has ended.
    #[error("attempt {0} is not the one that runs")]
    StaleAttempt(u32),
    /// A report at or below the last sequence; nothing is wrong.
    #[error("already applied")]
    Repeat,
    /// `stopped` without a cancel.
    #[error("nobody cancelled the job")]
    NotCancelled,
    /// Nothing is due yet.
    #[error("nothing is due")]
    NotDue,
    /// The event means nothing in this state.
    #[error("means nothing while {0}")]
    Meaningless(StateName),
}

type Result = std::result::Result<Transition, Refused>;

impl Job {
    /// Applies `event`. On `Err` the job is as it was.
    pub fn apply(&mut self, event: Event, now: Now) -> Result {
        let name = self.state_name();
        if name.is_final() {
            return match event {
                Event::Cancel if name == StateName::Cancelled => Ok(Transition::default()),
                Event::Of(attempt, _) if attempt != self.attempt => Err(Refused::StaleAttempt(attempt)),
                Event::Due
                | Event::Claim
                | Event::Cancel
                | Event::Timer
                | Event::Adopt
                | Event::Joined
                | Event::Of(..) => Err(Refused::Final(name)),
            };
        }
        match event {
            Event::Due => self.due(now),
            Event::Claim => self.claim(now),
            Event::Cancel => self.cancel(now),
            Event::Timer => self.timer(now),
            Event::Adopt => self.adopt(now),
            Event::Joined => Ok(self.changed(now, Save::Flush)),
            Event::Of(attempt, signal) => match &self.state {
                State::Running(_) if attempt == self.attempt => self.signal(signal, now),
                State::Running(_) | State::Scheduled | State::Queued => Err(Refused::StaleAttempt(attempt)),
                State::Succeeded | State::Failed | State::Cancelled => Err(Refused::Final(name)),
            },
        }
    }

    fn due(&mut self, now: Now) -> Result {
        match self.state {
            State::Scheduled if self.scheduled_at <= now.wall => {
                self.state = State::Queued;
                Ok(self.changed(now, Save::Commit))
            }
            State::Scheduled => Err(Refused::NotDue),
            _ => Err(Refused::Meaningless(self.state_name())),
        }
    }

    fn claim(&mut self, now: Now) -> Result {
        match self.state {
            State::Scheduled if self.scheduled_at > now.wall => return Err(Refused::NotDue),
            State::Scheduled | State::Queued => {}
            _ => return Err(Refused::Meaningless(self.state_name())),
        }
        if let Ok(given_up) = self.overdue(now) {
            return Ok(given_up);
        }
        self.started_at.get_or_insert(now.wall.into());
        let must_end_at = self.must_end_at(now);
        self.attempt += 1;
        self.progress = 0;
        self.detail = None;
        self.text = super::text::Text::default();
        self.failure = None;
        self.output = None;
        self.state = State::Running(Run {
            sent_at: None,
            reported: false,
            connected: true,
            lost: false,
            http_status: None,
            sequence: 0,
            heard_at: now.mono,
            must_end_at,
            cancel: None,
            pace: None,
        });
        self.revision = self.revision.next_epoch();
        self.updated_at = now.wall;
        Ok(Transition { save: Save::Commit, visible: true, trigger: true, ..Transition::default() })
    }

    /// When `max_duration` is over, on the clock that never jumps.
    fn must_end_at(&self, now: Now) -> Option<Mono> {
        self.must_end_by().map(|at| {
            let left = at.saturating_sub(now.wall);
            now.mono.saturating_add(u64::try_from(left).unwrap_or(0)).into()
        })
    }

    fn cancel(&mut self, now: Now) -> Result {
        match &mut self.state {
            State::Running(run) => {
                if run.cancel.is_some() {
                    return Ok(Transition::default());
                }
                run.cancel = Some(Cancel::begins(now.mono));
                self.cancel_requested = true;
                Ok(self.changed(now, Save::Commit))
            }
            _ => Ok(self.end(State::Cancelled, now, Connection::Keep)),
        }
    }

    /// Ends a waiting job whose time is over.
    fn overdue(&mut self, now: Now) -> Result {
        if self.attempt == 0 && self.rules.expire_at.is_some_and(|at| at <= now.wall) {
            let message = "the first attempt had not begun when expire_after passed";
            return Ok(self.fail(Reason::Expired, message.into(), None, now));
        }
        if self.must_end_by().is_some_and(|at| at <= now.wall) {
            return Ok(self.fail(Reason::Deadline, "max_duration passed".into(), None, now));
        }
        Err(Refused::NotDue)
    }

    fn timer(&mut self, now: Now) -> Result {
        let State::Running(run) = &self.state else { return self.overdue(now) };
        let passed = |at: Option<u64>| at.is_some_and(|at| at <= now.mono);
        if passed(self.grace_ends_at(run)) {
            return Ok(self.end(State::Cancelled, now, Connection::Close));
        }
        if passed(run.must_end_at.map(u64::from)) {
            return Ok(self.give_up(Reason::Deadline, "max_duration passed".into(), false, now));
        }
        if passed(self.stall_at(run)) {
            let (reason, message) = if run.lost {
                (Reason::Lost, "the connection was lost and no report came")
            } else {
                (Reason::Stalled, "nothing was heard of the action")
            };
            return Ok(self.give_up(reason, message.into(), true, now));
        }
        Err(Refused::NotDue)
    }

    fn adopt(&mut self, now: Now) -> Result {
        let State::Running(mut run) = self.state.clone() else {
            return Err(Refused::Meaningless(self.state_name()));
        };
        self.revision = self.revision.next_epoch();
        if run.sent_at.is_none() && !run.reported {
            // It surely never ran: the attempt counts, but is made up for once.
            if self.cancel_requested {
                return Ok(self.end(State::Cancelled, now, Connection::Keep));
            }
            let message = "the server ended before the request was sent".to_owned();
            if self.attempt > self.rules.max_attempts {
                return Ok(self.fail(Reason::Lost, message, None, now));
            }
            return Ok(self.wait_again(
                now.wall,
                Failure { reason: Reason::Lost, message, http_status: None },
                now,
            ));
        }
        run.connected = false;
        run.lost = !run.reported;
        run.heard_at = now.mono;
        run.cancel = self.cancel_requested.then(|| Cancel::begins(now.mono));
        run.must_end_at = self.must_end_at(now);
        self.state = State::Running(run);
        self.updated_at = now.wall;
        Ok(Transition { save: Save::Commit, visible: true, ..Transition::default() })
    }

    fn signal(&mut self, signal: Signal, now: Now) -> Result {
        let State::Running(run) = &mut self.state else {
            return Err(Refused::Meaningless(self.state_name()));
        };
        match signal {
            Signal::Sent => {
                run.sent_at = Some(now.wall.into());
                run.heard_at = now.mono;
                Ok(Transition { save: Save::Flush, ..Transition::default() })
            }
            Signal::Heard => {
                run.heard_at = now.mono;
                Ok(Transition::default())
            }
            Signal::StopDelivered => {
                if let Some(cancel) = &mut run.cancel {
                    cancel.delivered = true;
                }
                Ok(Transition::default())
            }
            Signal::Report(report) => self.report(report, now),
            Signal::Response(response) => self.response(response, now),
            Signal::NotSent(reason, message) => {
                Ok(self.give_up(reason, message, reason == Reason::Connect, now))
            }
            Signal::BadResponse(message) => Ok(self.give_up(Reason::BadResponse, message, true, now)),
            Signal::Lost(_) if run.cancel.is_some() => Ok(self.end(State::Cancelled, now, Connection::Keep)),
            Signal::Lost(_) => {
                run.connected = false;
                run.lost = true;
                run.heard_at = now.mono;
                Ok(Transition::default())
            }
        }
    }

    fn report(&mut self, report: Report, now: Now) -> Result {
        let State::Running(run) = &mut self.state else {
            return Err(Refused::Meaningless(self.state_name()));
        };
        if report.sequence.is_some_and(|s| s <= run.sequence) {
            return Err(Refused::Repeat);
        }
        if report.end == Some(End::Stopped) && run.cancel.is_none() {
            return Err(Refused::NotCancelled);
        }
        run.sequence = report.sequence.unwrap_or(run.sequence);
        run.reported = true;
        run.lost = false;
        run.heard_at = now.mono;
        match report.progress {
            Some(Progress::To(percent)) => self.progress = whole(percent),
            Some(Progress::By(percent)) => {
                self.progress = whole(u32::from(self.progress).saturating_add(percent));
            }
            None => {
                if let Some(Detail { done, total: total @ 1.., .. }) = &report.detail {
                    let percent = u128::from(*done) * 100 / u128::from(*total);
                    self.progress = whole(u32::try_from(percent).unwrap_or(100));
                }
            }
        }
        let far = match &report.detail {
            Some(Detail { done, total: total @ 1.., .. }) => Some((*done as f64 / *total as f64).min(1.0)),
            _ => report.progress.map(|_| f64::from(self.progress) / 100.0),
        };
        if let Some(far) = far {
            let pace = Pace::after(run.pace.as_deref().copied(), far, now);
            match &mut run.pace {
                Some(before) => **before = pace,
                none => *none = Some(Box::new(pace)),
            }
        }
        if report.detail.is_some() {
            self.detail = report.detail.map(Box::new);
        }
        match report.text {
            Some(TextChange::Replace(text)) => self.text.replace(&text),
            Some(TextChange::Append(text)) => self.text.append(&text),
            None => {}
        }
        Ok(match report.end {
            None => self.changed(now, Save::Flush),
            Some(End::Finish(output)) => {
                self.output = output.map(Box::new);
                self.progress = 100;
                self.end(State::Succeeded, now, Connection::Linger)
            }
            Some(End::Fail { message, retryable }) => {
                let mut ended = self.give_up(Reason::ActionFailed, message, retryable, now);
                ended.connection = Connection::Linger;
                ended
            }
            Some(End::Stopped) => self.end(State::Cancelled, now, Connection::Linger),
        })
    }

    fn response(&mut self, response: Response, now: Now) -> Result {
        let State::Running(run) = &mut self.state else {
            return Err(Refused::Meaningless(self.state_name()));
        };
        let status = response.status;
        Ok(match status {
            202 => {
                run.http_status = Some(status);
                run.connected = false;
                run.heard_at = now.mono;
                Transition::default()
            }
            200..300 if run.cancel.as_deref().is_some_and(|cancel| cancel.delivered) => {
                self.end(State::Cancelled, now, Connection::Keep)
            }
            200..300 => {
                if let (Some(text), 0) = (&response.text, self.text.written()) {
                    self.text.replace(text);
                }
                self.output = response.output.map(Box::new);
                self.progress = 100;
                self.end(State::Succeeded, now, Connection::Keep)
            }
            300..400 => self.attempt_failed(
                Reason::Redirect,
                "redirects are not followed".into(),
                status,
                false,
                None,
                now,
            ),
            408 | 425 | 429 | 500.. => {
                let message = format!("the action answered {status}");
                self.attempt_failed(Reason::HttpStatus, message, status, true, response.retry_after, now)
            }
            400..500 => {
                let message = format!("the action answered {status}");
                self.attempt_failed(Reason::HttpStatus, message, status, false, None, now)
            }
            ..200 => self.give_up(Reason::BadResponse, format!("unexpected status {status}"), true, now),
        })
    }

    fn attempt_failed(
        &mut self,
        reason: Reason,
        message: String,
        status: u16,
        retryable: bool,
        retry_after: Option<u64>,
        now: Now,
    ) -> Transition {
        self.failed(Failure { reason, message, http_status: Some(status) }, retryable, retry_after, now)
    }

    /// The attempt failed without a status.
    fn give_up(&mut self, reason: Reason, message: String, retryable: bool, now: Now) -> Transition {
        self.failed(Failure { reason, message, http_status: None }, retryable, None, now)
    }

    fn failed(
        &mut self,
        failure: Failure,
        retryable: bool,
        retry_after: Option<u64>,
        now: Now,
    ) -> Transition {
        if self.cancel_requested {
            return self.end(State::Cancelled, now, Connection::Close);
        }
        if !retryable || self.attempt >= self.rules.max_attempts {
            let Failure { reason, message, http_status } = failure;
            return self.fail(reason, message, http_status, now);
        }
        let asked = retry_after.unwrap_or(0).min(self.rules.max_backoff);
        let wait = self.backoff(now.chance).max(asked);
        self.wait_again(now.wall.saturating_add_unsigned(wait), failure, now)
    }

    /// Exponential, with half of it left to chance.
    fn backoff(&self, chance: f64) -> u64 {
        let rules = &self.rules;
        let power = i32::try_from(self.attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let full =
            (rules.initial_backoff as f64 * rules.multiplier.powi(power)).min(rules.max_backoff as f64);
        (full * (0.5 + chance.clamp(0.0, 1.0) / 2.0)) as u64
    }

    fn wait_again(&mut self, at: i64, failure: Failure, now: Now) -> Transition {
        self.scheduled_at = at;
        self.failure = Some(Box::new(failure));
        self.state = if at > now.wall { State::Scheduled } else { State::Queued };
        let mut transition = self.changed(now, Save::Commit);
        transition.connection = Connection::Close;
        transition.attempt_ended = true;
        transition
    }

    fn fail(&mut self, reason: Reason, message: String, http_status: Option<u16>, now: Now) -> Transition {
        self.failure = Some(Box::new(Failure { reason, message, http_status }));
        self.end(State::Failed, now, Connection::Close)
    }

    fn end(&mut self, state: State, now: Now, connection: Connection) -> Transition {
        let attempt_ended = matches!(self.state, State::Running(_));
        self.state = state;
        let changed = self.changed(now, Save::Commit);
        Transition { connection, attempt_ended, ..changed }
    }

    fn changed(&mut self, now: Now, save: Save) -> Transition {
        self.revision = self.revision.next();
        self.updated_at = now.wall;
        Transition { save, visible: true, ..Transition::default() }
    }
}

/// Percent; there are no more than 100.
fn whole(percent: u32) -> u8 {
    u8::try_from(percent.min(100)).unwrap_or(100)
}
