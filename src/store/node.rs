//! Which servers share the database, and what time it is there.
//!
//! A server announces itself under its name and raises its beat while it lives. Who
//! is dead is judged by whoever reads, with its own clock: no time stands here. A
//! server's incarnation is made anew at each start: by it a server finds out that
//! another one took its name, and none of its transactions is stored from then on.

use super::{
    Error, Store,
    database::Database,
    dialect::{now, statement},
    entity::node,
    error::violates,
    shared,
};
use sea_orm::{ConnectionTrait as _, DbErr, EntityTrait as _, QueryOrder as _};

/// A server that announced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its `node.name`.
    pub name: String,
    /// Made anew at each start.
    pub incarnation: [u8; 16],
    /// Where other nodes reach it.
    pub advertise: Option<String>,
    /// It rises while the server lives.
    pub beat: i64,
    /// UTC milliseconds, by the database's clock.
    pub started_at: i64,
}

/// The database's clock, and when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// UTC milliseconds.
    pub database: i64,
    /// Our monotonic clock, in milliseconds, when it was asked; the database's was
    /// read between this and `told_at`.
    pub asked_at: u64,
    /// And when it had answered.
    pub told_at: u64,
}

/// What came of announcing a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announced {
    /// The name is this server's.
    Done(Moment),
    /// The name is another one's, whose beat must stand still for a lease before it
    /// may be taken over.
    Held(Node),
}

/// What came of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beaten {
    /// The server is known as living.
    Alive {
        /// From when on, by our monotonic clock in milliseconds: the lease counts
        /// from here.
        since: u64,
        /// The database's clock.
        moment: Moment,
    },
    /// Its row is gone, or another server has its name.
    Replaced,
}

impl Store {
    /// Of this store: made when it was opened.
    pub fn incarnation(&self) -> [u8; 16] {
        self.shared.incarnation
    }

    /// The database's clock.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn moment(&self) -> Result<Moment, Error> {
        let asked_at = self.shared.clock.mono();
        let backend = self.backend();
        let text = format!("SELECT {}", now(backend));
        let found = self.shared.pulse.query_all_raw(statement(backend, text, [])).await?;
        let row = found.first().ok_or_else(|| Error::Unavailable("the database told no time".into()))?;
        let database = row.try_get_by_index(0)?;
        Ok(Moment { database, asked_at, told_at: self.shared.clock.mono() })
    }

    /// Makes this server known under its name, with the address at which other nodes
    /// reach it. A name that is taken is taken over only if `dead`, as it was read
    /// before, still stands there unchanged; the one that had it can store nothing
    /// more.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Refused`] for an address that is too long.
    pub async fn announce(&self, advertise: Option<&str>, dead: Option<&Node>) -> Result<Announced, Error> {
        let (db, backend) = (&self.shared.pulse, self.backend());
        let (name, own) = (self.shared.node.clone(), self.incarnation());
        let time = now(backend);
        // Whatever comes between is another server of this name: then that holds it.
        for _ in 0..3 {
            let done = match dead {
                Some(dead) => {
                    let text = format!(
                        r#"UPDATE "node" SET incarnation = ?, advertise = ?, beat = beat + 1, started_at = {time}
                        WHERE name = ? AND incarnation = ? AND beat = ?"#
                    );
                    let values = [
                        own.to_vec().into(),
                        advertise.into(),
                        name.clone().into(),
                        dead.incarnation.to_vec().into(),
                        dead.beat.into(),
                    ];
                    db.execute_raw(statement(backend, text, values)).await?.rows_affected() > 0
                }
                None => {
                    let text = format!(
                        r#"INSERT INTO "node" (name, incarnation, advertise, beat, started_at)
                        VALUES (?, ?, ?, 1, {time})"#
                    );
                    let values = [name.clone().into(), own.to_vec().into(), advertise.into()];
                    match db.execute_raw(statement(backend, text, values)).await {
                        Ok(_) => true,
                        Err(error) if violates(&error, "") => false,
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            if done {
                if let Some(dead) = dead {
                    shared::end(db, dead.incarnation).await?;
                }
                return Ok(Announced::Done(self.moment().await?));
            }
            let found = node::Entity::find_by_id(name.clone()).all(db).await?;
            match found.into_iter().next().map(read).transpose()? {
                Some(node) if node.incarnation == own => return Ok(Announced::Done(self.moment().await?)),
                Some(node) => return Ok(Announced::Held(node)),
                None if dead.is_some() => return Box::pin(self.announce(advertise, None)).await,
                None => {}
            }
        }
        Err(Error::Unavailable("other servers of this name come and go".into()))
    }

    /// Says that this server lives.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: then it is not known as living.
    pub async fn beat(&self) -> Result<Beaten, Error> {
        let (db, backend) = (&self.shared.pulse, self.backend());
        let text = r#"UPDATE "node" SET beat = beat + 1 WHERE name = ? AND incarnation = ?"#;
        let values = [self.shared.node.clone().into(), self.incarnation().to_vec().into()];
        let since = self.shared.clock.mono();
        let done = db.execute_raw(statement(backend, text, values)).await?;
        if done.rows_affected() == 0 {
            return Ok(Beaten::Replaced);
        }
        Ok(Beaten::Alive { since, moment: self.moment().await? })
    }

    /// The servers that share the database, this one among them, by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Corrupt`].
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let found = node::Entity::find().order_by_asc(node::Column::Name).all(&self.shared.pulse).await?;
        found.into_iter().map(read).collect()
    }

    /// Forgets a server that left, or is dead and has nothing left to be adopted; not
    /// if it has beaten since it was read. Whether it was forgotten.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn forget(&self, node: &Node) -> Result<bool, Error> {
        let text = r#"DELETE FROM "node" WHERE name = ? AND incarnation = ? AND beat = ?"#;
        let values = [node.name.clone().into(), node.incarnation.to_vec().into(), node.beat.into()];
        let done = self.shared.pulse.execute_raw(statement(self.backend(), text, values)).await?;
        Ok(done.rows_affected() > 0)
    }
}

/// Takes a server's own row away, at its end.
pub(super) async fn leave(db: &Database, incarnation: [u8; 16]) -> Result<(), DbErr> {
    let text = r#"DELETE FROM "node" WHERE incarnation = ?"#;
    let values = [incarnation.to_vec().into()];
    db.execute_raw(statement(db.get_database_backend(), text, values)).await.map(drop)
}

fn read(row: node::Model) -> Result<Node, Error> {
    let incarnation = row.incarnation.try_into();
    let incarnation =
        incarnation.map_err(|_| Error::Corrupt("an incarnation is not 16 bytes long".into()))?;
    let node::Model { name, advertise, beat, started_at, .. } = row;
    Ok(Node { name, incarnation, advertise, beat, started_at })
}
