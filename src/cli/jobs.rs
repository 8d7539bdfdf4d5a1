//! `backjob status`, `list` and `cancel`.

use super::{
    client::{self, Client},
    json, screen, values,
};
use crate::proto::v1;
use std::process::ExitCode;

/// Shows a job.
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// Id of the job.
    id: String,
    /// Print JSON; the same as -o json.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self, client: &Client) -> Result<ExitCode, String> {
        let request = v1::GetStatusRequest { job_id: self.id, read_mask: None };
        let answer = client.control().get_status(client.request(request)).await;
        let job = answer.map_err(|status| client::told(&status))?.into_inner().job.unwrap_or_default();
        let text =
            if client.json || self.json { json::line("Job", &job)? + "\n" } else { screen::details(&job) };
        screen::out(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows the attempts of a job, the first one first.
#[derive(Debug, clap::Args)]
pub(super) struct Attempts {
    /// Id of the job.
    id: String,
    /// Print JSON; the same as -o json.
    #[arg(long)]
    json: bool,
}

impl Attempts {
    pub(super) async fn run(self, client: &Client) -> Result<ExitCode, String> {
        let request = client.request(v1::ListAttemptsRequest { job_id: self.id });
        let answer = client.control().list_attempts(request).await;
        for attempt in answer.map_err(|status| client::told(&status))?.into_inner().attempts {
            screen::out(&if client.json || self.json {
                json::line("Attempt", &attempt)? + "\n"
            } else {
                screen::attempt(&attempt)
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Which jobs.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filter {
    /// In one of these states: scheduled, queued, running, succeeded, failed,
    /// cancelled.
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    states: Vec<v1::JobState>,
    /// With this label.
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = values::pair)]
    labels: Vec<(String, String)>,
    /// Whose route begins with this.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    route: String,
    /// Of this target.
    #[arg(long, default_value = "", hide_default_value = true)]
    target: String,
}

fn state(text: &str) -> Result<v1::JobState, String> {
    let name = format!("JOB_STATE_{}", text.to_uppercase());
    match v1::JobState::from_str_name(&name) {
        Some(state) if state != v1::JobState::Unspecified => Ok(state),
        _ => Err("scheduled, queued, running, succeeded, failed or cancelled is expected".into()),
    }
}

impl Filter {
    /// As the contract has it; none if nothing is asked.
    pub(super) fn message(&self) -> Option<v1::JobFilter> {
        let filter = v1::JobFilter {
            states: self.states.iter().map(|state| (*state).into()).collect(),
            labels: self.labels.iter().cloned().collect(),
            route_prefix: self.route.clone(),
            target: self.target.clone(),
            ..Default::default()
        };
        (filter != v1::JobFilter::default()).then_some(filter)
    }
}

/// Lists jobs.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Jobs, at most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// All of them.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Print JSON; the same as -o json.
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) async fn run(self, client: &Client) -> Result<ExitCode, String> {
        let as_json = client.json || self.json;
        let limit = if self.all { usize::MAX } else { self.limit };
        let (mut token, mut shown) = (String::new(), 0);
        while shown < limit {
            let request = v1::ListJobsRequest {
                page_size: i32::try_from(limit - shown).unwrap_or(500).min(500),
                page_token: token,
                filter: self.filter.message(),
                ..Default::default()
            };
            let answer = client.control().list_jobs(client.request(request)).await;
            let page = answer.map_err(|status| client::told(&status))?.into_inner();
            if shown == 0 && !as_json && !page.jobs.is_empty() {
                screen::out(&format!(
                    "{:<36}  {:<9}  {:>4}  {:<20}  ACTION\n",
                    "ID", "STATE", "%", "CREATED"
                ))?;
            }
            shown += page.jobs.len();
            for job in &page.jobs {
                screen::out(&if as_json { json::line("Job", job)? + "\n" } else { row(job) })?;
            }
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(job: &v1::Job) -> String {
    let created = job.created_at.map(|at| prost_types::Timestamp { nanos: 0, ..at }.to_string());
    let name = if job.display_name.is_empty() {
        String::new()
    } else {
        format!("  {}", screen::flat(&job.display_name))
    };
    format!(
        "{:<36}  {:<9}  {:>4}  {:<20}  {}{name}\n",
        job.id,
        screen::state(job),
        job.progress,
        created.unwrap_or_default(),
        screen::action(job),
    )
}

/// Says why a job waits or failed.
#[derive(Debug, clap::Args)]
pub(super) struct Why {
    /// Id of the job.
    id: String,
    /// Print JSON; the same as -o json.
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(super) async fn run(self, client: &Client) -> Result<ExitCode, String> {
        let request = client.request(v1::ExplainJobRequest { job_id: self.id });
        let answer = client.control().explain_job(request).await;
        for reason in answer.map_err(|status| client::told(&status))?.into_inner().reasons {
            screen::out(&if client.json || self.json {
                json::line("Reason", &reason)? + "\n"
            } else {
                screen::reason(&reason)
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs ended jobs again, each as a new job.
#[derive(Debug, clap::Args)]
pub(super) struct Retry {
    /// Ids of the jobs.
    #[arg(required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    user: values::User,
    /// Print JSON; the same as -o json.
    #[arg(long)]
    json: bool,
}

impl Retry {
    pub(super) async fn run(self, client: &Client) -> Result<ExitCode, String> {
        let as_json = client.json || self.json;
        let mut failed = Vec::new();
        for id in self.ids {
            let run_as = self.user.message();
            let request = v1::RetryJobRequest { job_id: id.clone(), run_as, ..Default::default() };
            match client.control().retry_job(client.request(request)).await {
                Ok(answer) => {
                    let job = answer.into_inner().job.unwrap_or_default();
                    let human = format!("{} {}, runs {id} again\n", job.id, screen::state(&job));
                    screen::out(&if as_json { json::line("Job", &job)? + "\n" } else { human })?;
                }
                Err(status) => failed.push(format!("{id}: {}", client::told(&status))),
            }
        }
        if failed.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(failed.join("\nbackjob: ")) }
    }
}

/// Erases ended jobs.
#[derive(Debug, clap::Args)]
pub(super) struct Delete {
    /// Ids of the jobs.
    #[arg(required = true)]
    ids: Vec<String>,
}

impl Delete {
    pub(super) async fn run(self, client: &Client) -> Result<ExitCode, String> {
        let mut failed = Vec::new();
        for id in self.ids {
            let request = client.request(v1::DeleteJobRequest { job_id: id.clone() });
            if let Err(status) = client.control().delete_job(request).await {
                failed.push(format!("{id}: {}", client::told(&status)));
            }
        }
        if failed.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(failed.join("\nbackjob: ")) }
    }
}

/// Cancels jobs.
#[derive(Debug, clap::Args)]
pub(super) struct Cancel {
    /// Ids of the jobs.
    #[arg(required = true)]
    ids: Vec<String>,
    /// Print JSON; the same as -o json.
    #[arg(long)]
    json: bool,
}

impl Cancel {
    pub(super) async fn run(self, client: &Client) -> Result<ExitCode, String> {
        let as_json = client.json || self.json;
        let mut failed = Vec::new();
        for id in self.ids {
            let request = client.request(v1::CancelJobRequest { job_id: id.clone() });
            match client.control().cancel_job(request).await {
                Ok(answer) => {
                    let job = answer.into_inner().job.unwrap_or_default();
                    let stopping = if screen::is_final(&job) { "" } else { ", told to stop" };
                    let human = format!("{} {}{stopping}\n", job.id, screen::state(&job));
                    screen::out(&if as_json { json::line("Job", &job)? + "\n" } else { human })?;
                }
                Err(status) => failed.push(format!("{id}: {}", client::told(&status))),
            }
        }
        if failed.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(failed.join("\nbackjob: ")) }
    }
}
