//! From before the call of Start to the first line of the action, with nothing else
//! going on.

use super::{beside, echo_of};
use crate::{
    fault::Fault,
    options::Options,
    role::client::{Call, Kind, Question},
    step::{
        Bound::{AtMost, Most},
        Step,
    },
    world::World,
};

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut world = World::new(options, &[]).await?;
    let echo = echo_of(&mut world, Call::Start).await?;
    let (folder, seconds) = (world.folder(), options.seconds);
    let alone = |call| Question::Load { call, connections: 1, in_flight: 1, seconds: seconds / 2.0 };
    let floors = vec![
        ("raw echo", alone(echo)),
        ("raw POST", alone(Call::Post)),
        ("single-row commits", Question::Commits { folder: folder.clone(), seconds: seconds / 2.0 }),
        ("fdatasync of 4 KiB", Question::Syncs { folder, seconds: seconds / 4.0 }),
    ];
    let ours = Question::Jobs { kind: Kind::None, alone: true, seconds };
    let (ours, floors) = beside(&mut world, floors, ours).await?;
    let layout = "one job after the other, each begun when the last is stored as SUCCEEDED";
    let sync = AtMost("p50_us", "fdatasync of 4 KiB", "p50_us", 7.0);
    let step = Step::new("start-to-handler", "alone", layout, options, ours)
        .floors(floors)
        .held(world.held()?)
        .goal("p50", &[Most("p50_us", 850.0, "µs"), sync]);
    Ok(vec![step])
}
