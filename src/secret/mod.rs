//! The root key, what is derived from it, and the tokens made with that.
//!
//! Every use has a key of its own: HKDF-SHA256 (RFC 5869) over the root with
//! `backjob/v1/<use>/<target>` as info. The root never leaves this module.
//! Imports nothing of this crate but the domain's ids and
//! the HMAC of `signature.rs`.

mod caller;
mod file;
mod fingerprint;
mod root;
pub mod seal;
mod token;

pub use caller::{BadCallers, Caller, Callers, Role, new_token, token_line};
pub use file::{KeyChange, change_keys, replace};
pub use fingerprint::fingerprint;
pub use root::{Keyring, LoadError, Root, RootId, Use, parse_key};
pub use token::{BadToken, ReportToken, WatchToken};
