//! Requests on their way in: how much of them may lie in memory, and how long one
//! may take.
//!
//! A message is kept until it is whole. One connection may carry a thousand calls,
//! each with a message of 4 MiB that never ends: so what lies in unfinished
//! messages beyond a first piece is taken out of one budget, who finds it used up
//! waits (HTTP/2's flow control makes the sender wait too), and a message that is
//! not whole in time ends its call.
//!
//! What a call is to do stays in memory until it is answered, which may take as long as a
//! disk does. Once it is whole it is taken out of another budget, and nobody waits for that:
//! it lies in memory already.

use super::{
    MESSAGE,
    budget::{Budget, KEPT},
    status,
};
use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};
use tonic::Status;

/// A body that is read whole before anything is made of it.
///
/// # Errors
/// It is too large, or broke off.
pub(super) async fn whole(body: tonic::body::Body) -> Result<Bytes, Status> {
    let body = Limited::new(body, MESSAGE).collect().await.map_err(|error| {
        match (error.is::<LengthLimitError>(), error.downcast::<Status>()) {
            (true, _) => status::too_large(MESSAGE),
            // With a reason it is ours.
            (false, Ok(status)) if !status.details().is_empty() => *status,
            (false, _) => status::broken_off(),
        }
    })?;
    Ok(body.to_bytes())
}

/// Bytes of a message that are not counted: most are smaller.
const FREE: usize = 64 * 1024;
/// From the beginning of a message to its end.
const IN_TIME: Duration = Duration::from_secs(60);
/// What stands before a message in gRPC: a flag and a length.
const PREFIX: usize = 5;

type Room = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// How far a message has come.
enum Meter {
    /// The whole body is one message.
    Whole { seen: usize },
    /// Messages follow each other, each with a prefix.
    Stream { prefix: Vec<u8>, left: usize },
}

impl Meter {
    /// Notes a piece; how many bytes have to be set aside for it now, and whether
    /// all that was set aside before is whole.
    fn piece(&mut self, mut piece: Bytes, limit: usize) -> (usize, bool) {
        match self {
            Self::Whole { seen } => {
                let before = seen.saturating_sub(FREE);
                *seen = seen.saturating_add(piece.len());
                (seen.saturating_sub(FREE) - before, false)
            }
            Self::Stream { prefix, left } => {
                let (mut ahead, mut whole) = (0, false);
                while piece.has_remaining() {
                    if *left > 0 {
                        let taken = piece.len().min(*left);
                        piece.advance(taken);
                        *left -= taken;
                        if *left == 0 {
                            (ahead, whole) = (0, true);
                        }
                        continue;
                    }
                    let taken = piece.len().min(PREFIX - prefix.len());
                    prefix.extend_from_slice(&piece.split_to(taken));
                    if let [_, a, b, c, d] = prefix[..] {
                        *left = u32::from_be_bytes([a, b, c, d]) as usize;
                        prefix.clear();
                        // One that is too long is refused by who reads it.
                        ahead = left.saturating_sub(FREE).min(limit);
                        whole = *left == 0 || whole;
                    }
                }
                (ahead, whole)
            }
        }
    }

    /// Whether a message has begun that is not whole.
    fn is_within(&self) -> bool {
        match self {
            Self::Whole { .. } => true,
            Self::Stream { prefix, left } => *left > 0 || !prefix.is_empty(),
        }
    }
}

/// What a message is made into takes as much again: it is sealed.
const COPIES: usize = 2;

/// Room for a message until its call is answered, which gives it back.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    budget: Budget,
    held: Arc<OnceLock<OwnedSemaphorePermit>>,
}

impl Kept {
    /// None of it yet.
    pub fn new(budget: Budget) -> Self {
        Self { budget, held: Arc::default() }
    }

    fn take(&self, bytes: usize) -> Result<(), Status> {
        let room = self.budget.try_take(bytes.saturating_mul(COPIES)).ok_or_else(|| status::no_room(KEPT))?;
        self.held.get_or_init(|| room); // a body is whole once
        Ok(())
    }
}

/// The body of a request, held to the budget.
pub(super) struct Intake<B> {
    body: B,
    meter: Meter,
    limit: usize,
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
    /// A piece that waits for room.
    waiting: Option<(Bytes, Room)>,
    /// Since the present message began, or the call.
    late: Option<Pin<Box<Sleep>>>,
    kept: Option<Kept>,
}

impl<B> Intake<B> {
    /// `streams`: whether many messages follow each other, with their prefixes.
    /// `limit`: bytes of a message, at most. `kept`: where it is kept until it is answered.
    pub fn new(body: B, streams: bool, limit: usize, budget: Budget, kept: Option<Kept>) -> Self {
        let meter =
            if streams { Meter::Stream { prefix: Vec::new(), left: 0 } } else { Meter::Whole { seen: 0 } };
        Self { body, meter, limit, budget, held: None, waiting: None, late: None, kept }
    }

    fn hold(&mut self, more: Option<OwnedSemaphorePermit>) {
        match (&mut self.held, more) {
            (Some(held), Some(more)) => held.merge(more),
            (held, more) => *held = more.or_else(|| held.take()),
        }
    }

    /// The message is whole.
    fn keep(&mut self) -> Result<(), Status> {
        match (self.kept.take(), &self.meter) {
            (Some(kept), Meter::Whole { seen }) if *seen > FREE => kept.take(*seen - FREE),
            _ => Ok(()),
        }
    }

    fn on_time(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        if !self.meter.is_within() {
            return Ok(());
        }
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(IN_TIME)));
        match late.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(status::too_slow(IN_TIME)),
        }
    }
}

impl<B> Body for Intake<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Some((_, room)) = &mut this.waiting {
            let Poll::Ready(room) = room.as_mut().poll(cx) else {
                return match this.on_time(cx) {
                    Ok(()) => Poll::Pending,
                    Err(late) => Poll::Ready(Some(Err(late.into()))),
                };
            };
            this.hold(room);
            let piece = this.waiting.take().map(|(piece, _)| piece).unwrap_or_default();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            return match this.on_time(cx) {
                Ok(()) => Poll::Pending,
                Err(late) => Poll::Ready(Some(Err(late.into()))),
            };
        };
        let frame = match ready!(Poll::Ready(frame)) {
            None => return Poll::Ready(this.keep().err().map(|full| Err(full.into()))),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let Some(piece) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
        let (ahead, whole) = this.meter.piece(piece.clone(), this.limit);
        if whole {
            // It is handed on with this piece.
            (this.held, this.late) = (None, None);
        }
        if ahead == 0 {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(room) = this.budget.try_take(ahead) {
            this.hold(Some(room));
            return Poll::Ready(Some(Ok(frame)));
        }
        let room = Box::pin(this.budget.take(ahead));
        this.waiting = frame.into_data().ok().map(|piece| (piece, room as Room));
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.waiting.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::budget::UNIT, *};
    use futures_util::{FutureExt as _, future::poll_fn};
    use std::collections::VecDeque;

    /// Pieces; then the end, or nothing for ever.
    struct Pieces(VecDeque<Bytes>, bool);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            match self.0.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if self.1 => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    fn body(pieces: &[usize], ends: bool) -> Pieces {
        Pieces(pieces.iter().map(|size| Bytes::from(vec![0; *size])).collect(), ends)
    }

    /// The size of the next piece; an error as text.
    async fn next(intake: &mut Intake<Pieces>) -> Option<Result<usize, String>> {
        let frame = poll_fn(|cx| Pin::new(&mut *intake).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.data_ref().map_or(0, Bytes::len)).map_err(|error| error.to_string()))
    }

    #[tokio::test]
    async fn a_large_message_waits_for_room_and_gives_it_back() {
        let budget = Budget::of(100);
        let mut one = Intake::new(body(&[FREE, 80 * UNIT], false), false, 1 << 20, budget.clone(), None);
        assert_eq!((next(&mut one).await, next(&mut one).await), (Some(Ok(FREE)), Some(Ok(80 * UNIT))));
        let mut two = Intake::new(body(&[FREE + 30 * UNIT], true), false, 1 << 20, budget.clone(), None);
        assert!(next(&mut two).now_or_never().is_none(), "there is no room");
        let mut few = Intake::new(body(&[FREE], true), false, 1 << 20, budget.clone(), None);
        assert_eq!(next(&mut few).await, Some(Ok(FREE)), "small ones never wait");
        drop(one);
        assert_eq!((next(&mut two).await, next(&mut two).await), (Some(Ok(FREE + 30 * UNIT)), None));
        drop(two);
        assert_eq!(budget.left(), 100);
    }

    #[tokio::test]
    async fn what_a_call_is_to_do_keeps_its_room_until_it_is_answered() {
        let (budget, most) = (Budget::of(100), Budget::of(100));
        let kept = Kept::new(most.clone());
        let large =
            |kept| Intake::new(body(&[FREE, 40 * UNIT], true), false, 1 << 20, budget.clone(), Some(kept));
        let mut one = large(kept.clone());
        while next(&mut one).await.is_some() {}
        drop(one);
        assert_eq!((budget.left(), most.left()), (100, 20));
        // Nobody waits for it.
        let mut two = large(Kept::new(most.clone()));
        assert_eq!(next(&mut two).await, Some(Ok(FREE)));
        assert_eq!(next(&mut two).await, Some(Ok(40 * UNIT)));
        let refused = next(&mut two).now_or_never().flatten().expect("an error").expect_err("refused");
        assert!(refused.contains("at once"), "{refused}");
        drop((kept, two));
        assert_eq!((budget.left(), most.left()), (100, 100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_never_ends_is_given_up() {
        let mut intake = Intake::new(body(&[10], false), false, 1 << 20, Budget::of(1), None);
        assert_eq!(next(&mut intake).await, Some(Ok(10)));
        let late = next(&mut intake).await.expect("an error").expect_err("late");
        assert!(late.contains("60"), "{late}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_be_silent_between_its_messages() {
        let message = |size: usize| {
            let mut bytes = vec![0];
            bytes.extend(u32::try_from(size).expect("small").to_be_bytes());
            bytes.extend(vec![7; size]);
            bytes
        };
        let mut bytes = message(3);
        bytes.extend(message(FREE + 40 * UNIT));
        bytes.extend(message(0));
        let budget = Budget::of(50);
        // Whatever the pieces are.
        for size in [1_000, 7, bytes.len()] {
            let pieces = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
            let mut intake = Intake::new(Pieces(pieces, false), true, 1 << 20, budget.clone(), None);
            let mut seen = 0;
            while seen < bytes.len() {
                seen += next(&mut intake).await.expect("a piece").expect("no error");
            }
            let silent = tokio::time::timeout(IN_TIME * 10, next(&mut intake)).await;
            assert!(silent.is_err(), "pieces of {size}");
            assert_eq!(budget.left(), 50);
        }
        // Within a message it may not.
        let pieces = vec![Bytes::copy_from_slice(&bytes[..bytes.len() - 6])].into();
        let mut intake = Intake::new(Pieces(pieces, false), true, 1 << 20, budget.clone(), None);
        assert!(next(&mut intake).await.expect("a piece").is_ok());
        assert!(next(&mut intake).await.expect("an error").is_err());
        drop(intake);
        assert_eq!(budget.left(), 50);
    }
}
