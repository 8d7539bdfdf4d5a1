//! The only place that makes a `tonic::Status`: every failure gets its code and
//! its google.rpc details, and what is internal stays here.

use super::MESSAGE;
use crate::{
    engine::Error,
    job::{StateName, draft::Violation},
};
use prost::Message as _;
use std::{collections::HashMap, time::Duration};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const DOMAIN: &str = "backjob.v1";

/// A status with its reason.
struct Fault {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: HashMap<String, String>,
    retry: Option<Duration>,
    violations: Vec<Violation>,
}

impl Fault {
    fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let (metadata, violations) = (HashMap::new(), Vec::new());
        Self { code, reason, message: message.into(), metadata, retry: None, violations }
    }

    fn about(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    fn retry(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    fn into_status(self) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(self.reason, DOMAIN, self.metadata);
        if self.retry.is_some() {
            details.set_retry_info(self.retry);
        }
        for Violation { field, description } in self.violations {
            details.add_bad_request_violation(field, description);
        }
        Status::with_error_details(self.code, self.message, details)
    }
}

/// The status of a failed use case.
#[must_use]
pub fn of(error: Error) -> Status {
    let message = error.to_string();
    match error {
        Error::Invalid(violations) => invalid_all(violations),
        Error::UnknownTarget(target) => {
            Fault::new(Code::NotFound, "UNKNOWN_TARGET", message).about("target", target).into_status()
        }
        Error::NotFound(id) => {
            Fault::new(Code::NotFound, "JOB_NOT_FOUND", message).about("job_id", id).into_status()
        }
        Error::Final { id, state } => final_state(message, id, state),
        Error::Stale { id, attempt } => Fault::new(Code::Aborted, "STALE_ATTEMPT", message)
            .about("job_id", id)
            .about("attempt", attempt)
            .into_status(),
        Error::NotFinal { id, state } => Fault::new(Code::FailedPrecondition, "JOB_NOT_FINAL", message)
            .about("job_id", id)
            .about("state", state)
            .into_status(),
        Error::CredentialsGone(id) => Fault::new(Code::FailedPrecondition, "CREDENTIALS_GONE", message)
            .about("job_id", id)
            .into_status(),
        Error::Duplicate(id) => {
            Fault::new(Code::AlreadyExists, "DUPLICATE_JOB", message).about("job_id", id).into_status()
        }
        Error::KeyMismatch(id) => {
            Fault::new(Code::AlreadyExists, "IDEMPOTENCY_MISMATCH", message).about("job_id", id).into_status()
        }
        Error::NotCancelled => invalid("stopped", message),
        Error::TooManyJobs(limit) => Fault::new(Code::ResourceExhausted, "TOO_MANY_JOBS", message)
            .about("limit", limit)
            .retry(Duration::from_secs(30))
            .into_status(),
        Error::TooManyStreams(limit) => Fault::new(Code::ResourceExhausted, "TOO_MANY_CALLS", message)
            .about("limit", limit)
            .retry(spread(Duration::from_secs(1)))
            .into_status(),
        Error::TooManyPending(limit) => Fault::new(Code::ResourceExhausted, "TOO_MANY_PENDING", message)
            .about("limit", limit)
            .retry(spread(Duration::from_secs(1)))
            .into_status(),
        Error::Draining => going_away(message),
        Error::Elsewhere { job, node, .. } => owner_unreachable(job, &node),
        Error::Unavailable(_) => {
            Fault::new(Code::Unavailable, "STORE_UNAVAILABLE", "the store is not available now")
                .retry(spread(Duration::from_secs(1)))
                .into_status()
        }
        Error::Internal(text) => internal(&text),
        Error::NameTaken(_) => internal(&message), // only told at the start
    }
}

fn final_state(message: String, id: crate::job::JobId, state: StateName) -> Status {
    Fault::new(Code::FailedPrecondition, "JOB_FINAL", message)
        .about("job_id", id)
        .about("state", state)
        .into_status()
}

/// The node that runs the job cannot be reached from here.
#[must_use]
pub fn owner_unreachable(job: crate::job::JobId, node: &str) -> Status {
    let message = format!("job {job} runs on node {node}, which cannot be reached from here");
    Fault::new(Code::Unavailable, "OWNER_UNREACHABLE", message)
        .about("job_id", job)
        .about("node", node)
        .retry(spread(Duration::from_secs(1)))
        .into_status()
}

/// One field of the request does not hold.
#[must_use]
pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Status {
    invalid_all(vec![Violation { field: field.into(), description: description.into() }])
}

/// Some fields of the request do not hold.
#[must_use]
pub fn invalid_all(violations: Vec<Violation>) -> Status {
    let message = Error::Invalid(violations.clone()).to_string();
    let mut fault = Fault::new(Code::InvalidArgument, "INVALID_FIELD", message);
    fault.violations = violations;
    fault.into_status()
}

/// The same, of a request that is a field of another: paths begin there.
#[must_use]
pub fn within(field: &str, status: &Status) -> Status {
    let details = status.get_error_details();
    let Some(bad) = details.bad_request().filter(|_| status.code() == Code::InvalidArgument) else {
        return status.clone();
    };
    let path = |inner: &str| if inner.is_empty() { String::new() } else { format!("{field}.{inner}") };
    let violations = bad.field_violations.iter();
    invalid_all(
        violations.map(|v| Violation { field: path(&v.field), description: v.description.clone() }).collect(),
    )
}

/// The status as a message, with its details.
#[must_use]
pub fn as_message(status: &Status) -> tonic_types::pb::Status {
    tonic_types::pb::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::pb::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// An error of the libraries below, which have no reasons: the same, with one.
#[must_use]
pub fn explained(status: Status) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    let message = status.message();
    match status.code() {
        Code::OutOfRange if message.contains("message length too large") => too_large(MESSAGE),
        // What a client sent is no fault of ours.
        Code::Internal if READING.iter().any(|words| message.contains(words)) => invalid("message", message),
        code => Fault::new(code, name(code), message).into_status(),
    }
}

/// In what tonic says of a message that it cannot read.
const READING: [&str; 3] = ["decod", "protocol error", "Missing request"];

/// A code as its reason, where nothing more is known.
fn name(code: Code) -> &'static str {
    match code {
        Code::Cancelled => "CANCELLED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => "INTERNAL",
    }
}

/// Nothing of the kind is served here.
#[must_use]
pub fn unimplemented(message: &str) -> Status {
    Fault::new(Code::Unimplemented, "UNIMPLEMENTED", message).into_status()
}

/// The client's own deadline has passed.
#[must_use]
pub fn deadline_passed() -> Status {
    let message = "the call's deadline has passed";
    Fault::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message).into_status()
}

/// The client did not send all of its message.
#[must_use]
pub fn broken_off() -> Status {
    Fault::new(Code::Cancelled, "CANCELLED", "the request broke off").into_status()
}

/// The message is larger than any may be.
#[must_use]
pub fn too_large(limit: usize) -> Status {
    let message = format!("a message may take at most {limit} bytes");
    Fault::new(Code::ResourceExhausted, "TOO_LARGE", message).about("limit", limit).into_status()
}

/// The call has no token.
#[must_use]
pub fn token_missing() -> Status {
    let message = "the call needs the metadata `authorization: Bearer <token>`, once";
    Fault::new(Code::Unauthenticated, "TOKEN_MISSING", message).into_status()
}

/// The call's token opens nothing. It is not said why: that would help to forge
/// one.
#[must_use]
pub fn token_invalid() -> Status {
    Fault::new(Code::Unauthenticated, "TOKEN_INVALID", "the token is not valid for this call").into_status()
}

/// The caller is known, and may not do this.
#[must_use]
pub fn role_denied(message: impl Into<String>) -> Status {
    Fault::new(Code::PermissionDenied, "ROLE_DENIED", message).into_status()
}

/// The call came under a name, or from a page, that is not known.
#[must_use]
pub fn origin_refused(message: String) -> Status {
    Fault::new(Code::PermissionDenied, "ORIGIN_REFUSED", message).into_status()
}

/// As many calls are under way as may be.
#[must_use]
pub fn too_many_calls(limit: usize) -> Status {
    let message = format!("{limit} calls of this kind may be under way at once, watches nine tenths of them");
    too_many(limit, message)
}

/// Answers that nobody takes fill the memory that there is for them.
#[must_use]
pub fn too_many_answers(limit: usize) -> Status {
    too_many(limit, format!("answers that were not taken yet may fill {limit} bytes at once"))
}

/// Calls that are not answered yet fill the memory that there is for their messages.
#[must_use]
pub fn no_room(limit: usize) -> Status {
    too_many(limit, format!("messages of calls that are not answered yet may fill {limit} bytes at once"))
}

fn too_many(limit: usize, message: String) -> Status {
    Fault::new(Code::ResourceExhausted, "TOO_MANY_CALLS", message)
        .about("limit", limit)
        .retry(spread(Duration::from_secs(1)))
        .into_status()
}

/// A message did not come to its end.
#[must_use]
pub fn too_slow(limit: Duration) -> Status {
    let message = format!("a message must be whole within {} s", limit.as_secs());
    Fault::new(Code::DeadlineExceeded, "TOO_SLOW", message).about("limit", limit.as_secs()).into_status()
}

/// The server goes away: come back, to it or another.
#[must_use]
pub fn going_away(message: impl Into<String>) -> Status {
    Fault::new(Code::Unavailable, "DRAINING", message).retry(spread(Duration::from_millis(500))).into_status()
}

/// A fault of ours: the log has `text`, the caller gets an id of it.
#[must_use]
pub fn internal(text: &str) -> Status {
    let id = random().to_string();
    tracing::error!(id, error = text, "internal error");
    Fault::new(Code::Internal, "INTERNAL", format!("internal error; the server's log has it under {id}"))
        .about("id", id)
        .into_status()
}

/// So that clients do not all come back in the same moment: `span` to twice it.
fn spread(span: Duration) -> Duration {
    span + span.mul_f64(f64::from(random() % 1_000) / 1_000.0)
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness every span is the same, which is no fault.
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;

    #[test]
    fn errors_of_the_libraries_get_a_reason() {
        let large = "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes";
        for (status, code, reason) in [
            (Status::out_of_range(large), Code::ResourceExhausted, "TOO_LARGE"),
            (
                Status::internal("failed to decode Protobuf message: x"),
                Code::InvalidArgument,
                "INVALID_FIELD",
            ),
            (Status::internal("Unexpected EOF decoding stream."), Code::InvalidArgument, "INVALID_FIELD"),
            (Status::internal("Missing request message."), Code::InvalidArgument, "INVALID_FIELD"),
            (Status::unimplemented(""), Code::Unimplemented, "UNIMPLEMENTED"),
            (token_missing(), Code::Unauthenticated, "TOKEN_MISSING"),
        ] {
            let explained = explained(status);
            let details = explained.get_error_details();
            let info = details.error_info().expect("a reason");
            assert_eq!(
                (explained.code(), info.reason.as_str(), info.domain.as_str()),
                (code, reason, DOMAIN)
            );
        }
    }

    #[test]
    fn every_error_has_its_code_and_reason() {
        let id = JobId::from_bytes([1; 16]);
        let violation = || vec![Violation { field: "action.route".into(), description: "no".into() }];
        for (error, code, reason) in [
            (Error::Invalid(violation()), Code::InvalidArgument, "INVALID_FIELD"),
            (Error::UnknownTarget("x".into()), Code::NotFound, "UNKNOWN_TARGET"),
            (Error::NotFound(id), Code::NotFound, "JOB_NOT_FOUND"),
            (Error::Final { id, state: StateName::Failed }, Code::FailedPrecondition, "JOB_FINAL"),
            (Error::Stale { id, attempt: 1 }, Code::Aborted, "STALE_ATTEMPT"),
            (Error::NotFinal { id, state: StateName::Running }, Code::FailedPrecondition, "JOB_NOT_FINAL"),
            (Error::CredentialsGone(id), Code::FailedPrecondition, "CREDENTIALS_GONE"),
            (Error::Duplicate(id), Code::AlreadyExists, "DUPLICATE_JOB"),
            (Error::KeyMismatch(id), Code::AlreadyExists, "IDEMPOTENCY_MISMATCH"),
            (Error::NotCancelled, Code::InvalidArgument, "INVALID_FIELD"),
            (Error::TooManyJobs(10), Code::ResourceExhausted, "TOO_MANY_JOBS"),
            (Error::TooManyStreams(10), Code::ResourceExhausted, "TOO_MANY_CALLS"),
            (Error::TooManyPending(10), Code::ResourceExhausted, "TOO_MANY_PENDING"),
            (Error::Draining, Code::Unavailable, "DRAINING"),
            (
                Error::Elsewhere { job: id, node: "b".into(), advertise: None },
                Code::Unavailable,
                "OWNER_UNREACHABLE",
            ),
            (Error::Unavailable("disk".into()), Code::Unavailable, "STORE_UNAVAILABLE"),
            (Error::Internal("secret".into()), Code::Internal, "INTERNAL"),
        ] {
            let status = of(error);
            let details = status.get_error_details();
            let info = details.error_info().expect("every error says its reason");
            assert_eq!((status.code(), info.reason.as_str(), info.domain.as_str()), (code, reason, DOMAIN));
            let repeatable = matches!(code, Code::Unavailable | Code::ResourceExhausted);
            assert_eq!(details.retry_info().is_some(), repeatable, "{reason}");
            assert_eq!(details.bad_request().is_some(), code == Code::InvalidArgument, "{reason}");
            assert!(!status.message().contains("secret") && !status.message().contains("disk"), "{reason}");
        }
    }
}
