//! The contract itself, read from the compiled descriptor set.

use prost::Message as _;
use prost_types::FileDescriptorSet;

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(backjob::proto::DESCRIPTORS).expect("the embedded set decodes")
}

/// Every `Service/Method` of package `backjob.v1`.
pub fn rpcs() -> Vec<String> {
    let mut all = Vec::new();
    for file in descriptors().file {
        for service in &file.service {
            for method in &service.method {
                all.push(format!("{}/{}", service.name(), method.name()));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn the_contract_has_the_rpcs_of_the_design() {
    assert_eq!(
        rpcs(),
        [
            "JobControl/BatchStart",
            "JobControl/CancelJob",
            "JobControl/DeleteJob",
            "JobControl/ExplainJob",
            "JobControl/GetStatus",
            "JobControl/ListAttempts",
            "JobControl/ListJobs",
            "JobControl/RetryJob",
            "JobControl/Run",
            "JobControl/Start",
            "JobControl/WatchStatus",
            "JobWorker/Report",
            "JobWorker/ReportStream",
        ]
    );
}

#[test]
fn every_enum_of_the_contract_starts_unspecified() {
    for file in descriptors().file {
        if file.package() != "backjob.v1" {
            continue;
        }
        for e in &file.enum_type {
            let first = e.value.first().expect("an enum has values");
            assert!(first.name().ends_with("_UNSPECIFIED"), "{}", e.name());
            assert_eq!(first.number(), 0, "{}", e.name());
        }
    }
}
