//! Calls that a browser may have made: under which name they came, and from
//! which page.
//!
//! A page whose name suddenly resolves to a loopback address (DNS rebinding) says
//! that name in `Host`; a page of another origin is named by `Origin` (RFC 6454)
//! or `Sec-Fetch-Site` (W3C Fetch Metadata). Native gRPC is out of a page's reach
//! and is governed by tokens alone.

use http::{HeaderMap, Request, Version, header, uri::Authority};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

const SITE: &str = "sec-fetch-site";

/// Which names and origins are known, all in lower case.
#[derive(Debug, Clone, Default)]
pub(super) struct Origins {
    /// Names besides loopback and the address that was connected to.
    pub hosts: BTreeSet<String>,
    /// Origins besides the one of the call itself.
    pub origins: BTreeSet<String>,
}

impl Origins {
    /// Whether the request may be answered that came in at `local`. The error says
    /// why not.
    pub fn check<B>(&self, request: &Request<B>, local: SocketAddr) -> Result<(), String> {
        let headers = request.headers();
        if request.version() == Version::HTTP_2 && is_native(headers) {
            return Ok(());
        }
        let authority = authority(request)?;
        if authority.as_str().contains('@') {
            return Err("the host must not name a user".to_owned());
        }
        if !self.knows(authority.host(), local) {
            return Err(format!("the host {:?} is not one of http.hosts", authority.host()));
        }
        if let Some(origin) = one(headers, header::ORIGIN.as_str())? {
            let origin = origin.to_ascii_lowercase();
            if self.origins.contains(&origin) {
                return Ok(());
            }
            let own = origin.split_once("://").map(|(_, rest)| rest);
            if !own.is_some_and(|own| own.eq_ignore_ascii_case(authority.as_str())) {
                return Err(format!("the origin {origin:?} is not one of http.cors_origins"));
            }
        }
        match one(headers, SITE)? {
            None | Some("same-origin" | "none") => Ok(()),
            Some(_) => Err("pages of other sites must be among http.cors_origins".to_owned()),
        }
    }

    fn knows(&self, host: &str, local: SocketAddr) -> bool {
        let host = host.to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            let address = address.to_canonical();
            if address.is_loopback() || address == local.ip().to_canonical() {
                return true;
            }
        }
        host == "localhost" || self.hosts.contains(&host) || self.hosts.contains(bare)
    }
}

/// gRPC that no page can send: pages cannot choose HTTP/2 with this type without
/// saying their origin.
fn is_native(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let grpc = kind == "application/grpc"
        || kind.starts_with("application/grpc+")
        || kind.starts_with("application/grpc;");
    grpc && !headers.contains_key(header::ORIGIN) && !headers.contains_key(SITE)
}

/// The name that the call was made under.
fn authority<B>(request: &Request<B>) -> Result<Authority, String> {
    let host = one(request.headers(), header::HOST.as_str())?;
    let host =
        host.map(|host| host.parse::<Authority>().map_err(|_| "the Host header is malformed".to_owned()));
    match (request.uri().authority().cloned(), host.transpose()?) {
        (Some(named), Some(host)) if !named.as_str().eq_ignore_ascii_case(host.as_str()) => {
            Err("the Host header is not the authority of the request".to_owned())
        }
        (Some(named), _) => Ok(named),
        (None, Some(host)) => Ok(host),
        (None, None) => Err("the Host header is missing".to_owned()),
    }
}

/// A header that may stand once.
fn one<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            value.to_str().map(Some).map_err(|_| format!("the header {name} is malformed"))
        }
        (Some(_), Some(_)) => Err(format!("the header {name} stands more than once")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: (&str, &str) = ("content-type", "application/json");
    const GRPC: (&str, &str) = ("content-type", "application/grpc");

    fn origins() -> Origins {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Origins { hosts: set(&["jobs.example.com", "fd00::7"]), origins: set(&["https://app.example.com"]) }
    }

    fn ask(version: Version, uri: &str, headers: &[(&str, &str)]) -> Result<(), String> {
        let mut request = Request::post(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        origins().check(&request, "10.0.0.5:50051".parse().expect("an address"))
    }

    fn over_1(headers: &[(&str, &str)]) -> Result<(), String> {
        ask(Version::HTTP_11, "/a/B", headers)
    }

    #[test]
    fn names_that_lead_here_are_known_and_no_others() {
        for host in [
            "localhost",
            "LOCALHOST:50051",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:50051",
            "[::ffff:127.0.0.1]",
            "10.0.0.5:50051",
            "jobs.example.com",
            "Jobs.Example.com:443",
            "[fd00::7]:1",
        ] {
            assert_eq!(over_1(&[JSON, ("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "attacker.example",
            "localhost.attacker.example",
            "10.0.0.6",
            "127.0.0.1.attacker.example",
            "0.0.0.0",
            "2130706433",
            "0x7f.1",
            "example.com",
            "evil@localhost",
            "localhost.",
            "jobs.example.com.",
            "[::1",
            "::1",
            "[::2]",
            "[::1%25lo]",
            "127.1",
            "",
            "a b",
        ] {
            assert!(over_1(&[JSON, ("host", host)]).is_err(), "{host}");
        }
        assert!(over_1(&[JSON]).is_err(), "no Host");
        assert!(over_1(&[JSON, ("host", "localhost"), ("host", "localhost")]).is_err(), "two");
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let host = ("host", "localhost:50051");
        for origin in ["http://localhost:50051", "https://LOCALHOST:50051", "https://app.example.com"] {
            assert_eq!(over_1(&[JSON, host, ("origin", origin)]), Ok(()), "{origin}");
        }
        for origin in [
            "http://localhost:3000",
            "http://localhost",
            "null",
            "https://app.example.com.evil",
            "",
            "http://app.example.com",
            "https://app.example.com/",
            "file://",
            "localhost:50051",
        ] {
            assert!(over_1(&[JSON, host, ("origin", origin)]).is_err(), "{origin}");
        }
        for (site, fine) in
            [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false)]
        {
            assert_eq!(over_1(&[JSON, host, (SITE, site)]).is_ok(), fine, "{site}");
        }
        let listed = ("origin", "https://app.example.com");
        assert_eq!(over_1(&[JSON, host, listed, (SITE, "cross-site")]), Ok(()));
    }

    #[test]
    fn native_grpc_alone_is_not_asked() {
        let ask_2 = |headers: &[(&str, &str)]| ask(Version::HTTP_2, "http://attacker.example/a/B", headers);
        assert_eq!(ask_2(&[GRPC]), Ok(()));
        assert_eq!(ask_2(&[("content-type", "application/grpc+proto")]), Ok(()));
        for headers in [
            &[GRPC, ("origin", "http://attacker.example")][..],
            &[GRPC, (SITE, "cross-site")],
            &[("content-type", "application/grpc-web")],
            &[("content-type", "application/grpc-web+proto")],
            &[JSON],
            &[],
        ] {
            assert!(ask_2(headers).is_err(), "{headers:?}");
        }
        assert!(over_1(&[GRPC, ("host", "attacker.example")]).is_err(), "over HTTP/1.1 it is no gRPC");
        // The name counts that the request line or pseudo-header has, and a second one contradicts.
        let named = |uri, host| ask(Version::HTTP_2, uri, &[JSON, ("host", host)]);
        assert_eq!(named("http://localhost/a/B", "localhost"), Ok(()));
        assert!(named("http://attacker.example/a/B", "localhost").is_err());
        assert!(named("http://localhost/a/B", "attacker.example").is_err());
    }
}
