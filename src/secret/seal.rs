//! Sealing: what is stored so that only a holder of the root key can read it.

use super::root::Root;
use chacha20poly1305::{
    XNonce,
    aead::{Aead as _, Payload},
};

/// Random bytes that a sealed text begins with.
const NONCE: usize = 24;

/// What is sealed was changed, belongs to something else, or was sealed with
/// another key; which of them cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what is sealed does not open: it was changed, moved, or sealed with another root key")]
pub struct BadSeal;

/// Seals `plain` with XChaCha20-Poly1305 under the root's key for sealing.
///
/// `about` says what it belongs to: it is not kept, but has to be given again
/// to open, so that a sealed text cannot be moved to another owner. `nonce` is
/// random and never used twice; at 192 bits chance sees to that. The result is
/// the nonce, the cipher text and a tag of 16 bytes.
pub fn seal(root: &Root, about: &[u8], plain: &[u8], nonce: [u8; NONCE]) -> Vec<u8> {
    let cipher = root.sealer();
    let payload = Payload { msg: plain, aad: about };
    // Fails only beyond 256 GiB.
    let text = cipher.encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
    debug_assert!(text.len() > plain.len());
    let mut sealed = Vec::with_capacity(NONCE + text.len());
    sealed.extend(nonce);
    sealed.extend(text);
    sealed
}

/// Opens what [`seal`] made.
///
/// # Errors
/// [`BadSeal`] if `root`, `about` or any byte is another one.
pub fn open(root: &Root, about: &[u8], sealed: &[u8]) -> Result<Vec<u8>, BadSeal> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE>().ok_or(BadSeal)?;
    let cipher = root.sealer();
    cipher.decrypt(&XNonce::from(*nonce), Payload { msg: text, aad: about }).map_err(|_| BadSeal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"authorization: Bearer canary";

    fn root(byte: u8) -> Root {
        Root::from_bytes([byte; 32])
    }

    #[test]
    fn what_is_sealed_opens_again_and_shows_nothing() {
        for plain in [PLAIN, b""] {
            let sealed = seal(&root(1), b"job", plain, [7; NONCE]);
            assert_eq!(sealed.len(), NONCE + plain.len() + 16);
            assert!(plain.is_empty() || !sealed.windows(6).any(|part| part == b"canary"));
            assert_eq!(open(&root(1), b"job", &sealed).as_deref(), Ok(plain));
        }
    }

    #[test]
    fn another_key_or_owner_opens_nothing() {
        let sealed = seal(&root(1), b"job", PLAIN, [7; NONCE]);
        assert_eq!(open(&root(2), b"job", &sealed), Err(BadSeal));
        assert_eq!(open(&root(1), b"another job", &sealed), Err(BadSeal));
    }

    #[test]
    fn a_change_of_any_byte_is_seen() {
        let sealed = seal(&root(1), b"job", PLAIN, [7; NONCE]);
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert_eq!(open(&root(1), b"job", &changed), Err(BadSeal), "byte {i}");
            assert_eq!(open(&root(1), b"job", &sealed[..i]), Err(BadSeal), "cut at {i}");
        }
    }
}
