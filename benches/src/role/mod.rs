//! What the processes of a benchmark do.

pub mod action;
pub mod client;
pub mod echo;
pub mod gearman;

use crate::{
    child,
    fault::{Fault, fault},
};
use std::collections::BTreeMap;

/// What a process of the benchmark is.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Role {
    /// The raw tonic server.
    Echo(Threads),
    /// The application whose actions are triggered.
    Action(Threads),
    /// Callers, reporters and watchers.
    Client(Threads),
    /// Workers of gearmand.
    Gearman {
        /// Of gearmand.
        #[arg(long)]
        port: u32,
        /// Workers.
        #[arg(long)]
        workers: usize,
    },
    /// Becomes another program that dies with its parent.
    Exec {
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
}

/// Of a process's runtime.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Threads {
    /// Worker threads; 0 is the service's default.
    #[arg(long)]
    threads: usize,
}

impl Threads {
    /// The service's, so that both are alike.
    fn runtime(self) -> Result<tokio::runtime::Runtime, Fault> {
        backjob::cli::local::runtime(self.threads).map_err(|error| fault(error.to_string()))
    }
}

impl Role {
    /// Runs until the parent asks no more.
    pub fn run(self) -> Result<(), Fault> {
        child::die_with_parent()?;
        raise_descriptors();
        match self {
            Self::Echo(threads) => threads.runtime()?.block_on(echo::run()),
            Self::Action(threads) => threads.runtime()?.block_on(action::run()),
            // One thread: what clients use is not to weigh on the service.
            Self::Client(_) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(client::run())
            }
            Self::Gearman { port, workers } => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(gearman::work(port, workers))
            }
            Self::Exec { command } => {
                use std::os::unix::process::CommandExt as _;
                let (program, arguments) = command.split_first().ok_or("no program")?;
                Err(std::process::Command::new(program).args(arguments).exec().into())
            }
        }
    }
}

/// As many as the system allows: thousands of connections need one each.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // What fails for want of one says so itself.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Where the processes are, by name: a port, or a process id.
pub type Places = BTreeMap<String, u32>;
