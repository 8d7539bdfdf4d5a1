//! What is read of tables in memory: as `read.rs`, `list.rs` and `select.rs`.

use super::{
    super::{
        Error, Existing, List, StartKey,
        entity::job,
        read, row,
        write::{AttemptRow, Ended},
    },
    Model, Tables, lock,
};
use crate::{
    job::{JobId, Payload, Record, StateName},
    secret::Keyring,
};

impl Tables {
    fn record(&self, job: &job::Model, text: bool) -> Result<Record, Error> {
        let request = self.requests.get(&job.id);
        let key = (job.id.clone(), job.attempt);
        let running = if job.state == 3 { self.attempts.get(&key) } else { None };
        let text = if text { self.texts.get(&job.id) } else { None };
        let beside = row::Beside {
            spec: request.map(|request| request.spec.clone()),
            retry_of: request.and_then(|request| request.retry_of.clone()),
            sent_at: running.and_then(|row| row.sent_at),
            reported: running.map(|row| row.reported),
            http_status: running.and_then(|row| row.http_status),
            sequence: running.map(|row| row.last_sequence),
            text: text.filter(|text| text.attempt == job.attempt).cloned(),
        };
        row::record(job.clone(), beside)
    }

    /// The first `limit` of those that `wanted`, in the order of `by`.
    fn sorted<K: Ord>(
        &self,
        wanted: impl Fn(&job::Model) -> bool,
        by: impl Fn(&job::Model) -> K,
        limit: u64,
    ) -> Vec<&job::Model> {
        let mut found: Vec<&job::Model> = self.jobs.values().filter(|job| wanted(job)).collect();
        found.sort_by_key(|job| by(job));
        found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        found
    }

    fn read(&self, found: &[&job::Model], text: bool) -> Result<Vec<Record>, Error> {
        found.iter().map(|job| self.record(job, text)).collect()
    }

    fn lists(&self, list: &List, job: &job::Model) -> bool {
        let state = i16::try_from(job.state).ok().and_then(StateName::from_number);
        let labels = self.labels.get(&job.id).map(Vec::as_slice).unwrap_or_default();
        let route = self.requests.get(&job.id).map(|request| request.route.as_str()).unwrap_or_default();
        let has = |name: &String, value: &String| {
            labels.iter().any(|label| label.name == *name && label.value == *value)
        };
        list.ids.as_ref().is_none_or(|ids| ids.iter().any(|id| id.to_bytes() == *job.id))
            && (list.states.is_empty() || state.is_some_and(|state| list.states.contains(&state)))
            && list.labels.iter().all(|(name, value)| has(name, value))
            && list.route_prefix.as_ref().is_none_or(|prefix| route.starts_with(prefix.as_str()))
            && list.target.as_ref().is_none_or(|target| job.target == *target)
            && list.created_by.as_ref().is_none_or(|name| job.created_by == *name)
            && list.created_after.is_none_or(|at| job.created_at >= at)
            && list.created_before.is_none_or(|at| job.created_at < at)
            && list
                .before
                .is_none_or(|(at, id)| (job.created_at, job.id.as_slice()) < (at, &id.to_bytes()[..]))
    }
}

fn is(job: &job::Model, state: StateName) -> bool {
    job.state == i64::from(state.number())
}

impl Model {
    async fn read<T>(&self, look: impl FnOnce(&Tables) -> Result<T, Error>) -> Result<T, Error> {
        if self.closed.is_cancelled() {
            return Err(Error::Unavailable("closed".into()));
        }
        self.fate.reads().await?;
        let found = look(&lock(&self.disk));
        self.fate.has_read().await;
        found
    }

    pub(in crate::store) async fn records(&self, ids: &[JobId], text: bool) -> Result<Vec<Record>, Error> {
        let find = |tables: &Tables| {
            let found = ids.iter().filter_map(|id| tables.jobs.get(id.to_bytes().as_slice()));
            tables.read(&found.collect::<Vec<_>>(), text)
        };
        self.read(find).await
    }

    pub(in crate::store) async fn due(&self, now: i64, limit: u64) -> Result<Vec<Record>, Error> {
        let due = |job: &job::Model| is(job, StateName::Scheduled) && job.scheduled_at <= now;
        let by = |job: &job::Model| (job.scheduled_at, job.id.clone());
        self.read(|tables| tables.read(&tables.sorted(due, by, limit), false)).await
    }

    pub(in crate::store) async fn waiting(&self) -> Result<u64, Error> {
        self.read(|tables| Ok(tables.jobs.values().filter(|job| job.state < 3).count() as u64)).await
    }

    pub(in crate::store) async fn next_due(&self) -> Result<Option<i64>, Error> {
        let waits = |job: &&job::Model| is(job, StateName::Scheduled);
        self.read(|tables| Ok(tables.jobs.values().filter(waits).map(|job| job.scheduled_at).min())).await
    }

    pub(in crate::store) async fn claimable(
        &self,
        target: &str,
        limit: u64,
        except: &[JobId],
    ) -> Result<Vec<Record>, Error> {
        let wanted = |job: &job::Model| {
            is(job, StateName::Queued)
                && job.target == target
                && !except.iter().any(|id| id.to_bytes() == *job.id)
        };
        let by = |job: &job::Model| (-job.priority, job.scheduled_at, job.id.clone());
        self.read(|tables| tables.read(&tables.sorted(wanted, by, limit), false)).await
    }

    pub(in crate::store) async fn overdue(&self, now: i64, limit: u64) -> Result<Vec<Record>, Error> {
        let over = |job: &job::Model| job.give_up_at.is_some_and(|at| at <= now);
        let by = |job: &job::Model| (job.give_up_at, job.id.clone());
        self.read(|tables| tables.read(&tables.sorted(over, by, limit), false)).await
    }

    pub(in crate::store) async fn next_give_up(&self) -> Result<Option<i64>, Error> {
        self.read(|tables| Ok(tables.jobs.values().filter_map(|job| job.give_up_at).min())).await
    }

    pub(in crate::store) async fn running(&self) -> Result<Vec<Record>, Error> {
        let runs = |job: &job::Model| is(job, StateName::Running);
        self.read(|tables| tables.read(&tables.sorted(runs, |job| job.id.clone(), u64::MAX), true)).await
    }

    pub(in crate::store) async fn ended_before(
        &self,
        state: StateName,
        at: i64,
        limit: u64,
    ) -> Result<Vec<JobId>, Error> {
        let over = |job: &job::Model| is(job, state) && job.ended_at.is_some_and(|ended| ended <= at);
        let by = |job: &job::Model| job.ended_at;
        self.read(|tables| tables.sorted(over, by, limit).iter().map(|job| row::job_id(&job.id)).collect())
            .await
    }

    pub(in crate::store) async fn first_ended(&self, state: StateName) -> Result<Option<i64>, Error> {
        let ended = |job: &&job::Model| is(job, state);
        self.read(|tables| Ok(tables.jobs.values().filter(ended).filter_map(|job| job.ended_at).min())).await
    }

    pub(in crate::store) async fn payload(
        &self,
        id: JobId,
        keys: &Keyring,
    ) -> Result<Option<Payload>, Error> {
        let row = self.read(|tables| Ok(tables.requests.get(id.to_bytes().as_slice()).cloned())).await?;
        row.map(|row| read::opened(keys, id, row)).transpose()
    }

    pub(in crate::store) async fn started_by(&self, key: &StartKey) -> Result<Option<Existing>, Error> {
        let name = (key.caller.clone(), key.key.to_vec());
        let row = self.read(|tables| Ok(tables.start_keys.get(&name).cloned())).await?;
        row.map(|row| read::started(&row, key)).transpose()
    }

    pub(in crate::store) async fn ended_by(&self, id: JobId, attempt: u32) -> Result<Option<Ended>, Error> {
        let found = self.attempts(id).await?.into_iter().find(|row| row.attempt == attempt);
        Ok(found.and_then(|row| row.ended_by))
    }

    pub(in crate::store) async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRow>, Error> {
        let of = id.to_bytes().to_vec();
        let all = (of.clone(), i64::MIN)..=(of, i64::MAX);
        let found = self
            .read(|tables| Ok(tables.attempts.range(all).map(|(_, row)| row.clone()).collect::<Vec<_>>()));
        found.await?.into_iter().map(row::attempt_row).collect()
    }

    pub(in crate::store) async fn list(&self, list: &List) -> Result<Vec<Record>, Error> {
        let by = |job: &job::Model| std::cmp::Reverse((job.created_at, job.id.clone()));
        self.read(|tables| {
            tables.read(&tables.sorted(|job| tables.lists(list, job), by, list.limit), list.text)
        })
        .await
    }
}
