//! What goes wrong with a database, sorted by what helps.

use crate::{job::JobId, secret::RootId};
use sea_orm::{DbErr, RuntimeErr, SqlxError};
use std::{io, path::PathBuf};

/// Why a read or a write has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The database cannot be read or written now; later it may.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
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
            Self::Unavailable(_) => true,
            Self::Corrupt(_) | Self::Refused(_) => false,
        }
    }

    pub(super) fn corrupt(id: JobId, what: impl std::fmt::Display) -> Self {
        Self::Corrupt(format!("{id}: {what}"))
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        match (sqlite_code(&error), &error) {
            (Some(TOO_BIG | CONSTRAINT | MISMATCH | RANGE), _) => Self::Refused(plain(&error)),
            (None, DbErr::Type(_) | DbErr::TryIntoErr { .. } | DbErr::Json(_)) => {
                Self::Corrupt(plain(&error))
            }
            _ => Self::Unavailable(plain(&error)),
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
    #[error("database.url `{url}`: {reason}; write sqlite://PATH, or sqlite::memory: for none")]
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
    /// Another server has the file.
    #[error("{path} is in use by another backjob{by}. SQLite has one server at a time: stop that one, or give this one a file of its own in database.url", path = .path.display(), by = .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    InUse {
        /// The file.
        path: PathBuf,
        /// The other server's process, where it could be read.
        pid: Option<u32>,
    },
    /// The tables were made by a newer program.
    #[error("{path} was last used by a newer backjob (it has {unknown}, which this one does not know). Run that version, or restore a backup made before the upgrade", path = .path.display(), unknown = .unknown.join(", "))]
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
            _ => Self::Other { path, reason },
        }
    }

    /// What the system said about the file or its folder.
    pub(super) fn from_io(path: &std::path::Path, error: &io::Error) -> Self {
        Self::NotWritable { path: path.to_owned(), reason: error.to_string() }
    }
}

// Primary result codes, https://www.sqlite.org/rescode.html
const PERMISSION: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READ_ONLY: i32 = 8;
const CORRUPT: i32 = 11;
const CANNOT_OPEN: i32 = 14;
const TOO_BIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const RANGE: i32 = 25;
const NOT_A_DATABASE: i32 = 26;

/// SQLite's own code, without its extension.
fn sqlite_code(error: &DbErr) -> Option<i32> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => match error.as_ref() {
            SqlxError::Database(error) => error.code()?.parse::<i32>().ok().map(|code| code & 0xff),
            _ => None,
        },
        _ => None,
    }
}

/// The message, without the layers that it came through.
fn plain(error: &DbErr) -> String {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => match error.as_ref() {
            SqlxError::Database(error) => error.message().to_owned(),
            error => error.to_string(),
        },
        error => error.to_string(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
