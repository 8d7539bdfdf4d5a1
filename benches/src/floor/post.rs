//! HTTP by itself: a connection to the application.

use crate::{
    fault::{Fault, fault},
    tasks::spawn,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Posts one request after the other.
pub struct Post(SendRequest<Full<Bytes>>);

impl Post {
    /// To the application at `port`.
    pub async fn connect(port: u16) -> Result<Self, Fault> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        spawn(connection);
        Ok(Self(sender))
    }

    /// Sends it, and takes an answer that is a success.
    pub async fn send(&mut self, request: http::request::Builder, body: Bytes) -> Result<(), Fault> {
        self.0.ready().await?;
        let request = request.method("POST").header("host", "127.0.0.1");
        let answer = self.0.send_request(request.body(Full::new(body))?).await?;
        if !answer.status().is_success() {
            return Err(fault("the application refuses"));
        }
        answer.into_body().collect().await?;
        Ok(())
    }
}
