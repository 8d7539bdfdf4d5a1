//! The store's promises, each held on a file, in memory, on PostgreSQL and on MariaDB.

mod at_once;
mod cut;
#[path = "../../../tests/it/databases.rs"]
mod databases;
mod feed;
mod group;
mod list;
mod merging;
mod model;
mod nodes;
mod opening;
mod plans;
mod reading;
mod schema;
mod servers;
mod sqlite;
mod writing;

use super::{AttemptRow, Error, Merge, New, Options, Outcome, Store, Tables, Update, Write};
use crate::clock::Clock;
use crate::job::event::{Progress, Report, TextChange};
use crate::job::{Event, Job, JobId, MergeClass, Now, Payload, Record, Revision, Rules, Signal, Spec};
use crate::secret::Keyring;
use crate::tasks::Tasks;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use databases::{OwnDatabase, ServerKind};
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tokio::sync::oneshot;

/// When these tests happen.
const NOW: i64 = 1_700_000_000_000;

struct StillClock;

impl Clock for StillClock {
    fn wall(&self) -> i64 {
        NOW
    }

    fn mono(&self) -> u64 {
        0
    }

    fn random(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("random bytes");
    }
}

fn at(wall: i64) -> Now {
    Now { wall, mono: 5_000, chance: 0.5 }
}

fn keys(bytes: &[u8]) -> Arc<Keyring> {
    let lines: Vec<String> = bytes.iter().map(|byte| URL_SAFE_NO_PAD.encode([*byte; 32])).collect();
    Arc::new(Keyring::parse(&lines.join("\n")).expect("a keyring"))
}

fn options(url: String) -> Options {
    Options {
        url,
        tables: Tables::default(),
        migrate: true,
        node: "here".into(),
        keys: keys(&[1]),
        queue: 64,
        batch: 32,
        page_cache: 1 << 20,
    }
}

fn url(file: &Path) -> String {
    format!("sqlite://{}", file.display())
}

async fn open(options: Options) -> Store {
    Store::open(options, Arc::new(StillClock), &Tasks::default()).await.expect("opened")
}

/// Runs a test on a store of each database, and on the model of a simulation.
async fn on_all(test: impl AsyncFn(Store)) {
    on_each(&test).await;
    let store = simulated();
    test(store.clone()).await;
    store.close().await;
}

/// Runs a test on a store of each database.
async fn on_each(test: impl AsyncFn(Store)) {
    on_each_opened(async |options| {
        let store = open(options).await;
        test(store.clone()).await;
        store.close().await;
    })
    .await;
    let store = open(options("sqlite::memory:".into())).await;
    test(store.clone()).await;
    store.close().await;
}

/// Runs a test with what opens a database that lasts, of each kind.
async fn on_each_opened(test: impl AsyncFn(Options)) {
    let folder = tempfile::tempdir().expect("a folder");
    test(options(url(&folder.path().join("backjob.db")))).await;
    for kind in ServerKind::ALL {
        if let Some(database) = OwnDatabase::on(kind).await {
            test(options(database.url())).await;
        }
    }
}

/// Runs a test on each kind of server.
async fn on_servers(test: impl AsyncFn(&OwnDatabase)) {
    for kind in ServerKind::ALL {
        if let Some(database) = OwnDatabase::on(kind).await {
            test(&database).await;
        }
    }
}

fn simulated() -> Store {
    let fate = Arc::new(super::model::Kind);
    let clock = Arc::new(StillClock);
    Store::simulated(&Default::default(), fate, options(String::new()), clock, &Tasks::default())
}

fn rules() -> Rules {
    Rules { max_attempts: 3, multiplier: 1.5, ..Rules::plain() }
}

/// A job as a Start makes it; `n` goes into its id and its time.
fn job(n: i64) -> Record {
    job_with(n, rules(), NOW + n, |_| {})
}

fn job_with(n: i64, rules: Rules, scheduled_at: i64, spec_is: impl FnOnce(&mut Spec)) -> Record {
    let now = at(NOW + n);
    let mut spec = Spec {
        display_name: format!("job {n}"),
        labels: BTreeMap::new(),
        target: "default".into(),
        method: "POST".into(),
        route: "/import?from=a".into(),
        query: BTreeMap::from([("é".into(), "&".into())]),
        url: "/import?from=a&%C3%A9=%26".into(),
        header_names: vec!["x-one".into()],
        priority: 5,
        rules: Arc::new(rules),
        merge: None,
        as_user: false,
    };
    spec_is(&mut spec);
    let spec = Arc::new(spec);
    let mut random = [0; 10];
    random[2..].copy_from_slice(&n.to_be_bytes());
    Record {
        id: JobId::new(now.wall, random),
        job: Job::new(Arc::clone(&spec.rules), scheduled_at, now),
        spec,
        created_at: now.wall,
        created_by: "tester".into(),
        retry_of: None,
        merged_count: 0,
    }
}

fn payload() -> Payload {
    Payload {
        headers: vec![("authorization".into(), "Bearer canary".into())],
        content_type: Some("application/json".into()),
        body: b"{\"secret\":\"canary\"}".to_vec().into(),
        credentials: None,
    }
}

fn insert(record: &Record) -> Write {
    Write::Insert(Box::new(New::of(record.clone(), payload())))
}

/// A job that runs from its beginning, and finds waiting ones by this merge key.
fn begun(n: i64, key: u8) -> New {
    let mut record = job_with(n, rules(), NOW + n, |spec| spec.merge = Some(MergeClass::Pending));
    record.job.apply(Event::Claim, at(NOW + n)).expect("claimed");
    let merge = Some(Merge { key: [key; 32], join: true });
    New { merge, attempt: Some(claimed(&record)), ..New::of(record, payload()) }
}

fn update(from: Revision, record: &Record) -> Write {
    Write::Update(Box::new(Update { from, record: record.clone(), text: true, attempt: None }))
}

/// Hands a write in, and gives what will become of it.
async fn hand_in(store: &Store, write: Write) -> oneshot::Receiver<Result<Outcome, Error>> {
    let (sender, receiver) = oneshot::channel();
    let done = Box::new(move |result| drop(sender.send(result)));
    store.reserve().await.expect("open").write(write, done);
    receiver
}

async fn write(store: &Store, write: Write) -> Result<Outcome, Error> {
    hand_in(store, write).await.await.expect("told")
}

async fn added(store: &Store, record: Record) -> Record {
    assert_eq!(write(store, insert(&record)).await, Ok(Outcome::Done));
    record
}

/// Applies an event and writes what came of it.
async fn happens(store: &Store, record: &mut Record, event: Event, now: Now) {
    let from = record.job.revision;
    record.job.apply(event, now).expect("applied");
    assert_eq!(write(store, update(from, record)).await, Ok(Outcome::Done));
}

async fn one(store: &Store, id: JobId) -> Record {
    let found = store.records(&[id], true).await.expect("read");
    assert_eq!(found.len(), 1);
    found.into_iter().next().expect("one")
}

/// Records have no equality: a difference shows in what they print.
fn same(one: &Record, other: &Record) {
    assert_eq!(format!("{one:#?}"), format!("{other:#?}"));
}

fn ids(records: &[Record]) -> Vec<JobId> {
    records.iter().map(|record| record.id).collect()
}

fn says(text: &str) -> Signal {
    Signal::Report(Report {
        sequence: Some(7),
        progress: Some(Progress::To(40)),
        text: Some(TextChange::Append(text.into())),
        ..Report::default()
    })
}

fn claimed(record: &Record) -> AttemptRow {
    AttemptRow::claimed(record.job.attempt, "here".into(), record.job.updated_at)
}
