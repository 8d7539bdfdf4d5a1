//! The trigger against applications on real sockets, each of them a script: the
//! test says byte by byte what the application answers, and when.

use super::*;
use crate::{clock::Clock, descriptors::Descriptors, job::Payload, tasks::Tasks};
use bytes::Bytes;
use http::HeaderMap;
use std::{
    future::Future,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

pub(super) use crate::verify::Verifier;

mod answers;
mod breaks;
mod keepalive;
mod places;
mod sending;

pub(super) const KEY: [u8; 32] = [7; 32];
pub(super) const KEYID: &str = "k1";
pub(super) const NOW: i64 = 1_800_000_000;

/// Stands still until it is moved.
pub(super) struct HeldClock {
    mono: AtomicU64,
    drawn: AtomicU8,
}

impl HeldClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { mono: AtomicU64::new(0), drawn: AtomicU8::new(0) })
    }

    pub(super) fn advance(&self, millis: u64) {
        self.mono.fetch_add(millis, SeqCst);
    }
}

impl Clock for HeldClock {
    fn wall(&self) -> i64 {
        NOW * 1000
    }

    fn mono(&self) -> u64 {
        self.mono.load(SeqCst)
    }

    fn random(&self, bytes: &mut [u8]) {
        bytes.fill(self.drawn.fetch_add(1, SeqCst));
    }
}

/// Notes what is told.
#[derive(Default)]
pub(super) struct Notes {
    told: Mutex<Vec<&'static str>>,
    changed: Notify,
    reported: AtomicBool,
}

impl Notes {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The action reports.
    pub(super) fn report(&self) {
        self.reported.store(true, SeqCst);
    }

    pub(super) fn told(&self) -> Vec<&'static str> {
        self.told.lock().expect("unpoisoned").clone()
    }

    /// Waits until this much was told.
    pub(super) async fn until(&self, expected: &[&str]) {
        loop {
            let changed = self.changed.notified();
            if self.told() == expected {
                return;
            }
            changed.await;
        }
    }

    fn note(&self, what: &'static str) {
        self.told.lock().expect("unpoisoned").push(what);
        self.changed.notify_one();
    }
}

impl Sink for Notes {
    fn sent(&self) {
        self.note("sent");
    }

    fn heard(&self) {
        self.note("heard");
    }

    fn has_reported(&self) -> bool {
        self.reported.load(SeqCst)
    }
}

/// What an application is spoken to over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// The application's end of a connection.
pub(super) struct Peer(pub(super) Box<dyn Socket>);

/// A request as it arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) method: String,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Arrived {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    /// Checks the signature as an application does.
    pub(super) fn verified(&self) -> crate::verify::Trigger {
        let (path, query) = match self.url.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.url.as_str(), None),
        };
        Verifier::new(KEYID, &KEY)
            .verify(&self.method, path, query, &self.headers, &self.body, NOW)
            .expect("the signature verifies")
    }
}

impl Peer {
    /// Reads one request to its end.
    pub(super) async fn request(&mut self) -> Arrived {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.expect("a request"));
        }
        let head = String::from_utf8(head).expect("ASCII");
        let mut lines = head.trim_end().split("\r\n");
        let line: Vec<&str> = lines.next().expect("a request line").split(' ').collect();
        let [method, url, "HTTP/1.1"] = line[..] else { panic!("not a request line: {line:?}") };
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").expect("a header");
            let name = http::HeaderName::try_from(name).expect("a header's name");
            headers.append(name, value.parse().expect("a header's value"));
        }
        let length = headers.get("content-length").map_or("0", |value| value.to_str().expect("ASCII"));
        let mut body = vec![0; length.parse().expect("a number")];
        self.0.read_exact(&mut body).await.expect("a body");
        Arrived { method: method.to_owned(), url: url.to_owned(), headers, body }
    }

    pub(super) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("written");
        self.0.flush().await.expect("flushed");
    }

    /// Answers 200 with a text.
    pub(super) async fn answer(&mut self, text: &str) {
        self.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())).await;
    }

    /// Waits until the other end has closed.
    pub(super) async fn closed(&mut self) {
        let mut rest = [0; 1024];
        while self.0.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }
}

/// An application on a port of its own.
pub(super) struct App(TcpListener);

impl App {
    pub(super) async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
    }

    pub(super) fn port(&self) -> u16 {
        self.0.local_addr().expect("an address").port()
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    pub(super) async fn stream(&self) -> TcpStream {
        self.0.accept().await.expect("a connection").0
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> Peer {
        Peer(Box::new(self.stream().await))
    }

    /// A trigger of this application.
    pub(super) fn client(&self) -> Client {
        client(&self.url())
    }
}

pub(super) fn options(url: &str) -> TargetOptions {
    TargetOptions {
        name: "app".into(),
        url: url.into(),
        host: None,
        allow: Vec::new(),
        ca_file: None,
        key: KEY,
        keyid: KEYID.into(),
    }
}

pub(super) fn settings() -> Settings {
    Settings { report_url: "http://127.0.0.1:50051".into(), ..Settings::default() }
}

pub(super) fn client_of(options: TargetOptions, settings: Settings, clock: Arc<dyn Clock>) -> Client {
    let target = Target::new(options).expect("a target");
    Client::new(settings, vec![target], clock, Tasks::default(), Descriptors::default())
}

pub(super) fn client(url: &str) -> Client {
    client_of(options(url), settings(), HeldClock::new())
}

pub(super) fn request(method: &str, url: &str) -> Request {
    Request {
        target: "app".into(),
        method: method.into(),
        url: url.into(),
        payload: Arc::default(),
        job: JobId::from_bytes([3; 16]),
        attempt: 2,
        report_token: "the-report-token".into(),
        deadline: Some(60),
        cookie: None,
        authorization: None,
    }
}

pub(super) fn with_body(method: &str, body: impl Into<Bytes>) -> Request {
    let payload = Payload { body: body.into(), ..Payload::default() };
    Request { payload: payload.into(), ..request(method, "/a") }
}

/// Calls while the application plays its part; both must end soon.
pub(super) async fn play<T>(
    client: &Client,
    request: Request,
    notes: &Arc<Notes>,
    app: impl Future<Output = T>,
) -> (Outcome, T) {
    let sink: Arc<dyn Sink> = notes.clone();
    soon(async { tokio::join!(client.call(request, sink), app) }).await
}

/// Fails rather than hangs.
pub(super) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("ends within 20 seconds")
}

/// The text of a 200.
pub(super) fn text(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Response(Response { status: 200, text: Some(text), .. }) => text,
        other => panic!("not a 200 with a text: {other:?}"),
    }
}

/// Why the request was not sent.
pub(super) fn not_sent(outcome: Outcome) -> (Reason, String) {
    match outcome {
        Outcome::NotSent(reason, message) => (reason, message),
        other => panic!("it was sent: {other:?}"),
    }
}

/// What is wrong with the response.
pub(super) fn bad(outcome: Outcome) -> String {
    match outcome {
        Outcome::BadResponse(message) => message,
        other => panic!("not a bad response: {other:?}"),
    }
}

/// How the connection was lost.
pub(super) fn lost(outcome: Outcome) -> String {
    match outcome {
        Outcome::Lost(message) => message,
        other => panic!("not lost: {other:?}"),
    }
}
