//! `read_mask`: which fields of a job are returned (AIP-157).

use super::status;
use crate::proto::{DESCRIPTORS, v1};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use prost_types::FieldMask;
use std::{collections::BTreeMap, sync::LazyLock};
use tonic::Status;

static JOB: LazyLock<Option<MessageDescriptor>> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTORS).ok().and_then(|pool| pool.get_message_by_name("backjob.v1.Job"))
});

/// What is kept of a message: a field whole, or some of its fields.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fields(BTreeMap<u32, Option<Fields>>);

/// Which fields of a job are returned.
#[derive(Debug, PartialEq, Eq)]
pub struct Mask(Option<Fields>);

impl Mask {
    /// Reads the field `read_mask` of a request; without one it is everything.
    pub fn read(mask: Option<FieldMask>) -> Result<Self, Status> {
        let Some(mask) = mask.filter(|mask| !mask.paths.is_empty()) else { return Ok(Self(None)) };
        let Some(job) = &*JOB else { return Ok(Self(None)) };
        let mut fields = Fields::default();
        let mut all = false;
        for path in &mask.paths {
            all |= path == "*";
            if path != "*" && !fields.add(job, path) {
                return Err(status::invalid("read_mask", format!("{path:?} is not a field of Job")));
            }
        }
        Ok(Self((!all).then_some(fields)))
    }

    /// Whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.0.is_none()
    }

    /// Whether a top-level field is among them.
    pub fn has(&self, name: &str) -> bool {
        match (&self.0, &*JOB) {
            (Some(fields), Some(job)) => {
                job.get_field_by_name(name).is_some_and(|field| fields.0.contains_key(&field.number()))
            }
            _ => true,
        }
    }

    /// The job with these fields alone.
    pub fn apply(&self, job: v1::Job) -> v1::Job {
        let (Some(fields), Some(descriptor)) = (&self.0, &*JOB) else { return job };
        let mut dynamic = DynamicMessage::new(descriptor.clone());
        if dynamic.transcode_from(&job).is_err() {
            return job; // both are made from one descriptor
        }
        fields.keep(&mut dynamic);
        v1::Job::decode(dynamic.encode_to_vec().as_slice()).unwrap_or(job)
    }
}

impl Fields {
    fn add(&mut self, message: &MessageDescriptor, path: &str) -> bool {
        let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let Some(field) = message.get_field_by_name(name) else { return false };
        match (rest, inner(&field)) {
            (None, _) => {
                self.0.insert(field.number(), None);
                true
            }
            (Some(rest), Some(inner)) => {
                let fields = self.0.entry(field.number()).or_insert_with(|| Some(Self::default()));
                // If the field is wanted whole, the path is checked all the same.
                fields.as_mut().unwrap_or(&mut Self::default()).add(&inner, rest)
            }
            (Some(_), None) => false,
        }
    }

    fn keep(&self, message: &mut DynamicMessage) {
        let present: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
        for field in present {
            match self.0.get(&field.number()) {
                None => message.clear_field(&field),
                Some(None) => {}
                Some(Some(fields)) => {
                    if let Some(inner) = message.get_field_mut(&field).as_message_mut() {
                        fields.keep(inner);
                    }
                }
            }
        }
    }
}

/// The message in a field that is neither a list nor a map.
fn inner(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    match field.kind() {
        Kind::Message(message) if !field.is_list() && !field.is_map() => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(paths: &[&str]) -> Result<Mask, Status> {
        Mask::read(Some(FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() }))
    }

    #[test]
    fn only_what_is_named_is_kept() {
        let job = v1::Job {
            id: "a".into(),
            progress: 3,
            progress_detail: Some(v1::ProgressDetail { done: 1, total: 2, ..Default::default() }),
            status_text: "text".into(),
            ..Default::default()
        };
        let kept = mask(&["id", "progress_detail.total"]).expect("known paths").apply(job.clone());
        let detail = Some(v1::ProgressDetail { total: 2, ..Default::default() });
        assert_eq!(kept, v1::Job { id: "a".into(), progress_detail: detail, ..Default::default() });
        assert_eq!(mask(&["*"]).expect("everything").apply(job.clone()), job);
        assert_eq!(Mask::read(None).expect("everything").apply(job.clone()), job);
        let whole =
            mask(&["progress_detail", "progress_detail.done"]).expect("known paths").apply(job.clone());
        assert_eq!(whole.progress_detail, job.progress_detail);
    }

    #[test]
    fn an_unknown_path_is_refused() {
        for path in ["", "nothing", "id.x", "labels.a", "action.nothing", "Id", "action."] {
            assert!(mask(&["id", path]).is_err(), "{path}");
        }
    }
}
