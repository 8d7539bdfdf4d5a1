//! Values on the command line.

use crate::proto::v1;
use prost_types::{Duration, Timestamp};
use std::{fs, io::Read as _};

/// `NAME=VALUE`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is expected")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `Name: value`.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("'Name: value' is expected")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// A span such as `90s`, `1h30m`, `500ms` or `10`, which is seconds.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let fault = || format!("{text:?} is not a span: 90s, 1h30m, 500ms and 10 (seconds) are");
    let mut millis: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| fault())?;
        let unit = &rest[digits..];
        let length = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let factor = match &unit[..length] {
            "ms" => 1,
            "s" => 1_000,
            "" if digits == text.len() => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(fault()),
        };
        millis = number.checked_mul(factor).and_then(|span| millis.checked_add(span)).ok_or_else(fault)?;
        rest = &unit[length..];
    }
    let seconds = i64::try_from(millis / 1_000).map_err(|_| fault())?;
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).map_err(|_| fault())?;
    if text.is_empty() { Err(fault()) } else { Ok(Duration { seconds, nanos }) }
}

/// A time as RFC 3339.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| format!("{text:?} is not a time such as 2026-11-30T08:00:00Z"))
}

/// Text as it is, `@FILE`, or `-` for standard input.
pub(super) fn body(text: &str) -> Result<Vec<u8>, String> {
    if text == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map_err(|error| format!("standard input: {error}"))?;
        return Ok(bytes);
    }
    match text.strip_prefix('@') {
        Some(file) => fs::read(file).map_err(|error| format!("{file}: {error}")),
        None => Ok(text.as_bytes().to_vec()),
    }
}

/// As whom a job is triggered.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct User {
    /// As the user with these cookies. Beware: other users of this machine may
    /// see the line; $BACKJOB_COOKIE is seen by none.
    #[arg(long, value_name = "COOKIES", env = "BACKJOB_COOKIE", hide_env_values = true)]
    cookie: Option<String>,
    /// As the user with this Authorization header; also $BACKJOB_AUTHORIZATION.
    #[arg(long, value_name = "VALUE", env = "BACKJOB_AUTHORIZATION", hide_env_values = true)]
    authorization: Option<String>,
}

impl User {
    /// As the contract has it; none where nothing is given.
    pub(super) fn message(&self) -> Option<v1::RunAs> {
        (self.cookie.is_some() || self.authorization.is_some()).then(|| v1::RunAs {
            kind: v1::RunAsKind::CurrentUser.into(),
            cookie: self.cookie.clone(),
            authorization: self.authorization.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read() {
        for (text, seconds, nanos) in [
            ("10", 10, 0),
            ("90s", 90, 0),
            ("1h30m", 5_400, 0),
            ("500ms", 0, 500_000_000),
            ("1d", 86_400, 0),
            ("1s5ms", 1, 5_000_000),
        ] {
            assert_eq!(span(text), Ok(Duration { seconds, nanos }), "{text}");
        }
        for text in ["", "s", "-1s", "1x", "1.5s", "5 s", "99999999999999999999d", "1h30"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pairs_and_headers_are_split_once() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(pair("a").is_err());
        assert_eq!(header("X-A: b:c "), Ok(("X-A".into(), "b:c".into())));
        assert!(header("X-A").is_err());
        assert!(body("@/nowhere/at/all").is_err());
        assert_eq!(body("text"), Ok(b"text".to_vec()));
    }
}
