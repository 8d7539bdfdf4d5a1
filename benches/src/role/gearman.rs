//! gearmand's protocol, as far as its worker and client need it: so that gearmand
//! has clients of the same language as backjob.
//!
//! A packet is a magic of four bytes, its type, the length of what follows, and
//! that: fields divided by NUL.

use super::action;
use crate::{
    child::{self, Questions},
    clock,
    fault::{Fault, fault},
    tasks::spawn,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex as Turn, mpsc, oneshot},
};

const CAN_DO: u32 = 1;
const PRE_SLEEP: u32 = 4;
const NOOP: u32 = 6;
const JOB_CREATED: u32 = 8;
const GRAB_JOB: u32 = 9;
const NO_JOB: u32 = 10;
const JOB_ASSIGN: u32 = 11;
const WORK_STATUS: u32 = 12;
const WORK_COMPLETE: u32 = 13;
const SUBMIT_JOB_BG: u32 = 18;

fn packet(kind: u32, fields: &[&[u8]]) -> Result<Vec<u8>, Fault> {
    let body = fields.join(&0);
    let mut packet = b"\0REQ".to_vec();
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&u32::try_from(body.len())?.to_be_bytes());
    packet.extend_from_slice(&body);
    Ok(packet)
}

async fn read(stream: &mut BufReader<OwnedReadHalf>) -> Result<(u32, Vec<u8>), Fault> {
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let number =
        |from: usize| u32::from_be_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]]);
    let mut body = vec![0; number(8) as usize];
    stream.read_exact(&mut body).await?;
    Ok((number(4), body))
}

async fn connect(port: u32) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf), Fault> {
    let stream = TcpStream::connect(("127.0.0.1", u16::try_from(port)?)).await?;
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    Ok((BufReader::new(reader), writer))
}

/// Answers with the port of `events`, and works for gearmand at `port`: each worker on a
/// connection of its own has one job at a time.
pub async fn work(port: u32, workers: usize) -> Result<(), Fault> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let events = u32::from(listener.local_addr()?.port());
    let (teller, lines) = mpsc::channel(65_536);
    for _ in 0..workers {
        spawn(worker(port, teller.clone()));
    }
    spawn(async move {
        // One client.
        if let Ok((stream, _)) = listener.accept().await {
            action::write_lines(stream, lines).await;
        }
    });
    child::answer(&Ok(BTreeMap::from([("events", events)])))?;
    while Questions::new().next::<()>().await?.is_some() {}
    Ok(())
}

async fn worker(port: u32, events: mpsc::Sender<String>) -> Result<(), Fault> {
    let (mut reader, mut writer) = connect(port).await?;
    writer.write_all(&packet(CAN_DO, &[b"jobs"])?).await?;
    writer.write_all(&packet(GRAB_JOB, &[])?).await?;
    loop {
        let (kind, body) = read(&mut reader).await?;
        match kind {
            JOB_ASSIGN => {
                let entered = clock::now();
                let mut fields = body.splitn(3, |byte| *byte == 0);
                let (Some(handle), Some(_), Some(data)) = (fields.next(), fields.next(), fields.next())
                else {
                    return Err(fault("a job that cannot be read"));
                };
                let text = String::from_utf8_lossy(data);
                let mut words = text.split(' ');
                let tag = words.next().unwrap_or_default();
                let reports: u32 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                for report in 1..=reports {
                    let done = (report * 100 / action::REPORTS).to_string();
                    writer.write_all(&packet(WORK_STATUS, &[handle, done.as_bytes(), b"100"])?).await?;
                }
                let mut last = packet(WORK_COMPLETE, &[handle, b""])?;
                events.send(format!("{tag} {entered} {}\n", clock::now())).await?;
                last.extend_from_slice(&packet(GRAB_JOB, &[])?);
                writer.write_all(&last).await?;
            }
            NO_JOB => writer.write_all(&packet(PRE_SLEEP, &[])?).await?,
            NOOP => writer.write_all(&packet(GRAB_JOB, &[])?).await?,
            _ => {}
        }
    }
}

type Created = Arc<Mutex<VecDeque<oneshot::Sender<()>>>>;

/// A connection that submits; answers come in the order of the submissions.
#[derive(Clone)]
pub struct Submitter {
    writer: Arc<Turn<OwnedWriteHalf>>,
    created: Created,
}

impl Submitter {
    /// To gearmand at `port`.
    pub async fn connect(port: u32) -> Result<Self, Fault> {
        let (mut reader, writer) = connect(port).await?;
        let created = Created::default();
        let told = Arc::clone(&created);
        spawn(async move {
            while let Ok((kind, _)) = read(&mut reader).await {
                if kind == JOB_CREATED {
                    let first = told.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    first.map(|first| first.send(()));
                }
            }
        });
        Ok(Self { writer: Arc::new(Turn::new(writer)), created })
    }

    /// Until it is accepted: a background job of this tag and so many reports.
    pub async fn submit(&self, tag: u64, reports: u32, payload: &[u8]) -> Result<(), Fault> {
        let mut data = format!("{tag} {reports} ").into_bytes();
        data.extend_from_slice(payload);
        let packet = packet(SUBMIT_JOB_BG, &[b"jobs", b"", &data])?;
        let (sender, created) = oneshot::channel();
        {
            let mut writer = self.writer.lock().await;
            self.created.lock().unwrap_or_else(PoisonError::into_inner).push_back(sender);
            writer.write_all(&packet).await?;
        }
        created.await.map_err(|_| fault("gearmand is gone"))
    }
}
