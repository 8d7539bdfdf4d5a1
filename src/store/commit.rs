//! One transaction: one statement for a table, whatever the number of writes.

use super::{
    entity::{attempt, job, job_label, job_request, job_text, root_key, start_key},
    existing::{Settled, settle},
    roots::reseal,
    write::{Outcome, Rows},
};
use crate::secret::RootId;
use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait, ColumnTrait as _, ConnectionTrait, DatabaseConnection,
    DatabaseTransaction, DbBackend, DbErr, EntityTrait, IntoActiveModel, Iterable as _, QueryFilter as _,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _, Value,
    sea_query::{Expr, OnConflict},
};
use std::collections::{BTreeMap, HashSet};

/// Values that SQLite binds in one statement, at most.
const BOUND: usize = 32_766;

/// Columns of `job` that an update writes, after `id` and `from_revision`.
const CHANGED: [&str; 19] = [
    "state",
    "revision",
    "attempt",
    "owner",
    "progress",
    "done",
    "total",
    "unit",
    "stage",
    "scheduled_at",
    "started_at",
    "updated_at",
    "changed_at",
    "ended_at",
    "give_up_at",
    "cancel_requested",
    "failure_reason",
    "failure_message",
    "failure_status",
];

/// In the order of [`CHANGED`].
fn changed(job: &job::Model) -> [Value; CHANGED.len()] {
    [
        job.state.into(),
        job.revision.into(),
        job.attempt.into(),
        job.owner.clone().into(),
        job.progress.into(),
        job.done.into(),
        job.total.into(),
        job.unit.clone().into(),
        job.stage.clone().into(),
        job.scheduled_at.into(),
        job.started_at.into(),
        job.updated_at.into(),
        job.changed_at.into(),
        job.ended_at.into(),
        job.give_up_at.into(),
        job.cancel_requested.into(),
        job.failure_reason.into(),
        job.failure_message.clone().into(),
        job.failure_status.into(),
    ]
}

/// Writes all of `writes`, or none; an id stands among them once.
///
/// `root` is recorded in the same transaction where it was not yet. The
/// outcomes are in the order of the writes.
pub(super) async fn commit(
    db: &DatabaseConnection,
    writes: &[Rows],
    root: Option<(RootId, i64)>,
) -> Result<Vec<Outcome>, DbErr> {
    let immediate = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let transaction = db.begin_with_options(immediate).await?;
    match all(&transaction, writes, root).await {
        Ok(outcomes) => transaction.commit().await.map(|()| outcomes),
        Err(error) => {
            // What went wrong is told; a failing rollback adds nothing to it.
            let _ = transaction.rollback().await;
            Err(error)
        }
    }
}

async fn all(
    db: &DatabaseTransaction,
    writes: &[Rows],
    root: Option<(RootId, i64)>,
) -> Result<Vec<Outcome>, DbErr> {
    let (mut jobs, mut requests, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let (mut texts, mut attempts, mut updates) = (Vec::new(), Vec::new(), Vec::new());
    let Settled { existing, start_keys, joins } = settle(db, writes).await?;
    for (place, write) in writes.iter().enumerate() {
        match write {
            Rows::Insert { .. } if existing.contains_key(&place) => {}
            Rows::Insert { job, request, labels: more, text, .. } => {
                jobs.push(fresh(job));
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
    insert(db, jobs, None).await?;
    insert::<job_request::ActiveModel, _>(db, requests, None).await?;
    insert::<job_label::ActiveModel, _>(db, labels, None).await?;
    insert::<start_key::ActiveModel, _>(db, start_keys, None).await?;
    join(db, joins).await?;
    let won = update(db, &updates).await?;
    let (mut closed, mut wiped) = (Vec::new(), Vec::new());
    let mut outcomes = Vec::with_capacity(writes.len());
    for (place, write) in writes.iter().enumerate() {
        outcomes.push(match write {
            Rows::Insert { .. } => existing.get(&place).map_or(Outcome::Done, |job| Outcome::Existing(*job)),
            Rows::Delete(ids) if delete(db, ids).await? == 0 => Outcome::Lost,
            Rows::Delete(_) => Outcome::Done,
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
    Ok(outcomes)
}

/// Counts who joined. What runs is owned by its process, which raises the revision
/// itself.
async fn join(db: &DatabaseTransaction, joins: BTreeMap<Vec<u8>, i64>) -> Result<(), DbErr> {
    const TEXT: &str = "UPDATE job SET merged_count = merged_count + ?, \
        revision = revision + (CASE WHEN state < 3 THEN 1 ELSE 0 END) WHERE id = ?";
    for (id, count) in joins {
        let values = [count.into(), id.into()];
        db.execute_raw(Statement::from_sql_and_values(DbBackend::Sqlite, TEXT, values)).await?;
    }
    Ok(())
}

/// No later Start joins these any more.
async fn close(db: &DatabaseTransaction, ids: Vec<Vec<u8>>) -> Result<(), DbErr> {
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
async fn wipe(db: &DatabaseTransaction, ids: Vec<Vec<u8>>) -> Result<(), DbErr> {
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
async fn delete(db: &DatabaseTransaction, ids: &[Vec<u8>]) -> Result<usize, DbErr> {
    let marks = vec!["?"; ids.len()].join(", ");
    let values = || ids.iter().map(|id| Value::from(id.clone()));
    let text = format!("DELETE FROM job WHERE id IN ({marks}) AND state >= 4 RETURNING id");
    let gone = db.query_all_raw(Statement::from_sql_and_values(DbBackend::Sqlite, text, values())).await?;
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
    db: &DatabaseTransaction,
    mut rows: Vec<M>,
    on_conflict: Option<OnConflict>,
) -> Result<(), DbErr>
where
    A: ActiveModelTrait + ActiveModelBehavior,
    M: IntoActiveModel<A>,
{
    let columns = <A::Entity as EntityTrait>::Column::iter().count();
    let most = BOUND / columns;
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
async fn update(db: &DatabaseTransaction, updates: &[(i64, &job::Model)]) -> Result<HashSet<Vec<u8>>, DbErr> {
    let mut won = HashSet::with_capacity(updates.len());
    for updates in updates.chunks(BOUND / (CHANGED.len() + 2)) {
        let mut values = Vec::with_capacity(updates.len() * (CHANGED.len() + 2));
        for (from, job) in updates {
            values.push(job.id.clone().into());
            values.push((*from).into());
            values.extend(changed(job));
        }
        let statement = Statement::from_sql_and_values(DbBackend::Sqlite, update_text(updates.len()), values);
        for row in db.query_all_raw(statement).await? {
            won.insert(row.try_get_by_index(0)?);
        }
    }
    Ok(won)
}

pub(super) fn update_text(rows: usize) -> String {
    let row = format!("({})", vec!["?"; CHANGED.len() + 2].join(", "));
    format!(
        "WITH v(id, from_revision, {columns}) AS (VALUES {values}) \
         UPDATE job SET {set} FROM v \
         WHERE job.id = v.id AND job.revision = v.from_revision RETURNING job.id",
        columns = CHANGED.join(", "),
        values = vec![row.as_str(); rows].join(", "),
        set = CHANGED.map(|column| format!("{column} = v.{column}")).join(", "),
    )
}
