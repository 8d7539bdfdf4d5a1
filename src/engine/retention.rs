//! Erases jobs whose time to be kept is over.
//!
//! What it examines: the oldest ends of each final state, by an index. What it
//! does: erases them in small transactions with a rest between, so that a Start
//! never waits for more than one of them. It sleeps until the next one falls due.

use super::{Engine, Error};
use crate::job::StateName;
use std::{sync::Arc, time::Duration};

/// Jobs of one transaction.
const ROWS: u64 = 100;
/// Between two transactions: most of the writer's time is for others.
const REST: Duration = Duration::from_millis(50);
/// Longest sleep: the wall clock may be set.
const PERIOD: i64 = 3_600_000;
/// Shortest sleep, so that jobs that end one after the other go together.
const SHORTEST: i64 = 1_000;

/// How long ended jobs are kept, milliseconds; none means for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Those that SUCCEEDED.
    pub succeeded: Option<u64>,
    /// All.
    pub all: Option<u64>,
}

impl Retention {
    /// How long a job that ended so is kept.
    fn of(self, state: StateName) -> Option<u64> {
        match state {
            StateName::Succeeded => self.succeeded.into_iter().chain(self.all).min(),
            _ => self.all,
        }
    }
}

impl Engine {
    pub(super) async fn run_retention(self: Arc<Self>) {
        loop {
            let rest = match self.clean().await {
                Ok(None) => REST,
                Ok(Some(next)) => {
                    let rest = (next - self.clock.wall()).clamp(SHORTEST, PERIOD);
                    Duration::from_millis(rest.unsigned_abs())
                }
                Err(Error::Draining) => return,
                Err(error) => {
                    tracing::warn!(%error, "ended jobs cannot be erased now");
                    Duration::from_secs(10)
                }
            };
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Erases some jobs. When the next one falls due; none if that is now.
    async fn clean(self: &Arc<Self>) -> Result<Option<i64>, Error> {
        let now = self.clock.wall();
        let mut next = now.saturating_add(PERIOD);
        let mut full = false;
        for state in [StateName::Succeeded, StateName::Failed, StateName::Cancelled] {
            let Some(kept) = self.settings.retention.of(state) else { continue };
            // What ends from now on falls due no sooner than this.
            next = next.min(now.saturating_add_unsigned(kept));
            let over = now.saturating_sub_unsigned(kept);
            let ids = self.store.ended_before(state, over, ROWS).await?;
            full |= ids.len() as u64 == ROWS;
            if self.erase(ids.clone()).await? {
                tracing::debug!(jobs = ids.len(), %state, "erased");
            }
            if let Some(first) = self.store.first_ended(state).await? {
                next = next.min(first.saturating_add_unsigned(kept));
            }
        }
        Ok((!full).then_some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_windows_hold_each_by_itself() {
        let kept = |succeeded, all| {
            let retention = Retention { succeeded, all };
            [StateName::Succeeded, StateName::Failed, StateName::Cancelled].map(|state| retention.of(state))
        };
        assert_eq!(kept(Some(1), Some(2)), [Some(1), Some(2), Some(2)]);
        assert_eq!(kept(Some(2), Some(1)), [Some(1), Some(1), Some(1)]);
        assert_eq!(kept(None, Some(2)), [Some(2), Some(2), Some(2)]);
        assert_eq!(kept(Some(1), None), [Some(1), None, None]);
        assert_eq!(kept(None, None), [None, None, None]);
    }
}
