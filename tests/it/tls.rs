//! TLS of the listener, with certificates made here.

use crate::harness::*;
use backjob::{
    proto::v1::{self, job_control_client::JobControlClient},
    secret::{Role, token_line},
};
use std::{fs, net::SocketAddr};
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// An authority, which makes certificates.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("an authority").pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// Certificate and key in PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params =
            rcgen::CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()]).expect("params");
        (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }
}

const TOKEN: &str = "the token of shop";

/// With TLS, tokens and a listener for actions, on every address.
fn public(application: SocketAddr, authority: &Authority) -> Setup {
    let setup = Setup::new(application);
    let (certificate, key) = authority.issue("localhost");
    let file = |name: &str, content: &str| {
        let path = setup.file(name);
        fs::write(&path, content).expect("written");
        path.display().to_string()
    };
    let line = token_line("shop", Role::Operator, TOKEN).expect("a name");
    let settings = [
        ("server.listen", "0.0.0.0:0".to_owned()),
        ("server.tokens_file", file("tokens", &line)),
        ("tls.cert_file", file("cert.pem", &certificate)),
        ("tls.key_file", file("key.pem", &key)),
        ("worker.listen", "127.0.0.1:0".to_owned()),
    ];
    settings.into_iter().fold(setup, |setup, (key, value)| setup.with(key, &value))
}

pub fn trusting(authority: &Authority) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem)).domain_name("localhost")
}

pub async fn connect(address: SocketAddr, tls: ClientTlsConfig) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{}", address.port())).expect("a URL");
    let connected = soon("a connection", endpoint.tls_config(tls).expect("TLS").connect()).await;
    connected.map_err(|error| format!("{error:?}"))
}

async fn list(channel: Channel) -> Result<(), Status> {
    let request = authorized(v1::ListJobsRequest::default(), TOKEN);
    soon("ListJobs", JobControlClient::new(channel).list_jobs(request)).await.map(drop)
}

#[tokio::test]
async fn a_public_server_is_called_over_tls_and_reported_to_over_loopback() {
    let application = Application::new().await;
    let authority = Authority::new();
    let server = public(application.address, &authority).start().await;
    let channel = connect(server.address, trusting(&authority)).await.expect("connected");
    let request = authorized(start("/a"), TOKEN);
    let job = JobControlClient::new(channel.clone()).start(request).await.expect("started").into_inner();
    let mut hit = application.hit().await;

    // The action reports without TLS, where nothing else is served.
    let url = hit.header("backjob-report-url").to_owned();
    assert!(url.starts_with("http://127.0.0.1:") && !url.ends_with(&format!(":{}", server.address.port())));
    let address: SocketAddr = url.trim_start_matches("http://").parse().expect("an address");
    let worker = Clients::new(address);
    worker.report(&hit.token(), progress(40)).await.expect("taken");
    let mut control = worker.control();
    let refused =
        control.list_jobs(authorized(v1::ListJobsRequest::default(), TOKEN)).await.expect_err("not there");
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = control.list_jobs(v1::ListJobsRequest::default()).await.expect_err("not there");
    assert_eq!(refused.code(), Code::Unauthenticated);

    let id = job.job.expect("a job").id;
    let request = authorized(v1::GetStatusRequest { job_id: id, read_mask: None }, TOKEN);
    let seen = JobControlClient::new(channel).get_status(request).await.expect("a status").into_inner();
    assert_eq!(seen.job.expect("a job").progress, 40);
    hit.ok();

    // Who does not speak TLS, or trusts another authority, gets nowhere.
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.address.port())).expect("a URL");
    assert!(list(plain.connect_lazy()).await.is_err());
    assert!(connect(server.address, trusting(&Authority::new())).await.is_err());
}

#[tokio::test]
async fn an_action_may_report_over_tls() {
    use backjob::worker::Reporter;
    let application = Application::new().await;
    let authority = Authority::new();
    let server = public(application.address, &authority).with("worker.listen", "").start().await;
    let channel = connect(server.address, trusting(&authority)).await.expect("connected");
    JobControlClient::new(channel).start(authorized(start("/a"), TOKEN)).await.expect("started");
    let mut hit = application.hit().await;
    assert!(hit.header("backjob-report-url").starts_with("https://127.0.0.1:"));
    let reporter =
        Reporter::from_headers_trusting(&hit.headers, authority.pem.as_bytes()).expect("a reporter");
    soon("the end", reporter.finish("text/plain", "done")).await.expect("taken");
    hit.ok();
}

#[tokio::test]
async fn a_certificate_is_replaced_while_it_runs() {
    let application = Application::new().await;
    let (old, new) = (Authority::new(), Authority::new());
    let server = public(application.address, &old).start().await;
    let before = connect(server.address, trusting(&old)).await.expect("connected");
    list(before.clone()).await.expect("a list");
    let (certificate, key) = new.issue("localhost");
    // Between the two files the pair does not fit, and what was there holds.
    fs::write(server.setup.file("cert.pem"), certificate).expect("written");
    assert!(connect(server.address, trusting(&old)).await.is_ok());
    fs::write(server.setup.file("key.pem"), key).expect("written");
    poll("the new certificate", async || connect(server.address, trusting(&new)).await.map(drop)).await;
    assert!(connect(server.address, trusting(&old)).await.is_err());
    list(before).await.expect("open connections go on");
}

#[tokio::test]
async fn clients_may_be_asked_for_a_certificate() {
    let application = Application::new().await;
    let (authority, clients) = (Authority::new(), Authority::new());
    let setup = public(application.address, &authority);
    let file = setup.file("clients.pem");
    fs::write(&file, &clients.pem).expect("written");
    let server = setup.with("tls.client_ca_file", &file.display().to_string()).start().await;
    let shown = |(certificate, key): (String, String)| {
        trusting(&authority).identity(Identity::from_pem(certificate, key))
    };
    let channel = connect(server.address, shown(clients.issue("shop"))).await.expect("connected");
    list(channel.clone()).await.expect("a list");
    // A certificate is no token.
    let refused = JobControlClient::new(channel).list_jobs(v1::ListJobsRequest::default()).await;
    assert_eq!(refused.expect_err("refused").code(), Code::Unauthenticated);
    for tls in [trusting(&authority), shown(authority.issue("shop"))] {
        // With TLS 1.3 a client learns of it only with its first answer.
        let came = match connect(server.address, tls).await {
            Ok(channel) => list(channel).await.map_err(|status| status.to_string()),
            Err(error) => Err(error),
        };
        came.expect_err("refused");
    }
    // Actions need none.
    let mut control = Clients::new(server.address).control();
    assert!(control.list_jobs(v1::ListJobsRequest::default()).await.is_err());
}

#[tokio::test]
async fn the_program_calls_over_tls() {
    let application = Application::new().await;
    let authority = Authority::new();
    let server = public(application.address, &authority).start().await;
    let ca = server.setup.file("ca.pem");
    fs::write(&ca, &authority.pem).expect("written");
    let call = async |ca: Option<&std::path::Path>| {
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_backjob"));
        program.arg("list").env("BACKJOB_TOKEN", TOKEN);
        program.env("BACKJOB_ADDR", format!("https://localhost:{}", server.address.port()));
        if let Some(ca) = ca {
            program.env("BACKJOB_CA_FILE", ca);
        }
        let output = soon("the program", program.output()).await.expect("run");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    assert_eq!(call(Some(&ca)).await, (Some(0), String::new()));
    assert_eq!(call(None).await.0, Some(2), "the public authorities did not make it");
}

#[tokio::test]
async fn files_that_make_no_tls_are_named() {
    let authority = Authority::new();
    let setup = public("127.0.0.1:9".parse().expect("an address"), &authority);
    let (certificate, _) = authority.issue("localhost");
    let (_, other_key) = authority.issue("localhost");
    for (file, content, said) in [
        ("cert.pem", Some("nonsense"), "tls.cert_file"),
        ("cert.pem", Some(certificate.as_str()), "tls.cert_file and tls.key_file"),
        ("key.pem", Some("nonsense"), "tls.key_file"),
        ("key.pem", Some(other_key.as_str()), "tls.cert_file and tls.key_file"),
        ("key.pem", None, "key.pem"),
    ] {
        match content {
            Some(content) => fs::write(setup.file(file), content).expect("written"),
            None => fs::remove_file(setup.file(file)).expect("removed"),
        }
        let error = backjob::app::App::build(&setup.config()).await.err().expect("refused").to_string();
        assert!(error.contains(said) && !error.contains("PRIVATE"), "{file}: {error}");
        let (certificate, key) = authority.issue("localhost");
        fs::write(setup.file("cert.pem"), certificate).expect("written");
        fs::write(setup.file("key.pem"), key).expect("written");
    }
}

#[tokio::test]
async fn an_insecure_server_says_what_it_gives_up() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let said = async |settings: &[(&str, &str)]| {
        let setup = Setup::new("127.0.0.1:9".parse().expect("an address"));
        let setup = settings.iter().fold(setup, |setup, (key, value)| setup.with(key, value));
        let mut child = setup.command("serve").kill_on_drop(true).spawn().expect("the program");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let mut said = String::new();
        while let Some(line) = soon("a line", lines.next_line()).await.expect("text") {
            said.push_str(&line);
            said.push('\n');
            if line.contains("serving address=") {
                return said;
            }
        }
        panic!("it did not start: {said}");
    };
    let public = ("server.listen", "0.0.0.0:0");
    let text = said(&[public, ("server.insecure", "true")]).await;
    assert!(text.contains("insecure: without TLS") && text.contains("insecure: without tokens"), "{text}");
    assert!(text.contains("may start, read, cancel and delete every job"), "{text}");
    let text = said(&[]).await;
    assert!(!text.contains("insecure"), "{text}");
}
