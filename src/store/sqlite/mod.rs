//! On SQLite: where a database is, connections to it, and what is written most, beside
//! SeaORM.
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
mod connect;
mod place;
mod statements;

pub(super) use connect::{READERS, Use, connect, open};
pub(super) use place::{Place, check, file_of, lock, private, resolve};

use super::{
    Error,
    database::Database,
    names::Tables,
    write::{Outcome, Rows},
};
use rusqlite::Connection;
use sea_orm::{DbErr, RuntimeErr};
use statements::{Statements, Texts, is_ours};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
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
    place: Place,
    /// The one connection that others have to a database in memory: connections to that
    /// are in each other's way where they do something at once.
    other: Option<Database>,
    texts: Arc<Texts>,
    /// Bytes of pages that it keeps.
    cache: u64,
    thread: Option<Thread>,
}

struct Thread {
    transactions: mpsc::SyncSender<Transaction>,
    /// Ends with the connection.
    ended: oneshot::Receiver<()>,
}

struct Transaction {
    rows: Vec<Rows>,
    told: oneshot::Sender<Answer>,
}

struct Answer {
    /// Given back.
    rows: Vec<Rows>,
    written: Written,
    /// Nothing more is written on this connection: what it is in nobody knows.
    ends: bool,
}

impl Kept {
    /// To what `db` is connected to, which has all tables.
    pub(super) async fn open(
        place: Place,
        db: &Database,
        tables: &Tables,
        cache: u64,
    ) -> Result<Self, Error> {
        let texts = Arc::new(Texts::of(tables));
        let other = place.file().is_none().then(|| db.clone());
        let mut kept = Self { place, other, texts, cache, thread: None };
        kept.ready().await?;
        Ok(kept)
    }

    /// Opens the connection, unless it is.
    pub(super) async fn ready(&mut self) -> Result<(), Error> {
        if self.thread.is_some() {
            return Ok(());
        }
        let (transactions, handed) = mpsc::sync_channel(1);
        let (opened, opens) = oneshot::channel();
        let (ends, ended) = oneshot::channel::<()>();
        let (place, texts, cache) = (self.place.clone(), Arc::clone(&self.texts), self.cache);
        let run = move || {
            let _ends = ends; // dropped after the connection
            match open(&place, cache) {
                Ok(connection) => serve(&connection, &texts, opened, &handed),
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        let unavailable = |error: &dyn std::fmt::Display| Error::Unavailable(error.to_string());
        thread::Builder::new().name("store file".into()).spawn(run).map_err(|error| unavailable(&error))?;
        opens.await.map_err(|error| unavailable(&error))?.map_err(Error::from)?;
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
        let _others_rest = match &self.other {
            Some(db) => match db.connection().get_sqlite_connection_pool().acquire().await {
                Ok(connection) => Some(connection),
                Err(error) => {
                    let error = DbErr::Conn(RuntimeErr::SqlxError(error.into()));
                    return Some(Written::Failed(error.into()));
                }
            },
            None => None,
        };
        let Some(thread) = &self.thread else { return Some(Written::Failed(gone())) };
        let (told, tells) = oneshot::channel();
        let transaction = Transaction { rows: std::mem::take(rows), told };
        if let Err(mpsc::SendError(transaction)) = thread.transactions.send(transaction) {
            *rows = transaction.rows;
            self.thread = None;
            return Some(Written::Failed(gone()));
        }
        let Ok(answer) = tells.await else {
            self.thread = None;
            return Some(Written::Failed(gone()));
        };
        *rows = answer.rows;
        if answer.ends {
            self.close().await;
        }
        Some(answer.written)
    }

    /// Closes the connection; what is written next opens another.
    pub(super) async fn close(&mut self) {
        if let Some(Thread { transactions, ended }) = self.thread.take() {
            drop(transactions);
            let _ = ended.await; // nothing is sent
        }
    }
}

/// Says whether it is ready, and writes until nobody hands in any more.
fn serve(
    connection: &Connection,
    texts: &Texts,
    opened: oneshot::Sender<rusqlite::Result<()>>,
    handed: &mpsc::Receiver<Transaction>,
) {
    let mut statements = match Statements::prepare(connection, texts) {
        Ok(statements) => statements,
        Err(error) => return drop(opened.send(Err(error))),
    };
    // The writer may have gone, here and below.
    let _ = opened.send(Ok(()));
    while let Ok(Transaction { rows, told }) = handed.recv() {
        let (written, ends) = match catch_unwind(AssertUnwindSafe(|| statements.write(&rows))) {
            Ok(Ok(outcomes)) => (Written::Done(outcomes), false),
            Ok(Err(error)) => failed(connection, error),
            // Rolled back with the connection.
            Err(_) => (Written::Failed(gone()), true),
        };
        let _ = told.send(Answer { rows, written, ends });
        if ends {
            return;
        }
    }
}

fn gone() -> Error {
    Error::Unavailable("the thread that writes is gone".into())
}

/// What to tell of a transaction that failed, and whether the connection is of no use.
fn failed(connection: &Connection, error: rusqlite::Error) -> (Written, bool) {
    // SQLite rolls back by itself where the disk fails.
    let stays_open = !connection.is_autocommit() && connection.execute_batch("ROLLBACK").is_err();
    match Error::from(error) {
        Error::Refused(_) if !stays_open => (Written::Otherwise, false),
        error => (Written::Failed(error), stays_open),
    }
}
