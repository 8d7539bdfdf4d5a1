//! On SQLite: the jobs that identical Starts may join, by their merge keys, in memory.
//!
//! A merge key is a hash. In an index each of the Starts of a transaction would change
//! a page of its own, which costs as much as half of all else that is done for them.
//! There is one process that writes, so that it can keep in mind what it wrote: the
//! keys are read when the file is opened, and follow what becomes durable. Of writes
//! that failed it is looked up what is stored, before the next ones.
//!
//! What is here says where to look: a job is joined only if its row, too, has the key.
//! So one that is here and is not joinable any more does no harm.

use super::{
    database::Database,
    dialect::statement,
    write::{Outcome, Rows, has_twins},
};
use crate::job::{JobId, OfIds};
use futures_util::TryStreamExt as _;
use hashbrown::HashTable;
use sea_orm::{ConnectionTrait as _, DbErr, RuntimeErr, Value};
use sqlx::{AssertSqlSafe, Row as _};
use std::hash::BuildHasher as _;

type Id = [u8; 16];

/// A job, and a quarter of its merge key: all of it stands in the row.
#[derive(Debug, Clone, Copy)]
struct Job {
    id: Id,
    key: u64,
}

/// All of them.
pub(super) const ALL: &str = r#"SELECT id, merge_key FROM "job" WHERE state < 4 AND merge_key IS NOT NULL"#;

/// Room for so many is kept once there was need for it.
const KEPT: usize = 1_024;

/// Jobs by their keys, and by their ids: 30 to 70 bytes each, as full as tables and
/// list are.
#[derive(Debug, Default)]
pub(super) struct Joinable {
    jobs: Vec<Job>,
    /// Places in the list.
    by_key: HashTable<u32>,
    by_id: HashTable<u32>,
    /// Jobs of a transaction that failed: what is stored of them is to be looked up.
    doubtful: Vec<Id>,
}

/// A merge key is a hash already.
fn part(key: &[u8]) -> Option<u64> {
    key.first_chunk().copied().map(u64::from_le_bytes)
}

fn hash(id: Id) -> u64 {
    OfIds::default().hash_one(JobId::from_bytes(id))
}

impl Joinable {
    /// Those in the tables.
    pub(super) async fn load(db: &Database) -> Result<Self, DbErr> {
        let fails = |error: sqlx::Error| DbErr::Query(RuntimeErr::SqlxError(error.into()));
        let mut joinable = Self::default();
        let pool = db.connection().get_sqlite_connection_pool();
        let mut rows = sqlx::raw_sql(AssertSqlSafe(db.place(ALL.to_owned()))).fetch(pool);
        while let Some(row) = rows.try_next().await.map_err(fails)? {
            let (id, key) = (row.try_get(0).map_err(fails)?, row.try_get(1).map_err(fails)?);
            joinable.put(id, key);
        }
        Ok(joinable)
    }

    fn put(&mut self, id: &[u8], key: &[u8]) {
        self.remove(id); // what is known of a job of this id is of another time
        let Self { jobs, by_key, by_id, .. } = self;
        let (Ok(id), Some(key), Ok(place)) = (Id::try_from(id), part(key), u32::try_from(jobs.len())) else {
            return; // no row of ours
        };
        by_id.insert_unique(hash(id), place, |at| hash(jobs[*at as usize].id));
        by_key.insert_unique(key, place, |at| jobs[*at as usize].key);
        jobs.push(Job { id, key });
    }

    fn remove(&mut self, id: &[u8]) {
        let Self { jobs, by_key, by_id, .. } = self;
        let Ok(id) = Id::try_from(id) else { return };
        let Ok(known) = by_id.find_entry(hash(id), |at| jobs[*at as usize].id == id) else { return };
        let (place, _) = known.remove();
        if let Ok(entry) = by_key.find_entry(jobs[place as usize].key, |at| *at == place) {
            entry.remove();
        }
        // The last takes its place.
        let (last, end) = (jobs[jobs.len() - 1], jobs.len() - 1);
        jobs.swap_remove(place as usize);
        for (table, hash) in [(&mut *by_key, last.key), (&mut *by_id, hash(last.id))] {
            if let Some(at) = table.find_mut(hash, |at| *at as usize == end) {
                *at = place;
            }
        }
        // What a long queue took is given back when that is gone.
        if jobs.capacity() > KEPT && jobs.len() < jobs.capacity() / 8 {
            let room = KEPT.max(2 * jobs.len());
            jobs.shrink_to(room);
            by_key.shrink_to(room, |at| jobs[*at as usize].key);
            by_id.shrink_to(room, |at| hash(jobs[*at as usize].id));
        }
    }

    /// How many fit.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.jobs.capacity().max(self.by_key.capacity()).max(self.by_id.capacity())
    }

    /// Whether a Start among these may find an identical one, here or among them.
    pub(super) fn finds(&self, writes: &[Rows]) -> bool {
        let mut keys = writes.iter().filter_map(Rows::merge_key).filter_map(|key| part(key));
        keys.any(|key| self.of(key).next().is_some()) || has_twins(writes)
    }

    fn of(&self, key: u64) -> impl Iterator<Item = &Job> {
        let jobs = self.by_key.iter_hash(key).map(|at| &self.jobs[*at as usize]);
        jobs.filter(move |job| job.key == key)
    }

    /// The jobs that may have one of these keys.
    pub(super) fn with(&self, keys: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let jobs = keys.iter().filter_map(|key| part(key)).flat_map(|key| self.of(key));
        jobs.map(|job| job.id.to_vec()).collect()
    }

    /// What came of writes, all of them durable.
    pub(super) fn follow<'a>(&mut self, written: impl Iterator<Item = (&'a Rows, Outcome)>) {
        for (rows, outcome) in written {
            match rows {
                Rows::Insert { job, .. } if outcome == Outcome::Done => {
                    if let Some(key) = &job.merge_key {
                        self.put(&job.id, key);
                    }
                }
                Rows::Update { job, closed: true, .. } if outcome == Outcome::Done => self.remove(&job.id),
                Rows::Insert { .. } | Rows::Update { .. } | Rows::Delete(_) | Rows::Reseal { .. } => {}
            }
        }
    }

    /// These may be stored or not.
    pub(super) fn doubt(&mut self, writes: &[Rows]) {
        self.doubtful.extend(writes.iter().filter_map(|rows| match rows {
            Rows::Insert { job, .. } | Rows::Update { job, closed: true, .. } => {
                Id::try_from(job.id.as_slice()).ok()
            }
            Rows::Update { .. } | Rows::Delete(_) | Rows::Reseal { .. } => None,
        }));
    }

    /// Whether something is to be looked up.
    pub(super) fn is_in_doubt(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// Looks up what is in doubt; where that fails it stays so.
    pub(super) async fn settle(&mut self, db: &Database) -> Result<(), DbErr> {
        let marks = vec!["?"; self.doubtful.len()].join(", ");
        let text =
            format!(r#"SELECT id, merge_key FROM "job" WHERE id IN ({marks}) AND merge_key IS NOT NULL"#);
        let ids = self.doubtful.iter().map(|id| Value::from(id.to_vec()));
        let found = db.query_all_raw(statement(db.get_database_backend(), text, ids)).await?;
        let found: Vec<(Vec<u8>, Vec<u8>)> = found
            .iter()
            .map(|row| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?)))
            .collect::<Result<_, DbErr>>()?;
        for id in std::mem::take(&mut self.doubtful) {
            self.remove(&id);
        }
        for (id, key) in found {
            self.put(&id, &key);
        }
        Ok(())
    }
}
