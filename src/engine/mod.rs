//! The use cases: start, read, watch, cancel, report; and the loops that carry
//! them on: dispatcher, schedule, timers, flusher, nodes, retention, reseal.
//!
//! Imports the domain, clock, tasks, secret, store, trigger and watch; nothing
//! of any wire. Every change goes load → `Job::apply` → commit → effects:
//!
//! ```text
//!  Start ──insert──▶ store ──committed──▶ dispatcher ──claim──▶ store
//!    └─────── a slot is free: insert and claim at once ──────────▶│ committed
//!  Report ─┐                                                      ▼
//!  timers ─┼─▶ Live (one lock a running job) ◀──outcome── runner ──▶ trigger
//!  Cancel ─┘      │ commit, or flush within flush_interval
//!                 ▼
//!               store ──committed──▶ hub (watchers), dispatcher, schedule
//! ```
//!
//! Invariants:
//! - a final state, a new attempt and a cancel are shown only after their
//!   commit; until then readers are given what was there before;
//! - effects are carried out by the writer's callback, never by the future of
//!   an rpc: a caller that hangs up changes nothing;
//! - one update of a job is under way at a time, compared and set by revision;
//! - waiting jobs live in the store alone: what is kept of them here are hints,
//!   and losing all of them costs latency, never work;
//! - a slot is held until the job and its connection are both done.
//!
//! When the store fails, what was to be committed is kept and tried again once it
//! is back; whoever waits for it is told that it is unavailable and may repeat. The
//! loops rest meanwhile. Progress goes on in memory, and watchers see it.

mod again;
mod alike;
mod attempt;
mod begun;
mod dispatcher;
mod error;
mod explain;
mod feed;
mod flusher;
mod live;
mod nodes;
mod read;
mod recent;
mod recovery;
mod report;
mod reseal;
mod retention;
mod runner;
mod schedule;
mod start;
mod timers;

#[cfg(test)]
mod tests;

pub use crate::store::AttemptRow;
pub use again::Again;
pub use error::Error;
pub use explain::Fact;
pub use read::Filter;
pub use recent::Shown;
pub use report::{Acknowledged, Reporting};
pub use retention::Retention;
pub use start::Started;

use crate::{
    clock::Clock, job::MergePolicy, job::Record, job::draft::Ceilings, job::identity::Allowed,
    secret::Keyring, store::Store, tasks::Tasks, trigger::Trigger, watch::Hub,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, oneshot};

/// How long a caller waits to be told what came of a write on a database that nodes
/// share. Longer than the store needs to find out while that answers.
const KNOWN: Duration = Duration::from_secs(15);

/// Locks are held for a few operations in memory and never across an await; a
/// panic under one leaves data that is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the engine has to know of a target.
#[derive(Debug, Clone)]
pub struct TargetSettings {
    /// Path of its URL.
    pub base_path: String,
    /// Names of headers that callers may set besides, in lower case.
    pub allow_headers: Vec<String>,
    /// Whether it takes a user's credentials.
    pub identity: bool,
    /// Names of cookies that are a user's.
    pub identity_cookies: Vec<String>,
    /// Jobs that run at once, at most.
    pub max_in_flight: usize,
    /// How far apart attempts begin at least, microseconds; none means as they
    /// come.
    pub spacing: Option<u64>,
}

impl TargetSettings {
    fn allowed_identity(&self) -> Allowed<'_> {
        Allowed { identity: self.identity, cookies: &self.identity_cookies }
    }
}

/// How the engine behaves. Spans of jobs in milliseconds.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this node.
    pub node: Arc<str>,
    /// Where other nodes reach this one.
    pub advertise: Option<String>,
    /// How long a node may be silent until it is taken for dead.
    pub lease: Duration,
    /// Longest that progress is kept in memory alone.
    pub flush_interval: Duration,
    /// How long a connection may live after a final report.
    pub linger: Duration,
    /// Default of `error_timeout`.
    pub error_timeout: u64,
    /// Silence of a plain action; none is without bound.
    pub response_timeout: Option<u64>,
    /// Default of `max_duration`.
    pub max_duration: Option<u64>,
    /// From a cancel to the end of a running job.
    pub cancel_grace: u64,
    /// Default of `expire_after`.
    pub expire_after: Option<u64>,
    /// The longest spans that a Start may ask for.
    pub ceilings: Ceilings,
    /// Default of `merge_policy`.
    pub merge_policy: MergePolicy,
    /// Jobs that may wait, at most.
    pub max_pending: u64,
    /// How long ended jobs are kept.
    pub retention: Retention,
    /// Memory for states that callers were shown lately, bytes; 0 for none.
    pub cache: usize,
    /// Targets by name.
    pub targets: BTreeMap<String, TargetSettings>,
}

/// What the engine is made of.
pub struct Parts {
    /// Where jobs are kept.
    pub store: Store,
    /// Who calls the application.
    pub trigger: Arc<dyn Trigger>,
    /// Time and chance.
    pub clock: Arc<dyn Clock>,
    /// Who spawns.
    pub tasks: Tasks,
    /// The root keys.
    pub keys: Arc<Keyring>,
}

/// The use cases over one store.
pub struct Engine {
    store: Store,
    trigger: Arc<dyn Trigger>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    keys: Arc<Keyring>,
    settings: Settings,
    hub: Arc<Hub<Record>>,
    live: live::Map,
    recent: recent::Recent,
    alike: alike::Alike,
    beginning: begun::Beginning,
    dispatcher: dispatcher::Dispatcher,
    schedule: schedule::Schedule,
    timers: timers::Timers,
    flusher: flusher::Flusher,
    nodes: nodes::Nodes,
    feed: feed::Feed,
    draining: AtomicBool,
    /// Told when the store fails or is back.
    store_changed: Notify,
    /// Jobs that wait.
    pending: AtomicU64,
}

impl Engine {
    /// Takes over what an earlier process left, and begins to work.
    ///
    /// # Errors
    /// If the store cannot be read or written, or a node of this name lives.
    pub async fn begin(parts: Parts, settings: Settings) -> Result<Arc<Self>, Error> {
        let Parts { store, trigger, clock, tasks, keys } = parts;
        let engine = Arc::new(Self {
            dispatcher: dispatcher::Dispatcher::new(&settings.targets),
            schedule: schedule::Schedule::default(),
            timers: timers::Timers::default(),
            flusher: flusher::Flusher::default(),
            feed: feed::Feed::default(),
            live: live::Map::default(),
            // Where others write too, a row may change unnoticed.
            recent: recent::Recent::new(settings.cache, !store.is_shared()),
            alike: alike::Alike::default(),
            beginning: begun::Beginning::default(),
            nodes: nodes::Nodes::new(settings.lease),
            hub: Arc::default(),
            draining: AtomicBool::new(false),
            store_changed: Notify::new(),
            pending: AtomicU64::new(0),
            store,
            trigger,
            clock,
            tasks,
            keys,
            settings,
        });
        if engine.store.is_shared() {
            engine.join_nodes().await?;
        }
        engine.adopt_running().await?;
        engine.pending.store(engine.store.waiting().await?, Ordering::Release);
        if engine.store.is_shared() {
            engine.tasks.spawn("waiting", Arc::clone(&engine).run_count_of_waiting());
            engine.tasks.spawn("nodes", Arc::clone(&engine).run_nodes());
            engine.tasks.spawn("feed", Arc::clone(&engine).run_feed());
            engine.tasks.spawn("feed ears", Arc::clone(&engine).run_feed_ears());
        }
        engine.tasks.spawn("timers", Arc::clone(&engine).run_timers());
        engine.tasks.spawn("schedule", Arc::clone(&engine).run_schedule());
        engine.tasks.spawn("health", Arc::clone(&engine).run_health());
        engine.tasks.spawn("dispatcher", Arc::clone(&engine).run_dispatcher());
        engine.tasks.spawn("retention", Arc::clone(&engine).run_retention());
        engine.tasks.spawn("reseal", Arc::clone(&engine).run_reseal());
        engine.tasks.spawn("flusher", Arc::clone(&engine).run_flusher());
        Ok(engine)
    }

    /// Whether other nodes may share the database.
    pub fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    /// Whether new work is taken.
    pub fn healthy(&self) -> bool {
        !self.is_draining() && self.store.healthy() && !self.nodes.lacks_root()
    }

    /// Returns once the store can be used; false if the end came first.
    async fn store_is_back(&self) -> bool {
        loop {
            let changed = self.store_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.store.healthy() {
                return true;
            }
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return false,
                () = changed => {}
            }
        }
    }

    /// What came of a write. On a database that nodes share that may take as long as it
    /// is away: who waits is told, as of any call that broke off, that it is not known.
    async fn told<T>(&self, done: oneshot::Receiver<T>) -> Result<T, Error> {
        let told = async { done.await.map_err(|_| Error::Draining) };
        if !self.store.is_shared() {
            return told.await;
        }
        let unknown = || Error::Unavailable("whether it was stored is not known yet".into());
        tokio::time::timeout(KNOWN, told).await.unwrap_or_else(|_| Err(unknown()))
    }

    /// Tells all who wait for the store, in the order in which they came. A watch
    /// wakes in no order, and a schedule of the simulation must go the same way each
    /// time: so here is its only reader.
    async fn run_health(self: Arc<Self>) {
        let mut health = self.store.health();
        loop {
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return,
                changed = health.changed() => match changed {
                    Ok(()) => self.store_changed.notify_waiters(),
                    Err(_) => return, // the store is closed
                },
            }
        }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// First phase of the end: nothing new is started or claimed, watchers are
    /// sent away, reports are still taken.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.hub.close();
        self.dispatcher.wake();
    }

    /// Waits until no attempt has a connection to its action.
    pub async fn drained(&self) {
        self.dispatcher.connections.closed_all().await;
    }

    /// Second phase: what is in memory reaches the tables, then they are closed.
    /// Tasks must have ended.
    pub async fn close(self: &Arc<Self>) {
        self.flush_all().await;
        self.store.close().await;
    }

    /// How many jobs run under this engine.
    pub fn running(&self) -> usize {
        self.live.len()
    }

    /// How many jobs wait.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Acquire)
    }

    /// Other nodes start and claim jobs too: how many wait is read again each second,
    /// and is as old as that at most. So `max_pending` is one limit for all nodes
    /// together, give or take what they start within a second.
    async fn run_count_of_waiting(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
            }
            match self.store.waiting().await {
                Ok(waiting) => self.pending.store(waiting, Ordering::Release),
                Err(error) => tracing::debug!(%error, "waiting jobs cannot be counted now"),
            }
        }
    }

    /// One more job waits; false if that would be one too many.
    fn one_more_waits(&self) -> bool {
        let most = self.settings.max_pending;
        let more = |waiting| (waiting < most).then_some(waiting + 1);
        self.pending.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// One job less waits.
    fn one_less_waits(&self) {
        // It may have been counted anew since it was added.
        let less = |waiting: u64| Some(waiting.saturating_sub(1));
        let _ = self.pending.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// How many watches are open.
    pub fn watchers(&self) -> usize {
        self.hub.watchers()
    }
}
