//! PostgreSQL's notifications: which jobs changed, told to the other nodes.
//!
//! They go over a connection of their own, never in a transaction that writes: the
//! lock that orders them would order the transactions. A lost one is no harm, see
//! `feed.rs`.

use super::{Error, Store, database::Database, dialect::statement};
use crate::job::{JobId, Revision};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sea_orm::{ConnectionTrait as _, DbBackend, DbErr, RuntimeErr, sqlx::postgres::PgListener};
use sha2::{Digest as _, Sha256};

/// Jobs in one notification: 16 bytes of who sends it and 24 of each job make, in
/// base64, less than the 8000 bytes that PostgreSQL takes.
const MOST: usize = 248;

/// Hears what other nodes notify of.
pub struct Listener {
    listener: PgListener,
    /// Ours, which we need not hear of.
    own: [u8; 16],
    /// Closed with the listener.
    _database: Database,
}

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// These jobs are that far.
    Changes(Vec<(JobId, Revision)>),
    /// The connection was lost and is there again: anything may have been missed.
    Gap,
}

impl Store {
    /// The channel is that of these tables: others in the same database have another.
    fn channel(&self) -> String {
        let tables = self.reader().tables();
        let place = format!("{}.{}", tables.schema.as_deref().unwrap_or_default(), tables.prefix);
        let hash = Sha256::digest(place.as_bytes());
        let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("backjob_{name}")
    }

    fn notifies(&self) -> bool {
        self.backend() == DbBackend::Postgres && !self.reader().tables().pooler
    }

    /// Tells the other nodes that these jobs changed, all in one statement. False where
    /// the database, or a pooler before it, has no notifications.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: whoever listens has to poll.
    pub async fn notify(&self, changes: &[(JobId, Revision)]) -> Result<bool, Error> {
        let Some(db) = self.shared.notifier.as_ref().filter(|_| self.notifies()) else { return Ok(false) };
        let payload = |changes: &[(JobId, Revision)]| {
            let mut bytes = Vec::with_capacity(16 + changes.len() * 24);
            bytes.extend(self.incarnation());
            for (id, revision) in changes {
                bytes.extend(id.to_bytes());
                bytes.extend(revision.stored().to_be_bytes());
            }
            URL_SAFE_NO_PAD.encode(bytes)
        };
        // More than a thousand notifications in one statement are no feed any more.
        for some in changes.chunks(MOST * 1_000) {
            let payloads: Vec<String> = some.chunks(MOST).map(payload).collect();
            let each = vec!["pg_notify(?, ?)"; payloads.len()].join(", ");
            let channel = self.channel();
            let values = payloads.into_iter().flat_map(|payload| [channel.clone().into(), payload.into()]);
            db.execute_raw(statement(DbBackend::Postgres, format!("SELECT {each}"), values)).await?;
        }
        Ok(true)
    }

    /// Listens to what other nodes notify of, from now on; none where the database, or
    /// a pooler before it, has no notifications.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn listen(&self) -> Result<Option<Listener>, Error> {
        let Some(server) = self.shared.server.as_ref().filter(|_| self.notifies()) else { return Ok(None) };
        let database = server.connect(1);
        let pool = database.connection().get_postgres_connection_pool();
        let mut listener = PgListener::connect_with(pool).await.map_err(unavailable)?;
        listener.ignore_pool_close_event(true);
        listener.listen(&self.channel()).await.map_err(unavailable)?;
        Ok(Some(Listener { listener, own: self.incarnation(), _database: database }))
    }
}

impl Listener {
    /// What is heard next. Dropped before it is ready, nothing is lost.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the connection is lost; the next call tries again.
    pub async fn next(&mut self) -> Result<Heard, Error> {
        loop {
            let Some(heard) = self.listener.try_recv().await.map_err(unavailable)? else {
                return Ok(Heard::Gap);
            };
            // What is not ours by its form is another program's.
            if let Some(changes) = parse(heard.payload(), self.own) {
                return Ok(Heard::Changes(changes));
            }
        }
    }
}

fn parse(payload: &str, own: [u8; 16]) -> Option<Vec<(JobId, Revision)>> {
    let bytes = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let (sender, changes) = bytes.split_first_chunk::<16>()?;
    if *sender == own || changes.is_empty() || changes.len() % 24 != 0 {
        return None;
    }
    let read = |change: &[u8]| {
        let (id, revision) = change.split_first_chunk::<16>()?;
        let revision = i64::from_be_bytes(revision.try_into().ok()?);
        Some((JobId::from_bytes(*id), Revision::from_stored(revision)))
    };
    changes.chunks(24).map(read).collect()
}

fn unavailable(error: sea_orm::SqlxError) -> Error {
    DbErr::Conn(RuntimeErr::SqlxError(error.into())).into()
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}
