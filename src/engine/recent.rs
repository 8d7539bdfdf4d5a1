//! States of jobs that callers were shown lately, each encoded once for all who
//! ask: a read of the tables costs more than everything else of a GetStatus.
//!
//! Of what runs here, which is known in memory anyway, the encoding is kept, and
//! compared by its revision; it is forgotten before the job is no longer among those
//! that run. Of all other jobs a state is good until the writer has changed the row;
//! each such change calls [`Recent::forget`] before anybody is told of it. A state that
//! was read from the tables while such a change was on its way is not kept.

use super::lock;
use crate::{
    job::{JobId, OfIds, Record},
    watch::Frame,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

/// A job's state, as it is shown.
pub type Shown = Arc<Frame<Record>>;

/// Marks of changed jobs; jobs that share one only cause a needless read.
const MARKS: usize = 1_024;

/// Two generations: what was not asked for during one of them is dropped with it.
pub(super) struct Recent {
    /// Bytes of both, at most.
    most: usize,
    /// Whether the tables change only by this engine: else nothing but what runs here
    /// is kept.
    alone: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    young: HashMap<JobId, Shown, OfIds>,
    old: HashMap<JobId, Shown, OfIds>,
    /// Bytes of the young.
    bytes: usize,
    /// Counts changes.
    now: u64,
    /// When a job of each mark was changed last.
    changed: Vec<u64>,
}

fn mark(id: JobId) -> usize {
    let [.., high, low] = id.to_bytes();
    usize::from(u16::from_be_bytes([high, low])) % MARKS
}

/// Roughly what it takes, with its encoding.
fn bytes(shown: &Shown) -> usize {
    let record = &shown.subject;
    let spec = &record.spec;
    let output = record.job.output.as_ref().map_or(0, |output| output.data.len());
    let labels: usize = spec.labels.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    let text = record.job.text.as_str().len() + output + spec.url.len() + spec.route.len() + labels;
    1_200 + 2 * text
}

impl Recent {
    pub(super) fn new(most: usize, alone: bool) -> Self {
        Self { most, alone, inner: Mutex::new(Inner { changed: vec![0; MARKS], ..Inner::default() }) }
    }

    pub(super) fn get(&self, id: JobId) -> Option<Shown> {
        let mut inner = lock(&self.inner);
        if let Some(shown) = inner.young.get(&id) {
            return Some(Arc::clone(shown));
        }
        let shown = inner.old.remove(&id)?;
        inner.add(Arc::clone(&shown), self.most);
        Some(shown)
    }

    /// The state that a commit has just made, on the writer's side.
    pub(super) fn put(&self, shown: &Shown) {
        if self.most > 0 && self.alone {
            lock(&self.inner).add(Arc::clone(shown), self.most);
        }
    }

    /// To be asked before a row is read that may be kept.
    pub(super) fn before_read(&self) -> u64 {
        lock(&self.inner).now
    }

    /// A row that was read since `before`.
    pub(super) fn put_row(&self, shown: &Shown, before: u64) {
        if self.alone {
            self.put_read(shown, before);
        }
    }

    /// What was read since `before` of a job that runs here.
    pub(super) fn put_read(&self, shown: &Shown, before: u64) {
        let mut inner = lock(&self.inner);
        if self.most > 0 && inner.changed[mark(shown.subject.id)] <= before {
            inner.add(Arc::clone(shown), self.most);
        }
    }

    /// The row is another one now, or gone.
    pub(super) fn forget(&self, id: JobId) {
        let mut inner = lock(&self.inner);
        inner.now += 1;
        let now = inner.now;
        inner.changed[mark(id)] = now;
        inner.old.remove(&id);
        if let Some(shown) = inner.young.remove(&id) {
            inner.bytes -= bytes(&shown);
        }
    }
}

impl Inner {
    fn add(&mut self, shown: Shown, most: usize) {
        self.bytes += bytes(&shown);
        self.old.remove(&shown.subject.id);
        if let Some(before) = self.young.insert(shown.subject.id, shown) {
            self.bytes -= bytes(&before);
        }
        if self.bytes > most / 2 {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Job, Now, Rules, Spec};

    fn shown(id: u8) -> Shown {
        let rules = Arc::new(Rules::plain());
        let job = Job::new(Arc::clone(&rules), 0, Now { wall: 0, mono: 0, chance: 0.0 });
        let spec = Arc::new(Spec::plain(rules));
        let id = JobId::from_bytes([id; 16]);
        let (created_by, retry_of) = ("".into(), None);
        Arc::new(Frame::new(Record { id, created_at: 0, created_by, retry_of, merged_count: 0, spec, job }))
    }

    #[test]
    fn what_was_changed_meanwhile_is_not_kept() {
        let recent = Recent::new(1 << 20, true);
        let (one, id) = (shown(1), JobId::from_bytes([1; 16]));
        let before = recent.before_read();
        recent.forget(id);
        recent.put_read(&one, before);
        assert!(recent.get(id).is_none(), "read before the change");
        recent.put_read(&one, recent.before_read());
        assert!(recent.get(id).is_some());
        recent.forget(id);
        assert!(recent.get(id).is_none());
    }

    #[test]
    fn memory_is_bounded_and_what_is_asked_for_stays() {
        let each = bytes(&shown(0));
        let recent = Recent::new(20 * each, true);
        let hot = JobId::from_bytes([255; 16]);
        recent.put(&shown(255));
        for id in 0..200 {
            recent.put(&shown(id));
            assert!(recent.get(hot).is_some(), "after {id}");
            let inner = lock(&recent.inner);
            assert!(
                inner.young.len() + inner.old.len() <= 22,
                "{} and {}",
                inner.young.len(),
                inner.old.len()
            );
        }
        assert!(recent.get(JobId::from_bytes([0; 16])).is_none(), "long not asked for");
        let none = Recent::new(0, true);
        none.put(&shown(1));
        assert!(none.get(JobId::from_bytes([1; 16])).is_none());
    }
}
