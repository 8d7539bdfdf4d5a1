//! A moment that may be missing, in no more room than one that is there: what runs is
//! kept in memory.

use std::{
    fmt,
    num::{NonZeroI64, NonZeroU64},
};

/// UTC milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Wall(NonZeroI64);

/// The number that takes the place of 0.
const FIRST: i64 = i64::MIN;
/// The moment after the first.
const SECOND: NonZeroI64 = NonZeroI64::new(1).expect("is not 0");

impl From<i64> for Wall {
    /// The first millisecond there is, 292 million years ago, counts as the second.
    fn from(millis: i64) -> Self {
        Self(NonZeroI64::new(millis ^ FIRST).unwrap_or(SECOND))
    }
}

impl From<Wall> for i64 {
    fn from(wall: Wall) -> Self {
        wall.0.get() ^ FIRST
    }
}

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        i64::from(*self).fmt(f)
    }
}

/// Milliseconds on a clock that never jumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mono(NonZeroU64);

impl From<u64> for Mono {
    /// The first millisecond of the clock counts as the second.
    fn from(millis: u64) -> Self {
        Self(NonZeroU64::new(millis).unwrap_or(NonZeroU64::MIN))
    }
}

impl From<Mono> for u64 {
    fn from(mono: Mono) -> Self {
        mono.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_kept() {
        for millis in [0, 1, -1, 1_764_000_000_000, i64::MAX, i64::MIN + 1] {
            assert_eq!(i64::from(Wall::from(millis)), millis);
        }
        assert_eq!(i64::from(Wall::from(i64::MIN)), i64::MIN + 1);
        assert_eq!(size_of::<Option<Wall>>(), size_of::<i64>());
        for millis in [1, 2, u64::MAX] {
            assert_eq!(u64::from(Mono::from(millis)), millis);
        }
        assert_eq!(u64::from(Mono::from(0)), 1);
        assert_eq!(size_of::<Option<Mono>>(), size_of::<u64>());
    }
}
