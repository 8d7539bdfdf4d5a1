//! Jobs of the raw server: the same messages and rows, and nothing besides.

use super::{
    Client, Kind, Side,
    events::{Events, soon},
    jobs::CONNECTIONS,
    load::Caller,
    unary::Sizes,
};
use crate::{
    clock,
    fault::Fault,
    floor::{Blob, filler, wire::raw_client::RawClient},
    sample::Sample,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tonic::{Request, metadata::MetadataValue, transport::Channel};

/// The header that says how the action reports.
pub const KIND: &str = "bench-kind";

/// Starts a job and waits until its action is through.
struct RawJob {
    raw: RawClient<Channel>,
    events: Events,
    tags: Arc<AtomicU64>,
    sizes: Sizes,
    kind: MetadataValue<tonic::metadata::Ascii>,
}

impl Caller for RawJob {
    async fn call(&mut self) -> Result<Option<u64>, Fault> {
        let tag = self.tags.fetch_add(1, Ordering::Relaxed);
        let (answer, data) = (u32::try_from(self.sizes.answer)?, filler(self.sizes.request));
        let mut request = Request::new(Blob { answer, sent: tag, data });
        request.metadata_mut().insert(KIND, self.kind.clone());
        let event = self.events.of(tag);
        let began = clock::now();
        self.raw.run(request).await?;
        Ok(Some(soon(event).await?.through - began))
    }
}

impl Client {
    /// As many outstanding as is known, with messages as large as those of a Start.
    pub(super) async fn raw_jobs(&mut self, kind: Kind, sizes: Sizes, seconds: f64) -> Result<Sample, Fault> {
        let tags = Arc::new(AtomicU64::new(self.tag + 1));
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(self.connect(Side::Raw).await?);
        }
        let mut jobs = Vec::new();
        for place in 0..self.outstanding {
            jobs.push(RawJob {
                raw: RawClient::new(channels[place % CONNECTIONS].clone()),
                events: self.events.clone().ok_or("no application")?,
                tags: Arc::clone(&tags),
                sizes,
                kind: MetadataValue::from_static(kind.route()),
            });
        }
        let sample = self.closed(jobs, seconds).await;
        self.tag = tags.load(Ordering::Relaxed);
        sample
    }
}
