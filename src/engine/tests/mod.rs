//! A seeded simulation of the engine.
//!
//! Everything outside is simulated: time, chance, the application, the disk and
//! the processes; inside are the real engine, hub, writer and rows. One thread,
//! tokio's paused clock and one source of chance: a seed goes the same way each
//! time. A schedule has callers, watchers and actions of every kind over
//! processes that die at every boundary, a database that fails, and a wall clock
//! that is set; then the trouble stops, and all must come to its end.
//!
//! ```text
//!   callers ──┐                         ┌── audit.rs  (each transaction)
//!   watchers ─┼──▶ Engine ──▶ Store ──▶ model.rs: tables ──▶ survive a crash
//!   actions ──┘      │                  └── fate.rs   (slow, fails, dies)
//!      ▲             ▼
//!      └─────── application.rs (Trigger)     ledger.rs: acknowledged, shown
//! ```
//!
//! `BACKJOB_SIM_SEEDS` says how many schedules (200), `BACKJOB_SIM_SEED` replays
//! one and prints it. `BACKJOB_SIM_TWICE` says how many are run twice and compared
//! line by line (25).

mod application;
mod audit;
mod callers;
mod fate;
mod ledger;
mod plan;
mod watchers;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};
use world::{World, lock};

/// Default of the silence after which an attempt is given up, milliseconds.
const ERROR_TIMEOUT: u64 = 4_000;
/// Everything has ended that long after the trouble, milliseconds.
const END: u64 = 900_000;

/// Real time that no schedule takes.
const HANGS: Duration = Duration::from_secs(30);

/// What came of a schedule.
struct Told {
    faults: Vec<String>,
    trace: Vec<String>,
    count: ledger::Count,
}

fn simulate(seed: u64) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let world = World::new(seed);
        tokio::select! {
            biased;
            () = world.stuck.cancelled() => world.fault("it does not come to an end"),
            () = schedule(&world) => {}
        }
        let faults = std::mem::take(&mut *lock(&world.faults));
        let count = lock(&world.ledger).count.clone();
        Told { faults, trace: world.trace(), count }
    })
}

async fn schedule(world: &Arc<World>) {
    for number in 0..world.plan.callers {
        world.tasks.spawn("caller", callers::Caller { world: Arc::clone(world), number }.run());
    }
    if world.plan.jumps {
        world.tasks.spawn("jumps", jumps(Arc::clone(world)));
    }
    let mut number = 0;
    let mut life = None;
    while world.tasks.running().contains_key("caller") {
        number += 1;
        life = world.begin(number).await;
        let Some(life) = &life else {
            rest(world, 300).await;
            continue;
        };
        let stops = if world.plan.stops { 1 + world.below(20_000) } else { 86_400_000 };
        tokio::select! {
            biased;
            () = life.over.cancelled() => {}
            () = callers_end(world) => break,
            () = tokio::time::sleep(Duration::from_millis(stops)) => world.stop(life).await,
        }
        world.sleep(1_500).await;
    }
    world.calm_down();
    if world.was_set(0) {
        world.set(world.highest_offset());
    }
    let life = match life.filter(|life| !life.over.is_cancelled()) {
        Some(life) => life,
        None => match world.begin(number + 1).await {
            Some(life) => life,
            None => return world.fault("nothing goes wrong, and no process begins"),
        },
    };
    lock(&world.ledger).count.processes = number;
    settle(world).await;
    let engine = world.engine();
    audit::at_the_end(world);
    if let Some(engine) = &engine {
        let left = (engine.running(), engine.pending(), engine.watchers());
        if left != (0, 0, 0) {
            world.fault(format!("running, waiting and watching at the end: {left:?}"));
        }
        for (name, target) in world.plan.settings().targets {
            let free = engine.dispatcher.free(&name, 0).map(|(free, limit, _)| (free, limit));
            if free != Some((target.max_in_flight, target.max_in_flight)) {
                world.fault(format!("free slots of {name} at the end: {free:?}"));
            }
        }
    }
    drop(engine);
    world.stop(&life).await;
}

async fn rest(world: &World, limit: u64) {
    world.sleep(limit).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn callers_end(world: &World) {
    while world.tasks.running().contains_key("caller") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sets the wall clock both ways, by a little or by an hour.
async fn jumps(world: Arc<World>) {
    while !world.is_calm() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.sleep(8_000).await;
        if world.is_calm() {
            return;
        }
        let offset = world.chance(|random| {
            let most = random.pick(&[500, 5_000, 3_600_000]);
            i64::try_from(random.below(2 * most)).expect("small") - i64::try_from(most).expect("small")
        });
        world.set(offset);
    }
}

/// Until nothing is left to do: a job that does not end is found by this.
async fn settle(world: &World) {
    let began = world.now();
    loop {
        let waiting = {
            let tables = crate::store::model::lock(&world.disk);
            tables.jobs.values().filter(|job| job.state < 4).count()
        };
        let running: BTreeMap<_, _> = world.tasks.running();
        // Then connections that linger.
        if waiting == 0 && running.is_empty() && lock(&world.ledger).open.is_empty() {
            // The engine is told of the last of it a moment after the tables have it.
            return tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if world.now() > began + END {
            return world.fault(format!("{waiting} jobs and {running:?} are left after {END} ms"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Every seed, on as many threads as there are processors.
fn simulate_all(seeds: u64) -> Vec<(u64, Told)> {
    let next = AtomicU64::new(0);
    let work = || {
        // Says which seed hangs: such a one never comes back.
        let (begins, begun) = mpsc::channel();
        let watchdog = std::thread::spawn(move || {
            let (mut last, mut silent) = (0, 0);
            loop {
                match begun.recv_timeout(HANGS) {
                    Ok(seed) => (last, silent) = (seed, 0),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    // Once may be a machine that was suspended.
                    Err(mpsc::RecvTimeoutError::Timeout) if silent == 0 => silent = 1,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        eprintln!("BACKJOB_SIM_SEED={last} hangs");
                        std::process::abort();
                    }
                }
            }
        });
        let mut all = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                break;
            }
            begins.send(seed).expect("watched");
            let told = std::panic::catch_unwind(|| simulate(seed));
            let mut told = told.unwrap_or_else(|_| panic!("BACKJOB_SIM_SEED={seed} panics"));
            if told.faults.is_empty() {
                told.trace = Vec::new(); // nobody asks how it went
            }
            all.push((seed, told));
        }
        drop(begins);
        watchdog.join().expect("no panic");
        all
    };
    let mut all: Vec<(u64, Told)> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    all.sort_by_key(|(seed, _)| *seed);
    all
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

fn tell(seed: u64, told: &Told) -> String {
    let lines = &told.trace[told.trace.len().saturating_sub(3_000)..];
    format!(
        "{}\n\nBACKJOB_SIM_SEED={seed} replays this. What must not be:\n{}",
        lines.join("\n"),
        told.faults.join("\n")
    )
}

#[test]
fn every_schedule_keeps_every_promise() {
    if let Some(seed) = number("BACKJOB_SIM_SEED") {
        let told = simulate(seed);
        println!("{}", tell(seed, &told));
        return assert!(told.faults.is_empty(), "seed {seed}: {:#?}", told.faults);
    }
    let seeds = number("BACKJOB_SIM_SEEDS").unwrap_or(200);
    let mut all = ledger::Count::default();
    let mut failed: Vec<(u64, Told)> = Vec::new();
    for (seed, told) in simulate_all(seeds) {
        all.processes += told.count.processes;
        all.starts += told.count.starts;
        all.reports += told.count.reports;
        all.frames += told.count.frames;
        all.commits += told.count.commits;
        for (boundary, times) in &told.count.deaths {
            *all.deaths.entry(boundary).or_default() += times;
        }
        if !told.faults.is_empty() {
            failed.push((seed, told));
        }
    }
    if let Some((seed, told)) = failed.first() {
        let others = failed.iter().skip(1).take(50);
        let others: Vec<String> = others.map(|(seed, told)| format!("{seed}: {}", told.faults[0])).collect();
        panic!("{}\n\n{} of {seeds} fail, also\n{}", tell(*seed, told), failed.len(), others.join("\n"));
    }
    println!("{seeds} schedules: {all:?}");
    // Else there was nothing to find anything in.
    let least = |count: u32| u64::from(count) >= seeds;
    assert!(least(all.starts) && least(all.reports) && least(all.frames) && least(all.commits), "{all:?}");
    for boundary in fate::BOUNDARIES.into_iter().chain(application::BOUNDARIES) {
        let deaths = all.deaths.get(boundary).copied().unwrap_or_default();
        assert!(u64::from(deaths) >= seeds / 100, "{boundary}: {deaths} deaths");
    }
}

#[test]
fn a_seed_goes_the_same_way_each_time() {
    for seed in 0..number("BACKJOB_SIM_TWICE").unwrap_or(25) {
        let (one, other) = (simulate(seed), simulate(seed));
        let differ = one.trace.iter().zip(&other.trace).position(|(one, other)| one != other);
        if let Some(at) = differ {
            panic!("seed {seed} at {at}: {:#?} then {:#?}", &one.trace[at], &other.trace[at]);
        }
        assert_eq!(one.trace.len(), other.trace.len(), "seed {seed}");
    }
}
