//! Compiles `proto/` with protox, so that no protoc is needed on the machine.

use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    if env::var_os("CARGO_FEATURE_WORKER").is_none() {
        return Ok(()); // `verify` alone needs no messages
    }
    let server = env::var_os("CARGO_FEATURE_SERVER").is_some();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(
        [
            "proto/backjob/v1/job.proto",
            "proto/backjob/v1/job_control.proto",
            "proto/backjob/v1/job_worker.proto",
        ],
        ["proto"],
    )?;
    fs::write(out.join("backjob.v1.bin"), descriptors.encode_to_vec())?;

    if server {
        frames(&out, descriptors.clone())?;
    }
    tonic_prost_build::configure()
        .out_dir(&out)
        .build_client(true)
        .build_server(server)
        .bytes(".backjob.v1.RawBody.data")
        .bytes(".backjob.v1.JobResult.data")
        .btree_map(".backjob.v1")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The servers once more, with a codec of their own; and JobControl's with answers that
/// are encoded already: the bytes of a job's state are shared by all who ask for it;
/// and with batches that are read no further than they may be long.
fn frames(out: &Path, descriptors: FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    let folder = out.join("frames");
    fs::create_dir_all(&folder)?;
    tonic_prost_build::configure()
        .out_dir(folder)
        .build_client(false)
        .build_server(true)
        .codec_path("crate::rpc::codec::Codec")
        .extern_path(".backjob.v1.StartResponse", "crate::rpc::frame::JobFrame")
        .extern_path(".backjob.v1.GetStatusResponse", "crate::rpc::frame::JobFrame")
        .extern_path(".backjob.v1.WatchStatusResponse", "crate::rpc::frame::JobFrame")
        .extern_path(".backjob.v1.RunResponse", "crate::rpc::frame::RunFrame")
        .extern_path(".backjob.v1.BatchStartRequest", "crate::rpc::batch::Batch")
        .extern_path(".backjob.v1", "crate::proto::v1")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(descriptors)?;
    Ok(())
}
