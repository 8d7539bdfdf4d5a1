//! What each call needs: the one table of who may do what.

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everyone.
    Public,
    /// A viewer or an operator.
    Viewer,
    /// The same, or the watch token of the job.
    Watch,
    /// An operator.
    Operator,
    /// The report token of the attempt.
    Report,
}

/// What a call is, before anything of it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    /// Who may make it.
    pub access: Access,
    /// Whether its answer is a stream.
    pub answers: bool,
    /// Whether its request is a stream.
    pub asks: bool,
}

const CONTROL: &str = "/backjob.v1.JobControl/";
const WORKER: &str = "/backjob.v1.JobWorker/";
const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.v1";

/// The call at this path. What is not known needs the most.
pub(super) fn call(path: &str) -> Call {
    let unary = |access| Call { access, answers: false, asks: false };
    if let Some(rpc) = path.strip_prefix(CONTROL) {
        return match rpc {
            "GetStatus" => unary(Access::Watch),
            "ListJobs" | "ListAttempts" | "ExplainJob" => unary(Access::Viewer),
            "WatchStatus" => Call { answers: true, ..unary(Access::Watch) },
            "Run" => Call { answers: true, ..unary(Access::Operator) },
            _ => unary(Access::Operator),
        };
    }
    if let Some(rpc) = path.strip_prefix(WORKER) {
        let streams = rpc == "ReportStream";
        return Call { access: Access::Report, answers: streams, asks: streams };
    }
    if let Some(rpc) = path.strip_prefix(HEALTH) {
        return Call { answers: rpc == "Watch", ..unary(Access::Public) };
    }
    if path.starts_with(REFLECTION) {
        return Call { access: Access::Viewer, answers: true, asks: true };
    }
    unary(Access::Operator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::DESCRIPTORS;
    use prost_reflect::DescriptorPool;

    #[test]
    fn what_streams_is_what_the_contract_says() {
        let pool = DescriptorPool::decode(DESCRIPTORS).expect("the embedded set decodes");
        let mut seen = 0;
        for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            let call = call(&path);
            assert_eq!(
                (call.asks, call.answers),
                (method.is_client_streaming(), method.is_server_streaming()),
                "{path}"
            );
            seen += 1;
        }
        assert!(seen >= 13);
        assert_eq!(call("/nothing/Known").access, Access::Operator);
        assert_eq!(call("/backjob.v1.JobControl/NotYet").access, Access::Operator);
    }
}
