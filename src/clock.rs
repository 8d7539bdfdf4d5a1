//! Time and chance, passed in wherever they are needed.

use crate::job::{JobId, Now};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where time and chance come from.
pub trait Clock: Send + Sync + 'static {
    /// UTC milliseconds since 1970.
    fn wall(&self) -> i64;
    /// Milliseconds on a clock that never jumps.
    fn mono(&self) -> u64;
    /// Fills `bytes` with random ones, good enough for keys.
    fn random(&self, bytes: &mut [u8]);

    /// The moment, as the machine sees it.
    fn now(&self) -> Now {
        let mut bytes = [0; 4];
        self.random(&mut bytes);
        let chance = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
        Now { wall: self.wall(), mono: self.mono(), chance }
    }

    /// An id for a job that begins now.
    fn job_id(&self) -> JobId {
        let mut random = [0; 10];
        self.random(&mut random);
        JobId::new(self.wall(), random)
    }
}

/// The clocks of the host.
#[derive(Debug)]
pub struct SystemClock {
    began: Instant,
}

impl SystemClock {
    /// Its `mono` begins now.
    #[expect(clippy::disallowed_methods, reason = "this is where clocks are read")]
    pub fn new() -> Self {
        Self { began: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is where clocks are read")]
    fn wall(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    fn mono(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&self, bytes: &mut [u8]) {
        if let Err(error) = getrandom::fill(bytes) {
            // Without randomness no token can be made: going on would be worse.
            panic!("the system gives no random bytes: {error}");
        }
    }
}
