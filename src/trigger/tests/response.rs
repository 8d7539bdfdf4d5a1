//! Which bodies are texts, and when a retry is asked for.

use super::*;

fn read(content_type: &str, pieces: &[&[u8]]) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, content_type.parse().expect("a value"));
    let mut reading = Reading::new(StatusCode::OK, &headers, 0);
    pieces.iter().for_each(|piece| reading.piece(piece));
    reading.end()
}

#[test]
fn a_text_is_what_says_so_or_says_nothing_and_is_utf_8() {
    for (content_type, body, expected) in [
        ("text/plain", &b"a"[..], Some("a")),
        ("Text/HTML; charset=UTF-8", b"<p>", Some("<p>")),
        ("application/json", b"{}", Some("{}")),
        ("application/problem+json; x=y", b"{}", Some("{}")),
        ("application/xml", b"<a/>", Some("<a/>")),
        ("image/svg+xml", b"<svg/>", Some("<svg/>")),
        ("", "ü".as_bytes(), Some("ü")),
        ("", b"\xff", None),
        ("", b"a\0b", None),
        ("text/plain", b"caf\xe9", None),
        ("text/plain", b"", None),
        ("application/octet-stream", b"a", None),
        ("application/jsonish", b"a", None),
        ("image/png", b"a", None),
    ] {
        assert_eq!(read(content_type, &[body]).text.as_deref(), expected, "{content_type} {body:?}");
    }
}

#[test]
fn a_character_cut_by_the_sender_is_no_text_and_one_cut_by_us_is_left_out() {
    assert_eq!(read("text/plain", &[b"caf\xc3"]).text, None);
    let full = vec![b'x'; KEPT - 1];
    let response = read("text/plain", &[&full, "é".as_bytes(), b"more"]);
    assert_eq!(response.text.map(|text| text.len()), Some(KEPT - 1));
    let output = response.output.expect("output");
    assert_eq!((output.data.len(), output.truncated), (KEPT, true));
}

#[test]
fn exactly_what_is_kept_is_not_truncated() {
    let output = read("", &[&vec![b'x'; KEPT]]).output.expect("output");
    assert_eq!((output.data.len(), output.truncated), (KEPT, false));
}

#[test]
fn a_media_type_beyond_reason_is_none() {
    let output = read(&format!("text/{}", "x".repeat(300)), &[b"a"]).output.expect("output");
    assert_eq!(output.content_type, "");
}

#[test]
fn retry_after_is_a_span_or_a_date() {
    let wall = 784_111_777_000; // Sun, 06 Nov 1994 08:49:37 GMT
    for (text, expected) in [
        ("0", Some(0)),
        ("120", Some(120_000)),
        ("99999999999999999999999", Some(u64::MAX)),
        ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60_000)),
        ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60_000)),
        ("Sun Nov  6 08:50:37 1994", Some(60_000)),
        ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
    ] {
        assert_eq!(retry_after(text, wall), expected, "{text}");
    }
}
