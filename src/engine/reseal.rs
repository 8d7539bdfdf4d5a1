//! After a change of the root key: what is sealed with an earlier one is sealed
//! anew, so that the earlier one may go.
//!
//! What it examines: every job once, by id. What it does: a few at a time with a
//! rest between, like retention, so that a Start never waits long. It ends when it
//! has come through; `backjob keygen --status` tells whether anything is left.

use super::{Engine, Error};
use crate::{
    job::JobId,
    store::{Sealed, Write},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// Jobs of one step: each may have a body of a megabyte.
const JOBS: u64 = 16;
/// Between two steps.
const REST: Duration = Duration::from_millis(20);
/// After the store failed.
const AGAIN: Duration = Duration::from_secs(10);

impl Engine {
    pub(super) async fn run_reseal(self: Arc<Self>) {
        if !self.store.has_other_roots() {
            return;
        }
        let (mut after, mut count) = (None, 0_u64);
        loop {
            let rest = match self.reseal_some(after).await {
                Ok((done, Some(last))) => {
                    (after, count) = (Some(last), count + done);
                    REST
                }
                Ok((_, None)) => {
                    return tracing::info!(jobs = count, "sealed anew with the present root key");
                }
                Err(Error::Draining) => return,
                Err(error) => {
                    tracing::warn!(%error, "jobs cannot be sealed anew now");
                    AGAIN
                }
            };
            tokio::select! {
                biased;
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// How many were sealed anew, and the last id that was looked at.
    async fn reseal_some(&self, after: Option<JobId>) -> Result<(u64, Option<JobId>), Error> {
        let (found, last) = self.store.sealed_by_others(after, JOBS).await?;
        let mut waiting = Vec::with_capacity(found.len());
        for sealed in found {
            waiting.push(self.reseal(sealed).await?);
        }
        let mut done = 0;
        for written in waiting {
            written.await.map_err(|_| Error::Draining)??;
            done += 1;
        }
        Ok((done, last))
    }

    async fn reseal(&self, sealed: Sealed) -> Result<oneshot::Receiver<Result<(), Error>>, Error> {
        let permit = self.store.reserve().await.map_err(|_| Error::Draining)?;
        let (sender, done) = oneshot::channel();
        let write = Write::Reseal(Box::new(sealed));
        // One that is gone, or was sealed anew, is as good.
        permit.write(
            write,
            Box::new(move |result| {
                let _ = sender.send(result.map(drop).map_err(Error::from));
            }),
        );
        Ok(done)
    }
}
