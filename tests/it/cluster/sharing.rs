//! Starts at many nodes at once, and who runs what.

use super::*;
use backjob::proto::v1::{self, JobState, MergePolicy};
use futures_util::future::join_all;
use std::collections::BTreeSet;

#[tokio::test]
async fn a_hundred_identical_starts_at_three_nodes_make_one_job() {
    if !on_a_server() {
        return;
    }
    let cluster = Cluster::new(3).await;
    let all = async |request: v1::StartRequest| {
        let starts = (0..100).map(|n| cluster.nodes[n % 3].start_raw(request.clone()));
        let answers = soon("the starts", join_all(starts)).await;
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("started")).collect();
        let merged = answers.iter().filter(|answer| answer.merged).count();
        let ids: BTreeSet<String> = answers.into_iter().map(|answer| answer.job.expect("a job").id).collect();
        (ids, merged)
    };
    // It waits, so that all of them can join it.
    let waits = |route: &str| v1::StartRequest {
        start_after: Some(seconds(60)),
        merge_policy: MergePolicy::Unspecified.into(),
        ..start(route)
    };
    let (ids, merged) = all(waits("/same")).await;
    assert_eq!((ids.len(), merged), (1, 99), "{ids:?}");
    let id = ids.first().expect("one");
    for node in &cluster.nodes {
        assert_eq!(node.get(id).await.merged_count, 99);
    }
    // A key makes one job whatever the policy; who repeats has not joined it.
    let keyed = v1::StartRequest { idempotency_key: "k".into(), ..start("/keyed") };
    let keyed = v1::StartRequest { start_after: Some(seconds(60)), ..keyed };
    let (ids, merged) = all(keyed.clone()).await;
    assert_eq!((ids.len(), merged), (1, 0), "{ids:?}");
    let other = v1::StartRequest { start_after: Some(seconds(61)), ..keyed };
    for node in &cluster.nodes {
        assert_eq!(fault(&node.refused(other.clone()).await).1, "IDEMPOTENCY_MISMATCH");
    }
}

#[tokio::test]
async fn what_others_may_join_is_queued_for_them_to_find_and_all_else_runs_at_once() {
    if !on_a_server() {
        return;
    }
    // A lease that no busy moment of this machine outlasts.
    let cluster = Nodes::new(2, &[("node.lease", "10s")]).await.serve().await;
    let may_be_joined = async |route: &str| {
        let policy = MergePolicy::JoinPending.into();
        cluster.nodes[0].start(v1::StartRequest { merge_policy: policy, ..start(route) }).await
    };
    let runs = async |ids: &[&str]| {
        for _ in ids {
            any_hit(&cluster.applications).await.1.ok();
        }
        for id in ids {
            assert_eq!(cluster.nodes[1].end(id).await.state(), JobState::Succeeded);
        }
    };
    // From when it has seen the other.
    poll("the first node to know the second", async || {
        let job = may_be_joined("/knows").await;
        runs(&[&job.id]).await;
        if job.state() == JobState::Queued { Ok(()) } else { Err(format!("{:?}", job.state())) }
    })
    .await;
    let mut ran_at_once = false;
    for n in 0..20 {
        let job = may_be_joined(&format!("/joins/{n}")).await;
        assert_eq!((job.state(), job.attempt), (JobState::Queued, 0));
        let alone =
            v1::StartRequest { merge_policy: MergePolicy::Never.into(), ..start(&format!("/alone/{n}")) };
        let other = cluster.nodes[0].start(alone).await;
        ran_at_once |= other.state() == JobState::Running;
        runs(&[&job.id, &other.id]).await;
    }
    assert!(ran_at_once, "a slot was free, and nobody waited");
}

#[tokio::test]
async fn what_a_full_node_was_given_is_run_by_others() {
    if !on_a_server() {
        return;
    }
    let cluster = Nodes::new(3, &[("targets.default.max_in_flight", "1")]).await.serve().await;
    let mut ids = BTreeSet::new();
    for n in 0..9 {
        ids.insert(cluster.nodes[0].start(start(&format!("/{n}"))).await.id);
    }
    // Each has one slot, and all of them go on with what waits.
    let mut by = [0; 3];
    for _ in 0..3 {
        let mut hits = Vec::new();
        for _ in 0..3 {
            let (node, hit) = any_hit(&cluster.applications).await;
            assert!(ids.remove(hit.header("backjob-job-id")), "it ran before");
            by[node] += 1;
            hits.push(hit);
        }
        hits.iter_mut().for_each(Hit::ok);
    }
    assert_eq!((by, ids.len()), ([3, 3, 3], 0));
    let ended = v1::JobFilter { states: vec![JobState::Succeeded.into()], ..Default::default() };
    let request = v1::ListJobsRequest { filter: Some(ended), ..Default::default() };
    poll("all to end", async || {
        let list = cluster.nodes[1].control().list_jobs(request.clone()).await.expect("a list");
        let ended = list.into_inner().jobs.len();
        if ended == 9 { Ok(()) } else { Err(format!("{ended} have")) }
    })
    .await;
}
