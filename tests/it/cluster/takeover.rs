//! A node that dies, stands still, or leaves: others go on with what it had.

use super::{relay::unreachable, *};
use crate::load::{Audit, Load, port, seed};
use backjob::proto::v1::{self, JobState};
use futures_util::future::join_all;
use std::{net::SocketAddr, time::Duration};
use tokio::time::Instant;
use tonic::Code;

/// How long a node may be silent here.
const LEASE: Duration = Duration::from_secs(1);
/// From the last sign of life of a node until all that it had goes on elsewhere.
const TAKEOVER: Duration = LEASE.saturating_add(Duration::from_secs(2));

fn numbered(sequence: u64, report: v1::ReportRequest) -> v1::ReportRequest {
    v1::ReportRequest { sequence: Some(sequence), ..report }
}

/// Reports at a node until it is taken; what was said until then must be worth a
/// repetition.
async fn insist(node: &Clients, token: &str, report: v1::ReportRequest) -> v1::ReportResponse {
    poll("a report to be taken", async || match node.report(token, report.clone()).await {
        Ok(answer) => Ok(answer),
        Err(status) if status.code() == Code::Unavailable => Err(status.to_string()),
        Err(status) => panic!("{status:?}"),
    })
    .await
}

async fn said(node: &Process, what: &str) {
    poll(what, async || {
        let log = node.log();
        if log.iter().any(|line| line.contains(what)) { Ok(()) } else { Err(format!("{log:#?}")) }
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_node_had_goes_on_elsewhere_within_its_lease_and_two_seconds() {
    if !on_a_server() {
        return;
    }
    let settings = [("targets.default.max_in_flight", "1"), ("jobs.flush_interval", "50ms")];
    let nodes = Nodes::new(3, &settings).await;
    let (a, b, c) = (nodes.process(0).await, nodes.process(1).await, nodes.process(2).await);
    // One runs at each node, one more waits for a slot, another one for its time.
    let mut hits = Vec::new();
    for (node, application) in [&a, &b, &c].into_iter().zip(&nodes.applications) {
        node.start(start("/runs")).await;
        hits.push(application.hit().await);
    }
    let [mut first, mut second, mut third] = <[Hit; 3]>::try_from(hits).ok().expect("three");
    let waits = a.start(start("/waits")).await;
    let due = v1::StartRequest { start_after: Some(millis(500)), ..start("/due") };
    let due = a.start(due).await;
    let (id, token) = (first.header("backjob-job-id").to_owned(), first.token());
    let before = a.report(&token, numbered(1, append("one"))).await.expect("taken");
    c.until(&id, "the text", |job| job.status_text == "one").await;

    a.kill().await;
    let killed = Instant::now();
    // By two nodes at once; one of them adopts it.
    let (one, two) = tokio::join!(
        insist(&b, &token, numbered(2, append(" two"))),
        insist(&c, &token, numbered(2, append(" two")))
    );
    assert!(killed.elapsed() < TAKEOVER, "{:?}", killed.elapsed());
    assert!(one.revision >> 32 > before.revision >> 32 && two.revision >> 32 == one.revision >> 32);
    // What waited runs where a slot falls free.
    second.ok();
    third.ok();
    for _ in 0..2 {
        let (_, mut hit) = any_hit(&nodes.applications).await;
        let id = hit.header("backjob-job-id").to_owned();
        assert!(id == waits.id || id == due.id, "{id}");
        hit.ok();
    }
    assert!(killed.elapsed() < TAKEOVER, "{:?}", killed.elapsed());
    for id in [&waits.id, &due.id] {
        assert_eq!(b.end(id).await.attempt, 1);
    }
    c.report(&token, numbered(3, finish())).await.expect("taken");
    b.report(&token, numbered(3, finish())).await.expect("an exact repeat");
    let job = b.get(&id).await;
    assert_eq!((job.state(), job.attempt, job.status_text.as_str()), (JobState::Succeeded, 1, "one two"));
    first.ok();
}

#[tokio::test]
async fn a_node_that_stood_still_finds_its_jobs_taken_and_writes_nothing_old() {
    if !on_a_server() {
        return;
    }
    let nodes = Nodes::new(3, &[("jobs.flush_interval", "50ms")]).await;
    let (a, b, c) = (nodes.process(0).await, nodes.process(1).await, nodes.process(2).await);
    let (kept, other) = (a.start(start("/kept")).await.id, a.start(start("/other")).await.id);
    let mut hits = [nodes.applications[0].hit().await, nodes.applications[0].hit().await];
    hits.sort_by_key(|hit| hit.header("backjob-job-id") != kept);
    let [mut hit, mut other_hit] = hits;
    let (token, other_token) = (hit.token(), other_hit.token());
    b.report(&token, numbered(1, append("one"))).await.expect("taken");
    b.until(&kept, "the text", |job| job.status_text == "one").await;

    a.signal("STOP").await;
    let stopped = Instant::now();
    // Who has asked it and gets no answer says so, until its lease is over.
    let refused = b.report(&token, numbered(2, append(" two"))).await.expect_err("it stands still");
    unreachable(&refused, &kept, "a");
    let answer = insist(&c, &token, numbered(2, append(" two"))).await;
    // A call that is passed on to it is given up after a second.
    assert!(stopped.elapsed() < TAKEOVER + Duration::from_secs(1), "{:?}", stopped.elapsed());
    insist(&b, &other_token, numbered(1, progress(10))).await;
    // What the action answers meanwhile goes to the one that stands still.
    hit.ok();
    other_hit.answer(500, &[], "");

    a.signal("CONT").await;
    said(&a, "another node has taken the job over").await;
    let after = insist(&a, &token, numbered(3, append(" three"))).await;
    assert!(after.revision > answer.revision && after.revision >> 32 == answer.revision >> 32);
    for node in [&a, &b, &c] {
        node.report(&token, numbered(3, append(" three"))).await.expect("a repeat");
        let (job, other) = (node.get(&kept).await, node.get(&other).await);
        assert_eq!((job.state(), job.attempt), (JobState::Running, 1));
        assert_eq!((other.state(), other.attempt), (JobState::Running, 1));
    }
    insist(&a, &other_token, numbered(2, finish())).await;
    insist(&a, &token, numbered(4, finish())).await;
    let job = a.get(&kept).await;
    assert_eq!((job.state(), job.status_text.as_str()), (JobState::Succeeded, "one two three"));
    // It goes on as a node like any other.
    a.start(start("/next")).await;
    any_hit(&nodes.applications).await.1.ok();
}

#[tokio::test]
async fn two_nodes_of_one_name_do_not_live_at_once() {
    if !on_a_server() {
        return;
    }
    let mut nodes = Nodes::new(2, &[]).await;
    nodes.set(1, "node.name", "a");
    let first = nodes.process(0).await;
    let output = soon("the second one's end", nodes.setups[1].command("serve").output()).await.expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("node.name") && said.contains("\"a\""), "{said}");
    first.start(start("/goes-on")).await;
    nodes.applications[0].hit().await.ok();
    // Its place is free once it is dead.
    first.kill().await;
    let second = nodes.process(1).await;
    second.start(start("/takes-over")).await;
    nodes.applications[1].hit().await.ok();
}

/// Three nodes, and where they listen.
pub(super) async fn listening(settings: &[(&str, &str)]) -> (Nodes, Vec<SocketAddr>) {
    let mut nodes = Nodes::new(3, settings).await;
    let mut random = Random::new(u64::from(std::process::id()));
    let mut addresses = Vec::new();
    for node in 0..3 {
        let address = port(&mut random).await;
        nodes.set(node, "server.listen", &address.to_string());
        addresses.push(address);
    }
    (nodes, addresses)
}

const BUSY: [(&str, &str); 4] = [
    ("targets.default.max_in_flight", "10"),
    ("jobs.flush_interval", "20ms"),
    ("jobs.error_timeout", "4s"),
    ("jobs.cancel_grace", "1s"),
];

pub(super) fn audited(seed: u64, least: usize, audit: &Audit) {
    let Audit { jobs, repeated, faults, .. } = audit;
    eprintln!("{} jobs; calls were repeated after {repeated:#?}", jobs.len());
    assert!(faults.is_empty(), "seed {seed}: {faults:#?}");
    assert!(jobs.len() >= least, "only {} jobs", jobs.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_lost_when_a_node_is_killed_under_load() {
    if !on_a_server() {
        return;
    }
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut nodes, addresses) = listening(&BUSY).await;
    let mut running = join_all((0..3).map(|node| nodes.process(node))).await;
    let applications: Vec<Arc<Application>> =
        std::mem::take(&mut nodes.applications).into_iter().map(Arc::new).collect();
    let load = Load::begin(seed, &Clients::over(&addresses), &applications);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500 + random.below(500) as u64)).await;
        let node = random.below(3);
        running.remove(node).kill().await;
        // It is dead before it is there again.
        tokio::time::sleep(TAKEOVER).await;
        running.insert(node, nodes.process(node).await);
    }
    let audit = load.end().await;
    audited(seed, 50, &audit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_replaced_one_after_the_other_and_nothing_is_lost_or_refused() {
    if !on_a_server() {
        return;
    }
    let seed = seed();
    let (mut nodes, addresses) = listening(&BUSY).await;
    let mut running = join_all((0..3).map(|node| nodes.process(node))).await;
    let applications: Vec<Arc<Application>> =
        std::mem::take(&mut nodes.applications).into_iter().map(Arc::new).collect();
    let load = Load::begin(seed, &Clients::over(&addresses), &applications);
    for node in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let status = running.remove(node).terminate().await;
        assert!(status.success(), "{status}");
        running.insert(node, nodes.process(node).await);
    }
    let audit = load.end().await;
    audited(seed, 50, &audit);
    // When a connection is about to close, tonic's client gives up what it has not
    // sent yet, and says so in two ways of its own.
    let unsent =
        ["operation was canceled: connection closed", "connection error received: not a result of an error"];
    let known =
        |why: &&String| why.starts_with("Unavailable") || unsent.iter().any(|unsent| why.ends_with(unsent));
    let more: Vec<_> = audit.repeated.keys().filter(|why| !known(why)).collect();
    assert!(more.is_empty(), "{more:#?}");
}
