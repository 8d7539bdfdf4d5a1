//! How a job ends: by its response, by silence, by time, by a cancel.

use crate::harness::*;
use backjob::proto::v1::{self, JobState};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tonic::Code;

/// A server whose application is not even HTTP: the test has the bare socket.
async fn bare() -> (Server, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let setup = Setup::new(listener.local_addr().expect("an address")).with("jobs.cancel_grace", "1s");
    (setup.start().await, listener)
}

/// Accepts and reads a request's head.
async fn request(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = soon("a connection", listener.accept()).await.expect("accepted");
    let mut head = Vec::new();
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let mut bytes = [0; 4_096];
        let read = soon("the request", stream.read(&mut bytes)).await.expect("readable");
        assert!(read > 0, "the connection ended early");
        head.extend_from_slice(&bytes[..read]);
    }
    stream
}

#[tokio::test]
async fn a_response_means_what_the_design_says() {
    let (server, application) = pair().await;
    for (status, headers, state, failure) in [
        (200, &[][..], JobState::Succeeded, "none"),
        (201, &[], JobState::Succeeded, "none"),
        (204, &[], JobState::Succeeded, "none"),
        (301, &[("location", "/elsewhere")], JobState::Failed, "FAILURE_REASON_REDIRECT"),
        (404, &[], JobState::Failed, "FAILURE_REASON_HTTP_STATUS"),
        (429, &[("retry-after", "1")], JobState::Failed, "FAILURE_REASON_HTTP_STATUS"),
        (500, &[], JobState::Failed, "FAILURE_REASON_HTTP_STATUS"),
    ] {
        let job = server.start(start("/a")).await;
        application.hit().await.answer(status, headers, "");
        let ended = server.end(&job.id).await;
        assert_eq!((ended.state(), reason(&ended)), (state, failure), "{status}");
        let told = ended.failure.map_or(0, |failure| failure.http_status);
        assert_eq!(told, if state == JobState::Failed { u32::from(status) } else { 0 });
    }
    assert!(application.idle().await, "a redirect is not followed");
}

#[tokio::test]
async fn the_body_of_a_response_is_the_result_and_the_text() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    application.hit().await.answer(
        200,
        &[("content-type", "text/plain"), ("set-cookie", "a=b")],
        "done, 5 rows",
    );
    let ended = server.end(&job.id).await;
    let result = ended.result.expect("a result");
    assert_eq!(
        (result.content_type.as_str(), &result.data[..], result.truncated),
        ("text/plain", &b"done, 5 rows"[..], false)
    );
    assert_eq!(ended.status_text, "done, 5 rows");
    let job = server.start(start("/a")).await;
    application.hit().await.answer(200, &[("content-type", "application/octet-stream")], &"x".repeat(70_000));
    let ended = server.end(&job.id).await;
    let result = ended.result.expect("a result");
    assert_eq!((result.data.len(), result.truncated, ended.status_text.as_str()), (65_536, true, ""));
}

#[tokio::test]
async fn a_202_detaches_the_action_and_a_report_ends_it() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    hit.answer(202, &[], "");
    server.report(&hit.token(), progress(50)).await.expect("it still runs");
    server.report(&hit.token(), finish()).await.expect("taken");
    assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
    let short = v1::StartRequest { error_timeout: Some(seconds(1)), ..start("/a") };
    let job = server.start(short).await;
    application.hit().await.answer(202, &[], "");
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), reason(&ended)), (JobState::Failed, "FAILURE_REASON_STALLED"));
}

#[tokio::test]
async fn an_action_that_falls_silent_is_given_up_with_nobody_watching() {
    let (server, application) = pair().await;
    let job = server.start(v1::StartRequest { error_timeout: Some(seconds(1)), ..start("/a") }).await;
    let mut hit = application.hit().await;
    server.report(&hit.token(), progress(30)).await.expect("taken");
    soon("the connection to be closed", hit.closed()).await;
    let ended = poll("the end", async || {
        let job = server.get(&job.id).await;
        if is_final(&job) { Ok(job) } else { Err(format!("{:?}", job.state())) }
    });
    let ended = ended.await;
    assert_eq!(
        (ended.state(), reason(&ended), ended.progress),
        (JobState::Failed, "FAILURE_REASON_STALLED", 30)
    );
    let late = server.report(&hit.token(), finish()).await.expect_err("a late report revives nothing");
    assert_eq!(fault(&late).1, "JOB_FINAL");
}

#[tokio::test]
async fn a_plain_action_may_be_silent_while_its_connection_is_open() {
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("jobs.error_timeout", "1s");
    let server = setup.start().await;
    let plain = server.start(start("/plain")).await;
    let mut hit = application.hit().await;
    // Another job with the same timeout falls silent after a report: when it has
    // been given up, the plain one has been silent for longer and still runs.
    let other = server.start(start("/other")).await;
    let mut other_hit = application.hit().await;
    server.report(&other_hit.token(), progress(1)).await.expect("taken");
    assert_eq!(reason(&server.end(&other.id).await), "FAILURE_REASON_STALLED");
    soon("the connection to be closed", other_hit.closed()).await;
    assert_eq!(server.get(&plain.id).await.state(), JobState::Running);
    hit.ok();
    assert_eq!(server.end(&plain.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn max_duration_ends_a_job_however_lively_it_is() {
    let (server, application) = pair().await;
    let job = server.start(v1::StartRequest { max_duration: Some(seconds(1)), ..start("/a") }).await;
    let mut hit = application.hit().await;
    let refused = async {
        loop {
            if let Err(error) = server.report(&hit.token(), v1::ReportRequest::default()).await {
                return error;
            }
        }
    };
    let error = soon("the deadline", refused).await;
    assert_eq!(fault(&error).1, "JOB_FINAL");
    soon("the connection to be closed", hit.closed()).await;
    let ended = server.get(&job.id).await;
    assert_eq!((ended.state(), reason(&ended)), (JobState::Failed, "FAILURE_REASON_DEADLINE"));
}

#[tokio::test]
async fn a_target_that_refuses_is_a_failed_connection() {
    let (server, listener) = bare().await;
    drop(listener);
    let job = server.start(start("/a")).await;
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), reason(&ended)), (JobState::Failed, "FAILURE_REASON_CONNECT"));
}

#[tokio::test]
async fn a_connection_lost_after_the_request_was_sent_is_given_time_to_report() {
    let (server, listener) = bare().await;
    let job = server.start(v1::StartRequest { error_timeout: Some(seconds(1)), ..start("/a") }).await;
    drop(request(&listener).await);
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), reason(&ended)), (JobState::Failed, "FAILURE_REASON_LOST"));
    let job = server.start(start("/a")).await;
    let mut stream = request(&listener).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.expect("written");
    drop(stream);
    let running = server.get(&job.id).await;
    assert!(!is_final(&running), "half a response does not count");
    server.cancel(&job.id).await.expect("cancelled");
    assert_eq!(server.end(&job.id).await.state(), JobState::Cancelled);
}

#[tokio::test]
async fn what_is_not_http_is_a_bad_response() {
    let (server, listener) = bare().await;
    let headers = "x: y\r\n".repeat(100_000);
    for garbage in ["SSH-2.0-OpenSSH_9\r\n\r\n".to_owned(), format!("HTTP/1.1 200 OK\r\n{headers}\r\n")] {
        let job = server.start(start("/a")).await;
        let mut stream = request(&listener).await;
        let _ = stream.write_all(garbage.as_bytes()).await; // may be cut off in the middle
        let ended = server.end(&job.id).await;
        assert_eq!((ended.state(), reason(&ended)), (JobState::Failed, "FAILURE_REASON_BAD_RESPONSE"));
    }
}

#[tokio::test]
async fn an_endless_response_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let setup = Setup::new(listener.local_addr().expect("an address")).with("trigger.max_response", "128KiB");
    let server = setup.start().await;
    let job = server.start(start("/a")).await;
    let mut stream = request(&listener).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.expect("written");
    let chunk = format!("{:x}\r\n{}\r\n", 8_192, "x".repeat(8_192));
    while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), reason(&ended)), (JobState::Failed, "FAILURE_REASON_BAD_RESPONSE"));
}

#[tokio::test]
async fn a_dripping_response_keeps_the_job_alive_and_counts_at_its_end() {
    let (server, listener) = bare().await;
    let job = server.start(v1::StartRequest { error_timeout: Some(seconds(1)), ..start("/a") }).await;
    let mut stream = request(&listener).await;
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Type: text/plain\r\n\r\n")
        .await
        .expect("written");
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(300));
    for byte in b"abcdef" {
        assert_eq!(server.get(&job.id).await.state(), JobState::Running);
        tick.tick().await;
        stream.write_all(&[*byte]).await.expect("still open");
    }
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), ended.status_text.as_str()), (JobState::Succeeded, "abcdef"));
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_blocked() {
    // TEST-NET-1 of RFC 5737 is nobody's.
    let server = Setup::new("192.0.2.1:80".parse().expect("an address")).start().await;
    let job = server.start(start("/a")).await;
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), reason(&ended)), (JobState::Failed, "FAILURE_REASON_BLOCKED"));
    assert!(ended.failure.expect("said").message.contains("192.0.2.1"));
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once() {
    let (server, application) = pair().await;
    let job = server.start(v1::StartRequest { start_after: Some(seconds(60)), ..start("/a") }).await;
    let cancelled = server.cancel(&job.id).await.expect("cancelled");
    assert_eq!((cancelled.state(), cancelled.attempt), (JobState::Cancelled, 0));
    assert_eq!(server.cancel(&job.id).await.expect("cancelled is cancelled").state(), JobState::Cancelled);
    assert!(application.idle().await);
}

#[tokio::test]
async fn a_running_action_is_told_to_stop_and_may_obey() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let cancelling = server.cancel(&job.id).await.expect("taken");
    assert!(cancelling.cancel_requested && cancelling.state() == JobState::Running);
    assert!(server.cancel(&job.id).await.expect("again").cancel_requested);
    let told = server.report(&hit.token(), progress(60)).await.expect("taken");
    assert_eq!(told.directive(), v1::Directive::Stop);
    server.report(&hit.token(), stopped()).await.expect("taken");
    hit.ok();
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), ended.progress, reason(&ended)), (JobState::Cancelled, 60, "none"));
}

#[tokio::test]
async fn a_cancel_is_pushed_to_an_open_stream_of_reports() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let reports = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let answers = server.worker().report_stream(authorized(reports, &hit.token())).await;
    let mut answers = answers.expect("open").into_inner();
    server.cancel(&job.id).await.expect("taken");
    let told = soon("the push", answers.message()).await.expect("no error").expect("open");
    assert_eq!(told.directive(), v1::Directive::Stop);
    sender.send(stopped()).await.expect("open");
    hit.ok();
    assert_eq!(server.end(&job.id).await.state(), JobState::Cancelled);
}

#[tokio::test]
async fn races_between_cancel_and_end_are_decided_as_the_design_says() {
    let application = Application::new().await;
    let server = Setup::new(application.address).with("jobs.cancel_grace", "1s").start().await;
    // finish in time is SUCCEEDED, even after STOP.
    let job = server.start(start("/finish")).await;
    let mut hit = application.hit().await;
    server.cancel(&job.id).await.expect("taken");
    server.report(&hit.token(), progress(1)).await.expect("STOP is delivered");
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
    // a 2xx before STOP was delivered is SUCCEEDED.
    let job = server.start(start("/early")).await;
    let mut hit = application.hit().await;
    server.cancel(&job.id).await.expect("taken");
    hit.ok();
    assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
    // a 2xx after STOP is CANCELLED.
    let job = server.start(start("/late")).await;
    let mut hit = application.hit().await;
    server.cancel(&job.id).await.expect("taken");
    server.report(&hit.token(), progress(1)).await.expect("STOP is delivered");
    hit.ok();
    assert_eq!(server.end(&job.id).await.state(), JobState::Cancelled);
    // fail is CANCELLED.
    let job = server.start(start("/fail")).await;
    let mut hit = application.hit().await;
    server.cancel(&job.id).await.expect("taken");
    server.report(&hit.token(), fail("x", true)).await.expect("taken");
    hit.ok();
    assert_eq!(server.end(&job.id).await.state(), JobState::Cancelled);
    // the end of the grace is CANCELLED, and closes the connection.
    let job = server.start(start("/deaf")).await;
    let mut hit = application.hit().await;
    server.cancel(&job.id).await.expect("taken");
    soon("the connection to be closed", hit.closed()).await;
    assert_eq!(server.end(&job.id).await.state(), JobState::Cancelled);
    let late = server.cancel(&job.id).await.expect("OK while cancelled");
    assert_eq!(late.state(), JobState::Cancelled);
}

#[tokio::test]
async fn what_cannot_be_cancelled_says_why() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    application.hit().await.ok();
    server.end(&job.id).await;
    let error = server.cancel(&job.id).await.expect_err("it has ended");
    assert_eq!(fault(&error), (Code::FailedPrecondition, "JOB_FINAL".into(), vec![]));
    let error = server.cancel("01890a5d-ac96-774b-bcce-b302099a8057").await.expect_err("unknown");
    assert_eq!(fault(&error), (Code::NotFound, "JOB_NOT_FOUND".into(), vec![]));
    names(&server.cancel("x").await.expect_err("malformed"), "job_id");
}

#[tokio::test]
async fn a_retryable_failure_is_tried_again_as_often_as_asked() {
    let (server, application) = pair().await;
    let retry_policy = Some(v1::RetryPolicy {
        max_attempts: Some(3),
        initial_backoff: Some(millis(1)),
        max_backoff: Some(millis(1)),
        ..Default::default()
    });
    let job = server.start(v1::StartRequest { retry_policy, ..start("/a") }).await;
    for attempt in ["1", "2"] {
        let mut hit = application.hit().await;
        assert_eq!(hit.header("backjob-attempt"), attempt);
        server.report(&hit.token(), append("gone with the attempt")).await.expect("taken");
        hit.answer(503, &[], "");
    }
    let mut hit = application.hit().await;
    hit.answer(200, &[("content-type", "text/plain")], "third time lucky");
    let ended = server.end(&job.id).await;
    assert_eq!((ended.state(), ended.attempt, ended.max_attempts), (JobState::Succeeded, 3, 3));
    assert_eq!((ended.status_text.as_str(), reason(&ended)), ("third time lucky", "none"));
}
