//! Several nodes on one database of a server, each beside an application of its own.

mod clocks;
mod outage;
mod relay;
mod secure;
mod sharing;
mod takeover;

use crate::harness::*;
use std::sync::Arc;

/// How the nodes of a test are set up; none of them runs yet.
pub(super) struct Nodes {
    pub setups: Vec<Setup>,
    pub applications: Vec<Application>,
}

impl Nodes {
    /// `count` nodes, named a, b, c and so on, with these settings each.
    pub(super) async fn new(count: u8, settings: &[(&str, &str)]) -> Self {
        let (mut setups, mut applications) = (Vec::<Setup>::new(), Vec::new());
        for (name, _) in ('a'..).zip(0..count) {
            let application = Application::new().await;
            let setup = match setups.first() {
                Some(first) => {
                    first.another().with("targets.default.url", &format!("http://{}", application.address))
                }
                None => {
                    let setup = Setup::new(application.address).with("node.lease", "1s");
                    settings.iter().fold(setup, |setup, (key, value)| setup.with(key, value))
                }
            };
            setups.push(setup.with("node.name", &name.to_string()));
            applications.push(application);
        }
        Self { setups, applications }
    }

    /// A further setting of one of them.
    pub(super) fn set(&mut self, node: usize, key: &str, value: &str) {
        self.setups[node].settings.push((key.to_owned(), value.to_owned()));
    }

    /// Runs one of them in a process of its own.
    pub(super) async fn process(&self, node: usize) -> Process {
        Process::start(&self.setups[node]).await
    }

    /// Runs all of them in this process.
    pub(super) async fn serve(self) -> Cluster {
        let Self { setups, applications } = self;
        let mut nodes = Vec::new();
        for setup in setups {
            nodes.push(setup.start().await);
        }
        Cluster { nodes, applications }
    }
}

/// Nodes in this process.
pub(super) struct Cluster {
    pub nodes: Vec<Server>,
    pub applications: Vec<Application>,
}

impl Cluster {
    pub(super) async fn new(count: u8) -> Self {
        Nodes::new(count, &[]).await.serve().await
    }

    /// Starts a job of its own at a node that has a free slot, and so runs it.
    pub(super) async fn runs(&self, node: usize, route: &str) -> (String, Hit) {
        let job = self.nodes[node].start(start(route)).await;
        let hit = self.applications[node].hit().await;
        assert_eq!(hit.header("backjob-job-id"), job.id);
        (job.id, hit)
    }
}

/// The next request that any of the applications gets, and which one it is.
pub(super) async fn any_hit(applications: &[Application]) -> (usize, Hit) {
    let next = applications.iter().map(|application| Box::pin(application.next()));
    let (hit, which, _) = soon("a trigger", futures_util::future::select_all(next)).await;
    (which, hit)
}
