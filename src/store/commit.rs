//! One transaction: one statement for a table, whatever the number of writes.

use super::{
    columns,
    database::{Database, Transaction},
    dialect::{self, statement},
    entity::{attempt, job, job_label, job_request, job_text, root_key, start_key},
    error::violates,
    existing::{Joins, Settled, settle},
    joinable::Joinable,
    roots::reseal,
    shared::{Mark, in_doubt, mark, within},
    write::{Outcome, Rows},
};
use crate::secret::RootId;
use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait, ColumnTrait as _, ConnectionTrait as _, DbBackend, DbErr,
    EntityTrait, IntoActiveModel, Iterable as _, QueryFilter as _, Value,
    sea_query::{Expr, OnConflict},
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Columns of `job` that an update writes, after `id` and `from_revision`: `merge_key`,
/// the last of them, goes with a statement of its own.
const CHANGED: &[&str] = columns::CHANGED.split_last().expect("columns").1;

/// In the order of [`CHANGED`].
fn changed(job: &job::Model) -> [Value; CHANGED.len()] {
    [
        job.revision.into(),
        job.progress.into(),
        job.done.into(),
        job.total.into(),
        job.unit.clone().into(),
        job.stage.clone().into(),
        job.updated_at.into(),
        job.changed_at.into(),
        job.state.into(),
        job.attempt.into(),
        job.owner.clone().into(),
        job.scheduled_at.into(),
        job.started_at.into(),
        job.ended_at.into(),
        job.give_up_at.into(),
        job.cancel_requested.into(),
        job.failure_reason.into(),
        job.failure_message.clone().into(),
        job.failure_status.into(),
    ]
}

/// Why a transaction did not come to its end.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing of it is stored.
    Whole(DbErr),
    /// Nothing of it is stored: what it found was not so any more when it wrote.
    /// Tried again it sees what another node stored meanwhile.
    Overtaken,
    /// All of it is stored, with these outcomes, or nothing.
    InDoubt(Vec<Outcome>, DbErr),
}

impl From<DbErr> for Failed {
    fn from(error: DbErr) -> Self {
        Self::Whole(error)
    }
}

/// Writes all of `writes`, or none; an id stands among them once.
///
/// `root` is recorded in the same transaction where it was not yet, and so is
/// `mark`. The outcomes are in the order of the writes. Where no index says which jobs
/// may be joined, `joinable` does.
pub(super) async fn commit(
    db: &Database,
    writes: &[Rows],
    joinable: Option<&Joinable>,
    root: Option<(RootId, i64)>,
    mark: Option<Mark>,
) -> Result<Vec<Outcome>, Failed> {
    let shared = db.is_shared();
    let transaction = answered(shared, db.begin()).await?;
    match answered(shared, all(&transaction, writes, joinable, root, mark)).await {
        Ok(outcomes) => match answered(shared, transaction.commit()).await {
            Ok(()) => Ok(outcomes),
            Err(error) if shared => Err(Failed::InDoubt(outcomes, error)),
            Err(error) => Err(Failed::Whole(error)),
        },
        Err(error) => {
            // What went wrong is told; a failing rollback adds nothing to it. One that
            // nobody may answer is left to the pool.
            if !(shared && in_doubt()) {
                let _ = answered(shared, transaction.rollback()).await;
            }
            Err(error)
        }
    }
}

/// A file answers; a server may fall silent.
async fn answered<T, E: From<DbErr>>(shared: bool, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    if shared { within(work).await } else { work.await }
}

async fn all(
    db: &Transaction,
    writes: &[Rows],
    joinable: Option<&Joinable>,
    root: Option<(RootId, i64)>,
    marked: Option<Mark>,
) -> Result<Vec<Outcome>, Failed> {
    let (mut jobs, mut requests, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let (mut texts, mut attempts, mut updates) = (Vec::new(), Vec::new(), Vec::new());
    let Settled { existing, mut start_keys, joins } = settle(db, writes, joinable).await?;
    for (place, write) in writes.iter().enumerate() {
        match write {
            Rows::Insert { .. } if existing.contains_key(&place) => {}
            Rows::Insert { job, request, labels: more, text, attempt, .. } => {
                attempts.extend(attempt.as_deref().cloned());
                jobs.push(job);
                requests.push(request.clone());
                labels.extend(more.iter().cloned());
                texts.extend(text.clone());
            }
            Rows::Update { from, job, .. } => updates.push((*from, job)),
            Rows::Delete(_) | Rows::Reseal { .. } => {}
        }
    }
    if let Some((id, first_used_at)) = root.filter(|_| !requests.is_empty()) {
        let row = root_key::Model { id: id.to_vec(), first_used_at, identity: None };
        let known = OnConflict::column(root_key::Column::Id).do_nothing().to_owned();
        insert::<root_key::ActiveModel, _>(db, vec![row], Some(known)).await?;
    }
    if db.is_shared() {
        // Who takes locks in the same order as all others waits for none in a circle.
        jobs.sort_unstable_by(|one, other| (&one.merge_key, &one.id).cmp(&(&other.merge_key, &other.id)));
        start_keys.sort_unstable_by(|one, other| {
            (&one.caller, &one.key_hash).cmp(&(&other.caller, &other.key_hash))
        });
        updates.sort_unstable_by(|(_, one), (_, other)| one.id.cmp(&other.id));
    }
    let fresh = jobs.into_iter().map(fresh).collect();
    insert(db, fresh, None).await.map_err(overtaken_by("job_merge_key"))?;
    insert::<job_request::ActiveModel, _>(db, requests, None).await?;
    insert::<job_label::ActiveModel, _>(db, labels, None).await?;
    insert::<start_key::ActiveModel, _>(db, start_keys, None).await.map_err(overtaken_by(""))?;
    join(db, joins).await?;
    let won = update(db, &updates).await?;
    let (mut closed, mut wiped) = (Vec::new(), Vec::new());
    let mut outcomes = Vec::with_capacity(writes.len());
    for (place, write) in writes.iter().enumerate() {
        outcomes.push(match write {
            Rows::Insert { .. } => existing.get(&place).map_or(Outcome::Done, |job| Outcome::Existing(*job)),
            Rows::Delete(_) => Outcome::Lost, // unless there is something to erase, below
            Rows::Reseal { from, request } => match reseal(db, *from, request).await? {
                true => Outcome::Done,
                false => Outcome::Lost,
            },
            Rows::Update { job, .. } if !won.contains(&job.id) => Outcome::Lost,
            Rows::Update { job, closed: now, wipe, text, attempt, .. } => {
                if *wipe {
                    wiped.push(job.id.clone());
                }
                if *now {
                    closed.push(job.id.clone());
                }
                texts.extend(text.clone());
                attempts.extend(attempt.clone());
                Outcome::Done
            }
        });
    }
    close(db, closed).await?;
    wipe(db, wiped).await?;
    insert::<job_text::ActiveModel, _>(db, texts, Some(replace::<job_text::Entity>(&["job_id"]))).await?;
    let newer = replace::<attempt::Entity>(&["job_id", "attempt"]);
    insert::<attempt::ActiveModel, _>(db, attempts, Some(newer)).await?;
    // In the end, so that nothing is left of a job that changed in the same transaction.
    for (write, outcome) in writes.iter().zip(&mut outcomes) {
        if let Rows::Delete(ids) = write
            && delete(db, ids).await? > 0
        {
            *outcome = Outcome::Done;
        }
    }
    if let Some(marked) = marked {
        mark(db, marked).await?;
    }
    Ok(outcomes)
}

/// Another node stored a key of the same name first. A key of jobs that is there
/// twice for another reason stays an error.
fn overtaken_by(key: &'static str) -> impl Fn(DbErr) -> Failed {
    move |error| if violates(&error, key) { Failed::Overtaken } else { Failed::Whole(error) }
}

/// Counts who joined. What runs is owned by its process, which raises the revision
/// itself.
async fn join(db: &Transaction, joins: BTreeMap<Vec<u8>, Joins>) -> Result<(), Failed> {
    const TEXT: &str = r#"UPDATE "job" SET merged_count = merged_count + ?,
        changed_at = (CASE WHEN changed_at < ? THEN ? ELSE changed_at END),
        revision = revision + (CASE WHEN state < 3 THEN 1 ELSE 0 END) WHERE id = ? AND "#;
    for (id, Joins { count, key, at }) in joins {
        let mut values: Vec<Value> = vec![count.into(), at.into(), at.into(), id.into()];
        let open = match &key {
            Some(_) => "merge_key = ?",
            None => "state < 4",
        };
        values.extend(key.map(Value::from));
        let text = [TEXT, open].concat();
        let done = db.execute_raw(statement(db.get_database_backend(), text, values)).await?;
        // Ended or begun since it was found; the count tells, since the row changes.
        if done.rows_affected() == 0 {
            return Err(Failed::Overtaken);
        }
    }
    Ok(())
}

/// No later Start joins these any more.
async fn close(db: &Transaction, ids: Vec<Vec<u8>>) -> Result<(), DbErr> {
    if ids.is_empty() {
        return Ok(());
    }
    let free = job::Entity::update_many()
        .col_expr(job::Column::MergeKey, Expr::value(Option::<Vec<u8>>::None))
        .filter(job::Column::Id.is_in(ids))
        .filter(job::Column::MergeKey.is_not_null());
    free.exec(db).await.map(|_| ())
}

/// The credentials of these are not needed any more.
async fn wipe(db: &Transaction, ids: Vec<Vec<u8>>) -> Result<(), DbErr> {
    if ids.is_empty() {
        return Ok(());
    }
    let wipe = job_request::Entity::update_many()
        .col_expr(job_request::Column::Credentials, Expr::value(Option::<Vec<u8>>::None))
        .filter(job_request::Column::JobId.is_in(ids));
    wipe.exec(db).await.map(|_| ())
}

/// Erases those of these jobs that are final, with all that belongs to them, and
/// says how many that were.
async fn delete(db: &Transaction, ids: &[Vec<u8>]) -> Result<usize, DbErr> {
    let marks = vec!["?"; ids.len()].join(", ");
    let values = || ids.iter().map(|id| Value::from(id.clone()));
    let text = format!(r#"DELETE FROM "job" WHERE id IN ({marks}) AND state >= 4 RETURNING id"#);
    let gone = db.query_all_raw(statement(db.get_database_backend(), text, values())).await?;
    let gone: Vec<Vec<u8>> = gone.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?;
    if gone.is_empty() {
        return Ok(0);
    }
    let of = || gone.iter().cloned();
    job_request::Entity::delete_many().filter(job_request::Column::JobId.is_in(of())).exec(db).await?;
    job_label::Entity::delete_many().filter(job_label::Column::JobId.is_in(of())).exec(db).await?;
    job_text::Entity::delete_many().filter(job_text::Column::JobId.is_in(of())).exec(db).await?;
    attempt::Entity::delete_many().filter(attempt::Column::JobId.is_in(of())).exec(db).await?;
    start_key::Entity::delete_many().filter(start_key::Column::JobId.is_in(of())).exec(db).await?;
    Ok(gone.len())
}

/// Without what is NULL: most of a new job is, and a column that no row of a
/// statement has is left out of it.
fn fresh(job: &job::Model) -> job::ActiveModel {
    let mut row = job.clone().into_active_model();
    for column in job::Column::iter() {
        if row.get(column).as_ref() == &row.get(column).as_ref().as_null() {
            row.not_set(column);
        }
    }
    row
}

/// On a conflict of `key` every other column is written over.
fn replace<E: EntityTrait>(key: &[&'static str]) -> OnConflict {
    use sea_orm::IdenStatic as _;
    let others = E::Column::iter().filter(|column| !key.contains(&column.as_str()));
    OnConflict::columns(key.iter().copied()).update_columns(others).to_owned()
}

/// Inserts rows, as many in a statement as can be bound.
async fn insert<A, M>(
    db: &Transaction,
    mut rows: Vec<M>,
    on_conflict: Option<OnConflict>,
) -> Result<(), DbErr>
where
    A: ActiveModelTrait + ActiveModelBehavior,
    M: IntoActiveModel<A>,
{
    let columns = <A::Entity as EntityTrait>::Column::iter().count();
    let most = dialect::bound(db.get_database_backend()) / columns;
    while !rows.is_empty() {
        let rest = rows.split_off(rows.len().min(most));
        let some = std::mem::replace(&mut rows, rest);
        let mut insert = A::Entity::insert_many(some.into_iter().map(IntoActiveModel::into_active_model));
        if let Some(on_conflict) = &on_conflict {
            insert = insert.on_conflict(on_conflict.clone());
        }
        insert.exec_without_returning(db).await?;
    }
    Ok(())
}

/// Compares and sets: writes each job whose stored revision is the one it was
/// changed from, and says which.
async fn update(db: &Transaction, updates: &[(i64, &job::Model)]) -> Result<HashSet<Vec<u8>>, DbErr> {
    let backend = db.get_database_backend();
    if backend == DbBackend::MySql {
        return replace_locked(db, updates).await;
    }
    let mut won = HashSet::with_capacity(updates.len());
    for updates in updates.chunks(dialect::bound(backend) / (CHANGED.len() + 2)) {
        let mut values = Vec::with_capacity(updates.len() * (CHANGED.len() + 2));
        for (from, job) in updates {
            values.extend(row_values(*from, job));
        }
        let text = update_text(backend, updates.len(), &values[..CHANGED.len() + 2]);
        for row in db.query_all_raw(statement(backend, text, values)).await? {
            won.insert(row.try_get_by_index(0)?);
        }
    }
    Ok(won)
}

/// Those of one row of [`update_text`].
pub(super) fn row_values(from: i64, job: &job::Model) -> impl Iterator<Item = Value> {
    [job.id.clone().into(), from.into()].into_iter().chain(changed(job))
}

/// `first` are the values of the first row: by them PostgreSQL is told the types.
pub(super) fn update_text(backend: DbBackend, rows: usize, first: &[Value]) -> String {
    let row = format!("({})", vec!["?"; CHANGED.len() + 2].join(", "));
    let mut values = vec![row.as_str(); rows];
    let typed;
    if backend == DbBackend::Postgres {
        let marks = first.iter().map(|value| format!("?{}", dialect::cast(value)));
        typed = format!("({})", marks.collect::<Vec<_>>().join(", "));
        values[0] = &typed;
    }
    format!(
        r#"WITH v(id, from_revision, {columns}) AS (VALUES {values})
        UPDATE "job" SET {set} FROM v
        WHERE "job".id = v.id AND "job".revision = v.from_revision RETURNING "job".id"#,
        columns = CHANGED.join(", "),
        values = values.join(", "),
        set = CHANGED.iter().map(|column| format!("{column} = v.{column}")).collect::<Vec<_>>().join(", "),
    )
}

/// The same where an update can tell nothing of what it did: the rows are locked,
/// compared here, and then written by their ids.
async fn replace_locked(db: &Transaction, updates: &[(i64, &job::Model)]) -> Result<HashSet<Vec<u8>>, DbErr> {
    let (mut won, backend) = (HashSet::with_capacity(updates.len()), db.get_database_backend());
    if updates.is_empty() {
        return Ok(won);
    }
    let marks = vec!["?"; updates.len()].join(", ");
    let text = format!(r#"SELECT id, revision FROM "job" WHERE id IN ({marks}) ORDER BY id FOR UPDATE"#);
    let ids = updates.iter().map(|(_, job)| Value::from(job.id.clone()));
    let mut stored: HashMap<Vec<u8>, i64> = HashMap::with_capacity(updates.len());
    for row in db.query_all_raw(statement(backend, text, ids)).await? {
        stored.insert(row.try_get_by_index(0)?, row.try_get_by_index(1)?);
    }
    let mut rows = Vec::with_capacity(updates.len());
    for (from, job) in updates {
        if stored.get(&job.id) == Some(from) {
            won.insert(job.id.clone());
            rows.push((*job).clone());
        }
    }
    let known = OnConflict::column(job::Column::Id).update_columns(CHANGED.iter().copied()).to_owned();
    insert::<job::ActiveModel, _>(db, rows, Some(known)).await?;
    Ok(won)
}
