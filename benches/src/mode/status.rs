//! GetStatus: of running jobs, which callers ask for; and of those that wait and of
//! those that have ended.

use super::{echo_of, split};
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

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut world = World::new(options, &[("targets.default.max_in_flight", "1024")]).await?;
    let count = options.number(1_000, 50);
    world.ask::<()>(&Question::Schedule { count }).await?;
    world.ask::<()>(&Question::Finish { kind: Kind::None, count }).await?;
    world.ask::<()>(&Question::hold(count)).await?;
    let seconds = options.seconds;
    let mut steps = Vec::new();
    for (of, whose) in
        [(Of::Running, "running"), (Of::Waiting, "waiting"), (Of::Finished, "finished a moment ago")]
    {
        let echo = echo_of(&mut world, Call::Status(of)).await?;
        for (how, connections, in_flight) in [("4 connections × 64 in flight", 4, 64), ("alone", 1, 1)] {
            let sides = [echo, Call::Status(of)];
            let sides = sides.map(|call| Question::Load { call, connections, in_flight, seconds });
            let [raw, ours] = split(world.interleave(&sides).await?)?;
            let (name, layout) =
                (format!("{how}, {whose}"), format!("same layout on both sides, {count} jobs"));
            let step = Step::new("status", &name, &layout, options, ours).floor("raw echo", raw);
            let step = step.held(world.held()?);
            steps.push(match (of, connections) {
                (Of::Running, 4) => step
                    .goal("throughput", &[AtLeast("per_second", "raw echo", 0.85)])
                    .goal("CPU", &[AtMost("cpu service", "raw echo", "cpu echo", 1.25)]),
                (Of::Running, _) => step
                    .goal("p50", &[AtMost("p50_us", "raw echo", "p50_us", 1.2)])
                    .goal("p99", &[AtMost("p99_us", "raw echo", "p99_us", 2.0)]),
                _ => step,
            });
        }
    }
    Ok(steps)
}
