//! Connections to other nodes: made when they are first needed, and shared by all that
//! is passed on.
//!
//! A connection carries [`EACH`] calls at once, fewer than a node takes by default, so
//! that streams which last never keep a report waiting; beyond them there is another
//! one. One that fails is left, and the next call makes a new one; a node that cannot
//! be connected to is left alone for a moment, so that not each of a thousand calls
//! waits for it in turn.

use super::super::tls::{self, BadTls};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// Calls on one connection at once.
const EACH: usize = 100;
/// Connections to one node, at most.
const LANES: usize = 64;
/// Nodes that are connected to, at most; beyond, those that were not needed for the
/// longest are let go.
const NODES: usize = 64;
/// A connection beyond a node's first one is closed when it was not needed for so long.
const IDLE: Duration = Duration::from_secs(30);
/// How long a connection may take to be made.
const CONNECTING: Duration = Duration::from_secs(2);
/// After a node could not be connected to.
const REST: Duration = Duration::from_millis(250);

/// Whom this node trusts over https://, and what it shows where it is asked for a
/// certificate.
pub struct PeerTls(ClientTlsConfig);

impl PeerTls {
    /// Trusts the authorities in `ca`, or the public ones; shows the certificate of
    /// `own`, with its key. All in PEM.
    ///
    /// # Errors
    /// See [`BadTls`].
    pub fn new(ca: Option<&[u8]>, own: Option<(&[u8], &[u8])>) -> Result<Self, BadTls> {
        let config = ClientTlsConfig::new();
        let config = match ca {
            None => config.with_webpki_roots(),
            Some(pem) => {
                tls::read(pem, "node.ca_file")?;
                config.ca_certificate(Certificate::from_pem(pem))
            }
        };
        Ok(Self(match own {
            None => config,
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
        }))
    }
}

/// A connection that is made, or was; why not, otherwise.
type Connecting = Shared<BoxFuture<'static, Result<Channel, Arc<str>>>>;

/// A place on a connection, held while a call is under way.
#[derive(Debug, Clone)]
pub(super) struct Place(Arc<()>);

struct Lane {
    connecting: Connecting,
    /// Each call under way has a clone.
    load: Place,
    used_at: Instant,
}

impl Lane {
    fn calls(&self) -> usize {
        Arc::strong_count(&self.load.0) - 1
    }
}

#[derive(Default)]
struct Peer {
    lanes: Vec<Lane>,
    /// When it could not be connected to.
    failed_at: Option<Instant>,
}

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreached {
    /// Not now, or never.
    Unreachable(String),
    /// As many calls are passed on to it as may.
    Full(usize),
}

/// All connections.
pub(super) struct Peers {
    tls: watch::Receiver<Arc<PeerTls>>,
    /// Between two looks whether the other side still answers, and how long it may
    /// take to.
    alive: Duration,
    all: Mutex<HashMap<Arc<str>, Peer>>,
}

impl Peers {
    pub fn new(tls: watch::Receiver<Arc<PeerTls>>, alive: Duration) -> Self {
        Self { tls, alive, all: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Peer>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that has room for a call, and the call's place on it.
    pub async fn channel(&self, address: &Arc<str>) -> Result<(Channel, Place), Unreached> {
        let (connecting, place) = self.place(address)?;
        match connecting.await {
            Ok(channel) => Ok((channel, place)),
            Err(error) => {
                self.left(address, &place, true);
                Err(Unreached::Unreachable(error.to_string()))
            }
        }
    }

    fn place(&self, address: &Arc<str>) -> Result<(Connecting, Place), Unreached> {
        let now = Instant::now();
        let mut all = self.lock();
        if !all.contains_key(address) && all.len() >= NODES {
            let used = |peer: &Peer| peer.lanes.iter().map(|lane| lane.used_at).max();
            let oldest =
                all.iter().min_by_key(|(_, peer)| used(peer)).map(|(address, _)| Arc::clone(address));
            oldest.and_then(|oldest| all.remove(&oldest));
        }
        let peer = all.entry(Arc::clone(address)).or_default();
        if peer.failed_at.is_some_and(|at| now.duration_since(at) < REST) {
            return Err(Unreached::Unreachable("it could not be connected to a moment ago".into()));
        }
        let mut first = true;
        peer.lanes.retain(|lane| {
            std::mem::take(&mut first) || lane.calls() > 0 || now.duration_since(lane.used_at) < IDLE
        });
        if let Some(lane) = peer.lanes.iter_mut().find(|lane| lane.calls() < EACH) {
            lane.used_at = now;
            return Ok((lane.connecting.clone(), lane.load.clone()));
        }
        if peer.lanes.len() >= LANES {
            return Err(Unreached::Full(LANES * EACH));
        }
        let connecting = self.connect(address)?;
        let load = Place(Arc::default());
        peer.lanes.push(Lane { connecting: connecting.clone(), load: load.clone(), used_at: now });
        Ok((connecting, load))
    }

    fn connect(&self, address: &Arc<str>) -> Result<Connecting, Unreached> {
        let bad = |error: tonic::transport::Error| Unreached::Unreachable(told(&error));
        let endpoint = Endpoint::from_shared(address.to_string()).map_err(bad)?;
        let endpoint = endpoint
            .connect_timeout(CONNECTING)
            .http2_keep_alive_interval(self.alive)
            .keep_alive_timeout(self.alive);
        let endpoint = match endpoint.uri().scheme_str() {
            Some("https") => endpoint.tls_config(self.tls.borrow().0.clone()).map_err(bad)?,
            _ => endpoint,
        };
        let connected = async move {
            match timeout(CONNECTING, endpoint.connect()).await {
                Ok(connected) => connected.map_err(|error| told(&error).into()),
                Err(_) => Err(format!("not connected within {CONNECTING:?}").into()),
            }
        };
        Ok(connected.boxed().shared())
    }

    /// A connection is of no more use; `unconnected` if it never was. What is under way
    /// on it goes on as it can.
    pub fn left(&self, address: &str, place: &Place, unconnected: bool) {
        let mut all = self.lock();
        let Some(peer) = all.get_mut(address) else { return };
        let before = peer.lanes.len();
        peer.lanes.retain(|lane| !Arc::ptr_eq(&lane.load.0, &place.0));
        if unconnected && peer.lanes.len() < before {
            peer.failed_at = Some(Instant::now());
        } else if peer.lanes.is_empty() && peer.failed_at.is_none() {
            all.remove(address);
        }
    }

    /// How many connections there are.
    #[cfg(test)]
    pub fn connections(&self) -> usize {
        self.lock().values().map(|peer| peer.lanes.len()).sum()
    }
}

/// An error with what caused it: of its own this one says little.
pub(super) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut said: Vec<String> = causes.map(ToString::to_string).collect();
    said.dedup();
    said.join(": ")
}
