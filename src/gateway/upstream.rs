//! Connections to upstream servers: the choice of one, the kept-alive ones, and what happens when one fails.
//!
//! Owns the list of idle connections of each service. Never repeats a request that may have taken effect, unless it is
//! marked or defined as idempotent ([`may_move`]).

use std::collections::VecDeque;

use super::exchange::{Exchange, HELD_BYTES_MAX, Http, Kind};
use super::http1::{Attempt, BodyState, ResponseBody, ResponseEvent, ResponseReader, may_move};
use super::{
    Closed, Code, Gateway, HeaderFlags, HeaderWriter, Key, Known, LinkId, LogLine, OVERLOADED_WAIT_MS, Party, Receipt,
    Reset, Sink, Time, UNREACHABLE_WAIT_MS, Wire, translate,
};
use crate::base::wire::{CloseReason, Security, Target};

/// The status of an upstream that takes no such request from early data (RFC 8470 5.2).
const TOO_EARLY: u16 = 425;

/// The upstream connections of all services.
pub(super) struct Upstreams {
    services: Vec<Pool>,
}

/// The upstream connections of one service.
#[derive(Default)]
struct Pool {
    /// Kept-alive connections and when they began to wait, oldest first. The youngest is used first: it is the
    /// likeliest to be alive.
    idle: VecDeque<(LinkId, Time)>,
    /// Connections there are, idle ones included.
    open: usize,
    /// Which upstream is dialled next.
    turn: usize,
}

impl Upstreams {
    pub(super) fn new(services: usize) -> Upstreams {
        Upstreams { services: (0..services).map(|_| Pool::default()).collect() }
    }

    /// A connection of a service is gone.
    pub(super) fn gone<W: Wire>(&mut self, wire: &mut W, service: usize) {
        self.services[service].open -= 1;
        wire.counters().upstream_open -= 1;
    }
}

impl Http {
    /// Keeps request bytes for a second try, as long as that is possible and they are few.
    pub(super) fn hold(&mut self, held: &mut Vec<u8>, bytes: &[u8], connected: bool) {
        if self.body == BodyState::Gone {
            return;
        }
        if !bytes.is_empty() {
            self.body = BodyState::Held;
        }
        held.extend_from_slice(bytes);
        if connected && (held.len() > HELD_BYTES_MAX || self.reader.has_begun()) {
            *held = Vec::new();
            self.body = BodyState::Gone;
        }
    }
}

impl Gateway {
    /// Gives an exchange an upstream connection: a kept-alive one if `reuse` and there is one, else a fresh one.
    pub(super) fn connect<W: Wire>(&mut self, now: Time, wire: &mut W, key: Key, reuse: bool) {
        let exchange = self.exchanges.get_mut(key).expect("the caller holds it");
        let pool = &mut self.upstreams.services[exchange.service];
        if let (Kind::Http(http), true) = (&mut exchange.kind, reuse)
            && let Some((link, _)) = pool.idle.pop_back()
        {
            http.reused = true;
            wire.counters().upstream_idle -= 1;
            wire.counters().upstream_reused += 1;
            exchange.upstream = Some(link);
            self.parties.insert(link, Party::Serving(key));
            return self.begin(now, wire, key);
        }
        if pool.open >= self.settings.services[exchange.service].connections_max {
            let reset = Reset { code: Code::OVERLOADED, receipt: Receipt::Refused, wait_ms: OVERLOADED_WAIT_MS };
            return self.fail(wire, key, reset);
        }
        if let Kind::Http(http) = &mut exchange.kind {
            http.reused = false;
        }
        let upstreams = &self.settings.services[exchange.service].upstreams;
        let address = upstreams[pool.turn % upstreams.len()];
        pool.turn = (pool.turn + 1) % upstreams.len();
        pool.open += 1;
        exchange.tries_left = exchange.tries_left.saturating_sub(1);
        let link = wire.dial(Target { address, security: Security::Plain }, u64::from(key.index));
        exchange.upstream = Some(link);
        exchange.connected = false;
        wire.counters().upstream_dialed += 1;
        wire.counters().upstream_open += 1;
        self.parties.insert(link, Party::Serving(key));
    }

    /// The dialled connection is up.
    pub(super) fn upstream_opened<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId) {
        match self.parties.get(link) {
            Some(Party::Serving(key)) => {
                let key = *key;
                self.begin(now, wire, key);
            }
            Some(Party::Trunk(_) | Party::Idle(_)) | None => wire.abort(link),
        }
    }

    /// The exchange has an open connection: what was held goes out.
    fn begin<W: Wire>(&mut self, now: Time, wire: &mut W, key: Key) {
        let exchange = self.exchanges.get_mut(key).expect("a serving link names a live exchange");
        let upstream = exchange.upstream.expect("the caller gave it one");
        exchange.connected = true;
        let Some(out) = wire.out(upstream) else { return };
        let position = out.position();
        out.put(&exchange.held);
        match &mut exchange.kind {
            Kind::Tunnel => {
                exchange.held = Vec::new();
                if exchange.to_upstream_ended {
                    wire.finish(upstream);
                }
                let mut block = std::mem::take(&mut self.scratch);
                block.clear();
                HeaderWriter::new(&mut block).number(Known::Status, 200).expect("a status");
                self.answer_headers(wire, key, &block, HeaderFlags::NONE);
                self.scratch = block;
            }
            Kind::Http(http) => {
                wire.counters().requests += 1;
                http.position = position;
                http.hold(&mut exchange.held, &[], true);
            }
        }
        self.credit_trunk(now, wire, key);
    }

    /// Something moved: the exchange gets its time anew.
    pub(super) fn extend_deadline(&mut self, now: Time, key: Key) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let service = &self.settings.services[exchange.service];
        let patience = match exchange.kind {
            Kind::Tunnel => service.idle_timeout,
            Kind::Http(_) => service.response_timeout,
        };
        let until = exchange.connected.then_some(now + patience);
        let until = [until, exchange.expires_at].into_iter().flatten().min();
        self.deadlines.set(key.index, until);
    }

    /// When the oldest kept-alive connection has waited long enough.
    pub(super) fn next_idle_deadline(&self) -> Option<Time> {
        let oldest = |(pool, service): (&Pool, &super::Service)| Some(pool.idle.front()?.1 + service.keepalive_timeout);
        self.upstreams.services.iter().zip(&self.settings.services).filter_map(oldest).min()
    }

    /// The upstream took what had been put: the trunk may send more.
    pub(super) fn credit_trunk<W: Wire>(&mut self, now: Time, wire: &mut W, key: Key) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let bytes = std::mem::take(&mut exchange.uncredited_bytes);
        if let (Some(Party::Trunk(trunk)), Some(out)) = (self.parties.get_mut(exchange.trunk), wire.out(exchange.trunk))
        {
            trunk.connection.consumed(now, exchange.stream, bytes, out);
        }
        self.extend_deadline(now, key);
    }

    /// Bytes came from an upstream.
    pub(super) fn upstream_bytes<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, key: Key, bytes: &[u8]) {
        let Some(exchange) = self.exchanges.get(key) else { return };
        self.patience.answered(now, key.index);
        match exchange.kind {
            Kind::Tunnel => self.answer(wire, key, bytes, false),
            Kind::Http(_) => self.response_bytes(now, wire, link, key, bytes),
        }
        self.extend_deadline(now, key);
    }

    fn response_bytes<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, key: Key, mut input: &[u8]) {
        let Some(Exchange { kind: Kind::Http(http), .. }) = self.exchanges.get_mut(key) else { return };
        // Its events borrow from the reader, so it is taken out while they are passed on.
        let mut reader = std::mem::replace(&mut http.reader, ResponseReader::new(false));
        let reusable = loop {
            match reader.receive(&mut input) {
                Ok(None) => break None,
                Ok(Some(ResponseEvent::Body(_))) if self.is_too_early(key) => {}
                Ok(Some(ResponseEvent::Body(body))) => self.answer(wire, key, body, false),
                Ok(Some(ResponseEvent::End { reusable, trailers })) => {
                    wire.counters().trailers_dropped += u64::from(trailers);
                    break Some(reusable);
                }
                Ok(Some(ResponseEvent::Head { status: TOO_EARLY, .. })) if self.begins_too_early(key) => {}
                Ok(Some(head)) => {
                    if !self.response_head(wire, key, &head) {
                        return self.response_invalid(wire, link, key, "response cannot be passed on");
                    }
                }
                Err(_) if self.is_too_early(key) => break Some(false),
                Err(error) => return self.response_invalid(wire, link, key, error.what()),
            }
        };
        if self.is_too_early(key) {
            return self.too_early(now, wire, link, key, reusable.unwrap_or(false));
        }
        if let Some(Exchange { kind: Kind::Http(http), .. }) = self.exchanges.get_mut(key) {
            http.reader = reader;
        }
        if let Some(reusable) = reusable {
            self.response_ended(now, wire, link, key, reusable);
        }
    }

    fn is_too_early(&self, key: Key) -> bool {
        matches!(self.exchanges.get(key), Some(Exchange { kind: Kind::Http(http), .. }) if http.too_early)
    }

    /// A 425 begins. Notes it, and returns true, when its request came in early data.
    fn begins_too_early(&mut self, key: Key) -> bool {
        let Some(Exchange { kind: Kind::Http(http), .. }) = self.exchanges.get_mut(key) else { return false };
        http.too_early = http.early;
        http.too_early
    }

    /// The upstream wants the request after the handshake: the POP is told, which can send it again then (RFC 8470
    /// 5.2, MMTP 2.5). The connection is kept if its response came whole at once; else it is closed: nobody waits for
    /// the rest.
    fn too_early<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, key: Key, reusable: bool) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let Kind::Http(http) = &exchange.kind else { return };
        let (service, complete) = (exchange.service, exchange.to_upstream_ended && http.writer.is_finished());
        exchange.upstream = None;
        exchange.connected = false;
        self.keep_or_close(now, wire, link, service, reusable && complete);
        self.fail(wire, key, Reset { code: Code::TOO_EARLY, receipt: Receipt::Refused, wait_ms: 0 });
    }

    /// A connection has served its request: it is kept for another if it can be.
    fn keep_or_close<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, service: usize, reusable: bool) {
        let pool = &mut self.upstreams.services[service];
        if reusable && !self.draining && pool.idle.len() < self.settings.services[service].keepalive_max {
            pool.idle.push_back((link, now));
            wire.counters().upstream_idle += 1;
            self.parties.insert(link, Party::Idle(service));
        } else {
            self.upstreams.gone(wire, service);
            self.parties.remove(link);
            wire.close(link);
        }
    }

    fn response_head<W: Wire>(&mut self, wire: &mut W, key: Key, head: &ResponseEvent<'_>) -> bool {
        let mut block = std::mem::take(&mut self.scratch);
        let written = translate::write_answer(&mut block, head);
        let empty = matches!(head, ResponseEvent::Head { body: ResponseBody::Empty, .. });
        let flags = if empty { HeaderFlags::END } else { HeaderFlags::NONE };
        let sent = written.is_ok() && self.answer_headers(wire, key, &block, flags);
        self.scratch = block;
        sent
    }

    fn response_invalid<W: Wire>(&mut self, wire: &mut W, link: LinkId, key: Key, detail: &'static str) {
        wire.counters().responses_invalid += 1;
        wire.log(LogLine { what: "upstream response refused", link: Some(link), peer: None, code: 0, detail });
        self.fail(wire, key, Reset { code: Code::UPSTREAM_BROKEN, receipt: Receipt::Unknown, wait_ms: 0 });
    }

    /// The response is complete: the connection is kept if it can be, and the exchange ends.
    fn response_ended<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, key: Key, reusable: bool) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        if !exchange.to_trunk_ended {
            self.answer(wire, key, &[], true);
        }
        let exchange = self.exchanges.get_mut(key).expect("answering removes nothing");
        let Kind::Http(http) = &exchange.kind else { return };
        let (service, complete) = (exchange.service, exchange.to_upstream_ended && http.writer.is_finished());
        exchange.upstream = None;
        exchange.connected = false;
        exchange.held = Vec::new();
        if std::mem::take(&mut exchange.paused) {
            wire.resume(link);
        }
        self.credit_trunk(now, wire, key);
        self.keep_or_close(now, wire, link, service, reusable && complete);
        self.settle(wire, key);
    }

    /// The upstream ended its direction in order.
    pub(super) fn upstream_ended<W: Wire>(&mut self, now: Time, wire: &mut W, key: Key) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let link = exchange.upstream.expect("a serving link is the exchange's upstream");
        match &mut exchange.kind {
            Kind::Tunnel => {
                self.answer(wire, key, &[], true);
                self.settle(wire, key);
            }
            Kind::Http(http) => match http.reader.eof() {
                Ok(Some(_)) => self.response_ended(now, wire, link, key, false),
                Ok(None) => {}
                Err(error) => {
                    wire.close(link);
                    self.upstream_failed(now, wire, key, true, error.what());
                }
            },
        }
    }

    /// The upstream's link is gone.
    pub(super) fn upstream_closed<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, key: Key, closed: Closed) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        assert_eq!(exchange.upstream, Some(link), "a serving link is the exchange's upstream");
        if closed.was_open {
            let done = closed.reason == CloseReason::Done && exchange.to_trunk_ended;
            if let (Kind::Tunnel, true) = (&exchange.kind, done) {
                exchange.upstream = None;
                self.upstreams.gone(wire, exchange.service);
                self.parties.remove(link);
                return self.settle(wire, key);
            }
            let submitted = !matches!(&exchange.kind, Kind::Http(http) if closed.submitted <= http.position);
            return self.upstream_failed(now, wire, key, submitted, "connection lost");
        }
        let retry = exchange.tries_left > 0;
        let service = exchange.service;
        exchange.upstream = None;
        wire.counters().upstream_failed += 1;
        self.upstreams.gone(wire, service);
        self.parties.remove(link);
        if retry {
            return self.connect(now, wire, key, false);
        }
        let code = if let CloseReason::Os(errno) = closed.reason { i64::from(errno) } else { 0 };
        wire.log(LogLine { what: "upstream unreachable", link: Some(link), peer: None, code, detail: "errno" });
        let receipt = Receipt::Refused;
        self.fail(wire, key, Reset { code: Code::UPSTREAM_UNREACHABLE, receipt, wait_ms: UNREACHABLE_WAIT_MS });
    }

    /// An open upstream connection broke before the exchange was over: the request is moved if that is safe.
    fn upstream_failed<W: Wire>(&mut self, now: Time, wire: &mut W, key: Key, submitted: bool, detail: &'static str) {
        let exchange = self.exchanges.get_mut(key).expect("the caller holds it");
        let link = exchange.upstream.take();
        wire.counters().upstream_failed += 1;
        self.upstreams.gone(wire, exchange.service);
        if let Some(link) = link {
            self.parties.remove(link);
        }
        exchange.paused = false;
        exchange.attempted |= submitted;
        if let Kind::Http(http) = &mut exchange.kind {
            let attempt = Attempt {
                response_begun: http.reader.has_begun(),
                request_submitted: submitted,
                idempotent: http.idempotent,
                body: http.body,
            };
            if http.reused && may_move(attempt) {
                http.start_over();
                exchange.connected = false;
                wire.counters().upstream_moved += 1;
                return self.connect(now, wire, key, false);
            }
        }
        wire.log(LogLine { what: "upstream failed", link, peer: None, code: 0, detail });
        self.fail(wire, key, Reset { code: Code::UPSTREAM_BROKEN, receipt: Receipt::Unknown, wait_ms: 0 });
    }

    /// A kept-alive connection is of no more use.
    pub(super) fn idle_lost<W: Wire>(&mut self, wire: &mut W, link: LinkId, close: bool) {
        let Some(Party::Idle(service)) = self.parties.remove(link) else { return };
        self.upstreams.services[service].idle.retain(|(idle, _)| *idle != link);
        wire.counters().upstream_idle -= 1;
        self.upstreams.gone(wire, service);
        if close {
            wire.close(link);
        }
    }

    /// Closes kept-alive connections that have waited long enough.
    pub(super) fn expire_idle<W: Wire>(&mut self, now: Time, wire: &mut W) {
        for service in 0..self.upstreams.services.len() {
            while let Some((link, since)) = self.upstreams.services[service].idle.front().copied() {
                if since + self.settings.services[service].keepalive_timeout > now {
                    break;
                }
                self.idle_lost(wire, link, true);
            }
        }
    }

    /// Closes every kept-alive connection.
    pub(super) fn drop_idle<W: Wire>(&mut self, wire: &mut W) {
        for service in 0..self.upstreams.services.len() {
            while let Some((link, _)) = self.upstreams.services[service].idle.front().copied() {
                self.idle_lost(wire, link, true);
            }
        }
    }
}
