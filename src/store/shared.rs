//! Transactions beside those of other nodes: what is in the way is waited out, what
//! was overtaken is begun anew, and an end that was not heard of is looked up.
//!
//! ```text
//!   commit ──┬─ done
//!            ├─ refused, unavailable ─────────────▶ told
//!            ├─ overtaken, deadlock, connection lost before COMMIT ─▶ again, a few times
//!            └─ connection lost at COMMIT ─▶ read the mark ─┬─ ours: done
//!                                                           └─ not ours: again
//! ```
//!
//! Each transaction ends with its number in this store's own row of `node_commit`.
//! The row is read under a lock, so that a transaction that still ends on the server,
//! though nobody waits for it, is waited for. One that is a single statement
//! (`postgres/`) has no COMMIT of its own: wherever it breaks off its end is looked up,
//! and where it was not stored another mark is put there, without which it fails.

use super::{
    Error,
    commit::{Failed, commit},
    database::{Database, Transaction},
    dialect::statement,
    error::{Trouble, is_away, plain, trouble},
    postgres::Written,
    write::{Outcome, Rows},
    writer::{PROBE, Writer, refuse},
};
use sea_orm::{ConnectionTrait as _, DbBackend, DbErr};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How often a transaction is begun anew.
const TRIES: u32 = 12;
/// How often on a new connection: one that died is common after a restart of the
/// server; more are the server's.
const CONNECTIONS: u32 = 3;
/// How long a transaction may take, from its begin to its COMMIT, and the COMMIT; longer
/// than a lock is waited for.
const TIME: Duration = Duration::from_secs(10);
/// The same for looking up what came of one: who waits meanwhile is answered.
const LOOK: Duration = Duration::from_secs(2);
/// How long connections are mistrusted after one was silent.
const DOUBT: Duration = Duration::from_secs(60);
/// When a database was silent. Of any: who is asked in vain once more loses little.
static SILENT: Mutex<Option<Instant>> = Mutex::new(None);

/// A transaction, as the tables know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// The store's, made anew each time that one is opened.
    pub incarnation: [u8; 16],
    /// It rises with each transaction, and is no earlier than its time.
    pub number: i64,
    /// That of the last one that was stored, as far as is known.
    pub stored: i64,
}

/// Writes it down, as the last thing before COMMIT: its row is locked until then.
pub(super) async fn mark(db: &Transaction, mark: Mark) -> Result<(), DbErr> {
    const TEXT: &str = r#"UPDATE "node_commit" SET mark = ? WHERE incarnation = ?"#;
    let values = [mark.number.into(), mark.incarnation.to_vec().into()];
    let done = db.execute_raw(statement(db.get_database_backend(), TEXT, values)).await?;
    if done.rows_affected() == 0 {
        // Nobody but another server of this name takes it away.
        return Err(DbErr::Custom("another server was started with this node.name".into()));
    }
    Ok(())
}

/// Rows of servers that crashed, this old, are removed: in milliseconds.
const OLD: i64 = 30 * 86_400_000;

/// Makes the row, and removes those that earlier servers of this name left behind.
pub(super) async fn begin(db: &Database, node: &str, mark: Mark) -> Result<(), DbErr> {
    let backend = db.get_database_backend();
    let text = r#"DELETE FROM "node_commit" WHERE node = ? AND mark < ?
        AND incarnation NOT IN (SELECT incarnation FROM "node")"#;
    db.execute_raw(statement(backend, text, [node.into(), (mark.number - OLD).into()])).await?;
    let text = r#"INSERT INTO "node_commit" (incarnation, node, mark) VALUES (?, ?, ?)"#;
    let values = [mark.incarnation.to_vec().into(), node.into(), mark.number.into()];
    db.execute_raw(statement(backend, text, values)).await.map(drop)
}

/// Removes the row.
pub(super) async fn end(db: &Database, incarnation: [u8; 16]) -> Result<(), DbErr> {
    let text = r#"DELETE FROM "node_commit" WHERE incarnation = ?"#;
    db.execute_raw(statement(db.get_database_backend(), text, [incarnation.to_vec().into()])).await.map(drop)
}

/// The number of the last transaction that was stored. If that is not `mark`'s it will
/// never be: on PostgreSQL a transaction that is one statement may still be on its way,
/// and needs the mark that was there before.
async fn last(db: &Database, mark: Mark) -> Result<i64, DbErr> {
    let (backend, incarnation) = (db.get_database_backend(), mark.incarnation.to_vec());
    let statement = if backend == DbBackend::Postgres {
        let text = r#"UPDATE "node_commit" SET mark = (CASE WHEN mark = ? THEN mark ELSE ? END)
            WHERE incarnation = ? RETURNING mark"#;
        let values = [mark.number.into(), (mark.number + 1).into(), incarnation.into()];
        statement(backend, text, values)
    } else {
        let text = r#"SELECT mark FROM "node_commit" WHERE incarnation = ? FOR UPDATE"#;
        statement(backend, text, [incarnation.into()])
    };
    let found = db.query_all_raw(statement).await?;
    found.first().map_or(Ok(0), |row| row.try_get_by_index(0))
}

/// A write that changes nothing but reaches the tables.
pub(super) async fn probe(db: &Database, mark: Mark) -> Result<(), DbErr> {
    let text = r#"UPDATE "node_commit" SET mark = ? WHERE incarnation = ?"#;
    let values = [mark.number.into(), mark.incarnation.to_vec().into()];
    db.execute_raw(statement(db.get_database_backend(), text, values)).await.map(drop)
}

/// A server that says nothing any more is as good as gone.
pub(super) async fn within<T, E: From<DbErr>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    bounded(TIME, work).await
}

async fn bounded<T, E: From<DbErr>>(
    time: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(time, work).await {
        Ok(done) => done,
        Err(_) => {
            *SILENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            Err(DbErr::Custom(format!("the database did not answer in {time:?}")).into())
        }
    }
}

/// Whether a connection that was just used may be one on which nothing comes any more:
/// the system itself finds that out after a quarter of an hour.
pub(super) fn in_doubt() -> bool {
    SILENT.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < DOUBT)
}

impl Writer {
    /// Carries out a transaction beside those of other nodes.
    pub(super) async fn commit_shared(
        &mut self,
        rows: &mut [Rows],
        mark: Mark,
    ) -> Result<Vec<Outcome>, Error> {
        // Where the last one failed, a new connection is no news.
        let (mut tries, mut connections) = (0, if self.health.is_good() { 0 } else { CONNECTIONS });
        loop {
            tries += 1;
            let last = self.mark.map_or(mark.number, |mark| mark.number);
            let now = self.clock.wall();
            self.mark = Some(Mark { number: now.max(last + 1), ..mark });
            rows.iter_mut().for_each(|rows| rows.change_at(now));
            let error = match self.once(rows, tries).await {
                Ok(outcomes) => {
                    self.mark = self.mark.map(|mark| Mark { stored: mark.number, ..mark });
                    return Ok(outcomes);
                }
                Err(Failed::Overtaken) if tries < TRIES => {
                    self.pause(tries).await;
                    continue;
                }
                Err(Failed::Overtaken) => {
                    return Err(Error::Unavailable("too many nodes start the same".into()));
                }
                Err(Failed::Whole(error)) => error,
                Err(Failed::InDoubt(outcomes, error)) => match self.was_stored(&error).await {
                    Some(true) => return Ok(outcomes),
                    Some(false) => error,
                    None => return Err(error.into()),
                },
            };
            match trouble(&error) {
                Trouble::Again if tries < TRIES => {}
                Trouble::Gone if connections < CONNECTIONS && tries < TRIES && !is_away(&error) => {
                    connections += 1
                }
                Trouble::Again => return Err(Error::Unavailable(plain(&error))),
                _ => return Err(error.into()),
            }
            tracing::debug!(%error, tries, "a transaction is begun anew");
            self.pause(tries).await;
        }
    }

    /// At first as one statement, where that can be.
    async fn once(&mut self, rows: &[Rows], tries: u32) -> Result<Vec<Outcome>, Failed> {
        let at_once = self.at_once.as_mut().filter(|_| tries == 1);
        if let Some((at_once, mark)) = at_once.zip(self.mark) {
            match at_once.write(&self.db, rows, mark).await {
                Some(Written::All) => return Ok(vec![Outcome::Done; rows.len()]),
                Some(Written::Failed(error)) => return Err(Failed::Whole(error)),
                Some(Written::InDoubt(error)) => {
                    return Err(Failed::InDoubt(vec![Outcome::Done; rows.len()], error));
                }
                Some(Written::Otherwise) | None => {}
            }
        }
        commit(&self.db, rows, None, None, self.mark).await
    }

    /// So that who was in each other's way is not so again.
    async fn pause(&self, tries: u32) {
        let mut random = [0; 1];
        self.clock.random(&mut random);
        let most = 2_u64 << tries.min(7);
        tokio::time::sleep(Duration::from_millis(most * u64::from(random[0]) / 256)).await;
    }

    /// Whether the last transaction was stored; none if the store is closed before
    /// that can be known. Until then nothing else is written.
    async fn was_stored(&mut self, error: &DbErr) -> Option<bool> {
        let mark = self.mark?;
        tracing::warn!(error = plain(error), "the end of a transaction is not known; looking it up");
        loop {
            let error = match bounded(LOOK, last(&self.db, mark)).await {
                Ok(number) => {
                    let stored = number == mark.number;
                    // No transaction of ours has the number that was put there instead.
                    self.mark = Some(Mark { number: mark.number + 1, stored: number, ..mark });
                    tracing::warn!(stored, "the end of the transaction is known");
                    return Some(stored);
                }
                Err(error) => Error::from(error),
            };
            self.heal(Some(&error));
            if self.closing.is_cancelled() {
                tracing::error!("whether the last writes were stored is not known");
                return None;
            }
            while let Ok(item) = self.queue.try_recv() {
                refuse(*item, &error);
            }
            tokio::time::sleep(PROBE).await;
        }
    }
}
