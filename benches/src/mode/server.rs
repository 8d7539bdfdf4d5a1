//! On the database of a server that makes every commit durable: Start and whole jobs,
//! beside what it takes of single rows from many connections.

use crate::{
    database::{Own, Work},
    durable::Durable,
    fault::Fault,
    options::Options,
    role::client::{Call, DATABASE, Kind, Question},
    sample::Sample,
    step::{
        Bound::{AtLeast, Most},
        Step,
    },
    world::World,
};

/// Connections that insert single rows.
const MANY: usize = 32;
/// Connections to the database that backjob may have.
const FEW: f64 = 4.0;

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let Some(server) = Durable::find(options).await? else {
        eprintln!("server: SKIPPED: no programs of PostgreSQL are found, and --database names no server");
        return Ok(Vec::new());
    };
    let mut measured = Measured::new(options, &server.url).await?;
    let mut steps = Vec::new();
    for (name, connections, in_flight, floor) in
        [("Start, 64 in flight on 4 connections", 4, 16, MANY), ("Start, alone", 1, 1, 1)]
    {
        let start = Question::Load { call: Call::Start, connections, in_flight, seconds: options.seconds };
        let step = measured.step(name, start, floor).await?;
        steps.push(match (measured.durable, floor) {
            (true, MANY) => step
                .goal("throughput", &[AtLeast("per_second", "single-row inserts", 1.0)])
                .goal("connections to the database", &[Most("connections", FEW, "connections")]),
            _ => step,
        });
    }
    let jobs = Question::Jobs { kind: Kind::Unary, alone: false, seconds: options.seconds };
    steps.push(measured.step("whole jobs, 5 unary reports", jobs, MANY).await?);
    if measured.database.is_postgres() {
        // Others are told only where there are others.
        let other = measured.world.another("other", &[]).await?;
        measured.database.count_notifications().await?;
        let start =
            Question::Load { call: Call::Start, connections: 4, in_flight: 16, seconds: options.seconds };
        let step = measured.step("Start, 64 in flight, another node told", start, MANY).await?;
        let one = Most("notifications_per_transaction", 1.0, "a transaction");
        steps.push(step.goal("notifications", &[one]));
        drop(other);
    }
    let Measured { world, database, .. } = measured;
    drop(world);
    database.drop().await?;
    Ok(steps)
}

/// One service on a database of its own.
struct Measured {
    world: World,
    database: Own,
    durable: bool,
    server: String,
}

impl Measured {
    async fn new(options: &Options, url: &str) -> Result<Self, Fault> {
        let database = Own::new(url).await?;
        let settings = [("database.url", database.url.as_str()), ("key_file", "{folder}/backjob.key")];
        let mut world = World::new(options, &settings).await?;
        if let Some(pid) = database.server().await {
            world.ask::<()>(&Question::Also { name: DATABASE.to_owned(), port: 0, pid }).await?;
        }
        let (durable, server) = database.durability().await?;
        Ok(Self { world, database, durable, server })
    }

    /// Beside single-row inserts of so many connections.
    async fn step(&mut self, name: &str, question: Question, connections: usize) -> Result<Step, Fault> {
        let options = self.world.options.clone();
        let inserts =
            Question::Inserts { url: self.database.url.clone(), connections, seconds: options.seconds };
        let (mut floors, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..options.repeat {
            floors.push(self.world.ask::<Sample>(&inserts).await?);
            let before = self.database.work().await?;
            let mut sample: Sample = self.world.ask(&question).await?;
            let after = self.database.work().await?;
            self.note(&mut sample, &before, &after).await?;
            ours.push(sample);
        }
        let layout = format!("{}; inserts: {connections} connections, a row a commit", self.server);
        let step = Step::new("server", name, &layout, &options, ours);
        Ok(step.floor("single-row inserts", floors).held(self.world.held()?))
    }

    async fn note(&self, sample: &mut Sample, before: &Work, after: &Work) -> Result<(), Fault> {
        sample.more.insert("connections".into(), self.database.connections().await?);
        if self.database.is_postgres() {
            let transactions = after.wrote_since(before).max(1.0);
            // Those of the time before the window, too.
            let each = sample.operations * 1.2 / transactions;
            sample.more.insert("operations_per_transaction_about".into(), each);
            let notified = after.notified_since(before) / transactions;
            sample.more.insert("notifications_per_transaction".into(), notified);
        }
        Ok(())
    }
}
