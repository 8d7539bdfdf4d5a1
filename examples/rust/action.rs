//! An application with one action for backjob: it counts the words in the text
//! files of a folder, reports how far it is, and stops when it is told to.
//!
//! ```sh
//! TRIGGER_KEY=... FOLDER=. cargo run --example action
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "spawns as any application does; the rule is the server's own"
)]

use backjob::{verify::Verifier, worker::Reporter};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    collections::{HashMap, HashSet},
    env, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};
use tokio::net::TcpListener;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of a body, as backjob's own limit.
const MOST_BODY: usize = 1 << 20;
/// Bytes of a file; what is larger is hardly a text.
const MOST_FILE: u64 = 16 << 20;

struct Application {
    verifier: Verifier,
    folder: PathBuf,
    /// The attempts at work.
    running: Mutex<HashSet<(String, u32)>>,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let [keyid, key] = ["TRIGGER_KEYID", "TRIGGER_KEY"].map(env::var);
    let key = URL_SAFE_NO_PAD.decode(key?)?;
    let key: [u8; 32] =
        key.try_into().map_err(|_| "TRIGGER_KEY must be what `backjob keygen` prints as key")?;
    let application = Arc::new(Application {
        verifier: Verifier::new(keyid?, &key),
        folder: env::var("FOLDER").unwrap_or_else(|_| ".".into()).into(),
        running: Mutex::default(),
    });
    let port = env::var("PORT").unwrap_or_else(|_| "8080".into()).parse()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    eprintln!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let application = Arc::clone(&application);
        let service = service_fn(move |request| answer(Arc::clone(&application), request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    application: Arc<Application>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Error> {
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MOST_BODY).collect().await else {
        return say(StatusCode::PAYLOAD_TOO_LARGE, "the body cannot be read");
    };
    // Whoever reaches this port could call it: only backjob can sign.
    let trigger = match application.verifier.verify_parts(&parts, &body.to_bytes()) {
        Ok(trigger) => trigger,
        Err(error) => return say(StatusCode::UNAUTHORIZED, error),
    };
    if parts.uri.path() != "/reports/build" {
        return say(StatusCode::NOT_FOUND, "no such action");
    }
    let Some(pause) = pause(parts.uri.query().unwrap_or_default()) else {
        return say(StatusCode::BAD_REQUEST, "pause must be like 20ms or 1s");
    };
    let reporter = match Reporter::from_headers(&parts.headers) {
        Ok(reporter) => reporter,
        Err(error) => return say(StatusCode::BAD_REQUEST, error),
    };

    // Delivery is at least once: the same attempt may come again.
    let attempt = (trigger.job_id, trigger.attempt);
    let mut running = application.running.lock().unwrap_or_else(PoisonError::into_inner);
    if running.insert(attempt.clone()) {
        let application = Arc::clone(&application);
        tokio::spawn(async move {
            let worker = reporter.clone();
            let folder = application.folder.clone();
            let built = tokio::task::spawn_blocking(move || build(&folder, &worker, pause)).await;
            let ended = match built {
                Ok(Ok(Some(result))) => reporter.finish("text/plain", result).await,
                Ok(Ok(None)) => reporter.stopped().await,
                Ok(Err(error)) => reporter.fail(&error.to_string(), true).await,
                Err(panic) => reporter.fail(&panic.to_string(), false).await,
            };
            eprintln!("{attempt:?} has ended: {ended:?}");
            application.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
        });
    }
    // Detached: from here on the reports alone tell how it goes.
    say(StatusCode::ACCEPTED, "")
}

/// How long to rest after each file, so that there is something to watch.
fn pause(query: &str) -> Option<Duration> {
    let Some(value) = query.split('&').find_map(|pair| pair.strip_prefix("pause=")) else {
        return Some(Duration::ZERO);
    };
    if let Some(millis) = value.strip_suffix("ms") {
        return millis.parse().ok().map(Duration::from_millis);
    }
    value.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

/// The work. None if it was told to stop.
fn build(folder: &Path, reporter: &Reporter, pause: Duration) -> io::Result<Option<String>> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    let mut counts: HashMap<String, u64> = HashMap::new();
    for (done, file) in files.iter().enumerate() {
        if reporter.is_cancelled() {
            return Ok(None);
        }
        // What is no text is passed over.
        if let Ok(text) = fs::read_to_string(file) {
            let words = text.split(|c: char| !c.is_alphabetic() && c != '\'').filter(|word| !word.is_empty());
            let before: u64 = counts.values().sum();
            words.for_each(|word| *counts.entry(word.to_lowercase()).or_default() += 1);
            let words = counts.values().sum::<u64>() - before;
            reporter.text(&format!("{}: {words} words\n", file.display()));
        }
        // As often as it likes: what comes in between is merged.
        reporter.detail(done as u64 + 1, files.len() as u64, "files", "counting");
        thread::sleep(pause);
    }
    let total: u64 = counts.values().sum();
    let mut most: Vec<(String, u64)> = counts.into_iter().collect();
    most.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    let most: Vec<String> = most.iter().take(10).map(|(word, count)| format!("{word}: {count}\n")).collect();
    Ok(Some(format!("{total} words in {} files; the most frequent:\n{}", files.len(), most.concat())))
}

/// The files below a folder, but those in hidden folders.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && !entry.file_name().as_encoded_bytes().starts_with(b".") {
            list(&entry.path(), files)?;
        } else if kind.is_file() && entry.metadata()?.len() <= MOST_FILE {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn say(status: StatusCode, text: impl ToString) -> Result<Response<Full<Bytes>>, Error> {
    Ok(Response::builder().status(status).body(text.to_string().into())?)
}
