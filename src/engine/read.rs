//! What callers see: one job, many jobs, and a watch over them.

use super::{Engine, Error, Shown};
use crate::{
    job::{JobId, Record, Revision, State, StateName},
    store::{AttemptRow, List},
    watch::{Closed, Frame, MAX_JOBS, Subject, Watcher},
};
use std::{collections::BTreeMap, sync::Arc};

/// Which jobs; all that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these; empty is every state.
    pub states: Vec<StateName>,
    /// All of these.
    pub labels: BTreeMap<String, String>,
    /// The route begins with this.
    pub route_prefix: Option<String>,
    /// This target.
    pub target: Option<String>,
    /// Started with this token.
    pub created_by: Option<String>,
    /// Stored at or after, UTC milliseconds.
    pub created_after: Option<i64>,
    /// Stored before, UTC milliseconds.
    pub created_before: Option<i64>,
}

impl Filter {
    /// Whether a job is one of them.
    pub fn matches(&self, record: &Record) -> bool {
        let Self { states, labels, route_prefix, target, created_by, created_after, created_before } = self;
        let equal = |asked: &Option<String>, has: &str| asked.as_deref().is_none_or(|asked| asked == has);
        (states.is_empty() || states.contains(&record.job.state_name()))
            && labels.iter().all(|(name, value)| record.spec.labels.get(name) == Some(value))
            && route_prefix.as_ref().is_none_or(|prefix| record.spec.route.starts_with(prefix))
            && equal(target, &record.spec.target)
            && equal(created_by, &record.created_by)
            && created_after.is_none_or(|at| record.created_at >= at)
            && created_before.is_none_or(|at| record.created_at < at)
    }

    fn list(&self) -> List {
        List {
            ids: None,
            states: self.states.clone(),
            labels: self.labels.clone(),
            route_prefix: self.route_prefix.clone(),
            target: self.target.clone(),
            created_by: self.created_by.clone(),
            created_after: self.created_after,
            created_before: self.created_before,
            before: None,
            limit: 0,
            text: false,
        }
    }
}

impl Subject for Record {
    fn id(&self) -> JobId {
        self.id
    }

    fn revision(&self) -> Revision {
        self.job.revision
    }

    fn is_final(&self) -> bool {
        self.job.state_name().is_final()
    }
}

/// Rows in one read.
const ROWS: u64 = 500;

impl Engine {
    /// The present state of one job.
    ///
    /// # Errors
    /// Not found, unavailable.
    pub async fn get(&self, id: JobId) -> Result<Shown, Error> {
        let before = self.recent.before_read();
        if let Some(live) = self.live.get(id) {
            let recent = self.recent.get(id);
            return Ok(match recent.filter(|shown| shown.subject.job.revision == live.shown_revision()) {
                Some(shown) => shown,
                None => {
                    let shown = Arc::new(Frame::new(live.snapshot(true)));
                    self.recent.put_read(&shown, before);
                    shown
                }
            });
        }
        // Only now: what was kept of a job that ran here is forgotten before the job
        // is no longer among those that run.
        if let Some(shown) = self.recent.get(id) {
            return Ok(shown);
        }
        let record = self.store.records(&[id], true).await?.into_iter().next().ok_or(Error::NotFound(id))?;
        let shown = Arc::new(Frame::new(record));
        if !matches!(shown.subject.job.state, State::Running(_)) {
            self.recent.put_row(&shown, before);
        }
        Ok(shown)
    }

    /// The attempts of a job, the first one first. What is only in memory yet of
    /// the running one follows within `flush_interval`.
    ///
    /// # Errors
    /// Not found, unavailable.
    pub async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRow>, Error> {
        let attempts = self.store.attempts(id).await?;
        if attempts.is_empty() && self.store.records(&[id], false).await?.is_empty() {
            return Err(Error::NotFound(id));
        }
        Ok(attempts)
    }

    /// Jobs that match, newest first, those after `before` in that order.
    ///
    /// # Errors
    /// Unavailable.
    pub async fn list(
        &self,
        filter: &Filter,
        ids: Option<Vec<JobId>>,
        before: Option<(i64, JobId)>,
        limit: u64,
        text: bool,
    ) -> Result<Vec<Record>, Error> {
        let list = List { ids, before, limit, text, ..filter.list() };
        let mut records = self.store.list(&list).await?;
        for record in &mut records {
            self.freshen(record, text);
        }
        Ok(records)
    }

    /// A row of a running job may lag behind what is in memory, its text even
    /// under the same revision; and it may be ahead by what is committed and not
    /// shown yet.
    fn freshen(&self, record: &mut Record, text: bool) {
        if let Some(live) = self.live.get(record.id) {
            *record = live.snapshot(text);
        }
    }

    /// Watches `ids` and what `filter` selects. Their present states are taken
    /// first, then `synced`, then changes. `after` is the revision that the
    /// client has seen of a single id.
    ///
    /// # Errors
    /// A single id that is not found, too many jobs, draining, unavailable.
    pub async fn watch(
        &self,
        ids: &[JobId],
        filter: Option<Filter>,
        after: Option<Revision>,
        text: bool,
    ) -> Result<Watcher<Record>, Error> {
        if self.is_draining() {
            return Err(Error::Draining);
        }
        if ids.len() > MAX_JOBS {
            return Err(Error::TooManyJobs(MAX_JOBS));
        }
        let matching = filter.clone().map(|filter| {
            let matches: Box<dyn Fn(&Record) -> bool + Send + Sync> =
                Box::new(move |record| filter.matches(record));
            matches
        });
        // Installed first: no change can fall between it and the reads below.
        let watcher = self.hub.watch(ids, matching, after);
        let missing = self.offer_ids(&watcher, ids, text).await?;
        if let (&[only], true, None) = (ids, !missing.is_empty(), &filter) {
            return Err(Error::NotFound(only));
        }
        watcher.missing(missing);
        if let Some(filter) = filter {
            self.offer_filter(&watcher, &filter, text).await?;
        }
        watcher.synced();
        Ok(watcher)
    }

    async fn offer_ids(
        &self,
        watcher: &Watcher<Record>,
        ids: &[JobId],
        text: bool,
    ) -> Result<Vec<JobId>, Error> {
        let mut missing = Vec::new();
        for ids in ids.chunks(ROWS as usize) {
            let mut stored = Vec::new();
            for id in ids {
                // A change that is not in it yet is published after it was forgotten.
                match (self.live.get(*id), self.recent.get(*id)) {
                    (Some(live), _) => watcher.offer(&Arc::new(Frame::new(live.snapshot(text)))),
                    (None, Some(shown)) => watcher.offer(&shown),
                    (None, None) => stored.push(*id),
                }
            }
            let mut found = self.store.records(&stored, text).await?;
            stored.retain(|id| !found.iter().any(|record| record.id == *id));
            missing.extend(stored);
            found.iter_mut().for_each(|record| self.freshen(record, text));
            found.into_iter().for_each(|record| watcher.offer(&Arc::new(Frame::new(record))));
        }
        Ok(missing)
    }

    async fn offer_filter(
        &self,
        watcher: &Watcher<Record>,
        filter: &Filter,
        text: bool,
    ) -> Result<(), Error> {
        let mut before = None;
        let mut count = 0;
        loop {
            let records = self.list(filter, None, before, ROWS, text).await?;
            let full = records.len() as u64 == ROWS;
            before = records.last().map(|record| (record.created_at, record.id));
            count += records.len();
            if count > MAX_JOBS {
                return Err(Error::TooManyJobs(MAX_JOBS));
            }
            for record in records {
                watcher.offer(&Arc::new(Frame::new(record)));
            }
            if !full {
                break;
            }
        }
        // What ended between the read and the offer does not match any more, so
        // nobody told this watcher.
        for ids in watcher.passed_over().chunks(ROWS as usize) {
            for mut record in self.store.records(ids, text).await? {
                self.freshen(&mut record, text);
                watcher.offer(&Arc::new(Frame::new(record)));
            }
        }
        Ok(())
    }
}

impl From<Closed> for Error {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::TooManyJobs => Self::TooManyJobs(MAX_JOBS),
            Closed::ShuttingDown => Self::Draining,
            Closed::Done => Self::Internal("a watch that is done is no error".into()),
        }
    }
}
