//! What goes wrong with a database, sorted by what helps.

use super::commit::Failed;
use crate::{job::JobId, secret::RootId};
use sea_orm::{
    DbErr, RuntimeErr, SqlxError, SqlxMySqlError, SqlxPostgresError, SqlxSqliteError,
    sqlx::error::DatabaseError,
};
use std::{io, path::PathBuf};

/// Why a read or a write has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The database cannot be read or written now; later it may.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The database file itself is damaged, or the disk cannot read it.
    #[error("the database is damaged ({0}): stop the server and restore it from a backup")]
    Damaged(String),
    /// A row cannot be understood: it was changed by hand, or its root key is
    /// missing.
    #[error("a stored job cannot be read: {0}")]
    Corrupt(String),
    /// The database refuses this one write, and would again: an id that is
    /// already there.
    #[error("the database refused a write: {0}")]
    Refused(String),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            // Once the operator has restored it.
            Self::Unavailable(_) | Self::Damaged(_) => true,
            Self::Corrupt(_) | Self::Refused(_) => false,
        }
    }

    /// What a failed read says of an SQLite file, if anything.
    pub(super) fn of_file(error: &DbErr) -> Option<Self> {
        match sqlite_code(error)? {
            CORRUPT | NOT_A_DATABASE => Some(Self::Damaged(plain(error))),
            NO_MEMORY | INPUT_OUTPUT | FULL | CANNOT_OPEN | PROTOCOL => Some(Self::Unavailable(plain(error))),
            _ => None,
        }
    }

    pub(super) fn corrupt(id: JobId, what: impl std::fmt::Display) -> Self {
        Self::Corrupt(format!("{id}: {what}"))
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Whole(error) | Failed::InDoubt(_, error) => error.into(),
            // Nobody else writes where this is not tried again.
            Failed::Overtaken => Self::Unavailable("another node was first".into()),
        }
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        match (trouble(&error), &error) {
            (Trouble::Refused, _) => Self::Refused(plain(&error)),
            (Trouble::Damaged, _) => Self::Damaged(plain(&error)),
            (Trouble::Other, DbErr::Type(_) | DbErr::TryIntoErr { .. } | DbErr::Json(_)) => {
                Self::Corrupt(plain(&error))
            }
            _ => Self::Unavailable(plain(&error)),
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match of_sqlite(error.sqlite_error().map(|error| error.extended_code)) {
            Trouble::Refused => Self::Refused(error.to_string()),
            Trouble::Damaged => Self::Damaged(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// The writer has stopped: the store was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is closed")]
pub struct Closed;

/// Why a store cannot be opened: for people, with the cure.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not an address of a database that this program knows.
    #[error(
        "database.url `{url}`: {reason}; write sqlite://PATH, sqlite::memory: for none, postgres://USER:PASSWORD@HOST/DATABASE or mysql://USER:PASSWORD@HOST/DATABASE"
    )]
    BadUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file is something else.
    #[error("{path} is not a database of backjob, or is damaged: {reason}. Name another file in database.url, or restore this one from a backup", path = .path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file or its folder cannot be written.
    #[error("{path} cannot be written: {reason}. The folder must exist, and the user that runs backjob must be able to write to the file and to the folder", path = .path.display())]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// There is no room for it.
    #[error("{path} cannot be written: the disk is full. Make room on it, or name a file elsewhere in database.url", path = .path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Another server has the file.
    #[error("{path} is in use by another backjob{by}. SQLite has one server at a time: stop that one, or give this one a file of its own in database.url", path = .path.display(), by = .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    InUse {
        /// The file.
        path: PathBuf,
        /// The other server's process, where it could be read.
        pid: Option<u32>,
    },
    /// The tables were made by a newer program.
    #[error("{path} was last used by a newer backjob (it has {unknown}, which this one does not know). Run that version, or restore a backup made before the upgrade; if these migrations are another program's, set database.schema or database.table_prefix", path = .path.display(), unknown = .unknown.join(", "))]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Migrations that this program lacks.
        unknown: Vec<String>,
    },
    /// The tables are older, and may not be changed now.
    #[error("{path} has tables of an older backjob, and database.migrate is off (pending: {pending}). Run `backjob migrate up`, or set database.migrate = true", path = .path.display(), pending = .pending.join(", "))]
    MustMigrate {
        /// The file.
        path: PathBuf,
        /// Migrations to be run.
        pending: Vec<String>,
    },
    /// What is sealed here cannot be opened.
    #[error("{path} holds what was sealed with root key {id}, which is not among those given. Put that key into the key file (or BACKJOB_KEY) again, after the present one", path = .path.display(), id = hex(.id))]
    MissingRoot {
        /// The file.
        path: PathBuf,
        /// Id of the root.
        id: RootId,
    },
    /// No server answers.
    #[error(
        "{name} cannot be reached: {reason}. Is the server running, and are host and port right in database.url?"
    )]
    Unreachable {
        /// The database, without the password.
        name: String,
        /// What the system says.
        reason: String,
    },
    /// The server lets this user not in, or has no such database.
    #[error(
        "{name} lets this server not in: {reason}. See to user, password and name of the database in database.url; the database itself is not made by backjob"
    )]
    Login {
        /// The database, without the password.
        name: String,
        /// What it says.
        reason: String,
    },
    /// The user may not do what is needed.
    #[error(
        "{name}: the user of database.url lacks the rights for this: {reason}. Grant the right to make tables, or let somebody who has it run `backjob migrate` and set database.migrate = false"
    )]
    Forbidden {
        /// The database, without the password.
        name: String,
        /// What it says.
        reason: String,
    },
    /// A server that this program cannot work with.
    #[error("{name} is {found}; needed is {needed}")]
    Unfit {
        /// The database, without the password.
        name: String,
        /// What it is.
        found: String,
        /// What it must be.
        needed: &'static str,
    },
    /// The schema is another program's.
    #[error(
        "{name} holds tables of another program, such as {table}: give backjob a schema of its own (database.schema, on PostgreSQL), a database of its own, or its tables another beginning (database.table_prefix)"
    )]
    Foreign {
        /// The database, without the password.
        name: String,
        /// One that backjob would make.
        table: String,
    },
    /// Anything else.
    #[error("{path}: {reason}", path = .path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What the database says.
        reason: String,
    },
}

impl OpenError {
    /// What the database said while it was opened.
    pub(super) fn from_db(path: &std::path::Path, error: &DbErr) -> Self {
        let (path, reason) = (path.to_owned(), plain(error));
        match sqlite_code(error) {
            Some(NOT_A_DATABASE | CORRUPT) => Self::NotADatabase { path, reason },
            Some(READ_ONLY | CANNOT_OPEN | PERMISSION) => Self::NotWritable { path, reason },
            Some(BUSY | LOCKED) => Self::InUse { path, pid: None },
            Some(FULL) => Self::Full { path },
            Some(_) => Self::Other { path, reason },
            None => {
                let name = path.display().to_string();
                match trouble(error) {
                    // Where there is a server.
                    Trouble::Gone if name.contains("://") => Self::Unreachable { name, reason },
                    Trouble::Login => Self::Login { name, reason },
                    Trouble::Forbidden => Self::Forbidden { name, reason },
                    _ => Self::Other { path, reason },
                }
            }
        }
    }

    /// What the system said about the file or its folder.
    pub(super) fn from_io(path: &std::path::Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull => Self::Full { path },
            _ => Self::NotWritable { path, reason: error.to_string() },
        }
    }
}

/// What helps against an error, whichever database it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nothing: what was written is not taken.
    Refused,
    /// The same once more: another node was in the way.
    Again,
    /// A new connection.
    Gone,
    /// Who may log in, to what.
    Login,
    /// Rights.
    Forbidden,
    /// A backup.
    Damaged,
    /// Something else.
    Other,
}

pub(super) fn trouble(error: &DbErr) -> Trouble {
    let Some(error) = sqlx_error(error) else {
        // sea-orm's own word for a pool that yields no connection.
        return if is_away(error) { Trouble::Gone } else { Trouble::Other };
    };
    let error = match error {
        SqlxError::Database(error) => error,
        SqlxError::Io(_)
        | SqlxError::Tls(_)
        | SqlxError::PoolTimedOut
        | SqlxError::PoolClosed
        | SqlxError::WorkerCrashed
        | SqlxError::Protocol(_) => return Trouble::Gone,
        _ => return Trouble::Other,
    };
    if let Some(error) = error.try_downcast_ref::<SqlxPostgresError>() {
        return of_postgres(error.code());
    }
    if let Some(error) = error.try_downcast_ref::<SqlxMySqlError>() {
        return of_mariadb(error.number());
    }
    of_sqlite(error.code().and_then(|code| code.parse().ok()))
}

/// By SQLite's own code, with its extension or without.
fn of_sqlite(code: Option<i32>) -> Trouble {
    match code.map(|code| code & 0xff) {
        Some(TOO_BIG | CONSTRAINT | MISMATCH | RANGE) => Trouble::Refused,
        Some(CORRUPT | NOT_A_DATABASE) => Trouble::Damaged,
        _ => Trouble::Other,
    }
}

/// Whether no connection was to be had at all.
pub(super) fn is_away(error: &DbErr) -> bool {
    matches!(error, DbErr::ConnectionAcquire(_)) || matches!(sqlx_error(error), Some(SqlxError::PoolTimedOut))
}

/// By SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html
fn of_postgres(code: &str) -> Trouble {
    match code {
        // Serialization failure, deadlock, a lock that was not had in time.
        "40001" | "40P01" | "55P03" => Trouble::Again,
        "28000" | "28P01" | "3D000" => Trouble::Login,
        "42501" => Trouble::Forbidden,
        // Shut down, crashed, starting, cut off; also what a pooler says.
        "57P01" | "57P02" | "57P03" | "57P05" | "53300" => Trouble::Gone,
        // A value that no column takes, a key that is there already.
        _ => match &code[..2.min(code.len())] {
            "22" | "23" => Trouble::Refused,
            "08" => Trouble::Gone,
            _ => Trouble::Other,
        },
    }
}

/// By number, https://mariadb.com/kb/en/mariadb-error-code-reference/
fn of_mariadb(number: u16) -> Trouble {
    match number {
        // Changed since it was read, lock not had in time, deadlock.
        1020 | 1205 | 1213 => Trouble::Again,
        1044 | 1045 | 1049 | 1698 => Trouble::Login,
        1142 | 1227 | 1370 => Trouble::Forbidden,
        // Too many connections, shutting down, cut off.
        1040 | 1053 | 1077 | 1080 | 1152 | 1154..=1161 | 1927 => Trouble::Gone,
        // No value, a key that is there already, out of range, too long, not of the
        // character set, larger than a packet.
        1048 | 1062 | 1153 | 1264 | 1366 | 1406 | 1586 | 3854 => Trouble::Refused,
        _ => Trouble::Other,
    }
}

/// Whether a key of this name is there already; an empty name means any.
pub(super) fn violates(error: &DbErr, key: &str) -> bool {
    match sqlx_error(error) {
        Some(SqlxError::Database(error)) => error.is_unique_violation() && error.message().contains(key),
        _ => false,
    }
}

// Primary result codes, https://www.sqlite.org/rescode.html
const PERMISSION: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NO_MEMORY: i32 = 7;
const READ_ONLY: i32 = 8;
const INPUT_OUTPUT: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANNOT_OPEN: i32 = 14;
const PROTOCOL: i32 = 15;
const TOO_BIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const RANGE: i32 = 25;
const NOT_A_DATABASE: i32 = 26;

/// SQLite's own code, without its extension.
fn sqlite_code(error: &DbErr) -> Option<i32> {
    match sqlx_error(error)? {
        SqlxError::Database(error) => {
            let error = error.try_downcast_ref::<SqlxSqliteError>()?;
            DatabaseError::code(error)?.parse::<i32>().ok().map(|code| code & 0xff)
        }
        _ => None,
    }
}

fn sqlx_error(error: &DbErr) -> Option<&SqlxError> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error.as_ref()),
        _ => None,
    }
}

/// The message, without the layers that it came through.
pub(super) fn plain(error: &DbErr) -> String {
    match sqlx_error(error) {
        Some(SqlxError::Database(error)) => error.message().to_owned(),
        Some(error) => error.to_string(),
        None => error.to_string(),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
