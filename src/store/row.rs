//! Between the domain and the rows, both ways.

use super::{
    Error,
    entity::{attempt, job, job_request, job_text},
    write::{AttemptRow, Ended},
};
use crate::job::run::{Cancel, Run};
use crate::job::text::Text;
use crate::job::{
    Detail, Failure, Job, JobId, Output, Reason, Record, Revision, Spec, State, StateName, Wall,
};
use crate::secret::RootId;
use std::sync::Arc;

/// What is kept of a message that comes from anywhere: as much as its column takes,
/// without the one character that PostgreSQL has no place for.
fn kept(message: &str) -> String {
    message.chars().take(4_096).map(|c| if c == '\0' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

pub(super) fn job(record: &Record, owner: Option<String>) -> job::Model {
    let job = &record.job;
    let (detail, failure) = (job.detail.as_deref(), job.failure.as_deref());
    job::Model {
        id: record.id.to_bytes().to_vec(),
        state: job.state_name().number().into(),
        revision: job.revision.stored(),
        attempt: job.attempt.into(),
        owner,
        progress: job.progress.into(),
        done: detail.map(|detail| detail.done.cast_signed()),
        total: detail.map(|detail| detail.total.cast_signed()),
        unit: detail.map(|detail| detail.unit.clone()),
        stage: detail.map(|detail| detail.stage.clone()),
        created_at: record.created_at,
        scheduled_at: job.scheduled_at,
        started_at: job.started_at.map(i64::from),
        updated_at: job.updated_at,
        changed_at: job.updated_at,
        ended_at: job.ended_at(),
        give_up_at: job.give_up_at(),
        cancel_requested: job.cancel_requested.into(),
        failure_reason: failure.map(|failure| failure.reason.number().into()),
        failure_message: failure.map(|failure| kept(&failure.message)),
        failure_status: failure.and_then(|failure| failure.http_status).map(Into::into),
        merged_count: record.merged_count.into(),
        merge_key: None,
        target: record.spec.target.to_string(),
        priority: record.spec.priority.into(),
        created_by: record.created_by.to_string(),
    }
}

/// Most take fewer bytes as JSON, besides their route and URL.
const SPEC: usize = 192;

fn spec(spec: &Spec) -> String {
    let mut json = Vec::with_capacity(SPEC + spec.route.len() + spec.url.len());
    // Fails only for maps whose keys are no text; a spec has none.
    let _ = serde_json::to_writer(&mut json, spec);
    String::from_utf8(json).unwrap_or_default()
}

pub(super) fn request(
    record: &Record,
    root: RootId,
    sealed: Vec<u8>,
    credentials: Option<Vec<u8>>,
) -> job_request::Model {
    job_request::Model {
        job_id: record.id.to_bytes().to_vec(),
        retry_of: record.retry_of.map(|id| id.to_bytes().to_vec()),
        route: record.spec.route.to_string(),
        spec: spec(&record.spec),
        root_id: root.to_vec(),
        sealed,
        credentials,
    }
}

/// None where there is nothing to keep. That of an earlier attempt may stay: it
/// is told by its number.
pub(super) fn text(record: &Record) -> Option<job_text::Model> {
    let Job { text, output, attempt, .. } = &record.job;
    if text.written() == 0 && output.is_none() {
        return None;
    }
    Some(job_text::Model {
        job_id: record.id.to_bytes().to_vec(),
        attempt: (*attempt).into(),
        text: Some(text.as_str().as_bytes().to_vec()).filter(|text| !text.is_empty()),
        text_written: text.written().cast_signed(),
        text_truncated: text.truncated().into(),
        result_type: output.as_ref().map(|output| output.content_type.clone()),
        result: output.as_ref().map(|output| output.data.clone()),
        result_truncated: output.as_ref().is_some_and(|output| output.truncated).into(),
    })
}

pub(super) fn attempt(id: JobId, row: AttemptRow) -> attempt::Model {
    let http_status = row.http_status.or(row.failure.as_ref().and_then(|failure| failure.http_status));
    let (failure_reason, failure_message) =
        row.failure.map(|failure| (failure.reason.number().into(), kept(&failure.message))).unzip();
    attempt::Model {
        job_id: id.to_bytes().to_vec(),
        attempt: row.attempt.into(),
        node: row.node.to_string(),
        claimed_at: row.claimed_at,
        sent_at: row.sent_at,
        reported: row.reported.into(),
        ended_at: row.ended_at,
        http_status: http_status.map(Into::into),
        failure_reason,
        failure_message,
        last_sequence: row.sequence.cast_signed(),
        end_sequence: row.ended_by.and_then(|ended| ended.sequence).map(u64::cast_signed),
        end_hash: row.ended_by.map(|ended| ended.hash.to_vec()),
    }
}

/// What else a record is made of, where there is any.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub spec: Option<String>,
    pub retry_of: Option<Vec<u8>>,
    pub sent_at: Option<i64>,
    pub reported: Option<i64>,
    pub http_status: Option<i64>,
    pub sequence: Option<i64>,
    pub text: Option<job_text::Model>,
}

/// A record of its rows. What a running attempt knew by the clock of its
/// process is lost; adoption sets it anew.
pub(super) fn record(row: job::Model, beside: Beside) -> Result<Record, Error> {
    let id = job_id(&row.id)?;
    let bad = |what| Error::corrupt(id, what);
    let spec = beside.spec.ok_or_else(|| bad("its request is gone"))?;
    let spec: crate::job::Spec = serde_json::from_str(&spec).map_err(|_| bad("its request is malformed"))?;
    let retry_of = beside.retry_of.as_deref().map(job_id).transpose()?;
    let name = i16::try_from(row.state).ok().and_then(StateName::from_number);
    let cancel_requested = row.cancel_requested != 0;
    let state = match name.ok_or_else(|| bad("unknown state"))? {
        StateName::Scheduled => State::Scheduled,
        StateName::Queued => State::Queued,
        StateName::Running => State::Running(Run {
            sent_at: beside.sent_at.map(Wall::from),
            reported: beside.reported.is_some_and(|reported| reported != 0),
            connected: false,
            lost: false,
            http_status: beside.http_status.and_then(|status| u16::try_from(status).ok()),
            sequence: beside.sequence.unwrap_or(0).cast_unsigned(),
            heard_at: 0,
            must_end_at: None,
            cancel: cancel_requested.then(|| Cancel::begins(0)),
            pace: None,
        }),
        StateName::Succeeded => State::Succeeded,
        StateName::Failed => State::Failed,
        StateName::Cancelled => State::Cancelled,
    };
    let detail = row.done.map(|done| Detail {
        done: done.cast_unsigned(),
        total: row.total.unwrap_or(0).cast_unsigned(),
        unit: row.unit.unwrap_or_default(),
        stage: row.stage.unwrap_or_default(),
    });
    let status = row.failure_status.and_then(|status| u16::try_from(status).ok());
    let failure = failure(row.failure_reason, row.failure_message, status)
        .map_err(|()| bad("unknown reason of a failure"))?;
    let (text, output) = match beside.text {
        Some(row) => written(row).ok_or_else(|| bad("its text is not UTF-8"))?,
        None => (Text::default(), None),
    };
    let spec = Arc::new(spec);
    Ok(Record {
        id,
        created_at: row.created_at,
        created_by: row.created_by.into(),
        retry_of,
        merged_count: small(row.merged_count),
        job: Job {
            rules: Arc::clone(&spec.rules),
            state,
            revision: Revision::from_stored(row.revision),
            attempt: small(row.attempt),
            progress: u8::try_from(row.progress).unwrap_or(0),
            detail: detail.map(Box::new),
            text,
            scheduled_at: row.scheduled_at,
            started_at: row.started_at.map(Wall::from),
            updated_at: row.updated_at,
            cancel_requested,
            failure: failure.map(Box::new),
            output: output.map(Box::new),
        },
        spec,
    })
}

pub(super) fn attempt_row(row: attempt::Model) -> Result<AttemptRow, Error> {
    let id = job_id(&row.job_id)?;
    let http_status = row.http_status.and_then(|status| u16::try_from(status).ok());
    let failure = failure(row.failure_reason, row.failure_message.clone(), http_status)
        .map_err(|()| Error::corrupt(id, "unknown reason of a failed attempt"))?;
    Ok(AttemptRow {
        attempt: small(row.attempt),
        ended_by: ended_by(&row),
        node: row.node.into(),
        claimed_at: row.claimed_at,
        sent_at: row.sent_at,
        reported: row.reported != 0,
        sequence: row.last_sequence.cast_unsigned(),
        ended_at: row.ended_at,
        http_status,
        failure,
    })
}

pub(super) fn job_id(bytes: &[u8]) -> Result<JobId, Error> {
    let bytes = bytes.try_into().map_err(|_| Error::Corrupt("an id is not 16 bytes long".into()))?;
    Ok(JobId::from_bytes(bytes))
}

fn ended_by(row: &attempt::Model) -> Option<Ended> {
    let hash = row.end_hash.as_deref()?.try_into().ok()?;
    Some(Ended { sequence: row.end_sequence.map(i64::cast_unsigned), hash })
}

fn failure(
    reason: Option<i64>,
    message: Option<String>,
    http_status: Option<u16>,
) -> Result<Option<Failure>, ()> {
    let Some(reason) = reason else { return Ok(None) };
    let reason = i16::try_from(reason).ok().and_then(Reason::from_number).ok_or(())?;
    Ok(Some(Failure { reason, message: message.unwrap_or_default(), http_status }))
}

fn written(row: job_text::Model) -> Option<(Text, Option<Output>)> {
    let kept = String::from_utf8(row.text.unwrap_or_default()).ok()?;
    let text = Text::restored(kept, row.text_written.cast_unsigned(), row.text_truncated != 0);
    let output = row.result_type.map(|content_type| Output {
        content_type,
        data: row.result.unwrap_or_default(),
        truncated: row.result_truncated != 0,
    });
    Some((text, output))
}

/// A number that was 32 bits wide when it was stored.
fn small(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}
