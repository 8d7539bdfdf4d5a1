//! The signature base of RFC 9421, shared by the signer and [`crate::verify`].

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use sha2::{Digest as _, Sha256};
#[cfg(feature = "server")]
use std::sync::LazyLock;

/// The label of our signature in both headers.
pub const LABEL: &str = "backjob";

/// What a trigger's signature covers, in this order.
pub const COMPONENTS: [&str; 8] = [
    "@method",
    "@path",
    "@query",
    "content-digest",
    "backjob-job-id",
    "backjob-attempt",
    "backjob-report-url",
    "backjob-report-token",
];

/// The same as they stand in `Signature-Input`.
#[cfg(feature = "server")]
pub static NAMES: LazyLock<String> = LazyLock::new(|| COMPONENTS.map(|name| format!("\"{name}\"")).join(" "));

/// `Content-Digest` of a body (RFC 9530, sha-256).
pub fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
}

/// Why no signature base could be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoBase {
    /// A covered header is missing, or there are several.
    Header(String),
    /// A component that a trigger does not have.
    Component(String),
}

/// The bytes that are signed: each component on a line, then `params`, the
/// value of `@signature-params`, word for word.
pub fn base<'a>(
    components: impl IntoIterator<Item = &'a str>,
    method: &str,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    params: &str,
) -> Result<String, NoBase> {
    let mut base = String::with_capacity(1024);
    for component in components {
        base.push('"');
        base.push_str(component);
        base.push_str("\": ");
        match component {
            "@method" => base.push_str(method),
            "@path" => base.push_str(path),
            "@query" => {
                base.push('?');
                base.push_str(query.unwrap_or(""));
            }
            name if name.starts_with('@') => return Err(NoBase::Component(name.to_owned())),
            name => base.push_str(single(headers, name).ok_or_else(|| NoBase::Header(name.to_owned()))?),
        }
        base.push('\n');
    }
    base.push_str("\"@signature-params\": ");
    base.push_str(params);
    Ok(base)
}

/// A header that must stand exactly once, without surrounding white space.
pub fn single<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        _ => None,
    }
}

/// HMAC-SHA256 of `bytes`; also what tokens are made with.
pub fn mac(key: &[u8; 32], bytes: &[u8]) -> Hmac<Sha256> {
    // A key shorter than the block is the same key with zeros behind it (RFC
    // 2104), and a whole block is taken without a way to fail.
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(bytes);
    mac
}

/// `value` as a byte sequence of RFC 8941.
#[cfg(feature = "server")]
pub fn byte_sequence(value: &[u8]) -> String {
    format!(":{}:", STANDARD.encode(value))
}

/// The bytes of a byte sequence of RFC 8941.
pub fn from_byte_sequence(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.strip_prefix(':')?.strip_suffix(':')?).ok()
}
