//! A job begins, and may be cancelled.

use super::{Engine, Error, Shown, begun::Way, live::Uncommitted};
use crate::{
    job::{
        Event, Job, JobId, MergeClass, MergePolicy, Now, Payload, Record, Refused, Spec, State,
        draft::{self, Checked, Defaults, Draft},
    },
    secret::fingerprint,
    store::{self, Existing, Merge, New, Outcome, StartKey, Update, Write},
    watch::Frame,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// A stored job.
#[derive(Debug)]
pub struct Started {
    /// As stored.
    pub shown: Shown,
    /// Whether it is an earlier job that was joined.
    pub merged: bool,
}

/// What a Start asks for, checked.
struct Wanted {
    spec: Arc<Spec>,
    created_by: Arc<str>,
    payload: Arc<Payload>,
    merge: Option<Merge>,
    start_key: Option<StartKey>,
    scheduled_at: i64,
    /// When it was checked.
    now: Now,
}

/// How often a cancel that lost a race looks again.
const LOOKS: u32 = 1_000;

/// What becomes of a Start in the tables.
pub(super) enum Stored {
    Made(Shown),
    Existing(Existing),
}

impl Engine {
    /// Stores a job, and answers when it is durable. `request` is the whole
    /// request as sent, by which a repeat under its idempotency key is known.
    ///
    /// # Errors
    /// Invalid, unknown target, duplicate, key mismatch, too many pending,
    /// draining, unavailable.
    pub fn start<'a>(
        self: &'a Arc<Self>,
        draft: Draft,
        request: &[u8],
        created_by: &str,
    ) -> impl Future<Output = Result<Started, Error>> + Send + use<'a> {
        // Before it waits for anything: what only the check needs is not kept while it does.
        let wanted = self.check(draft, request, created_by);
        async move { self.store(wanted?).await }
    }

    /// What is asked for, if it can be done.
    fn check(&self, draft: Draft, request: &[u8], created_by: &str) -> Result<Wanted, Error> {
        if self.is_draining() {
            return Err(Error::Draining);
        }
        let name = if draft.target.is_empty() { "default" } else { &draft.target };
        let target = self.settings.targets.get(name).ok_or_else(|| Error::UnknownTarget(name.to_owned()))?;
        let defaults = Defaults {
            base_path: &target.base_path,
            allow_headers: &target.allow_headers,
            error_timeout: self.settings.error_timeout,
            response_timeout: self.settings.response_timeout,
            max_duration: self.settings.max_duration,
            cancel_grace: self.settings.cancel_grace,
            expire_after: self.settings.expire_after,
            ceilings: self.settings.ceilings,
            merge_policy: self.settings.merge_policy,
            identity: target.allowed_identity(),
        };
        let policy = draft.merge_policy.unwrap_or(defaults.merge_policy);
        let (start_after, start_at) = (draft.start_after, draft.start_at);
        let start_key = self.start_key(&draft.idempotency_key, request, created_by);
        let now = self.clock.now();
        let Checked { spec, payload, scheduled_at } =
            draft::check(draft, &defaults, now.wall).map_err(Error::Invalid)?;
        let merge = spec.merge.map(|class| Merge {
            key: self.merge_key(class, &spec, &payload, (start_after, start_at)),
            join: policy != MergePolicy::Reject,
        });
        let (spec, created_by) = self.alike.share(spec, created_by);
        Ok(Wanted { spec, created_by, payload: Arc::new(payload), merge, start_key, scheduled_at, now })
    }

    /// Stores it, or finds the job that stands for it.
    async fn store(self: &Arc<Self>, wanted: Wanted) -> Result<Started, Error> {
        let Wanted { spec, created_by, payload, merge, start_key, scheduled_at, now } = wanted;
        loop {
            // Of the moment of the check: what was asked for counts from it.
            let record = Record {
                id: self.clock.job_id(),
                created_at: now.wall,
                created_by: Arc::clone(&created_by),
                retry_of: None,
                merged_count: 0,
                job: Job::new(Arc::clone(&spec.rules), scheduled_at, now),
                spec: Arc::clone(&spec),
            };
            let start_key = start_key.clone();
            let new = Box::new(New { merge, start_key, ..New::of(record, Arc::clone(&payload)) });
            let (id, merged) = match self.insert(new).await? {
                Stored::Made(shown) => return Ok(Started { shown, merged: false }),
                Stored::Existing(Existing::Joined(id)) => (id, true),
                Stored::Existing(Existing::Same(id)) => (id, false),
                Stored::Existing(Existing::Taken(id)) => return Err(Error::Duplicate(id)),
                Stored::Existing(Existing::Other(id)) => return Err(Error::KeyMismatch(id)),
            };
            match self.get(id).await {
                Ok(shown) => return Ok(Started { shown, merged }),
                Err(Error::NotFound(_)) => {} // erased since: there is nothing to join any more
                Err(error) => return Err(error),
            }
        }
    }

    /// By what a repeat of a request is known; none without a key.
    pub(super) fn start_key(&self, key: &str, request: &[u8], caller: &str) -> Option<StartKey> {
        (!key.is_empty()).then(|| StartKey {
            caller: caller.to_owned(),
            key: fingerprint(self.store.identity_key(), "start key", &[caller.as_bytes(), key.as_bytes()]),
            request: fingerprint(self.store.identity_key(), "request", &[request]),
        })
    }

    /// By what identical Starts are known: everything that makes a difference to
    /// the action, and when it was asked for.
    fn merge_key(
        &self,
        class: MergeClass,
        spec: &Spec,
        payload: &Payload,
        (after, at): (Option<i64>, Option<i64>),
    ) -> [u8; 32] {
        let class: &[u8] = match class {
            MergeClass::Pending => b"pending",
            MergeClass::Active => b"active",
        };
        let time = |given: Option<i64>| given.map(|given| given.to_le_bytes().to_vec()).unwrap_or_default();
        let (after, at) = (time(after), time(at));
        let content_type = payload.content_type.as_deref().unwrap_or_default();
        let mut parts: Vec<&[u8]> = vec![
            class,
            spec.target.as_bytes(),
            spec.method.as_bytes(),
            spec.url.as_bytes(),
            content_type.as_bytes(),
            &payload.body,
            &after,
            &at,
        ];
        // Never across users: their credentials are part of it.
        let user: Vec<Option<&str>> = match &payload.credentials {
            None => vec![],
            Some(user) => vec![user.cookie.as_deref(), user.authorization.as_deref()],
        };
        let count = [u8::try_from(user.len()).unwrap_or(u8::MAX)];
        parts.push(&count);
        for value in &user {
            parts.push(if value.is_some() { b"given" } else { b"none" });
            parts.push(value.unwrap_or_default().as_bytes());
        }
        for (name, value) in &payload.headers {
            parts.extend([name.as_bytes(), value.as_bytes()]);
        }
        fingerprint(self.store.identity_key(), "merge", &parts)
    }

    /// Stores a new job, or finds out which one stands for it.
    pub(super) async fn insert(self: &Arc<Self>, mut new: Box<New>) -> Result<Stored, Error> {
        if self.store.is_stuck() {
            return Err(Error::Unavailable("the database does not answer".into()));
        }
        let permit = self.store.reserve().await.map_err(|_| Error::Draining)?;
        let way = self.way(&mut new);
        if !matches!(way, Way::Begun(_)) && !self.one_more_waits() {
            self.has_come(&way, &new.record.spec.target);
            return Err(Error::TooManyPending(self.settings.max_pending));
        }
        let (sender, done) = oneshot::channel();
        let (engine, payload) = (Arc::clone(self), Arc::clone(&new.payload));
        let shown = Arc::new(Frame::new(new.record.clone()));
        permit.write(
            Write::Insert(new),
            Box::new(move |result| {
                let stored = engine.inserted(way, &shown, payload, result);
                let _ = sender.send(stored); // whoever hung up is not told
            }),
        );
        self.told(done).await?
    }

    /// On the writer's side: what became of a new job.
    fn inserted(
        self: &Arc<Self>,
        way: Way,
        shown: &Shown,
        payload: Arc<Payload>,
        result: Result<Outcome, store::Error>,
    ) -> Result<Stored, Error> {
        let record = &shown.subject;
        let target = &record.spec.target;
        match result {
            Ok(Outcome::Existing(existing)) => {
                match way {
                    Way::Begun(begun) => self.begins_not(*begun),
                    way => self.waits_not(&way, target),
                }
                if let Existing::Joined(id) = existing {
                    self.joined(id);
                }
                Ok(Stored::Existing(existing))
            }
            Ok(Outcome::Done | Outcome::Lost) => {
                match way {
                    Way::Begun(begun) => self.begins(*begun, record.clone(), payload),
                    way => {
                        self.shows(shown);
                        self.waits(record.clone(), Some(payload));
                        self.has_come(&way, target);
                    }
                }
                Ok(Stored::Made(Arc::clone(shown)))
            }
            Err(error) => {
                match way {
                    Way::Begun(begun) => self.begins_perhaps(*begun, record.clone(), &error),
                    way => self.waits_not(&way, target),
                }
                Err(Error::from(error))
            }
        }
    }

    /// What was to wait is not in the tables.
    fn waits_not(&self, way: &Way, target: &str) {
        self.one_less_waits();
        self.has_come(way, target);
    }

    /// What was to be queued is known here, or will not be.
    fn has_come(&self, way: &Way, target: &str) {
        if matches!(way, Way::Queued) {
            self.dispatcher.came(target);
        }
    }

    /// On the writer's side: a Start joined this job.
    fn joined(self: &Arc<Self>, id: JobId) {
        self.recent.forget(id);
        if let Some(live) = self.live.get(id) {
            return live.joined(self);
        }
        // Its row has another revision: who carries it on must see that.
        let engine = Arc::clone(self);
        self.tasks.spawn("joined", async move {
            match engine.store.records(&[id], true).await {
                Ok(records) => {
                    let waiting =
                        |record: &Record| matches!(record.job.state, State::Scheduled | State::Queued);
                    for record in records.into_iter().filter(waiting) {
                        engine.publish_record(&record);
                        engine.waits(record, None);
                    }
                }
                Err(error) => tracing::warn!(job = %id, %error, "a joined job cannot be read now"),
            }
        });
    }

    /// On the writer's side: a new job, or the end of one, is durable.
    pub(super) fn shows(&self, shown: &Shown) {
        self.recent.put(shown);
        if self.hub.is_watched(shown.subject.id) {
            self.hub.publish(shown);
        }
    }

    /// A waiting job is in the tables: whoever carries it on should know.
    pub(super) fn waits(&self, record: Record, payload: Option<Arc<Payload>>) {
        if let Some(at) = record.job.give_up_at() {
            self.schedule.wake_at(at);
        }
        match record.job.state {
            State::Scheduled => self.schedule.wake_at(record.job.scheduled_at),
            State::Queued => self.dispatcher.hint(record, payload, self.store.is_shared()),
            State::Running(_) | State::Succeeded | State::Failed | State::Cancelled => {}
        }
    }

    /// Cancels a job: a waiting one at once, a running one within its grace.
    ///
    /// # Errors
    /// Not found, final, elsewhere, unavailable.
    pub async fn cancel(self: &Arc<Self>, id: JobId) -> Result<Record, Error> {
        for _ in 0..LOOKS {
            if let Some(live) = self.live.get(id) {
                match self.commit(&live, Event::Cancel, None).await {
                    Ok(_) => return Ok(live.snapshot(true)),
                    Err(Uncommitted::Refused(_)) => {} // it ended meanwhile
                    Err(Uncommitted::Failed(error)) => return Err(error),
                }
            } else {
                let records = self.store.records(&[id], true).await?;
                let Some(record) = records.into_iter().next() else { return Err(Error::NotFound(id)) };
                if matches!(record.job.state, State::Running(_)) {
                    self.find_owner(id).await?;
                }
                match self.change_waiting(record, Event::Cancel).await {
                    Ok(Some(record)) => return Ok(record),
                    Ok(None) => {} // somebody was faster
                    Err(Uncommitted::Refused(Refused::Final(state))) => {
                        return Err(Error::Final { id, state });
                    }
                    Err(Uncommitted::Refused(refused)) => return Err(Error::Internal(refused.to_string())),
                    Err(Uncommitted::Failed(error)) => return Err(error),
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(Error::Unavailable("the job's state is not settled".into()))
    }

    /// Applies an event to a job that waits, and commits it. None if the row
    /// has changed meanwhile, or the job runs.
    pub(super) async fn change_waiting(
        self: &Arc<Self>,
        mut record: Record,
        event: Event,
    ) -> Result<Option<Record>, Uncommitted> {
        if matches!(record.job.state, State::Running(_)) {
            return Ok(None);
        }
        let from = record.job.revision;
        record.job.apply(event, self.clock.now())?;
        if record.job.revision == from {
            return Ok(Some(record)); // as it was
        }
        let permit = self.store.reserve().await.map_err(|_| Error::Draining)?;
        let (sender, done) = oneshot::channel();
        let (engine, changed) = (Arc::clone(self), record.clone());
        let update = Update { from, record: record.clone(), text: false, attempt: None };
        permit.write(
            Write::Update(Box::new(update)),
            Box::new(move |result| {
                let won = result.map(|outcome| {
                    let won = outcome == Outcome::Done;
                    engine.recent.forget(changed.id);
                    if won {
                        if changed.job.state_name().is_final() {
                            engine.one_less_waits();
                        }
                        engine.publish_record(&changed);
                        engine.waits(changed, None);
                    }
                    won
                });
                let _ = sender.send(won); // whoever hung up is not told
            }),
        );
        let won = self.told(done).await?.map_err(Error::from)?;
        Ok(won.then_some(record))
    }
}
