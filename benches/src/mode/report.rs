//! Reports for jobs that run: each a call, or all on one stream.

use super::{echo_of, split};
use crate::{
    fault::Fault,
    options::Options,
    role::client::{Call, Question, Side},
    step::{
        Bound::{AtLeast, Least},
        Step,
    },
    world::World,
};

pub async fn unary(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut world = World::new(options, &[]).await?;
    world.ask::<()>(&Question::hold(64)).await?;
    let echo = echo_of(&mut world, Call::Report).await?;
    let seconds = options.seconds;
    let mut steps = Vec::new();
    for (name, connections, in_flight) in [("64 in flight on 4 connections", 4, 16), ("alone", 1, 1)] {
        let sides = [echo, Call::Report];
        let sides = sides.map(|call| Question::Load { call, connections, in_flight, seconds });
        let [raw, ours] = split(world.interleave(&sides).await?)?;
        let layout = "same layout on both sides, 64 jobs";
        let step =
            Step::new("report", name, layout, options, ours).floor("raw echo", raw).held(world.held()?);
        steps.push(if connections == 4 {
            step.goal("throughput", &[AtLeast("per_second", "raw echo", 0.7)])
        } else {
            step
        });
    }
    world.ask::<()>(&Question::Release).await?;
    Ok(steps)
}

pub async fn stream(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut world = World::new(options, &[]).await?;
    world.ask::<()>(&Question::hold(1)).await?;
    let seconds = options.seconds;
    let sides = [Side::Raw, Side::Backjob].map(|side| Question::Stream { side, seconds });
    let [raw, ours] = split(world.interleave(&sides).await?)?;
    world.ask::<()>(&Question::Release).await?;
    let step = Step::new("report-stream", "one stream", "one connection", options, ours)
        .floor("raw stream", raw)
        .held(world.held()?)
        .goal("messages", &[Least("per_second", 500_000.0, "/s")]);
    Ok(vec![step])
}
