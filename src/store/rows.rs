//! Between a record and its rows.

use super::{
    AttemptRow, Ended, Error,
    entity::{attempt, job, job_label, job_request, job_text},
};
use crate::job::{
    Detail, Failure, Job, JobId, Output, Payload, Reason, Record, Revision, Spec, State, StateName,
    state::Run, text::Text,
};
use sea_orm::{ActiveValue::Set, Value};
use std::sync::Arc;

/// What a body takes in a row: headers and type, then its bytes.
pub(super) fn pack(payload: &Payload) -> Result<Vec<u8>, Error> {
    let head = serde_json::to_vec(&(&payload.headers, &payload.content_type))
        .map_err(|error| Error::Refused(error.to_string()))?;
    let mut bytes = Vec::with_capacity(4 + head.len() + payload.body.len());
    bytes.extend(u32::try_from(head.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(head);
    bytes.extend_from_slice(&payload.body);
    Ok(bytes)
}

pub(super) fn unpack(bytes: &[u8]) -> Result<Payload, Error> {
    let corrupt = || Error::Corrupt("job_request.sealed".into());
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(corrupt)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| corrupt())?;
    let (head, body) = rest.split_at_checked(length).ok_or_else(corrupt)?;
    let (headers, content_type) = serde_json::from_slice(head).map_err(|_| corrupt())?;
    Ok(Payload { headers, content_type, body: body.to_vec().into() })
}

fn unsigned(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The columns of a job that change, in one order for every statement.
pub(super) const CHANGING: [&str; 19] = [
    "state",
    "revision",
    "attempt",
    "owner",
    "progress",
    "done",
    "total",
    "unit",
    "stage",
    "scheduled_at",
    "started_at",
    "updated_at",
    "changed_at",
    "ended_at",
    "give_up_at",
    "cancel_requested",
    "failure_reason",
    "failure_message",
    "failure_status",
];

/// Their values.
pub(super) fn changing(job: &Job, owner: Option<&str>) -> [Value; 19] {
    let detail = job.detail.as_ref();
    let failure = job.failure.as_ref();
    [
        i64::from(job.state_name().number()).into(),
        job.revision.stored().into(),
        i64::from(job.attempt).into(),
        owner.map(str::to_owned).into(),
        i64::from(job.progress).into(),
        detail.map(|detail| unsigned(detail.done)).into(),
        detail.map(|detail| unsigned(detail.total)).into(),
        detail.map(|detail| detail.unit.clone()).into(),
        detail.map(|detail| detail.stage.clone()).into(),
        job.scheduled_at.into(),
        job.started_at.into(),
        job.updated_at.into(),
        job.updated_at.into(),
        job.ended_at.into(),
        job.give_up_at().into(),
        i64::from(job.cancel_requested).into(),
        failure.map(|failure| i64::from(failure.reason.number())).into(),
        failure.map(|failure| failure.message.clone()).into(),
        failure.and_then(|failure| failure.http_status).map(i64::from).into(),
    ]
}

/// The job's row at its start.
pub(super) fn job_row(record: &Record) -> job::ActiveModel {
    let job = &record.job;
    let failure = job.failure.as_ref();
    job::ActiveModel {
        id: Set(record.id.to_bytes().to_vec()),
        state: Set(job.state_name().number().into()),
        revision: Set(job.revision.stored()),
        attempt: Set(job.attempt.into()),
        owner: Set(None),
        progress: Set(job.progress.into()),
        done: Set(None),
        total: Set(None),
        unit: Set(None),
        stage: Set(None),
        estimated_end_at: Set(None),
        created_at: Set(record.created_at),
        scheduled_at: Set(job.scheduled_at),
        started_at: Set(job.started_at),
        updated_at: Set(job.updated_at),
        changed_at: Set(job.updated_at),
        ended_at: Set(job.ended_at),
        give_up_at: Set(job.give_up_at()),
        cancel_requested: Set(job.cancel_requested.into()),
        failure_reason: Set(failure.map(|failure| failure.reason.number().into())),
        failure_message: Set(failure.map(|failure| failure.message.clone())),
        failure_status: Set(failure.and_then(|failure| failure.http_status).map(i64::from)),
        merged_count: Set(record.merged_count.into()),
        merge_key: Set(None),
        target: Set(record.spec.target.clone()),
        priority: Set(record.spec.priority.into()),
        created_by: Set(record.created_by.to_string()),
        route: Set(record.spec.route.clone()),
    }
}

pub(super) fn labels(record: &Record) -> impl Iterator<Item = job_label::ActiveModel> + '_ {
    record.spec.labels.iter().map(|(name, value)| job_label::ActiveModel {
        job_id: Set(record.id.to_bytes().to_vec()),
        name: Set(name.clone()),
        value: Set(value.clone()),
    })
}

/// The request's row; `sealed` is its payload.
pub(super) fn request_row(
    record: &Record,
    root: [u8; 8],
    sealed: Vec<u8>,
) -> Result<job_request::ActiveModel, Error> {
    let spec = serde_json::to_string(&*record.spec).map_err(|error| Error::Refused(error.to_string()))?;
    Ok(job_request::ActiveModel {
        job_id: Set(record.id.to_bytes().to_vec()),
        spec: Set(spec),
        root_id: Set(Some(root.to_vec())),
        sealed: Set(Some(sealed)),
        credentials: Set(None),
        retry_of: Set(record.retry_of.map(|id| id.to_bytes().to_vec())),
    })
}

pub(super) fn text_row(record: &Record) -> job_text::ActiveModel {
    let (text, output) = (&record.job.text, record.job.output.as_ref());
    job_text::ActiveModel {
        job_id: Set(record.id.to_bytes().to_vec()),
        text: Set(Some(text.as_str().as_bytes().to_vec())),
        text_written: Set(unsigned(text.written())),
        text_truncated: Set(text.truncated().into()),
        result_type: Set(output.map(|output| output.content_type.clone())),
        result: Set(output.map(|output| output.data.clone())),
        result_truncated: Set(output.is_some_and(|output| output.truncated).into()),
    }
}

pub(super) fn attempt_row(id: JobId, row: &AttemptRow) -> attempt::ActiveModel {
    let failure = row.failure.as_ref();
    attempt::ActiveModel {
        job_id: Set(id.to_bytes().to_vec()),
        attempt: Set(row.attempt.into()),
        node: Set(row.node.clone()),
        claimed_at: Set(row.claimed_at),
        sent_at: Set(row.sent_at),
        reported: Set(row.reported.into()),
        ended_at: Set(row.ended_at),
        http_status: Set(row.http_status.map(i64::from)),
        failure_reason: Set(failure.map(|failure| failure.reason.number().into())),
        failure_message: Set(failure.map(|failure| failure.message.clone())),
        last_sequence: Set(unsigned(row.sequence)),
        end_sequence: Set(row.ended_by.as_ref().and_then(|ended| ended.sequence).map(unsigned)),
        end_hash: Set(row.ended_by.as_ref().map(|ended| ended.hash.to_vec())),
    }
}

fn failure(reason: Option<i64>, message: Option<String>, status: Option<i64>) -> Option<Failure> {
    let reason = reason.and_then(|number| i16::try_from(number).ok()).and_then(Reason::from_number)?;
    let http_status = status.and_then(|status| u16::try_from(status).ok());
    Some(Failure { reason, message: message.unwrap_or_default(), http_status })
}

pub(super) fn read_attempt(row: attempt::Model) -> Result<AttemptRow, Error> {
    let corrupt = |what: &str| Error::Corrupt(format!("attempt.{what}"));
    let hash = row.end_hash.map(|hash| hash.try_into().map_err(|_| corrupt("end_hash"))).transpose()?;
    let sequence = row.end_sequence.and_then(|sequence| u64::try_from(sequence).ok());
    let http_status = row.http_status.and_then(|status| u16::try_from(status).ok());
    Ok(AttemptRow {
        attempt: u32::try_from(row.attempt).map_err(|_| corrupt("attempt"))?,
        node: row.node,
        claimed_at: row.claimed_at,
        sent_at: row.sent_at,
        reported: row.reported != 0,
        sequence: u64::try_from(row.last_sequence).map_err(|_| corrupt("last_sequence"))?,
        ended_at: row.ended_at,
        http_status,
        failure: failure(row.failure_reason, row.failure_message, row.http_status),
        ended_by: hash.map(|hash| Ended { sequence, hash }),
    })
}

/// The id in a column.
pub(super) fn id(bytes: &[u8]) -> Result<JobId, Error> {
    bytes.try_into().map(JobId::from_bytes).map_err(|_| Error::Corrupt("an id".into()))
}

/// A record from its rows.
pub(super) fn record(
    row: job::Model,
    request: job_request::Model,
    text: Option<job_text::Model>,
    attempt: Option<&attempt::Model>,
) -> Result<Record, Error> {
    let corrupt = |what: &str| Error::Corrupt(format!("job.{what}"));
    let spec: Spec = serde_json::from_str(&request.spec)
        .map_err(|error| Error::Corrupt(format!("job_request.spec: {error}")))?;
    let name = i16::try_from(row.state).ok().and_then(StateName::from_number);
    let state = match name.ok_or_else(|| corrupt("state"))? {
        StateName::Scheduled => State::Scheduled,
        StateName::Queued => State::Queued,
        StateName::Running => State::Running(run(attempt)),
        StateName::Succeeded => State::Succeeded,
        StateName::Failed => State::Failed,
        StateName::Cancelled => State::Cancelled,
    };
    let count = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
    let detail = row.done.is_some().then(|| Detail {
        done: count(row.done),
        total: count(row.total),
        unit: row.unit.unwrap_or_default(),
        stage: row.stage.unwrap_or_default(),
    });
    let (text, output) = text.map_or_else(|| Ok((Text::default(), None)), read_text)?;
    Ok(Record {
        id: id(&row.id)?,
        created_at: row.created_at,
        created_by: row.created_by.into(),
        retry_of: request.retry_of.as_deref().map(id).transpose()?,
        merged_count: u32::try_from(row.merged_count).map_err(|_| corrupt("merged_count"))?,
        job: Job {
            rules: Arc::clone(&spec.rules),
            state,
            revision: Revision::from_stored(row.revision),
            attempt: u32::try_from(row.attempt).map_err(|_| corrupt("attempt"))?,
            progress: u32::try_from(row.progress).map_err(|_| corrupt("progress"))?,
            detail,
            text,
            scheduled_at: row.scheduled_at,
            started_at: row.started_at,
            updated_at: row.updated_at,
            ended_at: row.ended_at,
            cancel_requested: row.cancel_requested != 0,
            failure: failure(row.failure_reason, row.failure_message, row.failure_status),
            output,
        },
        spec: Arc::new(spec),
    })
}

/// A run as the table knows it; what only a process knows is lost with it.
fn run(attempt: Option<&attempt::Model>) -> Run {
    Run {
        sent_at: attempt.and_then(|row| row.sent_at),
        reported: attempt.is_some_and(|row| row.reported != 0),
        connected: false,
        lost: false,
        sequence: attempt.and_then(|row| u64::try_from(row.last_sequence).ok()).unwrap_or(0),
        heard_at: 0,
        must_end_at: None,
        cancel_since: None,
        stop_delivered: false,
    }
}

fn read_text(row: job_text::Model) -> Result<(Text, Option<Output>), Error> {
    let kept = String::from_utf8(row.text.unwrap_or_default());
    let kept = kept.map_err(|_| Error::Corrupt("job_text.text".into()))?;
    let written = u64::try_from(row.text_written).unwrap_or(0);
    let output = row.result.map(|data| Output {
        content_type: row.result_type.unwrap_or_default(),
        data,
        truncated: row.result_truncated != 0,
    });
    Ok((Text::restored(kept, written, row.text_truncated != 0), output))
}
