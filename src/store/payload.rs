//! A payload as bytes, to be sealed: JSON would quadruple a body.
//!
//! A version, then fields of a length (32 bits, little endian) and as many
//! bytes: the number of headers, their names and values in turn, the content
//! type if a flag says so, and to the end the body.

use crate::job::{Credentials, Payload};

const VERSION: u8 = 1;

fn put(out: &mut Vec<u8>, field: &[u8]) {
    // A message ends at 4 MiB, far below 32 bits.
    out.extend(u32::try_from(field.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(field);
}

/// The payload as bytes.
pub(super) fn encode(payload: &Payload) -> Vec<u8> {
    let headers: usize = payload.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    let mut out = Vec::with_capacity(64 + headers + payload.body.len());
    out.push(VERSION);
    out.extend(u32::try_from(payload.headers.len()).unwrap_or(u32::MAX).to_le_bytes());
    for (name, value) in &payload.headers {
        put(&mut out, name.as_bytes());
        put(&mut out, value.as_bytes());
    }
    out.push(u8::from(payload.content_type.is_some()));
    if let Some(content_type) = &payload.content_type {
        put(&mut out, content_type.as_bytes());
    }
    out.extend(&payload.body);
    out
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn length(&mut self) -> Option<usize> {
        let bytes = self.take(4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    }

    fn text(&mut self) -> Option<String> {
        let length = self.length()?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }
}

/// The payload of these bytes; None if they are of another version or cut.
pub(super) fn decode(bytes: &[u8]) -> Option<Payload> {
    let mut reader = Reader(bytes);
    if reader.byte()? != VERSION {
        return None;
    }
    let count = reader.length()?;
    let headers = (0..count).map(|_| Some((reader.text()?, reader.text()?))).collect::<Option<Vec<_>>>()?;
    let content_type = match reader.byte()? {
        0 => None,
        1 => Some(reader.text()?),
        _ => return None,
    };
    Some(Payload { headers, content_type, body: reader.0.to_vec().into(), credentials: None })
}

/// What credentials are bound to beside their job's id.
pub(super) fn about_credentials(id: &[u8; 16]) -> Vec<u8> {
    [id.as_slice(), b"/credentials"].concat()
}

/// Credentials as bytes: a flag and a field for each.
pub(super) fn encode_credentials(credentials: &Credentials) -> Vec<u8> {
    let mut out = vec![VERSION];
    for value in [&credentials.cookie, &credentials.authorization] {
        out.push(u8::from(value.is_some()));
        if let Some(value) = value {
            put(&mut out, value.as_bytes());
        }
    }
    out
}

/// The credentials of these bytes.
pub(super) fn decode_credentials(bytes: &[u8]) -> Option<Credentials> {
    let mut reader = Reader(bytes);
    if reader.byte()? != VERSION {
        return None;
    }
    let mut value = || match reader.byte()? {
        0 => Some(None),
        1 => reader.text().map(Some),
        _ => None,
    };
    Some(Credentials { cookie: value()?, authorization: value()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_payload_reads_back(
            headers in prop::collection::vec((".{0,12}", ".{0,40}"), 0..4),
            content_type in prop::option::of(".{0,20}"),
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let payload = Payload { headers, content_type, body: body.into(), credentials: None };
            let bytes = encode(&payload);
            prop_assert!(decode(&bytes) == Some(payload.clone()));
            let head = bytes.len() - payload.body.len();
            for end in 0..head {
                prop_assert!(decode(&bytes[..end]).is_none(), "cut at {end}");
            }
        }
    }

    #[test]
    fn credentials_read_back() {
        for (cookie, authorization) in
            [(None, None), (Some("a=b"), None), (None, Some("Basic x")), (Some("a"), Some("b"))]
        {
            let credentials = Credentials {
                cookie: cookie.map(str::to_owned),
                authorization: authorization.map(str::to_owned),
            };
            let bytes = encode_credentials(&credentials);
            assert!(decode_credentials(&bytes) == Some(credentials));
            for end in 0..bytes.len() {
                assert!(decode_credentials(&bytes[..end]).is_none(), "cut at {end}");
            }
        }
    }

    #[test]
    fn another_version_is_not_guessed_at() {
        assert!(decode(&[]).is_none());
        assert!(decode(&[2, 0, 0, 0, 0, 0]).is_none());
    }
}
