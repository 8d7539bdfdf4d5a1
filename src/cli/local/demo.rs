//! `backjob demo`: one job from its start to its end, with a server and an
//! application of its own.

mod application;
mod work;

use super::{Fault, serve::stop_on_signals};
use crate::{
    app::{self, App, Stop},
    cli::{client::Client, watch},
    clock::SystemClock,
    config::{Config, LogFormat, Sources},
    proto::v1,
    secret::Use,
    verify::Verifier,
};
use std::{net::SocketAddr, process::ExitCode};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// Where a server that is kept listens, if it can.
const KEPT: &str = "127.0.0.1:50051";

/// Shows a job run, on a temporary database.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Leave the server and its application running, to play with.
    #[arg(long)]
    keep: bool,
}

impl Demo {
    /// Runs it.
    ///
    /// # Errors
    /// If the server does not start or the job cannot be followed.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let _log = crate::telemetry::init(LogFormat::Human, "warn").map_err(Fault::new)?;
        super::runtime(0)?.block_on(self.show())
    }

    async fn show(self) -> Result<ExitCode, Fault> {
        let folder = tempfile::Builder::new().prefix("backjob-demo-").tempdir().map_err(Fault::new)?;
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(Fault::new)?;
        let application = listener.local_addr().map_err(Fault::new)?;
        let config = self.config(&folder, application).await?;
        let keys = app::keys(&config, &SystemClock::new()).map_err(Fault::new)?;
        let key = keys.current().derive(Use::Trigger, "default");
        let verifier = Verifier::new(app::keyid(&keys, "default"), &key);
        let app = App::build(&config).await.map_err(Fault::new)?;
        let address = app.address();
        println!("server       {address}, database {}", folder.path().join("backjob.db").display());
        println!("application  http://{application}, action POST {}", application::ROUTE);
        let stop = if self.keep { stop_on_signals().map_err(Fault::new)? } else { Stop::default() };
        let shown = async {
            let code = job(address).await;
            if self.keep && code.is_ok() {
                println!("\nIt keeps running; Ctrl-C ends it. To see more:\n{}", by_hand(address));
                stop.drain.cancelled().await;
            }
            stop.drain.cancel();
            code
        };
        let (code, (), ()) = tokio::join!(
            shown,
            app.run(stop.clone()),
            application::serve(listener, verifier, stop.drain.clone())
        );
        let code = code?;
        if !self.keep {
            let kept = KEPT.parse().map_err(Fault::new)?;
            println!("\nTo repeat it by hand, run `backjob demo --keep` and then:\n{}", by_hand(kept));
        }
        Ok(code)
    }

    async fn config(&self, folder: &TempDir, application: SocketAddr) -> Result<Config, Fault> {
        // Free now is free enough: if not, the error says so.
        let free = self.keep && TcpListener::bind(KEPT).await.is_ok();
        let flags = [
            ("server.listen", if free { KEPT.to_owned() } else { "127.0.0.1:0".to_owned() }),
            ("database.url", format!("sqlite://{}", folder.path().join("backjob.db").display())),
            ("targets.default.url", format!("http://{application}")),
        ];
        let flags = flags.map(|(key, value)| (key.to_owned(), value)).into();
        let sources =
            Sources { folder: folder.path().to_owned(), file: None, environment: Vec::new(), flags };
        Config::load(sources).map_err(Fault::new)
    }
}

/// Starts the job over gRPC, as any client would, and follows it.
async fn job(address: SocketAddr) -> Result<ExitCode, Fault> {
    let client = Client::at(address.to_string()).map_err(Fault::text)?;
    let action = v1::Action {
        method: "POST".into(),
        route: application::ROUTE.into(),
        form: [("words".to_owned(), application::WORDS.to_string())].into(),
        ..Default::default()
    };
    let display_name = "how alike are our own sources?".to_owned();
    let request = v1::StartRequest { action: Some(action), display_name, ..Default::default() };
    let started = client.control().start(request).await.map_err(Fault::new)?.into_inner();
    let id = started.job.unwrap_or_default().id;
    println!("job          {id}\n");
    watch::follow(&client, watch::Follow::one(id, false)).await.map_err(Fault::text)
}

fn by_hand(address: SocketAddr) -> String {
    let route = application::ROUTE;
    format!(
        "  grpcurl -plaintext -d '{{\"action\": {{\"method\": \"POST\", \"route\": \"{route}\"}}}}' \\\n    {address} backjob.v1.JobControl/Start\n  \
         grpcurl -plaintext -d '{{\"job_ids\": [\"ID\"]}}' {address} backjob.v1.JobControl/WatchStatus\n  \
         BACKJOB_ADDR={address} backjob start POST {route} --follow"
    )
}
