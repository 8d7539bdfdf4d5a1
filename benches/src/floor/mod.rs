//! What the machine gives without backjob: the same transport with nothing behind
//! it, and the same disk.

pub mod disk;
pub mod group;
pub mod job;
pub mod post;

use bytes::Bytes;

/// A message of any size.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Blob {
    /// How long the answer's `data` should be.
    #[prost(uint32, tag = "1")]
    pub answer: u32,
    /// When it was sent, as the sender's clock has it; comes back.
    #[prost(fixed64, tag = "2")]
    pub sent: u64,
    /// The rest.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// Bytes of any length up to 64 KiB, shared.
pub fn filler(length: usize) -> Bytes {
    static FILLER: [u8; 65_536] = [b'x'; 65_536];
    Bytes::from_static(&FILLER[..length.min(FILLER.len())])
}

/// The generated service.
pub mod wire {
    #![allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used)]
    include!(concat!(env!("OUT_DIR"), "/backjob.bench.Raw.rs"));
}
