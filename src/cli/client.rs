//! The connection to a server, and what its errors look like.

use super::screen;
use crate::proto::v1::job_control_client::JobControlClient;
use std::{io::IsTerminal as _, path::PathBuf, time::Duration};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt as _;

/// What every remote command is given.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Address of the server: HOST:PORT or a URL.
    #[arg(long, global = true, env = "BACKJOB_ADDR", default_value = "127.0.0.1:50051")]
    addr: String,
    /// Token to call with.
    #[arg(long, global = true, env = "BACKJOB_TOKEN", hide_env_values = true, default_value = "")]
    token: String,
    /// Authorities in PEM that an https:// server is checked with [default: the
    /// public ones].
    #[arg(long, global = true, value_name = "FILE", env = "BACKJOB_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Our own certificate chain in PEM, for a server that asks for one.
    #[arg(long, global = true, value_name = "FILE", env = "BACKJOB_CERT_FILE", requires = "cert_key_file")]
    cert_file: Option<PathBuf>,
    /// Its private key in PEM.
    #[arg(long, global = true, value_name = "FILE", env = "BACKJOB_CERT_KEY_FILE", requires = "cert_file")]
    cert_key_file: Option<PathBuf>,
    /// How to print: for people, or as JSON lines.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Output {
    /// For people on a terminal, else JSON lines.
    #[default]
    Auto,
    /// For people.
    Human,
    /// JSON lines, in the JSON mapping of protobuf.
    Json,
}

/// A server to call.
pub(super) struct Client {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    /// Whether to print JSON lines.
    pub(super) json: bool,
}

impl Client {
    pub(super) fn new(options: Options) -> Result<Self, String> {
        let tls = tls(&options)?;
        let Options { addr, token, output, .. } = options;
        let url = if addr.contains("://") { addr } else { format!("http://{addr}") };
        let endpoint =
            Endpoint::from_shared(url.clone()).map_err(|error| format!("--addr {url}: {error}"))?;
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(10))
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        let endpoint = if url.starts_with("https://") {
            endpoint.tls_config(tls).map_err(|error| format!("--ca-file, --cert-file: {error}"))?
        } else {
            endpoint
        };
        let token = (!token.is_empty()).then(|| MetadataValue::try_from(format!("Bearer {token}")));
        let token = token.transpose().map_err(|_| "--token: not a token".to_owned())?;
        let json = match output {
            Output::Json => true,
            Output::Human => false,
            Output::Auto => !std::io::stdout().is_terminal(),
        };
        Ok(Self { channel: endpoint.connect_lazy(), token, json })
    }

    /// A client for the server at `addr`, printing for people.
    pub(super) fn at(addr: String) -> Result<Self, String> {
        let (ca_file, cert_file, cert_key_file) = (None, None, None);
        let token = String::new();
        Self::new(Options { addr, token, ca_file, cert_file, cert_key_file, output: Output::Human })
    }

    pub(super) fn control(&self) -> JobControlClient<Channel> {
        JobControlClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }
}

/// Whom to trust, and who we are.
fn tls(options: &Options) -> Result<ClientTlsConfig, String> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let mut tls = match &options.ca_file {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_webpki_roots(),
    };
    if let (Some(certificate), Some(key)) = (&options.cert_file, &options.cert_key_file) {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(tls)
}

/// An error of the server, for people: a line for each field at fault.
pub(super) fn told(status: &Status) -> String {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| format!(" ({})", info.reason)).unwrap_or_default();
    let fields = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
    let text = if fields.is_empty() {
        format!("{}{reason}: {}", status.code(), status.message())
    } else {
        let lines = fields.iter().map(|field| format!("\n  {}: {}", field.field, field.description));
        format!("{}{reason}{}", status.code(), lines.collect::<String>())
    };
    screen::plain(&text)
}

/// Whether the same call may succeed later, and when to try.
pub(super) fn retry_after(status: &Status) -> Option<Duration> {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    match status.code() {
        Code::Unavailable => Some(asked.unwrap_or(Duration::from_millis(500))),
        // A connection that broke in the middle of a stream.
        Code::Unknown | Code::Internal | Code::Cancelled if !has_reason(status) => {
            Some(Duration::from_millis(500))
        }
        _ => None,
    }
}

/// Whether the server itself said it, and not the transport.
fn has_reason(status: &Status) -> bool {
    status.get_error_details().error_info().is_some()
}
