//! Memory that all calls share for what is larger than most.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a permit stands for.
pub(super) const UNIT: usize = 1024;
/// Bytes of one budget.
pub(super) const BUDGET: usize = 64 * 1024 * 1024;
/// Bytes of that for what calls are to do, each counted with the copy that is made of
/// it: 64 bodies of the largest size at once.
pub(super) const KEPT: usize = 2 * BUDGET;

/// Bytes that may be taken at once, in units of [`UNIT`]; a permit gives them back.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self::of(BUDGET / UNIT)
    }
}

impl Budget {
    /// One of so many units.
    pub fn of(units: usize) -> Self {
        Self(Arc::new(Semaphore::new(units)))
    }

    /// Room for so many bytes, if there is some now.
    pub fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_many_owned(units(bytes)).ok()
    }

    /// Room for so many bytes, as soon as there is some. None never comes: it is not
    /// closed.
    pub fn take(&self, bytes: usize) -> impl Future<Output = Option<OwnedSemaphorePermit>> + use<> {
        let all = Arc::clone(&self.0);
        async move { all.acquire_many_owned(units(bytes)).await.ok() }
    }

    /// Units that nobody has.
    #[cfg(test)]
    pub fn left(&self) -> usize {
        self.0.available_permits()
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}
