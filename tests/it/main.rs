//! The one test binary: each module holds one layer.

mod contract;
mod harness;
mod house;
mod report;
mod start;
mod watch;
