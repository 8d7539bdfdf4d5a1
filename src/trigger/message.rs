//! A request as it is sent: its headers, and its signature.

use super::{
    Request,
    sign::{Signer, sign},
    target::Target,
    wire::{Body, Wire},
};
use crate::clock::Clock;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, USER_AGENT},
    uri::PathAndQuery,
};
use std::sync::Arc;

/// A request, checked, but for its signature: that is made anew each time it is
/// sent.
pub(super) struct Message<'a> {
    target: &'a Target,
    user_agent: &'a str,
    report_url: &'a str,
    request: Request,
    method: Method,
    uri: Uri,
    /// Those of the first sending.
    headers: Option<HeaderMap>,
}

impl<'a> Message<'a> {
    /// Sets the headers of DESIGN.md, section 4.
    ///
    /// # Errors
    /// Says what cannot be sent, without showing it.
    pub(super) fn new(
        target: &'a Target,
        user_agent: &'a str,
        report_url: &'a str,
        request: Request,
    ) -> Result<Self, String> {
        let method = Method::from_bytes(request.method.as_bytes()).ok().filter(|it| *it != Method::CONNECT);
        let method = method.ok_or("the method cannot be sent")?;
        // The parser forgives, and drops what stands behind a "#"; what it would
        // change must not go out, since these bytes are signed.
        let same = |uri: &PathAndQuery| request.url.starts_with('/') && uri.as_str() == request.url;
        let uri = PathAndQuery::try_from(request.url.as_str()).ok().filter(same);
        let uri = uri.map(Uri::from).ok_or("the path and query cannot be sent as they are")?;
        let mut message = Self { target, user_agent, report_url, request, method, uri, headers: None };
        message.headers = Some(message.headers()?);
        Ok(message)
    }

    /// All but those of the signature.
    fn headers(&self) -> Result<HeaderMap, String> {
        let Self { request, method, .. } = self;
        let mut headers = HeaderMap::with_capacity(24);
        for (name, text) in &request.payload.headers {
            let known =
                HeaderName::from_bytes(name.as_bytes()).map_err(|_| "a header's name cannot be sent")?;
            headers.insert(known, value(name, text)?);
        }
        // After the caller's, so that ours win whatever was let through.
        headers.insert(HOST, self.target.host.clone());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let mut set = |name: HeaderName, text: &str| -> Result<(), String> {
            let value = value(name.as_str(), text)?;
            headers.insert(name, value);
            Ok(())
        };
        let own = HeaderName::from_static;
        set(USER_AGENT, self.user_agent)?;
        set(own("backjob-job-id"), &request.job.to_string())?;
        set(own("backjob-attempt"), &request.attempt.to_string())?;
        set(own("backjob-report-url"), self.report_url)?;
        set(own("backjob-report-token"), &request.report_token)?;
        if let Some(seconds) = request.deadline {
            set(own("backjob-deadline"), &seconds.to_string())?;
        }
        if let Some(cookie) = &request.cookie {
            set(COOKIE, cookie)?;
        }
        if let Some(authorization) = &request.authorization {
            set(AUTHORIZATION, authorization)?;
        }
        if let Some(content_type) = &request.payload.content_type {
            set(CONTENT_TYPE, content_type)?;
        }
        let body = &request.payload.body;
        // Where a body is usual, its absence is said (RFC 9110, 8.6).
        let usual = [Method::POST, Method::PUT, Method::PATCH].contains(method);
        if usual || !body.is_empty() {
            set(CONTENT_LENGTH, &body.len().to_string())?;
        }
        Ok(headers)
    }

    /// Whether a repetition does no harm, by HTTP's own promise.
    pub(super) fn is_repeatable(&self) -> bool {
        [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS].contains(&self.method)
    }

    /// Signs it, for one sending over `wire`.
    ///
    /// # Errors
    /// Says what cannot be signed, without showing it.
    pub(super) fn signed(
        &mut self,
        clock: &dyn Clock,
        wire: &Arc<Wire>,
    ) -> Result<http::Request<Body>, String> {
        // It is seldom sent again: then they are made again.
        let mut headers = match self.headers.take() {
            Some(headers) => headers,
            None => self.headers()?,
        };
        let mut nonce = [0; 16];
        clock.random(&mut nonce);
        let signer = Signer {
            key: &self.target.key,
            keyid: &self.target.keyid,
            created: clock.wall().div_euclid(1000),
            nonce: &URL_SAFE_NO_PAD.encode(nonce),
        };
        let Request { url, payload, .. } = &self.request;
        sign(signer, self.method.as_str(), url, &mut headers, &payload.body)
            .map_err(|_| "the request cannot be signed")?;
        let mut request = http::Request::new(Body::new(payload.body.clone(), Arc::clone(wire)));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }
}

fn value(name: &str, text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| format!("the header {name} cannot be sent"))
}
