//! Brings progress to the tables, each job at most once in `flush_interval`.

use super::{Engine, live::Live, lock};
use crate::store::{Outcome, Write};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Text stored in one second, all jobs together, bytes.
const TEXT_BUDGET: usize = 8 * 1024 * 1024;

/// Jobs with changes that are not in the tables yet.
#[derive(Default)]
pub(super) struct Flusher {
    dirty: Mutex<Vec<Arc<Live>>>,
    wake: Notify,
}

impl Flusher {
    /// The job has something to save.
    pub(super) fn add(&self, live: &Arc<Live>) {
        let mut dirty = lock(&self.dirty);
        dirty.push(Arc::clone(live));
        if dirty.len() == 1 {
            self.wake.notify_one();
        }
    }
}

/// How much text may still be stored in this second.
struct Budget {
    since: u64,
    left: usize,
}

impl Budget {
    fn take(&mut self, now: u64, bytes: usize) -> bool {
        if now.saturating_sub(self.since) >= 1_000 {
            *self = Self { since: now, left: TEXT_BUDGET };
        }
        let fits = bytes <= self.left;
        if fits {
            self.left -= bytes;
        }
        fits
    }
}

impl Engine {
    pub(super) async fn run_flusher(self: Arc<Self>) {
        let mut budget = Budget { since: 0, left: TEXT_BUDGET };
        loop {
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return,
                () = self.flusher.wake.notified() => {}
            }
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(self.settings.flush_interval) => {}
            }
            // While the store fails it is asked no more: what is dirty waits, once
            // a job, however much is reported.
            if !self.store_is_back().await {
                return;
            }
            let dirty = std::mem::take(&mut *lock(&self.flusher.dirty));
            for live in dirty {
                self.flush(&live, &mut budget).await;
            }
        }
    }

    async fn flush(self: &Arc<Self>, live: &Arc<Live>, budget: &mut Budget) {
        let Ok(permit) = self.store.reserve().await else { return };
        let update = {
            let mut inner = lock(&live.inner);
            if inner.saving() || inner.committing() || inner.lost {
                return; // what is under way comes back for the rest
            }
            let now = self.clock.mono();
            let rested = now >= inner.text_rests_until;
            let text = inner.text_dirty && rested && budget.take(now, inner.job.text.as_str().len());
            if !inner.dirty && !text {
                if inner.text_dirty {
                    self.flusher.add(live);
                }
                return;
            }
            if text {
                inner.raise_for_text(self, live);
            }
            inner.update(self, live, text, now)
        };
        let (engine, live) = (Arc::clone(self), Arc::clone(live));
        let (revision, text) = (update.record.job.revision, update.text);
        permit.write(
            Write::Update(Box::new(update)),
            Box::new(move |result| {
                if matches!(result, Ok(Outcome::Lost | Outcome::Existing(_))) {
                    return engine.flush_lost(&live);
                }
                let mut inner = lock(&live.inner);
                match result {
                    Ok(_) => inner.saved(&engine, &live, Some(revision)),
                    Err(error) => {
                        tracing::debug!(job = %live.id, %error, "progress is not stored yet");
                        inner.text_dirty |= text;
                        inner.saved(&engine, &live, None);
                    }
                }
            }),
        );
    }

    /// The row was not as it was left.
    fn flush_lost(self: &Arc<Self>, live: &Arc<Live>) {
        let (engine, live) = (Arc::clone(self), Arc::clone(live));
        self.tasks.spawn("flush lost", async move {
            match engine.store.records(&[live.id], false).await {
                Ok(rows) => match rows.first().filter(|row| live.is_still(row)) {
                    // Its last change was stored after all.
                    Some(row) => {
                        let mut inner = lock(&live.inner);
                        inner.dirty = true;
                        inner.saved(&engine, &live, Some(row.job.revision));
                    }
                    None => {
                        engine.lose(&live, rows.first());
                        lock(&live.inner).saved(&engine, &live, None);
                    }
                },
                Err(error) => {
                    tracing::debug!(job = %live.id, %error, "progress is not stored yet");
                    lock(&live.inner).saved(&engine, &live, None);
                }
            }
        });
    }

    /// Before the end: everything at once, also what came while an update was under way.
    pub(super) async fn flush_all(self: &Arc<Self>) {
        let mut budget = Budget { since: 0, left: usize::MAX };
        for live in self.live.all() {
            {
                let mut inner = live.when(|inner| !inner.saving() || inner.check().is_err()).await;
                inner.text_rests_until = 0;
                if !inner.dirty && !inner.text_dirty {
                    continue;
                }
            }
            budget.left = usize::MAX;
            self.flush(&live, &mut budget).await;
        }
    }
}
