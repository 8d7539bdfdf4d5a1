//! Tokens that prove themselves: a report token names a job and an attempt, a
//! watch token a job.
//!
//! Both are base64url without padding of the root's id, what is named, and the
//! HMAC-SHA256 of both under the root's key for the use: they are checked without
//! a look-up, and one kind is never the other.

use super::root::{Keyring, Root, RootId};
use crate::job::JobId;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// Bytes of a job's id.
const JOB: usize = 16;
/// Bytes of the number of an attempt.
const ATTEMPT: usize = 4;
/// Bytes of the proof.
const PROOF: usize = 32;

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Not in the form of a token.
    #[error("not a token of this kind")]
    Malformed,
    /// Made with a root that is not known here.
    #[error("made with another root key")]
    UnknownRoot,
    /// Not made here.
    #[error("forged")]
    Forged,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Report,
    Watch,
}

fn prove(root: &Root, kind: Kind, signed: &[u8]) -> Hmac<Sha256> {
    let mut mac = match kind {
        Kind::Report => root.report_mac(),
        Kind::Watch => root.watch_mac(),
    };
    mac.update(signed);
    mac
}

fn mint(usage: Kind, named: &[u8], keys: &Keyring) -> String {
    let root = keys.current();
    let mut bytes = Vec::with_capacity(RootId::default().len() + named.len() + PROOF);
    bytes.extend(root.id());
    bytes.extend(named);
    let mac = prove(root, usage, &bytes).finalize().into_bytes();
    bytes.extend_from_slice(&mac);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What the token names, `N` bytes. The comparison takes the same time whatever
/// is wrong.
fn check<const N: usize>(usage: Kind, token: &str, keys: &Keyring) -> Result<[u8; N], BadToken> {
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| BadToken::Malformed)?;
    let (id, rest) = bytes.split_first_chunk().ok_or(BadToken::Malformed)?;
    let (named, proof) = rest.split_first_chunk::<N>().ok_or(BadToken::Malformed)?;
    if proof.len() != PROOF {
        return Err(BadToken::Malformed);
    }
    let root = keys.find(*id).ok_or(BadToken::UnknownRoot)?;
    let signed = &bytes[..bytes.len() - PROOF];
    prove(root, usage, signed).verify_slice(proof).map_err(|_| BadToken::Forged)?;
    Ok(*named)
}

/// What a report token opens: reports for one attempt of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportToken {
    /// The job.
    pub job: JobId,
    /// Its attempt, from 1.
    pub attempt: u32,
}

impl ReportToken {
    /// 80 characters.
    pub fn mint(self, keys: &Keyring) -> String {
        let mut named = [0; JOB + ATTEMPT];
        named[..JOB].copy_from_slice(&self.job.to_bytes());
        named[JOB..].copy_from_slice(&self.attempt.to_be_bytes());
        mint(Kind::Report, &named, keys)
    }

    /// Checks a token without a look-up.
    ///
    /// # Errors
    /// See [`BadToken`].
    pub fn check(token: &str, keys: &Keyring) -> Result<Self, BadToken> {
        let named: [u8; JOB + ATTEMPT] = check(Kind::Report, token, keys)?;
        let (mut job, mut attempt) = ([0; JOB], [0; ATTEMPT]);
        job.copy_from_slice(&named[..JOB]);
        attempt.copy_from_slice(&named[JOB..]);
        Ok(Self { job: JobId::from_bytes(job), attempt: u32::from_be_bytes(attempt) })
    }
}

/// What a watch token opens: the status of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchToken {
    /// The job.
    pub job: JobId,
}

impl WatchToken {
    /// 75 characters.
    pub fn mint(self, keys: &Keyring) -> String {
        mint(Kind::Watch, &self.job.to_bytes(), keys)
    }

    /// Checks a token without a look-up.
    ///
    /// # Errors
    /// See [`BadToken`].
    pub fn check(token: &str, keys: &Keyring) -> Result<Self, BadToken> {
        check(Kind::Watch, token, keys).map(|job| Self { job: JobId::from_bytes(job) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Root;
    use crate::{secret::Use, signature::mac};

    const ID: JobId = JobId::from_bytes([3; JOB]);

    fn ring(byte: u8) -> Keyring {
        Keyring::parse(&URL_SAFE_NO_PAD.encode([byte; 32])).expect("a keyring")
    }

    #[test]
    fn a_token_names_what_it_opens() {
        let report = ReportToken { job: ID, attempt: 7 };
        let text = report.mint(&ring(1));
        assert_eq!(text.len(), 80);
        assert_eq!(ReportToken::check(&text, &ring(1)), Ok(report));
        assert_eq!(ReportToken::check(&text, &ring(2)), Err(BadToken::UnknownRoot));
        let watch = WatchToken { job: ID };
        let text = watch.mint(&ring(1));
        assert_eq!(text.len(), 75);
        assert_eq!(WatchToken::check(&text, &ring(1)), Ok(watch));
        assert_eq!(WatchToken::check(&text, &ring(2)), Err(BadToken::UnknownRoot));
    }

    #[test]
    fn one_kind_is_never_the_other() {
        let keys = ring(1);
        let watch = WatchToken { job: ID }.mint(&keys);
        assert_eq!(ReportToken::check(&watch, &keys), Err(BadToken::Malformed));
        let report = ReportToken { job: ID, attempt: 1 }.mint(&keys);
        assert_eq!(WatchToken::check(&report, &keys), Err(BadToken::Malformed));
        // Neither by cutting it to the other's length.
        let bytes = URL_SAFE_NO_PAD.decode(&report).expect("base64url");
        let cut = URL_SAFE_NO_PAD.encode(&bytes[..bytes.len() - ATTEMPT]);
        assert_eq!(WatchToken::check(&cut, &keys), Err(BadToken::Forged));
    }

    #[test]
    fn a_token_changed_in_any_byte_opens_nothing() {
        let keys = ring(1);
        let text = ReportToken { job: ID, attempt: 7 }.mint(&keys);
        let bytes = URL_SAFE_NO_PAD.decode(&text).expect("base64url");
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            let expected = if i < 8 { BadToken::UnknownRoot } else { BadToken::Forged };
            assert_eq!(ReportToken::check(&URL_SAFE_NO_PAD.encode(changed), &keys), Err(expected), "{i}");
        }
        for text in ["", "x", &text[..79], &format!("{text}AA")] {
            assert_eq!(ReportToken::check(text, &keys), Err(BadToken::Malformed), "{text}");
        }
    }

    #[test]
    fn an_applications_own_key_mints_no_token() {
        let keys = ring(1);
        let known = keys.current().derive(Use::Trigger, "default");
        // As a root, and as each key that is derived from a root.
        let as_root = Root::from_bytes(known);
        for usage in [Use::Report, Use::Watch, Use::Seal, Use::Identity, Use::Trigger] {
            for key in [known, as_root.derive(usage, "")] {
                let mut bytes = Vec::from(keys.current().id());
                bytes.extend(ID.to_bytes());
                bytes.extend(7_u32.to_be_bytes());
                let proof = mac(&key, &bytes).finalize().into_bytes();
                bytes.extend_from_slice(&proof);
                let forged = URL_SAFE_NO_PAD.encode(bytes);
                assert_eq!(ReportToken::check(&forged, &keys), Err(BadToken::Forged), "{usage:?}");
            }
        }
        let ring = Keyring::of(known);
        let text = ReportToken { job: ID, attempt: 7 }.mint(&ring);
        assert_eq!(ReportToken::check(&text, &keys), Err(BadToken::UnknownRoot));
        assert_eq!(WatchToken::check(&WatchToken { job: ID }.mint(&ring), &keys), Err(BadToken::UnknownRoot));
    }
}
