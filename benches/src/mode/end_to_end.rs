//! Whole jobs with everything on: Start, signed trigger, five reports, the end.

use super::split;
use crate::{
    fault::Fault,
    options::Options,
    role::client::{Call, Kind, Question},
    step::{Bound::Most, Step},
    world::World,
};

const LAYOUT: &str = "4 connections, reports on one, signatures checked; latency from Start to the end of the \
                      action; raw POST 64 in flight";

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut world = World::new(options, &[]).await?;
    let seconds = options.seconds;
    let kinds = [
        ("5 unary reports", Kind::Unary, Some(150.0)),
        ("5 streamed reports", Kind::Stream, Some(60.0)),
        ("no reports", Kind::None, None),
        ("5 reports of backjob::worker", Kind::Reporter, None),
    ];
    let layout = format!("{}, {LAYOUT}", options.jobs());
    let mut steps = Vec::new();
    for (name, kind, cpu) in kinds {
        let post = Question::Load { call: Call::Post, connections: 64, in_flight: 1, seconds: seconds / 2.0 };
        let jobs = Question::Jobs { kind, alone: false, seconds };
        let [post, ours] = split(world.interleave(&[post, jobs]).await?)?;
        let step = Step::new("end-to-end", name, &layout, options, ours).floor("raw POST", post);
        steps.push(match cpu {
            Some(cpu) => step.goal("CPU of the service a job", &[Most("cpu service", cpu, "µs")]),
            None => step,
        });
    }
    Ok(steps)
}
