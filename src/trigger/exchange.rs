//! One request and its response, over one connection.

use super::{Outcome, Sink, connection::Connection, response::Reading, wire::Body};
use crate::{clock::Clock, job::Reason};
use http::StatusCode;
use http_body_util::BodyExt as _;
use std::{error::Error as _, io, sync::Arc};

/// Tells that the request was sent, once, however often it is sent.
pub(super) struct Told {
    sink: Arc<dyn Sink>,
    sent: bool,
}

impl Told {
    /// Nothing is told yet.
    pub(super) fn new(sink: Arc<dyn Sink>) -> Self {
        Self { sink, sent: false }
    }

    fn sent(&mut self) {
        if !std::mem::replace(&mut self.sent, true) {
            self.sink.sent();
        }
    }
}

/// How an exchange ended.
pub(super) enum Exchanged {
    /// With this; and the connection, if its response was wholly read.
    Done(Outcome, Option<Connection>),
    /// The connection, an idle one before, was closed before any byte of a
    /// response and before any report.
    Closed {
        /// Whether any byte of the request was written.
        begun: bool,
    },
}

/// What an exchange is held to.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    /// Whether the connection was used before.
    pub(super) reused: bool,
    /// Bytes of a response's body, at most.
    pub(super) max_response: u64,
    /// For `Retry-After`.
    pub(super) clock: &'a dyn Clock,
}

/// Sends `request` and reads its response to the end.
pub(super) async fn exchange(
    mut connection: Connection,
    request: http::Request<Body>,
    terms: Terms<'_>,
    told: &mut Told,
) -> Exchanged {
    let wire = Arc::clone(&connection.wire);
    let answer = connection.sender.send_request(request);
    let look = || {
        if wire.is_sent() {
            told.sent();
        }
    };
    let response = match connection.driver.drive(answer, look).await {
        Ok(response) => response,
        Err(error) => return failed(&connection, &error, terms, told),
    };
    // An answer to what is not wholly written is an answer all the same.
    told.sent();
    let (head, mut body) = response.into_parts();
    if let Some(outcome) = unfit(head.status) {
        return Exchanged::Done(outcome, None);
    }
    let mut reading = Reading::new(head.status, &head.headers, terms.clock.wall());
    loop {
        let frame = match connection.driver.drive(body.frame(), || {}).await {
            None => return Exchanged::Done(Outcome::Response(reading.end()), Some(connection)),
            Some(Err(error)) => return Exchanged::Done(broken(&error), None),
            Some(Ok(frame)) => frame,
        };
        // Trailers are passed over.
        let Ok(piece) = frame.into_data() else { continue };
        told.sink.heard();
        reading.piece(&piece);
        if reading.total > terms.max_response {
            let message = format!("the response has more than {} bytes", terms.max_response);
            return Exchanged::Done(Outcome::BadResponse(message), None);
        }
    }
}

/// A status that is no answer to a trigger.
fn unfit(status: StatusCode) -> Option<Outcome> {
    match status.as_u16() {
        ..200 => Some(Outcome::BadResponse(format!(
            "unexpected status {}: nothing was asked for",
            status.as_u16()
        ))),
        200..600 => None,
        600.. => Some(Outcome::BadResponse(format!("the status {} is not one of HTTP", status.as_u16()))),
    }
}

/// No head came.
fn failed(connection: &Connection, error: &hyper::Error, terms: Terms<'_>, told: &Told) -> Exchanged {
    let wire = &connection.wire;
    let outcome = if error.is_parse() {
        Outcome::BadResponse(format!("what came back is not an HTTP response: {error}"))
    } else if terms.reused && !told.sink.has_reported() && !(wire.has_read() && wire.has_written()) {
        // Bytes that came before ours were no answer: some servers say goodbye.
        return Exchanged::Closed { begun: wire.has_written() };
    } else if wire.is_sent() || told.sink.has_reported() {
        // A report proves that the action began, whatever became of the rest.
        Outcome::Lost(format!("the connection was lost before the response: {}", cause(error)))
    } else {
        let message = format!("the connection broke before the request was sent: {}", cause(error));
        Outcome::NotSent(Reason::Connect, message)
    };
    Exchanged::Done(outcome, None)
}

/// The body did not come to its end.
fn broken(error: &hyper::Error) -> Outcome {
    let kind = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    if matches!(kind, Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)) {
        return Outcome::BadResponse(format!("the body of the response is malformed: {}", cause(error)));
    }
    Outcome::Lost(format!("the connection was lost within the response: {}", cause(error)))
}

/// hyper says what it was doing; the reason stands in what it wraps.
fn cause(error: &hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
