//! The stream that dashboards live on.

use crate::harness::*;
use backjob::proto::v1::{self, JobState, TextMode, WatchStatusRequest};
use std::collections::HashMap;
use tonic::Code;

fn watch(ids: &[&str]) -> WatchStatusRequest {
    WatchStatusRequest { job_ids: ids.iter().map(|&id| id.to_owned()).collect(), ..Default::default() }
}

const NOBODY: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

#[tokio::test]
async fn the_present_state_comes_first_then_synced_then_every_change() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let mut frames = server.watch_one(&job.id).await;
    let before = frames.synced().await;
    assert_eq!(before.len(), 1);
    let mut last = before[0].job.clone().expect("a job").revision;
    for percent in [10, 20, 30] {
        server.report(&hit.token(), progress(percent)).await.expect("taken");
        let seen = frames.job().await;
        assert!(seen.revision > last);
        assert_eq!(seen.progress, percent);
        last = seen.revision;
    }
    server.report(&hit.token(), finish()).await.expect("taken");
    let end = frames.job().await;
    assert_eq!((end.state(), end.revision > last), (JobState::Succeeded, true));
    assert!(frames.next().await.is_none(), "the stream of one job ends with it");
    hit.ok();
}

#[tokio::test]
async fn after_a_break_nothing_is_sent_twice_and_nothing_is_missed() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let seen = server.report(&hit.token(), progress(10)).await.expect("taken").revision;
    let mut same = server
        .watch(WatchStatusRequest { after_revision: Some(seen), ..watch(&[&job.id]) })
        .await
        .expect("a watch");
    assert!(same.synced().await.is_empty(), "nothing new");
    for other in [seen - 1, seen + 1, 0] {
        let request = WatchStatusRequest { after_revision: Some(other), ..watch(&[&job.id]) };
        let mut frames = server.watch(request).await.expect("a watch");
        assert_eq!(frames.synced().await.len(), 1, "any other value gets the present state");
    }
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    assert_eq!(same.job().await.state(), JobState::Succeeded);
    let end = server.get(&job.id).await.revision;
    let mut frames = server
        .watch(WatchStatusRequest { after_revision: Some(end), ..watch(&[&job.id]) })
        .await
        .expect("a watch");
    assert!(frames.synced().await.is_empty());
    assert!(frames.next().await.is_none(), "a final state that is known ends the stream");
}

#[tokio::test]
async fn many_ids_end_when_all_are_final_and_missing_ones_are_named() {
    let (server, application) = pair().await;
    let first = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    hit.ok();
    server.end(&first.id).await;
    let second = server.start(start("/b")).await;
    let mut hit = application.hit().await;
    let mut frames = server.watch(watch(&[&first.id, NOBODY, &second.id, &first.id])).await.expect("a watch");
    let before = frames.synced().await;
    let missing: Vec<_> = before.iter().flat_map(|frame| frame.missing_job_ids.clone()).collect();
    assert_eq!(missing, [NOBODY]);
    assert_eq!(before.iter().filter(|frame| frame.job.is_some()).count(), 2);
    hit.ok();
    let mut last = None;
    while let Some(frame) = frames.next().await {
        last = frame.expect("no error").job.or(last);
    }
    assert_eq!(last.map(|job| (job.id.clone(), job.state())), Some((second.id, JobState::Succeeded)));
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused_by_field() {
    let (server, _application) = pair().await;
    let unknown = server.watch(watch(&[NOBODY])).await.err().expect("refused");
    assert_eq!(fault(&unknown), (Code::NotFound, "JOB_NOT_FOUND".into(), vec![]));
    let filter = Some(v1::JobFilter::default());
    for (request, field) in [
        (WatchStatusRequest::default(), "job_ids"),
        (watch(&["nonsense"]), "job_ids[0]"),
        (watch(&[NOBODY, ""]), "job_ids[1]"),
        (
            WatchStatusRequest { heartbeat_interval: Some(millis(999)), ..watch(&[NOBODY]) },
            "heartbeat_interval",
        ),
        (
            WatchStatusRequest { heartbeat_interval: Some(seconds(61)), ..watch(&[NOBODY]) },
            "heartbeat_interval",
        ),
        (
            WatchStatusRequest { heartbeat_interval: Some(seconds(-1)), ..watch(&[NOBODY]) },
            "heartbeat_interval",
        ),
        (WatchStatusRequest { text: 9, ..watch(&[NOBODY]) }, "text"),
        (WatchStatusRequest { after_revision: Some(1), filter, ..watch(&[]) }, "after_revision"),
        (
            WatchStatusRequest {
                filter: Some(v1::JobFilter { states: vec![77], ..Default::default() }),
                ..watch(&[])
            },
            "filter.states",
        ),
    ] {
        names(&server.watch(request).await.err().expect("refused"), field);
    }
    let ids: Vec<String> = (0..10_001).map(|n| format!("01890a5d-ac96-774b-bcce-{n:012x}")).collect();
    let request = WatchStatusRequest { job_ids: ids, ..Default::default() };
    let refused = server.watch(request).await.err().expect("refused");
    assert_eq!(fault(&refused), (Code::ResourceExhausted, "TOO_MANY_JOBS".into(), vec![]));
}

#[tokio::test]
async fn a_filter_lives_on_and_new_jobs_join_it() {
    let (server, application) = pair().await;
    let labels = |value: &str| [("team".to_owned(), value.to_owned())].into();
    let labelled = |value: &str| v1::StartRequest { labels: labels(value), ..start("/a") };
    let first = server.start(labelled("red")).await;
    let mut first_hit = application.hit().await;
    let filter = v1::JobFilter { labels: labels("red"), ..Default::default() };
    let mut frames =
        server.watch(WatchStatusRequest { filter: Some(filter), ..watch(&[]) }).await.expect("a watch");
    let before = frames.synced().await;
    assert_eq!(
        before.iter().filter_map(|frame| frame.job.as_ref()).map(|job| &job.id).collect::<Vec<_>>(),
        [&first.id]
    );
    server.start(labelled("blue")).await;
    application.hit().await.ok();
    let second = server.start(labelled("red")).await;
    let mut second_hit = application.hit().await;
    first_hit.ok();
    second_hit.ok();
    let mut ended = HashMap::new();
    while ended.len() < 2 {
        let job = frames.job().await;
        assert_eq!(job.labels.get("team").map(String::as_str), Some("red"));
        assert!(job.status_text.is_empty());
        if is_final(&job) {
            ended.insert(job.id.clone(), job.state());
        }
    }
    assert_eq!(ended, [(first.id, JobState::Succeeded), (second.id, JobState::Succeeded)].into());
}

#[tokio::test]
async fn a_heartbeat_comes_while_nothing_happens() {
    let (server, _application) = pair().await;
    let job = server.start(v1::StartRequest { start_after: Some(seconds(3_600)), ..start("/a") }).await;
    let mut frames = server
        .watch(WatchStatusRequest { heartbeat_interval: Some(seconds(1)), ..watch(&[&job.id]) })
        .await
        .expect("a watch");
    frames.synced().await;
    let beat = frames.frame().await;
    assert!(beat.job.is_none() && !beat.synced && beat.server_time.is_some());
}

#[tokio::test]
async fn delta_pieces_joined_are_the_text() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    server.report(&hit.token(), append("before ")).await.expect("taken");
    let mut frames = server
        .watch(WatchStatusRequest { text: TextMode::Delta.into(), ..watch(&[&job.id]) })
        .await
        .expect("a watch");
    let mut joined = String::new();
    let mut first = true;
    let mut take = |frame: v1::WatchStatusResponse| -> Option<String> {
        let job = frame.job?;
        assert!(frame.text_reset || !first, "the first frame resets");
        if frame.text_reset {
            joined.clear();
        }
        first = false;
        joined.push_str(&job.status_text);
        Some(joined.clone())
    };
    for frame in frames.synced().await {
        take(frame);
    }
    for piece in ["one ", "zwei ä ", "three "] {
        server.report(&hit.token(), append(piece)).await.expect("taken");
        let frame = frames.frame().await;
        assert!(!frame.text_reset);
        assert_eq!(frame.job.as_ref().map(|job| job.status_text.as_str()), Some(piece));
        take(frame);
    }
    let text_change = Some(v1::report_request::TextChange::StatusText("anew".into()));
    server
        .report(&hit.token(), v1::ReportRequest { text_change, ..Default::default() })
        .await
        .expect("taken");
    let frame = frames.frame().await;
    assert!(frame.text_reset, "a replacement resets");
    take(frame);
    server.report(&hit.token(), append(" and more")).await.expect("taken");
    assert_eq!(take(frames.frame().await).as_deref(), Some("anew and more"));
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_and_the_last_and_is_told_what_it_missed() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let mut frames = server
        .watch(WatchStatusRequest { text: TextMode::Full.into(), ..watch(&[&job.id]) })
        .await
        .expect("a watch");
    frames.synced().await;
    // More than the window of a stream holds, so that the server must merge.
    let text = "x".repeat(60_000);
    for _ in 0..100 {
        server.report(&hit.token(), append(&text)).await.expect("taken");
    }
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    let (mut got, mut skipped, mut last) = (0, 0, None);
    while let Some(frame) = frames.next().await {
        let frame = frame.expect("no error");
        if let Some(job) = frame.job {
            got += 1;
            skipped += frame.skipped;
            assert!(last.as_ref().is_none_or(|last: &v1::Job| last.revision < job.revision));
            last = Some(job);
        }
    }
    assert_eq!(last.expect("a job").state(), JobState::Succeeded);
    assert!(skipped > 0, "got {got} frames");
    assert_eq!(got + skipped, 101);
}

#[tokio::test]
async fn a_shutdown_sends_watchers_away_and_they_come_back_to_what_they_missed() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let mut frames = server.watch_one(&job.id).await;
    frames.synced().await;
    let setup = server.shut_down().await;
    let error = loop {
        match frames.next().await.expect("an error first") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(fault(&error), (Code::Unavailable, "DRAINING".into(), vec![]));
    let server = setup.start().await;
    server.report(&hit.token(), finish()).await.expect("the job was adopted");
    assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
    hit.ok();
}

#[tokio::test]
async fn a_thousand_silent_watches_do_not_hold_up_a_shutdown() {
    if !on_what_lasts() {
        return;
    }
    let (server, _application) = pair().await;
    let job = server.start(v1::StartRequest { start_after: Some(seconds(3_600)), ..start("/a") }).await;
    let mut all = Vec::new();
    for _ in 0..1_000 {
        all.push(server.watch_one(&job.id).await);
    }
    server.shut_down().await;
}
