//! With two hundred thousand finished jobs in the tables, what is asked often is found
//! by an index, on each database. (SQLite's plans hardly depend on what is there: see
//! `schema.rs`.)

use super::*;
use crate::job::StateName;
use crate::store::{List, commit, existing, feed, list, read, row};
use sea_orm::{
    ConnectionTrait as _, DbBackend, ExprTrait as _, Statement, Value, sea_query::SelectStatement,
};

const FINISHED: u32 = 200_000;
const WAITING: u32 = 2_000;

/// Rows by the database itself: finished ones, some failed, and waiting ones. Ids rise
/// with time, as they do.
async fn fill(database: &OwnDatabase) {
    let db = database.beside().await;
    let postgres = database.kind == ServerKind::Postgres;
    let id = |n: &str| match postgres {
        true => format!("decode(lpad(to_hex({n}), 32, '0'), 'hex')"),
        false => format!("unhex(lpad(hex({n}), 32, '0'))"),
    };
    let series = |count: u32| match postgres {
        true => format!("generate_series(1, {count}) AS s(n)"),
        false => format!("(SELECT seq AS n FROM seq_1_to_{count}) AS s"),
    };
    let rest = "'default', 5, 'tester'";
    let columns = "id, revision, attempt, progress, created_at, scheduled_at, updated_at, changed_at, \
        cancel_requested, merged_count, target, priority, created_by";
    let values = |from: u32| {
        let n = format!("n + {from}");
        format!("{}, 1, 1, 100, {n}, {n}, {n}, {n}, 0, 0, {rest}", id(&n))
    };
    for sql in [
        format!(
            "INSERT INTO job ({columns}, state, ended_at) \
             SELECT {}, CASE WHEN n % 10 = 0 THEN 5 ELSE 4 END, n FROM {}",
            values(0),
            series(FINISHED)
        ),
        format!(
            "INSERT INTO job ({columns}, state, give_up_at, merge_key) \
             SELECT {}, CASE WHEN n % 2 = 0 THEN 1 ELSE 2 END, n + 999999999, {} FROM {}",
            values(FINISHED),
            id("n").replace("32", "64"),
            series(WAITING)
        ),
        format!(
            "INSERT INTO job_request (job_id, route, spec, root_id, sealed) SELECT id, '/a', '{{}}', {}, {} FROM job",
            id("1").replace("32", "16"),
            id("1")
        ),
        format!(
            "INSERT INTO attempt (job_id, attempt, node, claimed_at, reported, last_sequence) \
             SELECT id, 1, 'a', 1, 0, 0 FROM job WHERE created_at <= {FINISHED}"
        ),
        "INSERT INTO job_label (job_id, name, value, created_at) \
         SELECT id, 'team', CASE WHEN created_at % 100 = 0 THEN 'a' ELSE 'b' END, created_at FROM job"
            .to_owned(),
        format!(
            "INSERT INTO start_key (caller, key_hash, job_id, request_hash) SELECT 'tester', {}, id, {} FROM job",
            if postgres { "sha256(id)" } else { "unhex(sha2(id, 256))" },
            id("1").replace("32", "64")
        ),
    ] {
        db.execute_unprepared(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    for table in ["job", "job_request", "attempt", "job_label", "start_key"] {
        let analyse = if postgres { "ANALYZE" } else { "ANALYZE TABLE" };
        db.execute_unprepared(&format!("{analyse} {table}")).await.expect("analysed");
    }
    db.close().await.expect("closed");
}

/// How the database goes about a statement, a step a line, and how many rows it thinks
/// it must look at in one step, at most.
async fn plan(store: &Store, mut statement: Statement) -> (String, u64) {
    let postgres = store.backend() == DbBackend::Postgres;
    let sql = statement.sql.clone();
    statement.sql = format!("EXPLAIN {}{sql}", if postgres { "(FORMAT TEXT) " } else { "" });
    let rows = store.reader().query_all_raw(statement).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let (mut steps, mut most) = (Vec::new(), 0);
    for row in &rows {
        if postgres {
            steps.push(row.try_get_by_index::<String>(0).expect("a line"));
            continue;
        }
        let text = |name: &str| row.try_get::<Option<String>>("", name).ok().flatten().unwrap_or_default();
        // A number, or its text, as the server likes.
        let number = row.try_get::<Option<u64>>("", "rows").ok().flatten();
        let looked_at = number.or_else(|| text("rows").parse().ok()).unwrap_or(0);
        most = Ord::max(most, looked_at);
        steps.push(format!(
            "{} {} key={} rows={looked_at} {}",
            text("table"),
            text("type"),
            text("key"),
            text("Extra")
        ));
    }
    (steps.join("\n"), most)
}

/// Whether every table in it is found by an index.
fn indexed(store: &Store, plan: &str) -> bool {
    match store.backend() {
        DbBackend::Postgres => !plan.contains("Seq Scan on"),
        _ => !plan.lines().any(|step| step.contains(" ALL key= ")),
    }
}

fn ids_of(numbers: std::ops::Range<u32>) -> Vec<Value> {
    numbers.map(|n| Value::from(u128::from(n).to_be_bytes().to_vec())).collect()
}

#[tokio::test]
async fn among_many_finished_jobs_everything_is_found_by_an_index() {
    on_servers(async |database| {
        let store = open(options(database.url())).await;
        fill(database).await;
        let backend = store.backend();
        let select = |select: SelectStatement, limit: u64| {
            let mut statement = backend.build(&select);
            statement.sql.push_str(&format!(" LIMIT {limit}"));
            statement
        };
        let of = |list: List| list::statement(&list, backend);
        let label = |count: usize| {
            let pairs = [("team", "a"), ("env", "b")].into_iter().take(count);
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let before = Some((150_000, job(1).id));
        let some_ids = ids_of(FINISHED + 1..FINISHED + 51);
        let marks = vec!["?"; some_ids.len()].join(", ");
        let by_ids = |text: &str| {
            let text = text.replace("{marks}", &marks);
            crate::store::dialect::statement(backend, text, some_ids.clone())
        };
        let keys: Vec<Value> =
            some_ids.iter().flat_map(|_| [Value::from("tester"), Value::from(vec![1_u8; 32])]).collect();
        let known_keys = crate::store::dialect::statement(
            backend,
            existing::known_keys_text(backend, some_ids.len()),
            keys,
        );
        let mut status = crate::store::select::records(true);
        status.and_where(
            crate::store::select::col(crate::store::entity::job::Column::Id).is_in(some_ids[..1].to_vec()),
        );
        let now = i64::from(FINISHED + WAITING / 2);
        // What it is, and how many rows may be looked at in one step: never those that
        // are finished, but for the pages of a list.
        let mut asked = vec![
            ("claim", select(read::claimable("default", &[]), 64)),
            ("due", select(read::due(now), 64)),
            ("next due", select(read::next_due(), 1)),
            ("overdue", select(read::overdue(0), 64)),
            ("next give up", select(read::next_give_up(), 1)),
            ("running", select(read::running(), 64)),
            ("running of", select(feed::running_of("a"), 64)),
            ("waiting", backend.build(&read::waiting())),
            ("status", backend.build(&status)),
            ("start keys", known_keys),
            ("identical", by_ids(r#"SELECT merge_key, id FROM "job" WHERE merge_key IN ({marks})"#)),
            ("twins", by_ids(r#"SELECT id FROM "job" WHERE id IN ({marks}) AND state < 4"#)),
            ("feed", select(feed::changed_since(now, None, backend), 1_000)),
            ("feed, next page", select(feed::changed_since(now, Some((now, job(1).id)), backend), 1_000)),
            ("retention", select(read::ended_before(StateName::Failed, 500), 64)),
            ("first ended", select(read::first_ended(StateName::Succeeded), 1)),
            ("list", select(of(List::default()), 50)),
            ("list, next page", select(of(List { before, ..List::default() }), 50)),
            ("list by label", select(of(List { labels: label(1), before, ..List::default() }), 50)),
            ("list by labels", select(of(List { labels: label(2), before, ..List::default() }), 50)),
            ("list live", select(of(List { states: vec![StateName::Running], ..List::default() }), 50)),
            (
                "list final",
                select(of(List { states: vec![StateName::Failed], before, ..List::default() }), 50),
            ),
            ("erase", by_ids(r#"DELETE FROM "job" WHERE id IN ({marks}) AND state >= 4 RETURNING id"#)),
            ("close", by_ids(r#"UPDATE "job" SET merge_key = NULL WHERE id IN ({marks})"#)),
        ];
        if backend == DbBackend::Postgres {
            let row = commit::row_values(1, &row::job(&job(1), None)).collect::<Vec<_>>();
            let values = (0..50).flat_map(|_| row.clone());
            let text = commit::update_text(backend, 50, &row);
            asked.push(("update", crate::store::dialect::statement(backend, text, values)));
        } else {
            asked.push((
                "update",
                by_ids(r#"SELECT id, revision FROM "job" WHERE id IN ({marks}) ORDER BY id FOR UPDATE"#),
            ));
        }
        for (name, statement) in asked {
            let (plan, most) = plan(&store, statement).await;
            assert!(indexed(&store, &plan), "{name}:\n{plan}");
            let pages =
                name.starts_with("list") || name.starts_with("retention") || name.starts_with("first");
            assert!(pages || most <= u64::from(WAITING) * 2, "{name} looks at {most} rows:\n{plan}");
        }
        // What has no index is told from what has, by both marks.
        let none =
            crate::store::dialect::statement(backend, r#"SELECT id FROM "job" WHERE progress = 7"#, []);
        let (plan, most) = plan(&store, none).await;
        assert!(!indexed(&store, &plan), "{plan}");
        assert!(backend == DbBackend::Postgres || most > u64::from(FINISHED / 2), "{plan}");
        store.close().await;
    })
    .await;
}
