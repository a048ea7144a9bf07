//! HTTP/1.1 requests as the demo's origin reads them (RFC 9112). Owns the framing of one request; never a socket.
//!
//! Strict where two readers could disagree: a request that states its length in two ways is refused, and so is any
//! transfer coding but `chunked`. Invariant: whatever the bytes are, the answer is a request, a wish for more, or a
//! refusal with a status; never a panic, and never more than [`HEAD_BYTES_MAX`] held.

use crate::gateway::http1::{BodyLength, ChunkReader, Piece};

/// Longest request head, in bytes; RFC 9110 asks for nothing, common servers take 8 to 16 KiB.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Most fields of a head.
const FIELDS_MAX: usize = 100;

/// Why a request is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    /// It is not HTTP/1.x, or its length is not certain.
    Malformed,
    /// Its head is too long.
    TooLarge,
    /// Its body has a transfer coding other than `chunked`.
    Coding,
}

impl Refused {
    /// Status and reason of the answer.
    pub(super) fn status(self) -> &'static str {
        match self {
            Refused::Malformed => "400 Bad Request",
            Refused::TooLarge => "431 Request Header Fields Too Large",
            Refused::Coding => "501 Not Implemented",
        }
    }
}

/// The head of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) target: String,
    /// Names as they came, values with what is not ASCII escaped.
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: BodyLength,
    /// Whether the connection may be used again.
    pub(super) keeps_alive: bool,
    /// Whether the body comes only after an interim answer (RFC 9110 10.1.1).
    pub(super) expects_continue: bool,
}

/// Reads the head that `bytes` begin with, and tells how long it is. None: it has not ended yet.
///
/// # Errors
/// The request must be refused, and the connection closed.
pub(super) fn read_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Refused> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooLarge),
        Err(_) => return Err(Refused::Malformed),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Refused::Malformed);
    };
    let has = |name: &str, token: &str| {
        let values = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        values
            .flat_map(|field| field.value.split(|&byte| byte == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    };
    let head = Head {
        method: method.to_owned(),
        target: target.to_owned(),
        fields: request
            .headers
            .iter()
            .map(|field| (field.name.to_owned(), field.value.escape_ascii().to_string()))
            .collect(),
        body: body_length(request.headers, version)?,
        keeps_alive: if version == 0 { has("connection", "keep-alive") } else { !has("connection", "close") },
        expects_continue: version > 0 && has("expect", "100-continue"),
    };
    Ok(Some((head, length)))
}

/// How the end of the body is found (RFC 9112 6.3).
fn body_length(fields: &[httparse::Header<'_>], version: u8) -> Result<BodyLength, Refused> {
    let values = |name: &'static str| fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    let (mut codings, mut lengths) = (values("transfer-encoding"), values("content-length"));
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(BodyLength::None),
        (Some(coding), None) if version > 0 && codings.next().is_none() => {
            let is_chunked = coding.value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            if is_chunked { Ok(BodyLength::Chunked) } else { Err(Refused::Coding) }
        }
        (None, Some(length)) if lengths.next().is_none() => {
            let digits = std::str::from_utf8(length.value).map_err(|_| Refused::Malformed)?;
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Refused::Malformed);
            }
            digits.parse().map(BodyLength::Known).map_err(|_| Refused::Malformed)
        }
        _ => Err(Refused::Malformed),
    }
}

/// Reads the body of one request, piece by piece.
#[derive(Clone, Debug)]
pub(super) enum BodyReader {
    Counted { remaining_bytes: u64 },
    Chunked(ChunkReader),
}

impl BodyReader {
    pub(super) fn new(length: BodyLength) -> BodyReader {
        match length {
            BodyLength::None => BodyReader::Counted { remaining_bytes: 0 },
            BodyLength::Known(remaining_bytes) => BodyReader::Counted { remaining_bytes },
            BodyLength::Chunked => BodyReader::Chunked(ChunkReader::new()),
        }
    }

    /// Consumes from the front of `input` up to the next data, or the end.
    ///
    /// # Errors
    /// The chunked coding is broken: nothing that follows can be understood.
    pub(super) fn next<'i>(&mut self, input: &mut &'i [u8]) -> Result<Piece<'i>, Refused> {
        match self {
            BodyReader::Chunked(reader) => reader.next(input).map_err(|_| Refused::Malformed),
            BodyReader::Counted { remaining_bytes: 0 } => Ok(Piece::Ended),
            BodyReader::Counted { .. } if input.is_empty() => Ok(Piece::More),
            BodyReader::Counted { remaining_bytes } => {
                let bytes = usize::try_from(*remaining_bytes).unwrap_or(usize::MAX).min(input.len());
                let (data, rest) = input.split_at(bytes);
                *input = rest;
                *remaining_bytes -= bytes as u64;
                Ok(Piece::Data(data))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Option<(Head, usize)>, Refused> {
        read_head(text.as_bytes())
    }

    #[test]
    fn heads_are_read_with_their_length() {
        let text = "POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\nabc";
        let (head, length) = read(text).expect("well-formed").expect("whole");
        assert_eq!((head.method.as_str(), head.target.as_str(), length), ("POST", "/a?b", text.len() - 3));
        assert_eq!(head.body, BodyLength::Known(3));
        assert!(head.keeps_alive && head.expects_continue);
        assert_eq!(head.fields[0], ("Host".to_owned(), "x".to_owned()));
        for cut in 0..length {
            assert_eq!(read(&text[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn connections_are_kept_as_the_version_says() {
        for (text, keeps_alive) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ] {
            let (head, _) = read(text).expect("well-formed").expect("whole");
            assert_eq!(head.keeps_alive, keeps_alive, "{text}");
        }
    }

    #[test]
    fn a_length_that_is_not_certain_is_refused() {
        for (fields, refused) in [
            ("Content-Length: 1\r\nContent-Length: 1\r\n", Refused::Malformed),
            ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", Refused::Malformed),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Refused::Malformed),
            ("Transfer-Encoding: gzip, chunked\r\n", Refused::Coding),
            ("Content-Length: +1\r\n", Refused::Malformed),
            ("Content-Length: \r\n", Refused::Malformed),
            ("Content-Length: 1, 1\r\n", Refused::Malformed),
            ("Content-Length: 18446744073709551616\r\n", Refused::Malformed),
            ("a b: c\r\n", Refused::Malformed),
        ] {
            assert_eq!(read(&format!("POST / HTTP/1.1\r\n{fields}\r\n")), Err(refused), "{fields}");
        }
        assert_eq!(read("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(Refused::Malformed));
    }

    #[test]
    fn what_is_too_long_or_no_http_is_refused() {
        assert_eq!(read(&format!("GET /{}", "a".repeat(HEAD_BYTES_MAX))), Err(Refused::TooLarge));
        let whole = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        assert_eq!(read(&whole), Err(Refused::TooLarge));
        let fields = "a: b\r\n".repeat(FIELDS_MAX + 1);
        assert_eq!(read(&format!("GET / HTTP/1.1\r\n{fields}\r\n")), Err(Refused::TooLarge));
        for text in ["GET / HTTP/2.0\r\n\r\n", "\u{16}\u{3}\u{1}", "GET\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n"] {
            assert_eq!(read(text), Err(Refused::Malformed), "{text:?}");
        }
    }

    /// The body that `length` frames at the front of `input`, and what is left behind it.
    fn body(length: BodyLength, input: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Refused> {
        let (mut reader, mut rest, mut data) = (BodyReader::new(length), input, Vec::new());
        loop {
            match reader.next(&mut rest)? {
                Piece::Data(piece) => data.extend_from_slice(piece),
                Piece::Ended => return Ok(Some((data, rest.len()))),
                Piece::More => return Ok(None),
            }
        }
    }

    #[test]
    fn bodies_end_where_their_length_says() {
        assert_eq!(body(BodyLength::None, b"GET"), Ok(Some((Vec::new(), 3))));
        assert_eq!(body(BodyLength::Known(3), b"abcd"), Ok(Some((b"abc".to_vec(), 1))));
        assert_eq!(body(BodyLength::Known(3), b"ab"), Ok(None));
        assert_eq!(body(BodyLength::Chunked, b"2\r\nab\r\n0\r\n\r\nG"), Ok(Some((b"ab".to_vec(), 1))));
        assert_eq!(body(BodyLength::Chunked, b"2\r\nabc"), Err(Refused::Malformed));
        assert_eq!(body(BodyLength::Known(u64::MAX), b"ab"), Ok(None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read_head(&bytes);
            let mut head = b"POST / HTTP/1.1\r\n".to_vec();
            head.extend_from_slice(&bytes);
            let _ = read_head(&head);
            let _ = body(BodyLength::Chunked, &bytes);
        }

        #[test]
        fn no_fields_make_it_panic(
            name in "(?i)(content-length|transfer-encoding|connection|expect|x)",
            value in "[ -~]{0,30}",
        ) {
            if let Ok(Some((head, length))) = read(&format!("PUT / HTTP/1.1\r\n{name}: {value}\r\n\r\n")) {
                prop_assert!(length <= HEAD_BYTES_MAX && head.fields.len() == 1);
                let _ = body(head.body, b"5\r\nabcde\r\n0\r\n\r\n");
            }
        }
    }
}
