//! The application: its actions check that backjob calls, report as their route
//! says, and tell the client on a connection of its own what happened when.
//!
//! | route | does |
//! |---|---|
//! | `/none?TAG` | answers 200 |
//! | `/unary?TAG` | five reports, each a call; then 200 |
//! | `/stream?TAG` | five reports on one stream; then 200 |
//! | `/reporter?TAG` | five reports and a finish with `backjob::worker::Reporter`; then 200 |
//! | `/hold?TAG` or with the tag in a header | answers 202: the client reports in its stead |
//! | `/raw` | reads the body and answers 200, for the floor of HTTP |
//! | `/raw/none?TAG` and so on | as without `/raw`, for a job of the raw server |

use super::Places;
use crate::{
    child::{self, Questions},
    clock,
    fault::{Fault, fault},
    floor::{Blob, filler, job::SERVER, wire::raw_client::RawClient},
    tasks::spawn,
};
use backjob::{
    proto::v1::{self, job_worker_client::JobWorkerClient, report_request::ProgressChange},
    verify::Verifier,
    worker::Reporter,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
};
use tonic::{
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

/// Reports of a job.
pub const REPORTS: u32 = 5;

/// The header that tells jobs of one route apart.
pub const TAG: &str = "bench-tag";

/// What routes of the raw server's jobs begin with: nobody signs them.
const RAW: &str = "/raw/";

/// What the parent says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// Ids of the keys that triggers are signed with, and the keys in base64url.
    Trust { keys: Vec<(String, String)> },
    /// How many connections were accepted until now?
    Accepted,
}

#[derive(Default)]
struct Application {
    verifier: OnceLock<Verifier>,
    /// To the service, for all reports.
    channel: OnceLock<Channel>,
    accepted: AtomicU64,
    /// To the raw server.
    raw: OnceLock<Channel>,
    /// Lines for the client.
    events: Mutex<Option<mpsc::Sender<String>>>,
}

/// Answers with the ports of `http` and `events`, and serves until the parent is
/// gone.
pub async fn run() -> Result<(), Fault> {
    let application = Arc::new(Application::default());
    let http = TcpListener::bind("127.0.0.1:0").await?;
    let events = TcpListener::bind("127.0.0.1:0").await?;
    let ports = [("http", &http), ("events", &events)];
    let ports: Result<Places, std::io::Error> = ports
        .into_iter()
        .map(|(name, listener)| Ok((name.to_owned(), listener.local_addr()?.port().into())))
        .collect();
    spawn(accept(http, Arc::clone(&application)));
    spawn(tell(events, Arc::clone(&application)));
    child::answer(&Ok(ports?))?;
    let mut questions = Questions::new();
    while let Some(question) = questions.next().await? {
        let answer = match question {
            Question::Trust { keys } => trust(&application, keys).map(|()| 0),
            Question::Accepted => Ok(application.accepted.load(Ordering::Relaxed)),
        };
        child::answer(&answer)?;
    }
    Ok(())
}

fn trust(application: &Application, keys: Vec<(String, String)>) -> Result<(), Fault> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut verifier: Option<Verifier> = None;
    for (keyid, key) in keys {
        let key: [u8; 32] = URL_SAFE_NO_PAD.decode(key)?.try_into().map_err(|_| "a key has 32 bytes")?;
        verifier = Some(match verifier {
            Some(verifier) => verifier.and(keyid, &key),
            None => Verifier::new(keyid, &key),
        });
    }
    let verifier = verifier.ok_or("no key")?;
    application.verifier.set(verifier).map_err(|_| fault("keys are given once"))
}

async fn accept(listener: TcpListener, application: Arc<Application>) {
    while let Ok((stream, _)) = listener.accept().await {
        application.accepted.fetch_add(1, Ordering::Relaxed);
        // A connection that cannot be set up so is slower, not wrong.
        let _ = stream.set_nodelay(true);
        let application = Arc::clone(&application);
        let service = service_fn(move |request| handle(clock::now(), Arc::clone(&application), request));
        spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// Writes what happens to the client that connects last.
async fn tell(listener: TcpListener, application: Arc<Application>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (sender, lines) = mpsc::channel(65_536);
        *application.events.lock().await = Some(sender);
        spawn(write_lines(stream, lines));
    }
}

/// Writes lines as they come, those that wait together.
pub async fn write_lines(mut stream: TcpStream, mut lines: mpsc::Receiver<String>) {
    let _ = stream.set_nodelay(true); // slower without, not wrong
    // From now on nothing is missed.
    if stream.write_all(b"hello\n").await.is_err() {
        return;
    }
    let mut batch = Vec::new();
    while lines.recv_many(&mut batch, 256).await > 0 {
        let text: String = batch.drain(..).collect();
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// `entered` is the first that the handler sees.
async fn handle(
    entered: u64,
    application: Arc<Application>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Fault> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let route = parts.uri.path();
    if route == "/raw" {
        return say(StatusCode::OK, "");
    }
    if !route.starts_with(RAW) {
        let verifier = application.verifier.get().ok_or("no key yet")?;
        if let Err(error) = verifier.verify_parts(&parts, &body) {
            return say(StatusCode::UNAUTHORIZED, &error.to_string());
        }
    }
    let tag = parts.headers.get(TAG).and_then(|tag| tag.to_str().ok());
    let tag = tag.or(parts.uri.query()).unwrap_or_default();
    let reported = match route {
        "/none" => Ok(()),
        "/unary" => unary(&application, &parts.headers).await,
        "/stream" => stream(&application, &parts.headers).await,
        "/reporter" => reporter(&parts.headers).await,
        "/hold" => {
            let token = header(&parts.headers, "backjob-report-token")?;
            let job = header(&parts.headers, "backjob-job-id")?;
            application.tell(format!("{tag} {entered} {} {token} {job}\n", clock::now())).await;
            return say(StatusCode::ACCEPTED, "");
        }
        _ => match route.strip_prefix(RAW) {
            Some(kind) => raw(&application, kind, &parts.headers).await,
            None => return say(StatusCode::NOT_FOUND, "no such action"),
        },
    };
    if let Err(error) = reported {
        eprintln!("action: {error}");
        return say(StatusCode::BAD_REQUEST, &error.to_string());
    }
    application.tell(format!("{tag} {entered} {}\n", clock::now())).await;
    say(StatusCode::OK, "")
}

impl Application {
    async fn tell(&self, line: String) {
        if let Some(events) = self.events.lock().await.as_ref() {
            // The client may be gone.
            let _ = events.send(line).await;
        }
    }

    /// Of one connection, for the reports of every job.
    fn worker(&self, headers: &HeaderMap) -> Result<JobWorkerClient<Channel>, Fault> {
        Ok(JobWorkerClient::new(shared(&self.channel, header(headers, "backjob-report-url")?)?))
    }
}

/// The one connection to this server.
fn shared(channel: &OnceLock<Channel>, url: &str) -> Result<Channel, Fault> {
    if let Some(channel) = channel.get() {
        return Ok(channel.clone());
    }
    let new = Endpoint::from_shared(url.to_owned())?.connect_lazy();
    Ok(channel.get_or_init(|| new).clone())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Fault> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| fault(format!("a trigger without {name}")))
}

fn say(status: StatusCode, text: &str) -> Result<Response<Full<Bytes>>, Fault> {
    Ok(Response::builder().status(status).body(Bytes::copy_from_slice(text.as_bytes()).into())?)
}

/// The report of that number, from 1.
fn report(number: u32) -> v1::ReportRequest {
    let progress_change = Some(ProgressChange::Progress(number * (100 / REPORTS)));
    v1::ReportRequest { sequence: Some(number.into()), progress_change, ..Default::default() }
}

fn authorized<T>(message: T, headers: &HeaderMap) -> Result<tonic::Request<T>, Fault> {
    let mut request = tonic::Request::new(message);
    let token = format!("Bearer {}", header(headers, "backjob-report-token")?);
    request.metadata_mut().insert("authorization", MetadataValue::try_from(token)?);
    Ok(request)
}

async fn unary(application: &Application, headers: &HeaderMap) -> Result<(), Fault> {
    let mut worker = application.worker(headers)?;
    for number in 1..=REPORTS {
        worker.report(authorized(report(number), headers)?).await?;
    }
    Ok(())
}

async fn stream(application: &Application, headers: &HeaderMap) -> Result<(), Fault> {
    let mut worker = application.worker(headers)?;
    let reports = tokio_stream::iter((1..=REPORTS).map(report));
    let mut answers = worker.report_stream(authorized(reports, headers)?).await?.into_inner();
    let mut acked = 0;
    while let Some(answer) = answers.message().await? {
        acked = answer.acked_sequence;
    }
    match acked {
        5 => Ok(()),
        acked => Err(fault(format!("{acked} of {REPORTS} reports were acknowledged"))),
    }
}

/// Messages of the size of reports, and as many.
async fn raw(application: &Application, kind: &str, headers: &HeaderMap) -> Result<(), Fault> {
    let mut raw = RawClient::new(shared(&application.raw, header(headers, SERVER)?)?);
    let report = |number| {
        let size = report(number).encoded_len();
        Blob { answer: size as u32, sent: 0, data: filler(size) }
    };
    match kind {
        "none" => {}
        "unary" => {
            for number in 1..=REPORTS {
                raw.echo(report(number)).await?;
            }
        }
        // On one stream, as a Reporter does it too.
        _ => {
            let mut answers = raw.sink(tokio_stream::iter((1..=REPORTS).map(report))).await?.into_inner();
            while answers.message().await?.is_some() {}
        }
    }
    Ok(())
}

async fn reporter(headers: &HeaderMap) -> Result<(), Fault> {
    let reporter = Reporter::from_headers(headers)?;
    for number in 1..=REPORTS {
        reporter.progress(number * (100 / REPORTS));
    }
    reporter.finish("", Bytes::new()).await?;
    Ok(())
}

/// Connects to what an action tells.
pub async fn listen(port: u32) -> Result<TcpStream, Fault> {
    let stream = TcpStream::connect(("127.0.0.1", u16::try_from(port)?)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
