//! As whom an action is triggered: as nobody, or with a user's credentials.

use super::draft::Violation;
use std::fmt;

/// Bytes of each credential, at most.
pub const MAX_CREDENTIAL: usize = 8 * 1024;

/// What a caller says of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RunAs {
    /// As whom; none leaves it to the call's own cookies.
    pub kind: Option<Kind>,
    /// Cookie header to send on.
    pub cookie: Option<String>,
    /// Authorization header to send on.
    pub authorization: Option<String>,
}

/// As whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As nobody.
    Anonymous,
    /// As the user whose credentials are given.
    CurrentUser,
}

/// What is sent on for a user. Never shown, never logged, sealed while it is
/// kept, and kept no longer than the job lives.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Cookie header.
    pub cookie: Option<String>,
    /// Authorization header.
    pub authorization: Option<String>,
}

impl fmt::Debug for RunAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunAs").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(redacted)")
    }
}

/// What a target says of it.
#[derive(Debug, Clone, Copy)]
pub struct Allowed<'a> {
    /// Whether it takes credentials at all.
    pub identity: bool,
    /// Names of the call's own cookies that are a user's; `*` stands for any
    /// characters.
    pub cookies: &'a [String],
}

/// The credentials to send; none means as nobody. `cookies` is the call's own
/// Cookie header.
///
/// # Errors
/// Every fault, by its field.
pub fn resolve(
    run_as: Option<RunAs>,
    cookies: &str,
    allowed: Allowed<'_>,
) -> Result<Option<Credentials>, Vec<Violation>> {
    let mut faults = Vec::new();
    let mut unless = |holds: bool, field: &str, description: &str| {
        if !holds {
            faults.push(Violation { field: field.into(), description: description.into() });
        }
    };
    let RunAs { kind, cookie, authorization } = run_as.unwrap_or_default();
    for (field, value) in [("run_as.cookie", &cookie), ("run_as.authorization", &authorization)] {
        let Some(value) = value else { continue };
        unless(kind == Some(Kind::CurrentUser), field, "goes with CURRENT_USER only");
        unless(!value.is_empty(), field, "must not be empty");
        unless(value.len() <= MAX_CREDENTIAL, field, "must take at most 8192 bytes");
        let whole = !value.chars().any(|c| c.is_control() && c != '\t');
        unless(whole, field, "must not hold control characters");
    }
    if kind == Some(Kind::CurrentUser) {
        unless(
            cookie.is_some() || authorization.is_some(),
            "run_as",
            "CURRENT_USER needs cookie or authorization",
        );
        unless(allowed.identity, "run_as", "the target takes no credentials (identity = false)");
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(match kind {
        Some(Kind::Anonymous) => None,
        Some(Kind::CurrentUser) => Some(Credentials { cookie, authorization }),
        None if allowed.identity => of_cookies(cookies, allowed.cookies),
        None => None,
    })
}

/// Those of the call's own cookies that say who calls.
fn of_cookies(header: &str, names: &[String]) -> Option<Credentials> {
    let visible = |pair: &&str| !pair.contains(char::is_control);
    let named = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        names.iter().any(|pattern| matches(pattern, name))
    };
    let kept: Vec<&str> = header.split(';').map(str::trim).filter(visible).filter(named).collect();
    let cookie = kept.join("; ");
    (!cookie.is_empty() && cookie.len() <= MAX_CREDENTIAL)
        .then_some(Credentials { cookie: Some(cookie), authorization: None })
}

/// Whether `name` is what `pattern` says.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len()).any(|at| name.is_char_boundary(at) && matches(rest, &name[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_the_named_cookies_of_a_call_are_sent_on() {
        let known = names(&["session", "auth_*", "*_id"]);
        let allowed = Allowed { identity: true, cookies: &known };
        let header = "theme=dark; session=a=b;auth_x=1; my_id=2; sessions=3; bad\u{7}session=4";
        let found = resolve(None, header, allowed).expect("no fault").expect("a user");
        assert_eq!(found.cookie.as_deref(), Some("session=a=b; auth_x=1; my_id=2"));
        assert_eq!(found.authorization, None);
        assert_eq!(resolve(None, "theme=dark", allowed), Ok(None));
        let anonymous = RunAs { kind: Some(Kind::Anonymous), ..RunAs::default() };
        assert_eq!(resolve(Some(anonymous), header, allowed), Ok(None));
        assert_eq!(resolve(None, header, Allowed { identity: false, ..allowed }), Ok(None));
        assert_eq!(resolve(None, header, Allowed { cookies: &[], ..allowed }), Ok(None));
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let allowed = Allowed { identity: true, cookies: &[] };
        let user = |cookie: Option<&str>| RunAs {
            kind: Some(Kind::CurrentUser),
            cookie: cookie.map(str::to_owned),
            authorization: None,
        };
        let long = "x".repeat(MAX_CREDENTIAL + 1);
        for (run_as, allowed, field) in [
            (user(None), allowed, "run_as"),
            (user(Some("")), allowed, "run_as.cookie"),
            (user(Some("a\r\nb")), allowed, "run_as.cookie"),
            (user(Some(&long)), allowed, "run_as.cookie"),
            (RunAs { kind: None, ..user(Some("a=b")) }, allowed, "run_as.cookie"),
            (RunAs { kind: Some(Kind::Anonymous), ..user(Some("a=b")) }, allowed, "run_as.cookie"),
            (user(Some("a=b")), Allowed { identity: false, ..allowed }, "run_as"),
        ] {
            let faults = resolve(Some(run_as), "", allowed).expect_err("refused");
            assert_eq!(faults.first().map(|fault| fault.field.as_str()), Some(field));
        }
        assert!(resolve(Some(user(Some("a=b"))), "", allowed).is_ok_and(|found| found.is_some()));
    }

    #[test]
    fn nothing_of_it_is_printed() {
        let credentials = Credentials { cookie: Some("canary".into()), authorization: Some("canary".into()) };
        let run_as = RunAs { kind: None, cookie: Some("canary".into()), authorization: None };
        assert!(!format!("{credentials:?} {run_as:?}").contains("canary"));
    }
}
