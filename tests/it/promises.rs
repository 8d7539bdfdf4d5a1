//! What BackJob promised and did not do: each is a test here, by its name.

use crate::harness::*;
use backjob::proto::v1::{self, FailureReason, JobState, MergePolicy};
use std::fs;
use tonic::Code;

#[tokio::test]
async fn promise_identical_requests_merge() {
    let application = Application::new().await;
    let server = Setup::new(application.address).with("targets.default.max_in_flight", "1").start().await;
    server.start(start("/busy")).await;
    let _busy = application.hit().await;
    let request = v1::StartRequest { merge_policy: MergePolicy::Unspecified.into(), ..start("/same") };
    let first = server.control().start(request.clone()).await.expect("started").into_inner();
    let second = server.control().start(request).await.expect("started").into_inner();
    assert_eq!((first.merged, second.merged), (false, true));
    assert_eq!(first.job.expect("a job").id, second.job.expect("a job").id);
}

#[tokio::test]
async fn promise_a_delay_is_kept() {
    let (server, application) = pair().await;
    let job = server.start(v1::StartRequest { start_after: Some(millis(400)), ..start("/a") }).await;
    assert_eq!(job.state(), JobState::Scheduled);
    application.hit().await.ok();
    let ended = server.end(&job.id).await;
    let millis_of = |at: Option<prost_types::Timestamp>| {
        at.map(|at| at.seconds * 1_000 + i64::from(at.nanos) / 1_000_000).expect("a time")
    };
    assert!(millis_of(ended.started_at) - millis_of(job.created_at) >= 400, "{ended:?}");
}

#[tokio::test]
async fn promise_a_late_report_revives_no_failed_job() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let token = hit.token();
    hit.answer(500, &[], "");
    assert_eq!(server.end(&job.id).await.state(), JobState::Failed);
    let late = server.report(&token, progress(50)).await.expect_err("refused");
    assert_eq!(fault(&late), (Code::FailedPrecondition, "JOB_FINAL".into(), vec![]));
    let late = server.report(&token, finish()).await.expect_err("refused");
    assert_eq!(late.code(), Code::FailedPrecondition);
    let job = server.get(&job.id).await;
    assert_eq!((job.state(), job.progress), (JobState::Failed, 0));
}

#[tokio::test]
async fn promise_a_timeout_is_noticed_with_nobody_reading_and_ends_no_readers_request() {
    let (server, application) = pair().await;
    let request = v1::StartRequest { error_timeout: Some(seconds(1)), ..start("/a") };
    let job = server.start(request).await;
    let mut hit = application.hit().await;
    // Nobody reads: that the connection is closed tells of the end.
    soon("the connection to be closed", hit.closed()).await;
    // It is closed before the end is committed.
    let seen = poll("the failure", || async {
        let seen = server.get(&job.id).await;
        if is_final(&seen) { Ok(seen) } else { Err(format!("{:?}", seen.state())) }
    })
    .await;
    assert_eq!(seen.failure.expect("a failure").reason(), FailureReason::Stalled);
    assert_eq!(server.get(&job.id).await.state(), JobState::Failed, "reading changes nothing");
}

#[tokio::test]
async fn promise_an_unknown_id_is_not_started() {
    let (server, application) = pair().await;
    let request =
        v1::GetStatusRequest { job_id: "01900000-0000-7000-8000-000000000000".into(), read_mask: None };
    let refused = server.control().get_status(request).await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::NotFound, "JOB_NOT_FOUND".into(), vec![]));
    assert!(application.idle().await);
}

#[tokio::test]
async fn promise_all_backlog_days_is_used() {
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("retention.succeeded", "0").with("retention.all", "1ms");
    let server = setup.start().await;
    let job = server.start(start("/a")).await;
    application.hit().await.answer(404, &[], "");
    poll("the failed job to be erased", || async {
        let request = v1::GetStatusRequest { job_id: job.id.clone(), read_mask: None };
        match server.control().get_status(request).await {
            Ok(answer) => Err(format!("{:?}", answer.into_inner().job)),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(status.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn promise_the_check_covers_time_method_and_body_and_is_in_no_url() {
    let (server, application) = pair().await;
    let action = v1::Action { form: [("id".to_owned(), "5".to_owned())].into(), ..action("/a?x=1") };
    server.start(v1::StartRequest { action: Some(action), ..start("/a") }).await;
    let mut hit = application.hit().await;
    assert_eq!(hit.uri.to_string(), "/a?x=1", "nothing is added to the URL");
    let keys = backjob::secret::Keyring::load(&server.setup.file("backjob.key")).expect("the key file");
    let key = keys.current().derive(backjob::secret::Use::Trigger, "default");
    let verifier = backjob::verify::Verifier::new(backjob::app::keyid(&keys, "default"), &key);
    let created = hit.header("signature-input").split("created=").nth(1).expect("a time");
    let now: i64 = created.split(';').next().and_then(|at| at.parse().ok()).expect("a number");
    let check = |method: &str, query: &str, body: &[u8], now: i64| {
        verifier.verify(method, "/a", Some(query), &hit.headers, body, now).is_ok()
    };
    assert!(check("POST", "x=1", b"id=5", now));
    assert!(!check("PUT", "x=1", b"id=5", now));
    assert!(!check("POST", "x=2", b"id=5", now));
    assert!(!check("POST", "x=1", b"id=6", now));
    assert!(!check("POST", "x=1", b"id=5", now + 3_600));
    hit.ok();
}

#[tokio::test]
async fn promise_failed_output_is_no_html_status() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let page = "<html><body><h1>Whoops</h1></body></html>";
    application.hit().await.answer(500, &[("content-type", "text/html")], page);
    let failed = server.end(&job.id).await;
    let failure = failed.failure.clone().expect("a failure");
    assert_eq!((failure.reason(), failure.http_status), (FailureReason::HttpStatus, 500));
    assert!(!failed.status_text.contains('<') && !failure.message.contains('<'), "{failed:?}");
}

#[tokio::test]
async fn promise_cookies_of_users_are_not_in_clear() {
    let (server, application) = pair().await;
    let run_as = v1::RunAs {
        kind: v1::RunAsKind::CurrentUser.into(),
        cookie: Some("session=canary".into()),
        authorization: None,
    };
    let job = server.start(v1::StartRequest { run_as: Some(run_as), ..start("/a") }).await;
    let mut hit = application.hit().await;
    assert_eq!(hit.header("cookie"), "session=canary");
    for entry in fs::read_dir(server.setup.folder.path()).expect("the folder") {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("readable");
        assert!(!bytes.windows(6).any(|part| part == b"canary"), "{}", path.display());
    }
    hit.ok();
    server.end(&job.id).await;
}
