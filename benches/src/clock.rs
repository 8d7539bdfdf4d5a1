//! The one clock of the benchmark: monotonic, and the same in every process.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Nanoseconds of CLOCK_MONOTONIC, comparable across processes of this machine.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// From `earlier` until now.
pub fn since(earlier: u64) -> Duration {
    Duration::from_nanos(now().saturating_sub(earlier))
}
