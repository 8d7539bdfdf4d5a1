//! The stream behind the reporters: one message under way, sent again until it
//! is acknowledged.

use super::{Shared, refused};
use crate::proto::v1::{
    Directive, ReportRequest, ReportResponse, job_worker_client::JobWorkerClient, report_request::End,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Stream {
    pub(super) shared: Arc<Shared>,
    pub(super) endpoint: Endpoint,
    pub(super) token: MetadataValue<Ascii>,
    /// Closed when the last reporter is gone.
    pub(super) gone: watch::Receiver<()>,
}

/// How one connection ended.
enum Broken {
    /// Everything is said.
    Done,
    /// Try again.
    Later,
    /// The server does not want it.
    Refused(Status),
}

impl Stream {
    pub(super) async fn run(mut self) {
        let mut client = JobWorkerClient::new(self.endpoint.connect_lazy());
        let mut under_way: Option<ReportRequest> = None;
        let mut wait = FIRST_WAIT;
        let over = loop {
            let before = under_way.as_ref().map(|message| message.sequence);
            match self.connection(&mut client, &mut under_way).await {
                Broken::Done => break Ok(()),
                Broken::Refused(status) => break Err(refused(&status)),
                Broken::Later => {}
            }
            if under_way.as_ref().map(|message| message.sequence) != before {
                wait = FIRST_WAIT; // it went on: the next failure is a new one
            }
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
            if self.gone.has_changed().is_err() && under_way.is_none() {
                break Ok(());
            }
        };
        if over.is_err() {
            self.shared.cancelled.send_replace(true);
        }
        self.shared.over.send_replace(Some(over));
    }

    async fn connection(
        &mut self,
        client: &mut JobWorkerClient<Channel>,
        under_way: &mut Option<ReportRequest>,
    ) -> Broken {
        let (sender, receiver) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("authorization", self.token.clone());
        let mut answers = match client.report_stream(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return broken(status),
        };
        if let Some(message) = under_way.clone()
            && sender.send(message).await.is_err()
        {
            return Broken::Later;
        }
        loop {
            if under_way.is_none()
                && let Some(message) = self.shared.pending().take()
            {
                *under_way = Some(message);
            } else if under_way.is_none() && self.gone.has_changed().is_err() {
                return Broken::Done;
            } else {
                match self.wait(&mut answers, under_way).await {
                    Some(broken) => return broken,
                    None => continue,
                }
            }
            let Some(message) = under_way.clone() else { continue };
            if sender.send(message).await.is_err() {
                return self.last_word(&mut answers, under_way).await;
            }
        }
    }

    /// Waits for an answer, for something to say, or for the time of a
    /// heartbeat.
    async fn wait(
        &mut self,
        answers: &mut Streaming<ReportResponse>,
        under_way: &mut Option<ReportRequest>,
    ) -> Option<Broken> {
        let heartbeat = *self.shared.heartbeat.borrow();
        let idle = under_way.is_none();
        tokio::select! {
            answer = answers.message() => self.heard(answer, under_way),
            () = self.shared.changed.notified(), if idle => None,
            _ = self.gone.changed(), if idle => None,
            () = tokio::time::sleep(heartbeat.unwrap_or(LONGEST_WAIT)), if idle && heartbeat.is_some() => {
                self.shared.pending().heartbeat();
                None
            }
        }
    }

    /// The server reads no more: its last answer says why.
    async fn last_word(
        &mut self,
        answers: &mut Streaming<ReportResponse>,
        under_way: &mut Option<ReportRequest>,
    ) -> Broken {
        loop {
            let answer = answers.message().await;
            if let Some(broken) = self.heard(answer, under_way) {
                return broken;
            }
        }
    }

    fn heard(
        &self,
        answer: Result<Option<ReportResponse>, Status>,
        under_way: &mut Option<ReportRequest>,
    ) -> Option<Broken> {
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return Some(Broken::Later),
            Err(status) => return Some(broken(status)),
        };
        if answer.directive() == Directive::Stop {
            self.shared.cancelled.send_replace(true);
        }
        if let Some(deadline) = answer.deadline
            && !self.shared.pending().silent
        {
            self.shared.heartbeat.send_replace(Some(remaining(deadline) / 3));
        }
        let acknowledged =
            under_way.take_if(|message| message.sequence.is_none_or(|s| s <= answer.acked_sequence));
        let ended = matches!(
            acknowledged.and_then(|message| message.end),
            Some(End::Finish(_) | End::Fail(_) | End::Stopped(_))
        );
        ended.then_some(Broken::Done)
    }
}

/// How long until `deadline`; a second at least, so that heartbeats stay rare.
#[expect(clippy::disallowed_methods, reason = "an application has no clock of ours")]
fn remaining(deadline: prost_types::Timestamp) -> Duration {
    let at = SystemTime::try_from(deadline).ok();
    let left = at.and_then(|at| at.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    left.clamp(Duration::from_secs(1), Duration::from_secs(600))
}

fn broken(status: Status) -> Broken {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented => Broken::Refused(status),
        _ => Broken::Later,
    }
}

/// Half of it to all of it, so that many workers do not come back at once.
fn jittered(wait: Duration) -> Duration {
    let mut bytes = [0; 2];
    let _ = getrandom::fill(&mut bytes); // without chance it is just less spread
    wait / 2 + (wait / 2).mul_f64(f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX))
}
