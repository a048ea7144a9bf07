//! The contract between a pure role (POP relay, gateway) and whatever moves its bytes (the worker, or a simulation).
//!
//! A *link* is one socket with its cryptography, seen as two byte streams. A role is told what happened on its links and
//! answers by putting bytes, finishing, closing, pausing and dialling. It never blocks, never sees a descriptor, and
//! never learns the time except as an argument.

use std::net::SocketAddr;
use std::time::Duration;

use super::counters::Counters;
use super::slab::Key;
use super::time::Time;

/// Names a link; stale names are ignored by everything that takes one.
pub type LinkId = Key;

/// Where bytes go on their way out: a send buffer, or a plain `Vec<u8>` in tests.
pub trait Sink {
    /// How many bytes may be put before the high-water mark. Advice: [`Sink::put`] takes everything regardless, so
    /// whoever puts past it must have a bound of its own.
    fn room(&self) -> usize;

    /// Appends all of `bytes`.
    fn put(&mut self, bytes: &[u8]);

    /// Bytes put since the sink was made.
    fn position(&self) -> u64;
}

impl Sink for Vec<u8> {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn position(&self) -> u64 {
        self.len() as u64
    }
}

/// How a link came to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Accepted on the listener with this index in the configuration.
    Accepted {
        /// Index of the listener.
        listener: usize,
    },
    /// Dialled by the role, which gave this tag.
    Dialed {
        /// The tag given to [`Wire::dial`].
        tag: u64,
    },
}

/// The application protocol agreed on while the link was set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// ALPN `mmtp/1`, or a trunk without TLS.
    Mmtp,
    /// Another ALPN, or none: bytes that nobody here reads.
    Opaque,
}

/// What a role is told when a link is ready for its bytes: connected, and its handshake (if any) complete.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// How it came to be.
    pub origin: Origin,
    /// The other end: as the socket has it, or as a PROXY header said.
    pub peer: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// Its first bytes are early data (RFC 8446 2.3): whoever recorded them may send them again, until
    /// [`Role::confirmed`] says otherwise. Always false for a link that was dialled.
    pub early: bool,
}

/// Why a link is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// Both directions ended in order, or the role closed it.
    Done,
    /// The operating system said so: a reset, a refused connection, a timeout (the errno).
    Os(i32),
    /// The peer broke the protocol of the link, or cut it without the authenticated end TLS asks for.
    Protocol,
    /// The role aborted it.
    Aborted,
    /// A deadline of the link passed: handshake, connect, idle or linger.
    TimedOut,
}

/// What a role is told when a link is gone. No further event names it.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    /// How the link had come to be.
    pub origin: Origin,
    /// Whether [`Role::opened`] had been called for it.
    pub was_open: bool,
    /// Why it is gone.
    pub reason: CloseReason,
    /// Of the bytes put ([`Sink::position`]), those that were ever handed to the kernel or still will be. What was not
    /// cannot have reached the peer.
    pub submitted: u64,
}

/// Where and how to dial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Address to connect to.
    pub address: SocketAddr,
    /// What to put around the bytes.
    pub security: Security,
}

/// What goes around the bytes of a dialled link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Security {
    /// Nothing: an upstream in the data center's own network.
    Plain,
    /// Mutual TLS with ALPN `mmtp/1`, to the configured gateway with this index; nothing where trunks are plaintext.
    Trunk {
        /// Index of the gateway in the configuration.
        gateway: usize,
    },
}

/// What a role may ask for. Nothing here enters the kernel: effects are gathered and carried out after the pass.
pub trait Wire {
    /// The send buffer of a link.
    type Out: Sink;

    /// The send buffer of a link, unless the link is gone or its sending side is finished.
    fn out(&mut self, link: LinkId) -> Option<&mut Self::Out>;

    /// Like [`Wire::out`], for what nobody waits for: it may be held back for a millisecond so that it goes with other bytes.
    fn out_later(&mut self, link: LinkId) -> Option<&mut Self::Out> {
        self.out(link)
    }

    /// Ends the sending direction after all that was put has gone: close_notify under TLS, FIN without.
    fn finish(&mut self, link: LinkId);

    /// Ends both directions after all that was put has gone. [`Role::closed`] follows.
    fn close(&mut self, link: LinkId);

    /// Drops the link at once, what was put with it. The peer sees a reset. [`Role::closed`] follows.
    fn abort(&mut self, link: LinkId);

    /// Stops reading from the link. A little that was already read may still arrive.
    fn pause(&mut self, link: LinkId);

    /// Reads from the link again.
    fn resume(&mut self, link: LinkId);

    /// Starts a connection. [`Role::opened`] or [`Role::closed`] follows, never within this call.
    fn dial(&mut self, target: Target, tag: u64) -> LinkId;

    /// The counters of this worker.
    fn counters(&mut self) -> &mut Counters;

    /// Hands a line to the log, which drops (and counts) lines rather than wait.
    fn log(&mut self, line: LogLine);
}

/// One structured log line: ids and codes, never payload, keys or tickets.
#[derive(Clone, Copy, Debug)]
pub struct LogLine {
    /// What happened, in a few fixed words.
    pub what: &'static str,
    /// The link it happened on, if any.
    pub link: Option<LinkId>,
    /// The other end, if known.
    pub peer: Option<SocketAddr>,
    /// A code: errno, alert, MMTP error code. Named by `detail`.
    pub code: i64,
    /// More fixed words: which limit, which violation.
    pub detail: &'static str,
}

/// A part that is told what happened on links and answers through a [`Wire`].
pub trait Role<W: Wire> {
    /// A link is ready for bytes.
    fn opened(&mut self, now: Time, wire: &mut W, link: LinkId, opened: Opened);

    /// The peer of a link that opened with early data has completed its handshake: what it sent and will send is no
    /// replay. Never called for other links.
    fn confirmed(&mut self, _now: Time, _wire: &mut W, _link: LinkId) {}

    /// Bytes arrived. They are gone after the call.
    fn bytes(&mut self, now: Time, wire: &mut W, link: LinkId, bytes: &[u8]);

    /// The peer ended its sending direction in order. The link stays until it is closed.
    fn ended(&mut self, now: Time, wire: &mut W, link: LinkId);

    /// The send buffer of a link that had been over its high-water mark has room again.
    fn room(&mut self, now: Time, wire: &mut W, link: LinkId);

    /// A link is gone.
    fn closed(&mut self, now: Time, wire: &mut W, link: LinkId, closed: Closed);

    /// The batch of events is over: the place for work shared by all of them.
    fn pass_ended(&mut self, now: Time, wire: &mut W);

    /// How long what arrives may wait for company: what nobody will notice. Zero: not at all.
    fn patience(&self, _now: Time) -> Duration {
        Duration::ZERO
    }

    /// When [`Role::due`] wants to be called next.
    fn next_deadline(&self) -> Option<Time>;

    /// A deadline has come.
    fn due(&mut self, now: Time, wire: &mut W);

    /// The process is asked to stop: take nothing new, tell peers, let what runs end.
    fn drain(&mut self, wire: &mut W);

    /// Whether nothing is left that draining waits for.
    fn is_drained(&self) -> bool;
}
