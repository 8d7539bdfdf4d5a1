//! The house holds its shape: which room may import which.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A room, and the rooms it may name. `job` ← `secret` ← {`store`, `trigger`,
/// `watch`} ← `engine` ← `rpc` ← `app` ← `cli`; siblings do not import each other.
const ROOMS: &[(&str, &[&str])] = &[
    ("job", &[]),
    ("signature", &[]),
    ("verify", &["signature"]),
    ("worker", &["proto"]),
    ("proto", &[]),
    ("clock", &["job"]),
    ("tasks", &[]),
    ("config", &[]),
    ("descriptors", &[]),
    ("telemetry", &["config"]),
    ("secret", &["job", "signature"]),
    ("store", &["clock", "job", "secret", "tasks"]),
    ("trigger", &["clock", "descriptors", "job", "secret", "signature", "tasks"]),
    ("watch", &["job", "secret"]),
    ("engine", &["clock", "job", "secret", "store", "tasks", "trigger", "watch"]),
    ("rpc", &["clock", "descriptors", "engine", "job", "proto", "secret", "tasks", "watch"]),
    (
        "app",
        &["clock", "config", "descriptors", "engine", "job", "rpc", "secret", "store", "tasks", "trigger"],
    ),
    ("cli", &["proto"]),
    (
        "cli/local",
        &[
            "app",
            "cli",
            "clock",
            "config",
            "proto",
            "secret",
            "store",
            "tasks",
            "telemetry",
            "verify",
            "worker",
        ],
    ),
];

/// Files that hold nothing but tests.
const TESTS: &[&str] = &["tests.rs", "vectors.rs", "matrix.rs"];

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("tests") {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn files(sources: &Path, room: &str) -> Vec<PathBuf> {
    let mut files = vec![sources.join(format!("{room}.rs"))];
    files.retain(|file| file.exists());
    if sources.join(room).exists() {
        rust_files(&sources.join(room), &mut files);
    }
    // A room within a room has a line of its own.
    let inner = ROOMS.iter().filter(|(other, _)| other.starts_with(&format!("{room}/")));
    let inner: Vec<PathBuf> = inner.map(|(other, _)| sources.join(other)).collect();
    files.retain(|file| !inner.iter().any(|inner| file.starts_with(inner)));
    let name = |file: &Path| file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    files.retain(|file| !TESTS.contains(&name(file).as_str()));
    files
}

/// The name at the beginning of a path.
fn first(path: &str) -> &str {
    path.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// Rooms that the code names after `crate::`, in groups too.
fn named(code: &str) -> BTreeSet<&str> {
    let mut rooms = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            rooms.insert(first(rest));
            continue;
        };
        let (mut depth, mut from) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' if depth == 0 => {
                    rooms.insert(first(&group[from..at]));
                    from = at + 1;
                }
                '}' => {
                    rooms.insert(first(&group[from..at]));
                    break;
                }
                _ => {}
            }
        }
    }
    rooms.remove("");
    rooms
}

#[test]
fn groups_are_read_to_their_end() {
    let code = "use crate::{a::{b, c}, d, e::f,}; let x = crate::g::h();";
    assert_eq!(named(code).into_iter().collect::<Vec<_>>(), ["a", "d", "e", "g"]);
}

#[test]
fn imports_go_one_way() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (room, may) in ROOMS {
        for file in files(&sources, room) {
            let text = fs::read_to_string(&file).expect("readable");
            let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            // What stands below is compiled for tests alone.
            let code = code.split("#[cfg(test)]mod tests {").next().unwrap_or_default();
            let own = room.split('/').next().unwrap_or_default();
            let named = named(code);
            let forbidden: Vec<_> =
                named.iter().filter(|name| **name != own && !may.contains(name)).collect();
            assert!(forbidden.is_empty(), "{} names {forbidden:?}", file.display());
        }
    }
}

#[test]
fn every_room_has_its_line() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(sources).expect("a folder") {
        let path = entry.expect("an entry").path();
        let room = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let known = matches!(room.as_str(), "lib" | "main" | "config.default");
        assert!(known || ROOMS.iter().any(|(name, _)| *name == room), "{room} has no line in ROOMS");
    }
}
