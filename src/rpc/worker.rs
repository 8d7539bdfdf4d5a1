//! JobWorker: what the running action calls.

use super::{Service, auth::Caller, convert, frame::server::job_worker_server::JobWorker, status};
use crate::{
    engine::{Acknowledged, Reporting},
    proto::v1,
    secret::ReportToken,
};
use futures_util::{Stream, stream};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;
use tonic::{Request, Response, Status, Streaming};

/// Tells an exact repeat of the report that ended an attempt. Maps are sorted in
/// our encoding, so equal reports have equal bytes.
fn hash(request: &v1::ReportRequest) -> [u8; 32] {
    if request.end.is_some() { Sha256::digest(request.encode_to_vec()).into() } else { [0; 32] }
}

/// The attempt that the call's token opens.
fn token(extensions: &tonic::Extensions) -> Result<ReportToken, Status> {
    match Caller::of(extensions)? {
        Caller::Action(token) => Ok(*token),
        Caller::Anyone | Caller::Named(_) | Caller::Watcher(_) => Err(status::token_invalid()),
    }
}

#[tonic::async_trait]
impl JobWorker for Service {
    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        let token = token(request.extensions())?;
        let request = request.into_inner();
        let hash = hash(&request);
        let report = convert::report(request).map_err(status::invalid_all)?;
        let acknowledged = self.engine.report(token, report, hash).await.map_err(status::of)?;
        Ok(Response::new(convert::acknowledged(acknowledged)))
    }

    type ReportStreamStream = Pin<Box<dyn Stream<Item = Result<v1::ReportResponse, Status>> + Send>>;

    async fn report_stream(
        &self,
        request: Request<Streaming<v1::ReportRequest>>,
    ) -> Result<Response<Self::ReportStreamStream>, Status> {
        let token = token(request.extensions())?;
        let reporting = self.engine.reporting(token).map_err(status::of)?;
        let answers = Arc::new(Answers::default());
        let reader = Reader { stop: self.tasks.stop().clone(), answers: Arc::clone(&answers), reporting };
        // Reports are read even while nobody reads the answers: an action that
        // only writes must not be held up.
        self.tasks.spawn("report stream", reader.read(request.into_inner()));
        Ok(Response::new(Box::pin(stream::unfold(answers, |answers| async move {
            let answer = answers.next().await?;
            Some((answer, answers))
        }))))
    }
}

/// What one stream has to answer: the newest answer covers all before it.
#[derive(Default)]
struct Answers {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    newest: Option<v1::ReportResponse>,
    end: Option<Result<(), Status>>,
}

impl Answers {
    fn with(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    async fn next(&self) -> Option<Result<v1::ReportResponse, Status>> {
        loop {
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(newest) = state.newest.take() {
                    return Some(Ok(newest));
                }
                match &mut state.end {
                    Some(Ok(())) => return None,
                    Some(end) => return std::mem::replace(end, Ok(())).err().map(Err),
                    None => {}
                }
            }
            self.changed.notified().await;
        }
    }
}

struct Reader {
    stop: tokio_util::sync::CancellationToken,
    answers: Arc<Answers>,
    reporting: Reporting,
}

impl Reader {
    async fn read(self, mut reports: Streaming<v1::ReportRequest>) {
        let (mut told_to_stop, mut heard) = (false, false);
        let (outlived, stopped) = (self.reporting.outlived(), self.reporting.stopped());
        let cancelled = self.stop.cancelled();
        tokio::pin!(outlived, stopped, cancelled);
        let end = loop {
            tokio::select! {
                biased;
                () = &mut cancelled => break Err(status::going_away("the server is shutting down")),
                stopped = &mut stopped, if !told_to_stop => {
                    told_to_stop = true;
                    self.answer(stopped);
                }
                message = reports.message() => match message {
                    Ok(None) => break Ok(()),
                    // It cannot be read; or the client is gone, and nobody hears it.
                    Err(status) => break Err(status::explained(status)),
                    Ok(Some(request)) => match self.report(request).await {
                        Ok(true) => break Ok(()),
                        Ok(false) => heard = true,
                        Err(status) => break Err(status),
                    },
                },
                // Such a stream would keep its place for nothing.
                () = &mut outlived, if self.reporting.is_live() || !heard => break Ok(()),
            }
        };
        self.answers.with(|state| state.end = Some(end));
    }

    /// True if the report ended the attempt.
    async fn report(&self, request: v1::ReportRequest) -> Result<bool, Status> {
        let last = request.end.is_some();
        let hash = hash(&request);
        let report = convert::report(request).map_err(status::invalid_all)?;
        let acknowledged = self.reporting.report(report, hash).await.map_err(status::of)?;
        self.answer(acknowledged);
        Ok(last)
    }

    fn answer(&self, acknowledged: Acknowledged) {
        let answer = convert::acknowledged(acknowledged);
        self.answers.with(|state| state.newest = Some(answer));
    }
}
