//! What goes wrong on the way, and what is said of it.

use super::*;

/// The outcome of a call that is answered with `answer`, and then closed.
async fn answered(request: Request, answer: &[u8]) -> (Outcome, Vec<&'static str>) {
    let app = App::new().await;
    let client = app.client();
    let notes = Notes::new();
    let (outcome, ()) = play(&client, request, &notes, async {
        let mut peer = app.accept().await;
        peer.request().await;
        peer.write(answer).await;
    })
    .await;
    assert_eq!(client.idle("app"), 0, "what broke is not kept");
    (outcome, notes.told())
}

#[tokio::test]
async fn nobody_listens() {
    let app = App::new().await;
    let url = app.url();
    let client = client(&url);
    drop(app);
    let notes = Notes::new();
    let (reason, message) = not_sent(soon(client.call(request("GET", "/a?secret"), notes.clone())).await);
    assert_eq!(reason, Reason::Connect);
    assert!(message.contains("127.0.0.1") && message.contains("refused"), "{message}");
    assert!(!message.contains("secret"), "{message}");
    assert!(notes.told().is_empty());
}

#[tokio::test]
async fn a_connection_closed_before_a_response_is_lost() {
    for method in ["GET", "POST"] {
        let (outcome, told) = answered(request(method, "/a"), b"").await;
        lost(outcome);
        assert_eq!(told, ["sent"]);
        let (outcome, _) = answered(request(method, "/a"), b"HTTP/1.1 200 OK\r\ncontent-le").await;
        lost(outcome);
    }
}

#[tokio::test]
async fn a_reset_before_a_response_is_lost() {
    let app = App::new().await;
    let notes = Notes::new();
    let (outcome, ()) = play(&app.client(), with_body("POST", "body"), &notes, async {
        let stream = app.stream().await;
        notes.until(&["sent"]).await;
        // Closing with bytes unread resets.
        drop(stream);
    })
    .await;
    lost(outcome);
}

#[tokio::test]
async fn a_connection_that_breaks_while_the_request_is_written_was_not_sent() {
    let app = App::new().await;
    let notes = Notes::new();
    // More than the sockets' buffers take.
    let (outcome, ()) = play(&app.client(), with_body("POST", vec![0; 32 << 20]), &notes, async {
        let mut stream = app.stream().await;
        let mut some = [0; 4096];
        assert!(stream.read(&mut some).await.expect("some") > 0);
        drop(stream);
    })
    .await;
    assert_eq!(not_sent(outcome).0, Reason::Connect);
    assert!(notes.told().is_empty());
}

#[tokio::test]
async fn an_answer_to_half_a_request_counts_and_the_connection_is_not_kept() {
    let app = App::new().await;
    let client = app.client();
    let notes = Notes::new();
    let (outcome, mut stream) = play(&client, with_body("POST", vec![0; 32 << 20]), &notes, async {
        let mut stream = app.stream().await;
        let mut some = [0; 4096];
        assert!(stream.read(&mut some).await.expect("some") > 0);
        stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await.expect("written");
        stream
    })
    .await;
    assert!(matches!(outcome, Outcome::Response(Response { status: 413, .. })), "{outcome:?}");
    assert_eq!(notes.told(), ["sent", "heard"]);
    assert_eq!(client.idle("app"), 0);
    soon(tokio::io::copy(&mut stream, &mut tokio::io::sink())).await.ok();
}

#[tokio::test]
async fn what_broke_after_a_report_is_lost_however_much_was_written() {
    let app = App::new().await;
    let notes = Notes::new();
    let (outcome, ()) = play(&app.client(), with_body("POST", vec![0; 32 << 20]), &notes, async {
        let mut stream = app.stream().await;
        let mut some = [0; 4096];
        assert!(stream.read(&mut some).await.expect("some") > 0);
        notes.report();
        drop(stream);
    })
    .await;
    lost(outcome);
}

#[tokio::test]
async fn a_body_broken_in_the_middle_is_lost() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nhalf",
    ] {
        let (outcome, told) = answered(request("GET", "/a"), answer.as_bytes()).await;
        lost(outcome);
        assert_eq!(told, ["sent", "heard"]);
    }
}

#[tokio::test]
async fn what_is_not_http_is_a_bad_response() {
    for answer in [
        "220 mail.example ESMTP\r\n\r\n",
        "\x15\x03\x01\x00\x02\x02",
        "HTTP/3.7 200 OK\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 999 Other\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let (outcome, told) = answered(request("GET", "/a"), answer.as_bytes()).await;
        bad(outcome);
        assert_eq!(told, ["sent"], "{answer}");
    }
}

#[tokio::test]
async fn a_flood_of_headers_is_a_bad_response() {
    let many: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let (outcome, _) =
        answered(request("GET", "/a"), format!("HTTP/1.1 200 OK\r\n{many}\r\n").as_bytes()).await;
    bad(outcome);
}

#[tokio::test]
async fn headers_without_end_are_a_bad_response() {
    let app = App::new().await;
    let (outcome, ()) = play(&app.client(), request("GET", "/a"), &Notes::new(), async {
        let mut peer = app.accept().await;
        peer.request().await;
        peer.write("HTTP/1.1 200 OK\r\nx: ").await;
        while peer.0.write_all(&[b'x'; 1024]).await.is_ok() {}
    })
    .await;
    assert!(bad(outcome).contains("large"));
}

#[tokio::test]
async fn a_body_without_end_is_a_bad_response_and_is_cut_off() {
    let app = App::new().await;
    let small = Settings { max_response: 256 * 1024, ..settings() };
    let client = client_of(options(&app.url()), small, HeldClock::new());
    let (outcome, ()) = play(&client, request("GET", "/a"), &Notes::new(), async {
        let mut peer = app.accept().await;
        peer.request().await;
        peer.write("HTTP/1.1 200 OK\r\n\r\n").await;
        while peer.0.write_all(&[b'x'; 1024]).await.is_ok() {}
    })
    .await;
    assert!(bad(outcome).contains("262144 bytes"));
    assert_eq!(client.idle("app"), 0);
}

#[tokio::test]
async fn a_response_of_exactly_the_most_is_taken() {
    let app = App::new().await;
    let small = Settings { max_response: 4, ..settings() };
    let client = client_of(options(&app.url()), small, HeldClock::new());
    let (outcome, ()) = play(&client, request("GET", "/a"), &Notes::new(), async {
        let mut peer = app.accept().await;
        peer.request().await;
        peer.answer("four").await;
    })
    .await;
    assert_eq!(text(&outcome), "four");
}

#[tokio::test]
async fn dropping_the_call_closes_the_connection_at_once() {
    let app = App::new().await;
    let client = app.client();
    // Before anything of a response, and within its body.
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"] {
        let notes = Notes::new();
        let mut call = client.call(request("GET", "/a"), notes.clone());
        let mut peer = soon(async {
            tokio::select! {
                outcome = &mut call => panic!("ended: {outcome:?}"),
                peer = async {
                    let mut peer = app.accept().await;
                    peer.request().await;
                    peer.write(answer).await;
                    notes.until(if answer.is_empty() { &["sent"] } else { &["sent", "heard"] }).await;
                    peer
                } => peer,
            }
        })
        .await;
        drop(call);
        soon(peer.closed()).await;
        assert_eq!(client.idle("app"), 0);
    }
}

#[tokio::test]
async fn dropping_a_call_on_a_used_connection_closes_it_too() {
    let app = App::new().await;
    let client = app.client();
    let (_, mut peer) = play(&client, request("GET", "/a"), &Notes::new(), async {
        let mut peer = app.accept().await;
        peer.request().await;
        peer.answer("ok").await;
        peer
    })
    .await;
    let mut call = client.call(request("GET", "/a"), Notes::new());
    soon(async {
        tokio::select! {
            outcome = &mut call => panic!("ended: {outcome:?}"),
            _ = peer.request() => {}
        }
    })
    .await;
    drop(call);
    soon(peer.closed()).await;
    assert_eq!(client.idle("app"), 0);
}
