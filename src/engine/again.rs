//! After a job has ended: it may run again, or be erased.

use super::{Engine, Error, Shown, start::Stored};
use crate::{
    job::{
        Job, JobId, Record, Rules, Spec,
        identity::{self, RunAs},
    },
    store::{Existing, New, Outcome, Write},
};
use std::sync::Arc;
use tokio::sync::oneshot;

/// A wish to run a job again.
#[derive(Debug, Default)]
pub struct Again {
    /// As whom; none means as before.
    pub run_as: Option<RunAs>,
    /// The call's own Cookie header; may be empty.
    pub cookies: String,
    /// Names this wish; empty means none.
    pub idempotency_key: String,
    /// The whole request as sent.
    pub request: Vec<u8>,
}

impl Engine {
    /// A job that has ended, as stored.
    async fn ended(&self, id: JobId) -> Result<Shown, Error> {
        let shown = self.get(id).await?;
        let state = shown.subject.job.state_name();
        if state.is_final() { Ok(shown) } else { Err(Error::NotFinal { id, state }) }
    }

    /// Runs a job that has ended once more, as a new one that names its origin.
    /// A job that ran as nobody does so again unless `run_as` says otherwise;
    /// the credentials of any other are gone.
    ///
    /// # Errors
    /// Invalid, not found, not final, credentials gone, unknown target, key
    /// mismatch, too many pending, draining, unavailable.
    pub async fn run_again(
        self: &Arc<Self>,
        id: JobId,
        again: Again,
        created_by: &str,
    ) -> Result<Shown, Error> {
        if self.is_draining() {
            return Err(Error::Draining);
        }
        let start_key = self.start_key(&again.idempotency_key, &again.request, created_by);
        if let Some(key) = &start_key {
            // A repeat is answered also where the origin was erased since.
            match self.store.started_by(key).await? {
                Some(Existing::Same(id)) => return self.get(id).await,
                Some(Existing::Other(id)) => return Err(Error::KeyMismatch(id)),
                Some(Existing::Joined(_) | Existing::Taken(_)) | None => {}
            }
        }
        let ended = self.ended(id).await?;
        let origin = &ended.subject;
        let target = self.settings.targets.get(&*origin.spec.target);
        let target = target.ok_or_else(|| Error::UnknownTarget(origin.spec.target.to_string()))?;
        let Again { run_as, cookies, .. } = again;
        let said = run_as.is_some();
        let cookies = if origin.spec.as_user { cookies.as_str() } else { "" };
        let credentials =
            identity::resolve(run_as, cookies, target.allowed_identity()).map_err(Error::Invalid)?;
        if origin.spec.as_user && credentials.is_none() && !said {
            return Err(Error::CredentialsGone(id));
        }
        let payload = self.store.payload(id).await?.ok_or(Error::NotFound(id))?;
        let payload = crate::job::Payload { credentials, ..payload };
        let now = self.clock.now();
        let rules = Rules {
            // As long after this start as it was after the first one.
            expire_at: origin.job.rules.expire_at.map(|at| now.wall.saturating_add(at - origin.created_at)),
            ..(*origin.job.rules).clone()
        };
        let spec = Spec {
            rules: Arc::new(rules),
            merge: None,
            as_user: payload.credentials.is_some(),
            ..(*origin.spec).clone()
        };
        let record = Record {
            id: self.clock.job_id(),
            created_at: now.wall,
            created_by: created_by.into(),
            retry_of: Some(id),
            merged_count: 0,
            job: Job::new(Arc::clone(&spec.rules), now.wall, now),
            spec: Arc::new(spec),
        };
        match self.insert(Box::new(New { start_key, ..New::of(record, payload) })).await? {
            Stored::Existing(Existing::Same(id)) => self.get(id).await,
            Stored::Existing(Existing::Other(id)) => Err(Error::KeyMismatch(id)),
            // Without a merge key there is nothing to join.
            Stored::Existing(Existing::Joined(id) | Existing::Taken(id)) => self.get(id).await,
            Stored::Made(shown) => Ok(shown),
        }
    }

    /// Erases a job that has ended, and all that was kept of it.
    ///
    /// # Errors
    /// Not found, not final, draining, unavailable.
    pub async fn delete(self: &Arc<Self>, id: JobId) -> Result<(), Error> {
        self.ended(id).await?;
        if self.erase(vec![id]).await? { Ok(()) } else { Err(Error::NotFound(id)) }
    }

    /// Erases those of these jobs that have ended; whether there was one.
    pub(super) async fn erase(self: &Arc<Self>, ids: Vec<JobId>) -> Result<bool, Error> {
        if ids.is_empty() {
            return Ok(false);
        }
        let permit = self.store.reserve().await.map_err(|_| Error::Draining)?;
        let (sender, done) = oneshot::channel();
        let engine = Arc::clone(self);
        permit.write(
            Write::Delete(ids.clone()),
            Box::new(move |result| {
                if result == Ok(Outcome::Done) {
                    for id in ids {
                        engine.recent.forget(id);
                        engine.hub.deleted(id);
                    }
                }
                let _ = sender.send(result); // whoever hung up is not told
            }),
        );
        Ok(done.await.map_err(|_| Error::Draining)?? == Outcome::Done)
    }
}
