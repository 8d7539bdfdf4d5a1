//! The database goes away under several nodes, and comes back.
//!
//! BACKJOB_TEST_OUTAGE says for how many seconds (5).

use super::{
    takeover::{audited, listening},
    *,
};
use crate::{
    faults::{start_until_refused, until_serving},
    load::{Load, number, seed},
};
use backjob::proto::v1::{self, JobState};
use futures_util::future::join_all;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};

/// What becomes of connections to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// All are cut, and new ones are refused: the server is down.
    Refused,
    /// They are open, and nothing gets through: the server's machine is gone.
    Silent,
}

/// A way to a server that can be closed.
struct Road {
    address: SocketAddr,
    way: watch::Sender<Way>,
}

impl Road {
    async fn to(server: String) -> Self {
        let way = watch::Sender::new(Way::Open);
        let mut listener = Some(TcpListener::bind("127.0.0.1:0").await.expect("a listener"));
        let address = listener.as_ref().and_then(|listener| listener.local_addr().ok()).expect("an address");
        let mut changes = way.subscribe();
        spawn(async move {
            loop {
                let now = *changes.borrow_and_update();
                if now == Way::Refused {
                    listener = None;
                } else if listener.is_none() {
                    listener = Some(TcpListener::bind(address).await.expect("the same port"));
                }
                let accepted = async {
                    match &listener {
                        Some(listener) => listener.accept().await.expect("a connection").0,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    client = accepted => drop(spawn(travel(client, server.clone(), changes.clone()))),
                }
            }
        });
        Self { address, way }
    }
}

/// One connection, until the way changes; one on which nothing gets through, until it
/// changes again.
async fn travel(mut client: TcpStream, server: String, mut way: watch::Receiver<Way>) {
    let began = *way.borrow_and_update();
    if began == Way::Open {
        let Ok(mut server) = TcpStream::connect(server).await else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = way.changed() => {}
        }
    }
    if *way.borrow_and_update() == Way::Silent {
        let _ = way.changed().await; // or the test is over
    }
}

async fn goes_away_and_comes_back(how: Way) {
    if !on_a_server() {
        return;
    }
    let outage = Duration::from_secs(number("BACKJOB_TEST_OUTAGE").unwrap_or(5));
    let seed = seed();
    let settings = [
        ("targets.default.max_in_flight", "10"),
        ("jobs.flush_interval", "20ms"),
        ("jobs.error_timeout", "60s"),
        ("jobs.cancel_grace", "1s"),
    ];
    let (mut nodes, addresses) = listening(&settings).await;
    let database = Arc::clone(nodes.setups[0].database.as_ref().expect("a database"));
    let road = Road::to(database.address().to_owned()).await;
    for node in 0..3 {
        nodes.set(node, "database.url", &database.url_at(road.address));
    }
    let running = join_all((0..3).map(|node| nodes.process(node))).await;
    // One job is followed through all of it, where it runs.
    let owner = &running[0];
    let watched = owner.start(start("/watched")).await.id;
    let mut hit = nodes.applications[0].hit().await;
    let token = hit.token();
    let mut frames = owner.watch_one(&watched).await;
    let mut last = 0;
    let mut shown = async |what: &str, wanted: &dyn Fn(&v1::Job) -> bool| {
        let seen = async {
            loop {
                let job = frames.job().await;
                assert!(job.revision > last, "{} after {last}", job.revision);
                last = job.revision;
                if wanted(&job) {
                    return;
                }
            }
        };
        soon(what, seen).await;
    };
    let at = |sequence, percent| v1::ReportRequest { sequence: Some(sequence), ..progress(percent) };
    owner.report(&token, at(1, 10)).await.expect("taken");
    shown("10 %", &|job| job.progress == 10).await;

    let applications: Vec<Arc<Application>> =
        std::mem::take(&mut nodes.applications).into_iter().map(Arc::new).collect();
    let load = Load::begin(seed, &Clients::over(&addresses), &applications);
    tokio::time::sleep(Duration::from_secs(1)).await; // of load
    road.way.send_replace(how);
    let closed = Instant::now();
    // What waits long enough is neither run nor ended by anybody else.
    let later = v1::StartRequest { start_after: Some(seconds(3_600)), ..start("/later") };
    let later = v1::StartRequest { idempotency_key: "later".into(), ..later };
    let mut acknowledged = Vec::new();
    for node in &running {
        acknowledged.extend(start_until_refused(node, later.clone()).await);
        until_serving(node, false).await;
    }
    // Who works here may go on, and who watches here sees it.
    owner.report(&token, at(2, 20)).await.expect("taken");
    shown("20 %", &|job| job.progress == 20).await;
    tokio::time::sleep_until(closed + outage).await;
    for node in &running {
        until_serving(node, false).await;
    }
    owner.report(&token, at(3, 30)).await.expect("taken");
    shown("30 %", &|job| job.progress == 30).await;

    road.way.send_replace(Way::Open);
    for node in &running {
        until_serving(node, true).await;
    }
    for node in &running {
        node.until(&watched, "what was reported meanwhile", |job| job.progress == 30).await;
    }
    owner.report(&token, v1::ReportRequest { sequence: Some(4), ..finish() }).await.expect("taken");
    hit.ok();
    shown("its end", &|job| job.state() == JobState::Succeeded).await;
    // Whoever was not told what came of it asks again, and learns that.
    acknowledged.push(owner.start(later).await.id);
    let later = &acknowledged[0];
    assert!(acknowledged.iter().all(|id| id == later), "{acknowledged:?}");
    for node in &running {
        assert_eq!(node.get(later).await.state(), JobState::Scheduled);
    }
    running[1].cancel(later).await.expect("cancelled");
    audited(seed, 10, &load.end().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_for_a_while_costs_nothing_that_was_acknowledged() {
    goes_away_and_comes_back(Way::Refused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_for_a_while_costs_nothing_that_was_acknowledged() {
    goes_away_and_comes_back(Way::Silent).await;
}
