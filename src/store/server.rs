//! Opens a database of a server, PostgreSQL or MariaDB: address, connections, version,
//! tables. Nodes that begin at the same moment make the tables one after the other.

use super::{
    OpenError, database::Database, dialect::statement, names::Tables, postgres::OF_WRITERS, shared::in_doubt,
};
use backjob_migrations::{Migrator, MigratorTraitSelf as _, RECORD};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, RuntimeErr, SqlxMySqlConnector,
    SqlxPostgresConnector, Statement, TransactionTrait as _,
    sqlx::{
        self, ConnectOptions as _, Connection as _, Executor as _,
        mysql::{MySqlConnectOptions, MySqlPoolOptions},
        pool::PoolOptions,
        postgres::{PgConnectOptions, PgPoolOptions},
    },
};
use std::{collections::BTreeSet, path::Path, time::Duration};

/// How long a connection may take to be had.
const CONNECT: Duration = Duration::from_secs(3);
/// After which rest a connection is tried before it is used.
const RESTED: Duration = Duration::from_secs(2);
/// How long a migration of another node is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a server's database is, and how it is spoken to.
#[derive(Debug, Clone)]
pub(super) struct Server {
    options: Address,
    tables: Tables,
    /// For people: without the password.
    pub name: String,
}

#[derive(Debug, Clone)]
enum Address {
    Postgres(Box<PgConnectOptions>),
    MariaDb(Box<MySqlConnectOptions>),
}

/// Whether an address is that of a server.
pub(super) fn is_server(url: &str) -> bool {
    ["postgres:", "postgresql:", "mysql:", "mariadb:"].iter().any(|scheme| url.starts_with(scheme))
}

/// An address without what is secret in it.
pub(super) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.split(':').next().unwrap_or_default().to_owned() + ":…";
    };
    let rest = rest.split('?').next().unwrap_or_default();
    format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or_default())
}

impl Server {
    pub(super) fn new(url: &str, tables: &Tables) -> Result<Self, OpenError> {
        let bad = |reason| OpenError::BadUrl { url: shown(url), reason };
        let named = |database: Option<&str>| database.is_some_and(|name| !name.is_empty());
        let options = if url.starts_with("postgres") {
            let options: PgConnectOptions = url.parse().map_err(|_| bad("it is not understood"))?;
            if !named(options.get_database()) {
                return Err(bad("it names no database"));
            }
            let cached = if tables.pooler { 0 } else { CACHED };
            // A float never comes, and poolers refuse what they don't know.
            let options = options.extra_float_digits(None).application_name("backjob");
            Address::Postgres(Box::new(options.statement_cache_capacity(cached).disable_statement_logging()))
        } else {
            if tables.schema.is_some() {
                return Err(bad(
                    "a schema is PostgreSQL's; on MariaDB give a database or database.table_prefix",
                ));
            }
            if tables.pooler {
                return Err(bad("database.pooler is for PostgreSQL alone"));
            }
            let url = url.replacen("mariadb:", "mysql:", 1);
            let options: MySqlConnectOptions = url.parse().map_err(|_| bad("it is not understood"))?;
            if !named(options.get_database()) {
                return Err(bad("it names no database"));
            }
            Address::MariaDb(Box::new(options.statement_cache_capacity(CACHED).disable_statement_logging()))
        };
        Ok(Self { options, tables: tables.clone(), name: shown(url) })
    }

    /// A pool of `connections`, made when they are needed.
    pub(super) fn connect(&self, connections: u32) -> Database {
        self.pool(connections, "")
    }

    /// The same for the store's writer.
    pub(super) fn connect_writers(&self, connections: u32) -> Database {
        self.pool(connections, OF_WRITERS)
    }

    /// With what else holds for each connection on PostgreSQL.
    fn pool(&self, connections: u32, more: &'static str) -> Database {
        let connection = match &self.options {
            Address::Postgres(options) => {
                let pooler = self.tables.pooler;
                let pool: PgPoolOptions = pool(connections);
                let pool = pool.after_connect(move |connection, _| {
                    Box::pin(async move {
                        for text in [OF_POSTGRES, more].into_iter().filter(|text| !pooler && !text.is_empty())
                        {
                            connection.execute(text).await?;
                        }
                        Ok(())
                    })
                });
                SqlxPostgresConnector::from_sqlx_postgres_pool(pool.connect_lazy_with((**options).clone()))
            }
            Address::MariaDb(options) => {
                let pool: MySqlPoolOptions = pool(connections);
                let pool = pool.after_connect(|connection, _| {
                    Box::pin(async move {
                        for text in OF_MARIADB {
                            connection.execute(text).await?;
                        }
                        Ok(())
                    })
                });
                SqlxMySqlConnector::from_sqlx_mysql_pool(pool.connect_lazy_with((**options).clone()))
            }
        };
        Database::new(connection, self.tables.clone(), connections)
    }

    pub(super) fn is_postgres(&self) -> bool {
        matches!(self.options, Address::Postgres(_))
    }

    /// Whether a connection keeps the plans of statements: behind a pooler it does not.
    pub(super) fn keeps_plans(&self) -> bool {
        self.is_postgres() && !self.tables.pooler
    }

    /// What goes wrong while it is opened.
    pub(super) fn error(&self, error: &DbErr) -> OpenError {
        OpenError::from_db(Path::new(&self.name), error)
    }

    /// Looks at the server and at the tables, and makes what lacks.
    pub(super) async fn prepare(&self, db: &Database, migrate: bool) -> Result<(), OpenError> {
        self.reach().await?;
        self.version(db).await?;
        let (_, pending) = self.pending(db).await?;
        if pending.is_empty() {
            return Ok(());
        }
        if !migrate {
            return Err(OpenError::MustMigrate { path: self.name.clone().into(), pending });
        }
        match db.get_database_backend() {
            DbBackend::Postgres => self.migrate_postgres(db).await,
            _ => self.migrate_mariadb().await,
        }
    }

    /// A pool would only say that it waited.
    async fn reach(&self) -> Result<(), OpenError> {
        let reached = async {
            match &self.options {
                Address::Postgres(options) => options.connect().await?.close().await,
                Address::MariaDb(options) => options.connect().await?.close().await,
            }
        };
        let reached = tokio::time::timeout(CONNECT, reached).await.unwrap_or_else(|_| Err(silent()));
        reached.map_err(|error| self.error(&DbErr::Conn(RuntimeErr::SqlxError(error.into()))))
    }

    async fn version(&self, db: &Database) -> Result<(), OpenError> {
        let backend = db.get_database_backend();
        let text = match backend {
            DbBackend::Postgres => "SELECT current_setting('server_version')",
            _ => "SELECT version()",
        };
        let found = first_text(db, text).await.map_err(|error| self.error(&error))?;
        let mut numbers = found.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
        let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let (fits, what, needed) = match backend {
            DbBackend::Postgres => (version >= (14, 0), "PostgreSQL", "PostgreSQL 14 or newer"),
            _ => (found.contains("MariaDB") && version >= (10, 11), "", "MariaDB 10.11 or newer"),
        };
        if fits {
            return Ok(());
        }
        Err(OpenError::Unfit {
            name: self.name.clone(),
            found: format!("{what} {found}").trim().into(),
            needed,
        })
    }

    /// Whether migrations are recorded at all, and which are to be run.
    async fn pending(&self, db: &impl ConnectionTrait) -> Result<(bool, Vec<String>), OpenError> {
        let there = self.tables_there(db).await.map_err(|error| self.error(&error))?;
        let recorded = there.contains(&self.tables.name(RECORD));
        let migrator = Migrator { prefix: self.tables.prefix.clone() };
        let known: BTreeSet<String> =
            migrator.migrations().iter().map(|migration| migration.name().to_owned()).collect();
        let mut applied = BTreeSet::new();
        if recorded {
            let text = format!("SELECT version FROM {}", self.tables.qualified(RECORD));
            let rows = db.query_all_raw(statement(db.get_database_backend(), text, [])).await;
            for row in rows.map_err(|error| self.error(&error))? {
                applied.insert(row.try_get_by_index(0).map_err(|error| self.error(&error))?);
            }
        } else if let Some(table) = there.into_iter().next() {
            return Err(OpenError::Foreign { name: self.name.clone(), table });
        }
        let unknown: Vec<String> = applied.difference(&known).cloned().collect();
        if !unknown.is_empty() {
            return Err(OpenError::NewerSchema { path: self.name.clone().into(), unknown });
        }
        Ok((recorded, known.difference(&applied).cloned().collect()))
    }

    /// Those of our tables that are there.
    async fn tables_there(&self, db: &impl ConnectionTrait) -> Result<BTreeSet<String>, DbErr> {
        let backend = db.get_database_backend();
        let (name, schema, values) = match (backend, &self.tables.schema) {
            (DbBackend::Postgres, Some(schema)) => ("table_name::text", "?", vec![schema.clone().into()]),
            (DbBackend::Postgres, None) => ("table_name::text", "current_schema()", vec![]),
            _ => ("table_name", "database()", vec![]),
        };
        let names = Tables::all().map(|table| format!("'{}'", self.tables.name(table)));
        let text = format!(
            "SELECT {name} FROM information_schema.tables \
             WHERE table_schema = {schema} AND table_name IN ({})",
            names.collect::<Vec<_>>().join(", ")
        );
        let rows = db.query_all_raw(statement(backend, text, values)).await?;
        rows.iter().map(|row| row.try_get_by_index(0)).collect()
    }

    /// In one transaction, under a lock that ends with it: whole or not at all, also
    /// through a pooler.
    async fn migrate_postgres(&self, db: &Database) -> Result<(), OpenError> {
        let fails = |error: DbErr| self.error(&error);
        let transaction = db.connection().begin().await.map_err(fails)?;
        if self.tables.pooler {
            // Names of statements that others left on this connection.
            transaction.execute_unprepared("DEALLOCATE ALL").await.map_err(fails)?;
        }
        // What is there already need not be said.
        let settings = "SET LOCAL lock_timeout = '60s'; SET LOCAL client_min_messages = 'warning'";
        transaction.execute_unprepared(settings).await.map_err(fails)?;
        // Any number will do that is not another program's.
        transaction
            .execute_unprepared("SELECT pg_advisory_xact_lock(7091174820123456789)")
            .await
            .map_err(fails)?;
        if let Some(schema) = &self.tables.schema {
            let there = format!("SELECT nspname::text FROM pg_namespace WHERE nspname = '{schema}'");
            if texts(&transaction, &there).await.map_err(fails)?.is_empty() {
                let make = format!(r#"CREATE SCHEMA "{schema}""#);
                transaction.execute_unprepared(&make).await.map_err(fails)?;
            }
            let path = format!(r#"SET LOCAL search_path TO "{schema}""#);
            transaction.execute_unprepared(&path).await.map_err(fails)?;
        }
        // Another node may have been first.
        let (_, pending) = self.pending(&transaction).await?;
        if !pending.is_empty() {
            let migrator = Migrator { prefix: self.tables.prefix.clone() };
            migrator.up(&transaction, None).await.map_err(fails)?;
        }
        if self.tables.pooler {
            transaction.execute_unprepared("DEALLOCATE ALL").await.map_err(fails)?;
        }
        transaction.commit().await.map_err(fails)
    }

    /// Under a lock of one connection. A migration that is broken off is gone on with
    /// by the next.
    async fn migrate_mariadb(&self) -> Result<(), OpenError> {
        let fails = |error: DbErr| self.error(&error);
        let own = self.connect(1);
        let connection: &DatabaseConnection = own.connection();
        let migrated = async {
            let patience = PATIENCE.as_secs();
            let lock = format!(
                "SELECT CAST(GET_LOCK(sha1(concat('backjob migrates ', database())), {patience}) AS CHAR)"
            );
            if first_text(connection, &lock).await.map_err(fails)? != "1" {
                let reason = "another node has been making the tables for a minute".into();
                return Err(OpenError::Other { path: self.name.clone().into(), reason });
            }
            let (_, pending) = self.pending(connection).await?;
            if !pending.is_empty() {
                let migrator = Migrator { prefix: self.tables.prefix.clone() };
                migrator.up(connection, None).await.map_err(fails)?;
            }
            Ok(())
        };
        let migrated = migrated.await;
        let _ = own.close().await; // which frees the lock
        migrated
    }
}

/// Statements whose plan is kept for a connection.
const CACHED: usize = 256;

/// What holds for every connection. A node that stops in a transaction must not keep
/// the others out of its rows for long.
const OF_POSTGRES: &str = "SET default_transaction_isolation = 'read committed'; \
    SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '8s'";

/// The same; and that nothing is cut off or mended in silence.
const OF_MARIADB: [&str; 2] = [
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
     innodb_lock_wait_timeout = 5, idle_transaction_timeout = 8",
];

fn pool<DB: sqlx::Database>(connections: u32) -> PoolOptions<DB> {
    PoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(CONNECT)
        .idle_timeout(Duration::from_secs(600))
        .max_lifetime(Duration::from_secs(1_800))
        // One that was just used is alive.
        .test_before_acquire(false)
        .before_acquire(|connection: &mut DB::Connection, about| {
            Box::pin(async move {
                if about.idle_for < RESTED {
                    return Ok(true);
                }
                Ok(connection.ping().await.is_ok())
            })
        })
        // The pool waits for its answer to whatever was given up, without a bound.
        .after_release(|connection: &mut DB::Connection, _| {
            Box::pin(async move {
                if !in_doubt() {
                    return Ok(true);
                }
                tokio::time::timeout(CONNECT, connection.ping())
                    .await
                    .unwrap_or_else(|_| Err(silent()))
                    .map(|()| true)
            })
        })
}

fn silent() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

async fn texts(db: &impl ConnectionTrait, sql: &str) -> Result<Vec<String>, DbErr> {
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
    rows.iter().map(|row| row.try_get_by_index(0)).collect()
}

async fn first_text(db: &impl ConnectionTrait, sql: &str) -> Result<String, DbErr> {
    Ok(texts(db, sql).await?.into_iter().next().unwrap_or_default())
}
