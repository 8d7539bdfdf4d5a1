//! One who changes and one who watches, each on a connection of its own: from
//! before the call to the frame in the watcher's hands.

use super::{Client, Held, Side, load::Caller};
use crate::{
    clock,
    fault::{Fault, fault},
    floor::{Blob, wire::raw_client::RawClient},
    sample::Sample,
};
use backjob::proto::v1::{self, job_control_client::JobControlClient, job_worker_client::JobWorkerClient};
use prost::Message as _;
use std::sync::Arc;
use tonic::{Streaming, transport::Channel};

struct Raw {
    raw: RawClient<Channel>,
    frames: Streaming<Blob>,
    request: Blob,
}

impl Caller for Raw {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        self.request.sent = clock::now();
        let frame = async {
            let frame = self.frames.message().await?.unwrap_or_default();
            Ok::<_, Fault>((frame.sent, clock::now()))
        };
        let (frame, answer) = tokio::join!(frame, self.raw.publish(self.request.clone()));
        answer?;
        let (sent, at) = frame?;
        if sent == self.request.sent { Ok(Some(at - sent)) } else { Err(fault("another frame came")) }
    }
}

struct Backjob {
    worker: JobWorkerClient<Channel>,
    frames: Streaming<v1::WatchStatusResponse>,
    held: Arc<Held>,
}

impl Caller for Backjob {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let report = self.held.report()?;
        let began = clock::now();
        let frames = &mut self.frames;
        let frame = async {
            let job = next_job(frames).await?;
            Ok::<_, Fault>((job.revision, clock::now()))
        };
        let (frame, answer) = tokio::join!(frame, self.worker.report(report));
        let ((revision, at), answer) = (frame?, answer?);
        let reported = answer.into_inner().revision;
        if revision == reported {
            Ok(Some(at - began))
        } else {
            Err(fault(format!("revision {reported} was reported, {revision} came")))
        }
    }
}

/// Heartbeats are passed over.
pub(super) async fn next_job(frames: &mut Streaming<v1::WatchStatusResponse>) -> Result<v1::Job, Fault> {
    loop {
        let frame = frames.message().await?.ok_or("the stream has ended")?;
        if let Some(job) = frame.job {
            return Ok(job);
        }
    }
}

/// A watch of one job, read up to its first frame; and how long that is.
pub(super) async fn watch(
    mut control: JobControlClient<Channel>,
    id: &str,
) -> Result<(Streaming<v1::WatchStatusResponse>, usize), Fault> {
    let request = v1::WatchStatusRequest { job_ids: vec![id.to_owned()], ..Default::default() };
    let mut frames = control.watch_status(request).await?.into_inner();
    let mut size = 0;
    loop {
        let frame = frames.message().await?.ok_or("the stream has ended")?;
        size = size.max(frame.encoded_len());
        if frame.synced {
            return Ok((frames, size));
        }
    }
}

impl Client {
    pub(super) async fn pair(&mut self, side: Side, seconds: f64) -> Result<Sample, Fault> {
        let held = Arc::clone(self.held.first().ok_or("no job to watch")?);
        let watching = JobControlClient::new(self.connect(Side::Backjob).await?);
        let (frames, size) = watch(watching, &held.id).await?;
        let sample = match side {
            Side::Raw => {
                drop(frames);
                let answer = u32::try_from(size.saturating_sub(12))?;
                let request = Blob { answer, ..Blob::default() };
                let mut watching = RawClient::new(self.connect(side).await?);
                let mut frames = watching.subscribe(request.clone()).await?.into_inner();
                frames.message().await?;
                let raw = RawClient::new(self.connect(side).await?);
                self.closed(vec![Raw { raw, frames, request }], seconds).await
            }
            Side::Backjob => {
                let worker = JobWorkerClient::new(self.connect(side).await?);
                self.closed(vec![Backjob { worker, frames, held }], seconds).await
            }
        };
        let mut sample = sample?;
        sample.more.insert("frame_bytes".into(), size as f64);
        Ok(sample)
    }
}
