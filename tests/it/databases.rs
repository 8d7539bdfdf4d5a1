//! Databases of a test's own, on servers that two variables name. The tests of the
//! store and those of the whole service each use a part of this.
#![allow(dead_code, reason = "see above")]

use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection};
use std::sync::atomic::{AtomicU32, Ordering};

/// A server on which a test makes a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    Postgres,
    MariaDb,
}

impl ServerKind {
    pub const ALL: [Self; 2] = [Self::Postgres, Self::MariaDb];

    /// The variable that names the server: an address with a database to begin from,
    /// of a user who may make others.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Postgres => "BACKJOB_TEST_POSTGRES",
            Self::MariaDb => "BACKJOB_TEST_MARIADB",
        }
    }
}

/// A database that is gone with this value.
#[derive(Debug)]
pub struct OwnDatabase {
    pub kind: ServerKind,
    server: String,
    name: String,
}

static MADE: AtomicU32 = AtomicU32::new(0);

impl OwnDatabase {
    /// None where no variable names a server, which is said.
    pub async fn on(kind: ServerKind) -> Option<Self> {
        let variable = kind.variable();
        let Ok(server) = std::env::var(variable) else {
            println!("SKIPPED: set {variable} to the address of a server");
            return None;
        };
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("backjob_test_{}_{number}", std::process::id());
        let own = Self { kind, server, name };
        let admin = connected(&own.server).await;
        admin.execute_unprepared(&format!("DROP DATABASE IF EXISTS {}", own.name)).await.expect("dropped");
        admin.execute_unprepared(&format!("CREATE DATABASE {}", own.name)).await.expect("made");
        admin.close().await.expect("closed");
        Some(own)
    }

    /// The same where nothing may be waited for.
    pub fn now(kind: ServerKind) -> Option<Self> {
        blocking(Self::on(kind))
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.url_through(&self.server)
    }

    /// Its address on another server before it, such as a pooler.
    pub fn url_through(&self, server: &str) -> String {
        let (base, _) = server.rsplit_once('/').expect("a database in the address");
        format!("{base}/{}", self.name)
    }

    /// Host and port of its server.
    pub fn address(&self) -> &str {
        let (_, host) = self.server.rsplit_once('@').expect("a user in the address");
        host.split('/').next().expect("a host")
    }

    /// Its address through a proxy of the server.
    pub fn url_at(&self, proxy: std::net::SocketAddr) -> String {
        self.url_through(&self.server.replacen(self.address(), &proxy.to_string(), 1))
    }

    /// A connection beside those of backjob.
    pub async fn beside(&self) -> DatabaseConnection {
        connected(&self.url()).await
    }

    /// One to the server, beside the database.
    pub async fn admin(&self) -> DatabaseConnection {
        connected(&self.server).await
    }

    /// Cuts off everyone who is connected to the database.
    pub async fn cut(&self) {
        let admin = self.admin().await;
        match self.kind {
            ServerKind::Postgres => {
                let text = format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
                    self.name
                );
                admin.execute_unprepared(&text).await.expect("cut off");
            }
            ServerKind::MariaDb => {
                let text = format!(
                    "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE db = '{}'",
                    self.name
                );
                let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::MySql, text);
                for row in admin.query_all_raw(statement).await.expect("listed") {
                    let id: i64 = row.try_get_by_index(0).expect("a number");
                    let _ = admin.execute_unprepared(&format!("KILL {id}")).await; // it may be gone
                }
            }
        }
        admin.close().await.expect("closed");
    }
}

async fn connected(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Database::connect(options).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

impl Drop for OwnDatabase {
    /// On a thread of its own, which is waited for, but not for long: PostgreSQL waits
    /// for connections that are just being made, and those of this test are made by
    /// the thread that waits here.
    fn drop(&mut self) {
        let force = if self.kind == ServerKind::Postgres { " WITH (FORCE)" } else { "" };
        let text = format!("DROP DATABASE IF EXISTS {}{force}", self.name);
        let server = self.server.clone();
        let (done, dropped) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            blocking(async move {
                let admin = connected(&server).await;
                let _ = admin.execute_unprepared(&text).await; // left behind it harms nobody
            });
            let _ = done.send(()); // nobody may wait any more
        });
        let _ = dropped.recv_timeout(std::time::Duration::from_secs(1));
    }
}

/// On a thread of its own, where a runtime may be waited for.
fn blocking<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(work)
    });
    thread.join().expect("no panic")
}
