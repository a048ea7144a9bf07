//! One socket: its phase, its receive lane, its send lane, and what stands between it and being closed.
//!
//! Owns the bytes on their way out and a record on its way in. Never enters the kernel.
//! Invariant: at most one send is out; `filling` collects the next one meanwhile.

use std::net::SocketAddr;

use super::sizing::Sizing;
use crate::base::limits::SEND_HIGH_WATER_BYTES;
use crate::base::timers::Deadline;
use crate::base::wire::{Origin, Security, Sink};
use crate::ring::Fd;
use crate::tickets::seal::Unsealed;
use crate::tickets::{Binding, Value};
use crate::tls::{RECORD_HEADER_BYTES, RECORD_TRAILER_BYTES, Session};

/// A send buffer with less room than this counts as full: slivers are not worth a frame.
const ROOM_BYTES_MIN: usize = 1024;

/// A send buffer that grows beyond [`SMALL_BUFFER_BYTES`] grows to this at once: what a full lane holds, with the headers and
/// trailers of its records and what may go over the mark. Growing by doubling copies everything each time.
pub(super) const BULK_BUFFER_BYTES: usize = SEND_HIGH_WATER_BYTES + 32 * 1024;

/// Send buffers grow by doubling up to this, which holds a record and a few small answers.
const SMALL_BUFFER_BYTES: usize = 20 * 1024;

/// Where a link is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The socket is being connected.
    Connecting,
    /// A PROXY protocol header is being read.
    Preamble,
    /// The TLS handshake runs.
    Handshaking,
    /// The ClientHello is whole; the look-up of its ticket, or its turn, has not come.
    Held,
    /// The role's bytes flow. As early data, while the link has a [`Setup`].
    Open,
    /// The role is gone; the rest is being sent and the peer's end awaited, what it still sends is dropped.
    Retiring,
    /// Everything out was cancelled; the slot waits for the last completions.
    Dying,
}

/// The receive operation of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Receiving {
    /// None is out.
    Idle,
    /// A multishot receive is out.
    Armed,
    /// It was asked to end and its last completion has not come.
    Stopping,
    /// It ended for want of buffers, and will be armed again when there are some.
    Starved,
    /// The peer's direction is over: there is nothing more to receive.
    Over,
}

/// The end of our sending direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// Bytes may be put.
    Open,
    /// The end was asked for; what was put goes first.
    Wanted,
    /// The last bytes, close_notify among them under TLS, wait or are out.
    Said,
    /// The peer has been told.
    Done,
}

/// Where the look-up of a ticket stands. Not to be printed, as it may hold a secret.
pub(super) enum Lookup {
    /// There is none, or it was not found.
    None,
    /// The group's server was asked. Its answer, or the deadline, makes `Fetched` or `None` of it and queues the link.
    Asked,
    /// It was found, and is spent: nobody else gets it.
    Found(Value),
    /// The same, at the group's server.
    Fetched(Unsealed),
}

/// What a link keeps from its ClientHello to the end of its handshake.
pub(super) struct Setup {
    pub(super) lookup: Lookup,
    /// What the tickets that this handshake issues are bound to.
    pub(super) binding: Binding,
    /// Bytes of records that carried no handshake message and were skipped: early data that was refused.
    pub(super) skipped_bytes: u64,
}

/// Since when nothing has moved on a link, in sweeps over all links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stillness {
    /// Something moved since the last sweep.
    Moved,
    /// Nothing did; the next sweep puts it to rest.
    Still,
    /// It holds nothing that it does not need.
    Resting,
}

/// Bytes on their way out of one socket, sealed as TLS records if it has a session.
pub struct SendLane {
    pub(super) session: Option<Box<Session>>,
    /// What the next send will carry: sealed records, then at most one that is still open.
    pub(super) filling: Vec<u8>,
    /// Where the open record starts in `filling`.
    record_start: Option<u32>,
    pub(super) sizing: Sizing,
    /// The last send was large: the next buffer may as well be.
    pub(super) is_bulk: bool,
    /// Bytes in the send that is out; zero when none is.
    pub(super) in_flight_bytes: usize,
    /// Plaintext bytes put since the link was made.
    position: u64,
    /// Of those, how many were handed to the kernel, as far as whole sends go.
    pub(super) submitted: u64,
    pub(super) ending: Ending,
    /// Whether the link stands in the list of lanes to flush.
    pub(super) dirty: bool,
    /// Sealing failed: the keys are used up or the session is over.
    pub(super) broken: bool,
}

impl SendLane {
    fn new() -> SendLane {
        SendLane {
            session: None,
            filling: Vec::new(),
            record_start: None,
            sizing: Sizing::fixed(),
            is_bulk: false,
            in_flight_bytes: 0,
            position: 0,
            submitted: 0,
            ending: Ending::Open,
            dirty: false,
            broken: false,
        }
    }

    /// Bytes that wait or are out.
    pub(super) fn pending_bytes(&self) -> usize {
        self.filling.len() + self.in_flight_bytes
    }

    /// Whether writers have been asked to wait.
    pub(super) fn is_full(&self) -> bool {
        self.pending_bytes() + ROOM_BYTES_MIN > SEND_HIGH_WATER_BYTES
    }

    /// Makes place for so many bytes more, without copying what is there again and again.
    fn reserve(&mut self, bytes: usize) {
        let wanted = self.filling.len() + bytes;
        if wanted <= self.filling.capacity() {
            return;
        }
        if (SMALL_BUFFER_BYTES..=BULK_BUFFER_BYTES).contains(&wanted) {
            self.filling.reserve_exact(BULK_BUFFER_BYTES - self.filling.len());
        } else {
            self.filling.reserve(bytes);
        }
    }

    /// Takes what is to be sent. None of its records is open.
    pub(super) fn take_filled(&mut self) -> Vec<u8> {
        self.is_bulk = self.filling.len() > SMALL_BUFFER_BYTES;
        self.in_flight_bytes = self.filling.len();
        self.submitted = self.position;
        std::mem::take(&mut self.filling)
    }

    /// Finishes the open record, if there is one, and rotates the key when its limit is near.
    pub(super) fn seal(&mut self) {
        let (Some(start), Some(session)) = (self.record_start.take(), self.session.as_mut()) else { return };
        let start = start as usize;
        self.sizing.sealed(self.filling.len() - start - RECORD_HEADER_BYTES);
        if session.seal(&mut self.filling, start).is_err() {
            self.filling.truncate(start);
            self.broken = true;
            return;
        }
        if session.key_update_due() && session.put_key_update(&mut self.filling).is_err() {
            self.broken = true;
        }
    }

    /// Puts bytes of the session itself (handshake, alert, KeyUpdate) before the record that is still open: they were
    /// sealed before it will be.
    pub(super) fn put_ahead(&mut self, replies: &[u8]) {
        match self.record_start {
            None => self.filling.extend_from_slice(replies),
            Some(start) => {
                let at = start as usize;
                self.filling.splice(at..at, replies.iter().copied());
                self.record_start = Some(start + replies.len() as u32);
            }
        }
    }

    /// Seals what is open and says goodbye under TLS. Nothing may be put afterwards.
    pub(super) fn put_goodbye(&mut self) {
        self.seal();
        self.ending = Ending::Said;
        if let Some(session) = self.session.as_mut() {
            session.put_close_notify(&mut self.filling);
        }
    }
}

impl Sink for SendLane {
    fn room(&self) -> usize {
        if self.is_full() { 0 } else { SEND_HIGH_WATER_BYTES - self.pending_bytes() }
    }

    fn put(&mut self, mut bytes: &[u8]) {
        self.position += bytes.len() as u64;
        self.reserve(bytes.len() + RECORD_HEADER_BYTES + RECORD_TRAILER_BYTES);
        if self.session.is_none() {
            self.filling.extend_from_slice(bytes);
            return;
        }
        while !bytes.is_empty() {
            let start = *self.record_start.get_or_insert_with(|| {
                self.filling.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
                u32::try_from(self.filling.len() - RECORD_HEADER_BYTES).expect("a send buffer is far below 4 GiB")
            });
            let used = self.filling.len() - start as usize - RECORD_HEADER_BYTES;
            let record_bytes_max = self.sizing.record_bytes_max();
            if used >= record_bytes_max {
                // Begun when the connection was warm, which it no longer is.
                self.seal();
                continue;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(record_bytes_max - used));
            self.filling.extend_from_slice(part);
            bytes = rest;
            if used + part.len() == record_bytes_max {
                self.seal();
            }
        }
    }

    fn position(&self) -> u64 {
        self.position
    }
}

/// A socket with its cryptography.
pub(super) struct Link {
    /// Absent only before a dial was carried out.
    pub(super) fd: Option<Fd>,
    pub(super) phase: Phase,
    pub(super) origin: Origin,
    /// What goes around the bytes of a link that was dialled.
    pub(super) security: Security,
    pub(super) peer: SocketAddr,
    pub(super) receiving: Receiving,
    /// The role wants no bytes for now.
    pub(super) paused: bool,
    /// The peer's direction ended in order (close_notify, or FIN without TLS).
    pub(super) peer_ended: bool,
    /// The role was told that the link is open, and has not been told that it is closed.
    pub(super) known_to_role: bool,
    /// The role was told of the end of a link it dialled.
    pub(super) told_closed: bool,
    /// A record or preamble that has not wholly arrived. Empty, and without memory, most of the time.
    pub(super) carry: Vec<u8>,
    /// Some from the ClientHello of an accepted link to the end of its handshake.
    pub(super) setup: Option<Box<Setup>>,
    pub(super) stillness: Stillness,
    pub(super) lane: SendLane,
    pub(super) connect_out: bool,
    /// Close with a reset.
    pub(super) reset: bool,
    pub(super) deadline: Deadline,
}

impl Link {
    pub(super) fn new(phase: Phase, origin: Origin, security: Security, peer: SocketAddr) -> Link {
        Link {
            fd: None,
            phase,
            origin,
            security,
            peer,
            receiving: Receiving::Idle,
            paused: false,
            peer_ended: false,
            known_to_role: false,
            told_closed: false,
            carry: Vec::new(),
            setup: None,
            stillness: Stillness::Moved,
            lane: SendLane::new(),
            connect_out: false,
            reset: false,
            deadline: Deadline::default(),
        }
    }

    /// Whether the kernel still holds something of this link.
    pub(super) fn is_lent(&self) -> bool {
        self.connect_out
            || self.lane.in_flight_bytes > 0
            || matches!(self.receiving, Receiving::Armed | Receiving::Stopping)
    }

    /// Whether the peer's direction is over: nothing that matters can come any more.
    pub(super) fn has_heard_out(&self) -> bool {
        self.peer_ended || self.receiving == Receiving::Over
    }

    /// Whether a receive should be out.
    pub(super) fn wants_receive(&self) -> bool {
        match self.phase {
            Phase::Connecting | Phase::Dying => false,
            Phase::Preamble | Phase::Handshaking | Phase::Held | Phase::Retiring => true,
            Phase::Open => !self.paused,
        }
    }

    /// Whether it is on its way to being established: time spent on it is time of handshakes.
    pub(super) fn is_in_setup(&self) -> bool {
        match self.phase {
            Phase::Preamble | Phase::Handshaking | Phase::Held => true,
            Phase::Open => self.setup.is_some(),
            // One that was never open was refused.
            Phase::Dying => !self.known_to_role && matches!(self.origin, Origin::Accepted { .. }),
            Phase::Connecting | Phase::Retiring => false,
        }
    }

    /// Whether early data flows: the peer has not proved yet that it is no replay.
    pub(super) fn is_early(&self) -> bool {
        self.phase == Phase::Open && self.setup.is_some()
    }

    /// One of the sweeps over all links has come by. True when it is time to put the link to rest.
    pub(super) fn swept(&mut self) -> bool {
        let is_idle = self.phase == Phase::Open && self.setup.is_none() && self.lane.pending_bytes() == 0;
        let (next, rests) = match self.stillness {
            Stillness::Moved => (Stillness::Still, false),
            Stillness::Still if is_idle => (Stillness::Resting, true),
            same => (same, false),
        };
        self.stillness = next;
        rests
    }

    /// Lets go of what an idle link does not need.
    pub(super) fn rest(&mut self) {
        if let Some(session) = self.lane.session.as_mut() {
            session.rest();
        }
        self.lane.filling = Vec::new();
        // A peer that stopped within a record keeps no more than what it sent.
        self.carry.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_lane_passes_bytes_on_and_tells_when_it_is_full() {
        let mut lane = SendLane::new();
        assert_eq!(lane.room(), SEND_HIGH_WATER_BYTES);
        lane.put(b"abc");
        assert_eq!((lane.filling.as_slice(), lane.position()), (b"abc".as_slice(), 3));
        lane.put(&vec![0; SEND_HIGH_WATER_BYTES - 3 - ROOM_BYTES_MIN]);
        assert_eq!(lane.room(), ROOM_BYTES_MIN);
        lane.put(b"x");
        assert_eq!(lane.room(), 0);
        assert!(lane.is_full());
    }

    #[test]
    fn replies_go_before_an_open_record() {
        let mut lane = SendLane::new();
        lane.filling.extend_from_slice(b"sealed|open");
        lane.record_start = Some(7);
        lane.put_ahead(b"reply|");
        assert_eq!(lane.filling, b"sealed|reply|open");
        assert_eq!(lane.record_start, Some(13));
    }

    fn link(phase: Phase) -> Link {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        Link::new(phase, Origin::Accepted { listener: 0 }, Security::Plain, peer)
    }

    #[test]
    fn a_link_rests_after_two_sweeps_without_a_move() {
        let mut link = link(Phase::Open);
        assert!(!link.swept());
        assert!(link.swept());
        assert!(!link.swept(), "once is enough");
        link.stillness = Stillness::Moved;
        assert!(!link.swept());
        link.lane.in_flight_bytes = 1;
        assert!(!link.swept(), "something is on its way");
        link.lane.in_flight_bytes = 0;
        assert!(link.swept());
    }

    #[test]
    fn links_are_in_setup_until_their_handshake_is_complete() {
        for (phase, expected) in [(Phase::Preamble, true), (Phase::Held, true), (Phase::Open, false)] {
            assert_eq!(link(phase).is_in_setup(), expected);
        }
        let mut early = link(Phase::Open);
        let binding = Binding { realm: 0, name: 0 };
        early.setup = Some(Box::new(Setup { lookup: Lookup::None, binding, skipped_bytes: 0 }));
        assert!(early.is_in_setup() && early.is_early());
        assert!(!early.swept() && !early.swept(), "what is not complete does not rest");
    }

    #[test]
    fn a_link_is_small() {
        assert!(size_of::<Link>() <= 224, "{} bytes", size_of::<Link>());
    }
}
