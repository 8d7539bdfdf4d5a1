//! The tables, one entity a file. Times are UTC milliseconds, ids 16 bytes,
//! truth values 0 and 1.

pub(super) mod attempt;
pub(super) mod job;
pub(super) mod job_label;
pub(super) mod job_request;
pub(super) mod job_text;
pub(super) mod root_key;
