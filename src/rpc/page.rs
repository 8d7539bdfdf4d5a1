//! Page tokens: where a list goes on, and with which question it began.

use super::status;
use crate::{job::JobId, proto::v1};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tonic::Status;

/// Bytes that tell one question from another.
type Question = [u8; 8];

/// What of a request must not change from page to page.
pub fn question(request: &v1::ListJobsRequest) -> Question {
    let kept = v1::ListJobsRequest {
        filter: request.filter.clone(),
        job_ids: request.job_ids.clone(),
        ..Default::default()
    };
    let hash: [u8; 32] = Sha256::digest(kept.encode_to_vec()).into();
    let mut question = Question::default();
    question.copy_from_slice(&hash[..8]);
    question
}

/// The token of the page after this job.
pub fn token(question: Question, created_at: i64, id: JobId) -> String {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(question);
    bytes.extend(created_at.to_be_bytes());
    bytes.extend(id.to_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Where the page of this token begins; none for the first.
pub fn read(token: &str, question: Question) -> Result<Option<(i64, JobId)>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes: Option<[u8; 32]> = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| bytes.try_into().ok());
    let Some(bytes) = bytes else {
        return Err(status::invalid("page_token", "is not a token of ListJobs"));
    };
    let (mut asked, mut at, mut id) = (Question::default(), [0; 8], [0; 16]);
    asked.copy_from_slice(&bytes[..8]);
    at.copy_from_slice(&bytes[8..16]);
    id.copy_from_slice(&bytes[16..]);
    if asked != question {
        return Err(status::invalid("page_token", "belongs to another filter or other ids"));
    }
    Ok(Some((i64::from_be_bytes(at), JobId::from_bytes(id))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_question_alone() {
        let asked = v1::ListJobsRequest { page_size: 5, ..Default::default() };
        let other = v1::ListJobsRequest { job_ids: vec!["x".into()], ..Default::default() };
        let id = JobId::from_bytes([7; 16]);
        let given = token(question(&asked), -5, id);
        let larger = v1::ListJobsRequest { page_size: 9, page_token: given.clone(), ..Default::default() };
        assert_eq!(read(&given, question(&larger)).expect("the same question"), Some((-5, id)));
        assert!(read(&given, question(&other)).is_err());
        assert!(read("nonsense", question(&asked)).is_err());
        assert_eq!(read("", question(&asked)).expect("the first page"), None);
    }
}
