//! Whether the database can be used, as its reads and writes tell.

use super::{
    Error,
    database::Database,
    sqlite::{self, Place},
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, Statement};
use std::{
    ops::Deref,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// From a damage to the first check of the file; each later one waits twice as
/// long, as it reads all of it.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// What is known; each of these alone makes the database unhealthy.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The last write failed.
    write: bool,
    /// A transaction is under way for too long.
    stuck: bool,
    /// The last read failed.
    read: bool,
    /// A page of the file was found damaged, or the disk cannot read it. Until the
    /// whole file was found good: what else is damaged nobody knows.
    damage: Option<Error>,
}

/// Follows what becomes of reads and writes, tells who wants to know, and logs
/// each change once, however many calls fail.
#[derive(Debug)]
pub(super) struct Health {
    known: Mutex<Known>,
    told: watch::Sender<bool>,
    /// Wakes the check of the file.
    damaged: Notify,
    /// Wakes the writer, which tries whether the database is back.
    worse: Notify,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            known: Mutex::default(),
            told: watch::Sender::new(true),
            damaged: Notify::new(),
            worse: Notify::new(),
        }
    }

    pub(super) fn follow(&self) -> watch::Receiver<bool> {
        self.told.subscribe()
    }

    pub(super) fn is_good(&self) -> bool {
        *self.told.borrow()
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).stuck
    }

    /// Returns once it is not good any more; for the writer alone. Cancel safe.
    pub(super) async fn worse(&self) {
        self.worse.notified().await;
    }

    /// Why nothing may be written any more.
    pub(super) fn damage(&self) -> Option<Error> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).damage.clone()
    }

    /// Checks the file, again and again, from when it is found damaged until it is
    /// found good: what a disk could not read once it may read later.
    pub(super) async fn check(&self, file: &Path) {
        loop {
            self.damaged.notified().await;
            let mut rest = FIRST;
            loop {
                tokio::time::sleep(rest).await;
                match is_good(file).await {
                    Ok(()) => break,
                    Err(found) => tracing::error!(found, "the database is still damaged"),
                }
                rest = (rest * 2).min(LONGEST);
            }
            self.change(|known| known.damage = None, || {});
        }
    }

    /// A transaction takes long.
    pub(super) fn stuck(&self, seconds: u64) {
        self.change(
            |known| known.stuck = true,
            || {
                tracing::error!(
                    seconds,
                    "the database takes no writes: the disk, or the server, does not answer"
                );
            },
        );
    }

    /// A transaction has ended.
    pub(super) fn wrote(&self, error: Option<&Error>) {
        let error = error.filter(|error| error.is_transient());
        self.change(
            |known| {
                (known.write, known.stuck) = (error.is_some(), false);
                known.note_damage(error);
            },
            || log_failure(error),
        );
    }

    /// A read has ended.
    fn read(&self, error: Option<&DbErr>) {
        let error = error.and_then(Error::of_file);
        let error = error.as_ref();
        if error.is_none() && self.is_good() {
            return; // the common case takes no lock
        }
        self.change(
            |known| {
                known.read = error.is_some();
                known.note_damage(error);
            },
            || log_failure(error),
        );
    }

    /// Changes what is known, under the lock so that what is told is in order, and
    /// logs if that makes the database unhealthy, or healthy again.
    fn change(&self, change: impl FnOnce(&mut Known), worse: impl FnOnce()) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let damaged = known.damage.is_some();
        change(&mut known);
        let good = !known.write && !known.stuck && !known.read && known.damage.is_none();
        let changed = self.told.send_if_modified(|was| std::mem::replace(was, good) != good);
        let found = known.damage.is_some() && !damaged;
        if found {
            self.damaged.notify_one();
        }
        drop(known);
        if changed && !good {
            self.worse.notify_one();
        }
        match (changed || found, good) {
            (true, true) => tracing::info!("the database is back"),
            (true, false) => worse(),
            (false, _) => {}
        }
    }
}

impl Known {
    fn note_damage(&mut self, error: Option<&Error>) {
        if self.damage.is_none() {
            self.damage = error.filter(|error| matches!(error, Error::Damaged(_))).cloned();
        }
    }
}

/// Checks a file through a connection that remembers nothing of it.
async fn is_good(file: &Path) -> Result<(), String> {
    let db = sqlite::connect(&Place::File(file.to_owned()), sqlite::Use::Read)
        .await
        .map_err(|error| Error::from(error).to_string())?;
    let good = quick_check(&db).await;
    let _ = db.close().await; // only read from
    good
}

/// Reads all of a database; what is wrong with it.
pub(super) async fn quick_check(db: &DatabaseConnection) -> Result<(), String> {
    let sql = Statement::from_string(DbBackend::Sqlite, "PRAGMA quick_check(1)");
    let found = db.query_one_raw(sql).await.map_err(|error| Error::from(error).to_string())?;
    let found: Option<String> = found.and_then(|row| row.try_get_by_index(0).ok());
    match found {
        Some(found) if found == "ok" => Ok(()),
        found => Err(found.unwrap_or_default()),
    }
}

fn log_failure(error: Option<&Error>) {
    match error {
        Some(error @ Error::Damaged(_)) => tracing::error!(%error, "nothing more is written"),
        Some(error) => tracing::error!(%error, "the database fails"),
        None => {}
    }
}

/// The connections that read; what becomes of each read is noted.
#[derive(Clone)]
pub(super) struct Reader {
    pub db: Database,
    pub health: Arc<Health>,
}

impl Deref for Reader {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.db
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, DbErr>> + Send + 'a>>;

impl Reader {
    fn noted<'a, T: 'a>(&'a self, read: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let result = read.await;
            self.health.read(result.as_ref().err());
            result
        })
    }
}

impl ConnectionTrait for Reader {
    fn get_database_backend(&self) -> DbBackend {
        self.db.get_database_backend()
    }

    fn execute_raw<'a: 'b, 'b>(&'a self, statement: Statement) -> Answer<'b, ExecResult>
    where
        Self: 'b,
    {
        self.noted(self.db.execute_raw(statement))
    }

    fn execute_unprepared<'a: 'c, 'b: 'c, 'c>(&'a self, sql: &'b str) -> Answer<'c, ExecResult>
    where
        Self: 'c,
    {
        self.noted(self.db.execute_unprepared(sql))
    }

    fn query_one_raw<'a: 'b, 'b>(&'a self, statement: Statement) -> Answer<'b, Option<QueryResult>>
    where
        Self: 'b,
    {
        self.noted(self.db.query_one_raw(statement))
    }

    fn query_all_raw<'a: 'b, 'b>(&'a self, statement: Statement) -> Answer<'b, Vec<QueryResult>>
    where
        Self: 'b,
    {
        self.noted(self.db.query_all_raw(statement))
    }
}
