//! Every transaction is looked at as it is committed: what must never be in the
//! tables, whatever was shown or acknowledged of it.

use super::{
    ledger::{Known, Ledger, Run, state_of},
    world::{Life, World, lock},
};
use crate::{
    job::{JobId, MergeClass, Reason, Revision},
    store::model::{JobModel, Tables},
};
use std::sync::Arc;

/// How much later than it should something may be noticed where nothing is in
/// the way, milliseconds; and how long a transaction may take besides.
const LATE: u64 = 1_000;
const SLACK: u64 = 300;

/// The label that names the caller and its idempotency key.
pub(super) const KEY: &str = "key";

struct Audit<'a> {
    world: &'a World,
    life: &'a Life,
    tables: &'a Tables,
    ledger: &'a mut Ledger,
    now: u64,
    faults: Vec<String>,
}

pub(super) fn committed(
    world: &World,
    life: &Arc<Life>,
    tables: &Tables,
    touched: &[(Vec<u8>, Option<JobModel>)],
) {
    let mut ledger = lock(&world.ledger);
    ledger.count.commits += 1;
    let (now, faults) = (world.now(), Vec::new());
    let mut audit = Audit { world, life, tables, ledger: &mut ledger, now, faults };
    for (bytes, before) in touched {
        let id = JobId::from_bytes(bytes.as_slice().try_into().expect("an id"));
        audit.ledger.untold.insert(id);
        match (before, tables.jobs.get(bytes)) {
            (None, None) => {}
            (Some(before), None) => audit.erased(id, before),
            (None, Some(after)) => audit.made(id, after),
            (Some(before), Some(after)) if before == after => {}
            (Some(before), Some(after)) => audit.changed(id, before, after),
        }
    }
    let mut faults = audit.faults;
    faults.extend(ledger.count_slots(world, tables));
    drop(ledger);
    faults.into_iter().for_each(|fault| world.fault(fault));
}

/// Whether identical Starts may still join.
fn is_open(class: Option<MergeClass>, job: &JobModel) -> bool {
    match class {
        Some(MergeClass::Pending) => job.attempt == 0 && job.state < 3,
        Some(MergeClass::Active) => job.state < 4,
        None => false,
    }
}

/// What callers are shown of a row, but for its revision and who joined.
fn visible(job: &JobModel) -> impl PartialEq {
    let detail = (job.done, job.total, job.unit.clone(), job.stage.clone());
    let times = (job.scheduled_at, job.started_at, job.updated_at, job.ended_at);
    let failure = (job.failure_reason, job.failure_message.clone(), job.failure_status);
    (job.state, job.attempt, job.progress, job.cancel_requested, detail, times, failure)
}

impl Audit<'_> {
    fn fault(&mut self, id: JobId, what: impl std::fmt::Display) {
        self.faults.push(format!("{id}: {what}"));
    }

    fn erased(&mut self, id: JobId, before: &JobModel) {
        self.world.note(|| format!("{id} is erased"));
        if before.state < 4 {
            self.fault(id, "erased, and it had not ended");
        }
        self.ledger.gone.insert(id);
    }

    fn made(&mut self, id: JobId, job: &JobModel) {
        let Some(spec) = self.tables.spec(id) else { return self.fault(id, "it has no request") };
        self.world.note(|| format!("{id} is made: {} {}", state_of(job.state), spec.display_name));
        if job.state == 2 && job.scheduled_at > job.created_at {
            self.fault(id, format_args!("queued before it is due: {job:?}"));
        }
        let identity = spec.display_name.clone();
        let twins =
            self.ledger.jobs.iter().filter(|(other, known)| **other != id && known.identity == identity);
        let open = |(other, known): &(&JobId, &Known)| {
            let row = self.tables.jobs.get(other.to_bytes().as_slice());
            row.is_some_and(|row| is_open(known.class.filter(|_| spec.merge == known.class), row))
        };
        if let Some((twin, _)) = twins.filter(|_| spec.merge.is_some()).find(open) {
            let what = format!("made, though {twin} is identical and open");
            self.fault(id, what);
        }
        // Every Start like this was asked before that one was stored: so was this one,
        // which should have joined it, unless it is a repeat or had to wait for room in
        // the queue.
        let asked = self.ledger.asked.get(&identity).into_iter().flatten();
        let (first, last) = asked.fold((u64::MAX, 0), |(first, last), at| (first.min(*at), last.max(*at)));
        let beside = |(_, known): &(&JobId, &Known)| {
            let stored = known.claimed_at.filter(|_| known.begun && known.life == self.life.number);
            known.identity == identity && known.class == spec.merge && stored.is_some_and(|at| last < at)
        };
        let in_time = self.world.plan.queue > 8 && self.world.plan.hang_ups == 0;
        let pending = spec.merge == Some(MergeClass::Pending) && !self.tables.is_run_again(id);
        if in_time
            && pending
            && self.ledger.trouble_at < first
            && let Some((twin, _)) = self.ledger.jobs.iter().find(beside)
        {
            let what = format!("made, though {twin} was on its way when it came");
            self.fault(id, what);
        }
        // A job that runs another one again has its labels, and a key of its own.
        let key = spec.labels.get(KEY).filter(|_| !self.tables.is_run_again(id)).cloned();
        let jobs = self.ledger.jobs.iter().filter(|(other, _)| !self.ledger.gone.contains(other));
        let mut same = jobs.filter(|(_, known)| key.is_some() && known.key == key);
        if let Some((other, _)) = same.next() {
            let what = format!("made for {key:?}, as was {other}");
            self.fault(id, what);
        }
        let known = Known {
            key,
            identity,
            class: spec.merge,
            rules: (*spec.rules).clone(),
            joins: 0,
            cancelled: false,
            waits_since: self.now,
            claimed_at: None,
            begun: job.state == 3,
            life: self.life.number,
            told_at: None,
            highest: Revision::default(),
        };
        self.ledger.jobs.insert(id, known);
        if job.state == 3 {
            self.begun(id, job);
        }
    }

    /// It runs from its beginning.
    fn begun(&mut self, id: JobId, job: &JobModel) {
        if job.attempt != 1 || job.started_at.is_none() || job.scheduled_at > job.created_at {
            self.fault(id, format_args!("begun as {job:?}"));
        }
        if !self.tables.attempts.contains_key(&(id.to_bytes().to_vec(), 1)) {
            self.fault(id, "begun without a row for its attempt");
        }
        // Who has waited for a slot long enough to be known is before it.
        let long_ago = self.now.saturating_sub(3 * LATE);
        let waits = |(other, known): &(&JobId, &Known)| {
            let row = self.tables.jobs.get(other.to_bytes().as_slice());
            let row = row.filter(|row| row.state == 2 && row.target == job.target);
            row.is_some() && known.waits_since.max(self.ledger.trouble_at) < long_ago
        };
        if let Some((other, _)) = self.ledger.jobs.iter().find(waits) {
            let what = format!("begun, though {other} has waited longer");
            self.fault(id, what);
        }
        self.runs(id, job);
    }

    /// An attempt begins.
    fn runs(&mut self, id: JobId, job: &JobModel) {
        let Some(known) = self.ledger.jobs.get_mut(&id) else { return };
        known.claimed_at.get_or_insert(self.now);
        let rules = known.rules.error_timeout_given;
        let lower = self.now.saturating_sub(LATE);
        let run = Run { life: self.life.number, lower, upper: self.now, may_rule: rules, rules };
        self.ledger.runs.insert((id, small(job.attempt)), run);
    }

    fn changed(&mut self, id: JobId, before: &JobModel, after: &JobModel) {
        let (from, to) = (Revision::from_stored(before.revision), Revision::from_stored(after.revision));
        self.world.note(|| {
            format!(
                "{id} is stored: {} attempt {} revision {:x}",
                state_of(after.state),
                after.attempt,
                to.get()
            )
        });
        if before.state >= 4 {
            self.fault(id, format_args!("changed after its end: {before:?} to {after:?}"));
        }
        // What nobody is shown is stored under the same revision; of a running job
        // also that one more has joined, which the process will show itself.
        if to < from || (to == from && (before.state != 3 || visible(before) != visible(after))) {
            self.fault(id, format_args!("revision {:x} after {:x}", to.get(), from.get()));
        }
        if after.attempt < before.attempt || after.attempt > before.attempt + 1 {
            self.fault(id, format_args!("attempt {} after {}", after.attempt, before.attempt));
        }
        if after.cancel_requested < before.cancel_requested {
            self.fault(id, "its cancel was forgotten");
        }
        if after.merged_count < before.merged_count {
            self.fault(id, "fewer have joined than before");
        }
        if after.state == 2 && before.state == 3 && after.scheduled_at > after.updated_at {
            self.fault(id, format_args!("queued before it is due: {after:?}"));
        }
        let owner = self.ledger.runs.get(&(id, small(before.attempt))).map(|run| run.life);
        let foreign = owner.is_some_and(|owner| owner != self.life.number);
        let joined = after.merged_count > before.merged_count;
        if before.state == 3 && foreign && !joined && to.epoch() == from.epoch() {
            self.fault(id, "written by another process under the same epoch");
        }
        self.joined(id, before, after);
        self.attempts(id, after);
        if after.attempt == before.attempt + 1 {
            self.claimed(id, before, after);
        } else if before.state == 3 && after.state == 3 && to.epoch() > from.epoch() {
            let life = self.life.number;
            let run = Run { life, lower: self.life.began, upper: self.now, may_rule: true, rules: true };
            self.ledger.runs.insert((id, small(after.attempt)), run);
        } else if before.state == 3 && after.state != 3 {
            self.attempt_ended(id, after);
        } else if before.state < 3 {
            self.waited(id, before, after);
        }
        if after.state < 3
            && (after.state, after.scheduled_at) != (before.state, before.scheduled_at)
            && let Some(known) = self.ledger.jobs.get_mut(&id)
        {
            known.waits_since = self.now;
        }
    }

    fn joined(&mut self, id: JobId, before: &JobModel, after: &JobModel) {
        let known = self.ledger.jobs.get(&id);
        let class = known.and_then(|known| known.class);
        let beside = known.is_some_and(|known| before.attempt == 1 && self.ledger.came_beside(known));
        if after.merged_count > before.merged_count && !is_open(class, before) && !beside {
            self.fault(id, "joined, though it was not open any more");
        }
    }

    /// Rows of earlier attempts stay as they were, and so does that of one that is
    /// over.
    fn attempts(&mut self, id: JobId, after: &JobModel) {
        let bytes = id.to_bytes().to_vec();
        let rows = self.tables.attempts.range((bytes.clone(), 0)..=(bytes, i64::MAX));
        for ((_, attempt), row) in rows {
            let key = (id, small(*attempt));
            match self.ledger.over.get(&key) {
                Some(over) if over != row => {
                    self.faults
                        .push(format!("{id}: attempt {attempt} changed after its end: {over:?} to {row:?}"));
                }
                Some(_) => {}
                None if row.ended_at.is_some() => {
                    self.ledger.over.insert(key, row.clone());
                }
                None if *attempt < after.attempt || after.state != 3 => {
                    self.faults.push(format!("{id}: attempt {attempt} has no end, and is over"));
                }
                None => {}
            }
        }
        if let Some(text) = self.tables.texts.get(id.to_bytes().as_slice())
            && text.attempt > after.attempt
        {
            self.fault(id, "text of an attempt that was not claimed");
        }
    }

    fn claimed(&mut self, id: JobId, before: &JobModel, after: &JobModel) {
        let attempt = small(after.attempt);
        if before.state >= 3 || after.state != 3 {
            self.fault(
                id,
                format_args!("claimed as {} from {}", state_of(after.state), state_of(before.state)),
            );
        }
        let full_at = self.ledger.full_at(&after.target);
        let trouble_at = self.ledger.trouble_at;
        let Some(known) = self.ledger.jobs.get(&id) else { return };
        let (since, most) = (known.waits_since, known.rules.max_attempts);
        // One that is queued was due then, and the clock may have been set since.
        if before.state == 1 && before.scheduled_at > self.world.highest_wall(since) {
            self.fault(
                id,
                format_args!("claimed {} before it was due", before.scheduled_at - self.world.wall()),
            );
        }
        if let Some(message) = self.beyond(id, attempt, most) {
            self.fault(id, message);
        }
        // A free slot and nothing in the way: it should not have waited. After a
        // failure the writer and the dispatcher each look again within a second.
        let could = since.max(full_at).max(trouble_at);
        let limited = self.world.plan.spacing.is_some();
        if before.state == 2 && !limited && self.now > could + 3 * LATE {
            self.fault(id, format_args!("claimed {} ms after it could have been", self.now - could));
        }
        self.runs(id, after);
    }

    /// One attempt more than were asked for, at most, and only for one that a
    /// process lost before it was sent.
    fn beyond(&self, id: JobId, attempt: u32, most: u32) -> Option<String> {
        if attempt <= most {
            return None;
        }
        let last = self.ledger.over.get(&(id, attempt - 1));
        let lost = last.is_some_and(|row| row.sent_at.is_none() && row.reported == 0);
        (attempt > most + 1 || !lost).then(|| format!("attempt {attempt} of {most}"))
    }

    /// It ended, or waits for the next one.
    fn attempt_ended(&mut self, id: JobId, after: &JobModel) {
        let attempt = small(after.attempt);
        let key = (id, attempt);
        let row = self.tables.attempts.get(&(id.to_bytes().to_vec(), after.attempt));
        let number = row.and_then(|row| row.failure_reason).and_then(|number| i16::try_from(number).ok());
        let silent = matches!(number.and_then(Reason::from_number), Some(Reason::Stalled | Reason::Lost));
        let sent = row.is_some_and(|row| row.sent_at.is_some() || row.reported != 0);
        let Some(known) = self.ledger.jobs.get(&id) else { return };
        let deadline = number.and_then(Reason::from_number) == Some(Reason::Deadline);
        if let (true, Some(claimed_at), Some(span)) = (deadline, known.claimed_at, known.rules.max_duration)
            && !self.world.was_set(claimed_at.saturating_sub(LATE))
            && self.now + LATE < claimed_at + span
        {
            let early = claimed_at + span - self.now;
            return self.fault(id, format_args!("max_duration was over {early} ms early"));
        }
        if after.state < 3 && small(after.attempt) >= known.rules.max_attempts && sent {
            self.fault(id, "it waits for an attempt that it does not have");
        }
        let Some(known) = self.ledger.jobs.get(&id) else { return };
        let Some(run) = self.ledger.runs.get(&key) else { return };
        if !silent || after.state == 6 || (number == Some(Reason::Lost.number()) && !sent) {
            return;
        }
        let span = |rules| if rules { known.rules.error_timeout } else { self.world.plan.response_timeout };
        let spans = [span(run.may_rule), span(run.rules)];
        let (least, most) = (spans.into_iter().min().unwrap_or(0), spans.into_iter().max().unwrap_or(0));
        let (early, due) = (run.lower + least, run.upper + most);
        if self.now < early {
            self.fault(id, format_args!("attempt {attempt} was given up {} ms early", early - self.now));
        } else if self.now > due + LATE + SLACK && self.ledger.trouble_at < due {
            let late = self.now - due;
            self.fault(id, format_args!("attempt {attempt} was given up {late} ms late"));
        }
    }

    /// A waiting job goes on, or is given up.
    fn waited(&mut self, id: JobId, before: &JobModel, after: &JobModel) {
        let Some(since) = self.ledger.jobs.get(&id).map(|known| known.waits_since) else { return };
        let at = match (before.state, after.state) {
            (1, 2) => Some(before.scheduled_at),
            (_, 5) => before.give_up_at,
            _ => return,
        };
        let Some(at) = at else { return self.fault(id, "given up, and nothing said so") };
        if at > self.world.highest_wall(since) {
            return self.fault(id, format_args!("{} early: {after:?}", at - self.world.wall()));
        }
        let late = self.world.wall() - at;
        let due = self.now.saturating_sub(u64::try_from(late).unwrap_or(0)).max(since);
        let undisturbed = !self.world.was_set(due.saturating_sub(LATE)) && self.ledger.trouble_at < due;
        if undisturbed && self.now > due + LATE + SLACK {
            self.fault(id, format_args!("it waited {} ms longer than it should", self.now - due));
        }
    }
}

fn small(number: i64) -> u32 {
    u32::try_from(number).expect("small")
}

/// Once all is quiet: what was acknowledged is there, and everything has ended.
pub(super) fn at_the_end(world: &World) {
    let tables = crate::store::model::lock(&world.disk).clone();
    let ledger = lock(&world.ledger);
    let mut faults = Vec::new();
    for (id, known) in &ledger.jobs {
        let Some(row) = tables.jobs.get(id.to_bytes().as_slice()) else {
            if !ledger.gone.contains(id) {
                faults.push(format!("{id}: it was acknowledged, and is not there"));
            }
            continue;
        };
        if row.state < 4 {
            faults.push(format!("{id}: it has not ended: {row:?}"));
        }
        if known.cancelled && !matches!(row.state, 4 | 6) {
            faults.push(format!("{id}: its cancel was acknowledged, and it is {}", state_of(row.state)));
        }
        let joined = u32::try_from(row.merged_count).expect("small");
        let most = known.joins + ledger.unknown.get(&known.identity).copied().unwrap_or(0);
        if joined < known.joins || joined > most {
            faults.push(format!("{id}: {joined} have joined, and {} to {most} should", known.joins));
        }
    }
    drop(ledger);
    faults.into_iter().for_each(|fault| world.fault(fault));
}
