//! The bytes of one connection, counted: how the trigger knows that a request
//! was wholly written, and whether anything came back.

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::{
    convert::Infallible,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What passed since the present request began. Shared by the stream, the
/// request's body and the call. One task at a time uses them, so that no order
/// between the fields has to be kept.
#[derive(Debug, Default)]
pub(super) struct Wire {
    written: AtomicU64,
    read: AtomicU64,
    /// The body is still with us, not yet with hyper.
    body_left: AtomicBool,
    sent: AtomicBool,
}

impl Wire {
    /// A request begins.
    pub(super) fn begin(&self) {
        self.written.store(0, Relaxed);
        self.read.store(0, Relaxed);
        self.body_left.store(false, Relaxed);
        self.sent.store(false, Relaxed);
    }

    /// Whether every byte of the request went to the operating system.
    pub(super) fn is_sent(&self) -> bool {
        self.sent.load(Relaxed)
    }

    /// Whether any byte of the request went to the operating system.
    pub(super) fn has_written(&self) -> bool {
        self.written.load(Relaxed) > 0
    }

    /// Whether any byte came back.
    pub(super) fn has_read(&self) -> bool {
        self.read.load(Relaxed) > 0
    }

    /// hyper flushes the stream only when its own buffer is empty, and buffers
    /// head and body as soon as it takes them; so a flush after the body was
    /// taken means that all is out.
    fn flushed(&self) {
        if !self.body_left.load(Relaxed) && self.has_written() {
            self.sent.store(true, Relaxed);
        }
    }

    fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Relaxed);
    }
}

/// The body of a request, in one piece.
#[derive(Debug)]
pub(super) struct Body {
    left: Option<Bytes>,
    wire: Arc<Wire>,
}

impl Body {
    /// The body of the request that begins on `wire`.
    pub(super) fn new(bytes: Bytes, wire: Arc<Wire>) -> Self {
        let left = Some(bytes).filter(|bytes| !bytes.is_empty());
        wire.body_left.store(left.is_some(), Relaxed);
        Self { left, wire }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.wire.body_left.store(false, Relaxed);
        Poll::Ready(self.left.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub(super) struct Counted<S> {
    stream: S,
    wire: Arc<Wire>,
}

impl<S> Counted<S> {
    /// Counts what passes `stream` in `wire`.
    pub(super) fn new(stream: S, wire: Arc<Wire>) -> Self {
        Self { stream, wire }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.wire.read.fetch_add((buf.filled().len() - before) as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.wire.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.wire.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.wire.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
