//! HTTP/1.1 as a client: writes requests, reads responses, and judges whether a request may be sent again.
//!
//! Owns the framing of one connection to an upstream server (RFC 9110, RFC 9112) and nothing else: it knows no MMTP, no
//! pool and no socket. Requests are written whole or refused; nothing that HTTP/1.1 cannot carry unambiguously is ever
//! written, so no field value can become a second request. Responses are read strictly: wherever two readers could
//! disagree about where a message ends, the response is an error and the connection is not used again.
//!
//! Invariant: the bytes put for one request are one request, and the bytes taken for one response are one response.

mod bytes;
mod chunked;
mod request;
mod response;
mod retry;

pub use chunked::{CHUNK_EXTENSION_BYTES_MAX, TRAILER_BYTES_MAX};
pub(crate) use chunked::{ChunkReader, Piece};
pub use request::{BodyLength, BodyWriter, Refusal, RequestHead, write_request_head};
pub use response::{
    CONNECTION_OPTIONS_MAX, Fields, HEAD_BYTES_MAX, HEAD_FIELDS_MAX, INTERIM_MAX, ResponseBody, ResponseError,
    ResponseEvent, ResponseReader,
};
pub use retry::{Attempt, BodyState, is_idempotent, may_move};
