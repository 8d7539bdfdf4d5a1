//! A database of its own on a server, and what the server says of its work.

use crate::{
    clock,
    fault::{Fault, fault},
    proc::{Cpu, descendants},
};
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, Statement,
    sqlx::postgres::{PgListener, PgPoolOptions},
};
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Gone again with [`Own::drop`].
pub struct Own {
    admin: DatabaseConnection,
    name: String,
    /// Where it is.
    pub url: String,
    /// Notifications that were heard.
    heard: Arc<AtomicU64>,
}

/// What a server had done up to a moment.
pub struct Work {
    at: u64,
    /// Transactions of PostgreSQL that wrote, in any database.
    wrote: i64,
    /// Transactions of PostgreSQL in this database, statements of MariaDB.
    done: i64,
    notified: u64,
    processes: Vec<(u32, Cpu)>,
}

async fn connect(url: &str) -> Result<DatabaseConnection, Fault> {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Ok(Database::connect(options).await?)
}

impl Own {
    /// Makes one on the server at `url`.
    pub async fn new(url: &str) -> Result<Self, Fault> {
        let admin = connect(url).await?;
        let name = format!("backjob_bench_{}", std::process::id());
        let (base, _) = url.rsplit_once('/').ok_or("an address without a database")?;
        admin.execute_unprepared(&format!("DROP DATABASE IF EXISTS {name}")).await?;
        admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
        Ok(Self { admin, url: format!("{base}/{name}"), name, heard: Arc::default() })
    }

    pub fn is_postgres(&self) -> bool {
        self.admin.get_database_backend() == DbBackend::Postgres
    }

    /// Removes it.
    pub async fn drop(self) -> Result<(), Fault> {
        let force = if self.is_postgres() { " WITH (FORCE)" } else { "" };
        self.admin.execute_unprepared(&format!("DROP DATABASE {}{force}", self.name)).await?;
        Ok(self.admin.close().await?)
    }

    /// Counts notifications from now on.
    pub async fn count_notifications(&self) -> Result<(), Fault> {
        // As `src/store/notice.rs` names it: by schema and prefix, which are empty.
        let text = "SELECT 'backjob_' || encode(substr(sha256('.'), 1, 8), 'hex')";
        let channel = self.text(text).await?;
        let pool = PgPoolOptions::new().max_connections(1).connect(&self.url).await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(&channel).await?;
        let heard = Arc::clone(&self.heard);
        crate::tasks::spawn(async move {
            while listener.recv().await.is_ok() {
                heard.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(())
    }

    /// What was done up to now.
    pub async fn work(&self) -> Result<Work, Fault> {
        let text = if self.is_postgres() {
            format!("SELECT xact_commit::text FROM pg_stat_database WHERE datname = '{}'", self.name)
        } else {
            "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'QUESTIONS'"
                .to_owned()
        };
        let done = self.text(&text).await?.parse()?;
        let wrote = match self.is_postgres() {
            true => self.text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text").await?.parse()?,
            false => 0,
        };
        // Elsewhere than on this machine its processes are not to be seen.
        let processes = self.server().await.map(descendants).unwrap_or_default();
        let processes = processes.into_iter().filter_map(|pid| Some((pid, Cpu::of(pid).ok()?))).collect();
        Ok(Work { at: clock::now(), wrote, done, notified: self.heard.load(Ordering::Relaxed), processes })
    }

    async fn text(&self, text: &str) -> Result<String, Fault> {
        let statement = Statement::from_string(self.admin.get_database_backend(), text);
        let found = self.admin.query_all_raw(statement).await?;
        Ok(found.first().ok_or("the server says nothing of itself")?.try_get_by_index(0)?)
    }

    /// The first process of the server, if it is on this machine.
    pub async fn server(&self) -> Option<u32> {
        self.process().await.ok()
    }

    async fn process(&self) -> Result<u32, Fault> {
        if !self.is_postgres() {
            let file = self.text("SELECT @@pid_file").await?;
            return Ok(fs::read_to_string(file)?.trim().parse()?);
        }
        let ours: u32 = self.text("SELECT pg_backend_pid()::text").await?.parse()?;
        if !fs::read_to_string(format!("/proc/{ours}/comm"))?.starts_with("postgres") {
            return Err(fault("another process of that number"));
        }
        let stat = fs::read_to_string(format!("/proc/{ours}/stat"))?;
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        Ok(parent.ok_or("no parent")?.parse()?)
    }

    /// Whether what is committed is durable, and what says so.
    pub async fn durability(&self) -> Result<(bool, String), Fault> {
        let (text, durable) = if self.is_postgres() {
            let text = "SELECT format('PostgreSQL %s, fsync %s, synchronous_commit %s', \
                current_setting('server_version'), current_setting('fsync'), \
                current_setting('synchronous_commit'))";
            (text, "fsync on, synchronous_commit on")
        } else {
            let text = "SELECT concat('MariaDB ', version(), ', innodb_flush_log_at_trx_commit ', \
                @@innodb_flush_log_at_trx_commit)";
            (text, "innodb_flush_log_at_trx_commit 1")
        };
        let said = self.text(text).await?;
        Ok((said.contains(durable), said))
    }

    /// Connections that are open to it, our own left out.
    pub async fn connections(&self) -> Result<f64, Fault> {
        let text = if self.is_postgres() {
            format!(
                "SELECT count(*)::text FROM pg_stat_activity \
                 WHERE datname = '{}' AND application_name = 'backjob'",
                self.name
            )
        } else {
            let list = "information_schema.processlist";
            format!("SELECT CAST(count(*) AS CHAR) FROM {list} WHERE db = '{}'", self.name)
        };
        Ok(self.text(&text).await?.parse()?)
    }
}

impl Work {
    /// Transactions of PostgreSQL that wrote.
    pub fn wrote_since(&self, earlier: &Self) -> f64 {
        (self.wrote - earlier.wrote) as f64
    }

    /// Notifications that were heard.
    pub fn notified_since(&self, earlier: &Self) -> f64 {
        (self.notified - earlier.notified) as f64
    }

    /// Done a second since `earlier`, notifications a second, and milliseconds of CPU a
    /// second where they can be had.
    pub fn since(&self, earlier: &Self) -> Vec<(&'static str, f64)> {
        let seconds = (self.at - earlier.at) as f64 / 1e9;
        let mut figures = vec![
            ("database_per_second", (self.done - earlier.done) as f64 / seconds),
            ("notifications_per_second", (self.notified - earlier.notified) as f64 / seconds),
        ];
        let used: u64 = earlier
            .processes
            .iter()
            .filter_map(|(pid, before)| {
                let (_, after) = self.processes.iter().find(|(other, _)| other == pid)?;
                Some(after.since(before))
            })
            .sum();
        if used > 0 {
            figures.push(("database_cpu_ms_per_second", used as f64 / 1e6 / seconds));
        }
        figures
    }
}
