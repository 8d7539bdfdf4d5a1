//! Attempts: their history, and the pace of one.

use crate::harness::*;
use backjob::proto::v1::{self, FailureReason, JobState};
use tonic::{Code, Status};

async fn attempts(server: &Clients, id: &str) -> Result<Vec<v1::Attempt>, Status> {
    let request = v1::ListAttemptsRequest { job_id: id.to_owned() };
    let answer = soon("ListAttempts", server.control().list_attempts(request)).await?;
    Ok(answer.into_inner().attempts)
}

#[tokio::test]
async fn the_history_tells_how_each_attempt_ended() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    let policy =
        v1::RetryPolicy { max_attempts: Some(3), initial_backoff: Some(seconds(0)), ..Default::default() };
    let job = server.start(v1::StartRequest { retry_policy: Some(policy), ..start("/a") }).await;
    application.hit().await.answer(503, &[], "");
    let mut second = application.hit().await;
    let fail = v1::Fail { message: "no luck".into(), retryable: true };
    let end = Some(v1::report_request::End::Fail(fail));
    server.report(&second.token(), v1::ReportRequest { end, ..Default::default() }).await.expect("taken");
    second.ok();
    application.hit().await.ok();
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), ended.attempt, ended.max_attempts), (JobState::Succeeded, 3, 3));
    let all = attempts(&server, &job.id).await.expect("the history");
    let told: Vec<_> = all
        .iter()
        .map(|attempt| {
            let why = attempt.failure.as_ref().map(|failure| (failure.reason(), failure.message.as_str()));
            (attempt.attempt, attempt.http_status, why)
        })
        .collect();
    assert_eq!((told[0].0, told[0].1), (1, 503));
    assert_eq!(told[0].2.map(|(reason, _)| reason), Some(FailureReason::HttpStatus));
    assert_eq!(told[1], (2, 0, Some((FailureReason::ActionFailed, "no luck"))));
    assert_eq!(told[2], (3, 200, None));
    for attempt in &all {
        assert!(!attempt.node.is_empty() && attempt.claimed_at.is_some() && attempt.ended_at.is_some());
        assert!(attempt.sent_at.is_some(), "{attempt:?}");
    }
    // A restart keeps it.
    let server = server.shut_down().await.start().await;
    assert_eq!(attempts(&server, &job.id).await.expect("the history"), all);
}

#[tokio::test]
async fn a_job_that_never_ran_has_no_attempts_and_an_unknown_one_is_not_found() {
    let (server, _application) = pair().await;
    let job = server.start(v1::StartRequest { start_after: Some(seconds(60)), ..start("/a") }).await;
    assert_eq!(attempts(&server, &job.id).await.expect("an empty history"), []);
    let unknown = attempts(&server, "01900000-0000-7000-8000-000000000000").await.expect_err("refused");
    assert_eq!(fault(&unknown), (Code::NotFound, "JOB_NOT_FOUND".into(), vec![]));
    let malformed = attempts(&server, "x").await.expect_err("refused");
    assert_eq!(fault(&malformed), (Code::InvalidArgument, "INVALID_FIELD".into(), vec!["job_id".into()]));
}

#[tokio::test]
async fn the_pace_of_the_reports_tells_when_it_should_be_done() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    server.report(&hit.token(), progress(10)).await.expect("taken");
    let first = server.get(&job.id).await;
    assert_eq!((first.progress, first.estimated_end_at), (10, None), "one report makes no pace");
    let detail = v1::ProgressDetail { done: 55, total: 100, unit: "rows".into(), stage: "reading".into() };
    let report = v1::ReportRequest { progress_detail: Some(detail), ..Default::default() };
    // The clock must have moved for there to be a pace.
    let estimated = poll("an estimate", || async {
        server.report(&hit.token(), report.clone()).await.expect("taken");
        let job = server.get(&job.id).await;
        if job.estimated_end_at.is_some() { Ok(job) } else { Err(format!("{job:?}")) }
    })
    .await;
    assert_eq!(estimated.progress, 55, "the percentage follows from done and total");
    let (end, now) = (estimated.estimated_end_at.expect("it"), estimated.updated_at.expect("a time"));
    assert!((end.seconds, end.nanos) >= (now.seconds, now.nanos), "{end:?} is not before {now:?}");
    hit.ok();
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), ended.estimated_end_at), (JobState::Succeeded, None));
}
