//! Entities, tables and indexes agree.

use super::*;
use crate::job::StateName;
use crate::store::entity::{attempt, job, job_label, job_request, job_text, root_key};
use crate::store::list::statement;
use crate::store::{List, commit, read};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DbBackend, EntityName, EntityTrait, IdenStatic as _,
    Iterable as _, PrimaryKeyToColumn as _, Statement, sea_query::SelectStatement,
};
use std::collections::BTreeSet;

/// Name, whether it may be NULL, whether it is part of the key.
type Column = (String, bool, bool);

async fn columns(store: &Store, table: &str) -> BTreeSet<Column> {
    let sql = format!("SELECT name, \"notnull\", pk FROM pragma_table_info('{table}')");
    let rows =
        store.reader().query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await.expect("asked");
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
    on_both(async |store| {
        let entities = [
            (job::Entity.table_name(), entity::<job::Entity>()),
            (job_request::Entity.table_name(), entity::<job_request::Entity>()),
            (job_label::Entity.table_name(), entity::<job_label::Entity>()),
            (job_text::Entity.table_name(), entity::<job_text::Entity>()),
            (attempt::Entity.table_name(), entity::<attempt::Entity>()),
            (root_key::Entity.table_name(), entity::<root_key::Entity>()),
        ];
        let sql = "SELECT name FROM sqlite_master WHERE type = 'table'";
        let rows = store.reader().query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await;
        let tables: BTreeSet<String> = rows.expect("asked").iter().map(row_text).collect();
        let without = ["start_key", "node", "seaql_migrations"].map(str::to_owned);
        let named = entities.iter().map(|(name, _)| (*name).to_owned()).chain(without).collect();
        assert_eq!(tables, named);
        for (name, expected) in entities {
            assert_eq!(columns(&store, name).await, expected, "{name}");
        }
    })
    .await;
}

async fn plan(store: &Store, select: &SelectStatement) -> String {
    let mut statement = DbBackend::Sqlite.build(select);
    statement.sql = format!("EXPLAIN QUERY PLAN {} LIMIT 50", statement.sql);
    let rows = store.reader().query_all_raw(statement).await.expect("explained");
    let detail = |row: &sea_orm::QueryResult| row.try_get::<String>("", "detail").expect("a text");
    rows.iter().map(detail).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn what_is_asked_often_is_found_by_an_index() {
    on_both(async |store| {
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
            ("all", statement(&all), "SCAN job USING INDEX job_created", false),
            ("a page", statement(&page), "SEARCH job USING INDEX job_created", false),
            (
                "by label",
                statement(&labelled),
                "SEARCH job_label USING COVERING INDEX job_label_value",
                false,
            ),
            ("live", statement(&live), "SEARCH job USING INDEX job_live", true),
            ("final", statement(&failed), "SCAN job USING INDEX job_created", false),
            ("by route", statement(&by("/a")), "SCAN job USING INDEX job_created", false),
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
    on_both(async |store| {
        let sql = format!("EXPLAIN QUERY PLAN {}", commit::update_text(100));
        let rows = store.reader().query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await;
        let detail = |row: &sea_orm::QueryResult| row.try_get::<String>("", "detail").expect("a text");
        let plan: Vec<_> = rows.expect("explained").iter().map(detail).collect();
        assert!(
            plan.iter().any(|step| step.contains("SEARCH job USING INDEX sqlite_autoindex_job_1")),
            "{plan:?}"
        );
    })
    .await;
}
