//! A job that is nothing but its messages and its rows: stored, answered, called, and
//! stored again as ended.

use super::group::Group;
use crate::fault::{Fault, fault};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::sync::{Mutex, PoisonError};
use tokio::net::TcpStream;

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
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
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
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        connection.ready().await?;
        let request = http::Request::post(path).header("host", "127.0.0.1").header(SERVER, &self.server);
        let answer = connection.send_request(request.body(Full::new(body))?).await?;
        if !answer.status().is_success() {
            return Err(fault("the application refuses a raw job"));
        }
        answer.into_body().collect().await?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        self.group.end(job).await.map_err(fault)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Fault> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        crate::tasks::spawn(connection);
        Ok(sender)
    }
}
