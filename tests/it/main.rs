//! The one test binary: each module holds one layer.

mod contract;
mod house;
