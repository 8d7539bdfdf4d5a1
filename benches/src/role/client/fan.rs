//! Many who watch one thing: what they cost while nothing happens, and how long a
//! change takes to reach the last of them.

use super::{Client, Held, Side, load::Caller, watch};
use crate::{
    clock,
    fault::{Fault, fault},
    floor::{Blob, wire::raw_client::RawClient},
    proc::Memory,
    sample::Sample,
    tasks::spawn,
};
use backjob::proto::v1::{job_control_client::JobControlClient, job_worker_client::JobWorkerClient};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, task::JoinHandle};
use tonic::transport::Channel;

/// Streams that open connections one after the other.
const OPENERS: usize = 50;

/// How many watch, and over how many connections.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Fan {
    pub side: Side,
    pub streams: usize,
    pub connections: usize,
}

/// What a change is known by: its time on the raw side, its revision on ours.
#[derive(Default)]
struct Seen {
    change: AtomicU64,
    /// Streams that have it.
    streams: AtomicUsize,
    all: AtomicUsize,
    complete: Notify,
}

impl Seen {
    fn saw(&self, change: u64) {
        if change >= self.change.load(Ordering::Acquire)
            && self.streams.fetch_add(1, Ordering::AcqRel) + 1 == self.all.load(Ordering::Relaxed)
        {
            self.complete.notify_one();
        }
    }
}

/// Streams that are open.
pub struct Open {
    fan: Fan,
    seen: Arc<Seen>,
    readers: Vec<JoinHandle<Result<(), Fault>>>,
    frame: usize,
    _channels: Vec<Channel>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.readers.iter().for_each(JoinHandle::abort);
    }
}

impl Client {
    /// Opens the streams. How many KiB of the server's memory each takes.
    pub(super) async fn open(&mut self, fan: Fan) -> Result<Value, Fault> {
        let held = Arc::clone(self.held.first().ok_or("no job to watch")?);
        let name = fan.side.name();
        let pid = *self.pids.get(name).ok_or("no server")?;
        let probe = JobControlClient::new(self.connect(Side::Backjob).await?);
        let (_, frame) = watch::watch(probe, &held.id).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = Memory::of(pid)?;
        let seen = Arc::new(Seen::default());
        seen.all.store(fan.streams, Ordering::Relaxed);
        seen.change.store(u64::MAX, Ordering::Relaxed);
        let mut open = Open { fan, seen, readers: Vec::new(), frame, _channels: Vec::new() };
        let mut openers = Vec::new();
        for opener in 0..OPENERS.min(fan.connections) {
            let streams = (opener..fan.connections)
                .step_by(OPENERS)
                .map(|connection| (connection..fan.streams).step_by(fan.connections).count())
                .collect();
            let port = self.ports[name];
            let opening =
                Opening { fan, port, streams, frame, held: Arc::clone(&held), seen: Arc::clone(&open.seen) };
            openers.push(spawn(opening.run()));
        }
        for opener in openers {
            let (mut readers, mut channels) = opener.await??;
            open.readers.append(&mut readers);
            open._channels.append(&mut channels);
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        let after = Memory::of(pid)?;
        let streams = open.readers.len();
        self.streams[fan.side as usize] = Some(open);
        let each = (after.pss - before.pss) / fan.streams as f64;
        Ok(
            json!({ "kib_per_stream": each, "streams": streams, "before_kib": before.pss, "after_kib": after.pss }),
        )
    }

    /// Changes again and again; each counts when the last stream has it.
    pub(super) async fn round(&mut self, side: Side, seconds: f64) -> Result<Sample, Fault> {
        let open = self.streams[side as usize].as_ref().ok_or("no streams are open")?;
        let (seen, fan) = (Arc::clone(&open.seen), open.fan);
        if let Some(reader) = open.readers.iter().find(|reader| reader.is_finished()) {
            return Err(fault(format!("a stream has ended: {}", reader.id())));
        }
        let answer = u32::try_from(open.frame.saturating_sub(12))?;
        let sample = match side {
            Side::Raw => {
                let raw = RawClient::new(self.connect(side).await?);
                let request = Blob { answer, ..Blob::default() };
                self.closed(vec![Publisher { raw, request, seen }], seconds).await
            }
            Side::Backjob => {
                let held = Arc::clone(self.held.first().ok_or("no job to watch")?);
                let worker = JobWorkerClient::new(self.connect(side).await?);
                self.closed(vec![Reporter { worker, held, seen }], seconds).await
            }
        };
        let mut sample = sample?;
        // What is counted are frames.
        for used in sample.cpu_us.values_mut() {
            *used /= fan.streams as f64;
        }
        sample.per_second *= fan.streams as f64;
        Ok(sample)
    }
}

/// Some of the connections.
struct Opening {
    fan: Fan,
    port: u32,
    /// For each connection.
    streams: Vec<usize>,
    frame: usize,
    held: Arc<Held>,
    seen: Arc<Seen>,
}

type Opened = (Vec<JoinHandle<Result<(), Fault>>>, Vec<Channel>);

impl Opening {
    async fn run(self) -> Result<Opened, Fault> {
        let (mut readers, mut channels) = (Vec::new(), Vec::new());
        for streams in &self.streams {
            let url = format!("http://127.0.0.1:{}", self.port);
            let channel = tonic::transport::Endpoint::from_shared(url)?.connect().await?;
            for _ in 0..*streams {
                readers.push(self.stream(channel.clone()).await?);
            }
            channels.push(channel);
        }
        Ok((readers, channels))
    }

    async fn stream(&self, channel: Channel) -> Result<JoinHandle<Result<(), Fault>>, Fault> {
        let seen = Arc::clone(&self.seen);
        match self.fan.side {
            Side::Raw => {
                let answer = u32::try_from(self.frame.saturating_sub(12))?;
                let request = Blob { answer, ..Blob::default() };
                let mut frames = RawClient::new(channel).subscribe(request).await?.into_inner();
                frames.message().await?;
                Ok(spawn(async move {
                    while let Some(frame) = frames.message().await? {
                        seen.saw(frame.sent);
                    }
                    Ok(())
                }))
            }
            Side::Backjob => {
                let (mut frames, _) = watch::watch(JobControlClient::new(channel), &self.held.id).await?;
                Ok(spawn(async move {
                    loop {
                        seen.saw(watch::next_job(&mut frames).await?.revision);
                    }
                }))
            }
        }
    }
}

/// All streams have the change.
async fn complete(seen: &Seen) -> Result<(), Fault> {
    let waited = tokio::time::timeout(Duration::from_secs(30), seen.complete.notified()).await;
    waited.map_err(|_| {
        let (got, all) = (seen.streams.load(Ordering::Relaxed), seen.all.load(Ordering::Relaxed));
        fault(format!("{got} of {all} streams got a change within 30 s"))
    })
}

struct Publisher {
    raw: RawClient<Channel>,
    request: Blob,
    seen: Arc<Seen>,
}

impl Caller for Publisher {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let began = clock::now();
        self.request.sent = began;
        self.seen.streams.store(0, Ordering::Release);
        self.seen.change.store(began, Ordering::Release);
        let (answer, all) = tokio::join!(self.raw.publish(self.request.clone()), complete(&self.seen));
        answer?;
        all?;
        Ok(None)
    }
}

struct Reporter {
    worker: JobWorkerClient<Channel>,
    held: Arc<Held>,
    seen: Arc<Seen>,
}

impl Caller for Reporter {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let report = self.held.report()?;
        // Nobody has it before it is reported: each change is one frame more.
        self.seen.streams.store(0, Ordering::Release);
        self.seen.change.store(0, Ordering::Release);
        let (answer, all) = tokio::join!(self.worker.report(report), complete(&self.seen));
        answer?;
        all?;
        Ok(None)
    }
}
