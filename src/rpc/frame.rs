//! A frame of a watch, as bytes that are shared by all who are sent them.

use crate::{job::Record, proto::v1, watch::Frame, watch::TextMode};
use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, message, skip_field},
};

/// The number of `RunResponse.status`.
const STATUS: u32 = 2;

/// A `WatchStatusResponse` in its encoded form: the job's bytes, which many
/// streams share, and those of this stream alone. Parts of a message may be
/// concatenated (protobuf encoding, "last one wins").
#[derive(Debug, Clone, Default)]
pub struct WatchFrame {
    shared: Bytes,
    own: Bytes,
}

impl WatchFrame {
    /// A frame of a job that is encoded once for each text mode.
    pub fn of_job(frame: &Frame<Record>, mode: TextMode, own: &v1::WatchStatusResponse) -> Self {
        let shared = frame.bytes(mode, |record| {
            let job = super::convert::job(record, mode == TextMode::Full);
            v1::WatchStatusResponse { job: Some(job), ..Default::default() }.encode_to_vec().into()
        });
        Self { shared, own: own.encode_to_vec().into() }
    }

    /// A frame of this stream alone.
    pub fn own(own: &v1::WatchStatusResponse) -> Self {
        Self { shared: Bytes::new(), own: own.encode_to_vec().into() }
    }
}

impl Message for WatchFrame {
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
    started: Bytes,
    status: Option<WatchFrame>,
}

impl RunFrame {
    /// The first one.
    pub fn started(response: v1::StartResponse) -> Self {
        let message = v1::RunResponse { started: Some(response), status: None };
        Self { started: message.encode_to_vec().into(), status: None }
    }

    /// All others.
    pub fn status(frame: WatchFrame) -> Self {
        Self { started: Bytes::new(), status: Some(frame) }
    }
}

impl Message for RunFrame {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.started);
        if let Some(status) = &self.status {
            message::encode(STATUS, status, buffer);
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
        let status = self.status.as_ref().map_or(0, |status| message::encoded_len(STATUS, status));
        self.started.len() + status
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
        let frame = WatchFrame { shared: shared.encode_to_vec().into(), own: own.encode_to_vec().into() };
        let decoded = v1::WatchStatusResponse::decode(frame.encode_to_vec().as_slice()).expect("one message");
        assert_eq!(decoded.job.map(|job| job.id), Some("a".into()));
        assert_eq!((decoded.synced, decoded.skipped), (true, 3));
    }

    #[test]
    fn a_run_holds_its_start_and_then_frames() {
        let response = v1::StartResponse { merged: true, ..Default::default() };
        let own = v1::WatchStatusResponse { synced: true, ..Default::default() };
        for (frame, expected) in [
            (RunFrame::started(response.clone()), v1::RunResponse { started: Some(response), status: None }),
            (RunFrame::status(WatchFrame::own(&own)), v1::RunResponse { started: None, status: Some(own) }),
        ] {
            let bytes = frame.encode_to_vec();
            assert_eq!(bytes.len(), frame.encoded_len());
            assert_eq!(v1::RunResponse::decode(bytes.as_slice()).expect("a message"), expected);
        }
    }
}
