//! The root key: what is derived from it, how it is changed, and what a key that
//! fell into the wrong hands is good for.

use crate::harness::*;
use backjob::{
    proto::v1,
    secret::{Keyring, ReportToken, Root, Use, WatchToken, seal},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::fs;

/// What `backjob keygen` prints with these arguments.
async fn keygen(setup: &Setup, arguments: &[&str]) -> Result<String, String> {
    let output = soon("keygen", setup.command("keygen").args(arguments).output()).await.expect("run");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn id_in(line: &str) -> String {
    line.split_whitespace().next().expect("an id").to_owned()
}

fn root_of(id: &str) -> Vec<u8> {
    u64::from_str_radix(id, 16).expect("hexadecimal").to_be_bytes().to_vec()
}

/// Ids of the roots that requests are sealed with.
async fn sealed_with(setup: &Setup) -> Vec<Vec<u8>> {
    let rows = setup.rows("SELECT root_id FROM job_request").await;
    rows.iter().map(|row| row.try_get_by_index(0).expect("an id")).collect()
}

#[tokio::test]
async fn the_root_is_changed_without_losing_a_job() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("targets.default.max_in_flight", "1");
    let server = setup.start().await;
    let keyid = |hit: &Hit| {
        let input = hit.header("signature-input").to_owned();
        input.split("keyid=\"").nth(1).expect("a keyid").split('"').next().expect("its end").to_owned()
    };
    // One that runs, one that waits with a body, credentials and a key, one to be joined.
    let running = server.start(start("/running")).await;
    let mut held = application.hit().await;
    let first_keyid = keyid(&held);
    let body = v1::RawBody { content_type: "text/plain".into(), data: "canary".into() };
    let waiting = v1::StartRequest {
        action: Some(v1::Action { method: "POST".into(), raw: Some(body), ..action("/waiting") }),
        idempotency_key: "key".into(),
        run_as: Some(v1::RunAs {
            kind: v1::RunAsKind::CurrentUser.into(),
            cookie: Some("session=alice".into()),
            authorization: None,
        }),
        ..start("/waiting")
    };
    let waits = server.start(waiting.clone()).await;
    let joined = v1::StartRequest { merge_policy: v1::MergePolicy::JoinPending.into(), ..start("/joined") };
    let joins = server.start(joined.clone()).await;

    // A second root is known, then first.
    let setup = server.shut_down().await;
    let second = id_in(&keygen(&setup, &["--add"]).await.expect("added"));
    let printed = keygen(&setup, &["--target", "default"]).await.expect("printed");
    let keyids: Vec<&str> = printed.lines().filter_map(|line| line.strip_prefix("keyid ")).collect();
    assert_eq!(keyids, [first_keyid.as_str(), &format!("{second}/default")]);
    keygen(&setup, &["--promote", &second]).await.expect("promoted");
    let first = first_keyid.split('/').next().expect("a root").to_owned();
    let status = keygen(&setup, &["--status"]).await.expect("a status");
    assert!(status.contains(&format!("{second} in use: 0 jobs")), "{status}");
    assert!(status.contains(&format!("{first} needed: 3 jobs are sealed with it, 1 running")), "{status}");
    let refused = keygen(&setup, &["--remove", &first]).await.expect_err("needed");
    assert!(refused.contains("still needed"), "{refused}");

    let server = setup.start().await;
    // What is sealed moves to the new root.
    poll("the new root", async || {
        let ids = sealed_with(&server.setup).await;
        if ids.iter().all(|id| *id == root_of(&second)) { Ok(()) } else { Err(format!("{ids:?}")) }
    })
    .await;
    // The running job's token is good as ever, and so `--status` waits for it.
    server.report(&held.token(), progress(40)).await.expect("taken");
    let status = keygen(&server.setup, &["--status"]).await.expect("a status");
    assert!(status.contains(&format!("{first} needed: 0 jobs are sealed with it, 1 running")), "{status}");
    // Equal Starts are still known.
    assert_eq!(server.start(waiting).await.id, waits.id);
    let again = server.control().start(joined).await.expect("started").into_inner();
    assert!(again.merged && again.job.expect("a job").id == joins.id);
    server.report(&held.token(), finish()).await.expect("taken");
    held.ok();
    server.end(&running.id).await;
    // New triggers use the new key; what was sealed arrives whole.
    let mut hit = application.hit().await;
    assert_eq!(
        (hit.uri.path(), &hit.body[..], hit.header("cookie")),
        ("/waiting", &b"canary"[..], "session=alice")
    );
    assert_eq!(keyid(&hit), format!("{second}/default"));
    hit.ok();
    server.end(&waits.id).await;
    application.hit().await.ok();
    server.end(&joins.id).await;

    // Now the old one may go, and nothing is missed.
    let status = keygen(&server.setup, &["--status"]).await.expect("a status");
    assert!(status.contains(&format!("{first} not needed")), "{status}");
    let setup = server.shut_down().await;
    keygen(&setup, &["--remove", &first]).await.expect("removed");
    let server = setup.start().await;
    assert_eq!(server.get(&running.id).await.state(), v1::JobState::Succeeded);
    let again = v1::RetryJobRequest { job_id: joins.id, ..Default::default() };
    server.control().retry_job(again).await.expect("started");
    application.hit().await.ok();
    // Keys of idempotency outlive the root that they were made under, too.
    let repeated = v1::StartRequest { idempotency_key: "later".into(), ..start("/b") };
    let one = server.start(repeated.clone()).await;
    assert_eq!(server.start(repeated).await.id, one.id);
}

#[tokio::test]
async fn a_root_that_is_taken_away_too_early_is_asked_for() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    server.start(start("/a")).await;
    application.hit().await.ok();
    let setup = server.shut_down().await;
    let second = id_in(&keygen(&setup, &["--add"]).await.expect("added"));
    keygen(&setup, &["--promote", &second]).await.expect("promoted");
    // By hand, past the program's own check.
    let text = fs::read_to_string(setup.file("backjob.key")).expect("readable");
    let only = text.lines().next().expect("a line").to_owned() + "\n";
    fs::write(setup.file("backjob.key"), only).expect("written");
    let error = backjob::app::App::build(&setup.config()).await.err().expect("refused").to_string();
    assert!(error.contains("root key") && error.contains("not among those given"), "{error}");
    fs::write(setup.file("backjob.key"), text).expect("written");
    setup.start().await;
}

#[tokio::test]
async fn an_application_that_is_broken_into_has_the_key_of_its_triggers_alone() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    let body = v1::RawBody { content_type: String::new(), data: "secret".into() };
    let action = v1::Action { method: "POST".into(), raw: Some(body), ..action("/a") };
    let job = server.start(v1::StartRequest { action: Some(action), ..start("/a") }).await;
    let mut hit = application.hit().await;
    let printed = keygen(&server.setup, &["--target", "default"]).await.expect("printed");
    let key = printed.lines().find_map(|line| line.strip_prefix("key ")).expect("a key");
    let stolen: [u8; 32] = URL_SAFE_NO_PAD.decode(key).expect("base64url").try_into().expect("32 bytes");

    // As if it were the root, and as if it were each key derived from the root.
    let as_root = Keyring::of(stolen);
    let known = Keyring::load(&server.setup.file("backjob.key")).expect("the real one");
    let id = job.id.parse::<backjob::job::JobId>().expect("an id");
    let genuine = ReportToken { job: id, attempt: 1 }.mint(&known);
    assert_eq!(genuine, hit.token(), "the test mints as the server does");
    let mut forged =
        vec![ReportToken { job: id, attempt: 1 }.mint(&as_root), WatchToken { job: id }.mint(&as_root)];
    for key in [stolen, Root::from_bytes(stolen).derive(Use::Report, "")] {
        use hmac::{KeyInit as _, Mac as _};
        let mut bytes = URL_SAFE_NO_PAD.decode(&genuine).expect("base64url");
        let named = bytes.len() - 32;
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(&key).expect("any length");
        mac.update(&bytes[..named]);
        bytes.truncate(named);
        bytes.extend_from_slice(&mac.finalize().into_bytes());
        forged.push(URL_SAFE_NO_PAD.encode(bytes));
    }
    for token in forged {
        let refused = server.report(&token, progress(99)).await.expect_err("refused");
        assert_eq!(fault(&refused).1, "TOKEN_INVALID");
    }
    assert_eq!(server.get(&job.id).await.progress, 0);

    // Nor does it open what is sealed.
    hit.ok();
    server.end(&job.id).await;
    let setup = server.shut_down().await;
    let rows = setup.rows("SELECT sealed FROM job_request").await;
    let sealed: Vec<u8> = rows[0].try_get_by_index(0).expect("bytes");
    let owner = id.to_bytes();
    assert!(seal::open(known.current(), &owner, &sealed).is_ok());
    assert!(seal::open(&Root::from_bytes(stolen), &owner, &sealed).is_err());
}

#[tokio::test]
async fn a_key_file_that_others_can_read_is_refused() {
    if !on_what_lasts() {
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let (server, _application) = pair().await;
    let setup = server.shut_down().await;
    let file = setup.file("backjob.key");
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    for mode in [0o640, 0o604, 0o660] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("chmod");
        let error = backjob::app::App::build(&setup.config()).await.err().expect("refused").to_string();
        assert!(error.contains("can be read by others"), "{error}");
    }
}
