//! The raw tonic service that backjob is compared with, without a .proto file.

use tonic_prost_build::manual::{Builder, Method, Service};

fn method(name: &str, route: &str) -> tonic_prost_build::manual::MethodBuilder {
    let blob = "crate::floor::Blob";
    let method = Method::builder().name(name).route_name(route);
    method.input_type(blob).output_type(blob).codec_path("tonic_prost::ProstCodec")
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let service = Service::builder()
        .name("Raw")
        .package("backjob.bench")
        .comment("Answers at once or when a row is durable, and hands on what was published.")
        .method(method("echo", "Echo").build())
        .method(method("keep", "Keep").build())
        .method(method("store", "Store").build())
        .method(method("run", "Run").build())
        .method(method("sink", "Sink").client_streaming().server_streaming().build())
        .method(method("publish", "Publish").build())
        .method(method("subscribe", "Subscribe").server_streaming().build())
        .build();
    Builder::new().compile(&[service]);
}
