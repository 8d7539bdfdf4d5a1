//! Reports to one node, and those who watch on another.

use super::{
    Client, Held, Side, charge,
    load::Caller,
    watch::{next_job, watch},
};
use crate::{
    clock,
    fault::{Fault, fault},
    sample::Sample,
    tasks::spawn,
};
use backjob::proto::v1::{
    self, TextMode, job_control_client::JobControlClient, job_worker_client::JobWorkerClient,
    report_request::End,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::MissedTickBehavior;
use tonic::{Streaming, transport::Channel};

/// Another node on the service's database.
const OTHER: &str = "other";
/// What is waited for a frame.
const BOUND: Duration = Duration::from_secs(20);
/// Between two bursts of reports.
const TICK: Duration = Duration::from_millis(10);

struct Across {
    worker: JobWorkerClient<Channel>,
    frames: Streaming<v1::WatchStatusResponse>,
    held: Arc<Held>,
    calls: u32,
}

/// A pause that is neither in step with polls nor with anything else that is regular:
/// from half of `mean` to half as much again.
async fn pause(mean: f64, number: u32) {
    let uneven = 0.5 + (f64::from(number) * 0.618_034).fract();
    tokio::time::sleep(Duration::from_secs_f64(mean * uneven)).await;
}

impl Caller for Across {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        self.calls += 1;
        pause(0.25, self.calls).await;
        let began = clock::now();
        let reported = self.worker.report(self.held.report()?).await?.into_inner().revision;
        while next_job(&mut self.frames).await?.revision < reported {}
        Ok(Some(clock::now() - began))
    }
}

/// When what was reported, by job; and how long it took to be seen.
#[derive(Default)]
struct Delays {
    /// Revision and moment.
    reports: HashMap<String, Vec<(u64, u64)>>,
    progress: Vec<u32>,
    ends: Vec<u32>,
}

impl Delays {
    fn see(&mut self, job: &v1::Job, at: u64) {
        let Some(reports) = self.reports.get_mut(&job.id) else { return };
        let delay = |began: u64| u32::try_from(at.saturating_sub(began)).unwrap_or(u32::MAX);
        if job.ended_at.is_some() {
            self.ends.extend(reports.drain(..).map(|(_, began)| delay(began)).next_back());
            return;
        }
        let seen = reports.partition_point(|(revision, _)| *revision <= job.revision);
        self.progress.extend(reports.drain(..seen).map(|(_, began)| delay(began)));
    }
}

fn lock(delays: &Mutex<Delays>) -> std::sync::MutexGuard<'_, Delays> {
    delays.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes when each frame of these jobs comes.
async fn follow(
    mut control: JobControlClient<Channel>,
    job_ids: Vec<String>,
    delays: Arc<Mutex<Delays>>,
) -> Result<(), Fault> {
    let request = v1::WatchStatusRequest { job_ids, text: TextMode::None.into(), ..Default::default() };
    let mut frames = control.watch_status(request).await?.into_inner();
    while !frames.message().await?.ok_or("the stream has ended")?.synced {}
    spawn(async move {
        while let Ok(Some(frame)) = frames.message().await {
            if let Some(job) = frame.job {
                lock(&delays).see(&job, clock::now());
            }
        }
    });
    Ok(())
}

async fn end(
    mut worker: JobWorkerClient<Channel>,
    held: Arc<Held>,
    delays: Arc<Mutex<Delays>>,
) -> Result<(), Fault> {
    let mut request = held.report()?;
    request.get_mut().end = Some(End::Finish(v1::Finish::default()));
    // The frame may be there before the answer.
    lock(&delays).reports.insert(held.id.clone(), vec![(u64::MAX, clock::now())]);
    worker.report(request).await?;
    Ok(())
}

impl Client {
    pub(super) async fn across(&mut self, seconds: f64) -> Result<Sample, Fault> {
        let held = Arc::clone(self.held.first().ok_or("no job to watch")?);
        let (frames, _) = watch(JobControlClient::new(self.connect_to(OTHER).await?), &held.id).await?;
        let worker = JobWorkerClient::new(self.connect(Side::Backjob).await?);
        self.closed(vec![Across { worker, frames, held, calls: 0 }], seconds).await
    }

    pub(super) async fn ends(&mut self, count: usize, every: f64) -> Result<Sample, Fault> {
        let ending: Vec<_> = self.held.drain(..count.min(self.held.len())).collect();
        let delays = Arc::new(Mutex::new(Delays::default()));
        let ids = ending.iter().map(|held| held.id.clone()).collect();
        follow(JobControlClient::new(self.connect_to(OTHER).await?), ids, Arc::clone(&delays)).await?;
        let worker = JobWorkerClient::new(self.connect(Side::Backjob).await?);
        let began = clock::now();
        for (number, held) in (0..).zip(ending) {
            pause(every, number).await;
            end(worker.clone(), held, Arc::clone(&delays)).await?;
        }
        let seconds = clock::since(began).as_secs_f64();
        let ends = all_ends(&delays, count).await?;
        Ok(Sample::of(ends, seconds))
    }

    pub(super) async fn steady(
        &mut self,
        per_second: f64,
        seconds: f64,
        ends: usize,
        watched: bool,
    ) -> Result<Sample, Fault> {
        let ending: Vec<_> = self.held.drain(..ends.min(self.held.len())).collect();
        let delays = Arc::new(Mutex::new(Delays::default()));
        if watched {
            let ids = self.held.iter().chain(&ending).map(|held| held.id.clone()).collect();
            follow(JobControlClient::new(self.connect_to(OTHER).await?), ids, Arc::clone(&delays)).await?;
        }
        let worker = JobWorkerClient::new(self.connect(Side::Backjob).await?);
        let (before, from) = (self.used()?, clock::now());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut reports, mut calls) = (0_usize, Vec::new());
        let mut ending = ending.into_iter();
        while clock::since(from).as_secs_f64() < seconds {
            ticks.tick().await;
            let passed = clock::since(from).as_secs_f64();
            while (reports as f64) < passed * per_second {
                let held = Arc::clone(&self.held[reports % self.held.len()]);
                calls.push(spawn(report(worker.clone(), held, Arc::clone(&delays), watched)));
                reports += 1;
            }
            let due = (passed / seconds * ends as f64) as usize;
            while ends - ending.len() < due {
                let Some(held) = ending.next() else { break };
                calls.push(spawn(end(worker.clone(), held, Arc::clone(&delays))));
            }
        }
        for held in ending {
            calls.push(spawn(end(worker.clone(), held, Arc::clone(&delays))));
        }
        for call in calls {
            call.await??;
        }
        let (measured, after) = (clock::since(from).as_secs_f64(), self.used()?);
        let mut sample = if watched {
            let ended = all_ends(&delays, ends).await?;
            let mut sample = Sample::of(std::mem::take(&mut lock(&delays).progress), measured);
            let ended = Sample::of(ended, measured);
            sample.more.insert("end_p50_us".into(), ended.p50_us);
            sample.more.insert("end_p99_us".into(), ended.p99_us);
            sample
        } else {
            Sample::default()
        };
        sample.operations = reports as f64;
        sample.per_second = reports as f64 / measured;
        charge(&mut sample, &before, &after);
        Ok(sample)
    }
}

async fn report(
    mut worker: JobWorkerClient<Channel>,
    held: Arc<Held>,
    delays: Arc<Mutex<Delays>>,
    watched: bool,
) -> Result<(), Fault> {
    let began = clock::now();
    let revision = worker.report(held.report()?).await?.into_inner().revision;
    if watched {
        lock(&delays).reports.entry(held.id.clone()).or_default().push((revision, began));
    }
    Ok(())
}

/// Once all of them were seen.
async fn all_ends(delays: &Mutex<Delays>, count: usize) -> Result<Vec<u32>, Fault> {
    let from = clock::now();
    loop {
        let seen = lock(delays).ends.len();
        if seen >= count {
            return Ok(std::mem::take(&mut lock(delays).ends));
        }
        if clock::since(from) > BOUND {
            return Err(fault(format!("{seen} of {count} ends were seen")));
        }
        tokio::time::sleep(TICK).await;
    }
}
