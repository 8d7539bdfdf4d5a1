//! The README says what the product is: every setting with its default, every
//! reason of an error, every failure and every command.

use crate::contract;
use backjob::{config::Config, proto};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::{collections::BTreeSet, fs, path::Path};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `section.key` and its default, as the commented file of defaults has them.
fn settings() -> Vec<(String, String)> {
    let mut section = String::new();
    let mut all = Vec::new();
    for line in Config::documented().lines() {
        // An optional setting is shown commented out.
        let line = line.trim_start_matches('#').trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{}.", name.replace("targets.default", "targets.NAME"));
        } else if let Some((key, value)) = line.split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            all.push((format!("{section}{key}"), value.trim().trim_matches('"').to_owned()));
        }
    }
    all
}

/// The cells of each row of the README's tables.
fn rows() -> Vec<Vec<String>> {
    let cells = |line: &str| {
        let line = line.trim_matches('|').split(" | ");
        line.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    read("README.md").lines().filter(|line| line.starts_with("| ")).map(cells).collect()
}

#[test]
fn the_readme_has_every_setting_with_its_default() {
    let shown: Vec<(String, String)> =
        rows().into_iter().filter(|row| row.len() == 3).map(|row| (row[0].clone(), row[1].clone())).collect();
    let settings = settings();
    assert!(settings.len() > 25, "only {} settings were found", settings.len());
    for (name, default) in settings {
        let (_, said) = shown
            .iter()
            .find(|(shown, _)| *shown == name)
            .unwrap_or_else(|| panic!("the README lacks the setting {name}"));
        assert_eq!(*said, default, "the README's default of {name}");
    }
}

#[test]
fn the_readme_has_every_reason_of_an_error() {
    let source = read("src/rpc/status.rs");
    let quoted: BTreeSet<&str> = source
        .split("mod tests")
        .next()
        .unwrap_or_default()
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.len() > 3 && text.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    assert!(quoted.len() >= 10, "only {quoted:?} were found");
    let readme = read("README.md");
    for reason in quoted {
        assert!(readme.contains(&format!("`{reason}`")), "the README lacks the reason {reason}");
    }
}

#[test]
fn the_readme_has_every_failure_and_state() {
    let set = FileDescriptorSet::decode(proto::DESCRIPTORS).expect("the embedded set decodes");
    let readme = read("README.md");
    for (name, prefix) in [("FailureReason", "FAILURE_REASON_"), ("JobState", "JOB_STATE_")] {
        let values = set.file.iter().flat_map(|file| &file.enum_type).find(|e| e.name() == name);
        for value in values.expect("an enum of the contract").value.iter().skip(1) {
            let short = value.name().trim_start_matches(prefix);
            assert!(readme.contains(short), "the README lacks {short}");
        }
    }
}

#[test]
fn the_changelog_and_the_manifest_agree() {
    let manifest = read("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("version = ")).expect("a version");
    let changelog = read("CHANGELOG.md");
    let version = version.trim_matches('"');
    assert!(
        changelog.contains("## Unreleased") || changelog.contains(&format!("## {version}")),
        "the changelog says nothing of {version}"
    );
}

#[test]
fn the_readme_shows_only_rpcs_that_exist() {
    let rpcs = contract::rpcs();
    let readme = read("README.md");
    let mut seen = 0;
    for word in readme.split(|c: char| c.is_whitespace() || "`\"')".contains(c)) {
        let Some(rpc) = word.strip_prefix("backjob.v1.") else { continue };
        if rpc.contains('/') {
            assert!(rpcs.iter().any(|known| known == rpc), "{rpc} does not exist");
            seen += 1;
        }
    }
    assert!(seen >= 5, "only {seen} calls were found");
}
