//! One attempt of a job.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "attempt")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job_id: Vec<u8>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub attempt: i64,
    pub node: String,
    pub claimed_at: i64,
    pub sent_at: Option<i64>,
    pub reported: i64,
    pub ended_at: Option<i64>,
    pub http_status: Option<i64>,
    pub failure_reason: Option<i64>,
    pub failure_message: Option<String>,
    pub last_sequence: i64,
    pub end_sequence: Option<i64>,
    /// Hash of the report that ended it; NULL if none did.
    pub end_hash: Option<Vec<u8>>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
