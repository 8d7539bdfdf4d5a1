//! Connections: those of the pools, and the one that writes most.

use super::Place;
use rusqlite::{Connection, OpenFlags};
use sea_orm::{
    ConnectOptions, DatabaseConnection, DbErr,
    sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use std::time::Duration;

/// Connections that read.
pub(in crate::store) const READERS: u32 = 4;

/// How long one waits for another that writes.
const BUSY: Duration = Duration::from_secs(5);
/// Checkpoints are rarer than by default (1,000 pages): pages that are written again and
/// again go into the database once.
const CHECKPOINT: u32 = 4_000;
/// To how many bytes the log is cut after that.
const LOG: u32 = 64 << 20;

/// What a connection of a pool is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Use {
    Write,
    Read,
    /// Small writes beside the writer's; made when it is needed.
    Pulse,
}

pub(in crate::store) async fn connect(place: &Place, what_for: Use) -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new("sqlite::memory:");
    let connections = if what_for == Use::Read { READERS } else { 1 };
    options
        .max_connections(connections)
        // All from the start: later there may be no descriptors left.
        .min_connections(if what_for == Use::Pulse { 0 } else { connections })
        .connect_lazy(what_for == Use::Pulse)
        // A database in memory is gone with its connection.
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .record_stmt_in_spans(false);
    let place = place.clone();
    options.map_sqlx_sqlite_opts(move |options: SqliteConnectOptions| {
        let options = options
            .foreign_keys(false)
            .busy_timeout(BUSY)
            .synchronous(SqliteSynchronous::Full)
            // What an update returns fits, so that SQLite's thread need not wait for ours.
            .row_buffer_size(2_048)
            .pragma("temp_store", "memory");
        let options = match &place {
            Place::Memory(name) => return options.filename(name),
            Place::File(file) => options.in_memory(false).shared_cache(false).filename(file),
        };
        if what_for == Use::Read {
            return options.read_only(true).statement_cache_capacity(256);
        }
        options
            // Texts of as many rows as there happen to be.
            .statement_cache_capacity(32)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("wal_autocheckpoint", CHECKPOINT.to_string())
            .pragma("journal_size_limit", LOG.to_string())
    });
    sea_orm::Database::connect(options).await
}

/// A connection of its own, that writes; with memory for so many bytes of pages.
pub(in crate::store) fn open(place: &Place, cache: u64) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match place {
        Place::File(file) => Connection::open_with_flags(file, flags)?,
        Place::Memory(name) => {
            let shared = OpenFlags::SQLITE_OPEN_MEMORY | OpenFlags::SQLITE_OPEN_SHARED_CACHE;
            Connection::open_with_flags(name, flags | shared | OpenFlags::SQLITE_OPEN_URI)?
        }
    };
    connection.busy_timeout(BUSY)?;
    // Below zero the cache is a size in KiB, and not a number of pages. What is in memory
    // has no log, and stays without.
    connection.execute_batch(&format!(
        "PRAGMA foreign_keys = OFF; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = {CHECKPOINT};
         PRAGMA journal_size_limit = {LOG}; PRAGMA cache_size = -{}",
        cache >> 10
    ))?;
    // A file that may not be written is opened all the same.
    if connection.is_readonly(rusqlite::MAIN_DB)? {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_READONLY);
        return Err(rusqlite::Error::SqliteFailure(code, Some("the file may not be written".into())));
    }
    Ok(connection)
}
