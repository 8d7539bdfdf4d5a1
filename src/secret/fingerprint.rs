//! Keyed hashes by which equal things are found without keeping them.

use crate::signature;
use hmac::Mac as _;

/// HMAC-SHA256 over `what` and `parts` under a key for
/// [`Use::Identity`](super::Use::Identity): who reads the tables cannot try what gives it. Each part is
/// preceded by its length, so that no two lists of parts are the same bytes.
pub fn fingerprint(key: &[u8; 32], what: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(64 + parts.iter().map(|part| part.len() + 8).sum::<usize>());
    for part in [what.as_bytes()].iter().chain(parts) {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(*part);
    }
    signature::mac(key, &bytes).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_parts_under_the_same_key_are_the_same() {
        let key = [1; 32];
        let one = fingerprint(&key, "merge", &[b"ab", b"c"]);
        assert_eq!(one, fingerprint(&key, "merge", &[b"ab", b"c"]));
        for other in [
            fingerprint(&key, "merge", &[b"a", b"bc"]),
            fingerprint(&key, "merge", &[b"ab", b"c", b""]),
            fingerprint(&key, "key", &[b"ab", b"c"]),
            fingerprint(&[2; 32], "merge", &[b"ab", b"c"]),
        ] {
            assert_ne!(one, other);
        }
    }
}
