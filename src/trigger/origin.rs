//! Where a target listens: its URL, taken apart.
//!
//! By hand, since a general parser forgives what has to be said to an operator:
//! it drops fragments, lowers case, and knows no unix sockets.

use super::target::BadTarget;
use std::{net::Ipv6Addr, path::PathBuf};

/// Bytes of a socket's path that every unix can address.
const MAX_SOCKET: usize = 103;

/// A target's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    /// Where it listens.
    pub(super) at: At,
    /// What every path begins with; without a slash at its end.
    pub(super) base: String,
}

/// Where a target listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    /// A name or an address, without brackets.
    Tcp {
        /// Whether over TLS.
        tls: bool,
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
        /// As it stands in the URL: the `Host` header.
        authority: String,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl Url {
    /// Takes a URL apart.
    pub(super) fn parse(url: &str) -> Result<Self, BadTarget> {
        if url.contains(['?', '#']) {
            return Err(BadTarget::Query);
        }
        if let Some(rest) = url.strip_prefix("unix:") {
            let (socket, path) = match rest.split_once(":/") {
                Some((socket, path)) => (socket, format!("/{path}")),
                None => (rest, String::new()),
            };
            if !socket.starts_with('/') || socket.len() > MAX_SOCKET || socket.contains('\0') {
                return Err(BadTarget::Socket);
            }
            return Ok(Self { at: At::Unix(socket.into()), base: base(&path)? });
        }
        let (scheme, rest) = url.split_once("://").ok_or(BadTarget::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(BadTarget::Scheme),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(BadTarget::UserInfo);
        }
        let (host, port) = split(authority)?;
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { at: At::Tcp { tls, host, port, authority: authority.to_owned() }, base: base(path)? })
    }
}

/// Name or address without brackets, and port, of an authority.
pub(super) fn split(authority: &str) -> Result<(String, Option<u16>), BadTarget> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(BadTarget::Host)?;
        host.parse::<Ipv6Addr>().map_err(|_| BadTarget::Host)?;
        (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(BadTarget::Host)?) })
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err(BadTarget::NoHost);
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !authority.starts_with('[') && !host.bytes().all(is_name) {
        return Err(BadTarget::Host);
    }
    let port = match port {
        None => None,
        // `parse` alone would take "+80".
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(port.parse().ok().filter(|port| *port > 0).ok_or(BadTarget::Port)?)
        }
        Some(_) => return Err(BadTarget::Port),
    };
    Ok((host.to_owned(), port))
}

fn base(path: &str) -> Result<String, BadTarget> {
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Ok(String::new());
    }
    Ok(crate::job::url::build("", path, &std::collections::BTreeMap::new())?)
}

#[cfg(test)]
#[path = "tests/origin.rs"]
mod tests;
