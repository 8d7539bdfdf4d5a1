//! The model of a simulation does as SQLite does: random writes to both, in
//! random groups, and every outcome and every read compared.

use super::*;
use crate::{
    job::{Failure, Reason, State, StateName, event::End},
    store::{Ended, Existing, List, StartKey},
};
use proptest::prelude::*;

/// One write, by small numbers: which job, and what is done to it.
type Op = (u8, u8, u8);

const JOBS: i64 = 12;

/// Jobs as their writer knows them: what was written last, and its outcome not
/// looked at, so that some writes lose.
struct Writes {
    known: BTreeMap<i64, Record>,
    time: i64,
}

impl Writes {
    fn of(&mut self, (n, kind, detail): Op) -> Write {
        let n = i64::from(n) % JOBS;
        self.time += 7;
        let now = at(NOW + self.time);
        match kind % 8 {
            0..=2 => {
                let merge =
                    (detail % 3 > 0).then_some(Merge { key: [detail % 4; 32], join: detail % 3 == 1 });
                let start_key = (detail % 2 == 0).then(|| StartKey {
                    caller: format!("caller {}", detail % 2),
                    key: [detail % 5; 32],
                    request: [detail % 7; 32],
                });
                let record = job_with(n, rules(), NOW + i64::from(detail) * 3, |spec| {
                    spec.priority = detail % 10;
                    spec.merge = merge.map(|_| MergeClass::Pending);
                    spec.as_user = detail % 4 == 0;
                    spec.labels = BTreeMap::from([("team".into(), format!("{}", detail % 2))]);
                    Arc::make_mut(&mut spec.rules).expire_at = (detail % 5 == 0).then_some(NOW + 900);
                });
                let mut record = record;
                // One that is known may be another record of the same revision, which no
                // engine hands in.
                let may_run = detail % 3 == 0 && !self.known.contains_key(&n);
                let runs = may_run && record.job.apply(Event::Claim, now).is_ok();
                let runs = runs && matches!(record.job.state, State::Running(_));
                let attempt = runs.then(|| claimed(&record));
                let twin = (detail % 7 == 1).then(|| job((n + 1) % JOBS).id);
                // Another of an id that is there is refused: what is known stays true.
                self.known.entry(n).or_insert_with(|| record.clone());
                Write::Insert(Box::new(New { merge, start_key, attempt, twin, ..New::of(record, payload()) }))
            }
            3..=6 => {
                let mut record = self.known.get(&n).cloned().unwrap_or_else(|| job(n));
                let from = record.job.revision;
                let attempt = record.job.attempt;
                let end = |end| Signal::Report(Report { end: Some(end), ..Report::default() });
                let event = match detail % 8 {
                    0 => Event::Due,
                    1..=3 => Event::Claim,
                    4 => Event::Of(attempt, says("text")),
                    5 => Event::Of(attempt, end(End::Finish(None))),
                    6 => Event::Cancel,
                    _ => Event::Of(attempt, end(End::Fail { message: "no".into(), retryable: true })),
                };
                let _ = record.job.apply(event, now); // refused: the same once more
                let lies = detail > 250;
                self.known.insert(n, record.clone());
                let attempt = (record.job.attempt > 0).then(|| AttemptRow {
                    sequence: u64::from(detail),
                    ended_at: record.job.ended_at(),
                    failure: (detail == 9).then(|| Failure {
                        reason: Reason::Lost,
                        message: "gone".into(),
                        http_status: Some(500),
                    }),
                    ended_by: (detail % 8 == 5).then_some(Ended { sequence: Some(9), hash: [detail; 32] }),
                    ..claimed(&record)
                });
                let from = if lies { from.next() } else { from };
                Write::Update(Box::new(Update { from, record, text: detail % 2 == 0, attempt }))
            }
            _ => Write::Delete(vec![job(n).id, job((n + 1) % JOBS).id]),
        }
    }
}

/// Everything that can be read, as text.
async fn all(store: &Store) -> String {
    use std::fmt::Write as _;
    let mut said = String::new();
    let every: Vec<JobId> = (0..JOBS).map(|n| job(n).id).collect();
    for text in [false, true] {
        let mut records = store.records(&every, text).await.expect("read");
        records.sort_by_key(|record| record.id);
        let _ = writeln!(said, "{records:#?}");
    }
    for id in &every {
        let attempts = store.attempts(*id).await.expect("read");
        let credentials = store.payload(*id).await.expect("read").map(|payload| payload.credentials);
        let ended = store.ended_by(*id, 1).await.expect("read");
        let _ = writeln!(said, "{id} {attempts:?} {credentials:?} {ended:?}");
    }
    for now in [NOW, NOW + 300, NOW + 2_000] {
        for limit in [3, 100] {
            let due = ids(&store.due(now, limit).await.expect("read"));
            let overdue = ids(&store.overdue(now, limit).await.expect("read"));
            let _ = writeln!(said, "{due:?} {overdue:?}");
        }
        for state in [StateName::Succeeded, StateName::Failed, StateName::Cancelled] {
            let mut ended = store.ended_before(state, now, 100).await.expect("read");
            ended.sort(); // those of one moment come in no order
            let first = store.first_ended(state).await;
            let _ = writeln!(said, "{ended:?} {first:?}");
        }
    }
    let claimable = ids(&store.claimable("default", 5, &every[..3]).await.expect("read"));
    let mut running = ids(&store.running().await.expect("read"));
    running.sort();
    let numbers = (store.waiting().await, store.next_due().await, store.next_give_up().await);
    let _ = writeln!(said, "{claimable:?} {running:?} {numbers:?}");
    for label in ["0", "1"] {
        let list = List {
            labels: BTreeMap::from([("team".into(), label.into())]),
            states: vec![StateName::Queued, StateName::Failed, StateName::Cancelled],
            before: Some((NOW + JOBS, job(JOBS).id)),
            route_prefix: Some("/imp".into()),
            limit: 4,
            text: true,
            ..List::default()
        };
        let _ = writeln!(said, "{:#?}", store.list(&list).await.expect("read"));
    }
    for n in 0..5 {
        let key = StartKey { caller: "caller 0".into(), key: [n; 32], request: [n; 32] };
        let _ = writeln!(said, "{:?}", store.started_by(&key).await);
    }
    said
}

/// What both say must be equal; errors are compared by their kind.
fn kind(result: Result<Outcome, Error>) -> Result<Outcome, &'static str> {
    result.map_err(|error| match error {
        Error::Refused(_) => "refused",
        Error::Unavailable(_) => "unavailable",
        Error::Corrupt(_) => "corrupt",
        Error::Damaged(_) => "damaged",
    })
}

async fn compare(groups: Vec<Vec<Op>>) -> (usize, BTreeMap<&'static str, usize>) {
    let (real, model) = (open(options("sqlite::memory:".into())).await, simulated());
    let mut writes = Writes { known: BTreeMap::new(), time: 0 };
    let mut met: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut count = 0;
    for group in groups {
        // Handed in before the writer runs: they share a transaction on both.
        let (mut by_real, mut by_model) = (Vec::new(), Vec::new());
        for op in group {
            let write = writes.of(op);
            by_real.push(hand_in(&real, write.clone()).await);
            by_model.push(hand_in(&model, write).await);
        }
        for (real, model) in by_real.into_iter().zip(by_model) {
            let (real, model) = (kind(real.await.expect("told")), kind(model.await.expect("told")));
            assert_eq!(real, model);
            count += 1;
            let name = match real {
                Ok(Outcome::Done) => "done",
                Ok(Outcome::Lost) => "lost",
                Ok(Outcome::Existing(Existing::Joined(_))) => "joined",
                Ok(Outcome::Existing(Existing::Taken(_))) => "taken",
                Ok(Outcome::Existing(Existing::Same(_))) => "same",
                Ok(Outcome::Existing(Existing::Other(_))) => "other",
                Err(name) => name,
            };
            *met.entry(name).or_default() += 1;
        }
    }
    let (by_real, by_model) = (all(&real).await, all(&model).await);
    assert!(by_real == by_model, "{}", difference(&by_real, &by_model));
    real.close().await;
    model.close().await;
    (count, met)
}

fn difference(real: &str, model: &str) -> String {
    let differ = real.lines().zip(model.lines()).filter(|(real, model)| real != model);
    let lines: Vec<String> = differ.take(20).map(|(real, model)| format!("{real}\n  not\n{model}")).collect();
    lines.join("\n")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_model_does_as_sqlite_does(
        groups in prop::collection::vec(prop::collection::vec(any::<Op>(), 1..8), 1..30)
    ) {
        block_on(compare(groups));
    }
}

/// Else the test above might compare nothing but refusals.
#[test]
fn random_writes_meet_every_outcome() {
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as u8
    };
    let groups = (0..120).map(|_| (0..5).map(|_| (next(), next(), next())).collect()).collect();
    let (count, met) = block_on(compare(groups));
    let names = ["done", "lost", "joined", "taken", "same", "other", "refused"];
    assert!(names.iter().all(|name| met.get(name).is_some_and(|met| *met > 2)), "{count}: {met:?}");
}
