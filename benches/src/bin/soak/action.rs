//! The application: its actions do what their route says.

use super::{Fault, load::Tally};
use backjob::proto::v1::{self, job_worker_client::JobWorkerClient, report_request};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::OnceCell, task::JoinSet};
use tonic::{Status, transport::Channel};

/// Reports of one attempt.
const REPORTS: u64 = 5;
/// Reports of one that streams them.
const STREAMED: u64 = 20;

/// What all actions share.
struct Application {
    tally: Arc<Tally>,
    worker: OnceCell<JobWorkerClient<Channel>>,
}

/// Serves for as long as the process lives.
pub async fn serve(tally: Arc<Tally>) -> Result<SocketAddr, Fault> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let application = Arc::new(Application { tally, worker: OnceCell::new() });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            while connections.try_join_next().is_some() {}
            let application = Arc::clone(&application);
            let service = service_fn(move |request| {
                let application = Arc::clone(&application);
                async move { application.answer(request).await }
            });
            connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    tasks.detach_all();
    Ok(address)
}

impl Application {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let header = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
        };
        let (token, url) =
            (header("backjob-report-token").to_owned(), header("backjob-report-url").to_owned());
        let attempt = header("backjob-attempt").to_owned();
        let route = request.uri().path().to_owned();
        request.into_body().collect().await?;
        let worker = self.worker.get_or_try_init(|| async { JobWorkerClient::connect(url).await }).await;
        let (status, done) = match worker {
            Ok(worker) => act(&route, &attempt, worker.clone(), &token).await,
            Err(error) => (200, Err(Status::unavailable(error.to_string()))),
        };
        if let Err(status) = done {
            self.tally.failed(&format!("a report of {route}"), &status);
        }
        let mut response = Response::new(Full::new(Bytes::from_static(b"done")));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        Ok(response)
    }
}

async fn act(
    route: &str,
    attempt: &str,
    mut worker: JobWorkerClient<Channel>,
    token: &str,
) -> (u16, Result<(), Status>) {
    match route {
        "/unary" => (200, unary(&mut worker, token).await),
        "/streamed" => (200, streamed(&mut worker, token).await),
        "/fails" => (200, ends(&mut worker, token, fail(false)).await),
        "/again" if attempt == "1" => (200, ends(&mut worker, token, fail(true)).await),
        "/refused" => (404, Ok(())),
        "/cancelled" => (200, until_stopped(&mut worker, token).await),
        _ => (200, Ok(())),
    }
}

async fn send(
    worker: &mut JobWorkerClient<Channel>,
    token: &str,
    report: v1::ReportRequest,
) -> Result<v1::ReportResponse, Status> {
    worker.report(authorized(report, token)?).await.map(tonic::Response::into_inner)
}

async fn unary(worker: &mut JobWorkerClient<Channel>, token: &str) -> Result<(), Status> {
    for sequence in 1..=REPORTS {
        send(worker, token, step(sequence, REPORTS)).await?;
    }
    ends(worker, token, finish()).await
}

async fn streamed(worker: &mut JobWorkerClient<Channel>, token: &str) -> Result<(), Status> {
    let mut reports: Vec<_> = (1..=STREAMED).map(|sequence| step(sequence, STREAMED)).collect();
    reports.push(v1::ReportRequest { sequence: Some(STREAMED + 1), ..finish() });
    let request = authorized(futures_util::stream::iter(reports), token)?;
    let mut answers = worker.report_stream(request).await?.into_inner();
    let mut acked = 0;
    while let Some(answer) = answers.message().await? {
        acked = acked.max(answer.acked_sequence);
    }
    if acked == STREAMED + 1 { Ok(()) } else { Err(Status::data_loss(format!("{acked} reports were taken"))) }
}

async fn ends(
    worker: &mut JobWorkerClient<Channel>,
    token: &str,
    end: v1::ReportRequest,
) -> Result<(), Status> {
    send(worker, token, v1::ReportRequest { sequence: Some(STREAMED + 1), ..end }).await.map(drop)
}

/// Works on until somebody wants it to stop.
async fn until_stopped(worker: &mut JobWorkerClient<Channel>, token: &str) -> Result<(), Status> {
    for sequence in 1..=500 {
        let answer = send(worker, token, step(sequence, 500)).await?;
        if answer.directive() == v1::Directive::Stop {
            let end = Some(report_request::End::Stopped(v1::Stopped {}));
            return send(worker, token, v1::ReportRequest { end, ..Default::default() }).await.map(drop);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(Status::deadline_exceeded("nobody cancelled it"))
}

fn step(sequence: u64, of: u64) -> v1::ReportRequest {
    let percent = u32::try_from(100 * sequence / of).unwrap_or(100);
    v1::ReportRequest {
        sequence: Some(sequence),
        progress_change: Some(report_request::ProgressChange::Progress(percent)),
        text_change: Some(report_request::TextChange::AppendText(format!("step {sequence} of {of}\n"))),
        ..Default::default()
    }
}

fn finish() -> v1::ReportRequest {
    let end = Some(report_request::End::Finish(v1::Finish { result: None }));
    v1::ReportRequest { end, ..Default::default() }
}

fn fail(retryable: bool) -> v1::ReportRequest {
    let end = Some(report_request::End::Fail(v1::Fail { message: "as it should".to_owned(), retryable }));
    v1::ReportRequest { end, ..Default::default() }
}

fn authorized<T>(message: T, token: &str) -> Result<tonic::Request<T>, Status> {
    let mut request = tonic::Request::new(message);
    let value = format!("Bearer {token}").parse();
    let value = value.map_err(|_| Status::internal("the token is not ASCII"))?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}
