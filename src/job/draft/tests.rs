//! What a Start may ask for, field by field, and any request at all.

use super::*;
use proptest::prelude::*;

const NOW: i64 = 1_700_000_000_000;

fn defaults() -> Defaults<'static> {
    Defaults {
        base_path: "/app",
        allow_headers: &[],
        error_timeout: 60_000,
        response_timeout: Some(3_600_000),
        max_duration: None,
        cancel_grace: 10_000,
        expire_after: None,
        ceilings: Ceilings { error_timeout: DAY as u64, max_duration: None, expire_after: None },
        merge_policy: MergePolicy::Never,
        identity: identity::Allowed { identity: true, cookies: &[] },
    }
}

fn draft() -> Draft {
    Draft { route: "/a".into(), ..Draft::default() }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn passed(draft: Draft) -> Checked {
    check(draft, &defaults(), NOW).expect("no fault")
}

/// The fields of a refused request.
fn fields(draft: Draft) -> Vec<String> {
    let faults = check(draft, &defaults(), NOW).expect_err("refused");
    assert!(faults.iter().all(|fault| !fault.description.is_empty()));
    faults.into_iter().map(|fault| fault.field).collect()
}

#[test]
fn the_least_a_caller_can_say_gets_every_default() {
    let Checked { spec, payload, scheduled_at } = passed(draft());
    assert_eq!((&*spec.target, &*spec.method, &*spec.url), ("default", "GET", "/app/a"));
    assert_eq!((spec.priority, scheduled_at), (5, NOW));
    assert_eq!(payload, Payload::default());
    let expected = Rules {
        error_timeout: 60_000,
        error_timeout_given: false,
        response_timeout: Some(3_600_000),
        max_duration: None,
        expire_at: None,
        cancel_grace: 10_000,
        max_attempts: 1,
        initial_backoff: 1_000,
        max_backoff: 300_000,
        multiplier: 2.0,
    };
    assert_eq!(*spec.rules, expected);
}

#[test]
fn what_is_given_beats_the_defaults() {
    let given = Draft {
        target: "shop".into(),
        method: "CHICKEN".into(),
        query: map(&[("b", "2"), ("a", "1")]),
        headers: map(&[("X-B", " 2 "), ("X-A", "1")]),
        start_after: Some(5_000),
        error_timeout: Some(1_000),
        max_duration: Some(2_000),
        expire_after: Some(3_000),
        max_attempts: Some(100),
        initial_backoff: Some(400_000),
        multiplier: Some(10.0),
        has_retry_policy: true,
        priority: Some(0),
        labels: map(&[("k", "")]),
        display_name: "Übung".into(),
        ..draft()
    };
    let Checked { spec, payload, scheduled_at } = passed(given);
    assert_eq!((&*spec.target, &*spec.method, spec.priority), ("shop", "CHICKEN", 0));
    assert_eq!((&*spec.url, spec.display_name.as_str()), ("/app/a?a=1&b=2", "Übung"));
    assert_eq!(spec.header_names, ["x-a", "x-b"]);
    assert_eq!(payload.headers, [("x-a".into(), "1".into()), ("x-b".into(), "2".into())]);
    assert_eq!(scheduled_at, NOW + 5_000);
    assert_eq!((spec.rules.error_timeout, spec.rules.error_timeout_given), (1_000, true));
    assert_eq!((spec.rules.max_duration, spec.rules.expire_at), (Some(2_000), Some(NOW + 3_000)));
    assert_eq!((spec.rules.initial_backoff, spec.rules.max_backoff), (400_000, 400_000));
}

#[test]
fn each_fault_is_named_by_its_field() {
    let long = "a".repeat(257);
    let raw = |kind: &str| Some((kind.to_owned(), Bytes::from_static(b"x")));
    #[rustfmt::skip]
    let cases = [
        ("action.route", Draft { route: String::new(), ..draft() }),
        ("action.route", Draft { route: "/a\r\nb".into(), ..draft() }),
        ("action.route", Draft { route: format!("/{}", "a".repeat(url::MAX)), ..draft() }),
        ("action.query", Draft { query: map(&[("q", &"a".repeat(url::MAX))]), ..draft() }),
        ("action.query[\"a\\r\"]", Draft { query: map(&[("a\r", "")]), ..draft() }),
        ("action.query[\"q\"]", Draft { query: map(&[("q", "a\nb")]), ..draft() }),
        ("action.query[\"q\"]", Draft { query: map(&[("q", "\0")]), ..draft() }),
        ("action.headers[\"Host\"]", Draft { headers: map(&[("Host", "h")]), ..draft() }),
        ("action.headers[\"\"]", Draft { headers: map(&[("", "h")]), ..draft() }),
        ("action.headers", Draft { headers: map(&[("x", &"h".repeat(headers::MAX_BYTES))]), ..draft() }),
        ("action.method", Draft { method: "get".into(), ..draft() }),
        ("action.method", Draft { method: "CONNECT".into(), ..draft() }),
        ("action.method", Draft { method: "GET /".into(), ..draft() }),
        ("action.method", Draft { method: "A".repeat(33), ..draft() }),
        ("action", Draft { form: map(&[("a", "1")]), json: Some("{}".into()), ..draft() }),
        ("action", Draft { json: Some("{}".into()), raw: raw(""), ..draft() }),
        ("action.form", Draft { form: map(&[("a", &"é".repeat(MAX_BODY / 6 + 1))]), ..draft() }),
        ("action.json", Draft { json: Some(vec![b' '; MAX_BODY + 1].into()), ..draft() }),
        ("action.raw.data", Draft { raw: Some((String::new(), vec![0; MAX_BODY + 1].into())), ..draft() }),
        ("action.raw.content_type", Draft { raw: raw("text"), ..draft() }),
        ("action.raw.content_type", Draft { raw: raw("text/"), ..draft() }),
        ("action.raw.content_type", Draft { raw: raw("text/plain\r\nx: y"), ..draft() }),
        ("action.raw.content_type", Draft { raw: raw("text/plain; a=\0"), ..draft() }),
        ("action.raw.content_type", Draft { raw: raw("text/plain; a=é"), ..draft() }),
        ("action.raw.content_type", Draft { raw: raw(&format!("text/{long}")), ..draft() }),
        ("start_at", Draft { start_after: Some(1), start_at: Some(NOW), ..draft() }),
        ("start_after", Draft { start_after: Some(-1), ..draft() }),
        ("start_after", Draft { start_after: Some(YEAR + 1), ..draft() }),
        ("start_at", Draft { start_at: Some(NOW + YEAR + 1), ..draft() }),
        ("error_timeout", Draft { error_timeout: Some(999), ..draft() }),
        ("error_timeout", Draft { error_timeout: Some(DAY + 1), ..draft() }),
        ("max_duration", Draft { max_duration: Some(0), ..draft() }),
        ("max_duration", Draft { max_duration: Some(i64::MAX), ..draft() }),
        ("expire_after", Draft { expire_after: Some(-1), ..draft() }),
        ("expire_after", Draft { expire_after: Some(YEAR + 1), ..draft() }),
        ("retry_policy.max_attempts", Draft { max_attempts: Some(0), ..draft() }),
        ("retry_policy.max_attempts", Draft { max_attempts: Some(101), ..draft() }),
        ("retry_policy.initial_backoff", Draft { initial_backoff: Some(-1), ..draft() }),
        ("retry_policy.max_backoff", Draft { max_backoff: Some(DAY + 1), ..draft() }),
        ("retry_policy.max_backoff", Draft { initial_backoff: Some(2), max_backoff: Some(1), ..draft() }),
        ("retry_policy.multiplier", Draft { multiplier: Some(0.9), ..draft() }),
        ("retry_policy.multiplier", Draft { multiplier: Some(10.1), ..draft() }),
        ("retry_policy.multiplier", Draft { multiplier: Some(f64::NAN), ..draft() }),
        ("retry_policy.multiplier", Draft { multiplier: Some(f64::INFINITY), ..draft() }),
        ("priority", Draft { priority: Some(10), ..draft() }),
        ("labels[\"\"]", Draft { labels: map(&[("", "v")]), ..draft() }),
        ("labels[\"k\"]", Draft { labels: map(&[("k", &long)]), ..draft() }),
        ("labels[\"k\"]", Draft { labels: map(&[("k", "\u{85}")]), ..draft() }),
        ("labels", Draft { labels: (0..33).map(|n| (n.to_string(), "\n".into())).collect(), ..draft() }),
        ("display_name", Draft { display_name: long.clone(), ..draft() }),
        ("display_name", Draft { display_name: "a\tb".into(), ..draft() }),
        ("idempotency_key", Draft { idempotency_key: long.clone(), ..draft() }),
        ("idempotency_key", Draft { idempotency_key: "\0".into(), ..draft() }),
    ];
    for (field, draft) in cases {
        assert_eq!(fields(draft), [field]);
    }
}

#[test]
fn the_bounds_themselves_pass() {
    passed(Draft {
        method: "M-SEARCH".into(),
        raw: Some(("a/b".into(), vec![0; MAX_BODY].into())),
        start_at: Some(NOW + YEAR),
        error_timeout: Some(DAY),
        max_duration: Some(YEAR),
        expire_after: Some(SECOND),
        initial_backoff: Some(0),
        max_backoff: Some(0),
        priority: Some(9),
        labels: (0..32).map(|n| (format!("{n:063}"), "v".repeat(256))).collect(),
        display_name: "n".repeat(256),
        idempotency_key: "k".repeat(256),
        ..draft()
    });
}

#[test]
fn a_past_start_means_now() {
    for past in [NOW - 1, 0, i64::MIN] {
        assert_eq!(passed(Draft { start_at: Some(past), ..draft() }).scheduled_at, NOW);
    }
    assert_eq!(passed(Draft { start_at: Some(NOW + 1), ..draft() }).scheduled_at, NOW + 1);
}

#[test]
fn one_backoff_given_bends_the_default_of_the_other() {
    let rules =
        |initial, max| passed(Draft { initial_backoff: initial, max_backoff: max, ..draft() }).spec.rules;
    let low = rules(None, Some(500));
    assert_eq!((low.initial_backoff, low.max_backoff), (500, 500));
    let high = rules(Some(DAY), None);
    assert_eq!((high.initial_backoff, high.max_backoff), (DAY as u64, DAY as u64));
}

#[test]
fn each_kind_of_body_is_sent_with_its_type_and_by_post() {
    let form = Draft { form: map(&[("b", "x y"), ("a", "1\r\n2")]), ..draft() };
    let json = Draft { json: Some("{\"a\":1}".into()), ..draft() };
    let raw = |kind: &str| Draft { raw: Some((kind.into(), "x".into())), ..draft() };
    for (draft, kind, body) in [
        (form, "application/x-www-form-urlencoded", "a=1%0D%0A2&b=x+y"),
        (json, "application/json", "{\"a\":1}"),
        (raw(""), "application/octet-stream", "x"),
        (raw(" multipart/form-data; boundary=\"a b\" "), "multipart/form-data; boundary=\"a b\"", "x"),
        (raw("text/html ; charset=utf-8"), "text/html ; charset=utf-8", "x"),
    ] {
        let Checked { spec, payload, .. } = passed(draft);
        assert_eq!(&*spec.method, "POST");
        assert_eq!((payload.content_type.as_deref(), payload.body), (Some(kind), Bytes::from(body)));
    }
}

#[test]
fn two_bodies_are_named() {
    let both = Draft { json: Some("{}".into()), raw: Some((String::new(), Bytes::new())), ..draft() };
    let faults = check(both, &defaults(), NOW).expect_err("refused");
    assert!(faults[0].description.contains("json and raw"), "{faults:?}");
}

#[test]
fn all_faults_come_at_once_and_no_value_with_them() {
    let bad = Draft {
        route: "secret".into(),
        headers: map(&[("Cookie", "secret"), ("X-A", "secret\n")]),
        query: map(&[("q", "secret\n")]),
        priority: Some(10),
        display_name: "secret\n".into(),
        labels: map(&[("k", "secret\n")]),
        ..Draft::default()
    };
    assert!(!format!("{bad:?}").contains("X-A"));
    let faults = check(bad, &defaults(), NOW).expect_err("refused");
    assert_eq!(faults.len(), 7, "{faults:?}");
    assert!(!format!("{faults:?}").contains("secret"));
}

#[test]
fn a_flood_of_faults_is_cut() {
    let query = (0..100).map(|n| (format!("{n}{}", "é".repeat(300)), "\n".into())).collect();
    let faults = check(Draft { query, ..draft() }, &defaults(), NOW).expect_err("refused");
    assert_eq!(faults.len(), MAX_VIOLATIONS + 1);
    assert!(faults[0].field.len() < 160, "{}", faults[0].field);
    assert_eq!(faults[MAX_VIOLATIONS].description, "and 69 more faults");
}

fn any_map() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop_oneof![
        3 => prop::collection::btree_map("[a-z]{1,8}", "[ -~é]{0,12}", 0..3),
        1 => prop::collection::btree_map(".{0,70}", ".{0,300}", 0..40),
    ]
}

/// Seldom out of range, so that many requests pass.
fn span() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![3 => Just(None), 3 => (1_000..DAY).prop_map(Some), 1 => any::<i64>().prop_map(Some)]
}

prop_compose! {
    fn any_draft()(
        (method, route, query, headers) in ("|[A-Z]{1,8}|.{0,3}", "/[a-z]{0,9}|.{0,9}", any_map(), any_map()),
        (form, json, raw) in (any_map(), prop::option::weighted(0.2, ".{0,9}"), prop::option::weighted(0.2, ("|a/b|.{0,9}", ".{0,9}"))),
        (start_after, start_at, error_timeout, max_duration) in (span(), span(), span(), span()),
        (expire_after, initial_backoff, max_backoff) in (span(), span(), span()),
        max_attempts in prop::option::of(0..110_u32),
        multiplier in prop::option::of(prop_oneof![1.0..10.0, any::<f64>()]),
        priority in prop::option::of(0..11_u32),
        (labels, display_name, idempotency_key) in (any_map(), "[a-z]{0,9}|.{0,300}", "[a-z]{0,9}|.{0,300}"),
    ) -> Draft {
        Draft {
            target: String::new(), method, route, query, headers, form,
            json: json.map(Bytes::from),
            raw: raw.map(|(kind, data)| (kind, Bytes::from(data))),
            start_after, start_at, error_timeout, max_duration, expire_after,
            initial_backoff, max_backoff, max_attempts, multiplier, priority,
            labels, display_name, idempotency_key, has_retry_policy: true, merge_policy: None, run_as: None, cookies: String::new(),
        }
    }
}

proptest! {
    #[test]
    fn any_request_is_refused_by_name_or_holds_every_limit(draft in any_draft(), wall in prop_oneof![Just(NOW), any::<i64>()]) {
        match check(draft, &defaults(), wall) {
            Err(faults) => {
                prop_assert!(!faults.is_empty() && faults.len() <= MAX_VIOLATIONS + 1);
            }
            Ok(Checked { spec, payload, scheduled_at }) => {
                let uri: http::Uri = spec.url.parse().expect("a valid request target");
                prop_assert_eq!(uri.to_string(), &*spec.url);
                prop_assert!(spec.url.starts_with("/app/") && spec.url.len() <= url::MAX);
                prop_assert!(http::Method::from_bytes(spec.method.as_bytes()).is_ok());
                prop_assert!(spec.method.len() <= MAX_METHOD && &*spec.method != "CONNECT");
                prop_assert!(payload.headers.len() <= headers::MAX_COUNT && payload.body.len() <= MAX_BODY);
                prop_assert!(payload.headers.iter().map(|(name, _)| name).eq(&spec.header_names));
                for value in payload.headers.iter().map(|(_, value)| value).chain(&payload.content_type) {
                    prop_assert!(http::HeaderValue::from_str(value).is_ok());
                }
                prop_assert!(spec.labels.len() <= MAX_LABELS && spec.display_name.len() <= MAX_TEXT);
                prop_assert!(spec.priority <= 9);
                prop_assert!(scheduled_at >= wall && scheduled_at <= wall.saturating_add(YEAR));
                let rules = &spec.rules;
                prop_assert!((1_000..=DAY as u64).contains(&rules.error_timeout));
                prop_assert!(rules.max_duration.is_none_or(|span| (1_000..=YEAR as u64).contains(&span)));
                prop_assert!(rules.initial_backoff <= rules.max_backoff && rules.max_backoff <= DAY as u64);
                prop_assert!((1..=100).contains(&rules.max_attempts));
                prop_assert!((1.0..=10.0).contains(&rules.multiplier));
            }
        }
    }
}
