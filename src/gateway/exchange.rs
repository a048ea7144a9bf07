//! One stream being served: what is known of it, and what is held of it.
//!
//! Owns the request bytes that may be needed again, within [`HELD_BYTES_MAX`], and nothing else of the payload.
//! Invariant: `upstream` is some from the dial until the upstream's part is over.

use super::http1::{BodyLength, BodyState, BodyWriter, ResponseReader, is_idempotent};
use crate::base::time::Time;
use crate::base::wire::LinkId;
use crate::mmtp::StreamId;

/// Request bytes kept so that the request can be moved to a fresh connection. A larger request is not moved.
pub(super) const HELD_BYTES_MAX: usize = 64 * 1024;

/// How a service treats its streams.
pub(super) enum Kind {
    /// Bytes both ways.
    Tunnel,
    /// One HTTP/1.1 request.
    Http(Box<Http>),
}

/// What an HTTP exchange has besides.
pub(super) struct Http {
    /// The method is HEAD.
    is_head: bool,
    /// Sending it twice does no harm: its sender said so, or its method does.
    pub(super) idempotent: bool,
    pub(super) writer: BodyWriter,
    pub(super) reader: ResponseReader,
    /// Whether all bytes of the request so far are in `held`.
    pub(super) body: BodyState,
    /// The upstream connection had served another request before.
    pub(super) reused: bool,
    /// Position of the upstream's send buffer before the request.
    pub(super) position: u64,
    /// The request came in early data: a 425 is for the POP, which can send it again after the handshake.
    pub(super) early: bool,
    /// The upstream said that 425.
    pub(super) too_early: bool,
}

impl Http {
    pub(super) fn new(method: &[u8], marked_idempotent: bool, length: BodyLength, early: bool) -> Http {
        let is_head = method == b"HEAD";
        Http {
            is_head,
            idempotent: marked_idempotent || is_idempotent(method),
            writer: BodyWriter::new(length),
            reader: ResponseReader::new(is_head),
            body: BodyState::Unsent,
            reused: false,
            position: 0,
            early,
            too_early: false,
        }
    }

    /// A reader for the response on another connection.
    pub(super) fn start_over(&mut self) {
        self.reader = ResponseReader::new(self.is_head);
    }
}

/// One stream being served.
pub(super) struct Exchange {
    pub(super) trunk: LinkId,
    pub(super) stream: StreamId,
    pub(super) service: usize,
    pub(super) kind: Kind,
    pub(super) upstream: Option<LinkId>,
    /// The upstream's link is open.
    pub(super) connected: bool,
    /// Bytes for the upstream: until it is connected, and for HTTP as long as the request may be moved.
    pub(super) held: Vec<u8>,
    /// Bytes from the trunk that it was not credited for, since the upstream had no room for them.
    pub(super) uncredited_bytes: usize,
    /// The trunk's direction has ended.
    pub(super) to_upstream_ended: bool,
    /// Our direction on the trunk has ended.
    pub(super) to_trunk_ended: bool,
    /// The upstream's link was paused, since the trunk takes no more of this stream for now.
    pub(super) paused: bool,
    /// Bytes of it went to an upstream connection that failed: whatever comes of it, it was not refused untouched.
    pub(super) attempted: bool,
    /// Upstream addresses not yet tried.
    pub(super) tries_left: usize,
    /// When the answer is of no more use, as the request said.
    pub(super) expires_at: Option<Time>,
}
