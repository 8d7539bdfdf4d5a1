//! From a report to those who watch: to one, and to the last of many.

use super::split;
use crate::{
    fault::Fault,
    options::Options,
    role::client::{Fan, Question, Side},
    sample::Sample,
    step::{
        Bound::{AtLeast, AtMost, Most},
        Step,
    },
    world::World,
};
use serde_json::Value;

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut steps = vec![pair(options).await?];
    let divisor = if options.brief { 50 } else { 1 };
    let number = |full: usize| (full / divisor).max(1);
    for (streams, connections) in [(1, 1), (1_000, 100), (10_000, 100)] {
        steps.push(shared(options, number(streams), number(connections), streams == 10_000).await?);
    }
    for streams in [1_000, 10_000] {
        steps.push(own(options, number(streams)).await?);
    }
    Ok(steps)
}

async fn pair(options: &Options) -> Result<Step, Fault> {
    let mut world = World::new(options, &[]).await?;
    world.ask::<()>(&Question::hold(1)).await?;
    let seconds = options.seconds;
    let sides = [Side::Raw, Side::Backjob].map(|side| Question::Pair { side, seconds });
    let [raw, ours] = split(world.interleave(&sides).await?)?;
    let layout = "one who reports and one who watches, a connection each, one report after the other; \
                  from before the call to the frame in the watcher's hands";
    let step = Step::new("watch", "report to frame, alone", layout, options, ours)
        .floor("raw pair", raw)
        .held(world.held()?)
        .goal("p50", &[AtMost("p50_us", "raw pair", "p50_us", 1.3)])
        .goal("p99", &[AtMost("p99_us", "raw pair", "p99_us", 2.0)]);
    Ok(step)
}

const LAYOUT: &str = "frames a second, and from the report to the last frame; all watch one job";

async fn shared(options: &Options, streams: usize, connections: usize, goals: bool) -> Result<Step, Fault> {
    let mut world = World::new(options, &[]).await?;
    world.ask::<()>(&Question::hold(1)).await?;
    let seconds = options.seconds;
    for side in [Side::Raw, Side::Backjob] {
        world.ask::<Value>(&Question::Open { fan: Fan { side, streams, connections } }).await?;
    }
    let sides = [Side::Raw, Side::Backjob].map(|side| Question::Round { side, seconds });
    let [raw, ours] = split(world.interleave(&sides).await?)?;
    let name = format!("one change to {streams} watchers on {connections} connections");
    let step = Step::new("watch", &name, LAYOUT, options, ours).floor("raw fan-out", raw);
    let step = step.held(world.held()?);
    Ok(if goals {
        step.goal("all have it", &[Most("p50_us", 75_000.0, "µs")])
            .goal("frames a second", &[AtLeast("per_second", "raw fan-out", 0.7)])
    } else {
        step
    })
}

/// A connection a watcher. Those of both sides at once would be more than a client may
/// have open, so that each side opens them anew for each of its windows.
async fn own(options: &Options, streams: usize) -> Result<Step, Fault> {
    let most = (streams + 100).to_string();
    let mut world = World::new(options, &[("server.max_connections", most.as_str())]).await?;
    world.ask::<()>(&Question::hold(1)).await?;
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..options.repeat {
        for (side, windows) in [(Side::Raw, &mut raw), (Side::Backjob, &mut ours)] {
            let fan = Fan { side, streams, connections: streams };
            world.ask::<Value>(&Question::Open { fan }).await?;
            windows.push(world.ask::<Sample>(&Question::Round { side, seconds: options.seconds }).await?);
            world.ask::<()>(&Question::Close).await?;
        }
    }
    let name = format!("one change to {streams} watchers on connections of their own");
    let step = Step::new("watch", &name, LAYOUT, options, ours).floor("raw fan-out", raw);
    Ok(step.held(world.held()?))
}
