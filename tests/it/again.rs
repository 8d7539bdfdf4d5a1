//! After the end: a job runs again, or is erased.

use crate::harness::*;
use backjob::proto::v1::{self, JobState};
use tonic::{Code, Status};

const NOBODY: &str = "01900000-0000-7000-8000-000000000000";

async fn retry(server: &Clients, request: v1::RetryJobRequest) -> Result<v1::Job, Status> {
    let answer = soon("RetryJob", server.control().retry_job(request)).await?;
    Ok(answer.into_inner().job.expect("a job"))
}

async fn delete(server: &Clients, id: &str) -> Result<(), Status> {
    let request = v1::DeleteJobRequest { job_id: id.to_owned() };
    soon("DeleteJob", server.control().delete_job(request)).await.map(|_| ())
}

fn again(id: &str) -> v1::RetryJobRequest {
    v1::RetryJobRequest { job_id: id.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_finished_job_runs_again_as_a_new_one() {
    let (server, application) = pair().await;
    let action = v1::Action {
        form: [("id".to_owned(), "5".to_owned())].into(),
        headers: [("x-a".to_owned(), "1".to_owned())].into(),
        ..action("/a")
    };
    let request = v1::StartRequest {
        action: Some(action),
        labels: [("kind".to_owned(), "x".to_owned())].into(),
        expire_after: Some(seconds(60)),
        priority: Some(7),
        ..start("/a")
    };
    let first = server.start(request).await;
    application.hit().await.answer(500, &[], "");
    assert_eq!(server.end(&first.id).await.state(), JobState::Failed);
    let second = retry(&server, again(&first.id)).await.expect("a new job");
    assert_eq!((second.retry_of.as_str(), second.priority), (first.id.as_str(), 7));
    assert_eq!(second.labels, first.labels);
    assert!(is_begun(&second) && second.attempt <= 1, "{second:?}");
    assert_ne!(second.id, first.id);
    let mut hit = application.hit().await;
    assert_eq!((hit.method.as_str(), &hit.body[..], hit.header("x-a")), ("POST", &b"id=5"[..], "1"));
    assert_eq!(hit.header("backjob-job-id"), second.id);
    hit.ok();
    assert_eq!(server.end(&second.id).await.state(), JobState::Succeeded);
    assert_eq!(server.get(&first.id).await.state(), JobState::Failed, "the first one stays as it ended");
    // A repeat under a key is the same new run.
    let keyed = v1::RetryJobRequest { idempotency_key: "k".into(), ..again(&first.id) };
    let third = retry(&server, keyed.clone()).await.expect("a new job");
    assert_eq!(retry(&server, keyed.clone()).await.expect("the same").id, third.id);
    let other = v1::RetryJobRequest { job_id: second.id, ..keyed.clone() };
    let refused = retry(&server, other).await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::AlreadyExists, "IDEMPOTENCY_MISMATCH".into(), vec![]));
    // Also when the first one was erased since.
    delete(&server, &first.id).await.expect("deleted");
    assert_eq!(retry(&server, keyed).await.expect("the same").id, third.id);
    application.hit().await.ok();
}

#[tokio::test]
async fn what_cannot_run_again_says_why() {
    let (server, _application) = pair().await;
    let waiting = server.start(v1::StartRequest { start_after: Some(seconds(60)), ..start("/a") }).await;
    let refused = retry(&server, again(&waiting.id)).await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::FailedPrecondition, "JOB_NOT_FINAL".into(), vec![]));
    let refused = retry(&server, again(NOBODY)).await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::NotFound, "JOB_NOT_FOUND".into(), vec![]));
    server.cancel(&waiting.id).await.expect("cancelled");
    let user = |kind: i32, cookie: &str| {
        let run_as = v1::RunAs { kind, cookie: Some(cookie.into()), authorization: None };
        v1::RetryJobRequest { run_as: Some(run_as), ..again(&waiting.id) }
    };
    for (request, field) in [
        (again("x"), "job_id"),
        (v1::RetryJobRequest { idempotency_key: "k".repeat(257), ..again(&waiting.id) }, "idempotency_key"),
        (user(9, "a=b"), "run_as.kind"),
        (user(v1::RunAsKind::CurrentUser.into(), "a\nb"), "run_as.cookie"),
    ] {
        let refused = retry(&server, request).await.expect_err("refused");
        assert_eq!(fault(&refused), (Code::InvalidArgument, "INVALID_FIELD".into(), vec![field.into()]));
    }
}

#[tokio::test]
async fn a_deleted_job_is_gone_with_all_that_was_kept() {
    let (server, application) = pair().await;
    let request = v1::StartRequest {
        idempotency_key: "k".into(),
        labels: [("kind".to_owned(), "x".to_owned())].into(),
        ..start("/a")
    };
    let job = server.start(request.clone()).await;
    application.hit().await.answer(200, &[("content-type", "text/plain")], "result");
    server.end(&job.id).await;
    let filter = v1::JobFilter {
        labels: job.labels.clone(),
        states: vec![JobState::Succeeded.into()],
        ..Default::default()
    };
    // Who watches it beside one that goes on is told.
    let other = server.start(v1::StartRequest { start_after: Some(seconds(60)), ..start("/b") }).await;
    let job_ids = vec![job.id.clone(), other.id.clone()];
    let watch = v1::WatchStatusRequest { job_ids, ..Default::default() };
    let mut frames = server.watch(watch).await.expect("a watch");
    assert_eq!(frames.synced().await.len(), 2);
    delete(&server, &job.id).await.expect("deleted");
    assert_eq!(frames.frame().await.deleted_job_id, job.id);
    server.cancel(&other.id).await.expect("cancelled");
    let request_of = |id: &str| v1::GetStatusRequest { job_id: id.to_owned(), read_mask: None };
    let missing = server.control().get_status(request_of(&job.id)).await.expect_err("gone");
    assert_eq!(missing.code(), Code::NotFound);
    let list = v1::ListJobsRequest { filter: Some(filter), ..Default::default() };
    assert!(server.control().list_jobs(list).await.expect("a list").into_inner().jobs.is_empty());
    assert_eq!(delete(&server, &job.id).await.expect_err("gone").code(), Code::NotFound);
    // Its key is as free as before.
    let next = server.start(request).await;
    assert_ne!(next.id, job.id);
    application.hit().await.ok();
}

#[tokio::test]
async fn what_cannot_be_deleted_says_why() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let refused = delete(&server, &job.id).await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::FailedPrecondition, "JOB_NOT_FINAL".into(), vec![]));
    let refused = delete(&server, "x").await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::InvalidArgument, "INVALID_FIELD".into(), vec!["job_id".into()]));
    let refused = delete(&server, NOBODY).await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::NotFound, "JOB_NOT_FOUND".into(), vec![]));
    hit.ok();
    server.end(&job.id).await;
}
