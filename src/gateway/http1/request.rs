//! Writing requests: a head that is validated before its first byte is put, and a body that keeps the length it promised.

use std::fmt;

use super::bytes;
use crate::base::wire::Sink;

/// How the body of a request is framed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyLength {
    /// There is no body.
    None,
    /// This many bytes: `Content-Length`.
    Known(u64),
    /// Length unknown: `Transfer-Encoding: chunked`.
    Chunked,
}

/// What is asked of the upstream. `fields` are walked twice (once to validate, once to write), so they must be cheap
/// to clone and the same each time.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a, F> {
    /// A token, case-sensitive (RFC 9110 9.1).
    pub method: &'a [u8],
    /// Path and query as they go into the request line: origin-form, or `*` with OPTIONS.
    pub path: &'a [u8],
    /// Host and perhaps port, for the Host field.
    pub authority: &'a [u8],
    /// The other fields, in order. Those that frame the message or speak of one connection are refused.
    pub fields: F,
    /// How the body is framed.
    pub body: BodyLength,
}

/// Why a request cannot be written. The caller's request is at fault, never the upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The method is not a token (RFC 9110 9.1).
    Method,
    /// CONNECT: this codec forwards requests and opens no tunnels.
    Connect,
    /// TRACE with a body (RFC 9110 9.3.8).
    TraceBody,
    /// The path is neither origin-form nor `*` with OPTIONS, or holds a byte that has no place there (RFC 9112 3.2).
    Path,
    /// The authority is not `host [":" port]` (RFC 9110 7.2).
    Authority,
    /// A field's name is not a token (RFC 9110 5.1).
    FieldName,
    /// A field's value holds a control byte, or whitespace at its ends (RFC 9110 5.5).
    FieldValue,
    /// Host or Content-Length as a field: they are written from `authority` and `body`.
    FramingField,
    /// A field that speaks of one connection (RFC 9110 7.6.1): Connection, Transfer-Encoding, TE, Upgrade and others.
    HopByHopField,
    /// More body bytes than Content-Length promised: the rest would be read as another request.
    BodyTooLong,
    /// The body ended before Content-Length was reached: what follows would be read as its rest.
    BodyTooShort,
    /// Body bytes after the end of the body.
    BodyEnded,
}

impl Refusal {
    /// A few fixed words for a log line or an answer.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Refusal::Method => "method is not a token",
            Refusal::Connect => "method CONNECT",
            Refusal::TraceBody => "TRACE with a body",
            Refusal::Path => "path cannot stand in a request line",
            Refusal::Authority => "authority is not a host and port",
            Refusal::FieldName => "field name is not a token",
            Refusal::FieldValue => "field value cannot stand in a header",
            Refusal::FramingField => "field that frames the request",
            Refusal::HopByHopField => "field of one connection",
            Refusal::BodyTooLong => "body longer than its length",
            Refusal::BodyTooShort => "body shorter than its length",
            Refusal::BodyEnded => "body goes on after its end",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

impl std::error::Error for Refusal {}

/// Puts the head of a request (RFC 9112 3), or refuses it without putting a byte. The body follows through a
/// [`BodyWriter`] of the same length.
///
/// # Errors
/// What HTTP/1.1 cannot carry, or what would let the request mean something else to its reader.
pub fn write_request_head<'a, F>(out: &mut impl Sink, head: &RequestHead<'a, F>) -> Result<(), Refusal>
where
    F: IntoIterator<Item = (&'a [u8], &'a [u8])> + Clone,
{
    validate_target(head.method, head.path, head.authority, head.body)?;
    for (name, value) in head.fields.clone() {
        validate_field(name, value)?;
    }
    for part in [head.method, b" ", head.path, b" HTTP/1.1\r\nHost: ", head.authority, b"\r\n"] {
        out.put(part);
    }
    put_framing(out, head.method, head.body);
    for (name, value) in head.fields.clone() {
        for part in [name, b": ", value, b"\r\n"] {
            out.put(part);
        }
    }
    out.put(b"\r\n");
    Ok(())
}

fn validate_target(method: &[u8], path: &[u8], authority: &[u8], body: BodyLength) -> Result<(), Refusal> {
    if !bytes::is_token(method) {
        return Err(Refusal::Method);
    }
    // Methods are case-sensitive, servers are not always.
    if method.eq_ignore_ascii_case(b"CONNECT") {
        return Err(Refusal::Connect);
    }
    if method.eq_ignore_ascii_case(b"TRACE") && body != BodyLength::None {
        return Err(Refusal::TraceBody);
    }
    let is_asterisk_form = path == b"*" && method == b"OPTIONS";
    if !bytes::is_origin_form(path) && !is_asterisk_form {
        return Err(Refusal::Path);
    }
    if !bytes::is_authority(authority) {
        return Err(Refusal::Authority);
    }
    Ok(())
}

fn validate_field(name: &[u8], value: &[u8]) -> Result<(), Refusal> {
    if !bytes::is_token(name) {
        return Err(Refusal::FieldName);
    }
    if name.eq_ignore_ascii_case(b"host") || name.eq_ignore_ascii_case(b"content-length") {
        return Err(Refusal::FramingField);
    }
    if bytes::is_hop_by_hop(name) {
        return Err(Refusal::HopByHopField);
    }
    if !bytes::is_value(value) {
        return Err(Refusal::FieldValue);
    }
    Ok(())
}

fn put_framing(out: &mut impl Sink, method: &[u8], body: BodyLength) {
    match body {
        // RFC 9110 8.6: a method that expects content says so when there is none.
        BodyLength::None if matches!(method, b"POST" | b"PUT" | b"PATCH") => out.put(b"Content-Length: 0\r\n"),
        BodyLength::None => {}
        BodyLength::Known(length_bytes) => {
            let mut digits = [0_u8; DIGITS_MAX];
            out.put(b"Content-Length: ");
            out.put(format_number(length_bytes, 10, &mut digits));
            out.put(b"\r\n");
        }
        BodyLength::Chunked => out.put(b"Transfer-Encoding: chunked\r\n"),
    }
}

/// Decimal digits of 2^64 - 1.
const DIGITS_MAX: usize = 20;

/// `number` in a base of at most 16, without leading zeros, at the end of `digits`.
fn format_number(mut number: u64, base: u64, digits: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] =
            b"0123456789abcdef"[usize::try_from(number % base).expect("a digit is below the base, 16 at most")];
        number /= base;
        if number == 0 {
            return &digits[start..];
        }
    }
}

/// Frames the body of one request and holds it to its length.
#[derive(Clone, Copy, Debug)]
pub struct BodyWriter {
    state: BodyWriting,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BodyWriting {
    Counted { remaining_bytes: u64 },
    Chunked,
    Ended,
}

impl BodyWriter {
    /// For a body framed as the head said. A body of none has ended already.
    #[must_use]
    pub fn new(length: BodyLength) -> BodyWriter {
        let state = match length {
            BodyLength::None => BodyWriting::Ended,
            BodyLength::Known(remaining_bytes) => BodyWriting::Counted { remaining_bytes },
            BodyLength::Chunked => BodyWriting::Chunked,
        };
        BodyWriter { state }
    }

    /// Puts `bytes`, in a chunk of their own when chunked (RFC 9112 7.1). No bytes put nothing.
    ///
    /// # Errors
    /// [`Refusal::BodyTooLong`] or [`Refusal::BodyEnded`]; nothing was put then.
    pub fn put(&mut self, bytes: &[u8], out: &mut impl Sink) -> Result<(), Refusal> {
        // A chunk of no bytes would be the last one.
        if bytes.is_empty() {
            return Ok(());
        }
        match &mut self.state {
            BodyWriting::Counted { remaining_bytes } => {
                *remaining_bytes = remaining_bytes.checked_sub(bytes.len() as u64).ok_or(Refusal::BodyTooLong)?;
                out.put(bytes);
            }
            BodyWriting::Chunked => {
                let mut digits = [0_u8; DIGITS_MAX];
                for part in [format_number(bytes.len() as u64, 16, &mut digits), b"\r\n", bytes, b"\r\n"] {
                    out.put(part);
                }
            }
            BodyWriting::Ended => return Err(Refusal::BodyEnded),
        }
        Ok(())
    }

    /// Ends the body: puts the last chunk when chunked. Again does nothing.
    ///
    /// # Errors
    /// [`Refusal::BodyTooShort`]: the connection cannot be used for anything else and must be closed.
    pub fn finish(&mut self, out: &mut impl Sink) -> Result<(), Refusal> {
        match self.state {
            BodyWriting::Counted { remaining_bytes: 0 } | BodyWriting::Ended => {}
            BodyWriting::Counted { .. } => return Err(Refusal::BodyTooShort),
            BodyWriting::Chunked => out.put(b"0\r\n\r\n"),
        }
        self.state = BodyWriting::Ended;
        Ok(())
    }

    /// Whether [`BodyWriter::finish`] was called with success, or there is no body.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.state == BodyWriting::Ended
    }
}
