//! What was acknowledged and what was seen, and what follows for what may come.

use super::world::{World, lock};
use crate::{
    job::{JobId, MergeClass, Record, Revision, Rules, StateName},
    store::model::{self, AttemptModel, Tables},
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct Ledger {
    pub(super) jobs: BTreeMap<JobId, Known>,
    /// What a revision was when it was first seen, without and with its text.
    shown: BTreeMap<(JobId, Revision, bool), String>,
    /// Erased from the tables.
    pub(super) gone: BTreeSet<JobId>,
    pub(super) runs: BTreeMap<(JobId, u32), Run>,
    /// Rows of attempts that are over.
    pub(super) over: BTreeMap<(JobId, u32), AttemptModel>,
    /// Open connections: of which process, for which attempt, to which target.
    pub(super) open: BTreeMap<(u32, JobId, u32), String>,
    /// Targets that have no free slot now.
    full: BTreeSet<String>,
    /// When a target last had no free slot.
    full_at: BTreeMap<String, u64>,
    /// Idempotency keys: which request each stands for, and its job.
    pub(super) keys: BTreeMap<(String, String), (String, JobId)>,
    /// Starts of which nobody knows whether they joined, by what they are.
    pub(super) unknown: BTreeMap<String, u32>,
    /// Jobs of a transaction that is durable, and the engine does not know it yet:
    /// for that moment it may show what was there before.
    pub(super) untold: BTreeSet<JobId>,
    /// Starts without an answer, by what they are, and when they were made.
    pub(super) asked: BTreeMap<String, Vec<u64>>,
    /// When something last went wrong that may make things late.
    pub(super) trouble_at: u64,
    /// How much there was to audit.
    pub(super) count: Count,
}

#[derive(Default, Clone, Debug)]
pub(super) struct Count {
    pub(super) processes: u32,
    pub(super) starts: u32,
    pub(super) reports: u32,
    pub(super) frames: u32,
    pub(super) commits: u32,
    /// How often a process died, by where.
    pub(super) deaths: BTreeMap<&'static str, u32>,
}

/// A job in the tables.
pub(super) struct Known {
    /// By what the test knows identical Starts.
    pub(super) identity: String,
    /// Of whom and which idempotency key it is.
    pub(super) key: Option<String>,
    pub(super) class: Option<MergeClass>,
    pub(super) rules: Rules,
    /// Acknowledged joins.
    pub(super) joins: u32,
    pub(super) cancelled: bool,
    /// Since when it waits for what it waits for.
    pub(super) waits_since: u64,
    /// When it was first claimed.
    pub(super) claimed_at: Option<u64>,
    /// Whether it ran from its beginning.
    pub(super) begun: bool,
    /// The process that stored it.
    pub(super) life: u32,
    /// When the engine was told that it is stored.
    pub(super) told_at: Option<u64>,
    /// The highest revision that anybody was shown.
    pub(super) highest: Revision,
}

/// A running attempt, as the application knows it. It was last heard of not
/// before `lower` and not after `upper`.
pub(super) struct Run {
    /// The process that has it.
    pub(super) life: u32,
    pub(super) lower: u64,
    pub(super) upper: u64,
    /// Whether `error_timeout` may rule, and surely does.
    pub(super) may_rule: bool,
    pub(super) rules: bool,
}

impl Ledger {
    pub(super) fn trouble(&mut self, now: u64) {
        self.trouble_at = now;
    }

    /// The engine is told what was stored.
    pub(super) fn told(&mut self, now: u64) {
        for id in std::mem::take(&mut self.untold) {
            if let Some(known) = self.jobs.get_mut(&id) {
                known.told_at.get_or_insert(now);
            }
        }
    }

    /// Whether a Start like this job's was under way while the job was on its way to
    /// the tables.
    pub(super) fn came_beside(&self, known: &Known) -> bool {
        let asked = self.asked.get(&known.identity).into_iter().flatten();
        known.begun && known.told_at.is_none_or(|told| asked.into_iter().any(|at| *at <= told))
    }

    pub(super) fn process_ended(&mut self, now: u64) {
        self.trouble(now);
        self.open.clear();
        self.untold.clear();
    }

    /// The attempt was heard of between these times, or may have been.
    pub(super) fn heard(&mut self, id: JobId, attempt: u32, from: u64, to: u64, surely: bool) {
        if let Some(run) = self.runs.get_mut(&(id, attempt)) {
            run.upper = run.upper.max(to);
            if surely {
                run.lower = run.lower.max(from);
            }
        }
    }

    /// The attempt's silence is judged by `error_timeout` from now on.
    pub(super) fn ruled(&mut self, id: JobId, attempt: u32, surely: bool) {
        if let Some(run) = self.runs.get_mut(&(id, attempt)) {
            run.may_rule = true;
            run.rules |= surely;
        }
    }

    /// Counts slots anew; what is wrong with them.
    pub(super) fn count_slots(&mut self, world: &World, tables: &Tables) -> Vec<String> {
        let mut faults = Vec::new();
        for (number, slots) in world.plan.slots.iter().enumerate() {
            let target = super::plan::Plan::target(number);
            let running = tables.jobs.values().filter(|job| job.state == 3 && job.target == target);
            let mut busy: BTreeSet<Vec<u8>> = running.map(|job| job.id.clone()).collect();
            let open = self.open.iter().filter(|(_, open)| **open == target);
            busy.extend(open.map(|((_, id, _), _)| id.to_bytes().to_vec()));
            if busy.len() > *slots {
                faults.push(format!("{} slots of {target} are taken, of {slots}", busy.len()));
            }
            let is_full = busy.len() >= *slots;
            if is_full || self.full.contains(&target) {
                self.full_at.insert(target.clone(), world.now());
            }
            if is_full {
                self.full.insert(target);
            } else {
                self.full.remove(&target);
            }
        }
        faults
    }

    pub(super) fn full_at(&self, target: &str) -> u64 {
        self.full_at.get(target).copied().unwrap_or(0)
    }
}

impl World {
    /// What the tables say of a job now.
    pub(super) fn row(&self, id: JobId) -> Option<model::JobModel> {
        model::lock(&self.disk).jobs.get(id.to_bytes().as_slice()).cloned()
    }

    pub(super) fn is_gone(&self, id: JobId) -> bool {
        lock(&self.ledger).gone.contains(&id)
    }

    /// The highest revision that anybody was shown, and nobody may be shown less.
    pub(super) fn highest(&self, id: JobId) -> Option<Revision> {
        let ledger = lock(&self.ledger);
        let told = !ledger.untold.contains(&id);
        ledger.jobs.get(&id).filter(|_| told).map(|known| known.highest)
    }

    /// Somebody was shown a job. `floor` is the highest revision that was shown
    /// to anybody before this one asked.
    pub(super) fn saw(&self, who: &str, record: &Record, text: bool, floor: Option<Revision>) {
        let (id, revision) = (record.id, record.job.revision);
        let state = record.job.state_name();
        let about = || format!("{who} was shown {id} {state} revision {:x}", revision.get());
        self.note(about);
        let mut faults = Vec::new();
        let mut fault = |what: String| faults.push(format!("{}: {what}", about()));
        if floor.is_some_and(|floor| revision < floor) {
            fault(format!("after {:x} was shown", floor.map_or(0, Revision::get)));
        }
        match self.row(id) {
            None if self.is_gone(id) => {}
            None => fault("it is not in the tables".into()),
            Some(row) => {
                let stored = Revision::from_stored(row.revision);
                if stored.epoch() < revision.epoch() || i64::from(record.job.attempt) > row.attempt {
                    fault(format!("before it was durable: the row has {:x}", stored.get()));
                }
                if state.is_final() && (stored != revision || row.state != i64::from(state.number())) {
                    fault(format!("the row has state {} and revision {:x}", row.state, stored.get()));
                }
                if record.job.cancel_requested && row.cancel_requested == 0 {
                    fault("its cancel is not durable".into());
                }
            }
        }
        let mut ledger = lock(&self.ledger);
        ledger.count.frames += 1;
        if let Some(known) = ledger.jobs.get_mut(&id) {
            known.highest = known.highest.max(revision);
        }
        for with_text in [false, true] {
            if with_text && !text {
                continue;
            }
            let now = content(record, with_text);
            let first = ledger.shown.entry((id, revision, with_text)).or_insert_with(|| now.clone());
            if *first != now {
                fault(format!("another content: {now} instead of {first}"));
            }
        }
        drop(ledger);
        faults.into_iter().for_each(|what| self.fault(what));
    }
}

/// All that callers are shown of a revision.
fn content(record: &Record, text: bool) -> String {
    let job = &record.job;
    if text {
        return format!("{:?} {} {:?}", job.text.as_str(), job.text.written(), job.output);
    }
    format!(
        "{:?} attempt {} progress {} {:?} due {} started {:?} updated {} ended {:?} cancel {} {:?} merged {}",
        job.state_name(),
        job.attempt,
        job.progress,
        job.detail,
        job.scheduled_at,
        job.started_at,
        job.updated_at,
        job.ended_at(),
        job.cancel_requested,
        job.failure,
        record.merged_count,
    )
}

/// Of a stored number.
pub(super) fn state_of(state: i64) -> StateName {
    i16::try_from(state).ok().and_then(StateName::from_number).expect("a state")
}
