//! GetStatus and ListJobs.

use crate::harness::*;
use backjob::proto::v1::{self, GetStatusRequest, JobState, ListJobsRequest, ListJobsResponse};
use prost_types::FieldMask;
use tonic::{Code, Status};

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() })
}

async fn list(server: &Server, request: ListJobsRequest) -> Result<ListJobsResponse, Status> {
    soon("ListJobs", server.control().list_jobs(request)).await.map(tonic::Response::into_inner)
}

async fn ids(server: &Server, filter: v1::JobFilter) -> Vec<String> {
    let request = ListJobsRequest { filter: Some(filter), ..Default::default() };
    list(server, request).await.expect("a list").jobs.into_iter().map(|job| job.id).collect()
}

#[tokio::test]
async fn an_unknown_job_is_not_found_and_never_started() {
    let (server, _application) = pair().await;
    let get = |id: &str, read_mask| {
        let request = GetStatusRequest { job_id: id.to_owned(), read_mask };
        let mut control = server.control();
        async move { soon("GetStatus", control.get_status(request)).await.expect_err("refused") }
    };
    let unknown = get("01890a5d-ac96-774b-bcce-b302099a8057", None).await;
    assert_eq!(fault(&unknown), (Code::NotFound, "JOB_NOT_FOUND".into(), vec![]));
    for id in ["", "1", "01890a5dac96774bbcceb302099a8057", "{01890a5d-ac96-774b-bcce-b302099a8057}"] {
        names(&get(id, None).await, "job_id");
    }
    let job = server.start(later("/a")).await;
    names(&get(&job.id, mask(&["id", "nothing"])).await, "read_mask");
}

#[tokio::test]
async fn a_read_mask_gives_the_named_fields_alone() {
    let (server, _application) = pair().await;
    let job = server.start(later("/a")).await;
    let get = |read_mask| {
        let request = GetStatusRequest { job_id: job.id.clone(), read_mask };
        let mut control = server.control();
        async move { control.get_status(request).await.expect("a status").into_inner().job.expect("a job") }
    };
    let expected = v1::Job { id: job.id.clone(), state: JobState::Scheduled.into(), ..Default::default() };
    assert_eq!(get(mask(&["id", "state"])).await, expected);
    assert_eq!(get(mask(&["*"])).await, job);
    assert_eq!(get(None).await, job);
}

#[tokio::test]
async fn pages_are_stable_while_jobs_come_and_newest_first() {
    let (server, _application) = pair().await;
    let mut started = Vec::new();
    for n in 0..25 {
        started.push(server.start(later(&format!("/{n}"))).await.id);
    }
    started.reverse();
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let request = ListJobsRequest { page_size: 10, page_token: token, ..Default::default() };
        let page = list(&server, request).await.expect("a page");
        assert!(page.jobs.len() <= 10);
        seen.extend(page.jobs.into_iter().map(|job| job.id));
        server.start(later("/new")).await;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, started);
}

#[tokio::test]
async fn filters_select_what_they_say() {
    let (server, application) = pair().await;
    let labelled = |route: &str, value: &str| v1::StartRequest {
        labels: [("team".to_owned(), value.to_owned())].into(),
        ..later(route)
    };
    let red = server.start(labelled("/reports/a", "red")).await.id;
    let blue = server.start(labelled("/reports/b", "blue")).await.id;
    let done = server.start(start("/done_100%25")).await;
    application.hit().await.ok();
    let done = server.end(&done.id).await;
    let all = vec![done.id.clone(), blue.clone(), red.clone()];
    assert_eq!(ids(&server, v1::JobFilter::default()).await, all);
    let labels = [("team".to_owned(), "red".to_owned())].into();
    assert_eq!(ids(&server, v1::JobFilter { labels, ..Default::default() }).await, vec![red.clone()]);
    let states = vec![JobState::Succeeded.into()];
    assert_eq!(ids(&server, v1::JobFilter { states, ..Default::default() }).await, vec![done.id.clone()]);
    for (prefix, expected) in [
        ("/reports", vec![blue.clone(), red.clone()]),
        ("/REPORTS", vec![]),
        ("/done_100%25", vec![done.id.clone()]),
        ("/%", vec![]),
        ("/", all.clone()),
    ] {
        let filter = v1::JobFilter { route_prefix: prefix.to_owned(), ..Default::default() };
        assert_eq!(ids(&server, filter).await, expected, "{prefix}");
    }
    let target = |target: &str| v1::JobFilter { target: target.to_owned(), ..Default::default() };
    assert_eq!(ids(&server, target("default")).await, all);
    assert!(ids(&server, target("other")).await.is_empty());
    let created_before = done.created_at;
    assert_eq!(ids(&server, v1::JobFilter { created_before, ..Default::default() }).await.last(), Some(&red));
    let created_after = done.created_at;
    assert!(ids(&server, v1::JobFilter { created_after, ..Default::default() }).await.contains(&done.id));
    let request = ListJobsRequest { job_ids: vec![red.clone(), done.id.clone()], ..Default::default() };
    let listed = list(&server, request).await.expect("a list").jobs;
    assert_eq!(listed.iter().map(|job| &job.id).collect::<Vec<_>>(), [&done.id, &red]);
}

#[tokio::test]
async fn lists_leave_text_and_result_out_unless_the_mask_names_them() {
    let (server, application) = pair().await;
    let job = server.start(start("/a")).await;
    application.hit().await.answer(200, &[("content-type", "text/plain")], "text");
    server.end(&job.id).await;
    let listed = |read_mask| {
        let request = ListJobsRequest { read_mask, ..Default::default() };
        async { list(&server, request).await.expect("a list").jobs.remove(0) }
    };
    let plain = listed(None).await;
    assert!(plain.status_text.is_empty() && plain.result.is_none());
    assert_eq!(
        listed(mask(&["status_text"])).await,
        v1::Job { status_text: "text".into(), ..Default::default() }
    );
    assert!(listed(mask(&["*"])).await.result.is_some());
}

#[tokio::test]
async fn a_bad_list_is_refused_by_field() {
    let (server, _application) = pair().await;
    for n in 0..3 {
        server.start(later(&format!("/{n}"))).await;
    }
    let page = list(&server, ListJobsRequest { page_size: 1, ..Default::default() }).await.expect("a page");
    let other = Some(v1::JobFilter { target: "default".into(), ..Default::default() });
    for (request, field) in [
        (ListJobsRequest { page_size: -1, ..Default::default() }, "page_size"),
        (ListJobsRequest { page_token: "x".into(), ..Default::default() }, "page_token"),
        (
            ListJobsRequest { page_token: page.next_page_token, filter: other, ..Default::default() },
            "page_token",
        ),
        (ListJobsRequest { job_ids: vec!["x".into()], ..Default::default() }, "job_ids[0]"),
        (ListJobsRequest { job_ids: vec![String::new(); 501], ..Default::default() }, "job_ids"),
        (ListJobsRequest { read_mask: mask(&["x"]), ..Default::default() }, "read_mask"),
        (
            ListJobsRequest {
                filter: Some(v1::JobFilter { states: vec![0], ..Default::default() }),
                ..Default::default()
            },
            "filter.states",
        ),
    ] {
        names(&list(&server, request).await.expect_err("refused"), field);
    }
    let many = list(&server, ListJobsRequest { page_size: 100_000, ..Default::default() }).await;
    assert_eq!(many.expect("above 500 means 500").jobs.len(), 3);
}
