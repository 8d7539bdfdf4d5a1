//! New connections to the application while jobs run steadily.

use crate::{
    fault::Fault,
    options::Options,
    role::client::{Kind, Question},
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
        let mut windows = Vec::new();
        for _ in 0..options.repeat {
            let before = world.accepted().await?;
            let mut sample: Sample = world.ask(&jobs).await?;
            let new = (world.accepted().await? - before) as f64;
            sample.more.insert("connections_per_job".into(), new / sample.operations);
            sample.more.insert("connections".into(), new);
            windows.push(sample);
        }
        let layout = format!("{}; connections that the application accepts", options.jobs());
        let step = Step::new("connections", name, &layout, options, windows)
            .goal("new connections a job", &[Most("connections_per_job", 0.01, "a job")]);
        steps.push(step);
    }
    Ok(steps)
}
