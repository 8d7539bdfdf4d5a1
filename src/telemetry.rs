//! The log: where events of `tracing` go. To standard error, since standard
//! output belongs to what a command answers.

mod lines;

use crate::config::LogFormat;
use lines::Lines;
use std::{
    env,
    io::{self, IsTerminal as _},
    sync::Arc,
};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    fmt::{MakeWriter, layer},
    layer::SubscriberExt as _,
    registry::Registry,
    util::SubscriberInitExt as _,
};

/// Beats the configured filter: it is what whoever debugs any Rust program sets.
const VARIABLE: &str = "RUST_LOG";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a filter of tracing's EnvFilter. Gives who said it and why.
    #[error("{0} is not a filter of log events, like \"info,backjob=debug\": {1}")]
    Filter(&'static str, #[source] tracing_subscriber::filter::ParseError),
    /// The process has a log already, which stays as it is.
    #[error("the log is already set up")]
    AlreadySet,
    /// The system gives no thread for it.
    #[error("there is no thread for the log")]
    NoThread(#[source] io::Error),
}

/// The log of this process, while it is held: its end waits until all is written, but
/// not longer than a second.
#[derive(Debug)]
#[must_use = "what is logged last may be lost without it"]
pub struct Log(Arc<Lines>);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Sends the events of this process to standard error from now on. `filter`
/// says which (`log.level`); a RUST_LOG that is set and not empty beats it. Nobody waits
/// for a reader of the log: what it is too slow for is lost, and the log says so.
///
/// # Errors
/// A bad filter, a process that has a log already, or no thread. Nothing changes then.
pub fn init(format: LogFormat, filter: &str) -> Result<Log, Error> {
    let filter = choose(env::var(VARIABLE).ok().as_deref(), filter)?;
    let lost = |lines| tracing::warn!(lines, "lines of this log are lost: what reads it is too slow");
    let lines = Lines::begin(io::stderr(), lost).map_err(Error::NoThread)?;
    let log = Log(Arc::clone(&lines));
    let subscriber = subscriber(format, filter, lines, io::stderr().is_terminal());
    subscriber.try_init().map_err(|_| Error::AlreadySet)?;
    Ok(log)
}

/// The filter that counts.
fn choose(variable: Option<&str>, configured: &str) -> Result<EnvFilter, Error> {
    let (who, filter) = match variable.map(str::trim).filter(|filter| !filter.is_empty()) {
        Some(filter) => (VARIABLE, filter),
        None => ("log.level", configured),
    };
    EnvFilter::try_new(filter).map_err(|error| Error::Filter(who, error))
}

/// JSON lines have an event's fields at the top, where log stores look for them.
/// Only a terminal gets colours.
fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    writer: W,
    terminal: bool,
) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = match format {
        LogFormat::Human => layer().with_writer(writer).with_ansi(terminal).boxed(),
        LogFormat::Json => layer().with_writer(writer).json().flatten_event(true).boxed(),
    };
    Registry::default().with(lines).with(filter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What one event and one that is filtered out leave in the log.
    fn logged(format: LogFormat) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let filter = choose(None, "info").expect("a filter");
        let subscriber = subscriber(format, filter, move || writer.clone(), false);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(job = 7, "triggered");
            tracing::debug!("hidden");
        });
        String::from_utf8(kept.0.lock().expect("not poisoned").clone()).expect("text")
    }

    #[test]
    fn people_read_lines_without_colours() {
        let text = logged(LogFormat::Human);
        assert!(text.contains("INFO") && text.trim_end().ends_with("triggered job=7"), "{text}");
        assert!(text.lines().count() == 1 && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn machines_read_one_object_a_line() {
        let text = logged(LogFormat::Json);
        let event: serde_json::Value = serde_json::from_str(&text).expect("one object");
        assert_eq!((&event["level"], &event["message"]), (&"INFO".into(), &"triggered".into()));
        assert_eq!(event["job"], 7);
    }

    #[test]
    fn the_variable_beats_the_setting_and_a_bad_filter_is_named() {
        let chosen = |variable, configured| choose(variable, configured).map(|filter| filter.to_string());
        assert_eq!(chosen(Some("debug"), "info").expect("a filter"), "debug");
        assert_eq!(chosen(Some(" "), "info").expect("a filter"), "info");
        assert_eq!(chosen(None, "warn").expect("a filter"), "warn");
        let error = |variable, configured| choose(variable, configured).expect_err("refused").to_string();
        assert!(error(None, "info,a=b=c").starts_with("log.level is not a filter"));
        assert!(error(Some("a=b=c"), "info").starts_with("RUST_LOG is not a filter"));
    }

    #[test]
    fn a_second_log_is_an_error_and_no_panic() {
        // Another test of this process may have been first.
        let _ = init(LogFormat::Human, "off");
        assert!(matches!(init(LogFormat::Json, "off"), Err(Error::AlreadySet)));
    }
}
