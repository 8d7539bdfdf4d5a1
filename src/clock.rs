//! Time and chance, passed in wherever they are needed.

use crate::job::{JobId, Now};
use std::{
    fmt,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Where time and chance come from.
pub trait Clock: Send + Sync + 'static {
    /// UTC milliseconds since 1970.
    fn wall(&self) -> i64;
    /// Milliseconds on a clock that never jumps.
    fn mono(&self) -> u64;
    /// Fills `bytes` with random ones, good enough for keys.
    fn random(&self, bytes: &mut [u8]);

    /// 0 to 1, at random, but good for no key.
    fn chance(&self) -> f64 {
        let mut bytes = [0; 4];
        self.random(&mut bytes);
        f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
    }

    /// The moment, as the machine sees it.
    fn now(&self) -> Now {
        Now { wall: self.wall(), mono: self.mono(), chance: self.chance() }
    }

    /// An id for a job that begins now.
    fn job_id(&self) -> JobId {
        let mut random = [0; 10];
        self.random(&mut random);
        JobId::new(self.wall(), random)
    }

    /// Another clock, which this one may go by, showed `wall`, UTC milliseconds, at
    /// some moment within `asked`, by `mono`.
    fn follow(&self, wall: i64, asked: RangeInclusive<u64>) {
        let _ = (wall, asked); // most keep their own time
    }
}

/// The clocks of the host.
#[derive(Debug)]
pub struct SystemClock {
    began: Instant,
    ids: Mutex<Ids>,
    random: Mutex<Random>,
    /// Where the generator of chance stands.
    chance: AtomicU64,
}

/// Random bytes of the system, fetched in larger pieces: asking for each few would
/// cost more than what they are used for.
struct Random {
    bytes: [u8; 1_024],
    left: usize,
}

impl Default for Random {
    fn default() -> Self {
        Self { bytes: [0; 1_024], left: 0 }
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random(redacted)")
    }
}

impl Random {
    fn take(&mut self, out: &mut [u8]) {
        for out in out.chunks_mut(self.bytes.len()) {
            if self.left < out.len() {
                if let Err(error) = getrandom::fill(&mut self.bytes) {
                    // Without randomness no token can be made: going on would be worse.
                    panic!("the system gives no random bytes: {error}");
                }
                self.left = self.bytes.len();
            }
            let taken = &mut self.bytes[self.left - out.len()..self.left];
            out.copy_from_slice(taken);
            taken.fill(0); // given once
            self.left -= out.len();
        }
    }
}

/// Ids of one millisecond rise by a counter of 26 bits, so that jobs stand in
/// line as they came (RFC 9562, 6.2, method 1).
#[derive(Debug, Default)]
struct Ids {
    millis: i64,
    count: u32,
}

impl Ids {
    /// The first of a millisecond leaves half of the counter free.
    const FREE: u32 = 1 << 25;

    fn next(&mut self, wall: i64, mut random: [u8; 10]) -> JobId {
        let [a, b, c, d, ..] = random;
        if wall > self.millis {
            self.millis = wall;
            self.count = u32::from_be_bytes([a, b, c, d]) % Self::FREE;
        } else if self.count + 1 < 2 * Self::FREE {
            self.count += 1;
        } else {
            self.millis += 1; // ahead of the clock, but never out of order
            self.count = 0;
        }
        // 12 bits before the variant, 14 behind it.
        random[0] = (self.count >> 22) as u8;
        random[1] = (self.count >> 14) as u8;
        random[2] = (self.count >> 8) as u8 & 0x3f;
        random[3] = self.count as u8;
        JobId::new(self.millis, random)
    }
}

impl SystemClock {
    /// Its `mono` begins now.
    #[expect(clippy::disallowed_methods, reason = "this is where clocks are read")]
    pub fn new() -> Self {
        let mut random = Random::default();
        let mut seed = [0; 8];
        random.take(&mut seed);
        let chance = AtomicU64::new(u64::from_le_bytes(seed));
        Self { began: Instant::now(), ids: Mutex::default(), random: Mutex::new(random), chance }
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

    fn job_id(&self) -> JobId {
        let mut random = [0; 10];
        self.random(&mut random);
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).next(self.wall(), random)
    }

    fn random(&self, bytes: &mut [u8]) {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).take(bytes);
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014): each change of a job draws it, and few
    /// need it.
    fn chance(&self) -> f64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let state = self.chance.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 32) as f64 / f64::from(u32::MAX)
    }
}

/// The time of a database that many nodes share: the host's monotonic clock, and an
/// offset that is measured again and again. So nodes whose clocks differ, or jump,
/// agree on what is due. Until it was measured for the first time, the host's clock.
pub struct SharedClock {
    host: Arc<dyn Clock>,
    /// From `mono` to `wall`; [`SharedClock::UNKNOWN`] until it was measured.
    offset: AtomicI64,
    ids: Mutex<Ids>,
}

impl SharedClock {
    const UNKNOWN: i64 = i64::MIN;

    /// Not measured yet.
    pub fn new(host: Arc<dyn Clock>) -> Self {
        Self { host, offset: AtomicI64::new(Self::UNKNOWN), ids: Mutex::default() }
    }
}

impl fmt::Debug for SharedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedClock").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Clock for SharedClock {
    fn wall(&self) -> i64 {
        match self.offset.load(Ordering::Acquire) {
            Self::UNKNOWN => self.host.wall(),
            offset => offset.saturating_add_unsigned(self.host.mono()),
        }
    }

    fn mono(&self) -> u64 {
        self.host.mono()
    }

    fn random(&self, bytes: &mut [u8]) {
        self.host.random(bytes);
    }

    fn chance(&self) -> f64 {
        self.host.chance()
    }

    fn job_id(&self) -> JobId {
        let mut random = [0; 10];
        self.random(&mut random);
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).next(self.wall(), random)
    }

    /// An offset that still can be true is kept: a slow answer moves no clock.
    fn follow(&self, wall: i64, asked: RangeInclusive<u64>) {
        let (earliest, latest) = asked.into_inner();
        let (least, most) = (wall.saturating_sub_unsigned(latest), wall.saturating_sub_unsigned(earliest));
        let offset = self.offset.load(Ordering::Acquire);
        if offset == Self::UNKNOWN || !(least..=most).contains(&offset) {
            let nearest = match offset {
                Self::UNKNOWN => least.midpoint(most),
                offset => offset.clamp(least, most),
            };
            self.offset.store(nearest, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose clocks are set by hand.
    #[derive(Default)]
    struct Host {
        wall: AtomicI64,
        mono: AtomicI64,
    }

    impl Clock for Host {
        fn wall(&self) -> i64 {
            self.wall.load(Ordering::Relaxed)
        }

        fn mono(&self) -> u64 {
            self.mono.load(Ordering::Relaxed).unsigned_abs()
        }

        fn random(&self, bytes: &mut [u8]) {
            bytes.fill(7);
        }
    }

    #[test]
    fn a_shared_clock_goes_by_the_database_whatever_the_host_says() {
        let host = Arc::new(Host::default());
        host.wall.store(5_000_000, Ordering::Relaxed);
        host.mono.store(1_000, Ordering::Relaxed);
        let clock = SharedClock::new(Arc::clone(&host) as Arc<dyn Clock>);
        assert_eq!(clock.wall(), 5_000_000, "until it is measured");
        clock.follow(9_000_000, 990..=1_010);
        assert_eq!(clock.wall(), 9_000_000);
        host.wall.store(0, Ordering::Relaxed); // it jumps
        host.mono.store(3_000, Ordering::Relaxed);
        assert_eq!(clock.wall(), 9_002_000);
        clock.follow(9_002_040, 2_950..=3_050);
        assert_eq!(clock.wall(), 9_002_000, "as good as it can be told");
        clock.follow(9_002_040, 2_990..=3_010);
        assert_eq!(clock.wall(), 9_002_030, "no further than is needed");
        clock.follow(8_000_000, 2_990..=3_010);
        assert_eq!(clock.wall(), 8_000_010, "the database's clock was set back");
    }

    #[test]
    fn chance_is_anywhere_between_0_and_1() {
        let clock = SystemClock::new();
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            let chance = clock.chance();
            assert!((0.0..=1.0).contains(&chance), "{chance}");
            tenths[((chance * 10.0) as usize).min(9)] += 1;
        }
        // 1,000 each, with a deviation of 30.
        assert!(tenths.iter().all(|count| (800..1_200).contains(count)), "{tenths:?}");
        let other = SystemClock::new();
        assert_ne!([clock.chance(), clock.chance()], [other.chance(), other.chance()]);
    }

    #[test]
    fn random_bytes_are_given_once() {
        let clock = SystemClock::new();
        let mut seen = std::collections::HashSet::new();
        for size in [16, 24, 48, 1_000, 5_000, 16, 24] {
            let mut bytes = vec![0; size];
            clock.random(&mut bytes);
            for piece in bytes.chunks_exact(8) {
                assert!(seen.insert(piece.to_vec()), "{piece:?} came twice");
            }
        }
    }

    #[test]
    fn ids_rise_within_a_millisecond_and_when_the_clock_falls_back() {
        let mut ids = Ids::default();
        let mut last = ids.next(1_000, [255; 10]);
        let times = [1_000, 1_000, 999, 1_001, 1_001, 5].into_iter().chain([1_001; 10_000]);
        for wall in times {
            let id = ids.next(wall, [7; 10]);
            assert!(id > last, "{id} is not after {last}");
            last = id;
        }
        ids.count = 2 * Ids::FREE - 1;
        assert!(ids.next(1_001, [0; 10]) > last);
    }
}
