//! Which jobs of a transaction are not made, because there is one already.
//!
//! Start keys are looked up before merge keys: a repeat gets the job that its
//! first call got, though that one had joined another's.
//!
//! On SQLite the transaction is the only one that writes, so what is read here holds
//! until it commits; which jobs may be joined is known to [`super::joinable`]. Elsewhere it may be overtaken: a key that another node stores
//! meanwhile makes the insert fail, a job that may not be joined any more makes its
//! count find no row, and the transaction is begun anew, see `shared.rs`. A job that has
//! begun keeps no key: one that another node stores at the same time is not seen.

use super::{
    database::Transaction,
    dialect::{among, statement},
    entity::{job, start_key},
    joinable::Joinable,
    write::{Existing, Rows},
};
use crate::job::{JobId, StateName};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DbBackend, DbErr, EntityTrait as _, QueryFilter as _,
    QuerySelect as _, QueryTrait as _, Value,
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What becomes of the inserts of a transaction.
#[derive(Default)]
pub(super) struct Settled {
    /// By their place among the writes: those that are not made.
    pub existing: HashMap<usize, Existing>,
    /// Keys to be stored: of jobs that are made, and of Starts that joined one.
    pub start_keys: Vec<start_key::Model>,
    /// Who joins which job.
    pub joins: BTreeMap<Vec<u8>, Joins>,
}

/// Those who join one job.
#[derive(Default)]
pub(super) struct Joins {
    /// How many.
    pub count: i64,
    /// The key by which they found it; none if they were on their way at the same time.
    pub key: Option<Vec<u8>>,
    /// When the last of them came.
    pub at: i64,
}

type Key = (String, Vec<u8>);

pub(super) async fn settle(
    db: &Transaction,
    writes: &[Rows],
    joinable: Option<&Joinable>,
) -> Result<Settled, DbErr> {
    let mut settled = Settled::default();
    let mut keys = known_keys(db, writes).await?;
    let mut jobs = identical(db, writes, joinable).await?;
    let twins = unended(db, writes).await?;
    for (place, write) in writes.iter().enumerate() {
        let Rows::Insert { job, start_key, join, sought, twin, .. } = write else { continue };
        if let Some(key) = start_key {
            let name = (key.caller.clone(), key.key_hash.clone());
            if let Some((id, request)) = keys.get(&name) {
                let id = job_id(id)?;
                let same = *request == key.request_hash;
                settled.existing.insert(place, if same { Existing::Same(id) } else { Existing::Other(id) });
                continue;
            }
        }
        let mut made = job.id.clone();
        if let Some(key) = write.merge_key() {
            let twin = twin.map(|id| id.to_bytes().to_vec()).filter(|id| twins.contains(id));
            match jobs.get(key).cloned().or(twin.map(|id| (id, false))) {
                Some((id, by_key)) if *join => {
                    settled.existing.insert(place, Existing::Joined(job_id(&id)?));
                    let joins = settled.joins.entry(id.clone()).or_default();
                    joins.count += 1;
                    joins.key = by_key.then(|| key.clone());
                    joins.at = joins.at.max(job.changed_at);
                    made = id;
                }
                Some((id, _)) => {
                    settled.existing.insert(place, Existing::Taken(job_id(&id)?));
                    continue; // refused: its key stays free
                }
                None => {
                    jobs.insert(key.clone(), (made.clone(), sought.is_none()));
                }
            }
        }
        if let Some(key) = start_key {
            keys.insert((key.caller.clone(), key.key_hash.clone()), (made.clone(), key.request_hash.clone()));
            settled.start_keys.push(start_key::Model { job_id: made, ..key.clone() });
        }
    }
    Ok(settled)
}

fn job_id(bytes: &[u8]) -> Result<JobId, DbErr> {
    let bytes = bytes.try_into().map_err(|_| DbErr::Type("an id is not 16 bytes long".into()))?;
    Ok(JobId::from_bytes(bytes))
}

/// Keys of these writes that are stored, each with its job and request.
async fn known_keys(db: &Transaction, writes: &[Rows]) -> Result<HashMap<Key, (Vec<u8>, Vec<u8>)>, DbErr> {
    let mut values: Vec<Value> = Vec::new();
    for write in writes {
        if let Rows::Insert { start_key: Some(key), .. } = write {
            values.extend([key.caller.clone().into(), key.key_hash.clone().into()]);
        }
    }
    let mut known = HashMap::new();
    if values.is_empty() {
        return Ok(known);
    }
    let backend = db.get_database_backend();
    for row in
        db.query_all_raw(statement(backend, known_keys_text(backend, values.len() / 2), values)).await?
    {
        let key = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        known.insert(key, (row.try_get_by_index(2)?, row.try_get_by_index(3)?));
    }
    Ok(known)
}

pub(super) fn known_keys_text(backend: DbBackend, keys: usize) -> String {
    let among = among(backend, ["caller", "key_hash"], keys);
    format!(r#"SELECT caller, key_hash, job_id, request_hash FROM "start_key" WHERE {among}"#)
}

/// Jobs that Starts of these writes may join, by their merge key; and whether that is
/// stored with them.
async fn identical(
    db: &Transaction,
    writes: &[Rows],
    joinable: Option<&Joinable>,
) -> Result<HashMap<Vec<u8>, (Vec<u8>, bool)>, DbErr> {
    let wanted: Vec<Vec<u8>> = writes.iter().filter_map(Rows::merge_key).cloned().collect();
    // Without an index it is known which jobs have them.
    let known = joinable.map(|joinable| joinable.with(&wanted));
    if wanted.is_empty() || known.as_ref().is_some_and(Vec::is_empty) {
        return Ok(HashMap::new());
    }
    let found: Vec<(Vec<u8>, Vec<u8>)> = job::Entity::find()
        .select_only()
        .columns([job::Column::MergeKey, job::Column::Id])
        .filter(job::Column::MergeKey.is_in(wanted))
        .apply_if(known, |find, known| find.filter(job::Column::Id.is_in(known)))
        .into_tuple()
        .all(db)
        .await?;
    Ok(found.into_iter().map(|(key, id)| (key, (id, true))).collect())
}

/// Of the jobs that Starts of these writes came beside, those that have not ended.
async fn unended(db: &Transaction, writes: &[Rows]) -> Result<HashSet<Vec<u8>>, DbErr> {
    let ids = writes.iter().filter_map(|write| match write {
        Rows::Insert { twin, .. } => twin.map(|id| id.to_bytes().to_vec()),
        Rows::Update { .. } | Rows::Delete(_) | Rows::Reseal { .. } => None,
    });
    let ids: HashSet<Vec<u8>> = ids.collect();
    if ids.is_empty() {
        return Ok(ids);
    }
    let found: Vec<Vec<u8>> = job::Entity::find()
        .select_only()
        .column(job::Column::Id)
        .filter(job::Column::Id.is_in(ids))
        .filter(job::Column::State.lt(StateName::Succeeded.number()))
        .into_tuple()
        .all(db)
        .await?;
    Ok(found.into_iter().collect())
}
