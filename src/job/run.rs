//! A running attempt: how far it was sent and heard of, its cancel, and its pace.

use super::{Mono, Now, Wall};

/// The life of a running attempt. What is `mono` is lost with the process.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// When the request was wholly written.
    pub sent_at: Option<Wall>,
    /// Whether the action has ever reported in this attempt.
    pub reported: bool,
    /// Whether the connection to the action is (being) made or open.
    pub connected: bool,
    /// Whether the connection broke after the request was sent.
    pub lost: bool,
    /// The status that the action answered: 202, as any other ends the attempt.
    pub http_status: Option<u16>,
    /// The highest sequence applied.
    pub sequence: u64,
    /// When the action was last heard of, mono.
    pub heard_at: u64,
    /// When `max_duration` ends.
    pub must_end_at: Option<Mono>,
    /// If somebody wants it to stop.
    pub cancel: Option<Box<Cancel>>,
    /// How fast it gets on.
    pub pace: Option<Box<Pace>>,
}

/// Somebody wants a running attempt to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancel {
    /// Since when, mono.
    pub since: u64,
    /// Whether the action was told.
    pub delivered: bool,
}

impl Cancel {
    /// From now on, and the action does not know.
    pub fn begins(now: u64) -> Box<Self> {
        Box::new(Self { since: now, delivered: false })
    }
}

/// How fast an attempt gets on, from the first report that tells how far it is.
/// One that falls back begins anew.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// When it began to be measured, mono.
    pub since: u64,
    /// How far it was then, 0.0 to 1.0.
    pub from: f64,
    /// How far it is, 0.0 to 1.0.
    pub at: f64,
    /// When it should be done, UTC milliseconds. None until there is a pace.
    pub end_at: Option<i64>,
}

impl Pace {
    /// The pace after a report.
    #[must_use]
    pub fn after(before: Option<Self>, at: f64, now: Now) -> Self {
        let Some(before) = before.filter(|before| at >= before.at) else {
            return Self { since: now.mono, from: at, at, end_at: None };
        };
        let (done, took) = (at - before.from, now.mono.saturating_sub(before.since));
        let left = (1.0 - at).max(0.0) / done * took as f64;
        // A year is more than any job may wait; what is longer is no estimate.
        let known = done > 0.0 && took > 0 && left < 365.0 * 86_400_000.0;
        let end_at = if known { Some(now.wall.saturating_add(left as i64)) } else { before.end_at };
        Self { at, end_at, ..before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono: u64) -> Now {
        Now { wall: 1_000_000 + i64::try_from(mono).unwrap_or(0), mono, chance: 0.0 }
    }

    #[test]
    fn the_estimate_follows_the_pace_of_the_reports() {
        let first = Pace::after(None, 0.25, at(100));
        assert_eq!(first.end_at, None, "one report makes no pace");
        let second = Pace::after(Some(first), 0.5, at(1_100));
        assert_eq!(second.end_at, Some(at(3_100).wall), "a quarter took a second, and half is left");
        let stuck = Pace::after(Some(second), 0.5, at(2_100));
        assert_eq!(stuck.end_at, Some(at(6_100).wall), "a quarter took two seconds");
        let done = Pace::after(Some(stuck), 1.0, at(4_000));
        assert_eq!(done.end_at, Some(at(4_000).wall));
        let back = Pace::after(Some(done), 0.1, at(5_000));
        assert_eq!((back.end_at, back.from), (None, 0.1), "what falls back begins anew");
        let same = Pace::after(Some(Pace::after(None, 0.0, at(0))), 0.0, at(10));
        assert_eq!(same.end_at, None, "no progress is no pace");
        let slow = Pace::after(Some(Pace::after(None, 0.0, at(0))), 1e-9, at(86_400_000));
        assert_eq!(slow.end_at, None, "beyond a year it says nothing");
    }
}
