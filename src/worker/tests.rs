//! The reporter against a server that breaks, cancels and refuses.

use super::*;
use crate::proto::v1::{
    Directive, ReportRequest, ReportResponse,
    job_worker_server::{JobWorker, JobWorkerServer},
    report_request::{End, ProgressChange},
};
use std::pin::Pin;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Streaming,
    transport::{Server, server::TcpIncoming},
};

type Answers = Pin<Box<dyn tokio_stream::Stream<Item = Result<ReportResponse, Status>> + Send>>;

/// What the test hears of one stream, and how it answers.
struct Opened {
    reports: Streaming<ReportRequest>,
    answers: mpsc::Sender<Result<ReportResponse, Status>>,
}

impl Opened {
    async fn report(&mut self) -> ReportRequest {
        soon(self.reports.message()).await.expect("no error").expect("a report")
    }

    async fn acknowledge(&self, sequence: u64, directive: Directive) {
        let answer = ReportResponse {
            acked_sequence: sequence,
            directive: directive.into(),
            ..ReportResponse::default()
        };
        self.answers.send(Ok(answer)).await.expect("the client listens");
    }
}

struct Fake(mpsc::Sender<Opened>);

#[tonic::async_trait]
impl JobWorker for Fake {
    async fn report(&self, _: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        panic!("a reporter uses streams")
    }

    type ReportStreamStream = Answers;

    async fn report_stream(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Answers>, Status> {
        assert_eq!(request.metadata().get("authorization").expect("a token"), "Bearer token");
        let (answers, receiver) = mpsc::channel(16);
        self.0.send(Opened { reports: request.into_inner(), answers }).await.expect("the test listens");
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("not for ever")
}

#[expect(clippy::disallowed_methods, reason = "a test has no shutdown to keep in order")]
async fn pair() -> (Reporter, mpsc::Receiver<Opened>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let (sender, opened) = mpsc::channel(16);
    let server = Server::builder().add_service(JobWorkerServer::new(Fake(sender)));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let mut headers = http::HeaderMap::new();
    for (name, value) in [
        ("backjob-report-url", format!("http://{address}")),
        ("backjob-report-token", "token".to_owned()),
        ("backjob-job-id", "job".to_owned()),
        ("backjob-attempt", "1".to_owned()),
        ("backjob-deadline", "60".to_owned()),
    ] {
        headers.insert(name, value.parse().expect("a value"));
    }
    (Reporter::from_headers(&headers).expect("a reporter"), opened)
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_under_the_same_sequence() {
    let (reporter, mut opened) = pair().await;
    reporter.progress(10);
    let mut first = soon(opened.recv()).await.expect("a stream");
    let sent = first.report().await;
    assert_eq!(sent.progress_change, Some(ProgressChange::Progress(10)));
    reporter.progress(20);
    reporter.text("merged");
    first.answers.send(Err(Status::unavailable("going away"))).await.expect("sent");
    let mut second = soon(opened.recv()).await.expect("another stream");
    assert_eq!(second.report().await, sent);
    second.acknowledge(1, Directive::Continue).await;
    let merged = second.report().await;
    assert_eq!((merged.sequence, merged.progress_change), (Some(2), Some(ProgressChange::Progress(20))));
    second.acknowledge(2, Directive::Continue).await;
    let ending = async {
        let last = second.report().await;
        assert!(matches!(last.end, Some(End::Finish(_))));
        second.acknowledge(3, Directive::Continue).await;
    };
    let (finished, ()) = tokio::join!(soon(reporter.finish("", "")), ending);
    finished.expect("acknowledged");
    assert!(matches!(reporter.fail("late", false).await, Err(Error::Ended)));
}

#[tokio::test]
async fn a_cancel_is_heard_and_a_refusal_ends_it() {
    let (reporter, mut opened) = pair().await;
    reporter.heartbeat();
    let mut stream = soon(opened.recv()).await.expect("a stream");
    stream.report().await;
    assert!(!reporter.is_cancelled());
    stream.acknowledge(1, Directive::Stop).await;
    soon(reporter.cancelled()).await;
    let refusing = async {
        stream.report().await;
        stream.answers.send(Err(Status::failed_precondition("over"))).await.expect("sent");
    };
    let (ended, ()) = tokio::join!(soon(reporter.stopped()), refusing);
    assert!(matches!(ended, Err(Error::Refused(_))), "{ended:?}");
}

#[tokio::test]
async fn what_was_said_is_sent_even_if_the_reporter_is_gone() {
    let (reporter, mut opened) = pair().await;
    reporter.text("last words");
    drop(reporter);
    let mut stream = soon(opened.recv()).await.expect("a stream");
    assert!(stream.report().await.text_change.is_some());
    stream.acknowledge(1, Directive::Continue).await;
    assert!(soon(stream.reports.message()).await.expect("no error").is_none(), "then the stream ends");
}

#[tokio::test]
async fn headers_at_fault_are_named() {
    let headers = http::HeaderMap::new();
    let error = Reporter::from_headers(&headers).err().expect("refused");
    assert!(error.to_string().contains("backjob-report-url"));
}
