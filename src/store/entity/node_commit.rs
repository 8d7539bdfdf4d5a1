//! The last transaction of a server, see `shared.rs`.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "node_commit")]
pub struct Model {
    /// Made anew at each start.
    #[sea_orm(primary_key, auto_increment = false)]
    pub incarnation: Vec<u8>,
    pub node: String,
    /// Its number.
    pub mark: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
