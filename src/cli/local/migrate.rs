//! `backjob migrate`: brings the tables up to date, and nothing else.

use super::{Fault, Settings};
use crate::{app, clock::SystemClock, store::Store, tasks::Tasks};
use std::{process::ExitCode, sync::Arc};

/// Makes the tables, or brings them up to date, while no server runs.
#[derive(Debug, clap::Args)]
pub struct Migrate {
    #[command(flatten)]
    settings: Settings,
}

impl Migrate {
    /// Runs it.
    ///
    /// # Errors
    /// If the database cannot be opened or changed.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let mut config = self.settings.load()?;
        config.database.migrate = true;
        super::runtime(1)?.block_on(async {
            let clock = Arc::new(SystemClock::new());
            let keys = Arc::new(app::keys(&config, &*clock).map_err(Fault::new)?);
            let options = app::store_options(&config, &keys);
            let store = Store::open(options, clock, &Tasks::default()).await.map_err(Fault::new)?;
            store.close().await;
            println!("the tables are up to date");
            Ok(ExitCode::SUCCESS)
        })
    }
}
