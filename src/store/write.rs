//! What is written, and how it becomes rows.

use super::{
    Error,
    entity::{attempt, job, job_label, job_request, job_text},
    payload, row,
};
use crate::job::{Failure, JobId, Payload, Record, Revision, State};
use crate::secret::{Keyring, seal};

/// A job that begins.
#[derive(Debug, Clone)]
pub struct New {
    /// The job.
    pub record: Record,
    /// What is sealed of it.
    pub payload: Payload,
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
}

/// What became of a write that the database took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable.
    Done,
    /// Nothing was written: the revision is not `from` any more, or the job is
    /// gone.
    Lost,
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
    pub node: String,
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
    },
    Update {
        from: i64,
        job: job::Model,
        text: Option<job_text::Model>,
        attempt: Option<attempt::Model>,
    },
}

impl Rows {
    /// Seals what is sealed, with the first of `keys` and `nonce`.
    pub(super) fn of(write: Write, node: &str, keys: &Keyring, nonce: [u8; 24]) -> (JobId, Self) {
        match write {
            Write::Insert(new) => {
                let New { record, payload } = *new;
                let id = record.id.to_bytes();
                let root = keys.current();
                let sealed = seal::seal(root, &id, &payload::encode(&payload), nonce);
                let labels = record.spec.labels.iter().map(|(name, value)| job_label::Model {
                    job_id: id.to_vec(),
                    name: name.clone(),
                    value: value.clone(),
                    created_at: record.created_at,
                });
                let rows = Self::Insert {
                    job: row::job(&record, owner(&record, node)),
                    request: row::request(&record, root.id(), sealed),
                    labels: labels.collect(),
                    text: row::text(&record),
                };
                (record.id, rows)
            }
            Write::Update(update) => {
                let Update { from, record, text, attempt } = *update;
                let rows = Self::Update {
                    from: from.stored(),
                    job: row::job(&record, owner(&record, node)),
                    text: if text { row::text(&record) } else { None },
                    attempt: attempt.map(|attempt| row::attempt(record.id, attempt)),
                };
                (record.id, rows)
            }
        }
    }

    /// How much memory it takes, roughly: what may be large.
    pub(super) fn bytes(&self) -> usize {
        let (request, text) = match self {
            Self::Insert { request, text, .. } => (request.sealed.len() + request.spec.len(), text),
            Self::Update { text, .. } => (0, text),
        };
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        request + text.as_ref().map_or(0, |text| length(&text.text) + length(&text.result))
    }
}

/// A running job has one owner, any other none.
fn owner(record: &Record, node: &str) -> Option<String> {
    matches!(record.job.state, State::Running(_)).then(|| node.to_owned())
}
