//! On PostgreSQL: a whole transaction as one statement.
//!
//! What is written most, new jobs and changes of jobs, is one statement with a part for
//! each table, and a statement outside a transaction is one: one way to the server and
//! back instead of ten. Each column of all rows is one value, an array, so that the text
//! is the same for any number of rows, and its plan is made once for a connection.
//!
//! ```text
//!   gate: is all as was thought? ─┬─ no ──▶ nothing is written; commit.rs looks closer
//!                                 └─ yes ─▶ job, job_request, … and the mark
//! ```
//!
//! What is in the way is looked for first, in the same statement: a merge key or start
//! key that is there already, a job whose revision is another. What another node does
//! between that look and the write makes a key collide or a row lack, which is an error
//! that takes the whole statement with it.
//!
//! So where it was stored, all of it was, as it was thought. The mark is written only
//! over the one before: who did not hear of the end of a statement puts another mark
//! there, and the statement, should it still be on its way, fails; see `shared.rs`.
//!
//! A pooler gives each transaction another connection, which has no plan: there it is
//! not used.

mod columns;
mod text;

use super::{
    database::Database,
    error::{Trouble, trouble},
    shared::{Mark, within},
    write::Rows,
};
use sea_orm::{DbErr, RuntimeErr};
use sqlx::{
    AssertSqlSafe, Connection as _, Postgres, Row as _,
    pool::PoolConnection,
    postgres::{PgDatabaseError, PgSeverity},
};
use std::time::Duration;
use text::Batch;
use tokio::time::Instant;

/// What holds for connections that write: each statement goes by an index, however few
/// rows there were when its plan was made, and that is made once.
pub(super) const OF_WRITERS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
    SET enable_hashjoin = off; SET enable_mergejoin = off";

/// After which rest the connection is tried before it is used: what is lost with it is in
/// doubt, and who wrote it waits until the server can say what came of it.
const RESTED: Duration = Duration::from_millis(20);

/// What came of it.
#[derive(Debug)]
pub(super) enum Written {
    /// All of it is durable.
    All,
    /// Nothing is written: something is otherwise than was thought.
    Otherwise,
    /// Nothing is written.
    Failed(DbErr),
    /// All of it is written, or nothing.
    InDoubt(DbErr),
}

/// The connection that writes, kept: each time that one goes back to its pool it is
/// asked whether it lives.
#[derive(Debug, Default)]
pub(super) struct Kept(Option<(PoolConnection<Postgres>, Instant)>);

impl Kept {
    async fn alive(&mut self) -> Option<PoolConnection<Postgres>> {
        let (mut connection, used) = self.0.take()?;
        if used.elapsed() > RESTED && within(async { connection.ping().await.map_err(of) }).await.is_err() {
            drop(connection.detach());
            return None;
        }
        Some(connection)
    }

    /// Writes all of `writes`, or nothing; None where they are not of the kinds that
    /// one statement can say.
    pub(super) async fn write(&mut self, db: &Database, writes: &[Rows], mark: Mark) -> Option<Written> {
        let batch = Batch::of(writes, mark)?;
        let mut connection = match self.alive().await {
            Some(connection) => connection,
            None => match db.connection().get_postgres_connection_pool().acquire().await {
                Ok(connection) => connection,
                Err(error) => return Some(Written::Failed(of(error))),
            },
        };
        let query = sqlx::query_with(AssertSqlSafe(db.place(batch.text)), batch.values);
        let written = within(async {
            let row = query.fetch_one(&mut *connection).await.map_err(of)?;
            row.try_get::<bool, _>(0).map_err(of)
        });
        let error = match written.await {
            Ok(open) => {
                self.0 = Some((connection, Instant::now()));
                return Some(if open { Written::All } else { Written::Otherwise });
            }
            Err(error) => error,
        };
        if !is_of_statement(&error) {
            // In no state to be used again; its socket is closed.
            drop(connection.detach());
            return Some(Written::InDoubt(error));
        }
        self.0 = Some((connection, Instant::now()));
        Some(match trouble(&error) {
            Trouble::Refused => Written::Otherwise,
            _ => Written::Failed(error),
        })
    }
}

fn of(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// Whether the server says that the statement failed, and goes on.
fn is_of_statement(error: &DbErr) -> bool {
    let DbErr::Query(RuntimeErr::SqlxError(error)) = error else { return false };
    let sqlx::Error::Database(error) = error.as_ref() else { return false };
    let error = error.try_downcast_ref::<PgDatabaseError>();
    error.is_some_and(|error| matches!(error.severity(), PgSeverity::Error))
}
