//! Where the server listens, and what says to whom: from settings and files to
//! [`rpc::Doors`].

use super::{
    Error,
    reload::{Unread, Watched},
};
use crate::{
    config::Config,
    rpc,
    secret::{BadCallers, Callers},
    tasks::Tasks,
};
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;

/// Descriptors that the database, the runtime and look-ups of names take, and some
/// to spare.
const OWN_FILES: usize = 64;
/// Connections that are taken however few descriptors there are.
const FEWEST: usize = 8;

/// Listens, and says where.
pub(super) async fn bind(
    setting: &'static str,
    listen: SocketAddr,
) -> Result<(TcpListener, SocketAddr), Error> {
    let fails = |error| Error::Listen(setting, listen, error);
    let listener = TcpListener::bind(listen).await.map_err(fails)?;
    let address = listener.local_addr().map_err(fails)?;
    Ok((listener, address))
}

/// What is in files that may change while it runs.
pub(super) struct Files {
    callers: Option<Watched<Callers, BadCallers>>,
    tls: Option<Watched<rustls::ServerConfig, rpc::BadTls>>,
    peers: Watched<rpc::PeerTls, rpc::BadTls>,
}

impl Files {
    /// Reads them; they have to be there.
    pub(super) fn open(config: &Config) -> Result<Self, Error> {
        let callers = match &config.server.tokens_file {
            None => None,
            Some(path) => {
                let make =
                    |files: &[Vec<u8>]| Callers::parse(&String::from_utf8_lossy(&files[0])).map(Arc::new);
                let callers = Watched::open("tokens", vec![path.clone()], Box::new(make));
                let callers = callers.map_err(|unread| unread_as("server.tokens_file", unread))?;
                if callers.follow().borrow().is_empty() {
                    tracing::warn!(path = %path.display(), "holds no token: nobody can start or read jobs");
                }
                Some(callers)
            }
        };
        let tls = match (&config.tls.cert_file, &config.tls.key_file) {
            (Some(certificates), Some(key)) => {
                let mut paths = vec![certificates.clone(), key.clone()];
                paths.extend(config.tls.client_ca_file.clone());
                let make = |files: &[Vec<u8>]| {
                    rpc::server_config(&files[0], &files[1], files.get(2).map(Vec::as_slice))
                };
                let tls = Watched::open("tls", paths, Box::new(make));
                Some(tls.map_err(|unread| unread_as("tls", unread))?)
            }
            _ => None,
        };
        let peers = peers(config).map_err(|unread| unread_as("node.ca_file", unread))?;
        Ok(Self { callers, tls, peers })
    }

    /// Looks at them again, until the tasks are told to end.
    pub(super) fn keep_looking(self, tasks: &Tasks) {
        if let Some(callers) = self.callers {
            callers.keep_looking(tasks);
        }
        if let Some(tls) = self.tls {
            tls.keep_looking(tasks);
        }
        self.peers.keep_looking(tasks);
    }
}

/// Whom other nodes are trusted to be, and what they are shown: our own certificate,
/// where clients are asked for one.
fn peers(config: &Config) -> Result<Watched<rpc::PeerTls, rpc::BadTls>, Unread<rpc::BadTls>> {
    let ca = config.node.ca_file.clone();
    let own = match (&config.tls.client_ca_file, &config.tls.cert_file, &config.tls.key_file) {
        (Some(_), Some(certificates), Some(key)) => vec![certificates.clone(), key.clone()],
        _ => Vec::new(),
    };
    let trusts = usize::from(ca.is_some());
    let make = move |files: &[Vec<u8>]| {
        let (ca, own) = files.split_at(trusts);
        let own = match own {
            [certificates, key] => Some((certificates.as_slice(), key.as_slice())),
            _ => None,
        };
        rpc::PeerTls::new(ca.first().map(Vec::as_slice), own).map(Arc::new)
    };
    Watched::open("tls of other nodes", ca.into_iter().chain(own).collect(), Box::new(make))
}

/// Where and to whom it is served.
pub(super) fn doors(
    config: &Config,
    files: &Files,
    listener: TcpListener,
    worker: Option<TcpListener>,
) -> rpc::Doors {
    // Actions report under this name, which is not always one of ours.
    let reported = config.trigger.report_url.as_ref().and_then(|url| url.parse::<http::Uri>().ok());
    let reported = reported.and_then(|url| url.host().map(str::to_ascii_lowercase));
    rpc::Doors {
        listener,
        tls: files.tls.as_ref().map(Watched::follow),
        worker,
        callers: files.callers.as_ref().map(Watched::follow),
        hosts: config.http.hosts.iter().cloned().chain(reported).collect(),
        cors_origins: config.http.cors_origins.clone(),
        max_connections: connections(config),
        max_streams: config.server.max_streams,
        max_calls: config.server.max_calls,
        relay: rpc::Relaying {
            node: config.node.name.clone(),
            lease: config.node.lease,
            tls: files.peers.follow(),
        },
    }
}

/// How many connections each listener takes: as many as the setting says, but so
/// few that descriptors are left for the database and for triggers. Who runs out
/// of them there fails jobs; who is turned away here comes again.
fn connections(config: &Config) -> usize {
    let most = config.server.max_connections;
    let Some(files) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current else {
        return most;
    };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let triggers = config.targets.values().map(|target| 2 * target.max_in_flight as usize).sum::<usize>();
    let listeners = if config.worker.listen.is_some() { 2 } else { 1 };
    let left = (files.saturating_sub(OWN_FILES + triggers) / listeners).max(FEWEST);
    if left < most {
        tracing::warn!(
            files,
            connections = left,
            "server.max_connections is {most}, but the limit of open files leaves fewer"
        );
    }
    most.min(left)
}

fn unread_as<E: Into<Error>>(setting: &'static str, unread: Unread<E>) -> Error {
    match unread {
        Unread::Io(path, error) => Error::File(setting, path, error),
        Unread::Bad(error) => error.into(),
    }
}
