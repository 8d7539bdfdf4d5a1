//! backjob: start any HTTP action of an application in the background, and
//! watch its progress live, over gRPC.
//!
//! Applications take two rooms of this crate: [`verify`] checks that a request is
//! a trigger of backjob, [`worker`] reports how the action gets on. All else is
//! the server (feature `server`).
//!
//! # How a job flows through the server
//!
//! ```text
//!  rpc ──▶ engine ──▶ store ──▶ database      a Start is answered when it is durable
//!             │  ╲
//!             │   ╲──▶ watch ──▶ rpc           every change, to all who follow it
//!             ▼
//!          trigger ──▶ the application ──▶ rpc (Report) ──▶ engine
//! ```
//!
//! - [`job`] is the domain: drafts that were checked, the record of a job, and the
//!   pure state machine. It knows neither time, disk nor network: an event and the
//!   time go in, the new record and what has to be done come out.
//! - [`secret`] holds the keys, [`store`] the tables, [`trigger`] the HTTP client,
//!   [`watch`] the fan-out. None of them knows another.
//! - [`engine`] is the one place where they meet: it applies each event under the
//!   lock of its job, hands the outcome to the store, and publishes it.
//! - [`rpc`] translates between the contract and the engine; [`app`] builds all
//!   from a [`config`], and [`cli`] is the command line.
//!
//! # What always holds
//!
//! 1. Nothing that was acknowledged as durable is lost, whenever the process dies.
//! 2. A job that has ended never changes.
//! 3. The revision of a job rises with each visible change and is never given
//!    twice, crashes included: blocks of revisions are reserved on disk before
//!    they are shown.
//! 4. A claim is durable before its request is sent; a report is applied only to
//!    the attempt that its token names.
//! 5. One task writes to the database; statements of many callers share a commit.

#[cfg(feature = "worker")]
pub mod proto;
#[cfg(feature = "worker")]
pub mod worker;

#[cfg(feature = "server")]
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod descriptors;
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
