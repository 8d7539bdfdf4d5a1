//! Every state against every event, and random walks through the machine.

use super::state::*;
use super::text::Text;
use super::{event::*, transition::*};
use proptest::prelude::*;
use std::sync::Arc;

fn rules() -> Rules {
    Rules {
        error_timeout: 60_000,
        error_timeout_given: false,
        response_timeout: Some(3_600_000),
        max_duration: Some(7_200_000),
        expire_at: Some(5_000_000),
        cancel_grace: 10_000,
        max_attempts: 2,
        initial_backoff: 1_000,
        max_backoff: 300_000,
        multiplier: 2.0,
    }
}

fn at(ms: u64) -> Now {
    Now { wall: 1_000_000 + ms as i64, mono: ms, chance: 1.0 }
}

fn queued() -> Job {
    Job::new(Arc::new(rules()), 0, at(0))
}

fn running() -> Job {
    let mut job = queued();
    job.apply(Event::Claim, at(1)).expect("a queued job can be claimed");
    job
}

fn sent() -> Job {
    let mut job = running();
    job.apply(of(Signal::Sent), at(2)).expect("sent");
    job
}

fn cancelling() -> Job {
    let mut job = sent();
    job.apply(Event::Cancel, at(3)).expect("a running job can be cancelled");
    job
}

fn of(signal: Signal) -> Event {
    Event::Of(1, signal)
}

fn ended(end: End) -> Event {
    of(Signal::Report(Report { end: Some(end), ..Report::default() }))
}

fn finish() -> Event {
    ended(End::Finish(None))
}

fn fail(retryable: bool) -> Event {
    ended(End::Fail { message: "no".into(), retryable })
}

fn heartbeat() -> Event {
    of(Signal::Report(Report::default()))
}

fn responded(status: u16) -> Event {
    of(Signal::Response(Response { status, output: None, text: Some("body".into()), retry_after: None }))
}

fn events() -> Vec<(&'static str, Event)> {
    vec![
        ("due", Event::Due),
        ("claim", Event::Claim),
        ("cancel", Event::Cancel),
        ("timer", Event::Timer),
        ("adopt", Event::Adopt),
        ("sent", of(Signal::Sent)),
        ("heard", of(Signal::Heard)),
        ("heartbeat", heartbeat()),
        ("finish", finish()),
        ("fail", fail(false)),
        ("fail, retryable", fail(true)),
        ("stopped", ended(End::Stopped)),
        ("stop delivered", of(Signal::StopDelivered)),
        ("200", responded(200)),
        ("202", responded(202)),
        ("302", responded(302)),
        ("404", responded(404)),
        ("429", responded(429)),
        ("500", responded(500)),
        ("no connection", of(Signal::NotSent(Reason::Connect, "refused".into()))),
        ("blocked", of(Signal::NotSent(Reason::Blocked, "10.0.0.1".into()))),
        ("bad response", of(Signal::BadResponse("garbage".into()))),
        ("lost", of(Signal::Lost("reset".into()))),
    ]
}

/// What an event makes of a state: the next state's name, or why not.
fn outcome(job: &Job, event: &Event) -> String {
    let mut job = job.clone();
    match job.apply(event.clone(), at(10)) {
        Ok(_) => job.state_name().to_string(),
        Err(Refused::Final(_)) => "final".into(),
        Err(Refused::StaleAttempt(_)) => "stale".into(),
        Err(Refused::Meaningless(_)) => "-".into(),
        Err(Refused::NotDue) => "not due".into(),
        Err(Refused::NotCancelled) => "not cancelled".into(),
        Err(Refused::Repeat) => "repeat".into(),
    }
}

#[test]
fn every_event_in_every_state() {
    let scheduled = Job::new(Arc::new(rules()), 9_000_000, at(0));
    let states = [scheduled, queued(), running(), sent(), cancelling()];
    let (r, q, c) = ("RUNNING", "QUEUED", "CANCELLED");
    let (s, f, again) = ("SUCCEEDED", "FAILED", "SCHEDULED");
    #[rustfmt::skip]
    let expected = [
        //                   scheduled  queued   running  sent   cancelling
        ("due",             ["not due", "-",     "-",     "-",   "-"]),
        ("claim",           ["not due", r,       "-",     "-",   "-"]),
        ("cancel",          [c,         c,       r,       r,     r]),
        ("timer",           ["not due"; 5]),
        ("adopt",           ["-",       "-",     q,       r,     r]),
        ("sent",            ["stale",   "stale", r,       r,     r]),
        ("heard",           ["stale",   "stale", r,       r,     r]),
        ("heartbeat",       ["stale",   "stale", r,       r,     r]),
        ("finish",          ["stale",   "stale", s,       s,     s]),
        ("fail",            ["stale",   "stale", f,       f,     c]),
        ("fail, retryable", ["stale",   "stale", again,   again, c]),
        ("stopped",         ["stale",   "stale", "not cancelled", "not cancelled", c]),
        ("stop delivered",  ["stale",   "stale", r,       r,     r]),
        ("200",             ["stale",   "stale", s,       s,     s]),
        ("202",             ["stale",   "stale", r,       r,     r]),
        ("302",             ["stale",   "stale", f,       f,     c]),
        ("404",             ["stale",   "stale", f,       f,     c]),
        ("429",             ["stale",   "stale", again,   again, c]),
        ("500",             ["stale",   "stale", again,   again, c]),
        ("no connection",   ["stale",   "stale", again,   again, c]),
        ("blocked",         ["stale",   "stale", f,       f,     c]),
        ("bad response",    ["stale",   "stale", again,   again, c]),
        ("lost",            ["stale",   "stale", r,       r,     c]),
    ];
    for ((name, event), (row, expected)) in events().into_iter().zip(expected) {
        assert_eq!(name, row);
        let seen: Vec<String> = states.iter().map(|job| outcome(job, &event)).collect();
        assert_eq!(seen, expected, "{name}");
    }
}

#[test]
fn final_is_final() {
    for (how, end) in [("finish", finish()), ("fail", fail(false))] {
        for (name, event) in events() {
            let mut job = sent();
            job.apply(end.clone(), at(5)).expect(how);
            let before = format!("{job:?}");
            assert!(job.apply(event, at(9)).is_err(), "{name} after {how}");
            assert_eq!(before, format!("{job:?}"));
        }
    }
    let mut job = queued();
    job.apply(Event::Cancel, at(5)).expect("cancelled");
    assert_eq!(job.apply(Event::Cancel, at(6)), Ok(Transition::default()));
    assert_eq!(job.apply(Event::Claim, at(6)), Err(Refused::Final(StateName::Cancelled)));
}

#[test]
fn a_2xx_after_a_delivered_stop_is_cancelled() {
    let mut job = cancelling();
    job.apply(of(Signal::StopDelivered), at(4)).expect("delivered");
    job.apply(responded(200), at(5)).expect("ends");
    assert_eq!(job.state_name(), StateName::Cancelled);
    let mut job = cancelling();
    job.apply(of(Signal::StopDelivered), at(4)).expect("delivered");
    job.apply(finish(), at(5)).expect("ends");
    assert_eq!(job.state_name(), StateName::Succeeded);
}

#[test]
fn the_grace_of_a_cancel_ends_it_and_closes_the_connection() {
    let mut job = cancelling();
    assert_eq!(job.due_at(), Some(10_003));
    assert_eq!(job.apply(Event::Timer, at(10_002)), Err(Refused::NotDue));
    let ended = job.apply(Event::Timer, at(10_003)).expect("due");
    assert_eq!((job.state_name(), ended.connection), (StateName::Cancelled, Connection::Close));
}

#[test]
fn a_silent_plain_action_lives_for_the_response_timeout() {
    let mut job = sent();
    assert_eq!(job.due_at(), Some(3_600_002));
    job.apply(of(Signal::Heard), at(600_000)).expect("a chunk");
    assert_eq!(job.due_at(), Some(4_200_000));
    job.apply(heartbeat(), at(600_001)).expect("a report");
    assert_eq!(job.due_at(), Some(660_001), "from the first report error_timeout rules");
    let mut detached = sent();
    detached.apply(responded(202), at(100)).expect("202");
    assert_eq!(detached.due_at(), Some(60_100));
    let mut lost = sent();
    lost.apply(of(Signal::Lost("reset".into())), at(100)).expect("lost");
    assert_eq!(lost.due_at(), Some(60_100));
}

#[test]
fn silence_is_stalled_or_lost_and_retried_until_attempts_are_used_up() {
    let mut job = sent();
    job.apply(heartbeat(), at(3)).expect("a report");
    job.apply(Event::Timer, at(60_003)).expect("due");
    assert_eq!(job.state_name(), StateName::Scheduled);
    assert_eq!(job.failure.as_ref().map(|f| f.reason), Some(Reason::Stalled));
    assert_eq!(job.scheduled_at, at(61_003).wall);
    assert_eq!(job.apply(heartbeat(), at(60_004)), Err(Refused::StaleAttempt(1)));
    job.apply(Event::Claim, at(61_003)).expect("claimed again");
    assert_eq!((job.attempt, job.progress, job.failure.is_none()), (2, 0, true));
    assert_eq!(job.apply(heartbeat(), at(61_004)), Err(Refused::StaleAttempt(1)));
    job.apply(Event::Of(2, Signal::Sent), at(61_004)).expect("sent");
    job.apply(Event::Of(2, Signal::Lost("reset".into())), at(61_005)).expect("lost");
    job.apply(Event::Timer, at(121_005)).expect("due");
    assert_eq!(job.state_name(), StateName::Failed);
    assert_eq!(job.failure.map(|f| f.reason), Some(Reason::Lost));
}

#[test]
fn max_duration_counts_from_the_first_start_and_is_not_retried() {
    let mut job = sent();
    for minute in 1..120 {
        job.apply(heartbeat(), at(minute * 60_000)).expect("a report");
    }
    job.apply(Event::Timer, at(7_200_001)).expect("due");
    assert_eq!(job.failure.map(|f| f.reason), Some(Reason::Deadline));
}

#[test]
fn a_job_that_never_began_expires() {
    let mut job = queued();
    job.apply(Event::Timer, at(4_000_000)).expect("due");
    assert_eq!(job.failure.map(|f| f.reason), Some(Reason::Expired));
    let mut job = queued();
    job.apply(Event::Claim, at(4_000_000)).expect("given up instead of claimed");
    assert_eq!(job.state_name(), StateName::Failed);
}

#[test]
fn a_restart_makes_up_once_for_an_attempt_that_was_never_sent() {
    let mut job = running();
    let before = job.revision;
    job.apply(Event::Adopt, at(20)).expect("adopted");
    assert_eq!((job.state_name(), job.attempt), (StateName::Queued, 1));
    assert!(job.revision.epoch() > before.epoch());
    for _ in 0..2 {
        job.apply(Event::Claim, at(30)).expect("claimed");
        job.apply(Event::Adopt, at(40)).expect("adopted");
    }
    assert_eq!((job.state_name(), job.attempt), (StateName::Failed, 3));
}

#[test]
fn a_repeated_sequence_has_no_effect_and_text_of_a_body_yields_to_reported_text() {
    let mut job = sent();
    let report = |sequence, text: &str| {
        of(Signal::Report(Report {
            sequence: Some(sequence),
            progress: Some(Progress::By(60)),
            text: Some(TextChange::Append(text.into())),
            ..Report::default()
        }))
    };
    job.apply(report(2, "a"), at(3)).expect("first");
    assert_eq!(job.apply(report(2, "b"), at(3)), Err(Refused::Repeat));
    assert_eq!(job.apply(report(1, "c"), at(3)), Err(Refused::Repeat));
    job.apply(report(3, "d"), at(3)).expect("second");
    assert_eq!((job.progress, job.text.as_str()), (100, "ad"));
    assert_eq!(job.state_name(), StateName::Running, "100 does not end a job");
    job.apply(responded(200), at(5)).expect("ends");
    assert_eq!(job.text.as_str(), "ad");
    let mut silent = sent();
    silent.apply(responded(200), at(5)).expect("ends");
    assert_eq!(silent.text.as_str(), "body");
}

#[test]
fn retry_after_is_honoured_up_to_max_backoff() {
    for (asked, waited) in [(5_000, 5_000), (900_000, 300_000), (10, 1_000)] {
        let mut job = sent();
        let signal =
            Signal::Response(Response { status: 429, output: None, text: None, retry_after: Some(asked) });
        job.apply(of(signal), at(5)).expect("retried");
        assert_eq!(job.scheduled_at - at(5).wall, waited);
    }
}

proptest! {
    #[test]
    fn a_walk_keeps_the_invariants(steps in prop::collection::vec((0..23usize, 0..70_000u64, 1..4u32), 1..60)) {
        let events = events();
        let mut job = queued();
        let (mut clock, mut ended) = (0, None);
        for (which, span, attempt) in steps {
            clock += span;
            let event = match events[which].1.clone() {
                Event::Of(_, signal) => Event::Of(attempt, signal),
                event => event,
            };
            let before = job.clone();
            match job.apply(event.clone(), at(clock)) {
                Ok(transition) => {
                    prop_assert!(job.revision >= before.revision);
                    prop_assert_eq!(transition.visible, job.revision > before.revision);
                    prop_assert!(!before.state_name().is_final() || !transition.visible);
                    if let Event::Of(of, _) = event {
                        prop_assert_eq!(of, before.attempt);
                    }
                    if job.state_name() != before.state_name() {
                        prop_assert_eq!(transition.save, Save::Commit);
                    }
                    if job.state_name().is_final() && !before.state_name().is_final() {
                        ended = Some(at(clock).wall);
                    }
                    prop_assert_eq!(job.ended_at(), ended);
                    prop_assert!(job.attempt <= job.rules.max_attempts + 1);
                }
                Err(_) => prop_assert_eq!(format!("{job:?}"), format!("{before:?}")),
            }
        }
    }

    #[test]
    fn a_stored_text_comes_back(text in ".{0,200}", more in 0..1_000u64) {
        let restored = Text::restored(text.clone(), text.len() as u64 + more, more > 0);
        prop_assert_eq!(restored.as_str(), text);
        prop_assert_eq!(restored.written() - restored.kept_from(), restored.as_str().len() as u64);
    }
}
