//! The sources of the configuration, each made into a list of keys and values.

use super::{
    fault::{Fault, Source},
    section::Target,
    value::Given,
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

pub(super) const SECTIONS: &[&str] = &[
    "server",
    "tls",
    "worker",
    "http",
    "node",
    "database",
    "targets",
    "trigger",
    "jobs",
    "retention",
    "log",
];

/// Read by the command line and by clients, not by the server.
const NOT_SETTINGS: &[&str] =
    &["ADDR", "AUTHORIZATION", "CA_FILE", "CERT_FILE", "CERT_KEY_FILE", "CONFIG", "COOKIE", "LOG", "TOKEN"];

/// Variables that Kubernetes puts into every container where a service is named
/// `backjob`, and what the tests of this crate read.
fn is_foreign(name: &str) -> bool {
    name == "PORT" || ["PORT_", "SERVICE_", "TEST_"].iter().any(|prefix| name.starts_with(prefix))
}

/// Where the configuration comes from, beside the defaults; the later beats the
/// earlier.
#[derive(Clone)]
pub struct Sources {
    /// The working folder, in which `backjob.toml` is looked for.
    pub folder: PathBuf,
    /// A file that must exist. Default: what the variable BACKJOB_CONFIG names,
    /// or else `backjob.toml` if there is one.
    pub file: Option<PathBuf>,
    /// The environment. Only what begins with `BACKJOB_` is looked at.
    pub environment: Vec<(OsString, OsString)>,
    /// Dotted keys and values; of the same key the last counts.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// The working folder and the environment of this process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        Self { folder: PathBuf::new(), file, environment: std::env::vars_os().collect(), flags }
    }
}

/// One value of one source.
pub(super) struct Leaf {
    pub key: String,
    pub source: Source,
    pub given: Given,
}

/// What the sources hold, in the order in which it counts.
#[derive(Default)]
pub(super) struct Layers {
    pub leaves: Vec<Leaf>,
    /// BACKJOB_KEY, which is no setting of a file.
    pub root_key: Option<String>,
    pub faults: Vec<Fault>,
}

impl Layers {
    pub(super) fn gather(sources: Sources) -> Self {
        let mut layers = Self::default();
        let variables = layers.variables(sources.environment);
        let named = variables.get("CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        match sources.file.or(named) {
            Some(file) => layers.file(&sources.folder, &file, true),
            None => layers.file(&sources.folder, Path::new("backjob.toml"), false),
        }
        layers.environment(variables);
        for (key, value) in sources.flags {
            layers.leaves.push(Leaf { key, source: Source::Flag, given: Given::Text(value) });
        }
        layers
    }

    fn fault(&mut self, key: &str, source: Source, message: impl Into<String>) {
        self.faults.push(Fault { key: key.to_owned(), source, message: message.into() });
    }

    /// Our variables, without their prefix, sorted so that faults come in order.
    fn variables(&mut self, environment: Vec<(OsString, OsString)>) -> BTreeMap<String, String> {
        let mut ours = BTreeMap::new();
        for (name, value) in environment {
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix("BACKJOB_")) else { continue };
            match value.into_string() {
                Ok(value) => {
                    ours.insert(name.to_owned(), value);
                }
                Err(_) => self.fault("", variable(name), "is not UTF-8"),
            }
        }
        ours
    }

    fn file(&mut self, folder: &Path, file: &Path, required: bool) {
        let source = Source::File(file.to_owned());
        let text = match fs::read_to_string(folder.join(file)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return,
            Err(error) => return self.fault("", source, format!("cannot be read: {error}")),
        };
        match text.parse::<toml::Table>() {
            Ok(table) => self.table(table, &source),
            Err(error) => {
                let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
                let line = before.matches('\n').count() + 1;
                let message = error.message().replace('\n', " ");
                self.fault("", source, format!("line {line}: {message}"));
            }
        }
    }

    /// Sections are one level deep, targets two; a table below is a value, which
    /// no setting accepts.
    fn table(&mut self, table: toml::Table, source: &Source) {
        let mut leaf = |key: String, value| {
            self.leaves.push(Leaf { key, source: source.clone(), given: Given::Toml(value) });
        };
        for (section, value) in table {
            match value {
                toml::Value::Table(keys) if SECTIONS.contains(&section.as_str()) => {
                    for (key, value) in keys {
                        match value {
                            toml::Value::Table(target) if section == "targets" && !target.is_empty() => {
                                for (setting, value) in target {
                                    leaf(format!("targets.{key}.{setting}"), value);
                                }
                            }
                            value => leaf(format!("{section}.{key}"), value),
                        }
                    }
                }
                value => leaf(section, value),
            }
        }
    }

    fn environment(&mut self, variables: BTreeMap<String, String>) {
        for (name, value) in variables {
            if NOT_SETTINGS.contains(&name.as_str()) || is_foreign(&name) {
                continue;
            }
            if name == "KEY" {
                self.root_key = Some(value);
                continue;
            }
            match self.key_of(&name) {
                Some(key) => {
                    self.leaves.push(Leaf { key, source: variable(&name), given: Given::Text(value) })
                }
                None => self.fault("", variable(&name), "is the variable of no setting"),
            }
        }
    }

    /// The setting of a variable without its prefix, unknown ones of a known
    /// section included.
    fn key_of(&self, name: &str) -> Option<String> {
        if name == "KEY_FILE" || name == "KEYS_FILE" {
            return Some("key_file".to_owned());
        }
        let (section, rest) = name.split_once('_')?;
        let section = section.to_ascii_lowercase();
        if !SECTIONS.contains(&section.as_str()) {
            return None;
        }
        if section != "targets" {
            return Some(format!("{section}.{}", rest.to_ascii_lowercase()));
        }
        // Both names of targets and names of settings may hold an underscore.
        let rest = rest.to_ascii_lowercase();
        let (target, setting) = Target::KEYS.iter().find_map(|key| {
            let target = rest.strip_suffix(key)?.strip_suffix('_')?;
            (!target.is_empty()).then_some((target, key))
        })?;
        // A variable's name has no hyphen: one that the file spells wins.
        let spelled =
            self.leaves.iter().filter_map(|leaf| leaf.key.strip_prefix("targets.")?.split('.').next());
        let same = |spelled: &&str| spelled.to_ascii_lowercase().replace('-', "_") == target;
        let target = if spelled.clone().any(|spelled| spelled == target) {
            target
        } else {
            spelled.clone().find(same).unwrap_or(target)
        };
        Some(format!("targets.{target}.{setting}"))
    }
}

fn variable(name: &str) -> Source {
    Source::Variable(format!("BACKJOB_{name}"))
}
