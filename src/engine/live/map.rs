//! All that run.

use super::Live;
use crate::{
    engine::{lock, recent::Recent},
    job::{JobId, OfIds},
};
use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex},
};

/// Every running job of this process.
#[derive(Default)]
pub(in crate::engine) struct Map(Mutex<HashSet<ById, OfIds>>);

/// Known by its id, which it has in itself.
struct ById(Arc<Live>);

impl Borrow<JobId> for ById {
    fn borrow(&self) -> &JobId {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl Map {
    pub(in crate::engine) fn get(&self, id: JobId) -> Option<Arc<Live>> {
        lock(&self.0).get(&id).map(|live| Arc::clone(&live.0))
    }

    pub(in crate::engine) fn insert(&self, live: &Arc<Live>) {
        lock(&self.0).replace(ById(Arc::clone(live)));
    }

    /// Forgets this attempt, not one that came after it. `recent` forgets it under the
    /// same lock: who finds it here no more must not be shown what it was while it ran,
    /// and what somebody who found it here keeps of it comes too late.
    pub(super) fn remove(&self, live: &Arc<Live>, recent: &Recent) {
        let mut map = lock(&self.0);
        recent.forget(live.id);
        if map.get(&live.id).is_some_and(|there| Arc::ptr_eq(&there.0, live)) {
            map.remove(&live.id);
        }
    }

    /// In the order of their ids.
    pub(in crate::engine) fn all(&self) -> Vec<Arc<Live>> {
        let mut all: Vec<Arc<Live>> = lock(&self.0).iter().map(|live| Arc::clone(&live.0)).collect();
        all.sort_by_key(|live| live.id);
        all
    }

    pub(in crate::engine) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}
