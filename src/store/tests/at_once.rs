//! On PostgreSQL: a transaction of one statement, where all is as was thought, and where
//! it is not.

use super::*;
use crate::store::{
    StartKey,
    postgres::{Kept, Written},
    server::Server,
    shared::{self, Mark},
    write::Rows,
};

fn rows(writes: impl IntoIterator<Item = Write>) -> Vec<Rows> {
    let mut nonces = [[0; 24]; 2];
    StillClock.random(nonces.as_flattened_mut());
    writes.into_iter().map(|write| Rows::of(write, "here", &keys(&[1]), nonces).1).collect()
}

fn keyed(n: i64, key: u8) -> Write {
    let start_key = StartKey { caller: "me".into(), key: [key; 32], request: [1; 32] };
    let start_key = Some(start_key);
    Write::Insert(Box::new(New { start_key, ..New::of(job(n), payload()) }))
}

fn merging(n: i64, key: u8) -> Write {
    let merge = Some(Merge { key: [key; 32], join: true });
    Write::Insert(Box::new(New { merge, ..New::of(job(n), payload()) }))
}

fn claim(n: i64) -> Write {
    let mut record = job(n);
    let from = record.job.revision;
    record.job.apply(Event::Claim, at(NOW + 1_000)).expect("claimed");
    let attempt = Some(claimed(&record));
    Write::Update(Box::new(Update { from, record, text: true, attempt }))
}

#[tokio::test]
async fn one_statement_writes_all_of_a_transaction_or_nothing() {
    let Some(database) = OwnDatabase::on(ServerKind::Postgres).await else { return };
    let store = open(options(database.url())).await; // makes the tables
    let server = Server::new(&database.url(), &Tables::default()).expect("an address");
    let db = server.connect_writers(2);
    let mut mark = Mark { incarnation: [9; 16], number: NOW, stored: NOW };
    shared::begin(&db, "another", mark).await.expect("begun");
    let mut kept = Kept::default();
    let mut written = async |mark: &mut Mark, writes: Vec<Write>| {
        mark.number += 1;
        let written = kept.write(&db, &rows(writes), *mark).await.expect("of this kind");
        if let Written::All = written {
            mark.stored = mark.number;
        }
        written
    };
    let there = async |n: i64| !store.records(&[job(n).id], false).await.expect("read").is_empty();

    let first = vec![keyed(1, 1), merging(2, 2), insert(&job(3)), insert(&job(4))];
    assert!(matches!(written(&mut mark, first).await, Written::All));
    assert!(matches!(written(&mut mark, vec![claim(3), insert(&job(5))]).await, Written::All));
    assert_eq!(store.attempts(job(3).id).await.expect("read").len(), 1);
    let begins = |n, key| Write::Insert(Box::new(begun(n, key)));
    assert!(matches!(written(&mut mark, vec![begins(6, 6), insert(&job(7))]).await, Written::All));
    assert_eq!(store.attempts(job(6).id).await.expect("read"), [claimed(&begun(6, 6).record)]);
    // It has begun, so that nobody finds it.
    assert!(matches!(written(&mut mark, vec![begins(8, 6), merging(9, 9)]).await, Written::All));
    // Each with something in the way, and something that is not.
    for (case, other) in [
        ("a start key", keyed(10, 1)),
        ("a merge key", merging(10, 2)),
        ("a merge key of one that would run", begins(10, 2)),
        ("an id", insert(&job(4))),
        ("another revision", claim(3)),
        ("a job that is gone", claim(11)),
    ] {
        let told = written(&mut mark, vec![insert(&job(20)), claim(4), other]).await;
        assert!(matches!(told, Written::Otherwise), "{case}: {told:?}");
        assert!(!there(20).await && !there(10).await, "{case}");
        assert!(store.attempts(job(4).id).await.expect("read").is_empty(), "{case}");
    }
    // What was thought to be stored last is not.
    let mut stale = Mark { stored: mark.stored - 1, ..mark };
    assert!(matches!(written(&mut stale, vec![insert(&job(20))]).await, Written::Otherwise));
    assert!(!there(20).await);
    assert!(matches!(written(&mut mark, vec![insert(&job(20))]).await, Written::All));
    assert!(there(20).await);
    // Another server has the name.
    shared::end(&db, mark.incarnation).await.expect("taken away");
    assert!(matches!(written(&mut mark, vec![insert(&job(21))]).await, Written::Otherwise));
    assert!(!there(21).await);
    // Of two that are alike commit.rs makes one.
    for twins in [[merging(30, 7), merging(31, 7)], [keyed(30, 8), keyed(31, 8)]] {
        assert!(kept.write(&db, &rows(twins), mark).await.is_none());
    }
    drop(kept);
    db.close().await.expect("closed");
    store.close().await;
}
