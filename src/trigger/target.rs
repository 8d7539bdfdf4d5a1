//! A configured target, ready to use.

use super::{
    lookup::{Lookup, by_system},
    origin::{At, Url, split},
    tls,
};
use crate::job::url::BadRoute;
use http::HeaderValue;
use ipnet::IpNet;
use rustls::pki_types::ServerName;
use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
};
use tokio_rustls::TlsConnector;

/// What an operator says of a target.
#[derive(Clone)]
pub struct TargetOptions {
    /// Its name.
    pub name: String,
    /// `http://127.0.0.1:8080/base`, `https://…`, `unix:/run/app.sock` or
    /// `unix:/run/app.sock:/base`.
    pub url: String,
    /// The `Host` header, and with https the name that its certificate must
    /// have; the URL's if none is given, `localhost` for unix sockets.
    pub host: Option<String>,
    /// Which addresses may be called, besides loopback.
    pub allow: Vec<IpNet>,
    /// PEM file of the authorities to trust, for https; those of webpki-roots if
    /// none is given.
    pub ca_file: Option<PathBuf>,
    /// What triggers are signed with.
    pub key: [u8; 32],
    /// Which key it is; visible ASCII without `"` and `\`.
    pub keyid: String,
}

/// What is wrong with a target.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum BadTarget {
    #[error("the URL must begin with http://, https:// or unix:")]
    Scheme,
    #[error("the URL must not hold a user name or a password")]
    UserInfo,
    #[error("the URL must not hold a query or a fragment")]
    Query,
    #[error("the URL names no host")]
    NoHost,
    #[error("the host must be a name of ASCII letters, digits, \"-\", \".\" and \"_\", or an address")]
    Host,
    #[error("the port must be a number from 1 to 65535")]
    Port,
    #[error("the path of the URL {0}")]
    Path(#[from] BadRoute),
    #[error("the path of a unix socket must begin with \"/\" and have at most 103 bytes")]
    Socket,
    #[error("unix sockets are not known on this system")]
    NoSockets,
    #[error("the certificate's name is neither a DNS name nor an address")]
    ServerName,
    #[error("the keyid must be visible ASCII without \" and \\")]
    KeyId,
    #[error("ca_file has a meaning for https only")]
    CaUnused,
    #[error("ca_file {path}: {source}", path = .0.display(), source = .1)]
    CaFile(PathBuf, #[source] io::Error),
    #[error("ca_file {path} holds no certificate in PEM form", path = .0.display())]
    NoCertificate(PathBuf),
    #[error("ca_file {path}: {source}", path = .0.display(), source = .1)]
    Certificate(PathBuf, #[source] rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[source] rustls::Error),
}

/// A configured target, ready to use.
pub struct Target {
    name: String,
    base: String,
    allow: Vec<IpNet>,
    pub(super) route: Route,
    pub(super) host: HeaderValue,
    pub(super) key: [u8; 32],
    pub(super) keyid: String,
    pub(super) lookup: Lookup,
}

/// How to get there.
pub(super) enum Route {
    /// Over TCP.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
        /// For https.
        tls: Option<(TlsConnector, ServerName<'static>)>,
    },
    /// Over a unix socket.
    Unix(PathBuf),
}

impl Target {
    /// Checks the options; reads `ca_file`.
    ///
    /// # Errors
    /// See [`BadTarget`].
    pub fn new(options: TargetOptions) -> Result<Self, BadTarget> {
        let TargetOptions { name, url, host, allow, ca_file, key, keyid } = options;
        if keyid.is_empty() || keyid.bytes().any(|byte| !byte.is_ascii_graphic() || b"\"\\".contains(&byte)) {
            return Err(BadTarget::KeyId);
        }
        let Url { at, base } = Url::parse(&url)?;
        let given = host.as_deref().map(split).transpose()?;
        let ca_file = ca_file.as_deref();
        let (route, authority) = match at {
            At::Unix(_) if cfg!(not(unix)) => return Err(BadTarget::NoSockets),
            At::Unix(_) | At::Tcp { tls: false, .. } if ca_file.is_some() => return Err(BadTarget::CaUnused),
            At::Unix(path) => (Route::Unix(path), "localhost".to_owned()),
            At::Tcp { tls, host, port, authority } => {
                let server_name = given.map_or(host.clone(), |(host, _)| host);
                let tls = if tls { Some(secure(ca_file, server_name)?) } else { None };
                (Route::Tcp { host, port, tls }, authority)
            }
        };
        let host = HeaderValue::try_from(host.unwrap_or(authority)).map_err(|_| BadTarget::Host)?;
        Ok(Self { name, base, allow, route, host, key, keyid, lookup: by_system() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What every path begins with; without a slash at its end.
    pub fn base_path(&self) -> &str {
        &self.base
    }

    /// Whether this address may be called. An IPv4-mapped one is judged as IPv4.
    pub(super) fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || self.allow.iter().any(|net| net.contains(&address))
    }
}

fn secure(
    ca_file: Option<&Path>,
    server_name: String,
) -> Result<(TlsConnector, ServerName<'static>), BadTarget> {
    let server_name = ServerName::try_from(server_name).map_err(|_| BadTarget::ServerName)?;
    Ok((tls::connector(ca_file)?, server_name))
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("name", &self.name)
            .field("base", &self.base)
            .field("allow", &self.allow)
            .field("keyid", &self.keyid)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TargetOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetOptions")
            .field("name", &self.name)
            .field("host", &self.host)
            .field("allow", &self.allow)
            .field("ca_file", &self.ca_file)
            .field("keyid", &self.keyid)
            .finish_non_exhaustive()
    }
}
