//! Merging and idempotency keys: one job for many Starts.

use crate::harness::*;
use backjob::proto::v1::{self, JobState, MergePolicy};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use tonic::Code;

fn merging(route: &str, policy: MergePolicy) -> v1::StartRequest {
    v1::StartRequest { merge_policy: policy.into(), ..start(route) }
}

async fn answer(server: &Clients, request: v1::StartRequest) -> v1::StartResponse {
    soon("Start", server.control().start(request)).await.expect("started").into_inner()
}

/// One target with one slot, which a job of its own takes.
async fn busy() -> (Server, Application, Hit) {
    let application = Application::new().await;
    let server = Setup::new(application.address).with("targets.default.max_in_flight", "1").start().await;
    server.start(start("/busy")).await;
    let hit = application.hit().await;
    (server, application, hit)
}

#[tokio::test]
async fn a_hundred_identical_starts_at_once_are_one_job() {
    for policy in [MergePolicy::Unspecified, MergePolicy::JoinPending, MergePolicy::JoinActive] {
        let (server, application, mut busy) = busy().await;
        let connections: Vec<Clients> = (0..10).map(|_| Clients::new(server.address)).collect();
        let starts = (0..100).map(|n| answer(&connections[n % 10], merging("/same", policy)));
        let answers = join_all(starts).await;
        let ids: BTreeSet<String> =
            answers.iter().map(|answer| answer.job.as_ref().expect("a job").id.clone()).collect();
        assert_eq!(ids.len(), 1, "{policy:?}");
        assert_eq!(answers.iter().filter(|answer| answer.merged).count(), 99, "{policy:?}");
        let id = ids.first().expect("one");
        assert_eq!(server.get(id).await.merged_count, 99);
        busy.ok();
        let mut hit = application.hit().await;
        assert_eq!(hit.header("backjob-job-id"), id);
        hit.ok();
        let ended = server.end(id).await;
        assert_eq!((ended.state(), ended.merged_count, ended.attempt), (JobState::Succeeded, 99, 1));
        assert!(application.idle().await, "it ran once");
    }
}

#[tokio::test]
async fn who_joined_watches_the_same_job_and_sees_who_joins() {
    let (server, application, mut busy) = busy().await;
    let first = answer(&server, merging("/same", MergePolicy::JoinPending)).await.job.expect("a job");
    let mut frames = server.watch_one(&first.id).await;
    frames.synced().await;
    let second = answer(&server, merging("/same", MergePolicy::JoinPending)).await;
    let joined = second.job.expect("a job");
    assert!(second.merged && joined.id == first.id && joined.merged_count == 1);
    let seen = frames.job().await;
    assert_eq!((seen.merged_count, seen.revision > first.revision), (1, true));
    busy.ok();
    let mut hit = application.hit().await;
    let running = server.until_state(&first.id, JobState::Running).await;
    assert_eq!(running.merged_count, 1);
    hit.ok();
    server.end(&first.id).await;
}

#[tokio::test]
async fn each_policy_sees_only_what_the_design_says() {
    let (server, application) = pair().await;
    let pending = merging("/p", MergePolicy::JoinPending);
    let first = answer(&server, pending.clone()).await.job.expect("a job");
    let mut running = application.hit().await;
    // It has begun, so a pending one is a job of its own.
    let second = answer(&server, pending).await;
    assert!(!second.merged);
    application.hit().await.ok();
    running.ok();
    server.end(&first.id).await;

    let active = merging("/a", MergePolicy::JoinActive);
    let first = answer(&server, active.clone()).await.job.expect("a job");
    let mut running = application.hit().await;
    let mut frames = server.watch_one(&first.id).await;
    let joined = answer(&server, active.clone()).await;
    assert_eq!((joined.merged, joined.job.expect("a job").id), (true, first.id.clone()));
    loop {
        // A join of a running job is seen by who watches it.
        if frames.job().await.merged_count == 1 {
            break;
        }
    }
    let refused = server.refused(merging("/a", MergePolicy::Reject)).await;
    assert_eq!(fault(&refused), (Code::AlreadyExists, "DUPLICATE_JOB".into(), vec![]));
    // NEVER is of no class, and JOIN_PENDING of another one.
    assert!(!answer(&server, start("/a")).await.merged);
    assert!(!answer(&server, merging("/a", MergePolicy::JoinPending)).await.merged);
    running.ok();
    let ended = server.end(&first.id).await;
    assert_eq!((ended.state(), ended.merged_count), (JobState::Succeeded, 1));
    for _ in 0..2 {
        application.hit().await.ok();
    }
    let next = answer(&server, active).await;
    assert!(!next.merged, "an ended job is joined by nobody");
    application.hit().await.ok();
}

#[tokio::test]
async fn what_makes_a_difference_to_the_action_keeps_jobs_apart() {
    let (server, _application, _busy) = busy().await;
    let base = || merging("/same?x=1", MergePolicy::JoinPending);
    let with = |change: &dyn Fn(&mut v1::Action)| {
        let mut request = base();
        change(request.action.as_mut().expect("an action"));
        request
    };
    let raw = |data: &[u8]| v1::RawBody { content_type: "text/csv".into(), data: data.to_vec().into() };
    let others = [
        with(&|action| action.method = "PUT".into()),
        with(&|action| action.route = "/same?x=2".into()),
        with(&|action| action.headers = [("X-A".to_owned(), "1".to_owned())].into()),
        with(&|action| action.headers = [("X-A".to_owned(), "2".to_owned())].into()),
        with(&|action| action.form = [("a".to_owned(), "1".to_owned())].into()),
        with(&|action| action.raw = Some(raw(b"1"))),
        with(&|action| action.raw = Some(raw(b"2"))),
        v1::StartRequest { start_after: Some(seconds(60)), ..base() },
        v1::StartRequest { start_after: Some(seconds(61)), ..base() },
    ];
    let first = answer(&server, base()).await;
    assert!(!first.merged);
    for other in others {
        assert!(!answer(&server, other.clone()).await.merged, "{other:?}");
        assert!(answer(&server, other.clone()).await.merged, "the same again is joined: {other:?}");
    }
    // The same in other words, and with other things about it: the first one's win.
    let mut same = with(&|action| {
        action.route = "/same".into();
        action.query = [("x".to_owned(), "1".to_owned())].into();
    });
    same.priority = Some(9);
    same.display_name = "other".into();
    same.labels = [("a".to_owned(), "b".to_owned())].into();
    same.error_timeout = Some(seconds(5));
    let joined = answer(&server, same).await;
    let job = joined.job.expect("a job");
    assert_eq!((joined.merged, &job.id), (true, &first.job.expect("a job").id));
    assert_eq!((job.priority, job.display_name.as_str(), job.labels.len()), (5, "", 0));
}

#[tokio::test]
async fn a_cancel_ends_it_for_all_who_joined() {
    let (server, _application, _busy) = busy().await;
    let request = merging("/same", MergePolicy::JoinPending);
    let first = answer(&server, request.clone()).await.job.expect("a job");
    answer(&server, request.clone()).await;
    assert_eq!(server.cancel(&first.id).await.expect("cancelled").state(), JobState::Cancelled);
    assert!(!answer(&server, request).await.merged);
}

#[tokio::test]
async fn joins_of_a_job_that_falls_due_do_not_hold_it_up() {
    let (server, application) = pair().await;
    let request =
        || v1::StartRequest { start_after: Some(millis(300)), ..merging("/soon", MergePolicy::JoinPending) };
    let first = answer(&server, request()).await.job.expect("a job");
    let until_it_runs = async {
        let mut hit = application.hit().await;
        hit.ok();
        server.end(&first.id).await
    };
    let joining = async {
        loop {
            let joined = answer(&server, request()).await;
            if joined.job.expect("a job").id != first.id {
                return; // it has begun
            }
        }
    };
    let (ended, ()) = tokio::join!(until_it_runs, joining);
    assert_eq!(ended.state(), JobState::Succeeded);
}

#[tokio::test]
async fn a_key_makes_one_job_at_once_and_after_a_restart() {
    if !on_what_lasts() {
        return;
    }
    let (server, application, _busy) = busy().await;
    let keyed = |route: &str, key: &str| v1::StartRequest { idempotency_key: key.into(), ..start(route) };
    let connections: Vec<Clients> = (0..10).map(|_| Clients::new(server.address)).collect();
    let answers = join_all((0..100).map(|n| answer(&connections[n % 10], keyed("/once", "k")))).await;
    let ids: BTreeSet<String> =
        answers.iter().map(|answer| answer.job.as_ref().expect("a job").id.clone()).collect();
    assert_eq!(ids.len(), 1);
    assert!(answers.iter().all(|answer| !answer.merged), "a repeat is no join");
    let id = ids.first().expect("one").clone();
    assert_eq!(server.get(&id).await.merged_count, 0);
    let refused = server.refused(keyed("/other", "k")).await;
    assert_eq!(fault(&refused), (Code::AlreadyExists, "IDEMPOTENCY_MISMATCH".into(), vec![]));
    let named = v1::StartRequest { display_name: "another".into(), ..keyed("/once", "k") };
    assert_eq!(server.refused(named).await.code(), Code::AlreadyExists, "the whole request counts");
    assert_ne!(server.start(keyed("/once", "l")).await.id, id);
    server.cancel(&id).await.expect("cancelled");
    let server = server.shut_down().await.start().await;
    let again = server.start(keyed("/once", "k")).await;
    assert_eq!((again.state(), again.id), (JobState::Cancelled, id));
    drop(application);
}

#[tokio::test]
async fn a_key_of_a_start_that_joined_stays_with_the_job_it_joined() {
    let (server, application, mut busy) = busy().await;
    let request = |key: &str| v1::StartRequest {
        idempotency_key: key.into(),
        ..merging("/same", MergePolicy::JoinPending)
    };
    let first = answer(&server, request("a")).await.job.expect("a job");
    let joined = answer(&server, request("b")).await;
    assert_eq!((joined.merged, joined.job.expect("a job").id), (true, first.id.clone()));
    busy.ok();
    application.hit().await.ok();
    server.end(&first.id).await;
    // Long after it has ended: the same key is the same job.
    let repeated = answer(&server, request("b")).await;
    assert_eq!((repeated.merged, repeated.job.expect("a job").id), (false, first.id));
    assert!(application.idle().await);
}

#[tokio::test]
async fn the_default_policy_is_the_servers() {
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("jobs.merge_policy", "reject");
    let server = setup.start().await;
    let unsaid = || merging("/a", MergePolicy::Unspecified);
    let first = server.start(unsaid()).await;
    let mut hit = application.hit().await;
    assert_eq!(server.refused(unsaid()).await.code(), Code::AlreadyExists);
    hit.ok();
    server.end(&first.id).await;
    server.start(unsaid()).await;
    application.hit().await.ok();
}
