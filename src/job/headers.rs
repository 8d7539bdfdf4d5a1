//! Which request headers a caller may set, and which are backjob's own.

use std::collections::BTreeMap;

/// Headers of one action, at most.
pub const MAX_COUNT: usize = 64;
/// Bytes of their names and values together, at most.
pub const MAX_BYTES: usize = 16 * 1024;

/// Never a caller's: what the trigger sets itself, and what belongs to one hop.
const OWN: &[&str] = &[
    "authorization",
    "cache-control",
    "connection",
    "content-digest",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "signature",
    "signature-input",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
const OWN_PREFIXES: &[&str] = &["backjob-", "proxy-"];

/// What an application may trust a proxy with: a caller sets it only where the
/// target's `allow_headers` says so.
const TRUSTED: &[&str] = &["forwarded", "remote-user", "x-real-ip", "x-rewrite-url"];
const TRUSTED_PREFIXES: &[&str] = &["x-forwarded-", "x-original-"];

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum BadHeader {
    #[error("is not the name of an HTTP header")]
    Name,
    #[error("must hold only visible ASCII characters, spaces and tabs")]
    Value,
    #[error("is set by backjob itself")]
    Own,
    #[error("is trusted by applications behind a proxy; the target's allow_headers would permit it")]
    Trusted,
    #[error("is given twice, in different spellings")]
    Twice,
    #[error("at most 64 headers may be given")]
    TooMany,
    #[error("headers may take at most 16384 bytes together")]
    TooLarge,
}

/// Headers as sent: name and value.
pub type Sent = Vec<(String, String)>;
/// The header's name as given, and what is wrong with it.
pub type Faults = Vec<(String, BadHeader)>;

/// Headers as sent: names in lower case, sorted. `allowed` are lower-case names.
///
/// # Errors
/// Every fault, with the header's name as given; the name is empty where all
/// headers together are at fault.
pub fn check(headers: &BTreeMap<String, String>, allowed: &[String]) -> Result<Sent, Faults> {
    let mut sent = BTreeMap::new();
    let mut faults = Vec::new();
    let mut bytes = 0;
    if headers.len() > MAX_COUNT {
        return Err(vec![(String::new(), BadHeader::TooMany)]);
    }
    for (name, value) in headers {
        bytes += name.len() + value.len();
        let lower = name.to_ascii_lowercase();
        match fault(&lower, value, allowed) {
            Some(fault) => faults.push((name.clone(), fault)),
            None => {
                if sent.insert(lower, value.trim_matches([' ', '\t']).to_owned()).is_some() {
                    faults.push((name.clone(), BadHeader::Twice));
                }
            }
        }
    }
    if bytes > MAX_BYTES {
        faults.push((String::new(), BadHeader::TooLarge));
    }
    if faults.is_empty() { Ok(sent.into_iter().collect()) } else { Err(faults) }
}

fn fault(lower: &str, value: &str, allowed: &[String]) -> Option<BadHeader> {
    let among = |names: &[&str], prefixes: &[&str]| {
        names.contains(&lower) || prefixes.iter().any(|prefix| lower.starts_with(prefix))
    };
    if http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
        Some(BadHeader::Name)
    } else if among(OWN, OWN_PREFIXES) {
        Some(BadHeader::Own)
    } else if among(TRUSTED, TRUSTED_PREFIXES) && !allowed.iter().any(|name| name == lower) {
        Some(BadHeader::Trusted)
    } else if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
        Some(BadHeader::Value)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> Result<Vec<(String, String)>, BadHeader> {
        let headers = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        check(&headers, &["x-forwarded-for".into(), "host".into()]).map_err(|faults| faults[0].1)
    }

    #[test]
    fn a_callers_own_headers_pass_in_lower_case() {
        assert_eq!(one("X-Tenant", " 7 "), Ok(vec![("x-tenant".into(), "7".into())]));
        assert_eq!(one("X-Forwarded-For", "1.2.3.4").map(|sent| sent.len()), Ok(1), "allowed on this target");
    }

    #[test]
    fn what_a_caller_must_not_set_is_refused() {
        for (name, value, expected) in [
            ("Host", "h", BadHeader::Own),
            ("content-LENGTH", "1", BadHeader::Own),
            ("Content-Type", "a/b", BadHeader::Own),
            ("Transfer-Encoding", "chunked", BadHeader::Own),
            ("Backjob-Job-Id", "1", BadHeader::Own),
            ("backjob-anything", "1", BadHeader::Own),
            ("Proxy-Authorization", "x", BadHeader::Own),
            ("Cookie", "a=b", BadHeader::Own),
            ("Signature", "x", BadHeader::Own),
            ("X-Forwarded-Proto", "https", BadHeader::Trusted),
            ("Forwarded", "for=1", BadHeader::Trusted),
            ("X-Original-URL", "/admin", BadHeader::Trusted),
            ("Remote-User", "root", BadHeader::Trusted),
            ("X A", "b", BadHeader::Name),
            ("", "b", BadHeader::Name),
            ("X-A\r\nB", "b", BadHeader::Name),
            ("X-A", "b\r\nHost: c", BadHeader::Value),
            ("X-A", "b\0", BadHeader::Value),
            ("X-A", "é", BadHeader::Value),
        ] {
            assert_eq!(one(name, value), Err(expected), "{name:?}: {value:?}");
        }
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let headers = [("X-A", "1"), ("x-a", "2"), ("Host", "h"), ("X-B", "\n")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let faults = check(&headers, &[]).expect_err("refused");
        let names: Vec<&str> = faults.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Host", "X-B", "x-a"]);
    }

    #[test]
    fn a_flood_of_headers_is_refused() {
        let many: BTreeMap<_, _> = (0..65).map(|n| (format!("x-{n}"), String::new())).collect();
        assert_eq!(check(&many, &[]), Err(vec![(String::new(), BadHeader::TooMany)]));
        assert_eq!(one("x-a", &"a".repeat(MAX_BYTES)), Err(BadHeader::TooLarge));
    }
}
