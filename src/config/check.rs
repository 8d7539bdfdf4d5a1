//! What cannot work, each setting by itself and together.

use super::{Config, DAY, Fault, HOUR, Source, YEAR};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

impl Config {
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
        unless(
            self.server.threads <= 1_024,
            "server.threads",
            "must be at most 1024; 0 means one less than there are cores",
        );
        unless(
            self.node.name.len() <= 64 && !self.node.name.contains(char::is_control),
            "node.name",
            "must be at most 64 bytes without control characters",
        );
        unless(
            self.node.advertise.as_ref().is_none_or(|url| is_origin(url) && url.len() <= 255),
            "node.advertise",
            "must be http:// or https:// with a host and a port, like \"http://10.0.0.5:50051\"",
        );
        unless(
            (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&self.node.lease),
            "node.lease",
            "must be 1 s to 5 min",
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
        let database = &self.database;
        let plain = |name: &str, most: usize| {
            let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            name.len() <= most && name.bytes().all(letter) && !name.starts_with(|c: char| c.is_ascii_digit())
        };
        unless(
            plain(&database.schema, 63),
            "database.schema",
            "must be a name of lower-case letters, digits and _, of at most 63 characters",
        );
        unless(
            plain(&database.table_prefix, 32),
            "database.table_prefix",
            "must begin with a lower-case letter or _, with digits after it, of at most 32 characters",
        );
        let postgres = database.url.starts_with("postgres");
        unless(postgres || database.schema.is_empty(), "database.schema", "is for PostgreSQL alone");
        unless(postgres || !database.pooler, "database.pooler", "is for PostgreSQL alone");
        unless((1..=1_000).contains(&database.batch), "database.batch", "must be 1 to 1000");
        unless(
            (64 << 10..=16 << 30).contains(&database.page_cache.0),
            "database.page_cache",
            "must be 64 KiB to 16 GiB",
        );
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

pub(super) const URL_EXPECTED: &str =
    "must be a URL with http://, https:// or unix: before the place, without a query";

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
