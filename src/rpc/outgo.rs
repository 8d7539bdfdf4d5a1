//! Answers on their way out: how much of them may lie in memory, and how long.
//!
//! HTTP/2 lets a client ask a thousand times and take nothing: each answer then
//! lies here whole. So what answers take beyond a first piece comes out of one
//! budget, an answer holds the place of its call until it is taken, and a
//! connection that leaves one lying for a minute is closed.

use super::{
    budget::{BUDGET, Budget},
    connect,
    gate::Held,
    status,
};
use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{sync::OwnedSemaphorePermit, time::sleep};
use tonic::{Status, body::Body};

/// Bytes of an answer that are not counted: most are smaller.
const FREE: usize = 4 * 1024;
/// An answer lies for three to four of them, at most.
const TURN: Duration = Duration::from_secs(20);
/// Turns that are told apart.
const TURNS: usize = 4;

/// The answers of one connection that were not taken yet, by the turn in which
/// they were made.
#[derive(Debug, Default)]
pub(super) struct Unread {
    turn: AtomicUsize,
    made: [AtomicU32; TURNS],
}

impl Unread {
    fn mark(self: &Arc<Self>) -> Mark {
        let turn = self.turn.load(Relaxed) % TURNS;
        self.made[turn].fetch_add(1, Relaxed);
        Mark { unread: Arc::clone(self), turn }
    }

    /// Returns when one has lain for too long.
    pub async fn outstayed(&self) {
        loop {
            sleep(TURN).await;
            // Those of the turn that comes again now are three turns old or older.
            let next = (self.turn.load(Relaxed) + 1) % TURNS;
            if self.made[next].load(Relaxed) > 0 {
                return;
            }
            self.turn.store(next, Relaxed);
        }
    }
}

/// One answer that was not taken yet.
struct Mark {
    unread: Arc<Unread>,
    turn: usize,
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.unread.made[self.turn].fetch_sub(1, Relaxed);
    }
}

/// A unary answer, held to the budget; `held` is given back when it was taken.
/// Where there is no room, what `may_wait` does; the others are refused, and can
/// be repeated.
pub(super) async fn keep(
    response: Response<Body>,
    budget: &Budget,
    unread: &Arc<Unread>,
    may_wait: bool,
    held: Held,
) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    let (parts, mut body) = response.into_parts();
    let (mark, hint) = (unread.mark(), body.size_hint());
    let first = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    let first = match first {
        Some(Ok(frame)) => match frame.into_data() {
            Ok(data) if data.len() > FREE => {
                let room = match budget.try_take(data.len() - FREE) {
                    Some(room) => Some(room),
                    None if may_wait => budget.take(data.len() - FREE).await,
                    None => {
                        let refused = status::too_many_answers(BUDGET);
                        return connect::refused(&parts.headers, &refused);
                    }
                };
                // Also what HTTP/2 has taken over and not sent is counted.
                Some(Ok(Frame::data(Bytes::from_owner(Counted { data, _room: room, _mark: unread.mark() }))))
            }
            Ok(data) => Some(Ok(Frame::data(data))),
            Err(other) => Some(Ok(other)),
        },
        other => other,
    };
    Response::from_parts(parts, Body::new(Kept { first, hint, rest: body, _mark: mark, _held: held }))
}

/// Bytes that take room as long as they are somewhere.
struct Counted {
    data: Bytes,
    _room: Option<OwnedSemaphorePermit>,
    _mark: Mark,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// The body of an answer that lies whole in memory.
struct Kept {
    first: Option<Result<Frame<Bytes>, Status>>,
    /// Of the whole, as long as the first frame is there.
    hint: SizeHint,
    rest: Body,
    _mark: Mark,
    _held: Held,
}

impl http_body::Body for Kept {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.first.is_some() { self.hint } else { self.rest.size_hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::budget::UNIT, *};
    use futures_util::FutureExt as _;
    use http_body_util::{BodyExt as _, Full};

    fn answer(size: usize) -> Response<Body> {
        Response::new(Body::new(Full::new(Bytes::from(vec![7; size]))))
    }

    #[tokio::test]
    async fn large_answers_take_room_until_their_bytes_are_gone() {
        let (budget, unread) = (Budget::of(100), Arc::new(Unread::default()));
        let keep = |size, may_wait| keep(answer(size), &budget, &unread, may_wait, Held::default());
        let one = keep(FREE + 80 * UNIT, false).await;
        assert_eq!(one.body().size_hint().exact(), Some((FREE + 80 * UNIT) as u64));
        let refused = keep(FREE + 21 * UNIT, false).await;
        assert!(refused.status().is_client_error(), "{refused:?}");
        assert!(keep(FREE + 21 * UNIT, true).now_or_never().is_none(), "it waits");
        let small = keep(FREE, false).await.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(small.len(), FREE);
        let taken = one.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!((taken.len(), budget.left()), (FREE + 80 * UNIT, 20));
        assert_eq!(unread.made[0].load(Relaxed), 1, "its bytes are still somewhere");
        drop(taken);
        assert_eq!((budget.left(), unread.made[0].load(Relaxed)), (100, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_noticed() {
        let (budget, unread) = (Budget::default(), Arc::new(Unread::default()));
        let mut outstayed = Box::pin(unread.outstayed());
        for _ in 0..10 {
            // One after the other is taken in time.
            let answer = keep(answer(10), &budget, &unread, false, Held::default()).await;
            assert!(tokio::time::timeout(TURN * 2, &mut outstayed).await.is_err());
            drop(answer);
        }
        let _left = keep(answer(10), &budget, &unread, false, Held::default()).await;
        tokio::time::timeout(TURN * 4, outstayed).await.expect("noticed");
    }
}
