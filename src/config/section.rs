//! The sections of the configuration. Each setting stands here once: its name,
//! its type and its default.

use super::value::{Given, LogFormat, MergePolicy, Rate, Secret, Setting, Size};
use ipnet::IpNet;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// A section knows its keys and sets them by name, so that one fault does not
/// hide the next, as it would with a deserializer that stops at the first.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            pub(super) const KEYS: &'static [&'static str] = &[$(stringify!($field)),*];

            /// Each setting and its value, as TOML.
            pub(super) fn shown(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($field), Setting::show(&self.$field))),*]
            }

            pub(super) fn set(&mut self, key: &str, given: &Given) -> Result<(), String> {
                match key {
                    $(stringify!($field) => self.$field = Setting::read(given)?,)*
                    _ => return Err(format!("is no setting; there are {}", Self::KEYS.join(", "))),
                }
                Ok(())
            }
        }
    };
}

section! {
    /// `[server]`: the process and its listener.
    Server {
        /// Where callers and actions connect. Default: 127.0.0.1:50051.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 50051)),
        /// Whether an address that is not loopback is accepted without TLS and
        /// tokens. Default: no.
        insecure: bool = false,
        /// File of the callers' tokens, looked at again each second. Default:
        /// none, which asks no caller who they are.
        tokens_file: Option<PathBuf> = None,
        /// Open connections, 1 to 1,000,000; beyond, new ones are closed.
        /// Default: 10,000.
        max_connections: usize = 10_000,
        /// Calls under way on one connection, 1 to 100,000; beyond, they are
        /// refused. Default: 1,000.
        max_streams: u32 = 1_000,
        /// Calls under way in all, 10 to 10,000,000; watches may take nine tenths
        /// of them, and what other nodes pass on has as many places of its own.
        /// Default: 50,000.
        max_calls: usize = 50_000,
        /// How long a shutdown waits for what is under way, 0 s to 1 h.
        /// Default: 10 s.
        shutdown_grace: Duration = Duration::from_secs(10),
        /// Worker threads, at most 1,024; 0 means one less than there are cores, and
        /// one at least. Default: 0.
        threads: usize = 0,
        /// Memory for states of jobs that callers were shown lately; 0 reads the
        /// tables each time. Default: 32 MiB.
        cache: Size = Size(32 << 20),
    }
}

section! {
    /// `[tls]`: encryption of `server.listen`.
    Tls {
        /// Certificate chain in PEM, looked at again each second. Default: none,
        /// which serves without TLS.
        cert_file: Option<PathBuf> = None,
        /// Its private key in PEM. Default: none.
        key_file: Option<PathBuf> = None,
        /// Authorities in PEM, of which every client must show a certificate.
        /// Default: none is asked for.
        client_ca_file: Option<PathBuf> = None,
    }
}

section! {
    /// `[worker]`: a listener for running actions alone.
    Worker {
        /// Where actions report without TLS, and nothing else is served.
        /// Default: none; they report to `server.listen`.
        listen: Option<SocketAddr> = None,
    }
}

section! {
    /// `[http]`: calls from browsers.
    Http {
        /// Names, beside loopback and the listen addresses, under which this
        /// server may be called over HTTP/1.1, gRPC-Web or as JSON. Default:
        /// none.
        hosts: Vec<String> = Vec::new(),
        /// Origins whose pages may call this server. Default: none but its own.
        cors_origins: Vec<String> = Vec::new(),
    }
}

section! {
    /// `[node]`: this server among others.
    Node {
        /// Name of this node, shown in the history of attempts, 1 to 64 bytes.
        /// Default, and where an empty one is given: the host's name, or "local".
        name: String = host_name(),
        /// Where other nodes on the same database reach this one, http:// or
        /// https:// with host and port: what reaches them about a job that runs
        /// here is passed on to it. Default: `server.listen`, unless that is every
        /// address.
        advertise: Option<String> = None,
        /// How long a node may give no sign of life until others take over what
        /// it ran, 1 s to 5 min; one for all nodes of a database. Default: 10 s.
        lease: Duration = Duration::from_secs(10),
        /// Authorities in PEM of which other nodes must show a certificate where their
        /// `node.advertise` is https://, looked at again each second. Default: the
        /// public ones.
        ca_file: Option<PathBuf> = None,
    }
}

section! {
    /// `[database]`: where jobs are kept.
    Database {
        /// URL of the database, sqlite:, postgres: or mysql:; may hold a password.
        /// Default: sqlite://backjob.db.
        url: Secret = Secret::from("sqlite://backjob.db"),
        /// On PostgreSQL, the schema of the tables, made where it lacks. Default:
        /// none, which means the first of the user's search path.
        schema: String = String::new(),
        /// What the name of every table begins with. Default: nothing.
        table_prefix: String = String::new(),
        /// On PostgreSQL, whether the URL is that of a pooler which gives a
        /// connection to one transaction at a time. Default: no.
        pooler: bool = false,
        /// Whether the server makes and updates its tables. Default: yes.
        migrate: bool = true,
        /// Writes of one transaction, 1 to 1,000. Default: 128.
        batch: usize = 128,
        /// On SQLite, memory for pages of the connection that writes, 64 KiB to 16
        /// GiB; taken as it is needed. Default: 4 MiB.
        page_cache: Size = Size(4 << 20),
    }
}

section! {
    /// `[targets.NAME]`: an application that may be triggered.
    Target {
        /// Base URL: http, https or unix. Required, but for the target
        /// `default`, which has http://127.0.0.1:8080.
        url: String = String::new(),
        /// The Host header. Default: the URL's.
        host: Option<String> = None,
        /// Networks beside loopback to which a connection may be made. Default:
        /// none.
        allow: Vec<IpNet> = Vec::new(),
        /// Certificates, in PEM, that https is checked with instead of the
        /// public ones. Default: none.
        ca_file: Option<PathBuf> = None,
        /// Headers, in lower case, that callers may set although applications
        /// trust a proxy with them. Default: none.
        allow_headers: Vec<String> = Vec::new(),
        /// Whether jobs may be triggered with a user's credentials. Default: yes.
        identity: bool = true,
        /// Names of the cookies of a call that make its job the user's who
        /// calls, `*` for any characters. Default: none.
        identity_cookies: Vec<String> = Vec::new(),
        /// Keys, base64url without padding, that the application checks triggers
        /// with; the first one signs. Default: one derived from the root key.
        keys: Vec<Secret> = Vec::new(),
        /// Jobs that this node runs at once, 1 to 10,000. Default: 16.
        max_in_flight: u32 = 16,
        /// How often an attempt may begin, evenly spaced. Default: without bound.
        rate: Option<Rate> = None,
    }
}

section! {
    /// `[trigger]`: the requests to applications.
    Trigger {
        /// The User-Agent header. Default, and where an empty one is given:
        /// `backjob/<version>`.
        user_agent: String = user_agent(),
        /// URL that actions are told to report to. Default: this server's own
        /// address, see [`Config::report_url`](super::Config::report_url).
        report_url: Option<String> = None,
        /// How long an idle connection is kept for reuse, 0 s (never) to 1 h.
        /// Default: 1 s.
        pool_idle: Duration = Duration::from_secs(1),
        /// How long a connection may take to be made, above 0 s and up to 10
        /// min. Default: 10 s.
        connect_timeout: Duration = Duration::from_secs(10),
        /// Bytes of a response after which the connection is closed, at least
        /// 64 KiB. Default: 16 MiB.
        max_response: Size = Size(16 << 20),
        /// How long a connection may live on after the final report, 0 s to
        /// 1 h. Default: 10 s.
        linger: Duration = Duration::from_secs(10),
    }
}

section! {
    /// `[jobs]`: what holds for a job that does not say otherwise.
    Jobs {
        /// Silence after which an attempt is given up, 1 s to 24 h. Default:
        /// 60 s.
        error_timeout: Duration = Duration::from_secs(60),
        /// Silence allowed to an open connection of an action that never
        /// reported, 1 s to 365 days; none means without bound. Default: 1 h.
        response_timeout: Option<Duration> = Some(Duration::from_secs(3600)),
        /// From a job's first attempt to its end, 1 s to 365 days; none means
        /// without bound. Default: none.
        max_duration: Option<Duration> = None,
        /// From a cancel to the end of a running job, 0 s to 1 h. Default: 10 s.
        cancel_grace: Duration = Duration::from_secs(10),
        /// How long progress may wait until it is stored, 1 ms to 10 s.
        /// Default: 200 ms.
        flush_interval: Duration = Duration::from_millis(200),
        /// From a job's creation to its first attempt, 1 s to 365 days; none means
        /// without bound. Default: none.
        expire_after: Option<Duration> = None,
        /// The longest `error_timeout` that a Start may ask for, 1 s to 24 h.
        /// Default: 24 h.
        error_timeout_ceiling: Duration = Duration::from_secs(86_400),
        /// The same of `max_duration`, 1 s to 365 days; holds for jobs that ask
        /// for none, too. Default: none.
        max_duration_ceiling: Option<Duration> = None,
        /// The same of `expire_after`, 1 s to 365 days; holds for jobs that ask
        /// for none, too. Default: none.
        expire_after_ceiling: Option<Duration> = None,
        /// Which earlier identical job a Start may join that does not say
        /// itself. Default: one that waits.
        merge_policy: MergePolicy = MergePolicy::JoinPending,
        /// Waiting jobs, at least 1; beyond, Start is refused. On SQLite each takes
        /// some 60 bytes of memory. Default: 1,000,000.
        max_pending: u64 = 1_000_000,
    }
}

section! {
    /// `[retention]`: how long ended jobs are kept.
    Retention {
        /// Those that SUCCEEDED; none means for ever. Default: 30 days.
        succeeded: Option<Duration> = Some(Duration::from_secs(30 * 86_400)),
        /// All; none means for ever. Default: 60 days.
        all: Option<Duration> = Some(Duration::from_secs(60 * 86_400)),
    }
}

section! {
    /// `[log]`: what is written to standard error.
    Log {
        /// For people or for machines. Default: for people.
        format: LogFormat = LogFormat::Human,
        /// Which events, in the language of tracing's EnvFilter; the variable
        /// RUST_LOG beats it. Default: info.
        level: String = "info".to_owned(),
    }
}

/// The name of the machine, where it can be found without asking more of the
/// system than files and variables.
pub(super) fn host_name() -> String {
    let of_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let of_variable = || ["HOSTNAME", "COMPUTERNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let name = of_kernel.or_else(of_variable).unwrap_or_default();
    let name: String = name.trim().chars().filter(char::is_ascii_graphic).take(64).collect();
    if name.is_empty() { "local".to_owned() } else { name }
}

pub(super) fn user_agent() -> String {
    concat!("backjob/", env!("CARGO_PKG_VERSION")).to_owned()
}
