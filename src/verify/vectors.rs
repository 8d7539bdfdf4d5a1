//! The published cases of `tests/vectors`, made and checked outside this crate.

use super::*;
use crate::trigger::sign::{Signer, sign};
use base64::{Engine as _, engine::general_purpose::STANDARD};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    method: String,
    path_and_query: String,
    body_base64: String,
    headers: HashMap<String, String>,
    key_hex: String,
    keyid: String,
    created: i64,
    nonce: String,
    content_digest: String,
    signature_base: String,
    signature_input: String,
    signature: String,
}

fn key(hex: &str) -> [u8; 32] {
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).expect("hex");
        *byte = u8::from_str_radix(pair, 16).expect("hex");
    }
    key
}

#[test]
fn the_published_vectors_are_signed_and_verified() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../tests/vectors/signatures.json")).expect("the vectors parse");
    assert!(cases.len() >= 4);
    for case in cases {
        let name = &case.name;
        let (key, body) = (key(&case.key_hex), STANDARD.decode(&case.body_base64).expect("base64"));
        let mut headers = HeaderMap::new();
        for (name, value) in &case.headers {
            let name = http::HeaderName::try_from(name).expect("a name");
            headers.insert(name, value.parse().expect("a value"));
        }
        let signer = Signer { key: &key, keyid: &case.keyid, created: case.created, nonce: &case.nonce };
        sign(signer, &case.method, &case.path_and_query, &mut headers, &body).expect("signed");
        assert_eq!(headers["content-digest"], case.content_digest, "{name}");
        assert_eq!(headers["signature-input"], case.signature_input, "{name}");
        assert_eq!(headers["signature"], case.signature, "{name}");

        let (path, query) = case
            .path_and_query
            .split_once('?')
            .map_or((case.path_and_query.as_str(), None), |(path, query)| (path, Some(query)));
        let params = case.signature_input.strip_prefix("backjob=").expect("our label");
        let base = base(COMPONENTS, &case.method, path, query, &headers, params);
        assert_eq!(base.as_ref(), Ok(&case.signature_base), "{name}");
        let verifier = Verifier::new(case.keyid.clone(), &key);
        let trigger = verifier.verify(&case.method, path, query, &headers, &body, case.created);
        assert_eq!(trigger.map(|t| t.nonce), Ok(case.nonce), "{name}");
    }
}
