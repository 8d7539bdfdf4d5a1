//! Whether finished jobs in the database cost anything: two services, one with many
//! and one with none, in turn.

use super::split;
use crate::{
    fault::Fault,
    options::Options,
    proc::Memory,
    role::client::{Call, Fan, Kind, Of, Question, Side},
    sample::Sample,
    step::{
        Bound::{AtLeast, AtMost},
        Step,
    },
    world::World,
};
use serde_json::Value;

const NONE: &str = "no finished jobs";

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let many = match options.finished {
        0 => options.number(1_000_000, 500),
        finished => finished,
    };
    let (with, without) =
        (Options { finished: many, ..options.clone() }, Options { finished: 0, ..options.clone() });
    let settings = [("targets.default.max_in_flight", "256")];
    let mut worlds = [World::new(&without, &settings).await?, World::new(&with, &settings).await?];
    let count = 64;
    let mut at_rest = Vec::new();
    for world in &mut worlds {
        at_rest.push(Sample::one("rss_kib", Memory::of(world.service.id())?.rss));
        world.ask::<()>(&Question::Schedule { count }).await?;
        world.ask::<()>(&Question::hold(count)).await?;
    }
    let seconds = options.seconds;
    let many_in_flight = |call, in_flight| Question::Load { call, connections: 4, in_flight, seconds };
    let alone = |call| Question::Load { call, connections: 1, in_flight: 1, seconds };
    let questions = [
        ("status of running jobs, 4 × 64 in flight", many_in_flight(Call::Status(Of::Running), 64), false),
        ("status of waiting jobs, 4 × 64 in flight", many_in_flight(Call::Status(Of::Waiting), 64), false),
        ("status of waiting jobs, alone", alone(Call::Status(Of::Waiting)), true),
        ("start, 64 in flight", many_in_flight(Call::Start, 16), false),
        ("start, alone", alone(Call::Start), true),
        ("report, 64 in flight", many_in_flight(Call::Report, 16), false),
        ("5 unary reports", Question::Jobs { kind: Kind::Unary, alone: false, seconds }, false),
        ("5 streamed reports", Question::Jobs { kind: Kind::Stream, alone: false, seconds }, false),
        ("start to handler, alone", Question::Jobs { kind: Kind::None, alone: true, seconds }, true),
        ("reports on one stream", Question::Stream { side: Side::Backjob, seconds }, false),
        ("report to frame, alone", Question::Pair { side: Side::Backjob, seconds }, true),
        ("frames to many watchers", Question::Round { side: Side::Backjob, seconds }, false),
    ];
    let layout = "two services in turn, one with none";
    let [none, many] = split(at_rest)?;
    let step = Step::new("finished", "at rest", layout, &with, vec![many]).floor(NONE, vec![none]);
    let mut steps = vec![step.goal("resident", &[AtMost("rss_kib", NONE, "rss_kib", 1.1)])];
    for (name, question, alone) in questions {
        if matches!(question, Question::Round { .. }) {
            // Only now: all watch a job that was reported for before.
            let fan = Fan { side: Side::Backjob, streams: options.number(1_000, 20), connections: 10 };
            for world in &mut worlds {
                world.ask::<Value>(&Question::Open { fan }).await?;
            }
        }
        let mut windows = [Vec::new(), Vec::new()];
        for _ in 0..options.repeat {
            for (world, windows) in worlds.iter_mut().zip(&mut windows) {
                windows.push(world.ask(&question).await?);
            }
        }
        let [none, many] = windows;
        let step = Step::new("finished", name, layout, &with, many).floor(NONE, none);
        let step = step.held(worlds[1].held()?);
        steps.push(if alone {
            step.goal("p50", &[AtMost("p50_us", NONE, "p50_us", 1.1)])
        } else {
            step.goal("throughput", &[AtLeast("per_second", NONE, 0.9)])
        });
    }
    Ok(steps)
}
