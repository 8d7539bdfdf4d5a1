//! What keeps a server from starting, and how it says so.

use crate::harness::*;
use backjob::{app, store::OpenError};
use std::fs;

async fn refused(setup: &Setup) -> app::Error {
    match app::App::build(&setup.config()).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

fn setup() -> Setup {
    Setup::new("127.0.0.1:9".parse().expect("an address"))
}

#[tokio::test]
async fn a_file_that_is_not_a_database_is_refused_and_left_as_it_is() {
    if !on_a_file("it is about a file") {
        return;
    }
    let setup = setup().with("key_file", "");
    for garbage in ["this is a diary, not a database".repeat(100), "x".to_owned()] {
        fs::write(setup.file("backjob.db"), &garbage).expect("written");
        backjob::secret::Keyring::create(&setup.file("backjob.key")).ok();
        let error = refused(&setup).await;
        assert!(matches!(error, app::Error::Store(OpenError::NotADatabase { .. })), "{error}");
        assert!(error.to_string().contains("backjob.db"), "{error}");
        assert_eq!(fs::read_to_string(setup.file("backjob.db")).expect("readable"), garbage);
    }
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_refused() {
    if !on_a_file("it is about a file") {
        return;
    }
    let setup = setup();
    let url = format!("sqlite://{}", setup.file("nowhere/backjob.db").display());
    let setup = setup.with("database.url", &url).with("key_file", "KEY");
    let key = setup.file("KEY");
    backjob::secret::Keyring::create(&key).expect("made");
    let setup = setup.with("key_file", &key.display().to_string());
    let error = refused(&setup).await;
    assert!(matches!(error, app::Error::Store(OpenError::NotWritable { .. })), "{error}");
    fs::create_dir_all(setup.file("nowhere/backjob.db")).expect("a folder in its place");
    let error = refused(&setup).await;
    assert!(matches!(error, app::Error::Store(OpenError::NotWritable { .. })), "{error}");
}

#[tokio::test]
async fn a_second_server_of_the_same_name_is_refused_while_the_first_one_lives() {
    if !on_a_server() {
        return;
    }
    let (server, _application) = pair().await;
    let error = refused(&server.setup).await;
    assert!(matches!(error, app::Error::NameTaken(_)), "{error}");
    assert!(error.to_string().starts_with("node.name: "), "{error}");
    server.start(start("/goes-on")).await;
    let setup = server.shut_down().await;
    soon("the place", setup.start()).await;
}

#[tokio::test]
async fn a_second_server_on_the_same_file_is_told_so() {
    if !on_a_file("for others see the test above") {
        return;
    }
    let (server, _application) = pair().await;
    let error = refused(&server.setup).await;
    assert!(matches!(error, app::Error::Store(OpenError::InUse { .. })), "{error}");
    assert!(error.to_string().contains("in use by another backjob"), "{error}");
    let setup = server.shut_down().await;
    setup.start().await;
}

#[tokio::test]
async fn tables_of_a_newer_version_are_refused() {
    if !on_what_lasts() {
        return;
    }
    use sea_orm::ConnectionTrait as _;
    let (server, _application) = pair().await;
    let setup = server.shut_down().await;
    let database = setup.beside().await;
    let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m20991231_000001_later', 0)";
    database.execute_unprepared(newer).await.expect("written");
    database.close().await.expect("closed");
    let error = refused(&setup).await;
    assert!(matches!(error, app::Error::Store(OpenError::NewerSchema { .. })), "{error}");
}

#[tokio::test]
async fn a_database_whose_key_is_gone_is_refused() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    server.start(start("/a")).await;
    application.hit().await.ok();
    let setup = server.shut_down().await;
    fs::remove_file(setup.file("backjob.key")).expect("removed");
    let error = refused(&setup).await;
    assert!(matches!(error, app::Error::KeyGone { .. }), "{error}");
    backjob::secret::Keyring::create(&setup.file("backjob.key")).expect("another");
    let error = refused(&setup).await;
    assert!(matches!(error, app::Error::Store(OpenError::MissingRoot { .. })), "{error}");
}

#[tokio::test]
async fn tables_that_may_not_be_made_are_asked_for() {
    if !on_what_lasts() {
        return;
    }
    let setup = setup().with("database.migrate", "false");
    let error = refused(&setup).await;
    assert!(matches!(error, app::Error::Store(OpenError::MustMigrate { .. })), "{error}");
    let setup = setup.with("database.migrate", "true");
    let output = setup.command("migrate").output().await.expect("the program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    setup.with("database.migrate", "false").start().await;
}

#[tokio::test]
async fn an_address_in_use_and_a_bad_target_are_named() {
    let (server, _application) = pair().await;
    let taken = setup().with("server.listen", &server.address.to_string());
    let error = refused(&taken).await;
    assert!(matches!(error, app::Error::Listen(..)), "{error}");
    let bad = setup().with("targets.default.url", "http://user:secret@127.0.0.1/");
    let error = refused(&bad).await;
    assert!(matches!(error, app::Error::Target(..)), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_database_in_memory_serves_and_leaves_nothing() {
    if !on_a_file("it chooses a database itself") {
        return;
    }
    let application = Application::new().await;
    let server = Setup::new(application.address).with("database.url", "sqlite::memory:").start().await;
    let job = server.start(start("/a")).await;
    application.hit().await.ok();
    server.end(&job.id).await;
    assert_eq!(fs::read_dir(server.setup.folder.path()).expect("a folder").count(), 0);
}

#[tokio::test]
async fn the_program_names_every_fault_of_its_settings() {
    let setup = setup()
        .with("server.listen", "nonsense")
        .with("jobs.error_timeout", "never")
        .with("server.lisen", "x");
    let output = setup.command("serve").output().await.expect("the program");
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).expect("text");
    for key in ["server.listen", "jobs.error_timeout", "server.lisen"] {
        assert!(said.contains(key), "{said}");
    }
}

#[tokio::test]
async fn keygen_prints_what_an_application_checks_with() {
    if !on_what_lasts() {
        return;
    }
    let (server, application) = pair().await;
    server.start(start("/a")).await;
    let mut hit = application.hit().await;
    hit.ok();
    let setup = server.shut_down().await;
    let output = setup.command("keygen").args(["--target", "default"]).output().await.expect("the program");
    let said = String::from_utf8(output.stdout).expect("text");
    let keyid = said.lines().find_map(|line| line.strip_prefix("keyid ")).expect("a keyid");
    assert!(hit.header("signature-input").contains(&format!("keyid=\"{keyid}\"")), "{said}");
    assert!(said.lines().any(|line| line.strip_prefix("key ").is_some_and(|key| key.len() == 43)), "{said}");
    let output = setup.command("keygen").output().await.expect("the program");
    assert!(!output.status.success(), "a key is never overwritten");
}
