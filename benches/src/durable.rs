//! Servers that keep what they acknowledge: where a measurement finds one.

use crate::{fault::Fault, options::Options, peer::Server, world::place};
use std::path::PathBuf;
use tempfile::TempDir;

/// A server with a database from which others can be made.
pub struct Durable {
    /// Of that database.
    pub url: String,
    /// Ends with this value, if it was started here.
    _own: Option<(Server, TempDir)>,
}

impl Durable {
    /// The server that `--database` names, or a PostgreSQL that is started here; none
    /// where there are no programs of it.
    pub async fn find(options: &Options) -> Result<Option<Self>, Fault> {
        if let Some(url) = &options.database {
            return Ok(Some(Self { url: url.clone(), _own: None }));
        }
        let Some(programs) = postgres_programs() else { return Ok(None) };
        let folder = tempfile::Builder::new().prefix("server-").tempdir_in(place()?)?;
        let server = Server::postgres(&programs, folder.path()).await?;
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
        Ok(Some(Self { url, _own: Some((server, folder)) }))
    }
}

/// The folder of `initdb` and `postgres`: Debian has one for each version, which is in
/// nobody's path.
fn postgres_programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    versions.sort();
    let all = std::env::split_paths(&path).chain(versions.into_iter().rev());
    all.into_iter().find(|folder| ["initdb", "postgres"].iter().all(|name| folder.join(name).exists()))
}
