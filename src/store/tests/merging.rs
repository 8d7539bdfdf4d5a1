//! Which jobs identical Starts join, whatever happened since they were stored.

use super::*;
use crate::store::{Existing, joinable::Joinable, write::Rows};
use sea_orm::ConnectionTrait as _;

fn keyed(n: i64, key: u8, class: MergeClass) -> New {
    let record = job_with(n, rules(), NOW + n, |spec| spec.merge = Some(class));
    let merge = Some(Merge { key: [key; 32], join: true });
    New { merge, ..New::of(record, payload()) }
}

fn pending(n: i64, key: u8) -> New {
    keyed(n, key, MergeClass::Pending)
}

async fn start(store: &Store, new: New) -> Result<Outcome, Error> {
    write(store, Write::Insert(Box::new(new))).await
}

/// One that is stored and then changed by these events.
async fn stored(store: &Store, new: New, events: impl IntoIterator<Item = Event>) -> JobId {
    let mut record = new.record.clone();
    assert_eq!(start(store, new).await, Ok(Outcome::Done));
    for event in events {
        happens(store, &mut record, event, at(NOW + 500)).await;
    }
    record.id
}

fn joined(id: JobId) -> Result<Outcome, Error> {
    Ok(Outcome::Existing(Existing::Joined(id)))
}

#[tokio::test]
async fn a_database_that_is_opened_again_knows_what_may_be_joined() {
    on_each_opened(async |options| {
        let store = open(options.clone()).await;
        let waits = stored(&store, pending(1, 1), []).await;
        let runs = stored(&store, keyed(2, 2, MergeClass::Active), [Event::Claim]).await;
        stored(&store, pending(3, 3), [Event::Claim]).await;
        stored(&store, pending(4, 4), [Event::Cancel]).await;
        assert_eq!(start(&store, begun(5, 5)).await, Ok(Outcome::Done));
        store.close().await;

        let store = open(options).await;
        assert_eq!(start(&store, pending(11, 1)).await, joined(waits));
        assert_eq!(start(&store, keyed(12, 2, MergeClass::Active)).await, joined(runs));
        for (n, key) in [(13, 3), (14, 4), (15, 5)] {
            assert_eq!(start(&store, pending(n, key)).await, Ok(Outcome::Done), "key {key}");
            assert_eq!(start(&store, pending(n + 10, key)).await, joined(job(n).id), "key {key}");
        }
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_was_refused_is_joined_by_nobody() {
    on_each_opened(async |options| {
        let store = open(options).await;
        let first = stored(&store, pending(1, 1), []).await;
        // Its id is there already.
        let again = New { merge: Some(Merge { key: [2; 32], join: true }), ..pending(1, 2) };
        assert!(matches!(start(&store, again).await, Err(Error::Refused(_))));
        assert_eq!(start(&store, pending(2, 2)).await, Ok(Outcome::Done));
        assert_eq!(start(&store, pending(3, 2)).await, joined(job(2).id));
        assert_eq!(start(&store, pending(4, 1)).await, joined(first), "as before");
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_row_that_was_changed_by_hand_is_not_joined() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let store = open(options(url(&file))).await;
    stored(&store, pending(1, 1), []).await;
    stored(&store, pending(2, 2), []).await;
    let db = sea_orm::Database::connect(url(&file)).await.expect("connected");
    db.execute_unprepared(&format!(
        "UPDATE job SET merge_key = NULL WHERE created_at = {}; DELETE FROM job WHERE created_at = {}",
        NOW + 1,
        NOW + 2
    ))
    .await
    .expect("changed");
    db.close().await.expect("closed");
    for (n, key) in [(11, 1), (12, 2)] {
        assert_eq!(start(&store, pending(n, key)).await, Ok(Outcome::Done));
        assert_eq!(start(&store, pending(n + 10, key)).await, joined(job(n).id));
    }
    store.close().await;
}

fn rows(write: Write) -> Rows {
    Rows::of(write, "here", &keys(&[1]), [[0; 24]; 2]).1
}

#[tokio::test]
async fn what_came_of_a_failed_transaction_is_looked_up() {
    let store = open(options("sqlite::memory:".into())).await;
    let first = pending(1, 1);
    let same_as = |key| [rows(Write::Insert(Box::new(pending(9, key))))];
    let mut claim = first.record.clone();
    let writes = [rows(Write::Insert(Box::new(first.clone()))), rows(Write::Insert(Box::new(pending(2, 2))))];
    let mut joinable = Joinable::default();

    // The first of them is stored, though nobody heard of it.
    assert_eq!(start(&store, first).await, Ok(Outcome::Done));
    joinable.doubt(&writes);
    joinable.settle(&store.reader().db).await.expect("looked up");
    assert_eq!((joinable.finds(&same_as(1)), joinable.finds(&same_as(2))), (true, false));
    assert_eq!(joinable.with(&[vec![1; 32], vec![2; 32]]), [claim.id.to_bytes().to_vec()]);

    // So is its claim.
    let from = claim.job.revision;
    claim.job.apply(Event::Claim, at(NOW + 10)).expect("claimed");
    joinable.doubt(&[rows(update(from, &claim))]);
    joinable.settle(&store.reader().db).await.expect("looked up");
    assert!(joinable.finds(&same_as(1)), "it is not stored yet");
    assert_eq!(write(&store, update(from, &claim)).await, Ok(Outcome::Done));
    joinable.doubt(&[rows(update(from, &claim))]);
    joinable.settle(&store.reader().db).await.expect("looked up");
    assert!(!joinable.finds(&same_as(1)));
    store.close().await;
}

#[test]
fn what_a_long_queue_took_is_given_back() {
    let mut joinable = Joinable::default();
    let mut one = |n: i64, claimed: bool| {
        let mut new = pending(n, 0);
        // A key of its own.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_le_bytes());
        new.merge = Some(Merge { key, join: true });
        let mut record = new.record.clone();
        let write = if claimed {
            let from = record.job.revision;
            record.job.apply(Event::Claim, at(NOW + 10)).expect("claimed");
            rows(update(from, &record))
        } else {
            rows(Write::Insert(Box::new(new)))
        };
        joinable.follow([(&write, Outcome::Done)].into_iter());
        joinable.room()
    };
    let long = (0..20_000).map(|n| one(n, false)).max().expect("some");
    let left = (0..20_000).map(|n| one(n, true)).last().expect("some");
    assert!(long >= 20_000 && left < 4_000, "{long} {left}");
}

#[test]
fn the_key_that_was_stored_last_counts() {
    let mut joinable = Joinable::default();
    for (n, key) in [(1, 1), (2, 2), (1, 3)] {
        let write = rows(Write::Insert(Box::new(pending(n, key))));
        joinable.follow([(&write, Outcome::Done)].into_iter());
    }
    let finds = |key| joinable.finds(&[rows(Write::Insert(Box::new(pending(9, key))))]);
    assert_eq!([1, 2, 3].map(finds), [false, true, true]);
}
