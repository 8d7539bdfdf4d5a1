//! Which node runs an attempt, as far as this one was told.

use crate::job::JobId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Attempts that are remembered, at most: in two generations of this many.
const GENERATION: usize = 2_048;

/// One attempt of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    pub job: JobId,
    pub number: u32,
}

/// A node that runs something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    /// Its name.
    pub node: Arc<str>,
    /// Where it is reached; none if it does not say.
    pub address: Option<Arc<str>>,
}

impl Owner {
    pub fn new(node: &str, address: Option<&str>) -> Self {
        Self { node: node.into(), address: address.map(Arc::from) }
    }
}

/// A bounded memory: when it is full, what was not asked for lately is forgotten.
#[derive(Default)]
pub(super) struct Owners(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<Attempt, Owner>,
    old: HashMap<Attempt, Owner>,
}

impl Generations {
    fn add(&mut self, attempt: Attempt, owner: Owner) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(attempt, owner);
    }
}

impl Owners {
    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, attempt: Attempt) -> Option<Owner> {
        let mut all = self.lock();
        if let Some(owner) = all.young.get(&attempt) {
            return Some(owner.clone());
        }
        let owner = all.old.remove(&attempt)?;
        all.add(attempt, owner.clone());
        Some(owner)
    }

    pub fn remember(&self, attempt: Attempt, owner: Owner) {
        self.lock().add(attempt, owner);
    }

    pub fn forget(&self, attempt: Attempt) {
        let mut all = self.lock();
        all.young.remove(&attempt);
        all.old.remove(&attempt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_lately_is_forgotten() {
        let owners = Owners::default();
        let attempt = |number| Attempt { job: JobId::from_bytes([1; 16]), number };
        let owner = Owner::new("b", Some("http://127.0.0.1:1"));
        for number in 0..10_000 {
            owners.remember(attempt(number), owner.clone());
            assert_eq!(owners.get(attempt(7)).is_some(), number >= 7, "it is asked for each time");
        }
        let known = (0..10_000).filter(|number| owners.get(attempt(*number)).is_some()).count();
        assert!((GENERATION..=2 * GENERATION).contains(&known), "{known}");
        owners.forget(attempt(7));
        assert_eq!(owners.get(attempt(7)), None);
    }
}
