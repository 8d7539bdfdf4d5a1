//! The tables of backjob, as SeaORM migrations.

use sea_orm_migration as _;
