//! On SQLite: a whole transaction as one text.
//!
//! Every statement that is handed to a connection of SQLite is a way to its thread
//! and back, which costs more than what most statements do. So what is written most,
//! new jobs and changes of jobs, goes there at once, with its BEGIN and COMMIT, and
//! nothing is read before: this process is the only one that writes, so what it
//! knows of revisions nearly always holds. Where a start key is there already, or a row
//! has another revision than was thought, a statement fails, nothing is written, and
//! [`super::commit`] looks closer. So it does where a merge key is there already, which
//! [`super::joinable`] knows before.
//!
//! To read a text costs SQLite as much as to carry it out. So texts are kept prepared,
//! and there are few of them: rows are filled up to the next of a few numbers, with
//! rows that are NULL and that a statement passes over.

mod columns;

pub(super) use columns::{ATTEMPT, BEGUN, CHANGED, KEY, LABEL, NEW, PROGRESS, REQUEST, TEXT};

use super::{database::Database, entity::job, error, write::Rows};
use sea_orm::{DbErr, RuntimeErr};
use sqlx::{
    Arguments as _, AssertSqlSafe, Executor as _, Sqlite, encode::Encode, pool::PoolConnection,
    sqlite::SqliteArguments, types::Type,
};
use std::sync::Arc;

/// Values that one statement binds, at most.
const BOUND: usize = 32_000;

/// How many rows a statement has, in a text that is filled up and kept prepared. More of
/// them are rare, and a prepared text of many rows takes hundreds of KiB.
const FULL: [usize; 6] = [1, 4, 16, 32, 64, 128];
/// The last of them.
const MOST: usize = FULL[FULL.len() - 1];
/// Texts of a connection that are kept: each takes some KiB.
pub(super) const TEXTS: usize = 64;

/// What came of it.
#[derive(Debug)]
pub(super) enum Written {
    /// All of it is durable.
    All,
    /// Nothing is written: something is otherwise than was thought.
    Otherwise,
    /// Nothing is written.
    Failed(DbErr),
}

/// The connection that writes, kept: to give it back costs a way to its thread, too.
#[derive(Debug, Default)]
pub(super) struct Kept {
    connection: Option<PoolConnection<Sqlite>>,
    /// Whether it is the only one there is, for those who read, too.
    only: bool,
}

impl Kept {
    pub(super) fn new(only: bool) -> Self {
        Self { connection: None, only }
    }

    /// Gives it back, so that others may write.
    pub(super) fn release(&mut self) {
        self.connection = None;
    }

    /// Writes all of `writes`, or nothing; None where they are more than one text
    /// can say.
    pub(super) async fn write(&mut self, db: &Database, writes: &[Rows]) -> Option<Written> {
        let batch = Batch::of(writes)?;
        let fails = |error: sqlx::Error| DbErr::Exec(RuntimeErr::SqlxError(error.into()));
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => match db.connection().get_sqlite_connection_pool().acquire().await {
                Ok(connection) => none.insert(connection),
                Err(error) => return Some(Written::Failed(fails(error))),
            },
        };
        let text = db.place(batch.text);
        let query = sqlx::query_with(AssertSqlSafe(text), batch.values).persistent(batch.filled);
        let written = match connection.execute(query).await {
            Ok(_) => Written::All,
            Err(error) => {
                // It may be rolled back already, which is no fault.
                let _ = connection.execute("ROLLBACK").await;
                let error = fails(error);
                if error::is_refusal(&error) { Written::Otherwise } else { Written::Failed(error) }
            }
        };
        if self.only {
            self.release();
        }
        Some(written)
    }
}

struct Batch {
    text: String,
    values: SqliteArguments,
    /// Of the statement that is being written.
    bound: usize,
    too_large: bool,
    /// Whether rows are filled up, and the text is kept prepared.
    filled: bool,
}

impl Batch {
    fn of(writes: &[Rows]) -> Option<Self> {
        let (mut new, mut reported, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        let mut begun = Vec::new();
        for write in writes {
            match write {
                Rows::Insert { job, request, labels, text: None, start_key, attempt, twin: None, .. }
                    if is_new(job) =>
                {
                    new.push((job, request, labels, start_key));
                    begun.extend(attempt.as_deref());
                }
                Rows::Update { from, job, progress: true, text, attempt, .. } => {
                    reported.push((*from, job, text, attempt));
                }
                Rows::Update { from, job, closed, wipe, text, attempt, .. } => {
                    changed.push((*from, job, *closed, *wipe, text, attempt));
                }
                Rows::Insert { .. } | Rows::Delete(_) | Rows::Reseal { .. } => return None,
            }
        }
        let mut batch = Self {
            text: String::with_capacity(2_048 + 96 * writes.len()),
            values: SqliteArguments::default(),
            bound: 0,
            too_large: false,
            filled: [new.len(), reported.len(), changed.len()].iter().all(|rows| *rows <= MOST),
        };
        batch.values.reserve(writes.len() * 40, 0);
        batch.text.push_str("BEGIN IMMEDIATE;");
        let (begin, change) = (batch.full(new.len()), batch.full(reported.len()) + batch.full(changed.len()));
        batch.insert(("job", NEW), begin, new.iter().map(|(job, ..)| *job), Self::new_job);
        batch.insert(
            ("job_request", REQUEST),
            begin,
            new.iter().map(|(_, request, ..)| *request),
            Self::request,
        );
        let labels = new.iter().flat_map(|(_, _, labels, _)| *labels);
        batch.insert(("job_label", LABEL), batch.full(labels.clone().count()), labels, Self::label);
        let keys = new.iter().filter_map(|(.., key)| key.as_ref());
        batch.insert(("start_key", KEY), begin, keys, Self::key);
        batch.insert(("attempt", BEGUN), begin, begun.into_iter(), Self::begun);
        batch.update(PROGRESS, reported.iter(), |batch, (from, job, ..)| {
            batch.from(*from, job);
            batch.progress(job);
        });
        batch.update(CHANGED, changed.iter(), |batch, (from, job, closed, ..)| {
            batch.from(*from, job);
            batch.progress(job);
            batch.state(job, *closed);
        });
        let attempts = reported.iter().filter_map(|(.., attempt)| attempt.as_ref());
        let attempts = attempts.chain(changed.iter().filter_map(|(.., attempt)| attempt.as_ref()));
        batch.replace(("attempt", ATTEMPT), 2, change, attempts, Self::attempt);
        let texts = reported.iter().filter_map(|(_, _, text, _)| text.as_ref());
        let texts = texts.chain(changed.iter().filter_map(|(.., text, _)| text.as_ref()));
        batch.replace(("job_text", TEXT), 1, change, texts, Self::job_text);
        batch
            .wipe(changed.iter().filter(|(_, _, _, wipe, ..)| *wipe).map(|(_, job, ..)| *job), changed.len());
        batch.text.push_str("COMMIT");
        (!batch.too_large).then_some(batch)
    }

    fn add<'t, T: Encode<'t, Sqlite> + Type<Sqlite>>(&mut self, value: T) {
        // Numbers, bytes and texts always have a form for SQLite.
        self.too_large |= self.values.add(value).is_err();
        self.bound += 1;
    }

    /// In one piece, which the driver then keeps as it is.
    fn add_text(&mut self, text: &str) {
        self.add(Arc::<str>::from(text));
    }

    /// How many rows so many are filled up to.
    fn full(&self, rows: usize) -> usize {
        if !self.filled || rows == 0 {
            return rows;
        }
        FULL.into_iter().find(|full| *full >= rows).unwrap_or(rows.next_multiple_of(MOST))
    }

    /// `(?, …), …` for rows of `columns` values, and of NULLs after them until there
    /// are `full`; how many rows there were.
    fn rows<T>(
        &mut self,
        columns: usize,
        full: usize,
        before: impl FnOnce(&mut String),
        rows: impl Iterator<Item = T>,
        bind: impl Fn(&mut Self, T),
    ) -> usize {
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return 0;
        }
        before(&mut self.text);
        self.bound = 0;
        let mut count = 0;
        for row in rows {
            bind(self, row);
            count += 1;
        }
        for _ in count * columns..full * columns {
            self.add(None::<i64>);
        }
        for place in 0..count.max(full) {
            self.text.push_str(if place == 0 { "(?" } else { ",(?" });
            for _ in 1..columns {
                self.text.push_str(",?");
            }
            self.text.push(')');
        }
        self.too_large |= self.bound > BOUND;
        count
    }

    /// What fails takes all of the transaction with it, so that SQLite need not note how
    /// a statement began.
    fn insert<T>(
        &mut self,
        (table, columns): (&str, &[&str]),
        full: usize,
        rows: impl Iterator<Item = T>,
        bind: impl Fn(&mut Self, T),
    ) -> bool {
        let passes_over = full > 1;
        let before = |text: &mut String| {
            push(text, &[r#"INSERT OR ROLLBACK INTO ""#, table, r#"" ("#]);
            list(text, columns, |text, column| text.push_str(column));
            text.push_str(if passes_over { ") SELECT * FROM (VALUES " } else { ") VALUES " });
        };
        let any = self.rows(columns.len(), full, before, rows, bind) > 0;
        if any {
            // The first column is a key, which no row lacks.
            self.text.push_str(if passes_over { ") WHERE column1 IS NOT NULL;" } else { ";" });
        }
        any
    }

    /// Inserts, or writes over what has the same key: the first `key` columns.
    fn replace<T>(
        &mut self,
        (table, columns): (&str, &[&str]),
        key: usize,
        full: usize,
        rows: impl Iterator<Item = T>,
        bind: impl Fn(&mut Self, T),
    ) {
        if self.insert((table, columns), full, rows, bind) {
            self.text.pop();
            overwrite(&mut self.text, columns, key);
            self.text.push(';');
        }
    }

    /// Writes each job whose revision is the one that it was changed from; fails if
    /// one of them has another.
    fn update<T>(
        &mut self,
        columns: &[&str],
        rows: impl ExactSizeIterator<Item = T>,
        bind: impl Fn(&mut Self, T),
    ) {
        let before = |text: &mut String| {
            text.push_str("WITH v(id, from_revision, ");
            list(text, columns, |text, column| text.push_str(column));
            text.push_str(") AS (VALUES ");
        };
        let full = self.full(rows.len());
        let count = self.rows(columns.len() + 2, full, before, rows, bind);
        if count == 0 {
            return;
        }
        // Rows that fill up have the id of none.
        self.text.push_str(r#") UPDATE OR ROLLBACK "job" AS j SET "#);
        assign(&mut self.text, columns);
        self.text.push_str(" FROM v WHERE j.id = v.id AND j.revision = v.from_revision;");
        // An overflow, which is an error, if that was not all of them.
        self.text.push_str("SELECT 1 WHERE abs(-9223372036854775807 - (changes() <> ?)) = 0;");
        self.add(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The credentials of these are not needed any more.
    fn wipe<'a>(&mut self, jobs: impl Iterator<Item = &'a job::Model>, most: usize) {
        let before = |text: &mut String| {
            text.push_str(r#"UPDATE "job_request" SET credentials = NULL WHERE (job_id) IN (VALUES "#);
        };
        let full = self.full(most);
        if self.rows(1, full, before, jobs, |batch, job| batch.add(job.id.as_slice())) > 0 {
            self.text.push_str(");");
        }
    }
}

/// Whether all that is not in [`NEW`] is NULL.
pub(super) fn is_new(job: &job::Model) -> bool {
    let job::Model { done, total, unit, stage, ended_at, .. } = job;
    done.is_none()
        && total.is_none()
        && unit.is_none()
        && stage.is_none()
        && ended_at.is_none()
        && job.failure_reason.is_none()
        && job.failure_message.is_none()
        && job.failure_status.is_none()
}

/// All of these after each other.
pub(super) fn push(text: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| text.push_str(part));
}

/// The columns, each as it is to be written.
pub(super) fn list(text: &mut String, columns: &[&str], write: impl Fn(&mut String, &str)) {
    for (place, column) in columns.iter().enumerate() {
        if place > 0 {
            text.push_str(", ");
        }
        write(text, column);
    }
}

/// What becomes of a row whose key, the first `key` columns, is there already.
pub(super) fn overwrite(text: &mut String, columns: &[&str], key: usize) {
    let (key, others) = columns.split_at(key);
    text.push_str(" ON CONFLICT (");
    list(text, key, |text, column| text.push_str(column));
    text.push_str(") DO UPDATE SET ");
    list(text, others, |text, column| push(text, &[column, " = excluded.", column]));
}

/// Columns of a job `j` from a row `v` with as many.
pub(super) fn assign(text: &mut String, columns: &[&str]) {
    list(text, columns, |text, column| match column {
        // The value says whether it goes.
        "merge_key" => text.push_str("merge_key = CASE WHEN v.merge_key THEN NULL ELSE j.merge_key END"),
        column => push(text, &[column, " = v.", column]),
    });
}
