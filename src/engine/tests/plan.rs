//! What may happen in a schedule, and chance itself.

use crate::{
    engine::{Retention, Settings, TargetSettings},
    job::{MergePolicy, draft::Ceilings},
};
use std::{collections::BTreeMap, time::Duration};

/// splitmix64: enough to make choices, and the same for the same seed.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below `limit`, which is at least 1.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit.max(1)
    }

    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let at = self.below(of.len() as u64);
        of[usize::try_from(at).expect("small")].clone()
    }

    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Drawn once for each schedule: most of them leave some trouble out, so that
/// what remains is checked the more exactly.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) callers: u64,
    /// Calls of each caller.
    pub(super) calls: u64,
    /// Longest rest between two calls, milliseconds.
    pub(super) rest: u64,
    /// Different actions: the fewer, the more Starts are identical.
    pub(super) routes: u64,
    /// Slots of each target.
    pub(super) slots: Vec<usize>,
    /// Of the last target, microseconds.
    pub(super) spacing: Option<u64>,
    pub(super) queue: usize,
    pub(super) batch: usize,
    pub(super) flush_interval: u64,
    pub(super) linger: u64,
    pub(super) response_timeout: u64,
    pub(super) cancel_grace: u64,
    pub(super) max_pending: u64,
    pub(super) retention: Option<u64>,
    /// Bytes for states that were shown lately.
    pub(super) cache: usize,
    // How often in a thousand:
    /// a process dies at one of the boundaries,
    pub(super) deaths: u64,
    /// a transaction fails,
    pub(super) failures: u64,
    /// a write is refused,
    pub(super) refusals: u64,
    /// the database fails for a while,
    pub(super) outages: u64,
    /// a transaction is slow,
    pub(super) slowness: u64,
    /// a caller hangs up.
    pub(super) hang_ups: u64,
    /// Whether the wall clock is set now and then.
    pub(super) jumps: bool,
    /// Whether processes are stopped in order now and then.
    pub(super) stops: bool,
    /// Whether jobs are deleted.
    pub(super) deletes: bool,
}

impl Plan {
    pub(super) fn draw(random: &mut Random) -> Self {
        let mut some = |percent, most| if random.percent(percent) { random.between(1, most) } else { 0 };
        let (deaths, failures, refusals) = (some(60, 30), some(35, 60), some(15, 20));
        let (outages, slowness, hang_ups) = (some(25, 8), some(40, 100), some(40, 80));
        let slots = (0..random.between(1, 2)).map(|_| random.pick(&[1, 2, 4])).collect();
        Self {
            callers: random.between(1, 3),
            calls: random.between(4, 14),
            rest: random.pick(&[20, 300, 1_500, 4_000]),
            routes: random.between(1, 6),
            slots,
            spacing: random.percent(20).then(|| random.between(10_000, 900_000)),
            queue: random.pick(&[1, 4, 64]),
            batch: random.pick(&[1, 3, 32]),
            flush_interval: random.pick(&[1, 50, 200]),
            linger: random.pick(&[0, 500, 3_000]),
            response_timeout: random.between(5_000, 20_000),
            cancel_grace: random.pick(&[1_000, 3_000]),
            max_pending: random.pick(&[3, 1_000, 1_000]),
            retention: random.percent(25).then(|| random.between(2_000, 30_000)),
            cache: random.pick(&[0, 6_000, 1 << 20]),
            deaths,
            failures,
            refusals,
            outages,
            slowness,
            hang_ups,
            jumps: random.percent(35),
            stops: random.percent(35),
            deletes: random.percent(50),
        }
    }

    pub(super) fn target(number: usize) -> String {
        if number == 0 { "default".into() } else { format!("target-{number}") }
    }

    pub(super) fn settings(&self) -> Settings {
        let last = self.slots.len() - 1;
        let target = |(number, slots): (usize, &usize)| {
            let settings = TargetSettings {
                base_path: String::new(),
                allow_headers: Vec::new(),
                identity: true,
                identity_cookies: Vec::new(),
                max_in_flight: *slots,
                spacing: self.spacing.filter(|_| number == last),
            };
            (Self::target(number), settings)
        };
        let targets: BTreeMap<_, _> = self.slots.iter().enumerate().map(target).collect();
        Settings {
            node: "here".into(),
            advertise: None,
            lease: Duration::from_secs(10),
            flush_interval: Duration::from_millis(self.flush_interval),
            linger: Duration::from_millis(self.linger),
            error_timeout: super::ERROR_TIMEOUT,
            response_timeout: Some(self.response_timeout),
            max_duration: None,
            cancel_grace: self.cancel_grace,
            expire_after: None,
            ceilings: Ceilings { error_timeout: 86_400_000, max_duration: None, expire_after: None },
            merge_policy: MergePolicy::JoinPending,
            max_pending: self.max_pending,
            retention: Retention { succeeded: self.retention, all: self.retention },
            cache: self.cache,
            targets,
        }
    }
}
