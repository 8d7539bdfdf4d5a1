//! What is served besides on the same port: health, reflection, gRPC-Web.

use crate::harness::*;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

async fn channel(server: &Server) -> tonic::transport::Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    soon("a connection", endpoint.connect()).await.expect("connected")
}

#[tokio::test]
async fn health_tells_whether_new_work_is_taken() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let mut health = HealthClient::new(channel(&server).await);
    for service in ["", "backjob.v1.JobControl", "backjob.v1.JobWorker"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.expect("an answer").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let mut changes = health.watch(HealthCheckRequest::default()).await.expect("a watch").into_inner();
    server.stop.drain.cancel();
    let told = async {
        while let Some(answer) = changes.message().await.expect("no error") {
            if answer.status() == ServingStatus::NotServing {
                return;
            }
        }
        panic!("the watch ended");
    };
    soon("NOT_SERVING", told).await;
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    drop(job);
}

#[tokio::test]
async fn reflection_of_both_versions_lists_the_services() {
    let (server, _application) = pair().await;
    let channel = channel(&server).await;
    {
        use tonic_reflection::pb::v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let asked = tokio_stream::once(ServerReflectionRequest { message_request, ..Default::default() });
        let answers = ServerReflectionClient::new(channel.clone()).server_reflection_info(asked).await;
        let answer =
            answers.expect("a stream").into_inner().message().await.expect("no error").expect("an answer");
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("no list")
        };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        assert!(names.contains(&"backjob.v1.JobControl".to_owned()), "{names:?}");
        assert!(names.contains(&"backjob.v1.JobWorker".to_owned()), "{names:?}");
    }
    use tonic_reflection::pb::v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let message_request = Some(MessageRequest::FileContainingSymbol("backjob.v1.JobControl".to_owned()));
    let asked = tokio_stream::once(ServerReflectionRequest { message_request, ..Default::default() });
    let answers = ServerReflectionClient::new(channel).server_reflection_info(asked).await;
    let answer =
        answers.expect("a stream").into_inner().message().await.expect("no error").expect("an answer");
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
        panic!("no file")
    };
    assert!(!files.file_descriptor_proto.is_empty());
}

#[tokio::test]
async fn grpc_web_is_spoken_over_http_1() {
    let (server, _application) = pair().await;
    let stream = TcpStream::connect(server.address).await.expect("connected");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    spawn(connection);
    let message = backjob::proto::v1::ListJobsRequest::default().encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).expect("small").to_be_bytes());
    body.extend(message);
    let request = http::Request::post("/backjob.v1.JobControl/ListJobs")
        .header("host", server.address.to_string())
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .body(Full::new(bytes::Bytes::from(body)))
        .expect("a request");
    let response = soon("an answer", sender.send_request(request)).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().get("content-type").expect("a type"), "application/grpc-web+proto");
    let body = soon("the body", response.into_body().collect()).await.expect("a body").to_bytes();
    assert_eq!(body[..5], [0, 0, 0, 0, 0], "an empty message");
    assert_eq!(body[5], 0x80, "then the trailers");
    assert!(String::from_utf8_lossy(&body[10..]).contains("grpc-status:0"));
}

/// One request over HTTP/1.1: status, content type and body.
async fn plain(server: &Server, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
    let stream = TcpStream::connect(server.address).await.expect("connected");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    spawn(connection);
    let mut request = http::Request::post(path).header("host", server.address.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(bytes::Bytes::from(body.to_owned()))).expect("a request");
    let response = soon("an answer", sender.send_request(request)).await.expect("an answer");
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().expect("ASCII").to_owned());
    let status = response.status().as_u16();
    let body = soon("the body", response.into_body().collect()).await.expect("a body").to_bytes();
    (status, kind.unwrap_or_default(), String::from_utf8(body.to_vec()).expect("text"))
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn the_unary_rpcs_are_plain_http_with_json() {
    let (server, application) = pair().await;
    let asked = r#"{"action": {"route": "/a", "json": {"id": 5}}, "labels": {"kind": "x"}}"#;
    let (status, kind, body) = plain(&server, "/backjob.v1.JobControl/Start", &[JSON], asked).await;
    assert_eq!((status, kind.as_str()), (200, "application/json"), "{body}");
    let started: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(started["job"]["labels"]["kind"], "x");
    let id = started["job"]["id"].as_str().expect("an id");
    let mut hit = application.hit().await;
    assert_eq!(&hit.body[..], br#"{"id":5}"#);

    let bearer = format!("Bearer {}", hit.token());
    let headers = [JSON, ("authorization", bearer.as_str()), ("connect-protocol-version", "1")];
    let path = "/backjob.v1.JobWorker/Report";
    let report = r#"{"sequence": "1", "progress": 40, "appendText": "half\n"}"#;
    let (status, _, body) = plain(&server, path, &headers, report).await;
    assert_eq!(status, 200, "{body}");
    let acknowledged: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (acknowledged["directive"].as_str(), acknowledged["ackedSequence"].as_str()),
        (Some("DIRECTIVE_CONTINUE"), Some("1"))
    );
    assert_eq!((server.get(id).await.progress, server.get(id).await.status_text.as_str()), (40, "half\n"));
    // Nothing at all is a heartbeat.
    assert_eq!(plain(&server, path, &headers, "").await.0, 200);
    let (status, _, _) = plain(&server, path, &headers, r#"{"sequence": 2, "finish": {}}"#).await;
    assert_eq!(status, 200);
    assert_eq!(server.end(id).await.state(), backjob::proto::v1::JobState::Succeeded);
    hit.ok();
}

#[tokio::test]
async fn errors_of_plain_http_are_those_that_connect_defines() {
    let (server, _application) = pair().await;
    let start = "/backjob.v1.JobControl/Start";
    // Path, headers and body; HTTP status, code, and what the message says.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        (start, &[JSON], r#"{"action": {"route": "x"}}"#, 400, "invalid_argument", "action.route"),
        (start, &[JSON], "{", 400, "invalid_argument", "body"),
        (start, &[JSON], r#"{"nonsense": 1}"#, 400, "invalid_argument", "nonsense"),
        (start, &[JSON, ("connect-protocol-version", "2")], "{}", 400, "invalid_argument", "must be 1"),
        (start, &[JSON, ("connect-timeout-ms", "x")], "{}", 400, "invalid_argument", "connect-timeout-ms"),
        (start, &[JSON, ("content-encoding", "gzip")], "{}", 501, "unimplemented", "compressed"),
        (
            "/backjob.v1.JobControl/GetStatus",
            &[JSON],
            r#"{"jobId": "01900000-0000-7000-8000-000000000000"}"#,
            404,
            "not_found",
            "no job",
        ),
        ("/backjob.v1.JobControl/WatchStatus", &[JSON], "{}", 501, "unimplemented", "stream"),
        ("/backjob.v1.JobWorker/Report", &[JSON], "{}", 401, "unauthenticated", "authorization"),
    ];
    for (path, headers, body, expected, code, says) in cases {
        let (status, kind, answer) = plain(&server, path, headers, body).await;
        assert_eq!((status, kind.as_str()), (*expected, "application/json"), "{body}: {answer}");
        let error: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(error["code"], *code, "{answer}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(says)), "{answer}");
    }
    let (_, _, answer) = plain(&server, start, &[JSON], r#"{"action": {"route": "x"}}"#).await;
    let error: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let types: Vec<_> =
        error["details"].as_array().expect("details").iter().map(|d| d["type"].as_str()).collect();
    assert!(types.contains(&Some("google.rpc.BadRequest")) && types.contains(&Some("google.rpc.ErrorInfo")));
    // Too large, and refused before it is read.
    let large = format!(r#"{{"displayName": "{}"}}"#, "x".repeat(5 << 20));
    let (status, _, answer) = plain(&server, start, &[JSON], &large).await;
    assert_eq!(status, 429, "{answer}");
}

#[tokio::test]
async fn who_is_refused_while_still_sending_hears_why_and_may_go_on() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    async fn answer(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        loop {
            // The answers are small and say how long they are.
            if let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
                let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
                let length: usize = length.expect("a length").trim().parse().expect("a number");
                if text.len() >= end + 4 + length {
                    return String::from_utf8(text).expect("text");
                }
            }
            let read = soon("more", stream.read_buf(&mut text)).await.expect("open");
            assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&text));
        }
    }
    let (server, _application) = pair().await;
    let mut stream = TcpStream::connect(server.address).await.expect("connected");
    let head = |path: &str, kind: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: 2\r\n\r\n"
        )
    };
    let report = "/backjob.v1.JobWorker/Report";
    for (path, kind, status) in [
        (report, "application/json", 401),
        ("/backjob.v1.JobControl/Nothing", "application/json", 404),
        ("/backjob.v1.JobControl/ListJobs", "text/plain", 415),
        ("/backjob.v1.JobControl/ListJobs", "application/json", 200),
    ] {
        stream.write_all(head(path, kind).as_bytes()).await.expect("written");
        stream.flush().await.expect("flushed");
        // A slow client: nothing is waited for here.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        stream.write_all(b"{}").await.expect("still open");
        let answer = answer(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
}
