//! Where an SQLite database is, and that nobody else has it.

use crate::store::{OpenError, server::shown};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// What every SQLite database begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) enum Place {
    /// To a file.
    File(PathBuf),
    /// Into the memory of this process, under a name that connections to it share.
    Memory(String),
}

impl Place {
    /// A new one in memory.
    pub(in crate::store) fn in_memory() -> Self {
        static NAMES: AtomicU64 = AtomicU64::new(0);
        Self::Memory(format!("file:backjob-{}", NAMES.fetch_add(1, Ordering::Relaxed)))
    }

    pub(in crate::store) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Memory(_) => None,
        }
    }
}

/// The file that an address names; none for a database in memory.
pub(in crate::store) fn file_of(url: &str) -> Result<Option<&Path>, OpenError> {
    let bad = |reason| OpenError::BadUrl { url: url.to_owned(), reason };
    let rest = url.strip_prefix("sqlite:").ok_or_else(|| OpenError::BadUrl {
        url: shown(url),
        reason: "SQLite, PostgreSQL and MariaDB are known",
    })?;
    let path = rest.strip_prefix("//").unwrap_or(rest);
    match path {
        ":memory:" => Ok(None),
        "" => Err(bad("it names no file")),
        _ if path.contains('?') => Err(bad("parameters are not known")),
        _ => Ok(Some(Path::new(path))),
    }
}

/// The one name of a file, so that two names of it share a lock.
pub(in crate::store) fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or_else(|| OpenError::from_io(path, &error))?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).canonicalize();
            folder.map(|folder| folder.join(name)).map_err(|error| OpenError::from_io(path, &error))
        }
        Err(error) => Err(OpenError::from_io(path, &error)),
    }
}

/// Locks the file beside the database until it is dropped. The file stays: to
/// remove it would let two processes hold locks on files of the same name.
pub(in crate::store) fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = private(&mut options).open(&name).map_err(|error| OpenError::from_io(&name, &error))?;
    match file.try_lock() {
        Ok(()) => {
            // For the message of the next one alone: it may fail.
            let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            Err(OpenError::InUse { path: path.to_owned(), pid: pid.trim().parse().ok() })
        }
        Err(TryLockError::Error(error)) => Err(OpenError::from_io(&name, &error)),
    }
}

/// Makes the file if it is not there, and looks at how it begins.
pub(in crate::store) fn check(path: &Path) -> Result<(), OpenError> {
    let io = |error| OpenError::from_io(path, &error);
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = private(&mut options).open(path).map_err(io)?;
    let mut head = Vec::with_capacity(MAGIC.len());
    file.take(MAGIC.len() as u64).read_to_end(&mut head).map_err(io)?;
    if head.is_empty() || head == MAGIC {
        return Ok(());
    }
    let reason = "the file begins with something else".into();
    Err(OpenError::NotADatabase { path: path.to_owned(), reason })
}

/// What is made is for its owner alone: texts are stored in clear.
pub(in crate::store) fn private(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}
