//! Links, TLS and role together, without the ring: what happens to a link, step by step.
//!
//! Owns the links and the role. Never enters the kernel: what needs it is left in `links.requests`, `links.dirty` and
//! `dying` for the worker. Invariant: a role hears `opened` before anything else of a link, and `closed` once, last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::WorkerSettings;
use super::admission::{Budget, Class, QUEUE_MAX, Queue};
use super::group::Member;
use super::links::Links;
use super::shared::Shared;
use super::sizing::Sizing;
use super::socket::{Ending, Link, Lookup, Phase, Receiving, Setup, Stillness};
use crate::base::time::Time;
use crate::base::timers::Timers;
use crate::base::wire::{CloseReason, Closed, LinkId, LogLine, Opened, Origin, Protocol, Role, Security, Sink, Wire};
use crate::relay::proxy_protocol;
use crate::ring::{Fd, Token};
use crate::tickets::{self, Binding, Miss, Stored, TicketId};
use crate::tls::{self, Cut, Early, Established, Received, Session, TlsError};

/// Most bytes kept behind a ClientHello that waits. Until it is answered a client has early data to send and nothing else, so
/// one that sends more is closed: it would be kept for somebody who has proved nothing.
const HELD_BYTES_MAX: usize = 28 * 1024;

const _: () = assert!(tls::EARLY_FLIGHT_BYTES_MAX <= HELD_BYTES_MAX, "all early data that a handshake takes can wait");

/// First byte of a record of application data, which is what early data travels in (RFC 8446 5.1).
const APPLICATION_DATA: u8 = 23;

pub(super) struct Engine<L> {
    pub(super) now: Time,
    pub(super) links: Links,
    pub(super) role: L,
    pub(super) timers: Timers<LinkId>,
    pub(super) settings: WorkerSettings,
    pub(super) shared: Arc<Shared>,
    /// Links that wait to be freed, and whether what is out on them was cancelled.
    pub(super) dying: Vec<(LinkId, bool)>,
    /// Links whose ClientHello waits for an answer.
    pub(super) queue: Queue,
    /// Time for answers.
    pub(super) budget: Budget,
    /// The server that keeps the tickets of a group of nodes, if there is one.
    pub(super) member: Option<Member>,
    /// Scratch for what a session wants sent.
    replies: Vec<u8>,
}

impl<L: Role<Links>> Engine<L> {
    pub(super) fn new(role: L, settings: WorkerSettings, shared: Arc<Shared>) -> Engine<L> {
        let queue = Queue::new(settings.handshake_patience, QUEUE_MAX);
        let budget = Budget::new(settings.handshake_share);
        let member = shared.group.clone().map(|group| Member::new(group, settings.index));
        Engine {
            now: Time::ZERO,
            links: Links::new(shared.clone(), settings.index),
            role,
            timers: Timers::default(),
            settings,
            shared,
            dying: Vec::new(),
            queue,
            budget,
            member,
            replies: Vec::new(),
        }
    }

    // ---- beginnings ----

    /// The link that a completion is for.
    pub(super) fn find(&mut self, token: Token) -> Option<LinkId> {
        let found = self.links.slab.key_at(token.slot()).filter(|key| token.names(*key));
        if found.is_none() {
            self.links.counters.stale_completions += 1;
        }
        found
    }

    /// Whether the link that a completion is for is still being set up.
    pub(super) fn is_in_setup(&self, token: Token) -> bool {
        let key = self.links.slab.key_at(token.slot()).filter(|key| token.names(*key));
        key.and_then(|key| self.links.slab.get(key)).is_none_or(Link::is_in_setup)
    }

    /// A link for a connection that was accepted.
    pub(super) fn start_accepted(&mut self, fd: Fd, listener: usize, peer: SocketAddr) -> LinkId {
        let session = self.settings.tls.listeners[listener].as_ref().map(Session::server);
        let preamble = self.settings.listeners[listener].proxy_protocol;
        let phase = if preamble { Phase::Preamble } else { Phase::Handshaking };
        let mut link = Link::new(phase, Origin::Accepted { listener }, Security::Plain, peer);
        link.fd = Some(fd);
        let has_handshake = preamble || session.is_some();
        link.lane.session = session.map(Box::new);
        if self.settings.serves_clients {
            link.lane.sizing = Sizing::following();
        }
        let key = self.links.slab.insert(link);
        self.links.counters.links_open += 1;
        self.links.counters.connections_open += 1;
        let deadline = self.now + self.settings.handshake_timeout;
        let link = self.links.slab.get_mut(key).expect("just inserted");
        link.deadline.set(Some(deadline), &mut self.timers, key);
        if !has_handshake {
            self.open_plain(key);
        }
        key
    }

    /// An accepted link without TLS is ready: nothing but MMTP is spoken there.
    fn open_plain(&mut self, key: LinkId) {
        self.links.slab.get_mut(key).expect("the caller found it").phase = Phase::Open;
        self.opened(key, Protocol::Mmtp);
    }

    /// A dial has connected: under TLS the handshake starts, else the role's bytes may flow.
    pub(super) fn start_dialed(&mut self, key: LinkId) {
        let link = self.links.touch(key).expect("the caller found it");
        let Security::Trunk { gateway } = link.security else {
            link.phase = Phase::Open;
            self.opened(key, Protocol::Opaque);
            return;
        };
        let Some((settings, name)) = &self.settings.tls.gateways[gateway] else {
            link.phase = Phase::Open;
            self.opened(key, Protocol::Mmtp);
            return;
        };
        match Session::client(settings, name, None, &mut link.lane.filling) {
            Ok(session) => {
                link.phase = Phase::Handshaking;
                link.lane.session = Some(Box::new(session));
            }
            Err(_) => self.kill(key, CloseReason::Protocol, false),
        }
    }

    // ---- bytes in ----

    /// Bytes arrived from the socket.
    pub(super) fn feed(&mut self, key: LinkId, bytes: &mut [u8]) {
        let Some(link) = self.links.slab.get_mut(key) else { return };
        match link.phase {
            Phase::Open => {
                touch_idle(link, self.now, self.settings.idle_timeout, &mut self.timers, key);
                link.stillness = Stillness::Moved;
                if link.lane.session.is_some() {
                    self.feed_records(key, bytes);
                } else if self.is_to_group(key) {
                    self.group_said(bytes);
                } else {
                    self.role.bytes(self.now, &mut self.links, key, bytes);
                }
            }
            Phase::Handshaking => self.feed_records(key, bytes),
            Phase::Held => self.hold(key, bytes),
            Phase::Preamble => self.feed_preamble(key, bytes),
            Phase::Connecting | Phase::Retiring | Phase::Dying => {}
        }
    }

    fn feed_preamble(&mut self, key: LinkId, bytes: &mut [u8]) {
        let link = self.links.slab.get_mut(key).expect("the caller found it");
        let mut carry = std::mem::take(&mut link.carry);
        carry.extend_from_slice(bytes);
        match proxy_protocol::read(&carry) {
            Ok(None) => link.carry = carry,
            Ok(Some((used, address))) => {
                link.peer = address.unwrap_or(link.peer);
                if link.lane.session.is_none() {
                    self.open_plain(key);
                    if used < carry.len() {
                        self.feed(key, &mut carry[used..]);
                    }
                    return;
                }
                link.phase = Phase::Handshaking;
                self.feed_records(key, &mut carry[used..]);
            }
            Err(error) => {
                let peer = Some(link.peer);
                self.links.counters.proxy_headers_refused += 1;
                let detail = error.what();
                self.links.log(LogLine { what: "PROXY header refused", link: Some(key), peer, code: 0, detail });
                self.kill(key, CloseReason::Protocol, true);
            }
        }
    }

    /// Cuts the stream into records: whole ones are opened where they lie, a partial one is carried over.
    fn feed_records(&mut self, key: LinkId, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let Some(link) = self.links.slab.get_mut(key) else { return };
            match link.phase {
                Phase::Handshaking | Phase::Open => {}
                Phase::Held => return self.hold(key, bytes),
                _ => return,
            }
            match tls::cut(&mut link.carry, bytes, || self.links.spare.pop().unwrap_or_default()) {
                Ok(Cut::Whole(record, rest)) => {
                    self.record(key, record);
                    bytes = rest;
                }
                Ok(Cut::Gathered(mut record, rest)) => {
                    self.record(key, &mut record);
                    self.links.keep_spare(record);
                    bytes = rest;
                }
                Ok(Cut::Partial) => return,
                Err(error) => return self.miscut(key, error),
            }
        }
    }

    /// What arrived is not a record.
    fn miscut(&mut self, key: LinkId, error: TlsError) {
        let link = self.links.slab.get_mut(key).expect("the caller found it");
        let mut replies = std::mem::take(&mut self.replies);
        if let Some(session) = link.lane.session.as_mut() {
            session.fail(error, &mut replies);
        }
        link.lane.put_ahead(&replies);
        replies.clear();
        self.replies = replies;
        self.violated(key, error);
    }

    /// One whole record.
    fn record(&mut self, key: LinkId, record: &mut [u8]) {
        let link = self.links.slab.get_mut(key).expect("the caller found it");
        let session = link.lane.session.as_mut().expect("records are cut for links with a session only");
        let (is_early, content, record_bytes) = (link.setup.is_some(), record[0], record.len() as u64);
        let mut replies = std::mem::take(&mut self.replies);
        let received = session.receive(record, &mut replies);
        if !replies.is_empty() {
            link.lane.put_ahead(&replies);
            if matches!(received, Ok(Received::Established(_))) {
                self.links.touch_later(key); // tickets: they go with the first answer
            } else {
                self.links.touch(key);
            }
            replies.clear();
        }
        self.replies = replies;
        match received {
            Ok(Received::Nothing) if is_early && content == APPLICATION_DATA => self.skipped(key, record_bytes),
            Ok(Received::Nothing) => {}
            Ok(Received::Hello) => self.hello(key),
            Ok(Received::Early(early)) => self.opened_early(key, &early),
            Ok(Received::Data(plain)) => {
                if is_early {
                    self.links.counters.early_bytes_accepted += plain.len() as u64;
                }
                if !plain.is_empty() {
                    self.role.bytes(self.now, &mut self.links, key, plain);
                }
            }
            Ok(Received::Established(established)) => self.established(key, &established),
            Ok(Received::CloseNotify) => self.peer_ended(key),
            Err(error) => self.violated(key, error),
        }
    }

    // ---- the handshake ----

    /// A ClientHello is whole: its ticket is looked up, and it waits for its turn.
    fn hello(&mut self, key: LinkId) {
        let link = self.links.slab.get_mut(key).expect("the caller found it");
        let hello = link.lane.session.as_ref().and_then(|session| session.hello());
        let hello = hello.expect("it is there until the session is told to proceed");
        let (ticket, binding) = (hello.ticket, Binding::new(hello.realm, hello.server_name));
        link.phase = Phase::Held;
        let lookup = ticket.map_or(Lookup::None, |id| self.look_up(key, &id, binding));
        let class = match lookup {
            Lookup::None => Some(Class::Full),
            Lookup::Found(_) | Lookup::Fetched(_) => Some(Class::Resuming),
            Lookup::Asked => None,
        };
        let link = self.links.slab.get_mut(key).expect("found above");
        link.setup = Some(Box::new(Setup { lookup, binding, skipped_bytes: 0 }));
        if let Some(class) = class {
            self.enqueue(class, key);
        }
    }

    /// A held link knows what it will be answered, and waits for its turn.
    pub(super) fn enqueue(&mut self, class: Class, key: LinkId) {
        if let Some(dropped) = self.queue.push(class, key, self.now) {
            self.links.counters.handshakes_queue_full += 1;
            self.drop_popped(dropped);
        }
    }

    /// Takes a ticket out of the process's store, or asks the group for it.
    fn look_up(&mut self, key: LinkId, id: &TicketId, binding: Binding) -> Lookup {
        let counters = &mut self.links.counters;
        let Some(store) = &self.shared.tickets else {
            counters.tickets_unknown += 1;
            return Lookup::None;
        };
        match store.take(self.now, id, binding) {
            Ok(value) => {
                counters.tickets_taken += 1;
                return Lookup::Found(value);
            }
            Err(Miss::Unknown) if self.member.is_some() => {
                return if self.ask_group(key, id) { Lookup::Asked } else { Lookup::None };
            }
            Err(Miss::Unknown) => counters.tickets_unknown += 1,
            Err(Miss::Used) => counters.tickets_used += 1,
            Err(Miss::Expired) => counters.tickets_expired += 1,
            Err(Miss::OtherName) => counters.tickets_other_name += 1,
        }
        Lookup::None
    }

    /// Keeps what comes behind a ClientHello until that is answered, or closes the link when it is too much.
    fn hold(&mut self, key: LinkId, bytes: &[u8]) {
        let link = self.links.slab.get_mut(key).expect("the caller found it");
        let (peer, mut carry) = (link.peer, std::mem::take(&mut link.carry));
        let wanted = carry.len() + bytes.len();
        // A receive may bring more than twice the bound: it is asked for before anything is copied.
        if wanted > HELD_BYTES_MAX {
            self.links.keep_spare(carry);
            self.links.counters.handshakes_failed += 1;
            let detail = "more than early data behind a ClientHello that waits";
            self.links.log(LogLine {
                what: "TLS handshake failed",
                link: Some(key),
                peer: Some(peer),
                code: -1,
                detail,
            });
            return self.kill(key, CloseReason::Protocol, true);
        }
        if carry.capacity() == 0 {
            carry = self.links.spare.pop().unwrap_or_default();
        }
        if wanted > carry.capacity() {
            // By doubling, but not beyond what may be kept.
            let capacity = (2 * carry.capacity()).clamp(wanted, HELD_BYTES_MAX);
            carry.reserve_exact(capacity - carry.len());
        }
        carry.extend_from_slice(bytes);
        self.links.slab.get_mut(key).expect("found above").carry = carry;
    }

    /// Drops the held links that have waited for longer than their clients will.
    pub(super) fn drop_late(&mut self) {
        while let Some(key) = self.queue.pop_late(self.now) {
            self.links.counters.handshakes_late += 1;
            self.drop_popped(key);
        }
    }

    /// Ends a held link that stands in the queue no more: it is not looked for there.
    fn drop_popped(&mut self, key: LinkId) {
        if let Some(link) = self.links.slab.get_mut(key) {
            link.phase = Phase::Handshaking;
        }
        self.kill(key, CloseReason::TimedOut, true);
    }

    /// Answers a ClientHello whose turn it is, and takes what came behind it.
    pub(super) fn answer(&mut self, key: LinkId) {
        let link = self.links.slab.get_mut(key).expect("a link leaves the queue before it goes");
        assert_eq!(link.phase, Phase::Held, "only held links stand in the queue");
        link.phase = Phase::Handshaking;
        let setup = link.setup.as_mut().expect("made when the link was held");
        let lookup = std::mem::replace(&mut setup.lookup, Lookup::None);
        let ticket: Option<&[u8]> = match &lookup {
            Lookup::None | Lookup::Asked => None,
            Lookup::Found(value) => Some(value),
            Lookup::Fetched(value) => Some(value),
        };
        let session = link.lane.session.as_mut().expect("a held link has one");
        let mut replies = std::mem::take(&mut self.replies);
        let received = session.proceed(ticket, &mut replies);
        link.lane.put_ahead(&replies);
        self.links.touch(key);
        replies.clear();
        self.replies = replies;
        match received {
            Ok(Received::Early(opened)) => self.opened_early(key, &opened),
            Ok(_) => {}
            Err(error) => return self.violated(key, error),
        }
        let Some(link) = self.links.slab.get_mut(key) else { return };
        let mut behind = std::mem::take(&mut link.carry);
        self.feed_records(key, &mut behind);
        self.links.keep_spare(behind);
    }

    /// Early data is accepted: the role's bytes may flow, while the handshake is not complete.
    fn opened_early(&mut self, key: LinkId, established: &Established) {
        self.links.slab.get_mut(key).expect("the caller found it").phase = Phase::Open;
        self.opened(key, established.protocol);
    }

    /// A record with neither a handshake message nor data for the role came before the handshake was complete.
    fn skipped(&mut self, key: LinkId, record_bytes: u64) {
        let link = self.links.slab.get_mut(key).expect("the caller found it");
        if let Some(setup) = link.setup.as_mut() {
            setup.skipped_bytes += record_bytes;
        }
    }

    fn established(&mut self, key: LinkId, established: &Established) {
        let counters = &mut self.links.counters;
        match (established.early, established.resumed) {
            (Early::Accepted, _) => counters.handshakes_early += 1,
            (_, true) => counters.handshakes_resumed += 1,
            (_, false) => counters.handshakes_full += 1,
        }
        counters.handshakes_retried += u64::from(established.retried);
        let link = self.links.slab.get_mut(key).expect("the caller found it");
        if let Some(setup) = link.setup.take() {
            if established.early == Early::Refused {
                counters.early_bytes_refused += setup.skipped_bytes;
            }
            self.store_issued(key, setup.binding, established.resumed);
        }
        let link = self.links.slab.get_mut(key).expect("found above");
        if link.phase == Phase::Open {
            link.deadline.set(None, &mut self.timers, key);
            touch_idle(link, self.now, self.settings.idle_timeout, &mut self.timers, key);
            self.role.confirmed(self.now, &mut self.links, key);
        } else {
            link.phase = Phase::Open;
            self.opened(key, established.protocol);
        }
    }

    /// Puts the tickets of a handshake where they are looked for: with the group if its server takes them, or here.
    fn store_issued(&mut self, key: LinkId, binding: Binding, resumed: bool) {
        let link = self.links.slab.get_mut(key).expect("the caller found it");
        let issued = link.lane.session.as_mut().map(|session| session.issued()).unwrap_or_default();
        let Some(store) = self.shared.tickets.clone() else { return };
        let origin = if resumed { tickets::Origin::Returner } else { tickets::Origin::Newcomer };
        for ticket in issued {
            if self.store_in_group(&ticket.id, binding, &ticket.value) {
                continue;
            }
            let counters = &mut self.links.counters;
            match store.put(self.now, &ticket.id, binding, origin, &ticket.value) {
                Stored::Kept => counters.tickets_stored += 1,
                Stored::Evicting => {
                    counters.tickets_stored += 1;
                    counters.tickets_evicted += 1;
                }
                Stored::TooLong | Stored::Refused => counters.tickets_not_kept += 1,
            }
        }
    }

    /// Tells the role that a link is ready: for early data only, as long as its handshake is not complete.
    pub(super) fn opened(&mut self, key: LinkId, protocol: Protocol) {
        let is_to_group = self.is_to_group(key);
        let link = self.links.slab.get_mut(key).expect("the caller found it");
        if is_to_group {
            link.deadline.set(None, &mut self.timers, key);
            return self.group_connected();
        }
        let early = link.is_early();
        link.known_to_role = true;
        link.stillness = Stillness::Moved;
        if !early {
            link.deadline.set(None, &mut self.timers, key);
            touch_idle(link, self.now, self.settings.idle_timeout, &mut self.timers, key);
        }
        let opened = Opened { origin: link.origin, peer: link.peer, protocol, early };
        self.role.opened(self.now, &mut self.links, key, opened);
    }

    /// The peer broke TLS. Its alert, if any, has been put and is sent before the end.
    fn violated(&mut self, key: LinkId, error: TlsError) {
        let Some(link) = self.links.slab.get(key) else { return };
        let (handshaking, peer) = (link.is_in_setup(), Some(link.peer));
        let what = if handshaking { "TLS handshake failed" } else { "TLS broken" };
        if handshaking {
            self.links.counters.handshakes_failed += 1;
        } else {
            self.links.counters.tls_errors += 1;
        }
        let code = error.alert().map_or(-1, |alert| i64::from(alert.code()));
        self.links.log(LogLine { what, link: Some(key), peer, code, detail: error.detail() });
        self.retire(key, CloseReason::Protocol);
    }

    // ---- ends ----

    /// The peer ended its direction in order.
    fn peer_ended(&mut self, key: LinkId) {
        let Some(link) = self.links.slab.get_mut(key) else { return };
        if std::mem::replace(&mut link.peer_ended, true) {
            return;
        }
        let phase = link.phase;
        if self.is_to_group(key) {
            return self.kill(key, CloseReason::Done, false);
        }
        if phase == Phase::Open {
            self.role.ended(self.now, &mut self.links, key);
        } else if phase == Phase::Handshaking {
            self.links.counters.handshakes_failed += 1;
            self.kill(key, CloseReason::Protocol, false);
        }
        self.settle(key);
    }

    /// The socket's receiving direction is over (FIN).
    pub(super) fn peer_cut(&mut self, key: LinkId) {
        let Some(link) = self.links.slab.get_mut(key) else { return };
        link.receiving = Receiving::Over;
        match link.phase {
            Phase::Open if link.lane.session.is_none() => self.peer_ended(key),
            Phase::Open if !link.peer_ended => {
                // FIN without close_notify: RFC 8446 6.1 calls it a truncation, and nothing vouches for the end.
                self.links.counters.truncated_ends += u64::from(link.lane.ending == Ending::Open);
                self.kill(key, CloseReason::Protocol, false);
            }
            Phase::Preamble | Phase::Handshaking | Phase::Held => {
                self.links.counters.handshakes_failed += 1;
                self.kill(key, CloseReason::Protocol, false);
            }
            Phase::Open | Phase::Retiring => self.settle(key),
            Phase::Connecting | Phase::Dying => {}
        }
    }

    /// Closes a link whose both directions have ended.
    pub(super) fn settle(&mut self, key: LinkId) {
        let Some(link) = self.links.slab.get(key) else { return };
        if link.lane.ending == Ending::Done
            && link.has_heard_out()
            && matches!(link.phase, Phase::Open | Phase::Retiring)
        {
            self.kill(key, CloseReason::Done, false);
        }
    }

    /// A send has gone: the role may put more, and an idle clock starts anew.
    pub(super) fn moved(&mut self, key: LinkId, was_full: bool) {
        let Some(link) = self.links.slab.get_mut(key) else { return };
        if link.phase == Phase::Retiring {
            let until = self.now + self.patience(key);
            let link = self.links.slab.get_mut(key).expect("found above");
            return link.deadline.set(Some(until), &mut self.timers, key);
        }
        if link.phase != Phase::Open {
            return;
        }
        touch_idle(link, self.now, self.settings.idle_timeout, &mut self.timers, key);
        if was_full && !link.lane.is_full() && !self.is_to_group(key) {
            self.role.room(self.now, &mut self.links, key);
        }
    }

    /// Tells the role, once, that a link is gone.
    fn tell_closed(&mut self, key: LinkId, reason: CloseReason) {
        if self.is_to_group(key) {
            return self.group_lost();
        }
        let Some(link) = self.links.slab.get_mut(key) else { return };
        let was_open = std::mem::take(&mut link.known_to_role);
        let dialed = matches!(link.origin, Origin::Dialed { .. }) && !link.told_closed;
        link.told_closed = true;
        if was_open || dialed {
            // What a retiring link was given before still goes out.
            let is_retiring = link.phase == Phase::Retiring;
            let submitted = if is_retiring { link.lane.position() } else { link.lane.submitted };
            let closed = Closed { origin: link.origin, was_open, reason, submitted };
            self.role.closed(self.now, &mut self.links, key, closed);
        }
    }

    /// How long a retiring link may take from now on: with bytes to hand over as long as any connection may stand
    /// still, since a peer that reads slowly is owed them; without, as long as the peer's end is worth.
    fn patience(&self, key: LinkId) -> Duration {
        let pending = self.links.slab.get(key).is_some_and(|link| link.lane.pending_bytes() > 0);
        if pending {
            self.settings.idle_timeout.max(self.settings.linger_timeout)
        } else {
            self.settings.linger_timeout
        }
    }

    /// Ends a link gently: what was put is sent, the peer's end is awaited for a while. The role hears of it now.
    pub(super) fn retire(&mut self, key: LinkId, reason: CloseReason) {
        let Some(link) = self.links.touch(key) else { return };
        match link.phase {
            Phase::Connecting | Phase::Preamble | Phase::Held => return self.kill(key, reason, false),
            Phase::Retiring | Phase::Dying => return,
            Phase::Handshaking | Phase::Open => {}
        }
        link.phase = Phase::Retiring;
        link.paused = false;
        if link.lane.ending == Ending::Open {
            link.lane.ending = Ending::Wanted;
            // What was put is still sent: the role, which hears of the end now, must not take it for unsent.
            link.lane.submitted = link.lane.position();
        }
        let until = self.now + self.patience(key);
        let link = self.links.slab.get_mut(key).expect("found above");
        link.deadline.set(Some(until), &mut self.timers, key);
        if link.receiving == Receiving::Idle {
            self.links.resume(key);
        }
        self.tell_closed(key, reason);
        self.settle(key);
    }

    /// Ends a link at once. With `reset` the peer is told that something was lost.
    pub(super) fn kill(&mut self, key: LinkId, reason: CloseReason, reset: bool) {
        let Some(link) = self.links.slab.get_mut(key) else { return };
        if link.phase == Phase::Dying {
            return;
        }
        if std::mem::replace(&mut link.phase, Phase::Dying) == Phase::Held {
            self.queue.remove(key);
        }
        link.reset |= reset;
        link.deadline.set(None, &mut self.timers, key);
        self.dying.push((key, false));
        self.tell_closed(key, reason);
    }

    /// Frees a link that nothing is out on; returns the descriptor to close.
    pub(super) fn forget(&mut self, key: LinkId) -> Option<(Fd, bool)> {
        let mut link = self.links.slab.remove(key)?;
        assert!(!link.is_lent(), "a slot is freed after the last completion");
        self.links.counters.links_open -= 1;
        if matches!(link.origin, Origin::Accepted { .. }) {
            self.links.counters.connections_open -= 1;
            self.shared.drop_load(self.settings.index);
        }
        self.links.keep_spare(std::mem::take(&mut link.carry));
        self.links.keep_spare(std::mem::take(&mut link.lane.filling));
        link.fd.map(|fd| (fd, link.reset))
    }

    // ---- time ----

    /// Acts on every deadline that has passed.
    pub(super) fn expire(&mut self) {
        while let Some(key) = self.timers.pop_due(self.now) {
            let Some(link) = self.links.slab.get_mut(key) else { continue };
            if !link.deadline.due(self.now, &mut self.timers, key) {
                continue;
            }
            let (phase, peer, pending) = (link.phase, Some(link.peer), link.lane.pending_bytes() > 0);
            let in_setup = link.is_in_setup();
            match phase {
                _ if in_setup || phase == Phase::Connecting => {
                    self.links.counters.handshakes_failed += u64::from(in_setup);
                    self.links.counters.handshakes_timed_out += u64::from(in_setup);
                    let line = LogLine { what: "set-up timed out", link: Some(key), peer, code: 0, detail: "" };
                    self.links.log(line);
                    self.kill(key, CloseReason::TimedOut, true);
                }
                // A peer that took nothing for so long will not take a goodbye either.
                Phase::Open if pending => self.kill(key, CloseReason::TimedOut, true),
                Phase::Open => self.retire(key, CloseReason::TimedOut),
                Phase::Retiring => self.kill(key, CloseReason::TimedOut, true),
                Phase::Preamble | Phase::Handshaking | Phase::Held | Phase::Connecting | Phase::Dying => {}
            }
        }
    }
}

/// Moves the idle deadline of an accepted link whose handshake is complete; until then that of the handshake stands.
/// Dialled links have none here: their role knows what they are for.
fn touch_idle(link: &mut Link, now: Time, idle: Duration, timers: &mut Timers<LinkId>, key: LinkId) {
    if matches!(link.origin, Origin::Accepted { .. }) && link.setup.is_none() {
        link.deadline.set(Some(now + idle), timers, key);
    }
}
