use super::*;
use crate::watch::{MAX_JOBS, TextMode};
use bytes::Bytes;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
struct Seen(JobId, i64, bool);

impl Subject for Seen {
    fn id(&self) -> JobId {
        self.0
    }
    fn revision(&self) -> Revision {
        Revision::from_stored(self.1)
    }
    fn is_final(&self) -> bool {
        self.2
    }
}

fn id(n: u64) -> JobId {
    JobId::new(n as i64, [0; 10])
}

fn frame(n: u64, revision: i64, last: bool) -> Arc<Frame<Seen>> {
    Arc::new(Frame::new(Seen(id(n), revision, last)))
}

/// All that can be taken now, in words.
fn drain(watcher: &Watcher<Seen>) -> Vec<String> {
    let mut said = Vec::new();
    while let Some(item) = watcher.try_next() {
        let over = item.is_err();
        said.push(match item {
            Ok(Item::Changed(frame, skipped)) => format!("{} +{skipped}", frame.subject.1),
            Ok(Item::Missing(ids)) => format!("missing {}", ids.len()),
            Ok(Item::Deleted(_)) => "deleted".into(),
            Ok(Item::Synced) => "synced".into(),
            Err(closed) => format!("{closed:?}"),
        });
        if over {
            break;
        }
    }
    said
}

#[test]
fn a_change_between_subscribing_and_reading_is_not_lost_and_an_older_snapshot_is_not_sent() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[id(1)], None, None);
    hub.publish(&frame(1, 7, false));
    watcher.offer(&frame(1, 6, false));
    watcher.synced();
    assert_eq!(drain(&watcher), ["7 +0", "synced"]);
    hub.publish(&frame(1, 8, true));
    assert_eq!(drain(&watcher), ["8 +0", "Done"]);
}

#[test]
fn changes_are_merged_for_a_slow_reader_and_counted() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[id(1)], None, None);
    for revision in 1..=5 {
        hub.publish(&frame(1, revision, revision == 5));
    }
    watcher.synced();
    assert_eq!(drain(&watcher), ["5 +4", "synced", "Done"]);
}

#[test]
fn a_known_revision_is_not_sent_again() {
    let hub = Arc::new(Hub::default());
    let had = Some(Revision::from_stored(4));
    let watcher = hub.watch(&[id(1)], None, had);
    watcher.offer(&frame(1, 4, false));
    watcher.synced();
    assert_eq!(drain(&watcher), ["synced"]);
    hub.publish(&frame(1, 4, false));
    hub.publish(&frame(1, 5, false));
    assert_eq!(drain(&watcher), ["5 +0"]);
    let early = hub.watch(&[id(1)], None, had);
    hub.publish(&frame(1, 4, false)); // before it was read
    early.offer(&frame(1, 4, false));
    early.synced();
    assert_eq!(drain(&early), ["synced"]);
    let behind = hub.watch(&[id(1)], None, had);
    behind.offer(&frame(1, 3, false)); // as it is now, whatever the watcher had
    assert_eq!(drain(&behind), ["3 +0"]);
    hub.publish(&frame(1, 4, true));
    behind.synced();
    assert_eq!(drain(&behind), ["synced", "Done"]);
    let ended = hub.watch(&[id(2)], None, Some(Revision::from_stored(9)));
    ended.offer(&frame(2, 9, true));
    ended.synced();
    assert_eq!(drain(&ended), ["synced", "Done"]);
}

/// What the watcher has is the end, and an older state of the job was read.
#[test]
fn an_older_state_is_not_told_after_the_end_that_is_known() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[id(1)], None, Some(Revision::from_stored(4)));
    watcher.offer(&frame(1, 3, false));
    hub.publish(&frame(1, 4, true));
    watcher.synced();
    assert_eq!(drain(&watcher), ["synced", "Done"]);
}

#[test]
fn what_was_deleted_while_it_was_read_does_not_come_back() {
    for filter in [false, true] {
        let hub = Arc::new(Hub::default());
        let watcher = match filter {
            true => hub.watch(&[], everything(), None),
            false => hub.watch(&[id(1)], None, None),
        };
        // It was read as it ran; before that is put in, it ends and is deleted.
        let read = frame(1, 3, false);
        hub.publish(&frame(1, 4, true));
        hub.deleted(id(1));
        watcher.offer(&read);
        watcher.synced();
        let said = drain(&watcher);
        assert_eq!(said[..2], ["deleted", "synced"], "{said:?}");
        assert_eq!(said.get(2).map(String::as_str), (!filter).then_some("Done"));
    }
}

#[test]
fn deletions_that_nobody_takes_are_bounded() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[], everything(), None);
    watcher.synced();
    for n in 0..3 * MAX_JOBS as u64 {
        hub.publish(&frame(n, 1, false));
        hub.deleted(id(n));
    }
    assert_eq!(drain(&watcher), ["TooManyJobs"]);
    // Who takes them sees as many as there are.
    let watcher = hub.watch(&[], everything(), None);
    watcher.synced();
    assert_eq!(drain(&watcher), ["synced"]);
    for n in 0..2 * MAX_JOBS as u64 {
        hub.publish(&frame(n, 1, false));
        hub.deleted(id(n));
        assert_eq!(drain(&watcher), ["deleted"]);
    }
}

#[test]
fn missing_ids_come_before_synced_and_do_not_keep_a_stream_open() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[id(1), id(2)], None, None);
    watcher.offer(&frame(1, 1, true));
    watcher.missing(vec![id(2)]);
    watcher.synced();
    assert_eq!(drain(&watcher), ["1 +0", "missing 1", "synced", "Done"]);
}

#[test]
fn a_job_once_sent_stays_on_a_filter_stream_to_its_end() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[], Some(Box::new(|seen: &Seen| seen.1 < 3)), None);
    watcher.synced();
    hub.publish(&frame(1, 3, false)); // never matched
    hub.publish(&frame(2, 1, false));
    assert_eq!(drain(&watcher), ["synced", "1 +0"]);
    hub.publish(&frame(2, 4, false));
    assert_eq!(drain(&watcher), ["4 +0"]);
    hub.publish(&frame(2, 5, true));
    assert_eq!(drain(&watcher), ["5 +0"], "and the stream stays open");
}

#[test]
fn a_deleted_job_is_told_and_ends_a_stream_over_it() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[id(1)], None, None);
    watcher.offer(&frame(1, 1, false));
    watcher.synced();
    hub.deleted(id(1));
    assert_eq!(drain(&watcher), ["synced", "deleted", "Done"]);
}

#[test]
fn too_many_jobs_end_a_filter_stream() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[], Some(Box::new(|_: &Seen| true)), None);
    for n in 0..=MAX_JOBS as u64 {
        hub.publish(&frame(n, 1, false));
    }
    assert_eq!(drain(&watcher), ["TooManyJobs"]);
}

#[test]
fn closing_lets_what_waits_out_first_and_refuses_new_watches() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[id(1)], None, None);
    hub.publish(&frame(1, 1, false));
    hub.close();
    assert_eq!(drain(&watcher), ["1 +0", "ShuttingDown"]);
    assert_eq!(drain(&hub.watch(&[id(1)], None, None)), ["ShuttingDown"]);
}

#[test]
fn a_dropped_watcher_leaves_nothing_behind() {
    let hub = Arc::new(Hub::default());
    let by_id = hub.watch(&[id(1), id(2)], None, None);
    let by_filter = hub.watch(&[], Some(Box::new(|_: &Seen| true)), None);
    hub.publish(&frame(3, 1, false));
    assert_eq!(hub.watchers(), 2);
    drop((by_id, by_filter));
    assert_eq!(hub.watchers(), 0);
    let registry = lock(&hub.registry);
    assert!(registry.by_job.is_empty() && registry.by_filter.is_empty());
}

#[test]
fn a_frame_is_encoded_once_for_each_text_mode() {
    let frame = frame(1, 1, false);
    let mut made = 0;
    for _ in 0..3 {
        for mode in [TextMode::None, TextMode::Full] {
            frame.bytes(mode, |_| {
                made += 1;
                Bytes::from_static(b"x")
            });
        }
    }
    assert_eq!(made, 2);
}

#[tokio::test]
async fn a_waiting_reader_is_woken() {
    let hub = Arc::new(Hub::default());
    let watcher = hub.watch(&[id(1)], None, None);
    let (item, ()) = tokio::join!(watcher.next(), async { hub.publish(&frame(1, 1, false)) });
    assert!(matches!(item, Ok(Item::Changed(..))));
}

fn everything() -> Option<Matches<Seen>> {
    Some(Box::new(|_: &Seen| true))
}

#[test]
fn an_end_is_told_once_though_it_is_read_and_published_and_an_older_state_comes_late() {
    let hub = Arc::new(Hub::default());
    let (first, second) = (hub.watch(&[], everything(), None), hub.watch(&[], everything(), None));
    first.offer(&frame(1, 9, true));
    first.synced();
    second.synced();
    assert_eq!(drain(&first), ["9 +0", "synced"]);
    // Late, and not the end of the one that did not read it.
    hub.publish(&frame(1, 5, false));
    assert!(hub.is_watched(id(1)));
    hub.publish(&frame(1, 9, true));
    assert!(!hub.is_watched(id(1)));
    hub.publish(&frame(1, 9, true));
    hub.publish(&frame(1, 5, false));
    assert_eq!(drain(&first), [] as [&str; 0]);
    assert_eq!(drain(&second), ["synced", "9 +1"]);
    hub.publish(&frame(1, 9, true));
    assert_eq!(drain(&second), [] as [&str; 0]);
}

#[test]
fn what_is_held_says_the_least_that_somebody_was_told() {
    let hub = Arc::new(Hub::default());
    let one = hub.watch(&[id(1), id(2)], None, None);
    one.offer(&frame(1, 4, false));
    one.offer(&frame(2, 7, true));
    let held = |revision| Some(Revision::from_stored(revision));
    assert_eq!(hub.held(), HashMap::from([(id(1), held(4)), (id(2), held(7))]));
    let other = hub.watch(&[id(1)], None, None);
    assert_eq!(hub.held()[&id(1)], None);
    other.offer(&frame(1, 5, false));
    assert_eq!(hub.held()[&id(1)], held(4));
    assert!(hub.is_held(id(2)) && !hub.is_watched(id(2)), "its end was told, it may be erased");
}

#[test]
fn what_is_gone_is_told_to_those_who_knew_it() {
    let hub = Arc::new(Hub::default());
    let (knows, reads) = (hub.watch(&[id(1)], None, None), hub.watch(&[id(1)], None, None));
    knows.offer(&frame(1, 4, false));
    knows.synced();
    hub.gone(id(1));
    hub.gone(id(1));
    assert_eq!(drain(&knows), ["synced", "deleted", "Done"]);
    assert_eq!(drain(&reads), [] as [&str; 0]);
    reads.missing(vec![id(1)]);
    reads.synced();
    assert_eq!(drain(&reads), ["missing 1", "synced", "Done"]);
}

#[test]
fn what_has_ended_or_was_never_there_leaves_nothing_behind() {
    let hub = Arc::new(Hub::default());
    let watchers: Vec<_> = [None, everything()]
        .into_iter()
        .map(|matches| {
            let watcher = hub.watch(&[id(1), id(2), id(3), id(4)], matches, None);
            watcher.offer(&frame(1, 9, true));
            watcher.offer(&frame(2, 9, true));
            watcher.missing(vec![id(3)]);
            watcher.offer(&frame(4, 2, false));
            watcher.synced();
            watcher
        })
        .collect();
    hub.publish(&frame(4, 3, true));
    for watcher in &watchers {
        assert_eq!(drain(watcher)[..4], ["9 +0", "9 +0", "missing 1", "3 +1"]);
    }
    assert!(lock(&hub.registry).by_job.is_empty());
    drop(watchers);
    let registry = lock(&hub.registry);
    assert!(registry.ended.young.is_empty() && registry.all.is_empty());
}

#[tokio::test]
async fn whoever_waits_for_a_watcher_is_told_of_one() {
    let hub: Arc<Hub<Seen>> = Arc::new(Hub::default());
    let (mut first, mut second) = (Box::pin(hub.somebody()), Box::pin(hub.somebody()));
    assert!(futures_util::FutureExt::now_or_never(&mut first).is_none());
    assert!(futures_util::FutureExt::now_or_never(&mut second).is_none());
    let _watcher = hub.watch(&[id(1)], None, None);
    tokio::join!(first, second);
}

proptest! {
    /// Other nodes' changes come by two ways, each in its own time, beside what was read.
    #[test]
    fn revisions_rise_and_the_end_comes_once_whatever_the_order(
        by_filter in 0..4u8,
        before in prop::collection::vec(1..=10i64, 0..4),
        read in prop::option::of(1..=10i64),
        steps in prop::collection::vec(0..=10i64, 0..40),
    ) {
        const LAST: i64 = 10;
        let hub: Arc<Hub<Seen>> = Arc::new(Hub::default());
        let matches: Option<Matches<Seen>> = match by_filter {
            0 => None,
            1 => everything(),
            2 => Some(Box::new(|seen: &Seen| seen.1 < LAST)),
            _ => Some(Box::new(|seen: &Seen| seen.1 == LAST)),
        };
        let ids: &[JobId] = if by_filter == 0 { &[id(1)] } else { &[] };
        let publish = |revision: i64| hub.publish(&frame(1, revision, revision == LAST));
        let watcher = hub.watch(ids, matches, None);
        before.iter().copied().for_each(publish);
        if let Some(read) = read {
            watcher.offer(&frame(1, read, read == LAST));
        }
        for id in watcher.passed_over() {
            let now = before.iter().copied().chain(read).max().expect("one");
            prop_assert_eq!(id, self::id(1));
            watcher.offer(&frame(1, now, now == LAST));
        }
        watcher.synced();
        let mut told = Vec::new();
        let mut take = || {
            while let Some(Ok(item)) = watcher.try_next() {
                if let Item::Changed(frame, _) = item {
                    told.push(frame.subject.1);
                }
            }
        };
        for step in &steps {
            if *step == 0 { take() } else { publish(*step) }
        }
        publish(LAST);
        take();
        prop_assert!(told.is_sorted_by(|one, other| one < other), "{:?}", told);
        let known = by_filter < 2 || by_filter == 3 || !told.is_empty();
        prop_assert!(!known || told.last() == Some(&LAST), "{:?}", told);
    }

    #[test]
    fn revisions_rise_and_nothing_is_miscounted(steps in prop::collection::vec(0..3u8, 1..200)) {
        let hub: Arc<Hub<Seen>> = Arc::new(Hub::default());
        let watcher = hub.watch(&[id(1)], None, None);
        watcher.synced();
        let (mut published, mut last, mut counted) = (0, 0, 0);
        let take = |last: &mut i64, counted: &mut i64| {
            while let Some(Ok(item)) = watcher.try_next() {
                if let Item::Changed(frame, skipped) = item {
                    assert!(frame.subject.1 > *last);
                    *last = frame.subject.1;
                    *counted += 1 + i64::from(skipped);
                }
            }
        };
        for step in steps {
            if step == 0 {
                take(&mut last, &mut counted);
            } else {
                published += 1;
                hub.publish(&frame(1, published, false));
            }
        }
        hub.publish(&frame(1, published + 1, true));
        take(&mut last, &mut counted);
        prop_assert_eq!((last, counted), (published + 1, published + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_is_known_for_a_minute_and_not_for_ever() {
    let mut ended = Ended::default();
    for second in 0..1_000 {
        ended.add(id(second));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(ended.holds(id(second)) && ended.holds(id(second.saturating_sub(59))), "{second}");
        assert!(ended.young.len() + ended.old.len() <= 122, "{second}");
    }
    assert!(!ended.holds(id(800)));
}
