//! What other nodes are told of what is stored, and what they find by themselves.

use super::*;
use crate::store::{Existing, Heard, Listener};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

async fn two(database: &OwnDatabase) -> (Store, Store) {
    let node = |name: &str| open(Options { node: name.into(), ..options(database.url()) });
    (node("a").await, node("b").await)
}

/// What is heard until `last` is, and in how many notifications.
async fn heard(listener: &mut Listener, last: JobId) -> (BTreeMap<JobId, Revision>, u32) {
    let (mut heard, mut count) = (BTreeMap::new(), 0);
    let hear = async {
        while !heard.contains_key(&last) {
            match listener.next().await.expect("heard") {
                Heard::Changes(changes) => heard.extend(changes),
                Heard::Gap => panic!("nothing was cut"),
            }
            count += 1;
        }
    };
    if tokio::time::timeout(SOON, hear).await.is_err() {
        panic!("waited for {last}; heard: {heard:?}");
    }
    (heard, count)
}

#[tokio::test]
async fn what_is_stored_is_told_to_other_nodes() {
    on_servers(async |database| {
        let (a, b) = two(database).await;
        let Some(mut listener) = b.listen().await.expect("told") else {
            assert_eq!(database.kind, ServerKind::MariaDb);
            added(&a, job(1)).await;
            a.close().await;
            b.close().await;
            return;
        };
        let merge = Some(Merge { key: [1; 32], join: true });
        let merging = |n| {
            let new = New { merge, ..New::of(job(n), payload()) };
            Write::Insert(Box::new(new))
        };
        assert_eq!(write(&a, merging(1)).await, Ok(Outcome::Done));
        let mut moved = added(&a, job(2)).await;
        happens(&a, &mut moved, Event::Claim, at(NOW + 10)).await;
        let lost = update(job(2).job.revision, &moved);
        assert_eq!(write(&a, lost).await, Ok(Outcome::Lost), "and not told");
        added(&a, job(3)).await;
        let (told, _) = heard(&mut listener, job(3).id).await;
        let first = job(1).job.revision;
        let expected = [(job(1).id, first), (moved.id, moved.job.revision), (job(3).id, first)];
        assert_eq!(told, BTreeMap::from(expected));

        // Of these no revision is known.
        let joined = write(&a, merging(4)).await;
        assert_eq!(joined, Ok(Outcome::Existing(Existing::Joined(job(1).id))));
        let (told, _) = heard(&mut listener, job(1).id).await;
        assert_eq!(told[&job(1).id], Revision::LAST);
        let end = Report { end: Some(crate::job::event::End::Finish(None)), ..Report::default() };
        happens(&a, &mut moved, Event::Of(1, Signal::Report(end)), at(NOW + 30)).await;
        heard(&mut listener, moved.id).await;
        assert_eq!(write(&a, Write::Delete(vec![moved.id])).await, Ok(Outcome::Done));
        let (told, _) = heard(&mut listener, moved.id).await;
        assert_eq!(told[&moved.id], Revision::LAST);

        // Where nobody would hear it nothing is said.
        a.set_others_live(false);
        added(&a, job(5)).await;
        a.set_others_live(true);
        added(&a, job(6)).await;
        let (told, _) = heard(&mut listener, job(6).id).await;
        assert_eq!(told, BTreeMap::from([(job(6).id, first)]));
        // What is stored last is told, too.
        added(&a, job(7)).await;
        a.close().await;
        heard(&mut listener, job(7).id).await;
        b.close().await;
    })
    .await;
}

#[tokio::test]
async fn many_changes_are_told_in_few_notifications() {
    on_servers(async |database| {
        let (a, b) = two(database).await;
        let Some(mut listener) = b.listen().await.expect("told") else { return };
        let mut record = added(&a, job(1)).await;
        happens(&a, &mut record, Event::Claim, at(NOW)).await;
        let began = tokio::time::Instant::now();
        let mut changes = 0;
        while began.elapsed() < Duration::from_millis(600) {
            changes += 1;
            let report = Report { progress: Some(Progress::To(changes % 100)), ..Report::default() };
            happens(&a, &mut record, Event::Of(1, Signal::Report(report)), at(NOW)).await;
        }
        added(&a, job(2)).await;
        let (told, count) = heard(&mut listener, job(2).id).await;
        // On a slow machine they are fewer.
        let most = began.elapsed().as_millis() / 63 + 5;
        assert!(u128::from(count) <= most && changes > 2 * count, "{changes} changes, {count} notifications");
        assert_eq!(told[&record.id], record.job.revision, "the newest");
        a.close().await;
        b.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_waited_long_to_be_stored_is_among_what_changed_of_late() {
    on_servers(async |database| {
        let store = open(options(database.url())).await;
        let mut record = job(1);
        record.job.updated_at = NOW - 60_000; // the database was away
        added(&store, record.clone()).await;
        let found = store.changed_since(NOW, None, 10).await.expect("read");
        assert_eq!((found.len(), found[0].id, found[0].changed_at), (1, record.id, NOW));
        assert_eq!(one(&store, record.id).await.job.updated_at, NOW - 60_000);
        happens(&store, &mut record, Event::Claim, at(NOW - 30_000)).await;
        let found = store.changed_since(NOW, None, 10).await.expect("read");
        assert_eq!((found.len(), found[0].revision), (1, record.job.revision));
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_transaction_that_is_seen_late_is_found_behind_what_was_seen() {
    on_servers(async |database| {
        use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
        let store = open(options(database.url())).await;
        for n in 0..10 {
            added(&store, job(n)).await;
        }
        let beside = database.beside().await;
        let late = beside.begin().await.expect("begun");
        let quoted = if database.kind == ServerKind::Postgres { "\\x" } else { "0x" };
        let hex = |id: JobId| id.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let name = match database.kind {
            ServerKind::Postgres => format!("'{quoted}{}'", hex(job(0).id)),
            ServerKind::MariaDb => format!("{quoted}{}", hex(job(0).id)),
        };
        let at = NOW + 1_000;
        let change = format!("UPDATE job SET revision = revision + 1, changed_at = {at} WHERE id = {name}");
        late.execute_unprepared(&change).await.expect("changed");
        // Others are seen before it, more of them than fit on a page.
        for n in 1..10 {
            let mut record = job(n);
            happens(&store, &mut record, Event::Claim, super::at(NOW + 2_000 + n)).await;
        }
        let page = store.changed_since(at, None, 5).await.expect("read");
        let after = page.last().map(|last| (last.changed_at, last.id));
        let rest = store.changed_since(at, after, 5).await.expect("read");
        assert_eq!((page.len(), rest.len()), (5, 4));
        late.commit().await.expect("committed");
        // Beyond the pages nothing new is seen, from where a poll begins it is.
        let after = rest.last().map(|last| (last.changed_at, last.id));
        assert!(store.changed_since(at, after, 5).await.expect("read").is_empty());
        let again = store.changed_since(at, None, 5).await.expect("read");
        assert_eq!(again[0].id, job(0).id);
        beside.close().await.expect("closed");
        store.close().await;
    })
    .await;
}
