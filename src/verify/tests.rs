use super::*;
use crate::trigger::sign::{Signer, sign};

const KEY: [u8; 32] = [7; 32];
const NOW: i64 = 1_800_000_000;
const BODY: &[u8] = br#"{"id":5}"#;

fn signed(method: &str, target: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("backjob-job-id", "0190c8a0-0000-7000-8000-000000000001"),
        ("backjob-attempt", "2"),
        ("backjob-report-url", "http://127.0.0.1:50051"),
        ("backjob-report-token", "token"),
    ] {
        headers.insert(name, http::HeaderValue::from_static(value));
    }
    let signer = Signer { key: &KEY, keyid: "k1", created: NOW, nonce: "n-1" };
    sign(signer, method, target, &mut headers, BODY).expect("signed");
    headers
}

fn check(
    method: &str,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    now: i64,
) -> Result<Trigger, Error> {
    Verifier::new("k1", &KEY).verify(method, path, query, headers, BODY, now)
}

#[test]
fn what_is_signed_verifies() {
    for (method, path, query) in [
        ("POST", "/a", None),
        ("CHICKEN", "/it's", Some("q=it's&x=%5C")),
        ("get", "/", Some("")),
        ("GET", "/%C3%A4", Some("a=1&a=2")),
    ] {
        let target = query.map_or(path.to_owned(), |query| format!("{path}?{query}"));
        let trigger = check(method, path, query, &signed(method, &target), NOW).expect("verifies");
        assert_eq!((trigger.attempt, trigger.nonce.as_str()), (2, "n-1"));
    }
}

#[test]
fn tampering_with_any_covered_component_is_caught() {
    let headers = signed("POST", "/a?b=1");
    assert_eq!(check("PUT", "/a", Some("b=1"), &headers, NOW), Err(Error::Forged));
    assert_eq!(check("POST", "/b", Some("b=1"), &headers, NOW), Err(Error::Forged));
    assert_eq!(check("POST", "/a", Some("b=2"), &headers, NOW), Err(Error::Forged));
    assert_eq!(check("POST", "/a", None, &headers, NOW), Err(Error::Forged));
    for name in COMPONENTS.iter().filter(|name| !name.starts_with('@')) {
        let mut changed = headers.clone();
        changed.insert(*name, http::HeaderValue::from_static("3"));
        assert_eq!(check("POST", "/a", Some("b=1"), &changed, NOW), Err(Error::Forged), "{name}");
        changed.remove(*name);
        assert_eq!(
            check("POST", "/a", Some("b=1"), &changed, NOW),
            Err(Error::Header((*name).to_owned())),
            "{name}"
        );
        let mut twice = headers.clone();
        twice.append(*name, http::HeaderValue::from_static("3"));
        assert!(check("POST", "/a", Some("b=1"), &twice, NOW).is_err(), "{name}");
    }
    let verifier = Verifier::new("k1", &KEY);
    assert_eq!(verifier.verify("POST", "/a", Some("b=1"), &headers, b"other", NOW), Err(Error::Body));
    let other = Verifier::new("k1", &[8; 32]);
    assert_eq!(other.verify("POST", "/a", Some("b=1"), &headers, BODY, NOW), Err(Error::Forged));
}

#[test]
fn a_signature_that_leaves_something_out_is_refused() {
    let mut headers = signed("POST", "/a");
    let input = headers["signature-input"].to_str().expect("ascii").replace("\"@path\" ", "");
    headers.insert("signature-input", input.parse().expect("a value"));
    assert_eq!(check("POST", "/a", None, &headers, NOW), Err(Error::NotCovered("@path")));
}

#[test]
fn the_window_the_key_and_the_nonce_are_held() {
    let headers = signed("POST", "/a");
    assert!(check("POST", "/a", None, &headers, NOW - 30).is_ok());
    assert_eq!(check("POST", "/a", None, &headers, NOW - 31), Err(Error::Expired));
    assert!(check("POST", "/a", None, &headers, NOW + 330).is_ok());
    assert_eq!(check("POST", "/a", None, &headers, NOW + 331), Err(Error::Expired));
    let unknown = Verifier::new("k2", &KEY).verify("POST", "/a", None, &headers, BODY, NOW);
    assert_eq!(unknown, Err(Error::UnknownKey("k1".into())));
    let changed = Verifier::new("k2", &[1; 32]).and("k1", &KEY);
    let trigger = changed.verify("POST", "/a", None, &headers, BODY, NOW).expect("the second key");
    let store = NonceStore::new(1);
    assert_eq!(store.first_seen(&trigger, NOW), Ok(()));
    assert_eq!(store.first_seen(&trigger, NOW), Err(Error::Replayed));
}

#[test]
fn other_signatures_may_stand_beside_ours() {
    let mut headers = signed("POST", "/a");
    for name in ["signature-input", "signature"] {
        let ours = headers[name].to_str().expect("ascii");
        let both = format!("proxy=(\"x, backjob=\" \"y\"), {ours}");
        headers.insert(name, both.parse().expect("a value"));
    }
    assert!(check("POST", "/a", None, &headers, NOW).is_ok());
}
