//! One call that is passed on: what goes to the other node, and what comes back.

use super::{
    RELAYED, Relaying,
    owners::{Attempt, Owner, Owners},
    peers::{Peers, Place, Unreached, told},
};
use crate::{job::JobId, rpc::status};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::{Status, body::Body, codegen::Service};

/// How long an answer may take, at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two words about one node that cannot be reached.
const SILENCE: Duration = Duration::from_secs(60);
/// Nodes that are told apart in this.
const NODES: usize = 256;
/// What of the head is passed on: who calls, how the message is written, and whose
/// trace it belongs to. Who called from where was judged here.
const HEADERS: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::TE,
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Whether the answer is one message, or a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Unary,
    Stream,
}

/// Where a call is passed on to, and about which job.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    pub job: JobId,
    /// If it was remembered who runs it.
    pub attempt: Option<Attempt>,
    pub owner: Owner,
}

impl Destination {
    fn unreachable(&self) -> Status {
        status::owner_unreachable(self.job, &self.owner.node)
    }
}

/// Passes calls on.
pub(super) struct Wire {
    node: HeaderValue,
    patience: Duration,
    pub owners: Owners,
    peers: Peers,
    /// When something was said last about each node.
    spoke: Mutex<HashMap<Arc<str>, Instant>>,
}

impl Wire {
    pub fn new(Relaying { node, lease, tls }: Relaying) -> Self {
        let patience = lease.clamp(Duration::from_secs(1), PATIENCE);
        Self {
            // A name has no control characters.
            node: HeaderValue::from_bytes(node.as_bytes()).unwrap_or(HeaderValue::from_static("?")),
            patience,
            owners: Owners::default(),
            peers: Peers::new(tls, patience / 2),
            spoke: Mutex::default(),
        }
    }

    /// The other node's answer, or that there is none.
    pub async fn forward(
        self: &Arc<Self>,
        request: Request<Body>,
        to: Destination,
        form: Form,
    ) -> Response<Body> {
        let late = Instant::now() + self.patience;
        let asked = Asked::default();
        match timeout_at(late, self.send(request, &to, &asked)).await {
            Ok(Ok(response)) => {
                let late = (form == Form::Unary).then(|| Box::pin(sleep_until(late)));
                self.answer(response, Answered { wire: Arc::clone(self), to, asked, late })
            }
            Ok(Err(status)) => status.into_http(),
            Err(_) => {
                self.leave(&to, &asked);
                self.failed(&to, "it does not answer in time").into_http()
            }
        }
    }

    async fn send(
        &self,
        request: Request<Body>,
        to: &Destination,
        asked: &Asked,
    ) -> Result<Response<Body>, Status> {
        let Some(address) = &to.owner.address else {
            return Err(self.failed(to, "it says no address: its node.advertise is not set"));
        };
        let (mut channel, place) = match self.peers.channel(address).await {
            Ok(found) => found,
            Err(Unreached::Full(limit)) => return Err(status::too_many_calls(limit)),
            Err(Unreached::Unreachable(why)) => return Err(self.failed(to, &why)),
        };
        let _ = asked.place.set(place); // set once
        let request = self.request(request, asked);
        let answered = match poll_fn(|cx| channel.poll_ready(cx)).await {
            Ok(()) => channel.call(request).await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(response) if response.status() == StatusCode::OK => Ok(response),
            Ok(response) => Err(self.failed(to, &format!("it answers HTTP {}", response.status()))),
            Err(error) => {
                // If it is our own client that broke off, the connection is fine.
                if let Some(broke) = asked.broke.get() {
                    return Err(status::explained(broke.clone()));
                }
                self.leave(to, asked);
                Err(self.failed(to, &told(&error)))
            }
        }
    }

    fn request(&self, request: Request<Body>, asked: &Asked) -> Request<Body> {
        let (parts, body) = request.into_parts();
        let asked = asked.clone();
        // It goes as fast as the other node takes it.
        let body = body.map_err(move |error| {
            let _ = asked.broke.set(error.clone()); // the first one counts
            error
        });
        let mut request = Request::new(Body::new(body));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = parts.uri.path().parse().unwrap_or_default(); // it is one already
        for name in HEADERS {
            for value in parts.headers.get_all(&name) {
                request.headers_mut().append(&name, value.clone());
            }
        }
        request.headers_mut().insert(RELAYED, self.node.clone());
        request
    }

    fn answer(&self, response: Response<Body>, answered: Answered) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        parts.version = Version::default();
        if is_failure(&parts.headers) {
            answered.forget();
        }
        Response::from_parts(parts, Body::new(Answering { body: Some(body), answered }))
    }

    /// Nobody else is to use the connection that this call is on.
    fn leave(&self, to: &Destination, asked: &Asked) {
        if let Some((address, place)) = to.owner.address.as_deref().zip(asked.place.get()) {
            self.peers.left(address, place, false);
        }
    }

    /// What to say, and what to forget, when the other node did not answer.
    fn failed(&self, to: &Destination, why: &str) -> Status {
        if let Some(attempt) = to.attempt {
            self.owners.forget(attempt);
        }
        if self.may_speak(&to.owner.node) {
            tracing::warn!(
                node = %to.owner.node,
                address = to.owner.address.as_deref().unwrap_or_default(),
                error = why,
                "what came here for jobs of another node cannot be passed on to it"
            );
        }
        to.unreachable()
    }

    /// How many connections there are.
    #[cfg(test)]
    pub fn connections(&self) -> usize {
        self.peers.connections()
    }

    fn may_speak(&self, node: &Arc<str>) -> bool {
        let mut spoke = self.spoke.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if spoke.get(node).is_some_and(|at| now.duration_since(*at) < SILENCE) {
            return false;
        }
        if spoke.len() >= NODES {
            spoke.clear();
        }
        spoke.insert(Arc::clone(node), now);
        true
    }
}

/// An answer whose headers or trailers are these is an error.
fn is_failure(headers: &HeaderMap) -> bool {
    headers.get(Status::GRPC_STATUS).is_some_and(|status| status != "0")
}

/// What is known of a request under way.
#[derive(Debug, Clone, Default)]
struct Asked {
    /// Why it broke off, if it did before it was sent whole.
    broke: Arc<OnceLock<Status>>,
    /// Its place on a connection.
    place: Arc<OnceLock<Place>>,
}

/// What belongs to an answer under way.
struct Answered {
    wire: Arc<Wire>,
    to: Destination,
    asked: Asked,
    /// When the whole of it has to be there.
    late: Option<Pin<Box<Sleep>>>,
}

impl Answered {
    fn forget(&self) {
        if let Some(attempt) = self.to.attempt {
            self.wire.owners.forget(attempt);
        }
    }

    /// It broke off.
    fn broken(&self, why: &str) -> Status {
        if let Some(broke) = self.asked.broke.get() {
            return status::explained(broke.clone());
        }
        self.wire.leave(&self.to, &self.asked);
        self.wire.failed(&self.to, why)
    }
}

/// The answer on its way back: as fast as the client takes it.
struct Answering {
    /// None once it has ended.
    body: Option<Body>,
    answered: Answered,
}

impl Answering {
    fn end(&mut self, status: Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.body = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

impl http_body::Body for Answering {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                let status = this.answered.broken(&told(&error));
                this.end(status)
            }
            Poll::Ready(Some(Ok(frame))) => {
                if frame.trailers_ref().is_some_and(is_failure) {
                    this.answered.forget();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.body = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let late = this.answered.late.as_mut();
                if late.is_none_or(|late| late.as_mut().poll(cx).is_pending()) {
                    return Poll::Pending;
                }
                let status = this.answered.broken("it does not answer in time");
                this.end(status)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}
