//! What stands on the trigger's request line, built once: these bytes are
//! stored, sent and signed.
//!
//! Target path + route, then the route's query, then the query map in the
//! application/x-www-form-urlencoded form of the WHATWG URL standard. Joining
//! is concatenation, never resolution: nothing in a route can lead elsewhere.

use std::collections::BTreeMap;

/// Bytes of path and query together, at most.
pub const MAX: usize = 8 * 1024;

/// Why a route is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum BadRoute {
    #[error("must be a path that begins with \"/\"")]
    NoSlash,
    #[error("must not begin with \"//\": that names a host")]
    Host,
    #[error(
        "must not hold control characters, spaces, any of \"<>^`{{|}} or characters beyond ASCII: percent-encode them"
    )]
    Character,
    #[error("must not hold \"\\\" or \"#\"")]
    Reserved,
    #[error("must not hold \".\" or \"..\" segments")]
    DotSegment,
    #[error("holds a \"%\" without two hexadecimal digits")]
    Escape,
    #[error("must be at most 8192 bytes together with the query, as sent")]
    TooLong,
}

/// Path and query as sent. `base` is the path of the target's URL.
///
/// # Errors
/// See [`BadRoute`].
pub fn build(base: &str, route: &str, query: &BTreeMap<String, String>) -> Result<String, BadRoute> {
    check(route)?;
    let (path, own) = match route.split_once('?') {
        Some((path, own)) => (path, Some(own)),
        None => (route, None),
    };
    let mut url = String::with_capacity(base.len() + route.len() + 64);
    url.push_str(base.trim_end_matches('/'));
    url.push_str(path);
    if let Some(own) = own {
        url.push('?');
        url.push_str(own);
    }
    if !query.is_empty() {
        match own {
            None => url.push('?'),
            Some("") => {}
            Some(own) if own.ends_with('&') => {}
            Some(_) => url.push('&'),
        }
        let pairs = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        url.push_str(&pairs);
    }
    if url.len() > MAX { Err(BadRoute::TooLong) } else { Ok(url) }
}

fn check(route: &str) -> Result<(), BadRoute> {
    if !route.starts_with('/') {
        return Err(BadRoute::NoSlash);
    }
    if route.starts_with("//") {
        return Err(BadRoute::Host);
    }
    // RFC 3986, 3.3 and 3.4, and the square brackets that PHP's queries hold.
    if route.bytes().any(|byte| !byte.is_ascii_graphic() || b"\"<>^`{|}".contains(&byte)) {
        return Err(BadRoute::Character);
    }
    if route.contains(['\\', '#']) {
        return Err(BadRoute::Reserved);
    }
    let mut escapes = route.split('%').skip(1);
    if !escapes.all(|after| after.len() >= 2 && after.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())) {
        return Err(BadRoute::Escape);
    }
    let path = route.split('?').next().unwrap_or(route);
    if has_dot_segment(path) { Err(BadRoute::DotSegment) } else { Ok(()) }
}

/// Whether a segment is `.` or `..`, escaped or not. An escaped slash or backslash is a
/// separator to some servers.
fn has_dot_segment(path: &str) -> bool {
    let mut rest = path.as_bytes();
    // How many dots the segment has so far, as long as it has nothing else.
    let mut dots = Some(0);
    while let [byte, after @ ..] = rest {
        let (byte, after) = match rest {
            [b'%', b'2', b'e' | b'E', after @ ..] => (b'.', after),
            [b'%', b'2', b'f' | b'F', after @ ..] | [b'%', b'5', b'c' | b'C', after @ ..] => (b'/', after),
            _ => (*byte, after),
        };
        match byte {
            b'/' if matches!(dots, Some(1 | 2)) => return true,
            b'/' => dots = Some(0),
            b'.' => dots = dots.map(|dots| dots + 1),
            _ => dots = None,
        }
        rest = after;
    }
    matches!(dots, Some(1 | 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn path_and_queries_are_concatenated() {
        for (base, route, pairs, expected) in [
            ("", "/a", &[][..], "/a"),
            ("/", "/a", &[], "/a"),
            ("/app/", "/a?x=1", &[("y", "2")], "/app/a?x=1&y=2"),
            ("", "/a?", &[], "/a?"),
            ("", "/a?", &[("b", "")], "/a?b="),
            ("", "/a?x&", &[("b", "1")], "/a?x&b=1"),
            ("", "/a", &[("z", "é &"), ("a", "1+1")], "/a?a=1%2B1&z=%C3%A9+%26"),
            ("", "/it's/%C3%A4//b", &[("q", "it's")], "/it's/%C3%A4//b?q=it%27s"),
            ("", "/a?b[]=1&b[]=2", &[], "/a?b[]=1&b[]=2"),
            ("", "/a?redirect=../b", &[], "/a?redirect=../b"),
            ("", "/.well-known/..a", &[], "/.well-known/..a"),
            ("", "/.../a./.%2e.", &[], "/.../a./.%2e."),
        ] {
            assert_eq!(build(base, route, &query(pairs)).as_deref(), Ok(expected), "{route}");
        }
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for (route, expected) in [
            ("", BadRoute::NoSlash),
            ("a", BadRoute::NoSlash),
            ("http://host/a", BadRoute::NoSlash),
            ("//host/a", BadRoute::Host),
            ("/a b", BadRoute::Character),
            ("/a\r\nx: y", BadRoute::Character),
            ("/a\0", BadRoute::Character),
            ("/ä", BadRoute::Character),
            ("/<a>", BadRoute::Character),
            ("/\\host", BadRoute::Reserved),
            ("/a#b", BadRoute::Reserved),
            ("/a/../b", BadRoute::DotSegment),
            ("/.", BadRoute::DotSegment),
            ("/a/%2E%2e", BadRoute::DotSegment),
            ("/a/.%2e/b?c", BadRoute::DotSegment),
            ("/a%2f..%2Fb", BadRoute::DotSegment),
            ("/a%5C%2e%2e", BadRoute::DotSegment),
            ("/...%5c%2E", BadRoute::DotSegment),
            ("/%", BadRoute::Escape),
            ("/%4", BadRoute::Escape),
            ("/a?x=%zz", BadRoute::Escape),
        ] {
            assert_eq!(build("", route, &query(&[])), Err(expected), "{route:?}");
        }
        assert_eq!(build("", &format!("/{}", "a".repeat(MAX)), &query(&[])), Err(BadRoute::TooLong));
    }

    proptest! {
        #[test]
        fn nothing_gives_a_byte_that_does_not_belong_on_a_request_line(
            route in "/?[ -~]{0,40}|.{0,40}",
            pairs in prop::collection::btree_map(".{0,10}", ".{0,10}", 0..4),
        ) {
            if let Ok(url) = build("/base", &route, &pairs) {
                prop_assert!(url.starts_with("/base/"));
                prop_assert!(url.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'\\'));
                let uri: http::Uri = url.parse().expect("a valid request target");
                prop_assert_eq!(uri.to_string(), url);
            }
        }
    }
}
