//! What befalls the database of one process: it is slow, it fails, and the
//! process dies at every boundary of a transaction.

use super::world::{Life, World, lock};
use crate::store::{
    Error,
    model::{Fate, JobModel, Tables},
};
use futures_util::future::BoxFuture;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Stands in the message of what is refused by chance.
pub(super) const REFUSED: &str = "by chance";

/// Where a process may die.
pub(super) const BOUNDARIES: [&str; 4] = [BEFORE_COMMIT, AFTER_COMMIT, BEFORE_EFFECTS, BEFORE_READ];
const BEFORE_COMMIT: &str = "before a commit";
const AFTER_COMMIT: &str = "after a commit, before anybody is told";
const BEFORE_EFFECTS: &str = "between a commit and its effects";
const BEFORE_READ: &str = "before a read";

pub(super) struct Fated {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
}

impl Fated {
    /// Whether the database fails now.
    fn fails(&self) -> bool {
        let Self { world, life } = self;
        let now = world.now();
        if world.is_calm() {
            return false;
        }
        let failing = now < *lock(&life.failing_until);
        if !failing && world.rarely(world.plan.outages) {
            let until = now + world.chance(|random| random.between(100, 5_000));
            world.note(|| format!("the database fails until {until}"));
            *lock(&life.failing_until) = until;
        }
        let fails = now < *lock(&life.failing_until) || world.rarely(world.plan.failures);
        if fails {
            lock(&world.ledger).trouble(now);
        }
        fails
    }

    /// The process dies a few turns of its tasks later: some of what a commit set
    /// off has begun then, and some has not.
    fn may_die_soon(&self) {
        let Self { world, life } = self;
        if world.is_calm() || !world.rarely(world.plan.deaths) {
            return;
        }
        let turns = world.below(12);
        let (world, life) = (Arc::clone(world), Arc::clone(life));
        world.clone().tasks.spawn("death", async move {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            world.crash(&life, BEFORE_EFFECTS);
        });
    }
}

fn disk_full() -> Error {
    Error::Unavailable("database or disk is full".into())
}

impl Fate for Fated {
    fn commits(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async {
            let Self { world, life } = self;
            let slow = world.rarely(world.plan.slowness) && !world.is_calm();
            if slow {
                lock(&world.ledger).trouble(world.now());
            }
            world.sleep(if slow { 400 } else { 4 }).await;
            world.may_die(life, world.plan.deaths, BEFORE_COMMIT).await;
            if self.fails() {
                world.note(|| "a transaction fails".into());
                life.ails.store(true, Ordering::Relaxed);
                return Err(disk_full());
            }
            if !world.is_calm() && world.rarely(world.plan.refusals) {
                world.note(|| "a transaction is refused".into());
                lock(&world.ledger).trouble(world.now());
                return Err(Error::Refused(REFUSED.into()));
            }
            if life.ails.swap(false, Ordering::Relaxed) {
                lock(&world.ledger).trouble(world.now());
            }
            Ok(())
        })
    }

    fn committed(&self, tables: &Tables, touched: &[(Vec<u8>, Option<JobModel>)]) {
        super::audit::committed(&self.world, &self.life, tables, touched);
    }

    fn tells(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let Self { world, life } = self;
            world.may_die(life, world.plan.deaths, AFTER_COMMIT).await;
            if world.below(3) == 0 {
                world.sleep(3).await;
            }
            // What follows is not interrupted: each is told in this turn.
            lock(&world.ledger).told(world.now());
            self.may_die_soon();
        })
    }

    fn reads(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async {
            let Self { world, life } = self;
            if world.below(2) == 0 {
                world.sleep(3).await;
            }
            world.may_die(life, world.plan.deaths / 8, BEFORE_READ).await;
            if self.fails() { Err(disk_full()) } else { Ok(()) }
        })
    }

    fn has_read(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if self.world.below(2) == 0 {
                tokio::time::sleep(Duration::from_millis(self.world.below(3))).await;
            }
        })
    }
}
