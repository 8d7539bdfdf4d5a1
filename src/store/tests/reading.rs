//! What the engine reads: what is due, claimable, overdue, running.

use super::*;
use crate::{job::State, store::Ended};

#[tokio::test]
async fn what_is_due_comes_earliest_first() {
    on_all(async |store| {
        assert_eq!(store.next_due().await, Ok(None));
        added(&store, job(1)).await; // QUEUED at once
        let waits = |n, span| job_with(n, rules(), NOW + span, |_| {});
        let late = added(&store, waits(2, 500)).await.id;
        let early = added(&store, waits(3, 300)).await.id;
        let never = added(&store, waits(4, 1_000)).await.id;
        assert_eq!(store.next_due().await, Ok(Some(NOW + 300)));
        assert_eq!(ids(&store.due(NOW + 500, 10).await.expect("read")), [early, late]);
        assert_eq!(ids(&store.due(NOW + 999, 1).await.expect("read")), [early]);
        assert!(ids(&store.due(NOW + 1_000, 10).await.expect("read")).contains(&never));
    })
    .await;
}

#[tokio::test]
async fn the_most_urgent_is_claimed_first() {
    on_all(async |store| {
        let with = |n, priority, at: i64, target: &'static str| {
            job_with(n, rules(), NOW + at, move |spec| {
                spec.priority = priority;
                spec.target = target.into();
            })
        };
        let low = added(&store, with(11, 1, 0, "default")).await.id;
        let late = added(&store, with(12, 5, 3, "default")).await.id;
        let early = added(&store, with(13, 5, 2, "default")).await.id;
        let urgent = added(&store, with(14, 9, 4, "default")).await.id;
        let twin = added(&store, with(15, 5, 3, "default")).await.id;
        added(&store, with(16, 9, 0, "other")).await;
        added(&store, with(17, 9, 1_000, "default")).await; // SCHEDULED
        let claimable = async |limit, except: &[JobId]| {
            ids(&store.claimable("default", limit, except).await.expect("read"))
        };
        assert_eq!(claimable(10, &[]).await, [urgent, early, late, twin, low]);
        assert_eq!(claimable(2, &[]).await, [urgent, early]);
        assert_eq!(claimable(2, &[urgent, late]).await, [early, twin]);
    })
    .await;
}

#[tokio::test]
async fn a_waiting_job_is_overdue_by_the_rule_that_holds_for_it() {
    on_all(async |store| {
        assert_eq!(store.next_give_up().await, Ok(None));
        let expires = Rules { expire_at: Some(NOW + 500), max_duration: Some(2_000), ..rules() };
        let mut tried = added(&store, job_with(1, expires.clone(), NOW, |_| {})).await;
        let fresh = added(&store, job_with(2, expires, NOW, |_| {})).await.id;
        added(&store, job(3)).await; // without any
        assert_eq!(store.next_give_up().await, Ok(Some(NOW + 500)));
        assert_eq!(ids(&store.overdue(NOW + 500, 1).await.expect("read")), [tried.id]);
        assert_eq!(ids(&store.overdue(NOW + 499, 10).await.expect("read")), []);

        happens(&store, &mut tried, Event::Claim, at(NOW + 100)).await;
        assert_eq!(ids(&store.overdue(NOW + 9_000, 10).await.expect("read")), [fresh]);
        let lost = Signal::NotSent(crate::job::Reason::Connect, "refused".into());
        happens(&store, &mut tried, Event::Of(1, lost), at(NOW + 200)).await;
        assert_eq!(ids(&store.overdue(NOW + 2_099, 10).await.expect("read")), [fresh]);
        assert_eq!(ids(&store.overdue(NOW + 2_100, 10).await.expect("read")), [fresh, tried.id]);
    })
    .await;
}

#[tokio::test]
async fn a_running_job_comes_back_with_its_attempt() {
    on_all(async |store| {
        let mut record = added(&store, job(1)).await;
        added(&store, job(2)).await;
        happens(&store, &mut record, Event::Claim, at(NOW + 10)).await;
        let from = record.job.revision;
        record.job.apply(Event::Of(1, Signal::Sent), at(NOW + 11)).expect("sent");
        record.job.apply(Event::Of(1, says("half")), at(NOW + 12)).expect("reported");
        record.job.apply(Event::Cancel, at(NOW + 13)).expect("cancelled");
        let row = AttemptRow { sent_at: Some(NOW + 11), reported: true, sequence: 7, ..claimed(&record) };
        let change = Update { from, record: record.clone(), text: true, attempt: Some(row) };
        assert_eq!(write(&store, Write::Update(Box::new(change))).await, Ok(Outcome::Done));

        let running = store.running().await.expect("read");
        let State::Running(run) = &mut record.job.state else { panic!("not running") };
        run.cancel = Some(crate::job::run::Cancel::begins(0));
        (run.connected, run.heard_at, run.pace) = (false, 0, None);
        assert_eq!(running.len(), 1);
        same(&running[0], &record);
        same(&one(&store, record.id).await, &record);

        let mut adopted = running[0].clone();
        happens(&store, &mut adopted, Event::Adopt, at(NOW + 20)).await;
        assert_eq!(one(&store, record.id).await.job.revision.epoch(), record.job.revision.epoch() + 1);
    })
    .await;
}

#[tokio::test]
async fn the_report_that_ended_an_attempt_is_known() {
    on_all(async |store| {
        let mut record = added(&store, job(1)).await;
        assert_eq!(store.attempts(record.id).await, Ok(vec![]));
        let mut expected = Vec::new();
        for (sequence, hash) in [(Some(u64::MAX), [3; 32]), (None, [4; 32])] {
            let from = record.job.revision;
            let now = at(record.job.scheduled_at.max(NOW + 10));
            record.job.apply(Event::Claim, now).expect("claimed");
            let attempt = record.job.attempt;
            let failed = Signal::NotSent(crate::job::Reason::Connect, "refused".into());
            record.job.apply(Event::Of(attempt, failed), at(now.wall + 5)).expect("ended");
            let row = AttemptRow {
                ended_at: Some(now.wall + 5),
                http_status: None,
                failure: record.job.failure.as_deref().cloned(),
                ended_by: Some(Ended { sequence, hash }),
                sequence: u64::MAX,
                ..claimed(&record)
            };
            let change = Update { from, record: record.clone(), text: false, attempt: Some(row.clone()) };
            assert_eq!(write(&store, Write::Update(Box::new(change))).await, Ok(Outcome::Done));
            assert_eq!(store.ended_by(record.id, attempt).await, Ok(row.ended_by));
            expected.push(row);
        }
        assert_eq!(store.attempts(record.id).await, Ok(expected));
        assert_eq!(store.ended_by(record.id, 3).await, Ok(None));
        assert_eq!(store.ended_by(job(9).id, 1).await, Ok(None));
    })
    .await;
}

#[tokio::test]
async fn a_new_attempt_begins_without_the_text_of_the_last() {
    on_all(async |store| {
        let mut record = added(&store, job(1)).await;
        happens(&store, &mut record, Event::Claim, at(NOW + 10)).await;
        happens(&store, &mut record, Event::Of(1, says("first")), at(NOW + 20)).await;
        let failed = Signal::NotSent(crate::job::Reason::Connect, "refused".into());
        happens(&store, &mut record, Event::Of(1, failed), at(NOW + 30)).await;
        assert_eq!(one(&store, record.id).await.job.text.as_str(), "first");
        let later = at(record.job.scheduled_at);
        happens(&store, &mut record, Event::Claim, later).await;
        assert_eq!(one(&store, record.id).await.job.text.as_str(), "");
    })
    .await;
}
