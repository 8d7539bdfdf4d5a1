//! What is left of a request over HTTP/1.1 when its answer is there already.
//!
//! A call may be answered before its body was read: nobody without a token needs to be
//! read. But who is still sending finds the connection closed under its hands then, and
//! may never see the answer. So a small rest is read first, for a moment.

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{sync::oneshot, time::timeout};

/// More is not waited for, in bytes.
const SMALL: usize = 64 * 1024;
/// Nor longer.
const MOMENT: Duration = Duration::from_secs(1);

/// HTTP/2 has a way to say that no more is read.
pub(super) fn matters(request: &Request<Incoming>) -> bool {
    request.version() < Version::HTTP_2 && !request.body().is_end_stream()
}

/// The body, and what gives it back if it is dropped before its end.
pub(super) fn given_back(body: Incoming) -> (GivenBack, oneshot::Receiver<Incoming>) {
    let (back, left) = oneshot::channel();
    (GivenBack { body: Some((body, back)) }, left)
}

/// Reads a small rest.
pub(super) async fn read(left: Incoming) {
    // What fails, or takes too long, ends with the connection.
    let _ = timeout(MOMENT, Limited::new(left, SMALL).collect()).await;
}

/// A body that is given back if it is dropped before its end.
pub(super) struct GivenBack {
    body: Option<(Incoming, oneshot::Sender<Incoming>)>,
}

impl Body for GivenBack {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some((body, _)) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, |(body, _)| body.size_hint())
    }
}

impl Drop for GivenBack {
    fn drop(&mut self) {
        if let Some((body, back)) = self.body.take().filter(|(body, _)| !body.is_end_stream()) {
            let _ = back.send(body); // nobody wants it where the call is over
        }
    }
}
