//! Unary calls: the echo, those of the service, and a POST.

use super::{Client, Held, Side, later, load::Caller, start_request};
use crate::{
    fault::{Fault, fault},
    floor::{Blob, filler, post::Post, wire::raw_client::RawClient},
    sample::Sample,
};
use backjob::proto::v1::{self, job_control_client::JobControlClient, job_worker_client::JobWorkerClient};
use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tonic::transport::Channel;

/// What is called.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Call {
    /// The raw server, with messages of these sizes.
    Echo(Sizes),
    /// The same, answered when the rows of a job are durable.
    Store(Sizes),
    /// GetStatus.
    Status(Of),
    /// Start of a job that waits for an hour, so that nothing but the Start is
    /// measured.
    Start,
    /// Report of progress for a running job.
    Report,
    /// POST of a job's body to the raw route of the application, on as many
    /// connections as are in flight.
    Post,
}

/// Whose status is asked for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Of {
    /// Jobs that wait for an hour.
    Waiting,
    /// Running jobs.
    Running,
    /// Jobs that have ended.
    Finished,
}

/// Bytes of a call's messages.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Sizes {
    pub request: usize,
    pub answer: usize,
}

struct Echo {
    raw: RawClient<Channel>,
    answer: usize,
    data: Bytes,
    durable: bool,
}

impl Caller for Echo {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let request = Blob { answer: u32::try_from(self.answer)?, sent: 0, data: self.data.clone() };
        let echo = if self.durable { self.raw.store(request).await } else { self.raw.echo(request).await };
        let got = echo?.into_inner().data.len();
        if got == self.answer { Ok(None) } else { Err(fault("the echo is not as asked for")) }
    }
}

struct Status {
    control: JobControlClient<Channel>,
    ids: Arc<Vec<String>>,
    next: usize,
}

impl Status {
    fn request(&mut self) -> v1::GetStatusRequest {
        let job_id = self.ids.get(self.next % self.ids.len()).cloned().unwrap_or_default();
        self.next += 1;
        v1::GetStatusRequest { job_id, read_mask: None }
    }
}

impl Caller for Status {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let request = self.request();
        let answer = self.control.get_status(request).await?.into_inner();
        if answer.job.is_some() { Ok(None) } else { Err(fault("a status without a job")) }
    }
}

struct Start {
    control: JobControlClient<Channel>,
    tags: Arc<AtomicU64>,
    payload: Bytes,
}

impl Start {
    fn request(&self) -> v1::StartRequest {
        later(start_request("none", self.tags.fetch_add(1, Ordering::Relaxed), &self.payload))
    }
}

impl Caller for Start {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let request = self.request();
        let answer = self.control.start(request).await?.into_inner();
        if answer.merged { Err(fault("a Start was merged")) } else { Ok(None) }
    }
}

struct Report {
    worker: JobWorkerClient<Channel>,
    held: Arc<Held>,
}

impl Caller for Report {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let answer = self.worker.report(self.held.report()?).await?.into_inner();
        if answer.acked_sequence == 0 { Err(fault("a report without effect")) } else { Ok(None) }
    }
}

struct RawPost {
    post: Post,
    body: Bytes,
}

impl Caller for RawPost {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        self.post.send(http::Request::builder().uri("/raw"), self.body.clone()).await?;
        Ok(None)
    }
}

impl Client {
    /// Measures `call`, `in_flight` on each of the connections.
    pub(super) async fn load(
        &mut self,
        call: Call,
        connections: usize,
        in_flight: usize,
        seconds: f64,
    ) -> Result<Sample, Fault> {
        let raw = matches!(call, Call::Echo(_) | Call::Store(_));
        let side = if raw { Side::Raw } else { Side::Backjob };
        let mut channels = Vec::new();
        for _ in 0..connections {
            let channel = self.connect(side).await?;
            channels.extend(std::iter::repeat_n(channel, in_flight));
        }
        let channels = channels.into_iter().enumerate();
        match call {
            Call::Echo(Sizes { request, answer }) | Call::Store(Sizes { request, answer }) => {
                // Five bytes and what the fields before it take.
                let data = filler(request.saturating_sub(6));
                let durable = matches!(call, Call::Store(_));
                let caller =
                    |(_, channel)| Echo { raw: RawClient::new(channel), answer, data: data.clone(), durable };
                self.closed(channels.map(caller).collect(), seconds).await
            }
            Call::Status(of) => {
                let ids = self.ids(of)?;
                let caller = |(place, channel)| Status {
                    control: JobControlClient::new(channel),
                    ids: Arc::clone(&ids),
                    next: place * 7,
                };
                self.closed(channels.map(caller).collect(), seconds).await
            }
            Call::Start => {
                let tags = Arc::new(AtomicU64::new(self.tag + 1));
                let caller = |(_, channel)| Start {
                    control: JobControlClient::new(channel),
                    tags: Arc::clone(&tags),
                    payload: self.payload.clone(),
                };
                let sample = self.closed(channels.map(caller).collect(), seconds).await;
                self.tag = tags.load(Ordering::Relaxed);
                sample
            }
            Call::Report => {
                if self.held.is_empty() {
                    return Err(fault("no job to report for"));
                }
                let caller = |(place, channel)| Report {
                    worker: JobWorkerClient::new(channel),
                    held: Arc::clone(&self.held[place % self.held.len()]),
                };
                self.closed(channels.map(caller).collect(), seconds).await
            }
            Call::Post => {
                let port = u16::try_from(self.ports["http"])?;
                let mut callers = Vec::new();
                for _ in 0..connections * in_flight {
                    callers.push(RawPost { post: Post::connect(port).await?, body: self.payload.clone() });
                }
                self.closed(callers, seconds).await
            }
        }
    }

    fn ids(&self, of: Of) -> Result<Arc<Vec<String>>, Fault> {
        let ids = match of {
            Of::Waiting => Arc::clone(&self.scheduled),
            Of::Running => Arc::new(self.held.iter().map(|held| held.id.clone()).collect()),
            Of::Finished => Arc::clone(&self.finished),
        };
        if ids.is_empty() { Err(fault("no job to ask for")) } else { Ok(ids) }
    }

    /// Of a real call.
    pub(super) async fn sizes(&mut self, call: Call) -> Result<Sizes, Fault> {
        let channel = self.connect(Side::Backjob).await?;
        match call {
            Call::Status(of) => {
                let control = JobControlClient::new(channel);
                let mut caller = Status { control, ids: self.ids(of)?, next: 0 };
                let request = caller.request();
                let size = request.encoded_len();
                let answer = caller.control.get_status(request).await?.into_inner();
                Ok(Sizes { request: size, answer: answer.encoded_len() })
            }
            Call::Start => {
                let request = later(self.start_request("none"));
                let size = request.encoded_len();
                let answer = JobControlClient::new(channel).start(request).await?.into_inner();
                Ok(Sizes { request: size, answer: answer.encoded_len() })
            }
            Call::Report => {
                let held = self.held.first().ok_or("no job to report for")?;
                let request = held.report()?;
                let size = request.get_ref().encoded_len();
                let answer = JobWorkerClient::new(channel).report(request).await?.into_inner();
                Ok(Sizes { request: size, answer: answer.encoded_len() })
            }
            Call::Echo(sizes) | Call::Store(sizes) => Ok(sizes),
            Call::Post => Ok(Sizes { request: self.payload.len(), answer: 0 }),
        }
    }
}
