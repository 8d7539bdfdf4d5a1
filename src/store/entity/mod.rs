//! The tables, one entity a file, as `migrations/` makes them; a test compares
//! the two column by column.
//!
//! Ids and hashes are bytes, times UTC milliseconds, flags 0 or 1, numbers
//! without a sign are stored bit by bit in signed ones.

pub(super) mod attempt;
pub(super) mod job;
pub(super) mod job_label;
pub(super) mod job_request;
pub(super) mod job_text;
pub(super) mod node;
pub(super) mod node_commit;
pub(super) mod root_key;
pub(super) mod start_key;
