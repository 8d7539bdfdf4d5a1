//! The wire: gRPC, gRPC-Web, Connect's unary form, health and reflection, all on one port.
//!
//! Imports everything below it but the store and the trigger, and the generated
//! messages. `convert` is the only bridge between messages and words inside,
//! `status` the only place that makes a `tonic::Status`. Nothing is decided
//! here: each rpc reads its request, calls one use case, writes its answer.

mod auth;
mod connect;
mod control;
mod convert;
pub mod frame;
mod mask;
mod page;
mod status;
mod watch;
mod worker;

use crate::{clock::Clock, engine::Engine, proto, secret::Keyring, tasks::Tasks};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};
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
}

/// What is served.
pub struct Parts {
    /// The use cases.
    pub engine: Arc<Engine>,
    /// For the time in frames.
    pub clock: Arc<dyn Clock>,
    /// For report tokens.
    pub keys: Arc<Keyring>,
    /// Who spawns.
    pub tasks: Tasks,
}

/// Serves until `stop`, then until every connection has ended.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    parts: Parts,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let Parts { engine, clock, keys, tasks } = parts;
    let (reporter, health) = tonic_health::server::health_reporter();
    tasks.spawn("health", watch_health(reporter, Arc::clone(&engine), tasks.clone()));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let service = Service { engine, clock, keys, tasks };
    let control = frame::server::job_control_server::JobControlServer::new(service.clone())
        .max_decoding_message_size(MESSAGE);
    let worker =
        proto::v1::job_worker_server::JobWorkerServer::new(service).max_decoding_message_size(MESSAGE);
    Server::builder()
        .accept_http1(true)
        .tcp_nodelay(true)
        // Notices clients that vanished without a word.
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .layer(connect::ConnectLayer)
        .layer(tonic_web::GrpcWebLayer::new())
        .add_service(control)
        .add_service(worker)
        .add_service(health)
        .add_optional_service(reflection().build_v1().ok())
        .add_optional_service(reflection().build_v1alpha().ok())
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop)
        .await
}

/// NOT_SERVING while the store is away or the server drains.
async fn watch_health(reporter: HealthReporter, engine: Arc<Engine>, tasks: Tasks) {
    use tonic_health::ServingStatus;
    let mut told = None;
    loop {
        let healthy = engine.healthy();
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
