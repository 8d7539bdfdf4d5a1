//! The only place that spawns tasks: each has a name, and shutdown can say
//! which ones are still running.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// Spawns tasks and waits for them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    #[cfg(test)]
    spawned: Arc<Mutex<Vec<tokio::task::AbortHandle>>>,
}

struct Counted {
    name: &'static str,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

impl Tasks {
    /// Runs `task` in the background, in the caller's span.
    #[expect(clippy::disallowed_methods, reason = "this is where tasks are spawned")]
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        let counted = Counted { name, running: Arc::clone(&self.running) };
        // On its own: what follows moves it a few times, and some are large.
        let task = Box::pin(task);
        let task = async move {
            let _counted = counted;
            task.await;
        };
        let _spawned = tokio::spawn(self.tracker.track_future(task.in_current_span()));
        #[cfg(test)]
        self.spawned.lock().unwrap_or_else(PoisonError::into_inner).push(_spawned.abort_handle());
    }

    /// As kill -9 does: no task goes on beyond where it waits now.
    #[cfg(test)]
    pub fn kill(&self) {
        self.spawned.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|task| task.abort());
    }

    /// Fires when everything has to end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// What is running, by name.
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells every task to end and waits for `grace`, at most.
    ///
    /// # Errors
    /// What still runs then.
    pub async fn shut_down(&self, grace: Duration) -> Result<(), BTreeMap<&'static str, usize>> {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.map_err(|_| self.running())
    }
}
