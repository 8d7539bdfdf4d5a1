//! The tables: what outlives the process.
//!
//! ```text
//!   engine ── reserve, write ──▶ writer.rs ─┬▶ sqlite/, postgres/: what is written most
//!                                           └▶ commit.rs: all else
//!   engine ── records, list, due, … ──▶ read.rs, list.rs ──▶ some that read
//!   engine ── beat, changed_since, notify ──▶ node.rs, feed.rs, notice.rs ──▶ others
//! ```
//!
//! SQLite, PostgreSQL and MariaDB carry the same tables. What differs in the text of
//! statements is in `dialect.rs`, what is written most in `sqlite/` (prepared statements
//! on a connection of its own, beside SeaORM) and `postgres/` (a transaction as one
//! statement), in connections in `sqlite/` and `server.rs`; `names.rs` puts schema and
//! prefix in place, `database.rs` hides a pooler. Where other nodes write too, `shared.rs`
//! begins again what they overtook.
//!
//! It may import `clock`, `job`, `secret` and `tasks`, and knows no transport.
//!
//! Invariants:
//! - what a [`Done`] was told as [`Outcome::Done`] survives `kill -9`: SQLite runs
//!   with a write-ahead log and `synchronous=FULL`;
//! - an update is written only over the revision that it was made from, and its
//!   text and attempt only with it, in one transaction;
//! - writes of one job are carried out in the order in which they were handed in;
//! - one refused write never fails the others of its batch;
//! - memory is bounded: who wants to write waits for a place in the queue;
//! - payloads are stored sealed, bound to their job, and nothing here logs one;
//! - SQLite has one process at a time: a lock on `<database>.lock` is held while a
//!   store is open, and freed by the system when the process dies;
//!   so the writer knows itself which jobs may be joined, see `joinable.rs`;
//! - elsewhere any number of nodes write, and merging and keys are as exact: unique
//!   indexes decide, and who was overtaken looks again;
//! - a transaction whose end was not heard of is looked up by its mark.
//!
//! When the database fails (a full disk, a file that became read-only), each
//! write is answered with [`Error::Unavailable`] and nothing of it is stored;
//! [`Store::healthy`] is false until a write, or the probe that an idle writer
//! makes every second, succeeds. The connection that a transaction failed on is
//! replaced: it may be in no state to begin another. A damaged file is told as
//! [`Error::Damaged`] and written to no more until a check of all of it finds it
//! good, so that nothing is acknowledged that a restored backup lacks. A row that
//! cannot be understood fails the reads that meet it with [`Error::Corrupt`], and no
//! other.

/// In a simulation the tables are maps, see `model.rs`; else this is nothing.
macro_rules! simulated {
    ($store:expr, $call:ident($($argument:expr),*)) => {
        #[cfg(test)]
        if let Some(model) = &$store.shared.model {
            return model.$call($($argument),*).await;
        }
    };
}

mod backup;
mod columns;
mod commit;
mod database;
mod dialect;
mod entity;
mod error;
mod existing;
mod feed;
mod health;
mod joinable;
mod list;
#[cfg(test)]
pub(crate) mod model;
mod names;
mod node;
mod notice;
mod open;
mod payload;
mod postgres;
mod read;
mod roots;
mod row;
mod select;
mod server;
mod shared;
mod sqlite;
mod write;
mod writer;

#[cfg(test)]
mod tests;

pub use error::{Closed, Error, OpenError};
pub use feed::Change;
pub use list::List;
pub use names::Tables;
pub use node::{Announced, Beaten, Moment, Node};
pub use notice::{Heard, Listener};
pub use roots::RootUse;
pub use write::{AttemptRow, Done, Ended, Existing, Merge, New, Outcome, Sealed, StartKey, Update, Write};

use crate::{clock::Clock, secret::Keyring, tasks::Tasks};
use database::Database;
use health::{Health, Reader};
use sea_orm::{ConnectionTrait as _, DbBackend};
use server::Server;
use std::{fmt, path::Path, sync::Arc};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use writer::Item;

/// What a store is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// `sqlite://PATH`, `sqlite:PATH`, or `sqlite::memory:` for one that is gone
    /// with the process. A file that is not there is made, for its owner alone.
    /// Or `postgres://…` or `mysql://…`, with the name of a database that is there.
    pub url: String,
    /// Where in the database the tables are.
    pub tables: Tables,
    /// Whether tables are made and brought up to date.
    pub migrate: bool,
    /// Name of this node: the owner of what it runs.
    pub node: String,
    /// What payloads are sealed with.
    pub keys: Arc<Keyring>,
    /// Places in the queue of writes; at least 1. Some thousands suit.
    pub queue: usize,
    /// Most writes in one transaction; at least 1. Some hundreds suit.
    pub batch: usize,
    /// On SQLite, memory for pages of the connection that writes, bytes. Some MiB suit.
    pub page_cache: u64,
}

/// The tables. Clones share one writer.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    reader: Reader,
    /// Stands in for `reader` in a simulation.
    #[cfg(test)]
    model: Option<model::Model>,
    pulse: Database,
    notices: Arc<notice::Notices>,
    server: Option<Server>,
    incarnation: [u8; 16],
    queue: mpsc::Sender<Box<Item>>,
    health: Arc<Health>,
    closing: CancellationToken,
    /// Fires when the writer has ended.
    closed: CancellationToken,
    keys: Arc<Keyring>,
    other_roots: bool,
    identity: [u8; 32],
    node: String,
    clock: Arc<dyn Clock>,
}

/// A place in the queue of writes.
pub struct Permit {
    place: mpsc::OwnedPermit<Box<Item>>,
    shared: Arc<Shared>,
}

impl Store {
    /// Opens the database and starts its writer, as a task of `tasks`.
    ///
    /// The writer does not heed the stop of `tasks`, since what others do on
    /// their way out has to be written too: call [`Store::close`] before waiting
    /// for it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(options: Options, clock: Arc<dyn Clock>, tasks: &Tasks) -> Result<Self, OpenError> {
        open::open(options, clock, tasks).await
    }

    /// What each of `keys` is still needed for in the database at `url`, also while
    /// a server has it open. Nothing is changed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn root_uses(url: &str, tables: &Tables, keys: &Keyring) -> Result<Vec<RootUse>, OpenError> {
        open::root_uses(url, tables, keys).await
    }

    /// Writes a copy of the database at `url` to the file `to`, also while a server
    /// has it open: all of one moment, consistent, for its owner alone.
    ///
    /// # Errors
    /// See [`OpenError`]; also if `to` is there already.
    pub async fn backup(url: &str, to: &Path) -> Result<(), OpenError> {
        backup::backup(url, to).await
    }

    /// False while the last read or transaction failed for a reason of the
    /// database itself, a transaction takes seconds, the file was found damaged,
    /// and once the store is closed.
    pub fn healthy(&self) -> bool {
        !self.shared.closed.is_cancelled() && self.shared.health.is_good()
    }

    /// Follows whether the database can be used.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.shared.health.follow()
    }

    /// Whether a transaction has been under way for seconds: what is handed in now
    /// waits for a disk that does not answer.
    pub fn is_stuck(&self) -> bool {
        self.shared.health.is_stuck()
    }

    /// Waits for a place in the queue of writes. A permit that is dropped gives
    /// its place back; while one is held, [`Store::close`] waits.
    ///
    /// # Errors
    /// [`Closed`] once the store is closing.
    pub async fn reserve(&self) -> Result<Permit, Closed> {
        let place = self.shared.queue.clone().reserve_owned().await.map_err(|_| Closed)?;
        Ok(Permit { place, shared: Arc::clone(&self.shared) })
    }

    /// Writes what is queued, moves the log into the database, closes it, and
    /// frees it for another process. Reads fail from then on. It may be called
    /// more than once; each call returns when all is done.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.closed.cancelled().await;
    }

    /// Whether other nodes may write to the same tables.
    pub fn is_shared(&self) -> bool {
        self.shared.server.is_some()
    }

    fn reader(&self) -> &Reader {
        &self.shared.reader
    }

    fn backend(&self) -> DbBackend {
        self.shared.reader.get_database_backend()
    }

    fn keys(&self) -> &Keyring {
        &self.shared.keys
    }
}

impl Permit {
    /// Hands a write in; never waits. What is sealed of it is sealed here, on the
    /// caller's side. `done` is run on the writer's task.
    pub fn write(self, write: Write, done: Done) {
        let mut nonces = [[0; 24]; 2];
        self.shared.clock.random(nonces.as_flattened_mut());
        let (id, rows) = write::Rows::of(write, &self.shared.node, &self.shared.keys, nonces);
        self.place.send(Box::new(Item { id, rows, done }));
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("healthy", &self.healthy()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}
