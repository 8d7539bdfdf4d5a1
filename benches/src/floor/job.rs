//! A job that is nothing but its messages and its rows: stored, answered, called, and
//! stored again as ended.

use super::{group::Group, post::Post};
use crate::fault::{Fault, fault};
use bytes::Bytes;
use std::sync::{Mutex, PoisonError};

/// The header that says where the raw server is.
pub const SERVER: &str = "bench-raw";

/// Stores jobs and calls the application.
pub struct Jobs {
    pub group: Group,
    /// Of the application.
    port: u16,
    /// Of the raw server.
    server: http::HeaderValue,
    /// Connections to the application that wait.
    idle: Mutex<Vec<Post>>,
}

impl Jobs {
    /// Of the raw server at `server`, for the application at `port`.
    pub fn new(group: Group, port: u16, server: u16) -> Result<Self, Fault> {
        let server = http::HeaderValue::try_from(format!("http://127.0.0.1:{server}"))?;
        Ok(Self { group, port, server, idle: Mutex::default() })
    }

    /// Posts `body` to `path`, and stores the end when it is answered.
    pub async fn run(&self, job: u64, path: &str, body: Bytes) -> Result<(), Fault> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut post = match idle {
            Some(post) => post,
            None => Post::connect(self.port).await?,
        };
        let request = http::Request::builder().uri(path).header(SERVER, &self.server);
        post.send(request, body).await?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(post);
        self.group.end(job).await.map_err(fault)
    }
}
