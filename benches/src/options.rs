//! How a measurement is run.

use std::path::PathBuf;

/// Of every mode.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// One JSON object a step instead of tables.
    #[arg(long, global = true)]
    pub json: bool,
    /// Length of a measured window.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 2.0)]
    pub seconds: f64,
    /// Windows a side, floor and backjob in turn; the median counts.
    #[arg(long, global = true, value_name = "N", default_value_t = 5)]
    pub repeat: usize,
    /// Only shows that everything works: one short window a side, small numbers.
    #[arg(long, global = true)]
    pub brief: bool,
    /// Runtime threads of the service and of the raw server; 0 is the service's
    /// default for it and one a core for the raw server.
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Runtime threads of the application.
    #[arg(long, global = true, value_name = "N", default_value_t = 1)]
    pub action_threads: usize,
    /// Begin with so many finished jobs in the database.
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub finished: usize,
    /// Bytes of a job's body.
    #[arg(long, global = true, value_name = "BYTES", default_value_t = 500)]
    pub payload: usize,
    /// Whole jobs that are outstanding at once.
    #[arg(long, global = true, value_name = "N", default_value_t = 64)]
    pub outstanding: usize,
    /// Jobs that may run at once. Less than are outstanding, and the others wait. Peers
    /// have as many workers, but no more than jobs.
    #[arg(long, global = true, value_name = "N", default_value_t = 128)]
    pub slots: usize,
    /// Another setting of the service; may be given more than once.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// For feed and server: a database of a server on which another can be made, like
    /// postgres://user:password@host/database or mysql://…. Without it those that
    /// BACKJOB_TEST_POSTGRES and BACKJOB_TEST_MARIADB name, for feed, and one that is
    /// started here, for server.
    #[arg(long, global = true, value_name = "URL")]
    pub database: Option<String>,
    /// Another program than the backjob that is built beside this one.
    #[arg(long, global = true, value_name = "FILE")]
    pub program: Option<PathBuf>,
}

impl Options {
    /// With --brief, a fraction of a second once.
    #[must_use]
    pub fn settled(mut self) -> Self {
        if self.brief {
            (self.seconds, self.repeat) = (0.15, 1);
        }
        self.repeat = self.repeat.max(1);
        self
    }

    /// Workers of a peer: more than there are jobs would only be in each other's way.
    pub fn workers(&self) -> usize {
        self.slots.min(self.outstanding)
    }

    /// How whole jobs are measured.
    pub fn jobs(&self) -> String {
        format!("{} jobs outstanding, {} may run", self.outstanding, self.slots)
    }

    /// `full`, or a number that is enough to see that it works.
    pub fn number(&self, full: usize, brief: usize) -> usize {
        if self.brief { brief } else { full }
    }
}
