//! Connections on which calls that are made at once are written at once.

use crate::fault::Fault;
use hyper_util::rt::TokioIo;
use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

/// A connection to a port of this machine.
pub(super) async fn connect(port: u32) -> Result<Channel, Fault> {
    Ok(Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?
        .connect_with_connector(Connector(port))
        .await?)
}

#[derive(Clone, Copy)]
struct Connector(u32);

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<Gathered>>> + Send>>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Gathered>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Connecting {
        let Self(port) = *self;
        Box::pin(async move {
            let port = u16::try_from(port).map_err(io::Error::other)?;
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(Gathered(stream)))
        })
    }
}

/// Says that it cannot write from several places at once: then HTTP/2 puts messages of up
/// to 1 KiB one behind the other and makes one call of the system of all of them. Else
/// each of more than 256 bytes is a call of its own, which costs who measures a third of
/// its time and wakes who is measured as often.
struct Gathered(TcpStream);

impl AsyncRead for Gathered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
