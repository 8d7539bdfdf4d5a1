//! Commands that run here and know the server's parts.

mod backup;
mod config;
mod demo;
mod keygen;
mod migrate;
mod serve;
mod token;

use crate::config::{Config, Sources};
use std::{error::Error, fmt, path::PathBuf, process::ExitCode};

/// Commands that need no server.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run the server.
    Serve(serve::Serve),
    /// Show a job run from its start to its end, with a server of its own.
    Demo(demo::Demo),
    /// Make the tables, or bring them up to date.
    Migrate(migrate::Migrate),
    /// Copy the database while a server uses it.
    Backup(backup::Backup),
    /// Print the settings in use, and where each came from.
    Config(config::Show),
    /// Make a root key, or print the trigger key of a target.
    Keygen(keygen::Keygen),
    /// Make a caller's token.
    Token(token::Token),
}

impl Command {
    /// Runs it.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Serve(serve) => serve.run(),
            Self::Demo(demo) => demo.run(),
            Self::Migrate(migrate) => migrate.run(),
            Self::Backup(backup) => backup.run(),
            Self::Config(show) => show.run(),
            Self::Keygen(keygen) => keygen.run(),
            Self::Token(token) => token.run(),
        }
    }
}

/// What went wrong, for people.
#[derive(Debug)]
pub struct Fault(String);

impl Fault {
    fn new(error: impl Error) -> Self {
        Self(error.to_string())
    }

    fn text(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the settings come from.
#[derive(Debug, clap::Args)]
struct Settings {
    /// Read settings from FILE [default: backjob.toml, if it is there].
    #[arg(long, value_name = "FILE", env = "BACKJOB_CONFIG")]
    config: Option<PathBuf>,
    /// Set one setting, as in `--set server.listen=127.0.0.1:50052`.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is expected")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl Settings {
    fn load(&self) -> Result<Config, Fault> {
        Config::load(Sources::of_process(self.config.clone(), self.set.clone())).map_err(Fault::new)
    }
}

/// A runtime with this many threads; 0 is one less than there are cores, since the
/// database has a thread of its own, and one at least.
///
/// # Errors
/// The system refuses a thread or a descriptor.
pub fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Fault> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1)),
        threads => threads,
    };
    let mut builder = match threads {
        // By itself it need not look for others: a tenth less CPU a call.
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    // Of those that work alone there is one, whatever is asked for.
    builder.worker_threads(threads).enable_all().build().map_err(Fault::new)
}
