//! As whom: an application with a login, jobs of its users and of nobody.

use crate::harness::*;
use backjob::proto::v1::{self, JobState, MergePolicy, RunAsKind};
use std::fs;
use tonic::Code;

/// What the application makes of a request: who it is for.
fn user(hit: &Hit) -> &'static str {
    match hit.header("cookie") {
        cookie if cookie.contains("session=alice") => "alice",
        cookie if cookie.contains("session=bob") => "bob",
        _ if hit.header("authorization") == "Bearer carol" => "carol",
        _ => "nobody",
    }
}

fn run_as(cookie: Option<&str>, authorization: Option<&str>) -> Option<v1::RunAs> {
    Some(v1::RunAs {
        kind: RunAsKind::CurrentUser.into(),
        cookie: cookie.map(str::to_owned),
        authorization: authorization.map(str::to_owned),
    })
}

fn with_cookies(request: v1::StartRequest, cookies: &str) -> tonic::Request<v1::StartRequest> {
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("cookie", cookies.parse().expect("ASCII"));
    request
}

#[tokio::test]
async fn a_job_acts_as_the_user_who_started_it_or_as_nobody() {
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("targets.default.identity_cookies", "session,auth_*");
    let server = setup.start().await;
    let anonymous = || Some(v1::RunAs { kind: RunAsKind::Anonymous.into(), ..Default::default() });
    let cases = [
        (run_as(Some("session=alice"), None), "", "alice"),
        (run_as(None, Some("Bearer carol")), "", "carol"),
        (None, "", "nobody"),
        // The call's own cookies, as a browser sends them.
        (None, "theme=dark; session=bob", "bob"),
        (None, "theme=dark", "nobody"),
        (anonymous(), "session=bob", "nobody"),
        (run_as(Some("session=alice"), None), "session=bob", "alice"),
    ];
    for (run_as, cookies, expected) in cases {
        let request = v1::StartRequest { run_as, ..start("/a") };
        let request = with_cookies(request, if cookies.is_empty() { "none=1" } else { cookies });
        let job = server.control().start(request).await.expect("started").into_inner().job.expect("a job");
        let mut hit = application.hit().await;
        assert_eq!(user(&hit), expected);
        assert!(!hit.header("cookie").contains("theme"), "other cookies are not sent on");
        hit.ok();
        assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
    }
}

#[tokio::test]
async fn identical_requests_of_two_users_never_merge() {
    let application = Application::new().await;
    let server = Setup::new(application.address).with("targets.default.max_in_flight", "1").start().await;
    server.start(start("/busy")).await;
    let _busy = application.hit().await;
    let merging =
        |run_as| v1::StartRequest { run_as, merge_policy: MergePolicy::JoinPending.into(), ..start("/same") };
    let mut ids = Vec::new();
    for credentials in [
        None,
        run_as(Some("session=alice"), None),
        run_as(Some("session=bob"), None),
        run_as(None, Some("session=bob")),
        run_as(Some("session=alice"), Some("x")),
    ] {
        let first = server.control().start(merging(credentials.clone())).await.expect("started").into_inner();
        assert!(!first.merged, "{credentials:?}");
        let again = server.control().start(merging(credentials)).await.expect("started").into_inner();
        let (first, joined) = (first.job.expect("a job"), again.job.expect("a job"));
        assert_eq!((again.merged, &joined.id), (true, &first.id), "the same user's do");
        assert!(!ids.contains(&first.id));
        ids.push(first.id);
    }
}

#[tokio::test]
async fn credentials_are_sealed_never_shown_and_wiped_at_the_end() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    let request = v1::StartRequest {
        run_as: run_as(Some("session=canary-of-a-cookie"), Some("Bearer canary-of-a-token")),
        start_after: Some(millis(1)),
        ..start("/a")
    };
    let job = server.start(request).await;
    let mut hit = application.hit().await;
    assert_eq!(hit.header("authorization"), "Bearer canary-of-a-token");
    let shown = format!("{:?}", server.get(&job.id).await);
    assert!(!shown.contains("canary"), "{shown}");
    let stored = |server: &Server| {
        let mut bytes = Vec::new();
        for entry in fs::read_dir(server.setup.folder.path()).expect("the folder") {
            bytes.extend(fs::read(entry.expect("an entry").path()).expect("readable"));
        }
        bytes
    };
    assert!(!stored(&server).windows(6).any(|part| part == b"canary"), "sealed while it runs");
    hit.ok();
    server.end(&job.id).await;
    assert!(!stored(&server).windows(6).any(|part| part == b"canary"));
    // Without them it cannot run again; with new ones it does.
    let again = v1::RetryJobRequest { job_id: job.id.clone(), ..Default::default() };
    let refused = server.control().retry_job(again.clone()).await.expect_err("refused");
    assert_eq!(fault(&refused), (Code::FailedPrecondition, "CREDENTIALS_GONE".into(), vec![]));
    let again = v1::RetryJobRequest { run_as: run_as(Some("session=bob"), None), ..again };
    let next = server.control().retry_job(again).await.expect("started").into_inner().job.expect("a job");
    let mut hit = application.hit().await;
    assert_eq!((user(&hit), hit.header("authorization")), ("bob", ""));
    hit.ok();
    assert_eq!(server.end(&next.id).await.retry_of, job.id);
}

#[tokio::test]
async fn a_user_outlives_a_restart_and_a_retry() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let server = Setup::new(application.address).start().await;
    let policy =
        v1::RetryPolicy { max_attempts: Some(2), initial_backoff: Some(seconds(0)), ..Default::default() };
    let request = v1::StartRequest {
        run_as: run_as(Some("session=alice"), None),
        retry_policy: Some(policy),
        start_after: Some(seconds(2)),
        ..start("/a")
    };
    let job = server.start(request).await;
    let server = server.shut_down().await.start().await;
    for status in [503, 200] {
        let mut hit = application.hit().await;
        assert_eq!(user(&hit), "alice");
        hit.answer(status, &[], "");
    }
    assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn what_does_not_fit_an_identity_is_refused_by_field() {
    let application = Application::new().await;
    let setup = Setup::new(application.address)
        .with("targets.closed.url", "http://127.0.0.1:9")
        .with("targets.closed.identity", "false");
    let server = setup.start().await;
    let request = |run_as| v1::StartRequest { run_as, ..start("/a") };
    let kind = |kind: i32, cookie: Option<&str>| {
        Some(v1::RunAs { kind, cookie: cookie.map(str::to_owned), authorization: None })
    };
    let closed = v1::Action { target: "closed".into(), ..action("/a") };
    for (request, field) in [
        (request(kind(RunAsKind::CurrentUser.into(), None)), "run_as"),
        (request(kind(RunAsKind::CurrentUser.into(), Some("a\r\nb"))), "run_as.cookie"),
        (request(kind(RunAsKind::CurrentUser.into(), Some(&"a".repeat(8_193)))), "run_as.cookie"),
        (request(kind(RunAsKind::Anonymous.into(), Some("a=b"))), "run_as.cookie"),
        (request(kind(RunAsKind::Unspecified.into(), Some("a=b"))), "run_as.cookie"),
        (request(kind(7, None)), "run_as.kind"),
        (v1::StartRequest { action: Some(closed), ..request(run_as(Some("a=b"), None)) }, "run_as"),
    ] {
        let refused = server.refused(request).await;
        assert_eq!(fault(&refused), (Code::InvalidArgument, "INVALID_FIELD".into(), vec![field.into()]));
    }
    assert!(application.idle().await);
}
