//! A job's state in an answer, as bytes that are shared by all who are sent them.

use crate::{job::Record, proto::v1, watch::Frame, watch::TextMode};
use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, message, skip_field},
};

/// The numbers of `RunResponse.started` and `RunResponse.status`.
const STARTED: u32 = 1;
const STATUS: u32 = 2;

/// A `WatchStatusResponse`, `GetStatusResponse` or `StartResponse` in its encoded
/// form: field 1, the job, whose bytes all of them share, and what is of this answer
/// alone. Parts of a message may be concatenated (protobuf encoding, "last one
/// wins").
#[derive(Debug, Clone, Default)]
pub struct JobFrame {
    shared: Bytes,
    own: Bytes,
}

impl JobFrame {
    /// A frame of a job that is encoded once for each text mode.
    pub fn of_job(frame: &Frame<Record>, mode: TextMode, own: &impl Message) -> Self {
        let shared = frame.bytes(mode, |record| {
            let job = super::convert::job(record, mode == TextMode::Full);
            v1::WatchStatusResponse { job: Some(job), ..Default::default() }.encode_to_vec().into()
        });
        Self { shared, own: own.encode_to_vec().into() }
    }

    /// An answer of which nothing is shared.
    pub fn own(own: &impl Message) -> Self {
        Self { shared: Bytes::new(), own: own.encode_to_vec().into() }
    }
}

impl Message for JobFrame {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.shared);
        buffer.put_slice(&self.own);
    }

    /// Frames are only ever sent.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buffer, context)
    }

    fn encoded_len(&self) -> usize {
        self.shared.len() + self.own.len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A `RunResponse` in its encoded form: what was started, or a frame of its watch.
#[derive(Debug, Clone, Default)]
pub struct RunFrame {
    started: Option<JobFrame>,
    status: Option<JobFrame>,
}

impl RunFrame {
    /// The first one.
    pub fn started(response: JobFrame) -> Self {
        Self { started: Some(response), status: None }
    }

    /// All others.
    pub fn status(frame: JobFrame) -> Self {
        Self { started: None, status: Some(frame) }
    }

    fn numbered(&self) -> impl Iterator<Item = (u32, &JobFrame)> {
        let frames = [(STARTED, &self.started), (STATUS, &self.status)];
        frames.into_iter().filter_map(|(number, frame)| Some((number, frame.as_ref()?)))
    }
}

impl Message for RunFrame {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        for (number, frame) in self.numbered() {
            message::encode(number, frame, buffer);
        }
    }

    /// Frames are only ever sent.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buffer, context)
    }

    fn encoded_len(&self) -> usize {
        self.numbered().map(|(number, frame)| message::encoded_len(number, frame)).sum()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The server of JobControl that sends them.
pub mod server {
    #![allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used)]
    include!(concat!(env!("OUT_DIR"), "/frames/backjob.v1.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_parts_decode_as_one_message() {
        let shared = v1::WatchStatusResponse {
            job: Some(v1::Job { id: "a".into(), ..Default::default() }),
            ..Default::default()
        };
        let own = v1::WatchStatusResponse { synced: true, skipped: 3, ..Default::default() };
        let frame = JobFrame { shared: shared.encode_to_vec().into(), own: own.encode_to_vec().into() };
        let decoded = v1::WatchStatusResponse::decode(frame.encode_to_vec().as_slice()).expect("one message");
        assert_eq!(decoded.job.map(|job| job.id), Some("a".into()));
        assert_eq!((decoded.synced, decoded.skipped), (true, 3));
    }

    #[test]
    fn a_run_holds_its_start_and_then_frames() {
        let response = v1::StartResponse { merged: true, ..Default::default() };
        let own = v1::WatchStatusResponse { synced: true, ..Default::default() };
        for (frame, expected) in [
            (
                RunFrame::started(JobFrame::own(&response)),
                v1::RunResponse { started: Some(response), status: None },
            ),
            (RunFrame::status(JobFrame::own(&own)), v1::RunResponse { started: None, status: Some(own) }),
        ] {
            let bytes = frame.encode_to_vec();
            assert_eq!(bytes.len(), frame.encoded_len());
            assert_eq!(v1::RunResponse::decode(bytes.as_slice()).expect("a message"), expected);
        }
    }
}
