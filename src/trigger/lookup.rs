//! Who resolves names. A seam: in tests a resolver that lies stands here.

use std::{future::Future, io, net::SocketAddr, pin::Pin};

/// Finds the addresses of a name.
pub(super) type Lookup = Box<dyn Fn(String, u16) -> Found + Send + Sync>;
/// What a look-up comes to.
pub(super) type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Asks the system's resolver.
pub(super) fn by_system() -> Lookup {
    Box::new(|host, port| {
        Box::pin(async move { tokio::net::lookup_host((host, port)).await.map(Iterator::collect) })
    })
}
