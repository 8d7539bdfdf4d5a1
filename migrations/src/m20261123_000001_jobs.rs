//! The first tables.

use sea_orm_migration::{async_trait, prelude::*};

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
        .col(number("estimated_end_at"))
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
        .col(must(short("route", 8192)))
        .to_owned();
    let request = Table::create()
        .table("job_request")
        .col(must(id("job_id")).primary_key())
        .col(must(ColumnDef::new("spec").text().to_owned()))
        .col(ColumnDef::new("root_id").binary_len(8))
        .col(bytes("sealed"))
        .col(bytes("credentials"))
        .col(id("retry_of"))
        .to_owned();
    let label = Table::create()
        .table("job_label")
        .col(must(id("job_id")))
        .col(must(short("name", 63)))
        .col(must(short("value", 256)))
        .primary_key(Index::create().col("job_id").col("name"))
        .to_owned();
    let text = Table::create()
        .table("job_text")
        .col(must(id("job_id")).primary_key())
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
        .to_owned();
    vec![job, request, label, text, attempt, key, node, root]
}

/// Name, table, columns.
const INDEXES: &[(&str, &str, &[&str])] = &[
    ("job_claim", "job", &["state", "target", "priority", "scheduled_at"]),
    ("job_due", "job", &["state", "scheduled_at"]),
    ("job_give_up", "job", &["give_up_at"]),
    ("job_created", "job", &["created_at", "id"]),
    ("job_label_value", "job_label", &["name", "value", "job_id"]),
    ("job_changed", "job", &["changed_at"]),
    ("job_ended", "job", &["ended_at"]),
    ("start_key_job", "start_key", &["job_id"]),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables() {
            manager.create_table(table).await?;
        }
        for (name, table, columns) in INDEXES {
            let mut index = Index::create().name(*name).table(*table).to_owned();
            for column in *columns {
                index.col(*column);
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
