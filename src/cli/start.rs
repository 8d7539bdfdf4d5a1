//! `backjob start`: like a curl that does not wait.

use super::{
    client::{self, Client},
    json, screen, values,
    watch::{self, Follow},
};
use crate::proto::v1;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use prost_types::{Duration, Struct, Timestamp};
use std::process::ExitCode;

/// Starts a job.
#[derive(Debug, clap::Args)]
pub(super) struct Start {
    /// [METHOD] ROUTE, as in `POST /reports/build`. Without a method: GET, or
    /// POST with a body.
    #[arg(required = true, num_args = 1..=2, value_names = ["METHOD", "ROUTE"])]
    action: Vec<String>,
    /// A query parameter.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = values::pair)]
    query: Vec<(String, String)>,
    /// A form field of the body.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = values::pair)]
    data: Vec<(String, String)>,
    /// A JSON object as body: text, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON", conflicts_with_all = ["data", "raw"])]
    json: Option<String>,
    /// A body of any kind: text, @FILE, or - for standard input.
    #[arg(long, value_name = "BODY", conflicts_with = "data")]
    raw: Option<String>,
    /// Media type of --raw.
    #[arg(long, value_name = "TYPE", requires = "raw", default_value = "")]
    content_type: String,
    /// A request header.
    #[arg(short = 'H', long, value_name = "NAME: VALUE", value_parser = values::header)]
    header: Vec<(String, String)>,
    /// The target to call [default: default].
    #[arg(long, default_value = "", hide_default_value = true)]
    target: String,
    /// Start this much later: 10s, 5m, 1h30m.
    #[arg(long, value_name = "SPAN", value_parser = values::span, conflicts_with = "at")]
    after: Option<Duration>,
    /// Start at this time (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    at: Option<Timestamp>,
    /// Give an attempt up after this much silence.
    #[arg(long, value_name = "SPAN", value_parser = values::span)]
    error_timeout: Option<Duration>,
    /// Give the job up this long after its first attempt began.
    #[arg(long, value_name = "SPAN", value_parser = values::span)]
    max_duration: Option<Duration>,
    /// Give the job up if it has not begun after this long.
    #[arg(long, value_name = "SPAN", value_parser = values::span)]
    expire_after: Option<Duration>,
    /// Attempts in all.
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Order among waiting jobs, 0 (last) to 9 (first).
    #[arg(long, value_name = "N")]
    priority: Option<u32>,
    /// A label.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = values::pair)]
    label: Vec<(String, String)>,
    /// Name for people.
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Idempotency key: the same key and request start one job.
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,
    /// Which earlier identical job to join.
    #[arg(long, value_enum)]
    merge: Option<Merge>,
    #[command(flatten)]
    user: values::User,
    /// Follow the job to its end.
    #[arg(short, long)]
    follow: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Merge {
    JoinPending,
    JoinActive,
    Reject,
    Never,
}

impl Start {
    pub(super) fn request(&self) -> Result<v1::StartRequest, String> {
        let (method, route) = match self.action.as_slice() {
            [method, route] => (method.clone(), route.clone()),
            [route] => (String::new(), route.clone()),
            _ => return Err("METHOD and ROUTE are expected".into()),
        };
        let raw = self.raw.as_deref().map(values::body).transpose()?;
        let action = v1::Action {
            target: self.target.clone(),
            method,
            route,
            query: self.query.iter().cloned().collect(),
            headers: self.header.iter().cloned().collect(),
            form: self.data.iter().cloned().collect(),
            json: self.json.as_deref().map(json_object).transpose()?,
            raw: raw.map(|data| v1::RawBody { content_type: self.content_type.clone(), data: data.into() }),
        };
        for (given, kept, flag) in [
            (self.query.len(), action.query.len(), "--query"),
            (self.data.len(), action.form.len(), "--data"),
            (self.header.len(), action.headers.len(), "--header"),
            (
                self.label.len(),
                self.label.iter().map(|(name, _)| name).collect::<std::collections::BTreeSet<_>>().len(),
                "--label",
            ),
        ] {
            if given != kept {
                return Err(format!(
                    "{flag} names one thing twice; put names that repeat into ROUTE or --raw"
                ));
            }
        }
        let merge = match self.merge {
            None => v1::MergePolicy::Unspecified,
            Some(Merge::JoinPending) => v1::MergePolicy::JoinPending,
            Some(Merge::JoinActive) => v1::MergePolicy::JoinActive,
            Some(Merge::Reject) => v1::MergePolicy::Reject,
            Some(Merge::Never) => v1::MergePolicy::Never,
        };
        let max_attempts = self.max_attempts;
        Ok(v1::StartRequest {
            action: Some(action),
            run_as: self.user.message(),
            start_after: self.after,
            start_at: self.at,
            error_timeout: self.error_timeout,
            max_duration: self.max_duration,
            expire_after: self.expire_after,
            retry_policy: max_attempts.map(|_| v1::RetryPolicy { max_attempts, ..Default::default() }),
            merge_policy: merge.into(),
            idempotency_key: self.key.clone(),
            priority: self.priority,
            labels: self.label.iter().cloned().collect(),
            display_name: self.name.clone(),
        })
    }

    pub(super) async fn run(self, client: &Client) -> Result<ExitCode, String> {
        let request = client.request(self.request()?);
        let answer = client.control().start(request).await.map_err(|status| client::told(&status))?;
        let answer = answer.into_inner();
        let job = answer.job.clone().unwrap_or_default();
        if client.json {
            screen::out(&format!("{}\n", json::line("StartResponse", &answer)?))?;
        } else {
            let merged = if answer.merged { " (joined)" } else { "" };
            screen::out(&format!("{} {}{merged}\n", job.id, screen::state(&job)))?;
        }
        if !self.follow {
            return Ok(ExitCode::SUCCESS);
        }
        watch::follow(client, Follow::one(job.id, client.json)).await
    }
}

/// A JSON object as protobuf's Struct.
fn json_object(text: &str) -> Result<Struct, String> {
    let fault = |error: String| format!("--json: {error}");
    let bytes = values::body(text)?;
    let pool = DescriptorPool::global();
    let descriptor = pool.get_message_by_name("google.protobuf.Struct").ok_or("Struct is not known")?;
    let mut reader = serde_json::Deserializer::from_slice(&bytes);
    let message =
        DynamicMessage::deserialize(descriptor, &mut reader).map_err(|error| fault(error.to_string()))?;
    reader.end().map_err(|error| fault(error.to_string()))?;
    Struct::decode(message.encode_to_vec().as_slice()).map_err(|error| fault(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_body_is_an_object() {
        assert_eq!(json_object(r#"{"a": [1, null, "x"]}"#).map(|json| json.fields.len()), Ok(1));
        for text in ["[1]", "{", "{} {}", "1"] {
            assert!(json_object(text).is_err(), "{text}");
        }
    }
}
