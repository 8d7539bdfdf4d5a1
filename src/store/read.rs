//! What the engine reads.

use super::{
    Error, Store,
    entity::{attempt, job, job_request, start_key},
    list::live,
    payload, row,
    select::{self, col},
    write::{AttemptRow, Ended, Existing, StartKey},
};
use crate::job::{JobId, Payload, Record, StateName};
use crate::secret::{Keyring, RootId, seal};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    sea_query::{Expr, ExprTrait as _, Func, Order, Query, SelectStatement},
};

/// Ids in one statement.
const CHUNK: usize = 500;

/// In this state, said in the text: only so an index with a condition is used.
fn is(state: StateName) -> Expr {
    col(job::Column::State).eq(Expr::cust(state.number().to_string()))
}

fn earliest(column: job::Column) -> SelectStatement {
    let mut select = Query::select();
    select.expr_as(Func::min(col(column)), "earliest").from(job::Entity);
    select
}

pub(super) fn due(now: i64) -> SelectStatement {
    let mut select = select::records(false);
    select
        .and_where(is(StateName::Scheduled))
        .and_where(col(job::Column::ScheduledAt).lte(now))
        .order_by((job::Entity, job::Column::ScheduledAt), Order::Asc)
        .order_by((job::Entity, job::Column::Id), Order::Asc);
    select
}

pub(super) fn next_due() -> SelectStatement {
    let mut select = earliest(job::Column::ScheduledAt);
    select.and_where(is(StateName::Scheduled));
    select
}

pub(super) fn claimable(target: &str, except: &[JobId]) -> SelectStatement {
    let mut select = select::records(false);
    select
        .and_where(live())
        .and_where(col(job::Column::State).eq(i64::from(StateName::Queued.number())))
        .and_where(col(job::Column::Target).eq(target))
        .order_by((job::Entity, job::Column::Priority), Order::Desc)
        .order_by((job::Entity, job::Column::ScheduledAt), Order::Asc)
        .order_by((job::Entity, job::Column::Id), Order::Asc);
    if !except.is_empty() {
        select.and_where(col(job::Column::Id).is_not_in(except.iter().map(|id| id.to_bytes().to_vec())));
    }
    select
}

pub(super) fn overdue(now: i64) -> SelectStatement {
    let mut select = select::records(false);
    select
        .and_where(col(job::Column::GiveUpAt).lte(now))
        .order_by((job::Entity, job::Column::GiveUpAt), Order::Asc)
        .order_by((job::Entity, job::Column::Id), Order::Asc);
    select
}

pub(super) fn next_give_up() -> SelectStatement {
    let mut select = earliest(job::Column::GiveUpAt);
    select.and_where(col(job::Column::GiveUpAt).is_not_null());
    select
}

pub(super) fn waiting() -> SelectStatement {
    let mut select = Query::select();
    let waiting = [StateName::Scheduled, StateName::Queued].map(|state| i64::from(state.number()));
    select
        .expr_as(col(job::Column::Id).count(), "waiting")
        .from(job::Entity)
        .and_where(live())
        .and_where(col(job::Column::State).is_in(waiting));
    select
}

pub(super) fn running() -> SelectStatement {
    let mut select = select::records(true);
    select.and_where(live()).and_where(col(job::Column::State).eq(i64::from(StateName::Running.number())));
    select
}

/// The condition of the index `job_ended`.
fn has_ended(select: &mut SelectStatement, state: StateName) {
    select
        .and_where(col(job::Column::EndedAt).is_not_null())
        .and_where(col(job::Column::State).eq(i64::from(state.number())));
}

pub(super) fn ended_before(state: StateName, at: i64) -> SelectStatement {
    let mut select = Query::select();
    select.column((job::Entity, job::Column::Id)).from(job::Entity);
    has_ended(&mut select, state);
    select
        .and_where(col(job::Column::EndedAt).lte(at))
        .order_by((job::Entity, job::Column::EndedAt), Order::Asc);
    select
}

pub(super) fn first_ended(state: StateName) -> SelectStatement {
    let mut select = earliest(job::Column::EndedAt);
    has_ended(&mut select, state);
    select
}

/// What was sealed of a job.
pub(super) fn opened(keys: &Keyring, id: JobId, row: job_request::Model) -> Result<Payload, Error> {
    let root = RootId::try_from(row.root_id).ok().and_then(|root| keys.find(root));
    let root = root.ok_or_else(|| Error::corrupt(id, "sealed with a root key that is not given"))?;
    let plain = seal::open(root, &id.to_bytes(), &row.sealed).map_err(|error| Error::corrupt(id, error))?;
    let mut payload =
        payload::decode(&plain).ok_or_else(|| Error::corrupt(id, "its payload is malformed"))?;
    if let Some(sealed) = row.credentials {
        let plain = seal::open(root, &payload::about_credentials(&id.to_bytes()), &sealed)
            .map_err(|error| Error::corrupt(id, error))?;
        let credentials = payload::decode_credentials(&plain);
        payload.credentials =
            Some(credentials.ok_or_else(|| Error::corrupt(id, "its credentials are malformed"))?);
    }
    Ok(payload)
}

/// Whose key it is.
pub(super) fn started(row: &start_key::Model, key: &StartKey) -> Result<Existing, Error> {
    let id = row::job_id(&row.job_id)?;
    Ok(if row.request_hash == key.request { Existing::Same(id) } else { Existing::Other(id) })
}

impl Store {
    /// Those of these jobs that exist, in no order.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`] if one of them is.
    pub async fn records(&self, ids: &[JobId], text: bool) -> Result<Vec<Record>, Error> {
        simulated!(self, records(ids, text));
        // In a box: calls that may have to read, but seldom do, stay small.
        Box::pin(async move {
            let mut found = Vec::with_capacity(ids.len());
            for ids in ids.chunks(CHUNK) {
                let mut select = select::records(text);
                select.and_where(col(job::Column::Id).is_in(ids.iter().map(|id| id.to_bytes().to_vec())));
                found.extend(select::fetch(self.reader(), &select, text, None).await?);
            }
            Ok(found)
        })
        .await
    }

    /// SCHEDULED jobs whose time has come, the earliest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`] if one of them is.
    pub async fn due(&self, now: i64, limit: u64) -> Result<Vec<Record>, Error> {
        simulated!(self, due(now, limit));
        select::fetch(self.reader(), &due(now), false, Some(limit)).await
    }

    /// How many jobs wait: SCHEDULED or QUEUED.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn waiting(&self) -> Result<u64, Error> {
        simulated!(self, waiting());
        Ok(self.number(&waiting()).await?.and_then(|count| u64::try_from(count).ok()).unwrap_or(0))
    }

    /// When the next SCHEDULED job is due.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn next_due(&self) -> Result<Option<i64>, Error> {
        simulated!(self, next_due());
        self.number(&next_due()).await
    }

    /// QUEUED jobs of a target, the most urgent first: by priority, then by when
    /// they were due, then by id. Those in `except` are passed over.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`] if one of them is.
    pub async fn claimable(&self, target: &str, limit: u64, except: &[JobId]) -> Result<Vec<Record>, Error> {
        simulated!(self, claimable(target, limit, except));
        let select = claimable(target, except);
        select::fetch(self.reader(), &select, false, Some(limit)).await
    }

    /// Waiting jobs whose time is over, the earliest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`] if one of them is.
    pub async fn overdue(&self, now: i64, limit: u64) -> Result<Vec<Record>, Error> {
        simulated!(self, overdue(now, limit));
        select::fetch(self.reader(), &overdue(now), false, Some(limit)).await
    }

    /// When the time of the next waiting job is over.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn next_give_up(&self) -> Result<Option<i64>, Error> {
        simulated!(self, next_give_up());
        self.number(&next_give_up()).await
    }

    /// Jobs that were left RUNNING, in no order.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`] if one of them is.
    pub async fn running(&self) -> Result<Vec<Record>, Error> {
        simulated!(self, running());
        select::fetch(self.reader(), &running(), true, None).await
    }

    /// Jobs that ended so, and not later than `at`, the oldest end first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`].
    pub async fn ended_before(&self, state: StateName, at: i64, limit: u64) -> Result<Vec<JobId>, Error> {
        simulated!(self, ended_before(state, at, limit));
        let found = select::run(self.reader(), &ended_before(state, at), Some(limit)).await?;
        found.iter().map(|found| row::job_id(&found.try_get_by_index::<Vec<u8>>(0)?)).collect()
    }

    /// When the first of the jobs ended that ended so.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn first_ended(&self, state: StateName) -> Result<Option<i64>, Error> {
        simulated!(self, first_ended(state));
        self.number(&first_ended(state)).await
    }

    /// What is sealed of a job; None if there is no such job.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`] if it does not open.
    pub async fn payload(&self, id: JobId) -> Result<Option<Payload>, Error> {
        simulated!(self, payload(id, self.keys()));
        let found = job_request::Entity::find_by_id(id.to_bytes().to_vec()).all(self.reader()).await?;
        found.into_iter().next().map(|row| opened(self.keys(), id, row)).transpose()
    }

    /// Which job was started with this key: that of the same request, or of another
    /// one; None if the key is free.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`].
    pub async fn started_by(&self, key: &StartKey) -> Result<Option<Existing>, Error> {
        simulated!(self, started_by(key));
        let found = start_key::Entity::find_by_id((key.caller.clone(), key.key.to_vec()));
        found.all(self.reader()).await?.first().map(|row| started(row, key)).transpose()
    }

    /// The report that ended an attempt; None if none did.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`].
    pub async fn ended_by(&self, id: JobId, attempt: u32) -> Result<Option<Ended>, Error> {
        simulated!(self, ended_by(id, attempt));
        let key = (id.to_bytes().to_vec(), i64::from(attempt));
        let found = attempt::Entity::find_by_id(key).all(self.reader()).await?;
        let row = found.into_iter().next().map(row::attempt_row).transpose()?;
        Ok(row.and_then(|row| row.ended_by))
    }

    /// The attempts of a job, the first one first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`].
    pub async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRow>, Error> {
        simulated!(self, attempts(id));
        let found = attempt::Entity::find()
            .filter(attempt::Column::JobId.eq(id.to_bytes().to_vec()))
            .order_by_asc(attempt::Column::Attempt)
            .all(self.reader())
            .await?;
        found.into_iter().map(row::attempt_row).collect()
    }

    async fn number(&self, select: &SelectStatement) -> Result<Option<i64>, Error> {
        let found = select::run(self.reader(), select, None).await?;
        match found.first() {
            Some(row) => Ok(row.try_get_by_index(0)?),
            None => Ok(None),
        }
    }
}
