//! The one test binary: each module holds one layer.

mod contract;
mod ends;
mod harness;
mod house;
mod list;
mod open;
mod report;
mod restart;
mod start;
mod watch;
