//! Errors of the wire itself: also what no use case ever sees has a reason.

use crate::{harness::*, wire};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use prost::Message as _;
use tonic_types::{ErrorInfo, pb::Status as Rich};

/// Code and reason that stand in the headers, or in the trailers.
async fn reason(response: Response<Incoming>) -> (i32, String) {
    let said = |headers: &HeaderMap| {
        let code = headers.get("grpc-status")?.to_str().expect("ASCII").parse().expect("a number");
        let details = headers.get("grpc-status-details-bin").expect("every error has details");
        let details = details.to_str().expect("ASCII").trim_end_matches('=').to_owned();
        Some((code, details))
    };
    let head = said(response.headers());
    let body = soon("the body", response.into_body().collect()).await.expect("a body");
    let (code, details) = head.or_else(|| body.trailers().and_then(said)).expect("an error");
    let rich = Rich::decode(&*STANDARD_NO_PAD.decode(details).expect("base64")).expect("a status");
    assert_eq!(rich.code, code);
    (code, info(rich.details.iter().map(|detail| (detail.type_url.as_str(), detail.value.as_slice()))))
}

/// The reason among the details.
fn info<'d>(details: impl Iterator<Item = (&'d str, &'d [u8])>) -> String {
    let infos: Vec<_> = details.filter(|(kind, _)| kind.ends_with("google.rpc.ErrorInfo")).collect();
    let [(_, value)] = infos[..] else { panic!("{} infos", infos.len()) };
    let info = tonic_types::pb::ErrorInfo::decode(value).expect("an info");
    let info = ErrorInfo::from(info);
    assert_eq!(info.domain, "backjob.v1");
    info.reason
}

async fn grpc(server: &Server, path: &str, headers: &[(&str, &str)], body: Bytes) -> (i32, String) {
    let mut request = Request::post(format!("http://{}/{path}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    reason(wire::over_2(server.address, request.body(Full::new(body)).expect("a request")).await).await
}

#[tokio::test]
async fn every_error_of_the_wire_has_a_reason() {
    let (server, application) = pair().await;
    server.start(start("/a")).await;
    let hit = application.hit().await;
    let token = format!("Bearer {}", hit.token());
    let report = [("authorization", token.as_str())];
    const START: &str = "backjob.v1.JobControl/Start";
    const REPORTS: &str = "backjob.v1.JobWorker/ReportStream";
    let gzip = [("grpc-encoding", "gzip")];
    let compressed = Bytes::from_static(&[1, 0, 0, 0, 1, 7]);
    let large = || wire::framed(&vec![0; (4 << 20) + 1]);
    let garbage = || wire::framed(&[0xff; 9]);
    for (path, headers, body, expected) in [
        ("backjob.v1.JobControl/Nothing", &[][..], wire::framed(b""), (12, "UNIMPLEMENTED")),
        ("nothing.Known/Call", &[], wire::framed(b""), (12, "UNIMPLEMENTED")),
        (START, &[], large(), (8, "TOO_LARGE")),
        (START, &[], garbage(), (3, "INVALID_FIELD")),
        (START, &[], Bytes::new(), (3, "INVALID_FIELD")),
        (START, &[], Bytes::from_static(b"\0\0\0"), (3, "INVALID_FIELD")),
        (START, &[], Bytes::from_static(b"xxxxxxx"), (3, "INVALID_FIELD")),
        (START, &gzip, compressed, (12, "UNIMPLEMENTED")),
        ("backjob.v1.JobWorker/Report", &report, garbage(), (3, "INVALID_FIELD")),
        (REPORTS, &report, garbage(), (3, "INVALID_FIELD")),
        (REPORTS, &report, large(), (8, "TOO_LARGE")),
        ("grpc.health.v1.Health/Check", &[], wire::framed(b"\x0a\x01x"), (5, "NOT_FOUND")),
    ] {
        let (code, reason) = grpc(&server, path, headers, body).await;
        assert_eq!((code, reason.as_str()), expected, "{path} {headers:?}");
    }
}

#[tokio::test]
async fn who_calls_over_plain_http_in_another_way_is_told_how() {
    let (server, _application) = pair().await;
    const LIST: &str = "/backjob.v1.JobControl/ListJobs";
    for (method, path, kind, expected, word) in [
        ("POST", "/backjob.v1.JobControl/Nothing", Some("application/json"), 404, "no such rpc"),
        ("GET", "/", None, 404, "no such rpc"),
        ("GET", LIST, Some("application/json"), 405, "POST"),
        ("POST", LIST, Some("application/x-www-form-urlencoded"), 415, "application/json"),
        ("POST", LIST, Some("application/json; charset=latin1"), 415, "application/json"),
        ("POST", LIST, None, 415, "application/json"),
        ("POST", "/backjob.v1.JobControl/WatchStatus", Some("application/json"), 501, "gRPC"),
    ] {
        for version in [1, 2] {
            let host = server.address.to_string();
            let uri = if version == 2 { format!("http://{host}{path}") } else { path.to_owned() };
            let mut request = Request::builder().method(method).uri(uri);
            if version == 1 {
                request = request.header("host", host);
            }
            if let Some(kind) = kind {
                request = request.header("content-type", kind);
            }
            let request = request.body(Full::new(Bytes::from_static(b"{}"))).expect("a request");
            let response = match version {
                1 => wire::over_1(server.address, request).await,
                _ => wire::over_2(server.address, request).await,
            };
            assert_eq!(response.status(), expected, "{method} {path} {kind:?}");
            let body = soon("the body", response.into_body().collect()).await.expect("a body").to_bytes();
            let error: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(error["code"], "unimplemented", "{error}");
            assert!(error["message"].as_str().is_some_and(|message| message.contains(word)), "{error}");
            let details = error["details"].as_array().expect("details").iter().map(|detail| {
                let value = STANDARD_NO_PAD.decode(detail["value"].as_str().expect("text")).expect("base64");
                (format!("/{}", detail["type"].as_str().expect("text")), value)
            });
            let details: Vec<_> = details.collect();
            let of = details.iter().map(|(kind, value)| (&kind[1..], value.as_slice()));
            assert_eq!(info(of), "UNIMPLEMENTED");
        }
    }
}

#[tokio::test]
async fn a_batch_over_plain_http_names_what_is_wrong_with_each() {
    let (server, _application) = pair().await;
    let body = r#"{"requests": [{"action": {"route": "/a"}}, {"action": {"route": "nowhere"}}]}"#;
    let request = Request::post("/backjob.v1.JobControl/BatchStart")
        .header("host", server.address.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(body.as_bytes())))
        .expect("a request");
    let response = wire::over_1(server.address, request).await;
    assert_eq!(response.status(), 200);
    let body = soon("the body", response.into_body().collect()).await.expect("a body").to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    let results = answer["results"].as_array().expect("results");
    assert!(results[0]["response"]["job"]["id"].is_string(), "{answer}");
    let error = &results[1]["error"];
    assert_eq!(error["code"], 3, "{answer}");
    assert_eq!(error["details"][0]["@type"], "type.googleapis.com/google.rpc.ErrorInfo", "{answer}");
    assert_eq!(error["details"][0]["reason"], "INVALID_FIELD");
    assert_eq!(error["details"][1]["fieldViolations"][0]["field"], "action.route");
}
