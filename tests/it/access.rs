//! Who may do what: every rpc with every kind of token, over every protocol.

use crate::{
    contract,
    harness::*,
    wire::{self, Protocol},
};
use backjob::{
    proto::v1,
    secret::{Role, token_line},
};
use prost::Message as _;
use std::{collections::BTreeSet, fs};
use tonic::Code;

const OPERATOR: &str = "the token of shop";
const VIEWER: &str = "the token of a dashboard";

/// Lines of a file of tokens.
fn tokens(lines: &[(&str, Role, &str)]) -> String {
    lines.iter().map(|(name, role, token)| token_line(name, *role, token).expect("a name") + "\n").collect()
}

fn both() -> String {
    tokens(&[("shop", Role::Operator, OPERATOR), ("dashboard", Role::Viewer, VIEWER)])
}

/// A server that asks for tokens.
async fn guarded() -> (Server, Application) {
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let file = setup.file("tokens");
    fs::write(&file, both()).expect("written");
    let setup = setup.with("server.tokens_file", &file.display().to_string());
    (setup.start().await, application)
}

async fn started(server: &Server, request: v1::StartRequest) -> v1::StartResponse {
    let request = authorized(request, OPERATOR);
    soon("Start", server.control().start(request)).await.expect("started").into_inner()
}

/// What a call comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    /// It is let in; whatever it is answered then.
    In,
    /// UNAUTHENTICATED.
    Out,
    /// PERMISSION_DENIED.
    Denied,
}
use Comes::{Denied as D, In as I, Out as O};

/// Of each rpc: without a token, with a wrong one, a viewer's, an operator's, the
/// job's report token, another job's, the job's watch token, another job's.
#[rustfmt::skip]
const TABLE: &[(&str, [Comes; 8])] = &[
    //                            none wrong viewer operator report other watch other
    ("JobControl/Start",         [O,   O,    D,     I,       O,     O,    D,    D]),
    ("JobControl/Run",           [O,   O,    D,     I,       O,     O,    D,    D]),
    ("JobControl/BatchStart",    [O,   O,    D,     I,       O,     O,    D,    D]),
    ("JobControl/CancelJob",     [O,   O,    D,     I,       O,     O,    D,    D]),
    ("JobControl/RetryJob",      [O,   O,    D,     I,       O,     O,    D,    D]),
    ("JobControl/DeleteJob",     [O,   O,    D,     I,       O,     O,    D,    D]),
    ("JobControl/GetStatus",     [O,   O,    I,     I,       O,     O,    I,    D]),
    ("JobControl/WatchStatus",   [O,   O,    I,     I,       O,     O,    I,    D]),
    ("JobControl/ListJobs",      [O,   O,    I,     I,       O,     O,    D,    D]),
    ("JobControl/ListAttempts",  [O,   O,    I,     I,       O,     O,    D,    D]),
    ("JobControl/ExplainJob",    [O,   O,    I,     I,       O,     O,    D,    D]),
    // Another job's report token is let in, and reports for the other job.
    ("JobWorker/Report",         [O,   O,    O,     O,       I,     I,    O,    O]),
    ("JobWorker/ReportStream",   [O,   O,    O,     O,       I,     I,    O,    O]),
];

/// What else is served on the port, the same.
#[rustfmt::skip]
const BESIDES: &[(&str, [Comes; 8])] = &[
    //                            none wrong viewer operator report other watch other
    ("/grpc.health.v1.Health/Check",
                                 [I,   I,    I,     I,       I,     I,    I,    I]),
    ("/grpc.health.v1.Health/Watch",
                                 [I,   I,    I,     I,       I,     I,    I,    I]),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                                 [O,   O,    I,     I,       O,     O,    D,    D]),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                 [O,   O,    I,     I,       O,     O,    D,    D]),
    // What is not there is not told from what is, without the most that a token can be.
    ("JobControl/Nothing",       [O,   O,    D,     I,       O,     O,    D,    D]),
    ("/nothing.Known/Call",      [O,   O,    D,     I,       O,     O,    D,    D]),
];

/// A request that asks for `job` and changes nothing, in both forms.
fn harmless(rpc: &str, job: &str) -> (Vec<u8>, String) {
    let job_id = job.to_owned();
    let json = format!("{{\"jobId\": \"{job}\"}}");
    match rpc {
        "JobControl/GetStatus" => {
            (v1::GetStatusRequest { job_id, ..Default::default() }.encode_to_vec(), json)
        }
        "JobControl/ListAttempts" => (v1::ListAttemptsRequest { job_id }.encode_to_vec(), json),
        "JobControl/ExplainJob" => (v1::ExplainJobRequest { job_id }.encode_to_vec(), json),
        "JobControl/WatchStatus" => {
            let request = v1::WatchStatusRequest { job_ids: vec![job_id], ..Default::default() };
            (request.encode_to_vec(), format!("{{\"jobIds\": [\"{job}\"]}}"))
        }
        // An empty one: refused by field if it is let in, a heartbeat for reports.
        _ => (Vec::new(), "{}".to_owned()),
    }
}

#[tokio::test]
async fn every_rpc_lets_in_whom_the_table_says() {
    let rows: BTreeSet<String> = TABLE.iter().map(|(rpc, _)| (*rpc).to_owned()).collect();
    assert_eq!(contract::rpcs().into_iter().collect::<BTreeSet<_>>(), rows, "every rpc has its row");
    let (server, application) = guarded().await;
    let job = started(&server, start("/job")).await;
    let hit = application.hit().await;
    let other = started(&server, start("/other")).await;
    let other_hit = application.hit().await;
    let id = job.job.expect("a job").id;
    let credentials = [
        None,
        Some("wrong".to_owned()),
        Some(VIEWER.to_owned()),
        Some(OPERATOR.to_owned()),
        Some(hit.token()),
        Some(other_hit.token()),
        Some(job.watch_token),
        Some(other.watch_token),
    ];
    for (rpc, expected) in TABLE.iter().chain(BESIDES) {
        let (message, json) = harmless(rpc, &id);
        for (credential, expected) in credentials.iter().zip(expected) {
            for protocol in [Protocol::Grpc, Protocol::GrpcWeb, Protocol::Json] {
                let token = credential.as_deref();
                let code = wire::code(server.address, protocol, rpc, token, &message, &json).await;
                let comes = match code {
                    // A stream as JSON is not there at all: no job is looked for.
                    12 if protocol == Protocol::Json && *expected == D => D,
                    16 => O,
                    7 => D,
                    _ => I,
                };
                assert_eq!(comes, *expected, "{rpc} over {protocol:?} with {token:?}: code {code}");
            }
        }
    }
    let seen = authorized(v1::GetStatusRequest { job_id: id, read_mask: None }, VIEWER);
    let seen = server.control().get_status(seen).await.expect("a status").into_inner().job.expect("a job");
    assert_eq!((seen.created_by.as_str(), seen.progress), ("shop", 0));
}

#[tokio::test]
async fn a_report_token_reports_for_its_own_attempt_alone() {
    let (server, application) = guarded().await;
    let (one, two) = (started(&server, start("/one")).await, started(&server, start("/two")).await);
    let (mut first, mut second) = (application.hit().await, application.hit().await);
    if first.uri.path() == "/two" {
        std::mem::swap(&mut first, &mut second);
    }
    server.report(&second.token(), progress(70)).await.expect("taken");
    let shown = async |response: &v1::StartResponse| {
        let job_id = response.job.as_ref().expect("a job").id.clone();
        let request = authorized(v1::GetStatusRequest { job_id, read_mask: None }, &response.watch_token);
        server.control().get_status(request).await.expect("a status").into_inner().job.expect("a job")
    };
    assert_eq!((shown(&one).await.progress, shown(&two).await.progress), (0, 70));
    // When the attempt is over, so is its token.
    server.report(&second.token(), finish()).await.expect("taken");
    let late = server.report(&second.token(), progress(80)).await.expect_err("refused");
    assert_eq!(fault(&late).1, "JOB_FINAL");
    first.ok();
    second.ok();
}

#[tokio::test]
async fn a_watch_token_opens_no_filter_and_no_second_job() {
    let (server, application) = guarded().await;
    let one = started(&server, start("/one")).await;
    let two = started(&server, start("/two")).await;
    let id = |response: &v1::StartResponse| response.job.as_ref().expect("a job").id.clone();
    for (job_ids, filter) in [
        (vec![id(&one), id(&two)], None),
        (vec![id(&one)], Some(v1::JobFilter::default())),
        (vec![], Some(v1::JobFilter::default())),
    ] {
        let request = v1::WatchStatusRequest { job_ids, filter, ..Default::default() };
        let request = authorized(request, &one.watch_token);
        let refused = server.control().watch_status(request).await.expect_err("refused");
        assert_eq!(fault(&refused), (Code::PermissionDenied, "ROLE_DENIED".into(), vec![]));
    }
    // Its own, to the end.
    let request = v1::WatchStatusRequest { job_ids: vec![id(&one)], ..Default::default() };
    let stream = server.control().watch_status(authorized(request, &one.watch_token)).await;
    let mut stream = stream.expect("a watch").into_inner();
    for _ in 0..2 {
        application.hit().await.ok();
    }
    let mut last = None;
    while let Some(frame) = soon("a frame", stream.message()).await.expect("no error") {
        last = frame.job.or(last);
    }
    assert!(is_final(&last.expect("a job")));
}

/// The error that a watch ends with.
async fn ended(mut watch: tonic::Streaming<v1::WatchStatusResponse>) -> tonic::Status {
    loop {
        match soon("the end of the stream", watch.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a word"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn tokens_are_taken_and_taken_away_while_it_runs() {
    let (server, application) = guarded().await;
    let job = started(&server, start("/a")).await.job.expect("a job");
    let mut hit = application.hit().await;
    let watch = |token: &str| {
        let request = v1::WatchStatusRequest { job_ids: vec![job.id.clone()], ..Default::default() };
        let (mut control, request) = (server.control(), authorized(request, token));
        async move { control.watch_status(request).await.map(tonic::Response::into_inner) }
    };
    let (mut viewers, mut operators) =
        (watch(VIEWER).await.expect("let in"), watch(OPERATOR).await.expect("let in"));
    while !viewers.message().await.expect("no error").expect("a frame").synced {}
    while !operators.message().await.expect("no error").expect("a frame").synced {}

    let file = server.setup.file("tokens");
    let new = tokens(&[("shop", Role::Operator, OPERATOR), ("new", Role::Viewer, "a new token")]);
    fs::write(&file, new).expect("written");
    // The stream of the token that is gone ends, and says why.
    assert_eq!(fault(&ended(viewers).await), (Code::Unauthenticated, "TOKEN_INVALID".into(), vec![]));
    assert_eq!(watch(VIEWER).await.expect_err("refused").code(), Code::Unauthenticated);
    assert!(watch("a new token").await.is_ok());
    // That of the other goes on.
    hit.ok();
    let mut last = None;
    while let Some(frame) = soon("a frame", operators.message()).await.expect("no error") {
        last = frame.job.or(last);
    }
    assert!(is_final(&last.expect("a job")));
}

/// A token that leaked is replaced under the same name: whoever holds a stream with
/// it is cut off, although the name lives on.
#[tokio::test]
async fn a_stream_ends_with_its_own_token_though_the_name_has_another() {
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let file = setup.file("tokens");
    let (leaked, new) = (("shop", Role::Operator, "leaked"), ("shop", Role::Operator, "new"));
    fs::write(&file, tokens(&[leaked, new])).expect("written");
    let server = setup.with("server.tokens_file", &file.display().to_string()).start().await;
    let watch = async |token: &str| {
        let filter = Some(v1::JobFilter::default());
        let request = authorized(v1::WatchStatusRequest { filter, ..Default::default() }, token);
        server.control().watch_status(request).await.expect("let in").into_inner()
    };
    let (thief, mut owner) = (watch("leaked").await, watch("new").await);
    fs::write(&file, tokens(&[new])).expect("written");
    assert_eq!(fault(&ended(thief).await).1, "TOKEN_INVALID");
    server.control().start(authorized(start("/a"), "new")).await.expect("started");
    let seen = async { while owner.message().await.expect("it goes on").expect("a frame").job.is_none() {} };
    soon("the owner's frame", seen).await;
}

#[tokio::test]
async fn keys_and_jobs_are_each_callers_own() {
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let file = setup.file("tokens");
    let lines =
        tokens(&[("one", Role::Operator, "1"), ("two", Role::Operator, "2"), ("two", Role::Operator, "2b")]);
    fs::write(&file, lines).expect("written");
    let server = setup.with("server.tokens_file", &file.display().to_string()).start().await;
    let request = || v1::StartRequest { idempotency_key: "key".into(), ..start("/a") };
    let mut ids = Vec::new();
    for token in ["1", "1", "2", "2b"] {
        let started = server.control().start(authorized(request(), token)).await.expect("started");
        let job = started.into_inner().job.expect("a job");
        assert_eq!(job.created_by, if token == "1" { "one" } else { "two" });
        ids.push(job.id);
    }
    assert!(ids[0] == ids[1] && ids[1] != ids[2] && ids[2] == ids[3], "{ids:?}");
    let filter = v1::JobFilter { created_by: "two".into(), ..Default::default() };
    let list = authorized(v1::ListJobsRequest { filter: Some(filter), ..Default::default() }, "1");
    let jobs = server.control().list_jobs(list).await.expect("a list").into_inner().jobs;
    assert_eq!(jobs.into_iter().map(|job| job.id).collect::<Vec<_>>(), [ids[2].clone()]);
}

#[tokio::test]
async fn health_is_everyones_and_reflection_a_viewers() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    let (server, _application) = guarded().await;
    let mut health = HealthClient::new(server.channel());
    health.check(HealthCheckRequest::default()).await.expect("an answer");
    let mut reflection = ServerReflectionClient::new(server.channel());
    for (token, expected) in
        [("", Code::Unauthenticated), ("wrong", Code::Unauthenticated), (VIEWER, Code::Ok)]
    {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let asked = tokio_stream::once(ServerReflectionRequest { message_request, ..Default::default() });
        let answer = reflection.server_reflection_info(authorized(asked, token)).await;
        assert_eq!(answer.err().map_or(Code::Ok, |status| status.code()), expected, "{token:?}");
    }
}

#[tokio::test]
async fn the_program_makes_tokens_and_calls_with_them() {
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let file = setup.file("tokens").display().to_string();
    let make = async |name: &str, role: &str| {
        let mut command = setup.command("token");
        let output = command.args([name, "--role", role, "--file", &file]).output().await.expect("run");
        (output.status.success(), String::from_utf8(output.stdout).expect("text").trim().to_owned())
    };
    let (made, operator) = make("shop", "operator").await;
    assert!(made && operator.starts_with("backjob_"), "{operator}");
    let (made, viewer) = make("dashboard", "viewer").await;
    assert!(made);
    assert!(!make("shop", "viewer").await.0, "one name has one role");
    assert!(!make("a b", "viewer").await.0);
    let text = fs::read_to_string(&file).expect("readable");
    assert!(text.lines().count() == 2 && !text.contains(&operator), "{text}");

    let setup = setup.with("server.tokens_file", &file);
    let server = setup.start().await;
    let call = async |arguments: &[&str], token: &str| {
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_backjob"));
        program.args(arguments).env("BACKJOB_ADDR", server.address.to_string()).env("BACKJOB_TOKEN", token);
        let output = soon("the program", program.output()).await.expect("run");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    assert_eq!(call(&["start", "/a"], &operator).await.0, Some(0));
    application.hit().await.ok();
    assert_eq!(call(&["list"], &viewer).await.0, Some(0));
    let (code, said) = call(&["start", "/a"], &viewer).await;
    assert!(code == Some(2) && said.contains("ROLE_DENIED") && said.contains("dashboard"), "{said}");
    let (code, said) = call(&["list"], "").await;
    assert!(code == Some(2) && said.contains("TOKEN_MISSING"), "{said}");
}

#[tokio::test]
async fn a_file_of_tokens_that_cannot_be_used_keeps_the_server_from_starting() {
    let setup = Setup::new("127.0.0.1:9".parse().expect("an address"));
    let file = setup.file("tokens");
    let setup = setup.with("server.tokens_file", &file.display().to_string());
    for (content, said) in [(None, "server.tokens_file"), (Some("shop operator x"), "line 1")] {
        if let Some(content) = content {
            fs::write(&file, content).expect("written");
        }
        let error = backjob::app::App::build(&setup.config()).await.err().expect("refused").to_string();
        assert!(error.contains(said) && error.contains("tokens_file"), "{error}");
    }
}
