//! Connections that wait for the next call, of one target.
//!
//! Applications close idle connections early, so one is used again only within
//! `pool_idle`. There are as many as calls were under way at once, and no more: a
//! target's `max_in_flight` bounds both. What nobody takes is closed by a task that runs while there is
//! something to close: it examines the idle connections once per `pool_idle`,
//! drops the expired ones, and ends when none is left; so they live for twice
//! that span at most.

use super::connection::Connection;
use crate::{clock::Clock, tasks::Tasks};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

/// The idle connections of one target.
pub(super) struct Pool {
    // Held for a few moves only, never while a connection is polled or dropped.
    state: Mutex<State>,
    idle_for: Duration,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
}

#[derive(Default)]
struct State {
    /// With the time each became idle, mono; the newest at the back.
    idle: VecDeque<(u64, Connection)>,
    /// Whether the task that closes expired ones runs.
    swept: bool,
}

impl Pool {
    /// An empty pool.
    pub(super) fn new(idle_for: Duration, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self { state: Mutex::default(), idle_for, clock, tasks }
    }

    /// The connection that became idle last and is still good.
    pub(super) async fn take(&self) -> Option<Connection> {
        loop {
            let (expired, taken) = {
                let mut state = self.lock();
                (self.expired(&mut state), state.idle.pop_back())
            };
            drop(expired);
            let (_, mut connection) = taken?;
            if connection.is_usable().await {
                return Some(connection);
            }
        }
    }

    /// Takes back a connection whose response was wholly read.
    pub(super) async fn put(self: &Arc<Self>, mut connection: Connection) {
        if self.idle_for.is_zero() || self.tasks.stop().is_cancelled() || !connection.is_usable().await {
            return;
        }
        let mut state = self.lock();
        state.idle.push_back((self.clock.mono(), connection));
        let begin = !std::mem::replace(&mut state.swept, true);
        drop(state);
        if begin {
            self.tasks.spawn("trigger pool", sweep(Arc::downgrade(self), self.idle_for, self.tasks.clone()));
        }
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().idle.len()
    }

    fn expired(&self, state: &mut State) -> Vec<(u64, Connection)> {
        let now = self.clock.mono();
        let idle_for = u64::try_from(self.idle_for.as_millis()).unwrap_or(u64::MAX);
        let is_old = |(since, _): &(u64, Connection)| now.saturating_sub(*since) >= idle_for;
        let old = state.idle.iter().take_while(|idle| is_old(idle)).count();
        state.idle.drain(..old).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes what expired, until nothing is left or the pool is gone.
async fn sweep(pool: Weak<Pool>, every: Duration, tasks: Tasks) {
    loop {
        let stopped = tokio::select! {
            () = tokio::time::sleep(every) => false,
            () = tasks.stop().cancelled() => true,
        };
        let Some(pool) = pool.upgrade() else { return };
        let mut state = pool.lock();
        let closed = if stopped { state.idle.drain(..).collect() } else { pool.expired(&mut state) };
        let ends = state.idle.is_empty();
        if ends {
            state.swept = false;
        }
        drop(state);
        drop(closed);
        if ends {
            return;
        }
    }
}
