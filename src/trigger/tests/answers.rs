//! What is kept of a response.

use super::*;
use crate::job::Output;

async fn answered(method: &str, answer: &[u8]) -> Response {
    let app = App::new().await;
    let (outcome, ()) = play(&app.client(), request(method, "/a"), &Notes::new(), async {
        let mut peer = app.accept().await;
        peer.request().await;
        peer.write(answer).await;
    })
    .await;
    match outcome {
        Outcome::Response(response) => response,
        other => panic!("no response: {other:?}"),
    }
}

#[tokio::test]
async fn a_body_becomes_output_and_text() {
    let answer = b"HTTP/1.1 201 Created\r\ncontent-type: text/plain; charset=utf-8\r\n\
        set-cookie: a=b\r\ncontent-length: 5\r\n\r\nd\xc3\xb6ne";
    let output =
        Output { content_type: "text/plain; charset=utf-8".into(), data: "döne".into(), truncated: false };
    let expected =
        Response { status: 201, output: Some(output), text: Some("döne".into()), retry_after: None };
    assert_eq!(answered("GET", answer).await, expected);
}

#[tokio::test]
async fn where_there_is_no_body_there_is_no_output() {
    for (method, answer, status) in [
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\n", 200),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304),
        ("POST", "HTTP/1.1 202 Accepted\r\ncontent-type: text/plain\r\ncontent-length: 0\r\n\r\n", 202),
        ("POST", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 200),
    ] {
        let expected = Response { status, output: None, text: None, retry_after: None };
        assert_eq!(answered(method, answer.as_bytes()).await, expected, "{answer}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let app = App::new().await;
    let answer = format!("HTTP/1.1 302 Found\r\nlocation: {}/b\r\ncontent-length: 0\r\n\r\n", app.url());
    let client = app.client();
    let (outcome, mut peer) = play(&client, request("GET", "/a"), &Notes::new(), async {
        let mut peer = app.accept().await;
        peer.request().await;
        peer.write(answer).await;
        peer
    })
    .await;
    assert!(matches!(outcome, Outcome::Response(Response { status: 302, .. })), "{outcome:?}");
    drop(client);
    let mut rest = Vec::new();
    soon(peer.0.read_to_end(&mut rest)).await.expect("closed");
    assert!(rest.is_empty(), "nothing more was asked");
}

#[tokio::test]
async fn retry_after_is_read() {
    let answer = b"HTTP/1.1 503 Busy\r\nretry-after: 120\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(answered("GET", answer).await.retry_after, Some(120_000));
}

#[tokio::test]
async fn each_piece_of_a_dripping_body_is_heard() {
    let app = App::new().await;
    let notes = Notes::new();
    let (outcome, ()) = play(&app.client(), request("GET", "/a"), &notes, async {
        let mut peer = app.accept().await;
        peer.request().await;
        peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let mut expected = vec!["sent"];
        for piece in ["1\r\na\r\n", "2\r\nbc\r\n", "1\r\nd\r\n"] {
            peer.write(piece).await;
            expected.push("heard");
            notes.until(&expected).await;
        }
        peer.write("0\r\n\r\n").await;
    })
    .await;
    assert_eq!(text(&outcome), "abcd");
}

#[tokio::test]
async fn the_first_64_kib_are_kept() {
    // An é across the border: whole characters only in the text.
    let body = format!("{}é{}", "x".repeat(64 * 1024 - 1), "y".repeat(100_000));
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n", body.len());
    let response = answered("GET", format!("{head}{body}").as_bytes()).await;
    let output = response.output.expect("output");
    assert!(output.truncated && output.data == body.as_bytes()[..64 * 1024]);
    assert_eq!(response.text.map(|text| text.len()), Some(64 * 1024 - 1));
}
