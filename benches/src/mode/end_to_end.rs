//! Whole jobs with everything on: Start, signed trigger, five reports, the end.

use super::beside;
use crate::{
    fault::Fault,
    options::Options,
    role::client::{Call, Kind, Question},
    step::{Bound::Most, Step},
    world::World,
};

const LAYOUT: &str = "4 connections, reports on one, signatures checked; latency from Start to the end of the \
                      action; raw POST and echo 64 in flight, commits one at a time; raw job: the same messages and \
                      rows, nothing checked, signed, sealed or kept";

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut world = World::new(options, &[]).await?;
    let sizes = world.ask(&Question::Sizes { call: Call::Start }).await?;
    let (folder, seconds) = (world.folder(), options.seconds);
    // Of a job that has ended the raw server knows all rows.
    world.ask::<()>(&Question::Finish { kind: Kind::Stream, count: 1 }).await?;
    let stores = world.store_raw().await?;
    let kinds = [
        ("5 unary reports", Kind::Unary, Some(150.0)),
        ("5 streamed reports", Kind::Stream, Some(60.0)),
        ("no reports", Kind::None, None),
        ("5 reports of backjob::worker", Kind::Reporter, None),
    ];
    let layout = format!("{}, {LAYOUT}", options.jobs());
    let mut steps = Vec::new();
    for (name, kind, cpu) in kinds {
        let load = |call, connections, in_flight| Question::Load {
            call,
            connections,
            in_flight,
            seconds: seconds / 2.0,
        };
        let commits = Question::Commits { folder: folder.clone(), seconds: seconds / 4.0 };
        let mut floors = vec![
            ("raw POST", load(Call::Post, 64, 1)),
            ("raw echo of a Start", load(Call::Echo(sizes), 4, 16)),
            ("single-row commits", commits),
        ];
        if stores {
            floors.push(("raw job", Question::RawJobs { kind, sizes, seconds: seconds / 2.0 }));
        }
        let ours = Question::Jobs { kind, alone: false, seconds };
        let (ours, floors) = beside(&mut world, floors, ours).await?;
        let step = Step::new("end-to-end", name, &layout, options, ours).floors(floors).held(world.held()?);
        steps.push(match cpu {
            Some(cpu) => step.goal("CPU of the service a job", &[Most("cpu service", cpu, "µs")]),
            None => step,
        });
    }
    Ok(steps)
}
