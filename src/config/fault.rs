//! What is wrong with a configuration, and where it was said.

use std::{fmt, path::PathBuf};

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: the default.
    Default,
    /// In this file.
    File(PathBuf),
    /// In this variable of the environment.
    Variable(String),
    /// By a flag.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => path.display().fmt(f),
            Self::Variable(name) => f.write_str(name),
            Self::Flag => f.write_str("--set"),
        }
    }
}

/// One fault. Never repeats a value: that may be secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting, `server.listen` say; empty where a source as a whole is at
    /// fault.
    pub key: String,
    /// Where it was given.
    pub source: Source,
    /// What is expected, for people, on one line.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.source, self.key.as_str()) {
            (source, "") => write!(f, "{source}: {}", self.message),
            (Source::Default, key) => write!(f, "{key} {}", self.message),
            (source, key) => write!(f, "{source}: {key} {}", self.message),
        }
    }
}

/// Every fault of a configuration; displays one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// What BackJob called a setting, and where it went.
pub(super) fn hint(key: &str) -> Option<&'static str> {
    Some(match key.rsplit('.').next().unwrap_or(key) {
        "useCache" | "ch" | "cachePrefix" => "is no longer needed: hot state is kept in memory",
        "checkAndCreateTable" => "is now database.migrate",
        "key" => {
            "is no setting: give the root key in the variable BACKJOB_KEY or in the file that key_file names"
        }
        "useDb" => "is now database.url; \"sqlite::memory:\" keeps nothing",
        "db" | "tableName" => "is now database.url",
        "errorTimeout" => "is now jobs.error_timeout",
        "userAgent" => "is now trigger.user_agent",
        "backlogDays" => "is now retention.succeeded, with a unit, as in \"30d\"",
        "allBacklogDays" => "is now retention.all, with a unit, as in \"60d\"",
        _ => return None,
    })
}
