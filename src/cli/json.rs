//! Messages as JSON, in the mapping that protobuf defines.

use crate::proto::DESCRIPTORS;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use std::sync::LazyLock;

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).ok());

/// One line of JSON for a message of package `backjob.v1`.
pub(super) fn line(name: &str, message: &impl Message) -> Result<String, String> {
    let descriptor = POOL.as_ref().and_then(|pool| pool.get_message_by_name(&format!("backjob.v1.{name}")));
    let mut dynamic = DynamicMessage::new(descriptor.ok_or("the contract is not readable")?);
    dynamic.transcode_from(message).map_err(|error| error.to_string())?;
    let mut serializer = serde_json::Serializer::new(Vec::new());
    let options = SerializeOptions::new().skip_default_fields(true);
    dynamic.serialize_with_options(&mut serializer, &options).map_err(|error| error.to_string())?;
    String::from_utf8(serializer.into_inner()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1;

    #[test]
    fn a_job_is_written_in_the_json_mapping() {
        let job = v1::Job {
            id: "a".into(),
            state: v1::JobState::Running.into(),
            status_text: "t".into(),
            revision: 1 << 40,
            ..Default::default()
        };
        let expected =
            r#"{"id":"a","state":"JOB_STATE_RUNNING","statusText":"t","revision":"1099511627776"}"#;
        assert_eq!(line("Job", &job).as_deref(), Ok(expected));
    }
}
