//! Whole jobs: from their Start to the end of their action.

use super::{
    Client, Held, Side,
    events::{Event, Events, soon},
    load::Caller,
    start_request,
};
use crate::{
    clock,
    fault::{Fault, fault},
    role::action::TAG,
    sample::Sample,
};
use backjob::proto::v1::{
    self, JobState, batch_start_result, job_control_client::JobControlClient,
    job_worker_client::JobWorkerClient, report_request::End,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::oneshot;
use tonic::transport::Channel;

/// Connections they are started on.
pub(super) const CONNECTIONS: usize = 4;
/// What is waited for an end to be stored.
const BOUND: Duration = Duration::from_secs(20);

/// How the actions report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Not at all.
    None,
    /// Five reports, each a call.
    Unary,
    /// Five reports on one stream over a shared connection.
    Stream,
    /// With `backjob::worker::Reporter`.
    Reporter,
}

impl Kind {
    /// Of the application.
    pub(super) fn route(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unary => "unary",
            Self::Stream => "stream",
            Self::Reporter => "reporter",
        }
    }
}

/// Starts a job and waits until its action is through.
struct Job {
    control: JobControlClient<Channel>,
    events: Events,
    tags: Arc<AtomicU64>,
    payload: Bytes,
    kind: Kind,
    /// From the Start to the handler, in nanoseconds.
    entered: Arc<Mutex<Vec<u32>>>,
    /// The last job.
    last: Arc<Mutex<String>>,
}

impl Job {
    async fn once(&mut self) -> Result<(u64, Event), Fault> {
        let tag = self.tags.fetch_add(1, Ordering::Relaxed);
        let request = start_request(self.kind.route(), tag, &self.payload);
        let event = self.events.of(tag);
        let began = clock::now();
        let answer = self.control.start(request).await?.into_inner();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = answer.job.unwrap_or_default().id;
        let event = soon(event).await?;
        let nanos = u32::try_from(event.entered - began).unwrap_or(u32::MAX);
        self.entered.lock().unwrap_or_else(PoisonError::into_inner).push(nanos);
        Ok((began, event))
    }
}

impl Caller for Job {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let (began, event) = self.once().await?;
        Ok(Some(event.through - began))
    }
}

/// The same, and waits until the service is at rest again.
struct Alone(Job);

impl Caller for Alone {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let (began, event) = self.0.once().await?;
        let id = self.0.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ended(&mut self.0.control, &id).await?;
        Ok(Some(event.entered - began))
    }
}

/// Asks, not too often, until the job has SUCCEEDED.
async fn ended(control: &mut JobControlClient<Channel>, id: &str) -> Result<(), Fault> {
    let from = clock::now();
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let request = v1::GetStatusRequest { job_id: id.to_owned(), read_mask: None };
        let job = control.get_status(request).await?.into_inner().job.unwrap_or_default();
        match job.state() {
            JobState::Succeeded if job.progress == 100 => return Ok(()),
            JobState::Queued | JobState::Running if clock::since(from) < BOUND => {}
            state => return Err(fault(format!("a job is {} at {} %", state.as_str_name(), job.progress))),
        }
    }
}

impl Client {
    pub(super) async fn jobs(&mut self, kind: Kind, alone: bool, seconds: f64) -> Result<Sample, Fault> {
        let (connections, outstanding) = if alone { (1, 1) } else { (CONNECTIONS, self.outstanding) };
        let tags = Arc::new(AtomicU64::new(self.tag + 1));
        let entered = Arc::new(Mutex::new(Vec::new()));
        let mut channels = Vec::new();
        for _ in 0..connections {
            channels.push(self.connect(Side::Backjob).await?);
        }
        let mut jobs = Vec::new();
        for place in 0..outstanding {
            jobs.push(Job {
                control: JobControlClient::new(channels[place % connections].clone()),
                events: self.events.clone().ok_or("no application")?,
                tags: Arc::clone(&tags),
                payload: self.payload.clone(),
                kind,
                entered: Arc::clone(&entered),
                last: Arc::default(),
            });
        }
        let lasts: Vec<_> = jobs.iter().map(|job| Arc::clone(&job.last)).collect();
        let sample = if alone {
            self.closed(jobs.into_iter().map(Alone).collect(), seconds).await
        } else {
            self.closed(jobs, seconds).await
        };
        self.tag = tags.load(Ordering::Relaxed);
        let mut sample = sample?;
        let mut control = JobControlClient::new(self.connect(Side::Backjob).await?);
        for last in lasts {
            let id = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
            ended(&mut control, &id).await?;
        }
        let entered = std::mem::take(&mut *entered.lock().unwrap_or_else(PoisonError::into_inner));
        let entered = Sample::of(entered, seconds);
        sample.more.insert("handler_p50_us".into(), entered.p50_us);
        sample.more.insert("handler_p99_us".into(), entered.p99_us);
        Ok(sample)
    }

    /// Runs `count` jobs to their end.
    pub(super) async fn finish(&mut self, kind: Kind, count: usize) -> Result<Value, Fault> {
        let mut control = JobControlClient::new(self.connect(Side::Backjob).await?);
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let some = (count - ids.len()).min(500);
            let started = self.start_batch(&mut control, some, kind.route(), &[], true).await?;
            for (id, event) in started {
                soon(event).await?;
                ids.push(id);
            }
        }
        for last in ids.iter().rev().take(64) {
            ended(&mut control, last).await?;
        }
        self.finished = Arc::new(ids);
        Ok(Value::Null)
    }

    /// Up to 1,000 jobs, at `targets` in turn or the default one. What tells them apart is
    /// in their routes, or in a header.
    async fn start_batch(
        &mut self,
        control: &mut JobControlClient<Channel>,
        count: usize,
        route: &str,
        targets: &[String],
        own_routes: bool,
    ) -> Result<Vec<(String, oneshot::Receiver<Event>)>, Fault> {
        let events = self.events.clone().ok_or("no application")?;
        let (mut requests, mut heard) = (Vec::new(), Vec::new());
        for place in 0..count {
            let mut request = self.start_request(route);
            if !own_routes {
                let action = request.action.get_or_insert_default();
                action.route = format!("/{route}");
                action.headers.insert(TAG.to_owned(), self.tag.to_string());
            }
            request.error_timeout = Some(prost_types::Duration { seconds: 86_400, nanos: 0 });
            if let Some(target) = targets.get(place % targets.len().max(1)) {
                request.action.get_or_insert_default().target.clone_from(target);
            }
            requests.push(request);
            heard.push(events.of(self.tag));
        }
        let answer = control.batch_start(v1::BatchStartRequest { requests }).await?.into_inner();
        let ids = answer.results.into_iter().map(|result| match result.result {
            Some(batch_start_result::Result::Response(answer)) => Ok(answer.job.unwrap_or_default().id),
            refused => Err(fault(format!("a Start was refused: {refused:?}"))),
        });
        ids.zip(heard).map(|(id, heard)| Ok((id?, heard))).collect()
    }

    pub(super) async fn hold(
        &mut self,
        count: usize,
        targets: &[String],
        own_routes: bool,
    ) -> Result<Value, Fault> {
        let mut control = JobControlClient::new(self.connect(Side::Backjob).await?);
        let mut held = 0;
        while held < count {
            let some = (count - held).min(500);
            for (id, event) in self.start_batch(&mut control, some, "hold", targets, own_routes).await? {
                let (token, told) = soon(event).await?.held.ok_or("an action did not detach")?;
                if told != id {
                    return Err(fault("a trigger of another job"));
                }
                let bearer = format!("Bearer {token}");
                self.held.push(Arc::new(Held { id, bearer, sequence: AtomicU64::new(0) }));
            }
            held += some;
        }
        // The last responses must have been read, or they come into the measurement.
        if let Some(held) = self.held.last() {
            let mut worker = JobWorkerClient::new(self.connect(Side::Backjob).await?);
            worker.report(held.report()?).await?;
        }
        Ok(Value::Null)
    }

    pub(super) async fn release(&mut self) -> Result<Value, Fault> {
        let mut worker = JobWorkerClient::new(self.connect(Side::Backjob).await?);
        for held in self.held.drain(..) {
            let mut request = held.report()?;
            request.get_mut().end = Some(End::Finish(v1::Finish::default()));
            worker.report(request).await?;
        }
        Ok(Value::Null)
    }
}
