//! The hub: from a change to those who watch its job.

use super::frame::{Frame, Subject};
use super::inbox::{Closed, Inbox, Item};
use crate::job::{JobId, Revision};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

type Matches<S> = Box<dyn Fn(&S) -> bool + Send + Sync>;

/// Locks are held for a few map operations and never across an await; a panic
/// under one leaves maps that are still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Core<S> {
    number: u64,
    matches: Option<Matches<S>>,
    inbox: Mutex<Inbox<S>>,
    /// While present states are being read: jobs that changed and did not match.
    /// What was read of them may be old, and nobody would say so again.
    passed_over: Mutex<Option<BTreeSet<JobId>>>,
    wake: Notify,
}

impl<S: Subject> Core<S> {
    fn offer(&self, frame: &Arc<Frame<S>>) {
        if lock(&self.inbox).offer(frame) {
            self.wake.notify_one();
        }
    }
}

/// By their numbers: watchers are told in the order in which they came.
type Watchers<S> = BTreeMap<u64, Arc<Core<S>>>;

struct Registry<S> {
    by_job: HashMap<JobId, Watchers<S>>,
    by_filter: Watchers<S>,
    all: BTreeMap<u64, Weak<Core<S>>>,
    ended: Ended,
    closed: bool,
}

impl<S> Registry<S> {
    /// Nothing of this job is published to the watcher any more.
    fn leave(&mut self, core: &Core<S>, id: JobId) {
        if let Some(watchers) = self.by_job.get_mut(&id) {
            watchers.remove(&core.number);
            if watchers.is_empty() {
                self.by_job.remove(&id);
            }
        }
    }
}

/// Jobs in one generation of [`Ended`], at most.
const GENERATION: usize = 65_536;
/// How long one lasts; each is held for as long again.
const LASTS: Duration = Duration::from_secs(60);

/// Jobs whose end was published while somebody watched by a filter: who has taken it
/// forgets the job, and must be told neither that again nor what was before. A change
/// may come twice, or late, where other nodes make changes too; not a minute later, nor
/// after as many others have ended as are held here.
#[derive(Default)]
struct Ended {
    young: HashSet<JobId>,
    old: HashSet<JobId>,
    /// When the young began.
    since: Option<Instant>,
}

impl Ended {
    fn holds(&self, id: JobId) -> bool {
        self.young.contains(&id) || self.old.contains(&id)
    }

    fn add(&mut self, id: JobId) {
        let now = Instant::now();
        let over = self.since.is_some_and(|since| now - since >= LASTS);
        if over || self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
            self.since = None;
        }
        self.since.get_or_insert(now);
        self.young.insert(id);
    }
}

/// Everyone who watches.
pub struct Hub<S> {
    registry: Mutex<Registry<S>>,
    next: AtomicU64,
    /// Told when somebody begins to watch.
    came: Notify,
}

impl<S: Subject> Default for Hub<S> {
    fn default() -> Self {
        let registry = Registry {
            by_job: HashMap::new(),
            by_filter: BTreeMap::new(),
            all: BTreeMap::new(),
            ended: Ended::default(),
            closed: false,
        };
        Self { registry: Mutex::new(registry), next: AtomicU64::new(0), came: Notify::new() }
    }
}

impl<S: Subject> Hub<S> {
    /// Watches the jobs `ids`, and those that `matches` selects from now on.
    /// The caller reads the present states afterwards and offers them, so that
    /// no change can fall between.
    ///
    /// `had` is a state of the only job that its watcher has already: it is not told
    /// again, whoever publishes or offers it.
    pub fn watch(
        self: &Arc<Self>,
        ids: &[JobId],
        matches: Option<Matches<S>>,
        had: Option<Revision>,
    ) -> Watcher<S> {
        let mut inbox = Inbox::new(matches.is_some(), had);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let fits = ids.iter().all(|id| inbox.add(*id));
        let endless = matches.is_some();
        let core = Arc::new(Core {
            number,
            matches,
            inbox: Mutex::new(inbox),
            passed_over: Mutex::new(endless.then(BTreeSet::new)),
            wake: Notify::new(),
        });
        let mut registry = lock(&self.registry);
        if registry.closed {
            lock(&core.inbox).close(Closed::ShuttingDown);
        } else if fits {
            for id in ids {
                registry.by_job.entry(*id).or_default().insert(number, Arc::clone(&core));
            }
            if endless {
                registry.by_filter.insert(number, Arc::clone(&core));
            }
            registry.all.insert(number, Arc::downgrade(&core));
            self.came.notify_waiters();
        }
        drop(registry);
        Watcher { core, hub: Arc::clone(self) }
    }

    /// Whether a change of this job has to be published: somebody watches it, or
    /// may do so by a filter.
    pub fn is_watched(&self, id: JobId) -> bool {
        let registry = lock(&self.registry);
        if registry.by_filter.is_empty() {
            return registry.by_job.contains_key(&id);
        }
        !registry.ended.holds(id)
    }

    /// Hands a change to all who watch its job. It may come twice, or late.
    pub fn publish(&self, frame: &Arc<Frame<S>>) {
        let (id, last) = (frame.subject.id(), frame.subject.is_final());
        let mut registry = lock(&self.registry);
        let Registry { by_job, by_filter, ended, .. } = &mut *registry;
        if ended.holds(id) {
            return;
        }
        if last && !by_filter.is_empty() {
            ended.add(id);
        }
        for core in by_filter.values() {
            if core.matches.as_ref().is_some_and(|matches| matches(&frame.subject)) {
                join(by_job, core, id);
            } else if let Some(passed_over) = lock(&core.passed_over).as_mut() {
                passed_over.insert(id);
            }
        }
        match by_job.get(&id) {
            None => {}
            Some(watchers) => watchers.values().for_each(|core| core.offer(frame)),
        }
        if last {
            by_job.remove(&id);
        }
    }

    /// Tells all who watch the job that it is gone.
    pub fn deleted(&self, id: JobId) {
        self.tell_deleted(id, |_| true);
    }

    /// The same to those alone who were told of the job before: it is not there now,
    /// and others may be about to find that out by themselves.
    pub fn gone(&self, id: JobId) {
        self.tell_deleted(id, |inbox| inbox.has_seen(id));
    }

    fn tell_deleted(&self, id: JobId, is_told: impl Fn(&Inbox<S>) -> bool) {
        let mut registry = lock(&self.registry);
        let all: Vec<_> = registry.all.values().filter_map(Weak::upgrade).collect();
        for core in all {
            let mut inbox = lock(&core.inbox);
            inbox.keep_out(id);
            if is_told(&inbox) && inbox.deleted(id) {
                core.wake.notify_one();
                registry.leave(&core, id);
            }
        }
    }

    /// Every job that somebody watches, also those whose end was told: with the lowest
    /// revision that one of its watchers was told; none if one was told nothing yet.
    pub fn held(&self) -> HashMap<JobId, Option<Revision>> {
        let all: Vec<_> = lock(&self.registry).all.values().filter_map(Weak::upgrade).collect();
        let mut held = HashMap::new();
        for core in all {
            for (id, seen) in lock(&core.inbox).seen() {
                let lowest = held.entry(id).or_insert(seen);
                *lowest = (*lowest).min(seen); // none is less than any
            }
        }
        held
    }

    /// Whether somebody watches this job, or was told of its end and watches others.
    pub fn is_held(&self, id: JobId) -> bool {
        let all: Vec<_> = lock(&self.registry).all.values().filter_map(Weak::upgrade).collect();
        all.iter().any(|core| lock(&core.inbox).holds(id))
    }

    /// Returns once somebody watches. Cancel safe.
    pub async fn somebody(&self) {
        loop {
            let came = self.came.notified();
            tokio::pin!(came);
            came.as_mut().enable();
            if self.watchers() > 0 {
                return;
            }
            came.await;
        }
    }

    /// Ends every watch, now and later.
    pub fn close(&self) {
        let mut registry = lock(&self.registry);
        registry.closed = true;
        for core in registry.all.values().filter_map(Weak::upgrade) {
            lock(&core.inbox).close(Closed::ShuttingDown);
            core.wake.notify_one();
        }
    }

    /// Open watches.
    pub fn watchers(&self) -> usize {
        lock(&self.registry).all.len()
    }
}

/// Puts a job on a watcher's stream.
fn join<S: Subject>(by_job: &mut HashMap<JobId, Watchers<S>>, core: &Arc<Core<S>>, id: JobId) {
    let mut inbox = lock(&core.inbox);
    if inbox.is_over(id) {
        return;
    }
    if inbox.add(id) {
        by_job.entry(id).or_default().insert(core.number, Arc::clone(core));
    } else {
        core.wake.notify_one();
    }
}

/// One watch. Dropping it ends it.
pub struct Watcher<S: Subject> {
    core: Arc<Core<S>>,
    hub: Arc<Hub<S>>,
}

impl<S: Subject> Watcher<S> {
    /// A state that was read. Taken only if it is newer than what is known.
    pub fn offer(&self, frame: &Arc<Frame<S>>) {
        let id = frame.subject.id();
        if frame.subject.is_final() {
            lock(&self.hub.registry).leave(&self.core, id); // nothing else comes
        } else if self.core.matches.is_some() {
            join(&mut lock(&self.hub.registry).by_job, &self.core, id);
        }
        if lock(&self.core.inbox).read(frame) {
            self.core.wake.notify_one();
        }
    }

    /// Jobs that were offered and may have changed unnoticed before. To be
    /// called once, when all that was read has been offered; their present
    /// states are then offered too.
    pub fn passed_over(&self) -> Vec<JobId> {
        let passed_over = lock(&self.core.passed_over).take().unwrap_or_default();
        let inbox = lock(&self.core.inbox);
        passed_over.into_iter().filter(|id| inbox.holds(*id)).collect()
    }

    /// These of the ids do not exist.
    pub fn missing(&self, ids: Vec<JobId>) {
        {
            let mut registry = lock(&self.hub.registry);
            ids.iter().for_each(|id| registry.leave(&self.core, *id));
        }
        lock(&self.core.inbox).missing(ids);
        self.core.wake.notify_one();
    }

    /// Everything that was there has been offered.
    pub fn synced(&self) {
        lock(&self.core.inbox).synced();
        self.core.wake.notify_one();
    }

    /// The next thing to say, once there is one. Cancel safe.
    pub async fn next(&self) -> Result<Item<S>, Closed> {
        loop {
            if let Some(item) = self.try_next() {
                return item;
            }
            self.core.wake.notified().await;
        }
    }

    /// The next thing to say, if there is one.
    pub fn try_next(&self) -> Option<Result<Item<S>, Closed>> {
        lock(&self.core.inbox).take()
    }
}

impl<S: Subject> Drop for Watcher<S> {
    fn drop(&mut self) {
        let mut registry = lock(&self.hub.registry);
        registry.all.remove(&self.core.number);
        registry.by_filter.remove(&self.core.number);
        let ids: Vec<JobId> = lock(&self.core.inbox).ids().collect();
        for id in ids {
            registry.leave(&self.core, id);
        }
        if registry.by_filter.is_empty() {
            registry.ended = Ended::default(); // whoever comes now reads first
        }
    }
}

#[cfg(test)]
mod tests;
