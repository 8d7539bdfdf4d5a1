//! Group commit: what waits while one transaction commits is the next one.

use super::{
    Error, Outcome, Queued, Update, Write,
    entity::{attempt, job, job_label, job_request, job_text},
    rows,
};
use crate::{
    clock::Clock,
    job::{JobId, State},
    secret::{self, Keyring},
};
use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait, IdenStatic as _,
    Iterable as _, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _, Value,
    sea_query::OnConflict,
};
use std::{
    collections::{HashSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// Rows of one statement, at most: SQLite binds 32,766 values, a job has 27.
const ROWS: usize = 400;
/// Between two looks whether a database that failed is back.
const PROBE: Duration = Duration::from_secs(1);

/// The one who writes.
pub(super) struct Writer {
    pub(super) connection: DatabaseConnection,
    pub(super) keys: Arc<Keyring>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) batch: usize,
    pub(super) healthy: Arc<AtomicBool>,
}

impl Writer {
    /// Writes until `close`, and then what is still queued.
    pub(super) async fn run(self, mut waiting: mpsc::Receiver<Queued>, mut close: watch::Receiver<bool>) {
        let mut held = VecDeque::new();
        let mut open = true;
        let told = async move {
            let _ = close.wait_for(|close| *close).await; // or the store is gone
        };
        tokio::pin!(told);
        loop {
            if held.is_empty() {
                tokio::select! {
                    biased;
                    first = waiting.recv() => match first {
                        Some(first) => held.push_back(first),
                        None => break,
                    },
                    () = &mut told, if open => {
                        open = false;
                        waiting.close();
                        continue;
                    }
                    () = tokio::time::sleep(PROBE), if !self.healthy.load(Ordering::Acquire) => {
                        self.probe().await;
                        continue;
                    }
                }
            }
            while held.len() < self.batch
                && let Ok(next) = waiting.try_recv()
            {
                held.push_back(next);
            }
            let batch = take_batch(&mut held, self.batch);
            if !batch.is_empty() {
                self.commit(batch).await;
            }
        }
        let _ = self.connection.close().await; // what was acknowledged is on the disk already
    }

    async fn probe(&self) {
        let probed = self.connection.execute_unprepared("BEGIN IMMEDIATE; ROLLBACK").await;
        self.healthy.store(probed.is_ok(), Ordering::Release);
    }

    /// Commits all as one; if that fails, each alone.
    async fn commit(&self, batch: Vec<Queued>) {
        let (writes, dones): (Vec<Write>, Vec<_>) = batch.into_iter().unzip();
        match self.transact(&writes).await {
            Ok(outcomes) => {
                self.healthy.store(true, Ordering::Release);
                for (done, outcome) in dones.into_iter().zip(outcomes) {
                    tell(done, Ok(outcome));
                }
            }
            Err(error) if writes.len() == 1 => self.failed(dones, error),
            Err(_) => {
                for (write, done) in writes.into_iter().zip(dones) {
                    match self.transact(std::slice::from_ref(&write)).await {
                        Ok(outcomes) => {
                            self.healthy.store(true, Ordering::Release);
                            tell(done, Ok(outcomes.first().copied().unwrap_or(Outcome::Lost)));
                        }
                        Err(error) => self.failed(vec![done], error),
                    }
                }
            }
        }
    }

    fn failed(&self, dones: Vec<super::Done>, error: Error) {
        if error.is_transient() {
            tracing::error!(%error, "a transaction failed");
            self.healthy.store(false, Ordering::Release);
        }
        for done in dones {
            tell(done, Err(error.clone()));
        }
    }

    async fn transact(&self, writes: &[Write]) -> Result<Vec<Outcome>, Error> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let transaction = self.connection.begin_with_options(options).await?;
        let outcomes = self.write(&transaction, writes).await;
        match outcomes {
            Ok(outcomes) => {
                transaction.commit().await?;
                Ok(outcomes)
            }
            Err(error) => {
                let _ = transaction.rollback().await; // the error says more
                Err(error)
            }
        }
    }

    async fn write(
        &self,
        transaction: &DatabaseTransaction,
        writes: &[Write],
    ) -> Result<Vec<Outcome>, Error> {
        self.insert(transaction, writes).await?;
        let updates: Vec<&Update> = writes
            .iter()
            .filter_map(|write| match write {
                Write::Update(update) => Some(&**update),
                Write::Insert(_) => None,
            })
            .collect();
        let mut won = HashSet::new();
        for some in updates.chunks(ROWS) {
            won.extend(compare_and_set(transaction, some).await?);
        }
        let (mut texts, mut attempts) = (Vec::new(), Vec::new());
        for update in updates {
            if !won.contains(&update.record.id) {
                continue;
            }
            if update.text {
                texts.push(rows::text_row(&update.record));
            }
            attempts.extend(update.attempt.as_ref().map(|row| rows::attempt_row(update.record.id, row)));
        }
        upsert::<job_text::Entity>(transaction, texts, &[job_text::Column::JobId]).await?;
        let keys = [attempt::Column::JobId, attempt::Column::Attempt];
        upsert::<attempt::Entity>(transaction, attempts, &keys).await?;
        let outcome = |write: &Write| match write {
            Write::Update(update) if !won.contains(&update.record.id) => Outcome::Lost,
            Write::Insert(_) | Write::Update(_) => Outcome::Done,
        };
        Ok(writes.iter().map(outcome).collect())
    }

    async fn insert(&self, transaction: &DatabaseTransaction, writes: &[Write]) -> Result<(), Error> {
        let (mut jobs, mut requests, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        let root = self.keys.current();
        for write in writes {
            let Write::Insert(new) = write else { continue };
            let mut nonce = [0; secret::NONCE];
            self.clock.random(&mut nonce);
            let plain = rows::pack(&new.payload)?;
            let sealed = secret::seal(root, &new.record.id.to_bytes(), &plain, nonce);
            jobs.push(rows::job_row(&new.record));
            requests.push(rows::request_row(&new.record, root.id(), sealed)?);
            labels.extend(rows::labels(&new.record));
        }
        insert_all::<job::Entity>(transaction, jobs).await?;
        insert_all::<job_request::Entity>(transaction, requests).await?;
        insert_all::<job_label::Entity>(transaction, labels).await
    }
}

/// The next transaction: in the order of the queue, no job twice.
fn take_batch(held: &mut VecDeque<Queued>, most: usize) -> Vec<Queued> {
    let mut seen: HashSet<JobId> = HashSet::new();
    let (mut batch, mut later) = (Vec::new(), VecDeque::new());
    while batch.len() < most
        && let Some(next) = held.pop_front()
    {
        let id = match &next.0 {
            Write::Insert(new) => new.record.id,
            Write::Update(update) => update.record.id,
        };
        if seen.insert(id) { batch.push(next) } else { later.push_back(next) }
    }
    later.append(held);
    *held = later;
    batch
}

/// A panic in a callback must not end the writer.
fn tell(done: super::Done, result: Result<Outcome, Error>) {
    if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
        tracing::error!("what follows from a write panicked");
    }
}

async fn insert_all<E>(transaction: &DatabaseTransaction, rows: Vec<E::ActiveModel>) -> Result<(), Error>
where
    E: EntityTrait,
    E::ActiveModel: sea_orm::ActiveModelTrait<Entity = E>,
{
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let some: Vec<_> = rows.by_ref().take(ROWS).collect();
        E::insert_many(some).exec_without_returning(transaction).await?;
    }
    Ok(())
}

async fn upsert<E>(
    transaction: &DatabaseTransaction,
    rows: Vec<E::ActiveModel>,
    keys: &[E::Column],
) -> Result<(), Error>
where
    E: EntityTrait,
    E::ActiveModel: sea_orm::ActiveModelTrait<Entity = E>,
{
    let others: Vec<E::Column> =
        E::Column::iter().filter(|column| !keys.iter().any(|key| key.as_str() == column.as_str())).collect();
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let some: Vec<_> = rows.by_ref().take(ROWS).collect();
        let conflict =
            OnConflict::columns(keys.iter().copied()).update_columns(others.iter().copied()).to_owned();
        E::insert_many(some).on_conflict(conflict).exec_without_returning(transaction).await?;
    }
    Ok(())
}

/// Which of the updates found the row as they expected it: one statement for
/// all of them.
async fn compare_and_set(
    transaction: &DatabaseTransaction,
    updates: &[&Update],
) -> Result<Vec<JobId>, Error> {
    if updates.is_empty() {
        return Ok(Vec::new());
    }
    let columns = rows::CHANGING;
    let row = format!("({})", vec!["?"; columns.len() + 2].join(", "));
    let set: Vec<String> = columns.iter().map(|column| format!("{column} = v.{column}")).collect();
    let sql = format!(
        "WITH v (id, from_revision, {}) AS (VALUES {}) UPDATE job SET {} FROM v \
         WHERE job.id = v.id AND job.revision = v.from_revision RETURNING job.id AS id",
        columns.join(", "),
        vec![row.as_str(); updates.len()].join(", "),
        set.join(", "),
    );
    let mut values: Vec<Value> = Vec::with_capacity(updates.len() * (columns.len() + 2));
    for update in updates {
        let job = &update.record.job;
        let owner = match (&job.state, &update.attempt) {
            (State::Running(_), Some(row)) => Some(row.node.as_str()),
            _ => None,
        };
        values.push(update.record.id.to_bytes().to_vec().into());
        values.push(update.from.stored().into());
        values.extend(rows::changing(job, owner));
    }
    let statement = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
    let mut won = Vec::with_capacity(updates.len());
    for row in transaction.query_all_raw(statement).await? {
        let id: Vec<u8> = row.try_get("", "id").map_err(Error::from)?;
        won.push(rows::id(&id)?);
    }
    Ok(won)
}
