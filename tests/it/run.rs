//! Run and BatchStart: more than one thing in one call.

use crate::harness::*;
use backjob::proto::v1::{self, JobState, batch_start_result::Result as Answer};
use tonic::Code;

#[tokio::test]
async fn run_starts_a_job_and_follows_it_to_its_end() {
    let (server, application) = pair().await;
    let request = v1::RunRequest { start: Some(start("/a")), ..Default::default() };
    let mut frames = soon("Run", server.control().run(request)).await.expect("a stream").into_inner();
    let first = soon("a frame", frames.message()).await.expect("no error").expect("a frame");
    let job = first.started.and_then(|started| started.job).expect("the first frame holds what was started");
    assert!(first.status.is_none());
    // It came after the commit: another call finds the job.
    assert_eq!(server.get(&job.id).await.id, job.id);
    let mut hit = application.hit().await;
    server.report(&hit.token(), progress(40)).await.expect("taken");
    hit.answer(200, &[("content-type", "text/plain")], "all done");
    let (mut synced, mut last) = (0, None);
    while let Some(frame) = soon("a frame", frames.message()).await.expect("no error") {
        assert!(frame.started.is_none());
        let status = frame.status.expect("all others hold a status");
        synced += usize::from(status.synced);
        last = status.job.or(last);
    }
    let last = last.expect("a job");
    assert_eq!((synced, last.state(), last.status_text.as_str()), (1, JobState::Succeeded, "all done"));
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_by_field() {
    let (server, application) = pair().await;
    let run = |start: Option<v1::StartRequest>| v1::RunRequest { start, ..Default::default() };
    let cases = [
        (run(None), "start"),
        (run(Some(start("x"))), "start.action.route"),
        (run(Some(v1::StartRequest::default())), "start.action"),
        (
            v1::RunRequest { heartbeat_interval: Some(millis(1)), ..run(Some(start("/a"))) },
            "heartbeat_interval",
        ),
        (v1::RunRequest { text: 99, ..run(Some(start("/a"))) }, "text"),
    ];
    for (request, field) in cases {
        let refused = soon("Run", server.control().run(request)).await.expect_err("refused");
        assert_eq!(fault(&refused), (Code::InvalidArgument, "INVALID_FIELD".into(), vec![field.into()]));
    }
    let elsewhere = v1::Action { target: "none".into(), ..action("/a") };
    let request = run(Some(v1::StartRequest { action: Some(elsewhere), ..Default::default() }));
    let refused = soon("Run", server.control().run(request)).await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::NotFound, "UNKNOWN_TARGET".into(), vec![]));
    assert!(application.idle().await, "nothing was started");
}

#[tokio::test]
async fn a_batch_of_a_thousand_is_stored_each_by_itself() {
    let application = Application::new().await;
    let server = Setup::new(application.address).with("jobs.max_pending", "998").start().await;
    let later = |route: &str| v1::StartRequest { start_after: Some(seconds(3_600)), ..start(route) };
    let mut requests: Vec<_> = (0..1_000).map(|n| later(&format!("/{n}"))).collect();
    requests[7] = later("seven");
    let request = v1::BatchStartRequest { requests };
    let answer = soon("BatchStart", server.control().batch_start(request)).await.expect("answered");
    let results = answer.into_inner().results;
    assert_eq!(results.len(), 1_000);
    let mut ids = Vec::new();
    for (n, result) in results.into_iter().enumerate() {
        match (n, result.result.expect("an answer")) {
            (7, Answer::Error(error)) => {
                assert_eq!(error.code, i32::from(Code::InvalidArgument));
                assert!(error.message.contains("action.route") && error.details.len() == 2, "{error:?}");
            }
            // One more than may wait; which one is not told.
            (_, Answer::Error(error)) => {
                assert_eq!(error.code, i32::from(Code::ResourceExhausted), "request {n}: {error:?}");
            }
            (_, Answer::Response(response)) => {
                let job = response.job.expect("a job");
                assert_eq!(job.action.expect("an action").route, format!("/{n}"));
                ids.push(job.id);
            }
        }
    }
    assert_eq!(ids.len(), 998);
    assert!(ids.is_sorted(), "they stand in line in the order of the batch");
    let last = ids.last().expect("a job");
    assert_eq!(server.get(last).await.state(), JobState::Scheduled);
}

#[tokio::test]
async fn a_batch_of_none_or_too_many_is_refused() {
    let (server, _application) = pair().await;
    for count in [0, 1_001] {
        let request = v1::BatchStartRequest { requests: vec![start("/a"); count] };
        let refused = soon("BatchStart", server.control().batch_start(request)).await.expect_err("refused");
        assert_eq!(fault(&refused), (Code::InvalidArgument, "INVALID_FIELD".into(), vec!["requests".into()]));
    }
}

#[tokio::test]
async fn a_run_that_is_repeated_under_its_key_follows_the_same_job() {
    let (server, application) = pair().await;
    let keyed = v1::StartRequest { idempotency_key: "k".into(), ..start("/a") };
    let request = || v1::RunRequest { start: Some(keyed.clone()), ..Default::default() };
    let mut ids = Vec::new();
    // The first stream breaks after its first frame.
    for _ in 0..2 {
        let mut frames = soon("Run", server.control().run(request())).await.expect("a stream").into_inner();
        let first = soon("a frame", frames.message()).await.expect("no error").expect("a frame");
        ids.push(first.started.and_then(|started| started.job).expect("a job").id);
    }
    assert_eq!(ids[0], ids[1]);
    application.hit().await.ok();
    server.end(&ids[0]).await;
    assert!(application.idle().await, "it ran once");
}
