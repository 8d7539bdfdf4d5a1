//! URLs and options of targets.

use super::{
    super::target::{BadTarget, Target, TargetOptions},
    *,
};

fn tcp(tls: bool, host: &str, port: u16, authority: &str) -> At {
    At::Tcp { tls, host: host.into(), port, authority: authority.into() }
}

#[test]
fn a_url_is_taken_apart() {
    for (url, at, base) in [
        ("http://127.0.0.1:8080", tcp(false, "127.0.0.1", 8080, "127.0.0.1:8080"), ""),
        ("http://localhost/", tcp(false, "localhost", 80, "localhost"), ""),
        ("https://app_1.example/a/b/", tcp(true, "app_1.example", 443, "app_1.example"), "/a/b"),
        ("HTTPS://[::1]:8443/%C3%A4", tcp(true, "::1", 8443, "[::1]:8443"), "/%C3%A4"),
        ("http://[::ffff:127.0.0.1]", tcp(false, "::ffff:127.0.0.1", 80, "[::ffff:127.0.0.1]"), ""),
        ("unix:/run/app.sock", At::Unix("/run/app.sock".into()), ""),
        ("unix:/run/app.sock:/", At::Unix("/run/app.sock".into()), ""),
        ("unix:/run/my app:1.sock:/base/", At::Unix("/run/my app:1.sock".into()), "/base"),
    ] {
        assert_eq!(Url::parse(url).expect(url), Url { at, base: base.into() });
    }
}

fn options(url: &str) -> TargetOptions {
    TargetOptions {
        name: "app".into(),
        url: url.into(),
        host: None,
        allow: Vec::new(),
        ca_file: None,
        key: [7; 32],
        keyid: "k1".into(),
    }
}

fn fault(options: TargetOptions) -> BadTarget {
    Target::new(options).expect_err("refused")
}

#[test]
fn what_is_wrong_with_a_url_is_named() {
    for (url, expected) in [
        ("", "must begin with http"),
        ("127.0.0.1:8080", "must begin with http"),
        ("ftp://host", "must begin with http"),
        ("http:/host", "must begin with http"),
        ("http://me:secret@host/", "user name"),
        ("http://host/?a", "query"),
        ("http://host#a", "query"),
        ("unix:/a?b", "query"),
        ("http://", "names no host"),
        ("http:///a", "names no host"),
        ("http://:80", "names no host"),
        ("http://[::1", "the host must be"),
        ("http://[host]", "the host must be"),
        ("http://[fe80::1%eth0]", "the host must be"),
        ("http://[::1]80", "the host must be"),
        ("http://::1", "names no host"),
        ("http://höst", "the host must be"),
        ("http://a b", "the host must be"),
        ("http://host:", "port"),
        ("http://host:0", "port"),
        ("http://host:+80", "port"),
        ("http://host:65536", "port"),
        ("http://host:http", "port"),
        ("http://host/../a", "path of the URL must not hold"),
        ("http://host//a", "path of the URL"),
        ("http://host/a b", "path of the URL"),
        ("unix:app.sock", "unix socket"),
        ("unix:", "unix socket"),
        ("unix:/a:/../b", "path of the URL"),
    ] {
        let message = fault(options(url)).to_string();
        assert!(message.contains(expected), "{url}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
    let long = fault(options(&format!("unix:/{}", "a".repeat(103))));
    assert!(matches!(long, BadTarget::Socket));
}

#[test]
fn what_is_wrong_with_an_option_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").expect("written");
    let broken = folder.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .expect("written");
    let plain = || options("https://localhost");
    let with = |path: &std::path::Path| TargetOptions { ca_file: Some(path.to_owned()), ..plain() };

    let missing = fault(with(&folder.path().join("none.pem")));
    assert!(matches!(&missing, BadTarget::CaFile(..)) && missing.to_string().contains("none.pem"));
    assert!(matches!(fault(with(&empty)), BadTarget::NoCertificate(_)));
    assert!(matches!(fault(with(&broken)), BadTarget::Certificate(..)));
    let unused = TargetOptions { url: "http://localhost".into(), ..with(&empty) };
    assert!(matches!(fault(unused), BadTarget::CaUnused));
    for keyid in ["", "a b", "a\"b", "ä"] {
        assert!(
            matches!(fault(TargetOptions { keyid: keyid.into(), ..plain() }), BadTarget::KeyId),
            "{keyid}"
        );
    }
    for host in ["", "a b", "a/b", "me@host", "a\r\nb"] {
        let fault = fault(TargetOptions { host: Some(host.into()), ..plain() });
        assert!(matches!(fault, BadTarget::Host | BadTarget::NoHost), "{host:?}: {fault}");
    }
    assert!(matches!(fault(options("https://a..b")), BadTarget::ServerName));
}

#[test]
fn a_targets_key_is_never_shown() {
    let shown = format!("{:?} {:?}", Target::new(options("http://localhost")).expect("good"), options(""));
    assert!(!shown.contains('7') && shown.contains("k1"), "{shown}");
}
