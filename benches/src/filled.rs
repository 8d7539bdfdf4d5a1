//! A database with many finished jobs: made once out of one real job, kept beside
//! the build, and copied for each run.

use crate::{
    fault::{Fault, fault},
    options::Options,
    role::client::{Kind, Question},
    world::{World, place},
};
use rusqlite::{Connection, OptionalExtension as _};
use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
};
use tokio::process::Command;

const FILES: [&str; 2] = ["backjob.db", "backjob.key"];

/// Puts one into `folder`, for `program` to serve.
pub async fn copy(options: &Options, program: &Path, folder: &Path) -> Result<(), Fault> {
    let name = format!("finished-{}-{}-{:x}", options.finished, options.payload, schema(program).await?);
    let kept = place()?.join(name);
    if !kept.exists() {
        let making = kept.with_extension("making");
        fs::create_dir_all(&making)?;
        make(options, &making).await?;
        fs::rename(&making, &kept)?;
    }
    for name in FILES {
        fs::copy(kept.join(name), folder.join(name))?;
        // Or the copy is still written out while the service is measured.
        File::open(folder.join(name))?.sync_all()?;
    }
    Ok(())
}

/// What the tables look like that `program` makes: one that was filled under others is
/// of no use.
async fn schema(program: &Path) -> Result<u64, Fault> {
    let folder = tempfile::tempdir()?;
    let database = folder.path().join(FILES[0]);
    let mut migrate = Command::new(program);
    migrate.current_dir(folder.path()).arg("migrate");
    migrate.arg("--set").arg(format!("database.url=sqlite://{}", database.display()));
    let output = migrate.output().await?;
    if !output.status.success() {
        return Err(fault(String::from_utf8_lossy(&output.stderr)));
    }
    let connection = Connection::open(database)?;
    let mut tables =
        connection.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")?;
    let tables: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut hasher = DefaultHasher::new();
    tables.hash(&mut hasher);
    Ok(hasher.finish())
}

async fn make(options: &Options, into: &Path) -> Result<(), Fault> {
    let empty = Options { finished: 0, ..options.clone() };
    let mut world = Box::pin(World::new(&empty, &[])).await?;
    world.ask::<()>(&Question::Finish { kind: Kind::Unary, count: 1 }).await?;
    world.service.stop().await?;
    for name in FILES {
        fs::copy(world.folder().join(name), into.join(name))?;
    }
    let wal = world.folder().join("backjob.db-wal");
    if wal.exists() {
        fs::copy(wal, into.join("backjob.db-wal"))?;
    }
    multiply(&into.join(FILES[0]), options.finished)
}

/// Gives the one job as many copies as are wanted, each a millisecond older.
fn multiply(database: &Path, finished: usize) -> Result<(), Fault> {
    let mut connection = Connection::open(database)?;
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -262144")?;
    let (id, created): (Vec<u8>, i64) =
        connection.query_row("SELECT id, created_at FROM job", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let millisecond = if created > 100_000_000_000_000 { 1_000 } else { 1 };
    let tables = tables(&connection)?;
    let transaction = connection.transaction()?;
    {
        let mut inserts = Vec::new();
        for (table, key, columns) in &tables {
            // ?1 is the new id, ?2 that of the origin, ?3 how much older it is.
            let values: Vec<_> = columns
                .iter()
                .map(|column| match column {
                    column if column == key => "?1".to_owned(),
                    column if column.ends_with("_at") => format!("{column} - ?3"),
                    column => column.clone(),
                })
                .collect();
            inserts.push(transaction.prepare(&format!(
                "INSERT INTO {table} ({}) SELECT {} FROM {table} WHERE {key} = ?2 AND ?3 > 0",
                columns.join(", "),
                values.join(", ")
            ))?);
        }
        // Ids of jobs begin with their time in milliseconds; oldest first, as they
        // would have come.
        let time = id.iter().take(6).fold(0u64, |time, byte| time << 8 | u64::from(*byte));
        for back in (1..finished as u64).rev() {
            let mut copy = (time - back).to_be_bytes()[2..].to_vec();
            copy.extend_from_slice(&id[6..8]);
            copy.extend_from_slice(&(back | 1 << 63).to_be_bytes());
            let older = i64::try_from(back)? * millisecond;
            for insert in &mut inserts {
                insert.execute((&copy, &id, older))?;
            }
        }
    }
    transaction.commit()?;
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    let held: i64 = connection.query_row("SELECT count(*) FROM job", [], |row| row.get(0))?;
    connection.close().map_err(|(_, error)| error)?;
    File::open(database)?.sync_all()?;
    if usize::try_from(held)? == finished {
        Ok(())
    } else {
        Err(fault(format!("{held} jobs instead of {finished}")))
    }
}

/// Name, column of the job's id, and all columns, of each table that holds
/// something about a job.
fn tables(connection: &Connection) -> Result<Vec<(String, String, Vec<String>)>, Fault> {
    let mut named = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
    let named: Vec<String> = named.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut tables = Vec::new();
    for table in named {
        let mut columns = connection.prepare("SELECT name FROM pragma_table_info(?)")?;
        let columns: Vec<String> =
            columns.query_map([&table], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let key = if table == "job" { "id" } else { "job_id" };
        let filled: Option<i64> = connection
            .query_row(&format!("SELECT 1 FROM {table} LIMIT 1"), [], |row| row.get(0))
            .optional()?;
        if filled.is_some() && columns.iter().any(|column| column == key) {
            tables.push((table, key.to_owned(), columns));
        }
    }
    Ok(tables)
}
