//! Group commit: what waits shares a transaction, what comes alone waits for nobody.

use super::*;
use std::{fs, sync::mpsc, time::Duration};
use tokio::time::Instant;

/// Transactions in SQLite's log: frames that name the size of the database after them
/// (<https://www.sqlite.org/fileformat2.html#walformat>).
fn transactions(database: &Path) -> usize {
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
