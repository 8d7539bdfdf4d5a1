//! A real server on port 0, a real application on port 0, and clients.

pub use crate::databases::{OwnDatabase, ServerKind};
use backjob::{
    app::{App, Stop},
    config::{Config, Sources},
    proto::v1::{self, job_control_client::JobControlClient, job_worker_client::JobWorkerClient},
};
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    future::Future,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tonic::{
    Code, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

/// Longer than anything here may take; a test that gets there says what it saw.
pub const BOUND: Duration = Duration::from_secs(20);

/// Waits for `future`, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(BOUND, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {BOUND:?} for {what}"),
    }
}

/// Where a server listens, if a line of its log says so.
pub fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, address) = line.split_once("serving address=")?;
    Some(address.trim().parse().expect("an address"))
}

#[expect(clippy::disallowed_methods, reason = "tests have no shutdown to keep in order")]
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task)
}

/// One request that the application got; it waits for its answer.
pub struct Hit {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    answer: Option<oneshot::Sender<Response<Full<Bytes>>>>,
}

impl Hit {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn token(&self) -> String {
        self.header("backjob-report-token").to_owned()
    }

    pub fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &str) {
        let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().expect("a name");
            response.headers_mut().append(name, value.parse().expect("a value"));
        }
        let answer = self.answer.take().expect("answered once");
        let _ = answer.send(response); // the connection may be gone
    }

    pub fn ok(&mut self) {
        self.answer(200, &[], "");
    }

    /// Resolves when the caller has closed the connection.
    pub async fn closed(&mut self) {
        self.answer.as_mut().expect("not answered").closed().await;
    }
}

/// An application whose every request waits for the test to answer.
pub struct Application {
    pub address: SocketAddr,
    hits: tokio::sync::Mutex<mpsc::Receiver<Hit>>,
    task: JoinHandle<()>,
}

impl Drop for Application {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Application {
    pub async fn new() -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address")).await
    }

    pub async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (sender, hits) = mpsc::channel(4_096);
        let task = spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let sender = sender.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let sender = sender.clone();
                    async move { Self::handle(request, sender).await }
                });
                spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, hits: tokio::sync::Mutex::new(hits), task }
    }

    async fn handle(
        request: Request<Incoming>,
        sender: mpsc::Sender<Hit>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let (answer, answered) = oneshot::channel();
        let hit =
            Hit { method: parts.method, uri: parts.uri, headers: parts.headers, body, answer: Some(answer) };
        let _ = sender.send(hit).await; // the test may be over
        match answered.await {
            Ok(response) => Ok(response),
            Err(_) => std::future::pending().await, // the test holds the connection open
        }
    }

    /// The next request.
    pub async fn hit(&self) -> Hit {
        soon("a trigger", async { self.hits.lock().await.recv().await.expect("the application runs") }).await
    }

    /// The next request, however long it takes.
    pub async fn next(&self) -> Hit {
        self.hits.lock().await.recv().await.expect("the application runs")
    }

    /// Whether a request has come that nobody looked at.
    pub async fn idle(&self) -> bool {
        self.hits.lock().await.is_empty()
    }
}

/// On which database the whole run is: BACKJOB_TEST_DATABASE says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    File,
    Memory,
    Server(ServerKind),
    /// PostgreSQL behind pgbouncer in transaction mode.
    Pooler,
}

impl Kept {
    pub fn here() -> Self {
        match std::env::var("BACKJOB_TEST_DATABASE").as_deref() {
            Err(_) | Ok("" | "sqlite") => Self::File,
            Ok("memory") => Self::Memory,
            Ok("postgres") => Self::Server(ServerKind::Postgres),
            Ok("mariadb") => Self::Server(ServerKind::MariaDb),
            Ok("pgbouncer") => Self::Pooler,
            Ok(other) => {
                panic!("BACKJOB_TEST_DATABASE={other}: sqlite, memory, postgres, pgbouncer or mariadb")
            }
        }
    }
}

/// False, and said, where a test is not for this run's database.
fn only_where(fits: bool, why: &str) -> bool {
    if !fits {
        println!("SKIPPED on {:?}: {why}", Kept::here());
    }
    fits
}

/// Whether this run is on an SQLite file; `why` it must be.
pub fn on_a_file(why: &str) -> bool {
    only_where(Kept::here() == Kept::File, why)
}

/// Whether this run is on the database of a server.
pub fn on_a_server() -> bool {
    only_where(!matches!(Kept::here(), Kept::File | Kept::Memory), "it is about servers of databases")
}

/// Whether this run is on a database that outlives its server.
pub fn on_what_lasts() -> bool {
    only_where(Kept::here() != Kept::Memory, "its server is started again on the same database")
}

/// How a test's server is set up.
pub struct Setup {
    pub folder: Arc<TempDir>,
    /// On a server's database, that.
    pub database: Option<Arc<OwnDatabase>>,
    pub settings: Vec<(String, String)>,
}

impl Setup {
    /// A folder and a database of its own, triggers to `application`.
    pub fn new(application: SocketAddr) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        let (mut url, mut database) =
            (format!("sqlite://{}", folder.path().join("backjob.db").display()), None);
        match Kept::here() {
            Kept::File => {}
            Kept::Memory => url = "sqlite::memory:".to_owned(),
            Kept::Server(kind) => {
                let own = OwnDatabase::now(kind).unwrap_or_else(|| panic!("set {}", kind.variable()));
                url = own.url();
                database = Some(Arc::new(own));
            }
            Kept::Pooler => {
                let own = OwnDatabase::now(ServerKind::Postgres).expect("set BACKJOB_TEST_POSTGRES");
                url = own.url_through(
                    &std::env::var("BACKJOB_TEST_PGBOUNCER").expect("set BACKJOB_TEST_PGBOUNCER"),
                );
                database = Some(Arc::new(own));
            }
        }
        let key = folder.path().join("backjob.key").display().to_string();
        let elsewhere = Kept::here() != Kept::File;
        let setup = Self { folder, database, settings: Vec::new() }
            .with("server.listen", "127.0.0.1:0")
            .with("server.shutdown_grace", "2s")
            .with("targets.default.url", &format!("http://{application}"))
            .with("database.url", &url)
            .with("node.lease", "1s");
        let setup = if elsewhere { setup.with("key_file", &key) } else { setup };
        if Kept::here() == Kept::Pooler { setup.with("database.pooler", "true") } else { setup }
    }

    /// Another node on the same database, with the same root key.
    pub fn another(&self) -> Self {
        Self {
            folder: Arc::new(tempfile::tempdir().expect("a folder")),
            database: self.database.clone(),
            settings: self.settings.clone(),
        }
    }

    /// A connection to its database beside the server's.
    pub async fn beside(&self) -> sea_orm::DatabaseConnection {
        match &self.database {
            Some(own) => own.beside().await,
            None => {
                let url = format!("sqlite://{}?mode=rw", self.file("backjob.db").display());
                sea_orm::Database::connect(url).await.expect("a connection")
            }
        }
    }

    /// The rows of a query.
    pub async fn rows(&self, sql: &str) -> Vec<sea_orm::QueryResult> {
        use sea_orm::{ConnectionTrait as _, Statement};
        let db = self.beside().await;
        let found = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await;
        db.close().await.expect("closed");
        found.expect("rows")
    }

    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    pub fn config(&self) -> Config {
        let sources = Sources {
            folder: self.folder.path().to_owned(),
            file: None,
            environment: Vec::new(),
            flags: self.settings.clone(),
        };
        Config::load(sources).unwrap_or_else(|faults| panic!("{faults}"))
    }

    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// A command of the program with this setup.
    pub fn command(&self, command: &str) -> tokio::process::Command {
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_backjob"));
        program.current_dir(self.folder.path()).arg(command).env_remove("RUST_LOG");
        for (key, value) in &self.settings {
            program.arg("--set").arg(format!("{key}={value}"));
        }
        program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        program
    }

    pub async fn start(self) -> Server {
        let app = App::build(&self.config()).await.unwrap_or_else(|error| panic!("{error}"));
        let address = app.address();
        let stop = Stop::default();
        let running = spawn(app.run(stop.clone()));
        Server { address, stop, running: Some(running), clients: Clients::new(address), setup: self }
    }
}

/// Clients of a server, whether it runs in this process or another.
#[derive(Clone)]
pub struct Clients {
    channel: Channel,
}

impl Clients {
    pub fn new(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self { channel: endpoint.connect_lazy() }
    }

    /// Each call to any of these, as behind a balancer.
    pub fn over(addresses: &[SocketAddr]) -> Self {
        let endpoint = |address| Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self { channel: Channel::balance_list(addresses.iter().map(endpoint)) }
    }

    /// Over a channel of the test's own.
    pub fn on(channel: Channel) -> Self {
        Self { channel }
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn control(&self) -> JobControlClient<Channel> {
        JobControlClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub fn worker(&self) -> JobWorkerClient<Channel> {
        JobWorkerClient::new(self.channel.clone())
    }

    pub async fn start(&self, request: v1::StartRequest) -> v1::Job {
        let answer = soon("Start", self.control().start(request)).await.expect("started").into_inner();
        answer.job.expect("a job")
    }

    pub async fn refused(&self, request: v1::StartRequest) -> Status {
        soon("Start", self.control().start(request)).await.expect_err("refused")
    }

    pub async fn get(&self, id: &str) -> v1::Job {
        let request = v1::GetStatusRequest { job_id: id.to_owned(), read_mask: None };
        let answer = soon("GetStatus", self.control().get_status(request)).await;
        answer.expect("a status").into_inner().job.expect("a job")
    }

    pub async fn cancel(&self, id: &str) -> Result<v1::Job, Status> {
        let request = v1::CancelJobRequest { job_id: id.to_owned() };
        let answer = soon("CancelJob", self.control().cancel_job(request)).await?;
        Ok(answer.into_inner().job.expect("a job"))
    }

    pub async fn report(&self, token: &str, report: v1::ReportRequest) -> Result<v1::ReportResponse, Status> {
        let request = authorized(report, token);
        soon("Report", self.worker().report(request)).await.map(tonic::Response::into_inner)
    }

    // For whoever expects the server to go away: no bound in time, and the error.

    pub async fn start_raw(&self, request: v1::StartRequest) -> Result<v1::StartResponse, Status> {
        self.control().start(request).await.map(tonic::Response::into_inner)
    }

    pub async fn cancel_raw(&self, id: &str) -> Result<(), Status> {
        self.control().cancel_job(v1::CancelJobRequest { job_id: id.to_owned() }).await.map(drop)
    }

    pub async fn retry_raw(&self, request: v1::RetryJobRequest) -> Result<String, Status> {
        let answer = self.control().retry_job(request).await?.into_inner();
        Ok(answer.job.expect("a job").id)
    }

    pub async fn get_raw(&self, id: &str) -> Result<v1::Job, Status> {
        let request = v1::GetStatusRequest { job_id: id.to_owned(), read_mask: None };
        Ok(self.control().get_status(request).await?.into_inner().job.expect("a job"))
    }

    pub async fn report_raw(
        &self,
        token: &str,
        report: v1::ReportRequest,
    ) -> Result<v1::ReportResponse, Status> {
        self.worker().report(authorized(report, token)).await.map(tonic::Response::into_inner)
    }

    pub async fn watch_raw(
        &self,
        request: v1::WatchStatusRequest,
    ) -> Result<Streaming<v1::WatchStatusResponse>, Status> {
        self.control().watch_status(request).await.map(tonic::Response::into_inner)
    }

    pub async fn watch(&self, request: v1::WatchStatusRequest) -> Result<Frames, Status> {
        let stream = soon("WatchStatus", self.control().watch_status(request)).await?.into_inner();
        Ok(Frames(stream))
    }

    pub async fn watch_one(&self, id: &str) -> Frames {
        let request = v1::WatchStatusRequest { job_ids: vec![id.to_owned()], ..Default::default() };
        self.watch(request).await.expect("a watch")
    }

    /// Follows a job to its end.
    pub async fn end(&self, id: &str) -> v1::Job {
        let mut frames = self.watch_one(id).await;
        let mut last = None;
        while let Some(frame) = frames.next().await {
            last = frame.expect("a frame").job.or(last);
        }
        let job = last.expect("a job");
        assert!(is_final(&job), "the stream ended with {:?}", job.state());
        job
    }

    /// Follows a job until it is as `wanted`.
    pub async fn until(&self, id: &str, what: &str, wanted: impl Fn(&v1::Job) -> bool) -> v1::Job {
        let mut frames = self.watch_one(id).await;
        let mut last = None;
        let found = async {
            while let Some(frame) = frames.stream_next().await {
                if let Some(job) = frame.expect("a frame").job {
                    if wanted(&job) {
                        return Some(job);
                    }
                    last = Some(job);
                }
            }
            None
        };
        match tokio::time::timeout(BOUND, found).await {
            Ok(Some(job)) => job,
            Ok(None) => panic!("the job ended before {what}; last seen: {last:?}"),
            Err(_) => panic!("waited for {what}; last seen: {last:?}"),
        }
    }

    pub async fn until_state(&self, id: &str, state: v1::JobState) -> v1::Job {
        self.until(id, state.as_str_name(), |job| job.state() == state).await
    }
}

/// A server in this process.
pub struct Server {
    pub address: SocketAddr,
    pub stop: Stop,
    pub setup: Setup,
    running: Option<JoinHandle<()>>,
    clients: Clients,
}

impl std::ops::Deref for Server {
    type Target = Clients;

    fn deref(&self) -> &Clients {
        &self.clients
    }
}

impl Server {
    /// Stops it in order and gives its setup back, to be started again.
    pub async fn shut_down(mut self) -> Setup {
        self.stop.drain.cancel();
        let running = self.running.take().expect("it runs");
        soon("the shutdown", running).await.expect("no panic");
        let Setup { folder, database, settings } = &self.setup;
        Setup { folder: Arc::clone(folder), database: database.clone(), settings: settings.clone() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.hurry.cancel();
    }
}

/// A server and its application.
pub async fn pair() -> (Server, Application) {
    let application = Application::new().await;
    let server = Setup::new(application.address).start().await;
    (server, application)
}

/// Frames of a watch.
pub struct Frames(Streaming<v1::WatchStatusResponse>);

impl Frames {
    pub async fn next(&mut self) -> Option<Result<v1::WatchStatusResponse, Status>> {
        soon("a frame", self.stream_next()).await
    }

    async fn stream_next(&mut self) -> Option<Result<v1::WatchStatusResponse, Status>> {
        self.0.message().await.transpose()
    }

    /// The next frame; there must be one.
    pub async fn frame(&mut self) -> v1::WatchStatusResponse {
        self.next().await.expect("a frame").expect("no error")
    }

    /// The next job.
    pub async fn job(&mut self) -> v1::Job {
        loop {
            if let Some(job) = self.frame().await.job {
                return job;
            }
        }
    }

    /// Reads on to `synced`; the jobs on the way.
    pub async fn synced(&mut self) -> Vec<v1::WatchStatusResponse> {
        let mut before = Vec::new();
        loop {
            let frame = self.frame().await;
            if frame.synced {
                return before;
            }
            before.push(frame);
        }
    }
}

pub fn is_final(job: &v1::Job) -> bool {
    matches!(job.state(), v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

pub fn authorized<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if !token.is_empty() {
        let value = MetadataValue::try_from(format!("Bearer {token}")).expect("a token is ASCII");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

pub fn action(route: &str) -> v1::Action {
    v1::Action { route: route.to_owned(), ..Default::default() }
}

/// A job of its own, whatever else is there.
pub fn start(route: &str) -> v1::StartRequest {
    let merge_policy = v1::MergePolicy::Never.into();
    v1::StartRequest { action: Some(action(route)), merge_policy, ..Default::default() }
}

/// Far in the future, so that nothing happens to it.
pub fn later(route: &str) -> v1::StartRequest {
    v1::StartRequest { start_after: Some(seconds(3_600)), ..start(route) }
}

/// The same; identical ones join it.
pub fn later_merging(route: &str) -> v1::StartRequest {
    v1::StartRequest { merge_policy: v1::MergePolicy::JoinPending.into(), ..later(route) }
}

pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

pub fn millis(millis: i64) -> prost_types::Duration {
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).expect("below a second");
    prost_types::Duration { seconds: millis / 1_000, nanos }
}

pub fn progress(percent: u32) -> v1::ReportRequest {
    let progress_change = Some(v1::report_request::ProgressChange::Progress(percent));
    v1::ReportRequest { progress_change, ..Default::default() }
}

pub fn append(text: &str) -> v1::ReportRequest {
    let text_change = Some(v1::report_request::TextChange::AppendText(text.to_owned()));
    v1::ReportRequest { text_change, ..Default::default() }
}

pub fn finish() -> v1::ReportRequest {
    ended(v1::report_request::End::Finish(v1::Finish { result: None }))
}

pub fn fail(message: &str, retryable: bool) -> v1::ReportRequest {
    ended(v1::report_request::End::Fail(v1::Fail { message: message.to_owned(), retryable }))
}

pub fn stopped() -> v1::ReportRequest {
    ended(v1::report_request::End::Stopped(v1::Stopped {}))
}

fn ended(end: v1::report_request::End) -> v1::ReportRequest {
    v1::ReportRequest { end: Some(end), ..Default::default() }
}

/// Whether a new job that is due runs, or waits for a slot.
pub fn is_begun(job: &v1::Job) -> bool {
    matches!(job.state(), v1::JobState::Running | v1::JobState::Queued)
}

/// The failure of a job, by its name.
pub fn reason(job: &v1::Job) -> &'static str {
    job.failure.as_ref().map_or("none", |failure| failure.reason().as_str_name())
}

/// Code, reason and the fields at fault of an error.
pub fn fault(status: &Status) -> (Code, String, Vec<String>) {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let fields = details
        .bad_request()
        .map(|bad| bad.field_violations.iter().map(|violation| violation.field.clone()).collect());
    (status.code(), reason, fields.unwrap_or_default())
}

/// Asserts that `status` names exactly this field.
pub fn names(status: &Status, field: &str) {
    let expected = (Code::InvalidArgument, "INVALID_FIELD".to_owned(), vec![field.to_owned()]);
    assert_eq!(fault(status), expected, "{status:?}");
}

/// Asks again until there is an answer.
pub async fn poll<T, F: Future<Output = Result<T, String>>>(what: &str, ask: impl Fn() -> F) -> T {
    let seen = Mutex::new(String::new());
    let answer = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(saw) => *seen.lock().expect("no panic") = saw,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(BOUND, answer).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited for {what}; last seen: {}", seen.lock().expect("no panic")),
    }
}

/// A server in a process of its own, which can be killed.
pub struct Process {
    child: tokio::process::Child,
    address: SocketAddr,
    clients: Clients,
    log: Arc<Mutex<Vec<String>>>,
}

impl std::ops::Deref for Process {
    type Target = Clients;

    fn deref(&self) -> &Clients {
        &self.clients
    }
}

impl Process {
    /// Runs `backjob serve` and waits until it says where it listens.
    pub async fn start(setup: &Setup) -> Self {
        Self::run(setup.command("serve")).await
    }

    /// The same, as `command` runs it.
    pub async fn run(mut command: tokio::process::Command) -> Self {
        let mut child = command.kill_on_drop(true).spawn().expect("the program");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&log);
        let address = soon("the server to listen", async {
            while let Some(line) = lines.next_line().await.expect("text") {
                let address = address_in(&line);
                seen.lock().expect("no panic").push(line);
                if let Some(address) = address {
                    return address;
                }
            }
            panic!("the server ended: {:#?}", seen.lock().expect("no panic"));
        });
        let address = address.await;
        let seen = Arc::clone(&log);
        spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                seen.lock().expect("no panic").push(line);
            }
        });
        Self { child, address, clients: Clients::new(address), log }
    }

    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// What it has said so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("no panic").clone()
    }

    /// Time of the processor that it has used.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("it runs");
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |place: usize| fields[place].parse::<u64>().expect("a number");
        Duration::from_millis((ticks(11) + ticks(12)) * 10) // a hundred ticks a second
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Of the process.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends it a signal, such as "STOP".
    pub async fn signal(&self, name: &str) {
        let mut kill = tokio::process::Command::new("kill");
        let told = kill.arg(format!("-{name}")).arg(self.id().to_string()).status().await.expect("kill");
        assert!(told.success());
        if name == "STOP" {
            poll("all of its threads to stand still", async || {
                let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).expect("it runs");
                let stat = |thread: std::io::Result<std::fs::DirEntry>| {
                    std::fs::read_to_string(thread.expect("listed").path().join("stat")).unwrap_or_default()
                };
                let busy = threads.map(stat).find(|stat| !stat.contains(") T "));
                busy.map_or(Ok(()), Err)
            })
            .await;
        }
    }

    /// kill -9.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM, and the code it ends with.
    pub async fn terminate(mut self) -> std::process::ExitStatus {
        self.signal("TERM").await;
        soon("the end", self.child.wait()).await.expect("waited")
    }
}

/// Waits until the table has a job whose progress is as wanted.
pub async fn stored(setup: &Setup, wanted: impl Fn(i64) -> bool + Copy) {
    use sea_orm::{ConnectionTrait as _, Statement};
    let reader = setup.beside().await;
    poll("the flush", async || {
        let sql =
            "SELECT progress FROM job JOIN attempt ON attempt.job_id = job.id WHERE sent_at IS NOT NULL";
        let rows = reader.query_all_raw(Statement::from_string(reader.get_database_backend(), sql)).await;
        let rows = rows.map_err(|error| error.to_string())?;
        let found: Vec<i64> = rows.iter().filter_map(|row| row.try_get("", "progress").ok()).collect();
        if found.iter().copied().any(wanted) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// xorshift64*: enough to make choices, and the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1) // zero stays zero
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// From 0 to below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % limit.max(1)
    }
}
