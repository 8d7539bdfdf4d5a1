//! The first tables.

use sea_orm_migration::{async_trait, prelude::*, sea_orm};

#[derive(DeriveMigrationName)]
pub struct Migration;

fn id(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).binary_len(16).to_owned()
}

fn number(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().to_owned()
}

fn short(name: &'static str, bytes: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(bytes).to_owned()
}

/// Present in every row.
fn must(mut column: ColumnDef) -> ColumnDef {
    column.not_null().to_owned()
}

/// Of any length; MariaDB's own `blob` would end at 64 KiB.
fn bytes(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).blob().to_owned()
}

fn tables() -> Vec<TableCreateStatement> {
    let job = Table::create()
        .table("job")
        .col(must(id("id")).primary_key())
        .col(must(number("state")))
        .col(must(number("revision")))
        .col(must(number("attempt")))
        .col(short("owner", 64))
        .col(must(number("progress")))
        .col(number("done"))
        .col(number("total"))
        .col(short("unit", 64))
        .col(short("stage", 256))
        .col(must(number("created_at")))
        .col(must(number("scheduled_at")))
        .col(number("started_at"))
        .col(must(number("updated_at")))
        .col(must(number("changed_at")))
        .col(number("ended_at"))
        .col(number("give_up_at"))
        .col(must(number("cancel_requested")))
        .col(number("failure_reason"))
        .col(short("failure_message", 4096))
        .col(number("failure_status"))
        .col(must(number("merged_count")))
        .col(ColumnDef::new("merge_key").binary_len(32).unique_key())
        .col(must(short("target", 64)))
        .col(must(number("priority")))
        .col(must(short("created_by", 256)))
        .to_owned();
    let request = Table::create()
        .table("job_request")
        .col(must(id("job_id")).primary_key())
        .col(id("retry_of"))
        .col(must(ColumnDef::new("route").text().to_owned()))
        .col(must(ColumnDef::new("spec").text().to_owned()))
        .col(must(ColumnDef::new("root_id").binary_len(8).to_owned()))
        .col(must(bytes("sealed")))
        .col(bytes("credentials"))
        .to_owned();
    let label = Table::create()
        .table("job_label")
        .col(must(id("job_id")))
        .col(must(short("name", 64)))
        .col(must(short("value", 256)))
        .col(must(number("created_at")))
        .primary_key(Index::create().col("job_id").col("name"))
        .to_owned();
    let text = Table::create()
        .table("job_text")
        .col(must(id("job_id")).primary_key())
        .col(must(number("attempt")))
        .col(bytes("text"))
        .col(must(number("text_written")))
        .col(must(number("text_truncated")))
        .col(short("result_type", 256))
        .col(bytes("result"))
        .col(must(number("result_truncated")))
        .to_owned();
    let attempt = Table::create()
        .table("attempt")
        .col(must(id("job_id")))
        .col(must(number("attempt")))
        .col(must(short("node", 64)))
        .col(must(number("claimed_at")))
        .col(number("sent_at"))
        .col(must(number("reported")))
        .col(number("ended_at"))
        .col(number("http_status"))
        .col(number("failure_reason"))
        .col(short("failure_message", 4096))
        .col(must(number("last_sequence")))
        .col(number("end_sequence"))
        .col(ColumnDef::new("end_hash").binary_len(32))
        .primary_key(Index::create().col("job_id").col("attempt"))
        .to_owned();
    let key = Table::create()
        .table("start_key")
        .col(must(short("caller", 256)))
        .col(must(ColumnDef::new("key_hash").binary_len(32).to_owned()))
        .col(must(id("job_id")))
        .col(must(ColumnDef::new("request_hash").binary_len(32).to_owned()))
        .primary_key(Index::create().col("caller").col("key_hash"))
        .to_owned();
    let node = Table::create()
        .table("node")
        .col(must(short("name", 64)).primary_key())
        .col(must(id("incarnation")))
        .col(short("advertise", 512))
        .col(must(number("beat")))
        .col(must(number("started_at")))
        .to_owned();
    let root = Table::create()
        .table("root_key")
        .col(must(ColumnDef::new("id").binary_len(8).to_owned()).primary_key())
        .col(must(number("first_used_at")))
        .col(ColumnDef::new("identity").var_binary(128))
        .to_owned();
    vec![job, request, label, text, attempt, key, node, root]
}

/// Name, table, columns (`-` falls), condition.
///
/// Most jobs are final, and most events concern the few that are not: where a
/// database can, an index holds only those, so that it stays small and a final
/// job costs it nothing. A query must repeat the condition word for word.
const INDEXES: &[(&str, &str, &[&str], Option<&str>)] = &[
    ("job_live", "job", &["state", "target", "-priority", "scheduled_at", "id"], Some("state < 4")),
    ("job_due", "job", &["scheduled_at"], Some("state = 1")),
    ("job_give_up", "job", &["give_up_at"], Some("give_up_at IS NOT NULL")),
    ("job_created", "job", &["created_at", "id"], None),
    ("job_ended", "job", &["state", "ended_at"], Some("ended_at IS NOT NULL")),
    ("job_label_value", "job_label", &["name", "value", "created_at", "job_id"], None),
    ("start_key_job", "start_key", &["job_id"], None),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// A crash on the way must leave nothing behind.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables() {
            manager.create_table(table).await?;
        }
        for (name, table, columns, condition) in INDEXES {
            let mut index = Index::create().name(*name).table(*table).to_owned();
            for column in *columns {
                match column.strip_prefix('-') {
                    Some(column) => index.col((column, IndexOrder::Desc)),
                    None => index.col(*column),
                };
            }
            // MariaDB knows no conditions: there an index holds every row.
            let mysql = manager.get_database_backend() == sea_orm::DatabaseBackend::MySql;
            if let Some(condition) = condition.filter(|_| !mysql) {
                index.and_where(Expr::cust(condition));
            }
            manager.create_index(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in
            ["root_key", "node", "start_key", "attempt", "job_text", "job_label", "job_request", "job"]
        {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}
