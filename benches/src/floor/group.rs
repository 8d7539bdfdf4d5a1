//! Group commit by itself: the rows of a job, all that wait in one transaction, and
//! nothing that is checked, kept or told besides.

use crate::fault::Fault;
use rusqlite::{Connection, OpenFlags, types::Value};
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::sync::{mpsc, oneshot};

/// Writes in one transaction, at most: the service's default.
const BATCH: usize = 128;
/// Writes that wait, at most.
const QUEUE: usize = 1_024;

/// What changes of a running job when it ends, by table.
const ENDS: [(&str, &[&str]); 2] = [
    ("job", &["state", "revision", "progress", "updated_at", "changed_at", "ended_at"]),
    ("attempt", &["ended_at", "http_status", "last_sequence"]),
];
/// The number of RUNNING.
const RUNNING: Value = Value::Integer(3);

/// A thread that writes, with a database of its own.
pub struct Group {
    queue: mpsc::Sender<Write>,
    /// Jobs, which have grown numbers as ids.
    jobs: AtomicU64,
}

struct Write {
    job: u64,
    ends: bool,
    durable: oneshot::Sender<Result<(), String>>,
}

impl Group {
    /// Whose database is made at `file`, with the tables and indexes of the service's one
    /// at `like`. The rows of the last job there are written for each: as they are if it
    /// waits, else first as those of a running job, and then of one that has ended.
    pub fn open(file: &Path, like: &Path) -> Result<Self, Fault> {
        let connection = Connection::open(file)?;
        // As the service sets them.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
             PRAGMA cache_size = -4096",
        )?;
        let texts = Texts::of_last(&connection, like)?;
        let (queue, receiver) = mpsc::channel(QUEUE);
        std::thread::spawn(move || write(&connection, &texts, receiver));
        Ok(Self { queue, jobs: AtomicU64::new(0) })
    }

    /// Returns when the rows of one more job are durable: its number.
    pub async fn start(&self) -> Result<u64, String> {
        let job = self.jobs.fetch_add(1, Ordering::Relaxed);
        self.write(job, false).await.map(|()| job)
    }

    /// Returns when the end of this job is durable.
    pub async fn end(&self, job: u64) -> Result<(), String> {
        self.write(job, true).await
    }

    async fn write(&self, job: u64, ends: bool) -> Result<(), String> {
        let (durable, told) = oneshot::channel();
        let gone = "the thread that writes is gone";
        self.queue.send(Write { job, ends, durable }).await.map_err(|_| gone)?;
        told.await.map_err(|_| gone)?
    }
}

/// A statement, its values, and which of them is the job's id.
struct Text {
    sql: String,
    values: Vec<Value>,
    id: usize,
}

#[derive(Default)]
struct Texts {
    starts: Vec<Text>,
    ends: Vec<Text>,
}

impl Texts {
    /// Makes the tables of `like`, and what is written for jobs like its last one.
    fn of_last(connection: &Connection, like: &Path) -> Result<Self, Fault> {
        let from = Connection::open_with_flags(like, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut tables = from.prepare(
            "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'
             ORDER BY type DESC, name",
        )?;
        let tables = tables.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let last = "SELECT id FROM job ORDER BY created_at DESC, id DESC LIMIT 1";
        let last: Vec<u8> = from.query_row(last, (), |row| row.get(0))?;
        let mut texts = Self::default();
        for table in tables {
            let (kind, name, sql): (String, String, String) = table?;
            connection.execute_batch(&sql)?;
            if kind == "table" {
                texts.add(&from, &name, &last)?;
            }
        }
        Ok(texts)
    }

    /// The rows of `job` in this table, if there are any.
    fn add(&mut self, from: &Connection, table: &str, job: &[u8]) -> Result<(), Fault> {
        let all = from.prepare(&format!("SELECT * FROM {table:?}"))?;
        let columns = all.column_names();
        let is_id = |column: &&str| *column == if table == "job" { "id" } else { "job_id" };
        let Some(id) = columns.iter().position(is_id) else { return Ok(()) };
        let mut rows = from.prepare(&format!("SELECT * FROM {table:?} WHERE {} = ?", columns[id]))?;
        let mut rows = rows.query((job,))?;
        while let Some(row) = rows.next()? {
            let mut values = Vec::<Value>::new();
            for column in 0..columns.len() {
                values.push(row.get(column)?);
            }
            let place = |column: &str| columns.iter().position(|each| *each == column);
            let ended = place("ended_at").is_some_and(|place| values[place] != Value::Null);
            if let Some((_, changes)) = ENDS.iter().find(|(name, _)| ended && *name == table) {
                let sets: Vec<_> = changes.iter().map(|column| format!("{column} = ?")).collect();
                let sql = format!("UPDATE {table:?} SET {} WHERE {} = ?", sets.join(", "), columns[id]);
                let mut new = Vec::new();
                for column in *changes {
                    new.push(values[place(column).ok_or_else(|| format!("no column {column}"))?].clone());
                }
                new.push(values[id].clone());
                self.ends.push(Text { sql, values: new, id: changes.len() });
                for (column, value) in [("ended_at", Value::Null), ("state", RUNNING)] {
                    if let Some(place) = place(column) {
                        values[place] = value;
                    }
                }
            }
            let places = vec!["?"; columns.len()].join(", ");
            self.starts.push(Text { sql: format!("INSERT INTO {table:?} VALUES ({places})"), values, id });
        }
        Ok(())
    }
}

/// Writes for all that wait, until nobody can wait any more.
fn write(connection: &Connection, texts: &Texts, mut queue: mpsc::Receiver<Write>) {
    let mut waiting = Vec::with_capacity(BATCH);
    while queue.blocking_recv_many(&mut waiting, BATCH) > 0 {
        let written = commit(connection, texts, &waiting).map_err(|error| error.to_string());
        for write in waiting.drain(..) {
            // Who asked may be gone.
            let _ = write.durable.send(written.clone());
        }
    }
}

fn commit(connection: &Connection, texts: &Texts, writes: &[Write]) -> Result<(), rusqlite::Error> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    for (texts, ends) in [(&texts.starts, false), (&texts.ends, true)] {
        for Text { sql, values, id } in texts {
            let mut statement = connection.prepare_cached(sql)?;
            for write in writes.iter().filter(|write| write.ends == ends) {
                for (place, value) in values.iter().enumerate() {
                    if place == *id {
                        statement.raw_bind_parameter(place + 1, &u128::from(write.job).to_be_bytes()[..])?;
                    } else {
                        statement.raw_bind_parameter(place + 1, value)?;
                    }
                }
                statement.raw_execute()?;
            }
        }
    }
    connection.execute_batch("COMMIT")
}
