//! Writing requests: a head that is validated before its first byte is put, and a body that keeps the length it
//! promised.

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Field<'a> = (&'a [u8], &'a [u8]);

    fn write(
        method: &[u8],
        path: &[u8],
        authority: &[u8],
        fields: &[Field],
        body: BodyLength,
    ) -> Result<String, Refusal> {
        let mut out = Vec::new();
        let head = RequestHead { method, path, authority, fields: fields.iter().copied(), body };
        let result = write_request_head(&mut out, &head);
        if result.is_err() {
            assert!(out.is_empty(), "a refused head puts nothing");
        }
        result.map(|()| String::from_utf8_lossy(&out).into_owned())
    }

    fn refusal(method: &str, path: &str, authority: &str, fields: &[Field], body: BodyLength) -> Refusal {
        write(method.as_bytes(), path.as_bytes(), authority.as_bytes(), fields, body).expect_err("this must be refused")
    }

    #[test]
    fn heads_are_exactly_this() {
        let fields: &[Field] = &[(b"accept", b"*/*"), (b"X-Empty", b""), (b"x-a", b"1"), (b"x-a", b"2")];
        assert_eq!(
            write(b"GET", b"/a/b?c=d&e", b"example.org:8080", fields, BodyLength::None).expect("valid"),
            "GET /a/b?c=d&e HTTP/1.1\r\nHost: example.org:8080\r\naccept: */*\r\nX-Empty: \r\nx-a: 1\r\nx-a: 2\r\n\r\n"
        );
        assert_eq!(
            write(b"OPTIONS", b"*", b"[::1]", &[], BodyLength::None).expect("valid"),
            "OPTIONS * HTTP/1.1\r\nHost: [::1]\r\n\r\n"
        );
        assert_eq!(
            write(b"PUT", b"/", b"a", &[], BodyLength::Chunked).expect("valid"),
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        assert_eq!(
            write(b"POST", b"/", b"a", &[], BodyLength::Known(u64::MAX)).expect("valid"),
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n"
        );
        // RFC 9110 8.6.
        for (method, says_zero) in [("POST", true), ("PUT", true), ("PATCH", true), ("GET", false), ("DELETE", false)] {
            let head = write(method.as_bytes(), b"/", b"a", &[], BodyLength::None).expect("valid");
            assert_eq!(head.contains("Content-Length: 0\r\n"), says_zero, "{method}");
        }
    }

    #[test]
    fn methods_that_are_refused() {
        for method in ["", "G T", "GET\r\n", "GET\0", "GÉT", "G(T", "GET "] {
            assert_eq!(refusal(method, "/", "a", &[], BodyLength::None), Refusal::Method, "{method:?}");
        }
        for method in ["CONNECT", "connect", "Connect"] {
            assert_eq!(refusal(method, "/", "a", &[], BodyLength::None), Refusal::Connect);
        }
        assert_eq!(refusal("TRACE", "/", "a", &[], BodyLength::Known(1)), Refusal::TraceBody);
        assert_eq!(refusal("TRACE", "/", "a", &[], BodyLength::Chunked), Refusal::TraceBody);
    }

    #[test]
    fn paths_that_are_refused() {
        for path in [
            "",
            "a",
            "*",
            "http://a/",
            "a:80",
            "/a b",
            "/a\tb",
            "/a\r\nX: y",
            "/a\n",
            "/a\0",
            "/a\x7F",
            "/é",
            "/a#b",
            " /",
            "/ HTTP/1.1\r\nHost: b\r\n\r\nGET /",
        ] {
            assert_eq!(refusal("GET", path, "a", &[], BodyLength::None), Refusal::Path, "{path:?}");
        }
        assert_eq!(refusal("options", "*", "a", &[], BodyLength::None), Refusal::Path);
        assert_eq!(refusal("OPTIONS", "*/", "a", &[], BodyLength::None), Refusal::Path);
    }

    #[test]
    fn fields_that_are_refused() {
        assert_eq!(refusal("GET", "/", "a\r\nX: y", &[], BodyLength::None), Refusal::Authority);
        for name in ["", "a b", "a:", "a\r\n", "é", " a", "a ", "a\0", "(a)"] {
            let fields: &[Field] = &[(b"ok", b"ok"), (name.as_bytes(), b"v")];
            assert_eq!(refusal("GET", "/", "a", fields, BodyLength::None), Refusal::FieldName, "{name:?}");
        }
        for value in ["a\rb", "a\nb", "a\r\nb: c", "a\0", "\x01", "\x7F", " a", "a ", "\t", "a\r\n\r\nGET / HTTP/1.1"] {
            let fields: &[Field] = &[(b"x", value.as_bytes())];
            assert_eq!(refusal("GET", "/", "a", fields, BodyLength::None), Refusal::FieldValue, "{value:?}");
        }
        for name in ["Host", "host", "Content-Length", "CONTENT-LENGTH"] {
            let fields: &[Field] = &[(name.as_bytes(), b"1")];
            assert_eq!(refusal("GET", "/", "a", fields, BodyLength::None), Refusal::FramingField, "{name}");
        }
        for name in ["Connection", "transfer-encoding", "TE", "Trailer", "Upgrade", "Keep-Alive", "Proxy-Connection"] {
            let fields: &[Field] = &[(name.as_bytes(), b"close")];
            assert_eq!(refusal("GET", "/", "a", fields, BodyLength::None), Refusal::HopByHopField, "{name}");
        }
    }

    #[test]
    fn chunks_are_exactly_this() {
        let mut out = Vec::new();
        let mut body = BodyWriter::new(BodyLength::Chunked);
        for part in [&b""[..], b"a", b"", &[b'x'; 0x1A]] {
            body.put(part, &mut out).expect("chunked takes any length");
        }
        assert!(!body.is_finished());
        body.finish(&mut out).expect("chunked may end anywhere");
        body.finish(&mut out).expect("ending again does nothing");
        assert!(body.is_finished());
        assert_eq!(out, [b"1\r\na\r\n1a\r\n", &[b'x'; 0x1A][..], b"\r\n0\r\n\r\n"].concat());
        assert_eq!(body.put(b"a", &mut out), Err(Refusal::BodyEnded));
    }

    #[test]
    fn bodies_keep_their_length() {
        let mut out = Vec::new();
        let mut body = BodyWriter::new(BodyLength::Known(3));
        body.put(b"ab", &mut out).expect("fits");
        assert_eq!(body.finish(&mut out), Err(Refusal::BodyTooShort));
        assert_eq!(body.put(b"cd", &mut out), Err(Refusal::BodyTooLong));
        body.put(b"c", &mut out).expect("fits");
        assert_eq!(body.put(b"d", &mut out), Err(Refusal::BodyTooLong));
        body.finish(&mut out).expect("whole");
        assert_eq!(out, b"abc");

        let mut none = BodyWriter::new(BodyLength::None);
        assert!(none.is_finished());
        none.put(b"", &mut out).expect("nothing is nothing");
        assert_eq!(none.put(b"a", &mut out), Err(Refusal::BodyEnded));
    }

    fn bytes_near_http() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![8 => b'a'..=b'z', 2 => Just(b'/'), 1 => any::<u8>(), 1 => Just(b' '), 1 => Just(b':')];
        proptest::collection::vec(byte, 0..12)
    }

    proptest! {
        /// Whatever is accepted reads back, by another reader, as the one request that was meant.
        #[test]
        fn accepted_heads_read_back(
            method in bytes_near_http(),
            tail in bytes_near_http(),
            authority in bytes_near_http(),
            fields in proptest::collection::vec((bytes_near_http(), bytes_near_http()), 0..4),
        ) {
            let path = [b"/", &tail[..]].concat();
            let given: Vec<Field> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
            let head = RequestHead {
                method: &method,
                path: &path,
                authority: &authority,
                fields: given.iter().copied(),
                body: BodyLength::Known(7),
            };
            let mut out = Vec::new();
            if write_request_head(&mut out, &head).is_ok() {
                let mut slots = [httparse::EMPTY_HEADER; 8];
                let mut read = httparse::Request::new(&mut slots);
                prop_assert_eq!(read.parse(&out), Ok(httparse::Status::Complete(out.len())));
                prop_assert_eq!(read.method.map(str::as_bytes), Some(&method[..]));
                prop_assert_eq!(read.path.map(str::as_bytes), Some(&path[..]));
                let read: Vec<Field> =
                    read.headers.iter().map(|header| (header.name.as_bytes(), header.value)).collect();
                let expected: Vec<Field> =
                    [(&b"Host"[..], &authority[..]), (b"Content-Length", b"7")].into_iter().chain(given).collect();
                prop_assert_eq!(read, expected);
            } else {
                prop_assert!(out.is_empty());
            }
        }
    }
}
