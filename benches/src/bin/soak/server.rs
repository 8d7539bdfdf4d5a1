//! The server under load, as a process of its own.

use super::{Fault, Options};
use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

/// How long it may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Server {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
    /// Reads on what it says, and shows what is worse than information.
    _log: JoinSet<()>,
}

impl Server {
    /// Starts it on a database of its own, with triggers to `application`.
    pub async fn start(options: &Options, application: SocketAddr) -> Result<Self, Fault> {
        let program = match &options.server {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("backjob"),
        };
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(&program);
        command.current_dir(folder.path()).arg("serve").env_remove("RUST_LOG");
        let settings = [
            "server.listen=127.0.0.1:0".to_owned(),
            "jobs.error_timeout=20s".to_owned(),
            "targets.default.max_in_flight=64".to_owned(),
            format!("targets.default.url=http://{application}"),
            format!("retention.succeeded={}s", options.kept),
            format!("retention.all={}s", options.kept),
        ];
        for setting in settings.iter().chain(&options.set) {
            command.arg("--set").arg(setting);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no pipe")?).lines();
        let listens = async {
            let mut said = Vec::new();
            while let Some(line) = lines.next_line().await? {
                if let Some((_, address)) = line.split_once("serving address=") {
                    return Ok::<SocketAddr, Fault>(address.trim().parse()?);
                }
                said.push(line);
            }
            Err(said.join("\n").into())
        };
        let address = timeout(PATIENCE, listens).await??;
        let mut log = JoinSet::new();
        log.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains(" WARN ") || line.contains(" ERROR ") {
                    eprintln!("server: {line}");
                }
            }
        });
        Ok(Self { child, address, folder, _log: log })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// SIGTERM; whether it ended in order.
    pub async fn stop(mut self) -> Result<bool, Fault> {
        let told = Command::new("kill").arg("-TERM").arg(self.pid().to_string()).status().await?;
        let ended = timeout(PATIENCE, self.child.wait()).await;
        Ok(told.success() && ended.is_ok_and(|ended| ended.is_ok_and(|status| status.success())))
    }
}
