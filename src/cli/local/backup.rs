//! `backjob backup`: a copy of the database.

use super::{Fault, Settings};
use crate::store::Store;
use std::{path::PathBuf, process::ExitCode};

/// Copies the database to a new file: the state of one moment, whole, while the
/// server goes on.
///
/// To restore it, stop the server, put the copy in the place of the database, delete
/// the files beside it that end in -wal and -shm, and start the server with the key
/// file of that time: without it, bodies and headers cannot be read. Keep both apart.
#[derive(Debug, clap::Args)]
pub struct Backup {
    /// The new file; it must not be there.
    file: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

impl Backup {
    /// Runs it.
    ///
    /// # Errors
    /// If the database cannot be read, or the file not be written.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let config = self.settings.load()?;
        super::runtime(1)?.block_on(Store::backup(&config.database.url, &self.file)).map_err(Fault::new)?;
        let key =
            config.key_path().map_or_else(|| "BACKJOB_KEY".to_owned(), |path| path.display().to_string());
        println!("copied to {}; keep the root key too, apart from it: {key}", self.file.display());
        Ok(ExitCode::SUCCESS)
    }
}
