//! What reaches a node that does not run the job is passed on to the one that does,
//! and its answer is passed back, both unchanged: bytes that this version does not
//! know, and details of errors, included.
//!
//! A layer within all others: what is passed on is gRPC whatever it was outside, its
//! caller was let in here, and is judged anew where it arrives by the very token that
//! it brought. What came from another node (the header `backjob-relayed`) is never
//! passed on again, so no call goes in circles; that header opens nothing.
//!
//! Who runs a job is read from the tables once and remembered for its attempt, until
//! anything about it fails. A job that runs here is found here first.

mod owners;
mod peers;
mod wire;

#[cfg(test)]
mod tests;

pub use peers::PeerTls;

use super::{auth::Caller, intake, status};
use crate::{
    engine::{Engine, Error},
    secret::ReportToken,
};
use futures_util::future::Either;
use http::{Request, Response};
use http_body_util::Full;
use owners::{Attempt, Owner};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::watch;
use tonic::{Extensions, Status, body::Body, codegen::Service};
use wire::{Destination, Wire};

/// Stands on what another node has passed on, with that node's name.
pub(super) const RELAYED: &str = "backjob-relayed";

const REPORT: &str = "/backjob.v1.JobWorker/Report";
const REPORT_STREAM: &str = "/backjob.v1.JobWorker/ReportStream";
const CANCEL: &str = "/backjob.v1.JobControl/CancelJob";

/// How other nodes are reached.
pub struct Relaying {
    /// Name of this node.
    pub node: String,
    /// How long a node may be silent until it is taken for dead: longer, and longer
    /// than ten seconds, nobody waits for the answer to a unary call.
    pub lease: Duration,
    /// Whom to trust over https://, and what to show.
    pub tls: watch::Receiver<Arc<PeerTls>>,
}

/// Passes on.
pub(super) struct Relay {
    engine: Arc<Engine>,
    wire: Arc<Wire>,
}

impl Relay {
    /// None where no other node shares the database.
    pub fn new(engine: &Arc<Engine>, relaying: Relaying) -> Option<Arc<Self>> {
        engine
            .is_shared()
            .then(|| Arc::new(Self { engine: Arc::clone(engine), wire: Arc::new(Wire::new(relaying)) }))
    }

    /// Where an attempt runs, if that is another node.
    async fn owner(&self, token: ReportToken) -> Option<Destination> {
        let attempt = Attempt { job: token.job, number: token.attempt };
        let to = |owner| Destination { job: token.job, attempt: Some(attempt), owner };
        if let Some(owner) = self.wire.owners.get(attempt) {
            return Some(to(owner));
        }
        match self.engine.find_owner(token.job).await {
            Err(Error::Elsewhere { node, advertise, .. }) => {
                let owner = Owner::new(&node, advertise.as_deref());
                self.wire.owners.remember(attempt, owner.clone());
                Some(to(owner))
            }
            // What else there is to say is said by who takes the report.
            Ok(()) | Err(_) => None,
        }
    }
}

/// Where a use case finds, in the extensions of its request, room to say that another
/// node has to be asked.
#[derive(Clone, Default)]
struct Elsewhere(Arc<OnceLock<Destination>>);

/// The status of a use case that failed; if another node has to be asked, that is done
/// instead of answering so.
pub(super) fn refused(extensions: &Extensions, error: Error) -> Status {
    if let Error::Elsewhere { job, node, advertise } = &error
        && let Some(Elsewhere(place)) = extensions.get()
    {
        let owner = Owner::new(node, advertise.as_deref());
        let _ = place.set(Destination { job: *job, attempt: None, owner }); // the first one counts
    }
    status::of(error)
}

/// A service before which calls for jobs of other nodes are passed on.
#[derive(Clone)]
pub(super) struct Relayed<S> {
    pub inner: S,
    /// None where there are no other nodes.
    pub relay: Option<Arc<Relay>>,
}

/// What may have to be passed on.
enum Kind {
    Report(ReportToken, wire::Form),
    Cancel,
}

impl Kind {
    fn of(request: &Request<Body>) -> Option<Self> {
        let form = match request.uri().path() {
            CANCEL => return Some(Self::Cancel),
            REPORT => wire::Form::Unary,
            REPORT_STREAM => wire::Form::Stream,
            _ => return None,
        };
        match request.extensions().get() {
            Some(Caller::Action(token)) => Some(Self::Report(*token, form)),
            _ => None,
        }
    }
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Relayed<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Answer<S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let relay = self.relay.as_ref().filter(|_| !request.headers().contains_key(RELAYED));
        let kind = relay.and_then(|relay| Some((relay, Kind::of(&request)?)));
        let (relay, kind) = match kind {
            None => return Either::Left(self.inner.call(request)),
            Some((relay, Kind::Report(token, _))) if relay.engine.runs_here(token.job) => {
                return Either::Left(self.inner.call(request));
            }
            Some((relay, kind)) => (Arc::clone(relay), kind),
        };
        // The one that is ready answers; its clone takes its place.
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        match kind {
            Kind::Report(token, form) => Either::Right(Box::pin(report(relay, inner, request, token, form))),
            Kind::Cancel => Either::Right(Box::pin(cancel(relay, inner, request))),
        }
    }
}

async fn report<S>(
    relay: Arc<Relay>,
    mut inner: S,
    request: Request<Body>,
    token: ReportToken,
    form: wire::Form,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    match relay.owner(token).await {
        Some(to) => Ok(relay.wire.forward(request, to, form).await),
        None => inner.call(request).await,
    }
}

/// Only the use case reads which job it is; so its request is kept until it has.
async fn cancel<S>(
    relay: Arc<Relay>,
    mut inner: S,
    request: Request<Body>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    let (parts, body) = request.into_parts();
    let message = match intake::whole(body).await {
        Ok(message) => message,
        Err(status) => return Ok(status.into_http()),
    };
    let place = Elsewhere::default();
    let again = || Body::new(Full::new(message.clone()));
    let mut request = Request::from_parts(parts.clone(), again());
    request.extensions_mut().insert(place.clone());
    let answer = inner.call(request).await?;
    match place.0.get() {
        None => Ok(answer),
        Some(to) => {
            Ok(relay.wire.forward(Request::from_parts(parts, again()), to.clone(), wire::Form::Unary).await)
        }
    }
}
