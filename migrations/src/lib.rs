//! The tables of backjob, as SeaORM migrations.
//!
//! A released migration is frozen: what changes later is a migration of its own.
//! Times are UTC milliseconds, spans milliseconds, ids 16 bytes.

pub use sea_orm_migration::{MigratorTrait, prelude::DbErr};

use sea_orm_migration::{MigrationTrait, async_trait};

mod m20261123_000001_jobs;

/// All migrations, in order.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m20261123_000001_jobs::Migration)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sea_orm_migration::{SchemaManager, sea_orm::Database};

    #[tokio::test]
    async fn up_down_up() {
        let db = Database::connect("sqlite::memory:").await.expect("a database in memory");
        Migrator::up(&db, None).await.expect("up");
        assert!(SchemaManager::new(&db).has_column("job", "revision").await.expect("asked"));
        Migrator::down(&db, None).await.expect("down");
        assert!(!SchemaManager::new(&db).has_table("job").await.expect("asked"));
        Migrator::up(&db, None).await.expect("up again");
        assert!(SchemaManager::new(&db).has_table("root_key").await.expect("asked"));
    }
}
