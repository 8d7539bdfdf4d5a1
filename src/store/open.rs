//! Opens a database: lock, file, connections, tables, root keys, writer; in this
//! order, so that nothing is touched that another process uses.

use super::{
    Error, OpenError, Options, Shared, Store,
    database::Database,
    health::{Health, Reader, quick_check},
    joinable::Joinable,
    names::Tables,
    node,
    notice::Notices,
    postgres,
    roots::{self, RootUse},
    server::{Server, is_server},
    shared::{self, Mark},
    sqlite::{self, Kept, Place, READERS, Use, connect},
    writer::Writer,
};
use crate::{clock::Clock, secret::Keyring, tasks::Tasks};
use backjob_migrations::{Migrator, MigratorTraitSelf as _, RECORD};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, Statement};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// Files up to this many bytes are read to their end at the start, which takes
/// some milliseconds; damage of larger ones shows when it is met.
const CHECKED: u64 = 64 << 20;

/// A database that is ready.
struct Opened {
    writer: Database,
    reader: Database,
    /// For what must not wait behind writes; that of the writer where there is but one.
    pulse: Database,
    settled: roots::Known,
    /// On SQLite, as is the next.
    kept: Option<Kept>,
    joinable: Option<Joinable>,
    /// Of an SQLite file.
    file: Option<PathBuf>,
    lock: Option<File>,
    mark: Option<Mark>,
    /// How further connections are made, where a server makes them.
    server: Option<Server>,
}

pub(super) async fn open(options: Options, clock: Arc<dyn Clock>, tasks: &Tasks) -> Result<Store, OpenError> {
    let mut nonce = [0; 24];
    clock.random(&mut nonce);
    let mut incarnation = [0; 16];
    clock.random(&mut incarnation);
    let moment = (clock.wall(), nonce);
    let opened = if is_server(&options.url) {
        open_server(&options, moment, incarnation).await?
    } else {
        open_file(&options, moment).await?
    };
    let Opened { writer: db, reader, pulse, settled, kept, joinable, file, lock, mark, server } = opened;

    let (queue, receiver) = mpsc::channel(options.queue.max(1));
    let health = Arc::new(Health::new());
    let reader = Reader { db: reader, health: Arc::clone(&health) };
    let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
    let notices = Arc::new(Notices::new(server.as_ref(), &options.tables, incarnation));
    let mut writer = Writer {
        notices: Arc::clone(&notices),
        db,
        on_file: file.is_some(),
        reader: reader.clone(),
        worn: false,
        #[cfg(test)]
        model: None,
        kept,
        joinable,
        at_once: server.as_ref().is_some_and(Server::keeps_plans).then(postgres::Kept::default),
        queue: receiver,
        batch: options.batch.max(1),
        answered: 0,
        ahead: server.is_some() && Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread,
        health: Arc::clone(&health),
        closing: closing.clone(),
        clock: Arc::clone(&clock),
        root: options.keys.current().id(),
        root_known: settled.known,
        mark,
    };
    let (ends, others) = (closed.clone().drop_guard(), (reader.db.clone(), pulse.clone()));
    tasks.spawn("store writer", async move {
        // Dropped in the opposite order: who waits for the end finds no lock.
        let _ends = ends;
        let in_memory = lock.is_none();
        let _lock = lock;
        writer.run().await;
        match writer.mark {
            Some(mark) => close_server(&writer.db, others, mark).await,
            None => close(&writer.db, &others, in_memory).await,
        }
    });
    if let Some(file) = file {
        let (health, closing, closed) = (Arc::clone(&health), closing.clone(), closed.clone());
        tasks.spawn("store check", async move {
            tokio::select! {
                () = health.check(&file) => {}
                () = closing.cancelled() => {}
                () = closed.cancelled() => {}
            }
        });
    }
    if server.is_some() {
        let (notices, closed) = (Arc::clone(&notices), closed.clone());
        tasks.spawn("store notices", async move { notices.run(closed).await });
    }
    let shared = Shared {
        notices,
        reader,
        #[cfg(test)]
        model: None,
        pulse,
        server,
        incarnation,
        queue,
        health,
        closing,
        closed,
        keys: options.keys,
        other_roots: settled.others,
        identity: settled.identity,
        node: options.node,
        clock,
    };
    Ok(Store { shared: Arc::new(shared) })
}

async fn open_file(options: &Options, moment: (i64, [u8; 24])) -> Result<Opened, OpenError> {
    if options.tables.schema.is_some() || options.tables.pooler {
        let reason = "database.schema and database.pooler are for PostgreSQL alone";
        return Err(OpenError::BadUrl { url: options.url.clone(), reason });
    }
    let (place, lock) = match sqlite::file_of(&options.url)? {
        None => (Place::in_memory(), None),
        Some(path) => {
            let path = sqlite::resolve(path)?;
            let lock = sqlite::lock(&path)?;
            sqlite::check(&path)?;
            (Place::File(path), Some(lock))
        }
    };
    let path = place.file().unwrap_or(Path::new(":memory:"));
    let db = connect(&place, Use::Write).await.map_err(|error| OpenError::from_db(path, &error))?;
    let db = Database::new(db, options.tables.clone(), 1);
    let (reader, kept, settled, joinable) = match prepare(&db, path, &place, options, moment).await {
        Ok(prepared) => prepared,
        Err(error) => {
            // Leaves no log behind; that this fails too adds nothing.
            let _ = db.close().await;
            return Err(error);
        }
    };
    let pulse = match &place {
        Place::File(_) => {
            let pulse =
                connect(&place, Use::Pulse).await.map_err(|error| OpenError::from_db(path, &error))?;
            Database::new(pulse, options.tables.clone(), 1)
        }
        Place::Memory(_) => db.clone(),
    };
    let file = place.file().map(Path::to_owned);
    let (kept, joinable) = (Some(kept), Some(joinable));
    Ok(Opened { pulse, writer: db, reader, settled, kept, joinable, file, lock, mark: None, server: None })
}

/// Connections to a server that write, should one be stuck: one does.
const WRITERS: u32 = 2;
/// That read: each is a process of PostgreSQL's.
const SERVER_READERS: u32 = 2;

async fn open_server(
    options: &Options,
    (now, nonce): (i64, [u8; 24]),
    incarnation: [u8; 16],
) -> Result<Opened, OpenError> {
    let server = Server::new(&options.url, &options.tables)?;
    let mark = Mark { incarnation, number: now, stored: now };
    let path = PathBuf::from(&server.name);
    let first = server.connect(1);
    let prepared = async {
        server.prepare(&first, options.migrate).await?;
        let settled = roots::settle(&first, &path, options, now, nonce).await?;
        shared::begin(&first, &options.node, mark).await.map_err(|error| server.error(&error))?;
        Ok(settled)
    };
    let prepared = prepared.await;
    let _ = first.close().await; // what went wrong is told
    let settled = prepared?;
    Ok(Opened {
        writer: server.connect_writers(WRITERS),
        reader: server.connect(SERVER_READERS),
        pulse: server.connect(1),
        settled,
        kept: None,
        joinable: None,
        file: None,
        lock: None,
        mark: Some(mark),
        server: Some(server),
    })
}

/// Brings the tables up to date; the connections that read, the one that writes most,
/// what is known of roots, and which jobs may be joined.
async fn prepare(
    db: &Database,
    path: &Path,
    place: &Place,
    options: &Options,
    (now, nonce): (i64, [u8; 24]),
) -> Result<(Database, Kept, roots::Known, Joinable), OpenError> {
    if place.file().is_some_and(|file| fs::metadata(file).is_ok_and(|file| file.len() <= CHECKED)) {
        let damaged = |reason| OpenError::NotADatabase { path: path.to_owned(), reason };
        quick_check(db.connection()).await.map_err(damaged)?;
    }
    schema(db.connection(), path, options).await?;
    let settled = roots::settle(db, path, options, now, nonce).await?;
    let joinable = Joinable::load(db).await.map_err(|error| OpenError::from_db(path, &error))?;
    let kept = Kept::open(place.clone(), db, &options.tables, options.page_cache);
    let kept = kept.await.map_err(|error| match error {
        Error::Damaged(reason) => OpenError::NotADatabase { path: path.to_owned(), reason },
        error => OpenError::Other { path: path.to_owned(), reason: error.to_string() },
    })?;
    let reader = match place {
        Place::File(_) => {
            let reader = connect(place, Use::Read).await.map_err(|error| OpenError::from_db(path, &error))?;
            Database::new(reader, options.tables.clone(), READERS)
        }
        Place::Memory(_) => db.clone(),
    };
    Ok((reader, kept, settled, joinable))
}

/// Compares the tables with this program's, and makes what lacks.
async fn schema(db: &DatabaseConnection, path: &Path, options: &Options) -> Result<(), OpenError> {
    let fails = |error: DbErr| OpenError::from_db(path, &error);
    let tables = texts(db, "SELECT name FROM sqlite_master WHERE type = 'table'").await.map_err(fails)?;
    let (record, prefix) = (options.tables.name(RECORD), &options.tables.prefix);
    // Tables of others may stand beside those that have a prefix of their own.
    let ours = |name: &String| prefix.is_empty() || name.starts_with(prefix);
    let applied = if tables.contains(&record) {
        texts(db, &format!(r#"SELECT version FROM "{record}""#)).await.map_err(fails)?
    } else if !tables.iter().any(ours) {
        BTreeSet::new()
    } else {
        let reason = "it holds tables of another program".into();
        return Err(OpenError::NotADatabase { path: path.to_owned(), reason });
    };
    let migrator = Migrator { prefix: prefix.clone() };
    let known: BTreeSet<String> =
        migrator.migrations().iter().map(|migration| migration.name().to_owned()).collect();
    let unknown: Vec<String> = applied.difference(&known).cloned().collect();
    if !unknown.is_empty() {
        return Err(OpenError::NewerSchema { path: path.to_owned(), unknown });
    }
    let pending: Vec<String> = known.difference(&applied).cloned().collect();
    if pending.is_empty() {
        return Ok(());
    }
    if !options.migrate {
        return Err(OpenError::MustMigrate { path: path.to_owned(), pending });
    }
    migrator.up(db, None).await.map_err(fails)
}

async fn texts(db: &DatabaseConnection, sql: &str) -> Result<BTreeSet<String>, DbErr> {
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await?;
    rows.iter().map(|row| row.try_get_by_index(0)).collect()
}

/// Reads beside whoever has the database open.
pub(super) async fn root_uses(url: &str, tables: &Tables, keys: &Keyring) -> Result<Vec<RootUse>, OpenError> {
    let (db, path) = if is_server(url) {
        let server = Server::new(url, tables)?;
        server.prepare(&server.connect(1), false).await?;
        (server.connect(1), PathBuf::from(server.name))
    } else if sqlite::file_of(url)?.is_none() {
        return Ok(Vec::new());
    } else {
        let (db, path) = beside(url).await?;
        (Database::new(db, tables.clone(), READERS), path)
    };
    let uses = roots::uses(&db, &path, keys).await;
    // What was read counts; that it does not close adds nothing.
    let _ = db.close().await;
    uses
}

/// A connection that reads the file that an address names, which must be there,
/// whoever else has it open.
pub(super) async fn beside(url: &str) -> Result<(DatabaseConnection, PathBuf), OpenError> {
    let Some(path) = sqlite::file_of(url)? else {
        let reason = "a database in memory is known to its own server alone";
        return Err(OpenError::BadUrl { url: url.to_owned(), reason });
    };
    fs::metadata(path).map_err(|error| OpenError::from_io(path, &error))?;
    let db = connect(&Place::File(path.to_owned()), Use::Read)
        .await
        .map_err(|error| OpenError::from_db(path, &error))?;
    Ok((db, path.to_owned()))
}

/// A database that is away must not keep a server from its end.
async fn close_server(db: &Database, (reader, pulse): (Database, Database), mark: Mark) {
    let ended = async {
        let _ = reader.close().await;
        let _ = pulse.close().await;
        // All is written: others may take over what runs. What is left behind is
        // removed at the next start.
        let _ = node::leave(db, mark.incarnation).await;
        let _ = shared::end(db, mark.incarnation).await;
        db.close().await
    };
    match tokio::time::timeout(Duration::from_secs(2), ended).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the database was not closed"),
        Err(_) => tracing::warn!("the database was not closed in time"),
    }
}

async fn close(db: &Database, (readers, pulse): &(Database, Database), in_memory: bool) {
    // They would keep parts of the log.
    if !in_memory {
        let _ = readers.close().await;
        let _ = pulse.close().await;
    }
    if let Err(error) = db.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await {
        // Nothing is lost: the log is read when the database is opened again.
        tracing::warn!(%error, "the log was not moved into the database");
    }
    if let Err(error) = db.close().await {
        tracing::warn!(%error, "the database was not closed");
    }
}
