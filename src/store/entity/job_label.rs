//! A label of a job, for filters; `created_at` is the job's, so that an index
//! gives the jobs of a label newest first.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_label")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job_id: Vec<u8>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub value: String,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
