//! The one statement that reads jobs, and what it yields.

use super::{
    Error,
    entity::{attempt, job, job_request, job_text},
    row::{self, Beside},
};
use crate::job::Record;
use sea_orm::{
    ConnectionTrait, DbErr, FromQueryResult, Iterable, QueryResult, Statement,
    sea_query::{Cond, Condition, Expr, ExprTrait as _, Query, SelectStatement},
};

/// A column of `job`.
pub(super) fn col(column: job::Column) -> Expr {
    Expr::col((job::Entity, column))
}

/// `job`, with what else makes a record: one statement, so that a job and its
/// attempt are of one moment.
pub(super) fn records(text: bool) -> SelectStatement {
    let mut select = Query::select();
    select
        .columns(job::Column::iter().map(|column| (job::Entity, column)))
        .columns([
            (job_request::Entity, job_request::Column::Spec),
            (job_request::Entity, job_request::Column::RetryOf),
        ])
        .columns([
            (attempt::Entity, attempt::Column::SentAt),
            (attempt::Entity, attempt::Column::Reported),
            (attempt::Entity, attempt::Column::HttpStatus),
            (attempt::Entity, attempt::Column::LastSequence),
        ])
        .from(job::Entity)
        // A left join: it keeps SQLite from beginning with the requests.
        .left_join(
            job_request::Entity,
            Expr::col((job_request::Entity, job_request::Column::JobId))
                .equals((job::Entity, job::Column::Id)),
        )
        .left_join(attempt::Entity, running_attempt());
    if text {
        use job_text::Column as Text;
        let columns = [
            Text::Text,
            Text::TextWritten,
            Text::TextTruncated,
            Text::ResultType,
            Text::Result,
            Text::ResultTruncated,
        ];
        select.columns(columns.map(|column| (job_text::Entity, column))).left_join(
            job_text::Entity,
            Condition::all()
                .add(Expr::col((job_text::Entity, Text::JobId)).equals((job::Entity, job::Column::Id)))
                .add(
                    Expr::col((job_text::Entity, Text::Attempt)).equals((job::Entity, job::Column::Attempt)),
                ),
        );
    }
    select
}

fn running_attempt() -> Condition {
    Cond::all()
        .add(col(job::Column::State).eq(Expr::cust("3")))
        .add(Expr::col((attempt::Entity, attempt::Column::JobId)).equals((job::Entity, job::Column::Id)))
        .add(
            Expr::col((attempt::Entity, attempt::Column::Attempt))
                .equals((job::Entity, job::Column::Attempt)),
        )
}

/// Runs a select. The limit stands in the text: SQLite compiles a statement
/// with a bound one anew each time.
pub(super) async fn run(
    db: &impl ConnectionTrait,
    select: &SelectStatement,
    limit: Option<u64>,
) -> Result<Vec<QueryResult>, DbErr> {
    let mut statement: Statement = db.get_database_backend().build(select);
    if let Some(limit) = limit {
        statement.sql.push_str(&format!(" LIMIT {limit}"));
    }
    db.query_all_raw(statement).await
}

/// The records that a select of [`records`] finds.
pub(super) async fn fetch(
    db: &impl ConnectionTrait,
    select: &SelectStatement,
    text: bool,
    limit: Option<u64>,
) -> Result<Vec<Record>, Error> {
    run(db, select, limit).await?.iter().map(|found| read(found, text)).collect()
}

fn read(found: &QueryResult, text: bool) -> Result<Record, Error> {
    let job = job::Model::from_query_result(found, "")?;
    let written: Option<i64> = if text { found.try_get("", "text_written")? } else { None };
    let text = match written {
        None => None,
        Some(text_written) => Some(job_text::Model {
            job_id: job.id.clone(),
            attempt: job.attempt,
            text: found.try_get("", "text")?,
            text_written,
            text_truncated: found.try_get("", "text_truncated")?,
            result_type: found.try_get("", "result_type")?,
            result: found.try_get("", "result")?,
            result_truncated: found.try_get("", "result_truncated")?,
        }),
    };
    let beside = Beside {
        spec: found.try_get("", "spec")?,
        retry_of: found.try_get("", "retry_of")?,
        sent_at: found.try_get("", "sent_at")?,
        reported: found.try_get("", "reported")?,
        http_status: found.try_get("", "http_status")?,
        sequence: found.try_get("", "last_sequence")?,
        text,
    };
    row::record(job, beside)
}
