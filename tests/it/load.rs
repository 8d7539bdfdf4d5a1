//! A mixed load on one server, or on nodes that share a database, while they are
//! killed or replaced; and an audit of what they acknowledged.

use crate::harness::*;
use backjob::proto::v1::{self, JobState};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// What was acknowledged, and what was seen.
#[derive(Default)]
pub struct Ledger {
    /// Whether there are many nodes: one that does not run a job shows its progress as
    /// it was a moment ago, and each of its changes a moment later.
    pub many: bool,
    /// Jobs whose Start was acknowledged.
    pub jobs: BTreeMap<String, Seen>,
    /// What must not be, as it is found.
    pub faults: Vec<String>,
    /// Answers upon which a call was repeated, and how often.
    pub repeated: BTreeMap<String, usize>,
    pub counts: Counts,
}

/// Acknowledgements of what not every job has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Jobs that an ended one runs again as.
    pub again: usize,
    /// Finishes that came as the last message of a stream of reports.
    pub streamed: usize,
}

impl Ledger {
    fn knows(&mut self, id: &str) {
        self.jobs.entry(id.to_owned()).or_default();
    }
}

#[derive(Default)]
pub struct Seen {
    pub cancelled: bool,
    /// The attempt whose `finish` was acknowledged.
    pub finished: Option<u32>,
    /// The highest attempt of which a report was acknowledged.
    reported: u32,
    /// What each revision that a watcher saw has shown.
    revisions: BTreeMap<u64, String>,
    /// How it ended, as its watchers saw it, and when they did.
    ended: Option<(JobState, u64, tokio::time::Instant)>,
}

/// How long ended jobs are kept here.
pub const KEPT: Duration = Duration::from_secs(5);
/// A watcher may see an end so much later than it was; more where it had to come
/// back first.
const MOMENT: Duration = Duration::from_secs(3);

impl Ledger {
    /// A watcher was shown a job; `last` is what it saw before, over all its streams.
    fn shown(&mut self, job: &v1::Job, last: &mut BTreeMap<String, u64>) {
        let Self { jobs, faults, many, .. } = self;
        let (id, revision) = (&job.id, job.revision);
        let known = jobs.entry(id.clone()).or_default();
        // Rows, which other nodes than the owner show, have the text some time later.
        let text = if *many { "" } else { job.status_text.as_str() };
        let content = format!("{:?} {} {} {text}", job.state(), job.attempt, job.progress);
        if let Some(last) = last.insert(id.clone(), revision).filter(|last| *last > revision && !*many) {
            faults.push(format!("{id}: revision {revision} after {last}"));
        }
        let first = known.revisions.entry(revision).or_insert_with(|| content.clone());
        if *first != content {
            faults.push(format!("{id}: revision {revision} is {content:?} and {first:?}"));
        }
        // Every line says which attempt wrote it.
        let own = format!("[{}]", job.attempt);
        if job.status_text.split_inclusive(']').any(|line| line != own) {
            faults.push(format!("{id}: attempt {} has text {:?}", job.attempt, job.status_text));
        }
        if !is_final(job) {
            return;
        }
        let (state, first, _) =
            *known.ended.get_or_insert_with(|| (job.state(), revision, tokio::time::Instant::now()));
        if (state, first) != (job.state(), revision) {
            faults.push(format!("{id}: ended twice: {state:?} {first}, {:?} {revision}", job.state()));
        }
    }
}

pub type Shared = Arc<Mutex<Ledger>>;

pub fn with<T>(ledger: &Shared, change: impl FnOnce(&mut Ledger) -> T) -> T {
    change(&mut ledger.lock().expect("no panic"))
}

/// Whether the same call may succeed later: the server is down, or was cut off.
fn again(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded
    )
}

/// Calls until there is an answer that counts.
async fn insist<T, F: Future<Output = Result<T, Status>>>(
    ledger: &Shared,
    call: impl Fn() -> F,
) -> Result<T, Status> {
    let repeats = |why: String| with(ledger, |ledger| *ledger.repeated.entry(why).or_default() += 1);
    loop {
        match tokio::time::timeout(Duration::from_secs(5), call()).await {
            Ok(Err(status)) if again(&status) => {
                let sources =
                    std::iter::successors(std::error::Error::source(&status), |error| error.source());
                let sources: String = sources.map(|error| format!(": {error}")).collect();
                let (code, (_, reason, ..), message) = (status.code(), fault(&status), status.message());
                repeats(format!("{code:?} {reason} {message}{sources}"));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(answer) => return answer,
            // The connection was lost without a word.
            Err(_) => repeats("no answer".into()),
        }
    }
}

/// How long a watcher waits for a frame until it comes back by itself.
fn silence(ledger: &Shared, otherwise: Duration) -> Duration {
    if with(ledger, |ledger| ledger.many) { Duration::from_secs(1) } else { otherwise }
}

/// Starts jobs, and follows each to its end; some are cancelled, some run again.
async fn caller(number: u64, seed: u64, clients: Clients, ledger: Shared, stop: CancellationToken) {
    let mut random = Random::new(seed ^ number.wrapping_mul(0x9E37));
    let mut watchers = Vec::new();
    let mut count = 0;
    while !stop.is_cancelled() {
        count += 1;
        let retry_policy = Some(v1::RetryPolicy {
            max_attempts: Some(20),
            initial_backoff: Some(millis(10)),
            max_backoff: Some(millis(100)),
            ..Default::default()
        });
        let start_after =
            (random.below(5) == 0).then(|| millis(i64::try_from(random.below(300)).expect("small")));
        let request = v1::StartRequest {
            // Whatever breaks off is sent again, and makes one job.
            idempotency_key: format!("{number}-{count}"),
            retry_policy,
            start_after,
            ..start(&format!("/{}", random.below(100)))
        };
        let started = insist(&ledger, || clients.start_raw(request.clone())).await.expect("started");
        let id = started.job.expect("a job").id;
        with(&ledger, |ledger| ledger.knows(&id));
        watchers.push(spawn(watch(id.clone(), clients.clone(), Arc::clone(&ledger))));
        if random.below(8) == 0 {
            match insist(&ledger, || clients.cancel_raw(&id)).await {
                Ok(()) => with(&ledger, |ledger| ledger.jobs.entry(id).or_default().cancelled = true),
                Err(status) => assert_eq!(fault(&status).1, "JOB_FINAL"),
            }
        } else if random.below(8) == 0 {
            // An ended one runs again, as a job of its own.
            let ended = with(&ledger, |ledger| {
                let mut ended = ledger.jobs.iter().filter(|(_, seen)| seen.ended.is_some());
                ended.next_back().map(|(id, _)| id.clone())
            });
            if let Some(job_id) = ended {
                let request = v1::RetryJobRequest {
                    job_id,
                    idempotency_key: format!("r{number}-{count}"),
                    ..Default::default()
                };
                match insist(&ledger, || clients.retry_raw(request.clone())).await {
                    Ok(id) => {
                        with(&ledger, |ledger| {
                            ledger.knows(&id);
                            ledger.counts.again += 1;
                        });
                        watchers.push(spawn(watch(id, clients.clone(), Arc::clone(&ledger))));
                    }
                    Err(status) => assert_eq!(fault(&status).1, "JOB_NOT_FOUND", "erased meanwhile"),
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random.below(20) as u64)).await;
    }
    for watcher in watchers {
        soon("a watcher to see the end of its job", watcher).await.expect("no panic");
    }
}

/// Follows a job to its end, over every break, with what it saw last.
async fn watch(id: String, clients: Clients, ledger: Shared) {
    let (mut seen, mut last) = (None, BTreeMap::new());
    loop {
        let request =
            v1::WatchStatusRequest { job_ids: vec![id.clone()], after_revision: seen, ..Default::default() };
        let mut stream = match insist(&ledger, || clients.watch_raw(request.clone())).await {
            Ok(stream) => stream,
            Err(status) => return with(&ledger, |ledger| ledger.faults.push(format!("{id}: {status}"))),
        };
        let mut on_stream = None;
        loop {
            let waits = silence(&ledger, Duration::from_secs(20));
            let frame = match tokio::time::timeout(waits, stream.message()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => {
                    let ended =
                        with(&ledger, |ledger| ledger.jobs.entry(id.clone()).or_default().ended.is_some());
                    if !ended {
                        with(&ledger, |ledger| {
                            ledger.faults.push(format!("{id}: its watch ended before it"))
                        });
                    }
                    return;
                }
                Ok(Err(_)) | Err(_) => break, // come back
            };
            let Some(job) = frame.job else { continue };
            with(&ledger, |ledger| {
                if on_stream.is_some_and(|last| job.revision <= last) {
                    let fault = format!("{id}: revision {} after {on_stream:?} on one stream", job.revision);
                    ledger.faults.push(fault);
                }
                ledger.shown(&job, &mut last);
            });
            (seen, on_stream) = (Some(job.revision), Some(job.revision));
        }
    }
}

/// Follows all that is unfinished, and what it held when the stream broke off by
/// id: it must be told of each end.
async fn dashboard(clients: Clients, ledger: Shared, stop: CancellationToken) {
    let (mut held, mut last) = (BTreeSet::new(), BTreeMap::new());
    loop {
        let request = v1::WatchStatusRequest {
            filter: Some(v1::JobFilter::default()),
            job_ids: held.iter().cloned().collect(),
            text: v1::TextMode::Full.into(),
            ..Default::default()
        };
        let mut stream = insist(&ledger, || clients.watch_raw(request.clone())).await.expect("a watch");
        loop {
            // Once nothing is started any more, its jobs end one by one.
            if stop.is_cancelled() && held.is_empty() {
                return;
            }
            let frame = match tokio::time::timeout(Duration::from_secs(1), stream.message()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None) | Err(_)) => break, // come back
                Err(_) if with(&ledger, |ledger| ledger.many) => break,
                Err(_) => continue,
            };
            for id in frame.missing_job_ids.iter().chain([&frame.deleted_job_id]) {
                held.remove(id);
            }
            let Some(job) = frame.job else { continue };
            with(&ledger, |ledger| ledger.shown(&job, &mut last));
            if is_final(&job) {
                held.remove(&job.id);
            } else {
                held.insert(job.id);
            }
        }
    }
}

/// Answers triggers in every way that there is, and reports.
async fn act(mut hit: Hit, choice: usize, clients: Clients, ledger: Shared) {
    let (id, token) = (hit.header("backjob-job-id").to_owned(), hit.token());
    let attempt: u32 = hit.header("backjob-attempt").parse().expect("a number");
    let acknowledged = |taken: bool, before: u32, finishes: bool| {
        if !taken {
            return false;
        }
        with(&ledger, |ledger| {
            let seen = ledger.jobs.entry(id.clone()).or_default();
            seen.reported = seen.reported.max(attempt);
            if finishes && seen.finished.replace(attempt).is_some_and(|other| other != attempt) {
                ledger.faults.push(format!("{id}: attempt {attempt} finished it, and so did another one"));
            }
            if before > attempt {
                ledger.faults.push(format!("{id}: attempt {attempt} reported after attempt {before}"));
            }
        });
        true
    };
    // The highest attempt that was heard of before a report was sent.
    let before = || with(&ledger, |ledger| ledger.jobs.get(&id).map_or(0, |seen| seen.reported));
    match choice {
        0..3 => {}
        3 => return hit.answer(503, &[], "later"),
        4 => {
            let newest = before();
            acknowledged(
                insist(&ledger, || clients.report_raw(&token, fail("again", true))).await.is_ok(),
                newest,
                false,
            );
        }
        5 | 6 => {
            let newest = before();
            let done = insist(&ledger, || stream(&clients, &token, attempt)).await.is_ok();
            if acknowledged(done, newest, true) {
                with(&ledger, |ledger| ledger.counts.streamed += 1);
            }
        }
        _ => {
            for n in 0..3 {
                let newest = before();
                let report =
                    || v1::ReportRequest { sequence: Some(n + 1), ..append(&format!("[{attempt}]")) };
                if !acknowledged(
                    insist(&ledger, || clients.report_raw(&token, report())).await.is_ok(),
                    newest,
                    false,
                ) {
                    break;
                }
            }
            let newest = before();
            let last = || v1::ReportRequest { sequence: Some(9), ..finish() };
            let done = insist(&ledger, || clients.report_raw(&token, last())).await.is_ok();
            acknowledged(done, newest, true);
        }
    }
    hit.ok();
}

/// Reports in one stream that finishes; whatever breaks it off, all of it is sent again,
/// and what was taken before is known by its sequence.
async fn stream(clients: &Clients, token: &str, attempt: u32) -> Result<(), Status> {
    let own = format!("[{attempt}]");
    let reports = (1..=3).map(move |n| v1::ReportRequest { sequence: Some(n), ..append(&own) });
    let last = v1::ReportRequest { sequence: Some(9), ..finish() };
    let reports = tokio_stream::iter(reports.chain([last]).collect::<Vec<_>>());
    let mut answers = clients.worker().report_stream(authorized(reports, token)).await?.into_inner();
    let mut acked = 0;
    while let Some(answer) = answers.message().await? {
        acked = answer.acked_sequence;
    }
    if acked == 9 { Ok(()) } else { Err(Status::unavailable(format!("{acked} of 9 were acknowledged"))) }
}

/// A load that is under way.
pub struct Load {
    clients: Clients,
    ledger: Shared,
    stop: CancellationToken,
    callers: Vec<JoinHandle<()>>,
    dashboard: JoinHandle<()>,
    acting: Vec<JoinHandle<()>>,
}

/// What came of it.
pub struct Audit {
    /// All jobs that were started.
    pub jobs: BTreeMap<String, Seen>,
    /// Those that retention had erased at the end.
    pub erased: usize,
    /// Upon which answers calls were repeated.
    pub repeated: BTreeMap<String, usize>,
    pub counts: Counts,
    /// What must not be.
    pub faults: Vec<String>,
}

impl Load {
    /// Calls with `clients`, acts in the applications; the choices are those of `seed`.
    pub fn begin(seed: u64, clients: &Clients, applications: &[Arc<Application>]) -> Self {
        let ledger = Shared::default();
        with(&ledger, |ledger| ledger.many = applications.len() > 1);
        let stop = CancellationToken::new();
        let callers = (0..4)
            .map(|n| spawn(caller(n, seed, clients.clone(), Arc::clone(&ledger), stop.clone())))
            .collect();
        let dashboard = spawn(dashboard(clients.clone(), Arc::clone(&ledger), stop.clone()));
        let acting = applications.iter().zip(1..).map(|(application, n)| {
            let (application, clients, ledger) =
                (Arc::clone(application), clients.clone(), Arc::clone(&ledger));
            let mut random = Random::new(seed ^ 0xAC7 ^ n);
            spawn(async move {
                loop {
                    let hit = application.next().await;
                    spawn(act(hit, random.below(10), clients.clone(), Arc::clone(&ledger)));
                }
            })
        });
        let acting = acting.collect();
        Self { clients: clients.clone(), ledger, stop, callers, dashboard, acting }
    }

    /// Starts nothing more, follows all to their end, and looks at them once more.
    pub async fn end(self) -> Audit {
        let Self { clients, ledger, stop, callers, dashboard, acting } = self;
        stop.cancel();
        for caller in callers {
            caller.await.expect("no panic");
        }
        soon("the dashboard to see the end of all", dashboard).await.expect("no panic");
        acting.iter().for_each(JoinHandle::abort);

        let Ledger { jobs, mut faults, repeated, counts, .. } = with(&ledger, std::mem::take);
        let mut erased = 0;
        for (id, seen) in &jobs {
            let Some((state, revision, at)) = seen.ended else {
                faults.push(format!("{id}: nobody saw its end"));
                continue;
            };
            if seen.finished.is_some() && state != JobState::Succeeded {
                faults.push(format!("{id}: a finish was acknowledged, and it is {state:?}"));
            }
            if seen.cancelled && !matches!(state, JobState::Cancelled | JobState::Succeeded) {
                faults.push(format!("{id}: a cancel was acknowledged, and it is {state:?}"));
            }
            // What has ended stays as it was, until it is erased.
            match clients.get_raw(id).await {
                Ok(job) if (job.state(), job.revision) == (state, revision) => {}
                Ok(job) => faults.push(format!(
                    "{id}: {state:?} {revision}, then {:?} {}",
                    job.state(),
                    job.revision
                )),
                Err(status) if status.code() == Code::NotFound && at.elapsed() + MOMENT >= KEPT => {
                    erased += 1
                }
                Err(status) => faults.push(format!("{id}: {status}")),
            }
        }
        // Those that nobody was told of, too.
        let open = v1::JobFilter {
            states: vec![JobState::Scheduled.into(), JobState::Queued.into(), JobState::Running.into()],
            ..Default::default()
        };
        let request = v1::ListJobsRequest { filter: Some(open), ..Default::default() };
        let open = clients.control().list_jobs(request).await.expect("a list").into_inner().jobs;
        faults.extend(open.iter().map(|job| format!("{}: it has not ended: {:?}", job.id, job.state())));
        Audit { jobs, erased, repeated, counts, faults }
    }
}

/// A number that the environment may give.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok())
}

/// With which choices: BACKJOB_TEST_SEED, or any. It is said at once, and not by
/// `eprintln`, which is shown of a failed test alone: this one may hang, too.
pub fn seed() -> u64 {
    let seed = number("BACKJOB_TEST_SEED").unwrap_or_else(|| {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("random");
        u64::from_le_bytes(bytes)
    });
    let _ = writeln!(io::stderr(), "BACKJOB_TEST_SEED={seed}");
    seed
}

/// A port below those that the system gives to others, so that it is still ours
/// after a restart.
pub async fn port(random: &mut Random) -> SocketAddr {
    // Those of other tests of this process: a server of theirs may just be down.
    static GIVEN: std::sync::Mutex<std::collections::BTreeSet<u16>> =
        std::sync::Mutex::new(std::collections::BTreeSet::new());
    loop {
        let port = 20_000 + u16::try_from(random.below(10_000)).expect("small");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let is_new = GIVEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(port);
        if is_new && tokio::net::TcpListener::bind(address).await.is_ok() {
            return address;
        }
    }
}
