//! Signs a trigger: RFC 9421 over the components of `signature.rs`,
//! RFC 9530 over the body.

use crate::signature::{COMPONENTS, LABEL, NAMES, NoBase, base, byte_sequence, content_digest, mac};
use hmac::Mac as _;
use http::{HeaderMap, HeaderValue};

/// How long a signature is good, in seconds.
pub const LIFETIME: i64 = 300;

/// With which key, and when.
#[derive(Clone, Copy)]
pub struct Signer<'a> {
    /// The target's trigger key.
    pub key: &'a [u8; 32],
    /// Which key it is; visible ASCII without `"` and `\`.
    pub keyid: &'a str,
    /// Unix seconds, by the host's clock.
    pub created: i64,
    /// Drawn anew for each request; as `keyid`.
    pub nonce: &'a str,
}

/// Sets `Content-Digest`, `Signature-Input` and `Signature`. The headers
/// `Backjob-*` that it covers must be there, once each.
///
/// # Errors
/// Names the covered header that is missing.
pub fn sign(
    signer: Signer<'_>,
    method: &str,
    path_and_query: &str,
    headers: &mut HeaderMap,
    body: &[u8],
) -> Result<(), NoBase> {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    insert(headers, "content-digest", content_digest(body))?;
    let Signer { key, keyid, created, nonce } = signer;
    let expires = created.saturating_add(LIFETIME);
    let names = &*NAMES;
    let params = format!(
        "({names});created={created};expires={expires};nonce=\"{nonce}\";keyid=\"{keyid}\";alg=\"hmac-sha256\""
    );
    let base = base(COMPONENTS, method, path, query, headers, &params)?;
    let signature = byte_sequence(&mac(key, base.as_bytes()).finalize().into_bytes());
    insert(headers, "signature-input", format!("{LABEL}={params}"))?;
    insert(headers, "signature", format!("{LABEL}={signature}"))
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: String) -> Result<(), NoBase> {
    let value = HeaderValue::try_from(value).map_err(|_| NoBase::Header(name.to_owned()))?;
    headers.insert(name, value);
    Ok(())
}
