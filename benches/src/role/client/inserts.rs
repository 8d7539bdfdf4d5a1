//! What a server's database gives without backjob: rows of a job's size, each durable
//! by itself.

use super::{Client, load::Caller};
use crate::{clock, fault::Fault, sample::Sample};
use bytes::Bytes;
use sea_orm::sqlx::{self, Connection as _, Executor as _, MySqlConnection, PgConnection};

enum Connection {
    Postgres(PgConnection),
    MariaDb(MySqlConnection),
}

/// Inserts a row, again and again, with a statement that is prepared once.
struct Insert {
    connection: Connection,
    /// Makes ids of one connection others than those of all others.
    own: u32,
    payload: Bytes,
}

impl Insert {
    async fn new(url: &str, own: u32, payload: Bytes) -> Result<Self, Fault> {
        let connection = if url.starts_with("postgres") {
            Connection::Postgres(PgConnection::connect(url).await?)
        } else {
            Connection::MariaDb(MySqlConnection::connect(url).await?)
        };
        Ok(Self { connection, own, payload })
    }

    /// Makes the table.
    async fn prepare(&mut self) -> Result<(), Fault> {
        match &mut self.connection {
            Connection::Postgres(connection) => {
                let text = "CREATE TABLE IF NOT EXISTS floor (id bytea PRIMARY KEY, payload bytea NOT NULL)";
                connection.execute(text).await?;
            }
            Connection::MariaDb(connection) => {
                let text = "CREATE TABLE IF NOT EXISTS floor \
                    (id binary(16) PRIMARY KEY, payload mediumblob NOT NULL) ENGINE InnoDB";
                connection.execute(text).await?;
            }
        }
        Ok(())
    }
}

impl Caller for Insert {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let id = (u128::from(clock::now()) << 64 | u128::from(self.own)).to_be_bytes();
        match &mut self.connection {
            Connection::Postgres(connection) => {
                let insert = sqlx::query("INSERT INTO floor VALUES ($1, $2)");
                insert.bind(&id[..]).bind(&self.payload[..]).execute(connection).await?;
            }
            Connection::MariaDb(connection) => {
                let insert = sqlx::query("INSERT INTO floor VALUES (?, ?)");
                insert.bind(&id[..]).bind(&self.payload[..]).execute(connection).await?;
            }
        }
        Ok(None)
    }
}

impl Client {
    pub(super) async fn inserts(&self, url: &str, connections: usize, seconds: f64) -> Result<Sample, Fault> {
        let mut inserts = Vec::new();
        for own in 0..u32::try_from(connections)? {
            inserts.push(Insert::new(url, own, self.payload.clone()).await?);
        }
        if let Some(first) = inserts.first_mut() {
            first.prepare().await?;
        }
        self.closed(inserts, seconds).await
    }
}
