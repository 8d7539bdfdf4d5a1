//! A connection that breaks off at COMMIT: whether the transaction was stored is
//! looked up. A proxy between store and server breaks it off at that very point.

use super::*;
use crate::store::Existing;
use std::{
    net::SocketAddr,
    sync::{
        OnceLock,
        atomic::{AtomicU8, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const PASS: u8 = 0;
/// The server does not get the COMMIT.
const BEFORE: u8 = 1;
/// The server carries it out, and the store does not hear of it.
const AFTER: u8 = 2;
/// Nothing gets through any more.
const AWAY: u8 = 3;

/// Both of PostgreSQL's and MariaDB's protocols send these as they are.
const COMMIT: &[u8] = b"COMMIT";
const BEGIN: &[u8] = b"BEGIN";
const START: &[u8] = b"START TRANSACTION";

struct Proxy {
    address: SocketAddr,
    mode: Arc<AtomicU8>,
    /// How many commits are let through before one is cut, and how many came.
    spared: Arc<AtomicUsize>,
    came: Arc<AtomicUsize>,
    /// The store's: a statement outside a transaction that writes it down commits, too.
    incarnation: Arc<OnceLock<[u8; 16]>>,
}

impl Proxy {
    async fn new(database: &OwnDatabase, tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let server = database.address().to_owned();
        let mode = Arc::new(AtomicU8::new(PASS));
        let incarnation = Arc::new(OnceLock::new());
        let (spared, came) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&spared), Arc::clone(&came));
        let (modes, own, more) = (Arc::clone(&mode), Arc::clone(&incarnation), tasks.clone());
        tasks.spawn("proxy", async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, mode, own) = (server.clone(), Arc::clone(&modes), Arc::clone(&own));
                let counts = counts.clone();
                more.spawn("proxied", async move {
                    if mode.load(Ordering::SeqCst) == AWAY {
                        return;
                    }
                    if let Ok(server) = TcpStream::connect(server).await {
                        let _ = through(client, server, &mode, &counts, &own).await;
                    }
                });
            }
        });
        Self { address, mode, spared, came, incarnation }
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    /// A store through here.
    async fn open(&self, database: &OwnDatabase) -> Store {
        let store = open(options(database.url_at(self.address))).await;
        self.incarnation.set(store.incarnation()).expect("one store a proxy");
        store
    }

    fn mode(&self) -> u8 {
        self.mode.load(Ordering::SeqCst)
    }
}

async fn through(
    mut client: TcpStream,
    mut server: TcpStream,
    mode: &AtomicU8,
    (spared, came): &(Arc<AtomicUsize>, Arc<AtomicUsize>),
    own: &OnceLock<[u8; 16]>,
) -> std::io::Result<()> {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut in_transaction = false;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let bytes = &up[..read?];
                if bytes.is_empty() || mode.load(Ordering::SeqCst) == AWAY {
                    return Ok(());
                }
                let says = |what: &[u8]| bytes.windows(what.len()).any(|part| part == what);
                in_transaction |= says(BEGIN) || says(START);
                let commits = says(COMMIT);
                if (commits || !in_transaction && own.get().is_some_and(|own| says(own)))
                    && came.fetch_add(1, Ordering::SeqCst) >= spared.load(Ordering::SeqCst)
                {
                    // Once: what follows gets through.
                    if mode.compare_exchange(BEFORE, PASS, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                        return Ok(());
                    }
                    if mode.compare_exchange(AFTER, PASS, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                        server.write_all(bytes).await?;
                        let _answer = server.read(&mut down).await?; // which the store does not get
                        return Ok(());
                    }
                }
                in_transaction &= !(commits || says(b"ROLLBACK"));
                server.write_all(bytes).await?;
            }
            read = server.read(&mut down) => {
                let bytes = &down[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                client.write_all(bytes).await?;
            }
        }
    }
}

fn joining(n: i64) -> Write {
    let merge = Some(Merge { key: [7; 32], join: true });
    Write::Insert(Box::new(New { merge, ..New::of(job(n), payload()) }))
}

#[tokio::test]
async fn a_commit_that_breaks_off_is_looked_up_and_never_guessed() {
    on_servers(async |database| {
        let tasks = Tasks::default();
        let proxy = Proxy::new(database, &tasks).await;
        let store = proxy.open(database).await;
        assert_eq!(write(&store, joining(1)).await, Ok(Outcome::Done));
        let joined = Ok(Outcome::Existing(Existing::Joined(job(1).id)));
        for (n, mode) in [BEFORE, AFTER, AFTER, BEFORE, AFTER].into_iter().enumerate() {
            proxy.set(mode);
            let n = i64::try_from(n).expect("small");
            // A join tells: it would be counted twice, or not at all.
            assert_eq!(write(&store, joining(10 + n)).await, joined, "{n}");
            assert_eq!(proxy.mode(), PASS, "it was cut");
            assert_eq!(i64::from(one(&store, job(1).id).await.merged_count), n + 1);
        }
        // An insert and an update each come out as done, once.
        for mode in [BEFORE, AFTER] {
            let n = 100 + i64::from(mode);
            proxy.set(mode);
            let mut record = added(&store, job(n)).await;
            proxy.set(mode);
            happens(&store, &mut record, Event::Claim, at(NOW + 200)).await;
            assert_eq!(proxy.mode(), PASS, "it was cut");
            assert_eq!(one(&store, record.id).await.job.revision, record.job.revision);
        }
        assert!(store.healthy());
        store.close().await;
        tasks.stop().cancel();
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_away_is_told_of_and_healed_from() {
    on_servers(async |database| {
        let tasks = Tasks::default();
        let proxy = Proxy::new(database, &tasks).await;
        let store = proxy.open(database).await;
        added(&store, job(1)).await;
        proxy.set(AWAY);
        // What was on its way may be in doubt, and is told of when that is known.
        let on_its_way = hand_in(&store, insert(&job(9))).await;
        let mut health = store.health();
        let failed =
            tokio::time::timeout(Duration::from_secs(20), health.wait_for(|healthy| !*healthy)).await;
        failed.expect("in time").expect("open");
        let told = write(&store, insert(&job(2))).await;
        assert!(matches!(&told, Err(error) if error.is_transient()), "{told:?}");
        assert!(matches!(store.records(&[job(1).id], false).await, Err(error) if error.is_transient()));
        proxy.set(PASS);
        let mut health = store.health();
        let healed = tokio::time::timeout(Duration::from_secs(20), health.wait_for(|healthy| *healthy)).await;
        healed.expect("in time").expect("open");
        match on_its_way.await.expect("told") {
            Ok(outcome) => assert_eq!(outcome, Outcome::Done),
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        added(&store, job(2)).await;
        one(&store, job(1).id).await;

        // Away in the middle of a COMMIT that was carried out: it is known when the
        // server is back, and what comes meanwhile is refused.
        proxy.set(AFTER);
        let told = hand_in(&store, insert(&job(3))).await;
        while proxy.mode() != PASS {
            tokio::task::yield_now().await;
        }
        proxy.set(AWAY);
        let mut health = store.health();
        let failed =
            tokio::time::timeout(Duration::from_secs(20), health.wait_for(|healthy| !*healthy)).await;
        failed.expect("in time").expect("open");
        let refused = write(&store, insert(&job(4))).await;
        assert!(matches!(&refused, Err(error) if error.is_transient()), "{refused:?}");
        proxy.set(PASS);
        assert_eq!(told.await.expect("told"), Ok(Outcome::Done));
        assert_eq!(store.records(&[job(3).id, job(4).id], false).await.expect("read").len(), 1);
        store.close().await;
        tasks.stop().cancel();
    })
    .await;
}

/// What is done when a write is told.
type Then = Box<dyn FnOnce() + Send>;

/// What becomes of each write, all of which wait for the writer together.
async fn together(store: &Store, writes: Vec<(Write, Then)>) -> Vec<Result<Outcome, Error>> {
    let mut outcomes = Vec::with_capacity(writes.len());
    for (write, then) in writes {
        let (told, outcome) = oneshot::channel();
        let done = move |result| {
            then();
            let _ = told.send(result);
        };
        // There is room: the writer, a task of the same thread, has no turn in between.
        store.reserve().await.expect("open").write(write, Box::new(done));
        outcomes.push(outcome);
    }
    let mut results = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        results.push(outcome.await.expect("told"));
    }
    results
}

fn nothing() -> Then {
    Box::new(|| {})
}

/// Sixty jobs, and behind them the claim of the first.
fn sixty_and_a_claim(from: i64) -> (Vec<(Write, Then)>, Record) {
    let mut writes: Vec<(Write, Then)> = (from..from + 60).map(|n| (insert(&job(n)), nothing())).collect();
    let mut record = job(from);
    let revision = record.job.revision;
    record.job.apply(Event::Claim, at(NOW + from + 200)).expect("claimed");
    let attempt = Some(claimed(&record));
    let claim = Update { from: revision, record: record.clone(), text: true, attempt };
    writes.push((Write::Update(Box::new(claim)), nothing()));
    (writes, record)
}

#[tokio::test]
async fn the_next_transaction_is_on_its_way_before_those_of_the_last_are_told() {
    let Some(database) = OwnDatabase::on(ServerKind::Postgres).await else { return };
    let tasks = Tasks::default();
    let elsewhere = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let elsewhere = elsewhere.expect("a runtime");
    let proxy = {
        let _there = elsewhere.enter();
        Proxy::new(&database, &tasks).await
    };
    let store = proxy.open(&database).await;
    // A statement that is new to a connection goes there in two steps.
    together(&store, sixty_and_a_claim(1).0).await;
    let before = proxy.came.load(Ordering::SeqCst);
    let (mut writes, claimed) = sixty_and_a_claim(101);
    let (came, (say, said)) = (Arc::clone(&proxy.came), mpsc::channel());
    // The store's thread stands still in this one: what comes was sent before.
    writes[0].1 = Box::new(move || {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while came.load(Ordering::SeqCst) < before + 2 && tokio::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let _ = say.send(came.load(Ordering::SeqCst));
    });
    let told = together(&store, writes).await;
    assert!(told.iter().all(|result| *result == Ok(Outcome::Done)), "{told:?}");
    assert_eq!(said.recv().expect("told"), before + 2, "one half and the other");
    assert_eq!(one(&store, claimed.id).await.job.revision, claimed.job.revision);
    store.close().await;
    tasks.stop().cancel();
    elsewhere.shutdown_background();
}

#[tokio::test]
async fn a_transaction_that_breaks_off_behind_another_is_looked_up_too() {
    on_servers(async |database| {
        let tasks = Tasks::default();
        let proxy = Proxy::new(database, &tasks).await;
        let store = proxy.open(database).await;
        for (round, mode) in [BEFORE, AFTER].into_iter().enumerate() {
            let from = 100 * i64::try_from(round).expect("small");
            let (writes, claimed) = sixty_and_a_claim(from);
            let ids: Vec<JobId> = (from..from + 60).map(|n| job(n).id).collect();
            // One half gets through, the other is cut.
            proxy.spared.store(proxy.came.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
            proxy.set(mode);
            let told = together(&store, writes).await;
            assert!(told.iter().all(|result| *result == Ok(Outcome::Done)), "{mode}: {told:?}");
            assert_eq!(proxy.mode(), PASS, "it was cut");
            assert_eq!(store.records(&ids, false).await.expect("read").len(), ids.len());
            assert_eq!(one(&store, claimed.id).await.job.revision, claimed.job.revision);
        }
        assert!(store.healthy());
        store.close().await;
        tasks.stop().cancel();
    })
    .await;
}

#[tokio::test]
async fn one_that_is_refused_behind_another_fails_alone() {
    on_servers(async |database| {
        let store = open(options(database.url())).await;
        let (mut writes, claimed) = sixty_and_a_claim(1);
        writes.push((insert(&job(1)), nothing())); // its id is there already
        let mut told = together(&store, writes).await;
        assert!(matches!(told.pop(), Some(Err(Error::Refused(_)))));
        assert!(told.iter().all(|result| *result == Ok(Outcome::Done)), "{told:?}");
        assert_eq!(one(&store, claimed.id).await.job.revision, claimed.job.revision);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_store_that_closes_with_one_transaction_behind_another_tells_of_both() {
    on_servers(async |database| {
        let store = open(options(database.url())).await;
        let (mut writes, claimed) = sixty_and_a_claim(1);
        let closing = store.clone();
        // While the first half is told the other is on its way.
        writes[0].1 = Box::new(move || closing.shared.closing.cancel());
        let told = together(&store, writes).await;
        assert!(told.iter().all(|result| *result == Ok(Outcome::Done)), "{told:?}");
        store.close().await;
        let store = open(options(database.url())).await;
        assert_eq!(one(&store, claimed.id).await.job.revision, claimed.job.revision);
        store.close().await;
    })
    .await;
}
