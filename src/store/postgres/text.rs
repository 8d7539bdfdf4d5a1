//! The text of a transaction, and its values.

use crate::store::{
    columns::{ATTEMPT, BEGUN, CHANGED, KEY, LABEL, NEW, PROGRESS, REQUEST, TEXT, is_new},
    entity::{attempt, job, job_label, job_request, start_key},
    shared::Mark,
    write::{Rows, has_twins},
};
use sqlx::{
    Arguments as _, Postgres,
    encode::Encode,
    postgres::{PgArguments, PgBindIterExt as _, PgHasArrayType},
    types::Type,
};

/// A new job, its request, labels and key.
pub(super) type New<'a> =
    (&'a job::Model, &'a job_request::Model, &'a [job_label::Model], Option<&'a start_key::Model>);

/// A change of a job.
pub(super) struct Change<'a> {
    from: i64,
    pub(super) job: &'a job::Model,
    pub(super) closed: bool,
    wipe: bool,
}

pub(super) struct Batch {
    pub(super) text: String,
    pub(super) values: PgArguments,
    /// A value that has no form, or too many of them.
    bad: bool,
    /// Parts whose rows must be as many as they should: their names and how many.
    counted: Vec<(&'static str, i64)>,
}

impl Batch {
    /// None where a write is of another kind.
    pub(super) fn of(writes: &[Rows], mark: Mark) -> Option<Self> {
        let (mut new, mut reported, mut changed) = (Vec::<New<'_>>::new(), Vec::new(), Vec::new());
        let (mut texts, mut attempts, mut begun) = (Vec::new(), Vec::new(), Vec::new());
        for write in writes {
            match write {
                Rows::Insert { job, request, labels, text: None, start_key, attempt, twin: None, .. }
                    if is_new(job) =>
                {
                    new.push((job, request, labels, start_key.as_ref()));
                    begun.extend(attempt.as_deref());
                }
                Rows::Update { from, job, progress, closed, wipe, text, attempt } => {
                    let change = Change { from: *from, job, closed: *closed, wipe: *wipe };
                    if *progress { &mut reported } else { &mut changed }.push(change);
                    texts.extend(text);
                    attempts.extend(attempt);
                }
                Rows::Insert { .. } | Rows::Delete(_) | Rows::Reseal { .. } => return None,
            }
        }
        // Who takes locks in the same order as all others waits for none in a circle.
        new.sort_unstable_by(|(one, ..), (other, ..)| {
            (&one.merge_key, &one.id).cmp(&(&other.merge_key, &other.id))
        });
        for changes in [&mut reported, &mut changed] {
            changes.sort_unstable_by(|one, other| one.job.id.cmp(&other.job.id));
        }
        let mut keys: Vec<_> = new.iter().filter_map(|(.., key)| *key).collect();
        keys.sort_unstable_by(|one, other| {
            (&one.caller, &one.key_hash).cmp(&(&other.caller, &other.key_hash))
        });
        if has_twins(writes) || has_same(&keys) {
            return None;
        }
        let merged: Vec<&[u8]> = writes.iter().filter_map(Rows::merge_key).map(Vec::as_slice).collect();
        let mut batch = Self {
            text: String::with_capacity(4_096),
            values: PgArguments::default(),
            bad: false,
            counted: Vec::new(),
        };
        batch.values.reserve(96, 1_024 * writes.len());
        batch.gate(&merged, &keys, &changed);
        batch.begin(&new, &keys, &begun);
        batch.update("reported", PROGRESS, &reported, Self::progress);
        batch.update("changed", CHANGED, &changed, |batch, changes| {
            batch.progress(changes);
            batch.state(changes);
        });
        batch.replace("attempts", ("attempt", ATTEMPT), 2, &attempts, Self::attempt);
        batch.replace("texts", ("job_text", TEXT), 1, &texts, Self::job_text);
        let wiped: Vec<&[u8]> =
            changed.iter().filter(|change| change.wipe).map(|change| &change.job.id[..]).collect();
        if !wiped.is_empty() {
            batch.push(&[r#", wiped AS (UPDATE "job_request" SET credentials = NULL WHERE job_id = ANY("#]);
            batch.array(wiped.into_iter());
            batch.push(&[")", AND_OPEN, ")"]);
        }
        batch.end(mark);
        (!batch.bad).then_some(batch)
    }

    fn push(&mut self, parts: &[&str]) {
        push(&mut self.text, parts);
    }

    /// A value, and its place in the text.
    fn value<'t, T: Encode<'t, Postgres> + Type<Postgres>>(&mut self, value: T) {
        self.bad |= self.values.add(value).is_err();
        let number = self.values.len().to_string();
        self.push(&["$", &number]);
    }

    /// One value of all of these.
    pub(super) fn array<'t, T>(&mut self, values: impl Iterator<Item = T>)
    where
        T: Encode<'t, Postgres> + Type<Postgres> + PgHasArrayType,
    {
        self.value(values.bind_iter());
    }

    /// The same after others.
    pub(super) fn column<'t, T>(&mut self, values: impl Iterator<Item = T>)
    where
        T: Encode<'t, Postgres> + Type<Postgres> + PgHasArrayType,
    {
        self.text.push_str(", ");
        self.array(values);
    }

    fn names(&mut self, columns: &[&str]) {
        list(&mut self.text, columns, |text, column| text.push_str(column));
    }

    /// Whether all is as was thought.
    fn gate(&mut self, merged: &[&[u8]], keys: &[&start_key::Model], changed: &[Change<'_>]) {
        self.push(&["WITH gate(open) AS MATERIALIZED (SELECT true"]);
        if !merged.is_empty() {
            self.push(&[
                r#" AND NOT EXISTS (SELECT FROM "job" WHERE merge_key IS NOT NULL AND merge_key = ANY("#,
            ]);
            self.array(merged.iter().copied());
            self.push(&["))"]);
        }
        if !keys.is_empty() {
            self.push(&[" AND NOT EXISTS (SELECT FROM unnest("]);
            self.array(keys.iter().map(|key| key.caller.as_str()));
            self.column(keys.iter().map(|key| key.key_hash.as_slice()));
            self.push(&[r#") AS v(caller, key_hash) WHERE EXISTS (SELECT FROM "start_key" AS k
                WHERE k.caller = v.caller AND k.key_hash = v.key_hash))"#]);
        }
        if !changed.is_empty() {
            self.push(&[" AND NOT EXISTS (SELECT FROM unnest("]);
            self.array(changed.iter().map(|change| change.job.id.as_slice()));
            self.column(changed.iter().map(|change| change.from));
            self.push(&[r#") AS v(id, revision) WHERE NOT EXISTS (SELECT FROM "job" AS j
                WHERE j.id = v.id AND j.revision = v.revision))"#]);
        }
        self.push(&[")"]);
    }

    /// Jobs that begin.
    fn begin(&mut self, new: &[New<'_>], keys: &[&start_key::Model], begun: &[&attempt::Model]) {
        if new.is_empty() {
            return;
        }
        self.insert("jobs", ("job", NEW), |batch| batch.new_jobs(new));
        self.push(&[" RETURNING 1)"]);
        self.counted.push(("jobs", count(new)));
        self.insert("requests", ("job_request", REQUEST), |batch| batch.requests(new));
        self.push(&[")"]);
        let labels: Vec<_> = new.iter().flat_map(|(_, _, labels, _)| labels.iter()).collect();
        if !labels.is_empty() {
            self.insert("labels", ("job_label", LABEL), |batch| batch.labels(&labels));
            self.push(&[")"]);
        }
        if !keys.is_empty() {
            self.insert("keys", ("start_key", KEY), |batch| batch.keys(keys));
            self.push(&[")"]);
        }
        if !begun.is_empty() {
            self.insert("begun", ("attempt", BEGUN), |batch| batch.begun(begun));
            self.push(&[")"]);
        }
    }

    /// A part up to what follows the condition.
    fn insert(&mut self, part: &str, (table, columns): (&str, &[&str]), bind: impl FnOnce(&mut Self)) {
        self.push(&[", ", part, r#" AS (INSERT INTO ""#, table, r#"" ("#]);
        self.names(columns);
        self.push(&[") SELECT * FROM unnest("]);
        bind(self);
        self.push(&[") WHERE ", OPEN]);
    }

    /// Inserts, or writes over what has the same key: the first `key` columns.
    fn replace<T>(
        &mut self,
        part: &str,
        (table, columns): (&str, &[&str]),
        key: usize,
        rows: &[&T],
        bind: impl FnOnce(&mut Self, &[&T]),
    ) {
        if rows.is_empty() {
            return;
        }
        self.insert(part, (table, columns), |batch| bind(batch, rows));
        overwrite(&mut self.text, columns, key);
        self.push(&[")"]);
    }

    /// Writes each job whose revision is the one that it was changed from.
    fn update(
        &mut self,
        part: &'static str,
        columns: &[&str],
        changes: &[Change<'_>],
        bind: impl FnOnce(&mut Self, &[Change<'_>]),
    ) {
        if changes.is_empty() {
            return;
        }
        self.push(&[", ", part, r#" AS (UPDATE "job" AS j SET "#]);
        assign(&mut self.text, columns);
        self.push(&[" FROM unnest("]);
        self.array(changes.iter().map(|change| change.job.id.as_slice()));
        self.column(changes.iter().map(|change| change.from));
        bind(self, changes);
        self.push(&[") AS v(id, from_revision, "]);
        self.names(columns);
        self.push(&[") WHERE j.id = v.id AND j.revision = v.from_revision", AND_OPEN, " RETURNING 1)"]);
        self.counted.push((part, count(changes)));
    }

    /// The mark, and that everything was written that should be.
    fn end(&mut self, mark: Mark) {
        self.push(&[r#", mark AS (UPDATE "node_commit" SET mark = "#]);
        self.value(mark.number);
        self.push(&[" WHERE incarnation = "]);
        self.value(mark.incarnation.as_slice());
        self.push(&[" AND mark = "]);
        self.value(mark.stored);
        self.push(&[AND_OPEN, " RETURNING 1) SELECT open, CASE WHEN open THEN 1 / (CASE WHEN true"]);
        let counted = std::mem::take(&mut self.counted);
        for (part, rows) in counted.into_iter().chain([("mark", 1)]) {
            self.push(&[" AND (SELECT count(*) FROM ", part, ") = "]);
            self.value(rows);
        }
        // A division by zero, which is an error, if that is not so.
        self.push(&[" THEN 1 ELSE 0 END) END FROM gate"]);
    }
}

fn count<T>(rows: &[T]) -> i64 {
    i64::try_from(rows.len()).unwrap_or(i64::MAX)
}

/// Whether two of these, which are in order, are the same.
fn has_same(keys: &[&start_key::Model]) -> bool {
    keys.windows(2).any(|two| (&two[0].caller, &two[0].key_hash) == (&two[1].caller, &two[1].key_hash))
}

const OPEN: &str = "(SELECT open FROM gate)";
const AND_OPEN: &str = " AND (SELECT open FROM gate)";

/// All of these after each other.
fn push(text: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| text.push_str(part));
}

/// The columns, each as it is to be written.
fn list(text: &mut String, columns: &[&str], write: impl Fn(&mut String, &str)) {
    for (place, column) in columns.iter().enumerate() {
        if place > 0 {
            text.push_str(", ");
        }
        write(text, column);
    }
}

/// What becomes of a row whose key, the first `key` columns, is there already.
fn overwrite(text: &mut String, columns: &[&str], key: usize) {
    let (key, others) = columns.split_at(key);
    text.push_str(" ON CONFLICT (");
    list(text, key, |text, column| text.push_str(column));
    text.push_str(") DO UPDATE SET ");
    list(text, others, |text, column| push(text, &[column, " = excluded.", column]));
}

/// Columns of a job `j` from a row `v` with as many.
fn assign(text: &mut String, columns: &[&str]) {
    list(text, columns, |text, column| match column {
        // The value says whether it goes.
        "merge_key" => text.push_str("merge_key = CASE WHEN v.merge_key THEN NULL ELSE j.merge_key END"),
        column => push(text, &[column, " = v.", column]),
    });
}
