//! Nothing of the contract goes untested: every rpc has an end-to-end case and
//! a bad-input case, and whoever adds an rpc is told so.

use crate::contract::rpcs;
use std::{collections::BTreeSet, fs, path::Path};

/// Rpc, a test that uses it end to end, a test that gives it bad input.
const CASES: &[(&str, &str, &str)] = &[
    (
        "JobControl/Start",
        "every_form_of_action_arrives_as_it_was_asked_for",
        "what_cannot_be_started_is_refused_by_field",
    ),
    (
        "JobControl/GetStatus",
        "a_read_mask_gives_the_named_fields_alone",
        "an_unknown_job_is_not_found_and_never_started",
    ),
    (
        "JobControl/WatchStatus",
        "the_present_state_comes_first_then_synced_then_every_change",
        "what_cannot_be_watched_is_refused_by_field",
    ),
    ("JobControl/ListJobs", "filters_select_what_they_say", "a_bad_list_is_refused_by_field"),
    (
        "JobControl/CancelJob",
        "a_running_action_is_told_to_stop_and_may_obey",
        "what_cannot_be_cancelled_says_why",
    ),
    ("JobControl/RetryJob", "a_finished_job_runs_again_as_a_new_one", "what_cannot_run_again_says_why"),
    (
        "JobControl/DeleteJob",
        "a_deleted_job_is_gone_with_all_that_was_kept",
        "what_cannot_be_deleted_says_why",
    ),
    (
        "JobControl/ExplainJob",
        "why_a_job_waits_or_failed_is_told_from_facts",
        "an_unknown_job_cannot_be_explained",
    ),
    (
        "JobControl/Run",
        "run_starts_a_job_and_follows_it_to_its_end",
        "what_cannot_be_run_is_refused_by_field",
    ),
    (
        "JobControl/BatchStart",
        "a_batch_of_a_thousand_is_stored_each_by_itself",
        "a_batch_of_none_or_too_many_is_refused",
    ),
    (
        "JobControl/ListAttempts",
        "the_history_tells_how_each_attempt_ended",
        "a_job_that_never_ran_has_no_attempts_and_an_unknown_one_is_not_found",
    ),
    (
        "JobWorker/Report",
        "progress_text_and_detail_are_seen_and_the_end_is_final",
        "bad_reports_name_their_field_and_change_nothing",
    ),
    (
        "JobWorker/ReportStream",
        "a_stream_of_reports_is_read_to_its_end_before_a_2xx_counts",
        "a_bad_report_ends_its_stream_and_not_the_job",
    ),
];

#[test]
fn every_rpc_has_its_cases() {
    let known: BTreeSet<String> = CASES.iter().map(|(rpc, ..)| (*rpc).to_owned()).collect();
    assert_eq!(rpcs().into_iter().collect::<BTreeSet<_>>(), known);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let mut sources = String::new();
    for entry in fs::read_dir(folder).expect("the tests") {
        let path = entry.expect("an entry").path();
        if path.is_file() && !path.ends_with("coverage.rs") {
            sources.push_str(&fs::read_to_string(path).expect("readable"));
        }
    }
    for (rpc, good, bad) in CASES {
        for name in [good, bad] {
            assert!(sources.contains(&format!("async fn {name}()")), "{rpc}: there is no test {name}");
        }
    }
}
