//! The domain: what a job is, and how it moves from state to state.
//!
//! Pure: no async, no I/O, no clock. It imports nothing of this crate. The
//! engine applies an event to a [`Job`], saves what came of it, and only then
//! carries out what the [`Transition`] says.
//!
//! Invariants, each held by a test in `matrix.rs`:
//! - a final state never changes;
//! - a refused event changes nothing;
//! - a revision never falls, and rises with every visible change;
//! - what concerns another attempt has no effect.

pub mod draft;
pub mod event;
pub mod headers;
pub mod id;
pub mod identity;
pub mod moment;
pub mod record;
pub mod run;
pub mod spec;
pub mod state;
pub mod text;
pub mod transition;
pub mod url;

#[cfg(test)]
mod matrix;

pub use draft::{Checked, Defaults, Draft, Violation};
pub use event::{Event, Signal};
pub use id::{BadJobId, JobId, OfIds};
pub use identity::Credentials;
pub use moment::{Mono, Wall};
pub use record::Record;
pub use spec::{MergeClass, MergePolicy, Payload, Spec};
pub use state::{Detail, Failure, Job, Now, Output, Reason, Revision, Rules, State, StateName};
pub use transition::{Connection, Refused, Transition};
