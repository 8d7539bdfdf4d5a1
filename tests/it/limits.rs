//! What bounds a target and a job: slots, rates, ceilings.

use crate::harness::*;
use backjob::proto::v1::{self, JobState};
use tonic::Code;

#[tokio::test]
async fn attempts_of_a_target_begin_no_faster_than_its_rate() {
    let application = Application::new().await;
    let server = Setup::new(application.address).with("targets.default.rate", "10/s").start().await;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(server.start(start(&format!("/{n}"))).await.id);
    }
    let mut first = application.hit().await;
    first.ok();
    // Why the last one waits is told while it does.
    let request = v1::ExplainJobRequest { job_id: ids[3].clone() };
    let reasons = server.control().explain_job(request).await.expect("explained").into_inner().reasons;
    assert!(
        reasons[0].code == "RATE_LIMITED" && reasons[0].until.is_some() || reasons[0].code == "SUCCEEDED",
        "{reasons:?}"
    );
    for n in 1..4 {
        let mut hit = application.hit().await;
        assert_eq!(hit.uri.path(), format!("/{n}"), "first in, first out");
        hit.ok();
    }
    // A tenth of a second apart, by the server's clock.
    let mut begun = Vec::new();
    for id in ids {
        let job = server.end(&id).await;
        assert_eq!(job.state(), JobState::Succeeded);
        let at = job.started_at.expect("it began");
        begun.push(at.seconds * 1_000 + i64::from(at.nanos / 1_000_000));
    }
    // That of a database is measured anew with each beat, to some milliseconds.
    let least = if matches!(Kept::here(), Kept::File | Kept::Memory) { 99 } else { 90 };
    assert!(begun.windows(2).all(|two| two[1] - two[0] >= least), "{begun:?}");
}

#[tokio::test]
async fn a_stuck_target_does_not_hold_up_another() {
    let stuck = Application::new().await;
    let lively = Application::new().await;
    let server = Setup::new(stuck.address)
        .with("targets.default.max_in_flight", "1")
        .with("targets.lively.url", &format!("http://{}", lively.address))
        .start()
        .await;
    for n in 0..50 {
        server.start(v1::StartRequest { priority: Some(9), ..start(&format!("/{n}")) }).await;
    }
    let _held = stuck.hit().await;
    let elsewhere = v1::Action { target: "lively".into(), ..action("/b") };
    let request = v1::StartRequest { action: Some(elsewhere), priority: Some(0), ..start("/b") };
    let job = server.start(request).await;
    lively.hit().await.ok();
    assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn limits_of_the_server_are_defaults_and_ceilings() {
    let application = Application::new().await;
    let server = Setup::new(application.address)
        .with("targets.default.max_in_flight", "1")
        .with("jobs.error_timeout_ceiling", "2m")
        .with("jobs.max_duration_ceiling", "1h")
        .with("jobs.expire_after", "1s")
        .with("jobs.expire_after_ceiling", "1h")
        .start()
        .await;
    for (request, field) in [
        (v1::StartRequest { error_timeout: Some(seconds(121)), ..start("/a") }, "error_timeout"),
        (v1::StartRequest { max_duration: Some(seconds(3_601)), ..start("/a") }, "max_duration"),
        (v1::StartRequest { expire_after: Some(seconds(3_601)), ..start("/a") }, "expire_after"),
    ] {
        let refused = server.refused(request).await;
        assert_eq!(fault(&refused), (Code::InvalidArgument, "INVALID_FIELD".into(), vec![field.into()]));
        assert!(refused.message().contains("at most"), "{refused:?}");
    }
    let whole = v1::StartRequest {
        error_timeout: Some(seconds(120)),
        max_duration: Some(seconds(3_600)),
        expire_after: Some(seconds(3_600)),
        ..start("/a")
    };
    server.start(whole).await;
    let mut held = application.hit().await;
    // The default of expire_after holds where a Start gives none.
    let waiting = server.start(start("/b")).await;
    let expired = server.end(&waiting.id).await;
    assert_eq!(expired.failure.map(|failure| failure.reason()), Some(v1::FailureReason::Expired));
    held.ok();
}
