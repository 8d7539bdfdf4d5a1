//! A copy of a database that another process may be writing to.

use super::{
    OpenError, open,
    server::{is_server, shown},
    sqlite::private,
};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Writes a consistent copy of the database at `url` to `to`, which must not be
/// there: the state of one moment, without what was erased. Writers go on
/// meanwhile. The copy is for its owner alone, and on the disk when this returns.
pub(super) async fn backup(url: &str, to: &Path) -> Result<(), OpenError> {
    let fails = |error: io::Error| OpenError::from_io(to, &error);
    if fs::symlink_metadata(to).is_ok() {
        return Err(fails(io::Error::new(io::ErrorKind::AlreadyExists, "it is there already")));
    }
    if is_server(url) {
        let reason = "a server's database is copied with its own tools, pg_dump or mariadb-dump";
        return Err(OpenError::BadUrl { url: shown(url), reason });
    }
    let (db, path) = open::beside(url).await?;
    // Under another name until it is whole.
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let copied = copy(&db, &path, &part, to).await;
    let _ = db.close().await; // only read from
    let done = copied.and_then(|()| {
        fs::File::open(&part).and_then(|file| file.sync_all()).map_err(fails)?;
        fs::rename(&part, to).map_err(fails)?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(fails)
    });
    if done.is_err() {
        let _ = fs::remove_file(&part); // what went wrong is said already
    }
    done
}

async fn copy(
    db: &sea_orm::DatabaseConnection,
    path: &Path,
    part: &Path,
    to: &Path,
) -> Result<(), OpenError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    private(&mut options).open(part).map_err(|error| OpenError::from_io(to, &error))?;
    let name = part.to_str().ok_or_else(|| {
        OpenError::from_io(to, &io::Error::new(io::ErrorKind::InvalidInput, "the name is not UTF-8"))
    })?;
    let statement = Statement::from_sql_and_values(DbBackend::Sqlite, "VACUUM INTO ?", [name.into()]);
    let fails = |error| match OpenError::from_db(path, &error) {
        // What is only read from has room enough: it is the copy that has none.
        OpenError::Full { .. } => OpenError::Full { path: to.to_owned() },
        OpenError::NotWritable { reason, .. } => OpenError::NotWritable { path: to.to_owned(), reason },
        error => error,
    };
    db.execute_raw(statement).await.map(drop).map_err(fails)
}
