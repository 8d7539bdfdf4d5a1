//! The statements of a transaction.

use super::columns::Values;
use crate::store::{
    columns::{ATTEMPT, BEGUN, CHANGED, KEY, LABEL, NEW, PROGRESS, REQUEST, TEXT, is_new},
    entity::job,
    names::Tables,
    write::{Outcome, Rows},
};
use rusqlite::{Connection, Result, Statement};

/// Tables of what belongs to a job, and goes with it.
const BELONGINGS: [&str; 5] = ["job_request", "job_label", "job_text", "attempt", "start_key"];

/// What [`Statements`] are prepared from.
pub(super) struct Texts {
    job: String,
    request: String,
    label: String,
    key: String,
    begun: String,
    progress: String,
    change: String,
    attempt: [String; 2],
    text: [String; 2],
    wipe: String,
    delete: String,
    belongings: [String; BELONGINGS.len()],
}

/// A row with a value for each of these columns.
fn insert(table: &str, columns: &[&str]) -> String {
    let marks = vec!["?"; columns.len()].join(", ");
    format!(r#"INSERT INTO "{table}" ({}) VALUES ({marks})"#, columns.join(", "))
}

/// The values of `columns` after those of `key`.
fn update(table: &str, key: &[&str], columns: &[&str]) -> String {
    let marked = |from: usize, columns: &[&str]| -> Vec<String> {
        let marks = columns.iter().zip(from + 1..);
        marks.map(|(column, mark)| format!("{column} = ?{mark}")).collect()
    };
    let (key, columns) = (marked(0, key), marked(key.len(), columns));
    format!(r#"UPDATE "{table}" SET {} WHERE {}"#, columns.join(", "), key.join(" AND "))
}

/// To write a row over the one with its key, the first `key` columns, and else anew.
fn over_or_anew(table: &str, columns: &[&str], key: usize) -> [String; 2] {
    [update(table, &columns[..key], &columns[key..]), insert(table, columns)]
}

impl Texts {
    /// With the names of the tables put in place.
    pub(super) fn of(tables: &Tables) -> Self {
        let place = |text: String| tables.place(&text);
        let was = ["id", "revision"];
        let change = update("job", &was, CHANGED);
        // The value says whether it goes.
        let (mark, goes) = (was.len() + CHANGED.len(), "CASE WHEN ?# THEN NULL ELSE merge_key END");
        let change = change.replace(
            &format!("merge_key = ?{mark}"),
            &format!("merge_key = {}", goes.replace('#', &mark.to_string())),
        );
        Self {
            job: place(insert("job", NEW)),
            request: place(insert("job_request", REQUEST)),
            label: place(insert("job_label", LABEL)),
            key: place(insert("start_key", KEY)),
            begun: place(insert("attempt", BEGUN)),
            progress: place(update("job", &was, PROGRESS)),
            change: place(change),
            attempt: over_or_anew("attempt", ATTEMPT, 2).map(place),
            text: over_or_anew("job_text", TEXT, 1).map(place),
            wipe: place(r#"UPDATE "job_request" SET credentials = NULL WHERE job_id = ?"#.into()),
            delete: place(r#"DELETE FROM "job" WHERE id = ? AND state >= 4"#.into()),
            belongings: BELONGINGS.map(|table| place(format!(r#"DELETE FROM "{table}" WHERE job_id = ?"#))),
        }
    }
}

/// Prepared for as long as the connection lives.
pub(super) struct Statements<'c> {
    begin: Statement<'c>,
    commit: Statement<'c>,
    job: Statement<'c>,
    request: Statement<'c>,
    label: Statement<'c>,
    key: Statement<'c>,
    begun: Statement<'c>,
    progress: Statement<'c>,
    change: Statement<'c>,
    attempt: [Statement<'c>; 2],
    text: [Statement<'c>; 2],
    wipe: Statement<'c>,
    delete: Statement<'c>,
    belongings: Vec<Statement<'c>>,
}

/// Whether all of these can be written here.
pub(super) fn is_ours(writes: &[Rows]) -> bool {
    writes.iter().all(|rows| match rows {
        Rows::Insert { job, text, twin, .. } => text.is_none() && twin.is_none() && is_new(job),
        Rows::Update { .. } | Rows::Delete(_) => true,
        Rows::Reseal { .. } => false,
    })
}

impl<'c> Statements<'c> {
    pub(super) fn prepare(connection: &'c Connection, texts: &Texts) -> Result<Self> {
        let prepare = |text: &String| connection.prepare(text);
        let both = |[one, two]: &[String; 2]| Ok::<_, rusqlite::Error>([prepare(one)?, prepare(two)?]);
        Ok(Self {
            begin: connection.prepare("BEGIN IMMEDIATE")?,
            commit: connection.prepare("COMMIT")?,
            job: prepare(&texts.job)?,
            request: prepare(&texts.request)?,
            label: prepare(&texts.label)?,
            key: prepare(&texts.key)?,
            begun: prepare(&texts.begun)?,
            progress: prepare(&texts.progress)?,
            change: prepare(&texts.change)?,
            attempt: both(&texts.attempt)?,
            text: both(&texts.text)?,
            wipe: prepare(&texts.wipe)?,
            delete: prepare(&texts.delete)?,
            belongings: texts.belongings.iter().map(prepare).collect::<Result<_>>()?,
        })
    }

    /// All of it in one transaction; after an error it is to be rolled back.
    pub(super) fn write(&mut self, writes: &[Rows]) -> Result<Vec<Outcome>> {
        self.begin.raw_execute()?;
        self.insert(writes)?;
        let outcomes = writes.iter().map(|rows| match rows {
            Rows::Insert { .. } => Ok(Outcome::Done),
            Rows::Update { from, job, progress, closed, wipe, text, attempt } => {
                if !self.update(*from, job, (!progress).then_some(*closed))? {
                    return Ok(Outcome::Lost);
                }
                if let Some(attempt) = attempt {
                    put(&mut self.attempt, |values| values.attempt(attempt))?;
                }
                if let Some(text) = text {
                    put(&mut self.text, |values| values.job_text(text))?;
                }
                if *wipe {
                    run(&mut self.wipe, |values| values.add(job.id.as_slice()))?;
                }
                Ok(Outcome::Done)
            }
            // Below; and not one of ours.
            Rows::Delete(_) | Rows::Reseal { .. } => Ok(Outcome::Lost),
        });
        let mut outcomes = outcomes.collect::<Result<Vec<_>>>()?;
        // In the end, so that nothing is left of a job that changed in the same transaction.
        for (rows, outcome) in writes.iter().zip(&mut outcomes) {
            if let Rows::Delete(ids) = rows {
                *outcome = self.delete(ids)?;
            }
        }
        self.commit.raw_execute()?;
        Ok(outcomes)
    }

    /// All new jobs, a table after the other.
    fn insert(&mut self, writes: &[Rows]) -> Result<()> {
        for rows in writes {
            if let Rows::Insert { job, .. } = rows {
                run(&mut self.job, |values| values.new_job(job))?;
            }
        }
        for rows in writes {
            if let Rows::Insert { request, labels, start_key, .. } = rows {
                run(&mut self.request, |values| values.request(request))?;
                for label in labels {
                    run(&mut self.label, |values| values.label(label))?;
                }
                if let Some(key) = start_key {
                    run(&mut self.key, |values| values.key(key))?;
                }
            }
        }
        for rows in writes {
            if let Rows::Insert { attempt: Some(attempt), .. } = rows {
                run(&mut self.begun, |values| values.begun(attempt))?;
            }
        }
        Ok(())
    }

    /// Whether its revision was still that one. Where more changed than what its action
    /// reported, `closed` is whether no later Start joins it.
    fn update(&mut self, from: i64, job: &job::Model, closed: Option<bool>) -> Result<bool> {
        let statement = if closed.is_some() { &mut self.change } else { &mut self.progress };
        let changed = run(statement, |values| {
            values.from(from, job)?;
            values.progress(job)?;
            closed.map_or(Ok(()), |closed| values.state(job, closed))
        });
        changed.map(|rows| rows > 0)
    }

    /// Those that are final, with all that belongs to them.
    fn delete(&mut self, ids: &[Vec<u8>]) -> Result<Outcome> {
        let mut outcome = Outcome::Lost;
        for id in ids {
            if run(&mut self.delete, |values| values.add(id.as_slice()))? > 0 {
                outcome = Outcome::Done;
                for belongings in &mut self.belongings {
                    run(belongings, |values| values.add(id.as_slice()))?;
                }
            }
        }
        Ok(outcome)
    }
}

/// How many rows it wrote.
fn run<'c>(
    statement: &mut Statement<'c>,
    bind: impl FnOnce(&mut Values<'_, 'c>) -> Result<()>,
) -> Result<usize> {
    let mut values = Values::of(statement);
    bind(&mut values)?;
    values.run()
}

/// Writes over the row that is there, or else a new one.
fn put<'c>(
    [over, anew]: &mut [Statement<'c>; 2],
    bind: impl Fn(&mut Values<'_, 'c>) -> Result<()>,
) -> Result<()> {
    if run(over, &bind)? == 0 {
        run(anew, &bind)?;
    }
    Ok(())
}
