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
    rooms::Rooms,
};
use crate::{descriptors::Descriptors, tasks::Tasks};
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
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{either::Either, sync::CancellationToken};
use tonic::{body::Body, codegen::Service};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_layer::Layer as _;

/// From a connection to the end of its handshake, and then to the first bytes of
/// its first request; also the head of a request of HTTP/1.1.
const OPENING: Duration = Duration::from_secs(10);
/// Who has just connected when the server stops may so long still begin to speak, and
/// hear that it stops.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// What comes first in HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
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
    pub rooms: Rooms,
    pub rules: Rules,
    pub relay: Option<Arc<Relay>>,
    pub origins: Vec<String>,
    pub max_connections: usize,
    pub max_streams: u32,
    pub descriptors: Descriptors,
}

impl Listener {
    /// Serves until `stop`, then until every connection has ended.
    pub async fn serve(self, tasks: Tasks, stop: CancellationToken) {
        let Self { tcp, tls, rooms, rules, relay, origins, max_connections, max_streams, descriptors } = self;
        let builder = Arc::new(builder(max_streams));
        let cors = Arc::new(cors(&origins));
        let inner = service(rooms, relay, Arc::new(rules.tokens.clone()));
        let places = Arc::new(Semaphore::new(max_connections));
        let (mut spoke, mut failed): (Option<Instant>, Option<Instant>) = (None, None);
        // Held while somebody waits to be taken.
        let mut waiting = None;
        let mut take = |stream: TcpStream| {
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                if spoke.is_none_or(|at| at.elapsed() > SILENCE) {
                    tracing::warn!(max_connections, "connections are turned away: as many as may are open");
                    spoke = Some(Instant::now());
                }
                return; // closed by dropping it
            };
            let (Ok(local), Ok(())) = (stream.local_addr(), stream.set_nodelay(true)) else { return };
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
        };
        loop {
            let accepted = tokio::select! {
                accepted = tcp.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    drop(waiting.take());
                    take(stream);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if failed.is_none_or(|at| at.elapsed() > SILENCE) {
                        tracing::warn!(%error, "no connection can be taken now: new ones wait");
                        failed = Some(Instant::now());
                    }
                    waiting = descriptors.lacking(&error);
                    sleep(BACK_OFF).await;
                }
            }
        }
        // Those that the system has taken for us would be cut off without a word.
        if let Ok(tcp) = tcp.into_std() {
            while let Ok((stream, _)) = tcp.accept() {
                if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                    take(stream);
                }
            }
        }
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
    /// Until the first bytes have come.
    async fn open(&self, stream: TcpStream, tls: Option<TlsAcceptor>) -> Option<Begun<Stream>> {
        let stopped = async {
            self.stop.cancelled().await;
            sleep(LAST_WORDS).await;
        };
        let opened = tokio::select! {
            opened = timeout(OPENING, Box::pin(open(stream, tls))) => opened,
            () = stopped => return None,
        };
        match opened {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(%error, "a connection did not open"),
            Err(_) => tracing::debug!("a connection did not open in time"),
        }
        None
    }

    /// Until it has ended; once it is to stop, until what is under way has.
    async fn serve<S>(&self, stream: Begun<Stream>, pages: Pages<S>)
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
                // First, so that it knows which HTTP it speaks before it is to stop.
                biased;
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
    rooms: Rooms,
    relay: Option<Arc<Relay>>,
    tokens: Arc<Tokens>,
) -> super::connect::Connect<tonic_web::GrpcWebService<Calls<Relayed<Rooms>>>> {
    let calls = Calls { inner: Relayed { inner: rooms, relay }, tokens };
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

async fn open(stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<Begun<Stream>> {
    let stream = match tls {
        None => Either::Left(stream),
        Some(tls) => Either::Right(Box::new(tls.accept(stream).await?)),
    };
    Begun::new(stream).await
}

/// A connection whose first bytes have come; whoever reads it gets them again.
struct Begun<T> {
    stream: T,
    first: [u8; PREFACE.len()],
    /// Those of them that have come.
    came: usize,
    /// Those of them that were read again.
    given: usize,
}

impl<T: AsyncRead + Unpin> Begun<T> {
    /// Waits for what tells HTTP/2 from HTTP/1.1.
    async fn new(mut stream: T) -> io::Result<Self> {
        let (mut first, mut came) = ([0; PREFACE.len()], 0);
        while came < first.len() && PREFACE.starts_with(&first[..came]) {
            match stream.read(&mut first[came..]).await? {
                0 if came == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => break,
                more => came += more,
            }
        }
        Ok(Self { stream, first, came, given: 0 })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Begun<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given == self.came {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let until = self.came.min(self.given + buf.remaining());
        buf.put_slice(&self.first[self.given..until]);
        self.given = until;
        Poll::Ready(Ok(()))
    }
}

/// It does not offer to write from several places at once: then HTTP/2 puts messages of up
/// to 1 KiB one behind the other and writes all of them with one call of the system. Else
/// each of more than 256 bytes, a job, takes one of its own.
impl<T: AsyncWrite + Unpin> AsyncWrite for Begun<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn what_was_read_to_tell_the_protocol_is_read_again() {
        let preface = std::str::from_utf8(PREFACE).expect("ASCII");
        for text in [preface, &format!("{preface}and more"), "PRI", "P", "GET / HTTP/1.1\r\n\r\n"] {
            let (mut client, server) = tokio::io::duplex(1_024);
            let all = async {
                // Byte by byte, as slow as can be.
                for byte in text.as_bytes() {
                    client.write_all(&[*byte]).await.expect("written");
                    tokio::task::yield_now().await;
                }
                client.shutdown().await.expect("closed");
            };
            let read = async {
                let mut begun = Begun::new(server).await.expect("begun");
                let (mut small, mut rest) = ([0; 2], Vec::new());
                let count = begun.read(&mut small).await.expect("read");
                begun.read_to_end(&mut rest).await.expect("read");
                [&small[..count], &rest].concat()
            };
            let ((), read) = tokio::join!(all, read);
            assert_eq!(String::from_utf8_lossy(&read), text);
        }
        let (client, server) = tokio::io::duplex(1_024);
        drop(client);
        assert!(Begun::new(server).await.is_err(), "nobody spoke");
    }
}
