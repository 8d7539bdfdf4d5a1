//! The world around the engine: time, chance, the disk, and the processes that
//! come and go over it.

use super::{
    ledger::Ledger,
    plan::{Plan, Random},
};
use crate::{
    clock::Clock,
    engine::{Engine, Error, Parts, Settings},
    secret::Keyring,
    store::{self, Store, model::Disk},
    tasks::Tasks,
};
use std::{
    future::Future,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

pub(super) use crate::engine::lock;

/// Where the wall clock stands when a schedule begins.
pub(super) const NOW: i64 = 1_700_000_000_000;

/// Far more than a schedule takes.
const MOST_DRAWS: u64 = 300_000;

pub(super) struct World {
    pub(super) plan: Plan,
    random: Mutex<Random>,
    /// How often chance was asked.
    draws: AtomicU64,
    /// More often than any schedule should.
    pub(super) stuck: CancellationToken,
    began: Instant,
    /// From when on the wall clock was off by how much.
    offsets: Mutex<Vec<(u64, i64)>>,
    pub(super) disk: Disk,
    pub(super) ledger: Mutex<Ledger>,
    life: Mutex<Option<Arc<Life>>>,
    up: Notify,
    /// Callers, watchers and actions: they outlive every process.
    pub(super) tasks: Tasks,
    trace: Mutex<Vec<String>>,
    pub(super) faults: Mutex<Vec<String>>,
    /// Nothing goes wrong any more.
    calm: AtomicBool,
    keys: Arc<Keyring>,
}

/// One process.
pub(super) struct Life {
    pub(super) number: u32,
    pub(super) began: u64,
    engine: Mutex<Option<Arc<Engine>>>,
    /// Fires when it is dead, or gone.
    pub(super) over: CancellationToken,
    tasks: Tasks,
    store_tasks: Tasks,
    /// The database fails until then.
    pub(super) failing_until: Mutex<u64>,
    /// Whether the last transaction failed: the engine rests until one succeeds.
    pub(super) ails: AtomicBool,
}

impl Life {
    fn engine(&self) -> Option<Arc<Engine>> {
        lock(&self.engine).clone()
    }
}

/// The clocks of one process.
struct SimClock {
    world: Arc<World>,
    since: u64,
}

impl Clock for SimClock {
    fn wall(&self) -> i64 {
        self.world.wall()
    }

    fn mono(&self) -> u64 {
        self.world.now() - self.since
    }

    fn random(&self, bytes: &mut [u8]) {
        self.world.chance(|random| random.fill(bytes));
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        static KEYS: OnceLock<Arc<Keyring>> = OnceLock::new();
        let keys = KEYS.get_or_init(|| Arc::new(Keyring::parse(&"A".repeat(43)).expect("a key")));
        let world = Self {
            random: Mutex::new(random),
            draws: AtomicU64::new(0),
            stuck: CancellationToken::new(),
            began: Instant::now(),
            offsets: Mutex::new(vec![(0, 0)]),
            disk: Disk::default(),
            ledger: Mutex::default(),
            life: Mutex::default(),
            up: Notify::new(),
            tasks: Tasks::default(),
            trace: Mutex::default(),
            faults: Mutex::default(),
            calm: AtomicBool::new(false),
            keys: Arc::clone(keys),
            plan,
        };
        world.note(|| format!("{:?}", world.plan));
        Arc::new(world)
    }

    /// Milliseconds since the schedule began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).expect("short")
    }

    /// UTC milliseconds.
    pub(super) fn wall(&self) -> i64 {
        let offset = lock(&self.offsets).last().map_or(0, |(_, offset)| *offset);
        NOW + self.now().cast_signed() + offset
    }

    /// The highest that the wall clock stood at since `since`.
    pub(super) fn highest_wall(&self, since: u64) -> i64 {
        let offsets = lock(&self.offsets);
        let ends = offsets.iter().skip(1).map(|(from, _)| *from).chain([self.now()]);
        let spans = offsets.iter().zip(ends).filter(|(_, end)| *end >= since);
        spans.map(|((_, offset), end)| NOW + end.cast_signed() + offset).max().unwrap_or(NOW)
    }

    /// Whether the wall clock was set since then.
    pub(super) fn was_set(&self, since: u64) -> bool {
        lock(&self.offsets).last().is_some_and(|(at, _)| *at >= since && *at > 0)
    }

    /// Sets the wall clock.
    pub(super) fn set(&self, offset: i64) {
        self.note(|| format!("the wall clock is off by {offset} ms"));
        lock(&self.offsets).push((self.now(), offset));
    }

    /// The offset at which nothing that was ever due lies ahead.
    pub(super) fn highest_offset(&self) -> i64 {
        lock(&self.offsets).iter().map(|(_, offset)| *offset).max().unwrap_or(0)
    }

    pub(super) fn chance<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        if self.draws.fetch_add(1, Ordering::Relaxed) == MOST_DRAWS {
            self.stuck.cancel();
        }
        draw(&mut lock(&self.random))
    }

    pub(super) fn below(&self, limit: u64) -> u64 {
        self.chance(|random| random.below(limit))
    }

    /// So many times in a thousand.
    pub(super) fn rarely(&self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1_000) < per_mille
    }

    pub(super) async fn sleep(&self, limit: u64) {
        let span = self.below(limit.max(1));
        tokio::time::sleep(Duration::from_millis(span)).await;
    }

    /// A line of the schedule.
    pub(super) fn note(&self, line: impl FnOnce() -> String) {
        let line = format!("{:>8} {}", self.now(), line());
        lock(&self.trace).push(line);
    }

    pub(super) fn trace(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.trace))
    }

    /// Something that must not be.
    pub(super) fn fault(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(|| format!("FAULT {what}"));
        lock(&self.faults).push(what);
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Acquire)
    }

    pub(super) fn calm_down(&self) {
        self.note(|| "from now on nothing goes wrong".into());
        self.calm.store(true, Ordering::Release);
        lock(&self.ledger).trouble(self.now());
        if let Some(life) = &*lock(&self.life) {
            *lock(&life.failing_until) = 0;
        }
    }

    /// A process begins over what is on the disk. None if it died on the way.
    pub(super) async fn begin(self: &Arc<Self>, number: u32) -> Option<Arc<Life>> {
        let began = self.now();
        self.note(|| format!("process {number} begins"));
        let life = Arc::new(Life {
            number,
            began,
            engine: Mutex::default(),
            over: CancellationToken::new(),
            tasks: Tasks::default(),
            store_tasks: Tasks::default(),
            failing_until: Mutex::new(0),
            ails: AtomicBool::new(false),
        });
        let clock = Arc::new(SimClock { world: Arc::clone(self), since: began });
        let fated = super::fate::Fated { world: Arc::clone(self), life: Arc::clone(&life) };
        let options = store::Options {
            url: String::new(),
            tables: Default::default(),
            migrate: false,
            node: "here".into(),
            keys: Arc::clone(&self.keys),
            queue: self.plan.queue,
            batch: self.plan.batch,
            page_cache: 0,
        };
        let store = Store::simulated(
            &self.disk,
            Arc::new(fated),
            options,
            Arc::clone(&clock) as _,
            &life.store_tasks,
        );
        let trigger =
            Arc::new(super::application::Scripted { world: Arc::clone(self), life: Arc::clone(&life) });
        let parts = Parts { store, trigger, clock, tasks: life.tasks.clone(), keys: Arc::clone(&self.keys) };
        let begun = tokio::select! {
            biased;
            () = life.over.cancelled() => return None,
            begun = Engine::begin(parts, self.settings()) => begun,
        };
        match begun {
            Ok(engine) => {
                self.note(|| format!("process {number} serves"));
                lock(&self.ledger).trouble(self.now());
                *lock(&life.engine) = Some(engine);
                *lock(&self.life) = Some(Arc::clone(&life));
                self.up.notify_waiters();
                Some(life)
            }
            Err(error) => {
                if !matches!(error, Error::Unavailable(_)) && !is_refusal(&error) {
                    self.fault(format!("process {number} does not begin: {error}"));
                }
                self.crash(&life, "it could not begin");
                None
            }
        }
    }

    fn settings(&self) -> Settings {
        self.plan.settings()
    }

    /// kill -9: nothing of the process goes on, and nothing in memory is left.
    pub(super) fn crash(&self, life: &Arc<Life>, why: &'static str) {
        if life.over.is_cancelled() {
            return;
        }
        self.note(|| format!("process {} dies: {why}", life.number));
        *lock(&self.ledger).count.deaths.entry(why).or_default() += 1;
        self.gone(life);
        life.tasks.kill();
        life.store_tasks.kill();
    }

    fn gone(&self, life: &Arc<Life>) {
        let mut present = lock(&self.life);
        if present.as_ref().is_some_and(|present| Arc::ptr_eq(present, life)) {
            *present = None;
        }
        drop(present);
        lock(&life.engine).take();
        lock(&self.ledger).process_ended(self.now());
        life.over.cancel();
    }

    /// Dies here, perhaps: whoever waits for this waits for ever then.
    pub(super) async fn may_die(&self, life: &Arc<Life>, per_mille: u64, why: &'static str) {
        if !self.is_calm() && self.rarely(per_mille) {
            self.crash(life, why);
            std::future::pending::<()>().await;
        }
    }

    /// SIGTERM, as `app.rs` does it.
    pub(super) async fn stop(&self, life: &Arc<Life>) {
        let Some(engine) = life.engine() else { return };
        self.note(|| format!("process {} drains", life.number));
        lock(&self.ledger).trouble(self.now());
        engine.drain();
        let stopped = async {
            let first = Duration::from_millis(self.chance(|random| random.below(3_000)));
            let _ = tokio::time::timeout(first, engine.drained()).await;
            let tasks = life.tasks.shut_down(Duration::from_secs(5)).await;
            // Its callers are cut off.
            self.note(|| format!("process {} closes", life.number));
            engine.close().await;
            (tasks, life.store_tasks.shut_down(Duration::from_secs(1)).await)
        };
        let stopped = tokio::select! {
            biased;
            () = life.over.cancelled() => return, // it died meanwhile
            stopped = stopped => stopped,
        };
        self.note(|| format!("process {} is gone", life.number));
        if let (Err(left), _) | (_, Err(left)) = stopped
            && self.is_calm()
        {
            self.fault(format!("tasks that did not end: {left:?}"));
        }
        self.gone(life);
        life.tasks.kill();
        life.store_tasks.kill();
        // What was called from outside is dropped by those who called.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let held = Arc::strong_count(&engine);
        if self.is_calm() && self.tasks.running().is_empty() && held > 1 {
            self.fault(format!("the engine is held by {} others after its end", held - 1));
        }
    }

    pub(super) fn present(&self) -> Option<Arc<Life>> {
        lock(&self.life).clone()
    }

    pub(super) fn engine(&self) -> Option<Arc<Engine>> {
        self.present()?.engine()
    }

    /// The process that serves, once there is one.
    pub(super) async fn life(&self) -> (Arc<Life>, Arc<Engine>) {
        loop {
            let up = self.up.notified();
            tokio::pin!(up);
            up.as_mut().enable();
            if let Some(life) = self.present()
                && let Some(engine) = life.engine()
            {
                return (life, engine);
            }
            up.await;
        }
    }

    /// Calls the present process. None if nobody knows what came of it: it died,
    /// or the caller hung up.
    pub(super) async fn call<T, F, Fut>(&self, call: F) -> Option<Result<T, Error>>
    where
        F: FnOnce(Arc<Engine>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let (life, engine) = self.life().await;
        let hang_up = if self.rarely(self.plan.hang_ups) { self.below(40) } else { 60_000 };
        tokio::select! {
            biased;
            () = life.over.cancelled() => None,
            answer = call(engine) => Some(answer),
            () = tokio::time::sleep(Duration::from_millis(hang_up)) => {
                if hang_up == 60_000 {
                    self.fault("a call had no answer within a minute");
                }
                None
            }
        }
    }

    /// Calls until there is an answer that counts; and how many earlier tries may
    /// have counted, too.
    pub(super) async fn insist<T, F, Fut>(&self, call: F) -> (Result<T, Error>, u32)
    where
        F: Fn(Arc<Engine>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let mut unknown = 0;
        loop {
            match self.call(&call).await {
                None | Some(Err(Error::Unavailable(_) | Error::Draining)) => unknown += 1,
                Some(Err(error)) if is_refusal(&error) => unknown += 1,
                Some(answer) => return (answer, unknown),
            }
            self.sleep(200).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// What the simulated database refuses by chance.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Internal(message) if message.contains(super::fate::REFUSED))
}
