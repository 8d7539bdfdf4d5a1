//! No descriptor is left.

use super::*;
use backjob::proto::v1::JobState;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::{io::Read as _, net::TcpStream, time::Duration};

fn limit(server: &Process, most: u64) {
    let pid = Pid::from_raw(i32::try_from(server.id()).expect("small")).expect("a process");
    let new = Rlimit { current: Some(most), maximum: Some(4_096) };
    prlimit(Some(pid), Resource::Nofile, new).expect("set");
}

/// The number that its next file would get.
fn next_file(server: &Process) -> u64 {
    let open = |file: &u64| fs::symlink_metadata(format!("/proc/{}/fd/{file}", server.id())).is_ok();
    (0..4_096).find(|file| !open(file)).expect("there is one")
}

/// Whether the other side has closed it.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("set");
    !matches!((&mut &*stream).read(&mut [0; 64]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn connections_leave_descriptors_for_the_work() {
    let application = Application::new().await;
    let setup = Setup::new(application.address).with("targets.default.max_in_flight", "4");
    let mut command = tokio::process::Command::new("sh");
    let serve = setup.command("serve");
    let serve = serve.as_std();
    command.args(["-c", "ulimit -n 120; exec \"$0\" \"$@\""]).arg(serve.get_program()).args(serve.get_args());
    command.current_dir(setup.folder.path()).stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let server = Process::run(command).await;
    until_said(&server, &["the limit of open files"]).await;
    let first = server.start(start("/first")).await; // its client has a connection now
    application.hit().await.ok();
    server.end(&first.id).await;

    let crowd: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(server.address()).expect("connected")).collect();
    poll("some to be turned away", async || {
        let open = crowd.iter().filter(|stream| !is_closed(stream)).count();
        if open <= 60 { Ok(()) } else { Err(format!("{open} of 200 are open")) }
    })
    .await;
    until_said(&server, &["turned away"]).await;
    // Whoever is in is served, and jobs run.
    for n in 0..8 {
        let job = server.start(start(&format!("/{n}"))).await;
        let mut hit = application.hit().await;
        server.report(&hit.token(), progress(50)).await.expect("taken");
        hit.ok();
        assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
    }
    assert!(serving(&server).await);
    drop(crowd);
    poll("a newcomer to be served", async || {
        let newcomer = Clients::new(server.address());
        newcomer.get_raw(&first.id).await.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

#[tokio::test]
async fn without_descriptors_newcomers_and_triggers_wait_and_others_are_served() {
    if !on_a_file("connections to the server of a database want descriptors, too") {
        return;
    }
    let application = Application::new().await;
    let setup = Setup::new(application.address);
    let server = Process::start(&setup).await;
    let first = server.start(start("/first")).await;
    let mut hit = application.hit().await;
    server.report(&hit.token(), progress(10)).await.expect("taken");
    assert!(serving(&server).await);

    limit(&server, next_file(&server));
    let newcomer = Clients::new(server.address());
    let id = first.id.clone();
    let asked = spawn(async move { newcomer.get_raw(&id).await });
    until_said(&server, &["no connection can be taken now"]).await;
    until_serving(&server, false).await; // for whoever would come
    // Who is connected is served: reports, Starts, reads.
    server.report(&hit.token(), progress(20)).await.expect("taken");
    let second = server.start(start("/second")).await;
    until_said(&server, &["a trigger waits for a free descriptor"]).await;
    assert_eq!(server.get(&second.id).await.state(), JobState::Running);
    let used = server.cpu();
    let idle = Duration::from_secs(1);
    tokio::time::sleep(idle).await; // how much it works, with nothing that it could do
    let used = (server.cpu() - used).as_secs_f64();
    assert!(used < 0.4, "{used:.2} s of the processor in a second");
    assert!(!serving(&server).await, "as long as it lasts");

    limit(&server, 4_096);
    soon("the newcomer", asked).await.expect("no panic").expect("served");
    until_serving(&server, true).await;
    let mut second_hit = application.hit().await;
    assert_eq!(second_hit.header("backjob-job-id"), second.id);
    second_hit.ok();
    assert_eq!(server.end(&second.id).await.state(), JobState::Succeeded);
    hit.ok();
    server.end(&first.id).await;
    server.kill().await;
    all_succeeded(&setup, &[first.id, second.id]).await;
}

#[tokio::test]
async fn a_trigger_that_waits_for_a_descriptor_is_enough_to_be_unhealthy() {
    if !on_a_file("connections to the server of a database want descriptors, too") {
        return;
    }
    let application = Application::new().await;
    let server = Process::start(&Setup::new(application.address)).await;
    assert!(serving(&server).await); // its client has a connection now
    limit(&server, next_file(&server));
    let job = server.start(start("/a")).await;
    until_said(&server, &["a trigger waits for a free descriptor"]).await;
    until_serving(&server, false).await;
    limit(&server, 4_096);
    application.hit().await.ok();
    until_serving(&server, true).await;
    assert_eq!(server.end(&job.id).await.state(), JobState::Succeeded);
}
