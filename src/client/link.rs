//! One connection to a server: its socket, its TLS and its MMTP, from the first address tried to the end. Owns the
//! bytes on the way and how far they got; knows calls only by stream and tag.
//!
//! Invariant: `submitted <= sealed <= put`, positions in the plaintext sent; what is beyond `submitted` cannot have
//! reached the server.

use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;

use crate::base::limits::SEND_HIGH_WATER_BYTES;
use crate::base::slab::Key;
use crate::base::time::Time;
use crate::base::timers::Deadline;
use crate::base::wire::Sink;
use crate::mmtp;
use crate::tls::{ClientTicket, Early};

use super::SendFirst;
use super::dial::Plan;
use super::error::{Failure, Stage};
use super::fast_open::First;
use super::secure::{Arrived, Secure};

/// Reads from one socket in one pass, so that one fast server does not keep the others waiting.
const READS_PER_PASS: usize = 32;

/// Plaintext on its way to TLS.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    put: u64,
}

impl Sink for Outbox {
    fn room(&self) -> usize {
        SEND_HIGH_WATER_BYTES.saturating_sub(self.bytes.len())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.put += bytes.len() as u64;
    }

    fn position(&self) -> u64 {
        self.put
    }
}

/// What a step of the set-up took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Steps {
    /// When the lookup began.
    pub(super) begun_at: Time,
    /// When it ended; `None` when the host was an address.
    pub(super) looked_at: Option<Time>,
    /// When a socket was connected.
    pub(super) connected_at: Option<Time>,
    /// When the TLS handshake was complete.
    pub(super) secured_at: Option<Time>,
}

/// A socket that is being connected.
pub(super) struct Attempt {
    pub(super) token: mio::Token,
    pub(super) socket: TcpStream,
    pub(super) address: SocketAddr,
}

/// Where a link is in its life.
pub(super) enum Phase {
    /// Its host is being looked up.
    Lookup,
    /// Its addresses are being tried.
    Dialing {
        /// Those that wait.
        plan: Plan,
        /// Those under way.
        attempts: Vec<Attempt>,
        /// What the last one that failed said.
        last_error: String,
        /// One more attempt, whose first bytes went out before it is known to be connected.
        head: Option<Box<Session>>,
    },
    /// It is connected: in the handshake, or beyond.
    Connected(Box<Session>),
}

/// One connection and what leads to it.
pub(super) struct Link {
    /// The pool it serves.
    pub(super) pool: Key,
    /// Where it is in its life.
    pub(super) phase: Phase,
    /// What its set-up took.
    pub(super) steps: Steps,
    /// When to look at it again: set-up overdue, keep-alive, idle.
    pub(super) deadline: Deadline,
    /// When its set-up must be complete.
    pub(super) ready_by: Time,
    /// Whether it is on the list of links to be served in this pass.
    pub(super) is_listed: bool,
    /// Streams opened on it so far.
    pub(super) opened: u64,
}

impl Link {
    /// Where a call that waits for this link is.
    pub(super) fn stage(&self) -> Stage {
        match &self.phase {
            Phase::Lookup => Stage::Lookup,
            Phase::Dialing { .. } => Stage::Connect,
            Phase::Connected(session) if session.is_established => Stage::Queued,
            Phase::Connected(_) => Stage::Handshake,
        }
    }

    /// The session that calls can be put on: connected, or with a head start.
    pub(super) fn session_mut(&mut self) -> Option<&mut Session> {
        match &mut self.phase {
            Phase::Lookup => None,
            Phase::Dialing { head, .. } => head.as_deref_mut(),
            Phase::Connected(session) => Some(session),
        }
    }
}

/// A socket with its protocols, connected or, with a head start, about to be.
pub(super) struct Session {
    pub(super) token: mio::Token,
    pub(super) socket: TcpStream,
    pub(super) address: SocketAddr,
    secure: Secure,
    /// Made when the handshake is complete, or before it when early data can be sent.
    pub(super) mmtp: Option<mmtp::Connection>,
    /// Whether the handshake is complete, with a server that speaks MMTP.
    pub(super) is_secured: bool,
    /// Whether a ticket was offered.
    pub(super) has_ticket: bool,
    /// Whether first bytes left with the SYN.
    pub(super) is_fast_opened: bool,
    /// Whether the server has given tickets.
    pub(super) has_tickets: bool,
    /// What was sealed as early data, until it is known whether the server took it.
    early: Vec<u8>,
    pub(super) out: Outbox,
    sealed: u64,
    submitted: u64,
    pub(super) is_readable: bool,
    pub(super) is_writable: bool,
    /// Whether the server's HELLO has arrived.
    pub(super) is_established: bool,
    /// Whether no new call may use it: the server said GOAWAY, or its stream numbers are used up.
    pub(super) is_leaving: bool,
    /// The last stream that the server says it takes.
    pub(super) taken_last: mmtp::StreamId,
    /// Calls whose app has done something since the last look.
    pub(super) touched: Vec<Key>,
    pub(super) received_at: Time,
    /// When it last had an open stream.
    pub(super) busy_at: Time,
}

impl Session {
    pub(super) fn new(attempt: Attempt, secure: Secure, has_ticket: bool, now: Time) -> Session {
        let _ = attempt.socket.set_nodelay(true); // without it the connection is slower, not wrong
        Session {
            token: attempt.token,
            socket: attempt.socket,
            address: attempt.address,
            secure,
            mmtp: None,
            is_secured: false,
            has_ticket,
            is_fast_opened: false,
            has_tickets: false,
            early: Vec::new(),
            out: Outbox::default(),
            sealed: 0,
            submitted: 0,
            is_readable: true,
            is_writable: true,
            is_established: false,
            is_leaving: false,
            taken_last: mmtp::StreamId::MAX,
            touched: Vec::new(),
            received_at: now,
            busy_at: now,
        }
    }

    /// Begins MMTP before the handshake is complete, if there is room for early data.
    pub(super) fn start_early(&mut self, settings: &mmtp::Settings, now: Time) {
        if self.mmtp.is_none() && !self.is_secured && self.secure.early_room() > 0 {
            self.begin(settings, now);
        }
    }

    fn begin(&mut self, settings: &mmtp::Settings, now: Time) {
        let mut connection = mmtp::Connection::new(settings, now);
        connection.start(&mut self.out); // MMTP 2.3: HELLO, and requests right behind it
        self.mmtp = Some(connection);
    }

    /// Bytes that can still be put into early data.
    pub(super) fn early_room(&self) -> usize {
        self.secure.early_room().saturating_sub(self.out.bytes.len())
    }

    /// Connects the socket, with as much of what there is to send as fits a SYN.
    pub(super) fn open_fast(&mut self, send_first: SendFirst) -> Result<(), Failure> {
        self.seal()?;
        let first = send_first(&self.socket, self.address, self.secure.pending());
        self.is_writable = false; // until it is connected
        self.is_readable = false;
        match first.map_err(|error| Failure::Connect(format!("{}: {error}", self.address)))? {
            First::Sent(count) => {
                self.secure.wrote(count);
                self.submitted = self.sealed;
                self.is_fast_opened = true;
            }
            First::Held => {}
        }
        Ok(())
    }

    /// Its socket is connected.
    pub(super) fn connected(&mut self, now: Time) {
        (self.is_readable, self.is_writable) = (true, true);
        self.received_at = now;
    }

    /// Tickets that came since the last call.
    pub(super) fn tickets(&mut self) -> Vec<ClientTicket> {
        let tickets = self.secure.tickets();
        self.has_tickets |= !tickets.is_empty();
        tickets
    }

    /// Reads what the socket has, up to a bound, and appends the plaintext. `is_readable` tells whether more may be
    /// there. True at the end of what the server sends.
    pub(super) fn read(&mut self, now: Time, plaintext: &mut Vec<u8>) -> Result<bool, Failure> {
        for _ in 0..READS_PER_PASS {
            if !self.is_readable {
                return Ok(false);
            }
            match self.secure.read_from(&mut self.socket, plaintext)? {
                Arrived::Nothing => self.is_readable = false,
                Arrived::End => {
                    self.is_readable = false;
                    return Ok(true);
                }
                Arrived::Bytes => {
                    self.received_at = now;
                    if !self.is_secured && !self.secure.is_handshaking() {
                        return Ok(false); // the protocol must be checked before anything is believed
                    }
                }
            }
        }
        Ok(false)
    }

    /// Starts MMTP, or goes on with it, once the handshake is complete. True when that has just happened.
    pub(super) fn start(&mut self, settings: &mmtp::Settings, now: Time) -> Result<bool, Failure> {
        if self.is_secured || self.secure.is_handshaking() {
            return Ok(false);
        }
        if !self.secure.speaks_mmtp() {
            return Err(Failure::NotMmtp);
        }
        self.is_secured = true;
        let mut early = std::mem::take(&mut self.early);
        if self.secure.early() != Early::Accepted && !early.is_empty() {
            // The server's side of MMTP has seen none of it: it is sent again, as if for the first time.
            self.sealed -= early.len() as u64;
            self.submitted = self.submitted.min(self.sealed);
            early.append(&mut self.out.bytes);
            self.out.bytes = early;
        }
        if self.mmtp.is_none() {
            self.begin(settings, now);
        }
        Ok(true)
    }

    /// After the handshake: what became of early data.
    pub(super) fn early(&self) -> Early {
        self.secure.early()
    }

    /// Whether the handshake resumed an earlier TLS session.
    pub(super) fn is_resumed(&self) -> bool {
        self.secure.is_resumed()
    }

    /// Seals what may be sealed now.
    fn seal(&mut self) -> Result<(), Failure> {
        if self.secure.is_handshaking() {
            let count = self.secure.seal_early(&self.out.bytes)?;
            self.early.extend(self.out.bytes.drain(..count));
            self.sealed += count as u64;
            return Ok(());
        }
        // The first plaintext goes out together with the end of the handshake: one packet, not two.
        let may_seal = self.secure.pending().is_empty() || self.sealed == 0;
        if self.is_secured && may_seal && !self.out.bytes.is_empty() {
            self.secure.seal(&self.out.bytes)?;
            self.sealed = self.out.put;
            self.out.bytes.clear();
        }
        Ok(())
    }

    /// Writes until nothing is left or the socket takes no more.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        loop {
            self.seal()?;
            while self.is_writable && !self.secure.pending().is_empty() {
                if self.secure.write_to(&mut self.socket)? == 0 {
                    self.is_writable = false;
                } else {
                    self.submitted = self.sealed;
                }
            }
            let is_blocked = !self.secure.pending().is_empty() || !self.is_secured;
            if is_blocked || self.out.bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// The time between heartbeats: `wanted`, within what the server is content with.
    pub(super) fn keep_alive(&self, wanted: Duration) -> Duration {
        match self.mmtp.as_ref().and_then(mmtp::Connection::peer).and_then(|peer| peer.heartbeat) {
            Some((least, most)) => wanted.min(most).max(least),
            None => wanted,
        }
    }

    /// Gives a stream up.
    pub(super) fn give_up(&mut self, stream: mmtp::StreamId, code: mmtp::Code) {
        if let Some(mmtp) = &mut self.mmtp {
            mmtp.reset(stream, mmtp::Reset { code, receipt: mmtp::Receipt::Unknown, wait_ms: 0 }, &mut self.out);
        }
    }

    /// Whether any byte beyond `position` may have reached the server.
    pub(super) fn has_submitted_beyond(&self, position: u64) -> bool {
        self.submitted > position
    }

    /// Says goodbye as far as the socket takes it at once. What it does not take is lost with the connection.
    pub(super) fn close(&mut self) {
        let _ = self.flush();
        self.secure.put_close_notify();
        let _ = self.flush();
    }
}
