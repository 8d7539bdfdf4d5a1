//! The configuration: defaults, then `backjob.toml`, then the environment, then
//! flags; the later beats the earlier.
//!
//! It imports nothing of this crate. Whatever is wrong (an unknown key, a value
//! of the wrong kind, a combination that cannot work) is gathered and named in
//! one message, each with its source, and the server does not start. Values are
//! never repeated in a message: a URL may hold a password.

mod check;
mod fault;
mod layer;
mod section;
mod value;

#[cfg(test)]
mod tests;

pub use fault::{Fault, Faults, Source};
pub use layer::Sources;
pub use section::{Database, Http, Jobs, Log, Node, Retention, Server, Target, Tls, Trigger, Worker};
pub use value::{LogFormat, MergePolicy, Rate, Secret, Size};

use layer::{Layers, Leaf};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use value::{Given, Setting};

const DEFAULT_TARGET: &str = "default";
const DEFAULT_TARGET_URL: &str = "http://127.0.0.1:8080";

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Every setting, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// File of the root keys; see [`Config::key_path`] for what holds without.
    pub key_file: Option<PathBuf>,
    /// Text of the root keys, out of the variable BACKJOB_KEY alone. Excludes
    /// `key_file`.
    pub key: Option<Secret>,
    /// The process and its listener.
    pub server: Server,
    /// Encryption.
    pub tls: Tls,
    /// A listener for running actions alone.
    pub worker: Worker,
    /// Calls from browsers.
    pub http: Http,
    /// This server among others.
    pub node: Node,
    /// Where jobs are kept.
    pub database: Database,
    /// Applications that may be triggered, by name; at least one.
    pub targets: BTreeMap<String, Target>,
    /// The requests to applications.
    pub trigger: Trigger,
    /// What holds for a job that does not say otherwise.
    pub jobs: Jobs,
    /// How long ended jobs are kept.
    pub retention: Retention,
    /// What is written to standard error.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        let mut config = Self::unresolved();
        config.resolve();
        config
    }
}

impl Config {
    /// `src/config.default.toml`: every setting with its default, explained.
    pub fn documented() -> &'static str {
        include_str!("config.default.toml")
    }

    /// Merges the sources and checks what came of them.
    ///
    /// # Errors
    /// Every fault of every source at once.
    pub fn load(sources: Sources) -> Result<Self, Faults> {
        Self::load_from(sources).map(|(config, _)| config)
    }

    /// The same, and where each setting came from that no default stands for.
    ///
    /// # Errors
    /// Every fault of every source at once.
    pub fn load_from(sources: Sources) -> Result<(Self, BTreeMap<String, Source>), Faults> {
        let Layers { leaves, root_key, mut faults } = Layers::gather(sources);
        let mut config = Self::unresolved();
        let mut given = BTreeMap::new();
        for Leaf { key, source, given: value } in leaves {
            match config.set(&key, &value) {
                Ok(()) => {
                    given.insert(key, source);
                }
                Err(message) => faults.push(Fault { key, source, message }),
            }
        }
        config.key = root_key.as_deref().map(Secret::from);
        config.resolve();
        for mut fault in config.validate() {
            if let Some(source) = given.get(&fault.key) {
                fault.source = source.clone();
            }
            // A value that was refused is not blamed again for its default.
            if !faults.iter().any(|known| known.key == fault.key) {
                faults.push(fault);
            }
        }
        if faults.is_empty() { Ok((config, given)) } else { Err(Faults(faults)) }
    }

    /// Every setting as a file of TOML, with where it came from beside it. Secrets
    /// are redacted.
    pub fn shown(&self, given: &BTreeMap<String, Source>) -> String {
        let source = |key: &str| given.get(key).unwrap_or(&Source::Default);
        let mut text = format!("key_file = {}  # {}\n", Setting::show(&self.key_file), source("key_file"));
        if self.key.is_some() {
            text.push_str("# the root keys are those of the variable BACKJOB_KEY (redacted)\n");
        }
        let mut sections = vec![
            ("server".to_owned(), self.server.shown()),
            ("tls".to_owned(), self.tls.shown()),
            ("worker".to_owned(), self.worker.shown()),
            ("http".to_owned(), self.http.shown()),
            ("node".to_owned(), self.node.shown()),
            ("database".to_owned(), self.database.shown()),
        ];
        sections
            .extend(self.targets.iter().map(|(name, target)| (format!("targets.{name}"), target.shown())));
        sections.extend([
            ("trigger".to_owned(), self.trigger.shown()),
            ("jobs".to_owned(), self.jobs.shown()),
            ("retention".to_owned(), self.retention.shown()),
            ("log".to_owned(), self.log.shown()),
        ]);
        for (section, settings) in sections {
            text.push_str(&format!("\n[{section}]\n"));
            for (name, value) in settings {
                let source = source(&format!("{section}.{name}"));
                text.push_str(&format!("{name} = {value}  # {source}\n"));
            }
        }
        text
    }

    /// Before it is known which targets there are.
    fn unresolved() -> Self {
        Self {
            key_file: None,
            key: None,
            server: Server::default(),
            tls: Tls::default(),
            worker: Worker::default(),
            http: Http::default(),
            node: Node::default(),
            database: Database::default(),
            targets: BTreeMap::new(),
            trigger: Trigger::default(),
            jobs: Jobs::default(),
            retention: Retention::default(),
            log: Log::default(),
        }
    }

    fn set(&mut self, key: &str, given: &Given) -> Result<(), String> {
        let set = match key.split_once('.') {
            None if key == "key_file" => Setting::read(given).map(|file| self.key_file = file),
            Some(("server", key)) => self.server.set(key, given),
            Some(("tls", key)) => self.tls.set(key, given),
            Some(("worker", key)) => self.worker.set(key, given),
            Some(("http", key)) => self.http.set(key, given),
            Some(("node", key)) => self.node.set(key, given),
            Some(("database", key)) => self.database.set(key, given),
            Some(("trigger", key)) => self.trigger.set(key, given),
            Some(("jobs", key)) => self.jobs.set(key, given),
            Some(("retention", key)) => self.retention.set(key, given),
            Some(("log", key)) => self.log.set(key, given),
            Some(("targets", key)) => self.set_target(key, given),
            None if layer::SECTIONS.contains(&key) => Err(format!("is a section: [{key}]")),
            _ => Err("is no setting".to_owned()),
        };
        set.map_err(|message| match fault::hint(key) {
            Some(hint) if message.starts_with("is no setting") => hint.to_owned(),
            _ => message,
        })
    }

    fn set_target(&mut self, key: &str, given: &Given) -> Result<(), String> {
        match (key.rsplit_once('.'), given) {
            (Some((name, key)), _) => self.targets.entry(name.to_owned()).or_default().set(key, given),
            (None, Given::Toml(toml::Value::Table(_))) => {
                self.targets.entry(key.to_owned()).or_default();
                Ok(())
            }
            (None, _) => Err("is no setting: a target is a section, [targets.NAME]".to_owned()),
        }
    }

    /// Puts in what an empty setting stands for.
    fn resolve(&mut self) {
        if self.targets.is_empty() {
            self.targets.insert(DEFAULT_TARGET.to_owned(), Target::default());
        }
        if let Some(target) = self.targets.get_mut(DEFAULT_TARGET).filter(|target| target.url.is_empty()) {
            target.url = DEFAULT_TARGET_URL.to_owned();
        }
        for name in self.http.hosts.iter_mut().chain(&mut self.http.cors_origins) {
            name.make_ascii_lowercase();
        }
        for header in self.targets.values_mut().flat_map(|target| &mut target.allow_headers) {
            header.make_ascii_lowercase();
        }
        if self.node.name.is_empty() {
            self.node.name = section::host_name();
        }
        if self.trigger.user_agent.is_empty() {
            self.trigger.user_agent = section::user_agent();
        }
    }

    /// What protects an address that is not loopback and is not set, and what
    /// goes without it.
    pub fn gives_up(&self) -> Vec<(&'static str, &'static str)> {
        let mut gives_up = Vec::new();
        if self.tls.cert_file.is_none() {
            gives_up.push((
                "TLS (tls.cert_file, tls.key_file)",
                "whoever can see the traffic reads jobs, tokens and credentials, and may change them",
            ));
        }
        if self.server.tokens_file.is_none() {
            gives_up.push((
                "tokens (server.tokens_file)",
                "whoever reaches the address may start, read, cancel and delete every job",
            ));
        }
        gives_up
    }

    /// Where actions report to: `trigger.report_url`, or else `worker.listen`, or
    /// else `server.listen`, as they are `bound`: the host's own address where
    /// that is every one.
    pub fn report_url(&self, bound: SocketAddr) -> String {
        if let Some(url) = &self.trigger.report_url {
            return url.clone();
        }
        let ip = match bound.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let tls = self.tls.cert_file.is_some() && self.worker.listen.is_none();
        format!("{}://{}", if tls { "https" } else { "http" }, SocketAddr::new(ip, bound.port()))
    }

    /// Where other nodes reach this one: `node.advertise`, or else `server.listen` as
    /// it is `bound`. None where that is every address of the host.
    pub fn advertised(&self, bound: SocketAddr) -> Option<String> {
        let scheme = if self.tls.cert_file.is_some() { "https" } else { "http" };
        let own = (!bound.ip().is_unspecified()).then(|| format!("{scheme}://{bound}"));
        self.node.advertise.clone().or(own)
    }

    /// The file of the root keys: `key_file`, or else `backjob.key` beside the
    /// file of an SQLite database, in the working folder for other databases.
    /// None for a database in memory, which a key need not outlive, and where
    /// BACKJOB_KEY holds the keys.
    pub fn key_path(&self) -> Option<PathBuf> {
        if self.key.is_some() {
            return None;
        }
        if self.key_file.is_some() {
            return self.key_file.clone();
        }
        let Some(file) = self.database.url.strip_prefix("sqlite:") else {
            return Some(PathBuf::from("backjob.key"));
        };
        let (file, parameters) = file.split_once('?').unwrap_or((file, ""));
        let file = file.strip_prefix("//").unwrap_or(file);
        if file.is_empty() || file == ":memory:" || parameters.split('&').any(|p| p == "mode=memory") {
            return None;
        }
        Some(Path::new(file).with_file_name("backjob.key"))
    }
}
