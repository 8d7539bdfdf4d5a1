//! Tables as maps: what the simulation of the engine runs on (tests alone).
//!
//! The writer, the queue and the rows are the real ones; only what SQLite does
//! with rows is done here. That both do the same is held by the suite of
//! contract tests, which runs on all of them, and by random writes
//! (`tests/model.rs`). Nothing here knows a thread or a clock, so a run with the
//! same choices goes the same way; what goes wrong, and how long things take, is
//! up to a [`Fate`].

use super::{
    Error, Existing, List, Options, Outcome, Shared, StartKey, Store,
    batch::Kept,
    database::Database,
    entity::{attempt, job, job_label, job_request, job_text, start_key},
    health::{Health, Reader},
    read, row,
    write::{AttemptRow, Ended, Rows},
    writer::Writer,
};
use crate::{
    clock::Clock,
    job::{JobId, Payload, Record, StateName},
    secret::Keyring,
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

pub(crate) use super::entity::{
    attempt::Model as AttemptModel, job::Model as JobModel, job_text::Model as TextModel,
};

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
            let Rows::Insert { job, request, labels, text, .. } = write else { continue };
            if existing.contains_key(&place) {
                continue;
            }
            touched.push(job.id.clone());
            self.jobs.insert(job.id.clone(), job.clone());
            self.requests.insert(job.id.clone(), request.clone());
            self.labels.insert(job.id.clone(), labels.clone());
            texts.extend(text.clone());
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
                Rows::Delete(ids) => {
                    touched.extend(ids.iter().cloned());
                    self.delete(ids)
                }
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
            let Rows::Insert { job, start_key, join, .. } = write else { continue };
            let name = start_key.as_ref().map(|key| (key.caller.clone(), key.key_hash.clone()));
            if let Some(known) = name.as_ref().and_then(|name| keys.get(name)) {
                let id = row::job_id(&known.job_id)?;
                let same = start_key.as_ref().is_some_and(|key| key.request_hash == known.request_hash);
                existing.insert(place, if same { Existing::Same(id) } else { Existing::Other(id) });
                continue;
            }
            let mut made = job.id.clone();
            if let Some(key) = &job.merge_key {
                match jobs.get(key) {
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

    fn record(&self, job: &job::Model, text: bool) -> Result<Record, Error> {
        let request = self.requests.get(&job.id);
        let key = (job.id.clone(), job.attempt);
        let running = if job.state == 3 { self.attempts.get(&key) } else { None };
        let text = if text { self.texts.get(&job.id) } else { None };
        let beside = row::Beside {
            spec: request.map(|request| request.spec.clone()),
            retry_of: request.and_then(|request| request.retry_of.clone()),
            sent_at: running.and_then(|row| row.sent_at),
            reported: running.map(|row| row.reported),
            sequence: running.map(|row| row.last_sequence),
            text: text.filter(|text| text.attempt == job.attempt).cloned(),
        };
        row::record(job.clone(), beside)
    }

    /// The first `limit` of those that `wanted`, in the order of `by`.
    fn sorted<K: Ord>(
        &self,
        wanted: impl Fn(&job::Model) -> bool,
        by: impl Fn(&job::Model) -> K,
        limit: u64,
    ) -> Vec<&job::Model> {
        let mut found: Vec<&job::Model> = self.jobs.values().filter(|job| wanted(job)).collect();
        found.sort_by_key(|job| by(job));
        found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        found
    }

    fn read(&self, found: &[&job::Model], text: bool) -> Result<Vec<Record>, Error> {
        found.iter().map(|job| self.record(job, text)).collect()
    }

    fn lists(&self, list: &List, job: &job::Model) -> bool {
        let state = i16::try_from(job.state).ok().and_then(StateName::from_number);
        let labels = self.labels.get(&job.id).map(Vec::as_slice).unwrap_or_default();
        let route = self.requests.get(&job.id).map(|request| request.route.as_str()).unwrap_or_default();
        let has = |name: &String, value: &String| {
            labels.iter().any(|label| label.name == *name && label.value == *value)
        };
        list.ids.as_ref().is_none_or(|ids| ids.iter().any(|id| id.to_bytes() == *job.id))
            && (list.states.is_empty() || state.is_some_and(|state| list.states.contains(&state)))
            && list.labels.iter().all(|(name, value)| has(name, value))
            && list.route_prefix.as_ref().is_none_or(|prefix| route.starts_with(prefix.as_str()))
            && list.target.as_ref().is_none_or(|target| job.target == *target)
            && list.created_by.as_ref().is_none_or(|name| job.created_by == *name)
            && list.created_after.is_none_or(|at| job.created_at >= at)
            && list.created_before.is_none_or(|at| job.created_at < at)
            && list
                .before
                .is_none_or(|(at, id)| (job.created_at, job.id.as_slice()) < (at, &id.to_bytes()[..]))
    }
}

fn is(job: &job::Model, state: StateName) -> bool {
    job.state == i64::from(state.number())
}

impl Model {
    pub(super) async fn commit(&self, writes: &[Rows]) -> Result<Vec<Outcome>, Error> {
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
    pub(super) async fn probe(&self) -> Result<(), Error> {
        self.fate.commits().await
    }

    async fn read<T>(&self, look: impl FnOnce(&Tables) -> Result<T, Error>) -> Result<T, Error> {
        if self.closed.is_cancelled() {
            return Err(Error::Unavailable("closed".into()));
        }
        self.fate.reads().await?;
        let found = look(&lock(&self.disk));
        self.fate.has_read().await;
        found
    }

    pub(super) async fn records(&self, ids: &[JobId], text: bool) -> Result<Vec<Record>, Error> {
        let find = |tables: &Tables| {
            let found = ids.iter().filter_map(|id| tables.jobs.get(id.to_bytes().as_slice()));
            tables.read(&found.collect::<Vec<_>>(), text)
        };
        self.read(find).await
    }

    pub(super) async fn due(&self, now: i64, limit: u64) -> Result<Vec<Record>, Error> {
        let due = |job: &job::Model| is(job, StateName::Scheduled) && job.scheduled_at <= now;
        let by = |job: &job::Model| (job.scheduled_at, job.id.clone());
        self.read(|tables| tables.read(&tables.sorted(due, by, limit), false)).await
    }

    pub(super) async fn waiting(&self) -> Result<u64, Error> {
        self.read(|tables| Ok(tables.jobs.values().filter(|job| job.state < 3).count() as u64)).await
    }

    pub(super) async fn next_due(&self) -> Result<Option<i64>, Error> {
        let waits = |job: &&job::Model| is(job, StateName::Scheduled);
        self.read(|tables| Ok(tables.jobs.values().filter(waits).map(|job| job.scheduled_at).min())).await
    }

    pub(super) async fn claimable(
        &self,
        target: &str,
        limit: u64,
        except: &[JobId],
    ) -> Result<Vec<Record>, Error> {
        let wanted = |job: &job::Model| {
            is(job, StateName::Queued)
                && job.target == target
                && !except.iter().any(|id| id.to_bytes() == *job.id)
        };
        let by = |job: &job::Model| (-job.priority, job.scheduled_at, job.id.clone());
        self.read(|tables| tables.read(&tables.sorted(wanted, by, limit), false)).await
    }

    pub(super) async fn overdue(&self, now: i64, limit: u64) -> Result<Vec<Record>, Error> {
        let over = |job: &job::Model| job.give_up_at.is_some_and(|at| at <= now);
        let by = |job: &job::Model| (job.give_up_at, job.id.clone());
        self.read(|tables| tables.read(&tables.sorted(over, by, limit), false)).await
    }

    pub(super) async fn next_give_up(&self) -> Result<Option<i64>, Error> {
        self.read(|tables| Ok(tables.jobs.values().filter_map(|job| job.give_up_at).min())).await
    }

    pub(super) async fn running(&self) -> Result<Vec<Record>, Error> {
        let runs = |job: &job::Model| is(job, StateName::Running);
        self.read(|tables| tables.read(&tables.sorted(runs, |job| job.id.clone(), u64::MAX), true)).await
    }

    pub(super) async fn ended_before(
        &self,
        state: StateName,
        at: i64,
        limit: u64,
    ) -> Result<Vec<JobId>, Error> {
        let over = |job: &job::Model| is(job, state) && job.ended_at.is_some_and(|ended| ended <= at);
        let by = |job: &job::Model| job.ended_at;
        self.read(|tables| tables.sorted(over, by, limit).iter().map(|job| row::job_id(&job.id)).collect())
            .await
    }

    pub(super) async fn first_ended(&self, state: StateName) -> Result<Option<i64>, Error> {
        let ended = |job: &&job::Model| is(job, state);
        self.read(|tables| Ok(tables.jobs.values().filter(ended).filter_map(|job| job.ended_at).min())).await
    }

    pub(super) async fn payload(&self, id: JobId, keys: &Keyring) -> Result<Option<Payload>, Error> {
        let row = self.read(|tables| Ok(tables.requests.get(id.to_bytes().as_slice()).cloned())).await?;
        row.map(|row| read::opened(keys, id, row)).transpose()
    }

    pub(super) async fn started_by(&self, key: &StartKey) -> Result<Option<Existing>, Error> {
        let name = (key.caller.clone(), key.key.to_vec());
        let row = self.read(|tables| Ok(tables.start_keys.get(&name).cloned())).await?;
        row.map(|row| read::started(&row, key)).transpose()
    }

    pub(super) async fn ended_by(&self, id: JobId, attempt: u32) -> Result<Option<Ended>, Error> {
        let found = self.attempts(id).await?.into_iter().find(|row| row.attempt == attempt);
        Ok(found.and_then(|row| row.ended_by))
    }

    pub(super) async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRow>, Error> {
        let of = id.to_bytes().to_vec();
        let all = (of.clone(), i64::MIN)..=(of, i64::MAX);
        let found = self
            .read(|tables| Ok(tables.attempts.range(all).map(|(_, row)| row.clone()).collect::<Vec<_>>()));
        found.await?.into_iter().map(row::attempt_row).collect()
    }

    pub(super) async fn list(&self, list: &List) -> Result<Vec<Record>, Error> {
        let by = |job: &job::Model| std::cmp::Reverse((job.created_at, job.id.clone()));
        self.read(|tables| {
            tables.read(&tables.sorted(|job| tables.lists(list, job), by, list.limit), list.text)
        })
        .await
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
        let mut writer = Writer {
            db: nowhere(),
            on_file: false,
            reader: Reader { db: nowhere(), health: Arc::clone(&health) },
            worn: false,
            mark: None,
            model: Some(model.clone()),
            kept: Kept::default(),
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
            notifier: None,
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
