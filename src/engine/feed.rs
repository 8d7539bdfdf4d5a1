//! Watching from any node: what other nodes change, for those who watch here.
//!
//! ```text
//!   changed_since, every 250 ms ─┐                         ┌─▶ not watched, known, or
//!   notifications, where any ────┼─▶ ids and revisions ────┤   run here: passed over
//!   revisions of what is held,   │                         └─▶ records ──▶ hub
//!   every 5 s ───────────────────┘
//! ```
//!
//! What it examines: rows that changed of late, while somebody watches and another node
//! lives; else nothing. What it does: it reads the jobs of which a watcher here may lack
//! a state, and publishes them. It may do so twice: the hub drops what a watcher knows.
//!
//! - Polling is the truth. Transactions become visible out of order, so a poll begins
//!   [`OVERLAP`] before the last change that was seen, and what was published of that
//!   stretch is known by its revision. A row says when it was *stored*, so that what
//!   had to wait for the database is not overlooked.
//! - Notifications come sooner, and may be lost; a connection that was lost means a poll
//!   at once.
//! - Every 5 s the revision of each job that a watcher holds is compared with what it
//!   was told, so that whatever went wrong, no end is missed; and what is gone is told.
//! - A job that runs here publishes itself: its row may be older than what is shown, or
//!   ahead by what is not shown yet.
//! - A watcher is installed before it reads. What changes after that read is younger
//!   than the stretch of the first poll that sees the watcher.

use super::{Engine, Error, lock};
use crate::{
    job::{JobId, Revision},
    store::{self, Change, Heard, Listener, Moment},
    watch::Frame,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Notify;

/// Between two polls.
const POLL: Duration = Duration::from_millis(250);
/// After a poll that failed, and between two tries to listen.
const AGAIN: Duration = Duration::from_secs(1);
/// From one look at all that is held to the next, milliseconds.
const HELD: u64 = 5_000;
/// How much later than others a transaction may become visible, milliseconds.
const OVERLAP: i64 = 10_000;
/// How long changes are looked for when no other node lives any more, milliseconds:
/// what the last one stored at its end may be seen late, too.
const AFTER: u64 = 20_000;
/// Changes in one read.
const PAGE: u64 = 1_000;
/// Revisions in one read.
const IDS: usize = 500;
/// Jobs in one read, with texts and results of 128 KiB at most each.
const ROWS: usize = 100;
/// Published jobs that are known, at most; any other is read again, and dropped by the
/// hub.
const KNOWN: usize = 100_000;
/// Notified jobs that were not looked at yet, at most; beyond that a poll finds them.
const NOTIFIED: usize = 10_000;
/// How long notifications are listened to when nobody watches any more: many watch
/// for moments, and a connection is dear.
const LINGER: Duration = Duration::from_secs(30);

/// What other nodes notified of.
#[derive(Default)]
pub(super) struct Feed {
    notified: Mutex<Notified>,
    wake: Notify,
}

#[derive(Default)]
struct Notified {
    changes: HashMap<JobId, Revision>,
    /// There were more.
    gap: bool,
}

impl Feed {
    fn hear(&self, heard: Heard) {
        let mut notified = lock(&self.notified);
        match heard {
            Heard::Gap => notified.gap = true,
            Heard::Changes(changes) => {
                for (id, revision) in changes {
                    if notified.changes.len() < NOTIFIED || notified.changes.contains_key(&id) {
                        let newest = notified.changes.entry(id).or_default();
                        *newest = (*newest).max(revision);
                    } else {
                        notified.gap = true;
                    }
                }
            }
        }
        drop(notified);
        self.wake.notify_one();
    }

    fn take(&self) -> Notified {
        std::mem::take(&mut lock(&self.notified))
    }
}

/// How far changes were followed. Pure.
struct Followed {
    /// Since when, mono.
    began: u64,
    /// The database's clock.
    moment: Option<Moment>,
    /// When the last change was stored that was seen, by that clock.
    last: i64,
    /// What was published, and when it was stored.
    known: HashMap<JobId, (Revision, i64)>,
}

impl Followed {
    fn new(mono: u64) -> Self {
        Self { began: mono, moment: None, last: 0, known: HashMap::new() }
    }

    /// Whether it is time to look at the clock, and at all that is held.
    fn is_due(&self, mono: u64) -> bool {
        self.moment.is_none_or(|moment| mono.saturating_sub(moment.told_at) >= HELD)
    }

    fn clock(&mut self, moment: Moment) {
        if self.moment.replace(moment).is_none() {
            // The database may have been away since then.
            self.last = moment.database.saturating_sub_unsigned(moment.told_at.saturating_sub(self.began));
        }
    }

    fn now(&self, mono: u64) -> i64 {
        let since =
            |moment: Moment| moment.database.saturating_add_unsigned(mono.saturating_sub(moment.told_at));
        self.moment.map_or(i64::MAX, since)
    }

    /// Where a poll begins. A change that claims to be of the future moves nothing on.
    fn since(&self, mono: u64) -> i64 {
        self.last.min(self.now(mono)) - OVERLAP
    }

    fn is_news(&self, id: JobId, revision: Revision) -> bool {
        self.known.get(&id).is_none_or(|(known, _)| *known < revision)
    }

    fn published(&mut self, id: JobId, revision: Revision, at: i64) {
        if self.known.len() < KNOWN || self.known.contains_key(&id) {
            self.known.insert(id, (revision, at));
        }
    }

    /// Forgets what no poll comes upon any more.
    fn forget_before(&mut self, since: i64) {
        self.known.retain(|_, (_, at)| *at >= since);
    }
}

impl Engine {
    pub(super) async fn run_feed(self: Arc<Self>) {
        tokio::select! {
            biased;
            () = self.tasks.stop().cancelled() => {}
            () = self.follow() => {}
        }
    }

    pub(super) async fn run_feed_ears(self: Arc<Self>) {
        tokio::select! {
            biased;
            () = self.tasks.stop().cancelled() => {}
            () = self.listen() => {}
        }
    }

    /// Hears notifications while somebody watches; returns where there are none.
    async fn listen(&self) {
        loop {
            self.hub.somebody().await;
            match self.store.listen().await {
                Ok(Some(listener)) => self.listen_to(listener).await,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "notifications are not heard now");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn listen_to(&self, mut listener: Listener) {
        self.feed.hear(Heard::Gap); // nobody listened before
        let mut looks = tokio::time::interval(LINGER);
        let changed = self.store_changed.notified();
        tokio::pin!(changed);
        loop {
            tokio::select! {
                // It was away: what is silent since then would say nothing for long.
                () = &mut changed => return,
                heard = listener.next() => match heard {
                    Ok(heard) if self.hub.watchers() > 0 => self.feed.hear(heard),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, "notifications are not heard now");
                        tokio::time::sleep(AGAIN).await;
                    }
                },
                _ = looks.tick() => if self.hub.watchers() == 0 {
                    return;
                },
            }
        }
    }

    async fn follow(&self) {
        loop {
            self.hub.somebody().await;
            if !self.store.others_live() {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            // From before the first watcher came, by as much as transactions may be late.
            let mut followed = Followed::new(self.clock.mono());
            let mut others_lived_at = followed.began;
            while self.hub.watchers() > 0 {
                let now = self.clock.mono();
                if self.store.others_live() {
                    others_lived_at = now;
                } else if now.saturating_sub(others_lived_at) > AFTER {
                    break;
                }
                let rest = match self.poll(&mut followed).await {
                    Ok(()) => POLL,
                    Err(error) => {
                        tracing::debug!(%error, "changes of other nodes are not seen now");
                        AGAIN
                    }
                };
                self.rest(rest, &mut followed).await;
            }
        }
    }

    /// Between two polls: looks at what is notified.
    async fn rest(&self, rest: Duration, followed: &mut Followed) {
        let rest = tokio::time::sleep(rest);
        tokio::pin!(rest);
        loop {
            tokio::select! {
                biased;
                () = &mut rest => return,
                () = self.feed.wake.notified() => {}
            }
            let Notified { changes, gap } = self.feed.take();
            let at = followed.now(self.clock.mono());
            let changes = changes.into_iter().map(|(id, revision)| Change { id, revision, changed_at: at });
            if self.catch_up(changes, followed).await.is_err() || gap {
                return; // the next poll sees it
            }
        }
    }

    async fn poll(&self, followed: &mut Followed) -> Result<(), Error> {
        let (first, due) = (followed.moment.is_none(), followed.is_due(self.clock.mono()));
        if due {
            followed.clock(self.store.moment().await?);
        }
        let (since, mut after) = (followed.since(self.clock.mono()), None);
        loop {
            let page = self.store.changed_since(since, after, PAGE).await?;
            let full = page.len() as u64 == PAGE;
            let last = page.last().map(|last| (last.changed_at, last.id));
            self.catch_up(page.into_iter(), followed).await?;
            if let Some((at, _)) = last {
                followed.last = followed.last.max(at);
            }
            if !full {
                break;
            }
            after = last;
        }
        if due && !first {
            followed.forget_before(since);
            self.look_at_held().await?;
        }
        Ok(())
    }

    /// Publishes those of the changes that somebody may lack.
    async fn catch_up(
        &self,
        changes: impl Iterator<Item = Change>,
        followed: &mut Followed,
    ) -> Result<(), Error> {
        let lacking = |change: &Change| {
            let Change { id, revision, .. } = *change;
            followed.is_news(id, revision)
                && self.live.get(id).is_none()
                // What has ended and is watched no more may be told as erased.
                && (self.hub.is_watched(id) || (revision == Revision::LAST && self.hub.is_held(id)))
        };
        let lacking: Vec<Change> = changes.filter(lacking).collect();
        for some in lacking.chunks(ROWS) {
            let ids: Vec<JobId> = some.iter().map(|change| change.id).collect();
            let there: HashMap<JobId, Revision> = self.show(&ids).await?;
            for Change { id, changed_at, .. } in some {
                if let Some(revision) = there.get(id) {
                    followed.published(*id, *revision, *changed_at);
                }
            }
        }
        Ok(())
    }

    /// Compares what watchers were told with the tables.
    async fn look_at_held(&self) -> Result<(), Error> {
        let held = self.hub.held();
        let ids: Vec<JobId> = held.keys().copied().filter(|id| self.live.get(*id).is_none()).collect();
        for ids in ids.chunks(IDS) {
            let found = self.store.revisions(ids).await?;
            let found: HashMap<JobId, Revision> =
                found.into_iter().map(|change| (change.id, change.revision)).collect();
            let lacks = |id: &&JobId| match (found.get(*id), held.get(*id).copied().flatten()) {
                (Some(revision), told) => told.is_none_or(|told| told < *revision),
                (None, _) => true,
            };
            let lacking: Vec<JobId> = ids.iter().filter(lacks).copied().collect();
            for ids in lacking.chunks(ROWS) {
                self.show(ids).await?;
            }
        }
        Ok(())
    }

    /// Reads these jobs and publishes them; what is not there is told as gone. How far
    /// those are that are there.
    async fn show(&self, ids: &[JobId]) -> Result<HashMap<JobId, Revision>, Error> {
        let mut there = HashMap::with_capacity(ids.len());
        let records = match self.store.records(ids, true).await {
            Err(store::Error::Corrupt(_)) => {
                let mut records = Vec::with_capacity(ids.len());
                for id in ids {
                    match self.store.records(&[*id], true).await {
                        Err(error @ store::Error::Corrupt(_)) => {
                            tracing::warn!(job = %id, %error, "a watched job cannot be read");
                            there.insert(*id, Revision::LAST); // whatever comes of it cannot be told
                        }
                        found => records.extend(found?),
                    }
                }
                records
            }
            records => records?,
        };
        for record in records {
            there.insert(record.id, record.job.revision);
            if self.live.get(record.id).is_none() {
                self.hub.publish(&Arc::new(Frame::new(record)));
            }
        }
        for id in ids.iter().filter(|id| !there.contains_key(*id)) {
            self.hub.gone(*id);
        }
        Ok(there)
    }
}
