//! The report token: names the job and the attempt, and proves itself.

use super::root::{Keyring, RootId, Use};
use crate::{job::JobId, signature::mac};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::Mac as _;

const NAMED: usize = 8 + 16 + 4;

/// What a report token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportToken {
    /// The job.
    pub job: JobId,
    /// Its attempt, from 1.
    pub attempt: u32,
}

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Not in the form of a token.
    #[error("not a report token")]
    Malformed,
    /// Made with a root that is not known here.
    #[error("made with another root key")]
    UnknownRoot,
    /// Not made here.
    #[error("forged")]
    Forged,
}

impl ReportToken {
    /// base64url without padding of root id, job id, attempt (big endian) and
    /// their HMAC-SHA256: 80 characters.
    pub fn mint(self, keys: &Keyring) -> String {
        let root = keys.current();
        let mut bytes = Vec::with_capacity(NAMED + 32);
        bytes.extend(root.id());
        bytes.extend(self.job.to_bytes());
        bytes.extend(self.attempt.to_be_bytes());
        let mac = mac(&root.derive(Use::Report, ""), &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Checks a token without a look-up; the comparison takes the same time
    /// whatever is wrong.
    ///
    /// # Errors
    /// See [`BadToken`].
    pub fn check(token: &str, keys: &Keyring) -> Result<Self, BadToken> {
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| BadToken::Malformed)?;
        let (named, proof) = bytes.split_first_chunk::<NAMED>().ok_or(BadToken::Malformed)?;
        if proof.len() != 32 {
            return Err(BadToken::Malformed);
        }
        let (mut id, mut job, mut attempt) = (RootId::default(), [0; 16], [0; 4]);
        id.copy_from_slice(&named[..8]);
        job.copy_from_slice(&named[8..24]);
        attempt.copy_from_slice(&named[24..]);
        let root = keys.find(id).ok_or(BadToken::UnknownRoot)?;
        mac(&root.derive(Use::Report, ""), named).verify_slice(proof).map_err(|_| BadToken::Forged)?;
        Ok(Self { job: JobId::from_bytes(job), attempt: u32::from_be_bytes(attempt) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Root;

    fn ring(byte: u8) -> Keyring {
        Keyring::parse(&URL_SAFE_NO_PAD.encode([byte; 32])).expect("a keyring")
    }

    #[test]
    fn a_token_names_its_job_and_attempt() {
        let token = ReportToken { job: JobId::from_bytes([3; 16]), attempt: 7 };
        let text = token.mint(&ring(1));
        assert_eq!(text.len(), 80);
        assert_eq!(ReportToken::check(&text, &ring(1)), Ok(token));
        assert_eq!(ReportToken::check(&text, &ring(2)), Err(BadToken::UnknownRoot));
    }

    #[test]
    fn a_token_changed_in_any_byte_opens_nothing() {
        let keys = ring(1);
        let text = ReportToken { job: JobId::from_bytes([3; 16]), attempt: 7 }.mint(&keys);
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
        let trigger = Root::from_bytes(keys.current().derive(Use::Trigger, "default"));
        let stolen =
            Keyring::parse(&URL_SAFE_NO_PAD.encode(trigger.derive(Use::Report, ""))).expect("a keyring");
        let text = ReportToken { job: JobId::from_bytes([3; 16]), attempt: 7 }.mint(&stolen);
        assert!(ReportToken::check(&text, &keys).is_err());
    }
}
