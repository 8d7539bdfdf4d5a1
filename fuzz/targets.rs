//! What is fuzzed: everything that parses what others send. Each takes any bytes,
//! must not panic, and asserts what has to hold of whatever comes out.
//!
//! `fuzz_targets` runs them under libFuzzer; `tests/it/fuzz.rs` runs them over the
//! corpus and mutations of it, on stable.

#![allow(dead_code)] // each binary uses one of them

use backjob::{
    app::{App, Stop},
    clock::{Clock, SystemClock},
    config::{Config, Sources},
    descriptors::Descriptors,
    job::{
        JobId, MergePolicy, Payload,
        draft::{self, Ceilings, Defaults, Draft},
        headers, identity, url,
    },
    secret::{Callers, Keyring, LoadError, ReportToken, Root, WatchToken},
    tasks::Tasks,
    trigger::{
        Client, Outcome, Request, Settings, Sink, Target, TargetOptions, Trigger as _,
        sign::{Signer, sign},
    },
    verify::Verifier,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const KEY: [u8; 32] = [7; 32];
/// For an answer. Long, since who measures something else may stop us meanwhile.
const PATIENCE: Duration = Duration::from_secs(300);

/// An application that answers with whatever it is told.
struct Answering {
    runtime: tokio::runtime::Runtime,
    listener: tokio::net::UnixListener,
    client: Client,
    _folder: tempfile::TempDir,
}

static ANSWERING: LazyLock<Mutex<Answering>> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("app.sock");
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(&socket).expect("a socket") });
    let options = TargetOptions {
        name: "app".into(),
        url: format!("unix:{}", socket.display()),
        host: None,
        allow: Vec::new(),
        ca_file: None,
        key: KEY,
        keyid: "k1".into(),
    };
    let target = Target::new(options).expect("a target");
    let settings = Settings { max_response: 256 * 1024, pool_idle: Duration::ZERO, ..Settings::default() };
    let client = Client::new(
        settings,
        vec![target],
        Arc::new(SystemClock::new()),
        Tasks::default(),
        Descriptors::default(),
    );
    Mutex::new(Answering { runtime, listener, client, _folder: folder })
});

struct Deaf;

impl Sink for Deaf {
    fn sent(&self) {}
    fn heard(&self) {}
    fn has_reported(&self) -> bool {
        false
    }
}

/// What an application answers a trigger with, and then closes.
pub fn response(data: &[u8]) {
    let request = Request {
        target: "app".into(),
        method: "POST".into(),
        url: "/a".into(),
        payload: Payload::default().into(),
        job: JobId::from_bytes([3; 16]),
        attempt: 1,
        report_token: "token".into(),
        deadline: None,
        cookie: None,
        authorization: None,
    };
    let answering = ANSWERING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Answering { runtime, listener, client, .. } = &*answering;
    let outcome = runtime.block_on(async {
        let answer = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut seen: Vec<u8> = Vec::new();
            let mut piece = [0; 4_096];
            while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut piece).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => seen.extend(&piece[..count]),
                }
            }
            let _ = stream.write_all(data).await; // it may hang up on us
            let _ = stream.shutdown().await;
        };
        let call = client.call(request, Arc::new(Deaf));
        let both = async { tokio::join!(call, answer).0 };
        tokio::time::timeout(PATIENCE, both).await.expect("an answer that ended is an end")
    });
    match outcome {
        Outcome::Response(response) => {
            // Empty lines before it are passed over.
            let head = data.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(0);
            assert!(data[head..].starts_with(b"HTTP/1."), "an answer out of nothing: {response:?}");
            assert!((200..600).contains(&response.status), "{response:?}");
            let kept = response.output.as_ref().map_or(0, |output| output.data.len());
            assert!(kept <= 64 * 1024, "{kept} bytes kept");
        }
        Outcome::NotSent(reason, message) => panic!("it was sent: {reason:?} {message}"),
        Outcome::BadResponse(message) | Outcome::Lost(message) => assert!(message.len() < 4_096),
    }
}

/// A signed trigger of which one thing is replaced.
pub fn signature(data: &[u8]) {
    const BODY: &[u8] = b"body";
    const NOW: i64 = 1_800_000_000;
    const NAMES: [&str; 7] = [
        "signature-input",
        "signature",
        "content-digest",
        "backjob-job-id",
        "backjob-attempt",
        "backjob-report-url",
        "backjob-report-token",
    ];
    let mut headers = http::HeaderMap::new();
    for (name, value) in NAMES[3..].iter().zip(["id", "2", "http://127.0.0.1:1", "token"]) {
        headers.insert(*name, http::HeaderValue::from_static(value));
    }
    let signer = Signer { key: &KEY, keyid: "k1", created: NOW, nonce: "n" };
    sign(signer, "POST", "/a?b", &mut headers, BODY).expect("signed");
    let verifier = Verifier::new("k1", &KEY);
    let check = |method: &str, path: &str, query: Option<&str>, headers: &http::HeaderMap, body: &[u8]| {
        verifier.verify(method, path, query, headers, body, NOW)
    };
    let genuine = check("POST", "/a", Some("b"), &headers, BODY).expect("genuine");
    let Some((&which, rest)) = data.split_first() else { return };
    let text = std::str::from_utf8(rest).unwrap_or_default();
    let name = NAMES[usize::from(which) % NAMES.len()];
    let checked = match which {
        200.. => check("POST", "/a", Some("b"), &headers, rest).map(|trigger| (trigger, rest == BODY)),
        180..200 => check(text, "/a", Some("b"), &headers, BODY).map(|trigger| (trigger, text == "POST")),
        160..180 => check("POST", text, Some("b"), &headers, BODY).map(|trigger| (trigger, text == "/a")),
        140..160 => check("POST", "/a", Some(text), &headers, BODY).map(|trigger| (trigger, text == "b")),
        _ => {
            let Ok(value) = http::HeaderValue::from_bytes(rest) else { return };
            let before = headers.insert(name, value.clone()).expect("it was there");
            // Headers of signatures may hold those of others besides.
            let same = name.starts_with("signature") || value.as_bytes().trim_ascii() == before.as_bytes();
            check("POST", "/a", Some("b"), &headers, BODY).map(|trigger| (trigger, same))
        }
    };
    if let Ok((trigger, same)) = checked {
        assert!(same, "{which}: a change went unseen: {text:?}");
        assert_eq!(trigger, genuine);
    }
}

/// Tokens, key files and files of tokens.
pub fn tokens(data: &[u8]) {
    static KEYS: LazyLock<Keyring> = LazyLock::new(|| Keyring::of(KEY));
    let text = String::from_utf8_lossy(data);
    // What is good is exactly what is minted.
    if let Ok(token) = ReportToken::check(&text, &KEYS) {
        assert_eq!(token.mint(&KEYS), text);
    }
    if let Ok(token) = WatchToken::check(&text, &KEYS) {
        assert_eq!(token.mint(&KEYS), text);
    }
    if let Ok(callers) = Callers::parse(&text) {
        assert!(callers.len() <= 1_000 && callers.find(&text).is_none());
    }
    if let Err(error) = Keyring::parse(&text) {
        // Words that hold nothing of what was given.
        assert!(matches!(error, LoadError::Malformed | LoadError::Empty), "{error}");
    }
    if let Ok(root) = Root::parse(&text) {
        assert!(!format!("{root:?}").contains(text.trim()));
    }
    if let Ok(id) = text.parse::<JobId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
}

/// A Start: lines of `key=value`, of which a route, queries, headers, fields and
/// the rest of it are made.
pub fn draft(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut draft = Draft::default();
    for line in text.split('\n') {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let own = || value.to_owned();
        match key.split_once(':').unwrap_or((key, "")) {
            ("method", _) => draft.method = own(),
            ("route", _) => draft.route = own(),
            ("q", name) => drop(draft.query.insert(name.to_owned(), own())),
            ("h", name) => drop(draft.headers.insert(name.to_owned(), own())),
            ("f", name) => drop(draft.form.insert(name.to_owned(), own())),
            ("raw", kind) => draft.raw = Some((kind.to_owned(), own().into())),
            ("cookies", _) => draft.cookies = own(),
            ("label", name) => drop(draft.labels.insert(name.to_owned(), own())),
            ("name", _) => draft.display_name = own(),
            ("after", _) => draft.start_after = value.parse().ok(),
            _ => {}
        }
    }
    if let Ok(url) = url::build("/base", &draft.route, &draft.query) {
        assert!(url.starts_with("/base/") && url.len() <= url::MAX, "{url:?}");
        assert!(
            url.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\#\"<>^`{|}".contains(&byte)),
            "{url:?}"
        );
        let path = url.split('?').next().unwrap_or_default();
        for segment in path.split('/') {
            let plain = segment.replace("%2e", ".").replace("%2E", ".");
            assert!(plain != "." && plain != "..", "{url:?}");
        }
        url.parse::<http::uri::PathAndQuery>().expect("a request line can hold it");
    }
    if let Ok(sent) = headers::check(&draft.headers, &[]) {
        for (name, value) in sent {
            http::HeaderName::from_lowercase(name.as_bytes()).expect("a name in lower case");
            assert!(!value.contains(['\r', '\n', '\0']), "{name}: {value:?}");
            http::HeaderValue::try_from(&value).expect("a value");
            for own in
                ["host", "content-length", "transfer-encoding", "connection", "cookie", "authorization"]
            {
                assert_ne!(name, own);
            }
            assert!(!name.starts_with("backjob-") && !name.starts_with("x-forwarded-"), "{name}");
        }
    }
    let defaults = Defaults {
        base_path: "/base",
        allow_headers: &[],
        error_timeout: 60_000,
        response_timeout: None,
        max_duration: None,
        cancel_grace: 10_000,
        expire_after: None,
        ceilings: Ceilings { error_timeout: 86_400_000, max_duration: None, expire_after: None },
        merge_policy: MergePolicy::JoinPending,
        identity: identity::Allowed { identity: true, cookies: &["session".to_owned(), "auth_*".to_owned()] },
    };
    match draft::check(draft, &defaults, SystemClock::new().wall()) {
        Ok(checked) => assert!(checked.spec.url.starts_with("/base/")),
        Err(violations) => assert!(!violations.is_empty() && violations.len() <= draft::MAX_VIOLATIONS + 1),
    }
}

/// A configuration: a file, and behind a line of `---` what variables and flags
/// give.
pub fn config(data: &[u8]) {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));
    let text = String::from_utf8_lossy(data);
    let (file, rest) = text.split_once("\n---\n").unwrap_or((&text, ""));
    let folder = FOLDER.path().join(format!("{:?}", std::thread::current().id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("backjob.toml"), file).expect("written");
    let mut sources = Sources { folder, file: None, environment: Vec::new(), flags: Vec::new() };
    for line in rest.lines() {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        match key.strip_prefix('$') {
            Some(name) => sources.environment.push((format!("BACKJOB_{name}").into(), value.into())),
            None => sources.flags.push((key.to_owned(), value.to_owned())),
        }
    }
    match Config::load_from(sources) {
        Ok((config, given)) => {
            assert!(config.validate().is_empty() && !config.targets.is_empty());
            let shown = config.shown(&given);
            let read: BTreeMap<String, toml::Value> = toml::from_str(&shown).expect("it shows as TOML");
            assert!(read.contains_key("server"));
        }
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}

/// A server, and what may be sent to it with a token of every kind.
struct Serving {
    runtime: tokio::runtime::Runtime,
    address: std::net::SocketAddr,
    report: String,
    _folder: tempfile::TempDir,
}

static SERVING: LazyLock<Serving> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let flags = [
        ("server.listen", "127.0.0.1:0"),
        ("database.url", "sqlite::memory:"),
        ("targets.default.url", "http://127.0.0.1:9"),
        ("jobs.max_pending", "100"),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let key = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, KEY);
    let environment = vec![("BACKJOB_KEY".into(), key.into())];
    let sources = Sources { folder: folder.path().to_owned(), file: None, environment, flags };
    let config = Config::load(sources).unwrap_or_else(|faults| panic!("{faults}"));
    let app = runtime.block_on(App::build(&config)).unwrap_or_else(|error| panic!("{error}"));
    let address = app.address();
    runtime.spawn(app.run(Stop::default()));
    let report = ReportToken { job: JobId::from_bytes([3; 16]), attempt: 1 }.mint(&Keyring::of(KEY));
    Serving { runtime, address, report, _folder: folder }
});

/// A call: which rpc, in which form, and its message; or the bytes of a connection.
/// Each is answered, with a reason if it is refused, and never as a fault of ours.
pub fn rpc(data: &[u8]) {
    const RPCS: [&str; 13] = [
        "JobControl/Start",
        "JobControl/GetStatus",
        "JobControl/WatchStatus",
        "JobControl/Run",
        "JobControl/BatchStart",
        "JobControl/ListJobs",
        "JobControl/CancelJob",
        "JobControl/RetryJob",
        "JobControl/DeleteJob",
        "JobControl/ListAttempts",
        "JobControl/ExplainJob",
        "JobWorker/Report",
        "JobWorker/ReportStream",
    ];
    let Some((&[which, form], message)) = data.split_first_chunk() else { return };
    let Serving { runtime, address, report, .. } = &*SERVING;
    let rpc = RPCS[usize::from(which) % RPCS.len()];
    let framed = |message: &[u8]| {
        let length = u32::try_from(message.len()).expect("small").to_be_bytes();
        [&[0][..], &length, message].concat()
    };
    let (kind, body) = match form % 5 {
        0 => ("application/json", message.to_vec()),
        1 => ("application/proto", message.to_vec()),
        2 => ("application/grpc-web+proto", framed(message)),
        // Frames as they come.
        3 => ("application/grpc-web+proto", message.to_vec()),
        _ => ("", Vec::new()),
    };
    let head = format!(
        "POST /backjob.v1.{rpc} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nAuthorization: Bearer \
         {report}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let sent = if kind.is_empty() { message.to_vec() } else { [head.as_bytes(), &body].concat() };
    let answer = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let _ = stream.write_all(&sent).await; // it may hang up on us
        if kind.is_empty() {
            let _ = stream.shutdown().await; // there may be no end in what was sent
        }
        let (mut answer, mut piece) = (Vec::new(), [0; 4_096]);
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            answer.extend(&piece[..count]);
            // A watch goes on: its beginning is enough.
            if answer.len() > 64 * 1024 || (matches!(rpc, "JobControl/WatchStatus" | "JobControl/Run")) {
                break;
            }
        }
        answer
    };
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
    let Ok(answer) = answer else { panic!("{rpc} {kind:?} is not answered: {message:?}") };
    if kind.is_empty() {
        return; // whatever it was, it is over
    }
    let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 "), "{rpc} {kind}: {text:?}");
    assert!(!text.contains("grpc-status: 13") && !text.contains("grpc-status:13"), "{rpc} {kind}: {text}");
    assert!(!text.starts_with("http/1.1 500"), "{rpc} {kind}: {text}");
    if text.starts_with("http/1.1 4") || text.starts_with("http/1.1 5") {
        assert!(text.contains("google.rpc.errorinfo"), "{rpc} {kind}: {text}");
    }
}
