//! The server is killed, and nothing that was acknowledged is lost.

use crate::harness::*;
use backjob::proto::v1::{self, JobState, WatchStatusRequest};
use std::{collections::HashSet, time::Duration};
use tokio::net::{TcpSocket, TcpStream};

#[tokio::test]
async fn jobs_in_every_state_go_on_after_kill_9() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address)
        .with("targets.default.max_in_flight", "1")
        .with("jobs.flush_interval", "20ms");
    let server = Process::start(&setup).await;
    let running = server.start(start("/running")).await;
    let mut hit = application.hit().await;
    let queued = server.start(start("/queued")).await;
    let scheduled =
        server.start(v1::StartRequest { start_after: Some(millis(1_500)), ..start("/scheduled") }).await;
    let done = server.report(&hit.token(), progress(40)).await.expect("taken");
    let mut frames = server.watch_one(&running.id).await;
    let seen = frames.job().await;
    assert_eq!((seen.progress, seen.revision), (40, done.revision));
    // Until it is known in the tables that the request was sent: before, a crash
    // may trigger it twice, as the design says.
    stored(&setup, |progress| progress == 40).await;
    server.kill().await;

    let server = Process::start(&setup).await;
    let adopted = server.get(&running.id).await;
    assert_eq!((adopted.state(), adopted.attempt, adopted.progress), (JobState::Running, 1, 40));
    assert!(adopted.revision > seen.revision, "no revision comes again");
    assert_eq!(server.get(&queued.id).await.state(), JobState::Queued);
    let answer = server.report(&hit.token(), progress(60)).await.expect("the next report is accepted");
    assert!(answer.revision > adopted.revision);
    let request = WatchStatusRequest {
        job_ids: vec![running.id.clone()],
        after_revision: Some(seen.revision),
        ..Default::default()
    };
    let mut frames = server.watch(request).await.expect("a watch");
    assert_eq!(frames.job().await.progress, 60, "a watcher of before gets what it missed");
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    assert_eq!(server.end(&running.id).await.state(), JobState::Succeeded);
    let mut routes = HashSet::new();
    for _ in 0..2 {
        let mut hit = application.hit().await;
        routes.insert(hit.uri.path().to_owned());
        hit.ok();
    }
    assert_eq!(routes, ["/queued".to_owned(), "/scheduled".to_owned()].into());
    for id in [queued.id, scheduled.id] {
        let ended = server.end(&id).await;
        assert_eq!((ended.state(), ended.attempt), (JobState::Succeeded, 1));
    }
    assert!(server.terminate().await.success(), "SIGTERM ends it in order");
}

#[tokio::test]
async fn a_job_that_was_claimed_and_never_sent_runs_after_kill_9() {
    if !on_what_lasts() {
        return;
    }
    // A target whose queue of connections is full: nothing ever gets through.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let listener = socket.listen(1).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let mut queued = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        queued.push(connected.expect("connected"));
    }
    let setup = Setup::new(address).with("jobs.flush_interval", "20ms");
    let server = Process::start(&setup).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(server.start(start("/never")).await.id);
    }
    for id in &ids {
        server.until_state(id, JobState::Running).await;
    }
    server.kill().await;
    drop((listener, queued));
    let application = Application::at(address).await;
    let server = Process::start(&setup).await;
    for _ in 0..4 {
        let mut hit = application.hit().await;
        assert_eq!(hit.header("backjob-attempt"), "2");
        hit.ok();
    }
    for id in ids {
        assert_eq!(server.end(&id).await.state(), JobState::Succeeded);
    }
}

#[tokio::test]
async fn every_acknowledged_start_finish_and_cancel_survives_kill_9_under_load() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("targets.default.max_in_flight", "200");
    let server = Process::start(&setup).await;
    let clients = (*server).clone();
    let starting = spawn(async move {
        let mut acknowledged = Vec::new();
        loop {
            match clients.control().start(start("/load")).await {
                Ok(answer) => acknowledged.push(answer.into_inner().job.expect("a job").id),
                Err(_) => return acknowledged,
            }
        }
    });
    let (mut finished, mut cancelled) = (Vec::new(), Vec::new());
    for n in 0..120 {
        let mut hit = application.hit().await;
        let id = hit.header("backjob-job-id").to_owned();
        if n % 3 == 0 {
            server.cancel(&id).await.expect("cancelled");
            cancelled.push(id);
        } else {
            server.report(&hit.token(), finish()).await.expect("finished");
            finished.push(id);
        }
        hit.ok();
    }
    server.kill().await;
    let acknowledged = soon("the starter", starting).await.expect("no panic");
    assert!(acknowledged.len() >= 120);
    let answering = spawn(async move {
        loop {
            application.hit().await.ok();
        }
    });
    let server = Process::start(&setup).await;
    for id in finished {
        assert_eq!(server.get(&id).await.state(), JobState::Succeeded);
    }
    for id in cancelled {
        let job = server.get(&id).await;
        assert!(job.cancel_requested || is_final(&job), "{:?}", job.state());
    }
    for id in acknowledged {
        server.get(&id).await;
    }
    answering.abort();
}

#[tokio::test]
async fn a_scheduled_start_is_kept_over_a_restart() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    let job = server.start(v1::StartRequest { start_after: Some(millis(800)), ..start("/a") }).await;
    let server = server.shut_down().await.start().await;
    assert_eq!(server.get(&job.id).await.scheduled_at, job.scheduled_at);
    application.hit().await.ok();
    assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn what_waits_is_joined_after_kill_9() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let mut server = Process::start(&setup).await;
    let waits = server.start(later_merging("/waits")).await;
    let cancelled = server.start(later_merging("/cancelled")).await;
    server.cancel(&cancelled.id).await.expect("cancelled");
    for joined in 1..=2 {
        server.kill().await;
        server = Process::start(&setup).await;
        let again = server.start(later_merging("/waits")).await;
        assert_eq!((again.id, again.merged_count), (waits.id.clone(), joined));
    }
    assert_ne!(server.start(later_merging("/cancelled")).await.id, cancelled.id);
    server.kill().await;
}

#[tokio::test]
async fn a_shutdown_waits_for_what_is_under_way_and_starts_nothing_new() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let server = Setup::new(application.address).with("server.shutdown_grace", "10s").start().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    server.stop.drain.cancel();
    let refused = poll("the drain", async || match server.control().start(start("/b")).await {
        Ok(_) => Err("started".to_owned()),
        Err(status) => Ok(status),
    });
    assert_eq!(fault(&refused.await).1, "DRAINING");
    server.report(&hit.token(), progress(70)).await.expect("reports are still taken");
    hit.ok();
    let server = server.shut_down().await.start().await;
    let ended = server.get(&job.id).await;
    assert_eq!((ended.state(), ended.attempt), (JobState::Succeeded, 1));
}
