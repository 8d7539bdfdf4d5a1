//! Memory of the service: at rest, with watchers, and with running jobs. Each figure
//! is of a service that has done nothing else before.

use crate::{
    fault::Fault,
    options::Options,
    proc::Memory,
    role::client::{Fan, Question, Side},
    sample::Sample,
    step::{Bound::Most, Step},
    world::World,
};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// What a process does after its start may take so long.
const SETTLE: Duration = Duration::from_millis(700);
/// A target runs so many jobs at most.
const SLOTS: usize = 10_000;
/// Bytes of a route, as those of jobs with one of their own.
const ROUTE: usize = 28;
/// So many times as many running jobs are counted as ran before.
const ROUNDS: usize = 3;

/// At rest, and a watcher that waits.
pub async fn idle(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut steps = Vec::new();
    let (mut raw, mut ours, mut held) = (Vec::new(), Vec::new(), BTreeMap::new());
    let repeat = options.repeat.min(3);
    for _ in 0..repeat {
        let world = World::new(options, &[]).await?;
        tokio::time::sleep(SETTLE).await;
        raw.push(Sample::one("rss_kib", Memory::of(world.echo.id())?.rss));
        ours.push(Sample::one("rss_kib", Memory::of(world.service.id())?.rss));
        held = world.held()?;
    }
    let step = Step::new("idle-memory", "at rest", "after the start", options, ours)
        .floor("raw server", raw)
        .held(held)
        .goal("resident", &[Most("rss_kib", 20_480.0, "KiB")]);
    steps.push(step);
    let own = options.number(5_000, 50);
    let fans = [
        (options.number(10_000, 200), options.number(100, 10), "shared connections", 11.0),
        (own, own, "connections of their own", 33.0),
    ];
    for (streams, connections, name, limit) in fans {
        let (mut raw, mut ours, mut held) = (Vec::new(), Vec::new(), BTreeMap::new());
        for _ in 0..repeat {
            let mut world = World::new(options, &[]).await?;
            world.ask::<()>(&Question::hold(1)).await?;
            for (side, samples) in [(Side::Raw, &mut raw), (Side::Backjob, &mut ours)] {
                let question = Question::Open { fan: Fan { side, streams, connections } };
                let opened: Value = world.ask(&question).await?;
                samples.push(Sample::one(
                    "kib_per_watcher",
                    opened["kib_per_stream"].as_f64().unwrap_or(f64::NAN),
                ));
            }
            held = world.held()?;
        }
        let layout = format!("{streams} watchers on {connections} connections, all of one job");
        let step = Step::new("idle-memory", &format!("a watcher on {name}"), &layout, options, ours)
            .floor("raw stream", raw)
            .held(held)
            .goal("memory of the service", &[Most("kib_per_watcher", limit, "KiB")]);
        steps.push(step);
    }
    Ok(steps)
}

/// A running job more, after as many: what has a bound of its own (pages of the database,
/// the queue of writes) is there already.
pub async fn live(options: &Options) -> Result<Vec<Step>, Fault> {
    let count = options.number(14_000, 200);
    let names: Vec<String> = (0..(ROUNDS + 1) * count)
        .step_by(SLOTS - SLOTS / 20) // batches are not divided evenly
        .map(|place| format!("t{place}"))
        .collect();
    let mut settings = Vec::new();
    for name in &names {
        settings.push((format!("targets.{name}.url"), "{application}".to_owned()));
        settings.push((format!("targets.{name}.max_in_flight"), SLOTS.to_string()));
    }
    let settings: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let mut steps = Vec::new();
    for (own_routes, name) in [(false, "a running job"), (true, "a running job with a route of its own")] {
        let (mut raw, mut ours, mut held) = (Vec::new(), Vec::new(), BTreeMap::new());
        for _ in 0..options.repeat {
            let mut world = World::new(options, &settings).await?;
            tokio::time::sleep(SETTLE).await;
            let mut kept = Vec::new();
            for count in [count, ROUNDS * count] {
                world.ask::<()>(&Question::Keep { count, bytes: ROUTE }).await?;
                kept.push(Memory::of(world.echo.id())?.pss);
            }
            raw.push(Sample::one("kib_per_job", (kept[1] - kept[0]) / (ROUNDS * count) as f64));
            let mut seen = vec![Memory::of(world.service.id())?];
            for _ in 0..=ROUNDS {
                let question = Question::Hold { count, targets: names.clone(), own_routes };
                world.ask::<()>(&question).await?;
                // Their claims and first reports reach the disk.
                tokio::time::sleep(2 * SETTLE).await;
                seen.push(Memory::of(world.service.id())?);
            }
            let (before, after) = (seen[1], seen[ROUNDS + 1]);
            let mut sample = Sample::one("kib_per_job", (after.pss - before.pss) / (ROUNDS * count) as f64);
            sample.more.insert("rss_at_rest_kib".into(), seen[0].rss);
            sample.more.insert("rss_before_kib".into(), before.rss);
            sample.more.insert("rss_after_kib".into(), after.rss);
            ours.push(sample);
            held = world.held()?;
        }
        let layout = format!(
            "{} jobs that have answered 202, beside {count}; {} targets; raw: entries of a map of the raw \
             server, an id and a route",
            ROUNDS * count,
            names.len()
        );
        let step = Step::new("live-memory", name, &layout, options, ours)
            .floor("raw entry", raw)
            .held(held)
            .goal("memory of the service", &[Most("kib_per_job", 0.5, "KiB")]);
        steps.push(step);
    }
    Ok(steps)
}
