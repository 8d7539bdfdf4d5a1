//! A database file of which a page went bad.

use super::*;
use backjob::proto::v1::JobState;

const PAGE: u64 = 4096;

/// Overwrites a page of a database.
fn spoil(file: &Path, page: u64) {
    let file = fs::OpenOptions::new().write(true).open(file).expect("there");
    file.write_all_at(&[0xEE; PAGE as usize], (page - 1) * PAGE).expect("written");
}

async fn root_page(file: &Path, table: &str) -> u64 {
    use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement};
    let db = Database::connect(format!("sqlite://{}?mode=ro", file.display())).await.expect("opened");
    let sql = format!("SELECT rootpage FROM sqlite_master WHERE name = '{table}'");
    let row = db.query_one_raw(Statement::from_string(DbBackend::Sqlite, sql)).await.expect("asked");
    let page: i64 = row.expect("a table").try_get_by_index(0).expect("a number");
    db.close().await.expect("closed");
    u64::try_from(page).expect("a page")
}

/// A server with an ended job and a backup, stopped; the job.
async fn stopped_with_a_job(setup: &Setup, application: &Application) -> String {
    let server = Process::start(setup).await;
    let job = server.start(start("/a")).await;
    let mut hit = application.hit().await;
    server.report(&hit.token(), append("a text")).await.expect("taken");
    hit.ok();
    server.end(&job.id).await;
    let copied = setup.command("backup").arg(setup.file("copy.db")).output().await.expect("run");
    assert!(copied.status.success());
    assert!(server.terminate().await.success());
    job.id
}

#[tokio::test]
async fn a_damaged_file_is_told_at_the_start_with_the_cure() {
    if !on_a_file("it damages a file") {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let id = stopped_with_a_job(&setup, &application).await;
    let file = setup.file("backjob.db");
    for page in [1, root_page(&file, "job").await] {
        let whole = fs::read(&file).expect("read");
        spoil(&file, page);
        let output = soon("the end", setup.command("serve").kill_on_drop(true).output()).await.expect("run");
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("backjob.db") && said.contains("damaged") && said.contains("backup"), "{said}");
        fs::write(&file, whole).expect("written");
    }
    let server = Process::start(&setup).await;
    assert_eq!(server.get(&id).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn a_damaged_page_met_while_running_is_told_and_a_backup_restores_all() {
    if !on_a_file("it damages a file") {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let id = stopped_with_a_job(&setup, &application).await;
    let file = setup.file("backjob.db");
    let page = root_page(&file, "job_text").await;
    let server = Process::start(&setup).await; // which checks it
    spoil(&file, page);
    assert!(serving(&server).await, "nothing has met the page yet");
    unavailable(&server.get_raw(&id).await.expect_err("its text cannot be read"));
    until_serving(&server, false).await;
    until_said(&server, &["ERROR", "damaged", "backup"]).await;
    // What is taken now would be gone with the backup restored.
    unavailable(&server.refused(start("/refused")).await);
    assert!(server.terminate().await.success());

    fs::copy(setup.file("copy.db"), &file).expect("restored");
    for beside in ["backjob.db-wal", "backjob.db-shm"] {
        let _ = fs::remove_file(setup.file(beside)); // as the README says
    }
    let server = Process::start(&setup).await;
    assert_eq!(server.get(&id).await.status_text, "a text");
    let job = server.start(start("/b")).await;
    application.hit().await.ok();
    assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
}
