//! What is passed on arrives as it was, and so does the answer.

use super::{
    owners::{Attempt, Owner},
    wire::{Destination, Form, Wire},
    *,
};
use crate::{job::JobId, tasks::Tasks};
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_types::StatusExt as _;

type Pieces = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// Another node, whose every call waits for the test to answer.
struct Other {
    address: SocketAddr,
    calls: mpsc::Receiver<Call>,
    connections: Arc<AtomicUsize>,
    tasks: Tasks,
}

struct Call {
    request: Request<Incoming>,
    answer: tokio::sync::oneshot::Sender<Response<Body>>,
}

impl Call {
    /// Begins an answer; its pieces follow.
    fn begin(self) -> (Incoming, Pieces) {
        let (sender, pieces) = mpsc::channel(8);
        let mut response = Response::new(Body::new(StreamBody::new(ReceiverStream::new(pieces))));
        response.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
        response.headers_mut().insert("backjob-test", "kept".parse().expect("a value"));
        let _ = self.answer.send(response);
        (self.request.into_body(), sender)
    }
}

impl Other {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (sender, calls) = mpsc::channel(512);
        let (connections, tasks) = (Arc::new(AtomicUsize::new(0)), Tasks::default());
        let (count, own) = (Arc::clone(&connections), tasks.clone());
        tasks.spawn("listener", async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = own.stop().cancelled() => return,
                };
                let Ok((stream, _)) = accepted else { return };
                count.fetch_add(1, Ordering::Relaxed);
                let sender = sender.clone();
                let service = service_fn(move |request| {
                    let sender = sender.clone();
                    async move {
                        let (answer, answered) = tokio::sync::oneshot::channel();
                        let _ = sender.send(Call { request, answer }).await;
                        Ok::<_, Infallible>(match answered.await {
                            Ok(response) => response,
                            Err(_) => std::future::pending().await,
                        })
                    }
                });
                let stop = own.stop().clone();
                own.spawn("connection", async move {
                    let builder = Builder::new(TokioExecutor::new());
                    tokio::select! {
                        _ = builder.serve_connection(TokioIo::new(stream), service) => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
        });
        Self { address, calls, connections, tasks }
    }

    async fn call(&mut self) -> Call {
        soon("a call", self.calls.recv()).await.expect("the listener lives")
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap_or_else(|_| panic!("no {what}"))
}

fn wire() -> Arc<Wire> {
    let tls = PeerTls::new(None, None).expect("no files, no faults");
    let tls = watch::Sender::new(Arc::new(tls)).subscribe();
    Arc::new(Wire::new(Relaying { node: "here".into(), lease: Duration::from_secs(1), tls }))
}

const ATTEMPT: Attempt = Attempt { job: JobId::from_bytes([1; 16]), number: 1 };

fn at(address: SocketAddr) -> Destination {
    let owner = Owner::new("there", Some(&format!("http://{address}")));
    Destination { job: ATTEMPT.job, attempt: Some(ATTEMPT), owner }
}

fn request(body: Body) -> Request<Body> {
    let request = Request::post("http://us.example/backjob.v1.JobWorker/Report")
        .header("authorization", "Bearer t")
        .header("content-type", "application/grpc+proto")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("origin", "http://page.example")
        .header("cookie", "secret=1")
        .header("host", "us.example");
    request.body(body).expect("a request")
}

fn trailers(pairs: &[(&'static str, &str)]) -> Frame<Bytes> {
    let pairs = pairs.iter().map(|(name, value)| {
        (http::HeaderName::from_static(name), value.parse::<http::HeaderValue>().expect("a value"))
    });
    Frame::trailers(pairs.collect())
}

/// The whole of an answer.
async fn whole(response: Response<Body>) -> (HeaderMap, Bytes, HeaderMap) {
    let (parts, body) = response.into_parts();
    let body = soon("end", body.collect()).await.expect("an error comes in the trailers");
    let trailers = body.trailers().cloned().unwrap_or_default();
    (parts.headers, body.to_bytes(), trailers)
}

async fn status(response: Response<Body>) -> Status {
    let (headers, _, trailers) = whole(response).await;
    let status = Status::from_header_map(&headers).or_else(|| Status::from_header_map(&trailers));
    status.expect("a status")
}

fn unreachable(status: &Status) {
    let details = status.get_error_details();
    let info = details.error_info().expect("a reason");
    assert_eq!((status.code(), info.reason.as_str()), (Code::Unavailable, "OWNER_UNREACHABLE"), "{status:?}");
    let about = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
    assert_eq!((about("node"), about("job_id")), ("there".into(), ATTEMPT.job.to_string()));
    assert!(details.retry_info().is_some());
}

#[tokio::test]
async fn a_call_is_passed_on_as_it_is_and_so_is_its_answer() {
    let (wire, mut other) = (wire(), Other::new().await);
    // A message with a field that no version knows.
    let message = Bytes::from_static(b"\0\0\0\0\x04\xfa\xff\x01\0");
    let asked = wire.forward(request(Body::new(Full::new(message.clone()))), at(other.address), Form::Unary);
    let answer = async {
        let call = other.call().await;
        let headers = call.request.headers().clone();
        assert_eq!(call.request.uri().path(), "/backjob.v1.JobWorker/Report");
        let (body, pieces) = call.begin();
        let seen = body.collect().await.expect("whole").to_bytes();
        pieces.send(Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x03abc")))).await.expect("taken");
        pieces.send(Ok(trailers(&[("grpc-status", "0"), ("x-more", "1")]))).await.expect("taken");
        (headers, seen)
    };
    let (response, (sent, seen)) = tokio::join!(asked, answer);
    assert_eq!(seen, message);
    let sent =
        |name: &str| sent.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    assert_eq!(
        (sent("authorization"), sent("content-type")),
        ("Bearer t".into(), "application/grpc+proto".into())
    );
    assert_eq!(sent(RELAYED), "here");
    assert!(sent("traceparent").starts_with("00-"));
    // Who called, and from which page, is no matter of the other node.
    assert_eq!((sent("origin"), sent("cookie")), (String::new(), String::new()));
    let (headers, body, trailers) = whole(response).await;
    assert_eq!(headers.get("backjob-test").map(|value| value.as_bytes()), Some(&b"kept"[..]));
    assert_eq!(&body[..], b"\0\0\0\0\x03abc");
    assert_eq!((trailers.len(), trailers["x-more"].as_bytes()), (2, &b"1"[..]));
}

#[tokio::test]
async fn an_error_comes_back_with_its_details_and_the_owner_is_forgotten() {
    let (wire, mut other) = (wire(), Other::new().await);
    let to = at(other.address);
    for in_headers in [true, false] {
        wire.owners.remember(ATTEMPT, to.owner.clone());
        let theirs = status::token_invalid();
        let asked = wire.forward(request(Body::empty()), to.clone(), Form::Unary);
        let answer = async {
            let call = other.call().await;
            if in_headers {
                call.answer.send(theirs.clone().into_http()).expect("waited for");
            } else {
                let (_, pieces) = call.begin();
                let mut map = HeaderMap::new();
                theirs.add_header(&mut map).expect("fits");
                pieces.send(Ok(Frame::trailers(map))).await.expect("taken");
            }
        };
        let (response, ()) = tokio::join!(asked, answer);
        let ours = self::status(response).await;
        assert_eq!((ours.code(), ours.message()), (theirs.code(), theirs.message()));
        assert_eq!(ours.details(), theirs.details());
        assert_eq!(wire.owners.get(ATTEMPT), None, "in its headers: {in_headers}");
    }
}

#[tokio::test]
async fn who_cannot_be_reached_is_named_and_forgotten() {
    let (wire, mut other) = (wire(), Other::new().await);
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a listener").local_addr().expect("one");
    let nowhere = Destination { owner: Owner::new("there", None), ..at(closed) };
    let nonsense = Destination { owner: Owner::new("there", Some("http://")), ..at(closed) };
    for to in [nowhere, nonsense, at(closed), at(closed)] {
        wire.owners.remember(ATTEMPT, to.owner.clone());
        unreachable(&status(wire.forward(request(Body::empty()), to, Form::Unary).await).await);
        assert_eq!(wire.owners.get(ATTEMPT), None);
    }
    // One that takes the call and says nothing, and one that says the half of it.
    unreachable(&status(wire.forward(request(Body::empty()), at(other.address), Form::Unary).await).await);
    let _silent = other.call().await;
    let asked = wire.forward(request(Body::empty()), at(other.address), Form::Unary);
    let (response, pieces) = tokio::join!(asked, async { other.call().await.begin().1 });
    unreachable(&status(response).await);
    drop(pieces);
    assert_eq!(wire.connections(), 0, "a connection that failed is left");
}

#[tokio::test]
async fn a_stream_is_passed_on_in_both_directions() {
    let (wire, mut other) = (wire(), Other::new().await);
    let (sender, pieces) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body = Body::new(StreamBody::new(ReceiverStream::new(pieces)));
    let asked = wire.forward(request(body), at(other.address), Form::Stream);
    let (response, (mut theirs, answers)) = tokio::join!(asked, async { other.call().await.begin() });
    let mut ours = response.into_body();
    // It lasts for longer than a unary call may.
    let began = tokio::time::Instant::now();
    for n in 0..12_u8 {
        sender.send(Ok(Frame::data(Bytes::from(vec![n])))).await.expect("taken");
        let there = soon("a report", theirs.frame()).await.expect("one").expect("whole");
        assert_eq!(there.data_ref().expect("data")[..], [n]);
        answers.send(Ok(Frame::data(Bytes::from(vec![100 + n])))).await.expect("taken");
        let here = soon("an answer", ours.frame()).await.expect("one").expect("whole");
        assert_eq!(here.data_ref().expect("data")[..], [100 + n]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(1));
    // A half is closed, and the other side still speaks.
    drop(sender);
    let rest = soon("the end of the reports", theirs.collect()).await.expect("whole").to_bytes();
    assert!(rest.is_empty());
    answers.send(Ok(Frame::data(Bytes::from_static(b"z")))).await.expect("taken");
    answers.send(Ok(trailers(&[("grpc-status", "0")]))).await.expect("taken");
    drop(answers);
    let rest = soon("the end", ours.collect()).await.expect("whole");
    assert_eq!(rest.trailers().expect("trailers")["grpc-status"], "0");
    assert_eq!(&rest.to_bytes()[..], b"z");
}

#[tokio::test]
async fn nothing_is_read_faster_than_it_is_taken() {
    let (wire, mut other) = (wire(), Other::new().await);
    let (sender, pieces) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body = Body::new(StreamBody::new(ReceiverStream::new(pieces)));
    let asked = wire.forward(request(body), at(other.address), Form::Stream);
    // The other node does not read: so nor do we, beyond what HTTP/2 lets lie.
    let (response, _unread) = tokio::join!(asked, async { other.call().await.begin() });
    let mut taken = 0;
    while let Ok(sent) = tokio::time::timeout(
        Duration::from_millis(300),
        sender.send(Ok(Frame::data(Bytes::from(vec![0; 64 * 1024])))),
    )
    .await
    {
        sent.expect("taken");
        taken += 1;
        assert!(taken < 64, "4 MiB were taken of what nobody reads");
    }
    drop(response);
}

#[tokio::test]
async fn a_stream_whose_owner_dies_ends_so_that_it_is_opened_again() {
    let (wire, mut other) = (wire(), Other::new().await);
    let to = at(other.address);
    wire.owners.remember(ATTEMPT, to.owner.clone());
    let (_sender, pieces) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body = Body::new(StreamBody::new(ReceiverStream::new(pieces)));
    let asked = wire.forward(request(body), to, Form::Stream);
    let (response, (_theirs, answers)) = tokio::join!(asked, async { other.call().await.begin() });
    answers.send(Ok(Frame::data(Bytes::from_static(b"a")))).await.expect("taken");
    let mut ours = response.into_body();
    soon("an answer", ours.frame()).await.expect("one").expect("whole");
    other.tasks.stop().cancel();
    let end = soon("the end", ours.frame()).await.expect("trailers").expect("no error of the transport");
    unreachable(&Status::from_header_map(end.trailers_ref().expect("trailers")).expect("a status"));
    assert!(soon("the end", ours.frame()).await.is_none());
    assert_eq!(wire.owners.get(ATTEMPT), None);
    assert_eq!(wire.connections(), 0);
}

#[tokio::test]
async fn calls_share_connections_and_streams_keep_nobody_waiting() {
    let (wire, mut other) = (wire(), Other::new().await);
    let stream = || {
        let (sender, pieces) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
        (sender, Body::new(StreamBody::new(ReceiverStream::new(pieces))))
    };
    let to = at(other.address);
    let mut open = Vec::new();
    for _ in 0..150 {
        let (sender, body) = stream();
        let asked = wire.forward(request(body), to.clone(), Form::Stream);
        let (response, there) = tokio::join!(asked, async { other.call().await.begin() });
        open.push((sender, response, there));
    }
    assert_eq!((other.connections(), wire.connections()), (2, 2));
    for _ in 0..100 {
        let asked = wire.forward(request(Body::empty()), to.clone(), Form::Unary);
        let answer = async {
            let (_, pieces) = other.call().await.begin();
            pieces.send(Ok(trailers(&[("grpc-status", "0")]))).await.expect("taken");
        };
        let (response, ()) = tokio::join!(asked, answer);
        assert_eq!(status(response).await.code(), Code::Ok);
    }
    assert_eq!(other.connections(), 2);
    drop(open);
    // What is under way at once shares one that is being made.
    let mut fresh = Other::new().await;
    let to = at(fresh.address);
    let asked = (0..50).map(|_| wire.forward(request(Body::empty()), to.clone(), Form::Unary));
    let answer = async {
        for _ in 0..50 {
            let (_, pieces) = fresh.call().await.begin();
            pieces.send(Ok(trailers(&[("grpc-status", "0")]))).await.expect("taken");
        }
    };
    let (responses, ()) = tokio::join!(futures_util::future::join_all(asked), answer);
    assert_eq!(responses.len(), 50);
    assert_eq!(fresh.connections(), 1);
}
