//! Start: every form of an action, every fault, and when it begins.

use crate::harness::*;
use backjob::proto::v1::{self, JobState};
use prost_types::{Struct, Timestamp, Value, value::Kind};
use std::collections::BTreeMap;
use tonic::Code;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn with(change: impl FnOnce(&mut v1::Action)) -> v1::StartRequest {
    let mut action = action("/a");
    change(&mut action);
    v1::StartRequest { action: Some(action), ..Default::default() }
}

fn now() -> Timestamp {
    Timestamp::from(std::time::UNIX_EPOCH + std::time::Duration::from_millis(wall()))
}

#[expect(clippy::disallowed_methods, reason = "a caller's clock")]
fn wall() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("a while yet")
}

fn millis_of(time: &Timestamp) -> i64 {
    time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000
}

#[tokio::test]
async fn every_form_of_action_arrives_as_it_was_asked_for() {
    let (server, application) = pair().await;
    let json = Struct {
        fields: [
            ("id".to_owned(), Value { kind: Some(Kind::NumberValue(5.0)) }),
            ("name".to_owned(), Value { kind: Some(Kind::StringValue("Näme".into())) }),
        ]
        .into(),
    };
    let raw =
        v1::RawBody { content_type: "multipart/form-data; boundary=x".into(), data: vec![0, 255].into() };
    let form = "application/x-www-form-urlencoded";
    let cases: Vec<(v1::StartRequest, &str, &str, &str, &[u8])> = vec![
        (start("/a"), "GET", "/a", "", b""),
        (start("/a?x=1&x=2"), "GET", "/a?x=1&x=2", "", b""),
        (with(|a| a.query = map(&[("b", "2 3"), ("a", "ä")])), "GET", "/a?a=%C3%A4&b=2+3", "", b""),
        (with(|a| a.form = map(&[("name", "Name"), ("id", "5")])), "POST", "/a", form, b"id=5&name=Name"),
        (
            with(|a| a.json = Some(json)),
            "POST",
            "/a",
            "application/json",
            "{\"id\":5,\"name\":\"Näme\"}".as_bytes(),
        ),
        (with(|a| a.raw = Some(raw)), "POST", "/a", "multipart/form-data; boundary=x", &[0, 255]),
        (with(|a| a.method = "CHICKEN".into()), "CHICKEN", "/a", "", b""),
        (with(|a| a.method = "DELETE".into()), "DELETE", "/a", "", b""),
    ];
    for (request, method, url, content_type, body) in cases {
        let job = server.start(request).await;
        assert!(is_begun(&job), "{:?}", job.state());
        let mut hit = application.hit().await;
        assert_eq!((hit.method.as_str(), hit.uri.to_string().as_str()), (method, url));
        assert_eq!((hit.header("content-type"), &hit.body[..]), (content_type, body));
        hit.ok();
        let ended = server.end(&job.id).await;
        assert_eq!((ended.state(), ended.progress), (JobState::Succeeded, 100), "{ended:?}");
    }
}

#[tokio::test]
async fn a_trigger_carries_the_headers_of_the_design_and_a_good_signature() {
    let (server, application) = pair().await;
    let request = with(|a| {
        a.headers = map(&[("X-Trace", "7")]);
        a.form = map(&[("id", "5")]);
    });
    let job = server.start(request).await;
    assert_eq!(job.action.as_ref().map(|a| a.headers.clone()), Some(map(&[("x-trace", "")])));
    assert!(job.action.expect("shown").form.is_empty(), "a job does not show its body");
    let mut hit = application.hit().await;
    assert_eq!(hit.header("user-agent"), concat!("backjob/", env!("CARGO_PKG_VERSION")));
    assert_eq!(hit.header("backjob-job-id"), job.id);
    assert_eq!(hit.header("backjob-attempt"), "1");
    assert_eq!(hit.header("backjob-report-url"), format!("http://{}", server.address));
    assert_eq!(hit.header("host"), application.address.to_string());
    assert_eq!((hit.header("x-trace"), hit.header("cache-control")), ("7", "no-store"));
    assert!(hit.header("backjob-deadline").parse::<u64>().is_ok_and(|seconds| seconds > 0));
    assert_eq!((hit.header("cookie"), hit.header("authorization")), ("", ""));
    let keys = backjob::secret::Keyring::load(&server.setup.file("backjob.key")).expect("the key file");
    let key = keys.current().derive(backjob::secret::Use::Trigger, "default");
    let verifier = backjob::verify::Verifier::new(backjob::app::keyid(&keys, "default"), &key);
    let trigger = verifier.verify(
        hit.method.as_str(),
        hit.uri.path(),
        hit.uri.query(),
        &hit.headers,
        &hit.body,
        wall() as i64 / 1_000,
    );
    assert_eq!(trigger.expect("a good signature").job_id, job.id);
    hit.ok();
}

#[tokio::test]
async fn what_cannot_be_started_is_refused_by_field() {
    let (server, application) = pair().await;
    let header = |name: &str, value: &str| with(|a| a.headers = map(&[(name, value)]));
    let route = |route: &str| start(route);
    let cases = vec![
        (v1::StartRequest::default(), "action"),
        (route(""), "action.route"),
        (route("a"), "action.route"),
        (route("http://host/a"), "action.route"),
        (route("//host/a"), "action.route"),
        (route("/a\r\nx: y"), "action.route"),
        (route("/a\0"), "action.route"),
        (route("/../a"), "action.route"),
        (route(&format!("/{}", "a".repeat(9_000))), "action.route"),
        (with(|a| a.query = map(&[("a", "x\ny")])), "action.query[\"a\"]"),
        (with(|a| a.method = "get".into()), "action.method"),
        (with(|a| a.method = "CONNECT".into()), "action.method"),
        (with(|a| a.method = "A B".into()), "action.method"),
        (header("x-a", "1\r\nx-b: 2"), "action.headers[\"x-a\"]"),
        (header("x-a", "\0"), "action.headers[\"x-a\"]"),
        (header("x a", "1"), "action.headers[\"x a\"]"),
        (header("Host", "h"), "action.headers[\"Host\"]"),
        (header("Cookie", "c"), "action.headers[\"Cookie\"]"),
        (header("Backjob-Attempt", "9"), "action.headers[\"Backjob-Attempt\"]"),
        (header("X-Forwarded-For", "1.2.3.4"), "action.headers[\"X-Forwarded-For\"]"),
        (header("Transfer-Encoding", "chunked"), "action.headers[\"Transfer-Encoding\"]"),
        (
            with(|a| {
                a.form = map(&[("a", "b")]);
                a.raw = Some(v1::RawBody::default());
            }),
            "action",
        ),
        (
            with(|a| a.raw = Some(v1::RawBody { data: vec![0; (1 << 20) + 1].into(), ..Default::default() })),
            "action.raw.data",
        ),
        (v1::StartRequest { start_after: Some(seconds(-1)), ..start("/a") }, "start_after"),
        (v1::StartRequest { merge_policy: 9, ..start("/a") }, "merge_policy"),
        (v1::StartRequest { idempotency_key: "k".repeat(257), ..start("/a") }, "idempotency_key"),
        (v1::StartRequest { start_after: Some(seconds(366 * 86_400)), ..start("/a") }, "start_after"),
        (
            v1::StartRequest {
                start_at: Some(Timestamp { seconds: now().seconds + 366 * 86_400, nanos: 0 }),
                ..start("/a")
            },
            "start_at",
        ),
        (v1::StartRequest { error_timeout: Some(seconds(-5)), ..start("/a") }, "error_timeout"),
        (v1::StartRequest { max_duration: Some(seconds(0)), ..start("/a") }, "max_duration"),
        (v1::StartRequest { expire_after: Some(seconds(0)), ..start("/a") }, "expire_after"),
        (v1::StartRequest { priority: Some(10), ..start("/a") }, "priority"),
        (v1::StartRequest { labels: map(&[("", "v")]), ..start("/a") }, "labels[\"\"]"),
        (v1::StartRequest { display_name: "n".repeat(257), ..start("/a") }, "display_name"),
        (v1::StartRequest { merge_policy: 99, ..start("/a") }, "merge_policy"),
    ];
    for (request, field) in cases {
        names(&server.refused(request).await, field);
    }
    let both = v1::StartRequest { start_after: Some(seconds(1)), start_at: Some(now()), ..start("/a") };
    let (code, reason, fields) = fault(&server.refused(both).await);
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
    assert!(fields.iter().any(|field| field.starts_with("start_")), "{fields:?}");
    let unknown = server.refused(with(|a| a.target = "other".into())).await;
    assert_eq!(fault(&unknown).1, "UNKNOWN_TARGET");
    assert!(application.idle().await, "nothing that was refused is triggered");
    let listed = server.control().list_jobs(v1::ListJobsRequest::default()).await.expect("a list");
    assert!(listed.into_inner().jobs.is_empty(), "nothing that was refused is stored");
}

#[tokio::test]
async fn several_faults_are_named_at_once() {
    let (server, _application) = pair().await;
    let mut request = with(|a| a.route = "a".into());
    request.priority = Some(77);
    request.display_name = "n".repeat(300);
    let (_, _, mut fields) = fault(&server.refused(request).await);
    fields.sort();
    assert_eq!(fields, ["action.route", "display_name", "priority"]);
}

#[tokio::test]
async fn a_delayed_start_begins_when_it_is_due() {
    let (server, application) = pair().await;
    let job = server.start(v1::StartRequest { start_after: Some(millis(700)), ..start("/a") }).await;
    assert_eq!(job.state(), JobState::Scheduled);
    let due = millis_of(&job.scheduled_at.expect("a time"));
    let mut hit = application.hit().await;
    let late = wall() as i64 - due;
    assert!(late >= 0, "triggered {} ms before it was due", -late);
    hit.ok();
    server.end(&job.id).await;
    let past = Timestamp { seconds: now().seconds - 3_600, nanos: 0 };
    let job = server.start(v1::StartRequest { start_at: Some(past), ..start("/a") }).await;
    assert!(is_begun(&job), "{:?}", job.state());
    application.hit().await.ok();
}

#[tokio::test]
async fn a_start_that_finds_a_slot_free_runs_at_once_and_one_that_does_not_waits() {
    let application = Application::new().await;
    let server = Setup::new(application.address).with("targets.default.max_in_flight", "1").start().await;
    // What waits in the tables is looked for when the server begins, and where others
    // may have left something there again and again: meanwhile a Start is queued.
    let mut tried = 0;
    let (first, mut hit) = loop {
        let job = server.start(start("/first")).await;
        let mut hit = application.hit().await;
        assert_eq!(hit.header("backjob-job-id"), job.id);
        if job.state() == JobState::Running {
            break (job, hit);
        }
        assert_eq!((job.state(), job.attempt), (JobState::Queued, 0));
        hit.ok();
        server.end(&job.id).await;
        tried += 1;
        assert!(tried < 20, "none ran at once");
    };
    assert_eq!((first.attempt, first.revision), (1, 1 << 32));
    let (created, started) = (first.created_at.expect("a time"), first.started_at.expect("a time"));
    assert!(millis_of(&started) >= millis_of(&created));
    let listed = v1::ListAttemptsRequest { job_id: first.id.clone() };
    let listed = server.control().list_attempts(listed).await.expect("listed").into_inner().attempts;
    assert_eq!(listed.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), [1]);
    let mut waiting = Vec::new();
    for n in 0..3 {
        let job = server.start(start(&format!("/{n}"))).await;
        assert_eq!((job.state(), job.attempt, job.started_at), (JobState::Queued, 0, None));
        waiting.push(job.id);
    }
    hit.ok();
    server.end(&first.id).await;
    // One that comes when the slot falls free does not run before those that wait.
    for id in waiting {
        let late = server.start(start(&format!("/late/{id}"))).await;
        assert_eq!(late.state(), JobState::Queued);
        let mut hit = application.hit().await;
        assert_eq!(hit.header("backjob-job-id"), id);
        hit.ok();
        server.end(&id).await;
    }
}

#[tokio::test]
async fn a_delay_counts_from_the_creation_to_the_millisecond() {
    let (server, _application) = pair().await;
    for n in 0..200 {
        let request = v1::StartRequest { start_after: Some(seconds(3_600)), ..start(&format!("/{n}")) };
        let job = server.start(request).await;
        let (created, due) = (job.created_at.expect("a time"), job.scheduled_at.expect("a time"));
        assert_eq!(millis_of(&due) - millis_of(&created), 3_600_000);
    }
}

#[tokio::test]
async fn a_start_in_a_year_is_accepted() {
    let (server, _application) = pair().await;
    let at = Timestamp { seconds: now().seconds + 364 * 86_400, nanos: 0 };
    let job = server.start(v1::StartRequest { start_at: Some(at), ..start("/a") }).await;
    assert_eq!((job.state(), job.scheduled_at), (JobState::Scheduled, Some(at)));
    let cancelled = server.cancel(&job.id).await.expect("cancelled");
    assert_eq!(cancelled.state(), JobState::Cancelled);
}

#[tokio::test]
async fn a_job_that_waits_too_long_expires() {
    let application = Application::new().await;
    let server = Setup::new(application.address).with("targets.default.max_in_flight", "1").start().await;
    let first = server.start(start("/first")).await;
    let mut hit = application.hit().await;
    let second = server.start(v1::StartRequest { expire_after: Some(seconds(1)), ..start("/second") }).await;
    let expired = server.end(&second.id).await;
    assert_eq!((expired.state(), reason(&expired)), (JobState::Failed, "FAILURE_REASON_EXPIRED"));
    assert_eq!(expired.attempt, 0);
    hit.ok();
    server.end(&first.id).await;
}

#[tokio::test]
async fn jobs_wait_for_a_slot_and_the_urgent_go_first() {
    let application = Application::new().await;
    let server = Setup::new(application.address).with("targets.default.max_in_flight", "1").start().await;
    server.start(start("/0")).await;
    let mut hit = application.hit().await;
    for (route, priority) in [("/1", 5), ("/2", 5), ("/3", 9), ("/4", 0)] {
        server.start(v1::StartRequest { priority: Some(priority), ..start(route) }).await;
    }
    for expected in ["/3", "/1", "/2", "/4"] {
        assert!(application.idle().await, "one at a time");
        hit.ok();
        hit = application.hit().await;
        assert_eq!(hit.uri.path(), expected);
    }
    hit.ok();
}

#[tokio::test]
async fn more_waiting_jobs_than_allowed_are_refused_until_one_is_gone() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("jobs.max_pending", "2");
    let server = setup.with("targets.default.max_in_flight", "1").start().await;
    let running = server.start(start("/running")).await;
    let mut hit = application.hit().await;
    let waiting = server.start(start("/1")).await;
    server.start(start("/2")).await;
    let refused = server.refused(start("/3")).await;
    assert_eq!(fault(&refused), (Code::ResourceExhausted, "TOO_MANY_PENDING".into(), vec![]));
    server.cancel(&waiting.id).await.expect("cancelled");
    server.start(start("/4")).await;
    server.refused(start("/5")).await;
    let server = server.shut_down().await.start().await;
    server.refused(start("/6")).await;
    server.report(&hit.token(), finish()).await.expect("the running one was adopted");
    hit.ok();
    server.end(&running.id).await;
    application.hit().await.ok();
}

#[tokio::test]
async fn a_target_with_a_key_of_its_own_signs_with_it() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"; // 32 times 7
    let setup = Setup::new(application.address).with("targets.default.keys", key);
    let server = setup.start().await;
    server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let output =
        server.setup.command("keygen").args(["--target", "default"]).output().await.expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let keyid = text.lines().find_map(|line| line.strip_prefix("keyid ")).expect("a name");
    assert!(text.contains(&format!("key {key}")), "{text}");
    let verifier = backjob::verify::Verifier::new(keyid, &[7; 32]);
    let now = wall() as i64 / 1_000;
    verifier.verify("GET", "/a", None, &hit.headers, b"", now).expect("signed with it");
    hit.ok();
    let broken = Setup::new(application.address).with("targets.default.keys", "short");
    let refused = backjob::app::App::build(&broken.config()).await.err().expect("refused");
    assert!(refused.to_string().contains("targets.default.keys"), "{refused}");
    assert!(!refused.to_string().contains("short"), "{refused}");
}
