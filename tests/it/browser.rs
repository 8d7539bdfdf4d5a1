//! Calls as browsers make them: names, pages, and what a page may see.

use crate::{harness::*, wire};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

const LIST: &str = "/backjob.v1.JobControl/ListJobs";
const JSON: (&str, &str) = ("content-type", "application/json");
const WEB: (&str, &str) = ("content-type", "application/grpc-web+proto");
const GRPC: (&str, &str) = ("content-type", "application/grpc");
const PAGE: &str = "https://app.example.com";

async fn server() -> (Server, Application) {
    let application = Application::new().await;
    let setup = Setup::new(application.address)
        .with("http.hosts", "jobs.example.com")
        .with("http.cors_origins", PAGE);
    (setup.start().await, application)
}

async fn ask(
    server: &Server,
    method: &str,
    version: u8,
    authority: &str,
    headers: &[(&str, &str)],
) -> Response<Incoming> {
    let uri = if version == 2 { format!("http://{authority}{LIST}") } else { LIST.to_owned() };
    let mut request = Request::builder().method(method).uri(uri);
    if version == 1 {
        request = request.header("host", authority);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let json = headers.contains(&JSON);
    let body = if method == "OPTIONS" {
        Bytes::new()
    } else if json {
        Bytes::from_static(b"{}")
    } else {
        wire::framed(b"")
    };
    let request = request.body(Full::new(body)).expect("a request");
    if version == 2 {
        wire::over_2(server.address, request).await
    } else {
        wire::over_1(server.address, request).await
    }
}

/// Whether it was let in; a refusal must be in the words of its protocol.
async fn let_in(server: &Server, version: u8, authority: &str, headers: &[(&str, &str)]) -> bool {
    let response = ask(server, "POST", version, authority, headers).await;
    if headers.contains(&JSON) || !headers.iter().any(|(name, _)| *name == "content-type") {
        let status = response.status().as_u16();
        let body = soon("the body", response.into_body().collect()).await.expect("a body").to_bytes();
        if status == 200 {
            return true;
        }
        let error: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((status, error["code"].as_str()), (403, Some("permission_denied")), "{error}");
        return false;
    }
    assert_eq!(response.status(), 200);
    match response.headers().get("grpc-status") {
        None => true,
        Some(code) => {
            assert_eq!(code, "7");
            false
        }
    }
}

#[tokio::test]
async fn a_name_that_was_rebound_gets_nothing() {
    let (server, _application) = server().await;
    let own = server.address.to_string();
    for version in [1, 2] {
        for kind in [JSON, WEB] {
            for name in [own.as_str(), "localhost:50051", "[::1]:1", "jobs.example.com"] {
                assert!(let_in(&server, version, name, &[kind]).await, "HTTP/{version} {name} {kind:?}");
            }
            for name in ["attacker.example:50051", "localhost.attacker.example", "0.0.0.0:1", "192.168.0.7"] {
                assert!(!let_in(&server, version, name, &[kind]).await, "HTTP/{version} {name} {kind:?}");
            }
        }
    }
    // Native gRPC is out of a page's reach, unless a page says that it is one.
    assert!(let_in(&server, 2, "attacker.example", &[GRPC]).await);
    assert!(!let_in(&server, 2, "attacker.example", &[GRPC, ("sec-fetch-site", "same-origin")]).await);
    assert!(!let_in(&server, 1, "attacker.example", &[GRPC]).await);
    assert!(!let_in(&server, 1, "attacker.example", &[]).await);
}

/// Two names, of which one is good: neither counts.
#[tokio::test]
async fn a_name_that_another_contradicts_gets_nothing() {
    let (server, _application) = server().await;
    let own = server.address.to_string();
    for (authority, host, fine) in [
        (own.as_str(), own.as_str(), true),
        (own.as_str(), "attacker.example", false),
        ("attacker.example", own.as_str(), false),
        ("localhost", own.as_str(), false),
    ] {
        for version in [1, 2] {
            // Over HTTP/1.1 the request line names it, as it does to a proxy (RFC 9112, 3.2.2).
            let request = Request::post(format!("http://{authority}{LIST}"))
                .header("content-type", "application/json")
                .header("host", host)
                .body(Full::new(Bytes::from_static(b"{}")))
                .expect("a request");
            let response = match version {
                1 => wire::over_1(server.address, request).await,
                _ => wire::over_2(server.address, request).await,
            };
            let status = response.status().as_u16();
            assert_eq!(status, if fine { 200 } else { 403 }, "HTTP/{version}: {authority} and {host}");
        }
    }
}

#[tokio::test]
async fn a_page_of_another_site_gets_nothing() {
    let (server, _application) = server().await;
    let own = server.address.to_string();
    let own_page = format!("http://{own}");
    for version in [1, 2] {
        for kind in [JSON, WEB, GRPC] {
            if kind == GRPC && version == 1 {
                continue; // no gRPC there
            }
            for headers in [
                &[kind, ("origin", own_page.as_str()), ("sec-fetch-site", "same-origin")][..],
                &[kind, ("origin", PAGE), ("sec-fetch-site", "cross-site")],
                &[kind, ("sec-fetch-site", "none")],
            ] {
                assert!(let_in(&server, version, &own, headers).await, "HTTP/{version} {headers:?}");
            }
            for headers in [
                &[kind, ("origin", "https://attacker.example")][..],
                &[kind, ("origin", "null")],
                &[kind, ("origin", own_page.as_str()), ("origin", "https://attacker.example")],
                &[kind, ("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")],
                &[kind, ("sec-fetch-site", "cross-site")],
                &[kind, ("sec-fetch-site", "same-site")],
            ] {
                assert!(!let_in(&server, version, &own, headers).await, "HTTP/{version} {headers:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_listed_page_is_told_what_it_may_do_and_may_read_the_answer() {
    let (server, _application) = server().await;
    let own = server.address.to_string();
    let preflight = |origin: &'static str| {
        let server = &server;
        let own = own.clone();
        async move {
            let headers = [
                ("origin", origin),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", "authorization,content-type,x-grpc-web"),
            ];
            ask(server, "OPTIONS", 1, &own, &headers).await
        }
    };
    let said = |response: &Response<Incoming>, name: &str| {
        response.headers().get(name).map(|value| value.to_str().expect("ASCII").to_owned())
    };
    let told = preflight(PAGE).await;
    assert!(told.status().is_success());
    assert_eq!(said(&told, "access-control-allow-origin").as_deref(), Some(PAGE));
    assert_eq!(said(&told, "access-control-allow-methods").as_deref(), Some("POST"));
    let allowed = said(&told, "access-control-allow-headers").expect("headers");
    for name in ["authorization", "content-type", "x-grpc-web"] {
        assert!(allowed.contains(name), "{allowed}");
    }
    assert!(said(&told, "vary").is_some_and(|vary| vary.to_lowercase().contains("origin")));
    let told = preflight("https://attacker.example").await;
    assert_eq!(said(&told, "access-control-allow-origin"), None);

    let answer = ask(&server, "POST", 1, &own, &[WEB, ("origin", PAGE)]).await;
    assert_eq!(said(&answer, "access-control-allow-origin").as_deref(), Some(PAGE));
    assert!(
        said(&answer, "access-control-expose-headers").is_some_and(|names| names.contains("grpc-status"))
    );
    // Not even a refusal is shown to another.
    let answer = ask(&server, "POST", 1, &own, &[JSON, ("origin", "https://attacker.example")]).await;
    assert_eq!((answer.status().as_u16(), said(&answer, "access-control-allow-origin")), (403, None));
}

#[tokio::test]
async fn the_name_that_actions_report_to_is_known() {
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("trigger.report_url", "http://backjob.internal:50051");
    let server = setup.start().await;
    assert!(let_in(&server, 1, "backjob.internal:50051", &[JSON]).await);
    assert!(!let_in(&server, 1, "backjob.example", &[JSON]).await);
}
