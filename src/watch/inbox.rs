//! What one watcher has not taken yet. Pure.

use super::frame::{Frame, Subject};
use crate::job::{JobId, Revision};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

/// Jobs on one stream, at most.
pub const MAX_JOBS: usize = 10_000;

/// What a watcher takes.
#[derive(Debug)]
pub enum Item<S> {
    /// A job's state, and how many were merged into it.
    Changed(Arc<Frame<S>>, u32),
    /// Jobs that do not exist.
    Missing(Vec<JobId>),
    /// A job was deleted.
    Deleted(JobId),
    /// All that was there has been taken.
    Synced,
}

/// Why a watch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Every job asked for by id is final, or gone.
    Done,
    /// More than [`MAX_JOBS`] jobs.
    TooManyJobs,
    /// The server goes away.
    ShuttingDown,
}

#[derive(Debug)]
struct Watched<S> {
    /// The revision last put in, whether taken or not.
    seen: Option<Revision>,
    last: bool,
    /// The last state was read: it may still be published.
    read: bool,
    waiting: Option<(Arc<Frame<S>>, u32)>,
}

#[derive(Debug)]
enum Slot {
    Job(JobId),
    Missing(Vec<JobId>),
    Deleted(JobId),
    Synced,
}

#[derive(Debug)]
pub(super) struct Inbox<S> {
    jobs: HashMap<JobId, Watched<S>>,
    queue: VecDeque<Slot>,
    /// Deletions that were not taken yet.
    gone: usize,
    /// Jobs whose last state has not been taken.
    open: usize,
    /// Whether jobs may join later.
    endless: bool,
    /// What the watcher had of its only job before it came.
    had: Option<Revision>,
    /// Jobs that must not join any more: on an endless watch those that were read when
    /// they had ended, and that was taken; no more than were there when it began. And
    /// those that were deleted meanwhile, for they may have been read before.
    over: HashSet<JobId>,
    /// Until all that was there has been put in.
    reading: bool,
    synced: bool,
    closed: Option<Closed>,
}

impl<S: Subject> Inbox<S> {
    pub(super) fn new(endless: bool, had: Option<Revision>) -> Self {
        Self {
            jobs: HashMap::new(),
            queue: VecDeque::new(),
            gone: 0,
            open: 0,
            endless,
            had,
            over: HashSet::new(),
            reading: true,
            synced: false,
            closed: None,
        }
    }

    /// Makes room for a job. False if there are too many.
    pub(super) fn add(&mut self, id: JobId) -> bool {
        if self.jobs.contains_key(&id) {
            return true;
        }
        // Who takes nothing must not gather deletions without end.
        if self.jobs.len() + self.gone >= MAX_JOBS {
            self.close(Closed::TooManyJobs);
            return false;
        }
        self.jobs.insert(id, Watched { seen: None, last: false, read: false, waiting: None });
        self.open += 1;
        true
    }

    /// A state that was read. True if there is something new to take.
    pub(super) fn read(&mut self, frame: &Arc<Frame<S>>) -> bool {
        let id = frame.subject.id();
        if self.is_over(id) || !self.add(id) {
            return false;
        }
        let new = self.offer(frame);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.read |= new;
        }
        new
    }

    /// A state of a watched job. True if there is something new to take.
    pub(super) fn offer(&mut self, frame: &Arc<Frame<S>>) -> bool {
        let (id, revision) = (frame.subject.id(), frame.subject.revision());
        let Some(job) = self.jobs.get_mut(&id) else { return false };
        if job.last || job.seen.is_some_and(|seen| seen >= revision) {
            return false;
        }
        job.seen = Some(revision);
        job.last = frame.subject.is_final();
        if self.had == Some(revision) {
            job.waiting = None; // older
            self.open -= usize::from(job.last);
            return job.last; // nothing to say, but that it is over
        }
        match &mut job.waiting {
            Some((waiting, skipped)) => {
                *waiting = Arc::clone(frame);
                *skipped = skipped.saturating_add(1);
            }
            None => {
                job.waiting = Some((Arc::clone(frame), 0));
                self.queue.push_back(Slot::Job(id));
            }
        }
        true
    }

    pub(super) fn missing(&mut self, ids: Vec<JobId>) {
        for id in &ids {
            self.forget(*id);
        }
        if !ids.is_empty() {
            self.queue.push_back(Slot::Missing(ids));
        }
    }

    /// True if the watcher is to be told.
    pub(super) fn deleted(&mut self, id: JobId) -> bool {
        let known = self.forget(id);
        if known {
            self.gone += 1;
            self.queue.push_back(Slot::Deleted(id));
        }
        known
    }

    /// The job is not there any more, whatever is read of it.
    pub(super) fn keep_out(&mut self, id: JobId) {
        if self.reading {
            self.over.insert(id);
        }
    }

    fn forget(&mut self, id: JobId) -> bool {
        let Some(job) = self.jobs.remove(&id) else { return false };
        let taken = job.last && job.waiting.is_none();
        self.open -= usize::from(!taken);
        true
    }

    pub(super) fn synced(&mut self) {
        self.reading = false;
        self.queue.push_back(Slot::Synced);
    }

    /// Ends the watch, for the first reason given.
    pub(super) fn close(&mut self, why: Closed) {
        self.closed.get_or_insert(why);
    }

    /// The next thing to say, or that nothing more will come.
    pub(super) fn take(&mut self) -> Option<Result<Item<S>, Closed>> {
        if self.closed == Some(Closed::TooManyJobs) {
            return Some(Err(Closed::TooManyJobs));
        }
        while let Some(slot) = self.queue.pop_front() {
            match slot {
                Slot::Missing(ids) => return Some(Ok(Item::Missing(ids))),
                Slot::Deleted(id) => {
                    self.gone -= 1;
                    return Some(Ok(Item::Deleted(id)));
                }
                Slot::Synced => {
                    self.synced = true;
                    return Some(Ok(Item::Synced));
                }
                Slot::Job(id) => {
                    let Some(job) = self.jobs.get_mut(&id) else { continue }; // deleted meanwhile
                    let Some((frame, skipped)) = job.waiting.take() else { continue };
                    if job.last {
                        self.open -= 1;
                        let read = job.read;
                        if self.endless {
                            // What has ended makes room for what is to come.
                            self.jobs.remove(&id);
                            if read {
                                self.over.insert(id);
                            }
                        }
                    }
                    return Some(Ok(Item::Changed(frame, skipped)));
                }
            }
        }
        let done = self.synced && !self.endless && self.open == 0;
        self.closed.or(done.then_some(Closed::Done)).map(Err)
    }

    /// Whether it must not join any more.
    pub(super) fn is_over(&self, id: JobId) -> bool {
        self.over.contains(&id)
    }

    /// Whether a state of the job was put in.
    pub(super) fn has_seen(&self, id: JobId) -> bool {
        self.jobs.get(&id).is_some_and(|job| job.seen.is_some())
    }

    /// Every job on this watch, and the revision last put in.
    pub(super) fn seen(&self) -> impl Iterator<Item = (JobId, Option<Revision>)> + '_ {
        self.jobs.iter().map(|(id, job)| (*id, job.seen))
    }

    /// Whether the job is on this watch.
    pub(super) fn holds(&self, id: JobId) -> bool {
        self.jobs.contains_key(&id)
    }

    /// Ids that the hub holds this watcher for.
    pub(super) fn ids(&self) -> impl Iterator<Item = JobId> + '_ {
        self.jobs.keys().copied()
    }
}
