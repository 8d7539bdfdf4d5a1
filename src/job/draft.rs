//! A Start as the caller wrote it, and the check that makes a job's spec of it.
//!
//! Every fault is named at once, by the path of its field in the protocol, so
//! that nobody mends a request one error at a time. No description repeats a
//! value: values may be secret.

use super::{
    headers,
    identity::{self, RunAs},
    spec::{MergePolicy, Payload, Spec},
    state::Rules,
    url,
};
use bytes::Bytes;
use std::{collections::BTreeMap, fmt, sync::Arc};

const SECOND: i64 = 1_000;
const DAY: i64 = 86_400 * SECOND;
const YEAR: i64 = 365 * DAY;

/// Bytes of a body as sent, at most.
pub const MAX_BODY: usize = 1024 * 1024;
/// Labels of one job, at most.
pub const MAX_LABELS: usize = 32;
/// Bytes of a label's name, at most; at least one.
pub const MAX_LABEL_NAME: usize = 63;
/// Bytes of a label's value, of a display name, of an idempotency key and of a
/// content type, at most.
pub const MAX_TEXT: usize = 256;
/// Bytes of a method, at most.
pub const MAX_METHOD: usize = 32;
/// Faults that are named, at most: they travel in HTTP/2 trailers, which many
/// clients bound to 8 KiB.
pub const MAX_VIOLATIONS: usize = 32;

/// Characters of a map's key that a violation repeats, at most; see
/// [`MAX_VIOLATIONS`].
const MAX_SHOWN: usize = 64;

/// A request as the caller wrote it; spans and times in milliseconds, clamped
/// into i64 by who fills it in.
#[derive(Clone, Default)]
pub struct Draft {
    /// Name of a target; empty means `default`.
    pub target: String,
    /// HTTP method; empty means GET, or POST with a body.
    pub method: String,
    /// Path below the target's URL; may hold a query.
    pub route: String,
    /// Query parameters beside those of `route`.
    pub query: BTreeMap<String, String>,
    /// Further request headers, names in any case.
    pub headers: BTreeMap<String, String>,
    /// A body of form fields; empty means none.
    pub form: BTreeMap<String, String>,
    /// A body of JSON, already serialised.
    pub json: Option<Bytes>,
    /// A body of any kind: content type (may be empty) and bytes.
    pub raw: Option<(String, Bytes)>,
    /// Wait before the start, 0 to 365 days.
    pub start_after: Option<i64>,
    /// Time of the start, UTC; a past one means now; at most 365 days ahead.
    pub start_at: Option<i64>,
    /// Silence after which an attempt is given up, 1 s to 24 h.
    pub error_timeout: Option<i64>,
    /// From the first attempt to the end, 1 s to 365 days.
    pub max_duration: Option<i64>,
    /// From now until the first attempt must have begun, 1 s to 365 days.
    pub expire_after: Option<i64>,
    /// Attempts in all, 1 to 100.
    pub max_attempts: Option<u32>,
    /// First wait before a retry, 0 to 24 h.
    pub initial_backoff: Option<i64>,
    /// Longest wait before a retry, 0 to 24 h.
    pub max_backoff: Option<i64>,
    /// Factor from one wait to the next, 1.0 to 10.0.
    pub multiplier: Option<f64>,
    /// Whether a retry policy was given at all. An empty one is like none: each
    /// of its fields has its own default.
    pub has_retry_policy: bool,
    /// Order among waiting jobs, 0 to 9.
    pub priority: Option<u32>,
    /// Labels, at most 32.
    pub labels: BTreeMap<String, String>,
    /// Name for people, at most 256 bytes.
    pub display_name: String,
    /// Names this Start, at most 256 bytes; empty means none.
    pub idempotency_key: String,
    /// Which earlier identical job it may join; none means as the server does.
    pub merge_policy: Option<MergePolicy>,
    /// As whom; none leaves it to `cookies`.
    pub run_as: Option<RunAs>,
    /// The call's own Cookie header; may be empty.
    pub cookies: String,
}

// Headers and bodies are never logged; the target is enough to recognise it by.
impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").field("target", &self.target).finish_non_exhaustive()
    }
}

/// What the server and the target add. Spans in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Defaults<'a> {
    /// Path of the target's URL; may be empty.
    pub base_path: &'a str,
    /// Lower-case names of headers that callers of this target may set although
    /// applications trust a proxy with them.
    pub allow_headers: &'a [String],
    /// `jobs.error_timeout`.
    pub error_timeout: u64,
    /// `jobs.response_timeout`; none means without bound.
    pub response_timeout: Option<u64>,
    /// `jobs.max_duration`; none means without bound.
    pub max_duration: Option<u64>,
    /// `jobs.cancel_grace`.
    pub cancel_grace: u64,
    /// `jobs.expire_after`; none means without bound.
    pub expire_after: Option<u64>,
    /// The longest spans that a request may ask for.
    pub ceilings: Ceilings,
    /// `jobs.merge_policy`.
    pub merge_policy: MergePolicy,
    /// What the target says of credentials.
    pub identity: identity::Allowed<'a>,
}

/// The longest spans that a request may ask for, milliseconds. The last two hold
/// for a request that asks for none, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    /// Of `error_timeout`.
    pub error_timeout: u64,
    /// Of `max_duration`; none means without bound.
    pub max_duration: Option<u64>,
    /// Of `expire_after`; none means without bound.
    pub expire_after: Option<u64>,
}

/// A request without faults.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// What is kept in clear.
    pub spec: Spec,
    /// What is sealed.
    pub payload: Payload,
    /// When it is due, UTC milliseconds; never before the moment of the check.
    pub scheduled_at: i64,
}

/// One fault of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field within StartRequest, `action.headers["x-a"]` say; empty
    /// in the last one of more than [`MAX_VIOLATIONS`].
    pub field: String,
    /// What holds for the field, for people.
    pub description: String,
}

/// Checks a request at the moment `wall`, UTC milliseconds.
///
/// # Errors
/// Every fault, the first [`MAX_VIOLATIONS`] by name. A limit of a whole map is
/// reported once.
pub fn check(draft: Draft, defaults: &Defaults<'_>, wall: i64) -> Result<Checked, Vec<Violation>> {
    let mut faults = Faults::default();
    let scheduled_at = faults.start(draft.start_after, draft.start_at, wall);
    let rules = faults.rules(&draft, defaults, wall);
    faults.query(&draft.query);
    let url = faults.url(&draft, defaults.base_path);
    let headers = faults.headers(&draft.headers, defaults.allow_headers);
    faults.labels(&draft.labels);
    faults.text("display_name", &draft.display_name);
    faults.text("idempotency_key", &draft.idempotency_key);
    let priority = draft.priority.unwrap_or(5);
    faults.unless(priority <= 9, "priority", "must be 0 to 9");
    let (content_type, body) = faults.body(draft.form, draft.json, draft.raw);
    let method = faults.method(draft.method, content_type.is_some());
    let credentials = identity::resolve(draft.run_as, &draft.cookies, defaults.identity);
    let credentials = credentials.unwrap_or_else(|more| {
        faults.0.extend(more);
        None
    });
    faults.finish()?;
    let policy = draft.merge_policy.unwrap_or(defaults.merge_policy);
    let route: Arc<str> = draft.route.into();
    let spec = Spec {
        display_name: draft.display_name,
        labels: draft.labels,
        target: if draft.target.is_empty() { "default".into() } else { draft.target.into() },
        method: method.into(),
        url: if *route == *url { Arc::clone(&route) } else { url.into() },
        route,
        query: draft.query,
        header_names: headers.iter().map(|(name, _)| name.clone()).collect(),
        priority: u8::try_from(priority).unwrap_or(9),
        rules: Arc::new(rules),
        merge: policy.class(),
        as_user: credentials.is_some(),
    };
    Ok(Checked { spec, payload: Payload { headers, content_type, body, credentials }, scheduled_at })
}

/// Gathers faults. Each part gives back what it made, which counts only if
/// nothing was gathered in the end.
#[derive(Default)]
struct Faults(Vec<Violation>);

impl Faults {
    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(Violation { field: field.into(), description: description.into() });
    }

    fn unless(&mut self, holds: bool, field: &str, description: &str) {
        if !holds {
            self.add(field, description);
        }
    }

    fn finish(mut self) -> Result<(), Vec<Violation>> {
        if self.0.is_empty() {
            return Ok(());
        }
        let more = self.0.len().saturating_sub(MAX_VIOLATIONS);
        self.0.truncate(MAX_VIOLATIONS);
        if more > 0 {
            self.add("", format!("and {more} more faults"));
        }
        Err(self.0)
    }

    /// `given`, where it is within `range`.
    fn span(&mut self, field: &str, given: Option<i64>, range: Range) -> Option<u64> {
        let given = given?;
        let within = (range.min..=range.max).contains(&given);
        self.unless(within, field, range.says);
        u64::try_from(given).ok()
    }

    fn start(&mut self, after: Option<i64>, at: Option<i64>, wall: i64) -> i64 {
        if after.is_some() && at.is_some() {
            self.add("start_at", "must not be given together with start_after");
        }
        let after = self.span("start_after", after, UP_TO_YEAR);
        let latest = wall.saturating_add(YEAR);
        self.unless(at.is_none_or(|at| at <= latest), "start_at", "must be at most 365 days ahead");
        match (after, at) {
            (Some(after), _) => wall.saturating_add(i64::try_from(after).unwrap_or(YEAR)),
            (None, Some(at)) => at.max(wall),
            (None, None) => wall,
        }
    }

    fn rules(&mut self, draft: &Draft, defaults: &Defaults<'_>, wall: i64) -> Rules {
        let error_timeout = self.span("error_timeout", draft.error_timeout, SECOND_TO_DAY);
        let max_duration = self.span("max_duration", draft.max_duration, SECOND_TO_YEAR);
        let expire_after = self.span("expire_after", draft.expire_after, SECOND_TO_YEAR);
        let ceilings = defaults.ceilings;
        for (field, given, ceiling, range) in [
            ("error_timeout", error_timeout, Some(ceilings.error_timeout), SECOND_TO_DAY),
            ("max_duration", max_duration, ceilings.max_duration, SECOND_TO_YEAR),
            ("expire_after", expire_after, ceilings.expire_after, SECOND_TO_YEAR),
        ] {
            // What is out of every range has its fault already.
            let given = given.filter(|given| *given <= range.max.unsigned_abs());
            let Some(most) = ceiling.filter(|most| given.is_some_and(|given| given > *most)) else {
                continue;
            };
            self.add(field, format!("must be at most {} s on this server", most / 1_000));
        }
        let expire_after = expire_after.or(defaults.expire_after).or(ceilings.expire_after);
        let max_attempts = draft.max_attempts.unwrap_or(1);
        self.unless((1..=100).contains(&max_attempts), "retry_policy.max_attempts", "must be 1 to 100");
        let multiplier = draft.multiplier.unwrap_or(2.0);
        // NaN is in no range.
        self.unless((1.0..=10.0).contains(&multiplier), "retry_policy.multiplier", "must be 1.0 to 10.0");
        let initial = self.span("retry_policy.initial_backoff", draft.initial_backoff, UP_TO_DAY);
        let max = self.span("retry_policy.max_backoff", draft.max_backoff, UP_TO_DAY);
        if let (Some(initial), Some(max)) = (initial, max) {
            self.unless(max >= initial, "retry_policy.max_backoff", "must not be below initial_backoff");
        }
        // Who gives one of both is not faulted for the default of the other.
        let initial_backoff = initial.unwrap_or(1_000.min(max.unwrap_or(u64::MAX)));
        Rules {
            error_timeout: error_timeout.unwrap_or(defaults.error_timeout),
            error_timeout_given: error_timeout.is_some(),
            response_timeout: defaults.response_timeout,
            max_duration: max_duration.or(defaults.max_duration).or(ceilings.max_duration),
            expire_at: expire_after
                .map(|after| wall.saturating_add(i64::try_from(after).unwrap_or(i64::MAX))),
            cancel_grace: defaults.cancel_grace,
            max_attempts,
            initial_backoff,
            max_backoff: max.unwrap_or(initial_backoff.max(300_000)),
            multiplier,
        }
    }

    /// They would be percent-encoded, but applications decode them, and then
    /// write them into logs and headers of their own.
    fn query(&mut self, query: &BTreeMap<String, String>) {
        for (name, value) in query {
            if name.contains(['\r', '\n', '\0']) || value.contains(['\r', '\n', '\0']) {
                self.add(entry("action.query", name), "must not hold CR, LF or NUL");
            }
        }
    }

    fn url(&mut self, draft: &Draft, base: &str) -> String {
        url::build(base, &draft.route, &draft.query).unwrap_or_else(|fault| {
            let query = fault == url::BadRoute::TooLong && base.len() + draft.route.len() <= url::MAX;
            self.add(if query { "action.query" } else { "action.route" }, fault.to_string());
            String::new()
        })
    }

    fn headers(&mut self, given: &BTreeMap<String, String>, allowed: &[String]) -> headers::Sent {
        headers::check(given, allowed).unwrap_or_else(|faults| {
            for (name, fault) in faults {
                // A header without a name is a fault of its own, not of them all.
                let whole = matches!(fault, headers::BadHeader::TooMany | headers::BadHeader::TooLarge);
                let field = if whole { "action.headers".to_owned() } else { entry("action.headers", &name) };
                self.add(field, fault.to_string());
            }
            headers::Sent::new()
        })
    }

    fn labels(&mut self, labels: &BTreeMap<String, String>) {
        if labels.len() > MAX_LABELS {
            self.add("labels", "at most 32 labels may be given");
            return;
        }
        for (name, value) in labels {
            let field = entry("labels", name);
            if !(1..=MAX_LABEL_NAME).contains(&name.len()) {
                self.add(&*field, "a label's name must take 1 to 63 bytes");
            }
            if value.len() > MAX_TEXT {
                self.add(&*field, "a label's value must take at most 256 bytes");
            }
            if name.contains(char::is_control) || value.contains(char::is_control) {
                self.add(field, "must not hold control characters");
            }
        }
    }

    fn text(&mut self, field: &str, text: &str) {
        self.unless(text.len() <= MAX_TEXT, field, "must take at most 256 bytes");
        self.unless(!text.contains(char::is_control), field, "must not hold control characters");
    }

    fn method(&mut self, given: String, with_body: bool) -> String {
        if given.is_empty() {
            return if with_body { "POST" } else { "GET" }.to_owned();
        }
        let token = given.len() <= MAX_METHOD
            && given.bytes().all(|byte| is_tchar(byte) && !byte.is_ascii_lowercase());
        self.unless(token, "action.method", "must be an upper-case HTTP token of at most 32 bytes");
        self.unless(given != "CONNECT", "action.method", "CONNECT opens a tunnel, which no action needs");
        given
    }

    /// Content type and body as sent. The type is none without a body.
    fn body(
        &mut self,
        form: BTreeMap<String, String>,
        json: Option<Bytes>,
        raw: Option<(String, Bytes)>,
    ) -> (Option<String>, Bytes) {
        let given = [("form", !form.is_empty()), ("json", json.is_some()), ("raw", raw.is_some())];
        let given: Vec<&str> = given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
        if given.len() > 1 {
            self.add(
                "action",
                format!("at most one body may be given, but here are {}", given.join(" and ")),
            );
        }
        let mut body = (None, Bytes::new());
        if !form.is_empty() {
            // Fields hold text of several lines by their nature, and a body
            // ends up in no line of a protocol: CR, LF and NUL are encoded.
            let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(&form).finish();
            self.unless(encoded.len() <= MAX_BODY, "action.form", TOO_LARGE);
            body = (Some("application/x-www-form-urlencoded".to_owned()), encoded.into());
        }
        if let Some(json) = json {
            self.unless(json.len() <= MAX_BODY, "action.json", TOO_LARGE);
            body = (Some("application/json".to_owned()), json);
        }
        if let Some((content_type, data)) = raw {
            self.unless(data.len() <= MAX_BODY, "action.raw.data", TOO_LARGE);
            let content_type = content_type.trim_matches([' ', '\t']);
            let content_type =
                if content_type.is_empty() { "application/octet-stream" } else { content_type };
            self.unless(is_media_type(content_type), "action.raw.content_type", NO_MEDIA_TYPE);
            body = (Some(content_type.to_owned()), data);
        }
        body
    }
}

const TOO_LARGE: &str = "a body must take at most 1048576 bytes, as sent";
const NO_MEDIA_TYPE: &str = "must be a media type of at most 256 ASCII bytes, like application/xml";

/// Which spans are accepted, in milliseconds.
#[derive(Clone, Copy)]
struct Range {
    min: i64,
    max: i64,
    says: &'static str,
}

const UP_TO_DAY: Range = Range { min: 0, max: DAY, says: "must be 0 s to 24 h" };
const UP_TO_YEAR: Range = Range { min: 0, max: YEAR, says: "must be 0 s to 365 days" };
const SECOND_TO_DAY: Range = Range { min: SECOND, max: DAY, says: "must be 1 s to 24 h" };
const SECOND_TO_YEAR: Range = Range { min: SECOND, max: YEAR, says: "must be 1 s to 365 days" };

/// The path of a map's entry, its name cut and escaped.
fn entry(map: &str, name: &str) -> String {
    let mut shown: String = name.chars().take(MAX_SHOWN).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    format!("{map}[{shown:?}]")
}

/// A character of a token, RFC 9110, 5.6.2.
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Type, slash and subtype, and after a semicolon whatever a header may hold
/// (RFC 9110, 8.3.1).
fn is_media_type(text: &str) -> bool {
    let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
    let token = |token: &str| !token.is_empty() && token.bytes().all(is_tchar);
    text.len() <= MAX_TEXT
        && essence.trim_end_matches([' ', '\t']).split_once('/').is_some_and(|(a, b)| token(a) && token(b))
        && parameters.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests;
