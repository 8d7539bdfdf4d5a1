//! Entities, tables and indexes agree.

use super::*;
use crate::job::StateName;
use crate::store::entity::{
    attempt, job, job_label, job_request, job_text, node, node_commit, root_key, start_key,
};
use crate::store::list::statement;
use crate::store::{List, commit, joinable, read};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DbBackend, EntityName, EntityTrait, IdenStatic as _,
    Iterable as _, PrimaryKeyToColumn as _, Statement, sea_query::SelectStatement,
};
use std::collections::BTreeSet;

/// Name, whether it may be NULL, whether it is part of the key.
type Column = (String, bool, bool);

async fn columns(store: &Store, table: &str) -> BTreeSet<Column> {
    let sql = match store.backend() {
        DbBackend::Postgres => format!(
            "SELECT attname::text, attnotnull::int::bigint, \
             (EXISTS (SELECT 1 FROM pg_index WHERE indrelid = attrelid AND indisprimary \
             AND attnum = ANY (indkey)))::int::bigint \
             FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0"
        ),
        DbBackend::MySql => format!(
            "SELECT column_name, CAST(is_nullable = 'NO' AS SIGNED), CAST(column_key = 'PRI' AS SIGNED) \
             FROM information_schema.columns WHERE table_schema = database() AND table_name = '{table}'"
        ),
        _ => format!("SELECT name, \"notnull\", pk FROM pragma_table_info('{table}')"),
    };
    let rows = store.reader().query_all_raw(Statement::from_string(store.backend(), sql)).await;
    let rows = rows.expect("asked");
    let number = |row: &sea_orm::QueryResult, at| row.try_get_by_index::<i64>(at).expect("a number");
    let read = |row| (row_text(row), number(row, 1) == 0, number(row, 2) > 0);
    rows.iter().map(read).collect()
}

fn row_text(row: &sea_orm::QueryResult) -> String {
    row.try_get_by_index(0).expect("a text")
}

fn entity<E: EntityTrait>() -> BTreeSet<Column> {
    let keys: BTreeSet<&str> = E::PrimaryKey::iter().map(|key| key.into_column().as_str()).collect();
    let column = |column: E::Column| {
        (column.as_str().to_owned(), column.def().is_null(), keys.contains(column.as_str()))
    };
    E::Column::iter().map(column).collect()
}

#[tokio::test]
async fn entities_are_the_tables() {
    on_each(async |store| {
        let entities = [
            (job::Entity.table_name(), entity::<job::Entity>()),
            (job_request::Entity.table_name(), entity::<job_request::Entity>()),
            (job_label::Entity.table_name(), entity::<job_label::Entity>()),
            (job_text::Entity.table_name(), entity::<job_text::Entity>()),
            (attempt::Entity.table_name(), entity::<attempt::Entity>()),
            (root_key::Entity.table_name(), entity::<root_key::Entity>()),
            (start_key::Entity.table_name(), entity::<start_key::Entity>()),
            (node::Entity.table_name(), entity::<node::Entity>()),
            (node_commit::Entity.table_name(), entity::<node_commit::Entity>()),
        ];
        let sql = match store.backend() {
            DbBackend::Postgres => "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'",
            DbBackend::MySql => {
                "SELECT table_name FROM information_schema.tables WHERE table_schema = database()"
            }
            _ => "SELECT name FROM sqlite_master WHERE type = 'table'",
        };
        let rows = store.reader().query_all_raw(Statement::from_string(store.backend(), sql)).await;
        let tables: BTreeSet<String> = rows.expect("asked").iter().map(row_text).collect();
        let named: BTreeSet<String> = entities.iter().map(|(name, _)| (*name).to_owned()).collect();
        let record = "seaql_migrations".to_owned();
        assert_eq!(tables, named.into_iter().chain([record]).collect());
        for (name, expected) in entities {
            assert_eq!(columns(&store, name).await, expected, "{name}");
        }
    })
    .await;
}

async fn plan(store: &Store, select: &SelectStatement) -> String {
    let mut statement = DbBackend::Sqlite.build(select);
    statement.sql.push_str(" LIMIT 50");
    explained(store, statement).await
}

async fn explained(store: &Store, mut statement: Statement) -> String {
    statement.sql = format!("EXPLAIN QUERY PLAN {}", statement.sql);
    let rows = store.reader().query_all_raw(statement).await.expect("explained");
    let detail = |row: &sea_orm::QueryResult| row.try_get::<String>("", "detail").expect("a text");
    rows.iter().map(detail).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn what_may_be_joined_is_found_among_the_few_that_have_not_ended() {
    on_each(async |store| {
        if store.is_shared() {
            return; // see plans.rs
        }
        let text = |sql: &str| Statement::from_string(DbBackend::Sqlite, sql);
        let all = explained(&store, text(joinable::ALL)).await;
        assert!(all.contains("USING INDEX job_live"), "{all}");
        let keys = "SELECT merge_key, id FROM job WHERE merge_key IN (x'01', x'02') AND id IN (x'03', x'04')";
        let some = explained(&store, text(keys)).await;
        assert!(some.contains("SEARCH job USING PRIMARY KEY (id=?)"), "{some}");
    })
    .await;
}

#[tokio::test]
async fn what_is_asked_often_is_found_by_an_index() {
    on_each(async |store| {
        if store.is_shared() {
            return; // see plans.rs
        }
        let label = |n: usize| (0..n).map(|n| (format!("name {n}"), "value".to_owned())).collect();
        let all = List::default();
        let page = List { before: Some((NOW, job(1).id)), ..List::default() };
        let labelled = List { labels: label(2), before: page.before, ..List::default() };
        let live = List { states: vec![StateName::Queued, StateName::Running], ..List::default() };
        let failed = List { states: vec![StateName::Failed], ..List::default() };
        let by = |route: &str| List {
            route_prefix: Some(route.into()),
            target: Some("a".into()),
            ..List::default()
        };
        for (name, select, index, sorts) in [
            ("due", read::due(NOW), "SEARCH job USING INDEX job_due", true),
            ("next_due", read::next_due(), "SEARCH job USING COVERING INDEX job_due", false),
            ("claimable", read::claimable("default", &[job(1).id]), "SEARCH job USING INDEX job_live", false),
            ("overdue", read::overdue(NOW), "SEARCH job USING INDEX job_give_up", true),
            ("next_give_up", read::next_give_up(), "SEARCH job USING COVERING INDEX job_give_up", false),
            ("running", read::running(), "SEARCH job USING INDEX job_live", false),
            ("all", statement(&all, DbBackend::Sqlite), "SCAN job USING INDEX job_created", false),
            ("a page", statement(&page, DbBackend::Sqlite), "SEARCH job USING INDEX job_created", false),
            (
                "by label",
                statement(&labelled, DbBackend::Sqlite),
                "SEARCH job_label USING COVERING INDEX job_label_value",
                false,
            ),
            ("live", statement(&live, DbBackend::Sqlite), "SEARCH job USING INDEX job_live", true),
            ("final", statement(&failed, DbBackend::Sqlite), "SCAN job USING INDEX job_created", false),
            ("by route", statement(&by("/a"), DbBackend::Sqlite), "SCAN job USING INDEX job_created", false),
        ] {
            let plan = plan(&store, &select).await;
            assert!(plan.contains(index), "{name}: {plan}");
            assert!(sorts || !plan.contains("TEMP B-TREE"), "{name}: {plan}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_update_finds_its_jobs_by_id() {
    on_each(async |store| {
        if store.is_shared() {
            return; // see plans.rs
        }
        let sql = format!("EXPLAIN QUERY PLAN {}", commit::update_text(DbBackend::Sqlite, 100, &[]));
        let rows = store.reader().query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await;
        let detail = |row: &sea_orm::QueryResult| row.try_get::<String>("", "detail").expect("a text");
        let plan: Vec<_> = rows.expect("explained").iter().map(detail).collect();
        assert!(plan.iter().any(|step| step.contains("SEARCH job USING PRIMARY KEY (id=?)")), "{plan:?}");
    })
    .await;
}
