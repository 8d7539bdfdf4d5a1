//! Requests as they stand on the wire, where a client library would hide too much.

use crate::harness::*;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// How a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    GrpcWeb,
    Json,
}

/// Sends one request over HTTP/1.1.
pub async fn over_1(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let stream = soon("a connection", TcpStream::connect(address)).await.expect("connected");
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("HTTP/1.1");
    spawn(connection);
    soon("an answer", sender.send_request(request)).await.expect("an answer")
}

/// Sends one request over HTTP/2.
pub async fn over_2(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let stream = soon("a connection", TcpStream::connect(address)).await.expect("connected");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    spawn(connection);
    soon("an answer", sender.send_request(request)).await.expect("an answer")
}

/// A message with its prefix.
pub fn framed(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).expect("small").to_be_bytes());
    framed.extend(message);
    framed.into()
}

fn code_in(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The code of gRPC that a call is answered with; 0 also for a stream that begins.
/// `rpc` is a path, or one of ours without its package.
pub async fn code(
    address: SocketAddr,
    protocol: Protocol,
    rpc: &str,
    token: Option<&str>,
    message: &[u8],
    json: &str,
) -> u32 {
    let path = if rpc.starts_with('/') { rpc.to_owned() } else { format!("/backjob.v1.{rpc}") };
    let (uri, body) = match protocol {
        Protocol::Grpc => (format!("http://{address}{path}"), framed(message)),
        Protocol::GrpcWeb => (path, framed(message)),
        Protocol::Json => (path, Bytes::copy_from_slice(json.as_bytes())),
    };
    let mut request = Request::post(uri);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request = match protocol {
        Protocol::Grpc => request.header("content-type", "application/grpc").header("te", "trailers"),
        Protocol::GrpcWeb => {
            request.header("content-type", "application/grpc-web+proto").header("host", address.to_string())
        }
        Protocol::Json => {
            request.header("content-type", "application/json").header("host", address.to_string())
        }
    };
    let request = request.body(Full::new(body)).expect("a request");
    let mut response = match protocol {
        Protocol::Grpc => over_2(address, request).await,
        Protocol::GrpcWeb | Protocol::Json => over_1(address, request).await,
    };
    if protocol == Protocol::Json {
        let fine = response.status() == 200;
        let body = soon("the body", response.into_body().collect()).await.expect("a body").to_bytes();
        if fine {
            return 0;
        }
        let error: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        return match error["code"].as_str().expect("a code") {
            "unauthenticated" => 16,
            "permission_denied" => 7,
            "unimplemented" => 12,
            "invalid_argument" => 3,
            "not_found" => 5,
            "resource_exhausted" => 8,
            other => panic!("{other}: {error}"),
        };
    }
    if let Some(code) = code_in(response.headers()) {
        return code;
    }
    let first = soon("a frame", response.frame()).await.expect("a frame").expect("no error");
    match first.into_data() {
        Err(trailers) => code_in(trailers.trailers_ref().expect("trailers")).expect("a status"),
        Ok(data) if data[0] & 0x80 != 0 => {
            let text = String::from_utf8_lossy(&data[5..]).into_owned();
            let line = text.lines().find_map(|line| line.strip_prefix("grpc-status:")).expect("a status");
            line.trim().parse().expect("a number")
        }
        Ok(_) => 0,
    }
}
