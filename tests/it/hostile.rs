//! Clients that mean harm with connections and frames: the server stays up within
//! a bound of memory, and serves others meanwhile.

use crate::{attack::*, harness::*, wire};
use backjob::proto::v1;
use futures_util::future::join_all;
use prost::Message as _;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

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

/// CVE-2019-9512, 9515, 9518 and their kin: frames that cost their sender nothing.
#[tokio::test]
async fn floods_of_small_frames_pile_nothing_up() {
    let (server, _application) = server(&[]).await;
    let mut stream = frame(HEADERS, END_HEADERS, 1, &head("JobControl/ListJobs"));
    stream.extend(frame(DATA, 0, 1, &wire::framed(b"")));
    for (what, first, piece) in [
        ("PING", vec![], frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("PRIORITY", vec![], frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 7])),
        ("WINDOW_UPDATE", vec![], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("empty DATA", stream.clone(), frame(DATA, 0, 1, &[])),
        ("empty DATA to who is refused", vec![], frame(DATA, 0, 3, &[])),
    ] {
        let mut attacker = Raw::new(server.address()).await;
        attacker.pour(&first, 1).await;
        attacker.pour(&piece.repeat(1_000), 1_000).await;
        serves(&server).await;
        eprintln!("{what}:");
        within_bounds(&server);
    }
}
