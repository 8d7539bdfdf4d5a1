//! The one place that spawns.

use std::future::Future;
use tokio::task::JoinHandle;

/// In the background; its owner waits for it, or the process ends with it.
#[expect(clippy::disallowed_methods, reason = "this is where the benchmark spawns")]
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task)
}
