//! Measures backjob beside the floors of the same machine: see README.md.

mod child;
mod clock;
mod database;
mod durable;
mod fault;
mod filled;
mod floor;
mod mode;
mod options;
mod peer;
mod proc;
mod role;
mod sample;
mod service;
mod step;
mod table;
mod tasks;
mod world;

use clap::Parser as _;
use fault::Fault;
use mode::Mode;
use options::Options;
use role::Role;
use std::process::ExitCode;
use step::Step;
use tokio::signal::unix::{SignalKind, signal};

/// What the service has, the floor has too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures backjob beside the floors of the same machine.
#[derive(Debug, clap::Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Program {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to measure.
    #[arg(required = true)]
    mode: Option<Mode>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Beside others of this kind: see peers/run.sh, which installs them.
    Peers(peer::Programs),
    /// What the processes of a measurement are started as.
    #[command(hide = true)]
    Role {
        #[command(subcommand)]
        role: Role,
    },
}

fn main() -> ExitCode {
    let program = Program::parse();
    let options = program.options.settled();
    let ended = match (program.command, program.mode) {
        (Some(Command::Role { role }), _) => role.run(),
        (Some(Command::Peers(programs)), _) => measure(What::Peers(programs), &options),
        (None, Some(mode)) => measure(What::Mode(mode), &options),
        (None, None) => Ok(()), // clap asks for one of both
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backjob-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

enum What {
    Mode(Mode),
    Peers(peer::Programs),
}

impl What {
    async fn run(self, options: &Options, print: &mut impl FnMut(Step)) -> Result<(), Fault> {
        match self {
            Self::Mode(mode) => mode.run(options, print).await,
            Self::Peers(programs) => peer::run(&programs, options, print).await,
        }
    }
}

/// On one thread, the one that the processes die with.
fn measure(what: What, options: &Options) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut steps = Vec::new();
        let mut print = |step: Step| {
            if options.json {
                println!("{}", serde_json::to_string(&step).unwrap_or_default());
            } else {
                print!("{}", table::step(&step));
            }
            steps.push(step);
        };
        let measured = tokio::select! {
            measured = what.run(options, &mut print) => measured,
            _ = terminate.recv() => Err("stopped".into()),
            _ = interrupt.recv() => Err("stopped".into()),
        };
        if !options.json && steps.iter().any(|step| !step.goals.is_empty()) {
            print!("{}", table::goals(&steps));
        }
        measured
    })
}
