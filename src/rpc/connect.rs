//! The unary rpcs as plain HTTP, in Connect's unary form
//! (<https://connectrpc.com/docs/protocol#unary-request>): `POST
//! /backjob.v1.JobWorker/Report` with a JSON object, so that a shell or a PHP
//! action needs no gRPC.
//!
//! A layer before all others: it turns such a request into a gRPC one and the
//! answer back. gRPC and gRPC-Web pass through untouched; all else is told what
//! is served here.

use super::{MESSAGE, intake, status};
use crate::proto::DESCRIPTORS;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::Either;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde_json::json;
use std::{
    future::Future,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
};
use tonic::{Code, Status, body::Body, codegen::Service};

/// Values of a JSON request, at most: each takes a hundred times its bytes while it
/// is read.
const VALUES: usize = 100_000;

/// Our messages, and what stands in the details of an error: BatchStart answers
/// with those.
static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| {
    let mut pool = DescriptorPool::decode(DESCRIPTORS).ok()?;
    let details = prost_types::FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET).ok()?;
    // The others of that set are there already.
    let details = details.file.into_iter().find(|file| file.name() == "error_details.proto")?;
    pool.add_file_descriptor_proto(details).ok()?;
    Some(pool)
});

/// Makes [`Connect`] of a service.
#[derive(Debug, Clone, Copy)]
pub struct ConnectLayer;

impl<S> tower_layer::Layer<S> for ConnectLayer {
    type Service = Connect<S>;

    fn layer(&self, inner: S) -> Connect<S> {
        Connect { inner }
    }
}

/// A gRPC service that also answers Connect's unary requests.
#[derive(Debug, Clone)]
pub struct Connect<S> {
    inner: S,
}

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Json,
    Proto,
}

impl Codec {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let (essence, parameters) = value.split_once(';').unwrap_or((value, ""));
        let utf8 = parameters.is_empty() || parameters.trim().eq_ignore_ascii_case("charset=utf-8");
        match essence.trim().to_ascii_lowercase().as_str() {
            "application/json" if utf8 => Some(Self::Json),
            "application/proto" if parameters.is_empty() => Some(Self::Proto),
            _ => None,
        }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Proto => "application/proto",
        })
    }

    fn decode(self, body: &[u8], message: MessageDescriptor) -> Result<Bytes, Status> {
        match self {
            Self::Proto => Ok(Bytes::copy_from_slice(body)), // the service reads it
            Self::Json if body.is_empty() => Ok(Bytes::new()),
            Self::Json if values(body) > VALUES => {
                Err(status::invalid("body", format!("holds more than {VALUES} values")))
            }
            Self::Json => {
                let mut reader = serde_json::Deserializer::from_slice(body);
                let read = DynamicMessage::deserialize(message, &mut reader);
                let read = read.and_then(|message| reader.end().map(|()| message));
                let message = read.map_err(|error| status::invalid("body", error.to_string()))?;
                Ok(message.encode_to_vec().into())
            }
        }
    }

    fn encode(self, bytes: Bytes, message: MessageDescriptor) -> Result<Bytes, Status> {
        match self {
            Self::Proto => Ok(bytes),
            Self::Json => {
                let message = DynamicMessage::decode(message, bytes)
                    .map_err(|error| status::internal(&error.to_string()))?;
                serde_json::to_vec(&message)
                    .map(Bytes::from)
                    .map_err(|error| status::internal(&error.to_string()))
            }
        }
    }
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Connect<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Answer<S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_grpc(request.headers()) {
            return Either::Left(self.inner.call(request));
        }
        let (codec, method) = match known(&request) {
            Ok(known) => known,
            Err(response) => return Either::Right(Box::pin(async { Ok(*response) })),
        };
        // The one that is ready answers; its clone takes its place.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Either::Right(Box::pin(async move {
            match read(request, codec, &method).await {
                Ok(request) => {
                    let response = inner.call(request).await?;
                    Ok(write(response, codec, &method).await.unwrap_or_else(|status| refusal(&status)))
                }
                Err(status) => Ok(refusal(&status)),
            }
        }))
    }
}

/// How many values stand in a JSON text; of what is none, not fewer than a reader
/// would meet.
fn values(text: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (1, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// What is asked for, and in which form; or what to say to who asks otherwise.
fn known(request: &Request<Body>) -> Result<(Codec, MethodDescriptor), Box<Response<Body>>> {
    let refused = |message: &str, code, (name, value): (HeaderName, &'static str)| {
        let mut response = refusal(&status::unimplemented(message));
        *response.status_mut() = code;
        response.headers_mut().insert(name, HeaderValue::from_static(value));
        Box::new(response)
    };
    let Some(method) = method(request.uri().path()) else {
        let message = "there is no such rpc: rpcs are called as POST /backjob.v1.JobControl/Start";
        let mut response = refusal(&status::unimplemented(message));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Err(Box::new(response));
    };
    if request.method() != Method::POST {
        let message = "rpcs are called with POST";
        return Err(refused(message, StatusCode::METHOD_NOT_ALLOWED, (header::ALLOW, "POST")));
    }
    let Some(codec) = Codec::of(request.headers()) else {
        let message =
            "the Content-Type must be application/json, application/proto, or one of gRPC or gRPC-Web";
        let accepted = (HeaderName::from_static("accept-post"), "application/json, application/proto");
        return Err(refused(message, StatusCode::UNSUPPORTED_MEDIA_TYPE, accepted));
    };
    Ok((codec, method))
}

/// The rpc of this path.
fn method(path: &str) -> Option<MethodDescriptor> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    let service = POOL.as_ref()?.get_service_by_name(service)?;
    service.methods().find(|method| method.name() == name)
}

/// The gRPC request for one of Connect.
async fn read(
    request: Request<Body>,
    codec: Codec,
    method: &MethodDescriptor,
) -> Result<Request<Body>, Status> {
    if method.is_client_streaming() || method.is_server_streaming() {
        return Err(status::unimplemented("a stream is followed over gRPC or gRPC-Web"));
    }
    let (mut parts, body) = request.into_parts();
    let headers = &mut parts.headers;
    if headers.remove("connect-protocol-version").is_some_and(|version| version != "1") {
        return Err(status::invalid("connect-protocol-version", "must be 1"));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(status::unimplemented("compressed requests are not read: send them as they are"));
    }
    if let Some(timeout) = headers.remove("connect-timeout-ms") {
        let millis =
            timeout.to_str().ok().filter(|text| text.len() <= 10).and_then(|text| text.parse::<u64>().ok());
        let millis =
            millis.ok_or_else(|| status::invalid("connect-timeout-ms", "must be at most 10 digits"))?;
        // gRPC has 8 digits: beyond them, whole seconds.
        let text = if millis < 100_000_000 { format!("{millis}m") } else { format!("{}S", millis / 1_000) };
        headers.insert(
            "grpc-timeout",
            HeaderValue::try_from(text).map_err(|error| status::internal(&error.to_string()))?,
        );
    }
    let message = codec.decode(&intake::whole(body).await?, method.input())?;
    for name in
        [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::ACCEPT_ENCODING, header::TRANSFER_ENCODING]
    {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    parts.version = http::Version::HTTP_2;
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).map_err(|_| status::too_large(MESSAGE))?);
    framed.put(message);
    Ok(Request::from_parts(parts, Body::new(Full::new(framed.freeze()))))
}

/// Connect's response for one of gRPC.
async fn write(
    response: Response<Body>,
    codec: Codec,
    method: &MethodDescriptor,
) -> Result<Response<Body>, Status> {
    let (mut parts, body) = response.into_parts();
    if let Some(status) = Status::from_header_map(&parts.headers).filter(|status| status.code() != Code::Ok) {
        return Err(status);
    }
    let body = body.collect().await.map_err(status::explained)?;
    let ended = body.trailers().and_then(Status::from_header_map);
    if let Some(status) = ended.filter(|status| status.code() != Code::Ok) {
        return Err(status);
    }
    // A flag and a length stand before the message.
    let framed = body.to_bytes();
    let message = framed.get(5..).map(|message| framed.slice_ref(message)).unwrap_or_default();
    let body = codec.encode(message, method.output())?;
    parts.status = StatusCode::OK;
    parts.headers.insert(header::CONTENT_TYPE, codec.content_type());
    Ok(Response::from_parts(parts, Body::new(Full::new(body))))
}

/// An error for whoever sent these headers: as gRPC, gRPC-Web or Connect writes it.
pub fn refused(headers: &HeaderMap, status: &Status) -> Response<Body> {
    match headers.get(header::CONTENT_TYPE).filter(|_| is_grpc(headers)) {
        None => refusal(status),
        Some(kind) => {
            let mut response = status.clone().into_http();
            response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
            response
        }
    }
}

/// An error as Connect writes it: always JSON.
fn refusal(status: &Status) -> Response<Body> {
    let (code, name) = code(status.code());
    let details = status::as_message(status).details;
    let details: Vec<_> = details
        .into_iter()
        .map(|detail| {
            let name = detail.type_url.rsplit('/').next().unwrap_or_default();
            json!({"type": name, "value": STANDARD_NO_PAD.encode(&detail.value)})
        })
        .collect();
    let error = json!({"code": name, "message": status.message(), "details": details});
    let mut response = Response::new(Body::new(Full::new(Bytes::from(error.to_string()))));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, Codec::Json.content_type());
    response
}

/// Connect's HTTP status and name of a code.
fn code(code: Code) -> (StatusCode, &'static str) {
    let (number, name) = match code {
        Code::Ok | Code::Unknown => (500, "unknown"),
        Code::Cancelled => (499, "canceled"),
        Code::InvalidArgument => (400, "invalid_argument"),
        Code::DeadlineExceeded => (504, "deadline_exceeded"),
        Code::NotFound => (404, "not_found"),
        Code::AlreadyExists => (409, "already_exists"),
        Code::PermissionDenied => (403, "permission_denied"),
        Code::ResourceExhausted => (429, "resource_exhausted"),
        Code::FailedPrecondition => (400, "failed_precondition"),
        Code::Aborted => (409, "aborted"),
        Code::OutOfRange => (400, "out_of_range"),
        Code::Unimplemented => (501, "unimplemented"),
        Code::Internal => (500, "internal"),
        Code::Unavailable => (503, "unavailable"),
        Code::DataLoss => (500, "data_loss"),
        Code::Unauthenticated => (401, "unauthenticated"),
    };
    (StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        for (text, count) in [
            ("", 1),
            ("1", 1),
            ("[1, 2, 3]", 4),
            (r#"{"a": {"b": [1, {}]}, "c": 2}"#, 7),
            (r#"{"a,[{": ",[{\",[\\", "b": "\\"}"#, 3),
            (r#"\"[,"#, 1),
        ] {
            assert_eq!(values(text.as_bytes()), count, "{text}");
        }
    }
}
