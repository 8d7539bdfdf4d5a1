//! By what a repeated Start is known.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "start_key")]
pub struct Model {
    /// Name of the caller's token.
    #[sea_orm(primary_key, auto_increment = false)]
    pub caller: String,
    /// Of the idempotency key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key_hash: Vec<u8>,
    pub job_id: Vec<u8>,
    /// Of the whole request.
    pub request_hash: Vec<u8>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
