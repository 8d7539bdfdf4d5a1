//! On a database that other servers can reach: this one is the only one that uses it.
//!
//! A server announces itself in the tables and says every two seconds that it lives.
//! One of another name that lives keeps a new one out; one of the same name is taken
//! to be this one's predecessor, whose place it takes at once: a server that was
//! killed can be started again without a wait, and one that was only paused finds
//! that it can store nothing any more, and ends.

use super::{Error, Stop};
use crate::store::{Announced, Beaten, Node, Store};
use std::time::Duration;

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(2);
/// A server of another name that gives none for so long is dead.
const LEASE: Duration = Duration::from_secs(10);

/// Takes the place, or says who has it.
///
/// # Errors
/// [`Error::Occupied`], or [`Error::Seat`] where the database fails.
pub(super) async fn take(store: &Store, name: &str) -> Result<(), Error> {
    if !store.is_shared() {
        return Ok(()); // a lock on the file sees to it
    }
    let others = others(store, name).await?;
    if !others.is_empty() {
        tracing::info!(servers = ?names(&others), "waits whether they still live");
        tokio::time::sleep(LEASE).await;
        for other in &others {
            // Not forgotten if it has beaten meanwhile, or is another one now.
            store.forget(other).await.map_err(Error::Seat)?;
        }
    }
    let mut before = None;
    // One of this name may just be leaving.
    for _ in 0..3 {
        match store.announce(None, before.as_ref()).await.map_err(Error::Seat)? {
            Announced::Held(predecessor) => before = Some(predecessor),
            Announced::Done(_) => {
                // Of two that begin at once neither saw the other before.
                let others = self::others(store, name).await?;
                if others.is_empty() {
                    return Ok(());
                }
                store.leave().await.map_err(Error::Seat)?;
                return Err(Error::Occupied(names(&others)));
            }
        }
    }
    Err(Error::Occupied(name.to_owned()))
}

async fn others(store: &Store, name: &str) -> Result<Vec<Node>, Error> {
    let mut nodes = store.nodes().await.map_err(Error::Seat)?;
    nodes.retain(|node| node.name != name);
    Ok(nodes)
}

fn names(nodes: &[Node]) -> String {
    nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Says that this server lives until it ends; stops it if its place was taken.
pub(super) async fn keep(store: Store, ends: tokio_util::sync::CancellationToken, stop: Stop) {
    loop {
        tokio::select! {
            () = ends.cancelled() => {
                if let Err(error) = store.leave().await {
                    tracing::warn!(%error, "the next server of another name has to wait");
                }
                return;
            }
            () = tokio::time::sleep(BEAT) => {}
        }
        match store.beat().await {
            Ok(Beaten::Alive { .. }) => {}
            Ok(Beaten::Replaced) => {
                tracing::error!("another server of this name has taken its place on the database: ends");
                stop.drain.cancel();
                stop.hurry.cancel();
                return;
            }
            Err(error) => tracing::warn!(%error, "cannot say that it lives"),
        }
    }
}
