//! A closed loop: each caller calls again when it was answered, and what ends
//! within the window counts.

use super::{Client, charge};
use crate::{clock, fault::Fault, sample::Sample, tasks::spawn};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How long a window stays open in which nothing was done yet.
const LONGEST: Duration = Duration::from_secs(20);

/// One that calls, again and again.
pub trait Caller: Send + 'static {
    /// Once. The time that counts, in nanoseconds, if it is not that of the call.
    fn call(&mut self) -> impl Future<Output = Result<Option<u64>, Fault>> + Send;
}

#[derive(Default)]
struct Window {
    open: AtomicBool,
    /// Something was done.
    done: AtomicBool,
    over: AtomicBool,
}

impl Client {
    /// Measures all `callers` together, after a fifth of the time to warm up.
    pub(super) async fn closed(&self, callers: Vec<impl Caller>, seconds: f64) -> Result<Sample, Fault> {
        let window = Arc::new(Window::default());
        let tasks: Vec<_> =
            callers.into_iter().map(|caller| spawn(repeat(caller, Arc::clone(&window)))).collect();
        tokio::time::sleep(Duration::from_secs_f64((seconds / 5.0).max(0.05))).await;
        let (before, from) = (self.used()?, clock::now());
        window.open.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        // On a busy machine a short window may be too short.
        while !window.done.load(Ordering::Relaxed) && clock::since(from) < LONGEST {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        window.open.store(false, Ordering::Relaxed);
        let (measured, after) = (clock::since(from).as_secs_f64(), self.used()?);
        window.over.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.append(&mut task.await??);
        }
        if latencies.is_empty() {
            return Err("nothing was done within the window".into());
        }
        let mut sample = Sample::of(latencies, measured);
        charge(&mut sample, &before, &after);
        Ok(sample)
    }
}

async fn repeat(mut caller: impl Caller, window: Arc<Window>) -> Result<Vec<u32>, Fault> {
    let mut latencies = Vec::new();
    let mut began = clock::now();
    while !window.over.load(Ordering::Relaxed) {
        let told = caller.call().await?;
        let now = clock::now();
        if window.open.load(Ordering::Relaxed) {
            window.done.store(true, Ordering::Relaxed);
            latencies.push(u32::try_from(told.unwrap_or(now - began)).unwrap_or(u32::MAX));
        }
        began = clock::now();
    }
    Ok(latencies)
}
