//! New connections to the application while jobs run steadily.

use crate::{
    fault::Fault,
    options::Options,
    role::client::{Call, Kind, Question},
    sample::Sample,
    step::{Bound::Most, Step},
    world::World,
};

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let mut world = World::new(options, &[]).await?;
    let seconds = options.seconds;
    let mut steps = Vec::new();
    for (name, kind) in [("unary reports", Kind::Unary), ("no reports", Kind::None)] {
        let jobs = Question::Jobs { kind, alone: false, seconds };
        // The first ones open what is needed.
        world.ask::<Sample>(&jobs).await?;
        let post = Question::Load { call: Call::Post, connections: 64, in_flight: 1, seconds: seconds / 2.0 };
        let (mut floors, mut windows) = (Vec::new(), Vec::new());
        for _ in 0..options.repeat {
            for (question, windows) in [(&post, &mut floors), (&jobs, &mut windows)] {
                let before = world.accepted().await?;
                let mut sample: Sample = world.ask(question).await?;
                let new = (world.accepted().await? - before) as f64;
                sample.more.insert("connections_per_job".into(), new / sample.operations);
                sample.more.insert("connections".into(), new);
                windows.push(sample);
            }
        }
        let layout = format!(
            "{}; connections that the application accepts; each window opens its own 64 for POST",
            options.jobs()
        );
        let step = Step::new("connections", name, &layout, options, windows)
            .floor("raw POST", floors)
            .held(world.held()?)
            .goal("new connections a job", &[Most("connections_per_job", 0.01, "a job")]);
        steps.push(step);
    }
    Ok(steps)
}
