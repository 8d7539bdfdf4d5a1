//! Secrets at rest and in flight: canaries go in everywhere, and are looked for in
//! every file, every line of the log at its finest, and everything that is said.

use crate::harness::*;
use backjob::{
    proto::v1,
    secret::{Keyring, WatchToken},
};
use std::{collections::BTreeMap, fs, path::Path, process::Stdio};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Each secret has a canary of its own, so that a finding names where it leaked.
const SEALED: &[&str] =
    &["canary-body", "canary-header", "canary-cookie", "canary-bearer", "canary-form", "canary-call"];
/// In the database these are in clear by design, and in no log.
const CLEAR: &[&str] = &["canary-query", "canary-result", "canary-text", "canary-answer-header"];

fn found(bytes: &[u8], canary: &str) -> bool {
    bytes.windows(canary.len()).any(|window| window == canary.as_bytes())
}

/// The files of a folder, the database's log among them.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("readable")))
        .collect()
}

fn secret_start(route: &str) -> v1::StartRequest {
    let map = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    let raw = v1::RawBody { content_type: "text/plain".into(), data: "canary-body".into() };
    v1::StartRequest {
        action: Some(v1::Action {
            method: "POST".into(),
            headers: map("x-secret", "canary-header"),
            query: map("q", "canary-query"),
            raw: Some(raw),
            ..action(route)
        }),
        run_as: Some(v1::RunAs {
            kind: v1::RunAsKind::CurrentUser.into(),
            cookie: Some("session=canary-cookie".into()),
            authorization: Some("Bearer canary-bearer".into()),
        }),
        ..start(route)
    }
}

#[tokio::test]
async fn no_secret_is_in_a_file_a_log_or_an_answer() {
    let application = Application::new().await;
    let setup = Setup::new(application.address)
        .with("targets.default.identity_cookies", "session")
        .with("targets.closed.url", "http://192.0.2.1:9");
    // Everything is logged, what the libraries have to say included.
    let mut command = setup.command("serve");
    command.env("RUST_LOG", "trace").stdout(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().expect("the program");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let (sender, mut serving) = tokio::sync::mpsc::channel(1);
    let log = spawn(async move {
        let mut log = String::new();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(address) = address_in(&line) {
                let _ = sender.try_send(address);
            }
            log.push_str(&line);
            log.push('\n');
        }
        log
    });
    let address = soon("the server", serving.recv()).await.expect("an address");
    let clients = Clients::new(address);
    let mut said = Vec::new();

    // One that runs to its end, retried once; reports with a text and a result.
    let mut request = secret_start("/report");
    request.retry_policy = Some(v1::RetryPolicy {
        max_attempts: Some(2),
        initial_backoff: Some(seconds(0)),
        ..Default::default()
    });
    let mut call = authorized(request, "canary-call");
    call.metadata_mut().insert("cookie", "session=canary-call".parse().expect("ASCII"));
    let started = clients.control().start(call).await.expect("started").into_inner();
    let job = started.job.expect("a job");
    assert_eq!(started.watch_token, "", "none is given out where nobody is asked for one");
    // One that is sent all the same.
    let keys = Keyring::load(&setup.file("backjob.key")).expect("the key");
    let watch_token = WatchToken { job: job.id.parse().expect("an id") }.mint(&keys);
    let request = v1::GetStatusRequest { job_id: job.id.clone(), read_mask: None };
    clients.control().get_status(authorized(request, &watch_token)).await.expect("a status");
    let mut hit = application.hit().await;
    assert_eq!((&hit.body[..], hit.header("x-secret")), (&b"canary-body"[..], "canary-header"));
    assert_eq!(
        (hit.header("cookie"), hit.header("authorization")),
        ("session=canary-cookie", "Bearer canary-bearer")
    );
    let mut tokens = vec![hit.token()];
    let live = files(setup.folder.path());
    hit.answer(503, &[("x-answer", "canary-answer-header"), ("set-cookie", "a=canary-answer-header")], "");
    let mut hit = application.hit().await;
    tokens.push(hit.token());
    clients.report(&hit.token(), append("canary-text")).await.expect("taken");
    let refused = clients.report(&hit.token(), progress(900)).await.expect_err("refused");
    said.push(format!("{refused:?}"));
    hit.answer(200, &[], "canary-result");
    let done = clients.end(&job.id).await;
    said.push(format!("{:?}", v1::Job { status_text: String::new(), result: None, action: None, ..done }));

    // A form, one whose address is blocked, and some that are refused.
    let form: BTreeMap<String, String> = [("f".to_owned(), "canary-form".to_owned())].into();
    let with_form = v1::Action { form: form.into_iter().collect(), ..action("/form") };
    let job = clients.start(v1::StartRequest { action: Some(with_form), ..start("/form") }).await;
    let mut hit = application.hit().await;
    assert!(found(&hit.body, "canary-form"));
    hit.ok();
    clients.end(&job.id).await;
    let mut blocked = secret_start("/blocked");
    blocked.action.as_mut().expect("an action").target = "closed".into();
    let blocked = clients.start(blocked).await;
    said.push(format!("{:?}", clients.end(&blocked.id).await.failure));
    for (name, value) in
        [("x-bad", "canary-header\r\n"), ("host", "canary-header"), ("bad name", "canary-header")]
    {
        let mut request = secret_start("/refused");
        let headers = &mut request.action.as_mut().expect("an action").headers;
        headers.insert(name.to_owned(), value.to_owned());
        said.push(format!("{:?}", clients.refused(request).await));
    }
    let mut request = secret_start("/refused");
    request.run_as.as_mut().expect("one").cookie = Some("canary-cookie\r\n".into());
    said.push(format!("{:?}", clients.refused(request).await));
    for token in ["canary-call", "canary-call.canary-call"] {
        said.push(format!("{:?}", clients.report(token, progress(1)).await.expect_err("refused")));
    }

    // What the program says of all this.
    for arguments in [
        &["config"][..],
        &["why", &job.id],
        &["why", &blocked.id],
        &["attempts", &job.id],
        &["status", &blocked.id],
    ] {
        let mut program = setup.command(arguments[0]);
        if arguments[0] != "config" {
            program = tokio::process::Command::new(env!("CARGO_BIN_EXE_backjob"));
            program.args(arguments).env("BACKJOB_ADDR", address.to_string());
        }
        let output = program.env("BACKJOB_KEY_FILE", "").output().await.expect("run");
        said.push(String::from_utf8_lossy(&output.stdout).into_owned());
        said.push(String::from_utf8_lossy(&output.stderr).into_owned());
    }

    let killed = child.id().expect("it runs").to_string();
    tokio::process::Command::new("kill").arg("-TERM").arg(killed).status().await.expect("kill");
    soon("the end", child.wait()).await.expect("waited");
    let log = soon("the log", log).await.expect("no panic");
    assert!(log.contains("TRACE") && log.contains("h2::"), "the log is at its finest");
    assert!(!log.contains("lines of this log are lost"), "all of it was read");

    let root = fs::read_to_string(setup.file("backjob.key")).expect("readable");
    tokens.extend([root.trim().to_owned(), watch_token]);
    for canary in SEALED {
        for (name, bytes) in live.iter().chain(&files(setup.folder.path())) {
            assert!(!found(bytes, canary), "{canary} is in {name}");
        }
        for text in &said {
            assert!(!text.contains(canary), "{canary} was said: {text}");
        }
    }
    let lines_with =
        |secret: &str| log.lines().filter(|line| line.contains(secret)).take(3).collect::<Vec<_>>();
    for secret in SEALED.iter().chain(CLEAR).copied().chain(tokens.iter().map(String::as_str)) {
        let lines = lines_with(secret);
        assert!(lines.is_empty(), "{secret} was logged: {lines:#?}");
    }
    for (name, bytes) in files(setup.folder.path()).iter().filter(|(name, _)| !name.ends_with("backjob.key"))
    {
        for token in &tokens {
            assert!(!found(bytes, token), "a token or the root is in {name}");
        }
    }
}
