//! The listener: takes connections, encrypts them, and speaks HTTP/1.1 and HTTP/2
//! on each.
//!
//! A connection costs memory before anybody said who they are, so each is held to
//! a few seconds until its first request has come, to small buffers until then,
//! and all of them to a number.

use super::{
    auth::Tokens,
    calls::Calls,
    connect::ConnectLayer,
    gate::{self, Connection, Gate, Rules},
    relay::{Relay, Relayed},
};
use crate::tasks::Tasks;
use http::{Method, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use rustls::ServerConfig;
use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{either::Either, sync::CancellationToken};
use tonic::{body::Body, codegen::Service, service::Routes};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_layer::Layer as _;

/// From a connection to the end of its handshake, and then to the first bytes of
/// its first request; also the head of a request of HTTP/1.1.
const OPENING: Duration = Duration::from_secs(10);
/// Bytes that come first: what HTTP/2 begins with.
const PREFACE: usize = 24;
/// Bytes of the head of a request of HTTP/1.1, and of the headers of HTTP/2.
const HEAD: u32 = 32 * 1024;
/// Resets of streams of one connection that may be under way; beyond, it is closed.
const RESETS: usize = 100;
/// After the listener failed: descriptors may be used up.
const BACK_OFF: Duration = Duration::from_millis(50);
/// Between two words about connections that were turned away, or not taken.
const SILENCE: Duration = Duration::from_secs(10);

/// What connections are encrypted with, and what replaces it.
pub type Tls = watch::Receiver<Arc<ServerConfig>>;

/// One listener.
pub(super) struct Listener {
    pub tcp: TcpListener,
    pub tls: Option<Tls>,
    pub routes: Routes,
    pub rules: Rules,
    pub relay: Option<Arc<Relay>>,
    pub origins: Vec<String>,
    pub max_connections: usize,
    pub max_streams: u32,
}

impl Listener {
    /// Serves until `stop`, then until every connection has ended.
    pub async fn serve(self, tasks: Tasks, stop: CancellationToken) {
        let Self { tcp, tls, routes, rules, relay, origins, max_connections, max_streams } = self;
        let builder = Arc::new(builder(max_streams));
        let cors = Arc::new(cors(&origins));
        let inner = service(routes, relay, Arc::new(rules.tokens.clone()));
        let places = Arc::new(Semaphore::new(max_connections));
        let (mut spoke, mut failed): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            let accepted = tokio::select! {
                accepted = tcp.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    if failed.is_none_or(|at| at.elapsed() > SILENCE) {
                        tracing::warn!(%error, "no connection can be taken now: new ones wait");
                        failed = Some(Instant::now());
                    }
                    sleep(BACK_OFF).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                if spoke.is_none_or(|at| at.elapsed() > SILENCE) {
                    tracing::warn!(max_connections, "connections are turned away: as many as may are open");
                    spoke = Some(Instant::now());
                }
                continue; // closed by dropping it
            };
            let (Ok(local), Ok(())) = (stream.local_addr(), stream.set_nodelay(true)) else { continue };
            let tls = tls.as_ref().map(|tls| TlsAcceptor::from(Arc::clone(&tls.borrow())));
            let own = Own { builder: Arc::clone(&builder), stop: stop.clone(), _place: place };
            let gate =
                Gate { inner: inner.clone(), rules: rules.clone(), connection: Connection::new(local) };
            let pages = Pages { cors: cors.clone(), gate: Arc::new(gate) };
            tasks.spawn("connection", async move {
                // Each by itself: the one that lasts holds nothing of the other.
                if let Some(stream) = own.open(stream, tls).await {
                    Box::pin(own.serve(stream, pages)).await;
                }
            });
        }
        drop(tcp);
        // Free again when every connection has ended; it is never closed.
        let _all = places.acquire_many(u32::try_from(max_connections).unwrap_or(u32::MAX)).await;
    }
}

/// What one connection has.
struct Own {
    builder: Arc<Builder<TokioExecutor>>,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Own {
    async fn open(&self, stream: TcpStream, tls: Option<TlsAcceptor>) -> Option<Opening<Stream>> {
        let opened = tokio::select! {
            opened = timeout(OPENING, Box::pin(open(stream, tls))) => opened,
            () = self.stop.cancelled() => return None,
        };
        match opened {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(%error, "a connection did not open"),
            Err(_) => tracing::debug!("a connection did not open in time"),
        }
        None
    }

    /// Until it has ended; once it is to stop, until what is under way has.
    async fn serve<S>(&self, stream: Opening<Stream>, pages: Pages<S>)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let unread = Arc::clone(&pages.gate.connection.unread);
        let connection = self.builder.serve_connection(TokioIo::new(stream), pages);
        tokio::pin!(connection);
        let (outstayed, stop) = (unread.outstayed(), self.stop.cancelled());
        tokio::pin!(outstayed, stop);
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended");
                    }
                    return;
                }
                () = &mut outstayed => {
                    return tracing::debug!("a connection is closed: it does not read its answers");
                }
                () = &mut stop, if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Tells pages of other origins what they may do; all others go straight on.
struct Pages<S> {
    cors: Arc<CorsLayer>,
    gate: Arc<Gate<S>>,
}

type Page = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> hyper::service::Service<Request<Incoming>> for Pages<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Page, gate::Answered>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if request.headers().contains_key(header::ORIGIN) {
            Either::Left(Box::pin(self.cors.layer(Gate::clone(&self.gate)).call(request)))
        } else {
            Either::Right(self.gate.pass(request))
        }
    }
}

/// The rooms that a request goes through behind the gate.
fn service(
    routes: Routes,
    relay: Option<Arc<Relay>>,
    tokens: Arc<Tokens>,
) -> super::connect::Connect<tonic_web::GrpcWebService<Calls<Relayed<Routes>>>> {
    let calls = Calls { inner: Relayed { inner: routes.prepare(), relay }, tokens };
    ConnectLayer.layer(tonic_web::GrpcWebLayer::new().layer(calls))
}

fn builder(max_streams: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(OPENING).max_buf_size(HEAD as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(max_streams)
        .max_header_list_size(HEAD)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        // Notices clients that vanished without a word.
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// What pages of these origins may ask for.
fn cors(origins: &[String]) -> CorsLayer {
    let headers = [
        "authorization",
        "content-type",
        "x-grpc-web",
        "x-user-agent",
        "grpc-timeout",
        "connect-protocol-version",
        "connect-timeout-ms",
    ];
    let shown = ["grpc-status", "grpc-message", "grpc-status-details-bin"];
    let names = |names: &[&'static str]| {
        names.iter().map(|name| http::HeaderName::from_static(name)).collect::<Vec<_>>()
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok())))
        .allow_methods([Method::POST])
        .allow_headers(names(&headers))
        .expose_headers(names(&shown))
        .allow_credentials(true)
        .max_age(Duration::from_secs(7_200))
}

/// Whether the listener itself is fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Encrypted or not.
type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

async fn open(stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<Opening<Stream>> {
    let stream = match tls {
        None => Either::Left(stream),
        Some(tls) => Either::Right(Box::new(tls.accept(stream).await?)),
    };
    Ok(Opening { stream, read: 0, late: Some(Box::pin(sleep(OPENING))) })
}

/// A connection whose first bytes must come in time.
struct Opening<T> {
    stream: T,
    read: usize,
    /// None once they have come.
    late: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Opening<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Some(late) = &mut self.late else { return read };
        if read.is_pending() && late.as_mut().poll(cx).is_ready() {
            let message = "the first request did not come in time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
        }
        self.read += buf.filled().len() - before;
        if self.read >= PREFACE {
            self.late = None;
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Opening<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
