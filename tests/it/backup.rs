//! A copy of the database, made while the server writes, and what it is good for.

use crate::harness::*;
use backjob::proto::v1;
use std::{fs, sync::Arc};

async fn backup(setup: &Setup, to: &std::path::Path) -> (bool, String) {
    let output = soon("the backup", setup.command("backup").arg(to).output()).await.expect("run");
    (output.status.success(), String::from_utf8(output.stderr).expect("text"))
}

#[tokio::test]
async fn a_copy_made_under_load_has_all_that_was_acknowledged_before() {
    if !on_a_file("it copies a file") {
        return;
    }
    let application = Application::new().await;
    let server = Setup::new(application.address).with("targets.default.max_in_flight", "1").start().await;
    let first = server.start(start("/first")).await;
    let mut held = application.hit().await;
    stored(&server.setup, |_| true).await; // that it was sent
    let mut before = vec![first.id.clone()];
    for n in 0..20 {
        before.push(server.start(start(&format!("/{n}"))).await.id);
    }
    // Others go on starting meanwhile.
    let stop = Arc::new(tokio_util::sync::CancellationToken::new());
    let load = {
        let (clients, stop) = (Clients::new(server.address), Arc::clone(&stop));
        spawn(async move {
            let mut count = 0;
            while !stop.is_cancelled() {
                clients.start(start("/load")).await;
                count += 1;
            }
            count
        })
    };
    let copy = server.setup.file("copy.db");
    assert!(backup(&server.setup, &copy).await.0);
    stop.cancel();
    assert!(load.await.expect("no panic") > 0);
    let (again, said) = backup(&server.setup, &copy).await;
    assert!(!again && said.contains("copy.db"), "it overwrites nothing: {said}");
    assert!(!fs::exists(server.setup.file("copy.db.part")).expect("known"));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(&copy).expect("there").permissions().mode() & 0o777, 0o600);

    // Restored elsewhere, with the key.
    let restored = Setup::new(application.address).with("targets.default.max_in_flight", "1");
    fs::copy(&copy, restored.file("backjob.db")).expect("copied");
    fs::copy(server.setup.file("backjob.key"), restored.file("backjob.key")).expect("copied");
    held.ok();
    server.stop.hurry.cancel();
    drop(server);
    let restored = restored.start().await;
    for id in &before {
        restored.get(id).await;
    }
    // What ran is taken up as after a crash: its token is good.
    restored.report(&held.token(), finish()).await.expect("taken");
    assert_eq!(restored.end(&first.id).await.state(), v1::JobState::Succeeded);
}

#[tokio::test]
async fn a_server_that_lost_its_disk_is_restored_as_the_readme_says_and_runs_jobs() {
    if !on_a_file("it restores a file") {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("targets.default.max_in_flight", "1");
    let server = Process::start(&setup).await;
    server.start(start("/running")).await;
    let held = application.hit().await;
    server.report(&held.token(), progress(10)).await.expect("taken");
    stored(&setup, |progress| progress == 10).await;
    let raw = v1::RawBody { content_type: "text/plain".into(), data: b"what was asked".to_vec().into() };
    let action = v1::Action { raw: Some(raw), ..action("/waiting") };
    let waiting = server.start(v1::StartRequest { action: Some(action), ..start("/waiting") }).await;
    let copy = setup.file("copy.db");
    assert!(backup(&setup, &copy).await.0);
    // What comes after the copy is not in it, though its log may lie about.
    let later = server.start(start("/later")).await;
    server.kill().await;

    fs::copy(&copy, setup.file("backjob.db")).expect("copied");
    for beside in ["backjob.db-wal", "backjob.db-shm"] {
        fs::remove_file(setup.file(beside)).expect("it was there");
    }
    let server = Process::start(&setup).await;
    server.report(&held.token(), finish()).await.expect("adopted");
    let mut hit = application.hit().await;
    assert_eq!((hit.header("backjob-job-id"), &hit.body[..]), (waiting.id.as_str(), &b"what was asked"[..]));
    hit.ok();
    assert_eq!(server.end(&waiting.id).await.state(), v1::JobState::Succeeded);
    assert_eq!(server.get_raw(&later.id).await.expect_err("gone").code(), tonic::Code::NotFound);
    let new = server.start(start("/new")).await;
    application.hit().await.ok();
    assert_eq!(server.end(&new.id).await.state(), v1::JobState::Succeeded);
}

#[tokio::test]
async fn what_cannot_be_copied_is_said() {
    if !on_a_file("it copies a file") {
        return;
    }
    let setup = Setup::new("127.0.0.1:9".parse().expect("an address"));
    let copy = setup.file("copy.db");
    let (done, said) = backup(&setup, &copy).await;
    assert!(!done && said.contains("backjob.db"), "{said}");
    let (done, said) = backup(&setup.with("database.url", "sqlite::memory:"), &copy).await;
    assert!(!done && said.contains("memory"), "{said}");

    let application = Application::new().await;
    let server = Setup::new(application.address).start().await;
    let nowhere = server.setup.file("nowhere/copy.db");
    let (done, said) = backup(&server.setup, &nowhere).await;
    assert!(!done && said.contains("nowhere/copy.db"), "{said}");
    // Over itself, least of all.
    let (done, said) = backup(&server.setup, &server.setup.file("backjob.db")).await;
    assert!(!done && said.contains("there already"), "{said}");
}
