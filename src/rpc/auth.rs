//! Who calls: a token's name, the holder of a watch token, a running action, or
//! anyone where no tokens are set up.

use super::{
    access::{Access, Call},
    status,
};
use crate::{
    job::JobId,
    secret::{self, Callers, Keyring, ReportToken, Role, WatchToken},
};
use http::{HeaderMap, header};
use std::sync::Arc;
use tokio::sync::watch;
use tonic::{Extensions, Status, metadata::MetadataMap};

/// Who calls, as was found out before anything of the request was read.
#[derive(Debug, Clone)]
pub enum Caller {
    /// No tokens are set up.
    Anyone,
    /// One with a token.
    Named(secret::Caller),
    /// One who may see this job.
    Watcher(JobId),
    /// The running attempt.
    Action(ReportToken),
}

impl Caller {
    /// Who made this call.
    pub fn of(extensions: &Extensions) -> Result<&Self, Status> {
        // Missing only where a call came past the gate: nobody is let in then.
        extensions.get().ok_or_else(status::token_missing)
    }

    /// The name that jobs are made under.
    pub fn name(&self) -> &str {
        match self {
            Self::Named(caller) => &caller.name,
            Self::Anyone | Self::Watcher(_) | Self::Action(_) => "",
        }
    }

    /// Whether this caller may see exactly these jobs and no others.
    pub fn may_see(&self, jobs: &[JobId], filter: bool) -> Result<(), Status> {
        match self {
            Self::Watcher(own) if filter || jobs != [*own] => {
                Err(status::role_denied("the watch token opens another job than the one asked for"))
            }
            _ => Ok(()),
        }
    }
}

/// By what callers are known.
#[derive(Clone)]
pub(super) struct Tokens {
    /// Those of callers; none where nobody is asked.
    pub callers: Option<watch::Receiver<Arc<Callers>>>,
    /// For report and watch tokens.
    pub keys: Arc<Keyring>,
}

impl Tokens {
    /// Who makes `call`, if they may.
    pub fn admit(&self, call: Call, headers: &HeaderMap) -> Result<Caller, Status> {
        match (call.access, &self.callers) {
            (Access::Public, _) => Ok(Caller::Anyone),
            (Access::Report, _) => {
                let token = bearer(headers)?;
                let token = ReportToken::check(token, &self.keys).map_err(|_| status::token_invalid())?;
                Ok(Caller::Action(token))
            }
            (_, None) => Ok(Caller::Anyone),
            (access, Some(callers)) => {
                let token = bearer(headers)?;
                if let Some(caller) = callers.borrow().find(token) {
                    if access == Access::Operator && caller.role < Role::Operator {
                        return Err(status::role_denied(format!(
                            "{:?} is a {}, and this needs an operator",
                            caller.name, caller.role
                        )));
                    }
                    return Ok(Caller::Named(caller.clone()));
                }
                let watch = WatchToken::check(token, &self.keys).map_err(|_| status::token_invalid())?;
                if access == Access::Watch {
                    Ok(Caller::Watcher(watch.job))
                } else {
                    Err(status::role_denied("a watch token opens GetStatus and WatchStatus of its job alone"))
                }
            }
        }
    }

    /// Fires when `caller` has no token any more; never where it needs none.
    pub async fn revoked(&self, caller: &Caller) {
        let (Some(callers), Caller::Named(named)) = (&self.callers, caller) else {
            return std::future::pending().await;
        };
        let mut callers = callers.clone();
        if callers.wait_for(|callers| !callers.knows(named)).await.is_err() {
            std::future::pending().await // nobody reads the file any more
        }
    }
}

/// The one bearer token of a call.
fn bearer(headers: &HeaderMap) -> Result<&str, Status> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(status::token_missing()) };
    let value = value.to_str().map_err(|_| status::token_invalid())?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(status::token_missing()),
    }
}

/// The call's own cookies: HTTP/2 may send them as more than one header (RFC
/// 9113, 8.2.3).
pub fn cookies(metadata: &MetadataMap) -> String {
    let all = metadata.get_all("cookie");
    all.iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join("; ")
}
