//! What is written, and how it becomes rows.

use super::{
    Error,
    entity::{attempt, job, job_label, job_request, job_text, start_key},
    payload, row,
};
use crate::job::{Failure, JobId, Payload, Record, Revision, State};
use crate::secret::{Keyring, RootId, seal};
use std::{collections::HashSet, sync::Arc};

/// A job that begins.
#[derive(Debug, Clone)]
pub struct New {
    /// The job.
    pub record: Record,
    /// What is sealed of it.
    pub payload: Arc<Payload>,
    /// By what this one finds identical ones, and they find it unless it has begun.
    pub merge: Option<Merge>,
    /// By what a repeat of this Start is known.
    pub start_key: Option<StartKey>,
    /// The attempt that it begins with, if it is stored as one that runs.
    pub attempt: Option<AttemptRow>,
    /// An identical one that was on its way to the tables, to run at once, when this
    /// one came: it is joined, though it has begun when this one is stored.
    pub twin: Option<JobId>,
}

impl New {
    /// One that nothing else is known of.
    pub fn of(record: Record, payload: impl Into<Arc<Payload>>) -> Self {
        Self { record, payload: payload.into(), merge: None, start_key: None, attempt: None, twin: None }
    }
}

/// How a Start looks for an identical job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// Hash of what is identical.
    pub key: [u8; 32],
    /// Whether it joins what it finds; if not, it is refused.
    pub join: bool,
}

/// What a repeated Start is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartKey {
    /// Name of the caller's token; a key is the caller's own.
    pub caller: String,
    /// Hash of the key.
    pub key: [u8; 32],
    /// Hash of the whole request.
    pub request: [u8; 32],
}

/// A job that changed.
#[derive(Debug, Clone)]
pub struct Update {
    /// The stored revision: where there is another one, nothing is written.
    pub from: Revision,
    /// The job as it is now. What never changes of it is not written.
    pub record: Record,
    /// Whether text and output are written too.
    pub text: bool,
    /// The attempt as it is now; in the same transaction, and only with it.
    pub attempt: Option<AttemptRow>,
}

/// A write.
#[derive(Debug, Clone)]
pub enum Write {
    /// A job that begins.
    Insert(Box<New>),
    /// A job that changed.
    Update(Box<Update>),
    /// Final jobs that are erased; any other of these ids stays. At least one.
    Delete(Vec<JobId>),
    /// A job whose request is sealed anew, with the present root.
    Reseal(Box<Sealed>),
}

/// What was sealed of a job, opened.
#[derive(Clone)]
pub struct Sealed {
    /// The job.
    pub id: JobId,
    /// The root that it was sealed with: where that is another one now, nothing is
    /// written.
    pub from: RootId,
    pub(super) payload: Vec<u8>,
    pub(super) credentials: Option<Vec<u8>>,
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What became of a write that the database took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable.
    Done,
    /// Nothing was written: the revision is not `from` any more, or the job is
    /// gone.
    Lost,
    /// Nothing but a join was written: there is a job already.
    Existing(Existing),
}

/// Which job stands for one that was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// An identical one; it counts one more that joined it.
    Joined(JobId),
    /// An identical one, which keeps this one out.
    Taken(JobId),
    /// That of the same request with the same key.
    Same(JobId),
    /// That of another request with the same key.
    Other(JobId),
}

/// Told what became of a write, on the writer's task, right after the
/// transaction. It must be quick: every other write waits for it.
pub type Done = Box<dyn FnOnce(Result<Outcome, Error>) + Send>;

/// One attempt, as it is kept. Times in UTC milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// From 1.
    pub attempt: u32,
    /// The node that claimed it.
    pub node: Arc<str>,
    /// When it was claimed.
    pub claimed_at: i64,
    /// When the request was wholly written.
    pub sent_at: Option<i64>,
    /// Whether the action ever reported.
    pub reported: bool,
    /// The highest sequence applied.
    pub sequence: u64,
    /// When it ended.
    pub ended_at: Option<i64>,
    /// The action's HTTP status.
    pub http_status: Option<u16>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The report that ended it, if one did.
    pub ended_by: Option<Ended>,
}

impl AttemptRow {
    /// One that begins.
    pub fn claimed(attempt: u32, node: Arc<str>, claimed_at: i64) -> Self {
        Self {
            attempt,
            node,
            claimed_at,
            sent_at: None,
            reported: false,
            sequence: 0,
            ended_at: None,
            http_status: None,
            failure: None,
            ended_by: None,
        }
    }
}

/// By what a repeat of the report that ended an attempt is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its sequence.
    pub sequence: Option<u64>,
    /// Its hash, made by whoever took it.
    pub hash: [u8; 32],
}

/// A write as rows: made by whoever writes, so that the writer's task has only
/// to hand them on.
#[derive(Debug, Clone)]
pub(super) enum Rows {
    Insert {
        job: job::Model,
        request: job_request::Model,
        labels: Vec<job_label::Model>,
        text: Option<job_text::Model>,
        start_key: Option<start_key::Model>,
        join: bool,
        /// The merge key by which it finds others, where none finds it by that.
        sought: Option<Vec<u8>>,
        attempt: Option<Box<attempt::Model>>,
        twin: Option<JobId>,
    },
    Update {
        from: i64,
        job: job::Model,
        /// Nothing but what its action reported is new.
        progress: bool,
        /// No later Start joins it any more.
        closed: bool,
        /// Its credentials are not needed any more.
        wipe: bool,
        text: Option<job_text::Model>,
        attempt: Option<attempt::Model>,
    },
    Delete(Vec<Vec<u8>>),
    /// Of the request, what is sealed and by which root counts.
    Reseal {
        from: RootId,
        request: job_request::Model,
    },
}

impl Rows {
    /// Seals what is sealed, with the first of `keys` and `nonces`.
    pub(super) fn of(write: Write, node: &str, keys: &Keyring, nonces: [[u8; 24]; 2]) -> (JobId, Self) {
        match write {
            Write::Insert(new) => {
                let New { record, payload, merge, start_key, attempt, twin } = *new;
                let id = record.id.to_bytes();
                let key = merge.map(|merge| merge.key.to_vec());
                let closed = attempt.is_some() && record.is_closed();
                let (merge_key, sought) = if closed { (None, key) } else { (key, None) };
                let root = keys.current();
                let sealed = seal::seal(root, &id, &payload::encode(&payload), nonces[0]);
                let credentials = payload.credentials.as_ref().map(|credentials| {
                    let plain = payload::encode_credentials(credentials);
                    seal::seal(root, &payload::about_credentials(&id), &plain, nonces[1])
                });
                let labels = record.spec.labels.iter().map(|(name, value)| job_label::Model {
                    job_id: id.to_vec(),
                    name: name.clone(),
                    value: value.clone(),
                    created_at: record.created_at,
                });
                let rows = Self::Insert {
                    job: job::Model { merge_key, ..row::job(&record, owner(&record, node)) },
                    sought,
                    attempt: attempt.map(|attempt| Box::new(row::attempt(record.id, attempt))),
                    twin,
                    join: merge.is_some_and(|merge| merge.join),
                    start_key: start_key.map(|key| start_key::Model {
                        caller: key.caller,
                        key_hash: key.key.to_vec(),
                        job_id: id.to_vec(),
                        request_hash: key.request.to_vec(),
                    }),
                    request: row::request(&record, root.id(), sealed, credentials),
                    labels: labels.collect(),
                    text: row::text(&record),
                };
                (record.id, rows)
            }
            Write::Update(update) => {
                let Update { from, record, text, attempt } = *update;
                // Within an epoch a running job is changed by reports and a cancel alone.
                let progress = matches!(record.job.state, State::Running(_))
                    && record.job.revision.epoch() == from.epoch()
                    && !record.job.cancel_requested;
                let rows = Self::Update {
                    progress,
                    from: from.stored(),
                    wipe: record.spec.as_user && record.job.state_name().is_final(),
                    closed: record.spec.merge.is_some() && record.is_closed(),
                    job: row::job(&record, owner(&record, node)),
                    text: if text { row::text(&record) } else { None },
                    attempt: attempt.map(|attempt| row::attempt(record.id, attempt)),
                };
                (record.id, rows)
            }
            Write::Delete(ids) => {
                let first = ids.first().copied().unwrap_or(JobId::from_bytes([0; 16]));
                (first, Self::Delete(ids.iter().map(|id| id.to_bytes().to_vec()).collect()))
            }
            Write::Reseal(sealed) => {
                let Sealed { id, from, payload, credentials } = *sealed;
                let (root, bytes) = (keys.current(), id.to_bytes());
                let request = job_request::Model {
                    job_id: bytes.to_vec(),
                    retry_of: None,
                    route: String::new(),
                    spec: String::new(),
                    root_id: root.id().to_vec(),
                    sealed: seal::seal(root, &bytes, &payload, nonces[0]),
                    credentials: credentials.map(|plain| {
                        seal::seal(root, &payload::about_credentials(&bytes), &plain, nonces[1])
                    }),
                };
                (id, Self::Reseal { from, request })
            }
        }
    }

    /// By what a new job finds an identical one.
    pub(super) fn merge_key(&self) -> Option<&Vec<u8>> {
        match self {
            Self::Insert { job, sought, .. } => job.merge_key.as_ref().or(sought.as_ref()),
            Self::Update { .. } | Self::Delete(_) | Self::Reseal { .. } => None,
        }
    }

    /// That it is stored at this time: who looks for what changed of late looks for
    /// that, and what is changed may have waited long to be stored.
    pub(super) fn change_at(&mut self, now: i64) {
        if let Self::Insert { job, .. } | Self::Update { job, .. } = self {
            job.changed_at = job.updated_at.max(now);
        }
    }

    /// How much memory it takes, roughly: what may be large.
    pub(super) fn bytes(&self) -> usize {
        let (request, text) = match self {
            Self::Insert { request, text, .. } => (request.sealed.len() + request.spec.len(), text),
            Self::Update { text, .. } => (0, text),
            Self::Delete(_) => return 0,
            Self::Reseal { request, .. } => (request.sealed.len(), &None),
        };
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        request + text.as_ref().map_or(0, |text| length(&text.text) + length(&text.result))
    }
}

/// Whether two of these Starts are identical.
pub(super) fn has_twins(writes: &[Rows]) -> bool {
    let mut keys = HashSet::with_capacity(writes.len());
    writes.iter().filter_map(Rows::merge_key).any(|key| !keys.insert(key))
}

/// A running job has one owner, any other none.
fn owner(record: &Record, node: &str) -> Option<String> {
    matches!(record.job.state, State::Running(_)).then(|| node.to_owned())
}
