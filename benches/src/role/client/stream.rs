//! As many messages as go on one stream.

use super::{Client, Held, Side, charge};
use crate::{
    clock,
    fault::{Fault, fault},
    floor::{Blob, filler, wire::raw_client::RawClient},
    proc::Memory,
    sample::Sample,
    tasks::spawn,
};
use backjob::proto::v1::job_worker_client::JobWorkerClient;
use prost::Message as _;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tonic::Request;

impl Client {
    /// Sends for so long, and waits until all is acknowledged.
    pub(super) async fn stream(&mut self, side: Side, seconds: f64) -> Result<Sample, Fault> {
        let pid = *self.pids.get(side.name()).ok_or("no server")?;
        let channel = self.connect(side).await?;
        let held = Arc::clone(self.held.first().ok_or("no job to report for")?);
        let idle = Memory::of(pid)?;
        let peak = spawn(peak(pid, seconds));
        let (before, from) = (self.used()?, clock::now());
        let until = from + Duration::from_secs_f64(seconds).as_nanos() as u64;
        let sent = match side {
            Side::Raw => raw(RawClient::new(channel), held.next().encoded_len(), until).await?,
            Side::Backjob => reports(JobWorkerClient::new(channel), held, until).await?,
        };
        let measured = clock::since(from).as_secs_f64();
        let after = self.used()?;
        let mut sample = Sample { operations: sent as f64, ..Sample::default() };
        sample.per_second = sample.operations / measured;
        charge(&mut sample, &before, &after);
        sample.more.insert("memory_before_kib".into(), idle.rss);
        sample.more.insert("memory_most_kib".into(), peak.await??);
        Ok(sample)
    }
}

/// The most memory that was seen.
async fn peak(pid: u32, seconds: f64) -> Result<f64, Fault> {
    let (from, mut most) = (clock::now(), 0f64);
    while clock::since(from) < Duration::from_secs_f64(seconds) {
        most = most.max(Memory::of(pid)?.rss);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(most)
}

async fn raw(mut raw: RawClient<tonic::transport::Channel>, size: usize, until: u64) -> Result<u64, Fault> {
    let blob = Blob { data: filler(size.saturating_sub(2)), ..Blob::default() };
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let blobs = std::iter::from_fn(move || {
        count.fetch_add(1, Ordering::Relaxed);
        (clock::now() < until).then(|| blob.clone())
    });
    let mut answers = raw.sink(tokio_stream::iter(blobs)).await?.into_inner();
    let got = answers.message().await?.unwrap_or_default().sent;
    // The last one counted was not sent.
    let sent = sent.load(Ordering::Relaxed) - 1;
    if got == sent { Ok(sent) } else { Err(fault(format!("{got} of {sent} messages arrived"))) }
}

async fn reports(
    mut worker: JobWorkerClient<tonic::transport::Channel>,
    held: Arc<Held>,
    until: u64,
) -> Result<u64, Fault> {
    let first = held.sequence.load(Ordering::Relaxed);
    let bearer = held.bearer.parse()?;
    let reporting = Arc::clone(&held);
    let reports = std::iter::from_fn(move || (clock::now() < until).then(|| reporting.next()));
    let mut request = Request::new(tokio_stream::iter(reports));
    request.metadata_mut().insert("authorization", bearer);
    let mut answers = worker.report_stream(request).await?.into_inner();
    let mut acked = 0;
    while let Some(answer) = answers.message().await? {
        acked = answer.acked_sequence;
    }
    let last = held.sequence.load(Ordering::Relaxed);
    if acked == last { Ok(last - first) } else { Err(fault(format!("{acked} of {last} were acknowledged"))) }
}
