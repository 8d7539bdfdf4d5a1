//! What was reported and not sent yet, merged into one message. Pure.

use crate::proto::v1::{ProgressDetail, ReportRequest, report_request as r};

/// Bytes of text that are kept.
const KEPT: usize = 64 * 1024;

/// The next message.
#[derive(Debug, Default)]
pub(super) struct Pending {
    next: ReportRequest,
    wanted: bool,
    ended: bool,
    sequence: u64,
    /// No heartbeats by themselves.
    pub(super) silent: bool,
}

fn head(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

fn tail(text: &str) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(KEPT))..]
}

impl Pending {
    pub(super) fn progress(&mut self, percent: u32) {
        self.wanted = true;
        self.next.progress_change = Some(r::ProgressChange::Progress(percent.min(100)));
    }

    pub(super) fn advance(&mut self, percent: u32) {
        self.wanted = true;
        let sum = |present: u32| present.saturating_add(percent).min(100);
        self.next.progress_change = Some(match self.next.progress_change {
            Some(r::ProgressChange::Progress(present)) => r::ProgressChange::Progress(sum(present)),
            Some(r::ProgressChange::ProgressIncrement(present)) => {
                r::ProgressChange::ProgressIncrement(sum(present))
            }
            None => r::ProgressChange::ProgressIncrement(sum(0)),
        });
    }

    pub(super) fn detail(&mut self, done: u64, total: u64, unit: &str, stage: &str) {
        self.wanted = true;
        let most = i64::MAX.unsigned_abs();
        let (done, total) = (done.min(most), total.min(most));
        let (unit, stage) = (head(unit, 64), head(stage, 256));
        self.next.progress_detail = Some(ProgressDetail { done, total, unit, stage });
    }

    pub(super) fn append(&mut self, more: &str) {
        self.wanted = true;
        match &mut self.next.text_change {
            Some(r::TextChange::StatusText(text) | r::TextChange::AppendText(text)) => {
                text.push_str(tail(more));
                let kept = tail(text).len();
                text.drain(..text.len() - kept);
            }
            None => self.next.text_change = Some(r::TextChange::AppendText(tail(more).to_owned())),
        }
    }

    pub(super) fn replace(&mut self, text: &str) {
        self.wanted = true;
        self.next.text_change = Some(r::TextChange::StatusText(tail(text).to_owned()));
    }

    pub(super) fn heartbeat(&mut self) {
        self.wanted = true;
    }

    /// False if an end was given before.
    pub(super) fn end(&mut self, end: r::End) -> bool {
        if self.ended {
            return false;
        }
        (self.wanted, self.ended) = (true, true);
        self.next.end = Some(end);
        true
    }

    /// The next message with its sequence, if there is anything to say.
    pub(super) fn take(&mut self) -> Option<ReportRequest> {
        if !std::mem::take(&mut self.wanted) {
            return None;
        }
        self.sequence += 1;
        let mut message = std::mem::take(&mut self.next);
        message.sequence = Some(self.sequence);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_sent_yet_is_merged() {
        let mut pending = Pending::default();
        assert_eq!(pending.take(), None);
        pending.advance(10);
        pending.advance(20);
        pending.append("one ");
        pending.append("two");
        pending.detail(1, 2, &"u".repeat(100), "stage");
        let message = pending.take().expect("something");
        assert_eq!(message.sequence, Some(1));
        assert_eq!(message.progress_change, Some(r::ProgressChange::ProgressIncrement(30)));
        assert_eq!(message.text_change, Some(r::TextChange::AppendText("one two".into())));
        assert_eq!(message.progress_detail.expect("said").unit.len(), 64);
        pending.progress(95);
        pending.advance(10);
        pending.append("lost");
        pending.replace("anew");
        pending.append("!");
        let message = pending.take().expect("something");
        assert_eq!(message.sequence, Some(2));
        assert_eq!(message.progress_change, Some(r::ProgressChange::Progress(100)));
        assert_eq!(message.text_change, Some(r::TextChange::StatusText("anew!".into())));
        assert_eq!(pending.take(), None);
    }

    #[test]
    fn text_is_bounded_and_only_one_end_is_taken() {
        let mut pending = Pending::default();
        for _ in 0..10 {
            pending.append(&"é".repeat(20_000));
        }
        assert!(pending.end(r::End::Stopped(crate::proto::v1::Stopped {})));
        assert!(!pending.end(r::End::Stopped(crate::proto::v1::Stopped {})));
        let Some(r::TextChange::AppendText(text)) = pending.take().expect("something").text_change else {
            panic!("appended text is expected");
        };
        assert_eq!(text.len(), KEPT);
    }
}
