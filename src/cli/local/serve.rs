//! `backjob serve`: the server.

use super::{Fault, Settings};
use crate::app::{App, Stop};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the server until SIGTERM or SIGINT; a second one hurries it.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Listen here [default: 127.0.0.1:50051].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Keep jobs here: sqlite://PATH or sqlite::memory: [default:
    /// sqlite://backjob.db].
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Trigger the application at this URL [default: http://127.0.0.1:8080].
    #[arg(long, value_name = "URL")]
    target: Option<String>,
    /// Accept an address that is not loopback without TLS and tokens: everyone
    /// who reaches it can start, read and cancel jobs, and who sees the traffic
    /// can read it.
    #[arg(long)]
    insecure: bool,
    /// Which events to log, as in RUST_LOG, which beats it [default: info].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How to log: human or json [default: human].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    /// Runs it.
    ///
    /// # Errors
    /// If it does not start, or its listener fails.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let mut settings = self.settings;
        let insecure = self.insecure.then(|| "true".to_owned());
        for (key, value) in [
            ("server.listen", self.listen),
            ("database.url", self.database),
            ("targets.default.url", self.target),
            ("server.insecure", insecure),
            ("log.level", self.log),
            ("log.format", self.log_format),
        ] {
            settings.set.extend(value.map(|value| (key.to_owned(), value)));
        }
        let config = settings.load()?;
        let _log = crate::telemetry::init(config.log.format, &config.log.level).map_err(Fault::new)?;
        raise_descriptors();
        super::runtime(config.server.threads)?.block_on(async {
            let app = App::build(&config).await.map_err(Fault::new)?;
            let stop = stop_on_signals().map_err(Fault::new)?;
            app.run(stop).await;
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// As many descriptors as the system allows: each connection takes one, and the
/// usual 1,024 are soon used up. That it fails is no reason not to serve.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
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
