//! The data center's end of a trunk: streams in, requests to upstream servers out, answers back.
//!
//! Owns the trunks that POPs dialled, the exchanges that run on their streams, and the connections to upstreams. Pure:
//! bytes and time are handed in, bytes and wishes come out. Never touches a kernel, a clock or entropy.
//! Invariant: every open stream of a trunk carries the tag of one live `Exchange`.

mod exchange;
pub mod http1;
mod translate;
mod upstream;

use std::net::SocketAddr;
use std::time::Duration;

use self::exchange::{Exchange, Kind};
use self::upstream::Upstreams;
use crate::base::patience::Patience;
use crate::base::slab::{Key, SideTable, Slab};
use crate::base::time::Time;
use crate::base::timers::SlotDeadlines;
use crate::base::wire::{CloseReason, Closed, LinkId, LogLine, Opened, Origin, Role, Sink, Wire};
use crate::mmtp::{
    Code, ConnError, Connection, Event, HeaderFlags, HeaderWriter, Known, Receipt, Reset, Settings, StreamId, Tag,
};

/// An upstream whose bytes wait for its trunk is paused above this, and read again below half of it.
const UPSTREAM_QUEUE_BYTES_MAX: usize = 64 * 1024;

/// What a stream that is refused for want of capacity is asked to wait, in milliseconds.
const OVERLOADED_WAIT_MS: u32 = 500;

/// How much longer the head of a request is in HTTP than in MMTP, in bytes, at a guess: memory is taken once.
const HEAD_GROWTH_BYTES: usize = 256;

/// What a stream whose upstream cannot be reached is asked to wait, in milliseconds.
const UNREACHABLE_WAIT_MS: u32 = 1000;

/// How a service treats its streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceKind {
    /// Bytes both ways over a TCP connection of their own.
    Tunnel,
    /// One stream, one HTTP/1.1 request over kept-alive connections.
    Http,
}

/// A service that streams may name.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// How its streams are treated.
    pub kind: ServiceKind,
    /// Its upstream servers, taken in turn.
    pub upstreams: Vec<SocketAddr>,
    /// Host of requests that name no authority.
    pub authority: String,
    /// An HTTP exchange in which nothing moves for this long is given up.
    pub response_timeout: Duration,
    /// A tunnel in which nothing moves for this long is given up.
    pub idle_timeout: Duration,
    /// Kept-alive connections that wait for a request.
    pub keepalive_max: usize,
    /// A kept-alive connection is closed after waiting this long.
    pub keepalive_timeout: Duration,
    /// Connections to the upstreams, idle ones included.
    pub connections_max: usize,
}

/// What a gateway needs to know.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// The services.
    pub services: Vec<Service>,
    /// What POPs are told in our HELLO.
    pub mmtp: Settings,
    /// Streams at a time.
    pub streams_max: usize,
    /// What POPs are told when the gateway stops: dial again after this, and up to as much longer at random.
    pub goaway_wait: Duration,
}

/// What a link is to the gateway.
enum Party {
    /// A trunk.
    Trunk(Box<TrunkSide>),
    /// A connection to an upstream that serves this exchange.
    Serving(Key),
    /// A kept-alive connection of this service that waits for a request.
    Idle(usize),
}

struct TrunkSide {
    connection: Connection,
    address: SocketAddr,
}

/// The role of a gateway's worker.
pub struct Gateway {
    settings: GatewaySettings,
    parties: SideTable<Party>,
    exchanges: Slab<Exchange>,
    upstreams: Upstreams,
    /// Of exchanges, by their index.
    deadlines: SlotDeadlines,
    trunks: usize,
    draining: bool,
    patience: Patience,
    /// Scratch: a header block or HTTP bytes being built.
    scratch: Vec<u8>,
    /// Scratch: what a drained connection moved.
    moved: Vec<(Tag, usize)>,
}

impl Gateway {
    /// A gateway for these services.
    #[must_use]
    pub fn new(settings: GatewaySettings) -> Gateway {
        let upstreams = Upstreams::new(settings.services.len());
        Gateway {
            settings,
            parties: SideTable::default(),
            exchanges: Slab::new(),
            upstreams,
            deadlines: SlotDeadlines::default(),
            trunks: 0,
            draining: false,
            patience: Patience::new(Duration::ZERO),
            scratch: Vec::new(),
            moved: Vec::new(),
        }
    }

    /// Exchanges that run, to look at.
    #[must_use]
    pub fn exchange_count(&self) -> usize {
        self.exchanges.len()
    }

    // ---- trunks ----

    fn trunk_bytes<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, mut input: &[u8]) {
        loop {
            let Some(Party::Trunk(trunk)) = self.parties.get_mut(link) else { return };
            match trunk.connection.receive(now, &mut input) {
                Ok(None) => break,
                Ok(Some(Event::Headers { stream, opened: true, block, flags, .. })) => {
                    let started = start(&self.settings, &mut self.scratch, &block, flags, wire);
                    let patience = block.number(Known::DeadlineMs).map(Duration::from_millis);
                    self.stream_opened(now, wire, (link, stream), started, flags.end(), patience);
                }
                Ok(Some(Event::Data { stream, tag, bytes, end })) => {
                    let Some(key) = self.exchanges.key_at(tag) else { continue };
                    self.patience.asked(now, key.index);
                    match to_upstream(&mut self.exchanges, &mut self.scratch, wire, key, bytes, end) {
                        Ok(taken) => {
                            if let Some(out) = wire.out(link) {
                                trunk.connection.measure(now, out);
                                trunk.connection.consumed(now, stream, taken, out);
                            }
                        }
                        Err(reset) => self.fail(wire, key, reset),
                    }
                    self.extend_deadline(now, key);
                    self.settle(wire, key);
                }
                Ok(Some(Event::Reset { tag, .. })) => {
                    if let Some(key) = self.exchanges.key_at(tag) {
                        wire.counters().streams_cancelled += 1;
                        self.remove(wire, key);
                    }
                }
                Ok(Some(Event::Credit { .. })) => self.drain_trunk(wire, link),
                Ok(Some(Event::Established | Event::Headers { .. } | Event::Pong | Event::GoAway { .. })) => {}
                Err(error) => return self.trunk_violated(wire, link, error),
            }
        }
        self.drain_trunk(wire, link);
    }

    /// A POP opened a stream, which starts an exchange or is refused.
    fn stream_opened<W: Wire>(
        &mut self,
        now: Time,
        wire: &mut W,
        (link, stream): (LinkId, StreamId),
        started: Result<(usize, Kind), Reset>,
        ended: bool,
        patience: Option<Duration>,
    ) {
        let Some(Party::Trunk(trunk)) = self.parties.get_mut(link) else { return };
        let overloaded = Reset { code: Code::OVERLOADED, receipt: Receipt::Refused, wait_ms: OVERLOADED_WAIT_MS };
        let has_place = self.exchanges.len() < self.settings.streams_max;
        let (service, kind) = match started.and_then(|started| has_place.then_some(started).ok_or(overloaded)) {
            Ok(started) => started,
            Err(reset) => {
                wire.counters().streams_refused += 1;
                if let Some(out) = wire.out(link) {
                    trunk.connection.reset(stream, reset, out);
                }
                return;
            }
        };
        let key = self.exchanges.insert(Exchange {
            trunk: link,
            stream,
            service,
            kind,
            upstream: None,
            connected: false,
            held: std::mem::take(&mut self.scratch),
            uncredited_bytes: 0,
            to_upstream_ended: ended,
            to_trunk_ended: false,
            paused: false,
            attempted: false,
            tries_left: self.settings.services[service].upstreams.len(),
            expires_at: patience.map(|patience| now + patience),
        });
        trunk.connection.set_tag(stream, key.index);
        self.patience.asked(now, key.index);
        wire.counters().streams_open += 1;
        wire.counters().streams_opened += 1;
        self.connect(now, wire, key, true);
        self.extend_deadline(now, key);
    }

    /// Lets a trunk's queued streams move on, and reads from their upstreams again.
    fn drain_trunk<W: Wire>(&mut self, wire: &mut W, link: LinkId) {
        let Some(Party::Trunk(trunk)) = self.parties.get_mut(link) else { return };
        if !trunk.connection.has_queued() {
            return;
        }
        let mut moved = std::mem::take(&mut self.moved);
        if let Some(out) = wire.out(link) {
            trunk.connection.drain(out, |_, tag, bytes| moved.push((tag, bytes)));
        }
        for (tag, _) in moved.drain(..) {
            let Some(key) = self.exchanges.key_at(tag) else { continue };
            self.resume_upstream(wire, key);
            self.settle(wire, key);
        }
        self.moved = moved;
    }

    fn resume_upstream<W: Wire>(&mut self, wire: &mut W, key: Key) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let (Some(Party::Trunk(trunk)), true) = (self.parties.get(exchange.trunk), exchange.paused) else { return };
        if trunk.connection.queued(exchange.stream) <= UPSTREAM_QUEUE_BYTES_MAX / 2 {
            exchange.paused = false;
            if let Some(upstream) = exchange.upstream {
                wire.resume(upstream);
            }
        }
    }

    fn trunk_violated<W: Wire>(&mut self, wire: &mut W, link: LinkId, error: ConnError) {
        wire.counters().mmtp_errors += 1;
        let Some(Party::Trunk(trunk)) = self.parties.get_mut(link) else { return };
        let (peer, code) = (Some(trunk.address), i64::from(error.code().0));
        wire.log(LogLine { what: "MMTP broken by POP", link: Some(link), peer, code, detail: error.name() });
        if let Some(out) = wire.out(link) {
            trunk.connection.goaway(error.code(), 0, 0, out);
        }
        self.trunk_closed(wire, link);
        wire.close(link);
    }

    /// A trunk is gone, and with it everyone who waits for the answers of its streams.
    fn trunk_closed<W: Wire>(&mut self, wire: &mut W, link: LinkId) {
        let Some(Party::Trunk(trunk)) = self.parties.remove(link) else { return };
        self.trunks -= 1;
        for (_, tag) in trunk.connection.streams() {
            if let Some(key) = self.exchanges.key_at(tag) {
                wire.counters().streams_cancelled += 1;
                self.remove(wire, key);
            }
        }
    }

    // ---- exchanges ----

    /// Ends an exchange towards its trunk with a receipt, and removes it.
    fn fail<W: Wire>(&mut self, wire: &mut W, key: Key, mut reset: Reset) {
        let Some(exchange) = self.exchanges.get(key) else { return };
        if exchange.attempted {
            reset.receipt = Receipt::Unknown;
        }
        match reset.receipt {
            Receipt::NotForwarded => wire.counters().streams_not_forwarded += 1,
            Receipt::Unknown => wire.counters().streams_unknown += 1,
            Receipt::Refused => wire.counters().streams_refused += 1,
        }
        if let (Some(Party::Trunk(trunk)), Some(out)) = (self.parties.get_mut(exchange.trunk), wire.out(exchange.trunk))
        {
            trunk.connection.reset(exchange.stream, reset, out);
        }
        self.remove(wire, key);
    }

    /// Removes an exchange; its upstream connection, if any, is dropped with a reset.
    fn remove<W: Wire>(&mut self, wire: &mut W, key: Key) {
        let Some(exchange) = self.exchanges.remove(key) else { return };
        self.deadlines.set(key.index, None);
        wire.counters().streams_open -= 1;
        if let Some(upstream) = exchange.upstream {
            self.upstreams.gone(wire, exchange.service);
            self.parties.remove(upstream);
            wire.abort(upstream);
        }
    }

    /// Removes an exchange whose two directions have ended and of which nothing is queued any more.
    fn settle<W: Wire>(&mut self, wire: &mut W, key: Key) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        if !(exchange.to_upstream_ended && exchange.to_trunk_ended) {
            return;
        }
        let Some(Party::Trunk(trunk)) = self.parties.get(exchange.trunk) else { return };
        if trunk.connection.queued(exchange.stream) > 0 {
            return;
        }
        if let (Some(upstream), Kind::Tunnel) = (exchange.upstream, &exchange.kind) {
            // Both ends of the tunnel were passed on; what was put still goes.
            exchange.upstream = None;
            self.upstreams.gone(wire, exchange.service);
            self.parties.remove(upstream);
            wire.close(upstream);
        }
        wire.counters().streams_done += 1;
        self.remove(wire, key);
    }

    /// Puts bytes of an answer on the trunk; pauses the upstream when too many wait.
    fn answer<W: Wire>(&mut self, wire: &mut W, key: Key, bytes: &[u8], end: bool) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let is_end_alone = bytes.is_empty() && matches!(exchange.kind, Kind::Tunnel);
        let out = if is_end_alone { wire.out_later(exchange.trunk) } else { wire.out(exchange.trunk) };
        let (Some(Party::Trunk(trunk)), Some(out)) = (self.parties.get_mut(exchange.trunk), out) else { return };
        exchange.to_trunk_ended |= end;
        let sent = trunk.connection.send_data(exchange.stream, bytes, end, out).unwrap_or(bytes.len());
        let crowded = sent < bytes.len() && trunk.connection.queued(exchange.stream) > UPSTREAM_QUEUE_BYTES_MAX;
        if let (true, false, Some(upstream)) = (crowded, exchange.paused, exchange.upstream) {
            exchange.paused = true;
            wire.pause(upstream);
        }
    }

    /// Puts the headers of an answer on the trunk.
    fn answer_headers<W: Wire>(&mut self, wire: &mut W, key: Key, block: &[u8], flags: HeaderFlags) -> bool {
        let Some(exchange) = self.exchanges.get_mut(key) else { return false };
        // That a tunnel's upstream is connected is nothing that its client hears of.
        let is_tunnel = matches!(exchange.kind, Kind::Tunnel);
        let out = if is_tunnel { wire.out_later(exchange.trunk) } else { wire.out(exchange.trunk) };
        let (Some(Party::Trunk(trunk)), Some(out)) = (self.parties.get_mut(exchange.trunk), out) else { return false };
        exchange.to_trunk_ended |= flags.end();
        trunk.connection.send_headers(exchange.stream, block, flags, out).is_ok()
    }

    /// While draining: closes trunks that have nothing left.
    fn drain_further<W: Wire>(&mut self, wire: &mut W) {
        let idle = |(link, party): (LinkId, &mut Party)| match party {
            Party::Trunk(trunk) if trunk.connection.open_streams() == 0 => Some(link),
            Party::Trunk(_) | Party::Serving(_) | Party::Idle(_) => None,
        };
        let idle: Vec<LinkId> = self.parties.iter_mut().filter_map(idle).collect();
        for link in idle {
            self.parties.remove(link);
            self.trunks -= 1;
            wire.close(link);
        }
        if self.trunks == 0 {
            self.drop_idle(wire);
        }
    }
}

/// Finds the service of a request and prepares the bytes for its upstream in `bytes`.
fn start<W: Wire>(
    settings: &GatewaySettings,
    bytes: &mut Vec<u8>,
    block: &crate::mmtp::HeaderBlock<'_>,
    flags: HeaderFlags,
    wire: &mut W,
) -> Result<(usize, Kind), Reset> {
    let refused = |code| Reset { code, receipt: Receipt::Refused, wait_ms: 0 };
    let name = block.get(Known::Service).unwrap_or(b"");
    let service = settings.services.iter().position(|service| service.name.as_bytes() == name);
    let service = service.ok_or(refused(Code::SERVICE_UNKNOWN))?;
    bytes.clear();
    match settings.services[service].kind {
        ServiceKind::Tunnel => Ok((service, Kind::Tunnel)),
        ServiceKind::Http => {
            let request = translate::request(block, flags.end());
            let authority = settings.services[service].authority.as_bytes();
            bytes.reserve(block.bytes().len() + HEAD_GROWTH_BYTES);
            let dropped = translate::write_request(bytes, block, request, authority)
                .map_err(|_| refused(Code::REQUEST_INVALID))?;
            wire.counters().fields_dropped += dropped;
            let idempotent = flags.contains(HeaderFlags::IDEMPOTENT);
            let early = block.number(Known::Early) == Some(1);
            let mut http = exchange::Http::new(request.method, idempotent, request.body, early);
            if flags.end() {
                http.writer.finish(bytes).map_err(|_| refused(Code::REQUEST_INVALID))?;
            }
            Ok((service, Kind::Http(Box::new(http))))
        }
    }
}

/// Passes bytes of a request on, or holds them until the upstream is connected. Returns how many the trunk may be
/// credited for now.
fn to_upstream<W: Wire>(
    exchanges: &mut Slab<Exchange>,
    scratch: &mut Vec<u8>,
    wire: &mut W,
    key: Key,
    bytes: &[u8],
    end: bool,
) -> Result<usize, Reset> {
    let Some(exchange) = exchanges.get_mut(key) else { return Ok(bytes.len()) };
    exchange.to_upstream_ended |= end;
    if exchange.to_trunk_ended && matches!(exchange.kind, Kind::Http(_)) {
        return Ok(bytes.len()); // the answer is complete: the rest of the request interests nobody
    }
    let framed = match &mut exchange.kind {
        Kind::Tunnel => bytes,
        Kind::Http(http) => {
            scratch.clear();
            let written = http.writer.put(bytes, scratch);
            let finished = if end { http.writer.finish(scratch) } else { Ok(()) };
            if written.and(finished).is_err() {
                return Err(Reset { code: Code::REQUEST_INVALID, receipt: Receipt::Unknown, wait_ms: 0 });
            }
            http.hold(&mut exchange.held, scratch, exchange.connected);
            scratch.as_slice()
        }
    };
    if !exchange.connected {
        if matches!(exchange.kind, Kind::Tunnel) {
            exchange.held.extend_from_slice(framed);
        }
        exchange.uncredited_bytes += bytes.len();
        return Ok(0);
    }
    let Some(upstream) = exchange.upstream else { return Ok(bytes.len()) };
    let Some(out) = wire.out(upstream) else { return Ok(bytes.len()) };
    out.put(framed);
    let full = out.room() == 0;
    if end && matches!(exchange.kind, Kind::Tunnel) {
        wire.finish(upstream);
    }
    exchange.uncredited_bytes += bytes.len();
    Ok(if full { 0 } else { std::mem::take(&mut exchange.uncredited_bytes) })
}

impl<W: Wire> Role<W> for Gateway {
    fn opened(&mut self, now: Time, wire: &mut W, link: LinkId, opened: Opened) {
        match opened.origin {
            Origin::Accepted { .. } if self.draining => wire.close(link),
            Origin::Accepted { .. } => {
                let mut connection = Connection::new(&self.settings.mmtp, now);
                if let Some(out) = wire.out(link) {
                    connection.start(out);
                }
                self.trunks += 1;
                self.parties.insert(link, Party::Trunk(Box::new(TrunkSide { connection, address: opened.peer })));
            }
            Origin::Dialed { .. } => self.upstream_opened(now, wire, link),
        }
    }

    fn bytes(&mut self, now: Time, wire: &mut W, link: LinkId, bytes: &[u8]) {
        match self.parties.get(link) {
            Some(Party::Trunk(_)) => self.trunk_bytes(now, wire, link, bytes),
            Some(Party::Serving(key)) => {
                let key = *key;
                self.upstream_bytes(now, wire, link, key, bytes);
            }
            // Bytes that nobody asked for: the connection cannot be trusted with a request.
            Some(Party::Idle(_)) => self.idle_lost(wire, link, true),
            None => {}
        }
    }

    fn ended(&mut self, now: Time, wire: &mut W, link: LinkId) {
        match self.parties.get(link) {
            Some(Party::Trunk(_)) => {
                self.trunk_closed(wire, link);
                wire.close(link);
            }
            Some(Party::Serving(key)) => {
                let key = *key;
                self.upstream_ended(now, wire, key);
            }
            Some(Party::Idle(_)) => self.idle_lost(wire, link, true),
            None => {}
        }
    }

    fn room(&mut self, now: Time, wire: &mut W, link: LinkId) {
        match self.parties.get(link) {
            Some(Party::Trunk(_)) => self.drain_trunk(wire, link),
            Some(Party::Serving(key)) => {
                let key = *key;
                self.credit_trunk(now, wire, key);
            }
            Some(Party::Idle(_)) | None => {}
        }
    }

    fn closed(&mut self, now: Time, wire: &mut W, link: LinkId, closed: Closed) {
        match self.parties.get(link) {
            Some(Party::Trunk(trunk)) => {
                if let CloseReason::Os(errno) = closed.reason {
                    let (peer, code) = (Some(trunk.address), i64::from(errno));
                    wire.log(LogLine { what: "trunk lost", link: Some(link), peer, code, detail: "errno" });
                }
                self.trunk_closed(wire, link);
            }
            Some(Party::Serving(key)) => {
                let key = *key;
                self.upstream_closed(now, wire, link, key, closed);
            }
            Some(Party::Idle(_)) => self.idle_lost(wire, link, false),
            None => {}
        }
    }

    fn pass_ended(&mut self, _now: Time, wire: &mut W) {
        if self.draining {
            self.drain_further(wire);
        }
    }

    fn patience(&self, now: Time) -> Duration {
        self.patience.granted(now)
    }

    fn next_deadline(&self) -> Option<Time> {
        [self.deadlines.next(), self.next_idle_deadline()].into_iter().flatten().min()
    }

    fn due(&mut self, now: Time, wire: &mut W) {
        while let Some(index) = self.deadlines.pop_due(now) {
            let Some(key) = self.exchanges.key_at(index) else { continue };
            let Some(exchange) = self.exchanges.get_mut(key) else { continue };
            let code = if matches!(exchange.kind, Kind::Tunnel) { Code::IDLE } else { Code::DEADLINE };
            self.fail(wire, key, Reset { code, receipt: Receipt::Unknown, wait_ms: 0 });
        }
        self.expire_idle(now, wire);
    }

    fn drain(&mut self, wire: &mut W) {
        self.draining = true;
        let wait_ms = u32::try_from(self.settings.goaway_wait.as_millis()).unwrap_or(u32::MAX);
        for (link, party) in self.parties.iter_mut() {
            if let (Party::Trunk(trunk), Some(out)) = (party, wire.out(link)) {
                trunk.connection.goaway(Code::DRAINING, wait_ms, wait_ms, out);
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.trunks == 0
    }
}
