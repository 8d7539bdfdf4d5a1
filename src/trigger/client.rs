//! The trigger over real sockets.

use super::{
    Outcome, Request, Sink, Target, Trigger,
    connect::connect,
    connection::Connection,
    exchange::{Exchanged, Terms, Told, exchange},
    message::Message,
    pool::Pool,
};
use crate::{clock::Clock, descriptors::Descriptors, job::Reason, tasks::Tasks};
use std::{collections::HashMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

/// What holds for every target.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `User-Agent`.
    pub user_agent: String,
    /// How long an idle connection may be used again; zero: not at all.
    pub pool_idle: Duration,
    /// For resolving a name, and again for each of its addresses, TLS included.
    pub connect_timeout: Duration,
    /// Bytes of a response's body, at most.
    pub max_response: u64,
    /// `Backjob-Report-Url`.
    pub report_url: String,
}

impl Default for Settings {
    /// The defaults of the configuration, and no report URL.
    fn default() -> Self {
        Self {
            user_agent: concat!("backjob/", env!("CARGO_PKG_VERSION")).to_owned(),
            pool_idle: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(10),
            max_response: 16 * 1024 * 1024,
            report_url: String::new(),
        }
    }
}

/// Calls actions over HTTP.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    /// By name.
    targets: HashMap<String, (Target, Arc<Pool>)>,
    clock: Arc<dyn Clock>,
    descriptors: Descriptors,
}

impl Client {
    /// A client for these targets. Of two with one name the last one counts.
    pub fn new(
        settings: Settings,
        targets: Vec<Target>,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        descriptors: Descriptors,
    ) -> Self {
        let entry = |target: Target| {
            let pool = Pool::new(settings.pool_idle, Arc::clone(&clock), tasks.clone());
            (target.name().to_owned(), (target, Arc::new(pool)))
        };
        let targets = targets.into_iter().map(entry).collect();
        Self { inner: Arc::new(Inner { settings, targets, clock, descriptors }) }
    }

    /// A target by its name.
    pub fn target(&self, name: &str) -> Option<&Target> {
        self.inner.targets.get(name).map(|(target, _)| target)
    }

    /// How many connections to a target are idle.
    #[cfg(test)]
    pub(super) fn idle(&self, name: &str) -> usize {
        self.inner.targets.get(name).map_or(0, |(_, pool)| pool.len())
    }
}

impl Trigger for Client {
    fn call(&self, request: Request, sink: Arc<dyn Sink>) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move { inner.call(request, sink).await.unwrap_or_else(|refused| refused) })
    }
}

impl Inner {
    /// The error is an outcome too: that of a request which never began.
    async fn call(&self, request: Request, sink: Arc<dyn Sink>) -> Result<Outcome, Outcome> {
        let internal = |message: String| Outcome::NotSent(Reason::Internal, message);
        let Some((target, pool)) = self.targets.get(&request.target) else {
            return Err(internal(format!("there is no target {:?} here", request.target)));
        };
        let Settings { user_agent, report_url, .. } = &self.settings;
        let mut message = Message::new(target, user_agent, report_url, request).map_err(internal)?;
        let mut told = Told::new(sink);

        if let Some(connection) = pool.take().await {
            match self.send(&mut message, connection, true, &mut told).await? {
                Exchanged::Done(outcome, left) => {
                    if let Some(connection) = left {
                        pool.put(connection).await;
                    }
                    return Ok(outcome);
                }
                // The application closed it just as we took it, as servers do
                // with idle connections. It may have begun all the same.
                Exchanged::Closed { begun: true } if !message.is_repeatable() => {
                    let message = "the application closed an idle connection just as the request was sent";
                    return Err(Outcome::NotSent(Reason::Connect, message.to_owned()));
                }
                Exchanged::Closed { .. } => {}
            }
        }
        let unconnected = |(reason, message)| Outcome::NotSent(reason, message);
        // In boxes, as most calls find a connection.
        let stream = Box::pin(connect(target, self.settings.connect_timeout, &self.descriptors));
        let stream = stream.await.map_err(unconnected)?;
        let connection = Box::pin(Connection::open(stream)).await;
        let connection = connection.map_err(|error| Outcome::NotSent(Reason::Connect, error.to_string()))?;
        match self.send(&mut message, connection, false, &mut told).await? {
            Exchanged::Done(outcome, left) => {
                if let Some(connection) = left {
                    pool.put(connection).await;
                }
                Ok(outcome)
            }
            // Only a connection that was used before ends so.
            Exchanged::Closed { .. } => {
                Err(internal("a new connection was taken for an idle one".to_owned()))
            }
        }
    }

    async fn send(
        &self,
        message: &mut Message<'_>,
        connection: Connection,
        reused: bool,
        told: &mut Told,
    ) -> Result<Exchanged, Outcome> {
        connection.wire.begin();
        let signed = message.signed(&*self.clock, &connection.wire);
        let signed = signed.map_err(|message| Outcome::NotSent(Reason::Internal, message))?;
        let terms = Terms { reused, max_response: self.settings.max_response, clock: &*self.clock };
        Ok(exchange(connection, signed, terms, told).await)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets: Vec<&Target> = self.inner.targets.values().map(|(target, _)| target).collect();
        f.debug_struct("Client")
            .field("settings", &self.inner.settings)
            .field("targets", &targets)
            .finish_non_exhaustive()
    }
}
