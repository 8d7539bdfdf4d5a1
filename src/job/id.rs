//! The id of a job.

use std::{
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
    str::FromStr,
};
use uuid::Uuid;

/// A UUIDv7 (RFC 9562): sorts by the time it was made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId([u8; 16]);

impl Hash for JobId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

/// For maps by the ids of jobs that were made here: nobody else chooses them, and their
/// last bytes are random.
pub type OfIds = BuildHasherDefault<IdHasher>;

/// What is random in an id.
#[derive(Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        // The first two bits of the last half are the same in all ids.
        self.0 = bytes.last_chunk().copied().map_or(0, u64::from_be_bytes).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

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

    /// A map takes the place from the low bits of a hash, and compares the high ones.
    #[test]
    fn ids_of_one_millisecond_are_hashed_apart() {
        use std::{collections::HashSet, hash::BuildHasher as _};
        let clock = crate::clock::SystemClock::new();
        let hashes: Vec<u64> =
            (0..4_096).map(|_| OfIds::default().hash_one(crate::clock::Clock::job_id(&clock))).collect();
        for (bits, shift) in [(12, 0), (7, 57)] {
            let places: HashSet<u64> = hashes.iter().map(|hash| hash >> shift & ((1 << bits) - 1)).collect();
            // At random, 63 % of 4,096 places are taken, and all of 128.
            let least = if bits == 12 { 2_400 } else { 128 };
            assert!(places.len() >= least, "{} places of {bits} bits", places.len());
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "1", "{01234567-89ab-7def-8123-456789abcdef}", "0123456789ab7def8123456789abcdef"] {
            assert_eq!(text.parse::<JobId>(), Err(BadJobId), "{text}");
        }
    }
}
