//! The demo's application: an ordinary HTTP server with one long action.

use super::work::{self, Step};
use crate::{verify::Verifier, worker::Reporter};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The action's route.
pub(super) const ROUTE: &str = "/reports/build";
/// Words of each source that it compares where none are given: some seconds of work, also
/// in a build that is not optimized.
pub(super) const WORDS: usize = if cfg!(debug_assertions) { 600 } else { 1_500 };

/// Serves until `stop`.
pub(super) async fn serve(listener: TcpListener, verifier: Verifier, stop: CancellationToken) {
    let verifier = Arc::new(verifier);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let verifier = Arc::clone(&verifier);
        let service = service_fn(move |request| answer(request, Arc::clone(&verifier)));
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    request: Request<Incoming>,
    verifier: Arc<Verifier>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    if parts.uri.path() != ROUTE {
        return Ok(plain(StatusCode::NOT_FOUND, "there is only one action here"));
    }
    // Whoever can reach this port could call it: only backjob can sign.
    if let Err(error) = verifier.verify_parts(&parts, &body) {
        return Ok(plain(StatusCode::UNAUTHORIZED, &error.to_string()));
    }
    let reporter = match Reporter::from_headers(&parts.headers) {
        Ok(reporter) => reporter,
        Err(error) => return Ok(plain(StatusCode::BAD_REQUEST, &error.to_string())),
    };
    let most = form_number(&body, "words").unwrap_or(WORDS);
    let worker = reporter.clone();
    let computed = tokio::task::spawn_blocking(move || {
        let tell = |step: Step<'_>| match step {
            Step::At { done, total, unit, stage } => worker.detail(done, total, unit, stage),
            Step::Say(line) => worker.text(line),
        };
        work::compare(most, &tell, &|| worker.is_cancelled())
    });
    let ended = match computed.await {
        Ok(Some(report)) => reporter.finish("application/json", report).await,
        Ok(None) => reporter.stopped().await,
        Err(error) => reporter.fail(&error.to_string(), false).await,
    };
    Ok(match ended {
        Ok(()) => plain(StatusCode::OK, ""),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    })
}

fn form_number(body: &[u8], name: &str) -> Option<usize> {
    form_urlencoded::parse(body).find(|(field, _)| field == name).and_then(|(_, value)| value.parse().ok())
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
