//! The callers: they start jobs of every kind, look at them, watch, cancel and run
//! them again, and check that each ends as it should.

use super::Fault;
use backjob::proto::v1::{self, JobState, job_control_client::JobControlClient};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Mutex as AsyncMutex,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Longest from a Start to the end of its job.
const PATIENCE: Duration = Duration::from_secs(30);
/// Failures that are kept.
const KEPT: usize = 1_000;

/// What was counted.
#[derive(Default)]
pub struct Tally {
    jobs: AtomicUsize,
    starts: Mutex<Vec<Duration>>,
    wholes: Mutex<Vec<Duration>>,
    failures: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    pub fn jobs(&self) -> usize {
        self.jobs.load(Ordering::Relaxed)
    }

    pub fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }

    /// Of Starts, and of whole jobs, since they were last taken.
    pub fn take_latencies(&self) -> (Vec<Duration>, Vec<Duration>) {
        (std::mem::take(&mut lock(&self.starts)), std::mem::take(&mut lock(&self.wholes)))
    }

    pub fn failed(&self, what: &str, how: &impl std::fmt::Display) {
        let mut failures = lock(&self.failures);
        if failures.len() < KEPT {
            failures.push(format!("{what}: {how}"));
        }
    }
}

/// The kinds of jobs, in turn, and how each ends.
const KINDS: [(&str, JobState); 12] = [
    ("/plain", JobState::Succeeded),
    ("/unary", JobState::Succeeded),
    ("/streamed", JobState::Succeeded),
    ("/later", JobState::Succeeded),
    ("/unary", JobState::Succeeded),
    ("/fails", JobState::Failed),
    ("/again", JobState::Succeeded),
    ("/streamed", JobState::Succeeded),
    ("/refused", JobState::Failed),
    ("/cancelled", JobState::Cancelled),
    ("/called-off", JobState::Cancelled),
    ("/keyed", JobState::Succeeded),
];

/// Everything that calls.
pub struct Load {
    callers: Arc<Callers>,
    /// Jobs on their way to their end.
    running: AsyncMutex<JoinSet<()>>,
}

struct Callers {
    endpoint: Endpoint,
    /// Shared by most calls.
    channels: Vec<Channel>,
    tally: Arc<Tally>,
    /// Jobs that ended a moment ago, and need nobody's cancel.
    ended: Mutex<VecDeque<(Instant, String)>>,
    kept: Duration,
}

impl Load {
    pub fn new(server: SocketAddr, tally: Arc<Tally>, kept: u64) -> Result<Self, Fault> {
        let endpoint = Endpoint::from_shared(format!("http://{server}"))?;
        let channels = (0..4).map(|_| endpoint.connect_lazy()).collect();
        let (ended, kept) = (Mutex::default(), Duration::from_secs(kept));
        let callers = Arc::new(Callers { endpoint, channels, tally, ended, kept });
        Ok(Self { callers, running: AsyncMutex::default() })
    }

    /// Starts `rate` jobs a second, and reads beside that, until it is dropped.
    pub async fn hold(&self, rate: u64) {
        let jobs = async {
            let mut ticks = interval(Duration::from_secs_f64(1.0 / rate.max(1) as f64));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 0_usize.. {
                ticks.tick().await;
                let mut running = self.running.lock().await;
                while running.try_join_next().is_some() {}
                let callers = Arc::clone(&self.callers);
                running.spawn(async move {
                    if timeout(PATIENCE, callers.job(number)).await.is_err() {
                        callers.tally.failed("a job", &"it did not end in time");
                    }
                });
            }
        };
        tokio::join!(
            jobs,
            self.callers.stays(),
            self.callers.lists(),
            self.callers.watches(),
            self.callers.newcomers(),
            self.callers.retries()
        );
    }

    /// Waits until all jobs that were started have ended; false if they don't.
    pub async fn settle(&self) -> bool {
        let mut running = self.running.lock().await;
        timeout(2 * PATIENCE, async { while running.join_next().await.is_some() {} }).await.is_ok()
    }
}

impl Callers {
    fn client(&self, number: usize) -> JobControlClient<Channel> {
        JobControlClient::new(self.channels[number % self.channels.len()].clone())
    }

    /// One job, from its Start to its end.
    async fn job(&self, number: usize) {
        let (route, expected) = KINDS[number % KINDS.len()];
        if let Err(status) = self.follow(number, route, expected).await {
            self.tally.failed(route, &status);
        }
    }

    async fn follow(&self, number: usize, route: &str, expected: JobState) -> Result<(), Status> {
        let mut client = self.client(number);
        let request = request(number, route);
        let began = Instant::now();
        let job = client.start(request.clone()).await?.into_inner().job.ok_or_else(nothing)?;
        lock(&self.tally.starts).push(began.elapsed());
        self.tally.jobs.fetch_add(1, Ordering::Relaxed);
        if route == "/keyed" {
            let again = client.start(request).await?.into_inner().job.ok_or_else(nothing)?;
            if again.id != job.id {
                return Err(Status::data_loss("a repeated Start made another job"));
            }
        }
        let cancel = v1::CancelJobRequest { job_id: job.id.clone() };
        if route == "/called-off" {
            client.cancel_job(cancel.clone()).await?;
        }
        let watch = v1::WatchStatusRequest { job_ids: vec![job.id.clone()], ..Default::default() };
        let mut frames = client.watch_status(watch).await?.into_inner();
        let (mut last, mut revision) = (JobState::Unspecified, None);
        while let Some(frame) = frames.message().await? {
            let Some(job) = frame.job else { continue };
            if revision.is_some_and(|revision| job.revision <= revision) {
                return Err(Status::data_loss("revisions did not rise"));
            }
            revision = Some(job.revision);
            if route == "/cancelled" && last != JobState::Running && job.state() == JobState::Running {
                client.cancel_job(cancel.clone()).await?;
            }
            last = job.state();
        }
        lock(&self.tally.wholes).push(began.elapsed());
        let read = v1::GetStatusRequest { job_id: job.id.clone(), read_mask: None };
        let read = client.get_status(read).await?.into_inner().job.ok_or_else(nothing)?;
        if (last, read.state()) != (expected, expected) {
            return Err(Status::data_loss(format!("seen as {last:?}, read as {:?}", read.state())));
        }
        if route != "/cancelled" {
            let mut ended = lock(&self.ended);
            ended.push_back((Instant::now(), job.id));
            if ended.len() > 100 {
                ended.pop_front();
            }
        }
        Ok(())
    }

    /// Reads lists.
    async fn lists(&self) {
        let mut ticks = interval(Duration::from_millis(100));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0.. {
            ticks.tick().await;
            let filter = v1::JobFilter { route_prefix: "/unary".to_owned(), ..Default::default() };
            let filter = (number % 2 == 0).then_some(filter);
            let request = v1::ListJobsRequest { page_size: 20, filter, ..Default::default() };
            if let Err(status) = self.client(number).list_jobs(request).await {
                self.tally.failed("ListJobs", &status);
            }
        }
    }

    /// Watches all that is there for a while, again and again.
    async fn watches(&self) {
        for number in 0.. {
            let filter = Some(v1::JobFilter::default());
            let request = v1::WatchStatusRequest { filter, ..Default::default() };
            let mut seen = 0_usize;
            let watched = async {
                let mut frames = self.client(number).watch_status(request).await?.into_inner();
                while frames.message().await?.is_some() {
                    seen += 1;
                }
                Err::<(), Status>(Status::cancelled("a watch of a filter ended by itself"))
            };
            match timeout(Duration::from_secs(3), watched).await {
                Ok(Ok(())) => {}
                Ok(Err(status)) => self.tally.failed("WatchStatus of a filter", &status),
                Err(_) if seen == 0 => self.tally.failed("WatchStatus of a filter", &"it showed nothing"),
                Err(_) => {} // we leave
            }
        }
    }

    /// Watches all that is there for as long as it lasts.
    async fn stays(&self) {
        let request = v1::WatchStatusRequest { filter: Some(v1::JobFilter::default()), ..Default::default() };
        let watched = async {
            let mut frames = self.client(0).watch_status(request).await?.into_inner();
            while frames.message().await?.is_some() {}
            Err::<(), Status>(Status::cancelled("a watch of a filter ended by itself"))
        };
        if let Err(status) = watched.await {
            self.tally.failed("the watch that stays", &status);
        }
    }

    /// Come with a connection of their own, look, and leave.
    async fn newcomers(&self) {
        let mut ticks = interval(Duration::from_millis(500));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let looked = async {
                let channel =
                    self.endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
                let request = v1::ListJobsRequest { page_size: 1, ..Default::default() };
                JobControlClient::new(channel).list_jobs(request).await
            };
            if let Err(status) = looked.await {
                self.tally.failed("a newcomer", &status);
            }
        }
    }

    /// Run again what ended; the job is not followed.
    async fn retries(&self) {
        let mut ticks = interval(Duration::from_millis(500));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0.. {
            ticks.tick().await;
            let fresh = |ended: &(Instant, String)| ended.0.elapsed() < self.kept / 2;
            let Some((_, job_id)) = lock(&self.ended).back().filter(|ended| fresh(ended)).cloned() else {
                continue;
            };
            let explain = v1::ExplainJobRequest { job_id: job_id.clone() };
            if let Err(status) = self.client(number).explain_job(explain).await {
                self.tally.failed("ExplainJob", &status);
            }
            match self.client(number).retry_job(v1::RetryJobRequest { job_id, ..Default::default() }).await {
                Ok(_) => drop(self.tally.jobs.fetch_add(1, Ordering::Relaxed)),
                Err(status) if status.code() == Code::NotFound => {} // erased meanwhile
                Err(status) => self.tally.failed("RetryJob", &status),
            }
        }
    }
}

fn nothing() -> Status {
    Status::data_loss("an answer without a job")
}

fn request(number: usize, route: &str) -> v1::StartRequest {
    let span = |seconds: i64, nanos: i32| Some(prost_types::Duration { seconds, nanos });
    let raw = v1::RawBody { content_type: "text/plain".to_owned(), data: vec![b'x'; 512].into() };
    let action = v1::Action {
        method: "POST".to_owned(),
        route: route.to_owned(),
        query: [("n".to_owned(), number.to_string())].into(),
        raw: Some(raw),
        ..Default::default()
    };
    let retry_policy =
        v1::RetryPolicy { max_attempts: Some(2), initial_backoff: span(0, 50_000_000), ..Default::default() };
    v1::StartRequest {
        action: Some(action),
        start_after: match route {
            "/later" => span(0, 300_000_000),
            "/called-off" => span(20, 0),
            _ => None,
        },
        retry_policy: (route == "/again").then_some(retry_policy),
        idempotency_key: if route == "/keyed" { format!("soak {number}") } else { String::new() },
        labels: [("kind".to_owned(), route.trim_start_matches('/').to_owned())].into(),
        ..Default::default()
    }
}
