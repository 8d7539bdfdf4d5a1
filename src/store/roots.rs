//! Root keys as the tables know them: which ones something is sealed with, and how
//! that moves to a new one.
//!
//! Equal Starts are found by keyed hashes, which cannot be made anew from what is
//! stored. So their key outlives the root that it was first derived from: each
//! later root keeps it, sealed.

use super::{
    Error, OpenError, Options, Store,
    database::{Database, Transaction},
    dialect::statement,
    entity::{job_request, node_commit, root_key},
    error::hex,
    payload, row,
    write::Sealed,
};
use crate::{
    job::{JobId, StateName},
    secret::{Keyring, RootId, Use, seal},
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, DbErr, EntityTrait as _, IntoActiveModel as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, sea_query::OnConflict,
};
use std::path::Path;

/// What the key of hashes is bound to where it is sealed.
const IDENTITY: &[u8] = b"identity";

/// What a root is still needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootUse {
    /// Which root.
    pub id: RootId,
    /// Jobs whose request is sealed with it.
    pub sealed: u64,
    /// Running attempts that may hold a token of it.
    pub running: u64,
}

impl RootUse {
    /// Whether something would be lost without it.
    pub fn is_needed(&self) -> bool {
        self.sealed > 0 || self.running > 0
    }
}

/// What is known of roots once a database is open.
pub(super) struct Known {
    /// Whether the tables name the present root.
    pub known: bool,
    /// Whether they name another one too.
    pub others: bool,
    /// What equal Starts are hashed with.
    pub identity: [u8; 32],
}

/// Compares the roots of the tables with those given: none that is needed may be
/// missing, and a new one takes over what the old ones kept.
///
/// Where other nodes may begin at this moment, they do so one after the other, and
/// the present root is recorded before anything is sealed with it.
pub(super) async fn settle(
    db: &Database,
    path: &Path,
    options: &Options,
    now: i64,
    nonce: [u8; 24],
) -> Result<Known, OpenError> {
    let fails = |error: DbErr| OpenError::from_db(path, &error);
    let transaction = db.begin().await.map_err(fails)?;
    if db.is_shared() {
        one_at_a_time(&transaction).await.map_err(fails)?;
    }
    match compare(&transaction, path, options, now, nonce).await {
        Ok(known) => transaction.commit().await.map(|()| known).map_err(fails),
        Err(error) => {
            let _ = transaction.rollback().await; // what went wrong is told
            Err(error)
        }
    }
}

/// Holds up every other transaction that asks for this, until this one ends.
async fn one_at_a_time(db: &Transaction) -> Result<(), DbErr> {
    let nobody = node_commit::Model { incarnation: vec![0; 16], node: String::new(), mark: 0 };
    let key = OnConflict::column(node_commit::Column::Incarnation);
    let again = key.to_owned().update_column(node_commit::Column::Mark).to_owned();
    let insert = node_commit::Entity::insert(nobody.into_active_model()).on_conflict(again);
    insert.exec_without_returning(db).await.map(drop)
}

async fn compare(
    db: &Transaction,
    path: &Path,
    options: &Options,
    now: i64,
    nonce: [u8; 24],
) -> Result<Known, OpenError> {
    let fails = |error: DbErr| OpenError::from_db(path, &error);
    let current = options.keys.current();
    let stored = roots(db, path).await?;
    // One after which a root was taken up that is known here is of the past.
    let newest = stored.iter().rposition(|row| options.keys.find(row.id).is_some());
    let mut rows = Vec::new();
    for (place, row) in stored.into_iter().enumerate() {
        if options.keys.find(row.id).is_some() {
            rows.push(row);
            continue;
        }
        let maybe_in_use = db.is_shared() && newest.is_none_or(|newest| newest < place);
        if maybe_in_use || root_use(db, row.id, current.id()).await.map_err(fails)?.is_needed() {
            return Err(OpenError::MissingRoot { path: path.to_owned(), id: row.id });
        }
        root_key::Entity::delete_by_id(row.id.to_vec()).exec(db).await.map_err(fails)?;
        tracing::info!(root = hex(&row.id), "this root key is not needed any more");
    }
    // The first one was derived, and every later one keeps it.
    let identity = match rows.iter().find(|row| row.id == current.id()).or(rows.first()) {
        None => current.derive(Use::Identity, ""),
        Some(row) => identity(&options.keys, row).ok_or_else(|| OpenError::Other {
            path: path.to_owned(),
            reason: format!("what root key {} keeps does not open", hex(&row.id)),
        })?,
    };
    let mut known = rows.iter().any(|row| row.id == current.id());
    if !known && (db.is_shared() || !rows.is_empty()) {
        let kept = (!rows.is_empty()).then(|| seal::seal(current, IDENTITY, &identity, nonce));
        // Later than all others, whatever this node's clock says.
        let last = rows.iter().map(|row| row.first_used_at.saturating_add(1)).max();
        let row = root_key::Model {
            id: current.id().to_vec(),
            first_used_at: last.map_or(now, |last| last.max(now)),
            identity: kept,
        };
        root_key::Entity::insert(row.into_active_model()).exec_without_returning(db).await.map_err(fails)?;
        known = true;
    }
    Ok(Known { known, others: rows.iter().any(|row| row.id != current.id()), identity })
}

/// A root as the tables know it.
struct Stored {
    id: RootId,
    first_used_at: i64,
    identity: Option<Vec<u8>>,
}

/// The oldest first.
async fn roots(db: &impl ConnectionTrait, path: &Path) -> Result<Vec<Stored>, OpenError> {
    let rows = root_key::Entity::find().order_by_asc(root_key::Column::FirstUsedAt).all(db).await;
    let read = |row: root_key::Model| {
        let id = RootId::try_from(row.id).map_err(|_| OpenError::Other {
            path: path.to_owned(),
            reason: "an id in root_key is not 8 bytes long".into(),
        })?;
        Ok(Stored { id, first_used_at: row.first_used_at, identity: row.identity })
    };
    rows.map_err(|error| OpenError::from_db(path, &error))?.into_iter().map(read).collect()
}

impl Store {
    /// A root key that another node has taken into use since this store was opened, and
    /// that is not known here.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn lacks_root(&self) -> Result<Option<String>, Error> {
        let rows = root_key::Entity::find().all(&self.shared.pulse).await?;
        let unknown =
            |id: &Vec<u8>| RootId::try_from(id.clone()).is_ok_and(|id| self.keys().find(id).is_none());
        let found = rows.into_iter().map(|row| row.id).find(unknown);
        Ok(found.map(|id| hex(&id)))
    }
}

fn identity(keys: &Keyring, stored: &Stored) -> Option<[u8; 32]> {
    let root = keys.find(stored.id)?;
    match &stored.identity {
        None => Some(root.derive(Use::Identity, "")),
        Some(sealed) => seal::open(root, IDENTITY, sealed).ok()?.try_into().ok(),
    }
}

/// A count of rows.
async fn count(db: &impl ConnectionTrait, text: &str, values: Vec<sea_orm::Value>) -> Result<u64, DbErr> {
    let row = db.query_one_raw(statement(db.get_database_backend(), text, values)).await?;
    let count: i64 = row.map_or(Ok(0), |row| row.try_get_by_index(0))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// What `root` is needed for, while `current` is in use.
async fn root_use(db: &impl ConnectionTrait, root: RootId, current: RootId) -> Result<RootUse, DbErr> {
    let sealed = r#"SELECT count(*) FROM "job_request" WHERE root_id = ?"#;
    let sealed = count(db, sealed, vec![root.to_vec().into()]).await?;
    let running = format!(
        r#"SELECT count(*) FROM "job" JOIN "attempt" ON "attempt".job_id = "job".id AND "attempt".attempt = "job".attempt
         WHERE "job".state < 4 AND "job".state = {} AND "attempt".claimed_at <
         coalesce((SELECT first_used_at FROM "root_key" WHERE id = ?), 9223372036854775807)"#,
        StateName::Running.number()
    );
    let running =
        if root == current { 0 } else { count(db, &running, vec![current.to_vec().into()]).await? };
    Ok(RootUse { id: root, sealed, running })
}

/// What each of `keys` is needed for, read beside a running server.
pub(super) async fn uses(db: &Database, path: &Path, keys: &Keyring) -> Result<Vec<RootUse>, OpenError> {
    let mut uses = Vec::new();
    for root in keys.ids() {
        let used = root_use(db, root, keys.current().id()).await;
        uses.push(used.map_err(|error| OpenError::from_db(path, &error))?);
    }
    Ok(uses)
}

impl Store {
    /// Whether something may be sealed with an earlier root than the present one.
    pub fn has_other_roots(&self) -> bool {
        self.shared.other_roots
    }

    /// What equal Starts are hashed with: the same over every change of the root.
    pub fn identity_key(&self) -> &[u8; 32] {
        &self.shared.identity
    }

    /// Jobs with an id above `after` that are sealed with another root than the
    /// present one, opened, to be sealed anew with [`super::Write::Reseal`]; and the
    /// last id that was looked at, or none at the end.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn sealed_by_others(
        &self,
        after: Option<JobId>,
        limit: u64,
    ) -> Result<(Vec<Sealed>, Option<JobId>), Error> {
        let mut find = job_request::Entity::find()
            .filter(job_request::Column::RootId.ne(self.keys().current().id().to_vec()))
            .order_by_asc(job_request::Column::JobId)
            .limit(limit);
        if let Some(after) = after {
            find = find.filter(job_request::Column::JobId.gt(after.to_bytes().to_vec()));
        }
        let (mut found, mut last) = (Vec::new(), None);
        for row in find.all(self.reader()).await? {
            let id = row::job_id(&row.job_id)?;
            last = Some(id);
            match opened(self.keys(), id, row) {
                Some(sealed) => found.push(sealed),
                None => tracing::error!(job = %id, "what is sealed of it does not open, and stays as it is"),
            }
        }
        Ok((found, last))
    }
}

fn opened(keys: &Keyring, id: JobId, row: job_request::Model) -> Option<Sealed> {
    let from = RootId::try_from(row.root_id).ok()?;
    let (root, bytes) = (keys.find(from)?, id.to_bytes());
    let payload = seal::open(root, &bytes, &row.sealed).ok()?;
    let credentials = match row.credentials {
        None => None,
        Some(sealed) => Some(seal::open(root, &payload::about_credentials(&bytes), &sealed).ok()?),
    };
    Some(Sealed { id, from, payload, credentials })
}

/// Moves a job's request to another root, if it is still sealed with `from`.
/// Credentials that were wiped meanwhile stay wiped.
pub(super) async fn reseal(
    db: &impl ConnectionTrait,
    from: RootId,
    request: &job_request::Model,
) -> Result<bool, DbErr> {
    const TEXT: &str = r#"UPDATE "job_request" SET root_id = ?, sealed = ?,
        credentials = CASE WHEN credentials IS NULL THEN NULL ELSE ? END WHERE job_id = ? AND root_id = ?"#;
    let values: [sea_orm::Value; 5] = [
        request.root_id.clone().into(),
        request.sealed.clone().into(),
        request.credentials.clone().into(),
        request.job_id.clone().into(),
        from.to_vec().into(),
    ];
    let done = db.execute_raw(statement(db.get_database_backend(), TEXT, values)).await?;
    Ok(done.rows_affected() > 0)
}
