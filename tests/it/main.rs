//! The one test binary: each module holds one layer.

mod again;
mod attempts;
mod cli;
mod contract;
mod coverage;
mod docs;
mod ends;
mod explain;
mod harness;
mod house;
mod identity;
mod limits;
mod list;
mod merge;
mod open;
mod promises;
mod report;
mod restart;
mod retention;
mod run;
mod served;
mod start;
mod watch;
