//! What was asked: written once.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "job_request")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job_id: Vec<u8>,
    #[sea_orm(column_type = "Text")]
    pub spec: String,
    pub root_id: Option<Vec<u8>>,
    pub sealed: Option<Vec<u8>>,
    pub credentials: Option<Vec<u8>>,
    pub retry_of: Option<Vec<u8>>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
