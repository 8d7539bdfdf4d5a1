//! The wire: gRPC, gRPC-Web, Connect's unary form, health and reflection, all on one port.
//!
//! Imports everything below it but the store and the trigger, and the generated
//! messages. `convert` is the only bridge between messages and words inside,
//! `status` the only place that makes a `tonic::Status`. Nothing is decided
//! here: each rpc reads its request, calls one use case, writes its answer.

mod access;
mod auth;
mod batch;
mod budget;
mod calls;
pub mod codec;
mod connect;
mod control;
mod convert;
pub mod frame;
mod gate;
mod intake;
mod leftover;
mod listen;
mod mask;
mod origin;
mod outgo;
mod page;
mod relay;
mod rooms;
mod status;
mod tls;
mod watch;
mod worker;

pub use listen::Tls;
pub use relay::{PeerTls, Relaying};
pub use tls::{BadTls, server_config};

use crate::{
    clock::Clock,
    descriptors::Descriptors,
    engine::Engine,
    proto,
    secret::{Callers, Keyring},
    tasks::Tasks,
};
use auth::Tokens;
use gate::Rules;
use listen::Listener;
use origin::Origins;
use rooms::Rooms;
use std::{sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::server::HealthReporter;

/// Bytes of a message, at most.
const MESSAGE: usize = 4 * 1024 * 1024;
/// Between two looks at our own health.
const HEALTH: Duration = Duration::from_millis(250);

/// Answers both services.
#[derive(Clone)]
struct Service {
    engine: Arc<Engine>,
    clock: Arc<dyn Clock>,
    keys: Arc<Keyring>,
    tasks: Tasks,
    /// Whether callers are asked who they are.
    asks: bool,
}

/// What is served.
pub struct Parts {
    /// The use cases.
    pub engine: Arc<Engine>,
    /// For the time in frames.
    pub clock: Arc<dyn Clock>,
    /// For report and watch tokens.
    pub keys: Arc<Keyring>,
    /// Who waits for one is not healthy.
    pub descriptors: Descriptors,
    /// Who spawns.
    pub tasks: Tasks,
}

/// Where it is served, and to whom.
pub struct Doors {
    /// For everything.
    pub listener: TcpListener,
    /// What `listener` is encrypted with, and what replaces it; none for plain
    /// HTTP.
    pub tls: Option<Tls>,
    /// Unencrypted, for running actions alone.
    pub worker: Option<TcpListener>,
    /// Tokens of callers, and what replaces them; none lets in everyone.
    pub callers: Option<tokio::sync::watch::Receiver<Arc<Callers>>>,
    /// Names in lower case, beside loopback and the address of the listener, under
    /// which browsers and others over HTTP/1.1 may call.
    pub hosts: Vec<String>,
    /// Origins in lower case whose pages may call.
    pub cors_origins: Vec<String>,
    /// Open connections of each listener, at most.
    pub max_connections: usize,
    /// Calls under way on one connection, at most.
    pub max_streams: u32,
    /// Calls under way in all, at most; what other nodes pass on has as many places of
    /// its own.
    pub max_calls: usize,
    /// How other nodes are reached, where they share the database.
    pub relay: Relaying,
}

/// Serves until `stop`, then until every connection has ended.
pub async fn serve(parts: Parts, doors: Doors, stop: CancellationToken) {
    let Parts { engine, clock, keys, descriptors, tasks } = parts;
    let Doors { listener, tls, worker, callers, hosts, cors_origins, relay, .. } = doors;
    let (reporter, health) = tonic_health::server::health_reporter();
    tasks.spawn("health", watch_health(reporter, Arc::clone(&engine), descriptors.clone(), tasks.clone()));
    let asks = callers.is_some();
    let tokens = Tokens { callers, keys: Arc::clone(&keys) };
    let origins =
        Origins { hosts: hosts.into_iter().collect(), origins: cors_origins.iter().cloned().collect() };
    let rules = Rules::new(tokens, origins, doors.max_calls);
    let relay = relay::Relay::new(&engine, relay);
    let service = Service { engine, clock, keys, tasks: tasks.clone(), asks };
    let open = |tcp, tls, rooms| Listener {
        tcp,
        tls,
        rooms,
        rules: rules.clone(),
        relay: relay.clone(),
        origins: cors_origins.clone(),
        max_connections: doors.max_connections,
        max_streams: doors.max_streams,
        descriptors: descriptors.clone(),
    };
    let reports = frame::server::job_worker_server::JobWorkerServer::new(service.clone())
        .max_decoding_message_size(MESSAGE);
    let control =
        frame::server::job_control_server::JobControlServer::new(service).max_decoding_message_size(MESSAGE);
    let mut others = RoutesBuilder::default();
    others.add_service(health);
    let few = Rooms { worker: reports, control: None, others: others.clone().routes().prepare() };
    let all = Rooms { control: Some(control), others: reflected(others).prepare(), ..few.clone() };
    let worker = worker.map(|tcp| open(tcp, None, few));
    let all = open(listener, tls, all);
    match worker {
        None => all.serve(tasks, stop).await,
        Some(worker) => {
            tokio::join!(all.serve(tasks.clone(), stop.clone()), worker.serve(tasks, stop));
        }
    }
}

/// With what tells clients which services there are.
fn reflected(mut routes: RoutesBuilder) -> Routes {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    if let Ok(reflection) = reflection().build_v1() {
        routes.add_service(reflection);
    }
    if let Ok(reflection) = reflection().build_v1alpha() {
        routes.add_service(reflection);
    }
    routes.routes()
}

/// NOT_SERVING while the store is away, no descriptor is free for whoever comes or for
/// a trigger, or the server drains.
async fn watch_health(reporter: HealthReporter, engine: Arc<Engine>, descriptors: Descriptors, tasks: Tasks) {
    use tonic_health::ServingStatus;
    let mut told = None;
    loop {
        let healthy = engine.healthy() && !descriptors.are_lacking();
        if told != Some(healthy) {
            told = Some(healthy);
            let status = if healthy { ServingStatus::Serving } else { ServingStatus::NotServing };
            for name in ["", "backjob.v1.JobControl", "backjob.v1.JobWorker"] {
                reporter.set_service_status(name, status).await;
            }
        }
        tokio::select! {
            () = tasks.stop().cancelled() => return,
            () = tokio::time::sleep(HEALTH) => {}
        }
    }
}
