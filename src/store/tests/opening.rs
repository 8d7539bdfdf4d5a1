//! Opening: what is found, and what people are told.

use super::*;
use crate::store::{
    OpenError,
    sqlite::{self, Place},
};
use sea_orm::{ConnectionTrait as _, Database};
use std::fs;

async fn refused(options: Options) -> OpenError {
    Store::open(options, Arc::new(StillClock), &Tasks::default()).await.expect_err("refused")
}

/// The message names the file.
fn names(error: &OpenError, file: &Path) {
    let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
    assert!(error.to_string().contains(name), "{error}");
}

async fn with_sql(file: &Path, sql: &str) {
    let db = Database::connect(format!("{}?mode=rwc", url(file))).await.expect("connected");
    db.execute_unprepared(sql).await.expect("done");
    db.close().await.expect("closed");
}

#[tokio::test]
async fn a_file_that_is_opened_again_shows_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let store = open(options(url(&file))).await;
    let mut record = added(&store, job(1)).await;
    happens(&store, &mut record, Event::Claim, at(NOW + 10)).await;
    happens(&store, &mut record, Event::Of(1, says("half")), at(NOW + 20)).await;
    let before = one(&store, record.id).await;
    store.close().await;
    let left: Vec<_> =
        fs::read_dir(folder.path()).expect("read").map(|e| e.expect("entry").file_name()).collect();
    assert!(left.iter().all(|name| name == "backjob.db" || name == "backjob.db.lock"), "{left:?}");

    let store = open(Options { migrate: false, ..options(format!("sqlite:{}", file.display())) }).await;
    same(&one(&store, record.id).await, &before);
    assert!(store.payload(record.id).await.expect("read") == Some(payload()));
    store.close().await;
}

#[tokio::test]
async fn a_store_that_is_dropped_ends_its_writer_and_frees_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let tasks = Tasks::default();
    let store = Store::open(options(url(&file)), Arc::new(StillClock), &tasks).await.expect("opened");
    let told = hand_in(&store, insert(&job(1))).await;
    drop(store);
    tasks.shut_down(std::time::Duration::from_secs(20)).await.expect("ended");
    assert_eq!(told.await.expect("told"), Ok(Outcome::Done));
    let store = open(options(url(&file))).await;
    one(&store, job(1).id).await;
    store.close().await;
}

#[tokio::test]
async fn nothing_sealed_stands_in_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(options(url(&folder.path().join("backjob.db")))).await;
    added(&store, job(1)).await;
    for entry in fs::read_dir(folder.path()).expect("read") {
        let bytes = fs::read(entry.expect("an entry").path()).expect("read");
        assert!(!bytes.windows(6).any(|part| part == b"canary"));
    }
    store.close().await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_new_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let store = open(options(url(&file))).await;
    added(&store, job(1)).await;
    for entry in fs::read_dir(folder.path()).expect("read") {
        let entry = entry.expect("an entry");
        assert_eq!(entry.metadata().expect("known").permissions().mode() & 0o077, 0, "{:?}", entry.path());
    }
    store.close().await;
}

#[tokio::test]
async fn a_second_server_on_the_file_is_told_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let store = open(options(url(&file))).await;
    let error = refused(options(url(&file))).await;
    let here = std::process::id();
    assert!(matches!(&error, OpenError::InUse { pid: Some(pid), .. } if *pid == here), "{error:?}");
    names(&error, &file);
    #[cfg(unix)]
    {
        let other = folder.path().join("other.db");
        std::os::unix::fs::symlink(&file, &other).expect("linked");
        assert!(matches!(refused(options(url(&other))).await, OpenError::InUse { .. }));
    }
    store.close().await;
    open(options(url(&file))).await.close().await;
}

#[tokio::test]
async fn what_is_no_database_of_ours_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("notes.txt");
    for garbage in ["x", "a file that is a good deal longer than what a database begins with"] {
        fs::write(&file, garbage).expect("written");
        let error = refused(options(url(&file))).await;
        assert!(matches!(error, OpenError::NotADatabase { .. }), "{error:?}");
        names(&error, &file);
        assert_eq!(fs::read_to_string(&file).expect("read"), garbage);
    }
    let mut damaged = b"SQLite format 3\0".to_vec();
    damaged.resize(4096, 7);
    fs::write(&file, damaged).expect("written");
    assert!(matches!(refused(options(url(&file))).await, OpenError::NotADatabase { .. }));

    let foreign = folder.path().join("foreign.db");
    with_sql(&foreign, "CREATE TABLE customer (id INTEGER)").await;
    assert!(matches!(refused(options(url(&foreign))).await, OpenError::NotADatabase { .. }));
}

#[tokio::test]
async fn where_nothing_can_be_written_people_are_told_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = folder.path().join("none").join("backjob.db");
    let error = refused(options(url(&nowhere))).await;
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error:?}");
    names(&error, &nowhere);
    let inner = folder.path().join("folder");
    fs::create_dir(&inner).expect("made");
    assert!(matches!(refused(options(url(&inner))).await, OpenError::NotWritable { .. }));

    let file = folder.path().join("backjob.db");
    open(options(url(&file))).await.close().await;
    let mut permissions = fs::metadata(&file).expect("known").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&file, permissions).expect("set");
    if fs::OpenOptions::new().write(true).open(&file).is_ok() {
        return; // root may write to anything
    }
    assert!(matches!(refused(options(url(&file))).await, OpenError::NotWritable { .. }));
}

#[tokio::test]
async fn addresses_that_mean_nothing_are_refused() {
    for url in [
        "",
        "backjob.db",
        "mssql://localhost/x",
        "postgres://localhost",
        "mysql://localhost",
        "sqlite:",
        "sqlite://",
        "sqlite://x.db?mode=ro",
    ] {
        let error = refused(options(url.into())).await;
        assert!(matches!(error, OpenError::BadUrl { .. }), "{url}: {error:?}");
    }
}

#[tokio::test]
async fn tables_of_another_version_are_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let error = refused(Options { migrate: false, ..options(url(&file)) }).await;
    assert!(matches!(&error, OpenError::MustMigrate { pending, .. } if pending.len() == 1), "{error:?}");
    names(&error, &file);
    open(options(url(&file))).await.close().await;
    with_sql(&file, "INSERT INTO seaql_migrations VALUES ('m20991231_000001_later', 0)").await;
    let error = refused(options(url(&file))).await;
    assert!(matches!(&error, OpenError::NewerSchema { unknown, .. } if unknown.len() == 1), "{error:?}");
    assert!(error.to_string().contains("m20991231_000001_later"), "{error}");
}

#[tokio::test]
async fn a_root_key_that_is_in_use_must_be_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    let with = |bytes: &[u8]| Options { keys: keys(bytes), ..options(url(&file)) };
    // Nothing is sealed yet: any key will do.
    open(with(&[9])).await.close().await;
    let store = open(with(&[1])).await;
    added(&store, job(1)).await;
    store.close().await;
    let error = refused(with(&[2])).await;
    let id = keys(&[1]).current().id();
    assert!(matches!(&error, OpenError::MissingRoot { id: missing, .. } if *missing == id), "{error:?}");
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(error.to_string().contains(&hex), "{error}");

    let store = open(with(&[2, 1])).await;
    added(&store, job(2)).await;
    for id in [job(1).id, job(2).id] {
        assert!(store.payload(id).await.expect("read") == Some(payload()));
    }
    store.close().await;
    assert!(matches!(refused(with(&[1])).await, OpenError::MissingRoot { .. }));
    open(with(&[1, 2])).await.close().await;
}

#[tokio::test]
async fn the_connection_that_writes_has_the_memory_that_was_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backjob.db");
    fs::File::create(&file).expect("made");
    for (bytes, kib) in [(64 << 10, -64), (20 << 20, -20_480)] {
        let connection = sqlite::open(&Place::File(file.clone()), bytes).expect("connected");
        let asked = connection.query_row("PRAGMA cache_size", (), |row| row.get::<_, i64>(0));
        assert_eq!(asked, Ok(kib));
    }
}
