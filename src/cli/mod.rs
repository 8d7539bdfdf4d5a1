//! The command line.
//!
//! The commands of this folder are clients like any other: they know the
//! generated messages alone. Those in `local` run parts of the server.
//!
//! Exit codes: 0 done (and every watched job SUCCEEDED), 1 a watched job FAILED
//! or was CANCELLED, 2 the command itself failed.

mod client;
mod jobs;
mod json;
pub mod local;
mod screen;
mod start;
mod values;
mod watch;

use clap::{CommandFactory as _, Parser as _};
use std::process::ExitCode;

#[derive(Debug, clap::Parser)]
#[command(name = "backjob", version, about, long_about = None, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    client: client::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Start a job, as in `backjob start POST /reports/build -d id=5 --follow`.
    Start(Box<start::Start>),
    /// Show a job.
    Status(jobs::Status),
    /// Show the attempts of a job.
    Attempts(jobs::Attempts),
    /// Follow jobs to their end.
    Watch(watch::Watch),
    /// List jobs, newest first.
    List(jobs::List),
    /// Say why a job waits or failed.
    Why(jobs::Why),
    /// Cancel jobs.
    Cancel(jobs::Cancel),
    /// Run ended jobs again.
    Retry(jobs::Retry),
    /// Erase ended jobs.
    Delete(jobs::Delete),
    #[command(flatten)]
    Local(local::Command),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    let Cli { client, command } = Cli::parse();
    let result = match command {
        Command::Local(local) => local.run().map_err(|fault| fault.to_string()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "backjob", &mut script);
            screen::out(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS)
        }
        remote => run_remote(client, remote),
    };
    result.unwrap_or_else(|error| {
        if error != screen::CLOSED {
            eprintln!("backjob: {error}");
        }
        ExitCode::from(2)
    })
}

fn run_remote(options: client::Options, command: Command) -> Result<ExitCode, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let client = client::Client::new(options)?;
        match command {
            Command::Start(start) => start.run(&client).await,
            Command::Status(status) => status.run(&client).await,
            Command::Attempts(attempts) => attempts.run(&client).await,
            Command::Watch(watch) => watch.run(&client).await,
            Command::List(list) => list.run(&client).await,
            Command::Why(why) => why.run(&client).await,
            Command::Cancel(cancel) => cancel.run(&client).await,
            Command::Retry(retry) => retry.run(&client).await,
            Command::Delete(delete) => delete.run(&client).await,
            Command::Local(_) | Command::Completions { .. } => Ok(ExitCode::SUCCESS), // run above
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_start_is_read_like_a_curl() {
        let line = "backjob start POST /reports/build -q page=1 -d id=5 -d name=Name --follow --after 5s";
        let cli = Cli::try_parse_from(line.split(' ')).expect("a good line");
        let Command::Start(start) = cli.command else { panic!("not a start") };
        let request = start.request().expect("a request");
        let action = request.action.expect("an action");
        assert_eq!((action.method.as_str(), action.route.as_str()), ("POST", "/reports/build"));
        assert_eq!(action.query, [("page".to_owned(), "1".to_owned())].into());
        assert_eq!(action.form.len(), 2);
        assert_eq!(request.start_after, Some(prost_types::Duration { seconds: 5, nanos: 0 }));
    }
}
