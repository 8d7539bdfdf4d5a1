//! What is printed for people.

use crate::proto::v1;
use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

/// The error of a pipe that nobody reads any more: nothing to complain about.
pub(super) const CLOSED: &str = "the output is closed";

/// Prints to standard output.
pub(super) fn out(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CLOSED.to_owned(),
        _ => error.to_string(),
    })
}

/// Without control characters: what an action writes must not steer a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// The same on one line.
pub(super) fn flat(text: &str) -> String {
    plain(text).replace(['\n', '\t'], " ")
}

/// A state in small letters.
pub(super) fn state(job: &v1::Job) -> String {
    job.state().as_str_name().trim_start_matches("JOB_STATE_").to_lowercase()
}

/// Whether a job has ended.
pub(super) fn is_final(job: &v1::Job) -> bool {
    matches!(job.state(), v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

/// What is called: `POST /reports/build`.
pub(super) fn action(job: &v1::Job) -> String {
    job.action.as_ref().map(|action| format!("{} {}", action.method, flat(&action.route))).unwrap_or_default()
}

/// Why a job failed, in one line.
pub(super) fn failure(job: &v1::Job) -> Option<String> {
    job.failure.as_ref().map(why)
}

fn why(failure: &v1::Failure) -> String {
    let reason = failure.reason().as_str_name().trim_start_matches("FAILURE_REASON_");
    format!("{reason}: {}", flat(&failure.message))
}

/// An attempt in one line.
pub(super) fn attempt(attempt: &v1::Attempt) -> String {
    let v1::Attempt { attempt: number, node, claimed_at, ended_at, http_status, failure, .. } = attempt;
    let ended = if ended_at.is_some() { time(*ended_at) } else { "-".into() };
    let status = if *http_status > 0 { http_status.to_string() } else { "-".into() };
    let why = failure.as_ref().map(|failure| format!("  {}", why(failure))).unwrap_or_default();
    format!("{number:>3}  {:<24}  {ended:<24}  {status:>3}  {}{why}\n", time(*claimed_at), flat(node))
}

/// A reason in one line.
pub(super) fn reason(reason: &v1::Reason) -> String {
    let mut text = format!("{}: {}", reason.code, flat(&reason.message));
    for (word, at) in [("since", reason.since), ("until", reason.until)] {
        if at.is_some() {
            let _ = write!(text, ", {word} {}", time(at)); // a String takes everything
        }
    }
    for (name, value) in &reason.metadata {
        let _ = write!(text, ", {name} {}", flat(value));
    }
    text.push('\n');
    text
}

/// A time as RFC 3339.
fn time(at: Option<prost_types::Timestamp>) -> String {
    at.map(|at| at.to_string()).unwrap_or_default()
}

/// Everything about a job, a line each.
pub(super) fn details(job: &v1::Job) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<10} {value}"); // a String takes everything
        }
    };
    line("id", &job.id);
    line("name", &flat(&job.display_name));
    line("action", &action(job));
    line("state", &state(job));
    line("progress", &format!("{} %", job.progress));
    if let Some(detail) = &job.progress_detail {
        let v1::ProgressDetail { done, total, unit, stage } = detail;
        let of = if *total > 0 { format!(" of {total}") } else { String::new() };
        line("", &format!("{done}{of} {} {}", flat(unit), flat(stage)));
    }
    line("attempt", &format!("{} of {}", job.attempt, job.max_attempts));
    line("created", &time(job.created_at));
    line("scheduled", &time(job.scheduled_at));
    line("started", &time(job.started_at));
    line("updated", &time(job.updated_at));
    line("ended", &time(job.ended_at));
    line("expected", &time(job.estimated_end_at));
    line("retry of", &job.retry_of);
    if job.merged_count > 0 {
        line("merged", &format!("{} later starts joined it", job.merged_count));
    }
    if job.cancel_requested {
        line("cancel", "requested");
    }
    line("failure", &failure(job).unwrap_or_default());
    for (name, value) in &job.labels {
        line("label", &format!("{}={}", flat(name), flat(value)));
    }
    if let Some(result) = &job.result {
        line("result", &format!("{} bytes of {}", result.data.len(), flat(&result.content_type)));
    }
    if !job.status_text.is_empty() {
        text.push('\n');
        text.push_str(&plain(&job.status_text));
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_action_writes_cannot_steer_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\r\u{9b}31mc\nd\te"), "a[2Jb31mc\nd\te");
        assert_eq!(flat("a\nb\u{7}"), "a b");
    }

    #[test]
    fn details_show_what_there_is() {
        let job = v1::Job { id: "x".into(), status_text: "text".into(), ..Default::default() };
        let shown = details(&job);
        assert!(shown.starts_with("id         x\n") && shown.ends_with("\ntext\n"), "{shown}");
        assert!(!shown.contains("failure"));
    }
}
