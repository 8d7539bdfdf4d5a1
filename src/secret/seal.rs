//! What is stored sealed: XChaCha20-Poly1305 under a key of its own.

use super::root::{Root, Use};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};

/// Bytes of a nonce; random ones never come twice.
pub const NONCE: usize = 24;

/// Not sealed with this root, for this owner, or not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what is stored cannot be opened: another root key, or it was changed")]
pub struct BadSeal;

fn cipher(root: &Root) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&root.derive(Use::Seal, "").into())
}

/// Seals `plain` for the owner `about`: nonce, then text and tag.
pub fn seal(root: &Root, about: &[u8], plain: &[u8], nonce: [u8; NONCE]) -> Vec<u8> {
    let payload = Payload { msg: plain, aad: about };
    // Fails only for messages of more than 2^38 bytes.
    let text = cipher(root).encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
    [&nonce[..], &text].concat()
}

/// Opens what was sealed for this owner.
///
/// # Errors
/// [`BadSeal`], whatever is wrong.
pub fn open(root: &Root, about: &[u8], sealed: &[u8]) -> Result<Vec<u8>, BadSeal> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE>().ok_or(BadSeal)?;
    let payload = Payload { msg: text, aad: about };
    cipher(root).decrypt(&XNonce::from(*nonce), payload).map_err(|_| BadSeal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_root_and_owner_open_what_was_not_changed() {
        let (root, other) = (Root::from_bytes([1; 32]), Root::from_bytes([2; 32]));
        let sealed = seal(&root, b"job", b"secret", [3; NONCE]);
        assert!(!sealed.windows(6).any(|bytes| bytes == b"secret"));
        assert_eq!(open(&root, b"job", &sealed).as_deref(), Ok(&b"secret"[..]));
        assert_eq!(open(&other, b"job", &sealed), Err(BadSeal));
        assert_eq!(open(&root, b"other", &sealed), Err(BadSeal));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&root, b"job", &changed), Err(BadSeal), "byte {at}");
        }
        assert_eq!(open(&root, b"job", &sealed[..10]), Err(BadSeal));
    }
}
