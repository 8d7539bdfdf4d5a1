//! A database as the rooms of the store see it: its connections, with the names of
//! the tables put in place, and whatever a pooler between makes necessary.

use super::{
    error::{Trouble, is_away, trouble},
    names::Tables,
    shared::within,
};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult,
    RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _,
    sqlx::{self, Executor as _},
};
use sea_query_sqlx::SqlxValues;
use std::{pin::Pin, sync::Arc};
use tokio::sync::Mutex;

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, DbErr>> + Send + 'a>>;

/// Connections to a database. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Database {
    connection: DatabaseConnection,
    tables: Arc<Tables>,
    /// How many there are, at most.
    connections: u32,
}

/// A transaction; dropped, it is rolled back.
pub(super) struct Transaction {
    inner: Inner,
    tables: Arc<Tables>,
}

enum Inner {
    Own(DatabaseTransaction),
    /// Through a pooler: the next transaction may be on another connection, so that
    /// no statement may have a name.
    Pooled(Mutex<sqlx::Transaction<'static, sqlx::Postgres>>),
}

impl Database {
    pub(super) fn new(connection: DatabaseConnection, tables: Tables, connections: u32) -> Self {
        Self { connection, tables: Arc::new(tables), connections }
    }

    pub(super) fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    /// Whether several nodes may write to it.
    pub(super) fn is_shared(&self) -> bool {
        self.get_database_backend() != DbBackend::Sqlite
    }

    /// On SQLite it takes the right to write at once.
    pub(super) async fn begin(&self) -> Result<Transaction, DbErr> {
        let inner = if self.tables.pooler {
            let pool = self.connection.get_postgres_connection_pool();
            Inner::Pooled(Mutex::new(
                pool.begin_with(sqlx::AssertSqlSafe(READ_COMMITTED)).await.map_err(query)?,
            ))
        } else {
            let immediate = TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            };
            Inner::Own(self.connection.begin_with_options(immediate).await?)
        };
        Ok(Transaction { inner, tables: Arc::clone(&self.tables) })
    }

    pub(super) async fn close(&self) -> Result<(), DbErr> {
        self.connection.close_by_ref().await
    }

    /// `sql` with the names of the tables put in place.
    pub(super) fn place(&self, sql: String) -> String {
        if self.tables.are_plain() { sql } else { self.tables.place(&sql) }
    }

    fn placed(&self, statement: Statement) -> Statement {
        placed(&self.tables, statement)
    }

    /// Reads from a server: once more for each connection that turns out to be dead.
    async fn read(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let statement = self.placed(statement);
        let mut tries = self.connections;
        loop {
            let found = within(self.once(statement.clone())).await;
            match found {
                Err(error) if tries > 0 && trouble(&error) == Trouble::Gone && !is_away(&error) => tries -= 1,
                found => return found,
            }
        }
    }

    async fn once(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        if !self.tables.pooler {
            return self.connection.query_all_raw(statement).await;
        }
        let transaction = self.begin().await?;
        let found = transaction.query_all_raw(statement).await?;
        transaction.commit().await.map(|()| found)
    }
}

/// What a pooler's connections are used with; any other is told so once.
const READ_COMMITTED: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

fn placed(tables: &Tables, mut statement: Statement) -> Statement {
    if !tables.are_plain() {
        statement.sql = tables.place(&statement.sql);
    }
    statement
}

fn query(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

// Written out instead of with `async_trait`: what needs nothing done to it is handed
// on without a future around it.
impl ConnectionTrait for Database {
    fn get_database_backend(&self) -> DbBackend {
        self.connection.get_database_backend()
    }

    fn execute_raw<'a: 'b, 'b>(&'a self, statement: Statement) -> Answer<'b, ExecResult>
    where
        Self: 'b,
    {
        if !self.is_shared() {
            return self.connection.execute_raw(self.placed(statement));
        }
        Box::pin(within(async move {
            if !self.tables.pooler {
                return self.connection.execute_raw(self.placed(statement)).await;
            }
            let transaction = self.begin().await?;
            let done = transaction.execute_raw(statement).await?;
            transaction.commit().await.map(|()| done)
        }))
    }

    fn execute_unprepared<'a: 'c, 'b: 'c, 'c>(&'a self, sql: &'b str) -> Answer<'c, ExecResult>
    where
        Self: 'c,
    {
        self.connection.execute_unprepared(sql)
    }

    fn query_one_raw<'a: 'b, 'b>(&'a self, statement: Statement) -> Answer<'b, Option<QueryResult>>
    where
        Self: 'b,
    {
        if !self.is_shared() {
            return self.connection.query_one_raw(self.placed(statement));
        }
        Box::pin(async move { Ok(self.read(statement).await?.into_iter().next()) })
    }

    fn query_all_raw<'a: 'b, 'b>(&'a self, statement: Statement) -> Answer<'b, Vec<QueryResult>>
    where
        Self: 'b,
    {
        if !self.is_shared() {
            return self.connection.query_all_raw(self.placed(statement));
        }
        Box::pin(self.read(statement))
    }
}

impl Transaction {
    /// Whether other nodes may write meanwhile.
    pub(super) fn is_shared(&self) -> bool {
        self.get_database_backend() != DbBackend::Sqlite
    }

    pub(super) async fn commit(self) -> Result<(), DbErr> {
        match self.inner {
            Inner::Own(own) => own.commit().await,
            Inner::Pooled(pooled) => pooled.into_inner().commit().await.map_err(query),
        }
    }

    pub(super) async fn rollback(self) -> Result<(), DbErr> {
        match self.inner {
            Inner::Own(own) => own.rollback().await,
            Inner::Pooled(pooled) => pooled.into_inner().rollback().await.map_err(query),
        }
    }
}

/// Without a name on the server.
fn nameless(statement: Statement) -> sqlx::query::Query<'static, sqlx::Postgres, SqlxValues> {
    let values = statement.values.unwrap_or(sea_orm::Values(Vec::new()));
    sqlx::query_with(sqlx::AssertSqlSafe(statement.sql), SqlxValues(values)).persistent(false)
}

impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        match &self.inner {
            Inner::Own(own) => own.get_database_backend(),
            Inner::Pooled(_) => DbBackend::Postgres,
        }
    }

    fn execute_raw<'a: 'b, 'b>(&'a self, statement: Statement) -> Answer<'b, ExecResult>
    where
        Self: 'b,
    {
        let statement = placed(&self.tables, statement);
        match &self.inner {
            Inner::Own(own) => own.execute_raw(statement),
            Inner::Pooled(pooled) => Box::pin(async move {
                let done = pooled.lock().await.execute(nameless(statement)).await;
                done.map(ExecResult::from).map_err(query)
            }),
        }
    }

    fn execute_unprepared<'a: 'c, 'b: 'c, 'c>(&'a self, sql: &'b str) -> Answer<'c, ExecResult>
    where
        Self: 'c,
    {
        match &self.inner {
            Inner::Own(own) => own.execute_unprepared(sql),
            Inner::Pooled(pooled) => Box::pin(async move {
                let done = pooled.lock().await.execute(sqlx::AssertSqlSafe(sql.to_owned())).await;
                done.map(ExecResult::from).map_err(query)
            }),
        }
    }

    fn query_one_raw<'a: 'b, 'b>(&'a self, statement: Statement) -> Answer<'b, Option<QueryResult>>
    where
        Self: 'b,
    {
        Box::pin(async move { Ok(self.query_all_raw(statement).await?.into_iter().next()) })
    }

    fn query_all_raw<'a: 'b, 'b>(&'a self, statement: Statement) -> Answer<'b, Vec<QueryResult>>
    where
        Self: 'b,
    {
        let statement = placed(&self.tables, statement);
        match &self.inner {
            Inner::Own(own) => own.query_all_raw(statement),
            Inner::Pooled(pooled) => Box::pin(async move {
                let found = pooled.lock().await.fetch_all(nameless(statement)).await.map_err(query)?;
                Ok(found.into_iter().map(QueryResult::from).collect())
            }),
        }
    }
}
