//! On an SQLite file: what is written most, beside SeaORM.
//!
//! ```text
//!   writer's task ── rows of a transaction ──▶ thread "store file": BEGIN, rows, COMMIT
//!                 ◀── rows, and what came of them ──
//! ```
//!
//! To hand a statement to a connection of the pool is a way to its thread and back, which
//! costs more than most statements do; a whole transaction as one text has to be built,
//! with a copy of each value, and read again. So new jobs, changes of jobs and their end
//! go to a thread that has a connection of its own, and statements that are prepared for
//! as long as that lives. Nothing is read before: this process is the only one that
//! writes. Where a key is there already, nothing is written, and [`super::commit`] looks
//! closer, as it does where a Start may join another, which [`super::joinable`] knows
//! before.

mod columns;
mod statements;

use super::{
    Error,
    names::Tables,
    write::{Outcome, Rows},
};
use rusqlite::{Connection, OpenFlags};
use statements::{Statements, Texts, is_ours};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};
use tokio::sync::oneshot;

/// What came of a transaction.
#[derive(Debug)]
pub(super) enum Written {
    /// It is durable, with these outcomes, one for each write.
    Done(Vec<Outcome>),
    /// Nothing is written: a key is there already, or a value has no column.
    Otherwise,
    /// Nothing is written.
    Failed(Error),
}

/// The connection that writes, on a thread of its own.
pub(super) struct Kept {
    file: PathBuf,
    texts: Arc<Texts>,
    /// Bytes of pages that it keeps.
    cache: u64,
    thread: Option<Thread>,
}

struct Thread {
    transactions: mpsc::Sender<Transaction>,
    /// Ends with the connection.
    ended: oneshot::Receiver<()>,
}

struct Transaction {
    rows: Vec<Rows>,
    told: oneshot::Sender<(Vec<Rows>, Written)>,
}

impl Kept {
    /// To a file that is there, with all tables.
    pub(super) async fn open(file: &Path, tables: &Tables, cache: u64) -> Result<Self, Error> {
        let texts = Arc::new(Texts::of(tables));
        let mut kept = Self { file: file.to_owned(), texts, cache, thread: None };
        kept.ready().await?;
        Ok(kept)
    }

    /// Opens the connection, unless it is.
    pub(super) async fn ready(&mut self) -> Result<(), Error> {
        if self.thread.is_some() {
            return Ok(());
        }
        let (transactions, handed) = mpsc::channel();
        let ((opened, opens), (ends, ended)) = (oneshot::channel(), oneshot::channel());
        let (file, texts, cache) = (self.file.clone(), Arc::clone(&self.texts), self.cache);
        let run = move || {
            let _ends: oneshot::Sender<()> = ends; // dropped after the connection
            let connection = match open(&file, cache) {
                Ok(connection) => connection,
                Err(error) => return drop(opened.send(Err(error))),
            };
            match Statements::prepare(&connection, &texts) {
                // The writer may have gone.
                Ok(mut statements) => {
                    let _ = opened.send(Ok(()));
                    serve(&connection, &mut statements, &handed);
                }
                Err(error) => drop(opened.send(Err(error.into()))),
            }
        };
        let unavailable = |error: &dyn std::fmt::Display| Error::Unavailable(error.to_string());
        thread::Builder::new().name("store file".into()).spawn(run).map_err(|error| unavailable(&error))?;
        opens.await.map_err(|error| unavailable(&error))??;
        self.thread = Some(Thread { transactions, ended });
        Ok(())
    }

    /// Writes all of these, or nothing; None where they are not of the kinds that are
    /// known here.
    pub(super) async fn write(&mut self, rows: &mut Vec<Rows>) -> Option<Written> {
        if !is_ours(rows) {
            return None;
        }
        if let Err(error) = self.ready().await {
            return Some(Written::Failed(error));
        }
        let (told, tells) = oneshot::channel();
        let transaction = Transaction { rows: std::mem::take(rows), told };
        let gone = || Written::Failed(Error::Unavailable("the thread that writes is gone".into()));
        let Some(thread) = &self.thread else { return Some(gone()) };
        if let Err(mpsc::SendError(transaction)) = thread.transactions.send(transaction) {
            *rows = transaction.rows;
            self.thread = None;
            return Some(gone());
        }
        match tells.await {
            Ok((given_back, written)) => {
                *rows = given_back;
                Some(written)
            }
            Err(_) => {
                self.thread = None;
                Some(gone())
            }
        }
    }

    /// Closes the connection; what is written next opens another.
    pub(super) async fn close(&mut self) {
        if let Some(Thread { transactions, ended }) = self.thread.take() {
            drop(transactions);
            let _ = ended.await; // nothing is sent
        }
    }
}

/// As those of the pool are opened, see [`super::open`].
pub(super) fn open(file: &Path, cache: u64) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute_batch(&format!(
        "PRAGMA foreign_keys = OFF; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -{}",
        cache >> 10
    ))?;
    Ok(connection)
}

/// Until nobody hands in any more.
fn serve(connection: &Connection, statements: &mut Statements<'_>, handed: &mpsc::Receiver<Transaction>) {
    while let Ok(Transaction { rows, told }) = handed.recv() {
        let written = match statements.write(&rows) {
            Ok(outcomes) => Written::Done(outcomes),
            Err(error) => failed(connection, error),
        };
        // The writer may have gone.
        let _ = told.send((rows, written));
    }
}

fn failed(connection: &Connection, error: rusqlite::Error) -> Written {
    // SQLite rolls back by itself where the disk fails.
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        return Written::Failed(error.into());
    }
    match Error::from(error) {
        Error::Refused(_) => Written::Otherwise,
        error => Written::Failed(error),
    }
}
