//! `backjob config`: what the settings are, and where each came from.

use super::{Fault, Settings};
use crate::{
    cli::screen,
    config::{Config, Sources},
};
use std::process::ExitCode;

/// Prints every setting with its value and its source; secrets are redacted.
#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    settings: Settings,
}

impl Show {
    /// Runs it.
    ///
    /// # Errors
    /// Every fault of the settings.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let sources = Sources::of_process(self.settings.config, self.settings.set);
        let (config, given) = Config::load_from(sources).map_err(Fault::new)?;
        screen::out(&config.shown(&given)).map_err(Fault::text)?;
        Ok(ExitCode::SUCCESS)
    }
}
