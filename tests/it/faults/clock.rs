//! A wall clock that is set while the server runs.

use super::*;
use backjob::proto::v1::JobState;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

const HOUR: i32 = 3_600;

/// Seconds since 1970, as this test's own clock has them.
#[expect(clippy::disallowed_methods, reason = "what is tested is compared with the real clock")]
fn real() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()).expect("small")
}

async fn jumps(shift: i32) {
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("jobs.cancel_grace", "1s");
    let shim = Shim::new(&setup);
    let server = shim.serve(&setup).await;
    let long = v1::StartRequest { max_duration: Some(seconds(600)), ..start("/long") };
    let long = server.start(long).await;
    let mut hit = application.hit().await;
    server.report(&hit.token(), progress(10)).await.expect("taken");
    // Silent from its first report on, so that it stalls.
    let silent = v1::StartRequest { error_timeout: Some(seconds(2)), ..start("/silent") };
    let silent = server.start(silent).await;
    let _held = application.hit().await;
    let mut frames = server.watch_one(&long.id).await;
    frames.synced().await;

    shim.tell(Order::ClockShift, shift);
    let jumped = Instant::now();
    // What runs neither stalls nor ends early, and is told a deadline of now.
    let answer = server.report(&hit.token(), progress(20)).await.expect("taken");
    let deadline = answer.deadline.expect("a deadline").seconds - i64::from(shift) - real();
    assert!((50..=61).contains(&deadline), "{deadline} s left of 60");
    let job = frames.job().await;
    assert_eq!((job.state(), job.progress), (JobState::Running, 20));
    // Nor late.
    let silent = server.end(&silent.id).await;
    assert_eq!(reason(&silent), "FAILURE_REASON_STALLED");
    assert!(jumped.elapsed() < Duration::from_secs(6), "{:?}", jumped.elapsed());
    // What begins now is signed with the time of now, and runs.
    let next = server.start(start("/next")).await;
    let mut next_hit = application.hit().await;
    let signed = next_hit.header("signature-input").to_owned();
    let created = signed.split(";created=").nth(1).and_then(|rest| rest.split(';').next());
    let created: i64 = created.expect("a time").parse().expect("a number");
    assert!((created - i64::from(shift) - real()).abs() < 10, "{signed}");
    next_hit.ok();
    assert_eq!(server.end(&next.id).await.state(), JobState::Succeeded);
    // A grace is a span too.
    let cancelled = server.start(start("/cancelled")).await;
    let _held = application.hit().await;
    let asked = Instant::now();
    server.cancel(&cancelled.id).await.expect("asked");
    assert_eq!(server.end(&cancelled.id).await.state(), JobState::Cancelled);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let revision = server.get(&long.id).await.revision;
    assert!(revision >= job.revision);

    // And back.
    shim.tell(Order::ClockShift, 0);
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    let ended = server.end(&long.id).await;
    assert_eq!(ended.state(), JobState::Succeeded);
    assert!(ended.revision > revision);
    assert!(serving(&server).await);
    // Over a restart as well.
    server.kill().await;
    let server = shim.serve(&setup).await;
    assert_eq!(server.get(&long.id).await.revision, ended.revision);
}

#[tokio::test]
async fn what_runs_does_not_notice_a_clock_that_jumps_ahead() {
    if !on_a_file("its server is killed and begun again") {
        return;
    }
    jumps(HOUR).await;
}

#[tokio::test]
async fn what_runs_does_not_notice_a_clock_that_falls_back() {
    if !on_a_file("its server is killed and begun again") {
        return;
    }
    jumps(-HOUR).await;
}
