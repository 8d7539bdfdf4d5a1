//! Faults of the machine below a real server: each is told to callers by its
//! reason, health says so while it lasts, and it passes by itself with nothing lost
//! that was acknowledged.

mod clock;
mod damage;
mod descriptors;
mod disk;
mod log;
mod mount;

use crate::harness::*;
use backjob::proto::v1;
use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};
use tonic::Status;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

/// Numbers of errors, as the system gives them.
pub(super) const EIO: i32 = 5;
pub(super) const ENOSPC: i32 = 28;
pub(super) const EROFS: i32 = 30;

/// What a server under the shim is told to do wrong. The numbers are places in the
/// file of orders, as shim.c reads it.
#[derive(Clone, Copy)]
pub enum Order {
    WriteErrno = 0,
    SyncErrno = 4,
    ReadErrno = 8,
    SyncDelay = 12,
    Hang = 16,
    ClockShift = 20,
}

/// Orders for one server.
pub struct Shim {
    library: &'static Path,
    orders: PathBuf,
}

impl Shim {
    /// Its file is kept in the folder of `setup`.
    pub fn new(setup: &Setup) -> Self {
        let orders = setup.file("orders");
        fs::write(&orders, [0; 4096]).expect("written");
        Self { library: library(), orders }
    }

    pub fn tell(&self, order: Order, value: i32) {
        let file = fs::OpenOptions::new().write(true).open(&self.orders).expect("there");
        file.write_all_at(&value.to_ne_bytes(), order as u64).expect("written");
    }

    /// A server under it.
    pub async fn serve(&self, setup: &Setup) -> Process {
        let mut command = setup.command("serve");
        command.env("LD_PRELOAD", self.library).env("BACKJOB_TEST_SHIM", &self.orders);
        Process::run(command).await
    }
}

/// Made once. A C compiler is there: the database is made with it.
fn library() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults/shim.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shim-{}.so", std::process::id()));
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status();
        assert!(made.expect("cc").success());
        library
    })
}

/// What `grpc.health.v1` says.
pub(super) async fn serving(clients: &Clients) -> bool {
    let request = HealthCheckRequest { service: "backjob.v1.JobControl".to_owned() };
    let answer = HealthClient::new(clients.channel()).check(request).await.expect("an answer");
    answer.into_inner().status() == tonic_health::ServingStatus::Serving.into()
}

pub(super) async fn until_serving(clients: &Clients, wanted: bool) {
    let what = if wanted { "SERVING" } else { "NOT_SERVING" };
    poll(what, async || if serving(clients).await == wanted { Ok(()) } else { Err("the other".into()) })
        .await;
}

/// That a call was answered as one is that may be repeated later.
pub(super) fn unavailable(status: &Status) {
    assert_eq!(fault(status), (tonic::Code::Unavailable, "STORE_UNAVAILABLE".into(), vec![]), "{status:?}");
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
}

/// Starts until one is refused; those that were acknowledged.
pub(super) async fn start_until_refused(clients: &Clients, request: v1::StartRequest) -> Vec<String> {
    let taken = std::sync::Mutex::new(Vec::new());
    poll("a Start to be refused", async || match clients.start_raw(request.clone()).await {
        Ok(started) => {
            let id = started.job.expect("a job").id;
            let mut taken = taken.lock().expect("no panic");
            taken.push(id);
            Err(format!("{} were taken", taken.len()))
        }
        Err(status) => {
            unavailable(&status);
            Ok(())
        }
    })
    .await;
    taken.into_inner().expect("no panic")
}

/// That what was seen to succeed is so on the disk, after a server was killed.
pub(super) async fn all_succeeded(setup: &Setup, ids: &[String]) {
    let server = Process::start(setup).await;
    for id in ids {
        assert_eq!(server.get(id).await.state(), v1::JobState::Succeeded);
    }
    server.kill().await;
}

/// Waits until the log has a line with all of these.
pub(super) async fn until_said(server: &Process, what: &[&str]) {
    poll("the log", async || {
        let log = server.log();
        let said = log.iter().any(|line| what.iter().all(|what| line.contains(what)));
        if said { Ok(()) } else { Err(format!("nothing with {what:?} in {log:#?}")) }
    })
    .await;
}
