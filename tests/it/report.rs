//! What the running action says, and what it is told.

use crate::harness::*;
use backjob::proto::v1::{self, JobState, report_request as r};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

async fn running(server: &Server, application: &Application) -> (v1::Job, Hit) {
    let job = server.start(start("/a")).await;
    let hit = application.hit().await;
    assert_eq!(hit.header("backjob-job-id"), job.id);
    (job, hit)
}

#[tokio::test]
async fn progress_text_and_detail_are_seen_and_the_end_is_final() {
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    let token = hit.token();
    let first = server.report(&token, progress(10)).await.expect("taken");
    assert_eq!(first.directive(), v1::Directive::Continue);
    assert!(first.deadline.is_some() && first.revision > job.revision);
    let mut second = append("one ");
    second.progress_change = Some(r::ProgressChange::ProgressIncrement(15));
    second.sequence = Some(7);
    let second = server.report(&token, second).await.expect("taken");
    assert_eq!((second.acked_sequence, second.revision), (7, first.revision + 1));
    server.report(&token, append("two")).await.expect("taken");
    let now = server.get(&job.id).await;
    assert_eq!((now.progress, now.status_text.as_str()), (25, "one two"));
    let detail = v1::ProgressDetail { done: 3, total: 4, unit: "rows".into(), stage: "sorting".into() };
    let report = v1::ReportRequest { progress_detail: Some(detail.clone()), ..Default::default() };
    server.report(&token, report).await.expect("taken");
    let now = server.get(&job.id).await;
    assert_eq!((now.progress, now.progress_detail), (75, Some(detail)));
    let text_change = Some(r::TextChange::StatusText("anew".into()));
    server.report(&token, v1::ReportRequest { text_change, ..Default::default() }).await.expect("taken");
    let result = v1::JobResult { content_type: "text/csv".into(), data: "a;b".into(), truncated: false };
    let end = r::End::Finish(v1::Finish { result: Some(result.clone()) });
    let done = server.report(&token, v1::ReportRequest { end: Some(end), ..Default::default() }).await;
    assert!(done.expect("taken").deadline.is_none());
    hit.answer(200, &[("content-type", "text/plain")], "not the result");
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), ended.progress), (JobState::Succeeded, 100));
    assert_eq!((ended.status_text.as_str(), ended.result), ("anew", Some(result)));
    assert!(ended.ended_at.is_some() && ended.started_at.is_some());
    let late = server.report(&token, progress(5)).await.expect_err("final");
    assert_eq!(fault(&late), (Code::FailedPrecondition, "JOB_FINAL".into(), vec![]));
}

#[tokio::test]
async fn progress_of_a_hundred_and_a_sum_above_do_not_end_a_job() {
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    server.report(&hit.token(), progress(90)).await.expect("taken");
    let more = Some(r::ProgressChange::ProgressIncrement(90));
    server
        .report(&hit.token(), v1::ReportRequest { progress_change: more, ..Default::default() })
        .await
        .expect("taken");
    let now = server.get(&job.id).await;
    assert_eq!((now.progress, now.state()), (100, JobState::Running));
    server.report(&hit.token(), progress(40)).await.expect("progress may fall");
    server.report(&hit.token(), fail("broken pipe", false)).await.expect("taken");
    let ended = server.end(&job.id).await;
    assert_eq!(
        (ended.state(), ended.progress, reason(&ended)),
        (JobState::Failed, 40, "FAILURE_REASON_ACTION_FAILED")
    );
    assert_eq!(ended.failure.expect("said").message, "broken pipe");
    hit.ok();
}

#[tokio::test]
async fn bad_reports_name_their_field_and_change_nothing() {
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    let token = hit.token();
    let detail = |detail| v1::ReportRequest { progress_detail: Some(detail), ..Default::default() };
    let result = v1::JobResult { data: vec![0; 64 * 1024 + 1].into(), ..Default::default() };
    let end = Some(r::End::Finish(v1::Finish { result: Some(result) }));
    let increment = Some(r::ProgressChange::ProgressIncrement(101));
    for (report, field) in [
        (progress(101), "progress"),
        (v1::ReportRequest { progress_change: increment, ..Default::default() }, "progress_increment"),
        (v1::ReportRequest { sequence: Some(0), ..Default::default() }, "sequence"),
        (v1::ReportRequest { sequence: Some(u64::MAX), ..Default::default() }, "sequence"),
        (detail(v1::ProgressDetail { done: u64::MAX, ..Default::default() }), "progress_detail.done"),
        (detail(v1::ProgressDetail { unit: "u".repeat(65), ..Default::default() }), "progress_detail.unit"),
        (
            detail(v1::ProgressDetail { stage: "s".repeat(257), ..Default::default() }),
            "progress_detail.stage",
        ),
        (v1::ReportRequest { end, ..Default::default() }, "finish.result.data"),
        (stopped(), "stopped"),
    ] {
        names(&server.report(&token, report).await.expect_err("refused"), field);
    }
    let now = server.get(&job.id).await;
    assert_eq!((now.state(), now.progress), (JobState::Running, 0));
    hit.ok();
}

#[tokio::test]
async fn only_the_token_of_this_attempt_opens_its_reports() {
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    let token = hit.token();
    let mut forged = token.clone();
    forged.replace_range(79..80, if forged.ends_with('A') { "E" } else { "A" });
    let mut other = token.clone().into_bytes();
    other[30] = if other[30] == b'A' { b'B' } else { b'A' };
    let other = String::from_utf8(other).expect("ASCII");
    for (token, reason) in [
        ("", "TOKEN_MISSING"),
        ("nonsense", "TOKEN_INVALID"),
        (&forged, "TOKEN_INVALID"),
        (&other, "TOKEN_INVALID"),
    ] {
        let refused = server.report(token, progress(50)).await.expect_err("refused");
        assert_eq!(fault(&refused), (Code::Unauthenticated, reason.into(), vec![]), "{token}");
        let stream = tokio_stream::once(progress(50));
        let refused = server.worker().report_stream(authorized(stream, token)).await.expect_err("refused");
        assert_eq!(fault(&refused).1, reason);
    }
    let basic = {
        let mut request = tonic::Request::new(progress(50));
        request.metadata_mut().insert("authorization", "Basic abc".parse().expect("ASCII"));
        server.worker().report(request).await.expect_err("refused")
    };
    assert_eq!(fault(&basic).1, "TOKEN_MISSING");
    assert_eq!(server.get(&job.id).await.progress, 0);
    hit.ok();
}

#[tokio::test]
async fn a_token_of_an_older_attempt_is_stale() {
    let (server, application) = pair().await;
    let retry_policy = Some(v1::RetryPolicy {
        max_attempts: Some(2),
        initial_backoff: Some(millis(10)),
        max_backoff: Some(millis(10)),
        ..Default::default()
    });
    let job = server.start(v1::StartRequest { retry_policy, ..start("/a") }).await;
    let mut first = application.hit().await;
    let mut failed = fail("try again", true);
    failed.sequence = Some(3);
    server.report(&first.token(), failed.clone()).await.expect("taken");
    first.ok();
    let mut second = application.hit().await;
    assert_eq!(second.header("backjob-attempt"), "2");
    let stale = server.report(&first.token(), progress(99)).await.expect_err("stale");
    assert_eq!(fault(&stale), (Code::Aborted, "STALE_ATTEMPT".into(), vec![]));
    let repeated = server.report(&first.token(), failed).await.expect("an exact repeat is answered");
    assert_eq!(repeated.acked_sequence, 3);
    server.report(&second.token(), finish()).await.expect("taken");
    second.ok();
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), ended.attempt, ended.progress), (JobState::Succeeded, 2, 100));
}

#[tokio::test]
async fn a_repeated_report_is_acknowledged_and_has_no_effect() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    let token = hit.token();
    let mut first = append("once ");
    first.sequence = Some(5);
    let answer = server.report(&token, first.clone()).await.expect("taken");
    let again = server.report(&token, first).await.expect("acknowledged");
    assert_eq!((again.revision, again.acked_sequence), (answer.revision, 5));
    let mut older = append("older");
    older.sequence = Some(2);
    assert_eq!(server.report(&token, older).await.expect("acknowledged").acked_sequence, 5);
    assert_eq!(server.get(&job.id).await.status_text, "once ");
    let mut last = finish();
    last.sequence = Some(6);
    server.report(&token, last.clone()).await.expect("taken");
    server.report(&token, last.clone()).await.expect("an exact repeat is answered");
    let mut other = fail("no", false);
    other.sequence = Some(7);
    let refused = server.report(&token, other).await.expect_err("another end is refused");
    assert_eq!(fault(&refused).1, "JOB_FINAL");
    hit.ok();
    let server = server.shut_down().await.start().await;
    server.report(&token, last).await.expect("also after a restart");
    assert_eq!(server.get(&job.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn text_keeps_its_last_64_kib() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    for piece in ["a", "ä", "z"] {
        server.report(&hit.token(), append(&piece.repeat(30_000))).await.expect("taken");
    }
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    let ended = server.end(&job.id).await;
    assert!(
        ended.status_text_truncated && ended.status_text.len() <= 65_536 && ended.status_text.len() > 65_530
    );
    assert!(ended.status_text.ends_with(&"z".repeat(30_000)) && !ended.status_text.contains('a'));
    let server = server.shut_down().await.start().await;
    assert_eq!(server.get(&job.id).await, ended, "the same after a restart");
}

#[tokio::test]
async fn a_stream_of_reports_is_read_to_its_end_before_a_2xx_counts() {
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    let (sender, receiver) = mpsc::channel(16);
    let request = authorized(ReceiverStream::new(receiver), &hit.token());
    let mut answers =
        soon("the stream", server.worker().report_stream(request)).await.expect("open").into_inner();
    for percent in 1..=100 {
        let mut report = progress(percent);
        report.sequence = Some(u64::from(percent));
        sender.send(report).await.expect("open");
    }
    let mut acked = 0;
    while acked < 100 {
        let answer = soon("an answer", answers.message()).await.expect("no error").expect("open");
        assert!(answer.acked_sequence > acked, "answers rise");
        acked = answer.acked_sequence;
    }
    hit.answer(200, &[], "");
    sender.send(append("the last words")).await.expect("open");
    drop(sender);
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), ended.status_text.as_str()), (JobState::Succeeded, "the last words"));
}

#[tokio::test]
async fn a_stream_ends_after_the_report_that_ends_the_attempt() {
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    let (sender, receiver) = mpsc::channel(16);
    let request = authorized(ReceiverStream::new(receiver), &hit.token());
    let mut answers =
        soon("the stream", server.worker().report_stream(request)).await.expect("open").into_inner();
    let mut last = finish();
    last.sequence = Some(9);
    sender.send(last).await.expect("open");
    let mut newest = None;
    while let Some(answer) = soon("an answer", answers.message()).await.expect("no error") {
        newest = Some(answer);
    }
    assert_eq!(newest.expect("acknowledged").acked_sequence, 9);
    assert_eq!(server.get(&job.id).await.state(), JobState::Succeeded);
    hit.ok();
}

#[tokio::test]
async fn a_bad_report_ends_its_stream_and_not_the_job() {
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    let stream = tokio_stream::iter([progress(30), progress(130)]);
    let answers = soon("the stream", server.worker().report_stream(authorized(stream, &hit.token()))).await;
    let mut answers = answers.expect("open").into_inner();
    let error = loop {
        match soon("an answer", answers.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without an error"),
            Err(error) => break error,
        }
    };
    names(&error, "progress");
    let now = server.get(&job.id).await;
    assert_eq!((now.state(), now.progress), (JobState::Running, 30));
    hit.ok();
}

#[tokio::test]
async fn a_report_over_the_limit_of_a_message_is_refused() {
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    let huge = append(&"x".repeat(4 * 1024 * 1024));
    assert!(huge.encoded_len() > 4 * 1024 * 1024);
    let refused = server.report(&hit.token(), huge).await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::ResourceExhausted, "TOO_LARGE".into(), vec![]));
    assert_eq!(server.get(&job.id).await.state(), JobState::Running);
    hit.ok();
}

#[tokio::test]
async fn ten_thousand_reports_are_all_applied() {
    let (server, application) = pair().await;
    let (job, mut hit) = running(&server, &application).await;
    let reports =
        (1..=10_000_u64).map(|sequence| v1::ReportRequest { sequence: Some(sequence), ..append("x") });
    let stream = tokio_stream::iter(reports.collect::<Vec<_>>());
    let answers = server.worker().report_stream(authorized(stream, &hit.token())).await;
    let mut answers = answers.expect("open").into_inner();
    let mut acked = 0;
    while let Some(answer) = soon("an answer", answers.message()).await.expect("no error") {
        acked = answer.acked_sequence;
    }
    assert_eq!(acked, 10_000);
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    assert_eq!(server.end(&job.id).await.status_text, "x".repeat(10_000));
}
