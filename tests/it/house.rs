//! The house holds its shape: which room may import which.

use std::{collections::BTreeSet, fs, path::Path};

/// A room, and the rooms it may name. `job` ← `secret` ← {`store`, `trigger`,
/// `watch`} ← `engine` ← `rpc` ← `app` ← `cli`; siblings do not import each other.
const ROOMS: &[(&str, &[&str])] = &[
    ("job", &[]),
    ("signature", &[]),
    ("verify", &["signature"]),
    ("secret", &["job", "signature"]),
    ("clock", &["job"]),
    ("config", &[]),
    ("tasks", &[]),
    ("telemetry", &["config"]),
    ("store", &["clock", "job", "secret", "tasks"]),
    ("trigger", &["clock", "job", "secret", "signature", "tasks"]),
    ("watch", &["job", "secret"]),
    ("engine", &["clock", "job", "secret", "store", "tasks", "trigger", "watch"]),
    ("rpc", &["clock", "engine", "job", "proto", "secret", "tasks", "watch"]),
];

fn rust_files(folder: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn imports_go_one_way() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (room, may) in ROOMS {
        let mut files = vec![sources.join(format!("{room}.rs"))];
        files.retain(|file| file.exists());
        if sources.join(room).exists() {
            rust_files(&sources.join(room), &mut files);
        }
        let tests = |file: &Path| {
            let name = file.file_name().and_then(|name| name.to_str());
            matches!(name, Some("tests.rs" | "vectors.rs" | "matrix.rs"))
        };
        for file in files.iter().filter(|file| !tests(file)) {
            let text = fs::read_to_string(file).expect("readable");
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<String>();
            let grouped = code.replace("crate::{", "crate::");
            let named: BTreeSet<&str> = grouped
                .split("crate::")
                .skip(1)
                .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(""))
                .filter(|name| name != room)
                .collect();
            let forbidden: Vec<_> = named.iter().filter(|name| !may.contains(name)).collect();
            assert!(forbidden.is_empty(), "{} names {forbidden:?}", file.display());
        }
    }
}
