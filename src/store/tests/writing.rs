//! The writer: durable, in order, in groups, one refused write alone.

use super::*;
use crate::job::{Credentials, Detail, Output, State, event::End};
use crate::store::Existing;

#[tokio::test]
async fn what_is_inserted_reads_back_equal() {
    on_all(async |store| {
        let mut record = job_with(1, rules(), NOW + 60_000, |spec| {
            spec.labels = BTreeMap::from([("team".into(), "a".into())]);
        });
        record.retry_of = Some(job(9).id);
        record.merged_count = 3;
        added(&store, record.clone()).await;
        same(&one(&store, record.id).await, &record);
        assert!(store.payload(record.id).await.expect("read") == Some(payload()));
        assert!(store.payload(job(2).id).await.expect("read").is_none());

        let empty = job(3);
        let new = New::of(empty.clone(), Payload::default());
        assert_eq!(write(&store, Write::Insert(Box::new(new))).await, Ok(Outcome::Done));
        assert!(store.payload(empty.id).await.expect("read") == Some(Payload::default()));
    })
    .await;
}

#[tokio::test]
async fn a_job_is_followed_from_claim_to_end() {
    on_all(async |store| {
        let mut record = added(&store, job(1)).await;
        happens(&store, &mut record, Event::Claim, at(NOW + 10)).await;
        let report = Report {
            detail: Some(Detail { done: u64::MAX, total: 9, unit: "rows".into(), stage: "é".into() }),
            text: Some(TextChange::Append("x".repeat(70_000))),
            end: Some(End::Finish(Some(Output {
                content_type: "image/png".into(),
                data: vec![0, 255],
                truncated: true,
            }))),
            ..Report::default()
        };
        happens(&store, &mut record, Event::Of(1, Signal::Report(report)), at(NOW + 20)).await;
        let found = one(&store, record.id).await;
        assert_eq!((found.job.text.as_str(), found.job.text.written()), (record.job.text.as_str(), 70_000));
        assert!(found.job.text.truncated());
        record.job.text = found.job.text.clone(); // where it was replaced last is not kept
        same(&found, &record);
    })
    .await;
}

#[tokio::test]
async fn who_comes_from_another_revision_loses() {
    on_all(async |store| {
        let before = added(&store, job(1)).await;
        let mut first = before.clone();
        happens(&store, &mut first, Event::Claim, at(NOW + 10)).await;
        let mut second = before.clone();
        second.job.apply(Event::Claim, at(NOW + 10)).expect("claimed");
        second.job.apply(Event::Of(1, says("stolen")), at(NOW + 11)).expect("reported");
        let change = Update {
            from: before.job.revision,
            record: second.clone(),
            text: true,
            attempt: Some(claimed(&second)),
        };
        assert_eq!(write(&store, Write::Update(Box::new(change))).await, Ok(Outcome::Lost));
        let found = one(&store, before.id).await;
        assert_eq!((found.job.revision, found.job.text.as_str()), (first.job.revision, ""));
        assert_eq!(store.attempts(before.id).await, Ok(vec![]));
        let gone = job(2);
        assert_eq!(write(&store, update(gone.job.revision, &gone)).await, Ok(Outcome::Lost));
    })
    .await;
}

#[tokio::test]
async fn a_job_that_runs_from_its_beginning_is_found_by_nobody_but_those_that_came_beside_it() {
    on_all(async |store| {
        let add = async |new: New| write(&store, Write::Insert(Box::new(new))).await;
        let joined = |id| Ok(Outcome::Existing(Existing::Joined(id)));
        let (first, row) = (begun(1, 1), claimed(&begun(1, 1).record));
        assert_eq!(add(first.clone()).await, Ok(Outcome::Done));
        let found = one(&store, first.record.id).await;
        assert!(matches!(found.job.state, State::Running(_)));
        assert_eq!((found.job.attempt, found.job.started_at), (1, first.record.job.started_at));
        assert_eq!(store.attempts(found.id).await, Ok(vec![row]));
        assert_eq!(ids(&store.running().await.expect("read")), [found.id]);
        // It has begun: the next one is a job of its own, and so is one that waits.
        assert_eq!(add(begun(2, 1)).await, Ok(Outcome::Done));
        let waiting = |n, key| New { record: job(n), attempt: None, ..begun(n, key) };
        assert_eq!(add(waiting(3, 1)).await, Ok(Outcome::Done));
        // That one waits, and is joined by who would run at once.
        assert_eq!(add(begun(4, 1)).await, joined(job(3).id));
        assert_eq!(store.records(&[job(4).id], false).await.map(|found| found.len()), Ok(0));
        assert_eq!(store.attempts(job(4).id).await, Ok(vec![]));
        // Who came beside it joins it, though no key leads there.
        let beside = |n| New { twin: Some(first.record.id), ..waiting(n, 9) };
        assert_eq!(add(beside(5)).await, joined(first.record.id));
        let now = one(&store, first.record.id).await;
        assert_eq!((now.merged_count, now.job.revision), (1, found.job.revision));
        // Not once it has ended, nor if it never came.
        let mut ended = now;
        let finish = Report { end: Some(End::Finish(None)), ..Report::default() };
        happens(&store, &mut ended, Event::Of(1, Signal::Report(finish)), at(NOW + 50)).await;
        assert_eq!(add(beside(6)).await, Ok(Outcome::Done));
        assert_eq!(add(beside(7)).await, joined(job(6).id), "by the key of that one");
        assert_eq!(add(New { twin: Some(job(99).id), ..waiting(8, 8) }).await, Ok(Outcome::Done));
        assert_eq!(one(&store, first.record.id).await.merged_count, 1);
    })
    .await;
}

#[tokio::test]
async fn identical_ones_in_a_transaction_are_one_that_runs() {
    on_all(async |store| {
        let mut told = Vec::new();
        for n in 0..10 {
            told.push(hand_in(&store, Write::Insert(Box::new(begun(n, 1)))).await);
        }
        let first = job(0).id;
        let mut made = Vec::new();
        for (n, told) in told.into_iter().enumerate() {
            let id = job(i64::try_from(n).expect("small")).id;
            match told.await.expect("told") {
                Ok(Outcome::Done) => made.push((id, 0)),
                Ok(Outcome::Existing(Existing::Joined(of))) => {
                    let (made, joined) = made.last_mut().expect("one was made before");
                    assert_eq!(*made, of);
                    *joined += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        // The writer may have begun with the first alone.
        assert!(made[0].0 == first && made.len() <= 2, "{made:?}");
        for (id, joined) in made {
            let found = one(&store, id).await;
            assert_eq!((found.merged_count, found.job.attempt), (joined, 1));
        }
    })
    .await;
}

#[tokio::test]
async fn writes_of_one_job_are_carried_out_in_order() {
    on_all(async |store| {
        let mut record = job(1);
        let mut told = vec![hand_in(&store, insert(&record)).await];
        for event in
            [Event::Claim, Event::Of(1, says("a")), Event::Of(1, Signal::Lost("b".into())), Event::Cancel]
        {
            let from = record.job.revision;
            record.job.apply(event, at(NOW + 10)).expect("applied");
            told.push(hand_in(&store, update(from, &record)).await);
        }
        for told in told {
            assert_eq!(told.await.expect("told"), Ok(Outcome::Done));
        }
        assert_eq!(one(&store, record.id).await.job.revision, record.job.revision);
    })
    .await;
}

#[tokio::test]
async fn one_refused_write_fails_alone() {
    on_all(async |store| {
        let known = added(&store, job(1)).await;
        let (other, mut changed) = (job(2), known.clone());
        changed.job.apply(Event::Cancel, at(NOW + 10)).expect("cancelled");
        let told = [
            hand_in(&store, insert(&other)).await,
            hand_in(&store, insert(&known)).await,
            hand_in(&store, update(known.job.revision, &changed)).await,
            hand_in(&store, insert(&other)).await,
        ];
        let mut results = Vec::new();
        for told in told {
            results.push(told.await.expect("told"));
        }
        assert_eq!((&results[0], &results[2]), (&Ok(Outcome::Done), &Ok(Outcome::Done)));
        for refused in [&results[1], &results[3]] {
            assert!(
                matches!(refused, Err(error @ Error::Refused(_)) if !error.is_transient()),
                "{refused:?}"
            );
        }
        assert!(store.healthy());
        assert_eq!(store.records(&[known.id, other.id], false).await.expect("read").len(), 2);
    })
    .await;
}

#[tokio::test]
async fn what_panics_after_a_write_stops_no_other() {
    on_all(async |store| {
        let panics = Box::new(|_| panic!("on purpose"));
        store.reserve().await.expect("open").write(insert(&job(1)), panics);
        added(&store, job(2)).await;
        assert_eq!(store.records(&[job(1).id, job(2).id], false).await.expect("read").len(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_once_are_all_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let store = open(options(url(&file))).await;
    let tasks = Tasks::default();
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1_000);
    for n in 0..1_000 {
        let (store, sender) = (store.clone(), sender.clone());
        tasks.spawn("writes", async move {
            let result = write(&store, insert(&job(n))).await;
            sender.send((n, result)).await.expect("awaited");
        });
    }
    for _ in 0..1_000 {
        let (n, result) = receiver.recv().await.expect("told");
        assert_eq!(result, Ok(Outcome::Done), "{n}");
    }
    store.close().await;
    let store = open(options(url(&file))).await;
    let all: Vec<JobId> = (0..1_000).map(|n| job(n).id).collect();
    assert_eq!(store.records(&all, false).await.expect("read").len(), 1_000);
    store.close().await;
}

#[tokio::test]
async fn health_falls_and_heals_by_itself() {
    use sea_orm::ConnectionTrait as _;
    let store = open(options("sqlite::memory:".into())).await;
    // In memory, what reads also writes.
    let pragma = async |on| {
        store.reader().execute_unprepared(&format!("PRAGMA query_only = {on}")).await.expect("set");
    };
    pragma(1).await;
    let result = write(&store, insert(&job(1))).await;
    assert!(matches!(&result, Err(error @ Error::Unavailable(_)) if error.is_transient()), "{result:?}");
    assert!(!store.healthy());
    pragma(0).await;
    let mut health = store.health();
    let healed =
        tokio::time::timeout(std::time::Duration::from_secs(20), health.wait_for(|healthy| *healthy));
    healed.await.expect("in time").expect("open");
    assert!(store.healthy());
    added(&store, job(1)).await;
    store.close().await;
}

#[tokio::test]
async fn close_writes_what_is_queued_and_takes_nothing_more() {
    on_all(async |store| {
        let told = hand_in(&store, insert(&job(1))).await;
        let permit = store.reserve().await.expect("open");
        let (sender, late) = oneshot::channel();
        let closing = async {
            tokio::join!(store.close(), store.close(), async {
                permit.write(insert(&job(2)), Box::new(move |result| drop(sender.send(result))));
            });
        };
        closing.await;
        assert_eq!(told.await.expect("told"), Ok(Outcome::Done));
        assert_eq!(late.await.expect("told"), Ok(Outcome::Done));
        assert!(store.reserve().await.is_err() && !store.healthy());
        assert!(matches!(store.records(&[job(1).id], false).await, Err(Error::Unavailable(_))));
    })
    .await;
}

#[tokio::test]
async fn large_writes_are_split_over_transactions() {
    let store = open(options("sqlite::memory:".into())).await;
    let mut told = Vec::new();
    for n in 0..3 {
        let body = vec![u8::try_from(n).expect("small"); 3 << 20].into();
        let new = New::of(job(n), Payload { body, ..Payload::default() });
        told.push(hand_in(&store, Write::Insert(Box::new(new))).await);
    }
    for told in told {
        assert_eq!(told.await.expect("told"), Ok(Outcome::Done));
    }
    let payload = store.payload(job(2).id).await.expect("read").expect("there");
    assert!(payload.body.len() == 3 << 20 && payload.body[0] == 2);
    store.close().await;
}

/// On SQLite the rows of a transaction are filled up, and many are not; on PostgreSQL a
/// column of all of them is one value.
#[tokio::test]
async fn as_many_are_written_as_there_are() {
    on_each_opened(async |options| {
        let store = open(Options { batch: 100, queue: 200, ..options }).await;
        so_many(&store).await;
        store.close().await;
    })
    .await;
}

async fn so_many(store: &Store) {
    added(store, job(1_000)).await; // names the root, which the first transaction does by itself
    let mut first = 0;
    for count in [1, 2, 3, 5, 8, 63, 64, 65, 100] {
        let jobs: Vec<Record> = (first..first + count)
            .map(|n| {
                job_with(n, rules(), NOW + n, |spec| {
                    spec.as_user = true;
                    spec.labels = (0..n % 3).map(|n| (n.to_string(), "a".into())).collect();
                })
            })
            .collect();
        let mut told = Vec::new();
        for record in &jobs {
            let key = crate::store::StartKey { caller: "me".into(), key: [1; 32], request: [2; 32] };
            let mut key = Some(key).filter(|_| record.created_at % 2 == 0);
            if let Some(key) = &mut key {
                key.key[..8].copy_from_slice(&record.created_at.to_be_bytes());
            }
            let credentials = Credentials { cookie: Some("a=b".into()), authorization: None };
            let payload = Payload { credentials: Some(credentials), ..payload() };
            let new = New { start_key: key, ..New::of(record.clone(), payload) };
            told.push(hand_in(store, Write::Insert(Box::new(new))).await);
        }
        for told in told.drain(..) {
            assert_eq!(told.await.expect("told"), Ok(Outcome::Done));
        }
        let mut claimed_jobs = Vec::new();
        for mut record in jobs {
            let from = record.job.revision;
            record.job.apply(Event::Claim, at(NOW + 1_000)).expect("claimed");
            let attempt = Some(claimed(&record));
            let change = Update { from, record: record.clone(), text: false, attempt };
            told.push(hand_in(store, Write::Update(Box::new(change))).await);
            claimed_jobs.push(record);
        }
        for told in told.drain(..) {
            assert_eq!(told.await.expect("told"), Ok(Outcome::Done));
        }
        for record in &mut claimed_jobs {
            let from = record.job.revision;
            // Some report, some end.
            let signal = match record.created_at % 3 {
                0 => says("half"),
                _ => Signal::Report(Report { end: Some(End::Finish(None)), ..Report::default() }),
            };
            record.job.apply(Event::Of(1, signal), at(NOW + 2_000)).expect("reported");
            let attempt = AttemptRow { claimed_at: NOW + 1_000, ..claimed(record) };
            let attempt = Some(attempt).filter(|_| record.created_at % 5 != 0);
            let change = Update { from, record: record.clone(), text: true, attempt };
            told.push(hand_in(store, Write::Update(Box::new(change))).await);
        }
        for told in told {
            assert_eq!(told.await.expect("told"), Ok(Outcome::Done));
        }
        for record in &claimed_jobs {
            let mut found = one(store, record.id).await;
            let mut expected = record.clone();
            if let State::Running(run) = &mut expected.job.state {
                // What the row of the attempt says, which did not hear of the report.
                (run.connected, run.heard_at, run.reported, run.sequence) = (false, 0, false, 0);
                run.pace = None;
            }
            found.job.updated_at = expected.job.updated_at;
            same(&found, &expected);
            let attempts = store.attempts(record.id).await.expect("read");
            assert_eq!(attempts, [AttemptRow { claimed_at: NOW + 1_000, ..claimed(record) }]);
            let credentials = store.payload(record.id).await.expect("read").expect("there").credentials;
            assert_eq!(credentials.is_none(), record.job.state_name().is_final());
        }
        first += count;
    }
}

#[tokio::test]
async fn of_a_job_that_changes_while_it_is_erased_nothing_is_left() {
    on_all(async |store| {
        let mut ended = Vec::new();
        for n in [1, 2] {
            let mut record = added(&store, job(n)).await;
            happens(&store, &mut record, Event::Cancel, at(NOW + 20)).await;
            ended.push(record);
        }
        let record = ended[1].clone();
        let attempt = Some(AttemptRow::claimed(1, "here".into(), NOW));
        let change = Update { from: record.job.revision, text: true, attempt, record };
        // In one transaction, whichever comes first.
        let erased = hand_in(&store, Write::Delete(vec![ended[0].id, ended[1].id])).await;
        let changed = hand_in(&store, Write::Update(Box::new(change))).await;
        assert_eq!(changed.await.expect("told"), Ok(Outcome::Done));
        assert_eq!(erased.await.expect("told"), Ok(Outcome::Done));
        for record in &ended {
            assert!(store.records(&[record.id], true).await.expect("read").is_empty());
            let attempts = store.attempts(record.id).await.expect("read");
            assert!(attempts.is_empty(), "{attempts:?}");
        }
    })
    .await;
}
