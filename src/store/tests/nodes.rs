//! Several servers on one database: merging, keys, fencing, feeds, and what becomes
//! of a transaction whose end is not heard of.

use super::*;
use crate::job::StateName;
use crate::store::{Announced, Beaten, Existing, Heard, StartKey};
use sea_orm::{ConnectionTrait as _, DbBackend};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("waited for {what}"))
}

async fn node(database: &OwnDatabase, name: &str) -> Store {
    open(Options { node: name.into(), ..options(database.url()) }).await
}

fn merging(n: i64, key: u8, start_key: Option<(u8, u8)>) -> Write {
    let start_key = start_key.map(|(key, request)| StartKey {
        caller: "tester".into(),
        key: [key; 32],
        request: [request; 32],
    });
    let merge = Some(Merge { key: [key; 32], join: true });
    Write::Insert(Box::new(New { merge, start_key, ..New::of(job(n), payload()) }))
}

async fn count(store: &Store, sql: &str) -> i64 {
    let statement = sea_orm::Statement::from_string(store.backend(), sql);
    let found = store.reader().query_all_raw(statement).await.expect("counted");
    found[0].try_get_by_index(0).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_identical_starts_on_three_nodes_make_one_job() {
    on_servers(async |database| {
        let tasks = Tasks::default();
        let nodes = [node(database, "a").await, node(database, "b").await, node(database, "c").await];
        for round in 0..5_u8 {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(100);
            for n in 0..100_i64 {
                let number = i64::from(round) * 1_000 + n;
                let store = nodes[usize::try_from(n % 3).expect("small")].clone();
                let sender = sender.clone();
                tasks.spawn("starts", async move {
                    let told = write(&store, merging(number, round + 1, None)).await;
                    sender.send((job(number).id, told)).await.expect("awaited");
                });
            }
            let (mut made, mut joined) = (Vec::new(), Vec::new());
            for _ in 0..100 {
                match soon("a start", receiver.recv()).await.expect("told") {
                    (id, Ok(Outcome::Done)) => made.push(id),
                    (_, Ok(Outcome::Existing(Existing::Joined(id)))) => joined.push(id),
                    (_, other) => panic!("{other:?}"),
                }
            }
            assert_eq!((made.len(), joined.len()), (1, 99));
            assert!(joined.iter().all(|id| *id == made[0]));
            assert_eq!(one(&nodes[0], made[0]).await.merged_count, 99);
        }
        for node in &nodes {
            node.close().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_makes_one_job_whichever_node_it_comes_to() {
    on_servers(async |database| {
        let tasks = Tasks::default();
        let nodes = [node(database, "a").await, node(database, "b").await];
        let (sender, mut receiver) = tokio::sync::mpsc::channel(100);
        // Ten keys, each ten times, half of them of another request; all join one job
        // that is found by what is identical, or make it.
        for n in 0..100_i64 {
            let key = u8::try_from(n % 10).expect("small");
            let request = u8::try_from(n / 50).expect("small");
            let (store, sender) =
                (nodes[usize::try_from(n / 10 % 2).expect("small")].clone(), sender.clone());
            tasks.spawn("starts", async move {
                let told = write(&store, merging(n, 1, Some((key, request)))).await;
                sender.send((key, told)).await.expect("awaited");
            });
        }
        let mut of_key = BTreeMap::<u8, [u32; 3]>::new();
        for _ in 0..100 {
            let (key, told) = soon("a start", receiver.recv()).await.expect("told");
            let seen = of_key.entry(key).or_default();
            match told.expect("taken") {
                Outcome::Done | Outcome::Existing(Existing::Joined(_)) => seen[0] += 1,
                Outcome::Existing(Existing::Same(_)) => seen[1] += 1,
                Outcome::Existing(Existing::Other(_)) => seen[2] += 1,
                other => panic!("{other:?}"),
            }
        }
        // The first of a key decides; its four like are repeats, the five others not.
        assert!(of_key.values().all(|seen| *seen == [1, 4, 5]), "{of_key:?}");
        assert_eq!(count(&nodes[0], "SELECT count(*) FROM job").await, 1);
        assert_eq!(count(&nodes[0], "SELECT merged_count FROM job").await, 9);
        assert_eq!(count(&nodes[0], "SELECT count(*) FROM start_key").await, 10);
        for node in &nodes {
            node.close().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_claim_a_job_one_has_it() {
    on_servers(async |database| {
        let nodes = [node(database, "a").await, node(database, "b").await, node(database, "c").await];
        let mut records = Vec::new();
        for n in 0..60 {
            records.push(added(&nodes[0], job(n)).await);
        }
        // In different orders, so that they meet in the middle.
        let mut told = Vec::new();
        for (place, store) in nodes.iter().enumerate() {
            let mut order: Vec<&Record> = records.iter().collect();
            match place {
                0 => {}
                1 => order.reverse(),
                _ => order.rotate_left(30),
            }
            for record in order {
                let (from, mut claimed_job) = (record.job.revision, record.clone());
                claimed_job.job.apply(Event::Claim, at(NOW + 100)).expect("claimed");
                told.push((record.id, hand_in(store, update(from, &claimed_job)).await));
            }
        }
        let mut won = BTreeMap::<JobId, u32>::new();
        for (id, told) in told {
            match soon("a claim", told).await.expect("told").expect("taken") {
                Outcome::Done => *won.entry(id).or_default() += 1,
                Outcome::Lost => {}
                Outcome::Existing(_) => panic!("not a start"),
            }
        }
        assert_eq!(won.len(), 60);
        assert!(won.values().all(|count| *count == 1), "{won:?}");
        let mut owned = 0;
        for name in ["a", "b", "c"] {
            owned += nodes[0].running_of(name, Some(100)).await.expect("read").len();
        }
        assert_eq!(owned, 60);
        for node in &nodes {
            node.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_job_of_a_dead_node_is_adopted_once() {
    on_servers(async |database| {
        let (a, b) = (node(database, "a").await, node(database, "b").await);
        let mut record = added(&a, job(1)).await;
        let from = record.job.revision;
        record.job.apply(Event::Claim, at(NOW + 10)).expect("claimed");
        record.job.apply(Event::Of(1, Signal::Report(Report::default())), at(NOW + 10)).expect("reported");
        let attempt = Some(AttemptRow { reported: true, ..claimed(&record) });
        let change = Update { from, record: record.clone(), text: true, attempt };
        assert_eq!(write(&a, Write::Update(Box::new(change))).await, Ok(Outcome::Done));
        assert_eq!(b.owner(record.id).await, Ok(Some("a".into())));
        let left = b.running_of("a", Some(10)).await.expect("read").remove(0);
        let mut adopted = left.clone();
        adopted.job.apply(Event::Adopt, at(NOW + 20)).expect("adopted");
        assert_eq!(write(&b, update(left.job.revision, &adopted)).await, Ok(Outcome::Done));
        assert_eq!(b.owner(record.id).await, Ok(Some("b".into())));
        // What the old owner still knows is of another epoch.
        let from = record.job.revision;
        record.job.apply(Event::Of(1, says("late")), at(NOW + 30)).expect("reported");
        assert_eq!(write(&a, update(from, &record)).await, Ok(Outcome::Lost));
        assert_eq!(one(&b, record.id).await.job.text.as_str(), "");
        a.close().await;
        b.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_cut_is_replaced_and_nothing_is_lost_or_done_twice() {
    on_servers(async |database| {
        let store = node(database, "a").await;
        for round in 0..5 {
            let mut told = Vec::new();
            for n in 0..40 {
                told.push((n, hand_in(&store, insert(&job(round * 100 + n))).await));
                if n == 10 {
                    database.cut().await;
                }
            }
            for (n, told) in told {
                let told = soon("a write", told).await.expect("told");
                assert_eq!(told, Ok(Outcome::Done), "{round}/{n}");
            }
            // A read, too, gets a new connection.
            one(&store, job(round * 100).id).await;
        }
        assert_eq!(count(&store, "SELECT count(*) FROM job").await, 200);
        assert!(store.healthy());
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_server_of_the_same_name_is_found_out() {
    on_each(async |store| {
        let Announced::Done(moment) = store.announce(Some("127.0.0.1:1"), None).await.expect("told") else {
            panic!("the name is free")
        };
        assert!(moment.database > 1_600_000_000_000, "{moment:?}");
        // Again it is no other.
        assert!(matches!(store.announce(None, None).await, Ok(Announced::Done(_))));
        assert!(matches!(store.beat().await, Ok(Beaten::Alive { .. })));
        let nodes = store.nodes().await.expect("read");
        assert_eq!((nodes.len(), nodes[0].name.as_str(), nodes[0].beat), (1, "here", 2));
        assert_eq!(nodes[0].advertise.as_deref(), Some("127.0.0.1:1"));
        assert_eq!(nodes[0].incarnation, store.incarnation());
        // It beats: nobody forgets it.
        store.beat().await.expect("alive");
        assert!(!store.forget(&nodes[0]).await.expect("told"));
        let nodes = store.nodes().await.expect("read");
        assert!(store.forget(&nodes[0]).await.expect("told"));
        assert_eq!(store.beat().await, Ok(Beaten::Replaced));
        assert!(matches!(store.announce(None, None).await, Ok(Announced::Done(_))));
    })
    .await;
    on_servers(async |database| {
        let (first, second) = (node(database, "same").await, node(database, "same").await);
        assert!(matches!(first.announce(None, None).await, Ok(Announced::Done(_))));
        let Ok(Announced::Held(seen)) = second.announce(None, None).await else { panic!("two of a name") };
        // It lives: it cannot be taken over by what was seen before.
        first.beat().await.expect("alive");
        let Ok(Announced::Held(seen)) = second.announce(None, Some(&seen)).await else { panic!("it lives") };
        assert!(matches!(second.announce(None, Some(&seen)).await, Ok(Announced::Done(_))));
        assert_eq!(first.beat().await, Ok(Beaten::Replaced));
        // Paused and come back, it can store nothing any more.
        let told = write(&first, insert(&job(1))).await;
        assert!(matches!(&told, Err(Error::Unavailable(why)) if why.contains("node.name")), "{told:?}");
        added(&second, job(1)).await;
        first.close().await;
        assert_eq!(second.nodes().await.expect("read").len(), 1, "the first has no row any more");
        second.close().await;
        let third = node(database, "third").await;
        assert_eq!(third.nodes().await, Ok(vec![]), "who ends in order leaves no row");
        third.close().await;
    })
    .await;
}

#[tokio::test]
async fn the_feed_tells_every_change_in_pages() {
    on_each(async |store| {
        let mut records = Vec::new();
        for n in 0..10 {
            let mut record = job(n);
            record.job.updated_at = NOW + n / 3; // several of one moment
            records.push(added(&store, record).await);
        }
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.changed_since(NOW + 1, after, 2).await.expect("read");
            let Some(last) = page.last() else { break };
            after = Some((last.changed_at, last.id));
            seen.extend(page.iter().map(|change| (change.id, change.revision)));
        }
        let expected: Vec<_> = records[3..].iter().map(|record| (record.id, record.job.revision)).collect();
        assert_eq!(seen, expected);
        let mut moved = records.remove(4);
        happens(&store, &mut moved, Event::Claim, at(NOW + 500)).await;
        let page = store.changed_since(NOW + 400, None, 10).await.expect("read");
        assert_eq!(page.len(), 1);
        assert_eq!((page[0].id, page[0].revision), (moved.id, moved.job.revision));
        assert_eq!(store.revisions(&[moved.id, job(99).id]).await, Ok(page));
        assert_eq!(store.owner(moved.id).await, Ok(Some("here".into())));
        assert_eq!(store.owner(records[0].id).await, Ok(None));
        let running = store.running_of("here", Some(10)).await.expect("read");
        assert_eq!(
            (ids(&running), store.running_of("there", Some(10)).await.expect("read").len()),
            (vec![moved.id], 0)
        );
        assert_eq!(running[0].job.state_name(), StateName::Running);
    })
    .await;
}

#[tokio::test]
async fn who_joins_shows_in_the_feed() {
    on_each(async |store| {
        assert_eq!(write(&store, merging(1, 1, None)).await, Ok(Outcome::Done));
        let before = store.changed_since(0, None, 10).await.expect("read");
        let joined = write(&store, merging(50, 1, None)).await;
        assert_eq!(joined, Ok(Outcome::Existing(Existing::Joined(job(1).id))));
        let after = store.changed_since(NOW + 50, None, 10).await.expect("read");
        assert_eq!((after.len(), after[0].id), (1, job(1).id));
        assert!(after[0].revision > before[0].revision);
    })
    .await;
}

#[tokio::test]
async fn notifications_reach_the_others_and_not_oneself() {
    on_servers(async |database| {
        let (a, b) = (node(database, "a").await, node(database, "b").await);
        if database.kind != ServerKind::Postgres {
            assert!(a.listen().await.expect("told").is_none());
            assert_eq!(a.notify(&[(job(1).id, job(1).job.revision)]).await, Ok(false));
            a.close().await;
            b.close().await;
            return;
        }
        let mut own = a.listen().await.expect("told").expect("a listener");
        let mut other = b.listen().await.expect("told").expect("a listener");
        let changes: Vec<_> = (0..600).map(|n| (job(n).id, job(n).job.revision)).collect();
        assert_eq!(a.notify(&changes).await, Ok(true));
        let mut heard = Vec::new();
        while heard.len() < changes.len() {
            match soon("a notification", other.next()).await.expect("heard") {
                Heard::Changes(some) => heard.extend(some),
                Heard::Gap => panic!("nothing was cut"),
            }
        }
        assert_eq!(heard, changes);
        assert_eq!(b.notify(&changes[..1]).await, Ok(true));
        assert_eq!(soon("the other's", own.next()).await, Ok(Heard::Changes(changes[..1].to_vec())));
        // A connection that is cut is told of, and there again.
        database.cut().await;
        let gap = soon("the gap", async {
            loop {
                match other.next().await {
                    Ok(Heard::Gap) => return,
                    Ok(Heard::Changes(_)) => panic!("nobody notified"),
                    Err(_) => {} // not yet there again
                }
            }
        });
        gap.await;
        let told = soon("a notification", async {
            loop {
                let _ = a.notify(&changes[1..2]).await; // its connection was cut, too
                if let Ok(heard) = tokio::time::timeout(Duration::from_millis(200), other.next()).await {
                    return heard;
                }
            }
        });
        assert_eq!(told.await, Ok(Heard::Changes(changes[1..2].to_vec())));
        a.close().await;
        b.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_second_root_is_refused_while_another_is_in_use() {
    on_servers(async |database| {
        let with = |bytes: &[u8]| Options {
            keys: keys(bytes),
            node: format!("{bytes:?}"),
            ..options(database.url())
        };
        // Nothing is sealed yet: but the other may do so at any moment.
        let first = open(with(&[1])).await;
        let refused = Store::open(with(&[2]), Arc::new(StillClock), &Tasks::default()).await;
        assert!(matches!(refused, Err(crate::store::OpenError::MissingRoot { .. })), "{refused:?}");
        // With both a node may begin before the others know the new one; they need it.
        let second = open(with(&[2, 1])).await;
        assert_eq!(first.identity_key(), second.identity_key());
        added(&second, job(1)).await;
        let refused = Store::open(with(&[1]), Arc::new(StillClock), &Tasks::default()).await;
        assert!(matches!(refused, Err(crate::store::OpenError::MissingRoot { .. })), "{refused:?}");
        first.close().await;
        second.close().await;
        // The old one is of the past, and nothing is sealed with it.
        open(with(&[2])).await.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_begin_at_once_make_the_tables_once() {
    on_servers(async |database| {
        let tasks = Tasks::default();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
        for n in 0..8 {
            let (sender, tasks_of_store) = (sender.clone(), tasks.clone());
            let options = Options { node: format!("node {n}"), ..options(database.url()) };
            tasks.spawn("opens", async move {
                let opened = Store::open(options, Arc::new(StillClock), &tasks_of_store).await;
                sender.send(opened).await.expect("awaited");
            });
        }
        for _ in 0..8 {
            let opened = soon("a node", receiver.recv()).await.expect("told");
            opened.unwrap_or_else(|error| panic!("{error}")).close().await;
        }
        let store = node(database, "last").await;
        assert_eq!(count(&store, "SELECT count(*) FROM seaql_migrations").await, 1);
        assert_eq!(count(&store, "SELECT count(*) FROM node_commit WHERE node <> ''").await, 1);
        assert_ne!(store.backend(), DbBackend::Sqlite);
        store.close().await;
    })
    .await;
}
