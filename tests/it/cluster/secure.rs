//! Nodes that reach each other over TLS.

use super::*;
use crate::tls::{Authority, connect, trusting};
use backjob::proto::v1::JobState;
use std::fs;
use tonic::transport::Identity;

/// Two nodes with certificates of `authority`, which trust `trusted`.
async fn nodes(authority: &Authority, trusted: &Authority, asks: bool) -> Nodes {
    let mut nodes = Nodes::new(2, &[]).await;
    for node in 0..2 {
        let (certificate, key) = authority.issue("localhost");
        let files = [
            ("cert", certificate),
            ("key", key),
            ("ca", trusted.pem.clone()),
            ("clients", authority.pem.clone()),
        ];
        let paths = files.map(|(name, content)| {
            let path = nodes.setups[node].file(name);
            fs::write(&path, content).expect("written");
            path.display().to_string()
        });
        let [cert, key, ca, clients] = &paths;
        for (setting, path) in [("tls.cert_file", cert), ("tls.key_file", key), ("node.ca_file", ca)] {
            nodes.set(node, setting, path);
        }
        if asks {
            nodes.set(node, "tls.client_ca_file", clients);
        }
    }
    nodes
}

#[tokio::test]
async fn reports_are_passed_on_over_tls_where_certificates_are_asked_for_too() {
    if !on_a_server() {
        return;
    }
    for asks in [false, true] {
        let authority = Authority::new();
        let cluster = nodes(&authority, &authority, asks).await.serve().await;
        let clients = async |node: usize| {
            let (certificate, key) = authority.issue("shop");
            let tls = trusting(&authority).identity(Identity::from_pem(certificate, key));
            Clients::on(connect(cluster.nodes[node].address, tls).await.expect("connected"))
        };
        let (a, b) = (clients(0).await, clients(1).await);
        let job = a.start(start("/a")).await;
        let mut hit = cluster.applications[0].hit().await;
        b.report(&hit.token(), progress(40)).await.expect("taken");
        assert_eq!(a.get(&job.id).await.progress, 40);
        b.report(&hit.token(), finish()).await.expect("taken");
        hit.ok();
        assert_eq!(a.get(&job.id).await.state(), JobState::Succeeded, "asks for certificates: {asks}");
    }
}

#[tokio::test]
async fn a_node_of_another_authority_is_not_trusted_until_its_authority_is() {
    if !on_a_server() {
        return;
    }
    let (authority, other) = (Authority::new(), Authority::new());
    let cluster = nodes(&authority, &other, false).await.serve().await;
    let b = Clients::on(connect(cluster.nodes[1].address, trusting(&authority)).await.expect("connected"));
    let a = Clients::on(connect(cluster.nodes[0].address, trusting(&authority)).await.expect("connected"));
    let job = a.start(start("/a")).await;
    let hit = cluster.applications[0].hit().await;
    let refused = b.report(&hit.token(), progress(40)).await.expect_err("not trusted");
    relay::unreachable(&refused, &job.id, "a");
    fs::write(cluster.nodes[1].setup.file("ca"), &authority.pem).expect("written");
    poll("the file to be read again", async || {
        b.report(&hit.token(), progress(40)).await.map(drop).map_err(|status| status.to_string())
    })
    .await;
    assert_eq!(a.get(&job.id).await.progress, 40);
}

#[tokio::test]
async fn a_file_without_certificates_is_named() {
    let setup = Setup::new("127.0.0.1:9".parse().expect("an address"));
    let path = setup.file("ca");
    let setup = setup.with("node.ca_file", &path.display().to_string());
    for content in [None, Some("nonsense")] {
        if let Some(content) = content {
            fs::write(&path, content).expect("written");
        }
        let error = backjob::app::App::build(&setup.config()).await.err().expect("refused").to_string();
        assert!(error.contains("node.ca_file"), "{error}");
    }
}
