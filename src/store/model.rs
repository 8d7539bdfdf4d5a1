//! Tables as maps: what the simulation of the engine runs on (tests alone).
//!
//! The writer, the queue and the rows are the real ones; only what SQLite does
//! with rows is done here. That both do the same is held by the suite of
//! contract tests, which runs on all of them, and by random writes
//! (`tests/model.rs`). Nothing here knows a thread or a clock, so a run with the
//! same choices goes the same way; what goes wrong, and how long things take, is
//! up to a [`Fate`].

mod reads;

use super::{
    Error, Existing, Options, Outcome, Shared, Store,
    database::Database,
    entity::{attempt, job, job_label, job_request, job_text, start_key},
    health::{Health, Reader},
    notice::Notices,
    row,
    write::Rows,
    writer::Writer,
};
use crate::{
    clock::Clock,
    job::{JobId, Spec},
    tasks::Tasks,
};
use futures_util::future::BoxFuture;
use sea_orm::DatabaseConnection;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) use super::entity::{attempt::Model as AttemptModel, job::Model as JobModel};

/// What befalls the tables. A future that never ends is how a process dies there.
pub(crate) trait Fate: Send + Sync + 'static {
    /// Before a transaction; on an error nothing of it is stored.
    fn commits(&self) -> BoxFuture<'_, Result<(), Error>>;
    /// A transaction is durable, and nobody was told yet: each job that it
    /// touched, with its row from before.
    fn committed(&self, tables: &Tables, touched: &[(Vec<u8>, Option<JobModel>)]);
    /// After that, and before anybody is told.
    fn tells(&self) -> BoxFuture<'_, ()>;
    /// Before a read.
    fn reads(&self) -> BoxFuture<'_, Result<(), Error>>;
    /// After a read, before its answer is there.
    fn has_read(&self) -> BoxFuture<'_, ()>;
}

/// Nothing goes wrong, and all is done at once.
pub(crate) struct Kind;

impl Fate for Kind {
    fn commits(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
    fn committed(&self, _: &Tables, _: &[(Vec<u8>, Option<JobModel>)]) {}
    fn tells(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn reads(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
    fn has_read(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// The rows, by their primary keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    pub jobs: BTreeMap<Vec<u8>, job::Model>,
    requests: BTreeMap<Vec<u8>, job_request::Model>,
    labels: BTreeMap<Vec<u8>, Vec<job_label::Model>>,
    pub texts: BTreeMap<Vec<u8>, job_text::Model>,
    pub attempts: BTreeMap<(Vec<u8>, i64), attempt::Model>,
    start_keys: BTreeMap<(String, Vec<u8>), start_key::Model>,
}

/// What outlives a simulated process.
pub(crate) type Disk = Arc<Mutex<Tables>>;

pub(crate) fn lock(disk: &Disk) -> MutexGuard<'_, Tables> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tables as one process sees them.
#[derive(Clone)]
pub(crate) struct Model {
    disk: Disk,
    fate: Arc<dyn Fate>,
    closed: CancellationToken,
}

impl Tables {
    /// What a job was asked to do.
    pub(crate) fn spec(&self, id: JobId) -> Option<Spec> {
        serde_json::from_str(&self.requests.get(id.to_bytes().as_slice())?.spec).ok()
    }

    /// Whether a job runs another one again.
    pub(crate) fn is_run_again(&self, id: JobId) -> bool {
        self.requests.get(id.to_bytes().as_slice()).is_some_and(|request| request.retry_of.is_some())
    }

    /// As `commit.rs`, in the same order.
    fn commit(&mut self, writes: &[Rows]) -> Result<(Vec<Outcome>, Vec<Vec<u8>>), Error> {
        let (existing, start_keys, joins) = self.settle(writes)?;
        for (place, write) in writes.iter().enumerate() {
            if let Rows::Insert { job, .. } = write
                && !existing.contains_key(&place)
                && self.jobs.contains_key(&job.id)
            {
                return Err(Error::Refused("UNIQUE constraint failed: job.id".into()));
            }
        }
        let mut touched = Vec::new();
        let (mut texts, mut attempts) = (Vec::new(), Vec::new());
        for (place, write) in writes.iter().enumerate() {
            let Rows::Insert { job, request, labels, text, attempt, .. } = write else { continue };
            if existing.contains_key(&place) {
                continue;
            }
            touched.push(job.id.clone());
            self.jobs.insert(job.id.clone(), job.clone());
            self.requests.insert(job.id.clone(), request.clone());
            self.labels.insert(job.id.clone(), labels.clone());
            texts.extend(text.clone());
            attempts.extend(attempt.as_deref().cloned());
        }
        for key in start_keys {
            self.start_keys.insert((key.caller.clone(), key.key_hash.clone()), key);
        }
        for (id, (count, at)) in joins {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.merged_count += count;
                job.changed_at = job.changed_at.max(at);
                job.revision += i64::from(job.state < 3);
                touched.push(id);
            }
        }
        let mut won = Vec::with_capacity(writes.len());
        for write in writes {
            won.push(match write {
                Rows::Update { from, job, .. } => self.update(*from, job),
                Rows::Insert { .. } | Rows::Delete(_) | Rows::Reseal { .. } => false,
            });
        }
        let (mut closed, mut wiped) = (Vec::new(), Vec::new());
        let mut outcomes = Vec::with_capacity(writes.len());
        for (place, write) in writes.iter().enumerate() {
            let done = match write {
                Rows::Insert { .. } => match existing.get(&place) {
                    Some(existing) => {
                        outcomes.push(Outcome::Existing(*existing));
                        continue;
                    }
                    None => true,
                },
                Rows::Delete(_) => false, // below
                Rows::Reseal { from, request } => match self.requests.get_mut(&request.job_id) {
                    Some(row) if row.root_id == *from => {
                        row.root_id.clone_from(&request.root_id);
                        row.sealed.clone_from(&request.sealed);
                        row.credentials.clone_from(&request.credentials);
                        true
                    }
                    _ => false,
                },
                Rows::Update { .. } if !won[place] => false,
                Rows::Update { job, closed: now, wipe, text, attempt, .. } => {
                    touched.push(job.id.clone());
                    wiped.extend(wipe.then(|| job.id.clone()));
                    closed.extend(now.then(|| job.id.clone()));
                    texts.extend(text.clone());
                    attempts.extend(attempt.clone());
                    true
                }
            };
            outcomes.push(if done { Outcome::Done } else { Outcome::Lost });
        }
        for id in closed {
            self.jobs.entry(id).and_modify(|job| job.merge_key = None);
        }
        for id in wiped {
            self.requests.entry(id).and_modify(|request| request.credentials = None);
        }
        self.texts.extend(texts.into_iter().map(|text| (text.job_id.clone(), text)));
        let keyed = attempts.into_iter().map(|row| ((row.job_id.clone(), row.attempt), row));
        self.attempts.extend(keyed);
        for (write, outcome) in writes.iter().zip(&mut outcomes) {
            if let Rows::Delete(ids) = write {
                touched.extend(ids.iter().cloned());
                if self.delete(ids) {
                    *outcome = Outcome::Done;
                }
            }
        }
        Ok((outcomes, touched))
    }

    /// As `existing.rs`.
    #[allow(clippy::type_complexity)]
    fn settle(
        &self,
        writes: &[Rows],
    ) -> Result<(BTreeMap<usize, Existing>, Vec<start_key::Model>, BTreeMap<Vec<u8>, (i64, i64)>), Error>
    {
        let (mut existing, mut start_keys) = (BTreeMap::new(), Vec::new());
        let mut joins: BTreeMap<Vec<u8>, (i64, i64)> = BTreeMap::new();
        let mut keys = self.start_keys.clone();
        let merging = self.jobs.values().filter_map(|job| Some((job.merge_key.clone()?, job.id.clone())));
        let mut jobs: BTreeMap<Vec<u8>, Vec<u8>> = merging.collect();
        for (place, write) in writes.iter().enumerate() {
            let Rows::Insert { job, start_key, join, twin, .. } = write else { continue };
            let name = start_key.as_ref().map(|key| (key.caller.clone(), key.key_hash.clone()));
            if let Some(known) = name.as_ref().and_then(|name| keys.get(name)) {
                let id = row::job_id(&known.job_id)?;
                let same = start_key.as_ref().is_some_and(|key| key.request_hash == known.request_hash);
                existing.insert(place, if same { Existing::Same(id) } else { Existing::Other(id) });
                continue;
            }
            let mut made = job.id.clone();
            if let Some(key) = write.merge_key() {
                let twin = twin.map(|id| id.to_bytes().to_vec());
                let twin = twin.filter(|id| self.jobs.get(id).is_some_and(|job| job.state < 4));
                match jobs.get(key).or(twin.as_ref()) {
                    Some(id) if *join => {
                        existing.insert(place, Existing::Joined(row::job_id(id)?));
                        let (count, at) = joins.entry(id.clone()).or_default();
                        *count += 1;
                        *at = (*at).max(job.changed_at);
                        made.clone_from(id);
                    }
                    Some(id) => {
                        existing.insert(place, Existing::Taken(row::job_id(id)?));
                        continue;
                    }
                    None => {
                        jobs.insert(key.clone(), made.clone());
                    }
                }
            }
            if let Some(key) = start_key {
                let key = start_key::Model { job_id: made, ..key.clone() };
                keys.insert((key.caller.clone(), key.key_hash.clone()), key.clone());
                start_keys.push(key);
            }
        }
        Ok((existing, start_keys, joins))
    }

    /// What an update never writes stays.
    fn update(&mut self, from: i64, new: &job::Model) -> bool {
        let Some(job) = self.jobs.get_mut(&new.id).filter(|job| job.revision == from) else { return false };
        *job = job::Model {
            created_at: job.created_at,
            merged_count: job.merged_count,
            merge_key: job.merge_key.clone(),
            target: job.target.clone(),
            priority: job.priority,
            created_by: job.created_by.clone(),
            ..new.clone()
        };
        true
    }

    fn delete(&mut self, ids: &[Vec<u8>]) -> bool {
        let mut any = false;
        for id in ids {
            if self.jobs.get(id).is_none_or(|job| job.state < 4) {
                continue;
            }
            any = true;
            self.jobs.remove(id);
            self.requests.remove(id);
            self.labels.remove(id);
            self.texts.remove(id);
            self.attempts.retain(|(job, _), _| job != id);
            self.start_keys.retain(|_, key| key.job_id != *id);
        }
        any
    }
}

impl Model {
    pub(in crate::store) async fn commit(&self, writes: &[Rows]) -> Result<Vec<Outcome>, Error> {
        self.fate.commits().await?;
        let outcomes = {
            let mut tables = lock(&self.disk);
            let before = tables.jobs.clone();
            let (outcomes, mut touched) = tables.commit(writes)?;
            touched.sort();
            touched.dedup();
            let touched: Vec<_> =
                touched.into_iter().map(|id| (id.clone(), before.get(&id).cloned())).collect();
            self.fate.committed(&tables, &touched);
            outcomes
        };
        self.fate.tells().await;
        Ok(outcomes)
    }

    /// A write that changes nothing.
    pub(in crate::store) async fn probe(&self) -> Result<(), Error> {
        self.fate.commits().await
    }
}

/// Nothing of a simulation goes to a database.
fn nowhere() -> Database {
    Database::new(DatabaseConnection::default(), super::names::Tables::default(), 1)
}

impl Store {
    /// A store over tables in memory, with the real writer.
    pub(crate) fn simulated(
        disk: &Disk,
        fate: Arc<dyn Fate>,
        options: Options,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Self {
        let (queue, receiver) = mpsc::channel(options.queue.max(1));
        let health = Arc::new(Health::new());
        let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
        let model = Model { disk: Arc::clone(disk), fate, closed: closed.clone() };
        let notices = Arc::new(Notices::new(None, &super::names::Tables::default(), [0; 16]));
        let mut writer = Writer {
            notices: Arc::clone(&notices),
            db: nowhere(),
            on_file: false,
            reader: Reader { db: nowhere(), health: Arc::clone(&health) },
            worn: false,
            mark: None,
            model: Some(model.clone()),
            kept: None,
            joinable: None,
            at_once: None,
            answered: 0,
            ahead: false,
            queue: receiver,
            batch: options.batch.max(1),
            health: Arc::clone(&health),
            closing: closing.clone(),
            clock: Arc::clone(&clock),
            root: options.keys.current().id(),
            root_known: true,
        };
        let ends = closed.clone().drop_guard();
        tasks.spawn("store writer", async move {
            let _ends = ends;
            writer.run().await;
        });
        let shared = Shared {
            reader: Reader { db: nowhere(), health: Arc::clone(&health) },
            pulse: nowhere(),
            notices,
            server: None,
            incarnation: [0; 16],
            model: Some(model),
            queue,
            health,
            closing,
            closed,
            keys: options.keys,
            other_roots: false,
            identity: [7; 32],
            node: options.node,
            clock,
        };
        Self { shared: Arc::new(shared) }
    }
}
