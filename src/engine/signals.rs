//! What those who serve an attempt are told, and wait for.
//!
//! Each running job has one of these, and mostly nobody waits: so it is a few bytes
//! under a lock and one place to wait at, where a `tokio::sync::watch` takes 400.

use super::lock;
use crate::job::Connection;
use std::sync::Mutex;
use tokio::sync::Notify;

/// Where an attempt stands, for those who serve it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signal {
    /// Somebody cancelled the job.
    pub(super) stop: bool,
    /// What becomes of the connection to the action.
    pub(super) connection: Connection,
    /// Open ReportStreams.
    pub(super) streams: u16,
    /// The attempt is over, and that is committed.
    pub(super) over: bool,
}

/// The same, and who waits for a change of it.
#[derive(Debug)]
pub(super) struct Signals {
    now: Mutex<Signal>,
    changed: Notify,
}

impl Signals {
    pub(super) fn new(now: Signal) -> Self {
        Self { now: Mutex::new(now), changed: Notify::new() }
    }

    /// Changes it, and tells all who wait, in the order in which they came.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Signal) -> T) -> T {
        let changed = change(&mut lock(&self.now));
        self.changed.notify_waiters();
        changed
    }

    /// Returns as soon as it `holds`, with what holds. Cancel safe.
    pub(super) async fn until(&self, holds: impl Fn(&Signal) -> bool) -> Signal {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before the look: no change can fall between.
            changed.as_mut().enable();
            let now = *lock(&self.now);
            if holds(&now) {
                return now;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn who_waits_is_told_of_what_they_wait_for_alone() {
        let signals = Signals::new(Signal::default());
        assert!(signals.until(|signal| signal.streams == 0).now_or_never().is_some(), "it holds already");
        let mut over = Box::pin(signals.until(|signal| signal.over));
        assert!((&mut over).now_or_never().is_none());
        signals.change(|signal| signal.stop = true);
        assert!((&mut over).now_or_never().is_none(), "something else changed");
        assert!(!signals.change(|signal| std::mem::replace(&mut signal.over, true)));
        assert!(over.await.stop);
    }
}
