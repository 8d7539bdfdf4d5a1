//! Lines of the log on their way out.
//!
//! ```text
//!   an event ──▶ buffer (bounded) ──▶ the thread "log" ──▶ standard error
//! ```
//!
//! Who logs adds to a buffer and goes on: a reader of the log that is slow, or a full
//! disk behind it, holds up nothing but the log. And what is logged within [`REST`] is
//! written with one call of the system.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Bytes that wait to be written, at most. A line that is not within them is lost, and
/// how many were is told as soon as there is room.
const MOST: usize = 4 << 20;
/// For so long lines gather before they are written.
const REST: Duration = Duration::from_millis(2);
/// How long the end of the process waits for a reader of the log.
const LAST: Duration = Duration::from_secs(1);
/// What a buffer keeps of its room once it is written.
const KEPT: usize = 64 << 10;

/// Where lines are added, with `write`, each wholly or not at all.
#[derive(Debug, Default)]
pub(super) struct Lines {
    state: Mutex<State>,
    /// There is something to write, or it is to be written now.
    more: Condvar,
    /// All is written.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    text: Vec<u8>,
    lost: u64,
    /// Nothing is to be written, or is being written: the thread has to be woken.
    idle: bool,
    /// Nobody gathers any more.
    hurry: bool,
}

impl Lines {
    /// Begins to write to `out`. `lost` is told how many lines there was no room for.
    pub(super) fn begin(
        out: impl Write + Send + 'static,
        lost: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let lines = Arc::new(Self::default());
        let writer = Arc::clone(&lines);
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(out, lost))?;
        Ok(lines)
    }

    fn run(&self, mut out: impl Write, lost: impl Fn(u64)) {
        let mut text = Vec::new();
        let mut state = self.lock();
        loop {
            while state.text.is_empty() {
                state.idle = true;
                self.done.notify_all();
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.idle = false;
            let gathered = self.more.wait_timeout_while(state, REST, |state| !state.hurry);
            (state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut state.text, &mut text);
            let count = mem::take(&mut state.lost);
            drop(state);
            // If it fails there is nobody who could be told.
            let _ = out.write_all(&text);
            text.clear();
            text.shrink_to(KEPT);
            if count > 0 {
                lost(count);
            }
            state = self.lock();
        }
    }

    /// Waits until all is written, but not for long. From now on lines do not gather.
    pub(super) fn flush(&self) {
        let mut state = self.lock();
        state.hurry = true;
        self.more.notify_one();
        let pending = |state: &mut State| !(state.idle && state.text.is_empty());
        let _ = self.done.wait_timeout_while(state, LAST, pending);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        if !state.text.is_empty() && state.text.len() + line.len() > MOST {
            state.lost += 1;
            return Ok(line.len());
        }
        state.text.extend_from_slice(line);
        if mem::take(&mut state.idle) {
            self.more.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Takes what is written, each time when it is let.
    struct Reader {
        let_go: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Reader {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            // Whoever has let go of the other end has seen enough.
            let _ = self.let_go.recv();
            let _ = self.written.send(String::from_utf8_lossy(text).into_owned());
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Log {
        lines: Arc<Lines>,
        let_go: Sender<()>,
        written: Receiver<String>,
        lost: Receiver<u64>,
    }

    fn log() -> Log {
        let ((let_go, may), (wrote, written), (loses, lost)) = (channel(), channel(), channel());
        let lines = Lines::begin(Reader { let_go: may, written: wrote }, move |count| {
            let _ = loses.send(count);
        });
        Log { lines: lines.expect("a thread"), let_go, written, lost }
    }

    impl Log {
        fn add(&self, line: &str) {
            (&*self.lines).write_all(line.as_bytes()).expect("never fails");
        }

        /// What is written next.
        fn next(&self) -> String {
            self.let_go.send(()).expect("the thread runs");
            self.written.recv_timeout(Duration::from_secs(60)).expect("something is written")
        }
    }

    #[test]
    fn lines_are_written_in_their_order_and_those_that_gather_at_once() {
        let log = log();
        log.add("one\n");
        assert_eq!(log.next(), "one\n");
        log.add("two\n");
        // The thread holds it, or gathers still: the reader has not been let.
        log.add("three\n");
        log.add("four\n");
        let mut read = log.next();
        while !read.ends_with("four\n") {
            read += &log.next();
        }
        assert_eq!(read, "two\nthree\nfour\n");
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed() {
        let log = log();
        let line = format!("{}\n", "x".repeat(1_023));
        let most = 3 * MOST / line.len();
        for _ in 0..most {
            log.add(&line);
        }
        let (mut read, mut lost) = (0, 0);
        loop {
            read += log.next().len() / line.len();
            lost += log.lost.try_iter().sum::<u64>();
            let waits = log.lines.lock();
            if waits.text.is_empty() && waits.lost == 0 {
                break;
            }
        }
        log.lines.flush();
        lost += log.lost.try_iter().sum::<u64>();
        // One buffer that is written, one that waits.
        assert!(read >= MOST / line.len() && read <= 2 * MOST / line.len(), "{read}");
        assert_eq!(read + usize::try_from(lost).expect("few"), most);
    }

    #[test]
    fn a_flush_waits_for_what_was_added() {
        let log = log();
        log.let_go.send(()).expect("the thread runs");
        log.add("last\n");
        log.lines.flush();
        assert_eq!(log.written.try_recv().expect("is written"), "last\n");
        log.lines.flush(); // nothing to wait for
    }

    #[test]
    fn a_line_that_is_longer_than_the_buffer_is_written_all_the_same() {
        let log = log();
        let line = "x".repeat(MOST + 1);
        log.add(&line);
        assert_eq!(log.next().len(), line.len());
    }
}
