//! Whoever reads the log does not read.

use super::*;
use backjob::proto::v1::JobState;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// What is told of so many is far more than a pipe and the server hold.
const JOBS: usize = 100;

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_no_job() {
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let mut command = setup.command("serve");
    command.env("RUST_LOG", "trace").stdout(Stdio::null()).kill_on_drop(true);
    let mut server = command.spawn().expect("the program");
    let mut lines = BufReader::new(server.stderr.take().expect("a pipe")).lines();
    let address = loop {
        let line = soon("the server to serve", lines.next_line()).await.expect("text").expect("a line");
        if let Some(address) = address_in(&line) {
            break address;
        }
    };
    let clients = Clients::new(address);
    for n in 0..JOBS {
        let job = clients.start(start(&format!("/{n}"))).await;
        let mut hit = application.hit().await;
        clients.report(&hit.token(), progress(50)).await.expect("taken");
        hit.ok();
        assert_eq!(clients.end(&job.id).await.state(), JobState::Succeeded);
    }
    let mut read = 0;
    let lost = loop {
        let line = soon("word of lost lines", lines.next_line()).await.expect("text").expect("a line");
        read += line.len();
        if let Some((_, lost)) = line.split_once("lines of this log are lost") {
            break lost.to_owned();
        }
    };
    assert!(read > 1 << 20, "{read} bytes were read");
    assert!(lost.contains("lines="), "{lost}");
    // What comes now is read again.
    let job = clients.start(start("/b")).await;
    loop {
        let line = soon("the newest line", lines.next_line()).await.expect("text").expect("a line");
        if line.contains(&job.id) {
            break;
        }
    }
}
