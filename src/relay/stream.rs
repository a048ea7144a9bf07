//! One stream on its way through the POP: the pairing of a client's stream with a trunk's.
//!
//! Owns the pairing; while no trunk takes the stream, or it may not be forwarded yet, what the client has sent of it;
//! and of a request that was forwarded early a copy, within limits, until its answer begins. Never holds payload
//! otherwise.
//! Invariant: `on_trunk` is some exactly when `waiting` is none.

use super::early::EARLY_COPY_BYTES_MAX;
use crate::base::time::Time;
use crate::base::wire::{LinkId, Wire};
use crate::mmtp::{HeaderFlags, StreamId};

/// The client's side of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Client {
    /// The whole connection is the stream.
    Tunnel(LinkId),
    /// One of the streams of an MMTP connection.
    Stream(LinkId, StreamId),
}

/// The trunk's side of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OnTrunk {
    /// Which trunk.
    pub(super) trunk: u32,
    /// The trunk's link at that time: after a redial the same stream id is somebody else's.
    pub(super) link: LinkId,
    /// Which stream of it.
    pub(super) stream: StreamId,
    /// Position of the trunk's send buffer before the stream's HEADERS: if the trunk dies before this position was
    /// submitted, nothing of the stream was forwarded.
    pub(super) position: u64,
}

/// How a stream is opened on a trunk, besides its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) flags: HeaderFlags,
    pub(super) priority: u8,
    /// It goes out before its client's handshake is complete, and its block ends with the field that says so.
    pub(super) early: bool,
}

/// What a stream has that waits for a trunk, or for its client's handshake to be complete.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) head: Head,
    pub(super) block: Vec<u8>,
    /// What the client sent meanwhile, bounded by the credit it has.
    pub(super) data: Vec<u8>,
    pub(super) ended: bool,
    /// How long it may wait for a trunk. None while it is held until its client's handshake is complete.
    pub(super) until: Option<Time>,
}

impl Waiting {
    pub(super) fn is_held(&self) -> bool {
        self.until.is_none()
    }

    pub(super) fn bytes(&self) -> usize {
        self.block.len() + self.data.len()
    }
}

/// All of a request that was forwarded early, in case its upstream wants it after the handshake (RFC 8470 5.2).
#[derive(Debug)]
pub(super) struct Kept {
    /// Flags and priority; `early` is false.
    pub(super) head: Head,
    /// Without the field *early*.
    pub(super) block: Vec<u8>,
    pub(super) data: Vec<u8>,
    pub(super) ended: bool,
    /// Bytes of `data` that the client was credited for.
    pub(super) credited_bytes: u32,
}

impl Kept {
    pub(super) fn bytes(&self) -> usize {
        self.block.len() + self.data.len()
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.bytes() + bytes <= EARLY_COPY_BYTES_MAX
    }
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) client: Client,
    pub(super) on_trunk: Option<OnTrunk>,
    pub(super) waiting: Option<Box<Waiting>>,
    /// Some while the request may be sent again. Only of MMTP clients.
    pub(super) kept: Option<Box<Kept>>,
    /// Bytes put to a tunnel whose send buffer was full: the trunk gets credit for them when it has room again.
    pub(super) uncredited_bytes: u32,
    /// Bytes that the client was credited for when they went out early, and that go out again: no credit for those.
    pub(super) credited_ahead_bytes: u32,
    /// The client's direction has ended, and its end was passed on.
    pub(super) to_origin_ended: bool,
    /// The origin's direction has ended, and its end was passed on.
    pub(super) to_client_ended: bool,
    /// The client's link was paused, since the trunk takes no more of this tunnel for now.
    pub(super) paused: bool,
    /// A tunnel whose client's handshake is not complete. Its link is read whatever waits: the Finished that completes
    /// it comes behind the early data, which TLS bounds.
    pub(super) unconfirmed: bool,
    /// Its request goes again, after an upstream refused it for being early: it did reach a gateway, whatever becomes of
    /// it now.
    pub(super) repeated: bool,
}

const _: () = assert!(size_of::<Stream>() <= 96, "a stream that waits for nothing is small");

impl Stream {
    pub(super) fn new(client: Client) -> Stream {
        Stream {
            client,
            on_trunk: None,
            waiting: None,
            kept: None,
            uncredited_bytes: 0,
            credited_ahead_bytes: 0,
            to_origin_ended: false,
            to_client_ended: false,
            paused: false,
            unconfirmed: false,
            repeated: false,
        }
    }

    /// The trunk took so many bytes. Returns for how many of them the client is to be credited.
    pub(super) fn credit(&mut self, bytes: usize) -> usize {
        if let Some(kept) = &mut self.kept {
            kept.credited_bytes += bytes as u32; // less than the stream's window, which is below 2^30
        }
        let ahead = bytes.min(self.credited_ahead_bytes as usize);
        self.credited_ahead_bytes -= ahead as u32;
        bytes - ahead
    }

    /// Stops reading from a tunnel whose bytes have nowhere to go for now. MMTP clients are held by credit instead.
    pub(super) fn pause<W: Wire>(&mut self, wire: &mut W) {
        if let (Client::Tunnel(link), false, false) = (self.client, self.paused, self.unconfirmed) {
            self.paused = true;
            wire.pause(link);
        }
    }
}
