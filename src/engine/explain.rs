//! Why a job waits or failed, from what is recorded: no guesses.

use super::{Engine, Error, live::Live, lock, nodes::Place};
use crate::{
    job::{Failure, JobId, Record, StateName},
    store::{AttemptRow, Node},
};
use std::collections::BTreeMap;

/// Jobs that are named as the holders of slots, at most.
const HOLDERS: usize = 10;

/// One fact. Times in UTC milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fact {
    /// What it is, in upper snake case.
    pub code: String,
    /// For people.
    pub message: String,
    /// Since when it holds.
    pub since: Option<i64>,
    /// Until when it holds at the most.
    pub until: Option<i64>,
    /// Particulars.
    pub metadata: BTreeMap<String, String>,
}

impl Fact {
    fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), ..Self::default() }
    }

    fn since(self, since: Option<i64>) -> Self {
        Self { since, ..self }
    }

    fn until(self, until: Option<i64>) -> Self {
        Self { until, ..self }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    fn failed(failure: &Failure, attempt: u32) -> Self {
        let fact = Self::new(failure.reason.name(), failure.message.clone()).with("attempt", attempt);
        match failure.http_status {
            Some(status) => fact.with("http_status", status),
            None => fact,
        }
    }
}

impl Engine {
    /// Why a job stands where it does, the most telling fact first.
    ///
    /// # Errors
    /// Not found, unavailable.
    pub async fn explain(&self, id: JobId) -> Result<Vec<Fact>, Error> {
        let shown = self.get(id).await?;
        let record = &shown.subject;
        let attempts = self.store.attempts(id).await?;
        let job = &record.job;
        let mut facts = match job.state_name() {
            StateName::Scheduled => vec![scheduled(record)],
            StateName::Queued => self.queued(record),
            StateName::Running => match self.live.get(id) {
                Some(live) => self.runs(record, &live),
                None => vec![self.runs_elsewhere(record).await?],
            },
            StateName::Succeeded => vec![Fact::new("SUCCEEDED", "the action finished").since(job.ended_at())],
            StateName::Cancelled => vec![Fact::new("CANCELLED", "CancelJob ended it").since(job.ended_at())],
            StateName::Failed => Vec::new(),
        };
        if job.state_name() == StateName::Failed
            && let Some(failure) = &job.failure
        {
            facts.push(Fact::failed(failure, job.attempt).since(job.ended_at()));
        }
        // What is told above of the last attempt is not told twice.
        let told = (job.state_name() == StateName::Failed).then_some(job.attempt);
        facts.extend(attempts.iter().rev().filter(|row| Some(row.attempt) != told).filter_map(earlier));
        Ok(facts)
    }

    fn queued(&self, record: &Record) -> Vec<Fact> {
        let target = &record.spec.target;
        let since = Some(record.job.updated_at);
        let mut facts = Vec::new();
        if self.is_draining() {
            facts.push(Fact::new("DRAINING", "the server is shutting down and claims nothing").since(since));
        }
        let now = self.clock.now();
        match self.dispatcher.free(target, now.mono) {
            None => facts.push(
                Fact::new("UNKNOWN_TARGET", format!("no target is named {target:?} any more"))
                    .since(since)
                    .with("target", target),
            ),
            Some((0, limit, _)) => {
                let holders = self.live.all().into_iter().filter(|live| live.spec().target == *target);
                let holders: Vec<String> = holders.take(HOLDERS).map(|live| live.id.to_string()).collect();
                facts.push(
                    Fact::new("NO_FREE_SLOT", format!("all {limit} slots of target {target} are taken"))
                        .since(since)
                        .with("target", target)
                        .with("limit", limit)
                        .with("jobs", holders.join(",")),
                );
            }
            Some((_, _, Some(at))) => facts.push(
                Fact::new(
                    "RATE_LIMITED",
                    format!("attempts of target {target} begin no faster than its rate"),
                )
                .since(since)
                .until(Some(now.wall.saturating_add_unsigned(at.saturating_sub(now.mono))))
                .with("target", target),
            ),
            Some((free, _, None)) => facts.push(
                Fact::new("NEXT", "a slot is free: it is about to be claimed")
                    .since(since)
                    .with("target", target)
                    .with("free", free),
            ),
        }
        if !self.store.healthy() {
            facts.insert(0, Fact::new("STORE_UNAVAILABLE", "the database cannot be written now"));
        }
        facts
    }

    /// What another node knows better: here it is told who that is.
    async fn runs_elsewhere(&self, record: &Record) -> Result<Fact, Error> {
        let fact = match self.place(record.id).await? {
            Place::Elsewhere(Node { name, .. }) => {
                Fact::new("RUNNING", format!("the action runs for node {name}")).with("node", name)
            }
            Place::Orphaned => Fact::new(
                "NODE_GONE",
                "the node that ran the action gives no sign of life: another one is about to take over",
            ),
            Place::Unsettled => Fact::new("RUNNING", "the action runs"),
        };
        Ok(fact.with("attempt", record.job.attempt).with("target", &record.spec.target))
    }

    fn runs(&self, record: &Record, live: &Live) -> Vec<Fact> {
        let attempt = record.job.attempt;
        let now = self.clock.now();
        let inner = lock(&live.inner);
        let crate::job::State::Running(run) = &inner.job.state else { return Vec::new() };
        let wall = |mono: u64| now.wall.saturating_add_unsigned(mono).saturating_sub_unsigned(now.mono);
        let until = inner.job.due_at().map(wall);
        let heard = wall(run.heard_at);
        let fact = if let Some(cancel) = run.cancel.as_deref() {
            Fact::new("CANCELLING", "the action is told to stop").since(Some(wall(cancel.since)))
        } else if run.lost {
            Fact::new("CONNECTION_LOST", "the connection to the action was lost; its reports are waited for")
                .since(Some(heard))
        } else if run.sent_at.is_none() {
            Fact::new("CONNECTING", "the request is not sent yet").since(Some(heard))
        } else if !run.reported && run.connected {
            Fact::new("WAITING_FOR_RESPONSE", "the action has the request and has not reported")
                .since(run.sent_at.map(i64::from))
        } else {
            Fact::new("RUNNING", "the action was last heard of then").since(Some(heard))
        };
        vec![fact.until(until).with("attempt", attempt).with("target", &record.spec.target)]
    }
}

fn scheduled(record: &Record) -> Fact {
    let job = &record.job;
    let until = Some(job.scheduled_at);
    if job.attempt == 0 {
        return Fact::new("NOT_DUE", "its time has not come").since(Some(record.created_at)).until(until);
    }
    let left = job.rules.max_attempts.saturating_sub(job.attempt);
    Fact::new("BACKING_OFF", format!("attempt {} failed; {left} are left", job.attempt))
        .since(Some(job.updated_at))
        .until(until)
        .with("attempt", job.attempt)
}

/// An attempt that failed.
fn earlier(row: &AttemptRow) -> Option<Fact> {
    let failure = row.failure.as_ref()?;
    let fact = Fact::failed(failure, row.attempt);
    Some(Fact { code: format!("ATTEMPT_{}", fact.code), ..fact }.since(row.ended_at))
}
