//! Callers, reporters and watchers: one process with one thread, so that what is
//! measured is the server and not its clients.

mod events;
mod fan;
mod feed;
mod gathered;
mod gearman;
mod inserts;
mod jobs;
mod load;
mod raw;
mod stream;
mod unary;
mod watch;

pub use fan::Fan;
pub use jobs::Kind;
pub use raw::KIND;
pub use unary::{Call, Of, Sizes};

use super::Places;
use crate::{
    child::{self, Questions},
    fault::{Fault, fault},
    floor::{Blob, disk, filler, wire::raw_client::RawClient},
    options::Options,
    proc::Cpu,
    sample::Sample,
};
use backjob::proto::v1::{self, job_control_client::JobControlClient};
use bytes::Bytes;
use events::Events;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tonic::transport::Channel;

/// What a database's server is called among the processes.
pub const DATABASE: &str = "database";

/// Against what a measurement runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The raw server.
    Raw,
    /// The service.
    Backjob,
}

impl Side {
    /// Of the server.
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "echo",
            Self::Backjob => "service",
        }
    }
}

/// What the client is told to do. Windows are in seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Question {
    /// Where all others are, and how many bytes a job's body has.
    Know { ports: Places, pids: Places, payload: usize, outstanding: usize },
    /// One more process.
    Also { name: String, port: u32, pid: u32 },
    /// Starts jobs that wait for an hour.
    Schedule { count: usize },
    /// Starts jobs that run and are reported for from here, at the targets in turn; each
    /// with a route of its own, or all with one.
    Hold { count: usize, targets: Vec<String>, own_routes: bool },
    /// Lets the raw server keep so many entries of so many bytes.
    Keep { count: usize, bytes: usize },
    /// Ends the held jobs.
    Release,
    /// Bytes of a call's request and of its answer.
    Sizes { call: Call },
    /// Calls in a closed loop, `in_flight` on each connection.
    Load { call: Call, connections: usize, in_flight: usize, seconds: f64 },
    /// Jobs from their Start to their end, as many outstanding as is known, or one after
    /// the other.
    Jobs { kind: Kind, alone: bool, seconds: f64 },
    /// Jobs of the raw server, as many outstanding, with messages of these sizes.
    RawJobs { kind: Kind, sizes: Sizes, seconds: f64 },
    /// So many jobs to their end, unmeasured.
    Finish { kind: Kind, count: usize },
    /// Jobs of gearmand, as Jobs.
    Gearman { reports: u32, alone: bool, seconds: f64 },
    /// Messages on one stream, and the most memory that the server took.
    Stream { side: Side, seconds: f64 },
    /// From a unary call to the frame that it sets off, one after the other.
    Pair { side: Side, seconds: f64 },
    /// From a report to one node to the frame on another, one after the other.
    Across { seconds: f64 },
    /// So many of the held jobs end, in random moments: to the frame on the other node.
    Ends { count: usize, every: f64 },
    /// Reports of all held jobs at this rate, watched on the other node or by nobody;
    /// meanwhile so many others end.
    Steady { per_second: f64, seconds: f64, ends: usize, watched: bool },
    /// Opens streams, all of one job.
    Open { fan: Fan },
    /// One change to all open streams, again and again.
    Round { side: Side, seconds: f64 },
    /// Closes the open streams.
    Close,
    /// Single-row commits in this folder.
    Commits { folder: PathBuf, seconds: f64 },
    /// 4 KiB made durable in this folder.
    Syncs { folder: PathBuf, seconds: f64 },
    /// Rows one by one into a table of the database at `url`, on so many connections.
    Inserts { url: String, connections: usize, seconds: f64 },
}

impl Question {
    /// Running jobs of one kind, at the default target.
    pub fn hold(count: usize) -> Self {
        Self::Hold { count, targets: Vec::new(), own_routes: false }
    }

    /// What a client has to know.
    pub fn know(ports: Places, pids: Places, options: &Options) -> Self {
        Self::Know { ports, pids, payload: options.payload.max(12), outstanding: options.outstanding.max(1) }
    }
}

/// A running job that is reported for from here.
pub struct Held {
    id: String,
    /// Value of the authorization.
    bearer: String,
    /// Last sequence used.
    sequence: AtomicU64,
}

impl Held {
    fn report(&self) -> Result<tonic::Request<v1::ReportRequest>, Fault> {
        let mut request = tonic::Request::new(self.next());
        request.metadata_mut().insert("authorization", self.bearer.parse()?);
        Ok(request)
    }

    /// The next report: each changes what is seen.
    fn next(&self) -> v1::ReportRequest {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let progress = u32::try_from(sequence % 100).unwrap_or(0);
        let progress_change = Some(v1::report_request::ProgressChange::Progress(progress));
        v1::ReportRequest { sequence: Some(sequence), progress_change, ..Default::default() }
    }
}

/// All that the client knows and holds.
#[derive(Default)]
struct Client {
    ports: Places,
    pids: Places,
    payload: Bytes,
    /// Whole jobs at once.
    outstanding: usize,
    scheduled: Arc<Vec<String>>,
    finished: Arc<Vec<String>>,
    held: Vec<Arc<Held>>,
    events: Option<Events>,
    /// Raw ones, and of the service.
    streams: [Option<fan::Open>; 2],
    /// Makes every job another.
    tag: u64,
}

/// Answers questions until the parent is gone.
pub async fn run() -> Result<(), Fault> {
    child::answer(&Ok(()))?;
    let mut client = Client::default();
    let mut questions = Questions::new();
    while let Some(question) = questions.next().await? {
        child::answer(&client.answer(question).await)?;
    }
    Ok(())
}

impl Client {
    async fn answer(&mut self, question: Question) -> Result<Value, Fault> {
        let sample = match question {
            Question::Know { ports, pids, payload, outstanding } => {
                self.outstanding = outstanding;
                self.payload = Bytes::from(format!("{{\"text\":\"{}\"}}", "x".repeat(payload - 11)));
                self.events = Some(Events::listen(ports["events"]).await?);
                (self.ports, self.pids) = (ports, pids);
                self.pids.insert("client".into(), std::process::id());
                return Ok(Value::Null);
            }
            Question::Also { name, port, pid } => {
                self.ports.insert(name.clone(), port);
                self.pids.insert(name, pid);
                return Ok(Value::Null);
            }
            Question::Schedule { count } => return self.schedule(count).await,
            Question::Hold { count, targets, own_routes } => {
                return self.hold(count, &targets, own_routes).await;
            }
            Question::Keep { count, bytes } => return self.keep(count, bytes).await,
            Question::Release => return self.release().await,
            Question::Sizes { call } => return Ok(serde_json::to_value(self.sizes(call).await?)?),
            Question::Load { call, connections, in_flight, seconds } => {
                self.load(call, connections, in_flight, seconds).await?
            }
            Question::Jobs { kind, alone, seconds } => self.jobs(kind, alone, seconds).await?,
            Question::RawJobs { kind, sizes, seconds } => self.raw_jobs(kind, sizes, seconds).await?,
            Question::Finish { kind, count } => return self.finish(kind, count).await,
            Question::Gearman { reports, alone, seconds } => self.gearman(reports, alone, seconds).await?,
            Question::Stream { side, seconds } => self.stream(side, seconds).await?,
            Question::Pair { side, seconds } => self.pair(side, seconds).await?,
            Question::Across { seconds } => self.across(seconds).await?,
            Question::Ends { count, every } => self.ends(count, every).await?,
            Question::Steady { per_second, seconds, ends, watched } => {
                self.steady(per_second, seconds, ends, watched).await?
            }
            Question::Open { fan } => return self.open(fan).await,
            Question::Round { side, seconds } => self.round(side, seconds).await?,
            Question::Close => {
                self.streams = Default::default();
                return Ok(Value::Null);
            }
            Question::Commits { folder, seconds } => disk::commits(&folder, self.payload.len(), seconds)?,
            Question::Syncs { folder, seconds } => disk::syncs(&folder, seconds)?,
            Question::Inserts { url, connections, seconds } => {
                self.inserts(&url, connections, seconds).await?
            }
        };
        Ok(serde_json::to_value(sample)?)
    }

    /// A connection of its own.
    async fn connect(&self, side: Side) -> Result<Channel, Fault> {
        self.connect_to(side.name()).await
    }

    async fn connect_to(&self, name: &str) -> Result<Channel, Fault> {
        let port = self.ports.get(name).ok_or_else(|| fault(format!("no {name}")))?;
        gathered::connect(*port).await
    }

    /// A job of its own: POST to `/ROUTE?TAG`.
    fn start_request(&mut self, route: &str) -> v1::StartRequest {
        self.tag += 1;
        start_request(route, self.tag, &self.payload)
    }

    async fn schedule(&mut self, count: usize) -> Result<Value, Fault> {
        let mut control = JobControlClient::new(self.connect(Side::Backjob).await?);
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let requests = (ids.len()..count.min(ids.len() + 500)).map(|_| later(self.start_request("none")));
            let request = v1::BatchStartRequest { requests: requests.collect() };
            for result in control.batch_start(request).await?.into_inner().results {
                let Some(v1::batch_start_result::Result::Response(answer)) = result.result else {
                    return Err(fault("a Start was refused"));
                };
                ids.push(answer.job.unwrap_or_default().id);
            }
        }
        self.scheduled = Arc::new(ids);
        Ok(Value::Null)
    }

    async fn keep(&self, count: usize, bytes: usize) -> Result<Value, Fault> {
        let mut raw = RawClient::new(self.connect(Side::Raw).await?);
        let answer = u32::try_from(count)?;
        raw.keep(Blob { answer, data: filler(bytes), ..Blob::default() }).await?;
        Ok(Value::Null)
    }

    /// CPU used up to now, by process; a database's server has a process a connection.
    fn used(&self) -> Result<Vec<(String, Cpu)>, Fault> {
        let of = |name: &str, pid| if name == DATABASE { Cpu::tree(pid) } else { Cpu::of(pid) };
        self.pids.iter().map(|(name, pid)| Ok((name.clone(), of(name, *pid)?))).collect()
    }
}

/// Writes into `sample` what was used since, an operation.
fn charge(sample: &mut Sample, before: &[(String, Cpu)], after: &[(String, Cpu)]) {
    for ((name, before), (_, after)) in before.iter().zip(after) {
        let used = after.since(before) as f64 / 1e3;
        sample.cpu_us.insert(name.clone(), used / sample.operations);
    }
}

fn start_request(route: &str, tag: u64, payload: &Bytes) -> v1::StartRequest {
    let raw = v1::RawBody { content_type: "application/json".into(), data: payload.clone() };
    let action = v1::Action { route: format!("/{route}?{tag}"), raw: Some(raw), ..Default::default() };
    v1::StartRequest { action: Some(action), ..Default::default() }
}

/// In an hour.
fn later(request: v1::StartRequest) -> v1::StartRequest {
    v1::StartRequest { start_after: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }), ..request }
}
