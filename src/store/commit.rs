//! One transaction: one statement for a table, whatever the number of writes.

use super::{
    entity::{attempt, job, job_label, job_request, job_text, root_key},
    write::{Outcome, Rows},
};
use crate::secret::RootId;
use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction,
    DbBackend, DbErr, EntityTrait, IntoActiveModel, Iterable as _, SqliteTransactionMode, Statement,
    TransactionOptions, TransactionTrait as _, Value, sea_query::OnConflict,
};
use std::collections::HashSet;

/// Values that SQLite binds in one statement, at most.
const BOUND: usize = 32_766;

/// Columns of `job` that an update writes, after `id` and `from_revision`.
const CHANGED: [&str; 20] = [
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
    "merged_count",
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
        job.merged_count.into(),
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
    for write in writes {
        match write {
            Rows::Insert { job, request, labels: more, text } => {
                jobs.push(fresh(job));
                requests.push(request.clone());
                labels.extend(more.iter().cloned());
                texts.extend(text.clone());
            }
            Rows::Update { from, job, .. } => updates.push((*from, job)),
        }
    }
    if let Some((id, first_used_at)) = root.filter(|_| !requests.is_empty()) {
        let row = root_key::Model { id: id.to_vec(), first_used_at };
        let known = OnConflict::column(root_key::Column::Id).do_nothing().to_owned();
        insert::<root_key::ActiveModel, _>(db, vec![row], Some(known)).await?;
    }
    insert(db, jobs, None).await?;
    insert::<job_request::ActiveModel, _>(db, requests, None).await?;
    insert::<job_label::ActiveModel, _>(db, labels, None).await?;
    let won = update(db, &updates).await?;
    let mut outcomes = Vec::with_capacity(writes.len());
    for write in writes {
        outcomes.push(match write {
            Rows::Insert { .. } => Outcome::Done,
            Rows::Update { job, .. } if !won.contains(&job.id) => Outcome::Lost,
            Rows::Update { text, attempt, .. } => {
                texts.extend(text.clone());
                attempts.extend(attempt.clone());
                Outcome::Done
            }
        });
    }
    insert::<job_text::ActiveModel, _>(db, texts, Some(replace::<job_text::Entity>(&["job_id"]))).await?;
    let newer = replace::<attempt::Entity>(&["job_id", "attempt"]);
    insert::<attempt::ActiveModel, _>(db, attempts, Some(newer)).await?;
    Ok(outcomes)
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
