//! Up, down, up.

use super::*;
use sea_orm_migration::{
    SchemaManager,
    sea_orm::{ConnectionTrait as _, Database},
};

async fn up_down_up(url: &str, prefix: &str) {
    let db = Database::connect(url).await.expect("a database");
    let migrator = Migrator { prefix: prefix.to_owned() };
    let (job, root) = (format!("{prefix}job"), format!("{prefix}root_key"));
    migrator.up(&db, None).await.expect("up");
    assert!(SchemaManager::new(&db).has_column(&job, "revision").await.expect("asked"));
    migrator.down(&db, None).await.expect("down");
    assert!(!SchemaManager::new(&db).has_table(&job).await.expect("asked"));
    migrator.up(&db, None).await.expect("up again");
    assert!(SchemaManager::new(&db).has_table(&root).await.expect("asked"));
    db.close().await.expect("closed");
}

#[tokio::test]
async fn up_down_up_on_sqlite() {
    up_down_up("sqlite::memory:", "").await;
    up_down_up("sqlite::memory:", "bj_").await;
}

/// On a database of its own of the server that a variable names.
async fn on_server(variable: &str) {
    let Ok(server) = std::env::var(variable) else {
        println!("SKIPPED: set {variable} to the address of a server");
        return;
    };
    let name = format!("backjob_migrations_{}", std::process::id());
    let admin = Database::connect(&server).await.expect("the server");
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.expect("made");
    let (base, _) = server.rsplit_once('/').expect("a database in the address");
    let url = format!("{base}/{name}");
    up_down_up(&url, "").await;
    up_down_up(&url, "bj_").await;
    admin.execute_unprepared(&format!("DROP DATABASE {name}")).await.expect("dropped");
}

#[tokio::test]
async fn up_down_up_on_postgresql() {
    on_server("BACKJOB_TEST_POSTGRES").await;
}

#[tokio::test]
async fn up_down_up_on_mariadb() {
    on_server("BACKJOB_TEST_MARIADB").await;
}
