//! Where the tables are: in a schema of their own, or with a prefix, among those of
//! others.
//!
//! Entities and statements name tables plainly; their names are put in place when a
//! statement is on its way. Where nothing is set, nothing is touched.

/// What a server's database is told apart by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    /// Schema of the tables, on PostgreSQL alone; none means the first of the
    /// connection's search path.
    pub schema: Option<String>,
    /// What the name of every table begins with; may be empty.
    pub prefix: String,
    /// Whether the address is that of a pooler which gives a connection to one
    /// transaction at a time, such as pgbouncer: on PostgreSQL alone.
    pub pooler: bool,
}

/// Every table.
const TABLES: [&str; 10] = [
    "job",
    "job_request",
    "job_label",
    "job_text",
    "attempt",
    "start_key",
    "node",
    "node_commit",
    "root_key",
    "seaql_migrations",
];

/// After these words stands a table.
const BEFORE: [&str; 6] = ["FROM", "JOIN", "INTO", "UPDATE", "TABLE", "ON"];

impl Tables {
    /// Whether tables stand where a plain name finds them.
    pub(super) fn are_plain(&self) -> bool {
        self.schema.is_none() && self.prefix.is_empty()
    }

    /// Names of all tables.
    pub(super) fn all() -> impl Iterator<Item = &'static str> {
        TABLES.into_iter()
    }

    /// A table as a statement names it that is not placed any more.
    pub(super) fn qualified(&self, table: &str) -> String {
        let schema = self.schema.as_ref().map_or_else(String::new, |schema| format!(r#""{schema}"."#));
        format!(r#"{schema}"{}{table}""#, self.prefix)
    }

    /// The name of a table, without quotes.
    pub(super) fn name(&self, table: &str) -> String {
        format!("{}{table}", self.prefix)
    }

    /// `sql` with the names of the tables put in place. Names stand between quotes,
    /// `"` or `` ` ``; a name is that of a table where a dot follows it or the word
    /// before says so, for some columns are named like tables.
    pub(super) fn place(&self, sql: &str) -> String {
        let mut placed = String::with_capacity(sql.len() + 64);
        let mut rest = sql;
        while let Some(open) = rest.find(['"', '`', '\'']) {
            let quote = &rest[open..=open];
            let Some(length) = rest[open + 1..].find(quote) else { break };
            let (before, name) = (&rest[..open], &rest[open + 1..open + 1 + length]);
            let after = &rest[open + length + 2..];
            placed.push_str(before);
            if quote != "'" && TABLES.contains(&name) && is_table(&placed, after) {
                if let Some(schema) = &self.schema {
                    placed.push_str(&format!("{quote}{schema}{quote}."));
                }
                placed.push_str(&format!("{quote}{}{name}{quote}", self.prefix));
            } else {
                placed.push_str(&rest[open..open + length + 2]);
            }
            rest = after;
        }
        placed.push_str(rest);
        placed
    }
}

fn is_table(before: &str, after: &str) -> bool {
    let before = before.trim_end();
    let begins = before.rfind(|c: char| !c.is_ascii_alphabetic()).map_or(0, |at| at + 1);
    // After MariaDB's words for a conflict stands a column.
    let said = BEFORE.contains(&&before[begins..]) && !before.ends_with("KEY UPDATE");
    !before.ends_with('.') && (after.starts_with('.') || said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_placed_and_columns_are_not() {
        let schema = Tables { schema: Some("s".into()), ..Tables::default() };
        let prefix = Tables { prefix: "bj_".into(), ..Tables::default() };
        for (tables, sql, expected) in [
            (&prefix, r#"SELECT "job"."id" FROM "job""#, r#"SELECT "bj_job"."id" FROM "bj_job""#),
            (
                &prefix,
                r#"SELECT "attempt"."attempt", "attempt"."node" FROM "attempt" LEFT JOIN "job" ON "job"."attempt" = 1"#,
                r#"SELECT "bj_attempt"."attempt", "bj_attempt"."node" FROM "bj_attempt" LEFT JOIN "bj_job" ON "bj_job"."attempt" = 1"#,
            ),
            (
                &prefix,
                "INSERT INTO `attempt` (`job_id`, `attempt`, `node`) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE `node` = VALUES(`node`), `attempt` = VALUES(`attempt`)",
                "INSERT INTO `bj_attempt` (`job_id`, `attempt`, `node`) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE `node` = VALUES(`node`), `attempt` = VALUES(`attempt`)",
            ),
            (
                &prefix,
                r#"UPDATE "job" SET "attempt" = 'FROM "job"' WHERE "node" = 1"#,
                r#"UPDATE "bj_job" SET "attempt" = 'FROM "job"' WHERE "node" = 1"#,
            ),
            (
                &schema,
                r#"SELECT "job"."id" FROM "job" WHERE "further"."job_id" = "job"."id""#,
                r#"SELECT "s"."job"."id" FROM "s"."job" WHERE "further"."job_id" = "s"."job"."id""#,
            ),
        ] {
            assert_eq!(tables.place(sql), expected);
        }
    }
}
