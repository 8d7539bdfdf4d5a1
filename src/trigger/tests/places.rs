//! Whom the trigger may call, and over what.

use super::*;
use std::{net::SocketAddr, path::PathBuf};

/// One call, answered over `accept`.
async fn answered(client: &Client, accept: impl Future<Output = Peer>) -> Arrived {
    let (outcome, arrived) = play(client, request("GET", "/a"), &Notes::new(), async {
        let mut peer = accept.await;
        let arrived = peer.request().await;
        peer.answer("ok").await;
        arrived
    })
    .await;
    assert_eq!(text(&outcome), "ok");
    arrived.verified();
    arrived
}

async fn refused(options: TargetOptions) -> (Reason, String) {
    let short = Settings { connect_timeout: Duration::from_millis(50), ..settings() };
    let client = client_of(options, short, HeldClock::new());
    not_sent(soon(client.call(request("GET", "/a"), Notes::new())).await)
}

#[tokio::test]
async fn an_address_beyond_loopback_is_blocked_with_a_word_about_the_rule() {
    for (url, named) in [
        ("http://192.0.2.1", "192.0.2.1 (public)"),
        ("https://192.0.2.1:8443", "192.0.2.1 (public)"),
        ("http://[2001:db8::1]:8080/base", "2001:db8::1 (public)"),
        ("http://[::ffff:192.0.2.1]", "192.0.2.1 (public)"),
        ("http://[::ffff:10.1.2.3]", "10.1.2.3 (private)"),
        ("http://0.0.0.0", "0.0.0.0 (unspecified)"),
        ("http://[::]", ":: (unspecified)"),
        ("http://169.254.169.254", "169.254.169.254 (link-local)"),
        ("http://[fe80::1]", "fe80::1 (link-local)"),
        ("http://[fd00::1]", "fd00::1 (private)"),
        ("http://10.0.0.1", "10.0.0.1 (private)"),
        ("http://172.16.0.1", "172.16.0.1 (private)"),
        ("http://224.0.0.1", "224.0.0.1 (multicast)"),
    ] {
        let (reason, message) = refused(options(url)).await;
        assert_eq!(reason, Reason::Blocked, "{url}: {message}");
        assert!(message.contains(named) && message.contains("`allow`"), "{message}");
        assert!(message.contains("the loopback rule") && message.contains("\"app\""), "{message}");
    }
}

/// Forms that only the system's resolver understands, decimal, octal, hexadecimal
/// and cut short: what they lead to counts.
#[tokio::test]
async fn an_address_in_another_notation_is_judged_by_what_it_leads_to() {
    for (url, named) in [
        ("http://134744072", "8.8.8.8 (public)"),
        ("http://0x0a000001", "10.0.0.1 (private)"),
        ("http://0300.0250.0.1", "192.168.0.1 (private)"),
        ("http://169.254.43518", "169.254.169.254 (link-local)"),
        ("http://0", "0.0.0.0 (unspecified)"),
    ] {
        let (reason, message) = refused(options(url)).await;
        match reason {
            Reason::Blocked => assert!(message.contains(named), "{url}: {message}"),
            // A system whose resolver does not know them has nothing to block.
            _ => assert!(message.contains("cannot be resolved"), "{url}: {message}"),
        }
    }
    let app = App::new().await;
    let client = client(&format!("http://2130706433:{}", app.port()));
    match not_sent_or(&client, &app).await {
        None => {} // it led to 127.0.0.1
        Some((reason, message)) => {
            assert!(reason == Reason::Connect && message.contains("resolve"), "{message}")
        }
    }
}

/// The refusal of a call, or none if it was answered.
async fn not_sent_or(client: &Client, app: &App) -> Option<(Reason, String)> {
    let notes = Notes::new();
    let call = client.call(request("GET", "/a"), notes);
    tokio::pin!(call);
    tokio::select! {
        outcome = soon(&mut call) => Some(not_sent(outcome)),
        mut peer = app.accept() => {
            let (_, ()) = tokio::join!(soon(&mut call), async {
                peer.request().await;
                peer.answer("ok").await;
            });
            None
        }
    }
}

/// A target whose name resolves to these in turn, the last one again and again.
fn resolving(url: &str, answers: &[&[&str]], port: u16) -> Client {
    let answers: Vec<Vec<SocketAddr>> = answers
        .iter()
        .map(|answer| {
            answer.iter().map(|ip| SocketAddr::new(ip.parse().expect("an address"), port)).collect()
        })
        .collect();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let mut target = Target::new(options(url)).expect("a target");
    target.lookup = Box::new(move |_, _| {
        let turn = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let answer = answers[turn.min(answers.len() - 1)].clone();
        Box::pin(async move { Ok(answer) })
    });
    let never_idle =
        Settings { pool_idle: Duration::ZERO, connect_timeout: Duration::from_millis(500), ..settings() };
    Client::new(never_idle, vec![target], HeldClock::new(), Tasks::default(), Descriptors::default())
}

#[tokio::test]
async fn a_name_is_judged_by_every_address_that_it_resolves_to() {
    let app = App::new().await;
    let url = format!("http://app.example:{}", app.port());
    for (answer, named) in [
        (&["8.8.8.8"][..], "8.8.8.8 (public)"),
        (&["10.0.0.1"], "10.0.0.1 (private)"),
        (&["169.254.169.254"], "169.254.169.254 (link-local)"),
        (&["::ffff:192.168.1.1"], "192.168.1.1 (private)"),
        (&["0.0.0.0"], "0.0.0.0 (unspecified)"),
        (&["::"], ":: (unspecified)"),
        (&["10.0.0.1", "fd00::1"], "10.0.0.1 (private), fd00::1 (private)"),
    ] {
        let client = resolving(&url, &[answer], app.port());
        let (reason, message) = not_sent(soon(client.call(request("GET", "/a"), Notes::new())).await);
        assert_eq!(reason, Reason::Blocked, "{answer:?}: {message}");
        assert!(message.contains(named), "{answer:?}: {message}");
    }
    // What may not be called is passed over where something else may.
    let client = resolving(&url, &[&["8.8.8.8", "127.0.0.1"]], app.port());
    answered(&client, app.accept()).await;
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_the_second_time_is_blocked_then() {
    let app = App::new().await;
    let url = format!("http://app.example:{}", app.port());
    let client = resolving(&url, &[&["127.0.0.1"], &["8.8.8.8"]], app.port());
    // One look-up for one connection: what was judged is what is connected to.
    answered(&client, app.accept()).await;
    let (reason, message) = not_sent(soon(client.call(request("GET", "/a"), Notes::new())).await);
    assert_eq!(reason, Reason::Blocked, "{message}");
    assert!(message.contains("8.8.8.8 (public)"), "{message}");
}

#[tokio::test]
async fn what_the_operator_allows_is_tried() {
    for url in ["http://192.0.2.1:9", "http://[::ffff:192.0.2.1]:9"] {
        let allow = vec!["192.0.2.0/24".parse().expect("a net")];
        let (reason, message) = refused(TargetOptions { allow, ..options(url) }).await;
        assert_eq!(reason, Reason::Connect, "{message}");
    }
}

#[test]
fn an_address_is_judged_by_what_it_leads_to() {
    let allow = vec!["10.0.0.0/8".parse().expect("a net"), "fd00::/8".parse().expect("a net")];
    let target = Target::new(TargetOptions { allow, ..options("http://localhost") }).expect("a target");
    for (address, expected) in [
        ("127.0.0.1", true),
        ("127.255.0.9", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("fd12::1", true),
        ("11.0.0.1", false),
        ("::ffff:11.0.0.1", false),
        ("::127.0.0.1", false),
        ("0.0.0.0", false),
        ("fe80::1", false),
    ] {
        assert_eq!(target.permits(address.parse().expect("an address")), expected, "{address}");
    }
}

#[tokio::test]
async fn names_and_mapped_addresses_reach_loopback() {
    let app = App::new().await;
    for host in ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]"] {
        let client = client(&format!("http://{host}:{}", app.port()));
        let arrived = answered(&client, app.accept()).await;
        assert_eq!(arrived.header("host"), Some(format!("{host}:{}", app.port()).as_str()));
    }
}

#[tokio::test]
async fn a_name_without_address_is_no_connection() {
    let (reason, message) = refused(options("http://nowhere.invalid")).await;
    assert_eq!(reason, Reason::Connect);
    assert!(message.contains("nowhere.invalid"), "{message}");
}

#[tokio::test]
async fn the_host_header_is_the_operators() {
    let app = App::new().await;
    let host = Some("app.example:8443".into());
    let client = client_of(TargetOptions { host, ..options(&app.url()) }, settings(), HeldClock::new());
    assert_eq!(answered(&client, app.accept()).await.header("host"), Some("app.example:8443"));
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_is_called_and_used_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let client = client(&format!("unix:{}:/base", path.display()));
    assert_eq!(client.target("app").expect("a target").base_path(), "/base");
    let (outcome, mut peer) = play(&client, request("GET", "/base/a"), &Notes::new(), async {
        let mut peer = Peer(Box::new(listener.accept().await.expect("a connection").0));
        let arrived = peer.request().await;
        assert_eq!((arrived.url.as_str(), arrived.header("host")), ("/base/a", Some("localhost")));
        peer.answer("ok").await;
        peer
    })
    .await;
    assert_eq!(text(&outcome), "ok");
    let (outcome, ()) = play(&client, request("POST", "/base/a"), &Notes::new(), async {
        peer.request().await;
        peer.answer("again").await;
    })
    .await;
    assert_eq!(text(&outcome), "again");

    drop((listener, peer, client));
    let (reason, message) = refused(options(&format!("unix:{}", path.display()))).await;
    assert_eq!(reason, Reason::Connect);
    assert!(message.contains("app.sock"), "{message}");
}

/// An application over https, with a certificate of its own authority.
struct Secure {
    app: App,
    acceptor: tokio_rustls::TlsAcceptor,
    ca_file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Secure {
    async fn new(names: &[&str]) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("an authority");
        let issuer = rcgen::Issuer::new(params, key);
        let own = rcgen::KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).expect("params");
        let certificate = params.signed_by(&own, &issuer).expect("a certificate");

        let folder = tempfile::tempdir().expect("a folder");
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, ca.pem()).expect("written");
        let own = rustls::pki_types::PrivatePkcs8KeyDer::from(own.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], own.into())
            .expect("a configuration");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        Self { app: App::new().await, acceptor, ca_file, _folder: folder }
    }

    async fn accept(&self) -> Option<Peer> {
        let stream = self.acceptor.accept(self.app.stream().await).await.ok()?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        Some(Peer(Box::new(stream)))
    }

    fn options(&self, host: &str) -> TargetOptions {
        let url = format!("https://{host}:{}", self.app.port());
        TargetOptions { ca_file: Some(self.ca_file.clone()), ..options(&url) }
    }

    /// What becomes of a call that the client gives up in the handshake.
    async fn refused(&self, options: TargetOptions) -> String {
        let client = client_of(options, settings(), HeldClock::new());
        let (outcome, peer) = play(&client, request("GET", "/a"), &Notes::new(), self.accept()).await;
        assert!(peer.is_none());
        let (reason, message) = not_sent(outcome);
        assert_eq!(reason, Reason::Connect);
        message
    }
}

#[tokio::test]
async fn https_trusts_the_given_authority() {
    let secure = Secure::new(&["localhost", "127.0.0.1"]).await;
    for host in ["localhost", "127.0.0.1"] {
        let client = client_of(secure.options(host), settings(), HeldClock::new());
        answered(&client, async { secure.accept().await.expect("a handshake") }).await;
    }
}

#[tokio::test]
async fn a_connection_over_tls_is_used_again() {
    let secure = Secure::new(&["localhost"]).await;
    let client = client_of(secure.options("localhost"), settings(), HeldClock::new());
    let mut held = None;
    for said in ["first", "second"] {
        let notes = Notes::new();
        let (outcome, peer) = play(&client, with_body("POST", "body"), &notes, async {
            let mut peer = match held.take() {
                Some(peer) => peer,
                None => secure.accept().await.expect("a handshake"),
            };
            assert_eq!(peer.request().await.verified().attempt, 2);
            notes.until(&["sent"]).await;
            peer.answer(said).await;
            peer
        })
        .await;
        assert_eq!(text(&outcome), said);
        held = Some(peer);
    }
}

#[tokio::test]
async fn https_refuses_an_authority_it_was_not_told_of() {
    let secure = Secure::new(&["localhost"]).await;
    let message = secure.refused(TargetOptions { ca_file: None, ..secure.options("localhost") }).await;
    assert!(message.contains("certificate"), "{message}");
}

#[tokio::test]
async fn https_asks_for_the_name_that_the_operator_gives() {
    let secure = Secure::new(&["app.example"]).await;
    let message = secure.refused(secure.options("127.0.0.1")).await;
    assert!(message.contains("certificate"), "{message}");
    let host = Some("app.example:443".into());
    let client =
        client_of(TargetOptions { host, ..secure.options("127.0.0.1") }, settings(), HeldClock::new());
    let arrived = answered(&client, async { secure.accept().await.expect("a handshake") }).await;
    assert_eq!(arrived.header("host"), Some("app.example:443"));
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_no_connection() {
    let app = App::new().await;
    let client = client(&format!("https://127.0.0.1:{}", app.port()));
    let (outcome, ()) = play(&client, request("GET", "/a"), &Notes::new(), async {
        app.accept().await.write("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    assert_eq!(not_sent(outcome).0, Reason::Connect);
}

#[tokio::test]
async fn a_handshake_that_never_ends_times_out() {
    let app = App::new().await;
    let short = Settings { connect_timeout: Duration::from_millis(20), ..settings() };
    let options = options(&format!("https://127.0.0.1:{}", app.port()));
    let client = client_of(options, short, HeldClock::new());
    let (outcome, _held) = play(&client, request("GET", "/a"), &Notes::new(), app.accept()).await;
    let (reason, message) = not_sent(outcome);
    assert_eq!(reason, Reason::Connect);
    assert!(message.contains("timed out"), "{message}");
}
