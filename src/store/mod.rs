//! Where jobs are kept: SeaORM over SQLite.
//!
//! Imports the domain, the secrets (to seal), clock and tasks. Knows no wire and
//! decides nothing: what a job becomes is the machine's to say, this room makes
//! it durable.
//!
//! Invariants:
//! - what a [`Done`] is told is `Outcome::Done` is on the disk: WAL with
//!   `synchronous=FULL`;
//! - every update is compared and set by revision; its attempt and text change
//!   in the same transaction or not at all;
//! - one task writes, in the order of the queue; the queue is bounded;
//! - header values and bodies are sealed before they reach the database.
//!
//! When a transaction fails, each of its writes is tried alone, so that one bad
//! write never fails another; what fails then is told so, and the store is not
//! healthy until a write succeeds.

mod entity;
mod open;
mod read;
mod rows;
mod writer;

#[cfg(test)]
mod tests;

pub use open::OpenError;

use crate::{
    clock::Clock,
    job::{Failure, JobId, Payload, Record, Revision, StateName},
    secret::Keyring,
    tasks::Tasks,
};
use sea_orm::{DatabaseConnection, DbErr};
use std::{
    collections::BTreeMap,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{mpsc, watch};

/// How a store is opened.
#[derive(Debug)]
pub struct Options {
    /// `sqlite://PATH`, `sqlite:PATH` or `sqlite::memory:`.
    pub url: String,
    /// Whether tables are made and brought up to date.
    pub migrate: bool,
    /// Name of this node.
    pub node: String,
    /// Root keys to seal and open with.
    pub keys: Arc<Keyring>,
    /// Writes that may wait.
    pub queue: usize,
    /// Writes of one transaction, at most.
    pub batch: usize,
}

/// Why a read or a write failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The database does not do what it should; it may later.
    #[error("the database: {0}")]
    Unavailable(String),
    /// A row is not what we wrote.
    #[error("a row cannot be read: {0}")]
    Corrupt(String),
    /// The write itself is at fault.
    #[error("the write was refused: {0}")]
    Refused(String),
}

impl Error {
    /// Whether it is worth repeating.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        match error.sql_err() {
            Some(constraint) => Self::Refused(constraint.to_string()),
            None => match error {
                DbErr::Type(_) | DbErr::TryIntoErr { .. } | DbErr::Json(_) => {
                    Self::Corrupt(error.to_string())
                }
                _ => Self::Unavailable(error.to_string()),
            },
        }
    }
}

/// The writer has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is closed")]
pub struct Closed;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable.
    Done,
    /// The row's revision is not the expected one any more, or it is gone.
    Lost,
}

/// Told what became of a write, on the writer's task. Must be quick.
pub type Done = Box<dyn FnOnce(Result<Outcome, Error>) + Send>;

/// Something to write.
#[derive(Debug, Clone)]
pub enum Write {
    /// A new job.
    Insert(Box<New>),
    /// A change of one.
    Update(Box<Update>),
}

/// A new job.
#[derive(Debug, Clone)]
pub struct New {
    /// The job.
    pub record: Record,
    /// What is sealed of it.
    pub payload: Payload,
}

/// A change of a job.
#[derive(Debug, Clone)]
pub struct Update {
    /// The revision that the row must have.
    pub from: Revision,
    /// The job as it is now.
    pub record: Record,
    /// Whether text and output are written too.
    pub text: bool,
    /// The attempt's row, written if the job's was.
    pub attempt: Option<AttemptRow>,
}

/// The row of an attempt. Times in UTC milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// From 1.
    pub attempt: u32,
    /// Who claimed it.
    pub node: String,
    /// When.
    pub claimed_at: i64,
    /// When its request was wholly written.
    pub sent_at: Option<i64>,
    /// Whether the action ever reported.
    pub reported: bool,
    /// The highest sequence applied.
    pub sequence: u64,
    /// When it ended.
    pub ended_at: Option<i64>,
    /// The action's HTTP status.
    pub http_status: Option<u16>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The report that ended it.
    pub ended_by: Option<Ended>,
}

/// A report that ended an attempt, so that an exact repeat is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its sequence.
    pub sequence: Option<u64>,
    /// Hash of its bytes.
    pub hash: [u8; 32],
}

/// Which jobs to list; all that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// Only these.
    pub ids: Option<Vec<JobId>>,
    /// One of these; empty is every state.
    pub states: Vec<StateName>,
    /// All of these.
    pub labels: BTreeMap<String, String>,
    /// The route begins with this.
    pub route_prefix: Option<String>,
    /// This target.
    pub target: Option<String>,
    /// Started with this token.
    pub created_by: Option<String>,
    /// Stored at or after, UTC milliseconds.
    pub created_after: Option<i64>,
    /// Stored before, UTC milliseconds.
    pub created_before: Option<i64>,
    /// Only what comes after this one, newest first.
    pub before: Option<(i64, JobId)>,
    /// Rows, at most.
    pub limit: u64,
    /// With text and output.
    pub text: bool,
}

type Queued = (Write, Done);

/// The store. Clones share it.
#[derive(Clone)]
pub struct Store {
    readers: DatabaseConnection,
    queue: mpsc::Sender<Queued>,
    keys: Arc<Keyring>,
    healthy: Arc<AtomicBool>,
    closing: watch::Sender<bool>,
    closed: watch::Receiver<bool>,
    /// Held for as long as the store lives: tells a second server to go away.
    _lock: Option<Arc<File>>,
}

/// Room for one write.
pub struct Permit(mpsc::OwnedPermit<Queued>);

impl Permit {
    /// Queues the write; never waits.
    pub fn write(self, write: Write, done: Done) {
        self.0.send((write, done));
    }
}

impl Store {
    /// Opens the database, makes its tables, and begins to write.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(options: Options, clock: Arc<dyn Clock>, tasks: &Tasks) -> Result<Self, OpenError> {
        let open::Opened { writer, readers, lock } = open::open(&options, &*clock).await?;
        let (queue, waiting) = mpsc::channel(options.queue.max(1));
        let (closing, close) = watch::channel(false);
        let (ended, closed) = watch::channel(false);
        let healthy = Arc::new(AtomicBool::new(true));
        let keys = options.keys;
        let writer = writer::Writer {
            connection: writer,
            keys: Arc::clone(&keys),
            clock,
            batch: options.batch.max(1),
            healthy: Arc::clone(&healthy),
        };
        tasks.spawn("writer", async move {
            writer.run(waiting, close).await;
            let _ = ended.send(true); // nobody may be left to hear it
        });
        Ok(Self { readers, queue, keys, healthy, closing, closed, _lock: lock.map(Arc::new) })
    }

    /// False while writes fail for a reason of the database itself.
    pub fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// Waits for room for one write.
    ///
    /// # Errors
    /// [`Closed`] once the store is closed.
    pub async fn reserve(&self) -> Result<Permit, Closed> {
        self.queue.clone().reserve_owned().await.map(Permit).map_err(|_| Closed)
    }

    /// Writes what is queued, then closes the database.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        // Fails only if the writer is gone, and then it is closed.
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
        let _ = self.readers.clone().close().await; // there is nothing left to save
    }
}
