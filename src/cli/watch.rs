//! `backjob watch`: follows jobs, over broken connections too.

use super::{
    client::{self, Client},
    jobs::Filter,
    json, screen, values,
};
use crate::proto::v1::{self, JobState, TextMode, WatchStatusRequest, WatchStatusResponse};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{
    collections::{BTreeMap, HashMap},
    process::ExitCode,
    time::Duration,
};
use tokio::time::Instant;
use tonic::{Code, Status};

/// Follows jobs to their end.
#[derive(Debug, clap::Args)]
pub(super) struct Watch {
    /// Ids of the jobs. Without any, all that match the filter, now and later.
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// How much of the jobs' text to get [default: delta for people, full in
    /// JSON].
    #[arg(long, value_enum)]
    text: Option<Text>,
    /// How long to try to connect again without success.
    #[arg(long, value_name = "SPAN", value_parser = values::span, default_value = "60s")]
    retry_for: prost_types::Duration,
    /// Print JSON; the same as -o json.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Text {
    None,
    Delta,
    Full,
}

impl Watch {
    pub(super) async fn run(self, client: &Client) -> Result<ExitCode, String> {
        let filter = self.filter.message();
        let filter = filter.or_else(|| self.ids.is_empty().then(v1::JobFilter::default));
        let text = self.text.map(|text| match text {
            Text::None => TextMode::None,
            Text::Delta => TextMode::Delta,
            Text::Full => TextMode::Full,
        });
        let retry_for = Duration::try_from(self.retry_for).map_err(|error| error.to_string())?;
        let json = client.json || self.json;
        follow(client, Follow { ids: self.ids, filter, text, retry_for, json }).await
    }
}

/// What to follow.
pub(super) struct Follow {
    ids: Vec<String>,
    filter: Option<v1::JobFilter>,
    text: Option<TextMode>,
    retry_for: Duration,
    json: bool,
}

impl Follow {
    /// One job.
    pub(super) fn one(id: String, json: bool) -> Self {
        Self { ids: vec![id], filter: None, text: None, retry_for: Duration::from_secs(60), json }
    }
}

/// Follows to the end; 0 if every job SUCCEEDED.
pub(super) async fn follow(client: &Client, follow: Follow) -> Result<ExitCode, String> {
    let mut seen: BTreeMap<String, v1::Job> = BTreeMap::new();
    let mut show = Show::new(follow.json);
    let mut tried_since: Option<Instant> = None;
    loop {
        let status = match once(client, &follow, &mut seen, &mut show, &mut tried_since).await {
            Ok(()) => break,
            Err(Stopped::Here(error)) => return Err(error),
            Err(Stopped::There(status)) => status,
        };
        let Some(wait) = client::retry_after(&status) else { return Err(client::told(&status)) };
        let since = *tried_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= follow.retry_for {
            return Err(format!("{} (tried for {:?})", client::told(&status), follow.retry_for));
        }
        show.note("connection lost, trying again");
        tokio::time::sleep(wait.min(Duration::from_secs(5))).await;
    }
    show.end();
    let all = !seen.is_empty() && seen.values().all(|job| job.state() == JobState::Succeeded);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

enum Stopped {
    Here(String),
    There(Status),
}

impl From<Status> for Stopped {
    fn from(status: Status) -> Self {
        Self::There(status)
    }
}

impl From<String> for Stopped {
    fn from(error: String) -> Self {
        Self::Here(error)
    }
}

async fn once(
    client: &Client,
    follow: &Follow,
    seen: &mut BTreeMap<String, v1::Job>,
    show: &mut Show,
    tried_since: &mut Option<Instant>,
) -> Result<(), Stopped> {
    // After a break those that were unfinished are named, so that no end is
    // missed; those that ended are done with.
    let open = |id: &&String| !seen.get(*id).is_some_and(screen::is_final);
    let mut ids: Vec<String> = follow.ids.iter().filter(open).cloned().collect();
    if follow.filter.is_some() {
        ids.extend(seen.values().filter(|job| !screen::is_final(job)).map(|job| job.id.clone()));
    } else if ids.is_empty() {
        return Ok(());
    }
    let single = ids.len() == 1 && follow.filter.is_none();
    let default = if show.json { TextMode::Unspecified } else { TextMode::Delta };
    let request = WatchStatusRequest {
        after_revision: ids.first().filter(|_| single).and_then(|id| seen.get(id)).map(|job| job.revision),
        job_ids: ids,
        filter: follow.filter.clone(),
        text: follow.text.unwrap_or(default).into(),
        ..Default::default()
    };
    let mut frames = client.control().watch_status(client.request(request)).await?.into_inner();
    loop {
        // A server that went away without a word is found out by its heartbeats.
        let frame = tokio::time::timeout(Duration::from_secs(60), frames.message()).await;
        let frame = frame.map_err(|_| Status::new(Code::Unavailable, "no heartbeat came"))??;
        let Some(frame) = frame else { return Ok(()) };
        *tried_since = None;
        show.frame(&frame)?;
        if let Some(job) = frame.job {
            seen.insert(job.id.clone(), v1::Job { status_text: String::new(), result: None, ..job });
        }
    }
}

/// What a person or a program sees.
struct Show {
    json: bool,
    bars: MultiProgress,
    jobs: HashMap<String, Line>,
}

/// What is on the screen of one job.
struct Line {
    bar: ProgressBar,
    attempt: u32,
    /// Up to where its text is shown, in bytes ever written.
    shown: u64,
    /// Text after the last line break.
    rest: String,
}

impl Show {
    fn new(json: bool) -> Self {
        Self { json, bars: MultiProgress::new(), jobs: HashMap::new() }
    }

    fn frame(&mut self, frame: &WatchStatusResponse) -> Result<(), String> {
        if self.json {
            return screen::out(&format!("{}\n", json::line("WatchStatusResponse", frame)?));
        }
        for id in &frame.missing_job_ids {
            self.note(&format!("{id} does not exist"));
        }
        if !frame.deleted_job_id.is_empty() {
            self.note(&format!("{} was deleted", frame.deleted_job_id));
        }
        match &frame.job {
            Some(job) => self.job(job, frame),
            None => Ok(()),
        }
    }

    fn job(&mut self, job: &v1::Job, frame: &WatchStatusResponse) -> Result<(), String> {
        let bars = &self.bars;
        let line = self.jobs.entry(job.id.clone()).or_insert_with(|| Line {
            bar: bars.add(bar()),
            attempt: job.attempt,
            shown: 0,
            rest: String::new(),
        });
        if line.attempt != job.attempt {
            (line.attempt, line.shown) = (job.attempt, 0);
        }
        let ended = screen::is_final(job);
        line.write(&job.status_text, frame.text_offset);
        let mut lines = line.lines(ended);
        let name =
            if job.display_name.is_empty() { screen::action(job) } else { screen::flat(&job.display_name) };
        let detail = job.progress_detail.as_ref().map(detail).unwrap_or_default();
        let cancelling = if job.cancel_requested && !ended { ", stopping" } else { "" };
        line.bar.set_position(u64::from(job.progress));
        line.bar.set_prefix(name.clone());
        line.bar.set_message(format!("{}{cancelling}{detail}", screen::state(job)));
        if ended {
            line.bar.finish_and_clear();
            let why = screen::failure(job).map(|why| format!(": {why}")).unwrap_or_default();
            lines.push_str(&format!("{} {} at {} %{why}\n", name, screen::state(job), job.progress));
        }
        if lines.is_empty() { Ok(()) } else { self.bars.suspend(|| screen::out(&lines)) }
    }

    /// A line beside the jobs.
    fn note(&self, text: &str) {
        self.bars.suspend(|| eprintln!("backjob: {}", screen::flat(text)));
    }

    fn end(&self) {
        let _ = self.bars.clear(); // the screen is nothing to fail for
    }
}

impl Line {
    /// Takes a piece that begins `offset` bytes into the text; what is shown
    /// already is not shown again.
    fn write(&mut self, piece: &str, offset: u64) {
        let end = offset + piece.len() as u64;
        if end <= self.shown {
            return;
        }
        let known = usize::try_from(self.shown.saturating_sub(offset)).unwrap_or(0);
        self.rest.push_str(piece.get(known..).unwrap_or(piece));
        self.shown = end;
    }

    /// Whole lines that were not printed; all of it at the end.
    fn lines(&mut self, ended: bool) -> String {
        let cut = if ended { self.rest.len() } else { self.rest.rfind('\n').map_or(0, |at| at + 1) };
        let mut lines = screen::plain(&self.rest[..cut]);
        self.rest.drain(..cut);
        if ended && !lines.is_empty() && !lines.ends_with('\n') {
            lines.push('\n');
        }
        lines
    }
}

fn detail(detail: &v1::ProgressDetail) -> String {
    let v1::ProgressDetail { done, total, unit, stage } = detail;
    let of = if *total > 0 { format!("/{total}") } else { String::new() };
    format!(", {done}{of} {} {}", screen::flat(unit), screen::flat(stage))
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3} % {wide_msg}");
    ProgressBar::new(100).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_once_whatever_is_sent_again() {
        let mut line = Line { bar: ProgressBar::hidden(), attempt: 1, shown: 0, rest: String::new() };
        line.write("one\ntw", 0);
        assert_eq!(line.lines(false), "one\n");
        line.write("o\n", 6);
        assert_eq!(line.lines(false), "two\n");
        line.write("one\ntwo\nthree", 0); // after a break all of it comes again
        assert_eq!(line.lines(false), "");
        assert_eq!(line.lines(true), "three\n");
        line.write("anew", 13); // a replacement begins where the text ended
        assert_eq!(line.lines(true), "anew\n");
    }
}
