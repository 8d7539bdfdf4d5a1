//! The stream of one watch: from what the hub says to frames.

use super::{convert, frame::JobFrame, status};
use crate::{
    clock::Clock,
    engine::Error,
    job::{JobId, Record, text::Cursor},
    proto::v1,
    watch::{Closed, Frame, Item, TextMode, Watcher},
};
use futures_util::{Stream, stream};
use std::{
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;

/// The frames of one watch.
pub type Frames = Pin<Box<dyn Stream<Item = Result<JobFrame, Status>> + Send>>;

/// How much text a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// None.
    None,
    /// What was written since the last frame.
    Delta,
    /// All that is kept.
    Full,
}

struct Watch {
    watcher: Watcher<Record>,
    clock: Arc<dyn Clock>,
    heartbeat: Duration,
    /// When to look whether nothing was sent for so long: not after it. That a frame is
    /// sent does not move it, for that costs more than the frame where thousands watch.
    beat: Pin<Box<Sleep>>,
    text: Text,
    /// With DELTA: how far each job's text was sent, and of which attempt.
    sent: HashMap<JobId, (u32, Cursor)>,
    over: bool,
}

/// Turns a watch into frames, with one at least every `heartbeat`.
pub fn frames(watcher: Watcher<Record>, clock: Arc<dyn Clock>, heartbeat: Duration, text: Text) -> Frames {
    let beat = Box::pin(sleep(heartbeat));
    let watch = Watch { watcher, clock, heartbeat, beat, text, sent: HashMap::new(), over: false };
    Box::pin(stream::unfold(watch, |mut watch| async move {
        let frame = watch.next().await?;
        Some((frame, watch))
    }))
}

impl Watch {
    async fn next(&mut self) -> Option<Result<JobFrame, Status>> {
        if self.over {
            return None;
        }
        let due = Instant::now() + self.heartbeat;
        let item = {
            let (mut item, beat) = (pin!(self.watcher.next()), &mut self.beat);
            poll_fn(move |context| {
                if let Poll::Ready(item) = item.as_mut().poll(context) {
                    return Poll::Ready(Some(item));
                }
                loop {
                    ready!(beat.as_mut().poll(context));
                    if Instant::now() >= due {
                        return Poll::Ready(None);
                    }
                    beat.as_mut().reset(due);
                }
            })
            .await
        };
        let Some(item) = item else { return Some(Ok(JobFrame::own(&self.own()))) };
        match item {
            Ok(item) => Some(Ok(self.frame(item))),
            Err(Closed::Done) => None,
            Err(closed) => {
                self.over = true;
                Some(Err(status::of(Error::from(closed))))
            }
        }
    }

    fn own(&self) -> v1::WatchStatusResponse {
        let server_time = Some(convert::server_time(&*self.clock));
        v1::WatchStatusResponse { server_time, ..Default::default() }
    }

    fn frame(&mut self, item: Item<Record>) -> JobFrame {
        let mut own = self.own();
        match item {
            Item::Changed(frame, skipped) => {
                own.skipped = skipped;
                return match self.text {
                    Text::None => JobFrame::of_job(&frame, TextMode::None, &own),
                    Text::Full => JobFrame::of_job(&frame, TextMode::Full, &own),
                    Text::Delta => self.delta(&frame, own),
                };
            }
            Item::Missing(ids) => own.missing_job_ids = ids.iter().map(JobId::to_string).collect(),
            Item::Deleted(id) => {
                self.sent.remove(&id);
                own.deleted_job_id = id.to_string();
            }
            Item::Synced => own.synced = true,
        }
        JobFrame::own(&own)
    }

    fn delta(&mut self, frame: &Frame<Record>, mut own: v1::WatchStatusResponse) -> JobFrame {
        let record = &frame.subject;
        let text = &record.job.text;
        let sent = self.sent.get(&record.id).filter(|(attempt, _)| *attempt == record.job.attempt);
        let (offset, piece, reset) = text.since(sent.map(|(_, cursor)| *cursor));
        let mut job = convert::job(record, false);
        job.result = convert::result(record);
        job.status_text_truncated = text.truncated();
        job.status_text = piece.to_owned();
        own.text_offset = offset;
        own.text_reset = reset;
        own.job = Some(job);
        if record.job.state_name().is_final() {
            self.sent.remove(&record.id);
        } else {
            self.sent.insert(record.id, (record.job.attempt, text.cursor()));
        }
        JobFrame::own(&own)
    }
}
