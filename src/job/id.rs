//! The id of a job.

use std::{fmt, str::FromStr};
use uuid::Uuid;

/// A UUIDv7 (RFC 9562): sorts by the time it was made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId([u8; 16]);

impl JobId {
    /// An id of the given moment (UTC milliseconds) and random bits.
    pub fn new(wall: i64, random: [u8; 10]) -> Self {
        let millis = u64::try_from(wall).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid().into_bytes())
    }

    /// As it is stored.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// From the stored bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// Not the text form of an id: 36 characters, hyphenated hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a job id: a UUID of 36 characters is expected")]
pub struct BadJobId;

impl FromStr for JobId {
    type Err = BadJobId;

    fn from_str(text: &str) -> Result<Self, BadJobId> {
        if text.len() != 36 {
            return Err(BadJobId);
        }
        Uuid::try_parse(text).map(|id| Self(id.into_bytes())).map_err(|_| BadJobId)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_sorts_by_time() {
        let early = JobId::new(1_000, [9; 10]);
        let late = JobId::new(1_001, [0; 10]);
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.to_string().parse(), Ok(early));
        assert_eq!(JobId::from_bytes(late.to_bytes()), late);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "1", "{01234567-89ab-7def-8123-456789abcdef}", "0123456789ab7def8123456789abcdef"] {
            assert_eq!(text.parse::<JobId>(), Err(BadJobId), "{text}");
        }
    }
}
