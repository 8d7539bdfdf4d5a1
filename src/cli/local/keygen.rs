//! `backjob keygen`: makes a root key, or prints what an application checks
//! triggers with.

use super::{Fault, Settings};
use crate::{app, secret::Keyring};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{path::PathBuf, process::ExitCode};

/// Makes a root key file, or prints the trigger key of a target.
#[derive(Debug, clap::Args)]
pub struct Keygen {
    /// Print `keyid` and `key` (base64url without padding) that the
    /// application behind this target checks triggers with.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Make the root key here. Never overwrites. Default: where the server
    /// looks for it.
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Keygen {
    /// Runs it.
    ///
    /// # Errors
    /// If there is no key to read, no such target, or a key is there already.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let config = self.settings.load()?;
        let configured = config.key_path();
        if let Some(target) = self.target {
            if !config.targets.contains_key(&target) {
                return Err(Fault::text(format!("no target is named {target:?}")));
            }
            let keys = match (&config.key, configured) {
                (Some(text), _) => Keyring::parse(text),
                (None, Some(path)) => Keyring::load(&path),
                (None, None) => return Err(Fault::text("a database in memory has no key that lasts")),
            };
            let keys = keys.map_err(Fault::new)?;
            let key = app::trigger_key(&config, &keys, &target).map_err(Fault::new)?;
            println!("keyid {}", key.keyid);
            println!("key {}", URL_SAFE_NO_PAD.encode(key.key));
            return Ok(ExitCode::SUCCESS);
        }
        let Some(path) = self.file.or(configured) else {
            return Err(Fault::text("say with --file where to make the key"));
        };
        Keyring::create(&path).map_err(Fault::new)?;
        println!("made {}", path.display());
        Ok(ExitCode::SUCCESS)
    }
}
