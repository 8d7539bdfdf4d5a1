//! What an action wrote and left behind.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "job_text")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job_id: Vec<u8>,
    pub text: Option<Vec<u8>>,
    pub text_written: i64,
    pub text_truncated: i64,
    pub result_type: Option<String>,
    pub result: Option<Vec<u8>>,
    pub result_truncated: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
