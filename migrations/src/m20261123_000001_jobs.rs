//! The first tables.

use sea_orm_migration::{async_trait, prelude::*, sea_orm};

/// Makes the tables, each with `prefix` before its name.
pub struct Migration {
    pub prefix: String,
}

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m20261123_000001_jobs"
    }
}

use sea_orm::DatabaseBackend as Backend;

fn id(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).binary_len(16).to_owned()
}

fn number(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().to_owned()
}

/// Up to so many characters.
fn short(name: &'static str, characters: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(characters).to_owned()
}

/// Present in every row.
fn must(mut column: ColumnDef) -> ColumnDef {
    column.not_null().to_owned()
}

/// Up to 16 MiB; MariaDB's own `blob` would end at 64 KiB.
fn bytes(backend: Backend, name: &'static str) -> ColumnDef {
    match backend {
        Backend::MySql => ColumnDef::new(name).custom("MEDIUMBLOB").to_owned(),
        _ => ColumnDef::new(name).blob().to_owned(),
    }
}

/// The same of text.
fn long(backend: Backend, name: &'static str) -> ColumnDef {
    match backend {
        Backend::MySql => ColumnDef::new(name).custom("MEDIUMTEXT").to_owned(),
        _ => ColumnDef::new(name).text().to_owned(),
    }
}

/// MariaDB's usual order takes `a`, `A` and `a ` for the same.
const EXACT: &str = "utf8mb4_nopad_bin";

fn tables(backend: Backend) -> Vec<(&'static str, TableCreateStatement)> {
    let job = Table::create()
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
        .col(ColumnDef::new("merge_key").binary_len(32))
        .col(must(short("target", 64)))
        .col(must(number("priority")))
        .col(must(short("created_by", 256)))
        .to_owned();
    let request = Table::create()
        .col(must(id("job_id")).primary_key())
        .col(id("retry_of"))
        .col(must(long(backend, "route")))
        .col(must(long(backend, "spec")))
        .col(must(ColumnDef::new("root_id").binary_len(8).to_owned()))
        .col(must(bytes(backend, "sealed")))
        .col(bytes(backend, "credentials"))
        .to_owned();
    let label = Table::create()
        .col(must(id("job_id")))
        .col(must(short("name", 64)))
        .col(must(short("value", 256)))
        .col(must(number("created_at")))
        .primary_key(Index::create().col("job_id").col("name"))
        .to_owned();
    let text = Table::create()
        .col(must(id("job_id")).primary_key())
        .col(must(number("attempt")))
        .col(bytes(backend, "text"))
        .col(must(number("text_written")))
        .col(must(number("text_truncated")))
        .col(short("result_type", 256))
        .col(bytes(backend, "result"))
        .col(must(number("result_truncated")))
        .to_owned();
    let attempt = Table::create()
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
        .col(must(short("caller", 256)))
        .col(must(ColumnDef::new("key_hash").binary_len(32).to_owned()))
        .col(must(id("job_id")))
        .col(must(ColumnDef::new("request_hash").binary_len(32).to_owned()))
        .primary_key(Index::create().col("caller").col("key_hash"))
        .to_owned();
    let node = Table::create()
        .col(must(short("name", 64)).primary_key())
        .col(must(id("incarnation")))
        .col(short("advertise", 512))
        .col(must(number("beat")))
        .col(must(number("started_at")))
        .to_owned();
    let root = Table::create()
        .col(must(ColumnDef::new("id").binary_len(8).to_owned()).primary_key())
        .col(must(number("first_used_at")))
        .col(ColumnDef::new("identity").var_binary(128))
        .to_owned();
    // The number of a server's last transaction: by it a server knows whether one
    // was stored whose end it did not hear of.
    let commit = Table::create()
        .col(must(id("incarnation")).primary_key())
        .col(must(short("node", 64)))
        .col(must(number("mark")))
        .to_owned();
    vec![
        ("job", job),
        ("job_request", request),
        ("job_label", label),
        ("job_text", text),
        ("attempt", attempt),
        ("start_key", key),
        ("node", node),
        ("node_commit", commit),
        ("root_key", root),
    ]
}

/// On SQLite a table is a second tree beside that of its key unless it is told not to;
/// for short rows one tree takes less room and less time. `job_request` has long ones.
const CLUSTERED: [&str; 5] = ["job", "job_label", "job_text", "attempt", "start_key"];

/// An index: its name without the table's, its table, its columns (`-` falls), its
/// condition.
type Of = (&'static str, &'static str, &'static [&'static str], Option<&'static str>);

/// Most jobs are final, and most events concern the few that are not: where a
/// database can, an index holds only those, so that it stays small and a final
/// job costs it nothing. A query must repeat the condition word for word.
const INDEXES: &[Of] = &[
    ("job_live", "job", &["state", "target", "-priority", "scheduled_at", "id"], Some("state < 4")),
    ("job_due", "job", &["scheduled_at"], Some("state = 1")),
    ("job_give_up", "job", &["give_up_at"], Some("give_up_at IS NOT NULL")),
    ("job_created", "job", &["created_at", "id"], None),
    ("job_ended", "job", &["state", "ended_at"], Some("ended_at IS NOT NULL")),
    ("job_label_value", "job_label", &["name", "value", "created_at", "job_id"], None),
    ("start_key_job", "start_key", &["job_id"], None),
];

fn indexes(backend: Backend) -> Vec<Of> {
    let mut indexes = INDEXES.to_vec();
    if backend != Backend::Sqlite {
        // What other nodes changed; SQLite has none.
        indexes.push(("job_changed", "job", &["changed_at", "id"], None));
    }
    if backend == Backend::MySql {
        // It knows no conditions: an index holds every row, and is searched by state.
        for (name, _, columns, condition) in &mut indexes {
            if *name == "job_due" {
                *columns = &["state", "scheduled_at", "id"];
            }
            *condition = None;
        }
    }
    indexes
}

impl Migration {
    async fn index(
        &self,
        manager: &SchemaManager<'_>,
        table: &str,
        name: &str,
        index: IndexCreateStatement,
    ) -> Result<(), DbErr> {
        let (table, name) = (format!("{}{table}", self.prefix), format!("{}{name}", self.prefix));
        if manager.get_database_backend() == Backend::MySql && manager.has_index(&table, &name).await? {
            return Ok(());
        }
        manager.create_index(index).await
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// A crash on the way must leave nothing behind. MariaDB has no transactions of
    /// this kind: there, what is there already is left as it is.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let named = |name: &str| format!("{}{name}", self.prefix);
        for (name, mut table) in tables(backend) {
            table.table(named(name));
            if backend == Backend::MySql {
                table.if_not_exists().engine("InnoDB").character_set("utf8mb4").collate(EXACT);
            }
            if backend == Backend::Sqlite && CLUSTERED.contains(&name) {
                table.extra("WITHOUT ROWID");
            }
            manager.create_table(table).await?;
        }
        // On SQLite one process writes, and keeps these keys in mind: in an index of
        // hashes each new job would change a page of its own.
        if backend != Backend::Sqlite {
            let mut unique = Index::create()
                .name(named("job_merge_key"))
                .table(named("job"))
                .col("merge_key")
                .unique()
                .to_owned();
            if backend == Backend::Postgres {
                // It knows conditions: most jobs have none any more.
                unique.and_where(Expr::cust("merge_key IS NOT NULL"));
            }
            self.index(manager, "job", "job_merge_key", unique).await?;
        }
        for (name, table, columns, condition) in indexes(backend) {
            let mut index = Index::create().name(named(name)).table(named(table)).to_owned();
            for column in columns {
                match column.strip_prefix('-') {
                    Some(column) => index.col((column, IndexOrder::Desc)),
                    None => index.col(*column),
                };
            }
            if let Some(condition) = condition {
                index.and_where(Expr::cust(condition));
            }
            self.index(manager, table, name, index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (name, _) in tables(manager.get_database_backend()).into_iter().rev() {
            let name = format!("{}{name}", self.prefix);
            manager.drop_table(Table::drop().table(name).if_exists().to_owned()).await?;
        }
        Ok(())
    }
}
