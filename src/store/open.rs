//! Opening: one server a file, faults told in words.

use super::{Options, entity::root_key};
use crate::{clock::Clock, secret::Keyring};
use backjob_migrations::{Migrator, MigratorTrait as _};
use sea_orm::{
    ActiveValue::Set,
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, DbErr, EntityTrait as _,
    Statement,
    sea_query::OnConflict,
    sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous},
};
use std::{
    fs::{File, TryLockError},
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

/// Connections that read.
const READERS: u32 = 4;
/// The first bytes of an SQLite database.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a URL that we know.
    #[error("database.url: {0:?} is not known; sqlite://PATH and sqlite::memory: are")]
    BadUrl(String),
    /// The file is something else.
    #[error("{path} is not an SQLite database, or is damaged: {why}", path = .path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The file or its folder cannot be written.
    #[error("{path} cannot be written: {why}", path = .path.display())]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Another server has it.
    #[error(
        "{path} is in use by another server: an SQLite database serves one at a time; stop the other one, or give this one a file of its own",
        path = .path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Made by a newer program.
    #[error(
        "the tables were made by a newer version of backjob ({0}): use that version, or a database of its own"
    )]
    NewerSchema(String),
    /// Tables are not up to date, and may not be changed.
    #[error("the tables are not up to date and database.migrate is off: run `backjob migrate` ({0} to do)")]
    MustMigrate(usize),
    /// A root key is not there.
    #[error(
        "the database holds what was sealed with the root key {0}, which is not among those given: add it"
    )]
    MissingRoot(String),
    /// Something else.
    #[error("the database cannot be opened: {0}")]
    Other(#[from] DbErr),
}

/// An open database.
pub(super) struct Opened {
    pub(super) writer: DatabaseConnection,
    pub(super) readers: DatabaseConnection,
    pub(super) lock: Option<File>,
}

pub(super) async fn open(options: &Options, clock: &dyn Clock) -> Result<Opened, OpenError> {
    let file = file_of(&options.url)?;
    let lock = file.as_deref().map(guard).transpose()?;
    let opened = connect(options, file.as_deref(), lock, clock).await;
    opened.map_err(|error| match (error, file) {
        (OpenError::Other(error), Some(path)) => told(error, path),
        (error, _) => error,
    })
}

/// The file of the database; none in memory.
fn file_of(url: &str) -> Result<Option<PathBuf>, OpenError> {
    // The whole URL could hold a password of another database.
    let scheme = || OpenError::BadUrl(url.split_once(':').map_or("", |(scheme, _)| scheme).to_owned());
    let rest = url.strip_prefix("sqlite:").ok_or_else(scheme)?;
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    match rest {
        ":memory:" => Ok(None),
        "" => Err(scheme()),
        path if path.contains('?') => Err(OpenError::BadUrl("sqlite with parameters".into())),
        path => Ok(Some(PathBuf::from(path))),
    }
}

/// Sees to it that the file is ours alone, and a database or nothing yet.
fn guard(path: &Path) -> Result<File, OpenError> {
    let not_writable =
        |why: io::Error| OpenError::NotWritable { path: path.to_owned(), why: why.to_string() };
    if path.is_dir() {
        return Err(not_writable(io::Error::other("it is a folder")));
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let open = |path: &Path| File::options().create(true).truncate(false).read(true).write(true).open(path);
    let lock = open(Path::new(&lock_path)).map_err(not_writable)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => return Err(not_writable(error)),
    }
    let mut file = open(path).map_err(not_writable)?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(not_writable)?;
    if !magic.is_empty() && magic != MAGIC {
        let why = "its first bytes are others".to_owned();
        return Err(OpenError::NotADatabase { path: path.to_owned(), why });
    }
    Ok(lock)
}

/// SQLite's own codes, in words.
fn told(error: DbErr, path: PathBuf) -> OpenError {
    let why = error.to_string();
    let has = |texts: &[&str]| texts.iter().any(|text| why.contains(text));
    if has(&["file is not a database", "malformed"]) {
        OpenError::NotADatabase { path, why }
    } else if has(&["readonly", "unable to open", "disk is full", "disk I/O"]) {
        OpenError::NotWritable { path, why }
    } else if has(&["database is locked"]) {
        OpenError::InUse { path }
    } else {
        OpenError::Other(error)
    }
}

async fn connect(
    options: &Options,
    file: Option<&Path>,
    lock: Option<File>,
    clock: &dyn Clock,
) -> Result<Opened, OpenError> {
    let writer = Database::connect(connection(file, 1)).await?;
    prepare(&writer, options, clock).await?;
    let readers = match file {
        // A database in memory is one connection.
        None => writer.clone(),
        Some(_) => Database::connect(connection(file, READERS)).await?,
    };
    Ok(Opened { writer, readers, lock })
}

fn connection(file: Option<&Path>, connections: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new("sqlite::memory:");
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(30))
        // A database in memory lives as long as its one connection.
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .sqlx_logging(false);
    let file = file.map(Path::to_owned);
    options.map_sqlx_sqlite_opts(move |sqlite| {
        let sqlite = match &file {
            None => sqlite,
            Some(file) => sqlite
                .in_memory(false)
                .shared_cache(false)
                .filename(file)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full),
        };
        sqlite
            .busy_timeout(Duration::from_secs(10))
            .foreign_keys(false)
            .statement_cache_capacity(256)
            .row_buffer_size(2_048)
            .pragma("temp_store", "memory")
    });
    options
}

/// Brings the tables up to date and checks the root keys.
async fn prepare(writer: &DatabaseConnection, options: &Options, clock: &dyn Clock) -> Result<(), OpenError> {
    // Reading is what finds a damaged header.
    writer.query_all_raw(Statement::from_string(DbBackend::Sqlite, "PRAGMA schema_version")).await?;
    newer(writer).await?;
    let pending = Migrator::get_pending_migrations_read_only(writer).await?.len();
    if pending > 0 {
        if !options.migrate {
            return Err(OpenError::MustMigrate(pending));
        }
        Migrator::up(writer, None).await?;
    }
    roots(writer, &options.keys, clock.wall()).await
}

/// Refuses tables that know of migrations which we do not.
async fn newer(writer: &DatabaseConnection) -> Result<(), OpenError> {
    let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'seaql_migrations'";
    if writer.query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await?.is_empty() {
        return Ok(());
    }
    let known: Vec<String> = Migrator::get_migration_files().iter().map(|m| m.name().to_owned()).collect();
    let sql = "SELECT version FROM seaql_migrations ORDER BY version";
    for row in writer.query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await? {
        let version: String = row.try_get("", "version")?;
        if !known.contains(&version) {
            return Err(OpenError::NewerSchema(version));
        }
    }
    Ok(())
}

/// Every root in use must be known; the current one is in use from now on.
async fn roots(writer: &DatabaseConnection, keys: &Keyring, now: i64) -> Result<(), OpenError> {
    for root in root_key::Entity::find().all(writer).await? {
        let known = root.id.as_slice().try_into().ok().and_then(|id| keys.find(id));
        if known.is_none() {
            let id = root.id.iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(OpenError::MissingRoot(id));
        }
    }
    let current = root_key::ActiveModel { id: Set(keys.current().id().to_vec()), first_used_at: Set(now) };
    root_key::Entity::insert(current)
        .on_conflict(OnConflict::column(root_key::Column::Id).do_nothing().to_owned())
        .exec_without_returning(writer)
        .await
        .map(drop)
        .or_else(|error| if error == DbErr::RecordNotInserted { Ok(()) } else { Err(error.into()) })
}
