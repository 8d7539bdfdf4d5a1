//! Who watches what.
//!
//! The hub hands each change to the watchers of its job. It knows nothing of
//! wires, stores or jobs: what is watched is a [`Subject`]. It imports only the
//! domain's ids and revisions.
//!
//! Invariants:
//! - a publisher never waits for a watcher: a change replaces the one that the
//!   watcher has not taken yet, which is counted, so memory is bounded by the
//!   jobs watched;
//! - revisions of one job strictly rise for each watcher;
//! - the final change of a job reaches every watcher of it;
//! - what was said before `synced` is taken before it.

mod frame;
mod hub;
mod inbox;

pub use frame::{Frame, Subject, TextMode};
pub use hub::{Hub, Watcher};
pub use inbox::{Closed, Item, MAX_JOBS};
