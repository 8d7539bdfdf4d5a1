//! What a job wrote and left behind; a row only where there is any.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_text")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub job_id: Vec<u8>,
    /// Whose text it is: a new attempt begins without, and need not write that.
    pub attempt: i64,
    /// UTF-8.
    pub text: Option<Vec<u8>>,
    pub text_written: i64,
    pub text_truncated: i64,
    /// Not NULL where there is an output.
    pub result_type: Option<String>,
    pub result: Option<Vec<u8>>,
    pub result_truncated: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
