//! PostgreSQL's notifications: which jobs changed, told to the other nodes.
//!
//! ```text
//!   writer ──committed──▶ gathered (bounded) ──▶ at once, or when that is not too often ──▶ others
//! ```
//!
//! They go over a connection of their own, never in a transaction that writes: the
//! lock that orders them would order the transactions. A lost one is no harm, see
//! `feed.rs`.

use super::{
    Error, Existing, Outcome, Store, Tables, database::Database, dialect::statement, error::hex,
    server::Server, write::Rows,
};
use crate::job::{JobId, Revision};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sea_orm::{ConnectionTrait as _, DbBackend, DbErr, RuntimeErr, sqlx::postgres::PgListener};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Jobs in one notification: 16 bytes of who sends it and 24 of each job make, in
/// base64, less than the 8000 bytes that PostgreSQL takes.
const MOST: usize = 248;
/// What a notification uses up of the time that has passed, in milliseconds: they cost
/// every node that listens.
const COST: u64 = 63;
/// What can be saved up. So in no second are there more than twenty.
const SAVED: u64 = 4 * COST;
/// Jobs that wait to be told of, at most; who polls finds the others.
const GATHERED: usize = 10_000;

/// How long the end of a store waits for its last one.
const LAST: Duration = Duration::from_millis(500);

/// Notifies the other nodes.
pub(super) struct Notices {
    to: Option<To>,
    /// Whether there are any.
    others_live: AtomicBool,
    gathered: Mutex<Gathered>,
    wake: Notify,
}

/// What was stored and is still to be told.
#[derive(Default)]
struct Gathered {
    changes: HashMap<JobId, Revision>,
    /// A job has ended.
    ends: bool,
}

/// How often is not too often. Pure.
struct Pace {
    saved: u64,
    /// Milliseconds on any clock.
    at: u64,
}

impl Pace {
    fn new(now: u64) -> Self {
        Self { saved: SAVED, at: now }
    }

    fn saved(&self, now: u64) -> u64 {
        (self.saved + now.saturating_sub(self.at)).min(SAVED)
    }

    /// How long to wait. The end of a job goes before all else, which leaves one for it.
    fn wait(&self, now: u64, ends: bool) -> Duration {
        let needs = if ends { COST } else { 2 * COST };
        Duration::from_millis(needs.saturating_sub(self.saved(now)))
    }

    fn take(&mut self, now: u64) {
        *self = Self { saved: self.saved(now).saturating_sub(COST), at: now };
    }
}

struct To {
    /// One connection, for this alone.
    db: Database,
    channel: String,
    sender: [u8; 16],
}

impl Notices {
    /// None where the database, or a pooler before it, has no notifications.
    pub(super) fn new(server: Option<&Server>, tables: &Tables, sender: [u8; 16]) -> Self {
        let others_live = AtomicBool::new(server.is_some());
        let server = server.filter(|server| server.is_postgres() && !tables.pooler);
        let to = server.map(|server| To { db: server.connect(1), channel: channel(tables), sender });
        Self { to, others_live, gathered: Mutex::default(), wake: Notify::new() }
    }

    /// On the writer's task, of what a transaction has stored. [`Revision::LAST`] says of
    /// a job that it was erased, or is further by an unknown number.
    pub(super) fn gather<'a>(&self, stored: impl Iterator<Item = (&'a Rows, &'a Outcome)>) {
        if self.to.is_none() || !self.others_live.load(Ordering::Relaxed) {
            return;
        }
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let Gathered { changes, ends } = &mut *gathered;
        let mut add = |id: JobId, revision: Revision| {
            if changes.len() < GATHERED || changes.contains_key(&id) {
                let newest = changes.entry(id).or_default();
                *newest = (*newest).max(revision);
            }
        };
        for (rows, outcome) in stored {
            match (rows, outcome) {
                (Rows::Insert { job, .. } | Rows::Update { job, .. }, Outcome::Done) => {
                    *ends |= job.ended_at.is_some();
                    if let Some(id) = id(&job.id) {
                        add(id, Revision::from_stored(job.revision));
                    }
                }
                (Rows::Insert { .. }, Outcome::Existing(Existing::Joined(id))) => add(*id, Revision::LAST),
                (Rows::Delete(ids), Outcome::Done) => {
                    ids.iter().filter_map(|bytes| id(bytes)).for_each(|id| add(id, Revision::LAST));
                }
                _ => {}
            }
        }
        let any = !gathered.changes.is_empty();
        drop(gathered);
        if any {
            self.wake.notify_one();
        }
    }

    /// Tells what is stored until the store is closed, and then what was stored last.
    /// What cannot be told is not told again: whoever listens polls, too.
    pub(super) async fn run(&self, closed: CancellationToken) {
        let began = tokio::time::Instant::now();
        let now = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut pace = Pace::new(now());
        let mut wait = None;
        loop {
            let waited = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = closed.cancelled() => break,
                () = waited => {}
                () = self.wake.notified() => {}
            }
            let (any, ends) = {
                let gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
                (!gathered.changes.is_empty(), gathered.ends)
            };
            if !any {
                wait = None;
                continue;
            }
            wait = Some(pace.wait(now(), ends)).filter(|wait| !wait.is_zero());
            if wait.is_some() {
                continue;
            }
            pace.take(now());
            tokio::select! {
                biased;
                () = self.tell() => {}
                () = closed.cancelled() => break,
            }
        }
        let _ = tokio::time::timeout(LAST, self.tell()).await; // a database that is away is not waited for
        if let Some(to) = &self.to {
            let _ = tokio::time::timeout(LAST, to.db.close()).await;
        }
    }

    async fn tell(&self) {
        let gathered = std::mem::take(&mut *self.gathered.lock().unwrap_or_else(PoisonError::into_inner));
        let changes: Vec<_> = gathered.changes.into_iter().collect();
        if let Err(error) = self.notify(&changes).await {
            tracing::debug!(%error, jobs = changes.len(), "other nodes are not notified");
        }
    }

    async fn notify(&self, changes: &[(JobId, Revision)]) -> Result<bool, Error> {
        let Some(To { db, channel, sender }) = &self.to else { return Ok(false) };
        let payload = |changes: &[(JobId, Revision)]| {
            let mut bytes = Vec::with_capacity(16 + changes.len() * 24);
            bytes.extend(sender);
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
            let values = payloads.into_iter().flat_map(|payload| [channel.clone().into(), payload.into()]);
            db.execute_raw(statement(DbBackend::Postgres, format!("SELECT {each}"), values)).await?;
        }
        Ok(true)
    }
}

/// The channel is that of these tables: others in the same database have another.
fn channel(tables: &Tables) -> String {
    let place = format!("{}.{}", tables.schema.as_deref().unwrap_or_default(), tables.prefix);
    let hash = Sha256::digest(place.as_bytes());
    format!("backjob_{}", hex(&hash[..8]))
}

fn id(bytes: &[u8]) -> Option<JobId> {
    Some(JobId::from_bytes(bytes.try_into().ok()?))
}

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
    /// These jobs are that far, or [`Revision::LAST`]: somebody has to look.
    Changes(Vec<(JobId, Revision)>),
    /// The connection was lost and is there again: anything may have been missed.
    Gap,
}

impl Store {
    /// Says whether another node lives: only then it is told what is stored here, and
    /// only then anything can change that this store did not write. Until it is said,
    /// one does wherever one can.
    pub fn set_others_live(&self, live: bool) {
        self.shared.notices.others_live.store(live && self.is_shared(), Ordering::Relaxed);
    }

    /// Whether another node lives, as it was said last.
    pub fn others_live(&self) -> bool {
        self.shared.notices.others_live.load(Ordering::Relaxed)
    }

    /// Tells the other nodes that these jobs changed, all in one statement. False where
    /// the database, or a pooler before it, has no notifications.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: whoever listens has to poll.
    pub async fn notify(&self, changes: &[(JobId, Revision)]) -> Result<bool, Error> {
        self.shared.notices.notify(changes).await
    }

    /// Listens to what other nodes notify of, from now on; none where the database, or
    /// a pooler before it, has no notifications.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn listen(&self) -> Result<Option<Listener>, Error> {
        let (Some(server), Some(to)) = (&self.shared.server, &self.shared.notices.to) else {
            return Ok(None);
        };
        let database = server.connect(1);
        let pool = database.connection().get_postgres_connection_pool();
        let mut listener = PgListener::connect_with(pool).await.map_err(unavailable)?;
        listener.ignore_pool_close_event(true);
        listener.listen(&to.channel).await.map_err(unavailable)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_end_does_not_wait_behind_progress() {
        let (mut pace, mut waited) = (Pace::new(0), 0);
        for now in 0..10_000 {
            if pace.wait(now, false).is_zero() {
                pace.take(now);
                waited = now;
            }
            assert!(now - waited <= 2 * COST, "and progress goes on");
            assert!(pace.wait(now, true).is_zero(), "{now}");
        }
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_twenty(wishes in prop::collection::vec((0..90_u64, any::<bool>()), 1..400)) {
            let (mut pace, mut now, mut taken) = (Pace::new(0), 0, Vec::<u64>::new());
            for (rest, ends) in wishes {
                now += rest;
                now += u64::try_from(pace.wait(now, ends).as_millis()).expect("short");
                prop_assert!(pace.wait(now, ends).is_zero());
                pace.take(now);
                taken.push(now);
            }
            for at in &taken {
                prop_assert!(taken.iter().filter(|other| (*at..at + 1_000).contains(other)).count() <= 20);
            }
        }
    }
}
