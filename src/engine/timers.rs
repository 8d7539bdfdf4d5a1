//! What falls due while a job runs: silence, `max_duration`, the grace of a
//! cancel.
//!
//! A map of times, each with the job it is for. An entry may be too early (the
//! job was heard of since): then it is put back for the right time. So a report
//! costs nothing here, and nothing falls due later than it should. A job that has
//! ended takes its entry with it: the time may be an hour away, and the entry
//! would hold the job's memory until then.

use super::{
    Engine,
    live::{Inner, Live, Uncommitted},
    lock,
};
use crate::job::Event;
use std::{
    collections::{BTreeMap, btree_map::Entry},
    num::NonZeroU64,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};
use tokio::sync::Notify;

/// When, mono, and in the lower [`APART`] bits what tells entries of one millisecond apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Armed(NonZeroU64);

/// For a million entries of one millisecond, and 557 years.
const APART: u32 = 20;

impl Armed {
    fn new(at: u64, number: u64) -> Self {
        let at = at.min(u64::MAX >> APART) << APART;
        Self(NonZeroU64::new(at | (number & ((1 << APART) - 1))).unwrap_or(NonZeroU64::MIN))
    }

    fn at(self) -> u64 {
        self.0.get() >> APART
    }
}

/// Times of running jobs.
#[derive(Default)]
pub(super) struct Timers {
    entries: Mutex<Entries>,
    earlier: Notify,
}

#[derive(Default)]
struct Entries {
    map: BTreeMap<Armed, Weak<Live>>,
    next: u64,
}

impl Entries {
    fn insert(&mut self, at: u64, live: Weak<Live>) -> Armed {
        loop {
            self.next = self.next.wrapping_add(1);
            if let Entry::Vacant(place) = self.map.entry(Armed::new(at, self.next)) {
                let armed = *place.key();
                place.insert(live);
                return armed;
            }
        }
    }
}

impl Timers {
    /// Sees to it that the job is looked at when something falls due, if anything
    /// can.
    pub(super) fn arm(&self, live: &Arc<Live>, inner: &mut Inner) {
        let Some(at) = inner.job.due_at() else { return self.disarm(inner) };
        if inner.armed.is_some_and(|armed| armed.at() <= at) {
            return; // an earlier look will set a later one
        }
        self.disarm(inner);
        let mut entries = lock(&self.entries);
        let first = entries.map.first_key_value().map(|(first, _)| *first);
        let armed = entries.insert(at, Arc::downgrade(live));
        inner.armed = Some(armed);
        if first.is_none_or(|first| armed < first) {
            self.earlier.notify_one();
        }
    }

    /// Nothing of the job falls due any more.
    pub(super) fn disarm(&self, inner: &mut Inner) {
        if let Some(armed) = inner.armed.take() {
            lock(&self.entries).map.remove(&armed);
        }
    }

    /// Jobs to look at, and when the next look is.
    fn due(&self, now: u64) -> (Vec<Arc<Live>>, Option<u64>) {
        let mut entries = lock(&self.entries);
        let later = entries.map.split_off(&Armed::new(now.saturating_add(1), 0));
        let due = std::mem::replace(&mut entries.map, later);
        let next = entries.map.first_key_value().map(|(armed, _)| armed.at());
        (due.into_values().filter_map(|live| live.upgrade()).collect(), next)
    }
}

impl Engine {
    pub(super) async fn run_timers(self: Arc<Self>) {
        loop {
            let now = self.clock.mono();
            let (due, next) = self.timers.due(now);
            for live in due {
                self.look(live, now);
            }
            let rest =
                next.map_or(Duration::from_secs(60), |at| Duration::from_millis(at.saturating_sub(now)));
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return,
                () = self.timers.earlier.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Ends the job if something is due, or sets the next look. Each in a task
    /// of its own: a commit that waits holds no other job up.
    fn look(self: &Arc<Self>, live: Arc<Live>, now: u64) {
        {
            let mut inner = lock(&live.inner);
            inner.armed = None;
            if inner.failing {
                return; // who commits it at last sets the next look: until then each would be too early
            }
            if inner.job.due_at().is_none_or(|at| at > now) {
                self.timers.arm(&live, &mut inner);
                return;
            }
        }
        let engine = Arc::clone(self);
        self.tasks.spawn("timer", async move {
            match engine.commit(&live, Event::Timer, None).await {
                Ok(_) => tracing::info!(job = %live.id, attempt = live.attempt, "its time is over"),
                Err(Uncommitted::Refused(_)) => engine.timers.arm(&live, &mut lock(&live.inner)),
                Err(Uncommitted::Failed(error)) => {
                    tracing::warn!(job = %live.id, %error, "its end is not stored yet");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Job, JobId, Now, Record, Rules, Signal, Spec},
        store::AttemptRow,
    };

    fn at(mono: u64) -> Now {
        Now { wall: 1_700_000_000_000, mono, chance: 0.5 }
    }

    fn running(number: u8) -> Arc<Live> {
        let rules = Arc::new(Rules::plain());
        let mut job = Job::new(Arc::clone(&rules), at(0).wall, at(0));
        job.apply(Event::Claim, at(0)).expect("claimed");
        let record = Record {
            id: JobId::new(at(0).wall, [number; 10]),
            spec: Arc::new(Spec::plain(rules)),
            created_at: at(0).wall,
            created_by: "".into(),
            retry_of: None,
            merged_count: 0,
            job,
        };
        let row = AttemptRow::claimed(1, "here".into(), at(0).wall);
        Live::new(record, row, &"here".into(), None, false)
    }

    #[test]
    fn a_job_that_has_ended_leaves_no_timer_behind() {
        let timers = Timers::default();
        let jobs: Vec<_> = (0..3).map(running).collect();
        for live in &jobs {
            timers.arm(live, &mut lock(&live.inner));
        }
        assert_eq!(lock(&timers.entries).map.len(), 3);
        let live = &jobs[1];
        let mut inner = lock(&live.inner);
        let weak = Arc::downgrade(live);
        inner.job.apply(Event::Of(1, Signal::Lost("gone".to_owned())), at(1)).expect("lost");
        timers.arm(live, &mut inner); // sooner now
        assert_eq!(lock(&timers.entries).map.len(), 3);
        inner.job.apply(Event::Timer, at(70_000)).expect("stalled");
        timers.arm(live, &mut inner);
        assert_eq!(lock(&timers.entries).map.len(), 2);
        drop(inner);
        assert_eq!(weak.weak_count(), 1, "none but this test's own");

        let (due, next) = timers.due(3_600_000);
        assert_eq!((due.len(), next), (2, None));
        assert!(due.iter().all(|due| due.id != live.id));
    }
}
