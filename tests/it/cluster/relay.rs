//! What reaches a node that does not run the job.

use super::*;
use crate::wire::{Protocol, code};
use backjob::{
    proto::v1::{self, Directive, JobState},
    secret::{Role, token_line},
    worker::Reporter,
};
use prost::Message as _;
use std::fs;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

/// That the job's node could not be asked, and which one that is.
pub(super) fn unreachable(status: &Status, job: &str, node: &str) {
    assert_eq!(fault(status), (Code::Unavailable, "OWNER_UNREACHABLE".into(), vec![]), "{status:?}");
    let details = status.get_error_details();
    let about = &details.error_info().expect("a reason").metadata;
    assert_eq!((about["job_id"].as_str(), about["node"].as_str()), (job, node));
    assert!(details.retry_info().is_some());
}

fn numbered(sequence: u64, report: v1::ReportRequest) -> v1::ReportRequest {
    v1::ReportRequest { sequence: Some(sequence), ..report }
}

/// An open stream of reports.
struct Reports {
    sender: mpsc::Sender<v1::ReportRequest>,
    answers: Streaming<v1::ReportResponse>,
}

impl Reports {
    async fn open(node: &Clients, token: &str) -> Self {
        let (sender, receiver) = mpsc::channel(8);
        let request = authorized(ReceiverStream::new(receiver), token);
        let answers = soon("a stream", node.worker().report_stream(request)).await.expect("opened");
        Self { sender, answers: answers.into_inner() }
    }

    async fn tell(&self, report: v1::ReportRequest) {
        self.sender.send(report).await.expect("the stream is read");
    }

    async fn answer(&mut self) -> Result<Option<v1::ReportResponse>, Status> {
        soon("an answer", self.answers.message()).await
    }

    /// Reads on until this much is acknowledged.
    async fn acknowledged(&mut self, sequence: u64) -> v1::ReportResponse {
        loop {
            let answer = self.answer().await.expect("no error").expect("an answer");
            if answer.acked_sequence >= sequence {
                return answer;
            }
        }
    }
}

#[tokio::test]
async fn every_node_takes_the_reports_of_a_job() {
    if !on_a_server() {
        return;
    }
    let cluster = Cluster::new(3).await;
    let [a, b, c] = &cluster.nodes[..] else { panic!("three nodes") };
    let (id, mut hit) = cluster.runs(0, "/a").await;
    let token = hit.token();
    // Each call of one client to another node, as behind a balancer that spreads calls.
    let mut last = 0;
    for n in 0..30_u64 {
        let node = &cluster.nodes[n as usize % 3];
        let answer = node.report(&token, numbered(n + 1, append(&format!("{n};")))).await.expect("taken");
        assert_eq!(answer.acked_sequence, n + 1);
        assert!(answer.revision > last, "{} after {last}", answer.revision);
        last = answer.revision;
    }
    // And in every form.
    for (n, protocol) in [Protocol::Grpc, Protocol::GrpcWeb, Protocol::Json].into_iter().enumerate() {
        let percent = 10 * (u32::try_from(n).expect("small") + 1);
        let (message, json) = (progress(percent).encode_to_vec(), format!(r#"{{"progress":{percent}}}"#));
        let answer = code(b.address, protocol, "JobWorker/Report", Some(&token), &message, &json).await;
        assert_eq!(answer, 0, "{protocol:?}");
        assert_eq!(a.get(&id).await.progress, percent, "{protocol:?}");
    }
    let mut stream = Reports::open(c, &token).await;
    for n in 31..40 {
        stream.tell(numbered(n, append("x"))).await;
    }
    stream.acknowledged(39).await;
    let expected: String = (0..30).map(|n| format!("{n};")).chain((31..40).map(|_| "x".to_owned())).collect();
    assert_eq!(a.get(&id).await.status_text, expected);
    // A half that is closed ends the stream.
    let Reports { sender, mut answers } = stream;
    drop(sender);
    assert!(soon("the end", answers.message()).await.expect("no error").is_none());
    // What is wrong is told by the node that runs it.
    let refused = b.report(&token, stopped()).await.expect_err("nobody cancelled it");
    names(&refused, "stopped");
    // The end, by a node that does not run it; and told again by each.
    b.report(&token, numbered(40, finish())).await.expect("taken");
    for node in &cluster.nodes {
        node.report(&token, numbered(40, finish())).await.expect("an exact repeat");
        let refused = node.report(&token, numbered(41, fail("no", false))).await.expect_err("it has ended");
        assert_eq!(fault(&refused).1, "JOB_FINAL");
        let job = node.get(&id).await;
        assert_eq!((job.state(), job.status_text.as_str()), (JobState::Succeeded, expected.as_str()));
    }
    hit.ok();
}

#[tokio::test]
async fn a_cancel_reaches_the_action_whichever_nodes_are_asked() {
    if !on_a_server() {
        return;
    }
    let cluster = Cluster::new(3).await;
    let (id, _hit) = cluster.runs(0, "/a").await;
    let token = _hit.token();
    let mut stream = Reports::open(&cluster.nodes[1], &token).await;
    stream.tell(numbered(1, progress(10))).await;
    assert_eq!(stream.acknowledged(1).await.directive(), Directive::Continue);
    let job = cluster.nodes[2].cancel(&id).await.expect("asked");
    assert!(job.cancel_requested && job.state() == JobState::Running, "{job:?}");
    // It is pushed: nothing is reported meanwhile.
    let told = stream.answer().await.expect("no error").expect("an answer");
    assert_eq!(told.directive(), Directive::Stop);
    stream.tell(numbered(2, stopped())).await;
    stream.acknowledged(2).await;
    assert!(stream.answer().await.expect("no error").is_none(), "the stream ends with the attempt");
    for node in &cluster.nodes {
        assert_eq!(node.get(&id).await.state(), JobState::Cancelled);
        node.cancel(&id).await.expect("it is");
    }
    // An id that is none is refused before anyone is asked.
    names(&cluster.nodes[1].cancel("x").await.expect_err("refused"), "job_id");
}

#[tokio::test]
async fn a_job_is_cancelled_with_the_callers_own_token_everywhere() {
    if !on_a_server() {
        return;
    }
    let mut nodes = Nodes::new(2, &[]).await;
    for (node, tokens) in [(0, "shop"), (1, "shop and guest")].into_iter() {
        let lines: Vec<String> = tokens
            .split(" and ")
            .map(|name| token_line(name, Role::Operator, &format!("the token of {name}")).expect("a name"))
            .collect();
        let path = nodes.setups[node].file("tokens");
        fs::write(&path, lines.join("\n")).expect("written");
        nodes.set(node, "server.tokens_file", &path.display().to_string());
    }
    let cluster = nodes.serve().await;
    let request = authorized(start("/a"), "the token of shop");
    let job = cluster.nodes[0].control().start(request).await.expect("started").into_inner().job;
    let id = job.expect("a job").id;
    let hit = cluster.applications[0].hit().await;
    let cancel = async |token: &str| {
        let request = authorized(v1::CancelJobRequest { job_id: id.clone() }, token);
        soon("CancelJob", cluster.nodes[1].control().cancel_job(request)).await
    };
    // Known to the node that is asked, and not to the one that runs the job.
    let refused = cancel("the token of guest").await.expect_err("refused");
    assert_eq!(fault(&refused).1, "TOKEN_INVALID");
    assert_eq!(fault(&cancel("the token of nobody").await.expect_err("refused")).1, "TOKEN_INVALID");
    assert!(
        cancel("the token of shop").await.expect("asked").into_inner().job.expect("a job").cancel_requested
    );
    // Reports need no token but their own.
    let answer = cluster.nodes[1].report(&hit.token(), progress(1)).await.expect("taken");
    assert_eq!(answer.directive(), Directive::Stop);
}

#[tokio::test]
async fn what_was_passed_on_is_not_passed_on_again_and_opens_nothing() {
    if !on_a_server() {
        return;
    }
    let cluster = Cluster::new(2).await;
    let (id, hit) = cluster.runs(0, "/a").await;
    let marked = |token: &str| {
        let mut request = authorized(progress(50), token);
        request.metadata_mut().insert("backjob-relayed", "z".parse().expect("a value"));
        request
    };
    let refused = cluster.nodes[1].worker().report(marked(&hit.token())).await.expect_err("not here");
    unreachable(&refused, &id, "a");
    let request = marked(&hit.token()).map(tokio_stream::once);
    let answers = cluster.nodes[1].worker().report_stream(request).await.expect("opened");
    unreachable(&answers.into_inner().message().await.expect_err("not here"), &id, "a");
    let mut request = tonic::Request::new(v1::CancelJobRequest { job_id: id.clone() });
    request.metadata_mut().insert("backjob-relayed", "z".parse().expect("a value"));
    unreachable(&cluster.nodes[1].control().cancel_job(request).await.expect_err("not here"), &id, "a");
    for (token, code) in [("", "TOKEN_MISSING"), ("x", "TOKEN_INVALID")] {
        for node in &cluster.nodes {
            let refused = node.worker().report(marked(token)).await.expect_err("refused");
            assert_eq!(fault(&refused).1, code);
        }
    }
    // Where it is at home it is like any other.
    cluster.nodes[0].worker().report(marked(&hit.token())).await.expect("taken");
    assert_eq!(cluster.nodes[0].get(&id).await.progress, 50);
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_named_until_it_can() {
    if !on_a_server() {
        return;
    }
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = nobody.local_addr().expect("an address");
    let mut nodes = Nodes::new(2, &[]).await;
    nodes.set(0, "node.advertise", &format!("http://{address}"));
    let cluster = nodes.serve().await;
    let (id, mut hit) = cluster.runs(0, "/a").await;
    drop(nobody);
    let token = hit.token();
    unreachable(&cluster.nodes[1].report(&token, progress(1)).await.expect_err("unreachable"), &id, "a");
    unreachable(&cluster.nodes[1].cancel(&id).await.expect_err("unreachable"), &id, "a");
    let opened = cluster.nodes[1].worker().report_stream(authorized(tokio_stream::pending(), &token)).await;
    unreachable(&opened.expect_err("unreachable"), &id, "a");
    // Directly it is, and what it advertises may come to lead there.
    cluster.nodes[0].report(&token, progress(2)).await.expect("taken");
    let door = tokio::net::TcpListener::bind(address).await.expect("the port is free");
    let home = cluster.nodes[0].address;
    spawn(async move {
        while let Ok((mut from, _)) = door.accept().await {
            spawn(async move {
                let mut to = tokio::net::TcpStream::connect(home).await.expect("the node");
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    poll("a report to be passed on", async || {
        let report = cluster.nodes[1].report(&token, progress(3)).await;
        report.map(drop).map_err(|status| status.to_string())
    })
    .await;
    cluster.nodes[1].report(&token, finish()).await.expect("taken");
    hit.ok();
    assert_eq!(cluster.nodes[1].get(&id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn why_names_the_node_that_runs_the_job() {
    if !on_a_server() {
        return;
    }
    let cluster = Cluster::new(2).await;
    let (job_id, _hit) = cluster.runs(0, "/a").await;
    let request = v1::ExplainJobRequest { job_id };
    let reasons =
        cluster.nodes[1].control().explain_job(request).await.expect("explained").into_inner().reasons;
    let [reason] = &reasons[..] else { panic!("{reasons:?}") };
    assert_eq!((reason.code.as_str(), reason.metadata["node"].as_str()), ("RUNNING", "a"), "{reason:?}");
    assert!(reason.message.contains("node a"), "{reason:?}");
}

/// The headers of a trigger, as if they had said another node's address.
fn reporting_to(hit: &Hit, node: &Server) -> http::HeaderMap {
    let mut headers = hit.headers.clone();
    headers.insert("backjob-report-url", format!("http://{}", node.address).parse().expect("a URL"));
    headers
}

#[tokio::test]
async fn a_reporter_lives_through_the_end_of_the_node_that_runs_its_job() {
    if !on_a_server() {
        return;
    }
    let mut cluster = Cluster::new(3).await;
    let (id, mut hit) = cluster.runs(0, "/a").await;
    let reporter = Reporter::from_headers(&reporting_to(&hit, &cluster.nodes[1])).expect("a reporter");
    let mut text = String::new();
    let mut tell = |from: u32| {
        for n in from..from + 100 {
            reporter.text(&format!("{n};"));
            text.push_str(&format!("{n};"));
        }
        text.clone()
    };
    let told = tell(0);
    cluster.nodes[0].until(&id, "the text", |job| job.status_text == told).await;
    // It ends in order; what it ran is for the others.
    let first = cluster.nodes.remove(0);
    first.stop.drain.cancel();
    tell(100);
    first.shut_down().await;
    let text = tell(200);
    poll("the text, from its new owner", async || {
        let job = cluster.nodes[1].get(&id).await;
        if job.status_text == text { Ok(()) } else { Err(format!("{:?} {}", job.state(), job.status_text)) }
    })
    .await;
    soon("the end", reporter.finish("text/plain", "done")).await.expect("taken");
    hit.ok();
    let job = cluster.nodes[1].get(&id).await;
    assert_eq!((job.state(), job.attempt, job.status_text), (JobState::Succeeded, 1, text));
}

#[tokio::test]
async fn calls_that_are_passed_on_find_a_place_however_busy_the_node_is() {
    if !on_a_server() {
        return;
    }
    let cluster = Nodes::new(2, &[("server.max_calls", "10")]).await.serve().await;
    let (first, hit) = cluster.runs(0, "/a").await;
    let (second, other) = cluster.runs(1, "/b").await;
    // Ten streams at each node, all for a job of the other one: its places are taken.
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(Reports::open(&cluster.nodes[1], &hit.token()).await);
        open.push(Reports::open(&cluster.nodes[0], &other.token()).await);
    }
    let refused = cluster.nodes[0].report(&hit.token(), progress(1)).await.expect_err("too many");
    assert_eq!(fault(&refused).1, "TOO_MANY_CALLS");
    for (n, stream) in open.iter_mut().enumerate() {
        let sequence = n as u64 + 1;
        stream.tell(numbered(sequence, progress(7))).await;
        stream.acknowledged(sequence).await;
    }
    drop(open);
    poll("the places", async || {
        for (node, id) in [(0, &first), (1, &second)] {
            let job = cluster.nodes[node].get_raw(id).await.map_err(|status| status.to_string())?;
            assert_eq!(job.progress, 7);
        }
        Ok(())
    })
    .await;
}
