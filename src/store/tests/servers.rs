//! Databases of servers as they are opened: where tables are, who may make them, and
//! what people are told.

use super::*;
use crate::store::{List, OpenError, StartKey};
use sea_orm::ConnectionTrait as _;

async fn refused(options: Options) -> OpenError {
    Store::open(options, Arc::new(StillClock), &Tasks::default()).await.expect_err("refused")
}

async fn execute(database: &OwnDatabase, sql: &str) {
    let db = database.beside().await;
    db.execute_unprepared(sql).await.expect("done");
    db.close().await.expect("closed");
}

/// What a store does all day, so that no statement names a table wrongly.
async fn works(store: &Store) {
    let start_key = StartKey { caller: "tester".into(), key: [1; 32], request: [2; 32] };
    let record = job_with(1, rules(), NOW, |spec| {
        spec.labels = BTreeMap::from([("team".into(), "a".into()), ("env".into(), "b".into())]);
        spec.merge = Some(crate::job::MergeClass::Pending);
    });
    let merge = Some(crate::store::Merge { key: [3; 32], join: true });
    let new = |record: &Record, start_key| {
        Write::Insert(Box::new(New { merge, start_key, ..New::of(record.clone(), payload()) }))
    };
    assert_eq!(write(store, new(&record, Some(start_key.clone()))).await, Ok(Outcome::Done));
    let joined = write(store, new(&job(2), None)).await;
    assert_eq!(joined, Ok(Outcome::Existing(crate::store::Existing::Joined(record.id))));
    let mut record = one(store, record.id).await;
    assert!(store.started_by(&start_key).await.expect("read").is_some());
    assert_eq!(store.claimable("default", 9, &[]).await.expect("read").len(), 1);
    let from = record.job.revision;
    record.job.apply(Event::Claim, at(NOW + 10)).expect("claimed");
    let attempt = Some(claimed(&record));
    let change = Update { from, record: record.clone(), text: true, attempt };
    assert_eq!(write(store, Write::Update(Box::new(change))).await, Ok(Outcome::Done));
    happens(store, &mut record, Event::Of(1, says("half")), at(NOW + 20)).await;
    let labels = BTreeMap::from([("team".into(), "a".into()), ("env".into(), "b".into())]);
    let list = List { labels, route_prefix: Some("/import".into()), limit: 9, text: true, ..List::default() };
    assert_eq!(store.list(&list).await.expect("read")[0].job.text.as_str(), "half");
    assert_eq!(store.attempts(record.id).await.expect("read").len(), 1);
    assert_eq!(store.waiting().await, Ok(0));
    store.due(NOW, 9).await.expect("read");
    store.overdue(NOW, 9).await.expect("read");
    store.changed_since(0, None, 9).await.expect("read");
    store.announce(None, None).await.expect("told");
    store.beat().await.expect("told");
    let end = Report { end: Some(crate::job::event::End::Finish(None)), ..Report::default() };
    happens(store, &mut record, Event::Of(1, Signal::Report(end)), at(NOW + 30)).await;
    assert_eq!(write(store, Write::Delete(vec![record.id])).await, Ok(Outcome::Done));
    assert!(store.records(&[record.id], false).await.expect("read").is_empty());
}

#[tokio::test]
async fn tables_may_have_a_prefix_beside_those_of_others() {
    on_each_opened(async |options| {
        let tables = Tables { prefix: "bj_".into(), ..Tables::default() };
        let with = Options { tables, ..options };
        let store = open(with.clone()).await;
        works(&store).await;
        store.close().await;
        let store = open(Options { migrate: false, ..with }).await;
        works(&store).await;
        store.close().await;
    })
    .await;
    on_servers(async |database| {
        execute(database, "CREATE TABLE job (id INTEGER)").await;
        let error = refused(options(database.url())).await;
        assert!(matches!(&error, OpenError::Foreign { table, .. } if table == "job"), "{error:?}");
        let tables = Tables { prefix: "bj_".into(), ..Tables::default() };
        let store = open(Options { tables, ..options(database.url()) }).await;
        works(&store).await;
        store.close().await;
        execute(database, "INSERT INTO job VALUES (1)").await;
    })
    .await;
}

#[tokio::test]
async fn tables_may_have_a_schema_of_their_own() {
    on_servers(async |database| {
        let tables = Tables { schema: Some("jobs".into()), ..Tables::default() };
        let with = Options { tables, ..options(database.url()) };
        if database.kind != ServerKind::Postgres {
            assert!(matches!(refused(with).await, OpenError::BadUrl { .. }));
            return;
        }
        execute(database, "CREATE TABLE job (id INTEGER)").await;
        for _ in 0..2 {
            let store = open(with.clone()).await;
            works(&store).await;
            store.close().await;
        }
        // Another beside it knows nothing of it.
        let tables = Tables { schema: Some("others".into()), prefix: "bj_".into(), ..Tables::default() };
        let store = open(Options { tables, keys: keys(&[5]), ..with }).await;
        works(&store).await;
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_reached_or_entered_is_said_without_the_password() {
    on_servers(async |database| {
        let url = database.url();
        let (before, rest) = url.rsplit_once('@').expect("a user");
        let scheme = url.split("://").next().expect("a scheme");
        let (host, name) = rest.split_once('/').expect("a database");
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let nowhere = closed.local_addr().expect("an address");
        drop(closed);
        for (url, reached) in [
            (format!("{scheme}://somebody:canary-secret@{nowhere}/{name}"), false),
            (format!("{scheme}://somebody:canary-secret@{host}/{name}"), true),
            (format!("{before}@{host}/no_such_database"), true),
        ] {
            let error = refused(options(url)).await;
            match error {
                OpenError::Unreachable { .. } if !reached => {}
                OpenError::Login { .. } if reached => {}
                _ => panic!("{error:?}"),
            }
            let said = format!("{error} {error:?}");
            assert!(
                !said.contains("canary-secret") && said.contains(host.split(':').next().expect("a host"))
            );
        }
        let error = refused(options(format!("{scheme}://user:canary-secret@{host}"))).await;
        assert!(
            matches!(error, OpenError::BadUrl { .. }) && !error.to_string().contains("canary"),
            "{error}"
        );
    })
    .await;
}

#[tokio::test]
async fn who_may_not_make_tables_is_told_so_and_may_use_them() {
    on_servers(async |database| {
        let user = format!("backjob_limited_{}", std::process::id());
        let admin = database.beside().await;
        let postgres = database.kind == ServerKind::Postgres;
        let (make, name) = if postgres {
            (format!("CREATE ROLE {user} LOGIN PASSWORD 'limited'"), user.clone())
        } else {
            (format!("CREATE USER {user}@'%' IDENTIFIED BY 'limited'"), format!("{user}@'%'"))
        };
        let on = if postgres { "ALL TABLES IN SCHEMA public" } else { "*" };
        let grant = |rights: &str| format!("GRANT {rights} ON {on} TO {name}");
        admin.execute_unprepared(&make).await.expect("made");
        admin.execute_unprepared(&grant("SELECT, INSERT, UPDATE, DELETE")).await.expect("granted");
        let url = database.url();
        let (_, rest) = url.rsplit_once('@').expect("a user");
        let limited = format!("{}://{user}:limited@{rest}", url.split("://").next().expect("a scheme"));

        let error = refused(options(limited.clone())).await;
        assert!(matches!(error, OpenError::Forbidden { .. }), "{error:?}");
        let error = refused(Options { migrate: false, ..options(limited.clone()) }).await;
        assert!(matches!(&error, OpenError::MustMigrate { pending, .. } if pending.len() == 1), "{error:?}");

        open(options(database.url())).await.close().await;
        if postgres {
            admin.execute_unprepared(&grant("SELECT, INSERT, UPDATE, DELETE")).await.expect("granted");
        }
        for migrate in [false, true] {
            let store = open(Options { migrate, ..options(limited.clone()) }).await;
            works(&store).await;
            store.close().await;
        }
        if postgres {
            admin.execute_unprepared(&format!("DROP OWNED BY {user}")).await.expect("taken away");
        }
        let drop_text = if postgres { format!("DROP ROLE {name}") } else { format!("DROP USER {name}") };
        admin.execute_unprepared(&drop_text).await.expect("dropped");
    })
    .await;
}

#[tokio::test]
async fn tables_of_a_newer_program_are_refused() {
    on_servers(async |database| {
        open(options(database.url())).await.close().await;
        execute(
            database,
            "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m20991231_000001_later', 0)",
        )
        .await;
        let error = refused(options(database.url())).await;
        assert!(matches!(&error, OpenError::NewerSchema { unknown, .. } if unknown.len() == 1), "{error:?}");
        assert!(error.to_string().contains("m20991231_000001_later"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn texts_are_compared_byte_by_byte() {
    on_each(async |store| {
        let values = ["a", "A", "a ", "á", "ａ", "a\u{301}"];
        let mut expected = Vec::new();
        for (n, value) in (0..).zip(values) {
            let record = job_with(n, rules(), NOW, |spec| {
                spec.labels = BTreeMap::from([("name".into(), value.to_owned())]);
                spec.target = value.into();
                spec.route = format!("/{value}").into();
            });
            let start_key = Some(StartKey {
                caller: value.to_owned(),
                key: [1; 32],
                request: [u8::try_from(n).expect("small"); 32],
            });
            let record = Record { created_by: value.into(), ..record };
            let new = New { start_key, ..New::of(record.clone(), payload()) };
            assert_eq!(write(&store, Write::Insert(Box::new(new))).await, Ok(Outcome::Done), "{value:?}");
            expected.push((value, record.id));
        }
        for (value, id) in expected {
            let label = List { labels: BTreeMap::from([("name".into(), value.into())]), ..List::default() };
            let target = List { target: Some(value.into()), ..List::default() };
            let by = List { created_by: Some(value.into()), ..List::default() };
            for list in [label, target, by] {
                let found = store.list(&List { limit: 9, ..list.clone() }).await.expect("listed");
                assert_eq!(ids(&found), vec![id], "{list:?}");
            }
            let claimable = store.claimable(value, 9, &[]).await.expect("read");
            assert_eq!(ids(&claimable), vec![id], "{value:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_no_database_can_hold_is_mended_and_not_refused() {
    on_each(async |store| {
        let mut record = added(&store, job(1)).await;
        happens(&store, &mut record, Event::Claim, at(NOW + 10)).await;
        let said = format!("a\0b{}", "é".repeat(9_000));
        happens(&store, &mut record, Event::Of(1, Signal::Lost(said.clone())), at(NOW + 20)).await;
        let attempt = AttemptRow {
            failure: Some(crate::job::Failure {
                reason: crate::job::Reason::Lost,
                message: said,
                http_status: None,
            }),
            ..claimed(&record)
        };
        let change =
            Update { from: record.job.revision, record: record.clone(), text: false, attempt: Some(attempt) };
        assert_eq!(write(&store, Write::Update(Box::new(change))).await, Ok(Outcome::Done));
        let kept =
            store.attempts(record.id).await.expect("read").remove(0).failure.expect("a failure").message;
        assert!(kept.starts_with("a\u{fffd}bé") && kept.chars().count() == 4_096, "{}", kept.chars().count());
    })
    .await;
}
