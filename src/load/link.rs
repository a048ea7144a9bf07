//! One connection of a load generator, from dialling to its end.
//!
//! Owns its phase and its two directions. Never enters the kernel. Invariant: a link is freed only when nothing is lent
//! to the kernel any more.

use super::lane::Lane;
use super::speech::Speech;
use crate::base::time::Time;
use crate::base::timers::Deadline;
use crate::ring::{Errno, Fd};

/// Where a link is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The socket is being connected, or will be.
    Connecting,
    /// The TLS handshake runs.
    Handshaking,
    /// Requests and answers flow.
    Open,
    /// The goodbye is being said and the server's awaited; its seat has a new link, perhaps.
    Retiring,
    /// Everything out was cancelled; the slot waits for the last completions.
    Dying,
}

impl Phase {
    /// Whether it is on its way to being open.
    pub(super) fn is_setup(self) -> bool {
        matches!(self, Phase::Connecting | Phase::Handshaking)
    }

    /// Whether it is, or will be, of use.
    pub(super) fn is_live(self) -> bool {
        matches!(self, Phase::Connecting | Phase::Handshaking | Phase::Open)
    }
}

/// The receive operation of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Receiving {
    /// None is out.
    Idle,
    /// A multishot receive is out.
    Armed,
    /// It ended for want of buffers, and will be armed again when there are some.
    Starved,
    /// The server's direction is over.
    Over,
}

/// The end of our sending direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// Bytes may be put.
    Open,
    /// The end was asked for; what was put goes first.
    Wanted,
    /// The last bytes wait or are out.
    Said,
    /// The server has been told.
    Done,
}

/// A connection.
pub(super) struct Link {
    /// Absent until it was dialled.
    pub(super) fd: Option<Fd>,
    pub(super) phase: Phase,
    /// Whose it is.
    pub(super) seat: u32,
    pub(super) lane: Lane,
    pub(super) speech: Speech,
    pub(super) receiving: Receiving,
    /// A record that has not wholly arrived.
    pub(super) carry: Vec<u8>,
    pub(super) ending: Ending,
    /// When connecting began, or was meant to.
    pub(super) began: Time,
    /// When it was connected; valid after [`Phase::Connecting`].
    pub(super) connected: Time,
    /// Whether it is measured: one that only fetches a ticket is not.
    pub(super) is_counted: bool,
    /// Requests that are still to be begun on it.
    pub(super) todo: u64,
    /// The first byte of its first answer has come.
    pub(super) has_heard: bool,
    /// All is done but for a ticket to come back with.
    pub(super) awaits_ticket: bool,
    /// Why a send failed. What the server still says is read for a while; it is asked nothing more.
    pub(super) send_fault: Option<Errno>,
    pub(super) connect_out: bool,
    pub(super) is_dirty: bool,
    pub(super) deadline: Deadline,
}

impl Link {
    /// Whether requests may begin on it.
    pub(super) fn takes_requests(&self) -> bool {
        self.phase == Phase::Open && self.send_fault.is_none()
    }

    /// Whether the kernel still holds something of this link.
    pub(super) fn is_lent(&self) -> bool {
        self.connect_out || self.lane.is_lent() || self.receiving == Receiving::Armed
    }
}
