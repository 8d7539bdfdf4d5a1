//! What is kept of a response.

use crate::job::{Output, event::Response};
use http::{HeaderMap, StatusCode, header};
use std::time::UNIX_EPOCH;

/// Bytes of a body that are kept.
pub(super) const KEPT: usize = 64 * 1024;
/// Bytes of a media type that are kept; a longer one is none.
const MAX_TYPE: usize = 255;

/// A response of which the head has come, and perhaps some of the body.
pub(super) struct Reading {
    status: StatusCode,
    content_type: String,
    retry_after: Option<u64>,
    data: Vec<u8>,
    /// Bytes of the body so far, kept or not.
    pub(super) total: u64,
}

impl Reading {
    /// Of this head; `wall` is the present time, UTC milliseconds.
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, wall: i64) -> Self {
        let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        let content_type = text(header::CONTENT_TYPE).map(str::trim).filter(|kind| kind.len() <= MAX_TYPE);
        Self {
            status,
            content_type: content_type.unwrap_or("").to_owned(),
            retry_after: text(header::RETRY_AFTER).and_then(|text| retry_after(text.trim(), wall)),
            data: Vec::new(),
            total: 0,
        }
    }

    /// A piece of the body.
    pub(super) fn piece(&mut self, piece: &[u8]) {
        let room = KEPT - self.data.len();
        self.data.extend_from_slice(piece.get(..room).unwrap_or(piece));
        self.total = self.total.saturating_add(piece.len() as u64);
    }

    /// The body has ended.
    pub(super) fn end(self) -> Response {
        let Self { status, content_type, retry_after, data, total } = self;
        let truncated = total > data.len() as u64;
        let text = if is_text(&content_type) { as_text(&data, truncated) } else { None };
        let output = (!data.is_empty()).then_some(Output { content_type, data, truncated });
        Response { status: status.as_u16(), output, text, retry_after }
    }
}

/// Milliseconds from `wall`; both forms of RFC 9110, 10.2.3.
fn retry_after(text: &str, wall: i64) -> Option<u64> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(1000));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?.as_millis();
    let left = i64::try_from(at).ok()?.saturating_sub(wall);
    Some(u64::try_from(left).unwrap_or(0))
}

/// Whether people can read it. Without a type the bytes decide.
fn is_text(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    kind.is_empty()
        || kind.starts_with("text/")
        || ["application/json", "application/xml"].contains(&kind.as_str())
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
}

/// Only what is UTF-8 as it stands: nothing is replaced. A NUL is no text, and
/// not every database keeps one.
fn as_text(data: &[u8], truncated: bool) -> Option<String> {
    let text = match std::str::from_utf8(data) {
        Ok(text) => text,
        // Cut within a character, and by us.
        Err(error) if truncated && error.error_len().is_none() => {
            std::str::from_utf8(data.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    (!text.is_empty() && !text.contains('\0')).then(|| text.to_owned())
}

#[cfg(test)]
#[path = "tests/response.rs"]
mod tests;
