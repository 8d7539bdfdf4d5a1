//! Clients that mean harm: the server stays up within a bound of memory, and
//! serves others meanwhile.

use crate::{
    harness::*,
    wire::{self, Protocol},
};
use backjob::proto::v1;
use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream};
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

/// What the process may take at its worst, in a build without optimization: a
/// server that does nothing takes some 40 MiB of it.
const MEMORY: u64 = 256 << 20;

/// What one message of 4 MiB may become in memory while it is read.
const SWOLLEN: u64 = 128 << 20;

/// A server in a process of its own, whose memory can be told apart.
async fn server(settings: &[(&str, &str)]) -> (Attacked, Application) {
    raise_descriptors();
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let setup = settings.iter().fold(setup, |setup, (key, value)| setup.with(key, value));
    (Attacked { process: Process::start(&setup).await, _setup: setup }, application)
}

struct Attacked {
    process: Process,
    /// Its folder.
    _setup: Setup,
}

impl std::ops::Deref for Attacked {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

/// The tests hold some thousand connections.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("a higher limit");
}

/// Somebody else is served.
async fn serves(server: &Attacked) {
    let fresh = Clients::new(server.address());
    soon("somebody else's answer", fresh.control().list_jobs(v1::ListJobsRequest::default()))
        .await
        .expect("an answer");
}

fn within_bounds(server: &Attacked) {
    within(server, MEMORY);
}

/// The most memory that the process ever took.
fn within(server: &Attacked, bound: u64) {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", server.id())) else {
        eprintln!("SKIPPED: this system does not tell a process's memory in /proc");
        return;
    };
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of it");
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    eprintln!("peak memory: {} MiB", kib >> 10);
    assert!(kib << 10 <= bound, "{} MiB", kib >> 10);
}

/// Frames of HTTP/2 (RFC 9113), written by hand.
struct Raw {
    stream: TcpStream,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("small").to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field that is not indexed and has a new name (RFC 7541, 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        assert!(text.len() < 127);
        bytes.push(u8::try_from(text.len()).expect("short"));
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// POST over http, by index, and the rest in words.
fn head(rpc: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    block.extend(field(":path", &format!("/backjob.v1.{rpc}")));
    block.extend(field(":authority", "localhost"));
    block.extend(field("content-type", "application/grpc"));
    block.extend(field("te", "trailers"));
    block
}

impl Raw {
    async fn new(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
        stream.write_all(&frame(4, 0, 0, &[])).await.expect("written");
        Self { stream }
    }

    /// Writes until all is written or the server has closed; reads meanwhile. Kinds
    /// of frames that came.
    async fn flood(self, pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Vec<u8> {
        let (mut read, mut write) = self.stream.into_split();
        let writing = spawn(async move {
            for piece in pieces {
                if write.write_all(&piece).await.is_err() {
                    return;
                }
            }
            // Done, but not gone.
            std::future::pending::<()>().await;
        });
        let mut kinds = Vec::new();
        let reading = async {
            let mut head = [0; 9];
            while read.read_exact(&mut head).await.is_ok() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let mut payload = vec![0; length];
                if read.read_exact(&mut payload).await.is_err() {
                    break;
                }
                kinds.push(head[3]);
            }
        };
        soon("the server to close the connection", reading).await;
        writing.abort();
        kinds
    }
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_their_connection() {
    let (server, _application) = server(&[]).await;
    let pieces = (0..200_000_u32).step_by(100).map(|from| {
        let ids = (from..from + 100).map(|n| n * 2 + 1);
        ids.flat_map(|id| {
            let mut piece = frame(HEADERS, END_HEADERS, id, &head("JobControl/Start"));
            piece.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
            piece
        })
        .collect()
    });
    let attack = spawn(Raw::new(server.address()).await.flood(pieces));
    serves(&server).await;
    let kinds = attack.await.expect("no panic");
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
    serves(&server).await;
    within_bounds(&server);
}

#[tokio::test]
async fn a_hundred_thousand_watches_on_one_connection_are_not_held() {
    let (server, application) = server(&[]).await;
    let job = server.start(start("/a")).await;
    let _hit = application.hit().await;
    let request = v1::WatchStatusRequest { job_ids: vec![job.id.clone()], ..Default::default() };
    let message = wire::framed(&request.encode_to_vec());
    let pieces = (0..100_000_u32).step_by(100).map(move |from| {
        let ids = (from..from + 100).map(|n| n * 2 + 1);
        ids.flat_map(|id| {
            let mut piece = frame(HEADERS, END_HEADERS, id, &head("JobControl/WatchStatus"));
            piece.extend(frame(DATA, END_STREAM, id, &message));
            piece
        })
        .collect()
    });
    let attack = spawn(Raw::new(server.address()).await.flood(pieces));
    serves(&server).await;
    // Those beyond server.max_streams are refused, and who goes on is closed out.
    let kinds = attack.await.expect("no panic");
    assert!(kinds.contains(&GOAWAY), "no word of the end");
    server.cancel(&job.id).await.expect("others are served");
    within_bounds(&server);
}

#[tokio::test]
async fn headers_without_end_are_not_gathered() {
    let (server, _application) = server(&[]).await;
    // HTTP/2: one block in many frames, which never ends.
    let filler: Vec<u8> = (0..100).flat_map(|n| field(&format!("x-{n}"), &"v".repeat(100))).collect();
    let first = frame(HEADERS, 0, 1, &head("JobControl/Start"));
    let more = frame(CONTINUATION, 0, 1, &filler);
    let pieces = std::iter::once(first).chain(std::iter::repeat_n(more, 20_000));
    let attack = spawn(Raw::new(server.address()).await.flood(pieces));
    // HTTP/1.1: 64 MiB of them.
    let mut stream = TcpStream::connect(server.address()).await.expect("connected");
    stream.write_all(b"POST / HTTP/1.1\r\nhost: localhost\r\n").await.expect("written");
    let line = format!("x-flood: {}\r\n", "v".repeat(1_000)).repeat(64);
    let mut written = 0;
    while written < 64 << 20 && stream.write_all(line.as_bytes()).await.is_ok() {
        written += line.len();
    }
    assert!(written < 64 << 20, "the server took it all");
    serves(&server).await;
    attack.await.expect("no panic");
    serves(&server).await;
    within_bounds(&server);
}

#[tokio::test]
async fn thousands_of_idle_and_slow_connections_hold_nobody_up_and_are_closed() {
    let (server, _application) = server(&[]).await;
    let openings: [&[u8]; 4] = [b"", b"PRI", b"POST / HTTP/1.1\r\nHo", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"];
    let mut held = Vec::new();
    for n in 0..2_000 {
        let mut stream = TcpStream::connect(server.address()).await.expect("connected");
        stream.write_all(openings[n % openings.len()]).await.expect("written");
        held.push(stream);
    }
    serves(&server).await;
    within_bounds(&server);
    let closed = held.into_iter().map(|mut stream| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await; // closed or reset
    });
    soon("all of them to be closed", join_all(closed)).await;
    serves(&server).await;
}

#[tokio::test]
async fn more_connections_than_may_be_open_are_closed_at_once() {
    let (server, _application) = server(&[("server.max_connections", "20")]).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(TcpStream::connect(server.address()).await.expect("connected"));
    }
    // Which of them were too many is the server's choice.
    let mut open = Vec::new();
    for mut stream in held {
        let mut byte = [0];
        match tokio::time::timeout(Duration::from_millis(100), stream.read(&mut byte)).await {
            Err(_) => open.push(stream),
            Ok(closed) => assert!(matches!(closed, Ok(0) | Err(_))),
        }
    }
    assert!((1..=20).contains(&open.len()), "{} are open", open.len());
    drop(open);
    poll("a place", async || {
        let mut control = Clients::new(server.address()).control();
        control.list_jobs(v1::ListJobsRequest::default()).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn messages_that_never_end_stay_within_their_budget() {
    let (server, _application) = server(&[]).await;
    let mut held = Vec::new();
    for n in 0..8 {
        let stream = TcpStream::connect(server.address()).await.expect("connected");
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("HTTP/2");
        spawn(connection);
        for _ in 0..100 {
            // 4 MiB are announced and 3 MiB sent, as far as the server takes it.
            let prefix = Bytes::from_static(&[0, 0, 0x40, 0, 0]);
            let pieces =
                std::iter::once(prefix).chain(std::iter::repeat_n(Bytes::from(vec![0; 64 << 10]), 48));
            let pieces = stream::iter(pieces.map(|piece| Ok::<_, std::io::Error>(Frame::data(piece))));
            let body = StreamBody::new(pieces.chain(stream::pending()));
            let rpc = if n % 2 == 0 { "JobControl/Start" } else { "JobControl/BatchStart" };
            let request = Request::post(format!("http://localhost/backjob.v1.{rpc}"))
                .header("content-type", "application/grpc")
                .body(body.boxed_unsync())
                .expect("a request");
            let mut sender = sender.clone();
            held.push(spawn(async move { sender.send_request(request).await.is_ok() }));
        }
    }
    // Small calls are served all the while.
    for _ in 0..50 {
        serves(&server).await;
    }
    server.start(start("/a")).await;
    within_bounds(&server);
    held.into_iter().for_each(|attack| attack.abort());
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_before_it_is_read() {
    let (server, _application) = server(&[]).await;
    let mut large = v1::StartRequest { display_name: "x".repeat(5 << 20), ..start("/a") };
    let refused = server.refused(large.clone()).await;
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused:?}");
    // Just below the limit it is read, and refused for what it says.
    large.display_name = "x".repeat((4 << 20) - 1_000);
    names(&server.refused(large).await, "display_name");
    serves(&server).await;
    within_bounds(&server);
}

/// Two bytes on the wire may be hundreds in memory: lists of empty messages, and
/// JSON of many small values. A list of empty values alone takes its 32 bytes each,
/// while it is read: once for each thread.
#[tokio::test]
async fn messages_that_swell_when_they_are_read_stay_within_bounds() {
    let (server, _application) = server(&[("server.threads", "2")]).await;
    let empty_requests = [0x0a, 0x00].repeat(2_000_000);
    let numbers =
        format!("{{\"action\": {{\"route\": \"/a\", \"json\": {{\"a\": [{}0]}}}}}}", "0,".repeat(1_900_000));
    let lists =
        format!("{{\"action\": {{\"route\": \"/a\", \"json\": {{\"a\": [{}0]}}}}}}", "[],".repeat(1_300_000));
    let requests = format!("{{\"requests\": [{}{{}}]}}", "{},".repeat(1_300_000));
    let ids = format!("{{\"jobIds\": [{}\"\"]}}", "\"\",".repeat(1_300_000));
    let list = prost_types::ListValue { values: vec![prost_types::Value::default(); 2_000_000] };
    let list = prost_types::Value { kind: Some(prost_types::value::Kind::ListValue(list)) };
    let json = prost_types::Struct { fields: [("a".to_owned(), list)].into() };
    let empty_values = v1::Action { json: Some(json), ..action("/a") };
    let empty_values = v1::StartRequest { action: Some(empty_values), ..start("/a") }.encode_to_vec();
    for (protocol, rpc, message, json) in [
        (Protocol::Grpc, "JobControl/Start", &empty_values[..], ""),
        (Protocol::Grpc, "JobControl/BatchStart", &empty_requests, ""),
        (Protocol::Json, "JobControl/BatchStart", &[], &requests),
        (Protocol::Json, "JobControl/ListJobs", &[], &ids),
        (Protocol::Json, "JobControl/Start", &[], &numbers),
        (Protocol::Json, "JobControl/Start", &[], &lists),
    ] {
        let attacks = (0..4).map(|_| wire::code(server.address(), protocol, rpc, None, message, json));
        let codes = soon("the answers", join_all(attacks)).await;
        assert!(codes.iter().all(|code| [3, 8].contains(code)), "{rpc} over {protocol:?}: {codes:?}");
        serves(&server).await;
        within(&server, MEMORY + 2 * SWOLLEN);
    }
}

#[tokio::test]
async fn watches_leave_room_for_other_calls() {
    let (server, application) = server(&[("server.max_calls", "100")]).await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let mut watches = Vec::new();
    let refused = loop {
        let request = v1::WatchStatusRequest { job_ids: vec![job.id.clone()], ..Default::default() };
        match soon("WatchStatus", server.control().watch_status(request)).await {
            Ok(stream) => watches.push(stream.into_inner()),
            Err(status) => break status,
        }
        assert!(watches.len() < 100);
    };
    assert_eq!(watches.len(), 90);
    assert_eq!(fault(&refused), (Code::ResourceExhausted, "TOO_MANY_CALLS".into(), vec![]));
    // Reports and all that is unary go on.
    server.report(&hit.token(), progress(50)).await.expect("taken");
    assert_eq!(server.get(&job.id).await.progress, 50);
    hit.ok();
    // Streams that have ended give their places back.
    for mut watch in watches {
        while soon("a frame", watch.message()).await.expect("no error").is_some() {}
    }
    server.end(&job.id).await;
}
