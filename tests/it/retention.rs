//! How long ended jobs are kept.

use crate::harness::*;
use backjob::proto::v1::{self, JobState};

async fn gone(server: &Clients, id: &str) {
    poll("the job to be erased", || async {
        let request = v1::GetStatusRequest { job_id: id.to_owned(), read_mask: None };
        match server.control().get_status(request).await {
            Ok(answer) => Err(format!("{answer:?}")),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
            Err(status) => Err(status.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn each_window_erases_what_it_is_for_and_nothing_else() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    // Those that succeeded go at once, all others stay.
    let setup = Setup::new(application.address).with("retention.succeeded", "1ms").with("retention.all", "0");
    let server = setup.start().await;
    let waiting = server.start(v1::StartRequest { start_after: Some(seconds(3_600)), ..start("/w") }).await;
    let failed = server.start(start("/f")).await;
    application.hit().await.answer(404, &[], "");
    server.end(&failed.id).await;
    let succeeded = server.start(start("/s")).await;
    application.hit().await.ok();
    gone(&server, &succeeded.id).await;
    assert_eq!(server.get(&failed.id).await.state(), JobState::Failed);
    assert_eq!(server.get(&waiting.id).await.state(), JobState::Scheduled);
    // The window of all is one of its own.
    let setup = server.shut_down().await;
    let setup = setup.with("retention.succeeded", "0").with("retention.all", "1ms");
    let server = setup.start().await;
    gone(&server, &failed.id).await;
    server.cancel(&waiting.id).await.expect("cancelled");
    gone(&server, &waiting.id).await;
}

#[tokio::test]
async fn without_windows_everything_is_kept() {
    if !on_what_lasts() {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("retention.succeeded", "0").with("retention.all", "0");
    let server = setup.start().await;
    let job = server.start(start("/a")).await;
    application.hit().await.ok();
    server.end(&job.id).await;
    let server = server.shut_down().await.start().await;
    assert_eq!(server.get(&job.id).await.state(), JobState::Succeeded);
}
