//! Why a job waits or failed.

use crate::harness::*;
use backjob::proto::v1;
use tonic::{Code, Status};

async fn explain(server: &Clients, id: &str) -> Result<Vec<v1::Reason>, Status> {
    let request = v1::ExplainJobRequest { job_id: id.to_owned() };
    Ok(soon("ExplainJob", server.control().explain_job(request)).await?.into_inner().reasons)
}

async fn codes(server: &Clients, id: &str) -> Vec<String> {
    explain(server, id).await.expect("explained").into_iter().map(|reason| reason.code).collect()
}

#[tokio::test]
async fn why_a_job_waits_or_failed_is_told_from_facts() {
    let application = Application::new().await;
    let setup = Setup::new(application.address)
        .with("targets.default.max_in_flight", "1")
        .with("targets.far.url", "http://192.0.2.1:80");
    let server = setup.start().await;
    let policy =
        v1::RetryPolicy { max_attempts: Some(2), initial_backoff: Some(seconds(60)), ..Default::default() };
    let running = server.start(v1::StartRequest { retry_policy: Some(policy), ..start("/r") }).await;
    let mut hit = application.hit().await;
    let queued = server.start(start("/q")).await;
    let scheduled = server.start(v1::StartRequest { start_after: Some(seconds(60)), ..start("/s") }).await;

    let reasons = explain(&server, &queued.id).await.expect("explained");
    assert_eq!(reasons[0].code, "NO_FREE_SLOT");
    assert_eq!((&reasons[0].metadata["jobs"], reasons[0].metadata["limit"].as_str()), (&running.id, "1"));
    let reasons = explain(&server, &scheduled.id).await.expect("explained");
    assert_eq!((reasons[0].code.as_str(), reasons[0].until), ("NOT_DUE", scheduled.scheduled_at));
    poll("the request to be sent", || async {
        let codes = codes(&server, &running.id).await;
        if codes == ["WAITING_FOR_RESPONSE"] { Ok(()) } else { Err(format!("{codes:?}")) }
    })
    .await;
    server.report(&hit.token(), progress(10)).await.expect("taken");
    let reasons = explain(&server, &running.id).await.expect("explained");
    assert_eq!((reasons[0].code.as_str(), reasons[0].until.is_some()), ("RUNNING", true));

    hit.answer(503, &[], "");
    server.until_state(&running.id, v1::JobState::Scheduled).await;
    let reasons = explain(&server, &running.id).await.expect("explained");
    let told: Vec<_> = reasons.iter().map(|reason| reason.code.as_str()).collect();
    assert_eq!(told, ["BACKING_OFF", "ATTEMPT_HTTP_STATUS"]);
    assert_eq!(reasons[1].metadata["http_status"], "503");
    server.cancel(&running.id).await.expect("cancelled");
    assert_eq!(codes(&server, &running.id).await, ["CANCELLED", "ATTEMPT_HTTP_STATUS"]);

    application.hit().await.ok();
    server.end(&queued.id).await;
    assert_eq!(codes(&server, &queued.id).await, ["SUCCEEDED"]);

    // What may not be called says which address it was.
    let far = v1::Action { target: "far".into(), ..action("/b") };
    let blocked = server.start(v1::StartRequest { action: Some(far), ..start("/b") }).await;
    server.end(&blocked.id).await;
    let reasons = explain(&server, &blocked.id).await.expect("explained");
    assert_eq!((reasons.len(), reasons[0].code.as_str()), (1, "BLOCKED"));
    assert!(reasons[0].message.contains("192.0.2.1"), "{reasons:?}");
}

#[tokio::test]
async fn an_unknown_job_cannot_be_explained() {
    let (server, _application) = pair().await;
    let refused = explain(&server, "01900000-0000-7000-8000-000000000000").await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::NotFound, "JOB_NOT_FOUND".into(), vec![]));
    let refused = explain(&server, "x").await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::InvalidArgument, "INVALID_FIELD".into(), vec!["job_id".into()]));
}
