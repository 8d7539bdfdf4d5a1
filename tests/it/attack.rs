//! What hostile clients are made of: a server whose memory can be told apart, and
//! frames of HTTP/2 written by hand.

use crate::harness::*;
use backjob::proto::v1;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// What the process may take at its worst, in a build without optimization: a
/// server that does nothing takes some 40 MiB of it.
pub const MEMORY: u64 = 256 << 20;

/// What one message of 4 MiB may become in memory while it is read.
pub const SWOLLEN: u64 = 128 << 20;

/// A server in a process of its own, whose memory can be told apart.
pub async fn server(settings: &[(&str, &str)]) -> (Attacked, Application) {
    raise_descriptors();
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let setup = settings.iter().fold(setup, |setup, (key, value)| setup.with(key, value));
    (Attacked { process: Process::start(&setup).await, _setup: setup }, application)
}

pub struct Attacked {
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
pub async fn serves(server: &Attacked) {
    let fresh = Clients::new(server.address());
    soon("somebody else's answer", fresh.control().list_jobs(v1::ListJobsRequest::default()))
        .await
        .expect("an answer");
}

pub fn within_bounds(server: &Attacked) {
    within(server.id(), MEMORY);
}

/// The most memory that the process ever took.
pub fn within(process: u32, bound: u64) {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/status")) else {
        eprintln!("SKIPPED: this system does not tell a process's memory in /proc");
        return;
    };
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of it");
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    eprintln!("peak memory: {} MiB", kib >> 10);
    assert!(kib << 10 <= bound, "{} MiB", kib >> 10);
}

/// Frames of HTTP/2 (RFC 9113), written by hand.
pub struct Raw {
    pub stream: TcpStream,
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("small").to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field that is not indexed and has a new name (RFC 7541, 6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        assert!(text.len() < 127);
        bytes.push(u8::try_from(text.len()).expect("short"));
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// POST over http, by index, and the rest in words.
pub fn head(rpc: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    block.extend(field(":path", &format!("/backjob.v1.{rpc}")));
    block.extend(field(":authority", "localhost"));
    block.extend(field("content-type", "application/grpc"));
    block.extend(field("te", "trailers"));
    block
}

impl Raw {
    pub async fn new(address: SocketAddr) -> Self {
        Self::with(address, &[]).await
    }

    /// With these settings, encoded.
    pub async fn with(address: SocketAddr, settings: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
        stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.expect("written");
        Self { stream }
    }

    /// Writes what the server takes, and reads nothing.
    pub async fn pour(&mut self, piece: &[u8], times: usize) {
        for _ in 0..times {
            match tokio::time::timeout(Duration::from_millis(500), self.stream.write_all(piece)).await {
                Ok(Ok(())) => {}
                _ => return, // it takes no more, or has closed
            }
        }
    }

    /// Heads of answers until there are `count`: how many ended with them.
    pub async fn heads(&mut self, count: usize) -> usize {
        let (mut seen, mut ended) = (0, 0);
        let mut head = [0; 9];
        while seen < count {
            soon("an answer", self.stream.read_exact(&mut head)).await.expect("a frame");
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            soon("a payload", self.stream.read_exact(&mut payload)).await.expect("a frame");
            if head[3] == HEADERS {
                seen += 1;
                ended += usize::from(head[4] & END_STREAM != 0);
            }
        }
        ended
    }

    /// Writes until all is written or the server has closed; reads meanwhile. Kinds
    /// of frames that came.
    pub async fn flood(self, pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Vec<u8> {
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
