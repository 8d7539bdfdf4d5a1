//! Keyed hashes by which equal things are found without keeping them.

use super::root::{Root, Use};
use crate::signature;
use hmac::Mac as _;

/// HMAC-SHA256 over `what` and `parts` under the root's key for
/// [`Use::Identity`]: who reads the tables cannot try what gives it. Each part is
/// preceded by its length, so that no two lists of parts are the same bytes.
pub fn fingerprint(root: &Root, what: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(64 + parts.iter().map(|part| part.len() + 8).sum::<usize>());
    for part in [what.as_bytes()].iter().chain(parts) {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(*part);
    }
    signature::mac(&root.derive(Use::Identity, ""), &bytes).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_parts_under_the_same_root_are_the_same() {
        let root = Root::from_bytes([1; 32]);
        let one = fingerprint(&root, "merge", &[b"ab", b"c"]);
        assert_eq!(one, fingerprint(&root, "merge", &[b"ab", b"c"]));
        for other in [
            fingerprint(&root, "merge", &[b"a", b"bc"]),
            fingerprint(&root, "merge", &[b"ab", b"c", b""]),
            fingerprint(&root, "key", &[b"ab", b"c"]),
            fingerprint(&Root::from_bytes([2; 32]), "merge", &[b"ab", b"c"]),
        ] {
            assert_ne!(one, other);
        }
    }
}
