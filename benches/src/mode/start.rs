//! Start of jobs that wait for an hour: nothing but the Start is measured.

use super::beside;
use crate::{
    fault::Fault,
    options::Options,
    role::client::{Call, Question},
    step::{
        Bound::{AtLeast, AtMost, Most, Within},
        Step,
    },
    world::World,
};

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut world = World::new(options, &[]).await?;
    let sizes = world.ask(&Question::Sizes { call: Call::Start }).await?;
    let stores = world.store_raw().await?;
    let seconds = options.seconds;
    let mut steps = Vec::new();
    for (name, connections, in_flight) in [("64 in flight on 4 connections", 4, 16), ("alone", 1, 1)] {
        let load = |call| Question::Load { call, connections, in_flight, seconds };
        let folder = world.folder();
        let mut floors = vec![("raw echo", load(Call::Echo(sizes)))];
        if stores {
            floors.push(("raw group commit", load(Call::Store(sizes))));
        }
        floors.extend([
            ("single-row commits", Question::Commits { folder: folder.clone(), seconds: seconds / 2.0 }),
            ("fdatasync of 4 KiB", Question::Syncs { folder, seconds: seconds / 4.0 }),
        ]);
        let (ours, floors) = beside(&mut world, floors, load(Call::Start)).await?;
        let layout = "echo: same layout and sizes; group commit: the same and the same rows; \
                      disk: one at a time";
        let step = Step::new("start", name, layout, options, ours).floors(floors).held(world.held()?);
        steps.push(if connections == 4 {
            step.goal("throughput", &[AtLeast("per_second", "raw echo", 0.22)])
                .goal("throughput", &[AtLeast("per_second", "single-row commits", 5.0)])
                .goal("CPU", &[Most("cpu service", 30.0, "µs")])
        } else {
            let syncs = AtMost("p50_us", "fdatasync of 4 KiB", "p50_us", 6.0);
            step.goal("p50", &[Most("p50_us", 800.0, "µs"), syncs])
                .goal("p99", &[Within("p99_us", "p50_us", 2.5)])
        });
    }
    Ok(steps)
}
