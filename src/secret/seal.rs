//! Sealing: what is stored so that only a holder of the root key can read it.

use super::root::Root;
use chacha20::{R20, hchacha};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
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
    let mut sealed = Vec::with_capacity(NONCE + plain.len() + CHACHA20_POLY1305.tag_len());
    sealed.extend(nonce);
    sealed.extend(plain);
    let tag = cipher(root.seal_key(), &nonce).and_then(|(key, nonce)| {
        key.seal_in_place_separate_tag(nonce, Aad::from(about), &mut sealed[NONCE..])
    });
    match tag {
        Ok(tag) => sealed.extend(tag.as_ref()),
        Err(_) => sealed.clear(), // beyond 256 GiB: nothing opens it
    }
    debug_assert!(sealed.len() > plain.len());
    sealed
}

/// Opens what [`seal`] made.
///
/// # Errors
/// [`BadSeal`] if `root`, `about` or any byte is another one.
pub fn open(root: &Root, about: &[u8], sealed: &[u8]) -> Result<Vec<u8>, BadSeal> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE>().ok_or(BadSeal)?;
    let (key, nonce) = cipher(root.seal_key(), nonce).map_err(|_| BadSeal)?;
    let mut plain = text.to_vec();
    let length = key.open_in_place(nonce, Aad::from(about), &mut plain).map_err(|_| BadSeal)?.len();
    plain.truncate(length);
    Ok(plain)
}

/// XChaCha20-Poly1305 as ChaCha20-Poly1305 under a key of its own for the first 16
/// bytes of the nonce, with the other 8 as nonce (draft-irtf-cfrg-xchacha-03, 2.3).
fn cipher(key: &[u8; 32], nonce: &[u8; NONCE]) -> Result<(LessSafeKey, Nonce), Unspecified> {
    let (mut first, mut rest) = ([0; 16], [0; 12]);
    first.copy_from_slice(&nonce[..16]);
    rest[4..].copy_from_slice(&nonce[16..]);
    let key = UnboundKey::new(&CHACHA20_POLY1305, &hchacha::<R20>(&(*key).into(), &first.into()))?;
    Ok((LessSafeKey::new(key), Nonce::assume_unique_for_key(rest)))
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
        // Of every length up to some blocks, and of many.
        let long: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[0]).collect();
        for length in (0..1_100).chain([1 << 20]) {
            let sealed = seal(&root(1), b"job", &long[..length], [7; NONCE]);
            assert_eq!(open(&root(1), b"job", &sealed).as_deref(), Ok(&long[..length]), "{length} bytes");
        }
    }

    /// draft-irtf-cfrg-xchacha-03, appendix A.3.1.
    #[test]
    fn the_cipher_is_that_of_its_draft() {
        let bytes = |hex: &str| -> Vec<u8> {
            let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
            let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16);
            digits.chunks(2).map(|digits| pair(digits).expect("hexadecimal")).collect()
        };
        let key: Vec<u8> = (0x80..=0x9f).collect();
        let nonce: Vec<u8> = (0x40..=0x57).collect();
        let about = bytes("50515253 c0c1c2c3 c4c5c6c7");
        let mut text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for \
            the future, sunscreen would be it."
            .to_vec();
        let (key, nonce) =
            cipher(&key.try_into().expect("32 bytes"), &nonce.try_into().expect("24 bytes")).expect("a key");
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&about), &mut text).expect("sealed");
        let expected = "bd6d179d3e83d43b9576579493c0e939 572a1700252bfaccbed2902c21396cbb
            731c7f1b0b4aa6440bf3a82f4eda7e39 ae64c6708c54c216cb96b72e1213b452
            2f8c9ba40db5d945b11b69b982c1bb9e 3f3fac2bc369488f76b2383565d3fff9
            21f9664c97637da9768812f615c68b13 b52e";
        assert_eq!(text, bytes(expected));
        assert_eq!(tag.as_ref(), bytes("c0875924c1c7987947deafd8780acf49"));
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
