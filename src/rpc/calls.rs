//! What every call is held to that was let in: its deadline, that its caller is
//! still known while it streams, and that every error has a reason, those of the
//! libraries too.
//!
//! The innermost layer: everything here is gRPC, whatever it was outside.

use super::{
    access,
    auth::{Caller, Tokens},
    status,
};
use bytes::Bytes;
use futures_util::future::{Either, FutureExt as _, Map};
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tonic::{Code, Status, body::Body, codegen::Service};

/// A service whose calls are held to their terms.
#[derive(Clone)]
pub(super) struct Calls<S> {
    pub inner: S,
    pub tokens: Arc<Tokens>,
}

type Explain<E> = fn(Result<Response<Body>, E>) -> Result<Response<Body>, E>;
type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Map<S::Future, Explain<S::Error>>, Answer<S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limit = timeout(request.headers());
        let named = request.extensions().get().filter(|caller| matches!(caller, Caller::Named(_))).cloned();
        let named = named.filter(|_| access::call(request.uri().path()).answers);
        let explain: Explain<S::Error> = |answer| answer.map(explained);
        let answer = self.inner.call(request).map(explain);
        if limit.is_none() && named.is_none() {
            return Either::Left(answer);
        }
        let tokens = Arc::clone(&self.tokens);
        Either::Right(Box::pin(async move {
            let response = match limit {
                None => answer.await?,
                Some(limit) => match tokio::time::timeout(limit, answer).await {
                    Ok(response) => response?,
                    Err(_) => {
                        return Ok(status::deadline_passed().into_http());
                    }
                },
            };
            let Some(caller) = named else { return Ok(response) };
            let revoked = Box::pin(async move { tokens.revoked(&caller).await });
            Ok(response.map(|body| Body::new(Revocable { body, revoked: Some(revoked) })))
        }))
    }
}

/// An answer that is an error without details gets some.
fn explained(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    if !headers.contains_key(Status::GRPC_STATUS) || headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return response;
    }
    match Status::from_header_map(headers) {
        Some(bare) if bare.code() != Code::Ok => {
            // If its details do not fit into a header, it stays as it is.
            let _ = status::explained(bare).add_header(response.headers_mut());
        }
        _ => {}
    }
    response
}

/// A stream that ends when its caller's token is taken away.
struct Revocable {
    body: Body,
    revoked: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl http_body::Body for Revocable {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(revoked) = &mut self.revoked else { return Poll::Ready(None) };
        if revoked.as_mut().poll(cx).is_ready() {
            self.revoked = None;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(
                status::token_invalid().add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
            ));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.revoked.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// `grpc-timeout`: up to 8 digits and a unit. What cannot be read is no limit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = Some(digits).filter(|digits| (1..=8).contains(&digits.len()))?.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a value"));
            timeout(&headers)
        };
        for (text, millis) in [("2H", 7_200_000), ("3M", 180_000), ("4S", 4_000), ("99999999m", 99_999_999)] {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!((read("5u"), read("6n")), (Some(Duration::from_micros(5)), Some(Duration::from_nanos(6))));
        for text in ["", "S", "5", "5x", "-1S", "123456789S", "1 S"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
