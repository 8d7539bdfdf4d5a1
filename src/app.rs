//! Puts the parts together and takes them apart again: the only file that knows
//! every one of them.

mod doors;
mod reload;

use crate::{
    clock::{Clock, SharedClock, SystemClock},
    config::{self, Config},
    descriptors::Descriptors,
    engine::{self, Engine},
    job::MergePolicy,
    job::draft::Ceilings,
    rpc,
    secret::{BadCallers, Keyring, LoadError, Root, Use, parse_key},
    store::{self, Store},
    tasks::Tasks,
    trigger::{self, BadTarget, Client, Target, TargetOptions},
};
use doors::{Files, bind, doors};
use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Writes that may wait for the writer.
const QUEUE: usize = 4_096;

/// Why the server does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The root keys cannot be had.
    #[error("root key: {0}")]
    Key(#[from] LoadError),
    /// The database was made with a key that is gone.
    #[error(
        "{database} is there, but its root key {key} is not: put the key back, or name it with key_file or BACKJOB_KEY"
    )]
    KeyGone {
        /// File of the database.
        database: PathBuf,
        /// File that the key should be in.
        key: PathBuf,
    },
    /// The store cannot be opened.
    #[error("database: {0}")]
    Store(#[from] store::OpenError),
    /// A server of this name uses the database.
    #[error(
        "node.name: a server named {0:?} lives, and uses the database: stop it, or give this one a name of its own"
    )]
    NameTaken(String),
    /// A target is wrong.
    #[error("targets.{0}: {1}")]
    Target(String, #[source] BadTarget),
    /// A target's own key is not one.
    #[error("targets.{0}.keys: a key is 32 bytes in base64url without padding")]
    TargetKey(String),
    /// The address cannot be listened on.
    #[error("{0}: cannot listen on {1}: {2}")]
    Listen(&'static str, SocketAddr, #[source] io::Error),
    /// A file that a setting names cannot be read.
    #[error("{0}: {path}: {2}", path = .1.display())]
    File(&'static str, PathBuf, #[source] io::Error),
    /// The callers' tokens are not understood.
    #[error("server.tokens_file: {0}")]
    Tokens(#[from] BadCallers),
    /// There is no TLS to be had from the files.
    #[error("{0}")]
    Tls(#[from] rpc::BadTls),
    /// What was left running cannot be taken over.
    #[error("database {0}: {1}")]
    Engine(String, #[source] engine::Error),
}

/// Tells a running server to end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// First phase: nothing new begins, what is under way may end.
    pub drain: CancellationToken,
    /// Second phase at once.
    pub hurry: CancellationToken,
}

/// A server that is ready to serve.
pub struct App {
    engine: Arc<Engine>,
    clock: Arc<dyn Clock>,
    keys: Arc<Keyring>,
    descriptors: Descriptors,
    tasks: Tasks,
    /// The writer outlives the rest: what ends last still has to be stored.
    store_tasks: Tasks,
    doors: rpc::Doors,
    files: Files,
    address: SocketAddr,
    worker_address: Option<SocketAddr>,
    grace: Duration,
}

/// The root keys; made where there is nothing yet that could need others.
///
/// # Errors
/// [`Error::Key`] or [`Error::KeyGone`].
pub fn keys(config: &Config, clock: &dyn Clock) -> Result<Keyring, Error> {
    if let Some(text) = &config.key {
        return Ok(Keyring::parse(text)?);
    }
    let Some(path) = config.key_path() else {
        let mut bytes = [0; 32];
        clock.random(&mut bytes);
        return Ok(Keyring::of(bytes));
    };
    if path.exists() {
        return Ok(Keyring::load(&path)?);
    }
    if let Some(database) = database_file(&config.database.url)
        && fs::metadata(&database).is_ok_and(|file| file.len() > 0)
    {
        return Err(Error::KeyGone { database, key: path });
    }
    let made = match Keyring::create(&path) {
        // Another node was quicker.
        Err(LoadError::Io(_, error)) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Ok(Keyring::load(&path)?);
        }
        made => made?,
    };
    tracing::info!(path = %path.display(), "made a root key: keep it as safe as the database");
    Ok(made)
}

/// A database of a server shows only once it is open that it had a key before; then
/// the one that was made for it goes again.
fn unmade(made: Option<PathBuf>, error: store::OpenError) -> Error {
    match (made, error) {
        (Some(key), store::OpenError::MissingRoot { path, .. }) => {
            let _ = fs::remove_file(&key); // left behind, the next start names the root
            Error::KeyGone { database: path, key }
        }
        (_, error) => error.into(),
    }
}

/// The file of an SQLite database.
fn database_file(url: &str) -> Option<PathBuf> {
    let file = url.strip_prefix("sqlite:")?;
    let file = file.strip_prefix("//").unwrap_or(file).split('?').next().unwrap_or_default();
    (!file.is_empty() && file != ":memory:").then(|| Path::new(file).to_owned())
}

/// Name of the key with which a target's triggers are signed.
pub fn keyid(keys: &Keyring, target: &str) -> String {
    keyid_of(keys.current(), target)
}

fn keyid_of(root: &Root, target: &str) -> String {
    let root: String = root.id().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{root}/{target}")
}

/// What a target's triggers are signed with.
pub struct TriggerKey {
    /// Its name.
    pub keyid: String,
    /// The key.
    pub key: [u8; 32],
}

/// What a target's triggers may be signed with, first what they are signed with:
/// its own keys, or those derived from the roots.
///
/// # Errors
/// [`Error::TargetKey`].
pub fn trigger_keys(config: &Config, keys: &Keyring, target: &str) -> Result<Vec<TriggerKey>, Error> {
    let own = config.targets.get(target).map(|target| target.keys.as_slice()).unwrap_or_default();
    let parsed: Result<Vec<[u8; 32]>, _> = own.iter().map(|key| parse_key(key)).collect();
    let parsed = parsed.map_err(|_| Error::TargetKey(target.to_owned()))?;
    if parsed.is_empty() {
        let derived = |root: &Root| TriggerKey {
            keyid: keyid_of(root, target),
            key: root.derive(Use::Trigger, target),
        };
        return Ok(keys.ids().filter_map(|id| keys.find(id)).map(derived).collect());
    }
    let own = |key| TriggerKey { keyid: keyid_of(&Root::from_bytes(key), target), key };
    Ok(parsed.into_iter().map(own).collect())
}

/// The first of them.
///
/// # Errors
/// [`Error::TargetKey`].
fn trigger_key(config: &Config, keys: &Keyring, target: &str) -> Result<TriggerKey, Error> {
    let first = trigger_keys(config, keys, target)?.into_iter().next();
    first.ok_or_else(|| Error::TargetKey(target.to_owned()))
}

/// Where in the database the tables are.
pub fn tables(config: &Config) -> store::Tables {
    let database = &config.database;
    store::Tables {
        schema: Some(database.schema.clone()).filter(|schema| !schema.is_empty()),
        prefix: database.table_prefix.clone(),
        pooler: database.pooler,
    }
}

/// How the store is opened.
pub fn store_options(config: &Config, keys: &Arc<Keyring>) -> store::Options {
    store::Options {
        url: config.database.url.to_string(),
        tables: tables(config),
        migrate: config.database.migrate,
        node: config.node.name.clone(),
        keys: Arc::clone(keys),
        queue: QUEUE,
        batch: config.database.batch,
        page_cache: config.database.page_cache.0,
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn targets(config: &Config, keys: &Keyring) -> Result<Vec<Target>, Error> {
    let target = |(name, target): (&String, &crate::config::Target)| {
        let key = trigger_key(config, keys, name)?;
        let options = TargetOptions {
            name: name.clone(),
            url: target.url.clone(),
            host: target.host.clone(),
            allow: target.allow.clone(),
            ca_file: target.ca_file.clone(),
            key: key.key,
            keyid: key.keyid,
        };
        Target::new(options).map_err(|error| Error::Target(name.clone(), error))
    };
    config.targets.iter().map(target).collect()
}

fn engine_settings(config: &Config, targets: &[Target], address: SocketAddr) -> engine::Settings {
    let of = |target: &Target| {
        let own = config.targets.get(target.name()).cloned().unwrap_or_default();
        let settings = engine::TargetSettings {
            base_path: target.base_path().to_owned(),
            allow_headers: own.allow_headers,
            identity: own.identity,
            identity_cookies: own.identity_cookies,
            max_in_flight: own.max_in_flight as usize,
            spacing: own
                .rate
                .map(|rate| u64::try_from(rate.per.as_micros()).unwrap_or(u64::MAX) / rate.count.max(1)),
        };
        (target.name().to_owned(), settings)
    };
    let jobs = &config.jobs;
    engine::Settings {
        node: config.node.name.as_str().into(),
        advertise: config.advertised(address),
        lease: config.node.lease,
        flush_interval: jobs.flush_interval,
        linger: config.trigger.linger,
        error_timeout: millis(jobs.error_timeout),
        response_timeout: jobs.response_timeout.map(millis),
        max_duration: jobs.max_duration.map(millis),
        cancel_grace: millis(jobs.cancel_grace),
        expire_after: jobs.expire_after.map(millis),
        ceilings: Ceilings {
            error_timeout: millis(jobs.error_timeout_ceiling),
            max_duration: jobs.max_duration_ceiling.map(millis),
            expire_after: jobs.expire_after_ceiling.map(millis),
        },
        merge_policy: match jobs.merge_policy {
            config::MergePolicy::JoinPending => MergePolicy::JoinPending,
            config::MergePolicy::JoinActive => MergePolicy::JoinActive,
            config::MergePolicy::Reject => MergePolicy::Reject,
            config::MergePolicy::Never => MergePolicy::Never,
        },
        max_pending: jobs.max_pending,
        cache: usize::try_from(config.server.cache.0).unwrap_or(usize::MAX),
        retention: engine::Retention {
            succeeded: config.retention.succeeded.map(millis),
            all: config.retention.all.map(millis),
        },
        targets: targets.iter().map(of).collect::<BTreeMap<_, _>>(),
    }
}

impl App {
    /// Opens, binds and takes over. The configuration is valid.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn build(config: &Config) -> Result<Self, Error> {
        if !config.server.listen.ip().to_canonical().is_loopback() {
            // With insecure alone: what it gives up is said each time.
            for (lacks, so) in config.gives_up() {
                tracing::warn!(listen = %config.server.listen, "insecure: without {lacks}, {so}");
            }
        }
        let host: Arc<dyn Clock> = Arc::new(SystemClock::new());
        // Where nodes share a database, they go by its time; signatures by the host's.
        let clock: Arc<dyn Clock> = Arc::new(SharedClock::new(Arc::clone(&host)));
        let made = config.key_path().filter(|path| !path.exists());
        let keys = Arc::new(keys(config, &*clock)?);
        let targets = targets(config, &keys)?;
        let files = Files::open(config)?;
        let (tasks, store_tasks) = (Tasks::default(), Tasks::default());
        let store = Store::open(store_options(config, &keys), Arc::clone(&clock), &store_tasks).await;
        let store = store.map_err(|error| unmade(made, error))?;
        let (listener, address) = bind("server.listen", config.server.listen).await?;
        let worker = match config.worker.listen {
            None => None,
            Some(listen) => Some(bind("worker.listen", listen).await?),
        };
        let (worker, worker_address) = worker.unzip();
        let settings = engine_settings(config, &targets, address);
        let doors = doors(config, &files, listener, worker);
        let trigger = trigger::Settings {
            user_agent: config.trigger.user_agent.clone(),
            pool_idle: config.trigger.pool_idle,
            connect_timeout: config.trigger.connect_timeout,
            max_response: config.trigger.max_response.0,
            report_url: config.report_url(worker_address.unwrap_or(address)),
        };
        let descriptors = Descriptors::default();
        let client = Client::new(trigger, targets, host, tasks.clone(), descriptors.clone());
        let parts = engine::Parts {
            store,
            trigger: Arc::new(client),
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            keys: Arc::clone(&keys),
        };
        let engine = Engine::begin(parts, settings).await;
        let engine = engine.map_err(|error| match error {
            engine::Error::NameTaken(name) => Error::NameTaken(name),
            error => Error::Engine(config.database.url.to_string(), error),
        })?;
        let grace = config.server.shutdown_grace;
        Ok(Self {
            engine,
            clock,
            keys,
            descriptors,
            tasks,
            store_tasks,
            doors,
            files,
            address,
            worker_address,
            grace,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where running actions alone may report, if they have a listener.
    pub fn worker_address(&self) -> Option<SocketAddr> {
        self.worker_address
    }

    /// Serves until told to stop, then ends in two phases: first nothing new
    /// begins and what is under way may end; then everything is closed and what
    /// is in memory stored. Both take `shutdown_grace` at most, and a second
    /// for the store.
    pub async fn run(self, stop: Stop) {
        let Self { engine, clock, keys, descriptors, tasks, store_tasks, doors, files, .. } = self;
        let (address, worker_address, grace) = (self.address, self.worker_address, self.grace);
        files.keep_looking(&tasks);
        if let Some(address) = worker_address {
            tracing::info!(worker = %address, "taking reports");
        }
        tracing::info!(%address, "serving");
        let closing = CancellationToken::new();
        let parts =
            rpc::Parts { engine: Arc::clone(&engine), clock, keys, descriptors, tasks: tasks.clone() };
        let serving = rpc::serve(parts, doors, closing.clone());
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => return, // it ends only when it is told to
            () = stop.drain.cancelled() => {}
            () = stop.hurry.cancelled() => {}
            () = engine.replaced() => stop.hurry.cancel(),
        }
        tracing::info!(running = engine.running(), watchers = engine.watchers(), "draining");
        engine.drain();
        // The last part of the grace is for the second phase.
        let first = grace.mul_f64(0.8);
        tokio::select! {
            () = &mut serving => {}
            () = engine.drained() => {}
            () = tokio::time::sleep(first) => {
                tracing::info!(running = engine.running(), "what still runs is left to the next server");
            }
            () = stop.hurry.cancelled() => {}
        }
        closing.cancel();
        tasks.stop().cancel();
        let last = grace.saturating_sub(first).max(Duration::from_millis(200));
        // What is still open then is closed with its task.
        let _ = tokio::time::timeout(last, &mut serving).await;
        if let Err(pending) = tasks.shut_down(last).await {
            tracing::warn!(?pending, "still running at the end");
        }
        let stored = async {
            engine.close().await;
            store_tasks.shut_down(Duration::from_secs(1)).await
        };
        match tokio::time::timeout(Duration::from_secs(5), stored).await {
            Ok(Ok(())) => tracing::info!("stopped"),
            Ok(Err(_)) | Err(_) => tracing::error!("the store could not be closed in time"),
        }
    }
}
