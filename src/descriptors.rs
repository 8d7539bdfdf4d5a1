//! Whether this process has run out of file descriptors, as those who need one find:
//! they wait until one is free, and health tells others meanwhile.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The process may have no more (EMFILE), or the system (ENFILE).
const ERRORS: [i32; 2] = [24, 23];

/// Who waits for a descriptor, in all of the process.
#[derive(Debug, Clone, Default)]
pub struct Descriptors {
    waiting: Arc<AtomicUsize>,
}

/// One who waits, until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    of: Descriptors,
}

impl Descriptors {
    /// One more waits where `error` says that none is free.
    pub fn lacking(&self, error: &io::Error) -> Option<Waiting> {
        error.raw_os_error().filter(|error| ERRORS.contains(error))?;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Some(Waiting { of: self.clone() })
    }

    /// Whether somebody waits.
    pub fn are_lacking(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.of.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
