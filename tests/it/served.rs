//! What is served besides on the same port: health, reflection, gRPC-Web.

use crate::harness::*;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

async fn channel(server: &Server) -> tonic::transport::Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    soon("a connection", endpoint.connect()).await.expect("connected")
}

#[tokio::test]
async fn health_tells_whether_new_work_is_taken() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    let mut health = HealthClient::new(channel(&server).await);
    for service in ["", "backjob.v1.JobControl", "backjob.v1.JobWorker"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.expect("an answer").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let mut changes = health.watch(HealthCheckRequest::default()).await.expect("a watch").into_inner();
    server.stop.drain.cancel();
    let told = async {
        while let Some(answer) = changes.message().await.expect("no error") {
            if answer.status() == ServingStatus::NotServing {
                return;
            }
        }
        panic!("the watch ended");
    };
    soon("NOT_SERVING", told).await;
    server.report(&hit.token(), finish()).await.expect("taken");
    hit.ok();
    drop(job);
}

#[tokio::test]
async fn reflection_of_both_versions_lists_the_services() {
    let (server, _application) = pair().await;
    let channel = channel(&server).await;
    {
        use tonic_reflection::pb::v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let asked = tokio_stream::once(ServerReflectionRequest { message_request, ..Default::default() });
        let answers = ServerReflectionClient::new(channel.clone()).server_reflection_info(asked).await;
        let answer =
            answers.expect("a stream").into_inner().message().await.expect("no error").expect("an answer");
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("no list")
        };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        assert!(names.contains(&"backjob.v1.JobControl".to_owned()), "{names:?}");
        assert!(names.contains(&"backjob.v1.JobWorker".to_owned()), "{names:?}");
    }
    use tonic_reflection::pb::v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let message_request = Some(MessageRequest::FileContainingSymbol("backjob.v1.JobControl".to_owned()));
    let asked = tokio_stream::once(ServerReflectionRequest { message_request, ..Default::default() });
    let answers = ServerReflectionClient::new(channel).server_reflection_info(asked).await;
    let answer =
        answers.expect("a stream").into_inner().message().await.expect("no error").expect("an answer");
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
        panic!("no file")
    };
    assert!(!files.file_descriptor_proto.is_empty());
}

#[tokio::test]
async fn grpc_web_is_spoken_over_http_1() {
    let (server, _application) = pair().await;
    let stream = TcpStream::connect(server.address).await.expect("connected");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    spawn(connection);
    let message = backjob::proto::v1::ListJobsRequest::default().encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).expect("small").to_be_bytes());
    body.extend(message);
    let request = http::Request::post("/backjob.v1.JobControl/ListJobs")
        .header("host", server.address.to_string())
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .body(Full::new(bytes::Bytes::from(body)))
        .expect("a request");
    let response = soon("an answer", sender.send_request(request)).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().get("content-type").expect("a type"), "application/grpc-web+proto");
    let body = soon("the body", response.into_body().collect()).await.expect("a body").to_bytes();
    assert_eq!(body[..5], [0, 0, 0, 0, 0], "an empty message");
    assert_eq!(body[5], 0x80, "then the trailers");
    assert!(String::from_utf8_lossy(&body[10..]).contains("grpc-status:0"));
}
