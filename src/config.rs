//! The configuration: defaults, then `backjob.toml`, then the environment, then
//! flags; the later beats the earlier.
//!
//! It imports nothing of this crate. Whatever is wrong (an unknown key, a value
//! of the wrong kind, a combination that cannot work) is gathered and named in
//! one message, each with its source, and the server does not start. Values are
//! never repeated in a message: a URL may hold a password.

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

    /// What cannot work, each setting by itself and together.
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut unless = |holds: bool, key: &str, message: &str| {
            if !holds {
                let message = message.to_owned();
                faults.push(Fault { key: key.to_owned(), source: Source::Default, message });
            }
        };
        let lacks: Vec<&str> = self.gives_up().iter().map(|(lacks, _)| *lacks).collect();
        unless(
            self.server.insecure || is_loopback(self.server.listen) || lacks.is_empty(),
            "server.listen",
            &format!(
                "is not a loopback address, which needs {}; server.insecure = true does without",
                lacks.join(" and ")
            ),
        );
        unless(
            self.server.insecure || self.worker.listen.is_none_or(is_loopback),
            "worker.listen",
            "is not a loopback address, and what actions report there is not encrypted; server.insecure = true \
             accepts that",
        );
        unless(
            self.tls.cert_file.is_some() || self.tls.key_file.is_none(),
            "tls.cert_file",
            "is needed with tls.key_file",
        );
        unless(
            self.tls.key_file.is_some() || self.tls.cert_file.is_none(),
            "tls.key_file",
            "is needed with tls.cert_file",
        );
        unless(
            self.tls.cert_file.is_some() || self.tls.client_ca_file.is_none(),
            "tls.client_ca_file",
            "needs tls.cert_file: only over TLS a client shows a certificate",
        );
        unless(
            self.http.hosts.iter().all(|host| is_host(host)),
            "http.hosts",
            "must be names or addresses without scheme, port or path, like [\"jobs.example.com\"]",
        );
        unless(
            self.http.cors_origins.iter().all(|origin| is_origin(origin)),
            "http.cors_origins",
            "must be origins, like [\"https://app.example.com\"], without a path or *",
        );
        unless(
            (1..=1_000_000).contains(&self.server.max_connections),
            "server.max_connections",
            "must be 1 to 1000000",
        );
        unless((1..=100_000).contains(&self.server.max_streams), "server.max_streams", "must be 1 to 100000");
        unless(
            (10..=10_000_000).contains(&self.server.max_calls),
            "server.max_calls",
            "must be 10 to 10000000",
        );
        unless(self.server.shutdown_grace <= HOUR, "server.shutdown_grace", "must be 0 s to 1 h");
        unless(self.server.threads <= 1_024, "server.threads", "must be at most 1024; 0 means one a core");
        unless(
            self.node.name.len() <= 64 && !self.node.name.contains(char::is_control),
            "node.name",
            "must be at most 64 bytes without control characters",
        );
        unless(!self.database.url.is_empty(), "database.url", "must not be empty");
        unless(
            self.key.is_none() || self.key_file.is_none(),
            "key_file",
            "and the variable BACKJOB_KEY are both given: which keys are meant?",
        );
        unless(self.key.as_ref().is_none_or(|key| !key.trim().is_empty()), "BACKJOB_KEY", "is empty");
        for (name, target) in &self.targets {
            let fits = (1..=64).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
            unless(
                fits,
                &format!("targets.{name}"),
                "has a bad name: 1 to 64 of lower-case letters, digits, _ and -",
            );
            unless(is_base_url(&target.url), &format!("targets.{name}.url"), URL_EXPECTED);
            unless(
                target.identity || target.identity_cookies.is_empty(),
                &format!("targets.{name}.identity_cookies"),
                "contradicts identity = false",
            );
            unless(
                (1..=10_000).contains(&target.max_in_flight),
                &format!("targets.{name}.max_in_flight"),
                "must be 1 to 10000",
            );
        }
        let trigger = &self.trigger;
        unless(
            trigger.user_agent.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "trigger.user_agent",
            "must hold only visible ASCII characters and spaces",
        );
        unless(
            trigger.report_url.as_ref().is_none_or(|url| is_http(url)),
            "trigger.report_url",
            "must be an http:// or https:// URL of visible ASCII characters",
        );
        unless(trigger.pool_idle <= HOUR, "trigger.pool_idle", "must be 0 s to 1 h");
        let connect = Duration::from_millis(1)..=Duration::from_secs(600);
        unless(
            connect.contains(&trigger.connect_timeout),
            "trigger.connect_timeout",
            "must be 1 ms to 10 min",
        );
        unless(trigger.max_response.0 >= 64 * 1024, "trigger.max_response", "must be at least 64 KiB");
        unless(trigger.linger <= HOUR, "trigger.linger", "must be 0 s to 1 h");
        let jobs = &self.jobs;
        let second = Duration::from_secs(1);
        unless((second..=DAY).contains(&jobs.error_timeout), "jobs.error_timeout", "must be 1 s to 24 h");
        for (key, span) in [
            ("jobs.response_timeout", jobs.response_timeout),
            ("jobs.max_duration", jobs.max_duration),
            ("jobs.expire_after", jobs.expire_after),
            ("jobs.max_duration_ceiling", jobs.max_duration_ceiling),
            ("jobs.expire_after_ceiling", jobs.expire_after_ceiling),
        ] {
            let within = span.is_none_or(|span| (second..=YEAR).contains(&span));
            unless(within, key, "must be 1 s to 365 days, or 0 for none");
        }
        unless(
            (second..=DAY).contains(&jobs.error_timeout_ceiling),
            "jobs.error_timeout_ceiling",
            "must be 1 s to 24 h",
        );
        for (key, span, ceiling) in [
            ("jobs.error_timeout", Some(jobs.error_timeout), Some(jobs.error_timeout_ceiling)),
            ("jobs.max_duration", jobs.max_duration, jobs.max_duration_ceiling),
            ("jobs.expire_after", jobs.expire_after, jobs.expire_after_ceiling),
        ] {
            let below = span.zip(ceiling).is_none_or(|(span, ceiling)| span <= ceiling);
            unless(below, key, "is above its ceiling");
        }
        unless(jobs.cancel_grace <= HOUR, "jobs.cancel_grace", "must be 0 s to 1 h");
        let flush = Duration::from_millis(1)..=Duration::from_secs(10);
        unless(flush.contains(&jobs.flush_interval), "jobs.flush_interval", "must be 1 ms to 10 s");
        unless(
            (1..=i64::MAX.unsigned_abs()).contains(&jobs.max_pending),
            "jobs.max_pending",
            "must be at least 1",
        );
        faults
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

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// A name or an address without a port.
fn is_host(text: &str) -> bool {
    let v6 = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    v6.parse::<IpAddr>().is_ok() || (!text.is_empty() && text.chars().all(name))
}

/// Scheme, host and port, as browsers write them.
fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|authority| {
        let plain = !authority.contains(['/', '?', '#', '@', '*', ' ']) && !authority.is_empty();
        plain && authority.parse::<http::uri::Authority>().is_ok()
    })
}

const URL_EXPECTED: &str = "must be a URL with http://, https:// or unix: before the place, without a query";

/// Obviously a base URL; who connects looks closer.
fn is_base_url(url: &str) -> bool {
    let unix = url.strip_prefix("unix:").is_some_and(|path| !path.trim_matches('/').is_empty());
    (is_http(url) || unix) && !url.contains(['?', '#'])
}

fn is_http(url: &str) -> bool {
    let place = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    place.is_some_and(|place| !place.is_empty() && !place.starts_with('/'))
        && url.bytes().all(|byte| byte.is_ascii_graphic())
}
