//! What differs between SQLite, PostgreSQL and MariaDB in the text of a statement.
//!
//! Statements of our own are written once, as SQLite takes them: `?` for a value,
//! `"` around the name of a table. Nothing else of `?` and `"` stands in them.

use sea_orm::{DbBackend, Statement, Value};

/// Values that one statement binds, at most.
pub(super) fn bound(backend: DbBackend) -> usize {
    match backend {
        DbBackend::Postgres | DbBackend::MySql => 65_535,
        _ => 32_766,
    }
}

/// A statement of our own.
pub(super) fn statement(
    backend: DbBackend,
    text: impl Into<String>,
    values: impl IntoIterator<Item = Value>,
) -> Statement {
    Statement::from_sql_and_values(backend, translated(backend, text.into()), values)
}

fn translated(backend: DbBackend, text: String) -> String {
    match backend {
        DbBackend::Postgres => {
            let mut number = 0;
            let mut numbered = String::with_capacity(text.len() + text.len() / 4);
            for part in text.split_inclusive('?') {
                match part.strip_suffix('?') {
                    Some(before) => {
                        number += 1;
                        numbered.push_str(before);
                        numbered.push_str(&format!("${number}"));
                    }
                    None => numbered.push_str(part),
                }
            }
            numbered
        }
        DbBackend::MySql => text.replace('"', "`"),
        _ => text,
    }
}

/// The type of a value, where PostgreSQL must be told.
pub(super) fn cast(value: &Value) -> &'static str {
    match value {
        Value::Bytes(_) => "::bytea",
        Value::BigInt(_) => "::bigint",
        _ => "::text",
    }
}

/// UTC milliseconds by the database's clock, at this moment.
pub(super) fn now(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
        // Of this moment, whatever the zone of the connection is.
        DbBackend::MySql => "CAST(unix_timestamp(sysdate(3)) * 1000 AS SIGNED)",
        _ => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    }
}

/// The condition that `columns` are one of `rows` pairs of values.
pub(super) fn among(backend: DbBackend, columns: [&str; 2], rows: usize) -> String {
    let [one, other] = columns;
    match backend {
        // Only so it looks in an index.
        DbBackend::MySql => vec![format!("({one} = ? AND {other} = ?)"); rows].join(" OR "),
        _ => format!("({one}, {other}) IN (VALUES {})", vec!["(?, ?)"; rows].join(", ")),
    }
}
