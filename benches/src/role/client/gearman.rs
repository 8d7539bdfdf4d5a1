//! Jobs of gearmand, in the same closed loop as those of backjob.

use super::{
    Client,
    events::{Events, soon},
    jobs::CONNECTIONS,
    load::Caller,
};
use crate::{clock, fault::Fault, role::gearman::Submitter, sample::Sample};
use bytes::Bytes;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

struct Job {
    submitter: Submitter,
    events: Events,
    tags: Arc<AtomicU64>,
    payload: Bytes,
    reports: u32,
    alone: bool,
    entered: Arc<Mutex<Vec<u32>>>,
}

impl Caller for Job {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let tag = self.tags.fetch_add(1, Ordering::Relaxed);
        let event = self.events.of(tag);
        let began = clock::now();
        self.submitter.submit(tag, self.reports, &self.payload).await?;
        let event = soon(event).await?;
        let entered = event.entered - began;
        let nanos = u32::try_from(entered).unwrap_or(u32::MAX);
        self.entered.lock().unwrap_or_else(PoisonError::into_inner).push(nanos);
        if self.alone {
            tokio::time::sleep(Duration::from_millis(4)).await; // it comes to rest
            return Ok(Some(entered));
        }
        Ok(Some(event.through - began))
    }
}

impl Client {
    pub(super) async fn gearman(&mut self, reports: u32, alone: bool, seconds: f64) -> Result<Sample, Fault> {
        let (connections, outstanding) = if alone { (1, 1) } else { (CONNECTIONS, self.outstanding) };
        let mut submitters = Vec::new();
        for _ in 0..connections {
            submitters.push(Submitter::connect(self.ports["gearmand"]).await?);
        }
        let tags = Arc::new(AtomicU64::new(self.tag + 1));
        let entered = Arc::new(Mutex::new(Vec::new()));
        let mut jobs = Vec::new();
        for place in 0..outstanding {
            jobs.push(Job {
                submitter: submitters[place % connections].clone(),
                events: self.events.clone().ok_or("no workers")?,
                tags: Arc::clone(&tags),
                payload: self.payload.clone(),
                reports,
                alone,
                entered: Arc::clone(&entered),
            });
        }
        let sample = self.closed(jobs, seconds).await;
        self.tag = tags.load(Ordering::Relaxed);
        let mut sample = sample?;
        let entered = std::mem::take(&mut *entered.lock().unwrap_or_else(PoisonError::into_inner));
        let entered = Sample::of(entered, seconds);
        sample.more.insert("handler_p50_us".into(), entered.p50_us);
        sample.more.insert("handler_p99_us".into(), entered.p99_us);
        Ok(sample)
    }
}
