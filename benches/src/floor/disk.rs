//! The disk by itself: commits of one row, and one block made durable.

use crate::{clock, fault::Fault, proc::Cpu, sample::Sample};
use rusqlite::Connection;
use std::{
    fs::{self, File},
    path::Path,
    time::Duration,
};

/// One row of a job's size after the other, each durable by itself.
pub fn commits(folder: &Path, payload: usize, seconds: f64) -> Result<Sample, Fault> {
    let file = folder.join("floor.db");
    let connection = Connection::open(&file)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;
         CREATE TABLE IF NOT EXISTS row (id BLOB PRIMARY KEY, payload BLOB NOT NULL) WITHOUT ROWID",
    )?;
    let mut insert = connection.prepare("INSERT INTO row VALUES (?, ?)")?;
    let payload = vec![b'x'; payload];
    let sample = repeated(seconds, |_| {
        let id = (u128::from(clock::now()) << 64 | 7).to_be_bytes();
        insert.execute((&id[..], &payload[..]))?;
        Ok(())
    });
    drop(insert);
    connection.close().map_err(|(_, error)| error)?;
    fs::remove_file(file)?;
    sample
}

/// 4 KiB after 4 KiB of a file that has its size already, each made durable.
pub fn syncs(folder: &Path, seconds: f64) -> Result<Sample, Fault> {
    use std::os::unix::fs::FileExt as _;
    const BLOCK: usize = 4_096;
    const BLOCKS: u64 = 4_096;
    let path = folder.join("floor.sync");
    let file = File::create(&path)?;
    file.write_all_at(&vec![0; BLOCK * BLOCKS as usize], 0)?;
    file.sync_all()?;
    let block = [b'x'; BLOCK];
    let sample = repeated(seconds, |round| {
        file.write_all_at(&block, round % BLOCKS * BLOCK as u64)?;
        rustix::fs::fdatasync(&file)?;
        Ok(())
    });
    fs::remove_file(path)?;
    sample
}

fn repeated(seconds: f64, mut once: impl FnMut(u64) -> Result<(), Fault>) -> Result<Sample, Fault> {
    for round in 0..20 {
        once(round)?;
    }
    let used = Cpu::of(std::process::id())?;
    let from = clock::now();
    let (mut latencies, mut before) = (Vec::new(), from);
    while clock::since(from) < Duration::from_secs_f64(seconds) {
        once(latencies.len() as u64)?;
        let now = clock::now();
        latencies.push(u32::try_from(now - before).unwrap_or(u32::MAX));
        before = now;
    }
    let mut sample = Sample::of(latencies, clock::since(from).as_secs_f64());
    let used = Cpu::of(std::process::id())?.since(&used);
    sample.cpu_us.insert("floor".into(), used as f64 / 1e3 / sample.operations);
    Ok(sample)
}
