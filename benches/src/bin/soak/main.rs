//! Soak: a steady load for as long as one likes, and what it makes of memory,
//! descriptors, threads, files and latency.
//!
//! ```sh
//! cargo build --release --workspace
//! target/release/backjob-soak --seconds 1200
//! ```
//!
//! The server is a process of its own, `backjob serve` on a database in a temporary
//! folder, with retention of seconds: what is erased must make room for what comes.
//! The application and its callers are this process. The exit code tells whether
//! every call went as it should; with --flat also whether nothing grew.

mod action;
mod gauge;
mod load;
mod server;

use clap::Parser;
use gauge::{Gauge, Sample, Verdict};
use load::{Load, Tally};
use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Whatever goes wrong here is told and ends the run.
type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Holds a steady load on a server and prints what it costs over time.
#[derive(Debug, Parser)]
struct Options {
    /// How long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Between two lines.
    #[arg(long, default_value_t = 10)]
    every: u64,
    /// Jobs started in a second.
    #[arg(long, default_value_t = 50)]
    rate: u64,
    /// How long ended jobs are kept, seconds.
    #[arg(long, default_value_t = 10)]
    kept: u64,
    /// Fail where memory, descriptors, threads or files grew by a tenth from the second
    /// third of the time to the last, or where that cannot be told.
    #[arg(long)]
    flat: bool,
    /// The program under load; the `backjob` beside this one if not given.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Further settings of the server, NAME=VALUE.
    #[arg(long = "set")]
    set: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("backjob-soak: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every call went as it should.
async fn run(options: Options) -> Result<bool, Fault> {
    let tally = Arc::new(Tally::default());
    let application = action::serve(Arc::clone(&tally)).await?;
    let server = server::Server::start(&options, application).await?;
    let gauge = Gauge { pid: server.pid(), folder: server.folder().to_owned() };
    let load = Load::new(server.address(), Arc::clone(&tally), options.kept)?;
    println!(
        "{} jobs/s for {} s, ended ones kept for {} s, server {} (process {})",
        options.rate,
        options.seconds,
        options.kept,
        server.address(),
        server.pid()
    );
    println!("{}", Sample::HEAD);
    let began = Instant::now();
    let mut samples = Vec::new();
    {
        let load = load.hold(options.rate);
        tokio::pin!(load);
        let mut ticks = interval(Duration::from_secs(options.every.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        while began.elapsed() < Duration::from_secs(options.seconds) {
            tokio::select! {
                () = &mut load => unreachable!("the load is held until it is dropped"),
                _ = ticks.tick() => {
                    let sample = gauge.sample(began.elapsed(), &tally)?;
                    println!("{sample}");
                    samples.push(sample);
                }
                _ = tokio::signal::ctrl_c() => break,
                () = tokio::time::sleep_until(began + Duration::from_secs(options.seconds)) => {}
            }
        }
    }
    let ended = load.settle().await;
    let stopped = server.stop().await?;
    let verdict = Verdict::of(&samples);
    match &verdict {
        Some(verdict) => println!("\n{verdict}"),
        None => println!("\nToo short to tell whether anything grows: nine lines are the least."),
    }
    let failures = tally.failures();
    let (jobs, failed) = (tally.jobs(), failures.len());
    println!("{jobs} jobs, {failed} calls that did not go as they should");
    failures.iter().take(10).for_each(|failure| println!("  {failure}"));
    if !ended {
        println!("some jobs did not end");
    }
    if !stopped {
        println!("the server did not stop in order");
    }
    let flat = !options.flat || verdict.is_some_and(|verdict| verdict.is_flat());
    Ok(failures.is_empty() && ended && stopped && jobs > 0 && flat)
}
