//! This node among those that share its database.
//!
//! What it examines: the rows of all nodes, several times a second, and who owns what
//! runs. What it does: says that this node lives, takes over what a dead one left
//! running, and keeps the engine's clock with the database's.
//!
//! Who is dead is judged by this node's own clock: one whose beat it saw stand still
//! for a lease, while it looked. So no clock of another host matters, and a node that
//! was paused itself, or had no database, begins its judgement anew. Adopting is
//! comparing and setting, by the epoch of each job: however many try, one does, and
//! what the node that was taken for dead still writes is lost. It finds out at its next
//! beat, and lets go of what is not its own any more.

use super::{Engine, Error, live::Live, lock};
use crate::{
    job::{JobId, Record, State},
    store::{Announced, Beaten, Moment, Node},
};
use futures_util::future::join_all;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Between two looks at the other nodes, at most.
const LOOK: Duration = Duration::from_millis(500);
/// Jobs of a dead node that are adopted together: others take some of the rest.
const ADOPTED: u64 = 64;

/// What this node knows of others, and of itself.
pub(super) struct Nodes {
    lease: Duration,
    /// Since when this node is known as living: mono of its last beat.
    beaten_at: AtomicU64,
    seen: Mutex<Seen>,
    /// A root key that is in use is not known here.
    lacks_root: AtomicBool,
    /// Fires when another node has this one's name.
    replaced: CancellationToken,
}

/// The nodes, as of the last look.
#[derive(Default)]
struct Seen {
    nodes: HashMap<String, Beat>,
    /// When that was, mono.
    looked_at: Option<u64>,
}

struct Beat {
    node: Node,
    /// Since when it stands still, mono.
    since: u64,
    dead: bool,
}

impl Seen {
    /// Takes in what the tables say; the nodes that live no more.
    fn look(&mut self, nodes: Vec<Node>, now: u64, lease: u64) -> Vec<Node> {
        // Who did not look has not seen anything stand still.
        let anew = self.looked_at.replace(now).is_none_or(|at| now.saturating_sub(at) > lease / 2);
        let mut before = std::mem::take(&mut self.nodes);
        for node in nodes {
            let same = before.remove(&node.name).filter(|before| before.node == node);
            let since = same.filter(|_| !anew).map_or(now, |before| before.since);
            let dead = now.saturating_sub(since) >= lease;
            self.nodes.insert(node.name.clone(), Beat { node, since, dead });
        }
        self.nodes.values().filter(|beat| beat.dead).map(|beat| beat.node.clone()).collect()
    }
}

impl Nodes {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            lease,
            beaten_at: AtomicU64::new(0),
            seen: Mutex::default(),
            lacks_root: AtomicBool::new(false),
            replaced: CancellationToken::new(),
        }
    }

    fn lease(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether a root key that is in use is not known here.
    pub(super) fn lacks_root(&self) -> bool {
        self.lacks_root.load(Ordering::Acquire)
    }

    /// Between two beats.
    fn beats(&self) -> Duration {
        self.lease / 5
    }

    fn look_every(&self) -> Duration {
        self.beats().min(LOOK)
    }
}

/// Where a job runs.
pub(super) enum Place {
    /// Here, or nowhere, or that may be another place in a moment.
    Unsettled,
    /// On a node that lives.
    Elsewhere(Node),
    /// On a node that does not.
    Orphaned,
}

impl Engine {
    /// Makes this node known under its name, once that is free.
    ///
    /// # Errors
    /// A node of this name that lives; unavailable.
    pub(super) async fn join_nodes(&self) -> Result<(), Error> {
        let advertise = self.settings.advertise.as_deref();
        let mut dead: Option<Node> = None;
        loop {
            let asked_at = self.clock.mono();
            match self.store.announce(advertise, dead.as_ref()).await? {
                Announced::Done(moment) => {
                    self.set_clock(moment);
                    self.nodes.beaten_at.store(asked_at, Ordering::Release);
                    // The first answer may have been slow; what is due goes by it.
                    for _ in 0..3 {
                        self.set_clock(self.store.moment().await?);
                    }
                    return Ok(());
                }
                Announced::Held(node) => dead = self.outlive(node).await?,
            }
        }
    }

    /// The engine's clock goes by the database's.
    fn set_clock(&self, moment: Moment) {
        self.clock.follow(moment.database, moment.asked_at..=moment.told_at);
    }

    /// Waits until a node of this name has left, then none, or is dead for sure.
    async fn outlive(&self, node: Node) -> Result<Option<Node>, Error> {
        tracing::info!(node = node.name, "waits whether the node that had this name still lives");
        let since = self.clock.mono();
        loop {
            tokio::time::sleep(self.nodes.look_every()).await;
            let now = self.store.nodes().await?;
            match now.into_iter().find(|other| other.name == node.name) {
                None => return Ok(None),
                Some(other) if other != node => return Err(Error::NameTaken(other.name)),
                Some(_) if self.clock.mono().saturating_sub(since) >= self.nodes.lease() => {
                    return Ok(Some(node));
                }
                Some(_) => {}
            }
        }
    }

    /// Returns once another node has this one's name: nothing that is written here is
    /// stored any more.
    pub async fn replaced(&self) {
        self.nodes.replaced.cancelled().await;
    }

    pub(super) async fn run_nodes(self: Arc<Self>) {
        let mut beat_at = self.clock.mono();
        loop {
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(self.nodes.look_every()) => {}
            }
            let now = self.clock.mono();
            let due = Duration::from_millis(now.saturating_sub(beat_at)) >= self.nodes.beats();
            let answered = async {
                if due {
                    self.beat().await?;
                }
                self.look_at_nodes().await
            };
            // A database that does not answer must not keep this node from the next beat.
            let answered = tokio::time::timeout(self.nodes.lease.max(LOOK), answered).await;
            match answered.unwrap_or_else(|_| Err(Error::Unavailable("the database does not answer".into())))
            {
                Ok(()) if due => beat_at = now,
                Ok(()) => {}
                Err(Error::NameTaken(_)) => {
                    tracing::error!("another server of this node.name has taken its place on the database");
                    return self.nodes.replaced.cancel();
                }
                Err(error) => tracing::warn!(%error, "cannot tell the other nodes that it lives"),
            }
        }
    }

    /// Says that this node lives, and sees whether it was taken for dead.
    async fn beat(self: &Arc<Self>) -> Result<(), Error> {
        let asked_at = self.clock.mono();
        let (since, moment) = match self.store.beat().await? {
            Beaten::Alive { since, moment } => (since, moment),
            Beaten::Replaced => match self.store.announce(self.settings.advertise.as_deref(), None).await? {
                Announced::Held(other) => return Err(Error::NameTaken(other.name)),
                Announced::Done(moment) => {
                    tracing::warn!("this node was taken for dead by others, and is known again");
                    (asked_at, moment)
                }
            },
        };
        self.set_clock(moment);
        let before = self.nodes.beaten_at.load(Ordering::Acquire);
        if since.saturating_sub(before) > self.nodes.lease() / 2 {
            self.let_go().await?;
        }
        self.nodes.beaten_at.store(since, Ordering::Release);
        let lacks = self.store.lacks_root().await?;
        let lacked = self.nodes.lacks_root.swap(lacks.is_some(), Ordering::AcqRel);
        match lacks {
            Some(root) if !lacked => tracing::error!(
                root,
                "another node seals with a root key that is not known here: add it to this node's keys and start it again; until then it claims nothing"
            ),
            None if lacked => self.dispatcher.look_again(),
            Some(_) | None => {}
        }
        Ok(())
    }

    /// Lets go of what others have adopted while this node was not heard of.
    async fn let_go(self: &Arc<Self>) -> Result<(), Error> {
        let running = self.live.all();
        let ids: Vec<JobId> = running.iter().map(|live| live.id).collect();
        let rows = self.store.records(&ids, false).await?;
        let rows: HashMap<JobId, Record> = rows.into_iter().map(|row| (row.id, row)).collect();
        for live in running {
            let row = rows.get(&live.id);
            if !row.is_some_and(|row| live.is_still(row)) {
                self.lose(&live, row);
            }
        }
        Ok(())
    }

    /// Looks who lives, and takes over what the dead and those that left had.
    async fn look_at_nodes(self: &Arc<Self>) -> Result<(), Error> {
        // Owners first: who has claimed since is among the nodes.
        let owners = self.store.owners().await?;
        let nodes = self.store.nodes().await?;
        let (dead, gone) = {
            let mut seen = lock(&self.nodes.seen);
            let dead = seen.look(nodes, self.clock.mono(), self.nodes.lease());
            let gone = |owner: &String| *owner != *self.settings.node && !seen.nodes.contains_key(owner);
            self.store.set_others_live(seen.nodes.len() > 1);
            (dead, owners.into_iter().filter(gone).collect::<Vec<_>>())
        };
        if self.is_draining() {
            return Ok(()); // for those who stay
        }
        for node in dead.into_iter().filter(|node| *node.name != *self.settings.node) {
            tracing::warn!(node = node.name, "a node is dead: takes over what it ran");
            self.take_over(&node.name).await?;
            if self.store.forget(&node).await? {
                // What it was about to queue, or to claim, is for others now.
                self.schedule.wake_at(self.clock.wall());
                self.dispatcher.look_again();
            }
        }
        for owner in gone {
            tracing::info!(node = owner, "a node has left: takes over what it ran");
            self.take_over(&owner).await?;
        }
        Ok(())
    }

    /// Adopts what a node left running, beside others who do so too.
    async fn take_over(self: &Arc<Self>, owner: &str) -> Result<(), Error> {
        loop {
            let left = self.store.running_of(owner, Some(ADOPTED)).await?;
            if left.is_empty() {
                return Ok(());
            }
            let mut failed = None;
            let mut adopted = 0;
            for result in join_all(left.into_iter().map(|record| self.adopt(record))).await {
                match result {
                    Ok(won) => adopted += usize::from(won),
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
            if adopted == 0 {
                return Ok(()); // others are at it; the next look sees what is left
            }
        }
    }

    /// Where a job runs that does not run here.
    pub(super) async fn place(&self, id: JobId) -> Result<Place, Error> {
        if !self.store.is_shared() {
            return Ok(Place::Unsettled);
        }
        let Some(owner) = self.store.owner(id).await? else { return Ok(Place::Unsettled) };
        if *owner == *self.settings.node {
            return Ok(Place::Unsettled);
        }
        let known = |seen: &Seen| {
            seen.nodes.get(&owner).map(|beat| match beat.dead {
                true => Place::Orphaned,
                false => Place::Elsewhere(beat.node.clone()),
            })
        };
        if let Some(place) = known(&lock(&self.nodes.seen)) {
            return Ok(place);
        }
        // One that came, or left, since the last look.
        let nodes = self.store.nodes().await?;
        let place = nodes.into_iter().find(|node| node.name == owner);
        Ok(place.map_or(Place::Orphaned, Place::Elsewhere))
    }

    /// What to do about a job that runs, but not here: nothing, if that may have
    /// changed in a moment, or it was adopted, its node being dead.
    ///
    /// # Errors
    /// [`Error::Elsewhere`], or unavailable.
    pub async fn find_owner(self: &Arc<Self>, id: JobId) -> Result<(), Error> {
        match self.place(id).await? {
            Place::Unsettled => Ok(()),
            Place::Elsewhere(Node { name, advertise, .. }) => {
                Err(Error::Elsewhere { job: id, node: name, advertise })
            }
            Place::Orphaned => {
                let found = self.store.records(&[id], true).await?.into_iter().next();
                let Some(record) = found.filter(|record| matches!(record.job.state, State::Running(_)))
                else {
                    return Ok(());
                };
                // Another node may have adopted it before it was read: that one lives.
                if matches!(self.place(id).await?, Place::Orphaned) {
                    self.adopt(record).await?;
                }
                Ok(())
            }
        }
    }

    /// To be asked just before a request is sent: whether the attempt is still this
    /// node's. Known without a look where this node was heard of within half a lease,
    /// and has claimed the job within one: nobody can have adopted it since.
    pub(super) async fn may_send(&self, live: &Live) -> Result<bool, Error> {
        if !self.store.is_shared() {
            return Ok(true);
        }
        let now = self.clock.mono();
        let claimed_at = match &lock(&live.inner).job.state {
            State::Running(run) => run.heard_at,
            _ => return Ok(false),
        };
        let last = self.nodes.beaten_at.load(Ordering::Acquire).min(claimed_at);
        if now.saturating_sub(last) < self.nodes.lease() / 2 {
            return Ok(true);
        }
        let rows = self.store.records(&[live.id], false).await?;
        Ok(rows.first().is_some_and(|row| live.is_still(row)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, beat: i64) -> Node {
        Node { name: name.to_owned(), incarnation: [1; 16], advertise: None, beat, started_at: 0 }
    }

    fn names(dead: Vec<Node>) -> Vec<String> {
        dead.into_iter().map(|node| node.name).collect()
    }

    #[test]
    fn dead_is_whose_beat_was_seen_to_stand_still_for_a_lease() {
        let mut seen = Seen::default();
        let mut now = 1_000_000;
        for beat in 0..50 {
            now += 400;
            assert!(seen.look(vec![node("a", 7), node("b", beat)], now, 20_500).is_empty(), "{now}");
        }
        now += 400;
        assert!(seen.look(vec![node("a", 7), node("b", 50)], now, 20_500).is_empty(), "19,600 + 400 ms");
        now += 500;
        assert_eq!(names(seen.look(vec![node("a", 7), node("b", 51)], now, 20_500)), ["a"]);
        assert!(seen.look(vec![node("a", 8), node("b", 51)], now + 1, 20_500).is_empty(), "it lives again");
    }

    #[test]
    fn who_did_not_look_has_seen_nothing() {
        let mut seen = Seen::default();
        assert!(seen.look(vec![node("a", 1)], 1_000, 10_000).is_empty());
        // This node was paused, and so was its database perhaps.
        assert!(seen.look(vec![node("a", 1)], 600_000, 10_000).is_empty());
        for now in (600_500..609_900).step_by(500) {
            assert!(seen.look(vec![node("a", 1)], now, 10_000).is_empty(), "{now}");
        }
        assert_eq!(names(seen.look(vec![node("a", 1)], 610_000, 10_000)), ["a"]);
    }

    #[test]
    fn another_incarnation_is_another_node() {
        let mut seen = Seen::default();
        let mut now = 0;
        let mut look = |seen: &mut Seen, incarnation| {
            now += 400;
            let node = Node { incarnation: [incarnation; 16], ..node("a", 1) };
            names(seen.look(vec![node], now, 1_000))
        };
        for _ in 0..3 {
            assert!(look(&mut seen, 1).is_empty());
        }
        assert_eq!(look(&mut seen, 1), ["a"]);
        for _ in 0..3 {
            assert!(look(&mut seen, 2).is_empty());
        }
        assert_eq!(look(&mut seen, 2), ["a"]);
    }
}
