//! The POP's half of the path: what arrives from terminals goes onto trunks, and back.
//!
//! Owns the clients, the trunks and the pairing of their streams (`stream`). Pure: bytes and time are handed in,
//! bytes and wishes come out. Never touches a kernel, a clock or entropy, and holds payload only as far as credit that
//! was granted allows.
//! Invariant: every open stream of a client's connection and of a trunk's carries the tag of one live `Stream`, and
//! a stream leaves the table only when neither side can name it any more.

mod early;
mod forward;
pub mod proxy_protocol;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use self::early::MaybeEarly;
pub use self::early::{EARLY_BYTES_MAX, EARLY_STREAMS_MAX, TunnelEarly};
use self::forward::Provenance;
use self::stream::{Client, Head, OnTrunk, Stream, Waiting};
use crate::backbone::{Pool, PoolSettings, State};
use crate::base::patience::Patience;
use crate::base::prng::Prng;
use crate::base::slab::{Key, SideTable, Slab};
use crate::base::time::Time;
use crate::base::wire::{CloseReason, Closed, LinkId, LogLine, Opened, Origin, Protocol, Role, Sink, Wire};
use crate::mmtp::frame::PRIORITY_DEFAULT;
use crate::mmtp::{
    Code, ConnError, Connection, Event, HeaderBlock, HeaderError, HeaderFlags, OpenError, Receipt, Reset, Settings,
    StreamId, Tag,
};

/// A tunnel whose bytes wait for its trunk is paused above this, and read again below half of it.
const TUNNEL_QUEUE_BYTES_MAX: usize = 64 * 1024;

/// A client that sends pieces as large as this has its round-trip time measured, so that its windows can grow.
const BULK_BYTES: usize = 4096;

/// The windows of a client's streams on trunks grow only while it has no more streams than this. A client that reads fast,
/// and then no more, can make the POP hold what these windows add up to.
const GROWING_STREAMS_MAX: usize = 8;

/// Answers that come faster than this through a trunk grant no wait for company.
const ANSWERS_PROMPT: Duration = Duration::from_micros(300);

/// What a client that is refused for want of capacity is asked to wait, in milliseconds.
const OVERLOADED_WAIT_MS: u32 = 500;

/// A client that has had no stream for this long gives back what its streams used. Long enough that calls in a row do
/// not allocate anew, short beside the minutes that apps keep a connection for.
const REST_DELAY: Duration = Duration::from_secs(1);

/// What the relay needs to know.
#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// Name of this POP, as the gateway is told.
    pub pop_id: String,
    /// Per listener, where connections travel to which do not speak MMTP.
    pub tunnels: Vec<Option<TunnelSettings>>,
    /// What clients are told in our HELLO.
    pub mmtp: Settings,
    /// The trunks.
    pub pool: PoolSettings,
    /// How long a stream waits for a trunk when none is up.
    pub wait_for_trunk: Duration,
    /// Most streams at a time, tunnels included.
    pub streams_max: usize,
    /// What clients are told when the POP stops: come back after this, and up to as much longer at random.
    pub goaway_wait: Duration,
}

/// What becomes of a listener's connections that do not speak MMTP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelSettings {
    /// The service they travel to.
    pub service: String,
    /// What happens to bytes that come before the handshake is complete.
    pub early: TunnelEarly,
}

/// What a link is to the relay.
enum Party {
    /// A client's opaque connection: one stream.
    Tunnel(Key),
    /// A client that speaks MMTP.
    Client(Box<ClientSide>),
    /// A trunk.
    Trunk(usize),
}

struct ClientSide {
    connection: Connection,
    address: SocketAddr,
    early: MaybeEarly,
    /// It stands in `Relay::emptied` or `Relay::resting`.
    resting: bool,
}

const _: () = assert!(size_of::<ClientSide>() <= 440, "an idle client is small");

/// The role of a POP's worker.
pub struct Relay {
    settings: RelaySettings,
    pool: Pool,
    parties: SideTable<Party>,
    streams: Slab<Stream>,
    /// Streams that wait for a trunk, oldest first; entries may be stale.
    waiting: VecDeque<Key>,
    /// Clients that have lost their last stream in this pass.
    emptied: Vec<LinkId>,
    /// Clients that have more memory than one at rest needs, and when that is looked at, in order.
    resting: VecDeque<(Time, LinkId)>,
    clients: usize,
    draining: bool,
    patience: Patience,
    provenance: Provenance,
    /// Scratch: a header block being built.
    block: Vec<u8>,
    /// Scratch: what a drained connection moved.
    moved: Vec<(Tag, usize)>,
}

impl Relay {
    /// A relay whose trunks are due to be dialled. `prng` decides jitter and the choice among trunks.
    #[must_use]
    pub fn new(settings: RelaySettings, prng: Prng) -> Relay {
        Relay {
            pool: Pool::new(settings.pool.clone(), prng),
            provenance: Provenance::new(settings.pop_id.clone()),
            settings,
            parties: SideTable::default(),
            streams: Slab::new(),
            waiting: VecDeque::new(),
            emptied: Vec::new(),
            resting: VecDeque::new(),
            clients: 0,
            draining: false,
            patience: Patience::new(ANSWERS_PROMPT),
            block: Vec::new(),
            moved: Vec::new(),
        }
    }

    /// The trunks, to look at.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Streams in the table, to look at.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    // ---- streams: to the origin ----

    /// A client opened a stream whose block for the trunk stands in `self.block`.
    fn open<W: Wire>(&mut self, now: Time, wire: &mut W, client: Client, head: Head) -> Key {
        let key = self.streams.insert(Stream::new(client));
        wire.counters().streams_open += 1;
        let stream = self.streams.get_mut(key).expect("just inserted");
        let ended = head.flags.end();
        stream.to_origin_ended = ended;
        let block = std::mem::take(&mut self.block);
        if self.place(wire, key, &block, head) {
            self.block = block;
        } else {
            let until = Some(now + self.settings.wait_for_trunk);
            let waiting = Waiting { head, block, data: Vec::new(), ended, until };
            self.streams.get_mut(key).expect("just inserted").waiting = Some(Box::new(waiting));
            self.waiting.push_back(key);
            wire.counters().streams_waiting += 1;
        }
        key
    }

    /// Puts a stream on a trunk. False when none takes it.
    fn place<W: Wire>(&mut self, wire: &mut W, key: Key, block: &[u8], head: Head) -> bool {
        let mut except = None;
        for _ in 0..=self.pool.trunks().len() {
            let Some(trunk) = self.pool.pick(except) else { return false };
            let (connection, link) = self.pool.connection(trunk).expect("a trunk that takes streams has a connection");
            let Some(out) = wire.out(link) else {
                except = Some(trunk);
                continue;
            };
            match connection.open(key.index, head.priority) {
                Ok(stream) => {
                    let position = out.position();
                    connection.pass_request(stream, block, head.flags, out).expect("the stream was just opened");
                    let entry = self.streams.get_mut(key).expect("the caller holds it");
                    let trunk = u32::try_from(trunk).expect("trunks are few");
                    entry.on_trunk = Some(OnTrunk { trunk, link, stream, position });
                    wire.counters().streams_opened += 1;
                    if head.early {
                        wire.counters().streams_early_forwarded += 1;
                        self.keep_request(key, block, head);
                    }
                    return true;
                }
                Err(OpenError::Limit) => except = Some(trunk),
                Err(OpenError::GoingAway | OpenError::Exhausted) => {
                    // It works for what runs, but takes no more: out of the choice, and closed when empty.
                    self.pool.draining(wire, trunk);
                }
            }
        }
        false
    }

    /// Puts waiting streams on trunks, oldest first, as far as trunks take them.
    fn place_waiting<W: Wire>(&mut self, now: Time, wire: &mut W) {
        while let Some(key) = self.waiting.pop_front() {
            let Some(waiting) = self.streams.get_mut(key).and_then(|stream| stream.waiting.take()) else { continue };
            if !self.place(wire, key, &waiting.block, waiting.head) {
                self.streams.get_mut(key).expect("found above").waiting = Some(waiting);
                self.waiting.push_front(key);
                return;
            }
            wire.counters().streams_waiting -= 1;
            if !waiting.data.is_empty() || (waiting.ended && !waiting.head.flags.end()) {
                self.keep_data(key, &waiting.data, waiting.ended);
                let sent = send_to_trunk(&mut self.streams, &mut self.pool, wire, key, &waiting.data, waiting.ended);
                self.credit_client(now, wire, key, sent);
            }
        }
    }

    /// The trunk took bytes of a stream: its client may send as many more.
    fn credit_client<W: Wire>(&mut self, now: Time, wire: &mut W, key: Key, bytes: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        match stream.client {
            Client::Stream(link, id) => {
                let bytes = stream.credit(bytes);
                if let (Some(Party::Client(client)), Some(out)) = (self.parties.get_mut(link), wire.out(link)) {
                    client.connection.consumed(now, id, bytes, out);
                }
            }
            Client::Tunnel(link) => {
                if let (true, Some(at)) = (stream.paused, stream.on_trunk) {
                    let queued = connection_of(&mut self.pool, at).map_or(0, |connection| connection.queued(at.stream));
                    if queued <= TUNNEL_QUEUE_BYTES_MAX / 2 {
                        stream.paused = false;
                        wire.resume(link);
                    }
                }
            }
        }
    }

    // ---- streams: to the client ----

    /// The client took bytes of a stream: its trunk may send as many more.
    fn credit_trunk<W: Wire>(&mut self, now: Time, wire: &mut W, key: Key, bytes: usize) {
        let Some(at) = self.streams.get(key).and_then(|stream| stream.on_trunk) else { return };
        let may_grow = may_grow(&self.streams, &self.parties, key);
        if let Some(connection) = connection_of(&mut self.pool, at)
            && let Some(out) = wire.out(at.link)
        {
            consumed(connection, now, at.stream, bytes, may_grow, out);
        }
    }

    // ---- streams: ends ----

    /// Frees a stream whose two directions have ended and of which nothing is queued any more.
    fn settle<W: Wire>(&mut self, wire: &mut W, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        if !(stream.to_origin_ended && stream.to_client_ended) {
            return;
        }
        let Some(at) = stream.on_trunk else { return };
        if connection_of(&mut self.pool, at).is_some_and(|connection| connection.queued(at.stream) > 0) {
            return;
        }
        match stream.client {
            Client::Tunnel(link) => {
                self.forget_tunnel(wire, link);
                wire.close(link);
            }
            Client::Stream(link, id) => {
                // A client that has all of its answer may be gone while the trunk still takes its request.
                if let Some(Party::Client(client)) = self.parties.get(link)
                    && client.connection.queued(id) > 0
                {
                    return;
                }
            }
        }
        wire.counters().streams_done += 1;
        self.remove(wire, key);
        self.close_if_drained(wire, at.trunk as usize);
    }

    fn remove<W: Wire>(&mut self, wire: &mut W, key: Key) {
        if let Some(mut stream) = self.streams.remove(key) {
            wire.counters().streams_open -= 1;
            let waits = stream.waiting.as_ref().is_some_and(|waiting| !waiting.is_held());
            wire.counters().streams_waiting -= u64::from(waits);
            self.forget_early(wire, key, &mut stream);
            self.look_for_rest(&stream);
        }
    }

    /// Notes when a client has no stream any more and more memory than it needs so.
    fn look_for_rest(&mut self, stream: &Stream) {
        if let Client::Stream(link, _) = stream.client
            && let Some(Party::Client(client)) = self.parties.get_mut(link)
            && client.connection.open_streams() == 0
            && client.connection.is_spacious()
            && !client.resting
        {
            client.resting = true;
            self.emptied.push(link);
        }
    }

    /// Takes memory back from clients that have rested.
    fn trim_resting(&mut self, now: Time) {
        while let Some((at, link)) = self.resting.front().copied() {
            if at > now {
                return;
            }
            self.resting.pop_front();
            let Some(Party::Client(client)) = self.parties.get_mut(link) else { continue };
            client.resting = false;
            if client.connection.open_streams() == 0 {
                client.connection.trim();
            }
        }
    }

    fn forget_tunnel<W: Wire>(&mut self, wire: &mut W, link: LinkId) {
        if self.parties.remove(link).is_some() {
            self.clients -= 1;
            wire.counters().tunnels_open -= 1;
        }
    }

    /// Whether the link is a tunnel of which both directions have ended.
    fn is_tunnel_over(&self, link: LinkId) -> bool {
        let Some(Party::Tunnel(key)) = self.parties.get(link) else { return false };
        self.streams.get(*key).is_some_and(|stream| stream.to_origin_ended && stream.to_client_ended)
    }

    /// Ends a stream towards its client with a receipt, and removes it.
    fn fail<W: Wire>(&mut self, wire: &mut W, key: Key, mut reset: Reset) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.repeated && reset.receipt == Receipt::NotForwarded {
            reset.receipt = Receipt::Refused; // the first time it was forwarded, and refused
        }
        let client = stream.client;
        self.reset_client(wire, client, reset);
        self.remove(wire, key);
    }

    /// Tells a client that its stream has failed, and how far it got.
    fn reset_client<W: Wire>(&mut self, wire: &mut W, client: Client, reset: Reset) {
        match reset.receipt {
            Receipt::NotForwarded => wire.counters().streams_not_forwarded += 1,
            Receipt::Unknown => wire.counters().streams_unknown += 1,
            Receipt::Refused => wire.counters().streams_refused += 1,
        }
        match client {
            Client::Tunnel(link) => {
                // A reset, not an end: the client must not take what it has for the whole.
                self.forget_tunnel(wire, link);
                wire.abort(link);
            }
            Client::Stream(link, id) => {
                if let (Some(Party::Client(client)), Some(out)) = (self.parties.get_mut(link), wire.out(link)) {
                    client.connection.reset(id, reset, out);
                }
            }
        }
    }

    /// Ends a stream towards its trunk, since the client gave it up, and removes it.
    fn cancel<W: Wire>(&mut self, wire: &mut W, key: Key, code: Code) {
        let Some(stream) = self.streams.get(key) else { return };
        wire.counters().streams_cancelled += 1;
        if let Some(at) = stream.on_trunk
            && let Some(connection) = connection_of(&mut self.pool, at)
            && let Some(out) = wire.out(at.link)
        {
            connection.reset(at.stream, Reset { code, receipt: Receipt::Unknown, wait_ms: 0 }, out);
        }
        let trunk = stream.on_trunk.map(|on_trunk| on_trunk.trunk);
        self.remove(wire, key);
        if let Some(trunk) = trunk {
            self.close_if_drained(wire, trunk as usize);
        }
    }

    /// Closes a trunk that takes no more streams and has none left.
    fn close_if_drained<W: Wire>(&mut self, wire: &mut W, trunk: usize) {
        let trunk = self.pool.trunk_mut(trunk);
        if let (State::Draining, 0, Some(link)) = (trunk.state, trunk.outstanding(), trunk.link) {
            wire.close(link);
        }
    }

    // ---- clients ----

    fn client_opened<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, opened: Opened) {
        if self.draining {
            match opened.protocol {
                Protocol::Mmtp => wire.close(link),
                // In a tunnel an orderly end would pass for a whole answer that is empty.
                Protocol::Opaque => wire.abort(link),
            }
            return;
        }
        match opened.protocol {
            Protocol::Mmtp => {
                let mut connection = Connection::new(&self.settings.mmtp, now);
                if let Some(out) = wire.out(link) {
                    connection.start(out);
                }
                self.clients += 1;
                let early = opened.early.then(Box::default);
                let client = ClientSide { connection, address: opened.peer, early, resting: false };
                self.parties.insert(link, Party::Client(Box::new(client)));
            }
            Protocol::Opaque => self.tunnel_opened(now, wire, link, opened),
        }
    }

    fn tunnel_opened<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, opened: Opened) {
        let Origin::Accepted { listener } = opened.origin else { unreachable!("only trunks are dialled") };
        let tunnel = self.settings.tunnels[listener].as_ref();
        let early = opened.early && tunnel.is_some_and(|tunnel| tunnel.early == TunnelEarly::Allow);
        let block = tunnel
            .map(|tunnel| forward::tunnel(&mut self.block, &tunnel.service, &mut self.provenance, opened.peer, early));
        if !matches!(block, Some(Ok(()))) || self.streams.len() >= self.settings.streams_max {
            wire.counters().streams_refused += 1;
            wire.abort(link);
            return;
        }
        self.clients += 1;
        wire.counters().tunnels_open += 1;
        let head = Head { flags: HeaderFlags::NONE, priority: PRIORITY_DEFAULT, early };
        let key = if opened.early && !early {
            self.hold(wire, Client::Tunnel(link), head).expect("limits on held streams are those of MMTP clients")
        } else {
            self.open(now, wire, Client::Tunnel(link), head)
        };
        self.streams.get_mut(key).expect("just opened").unconfirmed = opened.early;
        self.parties.insert(link, Party::Tunnel(key));
    }

    fn client_bytes<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId, mut input: &[u8]) {
        loop {
            let Some(Party::Client(client)) = self.parties.get_mut(link) else { return };
            match client.connection.receive(now, &mut input) {
                Ok(None) => break,
                Ok(Some(Event::Headers { stream, opened: true, block, flags, .. })) => {
                    let unconfirmed = early::is_unconfirmed(&client.early);
                    let early = unconfirmed && flags.contains(HeaderFlags::REPLAY_SAFE); // MMTP 2.5
                    let head = Head { flags, priority: block.priority(), early };
                    let from = &mut self.provenance;
                    let written = forward::request(&mut self.block, &block, from, client.address, early);
                    let hold = unconfirmed && !early;
                    let key = self.request_opened(now, wire, Client::Stream(link, stream), head, hold, written);
                    if let (Some(Party::Client(client)), Some(key)) = (self.parties.get_mut(link), key) {
                        client.connection.set_tag(stream, key.index);
                        self.patience.asked(now, key.index);
                        self.patience.client_asked(now, link.index);
                    }
                }
                Ok(Some(Event::Data { stream, tag, bytes, end })) => {
                    if let Some(key) = self.streams.key_at(tag) {
                        let early = &mut client.early;
                        let sent = to_origin(&mut self.streams, &mut self.pool, early, wire, key, bytes, end);
                        if let Some(out) = wire.out(link) {
                            if bytes.len() >= BULK_BYTES {
                                client.connection.measure(now, out);
                            }
                            client.connection.consumed(now, stream, *sent.as_ref().unwrap_or(&0), out);
                        }
                        match sent {
                            Ok(_) => self.settle(wire, key),
                            Err(reset) => self.fail(wire, key, reset),
                        }
                    }
                }
                Ok(Some(Event::Reset { tag, code, .. })) => {
                    if let Some(key) = self.streams.key_at(tag) {
                        self.cancel(wire, key, code);
                    }
                }
                Ok(Some(Event::Credit { .. })) => self.drain_client(now, wire, link),
                Ok(Some(Event::Established | Event::Headers { .. } | Event::Pong | Event::GoAway { .. })) => {}
                Err(error) => return self.client_violated(wire, link, error),
            }
        }
        self.drain_client(now, wire, link);
    }

    /// A client's request, whose block for the trunk was written to `self.block` (or not). None when it is refused.
    fn request_opened<W: Wire>(
        &mut self,
        now: Time,
        wire: &mut W,
        client: Client,
        head: Head,
        hold: bool,
        written: Result<u64, HeaderError>,
    ) -> Option<Key> {
        let reset = match written {
            Err(_) => Reset { code: Code::HEADER_BLOCK, receipt: Receipt::NotForwarded, wait_ms: 0 },
            Ok(_) if self.streams.len() >= self.settings.streams_max => {
                Reset { code: Code::OVERLOADED, receipt: Receipt::Refused, wait_ms: OVERLOADED_WAIT_MS }
            }
            Ok(dropped) => {
                wire.counters().fields_dropped += dropped;
                match if hold { self.hold(wire, client, head) } else { Ok(self.open(now, wire, client, head)) } {
                    Ok(key) => return Some(key),
                    Err(reset) => reset,
                }
            }
        };
        self.reset_client(wire, client, reset);
        None
    }

    /// Lets a client's queued streams move on, and credits their trunks.
    fn drain_client<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId) {
        let Some(Party::Client(client)) = self.parties.get_mut(link) else { return };
        if !client.connection.has_queued() {
            return;
        }
        let mut moved = std::mem::take(&mut self.moved);
        if let Some(out) = wire.out(link) {
            client.connection.drain(out, |_, tag, bytes| moved.push((tag, bytes)));
        }
        for (tag, bytes) in moved.drain(..) {
            if let Some(key) = self.streams.key_at(tag) {
                self.credit_trunk(now, wire, key, bytes);
                self.settle(wire, key);
            }
        }
        self.moved = moved;
    }

    fn client_violated<W: Wire>(&mut self, wire: &mut W, link: LinkId, error: ConnError) {
        wire.counters().mmtp_errors += 1;
        let Some(Party::Client(client)) = self.parties.get_mut(link) else { return };
        let (peer, code) = (Some(client.address), i64::from(error.code().0));
        wire.log(LogLine { what: "MMTP broken", link: Some(link), peer, code, detail: error.name() });
        if let Some(out) = wire.out(link) {
            client.connection.goaway(error.code(), 0, 0, out);
        }
        self.client_closed(wire, link);
        wire.close(link);
    }

    /// A client is gone: so is the wish for its answers.
    fn client_closed<W: Wire>(&mut self, wire: &mut W, link: LinkId) {
        match self.parties.remove(link) {
            Some(Party::Tunnel(key)) => {
                self.clients -= 1;
                wire.counters().tunnels_open -= 1;
                self.cancel(wire, key, Code::CANCELLED);
            }
            Some(Party::Client(client)) => {
                self.clients -= 1;
                for (_, tag) in client.connection.streams() {
                    if let Some(key) = self.streams.key_at(tag) {
                        self.cancel(wire, key, Code::CANCELLED);
                    }
                }
            }
            Some(Party::Trunk(_)) | None => {}
        }
    }

    // ---- trunks ----

    fn trunk_bytes<W: Wire>(&mut self, now: Time, wire: &mut W, trunk: usize, mut input: &[u8]) {
        self.pool.heard(now, trunk);
        loop {
            let Some((connection, link)) = self.pool.connection(trunk) else { return };
            match connection.receive(now, &mut input) {
                Ok(None) => break,
                Ok(Some(Event::Data { stream, tag, bytes, end })) => {
                    self.patience.answered(now, tag);
                    let taken = to_client(&mut self.streams, &mut self.parties, wire, tag, bytes, end);
                    let may_grow =
                        self.streams.key_at(tag).is_some_and(|key| may_grow(&self.streams, &self.parties, key));
                    if let Some(out) = wire.out(link) {
                        consumed(connection, now, stream, taken, may_grow, out);
                    }
                    if end && let Some(key) = self.streams.key_at(tag) {
                        self.settle(wire, key);
                    }
                }
                Ok(Some(Event::Headers { tag, block, flags, .. })) => {
                    self.patience.answered(now, tag);
                    let ended = headers_to_client(&mut self.streams, &mut self.parties, wire, tag, &block, flags);
                    if let Some(key) = ended {
                        self.settle(wire, key);
                    }
                }
                Ok(Some(Event::Reset { tag, code, receipt, wait_ms, .. })) => {
                    if let Some(key) = self.streams.key_at(tag) {
                        let again = code == Code::TOO_EARLY && receipt == Receipt::Refused;
                        if !(again && self.repeat(now, wire, key)) {
                            self.fail(wire, key, Reset { code, receipt, wait_ms });
                        }
                        self.close_if_drained(wire, trunk);
                    }
                }
                Ok(Some(Event::Credit { .. })) => self.drain_trunk(now, wire, trunk),
                Ok(Some(Event::Established)) => {
                    self.pool.greeted(now, wire, trunk);
                    self.place_waiting(now, wire);
                }
                // A Reset follows for each stream that the gateway never took.
                Ok(Some(Event::GoAway { .. })) => {
                    self.pool.draining(wire, trunk);
                    self.close_if_drained(wire, trunk);
                }
                Ok(Some(Event::Pong)) => {}
                Err(error) => return self.trunk_violated(wire, trunk, error),
            }
        }
        self.drain_trunk(now, wire, trunk);
    }

    /// Lets a trunk's queued streams move on, and credits their clients.
    fn drain_trunk<W: Wire>(&mut self, now: Time, wire: &mut W, trunk: usize) {
        let Some((connection, link)) = self.pool.connection(trunk) else { return };
        if !connection.has_queued() {
            return;
        }
        let mut moved = std::mem::take(&mut self.moved);
        if let Some(out) = wire.out(link) {
            connection.drain(out, |_, tag, bytes| moved.push((tag, bytes)));
        }
        for (tag, bytes) in moved.drain(..) {
            if let Some(key) = self.streams.key_at(tag) {
                self.credit_client(now, wire, key, bytes);
                self.settle(wire, key);
            }
        }
        self.moved = moved;
    }

    fn trunk_violated<W: Wire>(&mut self, wire: &mut W, trunk: usize, error: ConnError) {
        wire.counters().mmtp_errors += 1;
        let Some((connection, link)) = self.pool.connection(trunk) else { return };
        let code = i64::from(error.code().0);
        wire.log(LogLine { what: "MMTP broken by gateway", link: Some(link), peer: None, code, detail: error.name() });
        if let Some(out) = wire.out(link) {
            connection.goaway(error.code(), 0, 0, out);
        }
        wire.close(link);
    }

    /// A trunk is gone: each of its streams ends with what is known of it.
    fn trunk_closed<W: Wire>(&mut self, now: Time, wire: &mut W, trunk: usize, link: LinkId, closed: Closed) {
        self.parties.remove(link);
        let code = match closed.reason {
            CloseReason::Os(errno) => i64::from(errno),
            CloseReason::Done | CloseReason::Protocol | CloseReason::Aborted | CloseReason::TimedOut => 0,
        };
        let Some(connection) = self.pool.closed(now, wire, trunk, link, code) else { return };
        for (_, tag) in connection.streams() {
            let Some(key) = self.streams.key_at(tag) else { continue };
            let on_trunk = self.streams.get(key).and_then(|stream| stream.on_trunk);
            let forwarded = on_trunk.is_some_and(|on_trunk| on_trunk.position < closed.submitted);
            let receipt = if forwarded { Receipt::Unknown } else { Receipt::NotForwarded };
            self.fail(wire, key, Reset { code: Code::TRANSPORT_LOST, receipt, wait_ms: 0 });
        }
    }

    // ---- time ----

    /// Ends streams that waited for a trunk long enough: for want of one, or of room on those that are up.
    fn expire_waiting<W: Wire>(&mut self, now: Time, wire: &mut W) {
        let reset = match self.pool.ready() {
            0 => Reset { code: Code::NO_ROUTE, receipt: Receipt::NotForwarded, wait_ms: 0 },
            _ => Reset { code: Code::OVERLOADED, receipt: Receipt::Refused, wait_ms: OVERLOADED_WAIT_MS },
        };
        while let Some(key) = self.waiting.front().copied() {
            match self.streams.get(key).and_then(|stream| stream.waiting.as_ref()) {
                Some(waiting) if waiting.until.is_none_or(|until| until > now) => return,
                Some(_) => self.fail(wire, key, reset),
                None => {}
            }
            self.waiting.pop_front();
        }
    }

    /// While draining: closes clients that have nothing left, then the trunks.
    fn drain_further<W: Wire>(&mut self, wire: &mut W) {
        let idle = |(link, party): (LinkId, &mut Party)| match party {
            Party::Client(client) if client.connection.open_streams() == 0 => Some(link),
            Party::Client(_) | Party::Tunnel(_) | Party::Trunk(_) => None,
        };
        let idle: Vec<LinkId> = self.parties.iter_mut().filter_map(idle).collect();
        for link in idle {
            self.parties.remove(link);
            self.clients -= 1;
            wire.close(link);
        }
        if self.clients == 0 && self.streams.is_empty() {
            self.pool.close(wire);
        }
    }
}

/// The trunk connection that a stream is on, unless it is gone.
fn connection_of(pool: &mut Pool, at: OnTrunk) -> Option<&mut Connection> {
    pool.connection(at.trunk as usize).filter(|(_, link)| *link == at.link).map(|(connection, _)| connection)
}

/// Passes a client's bytes on. Returns how many the client may be credited for now; or, when they are more than may be
/// held for it before its handshake is complete, what it is to be told.
fn to_origin<W: Wire>(
    streams: &mut Slab<Stream>,
    pool: &mut Pool,
    side: &mut MaybeEarly,
    wire: &mut W,
    key: Key,
    bytes: &[u8],
    end: bool,
) -> Result<usize, Reset> {
    let Some(stream) = streams.get_mut(key) else { return Ok(bytes.len()) };
    stream.to_origin_ended |= end;
    let unconfirmed = stream.unconfirmed;
    if let Some(waiting) = &mut stream.waiting {
        if !early::may_hold(side, unconfirmed, waiting, bytes.len()) {
            wire.counters().streams_early_refused += 1;
            return Err(early::refusal());
        }
        waiting.data.extend_from_slice(bytes);
        waiting.ended |= end;
        stream.pause(wire);
        return Ok(0);
    }
    early::keep(side, stream, bytes, end);
    let sent = send_to_trunk(streams, pool, wire, key, bytes, end);
    Ok(streams.get_mut(key).map_or(sent, |stream| stream.credit(sent)))
}

fn send_to_trunk<W: Wire>(
    streams: &mut Slab<Stream>,
    pool: &mut Pool,
    wire: &mut W,
    key: Key,
    bytes: &[u8],
    end: bool,
) -> usize {
    let Some(entry) = streams.get_mut(key) else { return bytes.len() };
    let Some(at @ OnTrunk { stream, .. }) = entry.on_trunk else { return bytes.len() };
    let Some(connection) = connection_of(pool, at) else { return bytes.len() };
    // That a tunnel's client says no more is nothing an answer waits for.
    let is_end_alone = bytes.is_empty() && matches!(entry.client, Client::Tunnel(_));
    let out = if is_end_alone { wire.out_later(at.link) } else { wire.out(at.link) };
    let Some(out) = out else { return bytes.len() };
    let sent = connection.send_data(stream, bytes, end, out).unwrap_or(bytes.len());
    if sent < bytes.len() && connection.queued(stream) > TUNNEL_QUEUE_BYTES_MAX {
        entry.pause(wire);
    }
    sent
}

/// Passes an origin's bytes on. Returns how many the trunk may be credited for now.
fn to_client<W: Wire>(
    streams: &mut Slab<Stream>,
    parties: &mut SideTable<Party>,
    wire: &mut W,
    tag: Tag,
    bytes: &[u8],
    end: bool,
) -> usize {
    let Some(stream) = streams.key_at(tag).and_then(|key| streams.get_mut(key)) else { return bytes.len() };
    stream.to_client_ended |= end;
    match stream.client {
        Client::Tunnel(link) => {
            let Some(out) = wire.out(link) else { return bytes.len() };
            out.put(bytes);
            stream.uncredited_bytes += bytes.len() as u32; // less than the window, which is below 2^30
            let full = out.room() == 0;
            if end {
                wire.finish(link);
            }
            if full { 0 } else { std::mem::take(&mut stream.uncredited_bytes) as usize }
        }
        Client::Stream(link, id) => {
            let (Some(Party::Client(client)), Some(out)) = (parties.get_mut(link), wire.out(link)) else {
                return bytes.len();
            };
            client.connection.send_data(id, bytes, end, out).unwrap_or(bytes.len())
        }
    }
}

/// Whether the window of a stream on its trunk may grow.
fn may_grow(streams: &Slab<Stream>, parties: &SideTable<Party>, key: Key) -> bool {
    match streams.get(key).map(|stream| stream.client) {
        Some(Client::Tunnel(_)) => true,
        Some(Client::Stream(link, _)) => match parties.get(link) {
            Some(Party::Client(client)) => client.connection.open_streams() <= GROWING_STREAMS_MAX,
            Some(Party::Tunnel(_) | Party::Trunk(_)) | None => false,
        },
        None => false,
    }
}

fn consumed(
    connection: &mut Connection,
    now: Time,
    stream: StreamId,
    bytes: usize,
    may_grow: bool,
    out: &mut impl Sink,
) {
    if may_grow {
        connection.consumed(now, stream, bytes, out);
    } else {
        connection.consumed_as_is(now, stream, bytes, out);
    }
}

/// Passes the headers of an answer on. Returns the stream when its direction ended with them.
fn headers_to_client<W: Wire>(
    streams: &mut Slab<Stream>,
    parties: &mut SideTable<Party>,
    wire: &mut W,
    tag: Tag,
    block: &HeaderBlock<'_>,
    flags: HeaderFlags,
) -> Option<Key> {
    let key = streams.key_at(tag)?;
    let stream = streams.get_mut(key)?;
    early::forget_kept(parties, stream);
    stream.to_client_ended |= flags.end();
    match stream.client {
        // The far end of a tunnel reads bytes, not headers: that they came says the upstream is connected.
        Client::Tunnel(link) => {
            if flags.end() {
                wire.finish(link);
            }
        }
        Client::Stream(link, id) => {
            if let (Some(Party::Client(client)), Some(out)) = (parties.get_mut(link), wire.out(link)) {
                // It fails only for a stream that the client gave up, whose cancellation is on its way.
                let _ = client.connection.pass_answer(id, *block, flags, out);
            }
        }
    }
    flags.end().then_some(key)
}

impl<W: Wire> Role<W> for Relay {
    fn opened(&mut self, now: Time, wire: &mut W, link: LinkId, opened: Opened) {
        match opened.origin {
            Origin::Dialed { tag } => {
                let trunk = tag as usize;
                self.parties.insert(link, Party::Trunk(trunk));
                self.pool.opened(now, wire, trunk, link);
            }
            Origin::Accepted { .. } => self.client_opened(now, wire, link, opened),
        }
    }

    fn confirmed(&mut self, now: Time, wire: &mut W, link: LinkId) {
        self.release(now, wire, link);
    }

    fn bytes(&mut self, now: Time, wire: &mut W, link: LinkId, bytes: &[u8]) {
        match self.parties.get(link) {
            Some(Party::Tunnel(key)) => {
                let key = *key;
                self.patience.asked(now, key.index);
                self.patience.client_asked(now, link.index);
                let sent = to_origin(&mut self.streams, &mut self.pool, &mut None, wire, key, bytes, false);
                if let Err(reset) = sent {
                    self.fail(wire, key, reset);
                }
            }
            Some(Party::Client(_)) => self.client_bytes(now, wire, link, bytes),
            Some(Party::Trunk(trunk)) => {
                let trunk = *trunk;
                self.trunk_bytes(now, wire, trunk, bytes);
            }
            None => {}
        }
    }

    fn ended(&mut self, _now: Time, wire: &mut W, link: LinkId) {
        match self.parties.get(link) {
            Some(Party::Tunnel(key)) => {
                let key = *key;
                // An end alone is never too much.
                let _ = to_origin(&mut self.streams, &mut self.pool, &mut None, wire, key, &[], true);
                self.settle(wire, key);
            }
            // MMTP ends streams, not directions: a side that stops sending is leaving.
            Some(Party::Client(_)) => {
                self.client_closed(wire, link);
                wire.close(link);
            }
            Some(Party::Trunk(_)) => wire.close(link),
            None => {}
        }
    }

    fn room(&mut self, now: Time, wire: &mut W, link: LinkId) {
        match self.parties.get(link) {
            Some(Party::Tunnel(key)) => {
                let key = *key;
                let bytes = self.streams.get_mut(key).map_or(0, |stream| std::mem::take(&mut stream.uncredited_bytes));
                self.credit_trunk(now, wire, key, bytes as usize);
            }
            Some(Party::Client(_)) => self.drain_client(now, wire, link),
            Some(Party::Trunk(trunk)) => {
                let trunk = *trunk;
                self.drain_trunk(now, wire, trunk);
            }
            None => {}
        }
    }

    fn closed(&mut self, now: Time, wire: &mut W, link: LinkId, closed: Closed) {
        match closed.origin {
            Origin::Dialed { tag } => self.trunk_closed(now, wire, tag as usize, link, closed),
            Origin::Accepted { .. } if closed.reason == CloseReason::Done && self.is_tunnel_over(link) => {
                // What it sent may still be queued on the trunk: the stream goes on without its client.
                self.forget_tunnel(wire, link);
            }
            Origin::Accepted { .. } => self.client_closed(wire, link),
        }
    }

    fn pass_ended(&mut self, now: Time, wire: &mut W) {
        if !self.waiting.is_empty() {
            self.place_waiting(now, wire); // a trunk that was full may have room by now
        }
        let at = now + REST_DELAY;
        self.resting.extend(self.emptied.drain(..).map(|link| (at, link)));
        if self.draining {
            self.drain_further(wire);
        }
    }

    fn patience(&self, now: Time) -> Duration {
        self.patience.granted(now)
    }

    fn next_deadline(&self) -> Option<Time> {
        let until = |key: &Key| self.streams.get(*key)?.waiting.as_ref()?.until;
        let rest = self.resting.front().map(|(at, _)| *at);
        [self.waiting.iter().find_map(until), self.pool.next_deadline(), rest].into_iter().flatten().min()
    }

    fn due(&mut self, now: Time, wire: &mut W) {
        self.expire_waiting(now, wire);
        self.trim_resting(now);
        self.pool.due(now, wire);
    }

    fn drain(&mut self, wire: &mut W) {
        self.draining = true;
        let wait_ms = u32::try_from(self.settings.goaway_wait.as_millis()).unwrap_or(u32::MAX);
        for (link, party) in self.parties.iter_mut() {
            if let (Party::Client(client), Some(out)) = (party, wire.out(link)) {
                client.connection.goaway(Code::DRAINING, wait_ms, wait_ms, out);
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.clients == 0 && self.streams.is_empty()
    }
}
