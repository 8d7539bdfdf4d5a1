//! What changes while a job lives: narrow and hot.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "job")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub state: i64,
    pub revision: i64,
    pub attempt: i64,
    pub owner: Option<String>,
    pub progress: i64,
    pub done: Option<i64>,
    pub total: Option<i64>,
    pub unit: Option<String>,
    pub stage: Option<String>,
    pub estimated_end_at: Option<i64>,
    pub created_at: i64,
    pub scheduled_at: i64,
    pub started_at: Option<i64>,
    pub updated_at: i64,
    pub changed_at: i64,
    pub ended_at: Option<i64>,
    pub give_up_at: Option<i64>,
    pub cancel_requested: i64,
    pub failure_reason: Option<i64>,
    pub failure_message: Option<String>,
    pub failure_status: Option<i64>,
    pub merged_count: i64,
    pub merge_key: Option<Vec<u8>>,
    pub target: String,
    pub priority: i64,
    pub created_by: String,
    pub route: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
