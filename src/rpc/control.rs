//! JobControl: what callers use.

use super::{
    Service,
    auth::{self, Caller},
    batch::{self, Batch},
    convert,
    frame::{JobFrame, RunFrame, server::job_control_server::JobControl},
    mask::Mask,
    page, relay, status,
    watch::{self, Frames, Text},
};
use crate::{
    engine::{Error, Started},
    job::{JobId, Revision},
    proto::v1,
    secret::WatchToken,
    watch::{MAX_JOBS, TextMode},
};
use futures_util::{Stream, StreamExt as _, future::join_all, stream};
use prost::Message as _;
use std::{collections::HashSet, pin::Pin, sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

/// Bytes of one page, at most.
const PAGE: usize = 2 * 1024 * 1024;
/// Ids of one list, at most.
const IDS: usize = 500;

#[tonic::async_trait]
impl JobControl for Service {
    async fn start(&self, request: Request<v1::StartRequest>) -> Result<Response<JobFrame>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let cookies = auth::cookies(request.metadata());
        let started = self.start_one(request.into_inner(), &cookies, caller.name()).await?;
        Ok(Response::new(self.started(&started)))
    }

    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Result<Response<JobFrame>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let request = request.into_inner();
        let id = convert::job_id("job_id", &request.job_id)?;
        caller.may_see(&[id], false)?;
        let mask = Mask::read(request.read_mask)?;
        let shown = self.engine.get(id).await.map_err(status::of)?;
        Ok(Response::new(if mask.is_everything() {
            JobFrame::of_job(&shown, TextMode::Full, &())
        } else {
            let job = mask.apply(convert::job(&shown.subject, true));
            JobFrame::own(&v1::GetStatusResponse { job: Some(job) })
        }))
    }

    type WatchStatusStream = Frames;

    async fn watch_status(
        &self,
        request: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Frames>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let request = request.into_inner();
        if request.job_ids.is_empty() && request.filter.is_none() {
            return Err(status::invalid("job_ids", "or filter is required"));
        }
        if request.job_ids.len() > MAX_JOBS {
            return Err(status::of(Error::TooManyJobs(MAX_JOBS)));
        }
        let ids = ids(&request.job_ids)?;
        caller.may_see(&ids, request.filter.is_some())?;
        if request.after_revision.is_some() && (ids.len() != 1 || request.filter.is_some()) {
            return Err(status::invalid("after_revision", "goes with one job id and no filter"));
        }
        let few = ids.len() <= 100 && request.filter.is_none();
        let text = text(request.text, if few { Text::Full } else { Text::None })?;
        let heartbeat = heartbeat(request.heartbeat_interval)?;
        let filter = request.filter.map(|filter| convert::filter(filter, true)).transpose()?;
        let after = request.after_revision.map(Revision::from_wire);
        let watcher = self.engine.watch(&ids, filter, after, text != Text::None).await.map_err(status::of)?;
        Ok(Response::new(watch::frames(watcher, Arc::clone(&self.clock), heartbeat, text)))
    }

    type RunStream = Pin<Box<dyn Stream<Item = Result<RunFrame, Status>> + Send>>;

    async fn run(&self, request: Request<v1::RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let cookies = auth::cookies(request.metadata());
        let v1::RunRequest { start, heartbeat_interval, text: mode } = request.into_inner();
        let start = start.ok_or_else(|| status::invalid("start", "is required"))?;
        let heartbeat = heartbeat(heartbeat_interval)?;
        let text = text(mode, Text::Full)?;
        let started = self
            .start_one(start, &cookies, caller.name())
            .await
            .map_err(|refused| status::within("start", &refused))?;
        let id = started.shown.subject.id;
        // It is stored: that is said first, whatever becomes of the watch.
        let first = RunFrame::started(self.started(&started));
        let first = stream::once(async { Ok(first) });
        let watcher = self.engine.watch(&[id], None, None, text != Text::None).await;
        let rest: Self::RunStream = match watcher {
            Ok(watcher) => {
                let frames = watch::frames(watcher, Arc::clone(&self.clock), heartbeat, text);
                Box::pin(frames.map(|frame| frame.map(RunFrame::status)))
            }
            Err(error) => Box::pin(stream::once(async { Err(status::of(error)) })),
        };
        Ok(Response::new(Box::pin(first.chain(rest))))
    }

    async fn batch_start(&self, request: Request<Batch>) -> Result<Response<v1::BatchStartResponse>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let cookies = auth::cookies(request.metadata());
        let requests = request.into_inner().requests;
        if !(1..=batch::MOST).contains(&requests.len()) {
            return Err(status::invalid("requests", format!("must be 1 to {}", batch::MOST)));
        }
        // At once, so that they share a commit; begun in their order.
        let answers =
            join_all(requests.into_iter().map(|request| self.start_one(request, &cookies, caller.name())))
                .await;
        let result = |answer: Result<Started, Status>| match answer {
            Ok(started) => v1::batch_start_result::Result::Response(v1::StartResponse {
                job: Some(convert::job(&started.shown.subject, true)),
                ..self.beside(&started)
            }),
            Err(refused) => v1::batch_start_result::Result::Error(status::as_message(&refused)),
        };
        let results =
            answers.into_iter().map(|answer| v1::BatchStartResult { result: Some(result(answer)) }).collect();
        Ok(Response::new(v1::BatchStartResponse { results }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let request = request.into_inner();
        let size = match request.page_size {
            ..0 => return Err(status::invalid("page_size", "must not be negative")),
            0 => 50,
            size @ 1..=500 => u64::try_from(size).unwrap_or(500),
            501.. => 500,
        };
        if request.job_ids.len() > IDS {
            return Err(status::invalid("job_ids", format!("must be at most {IDS}")));
        }
        let question = page::question(&request);
        let before = page::read(&request.page_token, question)?;
        let ids = if request.job_ids.is_empty() { None } else { Some(ids(&request.job_ids)?) };
        let named = request.read_mask.as_ref().is_some_and(|mask| !mask.paths.is_empty());
        let mask = Mask::read(request.read_mask)?;
        let text =
            named && (mask.has("status_text") || mask.has("status_text_truncated") || mask.has("result"));
        let filter = convert::filter(request.filter.unwrap_or_default(), false)?;
        // One more than asked for tells whether there is another page.
        let records = self.engine.list(&filter, ids, before, size + 1, text).await.map_err(status::of)?;
        let (mut jobs, mut bytes, mut last) = (Vec::new(), 0, None);
        let mut more = false;
        for record in &records {
            let job = mask.apply(convert::job(record, text));
            bytes += job.encoded_len();
            if jobs.len() as u64 == size || (bytes > PAGE && !jobs.is_empty()) {
                more = true;
                break;
            }
            last = Some((record.created_at, record.id));
            jobs.push(job);
        }
        let next_page_token =
            last.filter(|_| more).map(|(at, id)| page::token(question, at, id)).unwrap_or_default();
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token }))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let id = convert::job_id("job_id", &request.job_id)?;
        let record = self.engine.cancel(id).await.map_err(|error| relay::refused(&extensions, error))?;
        Ok(Response::new(v1::CancelJobResponse { job: Some(convert::job(&record, true)) }))
    }

    async fn retry_job(
        &self,
        request: Request<v1::RetryJobRequest>,
    ) -> Result<Response<v1::RetryJobResponse>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let cookies = auth::cookies(request.metadata());
        let request = request.into_inner();
        let id = convert::job_id("job_id", &request.job_id)?;
        let again = convert::again(request, cookies).map_err(status::invalid_all)?;
        let shown = self.engine.run_again(id, again, caller.name()).await.map_err(status::of)?;
        Ok(Response::new(v1::RetryJobResponse { job: Some(convert::job(&shown.subject, true)) }))
    }

    async fn delete_job(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        let id = convert::job_id("job_id", &request.into_inner().job_id)?;
        self.engine.delete(id).await.map_err(status::of)?;
        Ok(Response::new(v1::DeleteJobResponse {}))
    }

    async fn list_attempts(
        &self,
        request: Request<v1::ListAttemptsRequest>,
    ) -> Result<Response<v1::ListAttemptsResponse>, Status> {
        let id = convert::job_id("job_id", &request.into_inner().job_id)?;
        let attempts = self.engine.attempts(id).await.map_err(status::of)?;
        let attempts = attempts.into_iter().map(convert::attempt).collect();
        Ok(Response::new(v1::ListAttemptsResponse { attempts }))
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        let id = convert::job_id("job_id", &request.into_inner().job_id)?;
        let facts = self.engine.explain(id).await.map_err(status::of)?;
        let reasons = facts.into_iter().map(convert::reason).collect();
        Ok(Response::new(v1::ExplainJobResponse { reasons }))
    }
}

impl Service {
    fn start_one<'a>(
        &'a self,
        request: v1::StartRequest,
        cookies: &str,
        caller: &str,
    ) -> impl Future<Output = Result<Started, Status>> + Send + use<'a> {
        // Maps are sorted, so that equal requests are the same bytes.
        let keyed = !request.idempotency_key.is_empty();
        let mut bytes = if keyed { request.encode_to_vec() } else { Vec::new() };
        if keyed && request.run_as.is_none() {
            bytes.extend(cookies.as_bytes()); // they may say who it is for
        }
        let draft = convert::draft(request, cookies.to_owned()).map_err(status::invalid_all);
        let started = draft.map(|draft| self.engine.start(draft, &bytes, caller));
        async move { started?.await.map_err(status::of) }
    }

    fn started(&self, started: &Started) -> JobFrame {
        JobFrame::of_job(&started.shown, TextMode::Full, &self.beside(started))
    }

    /// What a Start is answered beside the job.
    fn beside(&self, started: &Started) -> v1::StartResponse {
        let watch = WatchToken { job: started.shown.subject.id };
        let watch_token = if self.asks { watch.mint(&self.keys) } else { String::new() };
        v1::StartResponse { job: None, merged: started.merged, watch_token }
    }
}

/// How much text a stream carries.
fn text(asked: i32, default: Text) -> Result<Text, Status> {
    match v1::TextMode::try_from(asked) {
        Ok(v1::TextMode::Unspecified) => Ok(default),
        Ok(v1::TextMode::None) => Ok(Text::None),
        Ok(v1::TextMode::Delta) => Ok(Text::Delta),
        Ok(v1::TextMode::Full) => Ok(Text::Full),
        Err(_) => Err(status::invalid("text", "is not a value of TextMode")),
    }
}

/// Each once, in their order.
fn ids(given: &[String]) -> Result<Vec<JobId>, Status> {
    let mut seen = HashSet::new();
    let mut ids = Vec::with_capacity(given.len());
    for (index, id) in given.iter().enumerate() {
        let id = convert::job_id(&format!("job_ids[{index}]"), id)?;
        if seen.insert(id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn heartbeat(given: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let millis = convert::bounded("heartbeat_interval", given, 1_000, 60_000)?;
    Ok(millis.map_or(Duration::from_secs(15), Duration::from_millis))
}
