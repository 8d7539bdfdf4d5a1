//! The service under measurement: `backjob serve` as it is released, on a
//! database file, with everything on.

use crate::{
    clock,
    fault::{Fault, fault},
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::process::{Child, Command};

/// What the start may take, recovery of a large database included.
const START: Duration = Duration::from_secs(60);

/// A running service.
pub struct Service {
    process: Child,
    /// Where it listens.
    pub port: u16,
    folder: PathBuf,
}

impl Service {
    /// Starts `program` in `folder`, which may hold a database already.
    pub async fn start(program: &Path, folder: &Path, settings: &[(String, String)]) -> Result<Self, Fault> {
        let log = folder.join("service.log");
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["role", "exec", "--"]).arg(program).arg("serve");
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let mut process = command
            .current_dir(folder)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .kill_on_drop(true)
            .spawn()?;
        let from = clock::now();
        loop {
            let said = fs::read_to_string(&log)?;
            let address =
                said.lines().find_map(|line| line.split_once("serving address=")?.1.split(' ').next());
            if let Some(port) = address.and_then(|address| address.rsplit(':').next()?.parse().ok()) {
                return Ok(Self { process, port, folder: folder.to_owned() });
            }
            if process.try_wait()?.is_some() || clock::since(from) > START {
                return Err(fault(format!("the service does not start: {said}")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Of the process.
    pub fn id(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// Ends it in order.
    pub async fn stop(&mut self) -> Result<ExitStatus, Fault> {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = i32::try_from(self.id())?;
        kill_process(Pid::from_raw(pid).ok_or("it has ended")?, Signal::TERM)?;
        let ended = tokio::time::timeout(Duration::from_secs(60), self.process.wait()).await;
        Ok(ended.map_err(|_| fault("the service does not end"))??)
    }

    /// What it warned of, at most the last lines.
    pub fn warnings(&self) -> String {
        let said = fs::read_to_string(self.folder.join("service.log")).unwrap_or_default();
        let lines: Vec<_> =
            said.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

/// Id and key, in base64url, of what the application checks triggers with.
pub async fn trigger_key(
    program: &Path,
    folder: &Path,
    settings: &[(String, String)],
    target: &str,
) -> Result<(String, String), Fault> {
    let mut command = Command::new(program);
    command.args(["keygen", "--target", target]).current_dir(folder).env_remove("RUST_LOG");
    for (key, value) in settings {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    let output = command.output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    said("keyid ")
        .zip(said("key "))
        .ok_or_else(|| fault(format!("no trigger key: {text}{}", String::from_utf8_lossy(&output.stderr))))
}

/// The program to measure: beside this one, brought up to date by cargo where
/// cargo runs this.
pub async fn program() -> Result<PathBuf, Fault> {
    let beside = std::env::current_exe()?.with_file_name("backjob");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        // Together, so that both share what they depend on.
        build.args([
            "build",
            "--quiet",
            "--package",
            "backjob",
            "--package",
            "backjob-bench",
            "--bin",
            "backjob",
        ]);
        if beside.parent().is_some_and(|folder| folder.ends_with("release")) {
            build.arg("--release");
        }
        if !build.stdin(Stdio::null()).status().await?.success() {
            return Err(fault("backjob cannot be built"));
        }
    }
    if beside.exists() { Ok(beside) } else { Err(fault(format!("{} is not there", beside.display()))) }
}
