//! Nodes whose hosts do not agree what time it is.

use super::*;
use crate::faults::{Order, Shim};
use backjob::proto::v1::{self, JobState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

const TEN_MINUTES: i32 = 600;

/// Seconds since 1970, as this test's own clock has them.
#[expect(clippy::disallowed_methods, reason = "what is tested is compared with the real clock")]
fn real() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()).expect("small")
}

/// That a time is now, as the database has it: its host is this one.
fn is_now(what: &str, at: Option<prost_types::Timestamp>) {
    let off = at.expect(what).seconds - real();
    assert!((-15..=15).contains(&off), "{what} is {off} s off");
}

#[tokio::test]
async fn nothing_begins_stalls_or_expires_early_or_late_by_clocks_that_differ_or_jump() {
    if !on_a_server() {
        return;
    }
    let nodes = Nodes::new(3, &[("jobs.flush_interval", "50ms")]).await;
    let shims: Vec<Shim> = nodes.setups.iter().map(Shim::new).collect();
    shims[0].tell(Order::ClockShift, TEN_MINUTES);
    shims[1].tell(Order::ClockShift, -TEN_MINUTES);
    let mut running = Vec::new();
    for (shim, setup) in shims.iter().zip(&nodes.setups) {
        running.push(shim.serve(setup).await);
    }
    // A job that reports, for the whole time; a stall is 15 s away.
    let long = v1::StartRequest { error_timeout: Some(seconds(15)), ..start("/long") };
    let mut long_hits = Vec::new();
    for (node, application) in running.iter().zip(&nodes.applications) {
        let job = node.start(long.clone()).await;
        is_now("created_at", job.created_at);
        let hit = application.hit().await;
        node.report(&hit.token(), progress(1)).await.expect("taken");
        long_hits.push(hit);
    }
    let beat = async |percent: u32| {
        for (n, hit) in long_hits.iter().enumerate() {
            // At another node than its own.
            let answer = running[(n + 1) % 3].report(&hit.token(), progress(percent)).await.expect("taken");
            let left = answer.deadline.expect("a deadline").seconds - real();
            assert!((0..=17).contains(&left), "{left} s left of 15");
        }
    };
    for (round, shifts) in
        [[TEN_MINUTES, -TEN_MINUTES, 0], [TEN_MINUTES, -TEN_MINUTES, 3_600], [-3_600, 3_600, 0]]
            .into_iter()
            .enumerate()
    {
        for (shim, shift) in shims.iter().zip(shifts) {
            shim.tell(Order::ClockShift, shift);
        }
        let percent = 10 * (u32::try_from(round).expect("small") + 1);
        beat(percent).await;
        // Started at each, due in two seconds, given up in thirty if it has not begun.
        let asked = Instant::now();
        let mut due = Vec::new();
        for node in &running {
            let request = v1::StartRequest {
                start_after: Some(seconds(2)),
                expire_after: Some(seconds(30)),
                ..start(&format!("/due/{round}"))
            };
            due.push(node.start(request).await);
        }
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        beat(percent + 1).await;
        for application in &nodes.applications {
            assert!(
                application.idle().await,
                "it began {:?} early",
                Duration::from_secs(2) - asked.elapsed()
            );
        }
        for _ in &due {
            let (_, mut hit) = any_hit(&nodes.applications).await;
            assert!(asked.elapsed() > Duration::from_millis(1_900), "it began after {:?}", asked.elapsed());
            assert!(asked.elapsed() < Duration::from_secs(20), "it began after {:?}", asked.elapsed());
            hit.ok();
        }
        for job in &due {
            let job = running[0].end(&job.id).await;
            assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 1));
            is_now("ended_at", job.ended_at);
        }
        beat(percent + 2).await;
    }
    // What ends by its clock does so in time: here by the one of the node that runs it.
    let expires = v1::StartRequest {
        start_after: Some(seconds(60)),
        expire_after: Some(seconds(1)),
        ..start("/expires")
    };
    let expires = running[1].start(expires).await;
    let silent = Instant::now();
    assert_eq!(reason(&running[2].end(&expires.id).await), "FAILURE_REASON_EXPIRED");
    for hit in &long_hits {
        let job = running[0].end(hit.header("backjob-job-id")).await;
        assert_eq!((reason(&job), job.attempt), ("FAILURE_REASON_STALLED", 1));
    }
    assert!(silent.elapsed() < Duration::from_secs(40), "{:?}", silent.elapsed());
}
