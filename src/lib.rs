//! backjob: start any HTTP action of an application in the background, and
//! watch its progress live, over gRPC.

#[cfg(feature = "worker")]
pub mod proto;
#[cfg(feature = "worker")]
pub mod worker;

#[cfg(feature = "server")]
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod job;
#[cfg(feature = "server")]
pub mod tasks;
#[cfg(feature = "server")]
pub mod telemetry;

#[cfg(feature = "server")]
pub mod watch;

#[cfg(feature = "verify")]
mod signature;
#[cfg(feature = "verify")]
pub mod verify;

#[cfg(feature = "server")]
pub mod trigger;

#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod engine;
#[cfg(feature = "server")]
pub mod rpc;
#[cfg(feature = "server")]
pub mod secret;
#[cfg(feature = "server")]
pub mod store;
