//! Whether finished jobs in the database cost anything: two services, one with many
//! and one with none, in turn.

use crate::{
    fault::Fault,
    options::Options,
    role::client::{Call, Kind, Of, Question},
    step::{
        Bound::{AtLeast, AtMost},
        Step,
    },
    world::World,
};

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
    for world in &mut worlds {
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
    ];
    let mut steps = Vec::new();
    for (name, question, alone) in questions {
        let mut windows = [Vec::new(), Vec::new()];
        for _ in 0..options.repeat {
            for (world, windows) in worlds.iter_mut().zip(&mut windows) {
                windows.push(world.ask(&question).await?);
            }
        }
        let [none, many] = windows;
        let layout = "two services in turn, one with none";
        let step = Step::new("finished", name, layout, &with, many).floor(NONE, none);
        steps.push(if alone {
            step.goal("p50", &[AtMost("p50_us", NONE, "p50_us", 1.1)])
        } else {
            step.goal("throughput", &[AtLeast("per_second", NONE, 0.9)])
        });
    }
    Ok(steps)
}
