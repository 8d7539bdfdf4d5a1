//! What changed of late, for those who watch on other nodes.
//!
//! The truth is in the rows, and read again and again: transactions become visible
//! out of order, so who reads begins some seconds before what it saw last, and
//! compares revisions. Notifications only make it faster, and may be lost.

use super::{
    Error, Store,
    entity::job,
    row,
    select::{self, col},
};
use crate::job::{JobId, Record, Revision, StateName};
use sea_orm::{
    DbBackend,
    sea_query::{Expr, ExprTrait as _, Order, Query, SelectStatement},
};

/// A job, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The job.
    pub id: JobId,
    /// Its revision.
    pub revision: Revision,
    /// When its row changed, UTC milliseconds, as its writer gave it.
    pub changed_at: i64,
}

fn changes() -> SelectStatement {
    let mut select = Query::select();
    let columns = [job::Column::Id, job::Column::Revision, job::Column::ChangedAt];
    select.columns(columns.map(|column| (job::Entity, column))).from(job::Entity);
    select
}

pub(super) fn changed_since(at: i64, after: Option<(i64, JobId)>, backend: DbBackend) -> SelectStatement {
    let mut select = changes();
    let at = after.map_or(at, |(last, _)| Ord::max(last, at));
    select
        .and_where(col(job::Column::ChangedAt).gte(at))
        .order_by((job::Entity, job::Column::ChangedAt), Order::Asc)
        .order_by((job::Entity, job::Column::Id), Order::Asc);
    if let Some((last, id)) = after {
        let (time, key) = (col(job::Column::ChangedAt), col(job::Column::Id));
        let id = id.to_bytes().to_vec();
        if backend == DbBackend::MySql {
            select.and_where(time.gt(last).or(key.gt(id)));
        } else {
            select.and_where(Expr::tuple([time, key]).gt(Expr::tuple([Expr::val(last), Expr::val(id)])));
        }
    }
    select
}

pub(super) fn running_of(owner: &str) -> SelectStatement {
    let mut select = select::records(true);
    select
        .and_where(super::list::live())
        .and_where(col(job::Column::State).eq(i64::from(StateName::Running.number())))
        .and_where(col(job::Column::Owner).eq(owner));
    select
}

pub(super) fn owners() -> SelectStatement {
    let mut select = Query::select();
    select
        .distinct()
        .column((job::Entity, job::Column::Owner))
        .from(job::Entity)
        .and_where(super::list::live())
        .and_where(col(job::Column::State).eq(i64::from(StateName::Running.number())))
        .and_where(col(job::Column::Owner).is_not_null());
    select
}

/// Ids in one statement.
const CHUNK: usize = 500;

impl Store {
    /// Jobs whose row changed at `at` or later, by (`changed_at`, id); with `after`,
    /// those beyond it: the last of the page before. There is an index for it where
    /// there may be other nodes.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`].
    pub async fn changed_since(
        &self,
        at: i64,
        after: Option<(i64, JobId)>,
        limit: u64,
    ) -> Result<Vec<Change>, Error> {
        self.changes(&changed_since(at, after, self.backend()), Some(limit)).await
    }

    /// How far those of these jobs are that exist, in no order.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`].
    pub async fn revisions(&self, ids: &[JobId]) -> Result<Vec<Change>, Error> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(CHUNK) {
            let mut select = changes();
            select.and_where(col(job::Column::Id).is_in(ids.iter().map(|id| id.to_bytes().to_vec())));
            found.extend(self.changes(&select, None).await?);
        }
        Ok(found)
    }

    /// RUNNING jobs of a node, with their text, in no order: those to be adopted once
    /// it is dead. [`super::Update::from`] is what makes one adopter of many.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`] if one of them is.
    pub async fn running_of(&self, owner: &str, limit: Option<u64>) -> Result<Vec<Record>, Error> {
        select::fetch(self.reader(), &running_of(owner), true, limit).await
    }

    /// Which node owns a job; none if it does not run, or is not there.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn owner(&self, id: JobId) -> Result<Option<String>, Error> {
        let mut select = Query::select();
        select
            .column((job::Entity, job::Column::Owner))
            .from(job::Entity)
            .and_where(col(job::Column::Id).eq(id.to_bytes().to_vec()));
        let found = select::run(self.reader(), &select, None).await?;
        Ok(found.first().map(|row| row.try_get_by_index(0)).transpose()?.flatten())
    }

    /// The nodes that own what runs, each once.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn owners(&self) -> Result<Vec<String>, Error> {
        let found = select::run(self.reader(), &owners(), None).await?;
        found.iter().map(|row| Ok(row.try_get_by_index(0)?)).collect()
    }

    async fn changes(&self, select: &SelectStatement, limit: Option<u64>) -> Result<Vec<Change>, Error> {
        let found = select::run(self.reader(), select, limit).await?;
        let read = |found: &sea_orm::QueryResult| {
            Ok(Change {
                id: row::job_id(&found.try_get_by_index::<Vec<u8>>(0)?)?,
                revision: Revision::from_stored(found.try_get_by_index(1)?),
                changed_at: found.try_get_by_index(2)?,
            })
        };
        found.iter().map(read).collect()
    }
}
