//! Group commit: what waits shares a transaction, what comes alone waits for nobody.

use super::*;
use std::{
    fs,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};
use tokio::time::Instant;

/// Transactions in SQLite's log: frames that name the size of the database after them
/// (<https://www.sqlite.org/fileformat2.html#walformat>).
pub(super) fn transactions(database: &Path) -> usize {
    let log = fs::read(format!("{}-wal", database.display())).expect("a log");
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().expect("four bytes"));
    let (page, salts) = (number(8) as usize, &log[16..24]);
    let frames = (32..=log.len().saturating_sub(24 + page)).step_by(24 + page);
    frames.filter(|at| log[at + 8..at + 16] == *salts && number(at + 4) != 0).count()
}

#[tokio::test]
async fn all_that_waits_is_one_transaction() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let store = open(options(url(&file))).await;
    added(&store, job(0)).await;

    // Nothing yields to the writer until all of them wait.
    let before = transactions(&file);
    let mut told = Vec::new();
    for n in 1..=32 {
        told.push(hand_in(&store, insert(&job(n))).await);
    }
    for told in told {
        assert_eq!(told.await.expect("told"), Ok(Outcome::Done));
    }
    assert_eq!(transactions(&file) - before, 1, "32 writes");
    store.close().await;
}

/// When the caller of the first of these 32 writes went on: after so many were told.
async fn told_before_the_first_goes_on(store: &Store, writes: impl Iterator<Item = Write>) -> usize {
    let told = Arc::new(AtomicUsize::new(0));
    let (sender, first) = oneshot::channel();
    let (mut sender, seen) = (Some(sender), Arc::clone(&told));
    let (went, on) = oneshot::channel();
    Tasks::default().spawn("the first caller", async move {
        first.await.expect("told");
        went.send(seen.load(Ordering::Relaxed)).expect("awaited");
    });
    let mut last = None;
    for write in writes {
        let (sender, told) = (sender.take(), Arc::clone(&told));
        let (all, waits) = oneshot::channel();
        let done = Box::new(move |result: Result<Outcome, Error>| {
            assert_eq!(result, Ok(Outcome::Done));
            told.fetch_add(1, Ordering::Relaxed);
            sender.map(|sender| sender.send(()));
            let _ = all.send(());
        });
        store.reserve().await.expect("open").write(write, done);
        last = Some(waits);
    }
    last.expect("some").await.expect("told");
    assert_eq!(told.load(Ordering::Relaxed), 32);
    on.await.expect("went on")
}

#[tokio::test]
async fn callers_go_on_with_their_answers_before_all_others_have_theirs() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(options(url(&folder.path().join("backjob.db")))).await;
    added(&store, job(0)).await;
    let waiting = (1..=32).map(|n| insert(&job(n)));
    assert_eq!(told_before_the_first_goes_on(&store, waiting).await, 11, "a third");
    // What begins or ends is told at once.
    let changes = (1..=32).map(|n| {
        let mut record = job(n);
        let from = record.job.revision;
        record.job.apply(Event::Claim, at(NOW + 50)).expect("claimed");
        update(from, &record)
    });
    assert_eq!(told_before_the_first_goes_on(&store, changes).await, 32);
    let begins = (40..72).map(|n| Write::Insert(Box::new(New { merge: None, ..begun(n, 1) })));
    assert_eq!(told_before_the_first_goes_on(&store, begins).await, 32);
    store.close().await;
}

/// Time stands still: whatever waited for a moment would wait for ever.
#[tokio::test(start_paused = true)]
async fn what_comes_alone_is_written_without_a_delay() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    // Tokio moves a paused clock on when all are idle, but not beside a task that blocks.
    let (done, block) = mpsc::channel::<()>();
    let blocking = tokio::task::spawn_blocking(move || block.recv_timeout(Duration::from_secs(30)));
    let store = open(options(url(&file))).await;
    let (before, began) = (transactions(&file), Instant::now());
    for n in 0..5 {
        let mut record = added(&store, job(n)).await;
        happens(&store, &mut record, Event::Claim, at(NOW + 10)).await;
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(transactions(&file) - before, 10, "each of them was alone");
    drop(done);
    let _ = blocking.await;
    store.close().await;
}
