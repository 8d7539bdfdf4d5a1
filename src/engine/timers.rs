//! What falls due while a job runs: silence, `max_duration`, the grace of a
//! cancel.
//!
//! A heap of times, each with the job it is for. An entry may be too early (the
//! job was heard of since): then it is put back for the right time. So a report
//! costs nothing here, and nothing falls due later than it should.

use super::{
    Engine,
    live::{Inner, Live, Uncommitted},
    lock,
};
use crate::job::Event;
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};
use tokio::sync::Notify;

struct Entry {
    at: u64,
    live: Weak<Live>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// Times of running jobs.
#[derive(Default)]
pub(super) struct Timers {
    heap: Mutex<BinaryHeap<Reverse<Entry>>>,
    earlier: Notify,
}

impl Timers {
    /// Sees to it that the job is looked at when something falls due.
    pub(super) fn arm(&self, live: &Arc<Live>, inner: &mut Inner) {
        let Some(at) = inner.job.due_at() else { return };
        if inner.armed.is_some_and(|armed| armed <= at) {
            return; // an earlier look will set a later one
        }
        inner.armed = Some(at);
        let mut heap = lock(&self.heap);
        let first = heap.peek().is_none_or(|Reverse(first)| at < first.at);
        heap.push(Reverse(Entry { at, live: Arc::downgrade(live) }));
        if first {
            self.earlier.notify_one();
        }
    }

    /// Jobs to look at, and when the next look is.
    fn due(&self, now: u64) -> (Vec<Arc<Live>>, Option<u64>) {
        let mut heap = lock(&self.heap);
        let mut due = Vec::new();
        while heap.peek().is_some_and(|Reverse(first)| first.at <= now) {
            if let Some(live) = heap.pop().and_then(|Reverse(entry)| entry.live.upgrade()) {
                due.push(live);
            }
        }
        (due, heap.peek().map(|Reverse(first)| first.at))
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
