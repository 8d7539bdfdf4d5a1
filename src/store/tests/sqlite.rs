//! What is written most on SQLite, on a connection of its own.

use super::{group::transactions, *};
use crate::store::{
    database::Database,
    sqlite::{Kept, Place, Use, Written, connect},
    write::Rows,
};
use std::fs;

#[tokio::test]
async fn each_write_of_a_transaction_has_an_outcome_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let store = open(options(url(&file))).await;
    let mut ended = added(&store, job(1)).await;
    happens(&store, &mut ended, Event::Cancel, at(NOW + 20)).await;
    let stale = added(&store, job(2)).await;
    let mut newer = stale.clone();
    happens(&store, &mut newer, Event::Claim, at(NOW + 30)).await;
    let mut other = stale.clone();
    other.job.apply(Event::Claim, at(NOW + 40)).expect("claimed");
    let other = Update {
        from: stale.job.revision,
        text: true,
        attempt: Some(AttemptRow::claimed(9, "there".into(), NOW)),
        record: other,
    };
    let from = newer.job.revision;
    newer.job.apply(Event::Of(1, says("a")), at(NOW + 50)).expect("applied");
    let (lives, anew) = (added(&store, job(3)).await, job(4));

    let before = transactions(&file);
    let mut told = Vec::new();
    for write in [
        Write::Update(Box::new(other)),
        insert(&anew),
        Write::Delete(vec![ended.id]),
        Write::Delete(vec![lives.id]),
    ] {
        told.push(hand_in(&store, write).await);
    }
    let mut outcomes = Vec::new();
    for told in told {
        outcomes.push(told.await.expect("told").expect("taken"));
    }
    assert_eq!(outcomes, [Outcome::Lost, Outcome::Done, Outcome::Done, Outcome::Lost]);
    assert_eq!(transactions(&file) - before, 1);
    assert_eq!(write(&store, update(from, &newer)).await, Ok(Outcome::Done), "nothing was in its way");
    let stored = one(&store, newer.id).await;
    assert_eq!((stored.job.revision, stored.job.text.as_str()), (newer.job.revision, "a"));
    same(&one(&store, anew.id).await, &anew);
    same(&one(&store, lives.id).await, &lives);
    assert!(store.records(&[ended.id], true).await.expect("read").is_empty());
    assert!(store.payload(ended.id).await.expect("read").is_none(), "with all that belonged to it");
    let attempts = store.attempts(newer.id).await.expect("read");
    assert!(attempts.is_empty(), "{attempts:?}: what was lost wrote its attempt");
    store.close().await;
}

#[tokio::test]
async fn a_connection_that_cannot_be_opened_takes_nothing_and_is_opened_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, away) = (folder.path().join("backjob.db"), folder.path().join("away"));
    open(options(url(&file))).await.close().await;
    let place = Place::File(file.clone());
    let db = connect(&place, Use::Write).await.expect("connected");
    let db = Database::new(db, Tables::default(), 1);
    let mut kept = Kept::open(place, &db, &Tables::default(), 1 << 20).await.expect("opened");
    db.close().await.expect("closed");
    kept.close().await;

    fs::rename(&file, &away).expect("moved");
    let mut rows = vec![Rows::of(insert(&job(1)), "here", &keys(&[1]), [[0; 24]; 2]).1];
    let written = kept.write(&mut rows).await.expect("of a known kind");
    assert!(matches!(written, Written::Failed(Error::Unavailable(_))), "{written:?}");
    assert_eq!(rows.len(), 1, "given back");
    fs::rename(&away, &file).expect("moved back");
    let written = kept.write(&mut rows).await.expect("of a known kind");
    assert!(matches!(&written, Written::Done(outcomes) if *outcomes == [Outcome::Done]), "{written:?}");
    let written = kept.write(&mut rows).await.expect("of a known kind");
    assert!(matches!(written, Written::Otherwise), "{written:?}: its id is there");
    kept.close().await;
    let store = open(options(url(&file))).await;
    same(&one(&store, job(1).id).await, &job(1));
    store.close().await;
}
