//! The servers of the peers: each on a free port of loopback, in a folder of its
//! own, and ended with this process.

use crate::{
    clock,
    fault::{Fault, fault},
    proc::{Cpu, Memory, descendants},
};
use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

/// What a start may take.
const START: Duration = Duration::from_secs(30);

/// A server that takes connections.
pub struct Server {
    process: Child,
    pub port: u16,
}

impl Server {
    /// Redis; durable on each write, or not at all.
    pub async fn redis(program: &Path, folder: &Path, always: bool) -> Result<Self, Fault> {
        let port = free_port()?;
        let append = if always { ["yes", "always"] } else { ["no", "no"] };
        let mut command = dying(program)?;
        command.args(["--bind", "127.0.0.1", "--save", "", "--maxmemory-policy", "noeviction"]);
        command.args(["--appendonly", append[0], "--appendfsync", append[1]]);
        command.arg("--port").arg(port.to_string()).arg("--dir").arg(folder);
        Self::start(command, folder, port).await
    }

    /// gearmand with its queue in memory.
    pub async fn gearmand(program: &Path, folder: &Path) -> Result<Self, Fault> {
        let port = free_port()?;
        let mut command = dying(program)?;
        command.arg("--listen=127.0.0.1").arg(format!("--port={port}")).arg("--log-file=stderr");
        Self::start(command, folder, port).await
    }

    /// PostgreSQL as it is installed, but without a socket file. `programs` is the
    /// folder of initdb and postgres, which refuse to run as root.
    pub async fn postgres(programs: &Path, folder: &Path) -> Result<Self, Fault> {
        let port = free_port()?;
        let data = folder.join("data");
        fs::create_dir(&data)?;
        let root = rustix::process::geteuid().is_root();
        if root {
            std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY))?;
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        let as_nobody = |mut command: Command| {
            if root {
                command.uid(NOBODY).gid(NOBODY);
            }
            command.current_dir(&data);
            command
        };
        let mut init = as_nobody(Command::new(programs.join("initdb")));
        init.args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--pgdata"])
            .arg(&data);
        let output = init.stdin(Stdio::null()).output().await?;
        if !output.status.success() {
            return Err(fault(format!("initdb: {}", String::from_utf8_lossy(&output.stderr))));
        }
        let mut command = as_nobody(dying(&programs.join("postgres"))?);
        command.arg("-D").arg(&data).arg("-p").arg(port.to_string());
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        Self::start(command, folder, port).await
    }

    async fn start(mut command: Command, folder: &Path, port: u16) -> Result<Self, Fault> {
        let log = folder.join("server.log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).kill_on_drop(true);
        let mut process = command.spawn()?;
        let from = clock::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            if process.try_wait()?.is_some() || clock::since(from) > START {
                return Err(fault(format!("a peer does not start: {}", fs::read_to_string(log)?)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { process, port })
    }

    /// Of the process.
    pub fn id(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// It and its children.
    pub fn pids(&self) -> Vec<u32> {
        descendants(self.id())
    }

    /// KiB of it and its children.
    pub fn memory(&self) -> f64 {
        self.pids().into_iter().filter_map(|pid| Some(Memory::of(pid).ok()?.pss)).sum()
    }
}

/// CPU of several processes; those that end meanwhile do not count.
pub struct Used(Vec<(u32, Cpu)>);

impl Used {
    /// Up to now.
    pub fn by(pids: &[u32]) -> Self {
        Self(pids.iter().filter_map(|pid| Some((*pid, Cpu::of(*pid).ok()?))).collect())
    }

    /// Microseconds since `earlier`.
    pub fn since(&self, earlier: &Self) -> f64 {
        let pairs = self.0.iter().filter_map(|(pid, used)| {
            let before = earlier.0.iter().find(|(other, _)| other == pid);
            Some(used.since(&before?.1))
        });
        pairs.sum::<u64>() as f64 / 1e3
    }
}

/// User and group `nobody` of Debian.
const NOBODY: u32 = 65_534;

/// A command whose process ends with this one.
fn dying(program: &Path) -> Result<Command, Fault> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["role", "exec", "--"]).arg(program);
    Ok(command)
}

/// Free a moment ago.
fn free_port() -> Result<u16, Fault> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where the peers are.
#[derive(Debug, Clone, clap::Args)]
pub struct Programs {
    /// redis-server.
    #[arg(long)]
    pub redis: PathBuf,
    /// Folder of postgres and initdb.
    #[arg(long)]
    pub postgres: PathBuf,
    /// gearmand.
    #[arg(long)]
    pub gearmand: PathBuf,
    /// Folder with node_modules of bullmq and graphile-worker.
    #[arg(long)]
    pub node: PathBuf,
    /// Folder of the scripts that use them.
    #[arg(long)]
    pub scripts: PathBuf,
}
