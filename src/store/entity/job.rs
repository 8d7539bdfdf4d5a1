//! A job: what changes while it runs, and what lists filter by.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub state: i64,
    pub revision: i64,
    pub attempt: i64,
    /// The node that runs it; only while it runs.
    pub owner: Option<String>,
    pub progress: i64,
    /// Not NULL where there is a detail.
    pub done: Option<i64>,
    pub total: Option<i64>,
    pub unit: Option<String>,
    pub stage: Option<String>,
    pub created_at: i64,
    pub scheduled_at: i64,
    pub started_at: Option<i64>,
    pub updated_at: i64,
    /// When the row changed; for the feed of other nodes.
    pub changed_at: i64,
    pub ended_at: Option<i64>,
    /// When a waiting job is given up.
    pub give_up_at: Option<i64>,
    pub cancel_requested: i64,
    /// Not NULL where there is a failure.
    pub failure_reason: Option<i64>,
    pub failure_message: Option<String>,
    pub failure_status: Option<i64>,
    pub merged_count: i64,
    /// What identical Starts find it by.
    pub merge_key: Option<Vec<u8>>,
    pub target: String,
    pub priority: i64,
    pub created_by: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
