//! Makes a connection to a target, and only to where it may be made.

use super::{
    lookup::Lookup,
    target::{Route, Target},
};
use crate::{descriptors::Descriptors, job::Reason};
use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::client::TlsStream;

/// Between two tries while no descriptor is free.
const FULL: Duration = Duration::from_millis(50);

/// Addresses that a message names, at most.
const NAMED: usize = 4;

/// Why there is no connection: `Connect` or `Blocked`, and for people.
pub(super) type NoConnection = (Reason, String);

/// Connects to the first address that takes it, each for `limit` at most, TLS
/// included. Where no descriptor is free it waits for one, and `descriptors` knows.
pub(super) async fn connect(
    target: &Target,
    limit: Duration,
    descriptors: &Descriptors,
) -> Result<Stream, NoConnection> {
    match &target.route {
        Route::Tcp { host, port, .. } => {
            let found = resolve(&target.lookup, host, *port, limit).await?;
            first_of(target, found, limit, descriptors).await
        }
        #[cfg(unix)]
        Route::Unix(path) => {
            let connected = timeout(limit, patiently(|| UnixStream::connect(path), descriptors)).await;
            let connected = connected.unwrap_or_else(|_| timed_out());
            let failed = |error| format!("cannot connect to the socket {}: {error}", path.display());
            connected.map(Stream::Unix).map_err(|error| (Reason::Connect, failed(error)))
        }
        #[cfg(not(unix))]
        Route::Unix(_) => Err((Reason::Connect, "unix sockets are not known on this system".to_owned())),
    }
}

/// The addresses of `host`, in the resolver's order.
async fn resolve(
    lookup: &Lookup,
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<Vec<SocketAddr>, NoConnection> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found = timeout(limit, lookup(host.to_owned(), port)).await.unwrap_or_else(|_| timed_out());
    match found {
        Ok(found) if found.is_empty() => Err((Reason::Connect, format!("the name {host} has no address"))),
        Ok(found) => Ok(found),
        Err(error) => Err((Reason::Connect, format!("the name {host} cannot be resolved: {error}"))),
    }
}

async fn first_of(
    target: &Target,
    found: Vec<SocketAddr>,
    limit: Duration,
    descriptors: &Descriptors,
) -> Result<Stream, NoConnection> {
    let (may, mut refused): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| target.permits(address.ip()));
    let mut failures = Vec::new();
    for address in may {
        match timeout(limit, dial(target, address, descriptors))
            .await
            .unwrap_or_else(|_| timed_out().map_err(Dial::Failed))
        {
            Ok(stream) => return Ok(stream),
            Err(Dial::Elsewhere(peer)) => refused.push(peer),
            Err(Dial::Failed(error)) => failures.push(format!("cannot connect to {address}: {error}")),
        }
    }
    if !failures.is_empty() {
        failures.truncate(NAMED);
        return Err((Reason::Connect, failures.join("; ")));
    }
    let named = refused.iter().take(NAMED).map(|address| {
        let address = address.ip().to_canonical();
        format!("{address} ({})", kind(address))
    });
    let (named, name) = (named.collect::<Vec<_>>().join(", "), target.name());
    let message = format!(
        "the loopback rule blocks {named}: neither a loopback address nor in a network that `allow` of the target \
         {name:?} names"
    );
    Err((Reason::Blocked, message))
}

/// What sort of address it is, for people who wonder where a name led.
fn kind(address: IpAddr) -> &'static str {
    match address {
        _ if address.is_unspecified() => "unspecified",
        _ if address.is_multicast() => "multicast",
        IpAddr::V4(v4) if v4.is_private() => "private",
        IpAddr::V4(v4) if v4.is_link_local() => "link-local",
        IpAddr::V6(v6) if v6.is_unique_local() => "private",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "link-local",
        _ => "public",
    }
}

/// Why one address gave no connection.
enum Dial {
    Failed(io::Error),
    /// The connection led where none may be made.
    Elsewhere(SocketAddr),
}

/// Connects, and waits for a descriptor where there is none: that is a fault of this
/// process, not of the target, and passes.
async fn patiently<T, F: Future<Output = io::Result<T>>>(
    connect: impl Fn() -> F,
    descriptors: &Descriptors,
) -> io::Result<T> {
    let mut waiting = None;
    loop {
        let error = match connect().await {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        let Some(now) = descriptors.lacking(&error) else { return Err(error) };
        if waiting.replace(now).is_none() {
            tracing::warn!(%error, "a trigger waits for a free descriptor");
        }
        sleep(FULL).await;
    }
}

async fn dial(target: &Target, address: SocketAddr, descriptors: &Descriptors) -> Result<Stream, Dial> {
    let connected = patiently(|| TcpStream::connect(address), descriptors).await;
    let stream = connected.map_err(Dial::Failed)?;
    // What the socket is really connected to counts, not what was asked for.
    let peer = stream.peer_addr().map_err(Dial::Failed)?;
    if !target.permits(peer.ip()) {
        return Err(Dial::Elsewhere(peer));
    }
    stream.set_nodelay(true).map_err(Dial::Failed)?;
    match &target.route {
        Route::Tcp { tls: Some((connector, name)), .. } => {
            let stream = connector.connect(name.clone(), stream).await.map_err(Dial::Failed)?;
            Ok(Stream::Tls(Box::new(stream)))
        }
        Route::Tcp { tls: None, .. } | Route::Unix(_) => Ok(Stream::Tcp(stream)),
    }
}

fn timed_out<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::TimedOut, "timed out"))
}

/// What a target is spoken to over.
#[derive(Debug)]
pub(super) enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS over TCP; boxed, as it is large.
    Tls(Box<TlsStream<TcpStream>>),
    /// A unix socket.
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Tls($stream) => $call,
            #[cfg(unix)]
            Stream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
