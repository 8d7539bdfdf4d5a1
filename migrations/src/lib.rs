//! The tables of backjob, as SeaORM migrations.
//!
//! A released migration is frozen: what changes later is a migration of its own.
//! Times are UTC milliseconds, spans milliseconds, ids 16 bytes.

pub use sea_orm_migration::{MigratorTraitSelf, prelude::DbErr};

use sea_orm_migration::{
    MigrationTrait,
    sea_orm::{DynIden, sea_query::IntoIden as _},
};

mod m20261123_000001_jobs;

/// Where migrations are recorded, after the prefix.
pub const RECORD: &str = "seaql_migrations";

/// All migrations, in order.
#[derive(Debug, Default)]
pub struct Migrator {
    /// What the name of every table begins with; may be empty.
    pub prefix: String,
}

impl MigratorTraitSelf for Migrator {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m20261123_000001_jobs::Migration { prefix: self.prefix.clone() })]
    }

    fn migration_table_name(&self) -> DynIden {
        format!("{}{RECORD}", self.prefix).into_iden()
    }
}

#[cfg(test)]
mod tests;
