//! The writer: the one task that writes.
//!
//! ```text
//!   Permit::write ──▶ queue (bounded) ──▶ gather ──▶ one transaction ──▶ done, each
//!                                           ▲                │ refused
//!                                           └── each alone ◀─┘
//! ```
//!
//! While a transaction commits, writes gather in the queue; the next one takes
//! all of them, up to `batch`. An idle writer begins at once.

use super::{
    Error,
    commit::commit,
    database::Database,
    health::{Health, Reader},
    joinable::Joinable,
    notice::Notices,
    postgres,
    shared::{self, Mark},
    sqlite,
    write::{Done, Outcome, Rows},
};
use crate::{
    clock::Clock,
    job::{JobId, OfIds},
    secret::RootId,
};
use sea_orm::{ConnectionTrait as _, DbErr, RuntimeErr};
use std::{
    collections::{HashSet, VecDeque},
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often an idle writer tries whether a database that failed is back.
pub(super) const PROBE: Duration = Duration::from_secs(1);
/// A transaction that takes longer than this is told as a fault.
const STUCK: Duration = Duration::from_secs(5);

/// A write on its way; in a box, as it is handed on a few times.
pub(super) struct Item {
    pub id: JobId,
    pub rows: Rows,
    pub done: Done,
}

/// The writes of one transaction, and who is told of each.
struct Set {
    rows: Vec<Rows>,
    to: Vec<(JobId, Done)>,
}

impl Set {
    fn of(writes: usize) -> Self {
        Self { rows: Vec::with_capacity(writes), to: Vec::with_capacity(writes) }
    }
}

/// Bytes in a transaction of more than one write: what is written is held in
/// memory more than once while it is handed to the database.
const MOST_BYTES: usize = 8 << 20;

/// What the writer's task owns.
pub(super) struct Writer {
    /// For all that is not written otherwise.
    pub db: Database,
    /// On SQLite: what is written most goes to it there.
    pub kept: Option<sqlite::Kept>,
    /// On SQLite, which jobs identical Starts may join; elsewhere an index says so.
    pub joinable: Option<Joinable>,
    /// On PostgreSQL, where a transaction may be one statement.
    pub at_once: Option<postgres::Kept>,
    /// Whether `db` is an SQLite file.
    pub on_file: bool,
    /// For the probe.
    pub reader: Reader,
    /// A transaction failed on `db`, which is opened again before the next one.
    pub worn: bool,
    /// Stands in for `db` in a simulation.
    #[cfg(test)]
    pub model: Option<super::model::Model>,
    pub queue: mpsc::Receiver<Box<Item>>,
    /// Most writes in a transaction.
    pub batch: usize,
    /// How many the last transaction had.
    pub answered: usize,
    /// Whether a server is given the next transaction before those of the last are told.
    /// Of several threads others tell meanwhile, and it would only make transactions
    /// smaller.
    pub ahead: bool,
    pub health: Arc<Health>,
    /// Fires when nothing more is taken.
    pub closing: CancellationToken,
    pub clock: Arc<dyn Clock>,
    /// The root that is sealed with.
    pub root: RootId,
    /// Whether the tables name it.
    pub root_known: bool,
    /// Tells other nodes what is stored.
    pub notices: Arc<Notices>,
    /// The last transaction, where other nodes write too.
    pub mark: Option<Mark>,
}

impl Writer {
    /// Runs until the store is closed, or nobody can write any more, and all
    /// that was taken is written.
    pub(super) async fn run(&mut self) {
        // What was taken, in order; an id may stand in it more than once.
        let mut taken: VecDeque<Box<Item>> = VecDeque::new();
        while self.gather(&mut taken).await {
            let mut told = Told::default();
            loop {
                let set = self.distinct(&mut taken);
                self.answered = set.rows.len();
                // So that the server works while those of the last are answered.
                told = first(self.write(set), || told.tell()).await;
                if !self.is_enough(&mut taken) {
                    break;
                }
            }
            // Who was just told may have more to write: let it join the next
            // transaction instead of the one after. What follows a single write, the
            // claim after a Start, is written at once, and so is as much as was written;
            // half as much where callers came again while others were still told.
            let mut turns = if self.answered > 1 { TURNS } else { 0 };
            let enough = self.answered.div_ceil(if told.in_parts { 2 } else { 1 });
            told.tell_in_turns().await;
            while turns > 0 && self.queue.len() + taken.len() < enough {
                tokio::task::yield_now().await;
                turns -= 1;
            }
        }
        if let Some(kept) = &mut self.kept {
            kept.close().await;
        }
        self.at_once = None;
    }

    /// Waits for something to write and takes all there is; false at the end.
    async fn gather(&mut self, taken: &mut VecDeque<Box<Item>>) -> bool {
        if self.closing.is_cancelled() {
            // Here too: a queue that is never empty must not keep it open.
            self.queue.close();
        }
        while taken.is_empty() {
            let healthy = self.health.is_good();
            let (closing, health) = (self.closing.clone(), Arc::clone(&self.health));
            tokio::select! {
                biased;
                item = self.queue.recv() => match item {
                    Some(item) => taken.push_back(item),
                    None => return false,
                },
                // Closed, `recv` yields what is left, then nothing.
                () = closing.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                () = tokio::time::sleep(PROBE), if !healthy => self.probe().await,
                () = health.worse(), if healthy => {} // a read failed: from now on it is tried
            }
        }
        self.take(taken);
        true
    }

    /// Takes all there is, without waiting.
    fn take(&mut self, taken: &mut VecDeque<Box<Item>>) {
        // Beyond one batch only what had to wait for the job's earlier writes.
        while taken.len() < self.batch.saturating_mul(2) {
            match self.queue.try_recv() {
                Ok(item) => taken.push_back(item),
                Err(_) => break,
            }
        }
    }

    /// Takes what came meanwhile; whether that is enough for a transaction that is sent
    /// before those of the last are told.
    fn is_enough(&mut self, taken: &mut VecDeque<Box<Item>>) -> bool {
        if !self.ahead || self.closing.is_cancelled() {
            return false;
        }
        self.take(taken);
        taken.len() >= SMALL
    }

    /// The first `batch` writes with an id each, up to [`MOST_BYTES`]; later ones
    /// of the same id stay.
    fn distinct(&self, taken: &mut VecDeque<Box<Item>>) -> Set {
        let most = if self.mark.is_some() { half(taken.len() + self.answered) } else { usize::MAX };
        let most = most.min(self.batch);
        let mut ids = HashSet::with_capacity_and_hasher(taken.len(), OfIds::default());
        let mut set = Set::of(taken.len().min(most));
        let mut rest = VecDeque::new();
        let (mut bytes, mut full) = (0, false);
        for item in taken.drain(..) {
            // Once it is full all the rest stays, so that no write overtakes one
            // of its job; an id that stayed is among `ids`, for the same reason.
            full |= set.rows.len() >= most || (bytes > 0 && bytes + item.rows.bytes() > MOST_BYTES);
            if !full && ids.insert(item.id) {
                bytes += item.rows.bytes();
                let Item { id, rows, done } = *item;
                set.rows.push(rows);
                set.to.push((id, done));
            } else {
                rest.push_back(item);
            }
        }
        *taken = rest;
        set
    }

    /// What came of each.
    async fn write(&mut self, set: Set) -> Told {
        let Set { mut rows, to } = set;
        match self.commit(&mut rows).await {
            Ok(outcomes) => {
                self.notices.gather(rows.iter().zip(&outcomes));
                // In a transaction new jobs and joins come before changes: so are they
                // told, that the end of a job is shown with all who joined it.
                let starts = rows.iter().map(|rows| matches!(rows, Rows::Insert { .. }));
                let told = to.into_iter().zip(outcomes).zip(starts);
                let (first, then): (Vec<_>, Vec<_>) = told.partition(|(_, starts)| *starts);
                let told = first.into_iter().chain(then).map(|((to, outcome), _)| (to, Ok(outcome)));
                // Measured on SQLite alone.
                Told { results: told.collect(), in_parts: self.mark.is_none() && mostly_answers(&rows) }
            }
            Err(Error::Refused(_)) if rows.len() > 1 => {
                for (rows, to) in rows.into_iter().zip(to) {
                    let mut rows = vec![rows];
                    let result = self.commit(&mut rows).await.map(|outcomes| outcomes[0]);
                    self.notices.gather(rows.iter().zip(&result));
                    tell(to, result); // at once: the next may take as long
                }
                Told::default()
            }
            Err(error) => {
                let results = to.into_iter().map(|to| (to, Err(error.clone()))).collect();
                Told { results, ..Told::default() }
            }
        }
    }

    async fn commit(&mut self, rows: &mut Vec<Rows>) -> Result<Vec<Outcome>, Error> {
        #[cfg(test)]
        if let Some(model) = &self.model {
            let result = model.commit(rows).await;
            self.heal(result.as_ref().err());
            return result;
        }
        if let Some(mark) = self.mark {
            let health = Arc::clone(&self.health);
            let result = watched(&health, Box::pin(self.commit_shared(rows, mark))).await;
            self.heal(result.as_ref().err());
            return result;
        }
        if let Some(damage) = self.health.damage() {
            return Err(damage);
        }
        let health = Arc::clone(&self.health);
        if let Err(error) = watched(&health, self.ready()).await {
            self.heal(Some(&error));
            return Err(error);
        }
        let result = self.commit_alone(rows).await;
        if let Some(joinable) = &mut self.joinable {
            match &result {
                Ok(outcomes) => joinable.follow(rows.iter().zip(outcomes.iter().copied())),
                Err(_) => joinable.doubt(rows),
            }
        }
        self.heal(result.as_ref().err());
        result
    }

    /// Makes good what a transaction that failed left behind.
    async fn ready(&mut self) -> Result<(), Error> {
        self.renew().await?;
        match &mut self.joinable {
            Some(joinable) if joinable.is_in_doubt() => joinable.settle(&self.db).await.map_err(Error::from),
            _ => Ok(()),
        }
    }

    /// Where nobody else writes.
    async fn commit_alone(&mut self, rows: &mut Vec<Rows>) -> Result<Vec<Outcome>, Error> {
        let may_join = self.joinable.as_ref().is_some_and(|joinable| joinable.finds(rows));
        if let Some(kept) = self.kept.as_mut().filter(|_| self.root_known && !may_join) {
            match watched(&self.health, kept.write(rows)).await {
                Some(sqlite::Written::Done(outcomes)) => return Ok(outcomes),
                Some(sqlite::Written::Failed(error)) => return Err(error),
                Some(sqlite::Written::Otherwise) | None => {}
            }
        }
        let root = (!self.root_known).then(|| (self.root, self.clock.wall()));
        let work = Box::pin(commit(&self.db, rows, self.joinable.as_ref(), root, None));
        let outcomes = watched(&self.health, work).await?;
        let made = |(rows, outcome): (&Rows, &Outcome)| {
            matches!(rows, Rows::Insert { .. }) && *outcome == Outcome::Done
        };
        self.root_known |= rows.iter().zip(&outcomes).any(made);
        Ok(outcomes)
    }

    /// A write that changes nothing but reaches the disk, and a read.
    async fn probe(&mut self) {
        #[cfg(test)]
        if let Some(model) = &self.model {
            let error = model.probe().await.err();
            return self.heal(error.as_ref());
        }
        if self.health.damage().is_some() {
            return; // the check of the file finds out
        }
        let health = Arc::clone(&self.health);
        let renewed = watched(&health, self.renew()).await;
        let result = match (self.mark, renewed) {
            (Some(mark), _) => shared::probe(&self.db, mark).await.map_err(Error::from),
            (None, Ok(())) => {
                let probe = self.db.execute_unprepared("PRAGMA user_version = 0");
                match (watched(&self.health, probe).await, &mut self.kept) {
                    (Ok(_), Some(kept)) => watched(&self.health, kept.ready()).await,
                    (probed, _) => probed.map(drop).map_err(Error::from),
                }
            }
            (None, Err(error)) => Err(error),
        };
        self.heal(result.err().as_ref());
        if self.on_file {
            // What comes of it is noted by the reader.
            let _ = self.reader.execute_unprepared("SELECT count(*) FROM sqlite_master").await;
        }
    }

    /// Closes the connection to a file if a transaction failed on it; the pool opens
    /// another.
    ///
    /// SQLite rolls back by itself where a commit meets a full disk or a fault of
    /// it. The driver, which counts how deep it is in transactions, does not learn
    /// of that: what it begins next is a savepoint, and one within another, the end
    /// of which is no commit. So nothing may be acknowledged on such a connection.
    async fn renew(&mut self) -> Result<(), Error> {
        if !self.worn || !self.on_file {
            return Ok(());
        }
        if let Some(kept) = &mut self.kept {
            kept.close().await;
        }
        let worn = self.db.connection().get_sqlite_connection_pool().acquire().await;
        let fails = |error: sqlx::Error| DbErr::Conn(RuntimeErr::SqlxError(error.into()));
        // What it held is rolled back already, or is with it.
        let _ = worn.map_err(fails)?.close().await;
        self.worn = false;
        Ok(())
    }

    pub(super) fn heal(&mut self, error: Option<&Error>) {
        self.worn |= error.is_some();
        self.health.wrote(error);
    }
}

/// How often all others have a turn before what they write next is written: a turn where
/// nobody has anything to do takes a microsecond or two.
const TURNS: u32 = 8;
/// A transaction smaller than this costs a server more than it gains, and is not told in
/// parts either.
const SMALL: usize = 16;

/// How many of those who write, the ones that were just answered among them, are taken
/// at once. A server works by itself: while it writes for one half, the other half is
/// answered and comes again, instead of all of them waiting for it and it for them.
fn half(writing: usize) -> usize {
    writing.div_ceil(2).max(SMALL)
}

/// Whether nearly all that follows these is an answer to a caller: they are Starts of
/// jobs that wait. Jobs that begin or end send and free more than that, and telling of
/// them apart costs more than it gains.
fn mostly_answers(rows: &[Rows]) -> bool {
    let waits = rows.iter().filter(|rows| matches!(rows, Rows::Insert { attempt: None, .. })).count();
    waits >= SMALL && waits * 4 >= rows.len() * 3
}

/// Answers that are told in parts are told in so many.
const PARTS: usize = 3;

/// What came of writes, still to be told to those who handed them in.
#[derive(Default)]
struct Told {
    results: Vec<((JobId, Done), Result<Outcome, Error>)>,
    /// Whether those who were told first go on before the rest is told: callers work on
    /// their answers, and come again, while the others' are still being made.
    in_parts: bool,
}

impl Told {
    fn tell(self) {
        self.results.into_iter().for_each(|(to, result)| tell(to, result));
    }

    async fn tell_in_turns(self) {
        let part = if self.in_parts { self.results.len().div_ceil(PARTS) } else { usize::MAX };
        for (place, (to, result)) in self.results.into_iter().enumerate() {
            if place > 0 && place % part == 0 {
                tokio::task::yield_now().await;
            }
            tell(to, result);
        }
    }
}

/// Begins `work`, then does `meanwhile`, then waits for the work.
async fn first<T>(work: impl Future<Output = T>, meanwhile: impl FnOnce()) -> T {
    let mut work = pin!(work);
    let mut meanwhile = Some(meanwhile);
    poll_fn(|context| {
        let polled = work.as_mut().poll(context);
        if let Some(meanwhile) = meanwhile.take() {
            meanwhile();
        }
        polled
    })
    .await
}

/// Says so if it takes long, and waits on.
async fn watched<T>(health: &Health, transaction: impl Future<Output = T>) -> T {
    tokio::pin!(transaction);
    match tokio::time::timeout(STUCK, &mut transaction).await {
        Ok(done) => done,
        Err(_) => {
            health.stuck(STUCK.as_secs());
            transaction.await
        }
    }
}

/// Nothing of it is stored.
pub(super) fn refuse(item: Item, error: &Error) {
    tell((item.id, item.done), Err(error.clone()));
}

/// One that panics must not take the writes of all others with it.
fn tell((id, done): (JobId, Done), result: Result<Outcome, Error>) {
    if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
        tracing::error!(%id, "what follows a write panicked");
    }
}
