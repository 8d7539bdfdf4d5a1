//! Clients that take more than is theirs: messages that swell or never end, answers
//! that nobody reads, calls that are only held. Others are served meanwhile, within
//! a bound of memory.

use crate::{
    attack::*,
    harness::*,
    wire::{self, Protocol},
};
use backjob::{
    proto::v1,
    secret::{Role, token_line},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream};
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tonic::Code;

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
    assert_eq!(fault(&refused), (Code::ResourceExhausted, "TOO_LARGE".into(), vec![]));
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
        let attacks = (0..2).map(|_| wire::code(server.address(), protocol, rpc, None, message, json));
        let codes = soon("the answers", join_all(attacks)).await;
        assert!(codes.iter().all(|code| [3, 8].contains(code)), "{rpc} over {protocol:?}: {codes:?}");
        serves(&server).await;
        within(server.id(), MEMORY + 2 * SWOLLEN);
    }
}

/// CVE-2019-9517: a client that asks and takes nothing of the answers.
#[tokio::test]
async fn answers_that_nobody_takes_stay_within_their_budget() {
    let (server, application) = server(&[]).await;
    let text = "x".repeat(60 << 10);
    for _ in 0..40 {
        let job = server.start(start("/a")).await;
        application.hit().await.answer(200, &[], &text);
        server.end(&job.id).await;
    }
    let read_mask = Some(prost_types::FieldMask { paths: vec!["*".to_owned()] });
    let list = v1::ListJobsRequest { page_size: 500, read_mask, ..Default::default() };
    let page = server.control().list_jobs(list.clone()).await.expect("a list").into_inner();
    assert!(page.encoded_len() > 1 << 20, "{} bytes", page.encoded_len());
    let message = wire::framed(&list.encode_to_vec());
    // The windows are of no bytes, and of one.
    for window in [0, 1] {
        let mut attacker = Raw::with(server.address(), &[0, 4, 0, 0, 0, window]).await;
        for id in (0..200_u32).map(|n| n * 2 + 1) {
            let mut piece = frame(HEADERS, END_HEADERS, id, &head("JobControl/ListJobs"));
            piece.extend(frame(DATA, END_STREAM, id, &message));
            attacker.stream.write_all(&piece).await.expect("written");
        }
        let refused = attacker.heads(200).await;
        assert!((1..200).contains(&refused), "{refused} were refused");
        // Small answers have room.
        server.control().list_jobs(v1::ListJobsRequest::default()).await.expect("a list without texts");
        within_bounds(&server);
    }
    // With its connection an answer is gone, and its room is there again.
    poll("room for a large answer", async || {
        let answer = server.control().list_jobs(list.clone()).await;
        answer.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

#[tokio::test]
async fn who_has_no_token_keeps_nobody_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokens");
    let line = token_line("shop", Role::Operator, "token").expect("a name");
    std::fs::write(&file, line).expect("written");
    let file = file.display().to_string();
    let (server, _application) = server(&[("server.max_calls", "20"), ("server.tokens_file", &file)]).await;
    // Calls of health, the only ones that need no token, which never end.
    let mut attackers = Vec::new();
    for _ in 0..10 {
        let mut attacker = Raw::new(server.address()).await;
        for id in (0..50_u32).map(|n| n * 2 + 1) {
            let mut block = vec![0x83, 0x86];
            block.extend(field(":path", "/grpc.health.v1.Health/Check"));
            block.extend(field(":authority", "localhost"));
            block.extend(field("content-type", "application/grpc"));
            attacker.stream.write_all(&frame(HEADERS, END_HEADERS, id, &block)).await.expect("written");
        }
        // Those beyond what one connection may have are refused.
        assert_eq!(attacker.heads(34).await, 34);
        attackers.push(attacker);
    }
    let fresh = Clients::new(server.address());
    let mut control = fresh.control();
    let list = control.list_jobs(authorized(v1::ListJobsRequest::default(), "token"));
    soon("an answer", list).await.expect("a place");
    let mut health = tonic_health::pb::health_client::HealthClient::new(fresh.channel());
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("a probe of somebody else");
}

#[tokio::test]
async fn streams_of_reports_are_few_and_end_with_their_attempt() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let token = hit.token();
    // Silent until its other end is dropped.
    let open = async || {
        let (says, silent) = tokio::sync::mpsc::channel::<v1::ReportRequest>(1);
        let silent = tokio_stream::wrappers::ReceiverStream::new(silent);
        let answers = server.worker().report_stream(authorized(silent, &token)).await?;
        Ok::<_, tonic::Status>((says, answers.into_inner()))
    };
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(open().await.expect("a stream"));
    }
    assert_eq!(fault(&open().await.expect_err("refused")).1, "TOO_MANY_CALLS");
    drop(streams.split_off(8));
    let opened = poll("a place", async || open().await.map_err(|error| error.to_string())).await;
    streams.push(opened);
    // The 2xx waits for them a second, and then they have nothing to say.
    hit.ok();
    server.end(&job.id).await;
    streams.push(open().await.expect("who comes late may repeat its last report"));
    for (_says, mut stream) in streams {
        assert!(soon("the end of a stream", stream.message()).await.expect("no error").is_none());
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
