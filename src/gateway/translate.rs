//! Header blocks of MMTP into HTTP/1.1 heads, and back.
//!
//! Owns the mapping of fields. Never guesses: what one side cannot say exactly is refused.

use super::http1::{BodyLength, Refusal, RequestHead, ResponseEvent, write_request_head};
use crate::base::wire::Sink;
use crate::mmtp::{HeaderBlock, HeaderError, HeaderWriter, Known, Name};

/// Names that the gateway itself writes, or that say where a request came from. A client's own are dropped: upstreams
/// trust what the gateway says.
const PROVENANCE_NAMES: [&[u8]; 6] =
    [b"x-forwarded-for", b"x-forwarded-proto", b"x-real-ip", b"forwarded", b"x-request-id", b"early-data"];

/// A request as its block says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a [u8],
    pub(super) body: BodyLength,
}

/// Reads method and body length from a block. Without END the body goes on: its length is what the block says, or
/// unknown.
pub(super) fn request<'a>(block: &HeaderBlock<'a>, ended: bool) -> Request<'a> {
    let method = block.get(Known::Method).unwrap_or(b"GET");
    let body = match (block.number(Known::ContentLength), ended) {
        (Some(bytes), _) => BodyLength::Known(bytes),
        (None, true) => BodyLength::None,
        (None, false) => BodyLength::Chunked,
    };
    Request { method, body }
}

/// Writes the head of the request; returns how many fields were dropped.
///
/// # Errors
/// When HTTP/1.1 cannot say it.
pub(super) fn write_request(
    out: &mut impl Sink,
    block: &HeaderBlock<'_>,
    request: Request<'_>,
    default_authority: &[u8],
) -> Result<u64, Refusal> {
    let client = block.get(Known::ClientAddress).map(host_of);
    let early = block.number(Known::Early) == Some(1);
    let provenance = [
        (&b"x-forwarded-for"[..], client.unwrap_or(b"")),
        (&b"x-forwarded-proto"[..], &b"https"[..]),
        (&b"x-request-id"[..], block.get(Known::RequestId).unwrap_or(b"")),
        (&b"early-data"[..], if early { b"1" } else { b"" }),
    ];
    let own = provenance.into_iter().filter(|(_, value)| !value.is_empty());
    let mut dropped = 0;
    for field in block.fields() {
        dropped += u64::from(http_field(field.name).is_none() && matches!(field.name, Name::Spelled(_)));
    }
    let sent = block.fields().filter_map(|field| http_field(field.name).map(|name| (name, field.value)));
    let head = RequestHead {
        method: request.method,
        path: block.get(Known::Path).unwrap_or(b"/"),
        authority: block.get(Known::Authority).unwrap_or(default_authority),
        fields: sent.chain(own),
        body: request.body,
    };
    write_request_head(out, &head)?;
    Ok(dropped)
}

/// The HTTP name of a field that is passed on as it is; none for those that are written otherwise, or not at all.
fn http_field(name: Name<'_>) -> Option<&[u8]> {
    match name {
        Name::Known(Known::Authority | Known::ContentLength) | Name::Ignorable(_) => None,
        Name::Known(known) => known.http_name().map(str::as_bytes),
        Name::Spelled(name) if PROVENANCE_NAMES.contains(&name) => None,
        Name::Spelled(name) => Some(name),
    }
}

/// The address without its port.
fn host_of(address: &[u8]) -> &[u8] {
    let host = memchr::memrchr(b':', address).map_or(address, |colon| &address[..colon]);
    host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host)
}

/// Writes the block of an answer into `into` from an interim or final head.
///
/// # Errors
/// When MMTP cannot say it: a field that is no text, or a block over its limit.
pub(super) fn write_answer(into: &mut Vec<u8>, event: &ResponseEvent<'_>) -> Result<(), HeaderError> {
    into.clear();
    let mut writer = HeaderWriter::new(into);
    let (status, content_length, fields) = match event {
        ResponseEvent::Interim { status, fields } => (*status, None, fields.clone()),
        ResponseEvent::Head { status, content_length, fields, .. } => (*status, *content_length, fields.clone()),
        ResponseEvent::Body(_) | ResponseEvent::End { .. } => return Ok(()),
    };
    writer.number(Known::Status, u64::from(status))?;
    if let Some(bytes) = content_length {
        writer.number(Known::ContentLength, bytes)?;
    }
    let mut lower = [0u8; 256];
    for (name, value) in fields {
        let lower = lower.get_mut(..name.len()).ok_or(HeaderError::Name)?;
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        writer.http(lower, value)?;
    }
    Ok(())
}
