//! Gives free slots to jobs that are due.
//!
//! A job that finds a slot free and nobody waiting when it comes need not wait to be
//! claimed: it is stored as one that runs, see [`Dispatcher::place`]. All others are
//! queued.
//!
//! What it examines: for each target, hints of queued jobs, in their order, and
//! the table where the hints are not all there is. What it does: claims one
//! for each free slot. It is woken by every new queued job and every slot that
//! falls free, and looks into the tables once a minute besides, once a second where
//! other nodes may have left something for it there. A claim is compared and set, so
//! doing it twice does no harm. While the store fails it rests, and looks again each
//! second.

use super::{Engine, Error, TargetSettings, lock};
use crate::{
    job::{Event, JobId, Payload, Record, State},
    store::{AttemptRow, Outcome, Update, Write},
};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// Hints kept for one target.
const HINTS: usize = 1_024;
/// Larger payloads are read again when they are needed.
const KEPT_PAYLOAD: usize = 4 * 1024;
/// Between two looks into the tables that nobody asked for.
const PERIOD: Duration = Duration::from_secs(60);
/// The same where other nodes start jobs too, and leave to others what they have no
/// slot for.
const SHARED_PERIOD: Duration = Duration::from_secs(1);
/// So long a job that was just queued is left to the node that queued it, milliseconds:
/// it knows of it without looking, and who looks would only be in its way.
const HEAD_START: i64 = 300;
/// Jobs that are remembered as queued here.
const QUEUED_HERE: usize = 4_096;

/// First those of high priority, then those due first.
type Order = (u8, i64, JobId);

fn order(record: &Record) -> Order {
    (9 - record.spec.priority.min(9), record.job.scheduled_at, record.id)
}

#[derive(Debug)]
struct Hint {
    record: Record,
    payload: Option<Arc<Payload>>,
}

#[derive(Debug)]
struct Queue {
    slots: Arc<Semaphore>,
    /// How many there are.
    limit: usize,
    /// How often an attempt may begin.
    rate: Option<Rate>,
    hints: BTreeMap<Order, Hint>,
    /// The tables may hold jobs that come after the last hint.
    more: bool,
    /// They are being looked at.
    reading: bool,
    /// Claims that are on their way to the tables.
    claiming: HashSet<JobId>,
    /// Jobs on their way to the tables, to be queued there.
    coming: usize,
    /// Queued here within [`HEAD_START`], the latest last, and when; only where other
    /// nodes look too.
    here: VecDeque<(i64, JobId)>,
}

/// Attempts of a target begin this far apart. Microseconds, on the clock that
/// never jumps.
#[derive(Debug, Clone, Copy)]
struct Rate {
    spacing: u64,
    next: u64,
}

impl Rate {
    /// When the next one may begin, milliseconds; none if that is now.
    fn until(self, now: u64) -> Option<u64> {
        (self.next > now.saturating_mul(1_000)).then(|| self.next.div_ceil(1_000))
    }

    /// One begins now. What a clock of milliseconds lets pass is made up for.
    fn take(&mut self, now: u64) {
        self.next = self.next.max(now.saturating_mul(1_000).saturating_sub(999)).saturating_add(self.spacing);
    }
}

/// Queues and slots of every target.
pub(super) struct Dispatcher {
    queues: Mutex<BTreeMap<String, Queue>>,
    wake: Notify,
    /// Attempts that have a connection, or are about to.
    pub(super) connections: Connections,
}

/// How many attempts have a connection.
pub(super) struct Connections(watch::Sender<usize>);

/// One of them; dropping it takes it back.
pub(super) struct Connected(watch::Sender<usize>);

impl Connections {
    pub(super) fn open(&self) -> Connected {
        self.0.send_modify(|open| *open += 1);
        Connected(self.0.clone())
    }

    /// Returns once there is none.
    pub(super) async fn closed_all(&self) {
        // Fails only if the sender is gone, which we hold.
        let _ = self.0.subscribe().wait_for(|open| *open == 0).await;
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

impl Dispatcher {
    pub(super) fn new(targets: &BTreeMap<String, TargetSettings>) -> Self {
        let queue = |target: &TargetSettings| Queue {
            limit: target.max_in_flight,
            rate: target.spacing.map(|spacing| Rate { spacing, next: 0 }),
            slots: Arc::new(Semaphore::new(target.max_in_flight)),
            hints: BTreeMap::new(),
            more: true,
            reading: false,
            claiming: HashSet::new(),
            coming: 0,
            here: VecDeque::new(),
        };
        Self {
            queues: Mutex::new(targets.iter().map(|(name, target)| (name.clone(), queue(target))).collect()),
            wake: Notify::new(),
            connections: Connections(watch::Sender::new(0)),
        }
    }

    /// Look again.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// A slot for a new job that is due, if one is free and nobody waits for it.
    pub(super) fn place(&self, target: &str) -> Option<OwnedSemaphorePermit> {
        let queues = lock(&self.queues);
        let queue = queues.get(target)?;
        let known = !queue.more && !queue.reading;
        let first = known && queue.hints.is_empty() && queue.coming == 0 && queue.rate.is_none();
        let slots = first.then(|| Arc::clone(&queue.slots))?;
        slots.try_acquire_owned().ok()
    }

    /// A new job is on its way to the tables, to wait there for a slot.
    pub(super) fn comes(&self, target: &str) {
        if let Some(queue) = lock(&self.queues).get_mut(target) {
            queue.coming += 1;
        }
    }

    /// It is there, or will not be.
    pub(super) fn came(&self, target: &str) {
        if let Some(queue) = lock(&self.queues).get_mut(target) {
            queue.coming = queue.coming.saturating_sub(1);
        }
    }

    /// A job was queued here; `shared` says whether others may look for it too.
    pub(super) fn hint(&self, record: Record, payload: Option<Arc<Payload>>, shared: bool) {
        if let Some(queue) = lock(&self.queues).get_mut(&*record.spec.target) {
            if shared {
                queue.remember(record.job.updated_at, record.id);
            }
            queue.add(Hint { record, payload: payload.filter(|payload| payload.body.len() <= KEPT_PAYLOAD) });
        }
        self.wake();
    }

    /// A slot of the target, if one is free.
    pub(super) fn slot(&self, target: &str) -> Option<OwnedSemaphorePermit> {
        let slots = Arc::clone(&lock(&self.queues).get(target)?.slots);
        slots.try_acquire_owned().ok()
    }

    /// How many slots of a target are free, how many there are, and until when its
    /// rate forbids to take one, mono; none for an unknown target.
    pub(super) fn free(&self, target: &str, now: u64) -> Option<(usize, usize, Option<u64>)> {
        let queues = lock(&self.queues);
        let queue = queues.get(target)?;
        let limited = queue.rate.and_then(|rate| rate.until(now));
        Some((queue.slots.available_permits(), queue.limit, limited))
    }

    /// The tables may hold more than is known here.
    fn forget(&self) {
        lock(&self.queues).values_mut().for_each(|queue| queue.more = true);
    }

    /// What is in the tables is looked at anew: what is known here may be claimed by
    /// other nodes, and they may have queued what comes before it.
    pub(super) fn look_again(&self) {
        for queue in lock(&self.queues).values_mut() {
            queue.hints.clear();
            queue.more = true;
        }
        self.wake();
    }

    /// Every queue that has a free slot and may have a job for it; and when to look
    /// again because of a rate, mono.
    fn ready(&self, now: u64) -> (Vec<Next>, Option<u64>) {
        let mut next = Vec::new();
        let mut again: Option<u64> = None;
        for (target, queue) in lock(&self.queues).iter_mut() {
            while queue.slots.available_permits() > 0 {
                if queue.hints.is_empty() {
                    if queue.more {
                        next.push(Next::Read(target.clone()));
                    }
                    break;
                }
                if let Some(at) = queue.rate.and_then(|rate| rate.until(now)) {
                    again = Some(again.map_or(at, |again| again.min(at)));
                    break;
                }
                let Ok(slot) = Arc::clone(&queue.slots).try_acquire_owned() else { break };
                let Some((_, hint)) = queue.hints.pop_first() else { break };
                if let Some(rate) = &mut queue.rate {
                    rate.take(now);
                }
                queue.claiming.insert(hint.record.id);
                next.push(Next::Claim(Box::new(hint), slot));
            }
        }
        (next, again)
    }

    fn claimed(&self, target: &str, id: JobId) {
        if let Some(queue) = lock(&self.queues).get_mut(target) {
            queue.claiming.remove(&id);
        }
    }
}

impl Queue {
    /// A job was queued here.
    fn remember(&mut self, at: i64, id: JobId) {
        let over = |(then, _): &(i64, JobId)| then.saturating_add(HEAD_START) < at;
        while self.here.front().is_some_and(over) || self.here.len() >= QUEUED_HERE {
            self.here.pop_front();
        }
        self.here.push_back((at, id));
    }

    fn add(&mut self, hint: Hint) {
        let order = order(&hint.record);
        let beyond = self.hints.last_key_value().is_none_or(|(last, _)| *last < order);
        if self.more && beyond {
            return; // jobs that come before it may be in the tables alone
        }
        let known = self.hints.remove(&order).and_then(|known| known.payload);
        self.hints.insert(order, Hint { payload: hint.payload.or(known), ..hint });
        if self.hints.len() > HINTS {
            self.hints.pop_last();
            self.more = true;
        }
    }
}

enum Next {
    Claim(Box<Hint>, OwnedSemaphorePermit),
    Read(String),
}

impl Engine {
    pub(super) async fn run_dispatcher(self: Arc<Self>) {
        let (mut failed, mut again) = (false, None);
        loop {
            let changed = self.store_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.store.healthy() {
                // A claim would fail, and so would the next one, at once.
                failed = true;
            } else if self.is_draining() || self.nodes.lacks_root() {
                again = None; // nothing is claimed any more, whatever the rate allows
            } else {
                match self.dispatch().await {
                    Ok(at) => (failed, again) = (false, at),
                    Err(error) => {
                        tracing::warn!(%error, "queued jobs cannot be claimed now");
                        failed = true;
                    }
                }
            }
            let shared = self.store.is_shared();
            let rest = if failed || shared { SHARED_PERIOD } else { PERIOD };
            let limited = async {
                match again {
                    Some(at) => {
                        let rest = Duration::from_millis(at.saturating_sub(self.clock.mono()));
                        tokio::time::sleep(rest).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return,
                () = self.dispatcher.wake.notified(), if !failed => {}
                () = limited, if !failed => {}
                // It may be back.
                () = changed, if failed => self.dispatcher.forget(),
                () = tokio::time::sleep(rest) => match shared {
                    true => self.dispatcher.look_again(),
                    false => self.dispatcher.forget(),
                },
            }
        }
    }

    /// Claims what it can. When to look again because of a rate, mono.
    async fn dispatch(self: &Arc<Self>) -> Result<Option<u64>, Error> {
        loop {
            let (next, again) = self.dispatcher.ready(self.clock.mono());
            if next.is_empty() || self.is_draining() {
                return Ok(again);
            }
            // All of them, whatever fails: a hint that was taken is nowhere else.
            let mut failed = None;
            for next in next {
                let done = match next {
                    Next::Claim(hint, slot) => self.claim(*hint, slot).await,
                    Next::Read(target) => self.read_queue(&target).await,
                };
                if let Err(error) = done {
                    failed.get_or_insert(error);
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// Fills a target's hints from the tables.
    async fn read_queue(&self, target: &str) -> Result<(), Error> {
        let claiming: Vec<JobId> = {
            let mut queues = lock(&self.dispatcher.queues);
            let Some(queue) = queues.get_mut(target) else { return Ok(()) };
            // What comes from now on is hinted; what was there is read below.
            (queue.more, queue.reading) = (false, true);
            queue.claiming.iter().copied().collect()
        };
        let read = self.store.claimable(target, HINTS as u64, &claiming).await;
        let mut queues = lock(&self.dispatcher.queues);
        let Some(queue) = queues.get_mut(target) else { return Ok(()) };
        queue.reading = false;
        let records = read.inspect_err(|_| queue.more = true)?;
        let full = records.len() >= HINTS;
        let fresh = match self.store.is_shared() {
            true => self.clock.wall().saturating_sub(HEAD_START),
            false => i64::MAX,
        };
        let here: HashSet<JobId> = queue.here.iter().map(|(_, id)| *id).collect();
        for record in records {
            let left_to_others = record.job.updated_at > fresh && !here.contains(&record.id);
            if !left_to_others && !queue.claiming.contains(&record.id) {
                queue.hints.entry(order(&record)).or_insert(Hint { record, payload: None });
            }
        }
        queue.more |= full;
        while queue.hints.len() > HINTS {
            queue.hints.pop_last();
            queue.more = true;
        }
        Ok(())
    }

    /// Claims one job. The attempt begins once that is durable.
    async fn claim(self: &Arc<Self>, hint: Hint, slot: OwnedSemaphorePermit) -> Result<(), Error> {
        let Hint { mut record, payload } = hint;
        let (id, target) = (record.id, record.spec.target.clone());
        let now = self.clock.now();
        let from = record.job.revision;
        let claimed = record.job.apply(Event::Claim, now).is_ok();
        if !claimed || !matches!(record.job.state, State::Running(_)) {
            // Not due yet, or its time is over: that is for the schedule.
            self.dispatcher.claimed(&target, id);
            self.schedule.wake_at(now.wall);
            return Ok(());
        }
        let row = AttemptRow::claimed(record.job.attempt, self.settings.node.clone(), now.wall);
        let permit = match self.store.reserve().await {
            Ok(permit) => permit,
            Err(_) => return Err(Error::Draining),
        };
        let update = Update { from, record: record.clone(), text: false, attempt: Some(row.clone()) };
        let engine = Arc::clone(self);
        permit.write(
            Write::Update(Box::new(update)),
            Box::new(move |result| {
                engine.dispatcher.claimed(&target, id);
                engine.recent.forget(id);
                if result == Ok(Outcome::Done) {
                    engine.one_less_waits();
                    engine.begin_attempt(record, row, payload, slot);
                } else {
                    // Cancelled meanwhile, or joined: the tables know.
                    if let Err(error) = result {
                        tracing::warn!(job = %id, %error, "a claim failed and is tried again");
                    }
                    engine.dispatcher.forget();
                    drop(slot); // before anybody looks for a free one
                }
                engine.dispatcher.wake();
            }),
        );
        Ok(())
    }
}
