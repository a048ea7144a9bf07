//! What is asked for. Owns the checks that make a request sendable and its header block; never sends.
//!
//! Invariant: a [`Prepared`] request is valid MMTP: nothing in it can be refused by our own side later.

use std::time::Duration;

use crate::mmtp::{self, HeaderError, HeaderFlags, HeaderWriter, Known};

use super::call::Outgoing;
use super::error::RequestError;
use super::url::{Endpoint, Url, is_path, is_service};

/// Priority of a request that names none.
pub const PRIORITY_DEFAULT: u8 = mmtp::frame::PRIORITY_DEFAULT;

/// Time a request has when it names none.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// The body of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Body {
    /// Given whole, possibly empty.
    Whole(Vec<u8>),
    /// Written while the call is under way.
    Streamed,
}

/// A request: where to, what, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    url: Url,
    method: Option<String>,
    fields: Vec<(String, Vec<u8>)>,
    body: Body,
    priority: u8,
    timeout: Option<Duration>,
    replay_safe: bool,
    idempotent: Option<bool>,
    request_id: Option<String>,
}

impl Request {
    /// A request without a body.
    #[must_use]
    pub fn new(method: &str, url: Url) -> Request {
        Request {
            url,
            method: Some(method.to_owned()),
            fields: Vec::new(),
            body: Body::Whole(Vec::new()),
            priority: PRIORITY_DEFAULT,
            timeout: Some(TIMEOUT_DEFAULT),
            replay_safe: false,
            idempotent: None,
            request_id: None,
        }
    }

    /// A GET.
    #[must_use]
    pub fn get(url: Url) -> Request {
        Request::new("GET", url)
    }

    /// A POST with a body.
    #[must_use]
    pub fn post(url: Url, body: impl Into<Vec<u8>>) -> Request {
        Request::new("POST", url).body(body)
    }

    /// A connection to a service of kind `tunnel`: bytes both ways, either side ending when it likes. It has no time
    /// limit unless one is set.
    #[must_use]
    pub fn tunnel(url: Url) -> Request {
        let request = Request { method: None, timeout: None, ..Request::new("", url) };
        request.streamed()
    }

    /// Adds a header field. The same name may be added several times; `host` becomes the authority of the request.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Into<Vec<u8>>) -> Request {
        self.fields.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// Gives the body whole.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Request {
        self.body = Body::Whole(body.into());
        self
    }

    /// The body will be written with [`Call::write`](super::Call::write) and ended with
    /// [`Call::finish`](super::Call::finish).
    #[must_use]
    pub fn streamed(mut self) -> Request {
        self.body = Body::Streamed;
        self
    }

    /// How urgent it is: 0 (a payment) to 7 (prefetch). [`PRIORITY_DEFAULT`] unless set.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Request {
        self.priority = priority;
        self
    }

    /// The time it has, from its start to the last byte of its answer. [`TIMEOUT_DEFAULT`] unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Request {
        self.timeout = Some(timeout);
        self
    }

    /// Lets it take as long as it likes. It then ends only with its answer, its connection or its
    /// [`Call`](super::Call).
    #[must_use]
    pub fn no_timeout(mut self) -> Request {
        self.timeout = None;
        self
    }

    /// Says that an attacker who sends it a second time does no harm, so that it may go out as early data. False unless
    /// set.
    #[must_use]
    pub fn replay_safe(mut self, replay_safe: bool) -> Request {
        self.replay_safe = replay_safe;
        self
    }

    /// Says whether carrying it out twice has the effect of once. Follows from the method (RFC 9110 section 9.2.2)
    /// unless set.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Request {
        self.idempotent = Some(idempotent);
        self
    }

    /// Names it, so that it is known again when it is sent again, and its outcome can be asked for. 1 to 128 visible
    /// ASCII characters, never used for another request.
    #[must_use]
    pub fn request_id(mut self, request_id: &str) -> Request {
        self.request_id = Some(request_id.to_owned());
        self
    }
}

/// A request, checked and encoded.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) endpoint: Endpoint,
    /// The header block (MMTP 7).
    pub(super) block: Vec<u8>,
    pub(super) flags: HeaderFlags,
    pub(super) priority: u8,
    pub(super) timeout: Option<Duration>,
}

impl Default for Prepared {
    fn default() -> Prepared {
        Prepared {
            endpoint: Endpoint { host: String::new(), port: 0 },
            block: Vec::new(),
            flags: HeaderFlags::NONE,
            priority: PRIORITY_DEFAULT,
            timeout: None,
        }
    }
}

impl Request {
    /// Checks and encodes it.
    pub(super) fn prepare(self) -> Result<(Prepared, Outgoing), RequestError> {
        let block = self.encode()?;
        let mut flags = HeaderFlags::NONE;
        if self.replay_safe {
            flags = flags | HeaderFlags::REPLAY_SAFE;
        }
        let method = self.method.as_deref();
        if self.idempotent.unwrap_or_else(|| method.is_some_and(is_idempotent)) {
            flags = flags | HeaderFlags::IDEMPOTENT;
        }
        let body = match self.body {
            Body::Whole(bytes) => {
                if bytes.is_empty() {
                    flags = flags | HeaderFlags::END;
                }
                Outgoing::whole(bytes)
            }
            Body::Streamed => Outgoing::default(),
        };
        let endpoint = self.url.endpoint;
        Ok((Prepared { endpoint, block, flags, priority: self.priority, timeout: self.timeout }, body))
    }

    fn encode(&self) -> Result<Vec<u8>, RequestError> {
        if !is_service(&self.url.service) {
            return Err(RequestError::Service);
        }
        if !is_path(&self.url.path) {
            return Err(RequestError::Path);
        }
        let mut block = Vec::with_capacity(128);
        let mut writer = HeaderWriter::new(&mut block);
        writer.known(Known::Service, self.url.service.as_bytes())?;
        if let Some(method) = &self.method {
            writer.known(Known::Method, method.as_bytes())?;
            writer.known(Known::Path, self.url.path.as_bytes())?;
            if !self.fields.iter().any(|(name, _)| name == "host") {
                writer.known(Known::Authority, self.url.endpoint.to_string().as_bytes())?;
            }
        }
        if self.priority != mmtp::frame::PRIORITY_DEFAULT {
            writer.number(Known::Priority, u64::from(self.priority))?;
        }
        if let Some(timeout) = self.timeout {
            let deadline_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).clamp(1, u64::from(u32::MAX));
            writer.number(Known::DeadlineMs, deadline_ms)?;
        }
        if let Some(request_id) = &self.request_id {
            writer.known(Known::RequestId, request_id.as_bytes())?;
        }
        let length = self.content_length()?;
        if let Some(length) = length {
            writer.number(Known::ContentLength, length)?;
        }
        for (name, value) in &self.fields {
            if name != "content-length" {
                writer.http(name.as_bytes(), value.trim_ascii())?;
            }
        }
        Ok(block)
    }

    /// What is said about the length of the body: nothing where there is none, and none is expected.
    fn content_length(&self) -> Result<Option<u64>, RequestError> {
        let mut given = self.fields.iter().filter(|(name, _)| name == "content-length");
        let said = given.next().map(|(_, value)| parse_length(value)).transpose()?;
        if given.next().is_some() {
            return Err(RequestError::FieldTwice);
        }
        match (&self.body, said) {
            (Body::Streamed, said) => Ok(said),
            (Body::Whole(bytes), Some(said)) if said != bytes.len() as u64 => Err(RequestError::ContentLength),
            (Body::Whole(bytes), None) if bytes.is_empty() && !self.expects_body() => Ok(None),
            (Body::Whole(bytes), _) => Ok(Some(bytes.len() as u64)),
        }
    }

    fn expects_body(&self) -> bool {
        matches!(self.method.as_deref(), Some("POST" | "PUT" | "PATCH"))
    }
}

fn parse_length(value: &[u8]) -> Result<u64, RequestError> {
    let digits = std::str::from_utf8(value.trim_ascii()).map_err(|_| RequestError::ContentLength)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RequestError::ContentLength);
    }
    digits.parse().map_err(|_| RequestError::ContentLength)
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

impl From<HeaderError> for RequestError {
    fn from(error: HeaderError) -> RequestError {
        match error {
            HeaderError::TooManyFields | HeaderError::TooLarge => RequestError::TooLarge,
            HeaderError::Duplicate(_) => RequestError::FieldTwice,
            HeaderError::Value(Known::Service) => RequestError::Service,
            HeaderError::Value(Known::Method) => RequestError::Method,
            HeaderError::Value(Known::Path) => RequestError::Path,
            HeaderError::Value(Known::Priority) => RequestError::Priority,
            HeaderError::Value(Known::RequestId) => RequestError::RequestId,
            HeaderError::Value(_) | HeaderError::SpelledValue => RequestError::FieldValue,
            HeaderError::Name => RequestError::FieldName,
            HeaderError::NameForbidden | HeaderError::NameNumbered => RequestError::FieldReserved,
            // Faults of blocks that are read; a writer of ours does not make them.
            HeaderError::Truncated | HeaderError::FieldUnknown => RequestError::FieldReserved,
            HeaderError::Missing(_) | HeaderError::Misplaced(_) => RequestError::FieldReserved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmtp::{HeaderBlock, Message};

    fn url() -> Url {
        Url::parse("mmtp://localhost:8443/pay/v1?x=1").expect("valid")
    }

    fn prepared(request: Request) -> Prepared {
        request.prepare().expect("a valid request").0
    }

    #[test]
    fn a_request_is_encoded_with_what_it_says() {
        let request =
            Request::post(url(), "hello").field("X-A", " 1 ").field("Accept", "*/*").request_id("r-1").priority(0);
        let prepared = prepared(request);
        let block = HeaderBlock::parse(&prepared.block, Message::Request).expect("our own block");
        assert_eq!(block.get(Known::Service), Some(&b"pay"[..]));
        assert_eq!(block.get(Known::Method), Some(&b"POST"[..]));
        assert_eq!(block.get(Known::Path), Some(&b"/v1?x=1"[..]));
        assert_eq!(block.get(Known::Authority), Some(&b"localhost:8443"[..]));
        assert_eq!(block.get(Known::RequestId), Some(&b"r-1"[..]));
        assert_eq!(block.get(Known::Accept), Some(&b"*/*"[..]));
        assert_eq!(block.number(Known::ContentLength), Some(5));
        assert_eq!(block.number(Known::DeadlineMs), Some(60_000));
        assert_eq!(block.priority(), 0);
        assert!(block.fields().any(|field| field.name == mmtp::Name::Spelled(b"x-a") && field.value == b"1"));
        assert!(!prepared.flags.end());
    }

    #[test]
    fn flags_follow_from_method_and_body() {
        assert_eq!(prepared(Request::get(url())).flags, HeaderFlags::END | HeaderFlags::IDEMPOTENT);
        assert_eq!(prepared(Request::post(url(), "")).flags, HeaderFlags::END);
        assert_eq!(prepared(Request::new("PUT", url()).streamed()).flags, HeaderFlags::IDEMPOTENT);
        assert_eq!(prepared(Request::tunnel(url())).flags, HeaderFlags::NONE);
        let request = Request::get(url()).idempotent(false).replay_safe(true);
        assert_eq!(prepared(request).flags, HeaderFlags::END | HeaderFlags::REPLAY_SAFE);
    }

    #[test]
    fn what_cannot_be_sent_is_refused_with_its_reason() {
        let get = || Request::get(url());
        for (request, error) in [
            (Request::new("GE T", url()), RequestError::Method),
            (Request::new("", url()), RequestError::Method),
            (get().field("bad name", "1"), RequestError::FieldName),
            (get().field("x-a", "1\r\nx-b: 2"), RequestError::FieldValue),
            (get().field("x-a", "1\0"), RequestError::FieldValue),
            (get().field("host", "a/b"), RequestError::FieldValue),
            (get().field("host", "a").field("host", "b"), RequestError::FieldTwice),
            (get().field("Transfer-Encoding", "chunked"), RequestError::FieldReserved),
            (get().field("connection", "close"), RequestError::FieldReserved),
            (get().field("content-length", "3"), RequestError::ContentLength),
            (get().field("content-length", "+0"), RequestError::ContentLength),
            (get().field("content-length", "0").field("content-length", "0"), RequestError::FieldTwice),
            (get().field("x-a", "v".repeat(20_000)), RequestError::TooLarge),
            (get().priority(8), RequestError::Priority),
            (get().request_id(""), RequestError::RequestId),
            (get().request_id("a b"), RequestError::RequestId),
        ] {
            assert_eq!(request.clone().prepare().err(), Some(error), "{request:?}");
            assert!(!error.to_string().is_empty());
        }
        let many = (0..200).fold(get(), |request, number| request.field(&format!("x-{number}"), "1"));
        assert_eq!(many.prepare().err(), Some(RequestError::TooLarge));
    }

    #[test]
    fn a_host_field_becomes_the_authority() {
        let prepared = prepared(Request::get(url()).field("Host", "shop.example"));
        let block = HeaderBlock::parse(&prepared.block, Message::Request).expect("our own block");
        assert_eq!(block.get(Known::Authority), Some(&b"shop.example"[..]));
    }
}
