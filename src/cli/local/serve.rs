//! `backjob serve`: the server.

use super::{Fault, Settings};
use crate::app::{App, Stop};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the server until SIGTERM or SIGINT; a second one hurries it.
#[derive(Debug, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    /// Runs it.
    ///
    /// # Errors
    /// If it does not start, or its listener fails.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let config = self.settings.load()?;
        crate::telemetry::init(config.log.format, &config.log.level).map_err(Fault::new)?;
        super::runtime(config.server.threads)?.block_on(async {
            let app = App::build(&config).await.map_err(Fault::new)?;
            let stop = stop_on_signals().map_err(Fault::new)?;
            app.run(stop).await.map_err(Fault::new)?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// The first signal drains, the second hurries.
#[expect(clippy::disallowed_methods, reason = "it listens for as long as the process lives")]
pub(super) fn stop_on_signals() -> std::io::Result<Stop> {
    let stop = Stop::default();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = stop.clone();
    tokio::spawn(async move {
        for token in [told.drain, told.hurry] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(stop)
}
