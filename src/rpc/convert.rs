//! The only bridge between the contract's messages and the words inside.

use super::status;
use crate::{
    engine::{Acknowledged, Again, AttemptRow, Fact, Filter},
    job::{
        Detail, Failure, JobId, MergePolicy, Output, Record, StateName,
        draft::{Draft, MAX_TEXT, Violation},
        event::{End, Progress, Report, TextChange},
        identity::{Kind as As, RunAs},
    },
    proto::v1,
};
use bytes::Bytes;
use prost::Message as _;
use prost_types::{Duration, Struct, Timestamp, Value, value::Kind};
use tonic::Status;

/// Bytes of a failure's message that are kept.
const MESSAGE: usize = 4 * 1024;
/// Bytes of a result, at most.
const RESULT: usize = 64 * 1024;

/// Milliseconds, away from zero, so that no span becomes none.
fn span(duration: Duration) -> i64 {
    let nanos = i128::from(duration.seconds) * 1_000_000_000 + i128::from(duration.nanos);
    let millis = if nanos >= 0 { (nanos + 999_999) / 1_000_000 } else { (nanos - 999_999) / 1_000_000 };
    i64::try_from(millis).unwrap_or(if millis < 0 { i64::MIN } else { i64::MAX })
}

/// UTC milliseconds.
fn moment(time: Timestamp) -> i64 {
    let millis = i128::from(time.seconds) * 1_000 + i128::from(time.nanos).div_euclid(1_000_000);
    i64::try_from(millis).unwrap_or(if millis < 0 { i64::MIN } else { i64::MAX })
}

/// From UTC milliseconds.
pub fn timestamp(at: i64) -> Timestamp {
    let nanos = i32::try_from(at.rem_euclid(1_000) * 1_000_000).unwrap_or(0);
    Timestamp { seconds: at.div_euclid(1_000), nanos }
}

/// The id in `field`.
pub fn job_id(field: &str, text: &str) -> Result<JobId, Status> {
    if text.is_empty() {
        return Err(status::invalid(field, "is required"));
    }
    text.parse().map_err(|error: crate::job::BadJobId| status::invalid(field, error.to_string()))
}

/// A span of `least` to `most` milliseconds in `field`.
pub fn bounded(field: &str, given: Option<Duration>, least: i64, most: i64) -> Result<Option<u64>, Status> {
    let Some(given) = given.map(span) else { return Ok(None) };
    if !(least..=most).contains(&given) {
        let text = format!("must be from {} s to {} s", least / 1_000, most / 1_000);
        return Err(status::invalid(field, text));
    }
    Ok(u64::try_from(given).ok())
}

/// What Start is given, and the cookies of its call. Faults that the domain cannot see are found here.
pub fn draft(request: v1::StartRequest, cookies: String) -> Result<Draft, Vec<Violation>> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, description: &str| {
        faults.push(Violation { field: field.into(), description: description.into() });
    };
    let v1::StartRequest {
        action,
        run_as,
        start_after,
        start_at,
        error_timeout,
        max_duration,
        expire_after,
        retry_policy,
        merge_policy,
        idempotency_key,
        priority,
        labels,
        display_name,
    } = request;
    let action = action.unwrap_or_else(|| {
        fault("action", "is required");
        v1::Action::default()
    });
    let run_as = run_as.and_then(|given| match run_as_of(given) {
        Ok(run_as) => Some(run_as),
        Err(description) => {
            fault("run_as.kind", description);
            None
        }
    });
    let merge_policy = match v1::MergePolicy::try_from(merge_policy) {
        Ok(v1::MergePolicy::Unspecified) => None,
        Ok(v1::MergePolicy::JoinPending) => Some(MergePolicy::JoinPending),
        Ok(v1::MergePolicy::JoinActive) => Some(MergePolicy::JoinActive),
        Ok(v1::MergePolicy::Reject) => Some(MergePolicy::Reject),
        Ok(v1::MergePolicy::Never) => Some(MergePolicy::Never),
        Err(_) => {
            fault("merge_policy", "is not a value of MergePolicy");
            None
        }
    };
    let json = match action.json.map(|json| json_bytes(&json)) {
        Some(Err(())) => {
            fault("action.json", "holds a number that JSON cannot: NaN or infinite");
            None
        }
        Some(Ok(bytes)) => Some(bytes),
        None => None,
    };
    let policy = retry_policy.unwrap_or_default();
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Draft {
        target: action.target,
        method: action.method,
        route: action.route,
        query: action.query,
        headers: action.headers,
        form: action.form,
        json,
        raw: action.raw.map(|raw| (raw.content_type, raw.data)),
        start_after: start_after.map(span),
        start_at: start_at.map(moment),
        error_timeout: error_timeout.map(span),
        max_duration: max_duration.map(span),
        expire_after: expire_after.map(span),
        has_retry_policy: retry_policy.is_some(),
        max_attempts: policy.max_attempts,
        initial_backoff: policy.initial_backoff.map(span),
        max_backoff: policy.max_backoff.map(span),
        multiplier: policy.multiplier,
        priority,
        labels,
        display_name,
        idempotency_key,
        merge_policy,
        run_as,
        cookies,
    })
}

/// As whom.
pub fn run_as_of(given: v1::RunAs) -> Result<RunAs, &'static str> {
    let kind = match v1::RunAsKind::try_from(given.kind) {
        Ok(v1::RunAsKind::Unspecified) => None,
        Ok(v1::RunAsKind::Anonymous) => Some(As::Anonymous),
        Ok(v1::RunAsKind::CurrentUser) => Some(As::CurrentUser),
        Err(_) => return Err("is not a value of RunAsKind"),
    };
    Ok(RunAs { kind, cookie: given.cookie, authorization: given.authorization })
}

/// What RetryJob is given, and the cookies of its call.
pub fn again(request: v1::RetryJobRequest, cookies: String) -> Result<Again, Vec<Violation>> {
    let mut faults = Vec::new();
    let key = &request.idempotency_key;
    if key.len() > MAX_TEXT || key.contains(char::is_control) {
        let description = "must take at most 256 bytes without control characters".into();
        faults.push(Violation { field: "idempotency_key".into(), description });
    }
    let mut bytes = request.encode_to_vec();
    if request.run_as.is_none() {
        bytes.extend(cookies.as_bytes());
    }
    let run_as = request.run_as.map(run_as_of).transpose().unwrap_or_else(|description| {
        faults.push(Violation { field: "run_as.kind".into(), description: description.into() });
        None
    });
    if faults.is_empty() {
        Ok(Again { run_as, cookies, idempotency_key: request.idempotency_key, request: bytes })
    } else {
        Err(faults)
    }
}

fn json_bytes(json: &Struct) -> Result<Bytes, ()> {
    let object = serde_json::Value::Object(object(json)?);
    serde_json::to_vec(&object).map(Bytes::from).map_err(|_| ())
}

fn object(json: &Struct) -> Result<serde_json::Map<String, serde_json::Value>, ()> {
    json.fields.iter().map(|(name, value)| Ok((name.clone(), json_value(value)?))).collect()
}

fn json_value(value: &Value) -> Result<serde_json::Value, ()> {
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::StringValue(value)) => value.as_str().into(),
        // Struct knows doubles alone; a whole one is what the caller wrote as an integer.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 => {
            (*value as i64).into()
        }
        Some(Kind::NumberValue(value)) => serde_json::Number::from_f64(*value).ok_or(())?.into(),
        Some(Kind::StructValue(value)) => object(value)?.into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(json_value).collect::<Result<_, _>>()?,
    })
}

/// Which jobs; `unfinished` where no state means those alone.
pub fn filter(filter: v1::JobFilter, unfinished: bool) -> Result<Filter, Status> {
    let mut states = Vec::new();
    for state in &filter.states {
        match i16::try_from(*state).ok().and_then(StateName::from_number) {
            Some(state) => states.push(state),
            None => return Err(status::invalid("filter.states", "holds what is no state of a job")),
        }
    }
    if states.is_empty() && unfinished {
        states = vec![StateName::Scheduled, StateName::Queued, StateName::Running];
    }
    let given = |text: String| (!text.is_empty()).then_some(text);
    Ok(Filter {
        states,
        labels: filter.labels,
        route_prefix: given(filter.route_prefix),
        target: given(filter.target),
        created_by: given(filter.created_by),
        created_after: filter.created_after.map(moment),
        created_before: filter.created_before.map(moment),
    })
}

/// One report.
pub fn report(request: v1::ReportRequest) -> Result<Report, Vec<Violation>> {
    use v1::report_request as r;
    let mut faults = Vec::new();
    let mut fault = |field: &str, description: String| {
        faults.push(Violation { field: field.into(), description });
    };
    let v1::ReportRequest { sequence, progress_change, progress_detail, text_change, end } = request;
    if sequence.is_some_and(|sequence| sequence == 0 || i64::try_from(sequence).is_err()) {
        fault("sequence", "must be from 1 to 2^63 - 1".into());
    }
    let progress = progress_change.map(|change| match change {
        r::ProgressChange::Progress(percent) => {
            if percent > 100 {
                fault("progress", "must be from 0 to 100".into());
            }
            Progress::To(percent)
        }
        r::ProgressChange::ProgressIncrement(percent) => {
            if percent > 100 {
                fault("progress_increment", "must be from 0 to 100".into());
            }
            Progress::By(percent)
        }
    });
    let detail = progress_detail.map(|detail| {
        for (name, count) in [("done", detail.done), ("total", detail.total)] {
            if i64::try_from(count).is_err() {
                fault(&format!("progress_detail.{name}"), "must be from 0 to 2^63 - 1".into());
            }
        }
        for (name, text, most) in [("unit", &detail.unit, 64), ("stage", &detail.stage, 256)] {
            if text.len() > most || text.contains('\0') {
                fault(
                    &format!("progress_detail.{name}"),
                    format!("must be at most {most} bytes without NUL"),
                );
            }
        }
        Detail { done: detail.done, total: detail.total, unit: detail.unit, stage: detail.stage }
    });
    let text = text_change.map(|change| match change {
        r::TextChange::StatusText(text) => TextChange::Replace(text),
        r::TextChange::AppendText(text) => TextChange::Append(text),
    });
    let end = end.map(|end| match end {
        r::End::Finish(finish) => End::Finish(finish.result.map(|result| {
            if result.data.len() > RESULT {
                fault("finish.result.data", format!("must be at most {RESULT} bytes"));
            }
            if result.content_type.len() > 256 || result.content_type.contains(char::is_control) {
                fault(
                    "finish.result.content_type",
                    "must be at most 256 bytes without control characters".into(),
                );
            }
            Output { content_type: result.content_type, data: result.data.into(), truncated: false }
        })),
        r::End::Fail(fail) => {
            let mut message = fail.message.replace('\0', "\u{fffd}");
            message.truncate(message.floor_char_boundary(MESSAGE));
            End::Fail { message, retryable: fail.retryable }
        }
        r::End::Stopped(v1::Stopped {}) => End::Stopped,
    });
    if faults.is_empty() { Ok(Report { sequence, progress, detail, text, end }) } else { Err(faults) }
}

/// The answer to a report.
pub fn acknowledged(acknowledged: Acknowledged) -> v1::ReportResponse {
    let directive = if acknowledged.stop { v1::Directive::Stop } else { v1::Directive::Continue };
    v1::ReportResponse {
        directive: directive.into(),
        revision: acknowledged.revision.get(),
        deadline: acknowledged.deadline.map(timestamp),
        acked_sequence: acknowledged.sequence,
    }
}

/// A job as callers see it; text and result only if `text`.
pub fn job(record: &Record, text: bool) -> v1::Job {
    let (spec, job) = (&record.spec, &record.job);
    let detail = job.detail.as_ref().map(|detail| v1::ProgressDetail {
        done: detail.done,
        total: detail.total,
        unit: detail.unit.clone(),
        stage: detail.stage.clone(),
    });
    v1::Job {
        id: record.id.to_string(),
        display_name: spec.display_name.clone(),
        labels: spec.labels.clone(),
        created_by: record.created_by.to_string(),
        action: Some(v1::Action {
            target: spec.target.to_string(),
            method: spec.method.to_string(),
            route: spec.route.to_string(),
            query: spec.query.clone(),
            headers: spec.header_names.iter().map(|name| (name.clone(), String::new())).collect(),
            ..Default::default()
        }),
        state: i32::from(job.state_name().number()),
        progress: job.progress.into(),
        progress_detail: detail,
        estimated_end_at: job.estimated_end_at().map(timestamp),
        status_text: if text { job.text.as_str().to_owned() } else { String::new() },
        status_text_truncated: text && job.text.truncated(),
        attempt: job.attempt,
        max_attempts: job.rules.max_attempts,
        created_at: Some(timestamp(record.created_at)),
        scheduled_at: Some(timestamp(job.scheduled_at)),
        started_at: job.started_at.map(|at| timestamp(at.into())),
        updated_at: Some(timestamp(job.updated_at)),
        ended_at: job.ended_at().map(timestamp),
        cancel_requested: job.cancel_requested,
        failure: job.failure.as_deref().map(failure),
        result: if text { result(record) } else { None },
        revision: job.revision.get(),
        merged_count: record.merged_count,
        retry_of: record.retry_of.map(|id| id.to_string()).unwrap_or_default(),
        priority: spec.priority.into(),
    }
}

/// A fact as callers see it.
pub fn reason(fact: Fact) -> v1::Reason {
    v1::Reason {
        code: fact.code,
        message: fact.message,
        since: fact.since.map(timestamp),
        until: fact.until.map(timestamp),
        metadata: fact.metadata,
    }
}

/// An attempt as callers see it.
pub fn attempt(row: AttemptRow) -> v1::Attempt {
    let http_status = row.http_status.unwrap_or(0).into();
    v1::Attempt {
        attempt: row.attempt,
        node: row.node.to_string(),
        claimed_at: Some(timestamp(row.claimed_at)),
        sent_at: row.sent_at.map(timestamp),
        ended_at: row.ended_at.map(timestamp),
        http_status,
        failure: row.failure.as_ref().map(failure),
    }
}

fn failure(failure: &Failure) -> v1::Failure {
    v1::Failure {
        reason: failure.reason.number().into(),
        message: failure.message.clone(),
        http_status: failure.http_status.unwrap_or(0).into(),
    }
}

/// What a job left behind.
pub fn result(record: &Record) -> Option<v1::JobResult> {
    record.job.output.as_ref().map(|output| v1::JobResult {
        content_type: output.content_type.clone(),
        data: Bytes::copy_from_slice(&output.data),
        truncated: output.truncated,
    })
}

/// The time now, as the frames of a watch tell it.
pub fn server_time(clock: &dyn crate::clock::Clock) -> Timestamp {
    timestamp(clock.wall())
}
