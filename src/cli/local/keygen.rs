//! `backjob keygen`: makes and changes root keys, and prints what applications
//! check triggers with.

use super::{Fault, Settings};
use crate::{
    app,
    config::Config,
    secret::{self, KeyChange, Keyring, RootId},
    store::Store,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Makes a root key file; or changes it, tells what its keys are needed for, or
/// prints the trigger keys of a target.
///
/// To change the root without losing a job: --add on every server and restart it;
/// give applications what --target prints; --promote the new one and restart;
/// when --status says that the old one is not needed, --remove it.
#[derive(Debug, clap::Args)]
pub struct Keygen {
    /// Print `keyid` and `key` (base64url without padding) that the
    /// application behind this target checks triggers with; first those in use,
    /// then those of further root keys.
    #[arg(long, value_name = "NAME", group = "what")]
    target: Option<String>,
    /// Add a new root key to the file, behind those that are there.
    #[arg(long, group = "what")]
    add: bool,
    /// Put the root key with this id first: it is in use from the next start on.
    #[arg(long, value_name = "ID", group = "what", value_parser = id)]
    promote: Option<RootId>,
    /// Take the root key with this id out of the file, if nothing needs it.
    #[arg(long, value_name = "ID", group = "what", value_parser = id)]
    remove: Option<RootId>,
    /// Say what each root key is needed for. A server may run meanwhile.
    #[arg(long, group = "what")]
    status: bool,
    /// The key file. Default: where the server looks for it.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// A root's id, as it is printed: 16 hexadecimal digits.
fn id(text: &str) -> Result<RootId, String> {
    let number = u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
    number.map(u64::to_be_bytes).ok_or_else(|| "16 hexadecimal digits are expected".to_owned())
}

fn hex(id: RootId) -> String {
    format!("{:016x}", u64::from_be_bytes(id))
}

impl Keygen {
    /// Runs it.
    ///
    /// # Errors
    /// If there is no key to read, no such target or key, a key is there already,
    /// or one is still needed.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let mut config = self.settings.load()?;
        if self.file.is_some() {
            config.key_file = self.file;
            config.key = None;
        }
        if let Some(target) = self.target {
            return print(&config, &target);
        }
        if self.status {
            return super::runtime(1)?.block_on(status(&config)).map(|()| ExitCode::SUCCESS);
        }
        let Some(path) = config.key_path() else {
            return Err(Fault::text("say with --file where the key is"));
        };
        if let Some(root) = self.remove {
            super::runtime(1)?.block_on(unneeded(&config, root))?;
        }
        match (self.add, self.promote, self.remove) {
            (true, ..) => change(&path, KeyChange::Add, "added, behind those in use"),
            (_, Some(root), _) => change(&path, KeyChange::Promote(root), "first from the next start on"),
            (_, _, Some(root)) => change(&path, KeyChange::Remove(root), "removed"),
            _ => {
                Keyring::create(&path).map_err(Fault::new)?;
                println!("made {}", path.display());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn keys(config: &Config) -> Result<Keyring, Fault> {
    match (&config.key, config.key_path()) {
        (Some(text), _) => Keyring::parse(text).map_err(Fault::new),
        (None, Some(path)) => Keyring::load(&path).map_err(Fault::new),
        (None, None) => Err(Fault::text("a database in memory has no key that lasts")),
    }
}

fn change(path: &Path, change: KeyChange, done: &str) -> Result<ExitCode, Fault> {
    let root = secret::change_keys(path, change).map_err(Fault::new)?;
    println!("{} {done}", hex(root));
    Ok(ExitCode::SUCCESS)
}

fn print(config: &Config, target: &str) -> Result<ExitCode, Fault> {
    if !config.targets.contains_key(target) {
        return Err(Fault::text(format!("no target is named {target:?}")));
    }
    for key in app::trigger_keys(config, &keys(config)?, target).map_err(Fault::new)? {
        println!("keyid {}", key.keyid);
        println!("key {}", URL_SAFE_NO_PAD.encode(key.key));
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(config: &Config) -> Result<(), Fault> {
    let uses = Store::root_uses(&config.database.url, &app::tables(config), &keys(config)?)
        .await
        .map_err(Fault::new)?;
    for (place, root) in uses.iter().enumerate() {
        let needs = format!(
            "{} jobs are sealed with it, {} running attempts hold its tokens",
            root.sealed, root.running
        );
        let says = match (place, root.is_needed()) {
            (0, _) => format!("in use: {} jobs are sealed with it", root.sealed),
            (_, true) => format!("needed: {needs}"),
            (_, false) => "not needed: it may be removed. Watch tokens made with it end then".to_owned(),
        };
        println!("{} {says}", hex(root.id));
    }
    Ok(())
}

async fn unneeded(config: &Config, root: RootId) -> Result<(), Fault> {
    let uses = Store::root_uses(&config.database.url, &app::tables(config), &keys(config)?)
        .await
        .map_err(Fault::new)?;
    match uses.iter().find(|used| used.id == root) {
        Some(used) if used.is_needed() => {
            Err(Fault::text(format!("{} is still needed: see keygen --status", hex(root))))
        }
        _ => Ok(()),
    }
}
