//! Reading responses: heads by `httparse` under stricter rules, bodies as slices of the input.

use std::fmt;
use std::mem::MaybeUninit;

use super::bytes;
use super::chunked::{ChunkReader, Piece, take};

/// Bytes of one head, its blank line included: what common servers send at most, with room, and the most that a
/// connection buffers.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Fields of one head: as many as fit a header block of MMTP, and as there are bits in the set of those to leave out.
pub const HEAD_FIELDS_MAX: usize = 128;

/// Interim (1xx) responses before the final one: as many as MMTP passes on (MMTP 5.2). A server sends one or two; an endless row of them would hold a
/// request for ever.
pub const INTERIM_MAX: u32 = 8;

/// Options in the Connection fields of one head other than close and keep-alive: bounds the work of finding the
/// fields they name.
pub const CONNECTION_OPTIONS_MAX: usize = 32;

const _: () = assert!(HEAD_FIELDS_MAX <= u128::BITS as usize);
const _: () = assert!(HEAD_FIELDS_MAX <= crate::base::limits::HEADER_FIELDS_MAX);

/// What every response begins with: more than enough to tell HTTP/1 from anything else at once.
const PREFIX: &[u8] = b"HTTP/1.";

/// What came of a look at the input.
#[derive(Clone, Debug)]
pub enum ResponseEvent<'a> {
    /// An interim response (1xx, never 101); the final one is still to come.
    Interim {
        /// 100 to 199.
        status: u16,
        /// Its fields, without those of [`ResponseEvent::Head`] that are left out.
        fields: Fields<'a>,
    },
    /// The final response.
    Head {
        /// 200 to 599.
        status: u16,
        /// What Content-Length said. For HEAD and 304 it tells of a body that does not follow.
        content_length: Option<u64>,
        /// What follows.
        body: ResponseBody,
        /// Its fields as they came, in order, names in any case; without Content-Length and without those that speak of
        /// one connection (RFC 9110 7.6.1).
        fields: Fields<'a>,
    },
    /// Part of the body, never empty: a slice of the input.
    Body(&'a [u8]),
    /// The response is over.
    End {
        /// Whether the connection may carry another request, as far as the response tells: the server keeps it open and
        /// nothing came behind the end. A caller whose request was not sent whole yet must not reuse it either.
        reusable: bool,
        /// Trailer fields that were dropped.
        trailers: u32,
    },
}

/// What follows a head (RFC 9112 6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseBody {
    /// Nothing: [`ResponseEvent::End`] comes next.
    Empty,
    /// This many bytes, at least one.
    Known(u64),
    /// Chunks, perhaps none.
    Chunked,
    /// All until the server closes.
    UntilClose,
}

/// What is wrong with a response. The upstream is at fault; the connection must be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseError {
    /// It does not begin like HTTP/1.
    NotHttp,
    /// The status line is malformed, or its version is neither 1.0 nor 1.1.
    StatusLine,
    /// The status is below 100 or above 599 (RFC 9110 15).
    StatusRange,
    /// A head longer than [`HEAD_BYTES_MAX`].
    HeadTooLong,
    /// More fields than [`HEAD_FIELDS_MAX`].
    TooManyFields,
    /// A field name that is not a token, or whitespace before its colon (RFC 9112 5.1).
    FieldName,
    /// A field value with a control byte in it (RFC 9110 5.5).
    FieldValue,
    /// A field continued on the next line (RFC 9112 5.2).
    FoldedField,
    /// A line feed without a carriage return before it (RFC 9112 2.2).
    BareLineFeed,
    /// A carriage return without a line feed behind it (RFC 9112 2.2).
    BareCarriageReturn,
    /// More options than [`CONNECTION_OPTIONS_MAX`].
    TooManyConnectionOptions,
    /// Content-Length is not a number of 64 bits (RFC 9112 6.3).
    ContentLength,
    /// Several values of Content-Length that differ (RFC 9112 6.3).
    ContentLengthsDiffer,
    /// Both Content-Length and Transfer-Encoding (RFC 9112 6.1).
    TwoLengths,
    /// A Transfer-Encoding that is not `chunked` once and alone (RFC 9112 6.1).
    TransferEncoding,
    /// Transfer-Encoding in HTTP/1.0 (RFC 9112 6.1).
    TransferEncodingInHttp10,
    /// Content-Length or Transfer-Encoding in an interim response (RFC 9110 8.6, RFC 9112 6.1).
    InterimWithLength,
    /// More interim responses than [`INTERIM_MAX`].
    TooManyInterim,
    /// 101: nobody asked for another protocol.
    SwitchingProtocols,
    /// A chunk size that is not hexadecimal digits followed by an extension or the end of the line.
    ChunkSize,
    /// A chunk size of more than 16 digits.
    ChunkSizeTooLarge,
    /// A control byte in a chunk extension.
    ChunkExtension,
    /// More chunk extensions than [`super::CHUNK_EXTENSION_BYTES_MAX`].
    ChunkExtensionsTooLong,
    /// A chunk that does not end in CRLF where its size says.
    ChunkEnd,
    /// A trailer that is not a field line.
    Trailer,
    /// More trailers than [`super::TRAILER_BYTES_MAX`].
    TrailersTooLong,
    /// Bytes behind the end of the response, when nothing more was asked for.
    ExtraBytes,
    /// The server closed before the first byte of a response: a pooled connection had gone stale.
    ClosedBeforeResponse,
    /// The server closed within a response.
    ClosedWithinResponse,
}

impl ResponseError {
    /// A few fixed words for a log line.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            ResponseError::NotHttp => "answer is not HTTP/1",
            ResponseError::StatusLine => "malformed status line",
            ResponseError::StatusRange => "status out of range",
            ResponseError::HeadTooLong => "response head too long",
            ResponseError::TooManyFields => "too many response fields",
            ResponseError::FieldName => "malformed field name",
            ResponseError::FieldValue => "malformed field value",
            ResponseError::FoldedField => "folded field",
            ResponseError::BareLineFeed => "line feed without carriage return",
            ResponseError::BareCarriageReturn => "carriage return without line feed",
            ResponseError::TooManyConnectionOptions => "too many connection options",
            ResponseError::ContentLength => "malformed content length",
            ResponseError::ContentLengthsDiffer => "content lengths differ",
            ResponseError::TwoLengths => "content length beside transfer encoding",
            ResponseError::TransferEncoding => "unknown transfer encoding",
            ResponseError::TransferEncodingInHttp10 => "transfer encoding in HTTP/1.0",
            ResponseError::InterimWithLength => "interim response with a length",
            ResponseError::TooManyInterim => "too many interim responses",
            ResponseError::SwitchingProtocols => "status 101 was not asked for",
            ResponseError::ChunkSize => "malformed chunk size",
            ResponseError::ChunkSizeTooLarge => "chunk size too large",
            ResponseError::ChunkExtension => "malformed chunk extension",
            ResponseError::ChunkExtensionsTooLong => "chunk extensions too long",
            ResponseError::ChunkEnd => "chunk does not end where it said",
            ResponseError::Trailer => "malformed trailer",
            ResponseError::TrailersTooLong => "trailers too long",
            ResponseError::ExtraBytes => "bytes behind the response",
            ResponseError::ClosedBeforeResponse => "closed before a response",
            ResponseError::ClosedWithinResponse => "closed within a response",
        }
    }
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

impl std::error::Error for ResponseError {}

/// The fields of a head that was found valid, as name and value, in order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    /// Field lines, each with its CRLF.
    rest: &'a [u8],
    /// Bit n: the n-th field of `rest` is left out.
    left_out: u128,
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line_feed = memchr::memchr(b'\n', self.rest)?;
            let (line, rest) = self.rest.split_at(line_feed + 1);
            let is_left_out = self.left_out & 1 != 0;
            self.rest = rest;
            self.left_out >>= 1;
            if !is_left_out {
                let colon = memchr::memchr(b':', line)?;
                let value = line[colon + 1..].strip_suffix(b"\r\n")?;
                return Some((&line[..colon], bytes::trim(value)));
            }
        }
    }
}

#[derive(Clone, Debug)]
enum State {
    Head,
    Counted { remaining_bytes: u64 },
    Chunked(ChunkReader),
    UntilClose,
    Ended,
    Failed(ResponseError),
}

/// Reads one response: interim ones, the final head, and its body.
///
/// It may be fed while the request is still being sent: a server may answer early. Make a new one for the next
/// request on the connection.
#[derive(Clone, Debug)]
pub struct ResponseReader {
    state: State,
    scan: HeadScan,
    /// A head that came in pieces, as far as it came; kept until the call after the one that completed it.
    head: Vec<u8>,
    method_is_head: bool,
    has_begun: bool,
    /// Valid once the final head was read.
    keeps_alive: bool,
    interim_count: u32,
}

/// What a look at the input yields before the event borrows from the reader.
enum Step<'i> {
    More,
    /// None: the head is in the reader's buffer.
    Head(Head, Option<&'i [u8]>),
    Body(&'i [u8]),
    End {
        trailers: u32,
    },
}

impl ResponseReader {
    /// For the response to one request; a response to HEAD has no body whatever its fields say.
    #[must_use]
    pub fn new(method_is_head: bool) -> ResponseReader {
        ResponseReader {
            state: State::Head,
            scan: HeadScan::default(),
            head: Vec::new(),
            method_is_head,
            has_begun: false,
            keeps_alive: false,
            interim_count: 0,
        }
    }

    /// Whether a byte of a response has come.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether the response is over and its end was told.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Consumes from the front of `input` up to the next event. Call it until it yields none: [`ResponseEvent::End`]
    /// comes even when the input is used up.
    ///
    /// # Errors
    /// The response breaks a rule or a limit. The same error is given ever after.
    pub fn receive<'a, 'i: 'a>(&'a mut self, input: &mut &'i [u8]) -> Result<Option<ResponseEvent<'a>>, ResponseError> {
        if self.scan.bytes == 0 && !self.head.is_empty() {
            self.head = Vec::new();
        }
        self.has_begun |= !input.is_empty();
        let step = match self.step(input) {
            Ok(step) => step,
            Err(error) => {
                self.state = State::Failed(error);
                return Err(error);
            }
        };
        Ok(match step {
            Step::More => None,
            Step::Head(head, in_input) => Some(head.into_event(in_input.unwrap_or(&self.head))),
            Step::Body(data) => Some(ResponseEvent::Body(data)),
            Step::End { trailers } => {
                self.state = State::Ended;
                Some(ResponseEvent::End { reusable: self.keeps_alive && input.is_empty(), trailers })
            }
        })
    }

    /// The server ended its sending direction, after all input was consumed. Yields the end of a body that lasts until
    /// then, and none when the response had ended before.
    ///
    /// # Errors
    /// The response is incomplete, or failed before.
    pub fn eof(&mut self) -> Result<Option<ResponseEvent<'static>>, ResponseError> {
        let error = match &self.state {
            State::UntilClose | State::Counted { remaining_bytes: 0 } => {
                self.state = State::Ended;
                return Ok(Some(ResponseEvent::End { reusable: false, trailers: 0 }));
            }
            State::Ended => return Ok(None),
            State::Head if !self.has_begun => ResponseError::ClosedBeforeResponse,
            State::Head | State::Counted { .. } | State::Chunked(_) => ResponseError::ClosedWithinResponse,
            State::Failed(error) => *error,
        };
        self.state = State::Failed(error);
        Err(error)
    }

    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Step<'i>, ResponseError> {
        match &mut self.state {
            State::Head => self.step_head(input),
            State::Counted { remaining_bytes: 0 } => Ok(Step::End { trailers: 0 }),
            State::Ended if input.is_empty() => Ok(Step::More),
            State::Ended => Err(ResponseError::ExtraBytes),
            State::Failed(error) => Err(*error),
            State::Chunked(reader) => Ok(match reader.next(input)? {
                Piece::More => Step::More,
                Piece::Data(data) => Step::Body(data),
                Piece::Ended => Step::End { trailers: reader.trailers() },
            }),
            State::Counted { .. } | State::UntilClose if input.is_empty() => Ok(Step::More),
            State::Counted { remaining_bytes } => {
                let data = take(input, *remaining_bytes);
                *remaining_bytes -= data.len() as u64;
                Ok(Step::Body(data))
            }
            State::UntilClose => Ok(Step::Body(std::mem::take(input))),
        }
    }

    fn step_head<'i>(&mut self, input: &mut &'i [u8]) -> Result<Step<'i>, ResponseError> {
        let Some(end) = self.scan.find_end(input)? else {
            self.head.extend_from_slice(std::mem::take(input));
            return Ok(Step::More);
        };
        let (front, rest) = input.split_at(end);
        *input = rest;
        let in_input = if self.head.is_empty() {
            Some(front)
        } else {
            self.head.extend_from_slice(front);
            None
        };
        let head = Head::read(in_input.unwrap_or(&self.head), self.method_is_head)?;
        match head.body {
            Some(body) => self.begin_body(&head, body),
            None => {
                self.interim_count += 1;
                head.check_interim(self.interim_count)?;
            }
        }
        Ok(Step::Head(head, in_input))
    }

    fn begin_body(&mut self, head: &Head, body: ResponseBody) {
        // RFC 9110 15.3.5: 204 has no content. One that says otherwise may send it all the same.
        let is_sure_of_end = !(head.status == 204 && (head.is_chunked || head.content_length.unwrap_or(0) > 0));
        self.keeps_alive = head.keeps_alive && body != ResponseBody::UntilClose && is_sure_of_end;
        self.state = match body {
            ResponseBody::Empty => State::Counted { remaining_bytes: 0 },
            ResponseBody::Known(remaining_bytes) => State::Counted { remaining_bytes },
            ResponseBody::Chunked => State::Chunked(ChunkReader::new()),
            ResponseBody::UntilClose => State::UntilClose,
        };
    }
}

/// Finds the end of a head in pieces of it, and the violations that would make its end a matter of opinion.
#[derive(Clone, Copy, Default, Debug)]
struct HeadScan {
    /// Bytes seen of this head; 0 between heads. Never more than [`HEAD_BYTES_MAX`].
    bytes: usize,
    /// Bytes seen of its last line.
    line_bytes: usize,
    /// Its last byte.
    last: u8,
}

impl HeadScan {
    /// How many bytes of `piece` belong to the head when it ends within.
    fn find_end(&mut self, piece: &[u8]) -> Result<Option<usize>, ResponseError> {
        let piece = &piece[..piece.len().min(HEAD_BYTES_MAX - self.bytes)];
        if let Some(expected) = PREFIX.get(self.bytes..)
            && !piece.iter().zip(expected).all(|(a, b)| a == b)
        {
            return Err(ResponseError::NotHttp);
        }
        let mut line_start = 0;
        for line_feed in memchr::memchr_iter(b'\n', piece) {
            let before = line_feed.checked_sub(1).map_or(self.last, |index| piece[index]);
            if before != b'\r' {
                return Err(ResponseError::BareLineFeed);
            }
            if self.line_bytes + (line_feed - line_start) == 1 {
                *self = HeadScan::default();
                return Ok(Some(line_feed + 1));
            }
            self.line_bytes = 0;
            line_start = line_feed + 1;
        }
        self.line_bytes += piece.len() - line_start;
        self.last = piece.last().copied().unwrap_or(self.last);
        self.bytes += piece.len();
        if self.bytes == HEAD_BYTES_MAX { Err(ResponseError::HeadTooLong) } else { Ok(None) }
    }
}

/// What a head says, without its bytes.
#[derive(Clone, Copy, Debug)]
struct Head {
    status: u16,
    /// None for interim ones.
    body: Option<ResponseBody>,
    keeps_alive: bool,
    is_chunked: bool,
    content_length: Option<u64>,
    left_out: u128,
}

impl Head {
    /// Reads a whole head: it begins with [`PREFIX`], ends with its blank line, and has no bare line feeds.
    fn read(bytes: &[u8], method_is_head: bool) -> Result<Head, ResponseError> {
        let mut slots = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; HEAD_FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let result =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut slots);
        match result {
            Ok(httparse::Status::Complete(head_bytes)) if head_bytes == bytes.len() => {}
            // Its reader and ours disagree about where the head ends: not a head to act upon.
            Ok(_) => return Err(ResponseError::StatusLine),
            Err(error) => return Err(name_fault(error, bytes)),
        }
        let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
            return Err(ResponseError::StatusLine);
        };
        if !(100..600).contains(&status) {
            return Err(ResponseError::StatusRange);
        }
        let seen = Seen::read(parsed.headers)?;
        if seen.is_chunked && seen.content_length.is_some() {
            return Err(ResponseError::TwoLengths);
        }
        if seen.is_chunked && version == 0 {
            return Err(ResponseError::TransferEncodingInHttp10);
        }
        Ok(Head {
            status,
            body: (status >= 200).then(|| seen.body(status, method_is_head)),
            keeps_alive: !seen.says_close && (version == 1 || seen.says_keep_alive),
            is_chunked: seen.is_chunked,
            content_length: seen.content_length,
            left_out: seen.left_out,
        })
    }

    fn check_interim(&self, interim_count: u32) -> Result<(), ResponseError> {
        if self.status == 101 {
            return Err(ResponseError::SwitchingProtocols);
        }
        if self.is_chunked || self.content_length.is_some() {
            return Err(ResponseError::InterimWithLength);
        }
        if interim_count > INTERIM_MAX {
            return Err(ResponseError::TooManyInterim);
        }
        Ok(())
    }

    fn into_event(self, bytes: &[u8]) -> ResponseEvent<'_> {
        let lines_start = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |line_feed| line_feed + 1);
        let rest = bytes[lines_start..].strip_suffix(b"\r\n").unwrap_or(&[]);
        let fields = Fields { rest, left_out: self.left_out };
        match self.body {
            None => ResponseEvent::Interim { status: self.status, fields },
            Some(body) => {
                // RFC 9110 8.6: no Content-Length in 204.
                let content_length = self.content_length.filter(|_| self.status != 204);
                ResponseEvent::Head { status: self.status, content_length, body, fields }
            }
        }
    }
}

/// Our name for what `httparse` found wrong with a head.
fn name_fault(error: httparse::Error, bytes: &[u8]) -> ResponseError {
    let is_folded = || memchr::memmem::find(bytes, b"\n ").or_else(|| memchr::memmem::find(bytes, b"\n\t")).is_some();
    match error {
        httparse::Error::HeaderName if is_folded() => ResponseError::FoldedField,
        httparse::Error::HeaderName => ResponseError::FieldName,
        httparse::Error::HeaderValue => ResponseError::FieldValue,
        httparse::Error::NewLine => ResponseError::BareCarriageReturn,
        httparse::Error::TooManyHeaders => ResponseError::TooManyFields,
        httparse::Error::Status | httparse::Error::Token | httparse::Error::Version => ResponseError::StatusLine,
    }
}

/// What the fields of a head say about its framing and its connection.
#[derive(Default)]
struct Seen {
    content_length: Option<u64>,
    is_chunked: bool,
    says_close: bool,
    says_keep_alive: bool,
    left_out: u128,
}

impl Seen {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Seen, ResponseError> {
        let mut seen = Seen::default();
        let mut options = Options::default();
        for (index, header) in headers.iter().enumerate() {
            let name = header.name.as_bytes();
            if name.eq_ignore_ascii_case(b"content-length") {
                seen.content_length = Some(fold_lengths(seen.content_length, header.value)?);
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                if seen.is_chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(ResponseError::TransferEncoding);
                }
                seen.is_chunked = true;
            } else if name.eq_ignore_ascii_case(b"connection") {
                seen.read_connection(header.value, &mut options)?;
            } else if !bytes::is_hop_by_hop(name) {
                continue;
            }
            seen.left_out |= 1 << index;
        }
        if options.count > 0 {
            for (index, header) in headers.iter().enumerate() {
                if options.contains(header.name.as_bytes()) {
                    seen.left_out |= 1 << index;
                }
            }
        }
        Ok(seen)
    }

    /// What follows a final head (RFC 9112 6.3).
    fn body(&self, status: u16, method_is_head: bool) -> ResponseBody {
        match self.content_length {
            _ if method_is_head || matches!(status, 204 | 304) => ResponseBody::Empty,
            Some(0) => ResponseBody::Empty,
            Some(length_bytes) => ResponseBody::Known(length_bytes),
            None if self.is_chunked => ResponseBody::Chunked,
            None => ResponseBody::UntilClose,
        }
    }

    /// RFC 9110 7.6.1: close, keep-alive, and the names of fields that go no further.
    fn read_connection<'h>(&mut self, value: &'h [u8], options: &mut Options<'h>) -> Result<(), ResponseError> {
        for option in value.split(|&b| b == b',').map(bytes::trim).filter(|option| !option.is_empty()) {
            if option.eq_ignore_ascii_case(b"close") {
                self.says_close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.says_keep_alive = true;
            } else {
                options.push(option)?;
            }
        }
        Ok(())
    }
}

/// The fields that Connection names.
#[derive(Default)]
struct Options<'h> {
    names: [&'h [u8]; CONNECTION_OPTIONS_MAX],
    count: usize,
}

impl<'h> Options<'h> {
    fn push(&mut self, name: &'h [u8]) -> Result<(), ResponseError> {
        let slot = self.names.get_mut(self.count).ok_or(ResponseError::TooManyConnectionOptions)?;
        *slot = name;
        self.count += 1;
        Ok(())
    }

    fn contains(&self, name: &[u8]) -> bool {
        self.names[..self.count].iter().any(|option| option.eq_ignore_ascii_case(name))
    }
}

/// Content-Length as one number: repeated equal values count once (RFC 9112 6.3).
fn fold_lengths(so_far: Option<u64>, value: &[u8]) -> Result<u64, ResponseError> {
    let mut folded = so_far;
    for part in value.split(|&b| b == b',') {
        let length_bytes = bytes::decimal(bytes::trim(part)).ok_or(ResponseError::ContentLength)?;
        if folded.is_some_and(|other| other != length_bytes) {
            return Err(ResponseError::ContentLengthsDiffer);
        }
        folded = Some(length_bytes);
    }
    folded.ok_or(ResponseError::ContentLength)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An event that outlives the input; neighbouring parts of a body are one.
    #[derive(Clone, PartialEq, Eq, Debug)]
    enum Told {
        Interim(u16, Vec<(String, String)>),
        Head { status: u16, content_length: Option<u64>, body: ResponseBody, fields: Vec<(String, String)> },
        Body(Vec<u8>),
        End { reusable: bool, trailers: u32 },
        Error(ResponseError),
    }

    fn owned(fields: Fields<'_>) -> Vec<(String, String)> {
        fields.map(|(name, value)| (name.escape_ascii().to_string(), value.escape_ascii().to_string())).collect()
    }

    fn tell(told: &mut Vec<Told>, event: ResponseEvent<'_>) {
        let event = match event {
            ResponseEvent::Interim { status, fields } => Told::Interim(status, owned(fields)),
            ResponseEvent::Head { status, content_length, body, fields } => {
                Told::Head { status, content_length, body, fields: owned(fields) }
            }
            ResponseEvent::End { reusable, trailers } => Told::End { reusable, trailers },
            ResponseEvent::Body(data) => {
                assert!(!data.is_empty(), "a body event has bytes");
                if let Some(Told::Body(before)) = told.last_mut() {
                    return before.extend_from_slice(data);
                }
                Told::Body(data.to_vec())
            }
        };
        told.push(event);
    }

    fn read_pieces(pieces: &[&[u8]], method_is_head: bool, closes: bool) -> Vec<Told> {
        let mut reader = ResponseReader::new(method_is_head);
        let mut told = Vec::new();
        for &piece in pieces {
            let mut input = piece;
            loop {
                match reader.receive(&mut input) {
                    Ok(Some(event)) => tell(&mut told, event),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(reader.receive(&mut input).err(), Some(error), "an error stays");
                        assert_eq!(reader.eof().err(), Some(error), "an error stays");
                        told.push(Told::Error(error));
                        return told;
                    }
                }
            }
            assert!(input.is_empty(), "all input is consumed before none is told");
        }
        if closes {
            match reader.eof() {
                Ok(Some(event)) => tell(&mut told, event),
                Ok(None) => assert!(reader.has_ended()),
                Err(error) => told.push(Told::Error(error)),
            }
        }
        told
    }

    fn read(bytes: &[u8]) -> Vec<Told> {
        read_pieces(&[bytes], false, false)
    }

    /// The error that a head ends in; the head is completed by a blank line.
    fn error_of(head: &str) -> ResponseError {
        match read(format!("{head}\r\n\r\n").as_bytes()).as_slice() {
            [Told::Error(error)] => *error,
            other => panic!("{head:?} gave {other:?}"),
        }
    }

    fn fields(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn head(status: u16, content_length: Option<u64>, body: ResponseBody) -> Told {
        Told::Head { status, content_length, body, fields: Vec::new() }
    }

    const END: Told = Told::End { reusable: true, trailers: 0 };
    const END_CLOSED: Told = Told::End { reusable: false, trailers: 0 };

    #[test]
    fn a_counted_body() {
        assert_eq!(
            read(b"HTTP/1.1 200 OK\r\nServer: x y \r\nContent-Length: 5\r\nETag:\"1\"\r\nEmpty:\r\n\r\nhello"),
            [
                Told::Head {
                    status: 200,
                    content_length: Some(5),
                    body: ResponseBody::Known(5),
                    fields: fields(&[("Server", "x y"), ("ETag", "\\\"1\\\""), ("Empty", "")]),
                },
                Told::Body(b"hello".to_vec()),
                END
            ]
        );
        assert_eq!(
            read(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
            [head(200, Some(0), ResponseBody::Empty), END],
            "no reason, no body"
        );
    }

    #[test]
    fn a_body_borrows_from_the_input() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let mut reader = ResponseReader::new(false);
        let mut input = &bytes[..];
        assert!(matches!(reader.receive(&mut input), Ok(Some(ResponseEvent::Head { .. }))));
        let Ok(Some(ResponseEvent::Body(data))) = reader.receive(&mut input) else { panic!("a body comes next") };
        assert_eq!(data.as_ptr(), bytes[bytes.len() - 5..].as_ptr());
        assert_eq!(reader.head.capacity(), 0, "a head that came whole is not copied");
    }

    #[test]
    fn a_chunked_body() {
        assert_eq!(
            read(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: a\r\n\r\n\
                3;x=y\r\nabc\r\n2\r\nde\r\n0\r\na: b\r\n\r\n"
            ),
            [
                head(200, None, ResponseBody::Chunked),
                Told::Body(b"abcde".to_vec()),
                Told::End { reusable: true, trailers: 1 }
            ]
        );
    }

    #[test]
    fn a_body_until_close() {
        let bytes = b"HTTP/1.1 200 OK\r\n\r\nabc";
        assert_eq!(
            read_pieces(&[bytes], false, true),
            [head(200, None, ResponseBody::UntilClose), Told::Body(b"abc".to_vec()), END_CLOSED]
        );
        assert_eq!(
            read_pieces(&[b"HTTP/1.0 200 OK\r\n\r\n"], false, true),
            [head(200, None, ResponseBody::UntilClose), END_CLOSED]
        );
    }

    #[test]
    fn responses_without_body() {
        for (status, content_length) in [("204 No Content", None), ("304 Not Modified", Some(0))] {
            let told = read(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes());
            let number = status[..3].parse().expect("a number");
            assert_eq!(told, [head(number, content_length, ResponseBody::Empty), END]);
        }
        // A length of what is not sent.
        assert_eq!(
            read(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
            [head(304, Some(9), ResponseBody::Empty), END]
        );
        for framing in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
            let told = read_pieces(&[format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes()], true, false);
            let content_length = framing.starts_with("Content").then_some(9);
            assert_eq!(told, [head(200, content_length, ResponseBody::Empty), END], "HEAD");
        }
        // A 204 that announces a body may send it, so nothing is asked of its connection again.
        for framing in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
            let told = read(format!("HTTP/1.1 204 No Content\r\n{framing}\r\n\r\n").as_bytes());
            assert_eq!(told, [head(204, None, ResponseBody::Empty), END_CLOSED]);
        }
        // RFC 9110 15.3.6 gives 205 no content, RFC 9112 6.3 no framing of its own.
        assert_eq!(
            read(b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"),
            [head(205, Some(0), ResponseBody::Empty), END]
        );
    }

    #[test]
    fn interim_responses() {
        assert_eq!(
            read(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: y\r\n\r\n\
                HTTP/1.1 204 No Content\r\n\r\n"
            ),
            [
                Told::Interim(100, Vec::new()),
                Told::Interim(103, fields(&[("Link", "</a>")])),
                head(204, None, ResponseBody::Empty),
                END
            ]
        );
        let interim = b"HTTP/1.1 102 Processing\r\n\r\n";
        let most = usize::try_from(INTERIM_MAX).expect("a handful");
        let told = read(&[&interim.repeat(most)[..], b"HTTP/1.1 204 No Content\r\n\r\n"].concat());
        assert_eq!(told.last(), Some(&END));
        let told = read(&interim.repeat(most + 1));
        assert_eq!(told.last(), Some(&Told::Error(ResponseError::TooManyInterim)));
        assert_eq!(error_of("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x"), ResponseError::SwitchingProtocols);
        assert_eq!(error_of("HTTP/1.1 100 Continue\r\nContent-Length: 0"), ResponseError::InterimWithLength);
        assert_eq!(error_of("HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked"), ResponseError::InterimWithLength);
    }

    #[test]
    fn connections_that_may_be_used_again() {
        let cases = [
            ("HTTP/1.1 204 x", true),
            ("HTTP/1.1 204 x\r\nConnection: keep-alive", true),
            ("HTTP/1.1 204 x\r\nConnection: close", false),
            ("HTTP/1.1 204 x\r\nConnection: x, , CLOSE", false),
            ("HTTP/1.1 204 x\r\nConnection: keep-alive\r\nConnection: close", false),
            ("HTTP/1.0 204 x", false),
            ("HTTP/1.0 204 x\r\nConnection: Keep-Alive", true),
            ("HTTP/1.0 204 x\r\nConnection: keep-alive, close", false),
        ];
        for (text, reusable) in cases {
            let told = read(format!("{text}\r\n\r\n").as_bytes());
            assert_eq!(told.last(), Some(&Told::End { reusable, trailers: 0 }), "{text}");
        }
    }

    #[test]
    fn bytes_behind_the_end() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\n";
        let expected = [head(200, Some(1), ResponseBody::Known(1)), Told::Body(b"a".to_vec())];
        let told = read(bytes);
        assert_eq!(told[..2], expected);
        assert_eq!(told[2..], [END_CLOSED, Told::Error(ResponseError::ExtraBytes)], "in the same input");
        let told = read_pieces(&[&bytes[..39], &bytes[39..]], false, false);
        assert_eq!(told[2..], [END, Told::Error(ResponseError::ExtraBytes)], "in a later one");
    }

    #[test]
    fn fields_of_one_connection_go_no_further() {
        let told = read(
            b"HTTP/1.1 204 x\r\nA: 1\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Hop ,x-other\r\nx-HOP: 2\r\n\
            Proxy-Connection: a\r\nTE: a\r\nTrailer: a\r\nUpgrade: h2c\r\nProxy-Authenticate: a\r\n\
            X-Other: 3\r\nA: 4\r\nConnection: last\r\nLast: 5\r\nB: 6\r\n\r\n",
        );
        let Told::Head { fields: told, .. } = &told[0] else { panic!("a head comes first") };
        assert_eq!(*told, fields(&[("A", "1"), ("A", "4"), ("B", "6")]));
        let options = |count: usize| {
            let names: Vec<String> = (0..count).map(|index| format!("x{index}")).collect();
            format!("HTTP/1.1 204 x\r\nConnection: {}\r\n\r\n", names.join(","))
        };
        assert_eq!(read(options(CONNECTION_OPTIONS_MAX).as_bytes()).last(), Some(&END));
        assert_eq!(
            read(options(CONNECTION_OPTIONS_MAX + 1).as_bytes()),
            [Told::Error(ResponseError::TooManyConnectionOptions)]
        );
    }

    #[test]
    fn lengths_that_agree_are_one() {
        for text in ["Content-Length: 1\r\ncontent-length: 1", "Content-Length: 1, 1", "Content-Length: 01 ,1"] {
            let told = read(format!("HTTP/1.1 200 OK\r\n{text}\r\n\r\na").as_bytes());
            assert_eq!(told[0], head(200, Some(1), ResponseBody::Known(1)), "{text}");
        }
    }

    #[test]
    fn lengths_that_are_refused() {
        let of = |text: &str| error_of(&format!("HTTP/1.1 200 OK\r\n{text}"));
        for value in ["", "+1", "-1", "1a", "0x1", "1 1", "1,", ",1", "18446744073709551616", "1;", "\"1\""] {
            assert_eq!(of(&format!("Content-Length: {value}")), ResponseError::ContentLength, "{value:?}");
        }
        assert_eq!(of("Content-Length: 1\r\nContent-Length: 2"), ResponseError::ContentLengthsDiffer);
        assert_eq!(of("Content-Length: 1, 2"), ResponseError::ContentLengthsDiffer);
        assert_eq!(of("Content-Length: 1\r\nTransfer-Encoding: chunked"), ResponseError::TwoLengths);
        assert_eq!(of("Transfer-Encoding: chunked\r\nContent-Length: 1"), ResponseError::TwoLengths);
        for value in [
            "",
            "gzip",
            "gzip, chunked",
            "chunked, gzip",
            "chunked, chunked",
            "identity",
            "chunked;q=1",
            "\"chunked\"",
            "xchunked",
        ] {
            assert_eq!(of(&format!("Transfer-Encoding: {value}")), ResponseError::TransferEncoding, "{value:?}");
        }
        assert_eq!(of("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), ResponseError::TransferEncoding);
        assert_eq!(of("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"), ResponseError::TransferEncoding);
        // The names are not what they seem.
        assert_eq!(of("Transfer-Encoding : chunked"), ResponseError::FieldName);
        assert_eq!(of("Transfer-Encoding\t: chunked"), ResponseError::FieldName);
        assert_eq!(of("Transfer-Encoding: \x0Bchunked"), ResponseError::FieldValue);
        assert_eq!(error_of("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked"), ResponseError::TransferEncodingInHttp10);
    }

    #[test]
    fn heads_that_are_refused() {
        for text in
            ["SSH-2.0-x", "http/1.1 200 OK", "HTTP/2 200", "HTTP/0.9 200 OK", " HTTP/1.1 200 OK", "\r\nHTTP/1.1 200 OK"]
        {
            assert_eq!(error_of(text), ResponseError::NotHttp, "{text:?}");
        }
        for text in [
            "HTTP/1.2 200 OK",
            "HTTP/1.1  200 OK",
            "HTTP/1.1 20 OK",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1 abc",
            "HTTP/1.1",
            "HTTP/1.1 200 O\x01K",
            "HTTP/1.1\t200 OK",
        ] {
            assert_eq!(error_of(text), ResponseError::StatusLine, "{text:?}");
        }
        for text in ["HTTP/1.1 000 x", "HTTP/1.1 099 x", "HTTP/1.1 600 x", "HTTP/1.1 999 x"] {
            assert_eq!(error_of(text), ResponseError::StatusRange, "{text:?}");
        }
        let of = |text: &str| error_of(&format!("HTTP/1.1 200 OK\r\n{text}"));
        for text in ["a", "a b: c", ": c", " a: b\r\nc: d", "a(: b", "a\0: b", "é: b"] {
            assert!(matches!(of(text), ResponseError::FieldName | ResponseError::FoldedField), "{text:?}");
        }
        for text in ["a: \0", "a: b\x01", "a: b\x7F", "a: b\rc", "a: \rb"] {
            assert_eq!(of(text), ResponseError::FieldValue, "{text:?}");
        }
        assert_eq!(of("a: b\r\n c"), ResponseError::FoldedField);
        assert_eq!(of("a: b\r\n\tc"), ResponseError::FoldedField);
        assert_eq!(of("a: b\nc: d"), ResponseError::BareLineFeed);
        assert_eq!(of("a: b\n\n"), ResponseError::BareLineFeed);
        assert_eq!(read(b"HTTP/1.1 200 OK\n\n"), [Told::Error(ResponseError::BareLineFeed)]);
        assert_eq!(of("a: b\r\n\ra: b"), ResponseError::BareCarriageReturn);
    }

    #[test]
    fn limits_hold_to_the_byte() {
        let of_bytes = |bytes: usize| {
            let fixed = "HTTP/1.1 204 x\r\na: \r\n\r\n".len();
            format!("HTTP/1.1 204 x\r\na: {}\r\n\r\n", "b".repeat(bytes - fixed))
        };
        assert_eq!(read(of_bytes(HEAD_BYTES_MAX).as_bytes()).last(), Some(&END));
        assert_eq!(read(of_bytes(HEAD_BYTES_MAX + 1).as_bytes()), [Told::Error(ResponseError::HeadTooLong)]);
        let of_fields = |count: usize| format!("HTTP/1.1 204 x\r\n{}\r\n", "a: b\r\n".repeat(count));
        let told = read(of_fields(HEAD_FIELDS_MAX).as_bytes());
        assert!(matches!(&told[0], Told::Head { fields, .. } if fields.len() == HEAD_FIELDS_MAX));
        assert_eq!(read(of_fields(HEAD_FIELDS_MAX + 1).as_bytes()), [Told::Error(ResponseError::TooManyFields)]);
        // The last field that has a bit.
        let last = format!("HTTP/1.1 204 x\r\n{}TE: x\r\n\r\n", "a: b\r\n".repeat(HEAD_FIELDS_MAX - 1));
        let told = read(last.as_bytes());
        assert!(matches!(&told[0], Told::Head { fields, .. } if fields.len() == HEAD_FIELDS_MAX - 1));
    }

    #[test]
    fn closing_early() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        for bytes in [&whole[..], &chunked[..]] {
            for end in 0..bytes.len() {
                let told = read_pieces(&[&bytes[..end]], false, true);
                let expected =
                    if end == 0 { ResponseError::ClosedBeforeResponse } else { ResponseError::ClosedWithinResponse };
                assert_eq!(told.last(), Some(&Told::Error(expected)), "{}", bytes[..end].escape_ascii());
            }
            assert_eq!(read_pieces(&[bytes], false, true).last(), Some(&END), "closing after the end says nothing new");
        }
        let mut reader = ResponseReader::new(false);
        assert!(!reader.has_begun());
        assert!(matches!(reader.receive(&mut &b""[..]), Ok(None)));
        assert!(!reader.has_begun());
        assert!(matches!(reader.receive(&mut &b"H"[..]), Ok(None)));
        assert!(reader.has_begun());
    }

    #[test]
    fn the_buffer_of_a_head_in_pieces_is_given_back() {
        let mut reader = ResponseReader::new(false);
        assert!(matches!(reader.receive(&mut &b"HTTP/1.1 200 OK\r\nContent-Le"[..]), Ok(None)));
        let mut input = &b"ngth: 1\r\n\r\na"[..];
        assert!(matches!(reader.receive(&mut input), Ok(Some(ResponseEvent::Head { status: 200, .. }))));
        assert!(matches!(reader.receive(&mut input), Ok(Some(ResponseEvent::Body(b"a")))));
        assert_eq!(reader.head.capacity(), 0);
    }

    /// Responses that are right, nearly right and wrong, one after another.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let line = prop::sample::select(
            &[
                "Content-Length: 4",
                "content-length: 4",
                "Content-Length: 5",
                "Transfer-Encoding: chunked",
                "A: b",
                "Connection: a",
                "Connection: close",
                "TE: x",
                " fold",
                "bad",
                "X: \u{7F}",
                "Empty:",
            ][..],
        );
        let status = prop::sample::select(
            &[
                "HTTP/1.1 200 OK",
                "HTTP/1.1 100 C",
                "HTTP/1.0 200 OK",
                "HTTP/1.1 204 N",
                "HTTP/1.1 304 N",
                "HTTP/1.1 101 S",
            ][..],
        );
        let end = prop_oneof![9 => Just("\r\n"), 1 => Just("\n")];
        let body = prop::sample::select(
            &[
                "",
                "abcd",
                "4\r\nabcd\r\n0\r\n\r\n",
                "2\r\nab\r\n2;x\r\ncd\r\n0\r\na: b\r\n\r\n",
                "0\r\n\r\n",
                "4\r\nabcde",
            ][..],
        );
        let message = (status, proptest::collection::vec((line, end), 0..4), body).prop_map(|(status, lines, body)| {
            let lines: String = lines.into_iter().map(|(line, end)| format!("{line}{end}")).collect();
            format!("{status}\r\n{lines}\r\n{body}").into_bytes()
        });
        proptest::collection::vec(message, 1..4).prop_map(|messages| messages.concat())
    }

    /// Whether bytes follow an end is told with it or after it, depending on where the input is cut.
    fn without_hindsight(mut told: Vec<Told>) -> Vec<Told> {
        if told.last() == Some(&Told::Error(ResponseError::ExtraBytes)) {
            for event in &mut told {
                if let Told::End { reusable, .. } = event {
                    *reusable = false;
                }
            }
        }
        told
    }

    proptest! {
        #[test]
        fn any_split_tells_the_same(
            bytes in stream(),
            method_is_head in any::<bool>(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let whole = without_hindsight(read_pieces(&[&bytes], method_is_head, true));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(&whole, &without_hindsight(read_pieces(&pieces, method_is_head, true)));
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&whole, &without_hindsight(read_pieces(&single, method_is_head, true)));
        }
    }
}
