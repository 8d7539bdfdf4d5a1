//! The application: a scripted trigger, and actions that report as they like and
//! outlive every process of ours.

use super::world::{Life, World, lock};
use crate::{
    engine::{Acknowledged, Error, Reporting},
    job::{
        Detail, JobId, Output, Reason,
        event::{End, Progress, Report, Response, TextChange},
    },
    secret::ReportToken,
    store::model,
    trigger::{Outcome, Request, Sink, Trigger},
};
use futures_util::FutureExt as _;
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

/// Where a process may die.
pub(super) const BOUNDARIES: [&str; 2] = [BEFORE_SENT, AFTER_SENT];
const BEFORE_SENT: &str = "before a request is sent";
const AFTER_SENT: &str = "after a request was sent";

/// Stands where HTTP is.
pub(super) struct Scripted {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
}

/// A connection to the application; closed when it is dropped.
struct Open {
    world: Arc<World>,
    key: (u32, JobId, u32),
}

impl Open {
    fn new(world: &Arc<World>, life: &Life, request: &Request) -> Self {
        let key = (life.number, request.job, request.attempt);
        let mut faults = Vec::new();
        let tables = model::lock(&world.disk);
        match tables.jobs.get(request.job.to_bytes().as_slice()) {
            Some(row) if row.state == 3 && row.attempt == i64::from(request.attempt) => {}
            row => faults.push(format!("triggered, and its row is {row:?}")),
        }
        let mut ledger = lock(&world.ledger);
        ledger.open.insert(key, request.target.clone());
        faults.extend(ledger.count_slots(world, &tables));
        drop((ledger, tables));
        faults.into_iter().for_each(|what| world.fault(format!("{}: {what}", request.job)));
        Self { world: Arc::clone(world), key }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let tables = model::lock(&self.world.disk);
        let mut ledger = lock(&self.world.ledger);
        ledger.open.remove(&self.key);
        ledger.count_slots(&self.world, &tables);
    }
}

impl Trigger for Scripted {
    fn call(&self, request: Request, sink: Arc<dyn Sink>) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let (world, life) = (Arc::clone(&self.world), Arc::clone(&self.life));
        Box::pin(async move {
            // Nothing goes out before it is waited for.
            world.note(|| format!("{} attempt {} is triggered", request.job, request.attempt));
            let open = Open::new(&world, &life, &request);
            let outcome = exchange(&world, &life, &request, &*sink).await;
            world.note(|| format!("{} attempt {}: {outcome:?}", request.job, request.attempt));
            drop(open);
            outcome
        })
    }
}

async fn exchange(world: &Arc<World>, life: &Arc<Life>, request: &Request, sink: &dyn Sink) -> Outcome {
    let (id, attempt) = (request.job, request.attempt);
    world.may_die(life, world.plan.deaths, BEFORE_SENT).await;
    match world.below(100) {
        0..8 => {
            world.sleep(50).await;
            return Outcome::NotSent(Reason::Connect, "refused".into());
        }
        8..10 => return Outcome::NotSent(Reason::Blocked, "not loopback".into()),
        10..13 => {
            world.sleep(9_000).await;
            return Outcome::NotSent(Reason::Connect, "timed out".into());
        }
        _ => world.sleep(20).await,
    }
    let heard = || {
        let now = world.now();
        lock(&world.ledger).heard(id, attempt, now, now, true);
    };
    world.note(|| format!("{id} attempt {attempt} is sent"));
    sink.sent();
    heard();
    world.may_die(life, world.plan.deaths, AFTER_SENT).await;
    if world.below(10) < 7 {
        let action = Action { world: Arc::clone(world), id, attempt, sequence: 0, stop: false };
        world.tasks.spawn("action", action.run());
    }
    let outcome = match world.below(100) {
        0..14 => std::future::pending().await,
        14..24 => {
            world.sleep(4_000).await;
            Outcome::Lost("reset".into())
        }
        24..28 => Outcome::BadResponse("not HTTP".into()),
        _ => {
            for _ in 0..world.below(4) {
                world.sleep(2_500).await;
                sink.heard();
                heard();
            }
            world.sleep(500).await;
            Outcome::Response(response(world))
        }
    };
    let mut ledger = lock(&world.ledger);
    if matches!(&outcome, Outcome::Lost(_))
        || matches!(&outcome, Outcome::Response(response) if response.status == 202)
    {
        // From here on `error_timeout` rules, if the job goes on at all: told a
        // moment later.
        let now = world.now();
        ledger.heard(id, attempt, now, now + 1_000, false);
        ledger.ruled(id, attempt, false);
    }
    outcome
}

fn response(world: &World) -> Response {
    const STATUS: [u16; 16] =
        [200, 200, 200, 200, 204, 202, 202, 202, 202, 302, 400, 404, 429, 500, 503, 503];
    world.chance(|random| {
        let status = random.pick(&STATUS);
        let text = random.percent(50).then(|| format!("answered {status}"));
        let output = text.as_ref().map(|text| Output {
            content_type: "text/plain".into(),
            data: text.clone().into_bytes(),
            truncated: false,
        });
        let retry_after = random.percent(30).then(|| random.between(0, 8_000));
        Response { status, output, text, retry_after }
    })
}

/// One run of an action.
struct Action {
    world: Arc<World>,
    id: JobId,
    attempt: u32,
    sequence: u64,
    stop: bool,
}

/// An open stream of reports, and the process that it leads to.
type Stream = Option<(Arc<Life>, Reporting)>;

/// What came of a report.
enum Told {
    Go,
    Over,
}

impl Action {
    async fn run(mut self) {
        let world = Arc::clone(&self.world);
        let mut stream = None;
        let streams = world.below(10) < 4;
        for _ in 0..world.below(6) {
            let rest = world.chance(|random| random.pick(&[30, 600, 2_500]));
            world.sleep(rest).await;
            let report = self.progress();
            if let Told::Over = self.report(report, streams, &mut stream).await {
                return self.late().await;
            }
        }
        world.sleep(1_500).await;
        let end = match world.below(100) {
            0..45 => End::Finish(None),
            45..60 => End::Fail { message: "again".into(), retryable: true },
            60..68 => End::Fail { message: "never".into(), retryable: false },
            68..75 if self.stop => End::Stopped,
            _ if self.stop => End::Stopped,
            _ => return, // not another word
        };
        self.sequence += 1;
        let report = Report { sequence: Some(self.sequence), end: Some(end), ..Report::default() };
        self.report(report, streams, &mut stream).await;
        if world.below(4) == 0 {
            drop(stream);
            self.late().await;
        }
    }

    /// Does not believe that it is over.
    async fn late(&mut self) {
        if self.world.below(2) == 0 {
            self.world.sleep(6_000).await;
            let report = self.progress();
            self.report(report, false, &mut None).await;
        }
    }

    fn progress(&mut self) -> Report {
        let (id, sequence) = (self.id, &mut self.sequence);
        self.world.chance(|random| {
            let sequenced = random.percent(80);
            *sequence += u64::from(sequenced);
            let done = random.below(100);
            Report {
                sequence: sequenced.then_some(*sequence),
                progress: match random.below(3) {
                    0 => None,
                    1 => Some(Progress::To(u32::try_from(random.below(101)).expect("small"))),
                    _ => Some(Progress::By(u32::try_from(random.below(30)).expect("small"))),
                },
                detail: random.percent(20).then(|| Detail {
                    done,
                    total: 100,
                    unit: "rows".into(),
                    stage: id.to_string(),
                }),
                text: match random.below(4) {
                    0 => Some(TextChange::Append(format!("line {done}\n"))),
                    1 => Some(TextChange::Replace(format!("all {done}"))),
                    _ => None,
                },
                end: None,
            }
        })
    }

    /// Reports until there is an answer; some reports are sent twice.
    async fn report(&mut self, report: Report, streams: bool, stream: &mut Stream) -> Told {
        let world = Arc::clone(&self.world);
        let mut told = self.once(&report, true, streams, stream).await;
        if world.below(8) == 0 && report.sequence.is_some() {
            // Believes that it did not arrive.
            world.sleep(300).await;
            if let Told::Over = self.once(&report, false, streams, stream).await {
                told = Told::Over;
            }
        }
        told
    }

    async fn once(&mut self, report: &Report, fresh: bool, streams: bool, stream: &mut Stream) -> Told {
        let (world, id, attempt) = (Arc::clone(&self.world), self.id, self.attempt);
        let token = ReportToken { job: id, attempt };
        let hash = hash(report);
        let mut fresh = fresh;
        loop {
            let (began, was_over) = (world.now(), self.is_over());
            let (life, _) = world.life().await;
            // A stream of a process that is gone is broken.
            let open = stream.take().filter(|(of, _)| streams && Arc::ptr_eq(of, &life));
            let answer = world
                .call(|engine| async move {
                    if !streams {
                        return engine.report(token, report.clone(), hash).await.map(|answer| (answer, None));
                    }
                    let open = open.map_or_else(|| engine.reporting(token), |(_, open)| Ok(open))?;
                    let mut answer = open.report(report.clone(), hash).await?;
                    if let Some(stopped) = open.stopped().now_or_never() {
                        answer = Acknowledged { stop: stopped.stop, ..answer };
                    }
                    Ok((answer, Some(open)))
                })
                .await;
            lock(&world.ledger).heard(id, attempt, began, world.now(), false);
            lock(&world.ledger).ruled(id, attempt, false);
            match answer {
                Some(Ok((answer, open))) => {
                    *stream = open.map(|open| (life, open));
                    self.acknowledged(report, answer, began, fresh, was_over);
                    return Told::Go;
                }
                Some(Err(error)) => match error {
                    Error::Final { .. } | Error::Stale { .. } => return Told::Over,
                    Error::NotFound(_) => {
                        if !world.is_gone(id) {
                            world.fault(format!("{id}: a report found no job"));
                        }
                        return Told::Over;
                    }
                    Error::NotCancelled if report.end == Some(End::Stopped) => return Told::Over,
                    Error::Unavailable(_) | Error::Draining | Error::Internal(_) => {}
                    error => world.fault(format!("{id}: a report was answered {error}")),
                },
                None => {}
            }
            fresh = false; // it may have arrived
            if world.below(30) == 0 && !world.is_calm() {
                return Told::Over; // gives up
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            world.sleep(150).await;
        }
    }

    /// Whether the tables say that the attempt has ended.
    fn is_over(&self) -> bool {
        lock(&self.world.ledger).over.contains_key(&(self.id, self.attempt))
    }

    fn acknowledged(
        &mut self,
        report: &Report,
        answer: Acknowledged,
        began: u64,
        fresh: bool,
        was_over: bool,
    ) {
        let (world, id, attempt) = (&self.world, self.id, self.attempt);
        world.note(|| {
            let Acknowledged { stop, revision, .. } = answer;
            format!("{id} attempt {attempt} reported {report:?}: revision {:x} stop {stop}", revision.get())
        });
        self.stop |= answer.stop;
        if fresh && was_over {
            world.fault(format!("{id}: a report of attempt {attempt} was taken after its end"));
        }
        {
            let mut ledger = lock(&world.ledger);
            ledger.count.reports += 1;
            if fresh {
                ledger.heard(id, attempt, began, world.now(), true);
                ledger.ruled(id, attempt, true);
            }
        }
        let row = world.row(id);
        let over = lock(&world.ledger).over.get(&(id, attempt)).cloned();
        let durable = match (&report.end, &row) {
            (None, _) | (_, None) => true,
            (Some(End::Finish(_)), Some(row)) => row.state == 4,
            (Some(End::Stopped), Some(row)) => row.state == 6,
            (Some(End::Fail { .. }), Some(_)) => over.is_some(),
        };
        if !durable || (row.is_none() && !world.is_gone(id)) {
            world.fault(format!("{id}: {:?} was acknowledged, and the row is {row:?}", report.end));
        }
        if answer.stop && row.is_some_and(|row| row.cancel_requested == 0) {
            world.fault(format!("{id}: told to stop, and nobody cancelled it"));
        }
    }
}

/// Any function of the report will do.
fn hash(report: &Report) -> [u8; 32] {
    let mut hash = [0_u8; 32];
    let text = format!("{report:?}");
    for (at, byte) in text.bytes().enumerate() {
        hash[at % 32] = hash[at % 32].rotate_left(3).wrapping_add(byte);
    }
    hash
}
