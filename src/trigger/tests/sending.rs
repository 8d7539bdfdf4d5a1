//! What is sent, and that it is signed.

use super::*;

#[tokio::test]
async fn a_trigger_arrives_with_its_headers_and_verifies() {
    let app = App::new().await;
    let url = format!("{}/base/", app.url());
    let client = client(&url);
    assert_eq!(client.target("app").expect("a target").base_path(), "/base");
    let sent = Request {
        payload: Payload {
            headers: vec![("user-agent".into(), "theirs".into()), ("x-tenant".into(), "7".into())],
            content_type: Some("application/json".into()),
            body: Bytes::from_static(br#"{"id":5}"#),
            credentials: None,
        }
        .into(),
        cookie: Some("session=1; ü".into()),
        authorization: Some("Bearer user".into()),
        ..request("POST", "/base/a?b=1")
    };
    let notes = Notes::new();
    let (outcome, arrived) = play(&client, sent, &notes, async {
        let mut peer = app.accept().await;
        // Bytes beyond ASCII are the user's own; the helper reads ASCII.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(peer.0.read_u8().await.expect("a request"));
        }
        let mut body = [0; 8];
        peer.0.read_exact(&mut body).await.expect("a body");
        peer.answer("done").await;
        (String::from_utf8(head).expect("UTF-8"), body)
    })
    .await;
    assert_eq!(text(&outcome), "done");
    assert_eq!(notes.told(), ["sent", "heard"]);
    let (head, body) = arrived;
    assert_eq!(&body, br#"{"id":5}"#);
    assert!(head.starts_with("POST /base/a?b=1 HTTP/1.1\r\n"), "{head}");
    let host = format!("Host: 127.0.0.1:{}", app.port());
    for line in [
        host.as_str(),
        concat!("User-Agent: backjob/", env!("CARGO_PKG_VERSION")),
        "X-Tenant: 7",
        "Content-Type: application/json",
        "Content-Length: 8",
        "Cache-Control: no-store",
        "Cookie: session=1; ü",
        "Authorization: Bearer user",
        "Backjob-Job-Id: 03030303-0303-0303-0303-030303030303",
        "Backjob-Attempt: 2",
        "Backjob-Report-Url: http://127.0.0.1:50051",
        "Backjob-Report-Token: the-report-token",
        "Backjob-Deadline: 60",
    ] {
        assert_eq!(head.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line} in {head}");
    }
}

#[tokio::test]
async fn odd_methods_and_urls_arrive_byte_by_byte_and_verify() {
    let app = App::new().await;
    let client = app.client();
    for (method, url) in [
        ("GET", "/"),
        ("CHICKEN", "/it's"),
        ("get", "/a?"),
        ("M-SEARCH", "//a//b/"),
        ("GET", "/%C3%A4/%2F?q=it's&x=%5C&y=%27"),
        ("POST", "/a?b[]=1&b[]=2&&=&c"),
        ("PUT", "/a;p=1,2/(b)!*$@:~?x=/?:@"),
        ("DELETE", "/a?http://host/b?c"),
        ("PATCH", "/http://host/"),
        ("OPTIONS", "/*"),
    ] {
        let notes = Notes::new();
        let (outcome, arrived) = play(&client, request(method, url), &notes, async {
            let mut peer = app.accept().await;
            let arrived = peer.request().await;
            peer.write("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok").await;
            arrived
        })
        .await;
        assert_eq!(text(&outcome), "ok");
        assert_eq!((arrived.method.as_str(), arrived.url.as_str()), (method, url));
        let trigger = arrived.verified();
        assert_eq!((trigger.created, trigger.expires), (NOW, NOW + 300));
        let usual = ["POST", "PUT", "PATCH"].contains(&method);
        assert_eq!(arrived.header("content-length"), usual.then_some("0"), "{method}");
        for none in ["cookie", "authorization", "content-type", "transfer-encoding"] {
            assert_eq!(arrived.header(none), None, "{none}");
        }
    }
}

#[tokio::test]
async fn a_body_goes_with_any_method() {
    let app = App::new().await;
    let client = app.client();
    let large = vec![b'x'; 3 * 1024 * 1024];
    for method in ["GET", "CHICKEN", "POST"] {
        let notes = Notes::new();
        let (outcome, arrived) = play(&client, with_body(method, large.clone()), &notes, async {
            let mut peer = app.accept().await;
            let arrived = peer.request().await;
            notes.until(&["sent"]).await;
            peer.write("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok").await;
            arrived
        })
        .await;
        assert_eq!(text(&outcome), "ok");
        arrived.verified();
        assert!(arrived.body == large, "{method}");
        assert_eq!(arrived.header("content-length"), Some("3145728"));
    }
}

#[tokio::test]
async fn each_request_has_a_nonce_of_its_own() {
    let app = App::new().await;
    let client = app.client();
    let notes = Notes::new();
    let (_, nonces) = play(&client, request("GET", "/a"), &notes, async {
        let mut peer = app.accept().await;
        let first = peer.request().await.verified().nonce;
        peer.answer("").await;
        (first, peer)
    })
    .await;
    let (first, mut peer) = nonces;
    let (_, second) = play(&client, request("GET", "/a"), &notes, async {
        let second = peer.request().await.verified().nonce;
        peer.answer("").await;
        second
    })
    .await;
    assert_eq!(first.len(), 22);
    assert_ne!(first, second);
}

#[tokio::test]
async fn sent_is_told_as_soon_as_all_is_written_and_before_an_answer() {
    let app = App::new().await;
    let notes = Notes::new();
    let (outcome, ()) = play(&app.client(), with_body("POST", "body"), &notes, async {
        let mut peer = app.accept().await;
        notes.until(&["sent"]).await;
        peer.request().await;
        peer.answer("done").await;
    })
    .await;
    assert_eq!(text(&outcome), "done");
    assert_eq!(notes.told(), ["sent", "heard"]);
}

#[tokio::test]
async fn what_cannot_be_sent_as_it_is_is_an_internal_failure_that_shows_nothing() {
    let client = client("http://127.0.0.1:1");
    let payload = |name: &str| Payload {
        headers: vec![(name.into(), "secret\r\nHost: x".into())],
        ..Payload::default()
    };
    let plain = request("GET", "/a");
    for wrong in [
        Request { target: "other".into(), ..plain.clone() },
        Request { method: "CONNECT".into(), ..plain.clone() },
        Request { method: "A B".into(), ..plain.clone() },
        Request { method: String::new(), ..plain.clone() },
        Request { url: "/a#secret".into(), ..plain.clone() },
        Request { url: "/a secret".into(), ..plain.clone() },
        Request { url: "a?secret".into(), ..plain.clone() },
        Request { url: "*".into(), ..plain.clone() },
        Request { url: String::new(), ..plain.clone() },
        Request { payload: payload("x-a").into(), ..plain.clone() },
        Request { payload: payload("x a").into(), ..plain.clone() },
        Request { cookie: Some("secret\n".into()), ..plain.clone() },
        Request { report_token: "secret\0".into(), ..plain },
    ] {
        let shown = format!("{wrong:?}");
        let (reason, message) = not_sent(client.call(wrong, Notes::new()).await);
        assert_eq!(reason, Reason::Internal, "{message}");
        assert!(!message.contains("secret"), "{message}");
        assert!(!shown.contains("?secret") && !shown.contains("token"), "{shown}");
    }
}
