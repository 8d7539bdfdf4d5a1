//! Disk of a finished job.

use crate::{
    fault::Fault,
    options::Options,
    role::client::{Kind, Question},
    sample::Sample,
    step::{Bound::Most, Step},
    world::World,
};
use rusqlite::Connection;
use std::{collections::BTreeMap, path::Path};

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let options = Options { payload: 512, ..options.clone() };
    let count = options.number(20_000, 200);
    let (mut sizes, mut held) = (Vec::new(), BTreeMap::new());
    // An empty database is subtracted.
    for count in [0, count] {
        let mut world = World::new(&options, &[]).await?;
        if count > 0 {
            world.ask::<()>(&Question::Finish { kind: Kind::None, count }).await?;
        }
        held = world.held()?;
        world.service.stop().await?;
        sizes.push(size(&world.folder().join("backjob.db"))?);
    }
    let mut sample = Sample::default();
    for (name, bytes) in &sizes[1] {
        let before = sizes[0].get(name).copied().unwrap_or(0.0);
        if *bytes > before {
            sample.more.insert(format!("bytes_per_job {name}"), (bytes - before) / count as f64);
        }
    }
    let folder = tempfile::tempdir()?;
    let rows = rows(&folder.path().join("floor.db"), count, options.payload)?;
    let raw = Sample::one("bytes_per_job file", rows);
    let layout = format!(
        "{count} jobs with a body of 512 bytes and no reports; after a checkpoint; rows: an id and the body in \
         a table of SQLite"
    );
    let step = Step::new("disk", "a finished job", &layout, &options, vec![sample])
        .floor("plain rows", vec![raw])
        .held(held)
        .goal("database file", &[Most("bytes_per_job file", 1_228.8, "bytes")]);
    Ok(vec![step])
}

/// Bytes of the file a row, of a plain table.
fn rows(file: &Path, count: usize, payload: usize) -> Result<f64, Fault> {
    let mut connection = Connection::open(file)?;
    connection
        .execute_batch("CREATE TABLE row (id BLOB PRIMARY KEY, payload BLOB NOT NULL) WITHOUT ROWID")?;
    let empty = std::fs::metadata(file)?.len();
    let (inserts, payload) = (connection.transaction()?, vec![b'x'; payload]);
    for id in 0..count as u128 {
        inserts.execute("INSERT INTO row VALUES (?, ?)", (&id.to_be_bytes()[..], &payload[..]))?;
    }
    inserts.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    Ok((std::fs::metadata(file)?.len() - empty) as f64 / count as f64)
}

/// Bytes of the file after a checkpoint, and of each table and index in it.
fn size(database: &Path) -> Result<BTreeMap<String, f64>, Fault> {
    let connection = Connection::open(database)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let mut sizes = BTreeMap::new();
    {
        let mut each = connection.prepare("SELECT name, sum(pgsize) FROM dbstat GROUP BY name")?;
        let mut rows = each.query([])?;
        while let Some(row) = rows.next()? {
            sizes.insert(row.get(0)?, row.get(1)?);
        }
    }
    connection.close().map_err(|(_, error)| error)?;
    sizes.insert("file".into(), std::fs::metadata(database)?.len() as f64);
    Ok(sizes)
}
