//! A disk that takes no more, gives nothing back, or is slow.

use super::*;
use crate::attack::{MEMORY, within};
use backjob::proto::v1::{JobState, report_request::TextChange};
use std::time::Duration;
use tokio::time::Instant;

/// What a machine that does nothing but wait takes of a core, generously.
const IDLE: f64 = 0.4;

/// A server that is hit by a fault in the middle of its work. `begin` and `end` it;
/// `cause` is what the log must say.
async fn lives_through(
    shim: &Shim,
    setup: &Setup,
    application: &Application,
    cause: &str,
    begin: impl Fn(),
    end: impl Fn(),
) {
    let server = shim.serve(setup).await;
    // One runs, in the only slot, and others wait.
    let running = server.start(start("/running")).await;
    let mut hit = application.hit().await;
    server.report(&hit.token(), progress(10)).await.expect("taken");
    let waiting = server.start(start("/waiting")).await;
    let cancelled = server.start(later_merging("/cancelled")).await;
    let mut frames = server.watch_one(&running.id).await;
    frames.synced().await;
    assert!(serving(&server).await);

    begin();
    let raw = v1::RawBody { content_type: "text/plain".into(), data: vec![b'x'; 64 << 10].into() };
    let large = v1::StartRequest {
        action: Some(v1::Action { raw: Some(raw), ..action("/large") }),
        ..start("/large")
    };
    let mut taken = start_until_refused(&server, large).await;
    until_serving(&server, false).await;
    unavailable(&server.cancel(&cancelled.id).await.expect_err("refused"));
    for route in ["/cancelled", "/never"] {
        unavailable(&server.start_raw(later_merging(route)).await.expect_err("refused"));
    }
    // Progress goes on in memory, and is seen.
    server.report(&hit.token(), progress(50)).await.expect("taken");
    while frames.job().await.progress != 50 {}
    // An end is not acknowledged before it is stored, nor shown.
    let last = v1::ReportRequest { sequence: Some(9), ..finish() };
    unavailable(&server.report(&hit.token(), last.clone()).await.expect_err("refused"));
    unavailable(&server.report(&hit.token(), last.clone()).await.expect_err("still refused"));
    assert_eq!(server.get(&running.id).await.state(), JobState::Running);
    // It neither spins nor floods its log, for as long as it lasts.
    let (lines, began, used) = (server.log().len(), Instant::now(), server.cpu());
    while began.elapsed() < Duration::from_secs(2) {
        assert!(!serving(&server).await);
        server.start_raw(start("/refused")).await.expect_err("refused");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let used = (server.cpu() - used).as_secs_f64() / began.elapsed().as_secs_f64();
    assert!(used < IDLE, "{used:.2} of a core while nothing can be done");
    let said = server.log()[lines..].to_vec();
    assert!(said.len() < 20, "{said:#?}");
    until_said(&server, &["ERROR", cause]).await;

    end();
    until_serving(&server, true).await;
    until_said(&server, &["the database is back"]).await;
    // The end that could not be stored is, without being asked again; who asks is told.
    let asked = async || server.report(&hit.token(), last.clone()).await.map_err(|status| status.to_string());
    poll("the end to be acknowledged", asked).await;
    assert_eq!(frames_end(&mut frames).await, JobState::Succeeded);
    hit.ok();
    // The slot is free, and what waited runs.
    let mut hit = application.hit().await;
    assert_eq!(hit.header("backjob-job-id"), waiting.id);
    hit.ok();
    assert_eq!(server.end(&waiting.id).await.state(), JobState::Succeeded);
    taken.push(server.start(start("/after")).await.id);
    // Identical ones join what is stored, and not what was refused.
    let again = server.start_raw(later_merging("/cancelled")).await.expect("started");
    assert!(again.merged && again.job.expect("a job").id == cancelled.id);
    let first = server.start_raw(later_merging("/never")).await.expect("started");
    let second = server.start_raw(later_merging("/never")).await.expect("started");
    assert_eq!((first.merged, second.merged), (false, true));
    assert_eq!(first.job.map(|job| job.id), second.job.map(|job| job.id));
    server.cancel(&cancelled.id).await.expect("cancelled");

    // All of it is on the disk.
    server.kill().await;
    let server = Process::start(setup).await;
    for id in [running.id, waiting.id] {
        assert_eq!(server.get(&id).await.state(), JobState::Succeeded);
    }
    assert_eq!(server.get(&cancelled.id).await.state(), JobState::Cancelled);
    for id in &taken {
        server.get(id).await;
    }
    server.kill().await;
}

async fn frames_end(frames: &mut Frames) -> JobState {
    loop {
        let job = frames.job().await;
        if is_final(&job) {
            return job.state();
        }
    }
}

fn setup(application: &Application) -> Setup {
    Setup::new(application.address)
        .with("targets.default.max_in_flight", "1")
        .with("jobs.flush_interval", "50ms")
}

async fn lives_through_order(order: Order, value: i32, cause: &str) {
    let application = Application::new().await;
    let setup = setup(&application);
    let shim = Shim::new(&setup);
    let (begin, end) = (|| shim.tell(order, value), || shim.tell(order, 0));
    lives_through(&shim, &setup, &application, cause, begin, end).await;
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_passes_by_itself() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    lives_through_order(Order::WriteErrno, ENOSPC, "database or disk is full").await;
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_loses_nothing_and_passes_by_itself() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    lives_through_order(Order::WriteErrno, EROFS, "the database fails").await;
}

#[tokio::test]
async fn writes_that_fail_lose_nothing_and_pass_by_themselves() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    lives_through_order(Order::WriteErrno, EIO, "disk I/O error").await;
}

#[tokio::test]
async fn syncs_that_fail_lose_nothing_and_pass_by_themselves() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    lives_through_order(Order::SyncErrno, EIO, "disk I/O error").await;
}

#[tokio::test]
async fn a_small_disk_that_runs_full_loses_nothing_and_serves_when_there_is_room() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    let Some(disk) = mount::Small::new("1500k") else { return };
    let application = Application::new().await;
    let url = format!("sqlite://{}", disk.file("backjob.db").display());
    let setup = setup(&application).with("database.url", &url);
    let key = setup.file("backjob.key");
    let setup = setup.with("key_file", &key.display().to_string());
    let shim = Shim::new(&setup); // with no orders
    let filler = disk.file("filler");
    let begin = || mount::fill(&filler);
    let end = || fs::remove_file(&filler).expect("there");
    lives_through(&shim, &setup, &application, "full", begin, end).await;
}

#[tokio::test]
async fn reads_that_fail_are_told_and_pass_by_themselves() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    let application = Application::new().await;
    let setup = setup(&application);
    let shim = Shim::new(&setup);
    let server = shim.serve(&setup).await;
    let job = server.start(start("/a")).await;
    application.hit().await.ok();
    server.end(&job.id).await;
    let running = server.start(start("/b")).await;
    let mut hit = application.hit().await;
    server.report(&hit.token(), progress(30)).await.expect("taken");
    stored(&setup, |progress| progress == 30).await;
    let waiting = server.start(start("/c")).await;
    server.kill().await;
    let server = shim.serve(&setup).await; // which remembers no page of the file

    shim.tell(Order::ReadErrno, EIO);
    poll("a read to fail", async || match server.get_raw(&job.id).await {
        Ok(_) => Err("it did not".into()),
        Err(status) => {
            unavailable(&status);
            Ok(())
        }
    })
    .await;
    until_serving(&server, false).await;
    until_said(&server, &["ERROR", "database"]).await;
    shim.tell(Order::ReadErrno, 0);
    until_serving(&server, true).await;
    assert_eq!(server.get(&job.id).await.state(), JobState::Succeeded);
    // What was adopted goes on; what waited runs, although it had to be read.
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    assert_eq!(server.end(&running.id).await.state(), JobState::Succeeded);
    application.hit().await.ok();
    assert_eq!(server.end(&waiting.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn a_slow_disk_is_shared_by_all_who_wait_for_it() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    let application = Application::new().await;
    let setup = setup(&application);
    let shim = Shim::new(&setup);
    let server = shim.serve(&setup).await;
    shim.tell(Order::SyncDelay, 300);
    let began = Instant::now();
    let starts: Vec<_> = (0..64)
        .map(|n| {
            let clients = server.clients().clone();
            spawn(async move { clients.start(start(&format!("/{n}"))).await })
        })
        .collect();
    let mut jobs = Vec::new();
    for started in starts {
        jobs.push(started.await.expect("no panic").id);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "64 Starts took {took:?}: one by one they would take 19 s");
    assert!(took >= Duration::from_millis(300), "64 Starts took {took:?}: no sync was slow");
    assert!(serving(&server).await, "slow is not away");
    // Also while it is slow nothing is acknowledged before it is stored.
    server.kill().await;
    let server = Process::start(&setup).await;
    for id in &jobs {
        server.get(id).await;
    }
}

#[tokio::test]
async fn a_disk_that_does_not_answer_is_told_and_what_waited_for_it_is_kept() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    let application = Application::new().await;
    let setup = setup(&application);
    let shim = Shim::new(&setup);
    let server = shim.serve(&setup).await;
    let before = server.start(start("/before")).await;
    let mut hit = application.hit().await;

    shim.tell(Order::Hang, 1);
    let clients = server.clients().clone();
    let hung = spawn(async move { clients.start_raw(start("/hung")).await });
    until_serving(&server, false).await;
    until_said(&server, &["the disk, or the server, does not answer"]).await;
    // Who comes now is refused at once, instead of waiting too; reads and reports are served.
    unavailable(&server.refused(start("/refused")).await);
    server.report(&hit.token(), progress(30)).await.expect("taken");
    assert_eq!(server.get(&before.id).await.progress, 30);

    shim.tell(Order::Hang, 0);
    until_serving(&server, true).await;
    let started = soon("the Start that hung", hung).await.expect("no panic").expect("acknowledged");
    let started = started.job.expect("a job").id;
    hit.ok();
    let mut hit = application.hit().await;
    assert_eq!(hit.header("backjob-job-id"), started);
    hit.ok();
    for id in [&before.id, &started] {
        assert_eq!(server.end(id).await.state(), JobState::Succeeded);
    }
    server.kill().await;
    all_succeeded(&setup, &[before.id, started]).await;
}

/// What is to be written while nothing can be lies in memory: as much of it as the
/// server has room for, and all else is refused.
#[tokio::test]
async fn large_starts_stay_within_bounds_while_the_disk_hangs() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    const LARGE: usize = 400;
    let application = Application::new().await;
    let setup = setup(&application);
    let shim = Shim::new(&setup);
    let server = shim.serve(&setup).await;
    shim.tell(Order::Hang, 1);
    let large = |n: usize| {
        let raw = v1::RawBody { content_type: "text/plain".into(), data: vec![b'x'; 1_000_000].into() };
        let action = v1::Action { raw: Some(raw), ..action(&format!("/{n}")) };
        v1::StartRequest { action: Some(action), start_after: Some(seconds(3_600)), ..start("/a") }
    };
    let clients: Vec<_> = (0..8).map(|_| Clients::new(server.address())).collect();
    let starts: Vec<_> = (0..LARGE)
        .map(|n| {
            let (clients, large) = (clients[n % clients.len()].clone(), large(n));
            spawn(async move { clients.start_raw(large).await })
        })
        .collect();
    until_serving(&server, false).await;
    within(server.id(), 2 * MEMORY);

    shim.tell(Order::Hang, 0);
    until_serving(&server, true).await;
    let mut stored = 0;
    for start in starts {
        match soon("an answer", start).await.expect("no panic") {
            Ok(_) => stored += 1,
            Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                assert_eq!(fault(&status).1, "TOO_MANY_CALLS", "{status:?}");
            }
            Err(status) => unavailable(&status),
        }
    }
    assert!(stored > 0, "what was handed in before it was noticed is stored");
    within(server.id(), 2 * MEMORY);
}

/// What is reported while an update is under way is written after it, at the end too.
#[tokio::test]
async fn what_was_reported_last_is_stored_by_a_server_that_stops() {
    if !on_a_file("the faults are those of a file") {
        return;
    }
    let application = Application::new().await;
    let setup =
        setup(&application).with("jobs.flush_interval", "10ms").with("server.shutdown_grace", "100ms");
    let shim = Shim::new(&setup);
    let server = shim.serve(&setup).await;
    let job = server.start(start("/a")).await;
    let hit = application.hit().await;
    server.report(&hit.token(), progress(1)).await.expect("taken");
    stored(&setup, |progress| progress == 1).await;
    // From now on there is always one under way: each is longer than the interval.
    shim.tell(Order::SyncDelay, 300);
    for percent in 2..60 {
        let report = v1::ReportRequest {
            text_change: Some(TextChange::AppendText(format!("{percent}\n"))),
            ..progress(percent)
        };
        server.report(&hit.token(), report).await.expect("taken");
    }
    server.terminate().await;

    let server = Process::start(&setup).await;
    let left = server.get(&job.id).await;
    let text: String = (2..60).map(|percent| format!("{percent}\n")).collect();
    assert_eq!((left.progress, left.status_text), (59, text));
}
