//! A batch of Starts as it is read: no further than it may be long.
//!
//! An empty request takes two bytes on the wire and hundreds in memory: a message
//! of 4 MiB would become more than a gigabyte before anybody could count.

use crate::proto::v1;
use bytes::{Buf, BufMut};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, message, skip_field},
};

/// Starts of one batch, at most.
pub const MOST: usize = 1_000;
/// The number of `BatchStartRequest.requests`.
const REQUESTS: u32 = 1;

/// A `BatchStartRequest` of which at most one request too many is read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The requests in their order; more than [`MOST`] only says that there are too
    /// many.
    pub requests: Vec<v1::StartRequest>,
}

impl Message for Batch {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        message::encode_repeated(REQUESTS, &self.requests, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag == REQUESTS && self.requests.len() <= MOST {
            message::merge_repeated(wire_type, &mut self.requests, buffer, context)
        } else {
            skip_field(wire_type, tag, buffer, context)
        }
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(REQUESTS, &self.requests)
    }

    fn clear(&mut self) {
        self.requests.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(count: usize) -> v1::BatchStartRequest {
        let request = |n: usize| v1::StartRequest { display_name: n.to_string(), ..Default::default() };
        v1::BatchStartRequest { requests: (0..count).map(request).collect() }
    }

    #[test]
    fn a_batch_is_read_as_it_was_sent_and_no_longer_than_it_may_be() {
        for (sent, read) in [(0, 0), (3, 3), (MOST, MOST), (MOST + 1, MOST + 1), (5 * MOST, MOST + 1)] {
            let bytes = batch(sent).encode_to_vec();
            let seen = Batch::decode(bytes.as_slice()).expect("a batch");
            assert_eq!(seen.requests, batch(sent).requests[..read]);
            if sent == read {
                assert_eq!((seen.encoded_len(), seen.encode_to_vec()), (bytes.len(), bytes));
            }
        }
        assert!(Batch::decode([0x0a, 0x05].as_slice()).is_err(), "cut off");
    }
}
