//! Watchers: they come and go, come back with what they have seen, and read
//! slowly.

use super::world::{World, lock};
use crate::{
    engine::{Error, Filter},
    job::{JobId, Record, Revision, StateName},
    store::model,
    watch::{Closed, Item, Watcher},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Nothing comes for so long, and something should have.
const QUIET: Duration = Duration::from_secs(5);

/// What one watcher has seen, over all of its streams.
#[derive(Default)]
struct Seen {
    /// The last revision of each job.
    last: BTreeMap<JobId, Revision>,
    /// Jobs that need not be watched any more.
    over: BTreeSet<JobId>,
}

impl Seen {
    /// `on_stream` is what this stream has shown.
    fn take(&mut self, world: &World, record: &Record, on_stream: &mut BTreeMap<JobId, Revision>) {
        let (id, revision) = (record.id, record.job.revision);
        world.saw("a watcher", record, true, None);
        if let Some(last) = on_stream.insert(id, revision).filter(|last| *last >= revision) {
            world.fault(format!("{id}: {:x} after {:x} on one stream", revision.get(), last.get()));
        }
        if let Some(last) = self.last.insert(id, revision).filter(|last| *last > revision) {
            world.fault(format!("{id}: {:x} after {:x} over a break", revision.get(), last.get()));
        }
        if record.job.state_name().is_final() {
            self.over.insert(id);
        }
    }

    fn deleted(&mut self, world: &World, id: JobId) {
        if !world.is_gone(id) {
            world.fault(format!("{id}: a watcher was told that it was erased"));
        }
        self.over.insert(id);
    }
}

/// Opens a watch. None if it has to be tried again.
async fn open(
    world: &Arc<World>,
    ids: &[JobId],
    filter: Option<Filter>,
    after: Option<Revision>,
) -> Result<Option<Watcher<Record>>, Error> {
    let watcher = world.call(|engine| async move { engine.watch(ids, filter, after, true).await }).await;
    match watcher {
        Some(Ok(watcher)) => return Ok(Some(watcher)),
        Some(Err(Error::Unavailable(_) | Error::Draining)) | None => {}
        Some(Err(error)) => return Err(error),
    }
    world.sleep(200).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    Ok(None)
}

/// Follows jobs to their ends, whatever breaks off.
pub(super) async fn by_ids(world: Arc<World>, mut ids: Vec<JobId>) {
    let mut seen = Seen::default();
    ids.sort();
    ids.dedup();
    follow(&world, ids, &mut seen).await;
}

async fn follow(world: &Arc<World>, ids: Vec<JobId>, seen: &mut Seen) {
    loop {
        let after = match ids.as_slice() {
            [only] if world.below(3) > 0 => seen.last.get(only).copied(),
            _ => None,
        };
        let watcher = match open(world, &ids, None, after).await {
            Ok(Some(watcher)) => watcher,
            Ok(None) => continue,
            Err(Error::NotFound(id)) if world.is_gone(id) => return,
            Err(error) => return world.fault(format!("a watch of {ids:?} was answered {error}")),
        };
        let Some(life) = world.present() else { continue };
        let mut on_stream = BTreeMap::new();
        let slow = world.below(4) == 0;
        loop {
            let patience = if world.is_calm() { 3_600_000 } else { 1 + world.below(15_000) };
            let item = tokio::select! {
                biased;
                () = life.over.cancelled() => break,
                item = watcher.next() => item,
                () = tokio::time::sleep(Duration::from_millis(patience)) => {
                    if patience < 3_600_000 { break } // leaves, and comes back
                    return world.fault(format!("a watch of {ids:?} was silent for an hour"));
                }
            };
            match item {
                Ok(Item::Changed(frame, _)) => seen.take(world, &frame.subject, &mut on_stream),
                Ok(Item::Deleted(id)) => seen.deleted(world, id),
                Ok(Item::Missing(missing)) => missing.into_iter().for_each(|id| seen.deleted(world, id)),
                Ok(Item::Synced) => {}
                Err(Closed::ShuttingDown) => break,
                Err(Closed::Done) => {
                    for id in ids.iter().filter(|id| !seen.over.contains(id)) {
                        world.fault(format!("{id}: its watch is done, and nobody said that it ended"));
                    }
                    return;
                }
                Err(Closed::TooManyJobs) => return world.fault("too many jobs"),
            }
            if slow {
                world.sleep(2_000).await;
            }
        }
        drop(watcher);
        world.sleep(300).await;
    }
}

/// Follows all that is unfinished; what it held when it broke off is followed by
/// id, as clients should.
pub(super) async fn by_filter(world: Arc<World>) {
    let mut seen = Seen::default();
    while !filtered(&world, &mut seen).await {}
    let held: Vec<JobId> = seen.last.keys().filter(|id| !seen.over.contains(id)).copied().collect();
    if !held.is_empty() {
        follow(&world, held, &mut seen).await;
    }
}

/// One stream; true when it has seen enough.
async fn filtered(world: &Arc<World>, seen: &mut Seen) -> bool {
    let states = vec![StateName::Scheduled, StateName::Queued, StateName::Running];
    let filter = Filter { states, ..Filter::default() };
    let watcher = match open(world, &[], Some(filter), None).await {
        Ok(Some(watcher)) => watcher,
        Ok(None) => return false,
        Err(error) => {
            world.fault(format!("a watch by filter was answered {error}"));
            return true;
        }
    };
    let Some(life) = world.present() else { return false };
    let mut on_stream = BTreeMap::new();
    let (slow, leaves) = (world.below(5) == 0, world.below(3) == 0);
    let mut silent = world.now();
    loop {
        let item = tokio::select! {
            biased;
            () = life.over.cancelled() => return !world.is_calm() && leaves,
            item = watcher.next() => item,
            () = tokio::time::sleep(QUIET) => {
                if world.is_calm() {
                    // Nothing of before is in the way any more.
                    if lock(&world.ledger).trouble_at < silent {
                        missed(world, seen, &on_stream);
                    }
                    silent = world.now();
                    if unfinished(world).is_empty() {
                        return true;
                    }
                } else if leaves {
                    return true;
                }
                continue;
            }
        };
        match item {
            Ok(Item::Changed(frame, _)) => seen.take(world, &frame.subject, &mut on_stream),
            Ok(Item::Deleted(id)) => seen.deleted(world, id),
            Ok(Item::Missing(_) | Item::Synced) => {}
            Err(Closed::ShuttingDown) => return leaves,
            Err(closed) => {
                world.fault(format!("a watch by filter ended: {closed:?}"));
                return true;
            }
        }
        if slow {
            world.sleep(1_000).await;
        }
        silent = world.now();
    }
}

fn unfinished(world: &World) -> Vec<JobId> {
    let tables = model::lock(&world.disk);
    let rows = tables.jobs.iter().filter(|(_, job)| job.state < 4);
    rows.map(|(id, _)| JobId::from_bytes(id.as_slice().try_into().expect("an id"))).collect()
}

/// Nothing came for a while: then all that is there was said.
fn missed(world: &World, seen: &Seen, on_stream: &BTreeMap<JobId, Revision>) {
    let open = unfinished(world);
    for id in open.iter().filter(|id| !on_stream.contains_key(id)) {
        world.fault(format!("{id}: it matches, and a watch by filter does not have it"));
    }
    for id in on_stream.keys().filter(|id| !open.contains(id) && !seen.over.contains(id)) {
        world.fault(format!("{id}: it ended, and a watch by filter does not know"));
    }
}
