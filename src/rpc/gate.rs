//! The gate: the outermost layer, which decides from the head of a request whether
//! it is let in: by name and page (`origin.rs`), by token (`auth.rs`), by how much
//! is under way. Nothing of a body is read before.

use super::{
    MESSAGE,
    access::{self, Access, Call},
    auth::Tokens,
    budget::{Budget, KEPT, UNIT},
    connect,
    intake::{Intake, Kept},
    leftover,
    origin::Origins,
    outgo::{self, Unread},
    relay::RELAYED,
    status,
};
use bytes::Bytes;
use futures_util::future::{Either, Ready, ready};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, body::Body, codegen::Service};

/// Streams of health that may be open at once: nobody is asked for a token there.
const HEALTH: usize = 1_000;
/// Calls of health that may be under way on one connection. They take no place of
/// the others, so that who has no token keeps nobody out.
const HEALTH_EACH: usize = 16;

/// Places for calls.
#[derive(Debug, Clone)]
struct Places {
    all: Arc<Semaphore>,
    /// What streams answers may take of them, so that a Start or a report always
    /// finds one.
    watches: Arc<Semaphore>,
    /// For what other nodes pass on: what is under way here may wait for their answer,
    /// and theirs for ours.
    relayed: Arc<Semaphore>,
    health: Arc<Semaphore>,
    most: usize,
}

/// What a call holds while it is under way.
pub(super) type Held = [Option<OwnedSemaphorePermit>; 2];

/// What is checked of every request.
#[derive(Clone)]
pub(super) struct Rules {
    pub tokens: Tokens,
    origins: Arc<Origins>,
    places: Places,
    budget: Budget,
    kept: Budget,
    answers: Budget,
}

impl Rules {
    /// At most `most` calls at once.
    pub fn new(tokens: Tokens, origins: Origins, most: usize) -> Self {
        let semaphore = |most| Arc::new(Semaphore::new(most));
        let places = Places {
            all: semaphore(most),
            watches: semaphore(most - most / 10),
            relayed: semaphore(most),
            health: semaphore(HEALTH),
            most,
        };
        Self {
            tokens,
            origins: Arc::new(origins),
            places,
            budget: Budget::default(),
            kept: Budget::of(KEPT / UNIT),
            answers: Budget::default(),
        }
    }

    /// Who calls goes into the extensions of what is let in.
    fn admit(&self, request: &mut Request<Incoming>, call: Call, from: &Connection) -> Result<Held, Status> {
        self.origins.check(request, from.local).map_err(status::origin_refused)?;
        let caller = self.tokens.admit(call, request.headers())?;
        request.extensions_mut().insert(caller);
        let place = |places: &Arc<Semaphore>, most| {
            Arc::clone(places).try_acquire_owned().map_err(|_| status::too_many_calls(most))
        };
        if call.access == Access::Public {
            let stream = call.answers.then(|| place(&self.places.health, HEALTH)).transpose()?;
            return Ok([Some(place(&from.health, HEALTH_EACH)?), stream]);
        }
        let share = match (call.access, call.answers) {
            (Access::Report, _) | (_, false) => None,
            (_, true) => Some(place(&self.places.watches, self.places.most)?),
        };
        let relayed = request.headers().contains_key(RELAYED);
        let all = if relayed { &self.places.relayed } else { &self.places.all };
        Ok([Some(place(all, self.places.most)?), share])
    }
}

/// What belongs to one connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// The address that the client connected to.
    local: SocketAddr,
    health: Arc<Semaphore>,
    /// Answers that it did not take yet.
    pub unread: Arc<Unread>,
}

impl Connection {
    /// One that has just begun.
    pub fn new(local: SocketAddr) -> Self {
        Self { local, health: Arc::new(Semaphore::new(HEALTH_EACH)), unread: Arc::default() }
    }
}

/// A service behind the gate, on one connection.
#[derive(Clone)]
pub(super) struct Gate<S> {
    pub inner: S,
    pub rules: Rules,
    pub connection: Connection,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
/// What becomes of a request.
pub(super) type Answered = Either<Ready<Result<Response<Body>, Infallible>>, Answer>;

impl<S> Service<Request<Incoming>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answered;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Incoming>) -> Answered {
        self.pass(request)
    }
}

impl<S> Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    /// Lets a request in, or not. What is behind the gate is ready at any time.
    pub fn pass(&self, mut request: Request<Incoming>) -> Answered {
        let call = access::call(request.uri().path());
        let held = match self.rules.admit(&mut request, call, &self.connection) {
            Ok(held) => held,
            Err(refused) => {
                let response = connect::refused(request.headers(), &refused);
                if !leftover::matters(&request) {
                    return Either::Left(ready(Ok(response)));
                }
                return Either::Right(Box::pin(async move {
                    leftover::read(request.into_body()).await;
                    Ok(response)
                }));
            }
        };
        let budget = self.rules.budget.clone();
        // What is only read is gone with its message.
        let does = matches!(call.access, Access::Operator | Access::Report);
        let kept = (does && !call.asks).then(|| Kept::new(self.rules.kept.clone()));
        let (request, left) = if leftover::matters(&request) {
            let (parts, body) = request.into_parts();
            let (body, left) = leftover::given_back(body);
            let body = Intake::new(body, call.asks, MESSAGE, budget, kept.clone());
            (Request::from_parts(parts, Body::new(body)), Some(left))
        } else {
            (request.map(|body| Body::new(Intake::new(body, call.asks, MESSAGE, budget, kept.clone()))), None)
        };
        let answer = self.inner.clone().call(request);
        let (answers, unread) = (self.rules.answers.clone(), Arc::clone(&self.connection.unread));
        Either::Right(Box::pin(async move {
            let response = answer.await?;
            drop(kept);
            if let Some(Ok(left)) = left.map(|mut left| left.try_recv()) {
                leftover::read(left).await;
            }
            Ok(if call.answers {
                response.map(|body| Body::new(Placed { body, _held: held }))
            } else {
                // What was done is answered, and what was only read may be read again.
                outgo::keep(response, &answers, &unread, does, held).await
            })
        }))
    }
}

/// A stream that holds its place until it has ended.
struct Placed {
    body: Body,
    _held: Held,
}

impl http_body::Body for Placed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
