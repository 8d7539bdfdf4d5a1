//! For actions written in Rust: report progress, and hear of a cancel.
//!
//! A [`Reporter`] is made from the headers of the trigger. What it is told is
//! merged into the next message and sent at once when the stream is free, so
//! that a report never waits and memory stays bounded, however fast an action
//! reports. A stream that breaks is opened again and what was not acknowledged
//! is sent again under the same sequence, so that it counts once.
//!
//! ```no_run
//! # async fn work(headers: &http::HeaderMap) -> Result<(), backjob::worker::Error> {
//! let reporter = backjob::worker::Reporter::from_headers(headers)?;
//! for row in 0..1_000 {
//!     if reporter.is_cancelled() {
//!         return reporter.stopped().await;
//!     }
//!     reporter.detail(row + 1, 1_000, "rows", "copying");
//! }
//! reporter.finish("text/plain", "1,000 rows").await
//! # }
//! ```

mod pending;
mod stream;

use crate::proto::v1;
use pending::Pending;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use stream::Stream;
use tokio::sync::{Notify, watch};
#[cfg(feature = "worker-tls")]
use tonic::transport::ClientTlsConfig;
use tonic::{Status, metadata::MetadataValue, transport::Endpoint};

/// Bytes of a result, at most.
const RESULT: usize = 64 * 1024;

/// How long a connection may take to be made.
const CONNECTING: Duration = Duration::from_secs(5);
/// Between two looks whether the server still answers, and how long it may take to.
const ALIVE: Duration = Duration::from_secs(10);

/// Why there is no reporter, or why an end was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A header of the trigger is missing or wrong.
    #[error("the header {0} is missing or not as backjob sends it")]
    Header(&'static str),
    /// More than 64 KiB.
    #[error("a result may have {RESULT} bytes at most")]
    TooLarge,
    /// The server refuses: the job is over, or the attempt is not the present
    /// one.
    #[error("the report was refused: {0}")]
    Refused(String),
    /// It is ended already.
    #[error("the attempt was ended already")]
    Ended,
}

/// Reports for one attempt. Clones report for the same one. While one of them
/// lives, heartbeats keep the job from being given up; when the last is dropped
/// without an end, the action's HTTP response decides.
#[derive(Clone)]
pub struct Reporter {
    shared: Arc<Shared>,
    /// Tells the stream when the last reporter is gone.
    _alive: Arc<watch::Sender<()>>,
    job_id: Arc<str>,
    attempt: u32,
}

/// Between reporters and their stream.
struct Shared {
    pending: Mutex<Pending>,
    changed: Notify,
    /// Somebody wants the action to stop.
    cancelled: watch::Sender<bool>,
    /// What became of the end, or why nothing is taken any more.
    over: watch::Sender<Option<Result<(), Error>>>,
    /// Longest silence before a heartbeat.
    heartbeat: watch::Sender<Option<Duration>>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reporter {
    /// Reads `Backjob-Report-Url`, `Backjob-Report-Token`, `Backjob-Job-Id`,
    /// `Backjob-Attempt` and `Backjob-Deadline` of a trigger. Verify its
    /// signature first: see [`crate::verify`]. Connects in the background, in
    /// the present tokio runtime.
    ///
    /// A URL with `https` needs the feature `worker-tls`, and its certificate is
    /// checked with the public authorities.
    ///
    /// # Errors
    /// Names the header at fault.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn from_headers(headers: &http::HeaderMap) -> Result<Self, Error> {
        Self::new(headers, |endpoint| {
            #[cfg(feature = "worker-tls")]
            let endpoint = match endpoint.uri().scheme_str() {
                Some("https") => endpoint.tls_config(ClientTlsConfig::new().with_webpki_roots())?,
                _ => endpoint,
            };
            Ok(endpoint)
        })
    }

    /// The same; the certificate of a server that is reported to over TLS must be of
    /// one of the authorities in `ca`, in PEM.
    ///
    /// # Errors
    /// Names the header at fault: that of the URL if `ca` holds no certificate.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[cfg(feature = "worker-tls")]
    pub fn from_headers_trusting(headers: &http::HeaderMap, ca: &[u8]) -> Result<Self, Error> {
        let tls = ClientTlsConfig::new().ca_certificate(tonic::transport::Certificate::from_pem(ca));
        Self::new(headers, |endpoint| endpoint.tls_config(tls))
    }

    fn new(
        headers: &http::HeaderMap,
        secure: impl FnOnce(Endpoint) -> Result<Endpoint, tonic::transport::Error>,
    ) -> Result<Self, Error> {
        let header = |name: &'static str| {
            headers.get(name).and_then(|value| value.to_str().ok()).ok_or(Error::Header(name))
        };
        let url = header("backjob-report-url")?;
        let endpoint =
            Endpoint::from_shared(url.to_owned()).map_err(|_| Error::Header("backjob-report-url"))?;
        // One that vanished without a word is noticed, and come back to.
        let endpoint =
            endpoint.connect_timeout(CONNECTING).http2_keep_alive_interval(ALIVE).keep_alive_timeout(ALIVE);
        let endpoint = secure(endpoint).map_err(|_| Error::Header("backjob-report-url"))?;
        let token = format!("Bearer {}", header("backjob-report-token")?);
        let token = MetadataValue::try_from(token).map_err(|_| Error::Header("backjob-report-token"))?;
        let attempt = header("backjob-attempt")?.parse().map_err(|_| Error::Header("backjob-attempt"))?;
        let deadline: Option<u64> = header("backjob-deadline").ok().and_then(|text| text.parse().ok());
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            changed: Notify::new(),
            cancelled: watch::Sender::new(false),
            over: watch::Sender::new(None),
            heartbeat: watch::Sender::new(deadline.map(|seconds| Duration::from_secs(seconds) / 3)),
        });
        let (alive, gone) = watch::channel(());
        let stream = Stream { shared: Arc::clone(&shared), endpoint, token, gone };
        #[expect(clippy::disallowed_methods, reason = "an application has no tasks of ours")]
        tokio::spawn(stream.run());
        let job_id = header("backjob-job-id")?.into();
        Ok(Self { shared, _alive: Arc::new(alive), job_id, attempt })
    }

    /// Id of the job: the same for every attempt.
    pub fn job_id(&self) -> &str {
        &self.job_id
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    fn tell(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.shared.pending());
        self.shared.changed.notify_one();
    }

    /// Progress is at `percent`, 0 to 100.
    pub fn progress(&self, percent: u32) {
        self.tell(|pending| pending.progress(percent));
    }

    /// Progress goes on by `percent`; a sum over 100 is 100.
    pub fn advance(&self, percent: u32) {
        self.tell(|pending| pending.advance(percent));
    }

    /// Progress in the action's own terms; gives the percentage too where
    /// `total` is not 0. Of `unit` 64 bytes are kept, of `stage` 256.
    pub fn detail(&self, done: u64, total: u64, unit: &str, stage: &str) {
        self.tell(|pending| pending.detail(done, total, unit, stage));
    }

    /// Adds to the text; the last 64 KiB are kept.
    pub fn text(&self, more: &str) {
        self.tell(|pending| pending.append(more));
    }

    /// Puts another text in its place.
    pub fn replace_text(&self, text: &str) {
        self.tell(|pending| pending.replace(text));
    }

    /// Says that the action lives. Done by itself unless turned off.
    pub fn heartbeat(&self) {
        self.tell(Pending::heartbeat);
    }

    /// No heartbeats by themselves: an action that hangs is then given up.
    pub fn without_heartbeats(&self) {
        self.shared.heartbeat.send_replace(None);
        self.tell(|pending| pending.silent = true);
    }

    /// Whether the action should stop: somebody cancelled the job, or it is
    /// over.
    pub fn is_cancelled(&self) -> bool {
        *self.shared.cancelled.borrow()
    }

    /// Returns once the action should stop. Cancel safe.
    pub async fn cancelled(&self) {
        // Fails only if the sender is gone, which we hold.
        let _ = self.shared.cancelled.subscribe().wait_for(|cancelled| *cancelled).await;
    }

    /// The action is done. Returns when that is durable.
    ///
    /// # Errors
    /// [`Error::TooLarge`], or what the server says.
    pub async fn finish(&self, content_type: &str, data: impl Into<bytes::Bytes>) -> Result<(), Error> {
        let data = data.into();
        if data.len() > RESULT {
            return Err(Error::TooLarge);
        }
        let content_type = content_type.to_owned();
        let result = (!content_type.is_empty() || !data.is_empty()).then_some(v1::JobResult {
            content_type,
            data,
            truncated: false,
        });
        self.end(v1::report_request::End::Finish(v1::Finish { result })).await
    }

    /// The action has failed; `retryable` if another attempt may succeed.
    /// Returns when that is durable.
    ///
    /// # Errors
    /// What the server says.
    pub async fn fail(&self, message: &str, retryable: bool) -> Result<(), Error> {
        let message = message.to_owned();
        self.end(v1::report_request::End::Fail(v1::Fail { message, retryable })).await
    }

    /// The action has obeyed a cancel. Returns when that is durable.
    ///
    /// # Errors
    /// What the server says.
    pub async fn stopped(&self) -> Result<(), Error> {
        self.end(v1::report_request::End::Stopped(v1::Stopped {})).await
    }

    async fn end(&self, end: v1::report_request::End) -> Result<(), Error> {
        if !self.shared.pending().end(end) {
            return Err(Error::Ended);
        }
        self.shared.changed.notify_one();
        let mut over = self.shared.over.subscribe();
        match over.wait_for(Option::is_some).await {
            Ok(over) => over.clone().unwrap_or(Ok(())),
            Err(_) => Err(Error::Refused("the stream of reports has ended".into())),
        }
    }
}

/// What the server says, in short.
fn refused(status: &Status) -> Error {
    Error::Refused(format!("{}: {}", status.code(), status.message()))
}

#[cfg(test)]
mod tests;
