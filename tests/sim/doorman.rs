//! The POP's role with somebody at its door, who says which links open early and when they are confirmed, and who
//! writes down what the role puts on its trunks at the moment it does.
//!
//! TLS of the simulation is real and completes its handshake before a link opens. What a role sees of early data is the
//! same all the same: a link that opens early, at most [`EARLY_DATA_BYTES`] from it, and then `confirmed`, or an end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use trunkline::base::counters::Counters;
use trunkline::base::time::Time;
use trunkline::base::wire::{Closed, LinkId, LogLine, Opened, Origin, Role, Sink, Target, Wire};
use trunkline::mmtp::frame::Frame;
use trunkline::mmtp::{HeaderBlock, HeaderFlags, Known, Message, decode};
use trunkline::relay::{EARLY_STREAMS_MAX, Relay, TunnelEarly};

use crate::truth::Truth;

/// What listeners take as early data of one connection.
pub const EARLY_DATA_BYTES: usize = 16 * 1024;

/// What becomes of a connection's handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handshake {
    /// It is complete before a byte of the application comes.
    First,
    /// It is complete so long after the link opened.
    After(Duration),
    /// It never is: the connection is cut so long after the link opened.
    Never(Duration),
}

/// A connection as its client announced it.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    pub handshake: Handshake,
    pub is_tunnel: bool,
    pub confirmed: bool,
    pub cut: bool,
}

impl Visit {
    pub fn new(handshake: Handshake, is_tunnel: bool) -> Visit {
        Visit { handshake, is_tunnel, confirmed: handshake == Handshake::First, cut: false }
    }
}

/// A send buffer that is looked at on its way to the true one.
#[derive(Default)]
pub struct Tap {
    bytes: Vec<u8>,
    room: usize,
    position: u64,
}

impl Sink for Tap {
    fn room(&self) -> usize {
        self.room.saturating_sub(self.bytes.len())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn position(&self) -> u64 {
        self.position + self.bytes.len() as u64
    }
}

struct Tapped<'a, W: Wire> {
    wire: &'a mut W,
    book: &'a mut Book,
}

impl<W: Wire> Tapped<'_, W> {
    fn flush(&mut self, link: LinkId) {
        let Some(tap) = self.book.taps.remove(&link) else { return };
        if !tap.bytes.is_empty() {
            self.wire.out(link).expect("it was there when bytes were put").put(&tap.bytes);
            self.book.look(link, &tap.bytes);
        }
    }

    fn flush_all(&mut self) {
        let links: Vec<LinkId> = self.book.taps.keys().copied().collect();
        links.into_iter().for_each(|link| self.flush(link));
        let counters = self.wire.counters();
        let most = self.book.unconfirmed() * EARLY_STREAMS_MAX;
        assert!(counters.streams_held <= most as u64, "held_bounded: {} streams are held", counters.streams_held);
    }
}

impl<W: Wire> Wire for Tapped<'_, W> {
    type Out = Tap;

    fn out(&mut self, link: LinkId) -> Option<&mut Tap> {
        let out = self.wire.out(link)?;
        let fresh = || Tap { bytes: Vec::new(), room: out.room(), position: out.position() };
        Some(self.book.taps.entry(link).or_insert_with(fresh))
    }

    fn finish(&mut self, link: LinkId) {
        self.flush(link);
        self.wire.finish(link);
    }

    fn close(&mut self, link: LinkId) {
        self.flush(link);
        self.wire.close(link);
    }

    fn abort(&mut self, link: LinkId) {
        self.flush(link);
        self.wire.abort(link);
    }

    fn pause(&mut self, link: LinkId) {
        let early = self.book.visitors.get(&link).is_some_and(|visitor| visitor.then.is_some());
        assert!(!early, "no_deadlock: a link is paused whose Finished is still to come");
        self.wire.pause(link);
    }

    fn resume(&mut self, link: LinkId) {
        self.wire.resume(link);
    }

    fn dial(&mut self, target: Target, tag: u64) -> LinkId {
        self.wire.dial(target, tag)
    }

    fn counters(&mut self) -> &mut Counters {
        self.wire.counters()
    }

    fn log(&mut self, line: LogLine) {
        self.wire.log(line);
    }
}

struct Visitor {
    peer: SocketAddr,
    /// When its handshake is complete (true) or it is cut.
    then: Option<(Time, bool)>,
}

/// What is known of links.
struct Book {
    truth: Rc<RefCell<Truth>>,
    tunnel_early: TunnelEarly,
    visitors: BTreeMap<LinkId, Visitor>,
    taps: BTreeMap<LinkId, Tap>,
    /// Of each trunk, the bytes of a frame that is not whole.
    trunks: BTreeMap<LinkId, Vec<u8>>,
    /// How often a request went to a trunk, by the client's address and the number of the call; and early.
    forwarded: BTreeMap<(SocketAddr, u32), (u32, u32)>,
}

impl Book {
    fn unconfirmed(&self) -> usize {
        self.visitors.values().filter(|visitor| visitor.then.is_some()).count()
    }

    /// Reads what goes out on a trunk.
    fn look(&mut self, link: LinkId, bytes: &[u8]) {
        let Some(mut rest) = self.trunks.remove(&link) else { return };
        rest.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((frame, length)) = decode::frame(&rest[at..]).expect("conformance: a POP encodes what it means")
        {
            if let Frame::Headers { flags, block, .. } = frame {
                self.check(flags, &HeaderBlock::parse(block, Message::Request).expect("conformance: a block"));
            }
            at += length;
        }
        rest.drain(..at);
        self.trunks.insert(link, rest);
    }

    /// A request goes out.
    fn check(&mut self, flags: HeaderFlags, block: &HeaderBlock<'_>) {
        let address = std::str::from_utf8(block.get(Known::ClientAddress).expect("a POP says who")).expect("ASCII");
        let peer: SocketAddr = address.parse().expect("an address");
        let mut truth = self.truth.borrow_mut();
        let Some(visit) = truth.visits.get(&peer).copied() else { return };
        let early = block.number(Known::Early) == Some(1);
        if !visit.confirmed && visit.is_tunnel {
            let allowed = self.tunnel_early == TunnelEarly::Allow;
            assert!(allowed, "replay_safe_only: a tunnel of {peer} went out before it was confirmed");
        } else if !visit.confirmed {
            let safe = flags.contains(HeaderFlags::REPLAY_SAFE);
            assert!(safe, "replay_safe_only: a request of {peer} went out before it was confirmed");
        }
        assert_eq!(early, !visit.confirmed, "early_exact: a request of {peer}, confirmed: {}", visit.confirmed);
        for (id, check) in crate::truth::markers(block.get(Known::RequestId).unwrap_or(b"")) {
            let Some(call) = truth.call(id, check) else { continue };
            call.went_early |= early;
            let (times, times_early) = self.forwarded.entry((peer, id)).or_default();
            *times += 1;
            *times_early += u32::from(early);
            let once = *times <= 1 + *times_early && *times_early <= 1;
            assert!(call.hostile || once, "repeated_once: call {id} went out {times} times, {times_early} early");
        }
    }
}

pub struct Doorman {
    pub relay: Relay,
    book: Book,
}

impl Doorman {
    pub fn new(relay: Relay, truth: Rc<RefCell<Truth>>, tunnel_early: TunnelEarly) -> Doorman {
        let (visitors, taps, trunks, forwarded) = Default::default();
        Doorman { relay, book: Book { truth, tunnel_early, visitors, taps, trunks, forwarded } }
    }

    fn tapped<W: Wire, R>(&mut self, wire: &mut W, act: impl FnOnce(&mut Relay, &mut Tapped<'_, W>) -> R) -> R {
        let mut tapped = Tapped { wire, book: &mut self.book };
        let result = act(&mut self.relay, &mut tapped);
        tapped.flush_all();
        result
    }
}

impl<W: Wire> Role<W> for Doorman {
    fn opened(&mut self, now: Time, wire: &mut W, link: LinkId, mut opened: Opened) {
        if matches!(opened.origin, Origin::Dialed { .. }) {
            self.book.trunks.insert(link, Vec::new());
        } else if let Some(visit) = self.book.truth.borrow().visits.get(&opened.peer) {
            let then = match visit.handshake {
                Handshake::First => None,
                Handshake::After(after) => Some((now + after, true)),
                Handshake::Never(after) => Some((now + after, false)),
            };
            opened.early = then.is_some();
            self.book.visitors.insert(link, Visitor { peer: opened.peer, then });
        }
        self.tapped(wire, |relay, wire| relay.opened(now, wire, link, opened));
    }

    fn bytes(&mut self, now: Time, wire: &mut W, link: LinkId, bytes: &[u8]) {
        self.tapped(wire, |relay, wire| relay.bytes(now, wire, link, bytes));
    }

    fn ended(&mut self, now: Time, wire: &mut W, link: LinkId) {
        self.tapped(wire, |relay, wire| relay.ended(now, wire, link));
    }

    fn room(&mut self, now: Time, wire: &mut W, link: LinkId) {
        self.tapped(wire, |relay, wire| relay.room(now, wire, link));
    }

    fn closed(&mut self, now: Time, wire: &mut W, link: LinkId, closed: Closed) {
        self.book.trunks.remove(&link);
        self.tapped(wire, |relay, wire| relay.closed(now, wire, link, closed));
        self.book.visitors.remove(&link);
    }

    fn pass_ended(&mut self, now: Time, wire: &mut W) {
        self.tapped(wire, |relay, wire| relay.pass_ended(now, wire));
    }

    fn next_deadline(&self) -> Option<Time> {
        let visitors = self.book.visitors.values().filter_map(|visitor| Some(visitor.then?.0));
        visitors.chain(Role::<W>::next_deadline(&self.relay)).min()
    }

    fn due(&mut self, now: Time, wire: &mut W) {
        let due = |(link, visitor): (&LinkId, &Visitor)| Some((*link, visitor.then.filter(|(at, _)| *at <= now)?.1));
        let due: Vec<(LinkId, bool)> = self.book.visitors.iter().filter_map(due).collect();
        for (link, confirmed) in due {
            let Some(visitor) = self.book.visitors.get_mut(&link) else { continue };
            let peer = visitor.peer;
            if confirmed {
                visitor.then = None;
                self.book.truth.borrow_mut().visits.get_mut(&peer).expect("announced").confirmed = true;
                self.tapped(wire, |relay, wire| relay.confirmed(now, wire, link));
            } else {
                visitor.then = Some((now + Duration::from_secs(3600), false));
                self.book.truth.borrow_mut().visits.get_mut(&peer).expect("announced").cut = true;
                wire.abort(link);
            }
        }
        self.tapped(wire, |relay, wire| relay.due(now, wire));
    }

    fn drain(&mut self, wire: &mut W) {
        self.tapped(wire, |relay, wire| relay.drain(wire));
    }

    fn is_drained(&self) -> bool {
        Role::<W>::is_drained(&self.relay)
    }
}
