//! Watching a job from a node that does not run it.

use crate::harness::*;
use backjob::proto::v1::{self, JobFilter, JobState, TextMode, WatchStatusRequest};
use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
use std::{collections::HashMap, time::Duration};

/// Two nodes on one database. What is for the target `a` runs on the first alone.
struct Two {
    a: Server,
    b: Server,
    application: Application,
    _other: Application,
}

impl Two {
    /// With further settings of the first one.
    async fn new(settings: &[(&str, &str)]) -> Self {
        Self::on(Setup::new("127.0.0.1:9".parse().expect("an address")), settings).await
    }

    async fn on(setup: Setup, settings: &[(&str, &str)]) -> Self {
        let (application, other) = (Application::new().await, Application::new().await);
        let setup = setup.with("targets.default.url", &format!("http://{}", other.address));
        let second = setup.another();
        let first = setup.with("targets.a.url", &format!("http://{}", application.address));
        let first = settings.iter().fold(first, |setup, (key, value)| setup.with(key, value));
        let a = first.with("node.name", "a").start().await;
        let b = second.with("node.name", "b").start().await;
        Self { a, b, application, _other: other }
    }
}

fn on_a(route: &str) -> v1::StartRequest {
    let action = v1::Action { target: "a".to_owned(), ..action(route) };
    v1::StartRequest { action: Some(action), ..start(route) }
}

/// A job that waits for ever.
fn waiting(route: &str) -> v1::StartRequest {
    v1::StartRequest { start_after: Some(seconds(36_000)), ..on_a(route) }
}

fn every_state(route_prefix: &str) -> WatchStatusRequest {
    let states = [
        JobState::Scheduled,
        JobState::Queued,
        JobState::Running,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
    ];
    let states = states.map(i32::from).to_vec();
    let filter = JobFilter { states, route_prefix: route_prefix.to_owned(), ..Default::default() };
    WatchStatusRequest { filter: Some(filter), ..Default::default() }
}

/// What a stream said of each job: it may only go on.
#[derive(Default)]
struct Seen(HashMap<String, v1::Job>);

impl Seen {
    fn take(&mut self, frame: &v1::WatchStatusResponse) {
        let Some(job) = &frame.job else { return };
        if let Some(before) = self.0.insert(job.id.clone(), job.clone()) {
            assert!(job.revision > before.revision, "{before:?} and then {job:?}");
            assert!(!is_final(&before), "after the end {before:?} came {job:?}");
        }
    }

    /// Reads on until what was seen is as `wanted`.
    async fn until(&mut self, frames: &mut Frames, what: &str, wanted: impl Fn(&Self) -> bool) {
        let read = async {
            while !wanted(self) {
                let frame = frames.frame().await;
                self.take(&frame);
            }
        };
        if tokio::time::timeout(BOUND, read).await.is_err() {
            panic!("waited for {what}; seen: {:#?}", self.0);
        }
    }

    fn ended(&self) -> usize {
        self.0.values().filter(|job| is_final(job)).count()
    }
}

#[tokio::test]
async fn a_job_that_runs_elsewhere_is_watched_like_one_that_runs_here() {
    if !on_a_server() {
        return;
    }
    let Two { a, b, application, .. } = Two::new(&[]).await;
    let job = a.start(on_a("/a")).await;
    let mut hit = application.hit().await;
    let mut frames = b.watch_one(&job.id).await;
    let mut seen = Seen::default();
    frames.synced().await.iter().for_each(|frame| seen.take(frame));
    assert_eq!(seen.0.len(), 1, "the present state");
    for percent in [10, 50, 30] {
        a.report(&hit.token(), progress(percent)).await.expect("taken");
        seen.until(&mut frames, "progress", |seen| seen.0[&job.id].progress == percent).await;
    }
    // What is merged on the way is not missed at the end.
    for percent in 60..100 {
        a.report(&hit.token(), progress(percent)).await.expect("taken");
    }
    a.report(&hit.token(), finish()).await.expect("taken");
    seen.until(&mut frames, "the end", |seen| seen.ended() == 1).await;
    assert_eq!(seen.0[&job.id], a.get(&job.id).await, "as its own node shows it");
    assert!(frames.next().await.is_none(), "the stream of one job ends with it");
    hit.ok();

    // One that ended before is there at once, and one that is cancelled ends, too.
    let mut frames = b.watch_one(&job.id).await;
    assert_eq!(frames.synced().await.len(), 1);
    assert!(frames.next().await.is_none());
    let job = a.start(waiting("/waits")).await;
    let mut frames = b.watch_one(&job.id).await;
    frames.synced().await;
    a.cancel(&job.id).await.expect("cancelled");
    assert_eq!(frames.job().await.state(), JobState::Cancelled);
}

#[tokio::test]
async fn jobs_of_other_nodes_join_a_filter_and_each_ends_once() {
    if !on_a_server() {
        return;
    }
    const JOBS: usize = 40;
    let Two { a, b, application, .. } = Two::new(&[("targets.a.max_in_flight", "8")]).await;
    // One that ended just before the watch: it is read, and the feed comes upon it, too.
    let before = a.start(on_a("/many/before")).await;
    application.hit().await.ok();
    a.end(&before.id).await;
    let mut frames = b.watch(every_state("/many")).await.expect("a watch");
    let mut seen = Seen::default();
    frames.synced().await.iter().for_each(|frame| seen.take(frame));
    assert_eq!(seen.ended(), 1, "{:?}", seen.0);
    let mut others = b.watch(every_state("/others")).await.expect("a watch");
    others.synced().await;
    let starts = async {
        for n in 0..JOBS {
            a.start(on_a(&format!("/many/{n}"))).await;
        }
    };
    let work = async {
        for n in 0..JOBS {
            let mut hit = application.hit().await;
            a.report(&hit.token(), progress(50)).await.expect("taken");
            match n % 3 {
                0 => hit.ok(),
                1 => hit.answer(404, &[], ""),
                _ => {
                    a.report(&hit.token(), finish()).await.expect("taken");
                    hit.ok();
                }
            }
        }
    };
    let watch = seen.until(&mut frames, "every end", |seen| seen.ended() == JOBS + 1);
    tokio::join!(starts, work, watch);
    // Nothing comes again, while the feed looks at what it has seen and goes on.
    let last = a.start(on_a("/many/last")).await;
    application.hit().await.ok();
    seen.until(&mut frames, "the last", |seen| seen.0.get(&last.id).is_some_and(is_final)).await;
    let marker = a.start(waiting("/others/marker")).await;
    assert_eq!(others.job().await.id, marker.id, "of those that match nothing else was sent");
}

/// What another hand writes into the tables, as another node would, at a time that is
/// so many milliseconds ago.
async fn written(db: &impl sea_orm::ConnectionTrait, change: &str, which: &str, ago: i64) {
    let now = match db.get_database_backend() {
        sea_orm::DbBackend::Postgres => "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        _ => "CAST(unix_timestamp(now(3)) * 1000 AS SIGNED)",
    };
    let text =
        format!("UPDATE job SET revision = revision + 1, changed_at = {now} - {ago}, {change} WHERE {which}");
    db.execute_unprepared(&text).await.expect("changed");
}

#[tokio::test]
async fn an_end_that_was_read_is_not_told_again_when_the_feed_comes_upon_it() {
    if !on_a_server() {
        return;
    }
    let Two { a, b, application, .. } = Two::new(&[]).await;
    // The feed is under way.
    let mut others = b.watch(every_state("/others")).await.expect("a watch");
    others.synced().await;
    for round in 0..10 {
        let prefix = format!("/round/{round}/");
        let job = a.start(on_a(&format!("{prefix}job"))).await;
        application.hit().await.ok();
        a.end(&job.id).await;
        let mut frames = b.watch(every_state(&prefix)).await.expect("a watch");
        let mut seen = Seen::default();
        frames.synced().await.iter().for_each(|frame| seen.take(frame));
        assert_eq!(seen.ended(), 1);
        // What comes after it was stored after it.
        let marker = a.start(waiting(&format!("{prefix}marker"))).await;
        a.cancel(&marker.id).await.expect("cancelled");
        seen.until(&mut frames, "the marker", |seen| seen.ended() == 2).await;
    }
}

#[tokio::test]
async fn rows_that_are_committed_out_of_order_are_not_skipped() {
    if !on_a_server() {
        return;
    }
    const JOBS: usize = 2_500; // more than two pages
    let Two { a, b, .. } = Two::new(&[]).await;
    let late = a.start(v1::StartRequest { priority: Some(9), ..waiting("/late/one") }).await;
    for some in 0..JOBS / 500 {
        let requests = (0..500).map(|n| waiting(&format!("/jobs/{some}/{n}"))).collect();
        let request = v1::BatchStartRequest { requests };
        let started = soon("BatchStart", a.control().batch_start(request)).await.expect("started");
        assert_eq!(started.into_inner().results.len(), 500);
    }
    // One watches all, and one by a filter that the late one matches only once it was
    // changed: nothing but the feed can tell of that.
    let mut all = b.watch(every_state("/jobs")).await.expect("a watch");
    let filter = JobFilter { states: vec![JobState::Cancelled.into()], ..Default::default() };
    let request = WatchStatusRequest { filter: Some(filter), ..Default::default() };
    let mut by_filter = b.watch(request).await.expect("a watch");
    let mut seen = Seen::default();
    all.synced().await.iter().for_each(|frame| seen.take(frame));
    assert_eq!(seen.0.len(), JOBS);
    assert!(by_filter.synced().await.is_empty());

    let (beside, others) = (a.setup.beside().await, a.setup.beside().await);
    if beside.get_database_backend() == sea_orm::DbBackend::MySql {
        let text = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
        beside.execute_unprepared(text).await.expect("set");
        others.execute_unprepared(text).await.expect("set");
    }
    // Its time is before that of the others, and it is seen after them.
    let held = beside.begin().await.expect("begun");
    let cancelled = "state = 6, ended_at = created_at, give_up_at = NULL";
    written(&held, cancelled, "priority = 9", 4_000).await;
    for round in [7, 8] {
        written(&others, &format!("progress = {round}"), "priority = 5", 0).await;
        let done = |seen: &Seen| seen.0.values().all(|job| job.progress == round);
        seen.until(&mut all, "every change", done).await;
    }
    held.commit().await.expect("committed");
    let one = soon("the late one", by_filter.job()).await;
    assert_eq!((one.id.as_str(), one.state()), (late.id.as_str(), JobState::Cancelled));
    assert_eq!(one.revision, late.revision + 1);
    beside.close().await.expect("closed");
    others.close().await.expect("closed");
}

#[tokio::test]
async fn what_is_watched_is_compared_with_the_tables_whatever_was_missed() {
    if !on_a_server() {
        return;
    }
    let Two { a, b, .. } = Two::new(&[]).await;
    let (changed, erased) = (a.start(waiting("/changed")).await, a.start(waiting("/erased")).await);
    let ids = vec![changed.id.clone(), erased.id.clone()];
    let request = WatchStatusRequest { job_ids: ids, ..Default::default() };
    let mut frames = b.watch(request).await.expect("a watch");
    frames.synced().await;
    // As late as no transaction should be, and by nobody who would say so.
    let beside = a.setup.beside().await;
    written(&beside, "progress = 7", "state = 1", 3_600_000).await;
    let mut seen = Seen::default();
    seen.until(&mut frames, "both", |seen| seen.0.len() == 2).await;
    assert!(seen.0.values().all(|job| job.progress == 7));
    let first = "DELETE FROM job WHERE id = (SELECT job_id FROM job_request WHERE route = '/erased')";
    beside.execute_unprepared(first).await.expect("deleted");
    beside.close().await.expect("closed");
    assert_eq!(frames.frame().await.deleted_job_id, erased.id);
}

#[tokio::test]
async fn what_is_erased_on_another_node_is_told() {
    if !on_a_server() {
        return;
    }
    let Two { a, b, application, .. } = Two::new(&[]).await;
    let (ended, open) = (a.start(on_a("/ends")).await, a.start(waiting("/open")).await);
    application.hit().await.ok();
    a.end(&ended.id).await;
    let ids = vec![ended.id.clone(), open.id.clone()];
    let mut frames =
        b.watch(WatchStatusRequest { job_ids: ids, ..Default::default() }).await.expect("a watch");
    assert_eq!(frames.synced().await.len(), 2);
    let request = v1::DeleteJobRequest { job_id: ended.id.clone() };
    soon("DeleteJob", a.control().delete_job(request)).await.expect("deleted");
    assert_eq!(frames.frame().await.deleted_job_id, ended.id);
    a.cancel(&open.id).await.expect("cancelled");
    assert_eq!(frames.job().await.state(), JobState::Cancelled);
    assert!(frames.next().await.is_none());
}

/// What the pieces of a stream make, from the last reset on.
#[derive(Default)]
struct Joined {
    text: String,
    resets: u32,
    next: u64,
}

impl Joined {
    fn take(&mut self, frame: &v1::WatchStatusResponse) {
        let Some(job) = &frame.job else { return };
        if frame.text_reset {
            self.text.clear();
            self.resets += 1;
        } else {
            assert_eq!(frame.text_offset, self.next, "contiguous, or a reset");
        }
        self.text.push_str(&job.status_text);
        self.next = frame.text_offset + job.status_text.len() as u64;
    }

    async fn until(&mut self, frames: &mut Frames, wanted: &str) {
        let read = async {
            while self.text != wanted {
                let frame = frames.frame().await;
                self.take(&frame);
            }
        };
        if tokio::time::timeout(BOUND, read).await.is_err() {
            let tail: String =
                self.text.chars().rev().take(80).collect::<Vec<_>>().into_iter().rev().collect();
            panic!("waited for {} bytes; seen: {} bytes, …{tail:?}", wanted.len(), self.text.len());
        }
    }
}

#[tokio::test]
async fn text_of_a_job_that_runs_elsewhere_comes_in_pieces_that_make_it_whole() {
    if !on_a_server() {
        return;
    }
    let Two { a, b, application, .. } = Two::new(&[]).await;
    let job = a.start(on_a("/a")).await;
    let mut hit = application.hit().await;
    let request = WatchStatusRequest {
        job_ids: vec![job.id.clone()],
        text: TextMode::Delta.into(),
        ..Default::default()
    };
    let mut frames = b.watch(request).await.expect("a watch");
    let mut joined = Joined::default();
    frames.synced().await.iter().for_each(|frame| joined.take(frame));
    assert_eq!(joined.resets, 1, "a job's first frame");
    let mut text = String::new();
    for n in 0..30 {
        let piece = format!("é{n} ");
        text.push_str(&piece);
        a.report(&hit.token(), append(&piece)).await.expect("taken");
    }
    // The action says nothing more: what is stored later than its revision comes all the same.
    joined.until(&mut frames, &text).await;
    assert_eq!(joined.resets, 1);
    // More than is kept, in pieces.
    for n in 0..6 {
        let piece = n.to_string().repeat(20_000);
        text.push_str(&piece);
        a.report(&hit.token(), append(&piece)).await.expect("taken");
        if n < 4 {
            joined.until(&mut frames, &text).await;
        }
    }
    assert_eq!(joined.resets, 1, "the beginning is dropped there, and not here");
    let replaced = v1::ReportRequest {
        text_change: Some(v1::report_request::TextChange::StatusText("another".to_owned())),
        ..Default::default()
    };
    a.report(&hit.token(), replaced).await.expect("taken");
    joined.until(&mut frames, "another").await;
    assert!(joined.resets > 1);
    a.report(&hit.token(), append(", and its end")).await.expect("taken");
    a.report(&hit.token(), finish()).await.expect("taken");
    joined.until(&mut frames, "another, and its end").await;
    hit.ok();
    while let Some(frame) = frames.next().await {
        let frame = frame.expect("a frame");
        joined.take(&frame);
    }
    assert_eq!(joined.text, a.get(&job.id).await.status_text);
}

#[tokio::test]
async fn connections_that_are_cut_cost_a_watcher_nothing_but_time() {
    if !on_a_server() {
        return;
    }
    let Two { a, b, application, .. } = Two::new(&[]).await;
    let mut frames = b.watch(every_state("/cut")).await.expect("a watch");
    frames.synced().await;
    let mut seen = Seen::default();
    let database = a.setup.database.clone().expect("a database");
    for round in 0..4 {
        let job = a.start(on_a(&format!("/cut/{round}"))).await;
        let mut hit = application.hit().await;
        database.cut().await;
        poll("a report", async || {
            a.report(&hit.token(), progress(round + 1)).await.map_err(|status| status.to_string())
        })
        .await;
        poll("the end", async || a.report(&hit.token(), finish()).await.map_err(|status| status.to_string()))
            .await;
        hit.ok();
        seen.until(&mut frames, "the end", |seen| seen.0.get(&job.id).is_some_and(is_final)).await;
    }
}

#[tokio::test]
async fn a_watch_goes_on_when_the_node_that_ran_the_job_leaves() {
    if !on_a_server() {
        return;
    }
    let Two { a, b, application, .. } = Two::new(&[]).await;
    let job = a.start(on_a("/a")).await;
    let mut hit = application.hit().await;
    hit.answer(202, &[], "");
    let mut frames = b.watch_one(&job.id).await;
    let mut seen = Seen::default();
    frames.synced().await.iter().for_each(|frame| seen.take(frame));
    a.report(&hit.token(), progress(40)).await.expect("taken");
    a.report(&hit.token(), append("so far")).await.expect("taken");
    a.shut_down().await;
    // What was reported to the one is there for the other, which goes on from it.
    poll("the takeover", async || {
        b.report(&hit.token(), append(", and on")).await.map_err(|status| status.to_string())
    })
    .await;
    b.report(&hit.token(), finish()).await.expect("taken");
    seen.until(&mut frames, "the end", |seen| seen.ended() == 1).await;
    let end = &seen.0[&job.id];
    assert_eq!((end.state(), end.status_text.as_str()), (JobState::Succeeded, "so far, and on"));
    assert!(frames.next().await.is_none());
}

/// How often the index of changes was looked at.
async fn looks(setup: &Setup) -> i64 {
    let rows = setup.rows("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'job_changed'");
    rows.await[0].try_get_by_index(0).expect("a number")
}

#[tokio::test]
async fn nothing_is_read_while_nobody_watches() {
    if !on_a_server() {
        return;
    }
    if Kept::here() == Kept::Server(ServerKind::MariaDb) {
        return println!("SKIPPED on MariaDB: it does not count how often an index is read");
    }
    let setup = Setup::new("127.0.0.1:9".parse().expect("an address"));
    // Tables as small as these are read without an index.
    let beside = setup.beside().await;
    let index = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET enable_seqscan = off', current_database()); END $$";
    beside.execute_unprepared(index).await.expect("set");
    beside.close().await.expect("closed");
    let Two { a, b, .. } = Two::on(setup, &[]).await;
    let job = a.start(waiting("/a")).await;
    // Its connections tell their counts when they rest.
    let frames = b.watch_one(&job.id).await;
    let watched = poll("looks while somebody watches", async || match looks(&a.setup).await {
        0 => Err("none".to_owned()),
        looks => Ok(looks),
    });
    watched.await;
    drop(frames);
    let resting = || async {
        let before = looks(&a.setup).await;
        let began = tokio::time::Instant::now();
        // Four times as long as between two polls.
        let rested = poll("time", async || match began.elapsed() {
            passed if passed < Duration::from_secs(1) => Err(format!("{passed:?}")),
            _ => Ok(looks(&a.setup).await),
        });
        match rested.await - before {
            0 => Ok(()),
            more => Err(format!("{more} looks in a second")),
        }
    };
    poll("rest", resting).await;
}
