//! Who calls: the report token of a running action.

use super::status;
use crate::secret::{Keyring, ReportToken};
use tonic::{Status, metadata::MetadataMap};

/// The call's own cookies: HTTP/2 may send them as more than one header (RFC
/// 9113, 8.2.3).
pub fn cookies(metadata: &MetadataMap) -> String {
    let all = metadata.get_all("cookie");
    all.iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join("; ")
}

/// The attempt that the call's token opens.
pub fn report_token(metadata: &MetadataMap, keys: &Keyring) -> Result<ReportToken, Status> {
    let mut values = metadata.get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(status::token_missing()) };
    let value = value.to_str().map_err(|_| status::token_invalid())?;
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err(status::token_missing()),
    };
    ReportToken::check(token, keys).map_err(|_| status::token_invalid())
}
