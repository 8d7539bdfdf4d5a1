//! One HTTP/1.1 connection, driven by whoever holds it.
//!
//! No task of its own: the call's future moves it, so that dropping the future
//! closes the socket there and then.

use super::{
    connect::Stream,
    wire::{Body, Counted, Wire},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

/// Bytes of a response's head, at most.
const MAX_HEAD: usize = 64 * 1024;
/// Headers of a response, at most.
const MAX_HEADERS: usize = 100;

/// A connection to an application.
pub(super) struct Connection {
    /// Takes requests.
    pub(super) sender: http1::SendRequest<Body>,
    /// Reads and writes.
    pub(super) driver: Driver,
    /// What passed since the present request began.
    pub(super) wire: Arc<Wire>,
}

/// The half that reads and writes; it does so only while it is polled. Boxed, as
/// it is large and often moved.
pub(super) struct Driver(Option<Box<http1::Connection<TokioIo<Counted<Stream>>, Body>>>);

impl Connection {
    /// Speaks HTTP/1.1 over a stream. Nothing is sent yet.
    pub(super) async fn open(stream: Stream) -> hyper::Result<Self> {
        let wire = Arc::new(Wire::default());
        let stream = Counted::new(stream, Arc::clone(&wire));
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            // For applications that look for the names as they are documented.
            .title_case_headers(true)
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Self { sender, driver: Driver(Some(Box::new(driver))), wire })
    }

    /// Lets the connection take note of what has happened on it so far, and
    /// tells whether it can take a request.
    pub(super) async fn is_usable(&mut self) -> bool {
        poll_fn(|cx| {
            self.driver.poll(cx);
            Poll::Ready(())
        })
        .await;
        self.driver.0.is_some() && self.sender.is_ready()
    }
}

impl Driver {
    /// Moves the connection until `future` is ready; `look` is called each time
    /// something may have passed.
    pub(super) async fn drive<F: Future>(&mut self, future: F, mut look: impl FnMut()) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            self.poll(cx);
            look();
            future.as_mut().poll(cx)
        })
        .await
    }

    /// What waits for something of a connection that has ended is told so by
    /// the connection's being dropped.
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.0
            && Pin::new(driver).poll(cx).is_ready()
        {
            self.0 = None;
        }
    }
}
