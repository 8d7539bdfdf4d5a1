//! The raw tonic server: an echo, one that is durable, jobs that are nothing but that and
//! a call, a map, a sink for streams, and a fan-out that knows nothing but its subscribers.

use super::client::KIND;
use crate::{
    child::{self, Questions},
    fault::Fault,
    floor::{
        Blob, filler,
        group::Group,
        job::Jobs,
        wire::raw_server::{Raw, RawServer},
    },
    tasks::spawn,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

type Blobs = Pin<Box<dyn Stream<Item = Result<Blob, Status>> + Send>>;

/// What was published may wait for a subscriber in this number.
const QUEUE: usize = 8;

/// What the raw server is told to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Question {
    /// To store jobs in a database of its own at `file`, as the service does in the one at
    /// `like`, and to call the application at this port.
    Store { file: PathBuf, like: PathBuf, application: u16 },
}

type Subscriber = mpsc::Sender<Result<Blob, Status>>;

#[derive(Clone, Default)]
struct Service(Arc<Shared>);

#[derive(Default)]
struct Shared {
    subscribers: Mutex<Vec<Subscriber>>,
    kept: Mutex<HashMap<u128, Box<[u8]>>>,
    jobs: OnceLock<Jobs>,
    /// Why a job did not end.
    failed: OnceLock<String>,
}

impl Shared {
    fn jobs(&self) -> Result<&Jobs, Status> {
        self.jobs.get().ok_or_else(|| Status::failed_precondition("no database"))
    }
}

#[tonic::async_trait]
impl Raw for Service {
    async fn echo(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        let Blob { answer, sent, .. } = request.into_inner();
        Ok(Response::new(Blob { answer: 0, sent, data: filler(answer as usize) }))
    }

    /// Echoes when the rows of a job are durable.
    async fn store(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        self.0.jobs()?.group.start().await.map_err(Status::internal)?;
        self.echo(request).await
    }

    /// The same, and then runs the job; `sent` is its tag. Fails if an earlier one did.
    async fn run(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        if let Some(failed) = self.0.failed.get() {
            return Err(Status::internal(failed));
        }
        let job = self.0.jobs()?.group.start().await.map_err(Status::internal)?;
        let kind = request.metadata().get(KIND).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let Blob { sent, data, .. } = request.get_ref();
        let (shared, path, data) = (Arc::clone(&self.0), format!("/raw/{kind}?{sent}"), data.clone());
        spawn(async move {
            let ran = match shared.jobs() {
                Ok(jobs) => jobs.run(job, &path, data).await,
                Err(status) => Err(status.into()),
            };
            if let Err(error) = ran {
                // The first tells enough.
                let _ = shared.failed.set(error.to_string());
            }
        });
        self.echo(request).await
    }

    /// Keeps a copy of each message under a number of its own, as many as are asked for.
    async fn keep(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        let Blob { answer, data, .. } = request.into_inner();
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..answer {
            let number = kept.len() as u128;
            kept.insert(number, data.as_ref().into());
        }
        Ok(Response::new(Blob::default()))
    }

    type SinkStream = Blobs;

    /// Takes all and says in the end how many there were.
    async fn sink(&self, request: Request<Streaming<Blob>>) -> Result<Response<Blobs>, Status> {
        let mut blobs = request.into_inner();
        let (answers, receiver) = mpsc::channel(1);
        spawn(async move {
            let mut sent = 0;
            while let Ok(Some(_)) = blobs.message().await {
                sent += 1;
            }
            // Who asked may be gone.
            let _ = answers.send(Ok(Blob { sent, ..Blob::default() })).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    /// Hands the message to all subscribers and then answers.
    async fn publish(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        let Blob { answer, sent, data } = request.into_inner();
        let blob = Blob { answer: 0, sent, data: filler(answer as usize) };
        let mut subscribers = self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        // Only who has left is dropped: the benchmark publishes no faster than all read.
        subscribers.retain(|subscriber| {
            !matches!(subscriber.try_send(Ok(blob.clone())), Err(mpsc::error::TrySendError::Closed(_)))
        });
        Ok(Response::new(Blob { answer: 0, sent, data }))
    }

    type SubscribeStream = Blobs;

    /// One message at once, so that both know that it holds, and then what is
    /// published.
    async fn subscribe(&self, request: Request<Blob>) -> Result<Response<Blobs>, Status> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let first = Blob { data: filler(request.into_inner().answer as usize), ..Blob::default() };
        sender.try_send(Ok(first)).map_err(|error| Status::internal(error.to_string()))?;
        self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Answers with its port, and serves until the parent is gone.
pub async fn run() -> Result<(), Fault> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = Service::default();
    let server = Server::builder().add_service(RawServer::new(service.clone()));
    spawn(server.serve_with_incoming(incoming));
    child::answer(&Ok(port))?;
    let mut questions = Questions::new();
    while let Some(Question::Store { file, like, application }) = questions.next().await? {
        let jobs = Group::open(&file, &like).and_then(|group| Jobs::new(group, application, port));
        child::answer(
            &jobs.and_then(|jobs| service.0.jobs.set(jobs).map_err(|_| "a database already".into())),
        )?;
    }
    Ok(())
}
