//! What those who serve an attempt are told, and wait for.
//!
//! Each running job has one of these, and mostly nobody waits: so it is a few bytes
//! under the job's lock, and a place to wait at that is made for who waits, where a
//! `tokio::sync::watch` takes 400.

use super::Live;
use crate::{engine::lock, job::Connection};

/// Where an attempt stands, for those who serve it.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::engine) struct Told {
    /// Somebody cancelled the job.
    pub(in crate::engine) stop: bool,
    /// What becomes of the connection to the action.
    pub(in crate::engine) connection: Connection,
    /// Open ReportStreams.
    pub(in crate::engine) streams: u16,
    /// The attempt is over, and that is committed.
    pub(in crate::engine) over: bool,
}

impl Live {
    /// Changes what those are told who serve it. All who wait look again.
    pub(in crate::engine) fn tell<T>(&self, change: impl FnOnce(&mut Told) -> T) -> T {
        let mut inner = lock(&self.inner);
        let changed = change(&mut inner.told);
        inner.wake();
        changed
    }

    /// Returns as soon as it `holds`, with what holds. Cancel safe.
    pub(in crate::engine) async fn until(&self, holds: impl Fn(&Told) -> bool) -> Told {
        self.when(|inner| holds(&inner.told)).await.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Job, JobId, Now, Record, Rules, Spec},
        store::AttemptRow,
    };
    use futures_util::FutureExt as _;
    use std::sync::Arc;

    #[tokio::test]
    async fn who_waits_is_told_of_what_they_wait_for_alone() {
        let rules = Arc::new(Rules::plain());
        let record = Record {
            id: JobId::from_bytes([1; 16]),
            spec: Arc::new(Spec::plain(Arc::clone(&rules))),
            created_at: 0,
            created_by: "".into(),
            retry_of: None,
            merged_count: 0,
            job: Job::new(rules, 0, Now { wall: 0, mono: 0, chance: 0.0 }),
        };
        let live = Live::new(record, AttemptRow::claimed(1, "node".into(), 0), &"node".into(), None, false);
        assert!(live.until(|told| told.streams == 0).now_or_never().is_some(), "it holds already");
        let mut over = Box::pin(live.until(|told| told.over));
        assert!((&mut over).now_or_never().is_none());
        live.tell(|told| told.stop = true);
        assert!((&mut over).now_or_never().is_none(), "something else changed");
        assert!(!live.tell(|told| std::mem::replace(&mut told.over, true)));
        assert!(over.await.stop);
    }
}
