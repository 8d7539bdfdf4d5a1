//! Lists: which jobs, newest first, a page at a time.

use super::{
    Error, Store,
    entity::{job, job_label, job_request},
    select::{self, col},
};
use crate::job::{JobId, Record, StateName};
use sea_orm::DbBackend;
use sea_orm::sea_query::{Expr, ExprTrait as _, Func, Order, Query, SelectStatement};
use std::collections::BTreeMap;

/// Which jobs. All that is given must hold; times in UTC milliseconds.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// Among these.
    pub ids: Option<Vec<JobId>>,
    /// In one of these states; none given means any.
    pub states: Vec<StateName>,
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
    /// With a route that begins so.
    pub route_prefix: Option<String>,
    /// With this target.
    pub target: Option<String>,
    /// Started by the caller with this name.
    pub created_by: Option<String>,
    /// Stored then or later.
    pub created_after: Option<i64>,
    /// Stored before.
    pub created_before: Option<i64>,
    /// Strictly after this one, (`created_at`, id), in the order of the list.
    pub before: Option<(i64, JobId)>,
    /// How many, at most.
    pub limit: u64,
    /// Whether text and output are wanted.
    pub text: bool,
}

impl Store {
    /// The jobs that match, newest first, by (`created_at`, id). A job that is
    /// added later never moves one from one page to another.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`] if one of them is.
    pub async fn list(&self, list: &List) -> Result<Vec<Record>, Error> {
        simulated!(self, list(list));
        select::fetch(self.reader(), &statement(list, self.backend()), list.text, Some(list.limit)).await
    }
}

fn label(column: job_label::Column) -> Expr {
    Expr::col((job_label::Entity, column))
}

pub(super) fn statement(list: &List, backend: DbBackend) -> SelectStatement {
    let mut select = select::records(list.text);
    let mut labels = list.labels.iter();
    // Jobs of a label are found newest first in its index; without one, all
    // jobs are, in theirs.
    let (created_at, id) = match labels.next() {
        Some((name, value)) => {
            select
                .inner_join(
                    job_label::Entity,
                    label(job_label::Column::JobId).equals((job::Entity, job::Column::Id)),
                )
                .and_where(label(job_label::Column::Name).eq(name))
                .and_where(label(job_label::Column::Value).eq(value));
            (label(job_label::Column::CreatedAt), label(job_label::Column::JobId))
        }
        None => (col(job::Column::CreatedAt), col(job::Column::Id)),
    };
    for (name, value) in labels {
        let mut found = Query::select();
        found
            .expr(Expr::cust("1"))
            .from_as(job_label::Entity, "further")
            .and_where(
                Expr::col(("further", job_label::Column::JobId)).equals((job::Entity, job::Column::Id)),
            )
            .and_where(Expr::col(("further", job_label::Column::Name)).eq(name))
            .and_where(Expr::col(("further", job_label::Column::Value)).eq(value));
        select.and_where(Expr::exists(found));
    }
    if let Some(ids) = &list.ids {
        select.and_where(col(job::Column::Id).is_in(ids.iter().map(|id| id.to_bytes().to_vec())));
    }
    if !list.states.is_empty() {
        let numbers = || list.states.iter().map(|state| i64::from(state.number()));
        if list.states.iter().any(|state| state.is_final()) {
            // `+ 0` keeps SQLite from an index of states: most jobs are final.
            select.and_where(col(job::Column::State).add(Expr::cust("0")).is_in(numbers()));
        } else {
            select.and_where(live()).and_where(col(job::Column::State).is_in(numbers()));
        }
    }
    if let Some(prefix) = list.route_prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
        let begins = Func::cust("substr").args([
            Expr::col((job_request::Entity, job_request::Column::Route)),
            // In the text: a bound one has a type that PostgreSQL's substr does not take.
            Expr::cust("1"),
            Expr::cust(prefix.chars().count().to_string()),
        ]);
        select.and_where(Expr::expr(begins).eq(prefix));
    }
    if let Some(target) = &list.target {
        select.and_where(col(job::Column::Target).eq(target));
    }
    if let Some(name) = &list.created_by {
        select.and_where(col(job::Column::CreatedBy).eq(name));
    }
    if let Some(at) = list.created_after {
        select.and_where(created_at.clone().gte(at));
    }
    if let Some(at) = list.created_before {
        select.and_where(created_at.clone().lt(at));
    }
    if let Some((at, last)) = list.before {
        let last = last.to_bytes().to_vec();
        if backend == DbBackend::MySql {
            // It looks for pairs in no index.
            let same = created_at.clone().lt(at).or(id.clone().lt(last));
            select.and_where(created_at.clone().lte(at)).and_where(same);
        } else {
            let last = Expr::tuple([Expr::val(at), Expr::val(last)]);
            select.and_where(Expr::tuple([created_at.clone(), id.clone()]).lt(last));
        }
    }
    select.order_by_expr(created_at, Order::Desc).order_by_expr(id, Order::Desc);
    select
}

/// Word for word the condition of the index `job_live`.
pub(super) fn live() -> Expr {
    col(job::Column::State).lt(Expr::cust("4"))
}
