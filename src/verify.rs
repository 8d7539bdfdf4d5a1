//! For applications in Rust: is this request a trigger of backjob?
//!
//! ```
//! # fn handle(parts: &http::request::Parts, body: &[u8]) -> Result<(), backjob::verify::Error> {
//! let verifier = backjob::verify::Verifier::new("key id", &[7; 32]);
//! let trigger = verifier.verify_parts(parts, body)?;
//! println!("job {}, attempt {}", trigger.job_id, trigger.attempt);
//! # Ok(())
//! # }
//! ```
//!
//! `backjob keygen --target NAME` prints the key and its id. The check covers
//! method, path, query, body and the `Backjob-*` headers; other headers are not
//! signed and prove nothing.

use crate::signature::{COMPONENTS, LABEL, base, content_digest, from_byte_sequence, mac, single};
use hmac::Mac as _;
use http::{HeaderMap, request::Parts};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// Why a request is not a trigger to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A header is missing, stands more than once, or cannot be read.
    #[error("header {0} is missing or malformed")]
    Header(String),
    /// The signature leaves out something that it must cover.
    #[error("the signature does not cover {0}")]
    NotCovered(&'static str),
    /// The signature covers something that a trigger does not have.
    #[error("the signature covers {0}, which is not known here")]
    Component(String),
    /// No key has the id that the signature names.
    #[error("no key has the id {0:?}")]
    UnknownKey(String),
    /// Not yet, or no longer good.
    #[error("the signature is not good at this time: check the clocks")]
    Expired,
    /// The body is not the one that was signed.
    #[error("the body does not match Content-Digest")]
    Body,
    /// The signature is wrong.
    #[error("the signature does not match")]
    Forged,
    /// The nonce was seen before.
    #[error("the request was seen before")]
    Replayed,
}

/// A trigger whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// `Backjob-Job-Id`: the same for every attempt.
    pub job_id: String,
    /// `Backjob-Attempt`, from 1.
    pub attempt: u32,
    /// `Backjob-Report-Url`.
    pub report_url: String,
    /// `Backjob-Report-Token`.
    pub report_token: String,
    /// When it was signed, Unix seconds.
    pub created: i64,
    /// Until when the signature is good, Unix seconds.
    pub expires: i64,
    /// Drawn anew for each request.
    pub nonce: String,
}

/// Checks triggers under one key, or several while a key is changed.
#[derive(Clone)]
pub struct Verifier {
    keys: Vec<(String, [u8; 32])>,
    skew: i64,
}

impl Verifier {
    /// With one key.
    pub fn new(keyid: impl Into<String>, key: &[u8; 32]) -> Self {
        Self { keys: vec![(keyid.into(), *key)], skew: 30 }
    }

    /// With one key more.
    #[must_use]
    pub fn and(mut self, keyid: impl Into<String>, key: &[u8; 32]) -> Self {
        self.keys.push((keyid.into(), *key));
        self
    }

    /// How many seconds the clocks may differ; 30 unless set.
    #[must_use]
    pub fn skew(mut self, seconds: u32) -> Self {
        self.skew = i64::from(seconds);
        self
    }

    /// Checks a request as it arrived, at the present time.
    ///
    /// # Errors
    /// Says what is wrong with it.
    #[expect(clippy::disallowed_methods, reason = "applications have no clock of ours")]
    pub fn verify_parts(&self, parts: &Parts, body: &[u8]) -> Result<Trigger, Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let (path, query) = (parts.uri.path(), parts.uri.query());
        self.verify(parts.method.as_str(), path, query, &parts.headers, body, now)
    }

    /// Checks a request at `now`, Unix seconds. `path` and `query` must be the
    /// bytes of the request line, not decoded.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn verify(
        &self,
        method: &str,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
        body: &[u8],
        now: i64,
    ) -> Result<Trigger, Error> {
        let header = |name: &str| single(headers, name).ok_or_else(|| Error::Header(name.to_owned()));
        let malformed = |name: &str| Error::Header(name.to_owned());
        let params = member(header("signature-input")?).ok_or_else(|| malformed("signature-input"))?;
        let signature = member(header("signature")?).ok_or_else(|| malformed("signature"))?;
        let signature = from_byte_sequence(signature).ok_or_else(|| malformed("signature"))?;
        let input = Input::parse(params).ok_or_else(|| malformed("signature-input"))?;

        if let Some(missing) = COMPONENTS.iter().find(|name| !input.components.contains(name)) {
            return Err(Error::NotCovered(missing));
        }
        if let Some(other) = input.components.iter().find(|name| !COMPONENTS.contains(name)) {
            return Err(Error::Component((*other).to_owned()));
        }
        let key = self.keys.iter().find(|(id, _)| id == input.keyid);
        let (_, key) = key.ok_or_else(|| Error::UnknownKey(input.keyid.to_owned()))?;
        let components = input.components.iter().copied();
        let base = base(components, method, path, query, headers, params).map_err(|none| match none {
            crate::signature::NoBase::Header(name) => Error::Header(name),
            crate::signature::NoBase::Component(name) => Error::Component(name),
        })?;
        mac(key, base.as_bytes()).verify_slice(&signature).map_err(|_| Error::Forged)?;

        if now < input.created.saturating_sub(self.skew) || now > input.expires.saturating_add(self.skew) {
            return Err(Error::Expired);
        }
        if header("content-digest")? != content_digest(body) {
            return Err(Error::Body);
        }
        Ok(Trigger {
            job_id: header("backjob-job-id")?.to_owned(),
            attempt: header("backjob-attempt")?.parse().map_err(|_| malformed("backjob-attempt"))?,
            report_url: header("backjob-report-url")?.to_owned(),
            report_token: header("backjob-report-token")?.to_owned(),
            created: input.created,
            expires: input.expires,
            nonce: input.nonce.to_owned(),
        })
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<&str> = self.keys.iter().map(|(id, _)| id.as_str()).collect();
        f.debug_struct("Verifier").field("keyids", &ids).field("skew", &self.skew).finish_non_exhaustive()
    }
}

/// The value of our label in a dictionary that may hold other signatures.
fn member(dictionary: &str) -> Option<&str> {
    let (mut start, mut quoted, mut depth) = (0, false, 0_i32);
    let mut found = None;
    let mut look = |part: &'_ str, from: usize| {
        let lead = part.len() - part.trim_start().len();
        if let Some(value) = part.trim_start().strip_prefix(LABEL).and_then(|rest| rest.strip_prefix('=')) {
            let at = from + lead + LABEL.len() + 1;
            found = Some((at, at + value.trim_end().len()));
        }
    };
    for (i, byte) in dictionary.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'(' if !quoted => depth += 1,
            b')' if !quoted => depth -= 1,
            b',' if !quoted && depth == 0 => {
                look(dictionary.get(start..i)?, start);
                start = i + 1;
            }
            _ => {}
        }
    }
    look(dictionary.get(start..)?, start);
    found.and_then(|(from, to)| dictionary.get(from..to))
}

/// The parts of a `Signature-Input` value in the form that backjob writes.
struct Input<'a> {
    components: Vec<&'a str>,
    created: i64,
    expires: i64,
    nonce: &'a str,
    keyid: &'a str,
}

impl<'a> Input<'a> {
    fn parse(params: &'a str) -> Option<Self> {
        let (list, rest) = params.strip_prefix('(')?.split_once(')')?;
        let mut components: Vec<&str> = Vec::new();
        for item in list.split(' ').filter(|item| !item.is_empty()) {
            let name = item.strip_prefix('"')?.strip_suffix('"')?;
            if components.contains(&name) {
                return None; // RFC 9421, 2.5: no component twice
            }
            components.push(name);
        }
        let string = |value: &'a str| value.strip_prefix('"')?.strip_suffix('"');
        let (mut created, mut expires, mut nonce, mut keyid) = (None, None, None, None);
        for part in rest.split(';').skip(1) {
            let (name, value) = part.split_once('=')?;
            match name.trim() {
                "created" => created = Some(value.parse().ok()?),
                "expires" => expires = Some(value.parse().ok()?),
                "nonce" => nonce = Some(string(value)?),
                "keyid" => keyid = Some(string(value)?),
                "alg" if string(value) == Some("hmac-sha256") => {}
                _ => return None,
            }
        }
        Some(Self { components, created: created?, expires: expires?, nonce: nonce?, keyid: keyid? })
    }
}

/// Remembers nonces until their signatures are no longer good, so that a copied
/// request is refused within that time too. For one process; several processes
/// of an application need a store that they share.
#[derive(Debug)]
pub struct NonceStore {
    most: usize,
    seen: Mutex<HashMap<String, i64>>,
}

impl NonceStore {
    /// Remembers at most `most` nonces; beyond that requests are refused rather
    /// than let through unchecked.
    pub fn new(most: usize) -> Self {
        Self { most, seen: Mutex::new(HashMap::new()) }
    }

    /// Takes note of a checked trigger at `now`, Unix seconds.
    ///
    /// # Errors
    /// [`Error::Replayed`] if it was seen before, or if there is no room to tell.
    pub fn first_seen(&self, trigger: &Trigger, now: i64) -> Result<(), Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= self.most {
            seen.retain(|_, until| *until >= now);
        }
        if seen.len() >= self.most || seen.contains_key(&trigger.nonce) {
            return Err(Error::Replayed);
        }
        // A minute more than any sensible skew of the clocks.
        seen.insert(trigger.nonce.clone(), trigger.expires.saturating_add(60));
        Ok(())
    }
}

#[cfg(all(test, feature = "server"))]
mod tests;
#[cfg(all(test, feature = "server"))]
mod vectors;
