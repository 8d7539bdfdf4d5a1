//! The program, as people and scripts use it.

use crate::harness::*;
use backjob::proto::v1::JobState;
use serde_json::Value;
use std::{
    net::SocketAddr,
    process::{Output, Stdio},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

fn program(address: SocketAddr, arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_backjob"));
    program.args(arguments).env("BACKJOB_ADDR", address.to_string()).env_remove("BACKJOB_TOKEN");
    program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    program
}

async fn run(address: SocketAddr, arguments: &[&str]) -> Output {
    soon(&arguments.join(" "), program(address, arguments).output()).await.expect("the program")
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn lines(output: &Output) -> Vec<Value> {
    said(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn a_job_is_started_followed_and_shown() {
    let (server, application) = pair().await;
    let line =
        ["start", "POST", "/reports/build", "-q", "page=1", "-d", "id=5", "-d", "name=Name", "--follow"];
    let following = spawn(program(server.address, &line).output());
    let mut hit = application.hit().await;
    assert_eq!((hit.method.as_str(), hit.uri.to_string().as_str()), ("POST", "/reports/build?page=1"));
    assert_eq!(&hit.body[..], b"id=5&name=Name");
    server.report(&hit.token(), append("half way\n")).await.expect("taken");
    server.report(&hit.token(), progress(50)).await.expect("taken");
    hit.ok();
    let output = soon("the follower", following).await.expect("no panic").expect("the program");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output.stderr));
    let lines = lines(&output);
    let id = lines[0]["job"]["id"].as_str().expect("an id").to_owned();
    // Whether `synced` comes before the end or after it is a matter of who is quicker.
    let last = lines.iter().rfind(|line| line.get("job").is_some()).expect("a job");
    assert_eq!(
        (last["job"]["state"].as_str(), last["job"]["progress"].as_u64()),
        (Some("JOB_STATE_SUCCEEDED"), Some(100))
    );
    let output = run(server.address, &["status", &id]).await;
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((shown["id"].as_str(), shown["statusText"].as_str()), (Some(id.as_str()), Some("half way\n")));
    let output = run(server.address, &["status", &id, "-o", "human"]).await;
    let text = said(&output.stdout);
    assert!(text.contains("succeeded") && text.contains("half way"), "{text}");
}

#[tokio::test]
async fn every_body_and_option_of_start_arrives() {
    let (server, application) = pair().await;
    let body = r#"{"n": 1, "list": [true, null]}"#;
    run(
        server.address,
        &["start", "/json", "--json", body, "-H", "X-A: b", "--priority", "7", "-l", "a=b", "--name", "N"],
    )
    .await;
    let mut hit = application.hit().await;
    let sent: Value = serde_json::from_slice(&hit.body).expect("JSON");
    assert_eq!(
        (sent, hit.header("x-a"), hit.method.as_str()),
        (serde_json::from_str(body).expect("JSON"), "b", "POST")
    );
    let job = server.get(hit.header("backjob-job-id")).await;
    assert_eq!(
        (job.priority, job.display_name.as_str(), job.labels.get("a").map(String::as_str)),
        (7, "N", Some("b"))
    );
    hit.ok();
    let file = server.setup.file("body.bin");
    std::fs::write(&file, [0, 1, 2]).expect("written");
    let at = format!("@{}", file.display());
    run(server.address, &["start", "PUT", "/raw", "--raw", &at, "--content-type", "image/png"]).await;
    let mut hit = application.hit().await;
    assert_eq!((&hit.body[..], hit.header("content-type")), (&[0, 1, 2][..], "image/png"));
    hit.ok();
    let output = run(server.address, &["start", "/later", "--after", "1h"]).await;
    assert_eq!(lines(&output)[0]["job"]["state"], "JOB_STATE_SCHEDULED");
}

#[tokio::test]
async fn the_exit_code_says_how_jobs_ended() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    application.hit().await.answer(500, &[], "");
    let output = run(server.address, &["watch", &job.id, "-o", "human"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output.stdout).contains("HTTP_STATUS"), "{}", said(&output.stdout));
    let output = run(server.address, &["watch", "01890a5d-ac96-774b-bcce-b302099a8057"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output.stderr).contains("JOB_NOT_FOUND"), "{}", said(&output.stderr));
    let output = run(server.address, &["start", "no-slash", "--priority", "12"]).await;
    let error = said(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("action.route") && error.contains("priority"), "{error}");
    let output = run("127.0.0.1:1".parse().expect("an address"), &["status", &job.id]).await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn jobs_are_listed_and_cancelled() {
    let (server, _application) = pair().await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let output = run(server.address, &["start", &format!("/{n}"), "--after", "1h", "-l", "n=x"]).await;
        ids.push(lines(&output)[0]["job"]["id"].as_str().expect("an id").to_owned());
    }
    let output = run(server.address, &["list", "--limit", "2"]).await;
    let listed: Vec<_> = lines(&output).iter().map(|job| job["id"].as_str().map(str::to_owned)).collect();
    assert_eq!(listed, [Some(ids[2].clone()), Some(ids[1].clone())]);
    let output = run(server.address, &["list", "--state", "succeeded"]).await;
    assert!(output.stdout.is_empty() && output.status.success());
    let output = run(server.address, &["list", "-o", "human", "--label", "n=x", "--all"]).await;
    assert_eq!(said(&output.stdout).lines().count(), 4, "a line for each and one above");
    let output = run(server.address, &["cancel", &ids[0], &ids[1]]).await;
    assert!(output.status.success());
    assert!(lines(&output).iter().all(|job| job["state"] == "JOB_STATE_CANCELLED"));
    let output = run(server.address, &["cancel", "nonsense"]).await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn the_attempts_of_a_job_are_shown() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    application.hit().await.answer(404, &[], "");
    server.end(&job.id).await;
    let output = run(server.address, &["attempts", &job.id]).await;
    let attempts = lines(&output);
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0]["attempt"].as_u64(), attempts[0]["httpStatus"].as_u64()), (Some(1), Some(404)));
    let output = run(server.address, &["attempts", &job.id, "-o", "human"]).await;
    let text = said(&output.stdout);
    assert!(text.contains("  404  ") && text.contains("HTTP_STATUS: "), "{text}");
    let output = run(server.address, &["attempts", "01900000-0000-7000-8000-000000000000"]).await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn a_watch_comes_back_by_itself_after_a_restart() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let setup = Setup::new(application.address).with("server.listen", &address.to_string());
    let setup = setup.with("jobs.flush_interval", "20ms");
    let server = Process::start(&setup).await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let mut watching = program(address, &["watch", &job.id, "--json"]).spawn().expect("the program");
    let mut seen = BufReader::new(watching.stdout.take().expect("a pipe")).lines();
    soon("the first frame", seen.next_line()).await.expect("text").expect("a line");
    server.report(&hit.token(), progress(33)).await.expect("taken");
    stored(&setup, |progress| progress == 33).await;
    server.kill().await;
    let server = Process::start(&setup).await;
    server.report(&hit.token(), finish()).await.expect("the job was adopted");
    hit.ok();
    let status = soon("the watch", watching.wait()).await.expect("waited");
    assert_eq!(status.code(), Some(0));
    let (mut last, mut revision) = (String::new(), 0);
    while let Some(line) = seen.next_line().await.expect("text") {
        let frame: Value = serde_json::from_str(&line).expect("JSON");
        if let Some(job) = frame.get("job") {
            let next: u64 = job["revision"].as_str().expect("a revision").parse().expect("a number");
            assert!(next > revision, "revisions rise over the break");
            revision = next;
            job["state"].as_str().expect("a state").clone_into(&mut last);
        }
    }
    assert_eq!(last, JobState::Succeeded.as_str_name());
}

#[tokio::test]
async fn the_demo_runs_a_job_to_its_end() {
    let output = run("127.0.0.1:1".parse().expect("an address"), &["demo"]).await;
    let shown = said(&output.stdout);
    assert!(output.status.success(), "{shown}{}", said(&output.stderr));
    assert!(shown.contains("succeeded at 100 %") && shown.contains("grpcurl -plaintext"), "{shown}");
    assert!(shown.contains("most like"), "its text is shown: {shown}");
}

#[tokio::test]
async fn help_and_completions_are_there() {
    let nowhere = "127.0.0.1:1".parse().expect("an address");
    for shell in ["bash", "zsh", "fish"] {
        let output = run(nowhere, &["completions", shell]).await;
        assert!(output.status.success() && said(&output.stdout).contains("backjob"));
    }
    for command in ["serve", "demo", "start", "status", "watch", "list", "cancel", "keygen", "migrate"] {
        let output = run(nowhere, &[command, "--help"]).await;
        assert!(output.status.success() && said(&output.stdout).contains("Usage"), "{command}");
    }
}
