//! What a job was asked to do; written once.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_request")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job_id: Vec<u8>,
    pub retry_of: Option<Vec<u8>>,
    /// As in `spec`, for filters.
    #[sea_orm(column_type = "Text")]
    pub route: String,
    /// The `Spec`, as JSON.
    #[sea_orm(column_type = "Text")]
    pub spec: String,
    /// The root that `sealed` was sealed with.
    pub root_id: Vec<u8>,
    /// The `Payload`, see `payload.rs`.
    pub sealed: Vec<u8>,
    /// Sealed; wiped when the job ends.
    pub credentials: Option<Vec<u8>>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
