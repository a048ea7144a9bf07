//! One stream on its way through the POP: the pairing of a client's stream with a trunk's.
//!
//! Owns the pairing and, while no trunk takes the stream, what the client has sent of it. Never holds payload otherwise.
//! Invariant: `on_trunk` is some exactly when `waiting` is none.

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
    pub(super) trunk: usize,
    /// The trunk's link at that time: after a redial the same stream id is somebody else's.
    pub(super) link: LinkId,
    /// Which stream of it.
    pub(super) stream: StreamId,
    /// Position of the trunk's send buffer before the stream's HEADERS: if the trunk dies before this position was
    /// submitted, nothing of the stream was forwarded.
    pub(super) position: u64,
}

/// What a stream has that waits for a trunk.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) block: Vec<u8>,
    pub(super) flags: HeaderFlags,
    pub(super) priority: u8,
    /// What the client sent meanwhile, bounded by the credit it has.
    pub(super) data: Vec<u8>,
    pub(super) ended: bool,
    pub(super) until: Time,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) client: Client,
    pub(super) on_trunk: Option<OnTrunk>,
    pub(super) waiting: Option<Box<Waiting>>,
    /// The client's direction has ended, and its end was passed on.
    pub(super) to_origin_ended: bool,
    /// The origin's direction has ended, and its end was passed on.
    pub(super) to_client_ended: bool,
    /// The client's link was paused, since the trunk takes no more of this tunnel for now.
    pub(super) paused: bool,
    /// Bytes put to a tunnel whose send buffer was full: the trunk gets credit for them when it has room again.
    pub(super) uncredited_bytes: usize,
}

impl Stream {
    pub(super) fn new(client: Client) -> Stream {
        Stream {
            client,
            on_trunk: None,
            waiting: None,
            to_origin_ended: false,
            to_client_ended: false,
            paused: false,
            uncredited_bytes: 0,
        }
    }

    /// Stops reading from a tunnel whose bytes have nowhere to go for now. MMTP clients are held by credit instead.
    pub(super) fn pause<W: Wire>(&mut self, wire: &mut W) {
        if let (Client::Tunnel(link), false) = (self.client, self.paused) {
            self.paused = true;
            wire.pause(link);
        }
    }
}
