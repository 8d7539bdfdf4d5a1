//! What others of this kind reach with the same work, in the same run.

mod server;

pub use server::{Programs, Server};

use crate::{
    child::Child,
    database::Own,
    fault::Fault,
    options::Options,
    role::{
        Places,
        action::REPORTS,
        client::{DATABASE, Kind, Question},
    },
    sample::Sample,
    step::{
        Bound::{AtLeast, AtMost},
        Step,
    },
    world::{World, place},
};
use serde_json::{Value, json};
use server::Used;
use tempfile::TempDir;
use tokio::process::Command;

/// A peer's server, its worker and who enqueues.
struct Peer {
    name: &'static str,
    server: Server,
    worker: Child,
    producer: Child,
    /// Whether the producer is ours, which counts CPU by itself.
    own: bool,
    _folder: TempDir,
}

/// The work of a window.
#[derive(Clone, Copy)]
struct Work {
    reports: u32,
    alone: bool,
    seconds: f64,
}

impl Peer {
    /// Of one whose worker and producer run on Node.
    async fn node(
        name: &'static str,
        script: &str,
        server: Server,
        folder: TempDir,
        programs: &Programs,
        options: &Options,
    ) -> Result<Self, Fault> {
        let script = programs.scripts.join(script);
        let command = |role: &str| {
            let mut command = Command::new("node");
            command.env("PEERS", &programs.node).arg(&script).arg(role);
            command.env("OUTSTANDING", options.outstanding.to_string());
            command.env("WORKERS", options.workers().to_string());
            command.arg(server.port.to_string()).arg(options.payload.to_string());
            command
        };
        let (worker, ports) = Child::run::<Places>(name, command("worker")).await?;
        let mut producer = command("producer");
        producer.arg(ports["events"].to_string());
        let (producer, ()) = Child::run(name, producer).await?;
        Ok(Self { name, server, worker, producer, own: false, _folder: folder })
    }

    async fn gearman(programs: &Programs, options: &Options) -> Result<Self, Fault> {
        let name = "gearmand, in memory";
        let folder = folder()?;
        let server = Server::gearmand(&programs.gearmand, folder.path()).await?;
        let mut worker = Command::new(std::env::current_exe()?);
        worker.args(["role", "gearman", "--port"]).arg(server.port.to_string());
        worker.arg("--workers").arg(options.workers().to_string());
        let (worker, mut ports) = Child::run::<Places>(name, worker).await?;
        let (mut producer, ()) = Child::start("client", 1).await?;
        ports.insert("gearmand".into(), server.port.into());
        let pids = [("server".to_owned(), server.id()), ("worker".to_owned(), worker.id())].into();
        producer.ask::<()>(&Question::know(ports, pids, options)).await?;
        Ok(Self { name, server, worker, producer, own: true, _folder: folder })
    }

    async fn measure(&mut self, work: Work) -> Result<Sample, Fault> {
        let Work { reports, alone, seconds } = work;
        let mut sample: Sample = if self.own {
            self.producer.ask(&Question::Gearman { reports, alone, seconds }).await?
        } else {
            let of = |peer: &Self| {
                let producer = Used::by(&[peer.producer.id()]);
                [Used::by(&peer.server.pids()), Used::by(&[peer.worker.id()]), producer]
            };
            let question = json!({ "alone": alone, "reports": reports, "seconds": seconds });
            self.producer.ask::<Value>(&question).await?;
            let before = of(self);
            self.producer.answer::<Value>().await?;
            let after = of(self);
            let mut sample: Sample = self.producer.answer().await?;
            for ((name, before), after) in ["server", "worker", "client"].iter().zip(before).zip(after) {
                sample.cpu_us.insert((*name).to_owned(), after.since(&before) / sample.operations);
            }
            sample
        };
        sample.more.insert("server_memory_kib".into(), self.server.memory());
        Ok(sample)
    }
}

fn folder() -> Result<TempDir, Fault> {
    Ok(tempfile::Builder::new().prefix("peer-").tempdir_in(place()?)?)
}

async fn bring_up(programs: &Programs, options: &Options) -> Result<Vec<Peer>, Fault> {
    let mut peers = Vec::new();
    for (name, always) in [("BullMQ, appendfsync always", true), ("BullMQ, no persistence", false)] {
        let folder = folder()?;
        let server = Server::redis(&programs.redis, folder.path(), always).await?;
        peers.push(Peer::node(name, "bullmq.mjs", server, folder, programs, options).await?);
    }
    let folder = folder()?;
    let server = Server::postgres(&programs.postgres, folder.path()).await?;
    peers.push(Peer::node(GRAPHILE, "graphile.mjs", server, folder, programs, options).await?);
    peers.push(Peer::gearman(programs, options).await?);
    Ok(peers)
}

/// Ours and theirs in turn.
pub async fn run(programs: &Programs, options: &Options, print: &mut impl FnMut(Step)) -> Result<(), Fault> {
    let mut world = World::new(options, &[]).await?;
    let mut peers = bring_up(programs, options).await?;
    let mut beside = OnPostgres::new(options, &peers).await?;
    let layout = format!(
        "body of {} bytes, {}, latency to the end of the action; alone: one after \
         the other, latency to the handler",
        options.payload,
        options.jobs()
    );
    let steps = [
        ("5 unary reports", Kind::Unary, REPORTS, false),
        ("5 streamed reports", Kind::Stream, REPORTS, false),
        ("no reports", Kind::None, 0, false),
        ("enqueue to handler, alone", Kind::None, 0, true),
    ];
    for (name, kind, reports, alone) in steps {
        let seconds = options.seconds;
        let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); peers.len()]);
        let mut on_postgres = Vec::new();
        for _ in 0..options.repeat {
            for (peer, samples) in peers.iter_mut().zip(&mut theirs) {
                samples.push(peer.measure(Work { reports, alone, seconds }).await?);
            }
            let question = Question::Jobs { kind, alone, seconds };
            on_postgres.push(beside.world.ask(&question).await?);
            let mut sample: Sample = world.ask(&question).await?;
            let memory = crate::proc::Memory::of(world.service.id())?.pss;
            sample.more.insert("server_memory_kib".into(), memory);
            ours.push(sample);
        }
        let mut step = Step::new("peers", name, &layout, options, ours);
        for (peer, samples) in peers.iter().zip(&theirs) {
            step = step.floor(peer.name, samples.clone());
        }
        print(goals(step, kind, alone));
        let name = format!("{name}, backjob on the same PostgreSQL");
        let mut step = Step::new("peers", &name, &layout, options, on_postgres);
        for (peer, samples) in peers.iter().zip(theirs).filter(|(peer, _)| peer.name == GRAPHILE) {
            step = step.floor(peer.name, samples);
        }
        print(match kind {
            Kind::Unary => step.goal("jobs a second", &[AtLeast("per_second", GRAPHILE, 8.0)]),
            _ => step,
        });
    }
    let OnPostgres { world: also, database } = beside;
    drop((world, also));
    database.drop().await
}

const GRAPHILE: &str = "graphile-worker";

/// Ours on a database of the server that graphile-worker uses.
struct OnPostgres {
    world: World,
    database: Own,
}

impl OnPostgres {
    async fn new(options: &Options, peers: &[Peer]) -> Result<Self, Fault> {
        let peer = peers.iter().find(|peer| peer.name == GRAPHILE).ok_or("no PostgreSQL")?;
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", peer.server.port);
        let database = Own::new(&url).await?;
        let settings = [("database.url", database.url.as_str()), ("key_file", "{folder}/backjob.key")];
        let mut world = World::new(options, &settings).await?;
        let also = Question::Also { name: DATABASE.to_owned(), port: 0, pid: peer.server.id() };
        world.ask::<()>(&also).await?;
        Ok(Self { world, database })
    }
}

fn goals(step: Step, kind: Kind, alone: bool) -> Step {
    let always = "BullMQ, appendfsync always";
    match kind {
        Kind::Unary => step
            .goal("jobs a second", &[AtLeast("per_second", always, 1.8)])
            .goal("jobs a second", &[AtLeast("per_second", GRAPHILE, 12.0)]),
        Kind::Stream => step
            .goal("jobs a second", &[AtLeast("per_second", always, 4.5)])
            .goal("jobs a second", &[AtLeast("per_second", "gearmand, in memory", 0.35)]),
        Kind::None if alone => step.goal("p50", &[AtMost("p50_us", always, "p50_us", 0.7)]),
        _ => step,
    }
}
