//! One MMTP connection: bytes in, events out; requests in, bytes out.
//!
//! Owns stream states, credit, turns and what is queued; never owns the transport, the time or received payload.
//! Invariants: no byte is sent beyond the peer's credit or accepted beyond ours; a stream that ended both ways, or was
//! reset, holds no memory; the memory a peer can make us hold is bounded by the [`Settings`].
//!
//! How to use it: [`Connection::start`] once; [`Connection::receive`] until it returns none, for every piece of input;
//! [`Connection::drain`] whenever [`Connection::has_queued`] and the transport has room, at the latest after each batch
//! of input. On an error write [`Connection::goaway`] with its code and close the transport.

use core::time::Duration;

use super::decode;
use super::encode::{put_frame, put_header};
use super::error::{Code, ConnError, HeaderError, Limit, Receipt, Violation};
use super::frame::{
    CONNECTION_CREDIT_DEFAULT, FLAG_END, FRAME_HEADER_BYTES_MAX, Frame, FrameHeader, HeaderFlags, INTERIM_MAX, Kind,
    PRIORITY_MAX, STREAM_CREDIT_DEFAULT, STREAMS_DEFAULT, StreamId, Tag, Treatment, VARINT_MAX,
};
use super::header::{Checked, HeaderBlock, Message};
use super::hello::{CreditPolicy, PeerHello, Settings, Side};
use super::stream::{Half, Illegal, Step, Stream, Streams};
use super::turns::Turns;
use super::window::{ReceiveWindow, SendCredit};
use crate::base::limits::FRAME_PAYLOAD_BYTES_MAX;
use crate::base::time::Time;
use crate::base::wire::Sink;

/// Smallest frame that a lack of room in the sink cuts a larger one to, in bytes: going a little over the high-water
/// mark costs less than crumbs.
const CRUMB_BYTES: usize = 1024;

/// Frames that lead to nothing which a peer may send in one burst (MMTP 9.4).
const IDLE_FRAMES_BURST: u32 = 4096;

/// Frames per second that lead to nothing which a peer may send (MMTP 9.4).
const IDLE_FRAMES_PER_SECOND: u32 = 1024;

/// Of a stream that we reset, what may still be on its way: one frame per so many bytes of its window is forgiven.
const FORGIVEN_FRAME_BYTES: u32 = 128;

/// Frames forgiven for each stream that this end gives up, besides those that its window may hold.
const FORGIVEN_FRAMES: u32 = 4;

/// Most that is forgiven at once.
const FORGIVEN_FRAMES_MAX: u32 = 1 << 18;

/// How often budgets are refilled.
const REFILL_INTERVAL: Duration = Duration::from_millis(100);

/// What is taken for the shortest round trip rises by one part in so many with each PING that takes longer: with trunks, which
/// are pinged every 2 s, it doubles in 24 s. Faster, and the queue of one long answer would be taken for the path.
const RTT_LEAST_RISE: u32 = 16;

/// What a stream is told when it ends before its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reset {
    /// Why; below 2^30.
    pub code: Code,
    /// How far the request got.
    pub receipt: Receipt,
    /// How long to wait before trying again, in milliseconds, below 2^30; 0 says nothing.
    pub wait_ms: u32,
}

/// Why no stream can be opened now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// As many are open as the peer allows.
    Limit,
    /// One of both ends said GOAWAY.
    GoingAway,
    /// The connection has used up its stream ids.
    Exhausted,
}

/// Why something cannot be sent on a stream. The fault is the caller's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamError {
    /// It is not open (any more): it ended both ways or was reset.
    Gone,
    /// The state of the stream forbids it: HEADERS twice, DATA before HEADERS or after the end.
    State,
    /// A stream that was opened later has sent its HEADERS already.
    OutOfOrder,
    /// The header block is not right.
    Block(HeaderError),
    /// Flags that this kind of HEADERS must not have.
    Flags,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// The peer's HELLO arrived, see [`Connection::peer`].
    Established,
    /// HEADERS: a request (`opened`), an interim answer or the answer.
    Headers {
        /// Stream.
        stream: StreamId,
        /// Its tag; 0 when it is new: give it one with [`Connection::set_tag`].
        tag: Tag,
        /// Whether the peer opened it just now.
        opened: bool,
        /// The checked block.
        block: HeaderBlock<'a>,
        /// Flags. With END nothing follows from the peer.
        flags: HeaderFlags,
    },
    /// Bytes, at most what arrived at once: a frame may come in several pieces. Give them back with
    /// [`Connection::consumed`].
    Data {
        /// Stream.
        stream: StreamId,
        /// Its tag.
        tag: Tag,
        /// The bytes; empty only with `end`.
        bytes: &'a [u8],
        /// Whether nothing follows from the peer.
        end: bool,
    },
    /// The stream is gone, and what was queued on it: the peer reset it; or the peer broke its rules and this end has
    /// reset it; or the peer went away without having taken it ([`Receipt::NotForwarded`]).
    Reset {
        /// Stream.
        stream: StreamId,
        /// Its tag.
        tag: Tag,
        /// Why.
        code: Code,
        /// How far the request got.
        receipt: Receipt,
        /// How long to wait before trying again, in milliseconds.
        wait_ms: u32,
    },
    /// Queued bytes may move: call [`Connection::drain`]. Stream and tag are 0 when the whole connection got credit.
    Credit {
        /// Stream.
        stream: StreamId,
        /// Its tag.
        tag: Tag,
    },
    /// The answer to the outstanding PING, see [`Connection::rtt`].
    Pong,
    /// The peer takes no more streams. A [`Event::Reset`] follows for each of ours above `last_stream`; the others run
    /// on to their end.
    GoAway {
        /// Highest of our streams that it took.
        last_stream: StreamId,
        /// Why.
        code: Code,
        /// How long to wait before connecting again, in milliseconds.
        wait_ms: u32,
        /// Up to how much longer, chosen at random, in milliseconds.
        jitter_ms: u32,
        /// Where to connect instead; empty for the same place.
        address: &'a [u8],
    },
}

/// Where the reader stands.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// In front of a frame, or within its header.
    Header,
    /// In a payload that is needed whole.
    Whole(FrameHeader),
    /// In DATA. `slot` held `stream` when the frame began.
    Data { slot: u32, stream: StreamId, remaining: usize, end: bool },
    /// In a payload that nobody wants.
    Skip { remaining: usize },
}

/// An event without the bytes it refers to.
#[derive(Clone, Copy, Debug)]
enum Found {
    Established,
    Headers { stream: StreamId, tag: Tag, opened: bool, flags: HeaderFlags, checked: Checked },
    Data { stream: StreamId, tag: Tag, end: bool },
    Reset { stream: StreamId, tag: Tag, reset: Reset },
    Credit { stream: StreamId, tag: Tag },
    Pong,
    GoAway { last_stream: StreamId, code: Code, wait_ms: u32, jitter_ms: u32, address_bytes: usize },
}

/// The bytes an event refers to.
#[derive(Clone, Copy, Debug)]
enum Payload<'i> {
    Input(&'i [u8]),
    /// The connection's own buffer: the payload had come in pieces.
    Gathered,
}

/// What a stream id on a frame from the peer names.
#[derive(Clone, Copy, Debug)]
enum Located {
    Open(u32),
    /// It was open once, or was refused by our GOAWAY.
    Forgotten,
    /// The peer may open it with HEADERS.
    New,
}

/// Allowances that refill with time (MMTP 9.4).
#[derive(Clone, Copy, Debug)]
struct Budgets {
    refilled_at: Time,
    idle_frames: u32,
    churn: u32,
    churn_burst: u32,
    churn_per_second: u32,
}

/// One end of an MMTP connection.
#[derive(Debug)]
pub struct Connection {
    side: Side,
    policy: CreditPolicy,
    /// Something small is to be sent: HELLO, PONG, RESET or the connection's CREDIT.
    owes: bool,
    head_bytes: u8,
    head: [u8; FRAME_HEADER_BYTES_MAX],
    reading: Reading,
    /// A payload that comes in pieces; or one that came so and was the last event.
    gathered: Vec<u8>,
    streams: Streams,
    /// Some once anything was ever queued.
    turns: Option<Box<Turns>>,
    queued_bytes: usize,
    /// The id that [`Connection::open`] gives out next.
    own_next: StreamId,
    /// Highest of our streams whose HEADERS were sent.
    own_sent: StreamId,
    own_open: u32,
    /// Highest stream of the peer that was opened.
    peer_highest: StreamId,
    peer_open: u32,
    peer_streams_max: u32,
    peer_stream_credit: u32,
    streams_max: u32,
    stream_credit: u32,
    stream_credit_max: u32,
    send: SendCredit,
    receive: ReceiveWindow,
    goaway_sent: Option<StreamId>,
    goaway_received: Option<StreamId>,
    /// Next slot to look at for streams that the peer's GOAWAY gave up.
    sweep: Option<u32>,
    now: Time,
    budgets: Budgets,
    /// PINGs sent; the nonce of the last one.
    pings: u32,
    /// Some while the last PING is unanswered.
    ping_since: Option<Time>,
    rtt_micros: Option<u32>,
    /// The shortest round trip that a PING took of late.
    rtt_least_micros: u32,
    pong_owed: Option<[u8; 8]>,
    resets_owed: Vec<(StreamId, Reset)>,
    /// Some until it is sent.
    hello: Option<Box<[u8]>>,
    /// The payload of the peer's HELLO: what it says is in its place already, and few ever ask for the rest.
    peer: Option<Box<[u8]>>,
    failed: Option<ConnError>,
    last_violation: Option<Violation>,
}

const _: () = assert!(size_of::<Connection>() <= 392, "an idle connection is small");

impl Connection {
    /// A connection whose transport has just become ready.
    #[must_use]
    pub fn new(settings: &Settings, now: Time) -> Connection {
        Connection {
            side: settings.side,
            policy: settings.credit_policy,
            owes: true,
            head_bytes: 0,
            head: [0; FRAME_HEADER_BYTES_MAX],
            reading: Reading::Header,
            gathered: Vec::new(),
            streams: Streams::new(settings.hash_seed),
            turns: None,
            queued_bytes: 0,
            own_next: match settings.side {
                Side::Initiator => 1,
                Side::Acceptor => 2,
            },
            own_sent: 0,
            own_open: 0,
            peer_highest: 0,
            peer_open: 0,
            peer_streams_max: match settings.side {
                Side::Initiator => STREAMS_DEFAULT, // MMTP 2.3
                Side::Acceptor => 0,
            },
            peer_stream_credit: STREAM_CREDIT_DEFAULT,
            streams_max: settings.streams_max_granted(),
            stream_credit: settings.stream_credit_granted(),
            stream_credit_max: settings.stream_credit_max_granted(),
            send: SendCredit::new(CONNECTION_CREDIT_DEFAULT),
            receive: ReceiveWindow::new(settings.connection_credit_granted()),
            goaway_sent: None,
            goaway_received: None,
            sweep: None,
            now,
            budgets: Budgets {
                refilled_at: now,
                idle_frames: IDLE_FRAMES_BURST,
                churn: settings.churn_burst,
                churn_burst: settings.churn_burst,
                churn_per_second: settings.churn_per_second,
            },
            pings: 0,
            ping_since: None,
            rtt_micros: None,
            rtt_least_micros: u32::MAX,
            pong_owed: None,
            resets_owed: Vec::new(),
            hello: Some(settings.hello().into_boxed_slice()),
            peer: None,
            failed: None,
            last_violation: None,
        }
    }

    /// Puts HELLO. The initiator may send requests right behind it, within the limits of MMTP 2.3.
    pub fn start(&mut self, out: &mut impl Sink) {
        self.settle(out);
    }

    /// Takes from the front of `input` up to the next event. None when all of it is used up; a partial frame is kept.
    ///
    /// What the connection itself must answer (PONG, RESET of a stream whose rules the peer broke, credit of the
    /// connection) is sent by the next call that has a sink: see [`Connection::has_queued`].
    ///
    /// # Errors
    /// The connection cannot go on; every later call returns the same error.
    pub fn receive<'a, 'i: 'a>(&'a mut self, now: Time, input: &mut &'i [u8]) -> Result<Option<Event<'a>>, ConnError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.now = self.now.max(now);
        if !matches!(self.reading, Reading::Whole(_)) && self.gathered.capacity() > 0 {
            self.gathered = Vec::new(); // what the last event referred to
        }
        match self.advance(input) {
            Ok(None) => Ok(None),
            Ok(Some((found, payload))) => Ok(Some(found.with(match payload {
                Payload::Input(bytes) => bytes,
                Payload::Gathered => &self.gathered,
            }))),
            Err(error) => {
                self.failed = Some(error);
                if let ConnError::Peer(violation) = error {
                    self.last_violation = Some(violation);
                }
                Err(error)
            }
        }
    }

    /// Takes the id of our next stream, which counts against the peer's limit from now on. `priority` (0 to 7, larger
    /// values count as 7) orders what we send on it; it should be what the request's priority field says.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&mut self, tag: Tag, priority: u8) -> Result<StreamId, OpenError> {
        if self.goaway_received.is_some() || self.goaway_sent.is_some() || self.failed.is_some() {
            return Err(OpenError::GoingAway);
        }
        if self.own_open >= self.peer_streams_max {
            return Err(OpenError::Limit);
        }
        if self.own_next > VARINT_MAX {
            return Err(OpenError::Exhausted);
        }
        let id = self.own_next;
        self.own_next += 2;
        self.own_open += 1;
        self.insert(id, tag, priority.min(PRIORITY_MAX));
        Ok(id)
    }

    /// Gives a stream the tag that comes with its events from now on.
    pub fn set_tag(&mut self, stream: StreamId, tag: Tag) {
        if let Some(slot) = self.streams.find(stream) {
            self.streams.get_mut(slot).tag = tag;
        }
    }

    /// Puts HEADERS with `block`, which is checked. On our own streams it is a request; on the peer's an answer,
    /// interim when its status is below 200. The sink's room does not matter: streams are limited.
    ///
    /// # Errors
    /// See [`StreamError`]; nothing was sent.
    pub fn send_headers(
        &mut self,
        stream: StreamId,
        block: &[u8],
        flags: HeaderFlags,
        out: &mut impl Sink,
    ) -> Result<(), StreamError> {
        let message = if self.is_own(stream) { Message::Request } else { Message::Answer };
        let block = HeaderBlock::parse(block, message).map_err(StreamError::Block)?;
        self.put_headers(stream, message, block, flags, out)
    }

    /// Puts HEADERS with a request's `block` that was made of a checked one with
    /// [`HeaderWriter`](super::HeaderWriter), without checking it once more; builds with debug assertions do.
    ///
    /// # Errors
    /// See [`StreamError`]; nothing was sent. The peer's streams are answered, not asked on: *State*.
    pub fn pass_request(
        &mut self,
        stream: StreamId,
        block: &[u8],
        flags: HeaderFlags,
        out: &mut impl Sink,
    ) -> Result<(), StreamError> {
        debug_assert_eq!(HeaderBlock::parse(block, Message::Request).err(), None, "made of a checked one");
        if !self.is_own(stream) {
            return Err(StreamError::State);
        }
        self.put_headers(stream, Message::Request, HeaderBlock::of_checked(block, Checked::REQUEST), flags, out)
    }

    /// Passes the headers of an answer on as they were received, without checking them once more.
    ///
    /// # Errors
    /// See [`StreamError`]; nothing was sent. Our own streams are asked on, not answered: *State*.
    pub fn pass_answer(
        &mut self,
        stream: StreamId,
        block: HeaderBlock<'_>,
        flags: HeaderFlags,
        out: &mut impl Sink,
    ) -> Result<(), StreamError> {
        if self.is_own(stream) || block.status().is_none() {
            return Err(StreamError::State);
        }
        self.put_headers(stream, Message::Answer, block, flags, out)
    }

    fn put_headers(
        &mut self,
        stream: StreamId,
        message: Message,
        block: HeaderBlock<'_>,
        flags: HeaderFlags,
        out: &mut impl Sink,
    ) -> Result<(), StreamError> {
        let slot = self.streams.find(stream).ok_or(StreamError::Gone)?;
        let checked = block.checked();
        let is_answer_flags = flags.without(HeaderFlags::END) == HeaderFlags::NONE;
        if (message == Message::Answer && !is_answer_flags) || (checked.is_interim() && flags.end()) {
            return Err(StreamError::Flags);
        }
        let entry = self.streams.get_mut(slot);
        let local = entry.local.step(head_step(checked, flags)).map_err(|_| StreamError::State)?;
        if message == Message::Request {
            if stream < self.own_sent {
                return Err(StreamError::OutOfOrder);
            }
            self.own_sent = stream;
        }
        self.settle(out);
        self.streams.get_mut(slot).local = local;
        put_frame(Frame::Headers { stream, flags, block: block.bytes() }, out);
        self.forget_if_over(slot);
        Ok(())
    }

    /// Puts as much of `bytes` as credit, room and turns allow, and queues the rest; returns how many were put now.
    /// With `end` the direction ends behind them.
    ///
    /// What is queued is bounded by the caller alone, who bounds it by the credit it granted for those bytes elsewhere.
    ///
    /// # Errors
    /// See [`StreamError`]; nothing was sent or queued.
    pub fn send_data(
        &mut self,
        stream: StreamId,
        bytes: &[u8],
        end: bool,
        out: &mut impl Sink,
    ) -> Result<usize, StreamError> {
        let slot = self.streams.find(stream).ok_or(StreamError::Gone)?;
        let entry = self.streams.get_mut(slot);
        let local = entry.local.step(if end { Step::EndQueued } else { Step::Data }).map_err(|_| StreamError::State)?;
        entry.local = local;
        let is_first = entry.queue.is_empty();
        self.settle(out);
        let sent = if is_first { self.send_at_once(slot, bytes, out) } else { 0 };
        if sent < bytes.len() {
            self.queue(slot, &bytes[sent..]);
        } else if end && is_first && bytes.is_empty() {
            put_header(Kind::Data, FLAG_END, stream, 0, out);
            self.end_sent(slot);
        }
        Ok(sent)
    }

    /// Ends a stream both ways at once and drops what was queued on it. Nothing happens when it is gone.
    pub fn reset(&mut self, stream: StreamId, reset: Reset, out: &mut impl Sink) {
        let Some(slot) = self.streams.find(stream) else { return };
        self.settle(out);
        let is_known_to_peer = !self.is_own(stream) || self.streams.get(slot).local != Half::Waiting;
        self.forgive(slot);
        self.remove(slot);
        if is_known_to_peer {
            let Reset { code, receipt, wait_ms } = reset;
            put_frame(Frame::Reset { stream, code, receipt, wait_ms }, out);
        }
    }

    /// Says that `bytes` of a stream's data need no room here any more. Credit goes back to the peer in pieces of half
    /// a window. A window that is used up within two of the shortest round trips seen doubles, up to the settings' largest (MMTP 6.3).
    pub fn consumed(&mut self, now: Time, stream: StreamId, bytes: usize, out: &mut impl Sink) {
        self.consume(now, stream, bytes, true, out);
    }

    /// Like [`Connection::consumed`], but the window stays as large as it is: for a stream whose bytes go on to somebody
    /// who has windows enough.
    pub fn consumed_as_is(&mut self, now: Time, stream: StreamId, bytes: usize, out: &mut impl Sink) {
        self.consume(now, stream, bytes, false, out);
    }

    fn consume(&mut self, now: Time, stream: StreamId, bytes: usize, may_grow: bool, out: &mut impl Sink) {
        self.now = self.now.max(now);
        let Some(slot) = self.streams.find(stream) else { return }; // its bytes were given back when it went
        // Of the path, not of the queues on it: those grow with the windows, and the windows would grow with them.
        let path = self.rtt_micros.map(|_| Duration::from_micros(u64::from(self.rtt_least_micros)));
        let (now, size_max) = (self.now, self.stream_credit_max);
        let entry = self.streams.get_mut(slot);
        let bytes = entry.receive.consume(bytes);
        if self.policy == CreditPolicy::OnConsumption {
            self.release(bytes);
        }
        let entry = self.streams.get_mut(slot);
        if entry.receive.is_due() && entry.remote != Half::Ended {
            let size = entry.receive.size();
            let is_fast = path.is_some_and(|path| now.since(entry.granted_at) <= path * 2);
            if may_grow && is_fast && size < size_max {
                entry.receive.grow(size.saturating_mul(2).min(size_max));
            }
            entry.granted_at = now;
            let bytes = entry.receive.take_owed();
            put_frame(Frame::Credit { stream, bytes }, out);
        }
        self.settle(out);
    }

    /// Sends what the connection owes by itself; then lets queued streams take turns while the sink has room and credit
    /// lasts, and tells `moved` how many bytes of which stream went.
    pub fn drain(&mut self, out: &mut impl Sink, mut moved: impl FnMut(StreamId, Tag, usize)) {
        self.settle(out);
        while out.room() > 0 && self.send.available() > 0 {
            let Some((slot, limit)) = self.next_turn() else { break };
            let entry = self.streams.get(slot);
            let (stream, tag) = (entry.id, entry.tag);
            let sent = self.send_queued(slot, limit.min(out.room().max(CRUMB_BYTES)), out);
            moved(stream, tag, sent);
        }
    }

    /// Whether [`Connection::drain`] has anything to look at: queued bytes, or something that the connection itself
    /// owes the peer. Bytes that wait for credit count too.
    #[must_use]
    pub fn has_queued(&self) -> bool {
        self.owes || self.queued_bytes > 0
    }

    /// Bytes queued on all streams.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Bytes queued on a stream; 0 when it is gone.
    #[must_use]
    pub fn queued(&self, stream: StreamId) -> usize {
        self.streams.peek(stream).map_or(0, |entry| entry.queue.len())
    }

    /// Streams open now, of both ends.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Streams open now with their tags. The order depends only on what happened before.
    pub fn streams(&self) -> impl Iterator<Item = (StreamId, Tag)> {
        self.streams.iter().map(|entry| (entry.id, entry.tag))
    }

    /// Whether this end opened (or would have opened) a stream of this id.
    #[must_use]
    pub fn is_own(&self, stream: StreamId) -> bool {
        (stream & 1 == 1) == (self.side == Side::Initiator)
    }

    /// Says that no stream above the last one taken will be handled, and why. Streams of the peer that are open run on.
    pub fn goaway(&mut self, code: Code, wait_ms: u32, jitter_ms: u32, out: &mut impl Sink) {
        self.settle(out);
        let last_stream = *self.goaway_sent.get_or_insert(self.peer_highest);
        put_frame(Frame::GoAway { last_stream, code, wait_ms, jitter_ms, address: &[] }, out);
    }

    /// Sends PING, unless one is unanswered.
    pub fn ping(&mut self, now: Time, out: &mut impl Sink) {
        self.now = self.now.max(now);
        self.settle(out);
        if self.ping_since.is_none() {
            self.pings = self.pings.wrapping_add(1);
            self.ping_since = Some(now);
            put_frame(Frame::Ping { pong: false, nonce: u64::from(self.pings).to_be_bytes() }, out);
        }
    }

    /// Sends PING unless the round-trip time is known or being measured: for an end that receives much, whose windows
    /// grow only once it is (MMTP 6.3).
    pub fn measure(&mut self, now: Time, out: &mut impl Sink) {
        if self.rtt_micros.is_none() && self.ping_since.is_none() {
            self.ping(now, out);
        }
    }

    /// The smoothed round-trip time, once a PING was answered.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt_micros.map(|micros| Duration::from_micros(u64::from(micros)))
    }

    /// When the unanswered PING was sent.
    #[must_use]
    pub fn ping_outstanding_since(&self) -> Option<Time> {
        self.ping_since
    }

    /// What the peer's HELLO said, once it arrived.
    #[must_use]
    pub fn peer(&self) -> Option<PeerHello> {
        let hello = PeerHello::parse(self.peer.as_deref()?, self.side.other());
        Some(hello.expect("it was read once before it was kept"))
    }

    /// The rule that the peer broke last, on a stream or on the connection: for logs.
    #[must_use]
    pub fn last_violation(&self) -> Option<Violation> {
        self.last_violation
    }

    /// Whether either end said GOAWAY: no stream can be opened from here.
    #[must_use]
    pub fn is_going_away(&self) -> bool {
        self.goaway_sent.is_some() || self.goaway_received.is_some()
    }

    /// Whether [`Connection::trim`] would give back more than the next stream needs again.
    #[must_use]
    pub fn is_spacious(&self) -> bool {
        self.streams.slot_capacity() > 1 || self.turns.is_some() || self.resets_owed.capacity() > 0
    }

    /// Gives memory back that earlier streams used, when none is open: for a connection that rests.
    pub fn trim(&mut self) {
        self.streams.trim();
        if self.turns.as_ref().is_some_and(|turns| turns.is_empty()) && self.streams.len() == 0 {
            self.turns = None;
        }
        self.gathered.shrink_to_fit();
        self.resets_owed.shrink_to_fit();
    }
}

// Receiving.
impl Connection {
    fn advance<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<(Found, Payload<'i>)>, ConnError> {
        if let Some(found) = self.next_given_up() {
            return Ok(Some((found, Payload::Input(&[]))));
        }
        loop {
            match self.reading {
                Reading::Header => {
                    let Some(header) = self.next_header(input)? else { return Ok(None) };
                    if let Some(found) = self.begin(header)? {
                        return Ok(Some((found, Payload::Input(&[]))));
                    }
                }
                Reading::Whole(header) => {
                    let Some(payload) = self.gather(header.length, input) else { return Ok(None) };
                    self.reading = Reading::Header;
                    let found = match payload {
                        Payload::Input(bytes) => self.take_whole(header, bytes)?,
                        Payload::Gathered => {
                            let bytes = core::mem::take(&mut self.gathered);
                            let found = self.take_whole(header, &bytes)?;
                            if found.is_some() {
                                self.gathered = bytes; // the event refers to it
                            }
                            found
                        }
                    };
                    if let Some(found) = found {
                        return Ok(Some((found, payload)));
                    }
                }
                Reading::Data { slot, stream, remaining, .. } if !self.streams.is(slot, stream) => {
                    self.reading = Reading::Skip { remaining }; // our user reset it within the frame
                }
                Reading::Data { slot, stream, remaining, end } => {
                    if input.is_empty() && remaining > 0 {
                        return Ok(None);
                    }
                    let piece = cut(input, remaining);
                    let found = self.take_piece(slot, stream, remaining - piece.len(), end);
                    return Ok(Some((found, Payload::Input(piece))));
                }
                Reading::Skip { remaining } => {
                    if input.is_empty() && remaining > 0 {
                        return Ok(None);
                    }
                    let remaining = remaining - cut(input, remaining).len();
                    self.reading = if remaining == 0 { Reading::Header } else { Reading::Skip { remaining } };
                }
            }
        }
    }

    /// Moves on behind a piece of DATA, `remaining` bytes of whose frame are still to come.
    fn take_piece(&mut self, slot: u32, stream: StreamId, remaining: usize, end: bool) -> Found {
        let entry = self.streams.get_mut(slot);
        let tag = entry.tag;
        if remaining > 0 {
            self.reading = Reading::Data { slot, stream, remaining, end };
            return Found::Data { stream, tag, end: false };
        }
        self.reading = Reading::Header;
        if end {
            entry.remote = Half::Ended; // the step was checked when the frame began
            self.forget_if_over(slot);
        }
        Found::Data { stream, tag, end }
    }

    /// Reads a frame header, which may come in pieces.
    fn next_header(&mut self, input: &mut &[u8]) -> Result<Option<FrameHeader>, ConnError> {
        if self.head_bytes == 0
            && let Some((header, length)) = decode::header(input)?
        {
            *input = &input[length..];
            return Ok(Some(header));
        }
        while let Some((&first, rest)) = input.split_first() {
            *input = rest;
            self.head[usize::from(self.head_bytes)] = first;
            self.head_bytes += 1;
            if let Some((header, _)) = decode::header(&self.head[..usize::from(self.head_bytes)])? {
                self.head_bytes = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// Starts on a frame whose header is right.
    fn begin(&mut self, header: FrameHeader) -> Result<Option<Found>, ConnError> {
        if self.peer.is_none() && header.kind != Kind::Hello {
            return Err(Violation::HelloMissing.into()); // MMTP 2.2
        }
        if self.peer.is_some() && header.kind == Kind::Hello {
            return Err(Violation::HelloTwice.into()); // MMTP 2.2
        }
        if header.kind == Kind::Data {
            return self.begin_data(header);
        }
        match header.kind.treatment() {
            Treatment::Handle => self.reading = Reading::Whole(header),
            Treatment::Ignore => {
                self.spend_idle_frame()?;
                self.reading = Reading::Skip { remaining: header.length };
            }
            Treatment::Refuse => return Err(Violation::FrameReserved.into()), // MMTP 4.8
        }
        Ok(None)
    }

    fn begin_data(&mut self, header: FrameHeader) -> Result<Option<Found>, ConnError> {
        let FrameHeader { stream, length, .. } = header;
        let end = header.flags & FLAG_END != 0;
        self.receive.arrive(length).map_err(|_| Violation::ConnectionCreditExceeded)?; // MMTP 6.1
        let slot = match self.locate(stream)? {
            Located::Open(slot) => slot,
            Located::New => return Err(Violation::StreamNotOpened.into()), // MMTP 5.1
            Located::Forgotten => {
                self.spend_idle_frame()?;
                self.release(length);
                self.reading = Reading::Skip { remaining: length };
                return Ok(None);
            }
        };
        if self.policy == CreditPolicy::OnArrival {
            self.release(length);
        }
        let entry = self.streams.get_mut(slot);
        let broken = match entry.remote.step(if end { Step::End } else { Step::Data }) {
            Err(illegal) => Some(illegal.violation()),
            Ok(_) => entry.receive.arrive(length).err().map(|_| Violation::StreamCreditExceeded), // MMTP 6.1
        };
        if let Some(violation) = broken {
            self.reading = Reading::Skip { remaining: length };
            if self.policy == CreditPolicy::OnConsumption {
                self.release(length);
            }
            return self.break_stream(slot, violation).map(Some);
        }
        if length == 0 && !end {
            self.spend_idle_frame()?;
        } else {
            self.reading = Reading::Data { slot, stream, remaining: length, end };
        }
        Ok(None)
    }

    /// The whole payload of a frame, or none until all of it is there.
    fn gather<'i>(&mut self, length: usize, input: &mut &'i [u8]) -> Option<Payload<'i>> {
        if self.gathered.is_empty() && input.len() >= length {
            return Some(Payload::Input(cut(input, length)));
        }
        let missing = length - self.gathered.len();
        self.gathered.extend_from_slice(cut(input, missing));
        (self.gathered.len() == length).then_some(Payload::Gathered)
    }
}

// Receiving: whole frames.
impl Connection {
    fn take_whole(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Found>, ConnError> {
        match decode::payload(header, payload)? {
            Frame::Hello(payload) => self.take_hello(payload).map(Some),
            Frame::Headers { stream, flags, block } => match self.locate(stream)? {
                Located::Open(slot) => self.take_answer(slot, flags, block).map(Some),
                Located::New => self.take_request(stream, flags, block),
                Located::Forgotten => self.spend_idle_frame().map(|()| None),
            },
            Frame::Reset { stream, code, receipt, wait_ms } => {
                self.take_reset(stream, Reset { code, receipt, wait_ms })
            }
            Frame::Credit { stream: 0, bytes } => {
                self.send.grant(bytes).map_err(|_| Violation::ConnectionCreditOverflow)?; // MMTP 6.2
                let waits = self.turns.as_ref().is_some_and(|turns| !turns.is_empty());
                Ok(waits.then_some(Found::Credit { stream: 0, tag: 0 }))
            }
            Frame::Credit { stream, bytes } => self.take_credit(stream, bytes),
            Frame::Ping { pong: false, nonce } => {
                self.spend_idle_frame()?;
                self.pong_owed = Some(nonce); // MMTP 4.6: the newest is enough
                self.owes = true;
                Ok(None)
            }
            Frame::Ping { pong: true, nonce } => self.take_pong(u64::from_be_bytes(nonce)),
            Frame::GoAway { last_stream, code, wait_ms, jitter_ms, address } => {
                if let Some(earlier) = self.goaway_received {
                    self.spend_idle_frame()?;
                    if last_stream > earlier {
                        return Err(Violation::GoAwayRaised.into()); // MMTP 4.7
                    }
                }
                self.goaway_received = Some(last_stream);
                self.sweep = Some(0);
                Ok(Some(Found::GoAway { last_stream, code, wait_ms, jitter_ms, address_bytes: address.len() }))
            }
            Frame::Data { .. } | Frame::Other { .. } => Ok(None), // `begin` reads these without gathering them
        }
    }

    fn take_hello(&mut self, payload: &[u8]) -> Result<Found, ConnError> {
        let hello = PeerHello::parse(payload, self.side.other())?;
        // Limits only rise (MMTP 2.3): what was assumed until now stays true.
        self.peer_streams_max = hello.streams_max;
        let more = hello.connection_credit - CONNECTION_CREDIT_DEFAULT;
        self.send.grant(more).map_err(|_| Violation::ConnectionCreditOverflow)?;
        let more = hello.stream_credit - self.peer_stream_credit;
        self.peer_stream_credit = hello.stream_credit;
        for slot in 0..self.streams.slot_count() {
            let entry = self.streams.get_mut(slot);
            if entry.id != 0 {
                entry.send.grant(more).map_err(|_| Violation::ConnectionCreditOverflow)?;
                self.enter_turns(slot);
            }
        }
        self.peer = Some(payload.into());
        Ok(Found::Established)
    }

    /// HEADERS that open a stream.
    fn take_request(&mut self, stream: StreamId, flags: HeaderFlags, block: &[u8]) -> Result<Option<Found>, ConnError> {
        if self.peer_open >= self.streams_max {
            return Err(Violation::StreamLimitExceeded.into()); // MMTP 5.4
        }
        self.peer_highest = stream;
        let checked = match HeaderBlock::parse(block, Message::Request) {
            Ok(block) => block.checked(),
            Err(error) => {
                self.spend_churn()?;
                let violation = Violation::Block(error);
                self.last_violation = Some(violation);
                let code = violation.code();
                self.owe_reset(stream, Reset { code, receipt: Receipt::NotForwarded, wait_ms: 0 });
                return Ok(None);
            }
        };
        self.peer_open += 1;
        let slot = self.insert(stream, 0, checked.priority());
        self.streams.get_mut(slot).remote = if flags.end() { Half::Ended } else { Half::Open };
        Ok(Some(Found::Headers { stream, tag: 0, opened: true, flags, checked }))
    }

    /// HEADERS on a stream that is open: an answer, unless the peer breaks a rule.
    fn take_answer(&mut self, slot: u32, flags: HeaderFlags, block: &[u8]) -> Result<Found, ConnError> {
        let entry = self.streams.get(slot);
        let (stream, tag) = (entry.id, entry.tag);
        match self.check_answer(slot, flags, block) {
            Err(violation) => self.break_stream(slot, violation),
            Ok((remote, checked)) => {
                let entry = self.streams.get_mut(slot);
                entry.remote = remote;
                entry.interims += u8::from(checked.is_interim());
                self.forget_if_over(slot);
                Ok(Found::Headers { stream, tag, opened: false, flags, checked })
            }
        }
    }

    fn check_answer(&self, slot: u32, flags: HeaderFlags, block: &[u8]) -> Result<(Half, Checked), Violation> {
        let entry = self.streams.get(slot);
        // Whatever the block says, the state may forbid it (MMTP 5.2); on a stream of the peer it always does.
        entry.remote.step(Step::Head).map_err(Illegal::violation)?;
        let checked = HeaderBlock::parse(block, Message::Answer).map_err(Violation::Block)?.checked();
        if flags.without(HeaderFlags::END) != HeaderFlags::NONE {
            return Err(Violation::FlagsMisplaced); // MMTP 4.2
        }
        if checked.is_interim() && flags.end() {
            return Err(Violation::InterimEnds); // MMTP 5.2
        }
        if checked.is_interim() && entry.interims == INTERIM_MAX {
            return Err(Violation::InterimTooMany); // MMTP 5.2
        }
        let remote = entry.remote.step(head_step(checked, flags)).map_err(Illegal::violation)?;
        Ok((remote, checked))
    }

    fn take_reset(&mut self, stream: StreamId, reset: Reset) -> Result<Option<Found>, ConnError> {
        match self.locate(stream)? {
            Located::New => Err(Violation::StreamNotOpened.into()), // MMTP 5.1
            Located::Forgotten => self.spend_idle_frame().map(|()| None),
            Located::Open(slot) => {
                if !self.is_own(stream) {
                    self.spend_churn()?; // MMTP 9.4
                }
                let tag = self.streams.get(slot).tag;
                self.remove(slot);
                Ok(Some(Found::Reset { stream, tag, reset }))
            }
        }
    }

    fn take_credit(&mut self, stream: StreamId, bytes: u32) -> Result<Option<Found>, ConnError> {
        match self.locate(stream)? {
            Located::New => Err(Violation::StreamNotOpened.into()), // MMTP 5.1
            Located::Forgotten => Ok(None),                         // ordinary: it crossed the end of the stream
            Located::Open(slot) => {
                let entry = self.streams.get_mut(slot);
                if entry.send.grant(bytes).is_err() {
                    return self.break_stream(slot, Violation::StreamCreditOverflow).map(Some); // MMTP 6.2
                }
                let tag = entry.tag;
                let waits = !entry.queue.is_empty();
                self.enter_turns(slot);
                Ok(waits.then_some(Found::Credit { stream, tag }))
            }
        }
    }

    fn take_pong(&mut self, nonce: u64) -> Result<Option<Found>, ConnError> {
        match self.ping_since {
            Some(since) if nonce == u64::from(self.pings) => {
                let sample = self.now.since(since);
                // RFC 6298 section 2: one eighth of what is new.
                let rtt = self.rtt().map_or(sample, |rtt| (rtt * 7 + sample) / 8);
                let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
                self.rtt_micros = Some(micros(rtt));
                // It rises slowly when every PING takes longer: a connection may outlive the path it began on.
                let least = self.rtt_least_micros;
                let risen = least.saturating_add(least / RTT_LEAST_RISE + 1);
                self.rtt_least_micros = micros(sample).min(risen);
                self.ping_since = None;
                Ok(Some(Found::Pong))
            }
            _ => self.spend_idle_frame().map(|()| None),
        }
    }

    /// The next of our streams that the peer's GOAWAY gave up.
    fn next_given_up(&mut self) -> Option<Found> {
        let last_stream = self.goaway_received?;
        let mut slot = self.sweep?;
        while slot < self.streams.slot_count() {
            let entry = self.streams.get(slot);
            let (stream, tag) = (entry.id, entry.tag);
            if stream > last_stream && self.is_own(stream) {
                self.sweep = Some(slot + 1);
                self.remove(slot);
                let reset = Reset { code: Code::DRAINING, receipt: Receipt::NotForwarded, wait_ms: 0 };
                return Some(Found::Reset { stream, tag, reset });
            }
            slot += 1;
        }
        self.sweep = None;
        None
    }

    /// What a stream id from the peer names (MMTP 5.1, 5.3).
    fn locate(&mut self, stream: StreamId) -> Result<Located, ConnError> {
        if self.is_own(stream) && stream > self.own_sent {
            return Err(Violation::StreamNotOpened.into());
        }
        if let Some(slot) = self.streams.find(stream)
            && !(self.is_own(stream) && self.streams.get(slot).local == Half::Waiting)
        {
            return Ok(Located::Open(slot));
        }
        let is_past = self.is_own(stream) || stream <= self.peer_highest || self.goaway_sent.is_some();
        Ok(if is_past { Located::Forgotten } else { Located::New })
    }

    /// Resets a stream whose rules the peer broke, and says so to our user.
    fn break_stream(&mut self, slot: u32, violation: Violation) -> Result<Found, ConnError> {
        self.spend_churn()?;
        self.last_violation = Some(violation);
        let entry = self.streams.get(slot);
        let (stream, tag) = (entry.id, entry.tag);
        let reset = Reset { code: violation.code(), receipt: Receipt::Unknown, wait_ms: 0 };
        self.forgive(slot);
        self.remove(slot);
        self.owe_reset(stream, reset);
        Ok(Found::Reset { stream, tag, reset })
    }

    fn owe_reset(&mut self, stream: StreamId, reset: Reset) {
        self.resets_owed.push((stream, reset));
        self.owes = true;
    }

    /// One frame that led to nothing (MMTP 9.4).
    fn spend_idle_frame(&mut self) -> Result<(), ConnError> {
        self.budgets.refill(self.now);
        self.budgets.idle_frames =
            self.budgets.idle_frames.checked_sub(1).ok_or(ConnError::Overload(Limit::IdleFrames))?;
        Ok(())
    }

    /// One stream that led to nothing (MMTP 9.4).
    fn spend_churn(&mut self) -> Result<(), ConnError> {
        self.budgets.refill(self.now);
        self.budgets.churn = self.budgets.churn.checked_sub(1).ok_or(ConnError::Overload(Limit::StreamChurn))?;
        Ok(())
    }

    /// Allows for what the peer may have on its way on a stream that this end gives up.
    fn forgive(&mut self, slot: u32) {
        let frames = FORGIVEN_FRAMES + self.streams.get(slot).receive.size() / FORGIVEN_FRAME_BYTES;
        self.budgets.forgive(frames);
    }
}

impl Budgets {
    fn refill(&mut self, now: Time) {
        let elapsed = now.since(self.refilled_at);
        if elapsed < REFILL_INTERVAL {
            return;
        }
        self.refilled_at = now;
        let more = |per_second: u32| {
            let count = elapsed.as_millis().saturating_mul(u128::from(per_second)) / 1000;
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        let refilled = self.idle_frames.saturating_add(more(IDLE_FRAMES_PER_SECOND)).min(IDLE_FRAMES_BURST);
        self.idle_frames = self.idle_frames.max(refilled); // what was forgiven may lie above the burst
        self.churn = self.churn.saturating_add(more(self.churn_per_second)).min(self.churn_burst);
    }

    fn forgive(&mut self, frames: u32) {
        self.idle_frames = self.idle_frames.saturating_add(frames).min(FORGIVEN_FRAMES_MAX);
    }
}

// Sending.
impl Connection {
    /// Sends what the connection owes by itself.
    fn settle(&mut self, out: &mut impl Sink) {
        if self.owes {
            self.settle_owed(out);
        }
    }

    #[cold]
    fn settle_owed(&mut self, out: &mut impl Sink) {
        self.owes = false;
        if let Some(hello) = self.hello.take() {
            put_frame(Frame::Hello(&hello), out);
        }
        for (stream, reset) in core::mem::take(&mut self.resets_owed) {
            let Reset { code, receipt, wait_ms } = reset;
            put_frame(Frame::Reset { stream, code, receipt, wait_ms }, out);
        }
        if self.receive.is_due() {
            put_frame(Frame::Credit { stream: 0, bytes: self.receive.take_owed() }, out);
        }
        if out.room() > 0 {
            if let Some(nonce) = self.pong_owed.take() {
                put_frame(Frame::Ping { pong: true, nonce }, out);
            }
        } else {
            self.owes = self.pong_owed.is_some(); // a peer that does not read gets no answer to its pings
        }
    }

    /// Sends from `bytes` past the queue, which is empty for this stream; returns how many.
    fn send_at_once(&mut self, slot: u32, bytes: &[u8], out: &mut impl Sink) -> usize {
        let mut share = usize::MAX;
        if let Some(turns) = &mut self.turns
            && !turns.is_empty()
        {
            if turns.waits_at_or_above(self.streams.get(slot).priority) {
                return 0;
            }
            share = turns.share(&mut self.streams, slot);
        }
        let mut sent = 0;
        while sent < bytes.len() && out.room() > 0 {
            let entry = self.streams.get_mut(slot);
            let length = (bytes.len() - sent)
                .min(FRAME_PAYLOAD_BYTES_MAX)
                .min(entry.send.available())
                .min(self.send.available())
                .min(out.room().max(CRUMB_BYTES))
                .min(share - sent);
            if length == 0 {
                break;
            }
            let piece = &bytes[sent..sent + length];
            sent += length;
            let end = entry.local == Half::Ending && sent == bytes.len();
            entry.send.take(length);
            self.send.take(length);
            put_header(Kind::Data, if end { FLAG_END } else { 0 }, entry.id, length, out);
            out.put(piece);
            if end {
                self.end_sent(slot);
                return sent;
            }
        }
        if share != usize::MAX
            && let Some(turns) = &mut self.turns
        {
            turns.spend(&mut self.streams, slot, sent);
        }
        sent
    }

    fn queue(&mut self, slot: u32, bytes: &[u8]) {
        self.streams.get_mut(slot).queue.extend(bytes);
        self.queued_bytes += bytes.len();
        self.enter_turns(slot);
    }

    /// Lines a stream up if it has bytes and credit.
    fn enter_turns(&mut self, slot: u32) {
        let entry = self.streams.get(slot);
        if !entry.queue.is_empty() && entry.send.available() > 0 {
            self.turns.get_or_insert_with(|| Box::new(Turns::new())).enter(&mut self.streams, slot);
        }
    }

    /// Whose turn it is, and for how many bytes.
    fn next_turn(&mut self) -> Option<(u32, usize)> {
        let turns = self.turns.as_mut()?;
        let slot = turns.front()?;
        let share = turns.share(&mut self.streams, slot);
        Some((slot, if turns.is_single() { FRAME_PAYLOAD_BYTES_MAX } else { share.min(FRAME_PAYLOAD_BYTES_MAX) }))
    }

    /// Sends one frame of at most `limit` bytes from the queue of the stream whose turn it is; returns how many.
    fn send_queued(&mut self, slot: u32, limit: usize, out: &mut impl Sink) -> usize {
        let entry = self.streams.get_mut(slot);
        let length = entry.queue.len().min(limit).min(entry.send.available()).min(self.send.available());
        assert!(length > 0, "whoever has a turn has bytes and credit");
        entry.send.take(length);
        self.send.take(length);
        self.queued_bytes -= length;
        let is_last = length == entry.queue.len();
        let end = is_last && entry.local == Half::Ending;
        put_header(Kind::Data, if end { FLAG_END } else { 0 }, entry.id, length, out);
        let (front, back) = entry.queue.as_slices();
        let from_front = length.min(front.len());
        out.put(&front[..from_front]);
        if from_front < length {
            out.put(&back[..length - from_front]);
        }
        if is_last {
            entry.queue = Default::default(); // gives its memory back
        } else {
            entry.queue.drain(..length);
        }
        let turns = self.turns.as_mut().expect("a turn was taken from them");
        turns.spend(&mut self.streams, slot, length);
        if is_last || self.streams.get(slot).send.available() == 0 {
            turns.leave(&mut self.streams, slot);
        } else if turns.share(&mut self.streams, slot) == 0 {
            turns.leave(&mut self.streams, slot);
            turns.enter(&mut self.streams, slot);
        }
        if end {
            self.end_sent(slot);
        }
        length
    }

    fn end_sent(&mut self, slot: u32) {
        self.streams.get_mut(slot).local = Half::Ended;
        self.forget_if_over(slot);
    }

    fn insert(&mut self, id: StreamId, tag: Tag, priority: u8) -> u32 {
        let (send, receive) = (SendCredit::new(self.peer_stream_credit), ReceiveWindow::new(self.stream_credit));
        let mut entry = Stream::new(id, tag, priority, send, receive);
        entry.granted_at = self.now;
        self.streams.insert(entry)
    }

    fn forget_if_over(&mut self, slot: u32) {
        if self.streams.get(slot).is_over() {
            self.remove(slot);
        }
    }

    /// Takes a stream out of everything.
    fn remove(&mut self, slot: u32) {
        if let Some(turns) = &mut self.turns {
            turns.leave(&mut self.streams, slot);
        }
        let entry = self.streams.get(slot);
        let (id, held) = (entry.id, entry.receive.held());
        self.queued_bytes -= entry.queue.len();
        if self.is_own(id) {
            self.own_open -= 1;
        } else {
            self.peer_open -= 1;
        }
        if self.policy == CreditPolicy::OnConsumption {
            self.release(held); // nobody will consume it any more
        }
        self.streams.remove(slot);
    }

    /// Gives `bytes` of the connection's window back to the peer, in time.
    fn release(&mut self, bytes: usize) {
        self.receive.consume(bytes);
        self.owes |= self.receive.is_due();
    }
}

impl Found {
    fn with(self, payload: &[u8]) -> Event<'_> {
        match self {
            Found::Established => Event::Established,
            Found::Headers { stream, tag, opened, flags, checked } => {
                Event::Headers { stream, tag, opened, block: HeaderBlock::of_checked(payload, checked), flags }
            }
            Found::Data { stream, tag, end } => Event::Data { stream, tag, bytes: payload, end },
            Found::Reset { stream, tag, reset: Reset { code, receipt, wait_ms } } => {
                Event::Reset { stream, tag, code, receipt, wait_ms }
            }
            Found::Credit { stream, tag } => Event::Credit { stream, tag },
            Found::Pong => Event::Pong,
            Found::GoAway { last_stream, code, wait_ms, jitter_ms, address_bytes } => {
                let address = &payload[payload.len() - address_bytes..]; // it was read from the end of this payload
                Event::GoAway { last_stream, code, wait_ms, jitter_ms, address }
            }
        }
    }
}

impl Illegal {
    /// The rule the peer broke with a step that its direction forbids (MMTP 5.2).
    fn violation(self) -> Violation {
        match (self.half, self.step) {
            (Half::Waiting, _) => Violation::DataBeforeHeaders,
            (Half::Open | Half::Ending, Step::Interim | Step::Head | Step::HeadEnd) => Violation::HeadersTwice,
            (Half::Open | Half::Ending, Step::Data | Step::EndQueued | Step::End) | (Half::Ended, _) => {
                Violation::AfterEnd
            }
        }
    }
}

/// The step that HEADERS make.
fn head_step(checked: Checked, flags: HeaderFlags) -> Step {
    match (checked.is_interim(), flags.end()) {
        (true, _) => Step::Interim,
        (false, false) => Step::Head,
        (false, true) => Step::HeadEnd,
    }
}

/// Takes at most `count` bytes off the front of `input`.
fn cut<'i>(input: &mut &'i [u8], count: usize) -> &'i [u8] {
    let (piece, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    piece
}

#[cfg(test)]
impl Connection {
    /// Books that must balance at any time.
    pub(super) fn check_books(&self) {
        assert!(self.receive.is_consistent());
        assert!(self.streams.iter().all(|entry| entry.receive.is_consistent()));
        assert!(self.streams.iter().all(|entry| entry.receive.size() <= self.stream_credit_max));
        assert_eq!(self.own_open as usize + self.peer_open as usize, self.streams.len());
        assert!(self.own_open <= self.peer_streams_max && self.peer_open <= self.streams_max);
        let held: usize = self.streams.iter().map(|entry| entry.receive.held()).sum();
        let held_expected = if self.policy == CreditPolicy::OnConsumption { held } else { 0 };
        assert_eq!(self.receive.held(), held_expected, "the connection holds what its streams hold");
    }

    /// What must be left when no stream is.
    pub(super) fn check_idle(&self) {
        self.check_books();
        assert_eq!(self.receive.held(), 0);
        assert!(self.turns.as_ref().is_none_or(|turns| turns.is_empty()));
        assert_eq!(self.gathered.capacity(), 0);
        assert_eq!(self.resets_owed.len(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::{HeaderWriter, Known};
    use super::super::hello::Agent;
    use super::*;

    fn pair() -> (Connection, Connection) {
        let mut near = Connection::new(&Settings::new(Side::Initiator, Agent::Terminal), Time::ZERO);
        let mut far = Connection::new(&Settings::new(Side::Acceptor, Agent::Pop), Time::ZERO);
        let (mut to_far, mut to_near) = (Vec::new(), Vec::new());
        near.start(&mut to_far);
        far.start(&mut to_near);
        assert_eq!(events(&mut near, &to_near), ["Established"]);
        assert_eq!(events(&mut far, &to_far), ["Established"]);
        (near, far)
    }

    /// What happens on `to` with these bytes, in words.
    fn events(to: &mut Connection, mut bytes: &[u8]) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(event) = to.receive(Time::ZERO, &mut bytes).unwrap() {
            words.push(match event {
                Event::Headers { stream, opened, flags, .. } => format!("Headers {stream} {opened} {}", flags.bits()),
                Event::Data { stream, bytes, end, .. } => format!("Data {stream} {} {end}", bytes.len()),
                Event::Reset { stream, code, .. } => format!("Reset {stream} {}", code.name()),
                Event::Credit { stream, .. } => format!("Credit {stream}"),
                Event::GoAway { last_stream, .. } => format!("GoAway {last_stream}"),
                Event::Established => "Established".to_owned(),
                Event::Pong => "Pong".to_owned(),
            });
        }
        words
    }

    fn request() -> Vec<u8> {
        let mut block = Vec::new();
        HeaderWriter::new(&mut block).known(Known::Service, b"pay").unwrap();
        block
    }

    fn answer(status: u64) -> Vec<u8> {
        let mut block = Vec::new();
        HeaderWriter::new(&mut block).number(Known::Status, status).unwrap();
        block
    }

    /// Opens a stream and asks on it.
    fn asked(near: &mut Connection, flags: HeaderFlags, out: &mut Vec<u8>) -> StreamId {
        let stream = near.open(0, 3).unwrap();
        near.send_headers(stream, &request(), flags, out).unwrap();
        stream
    }

    #[test]
    fn a_request_is_passed_on_as_it_came_and_on_own_streams_alone() {
        let (mut near, mut far) = pair();
        let (mut passed, mut sent) = (Vec::new(), Vec::new());
        let stream = near.open(0, 3).unwrap();
        near.pass_request(stream, &request(), HeaderFlags::END, &mut passed).unwrap();
        assert_eq!(events(&mut far, &passed), ["Headers 1 true 1"]);
        assert_eq!(
            near.pass_request(stream, &request(), HeaderFlags::END, &mut sent),
            Err(StreamError::State),
            "twice"
        );
        assert_eq!(
            far.pass_request(stream, &request(), HeaderFlags::END, &mut sent),
            Err(StreamError::State),
            "the peer's"
        );
        assert!(sent.is_empty());
    }

    #[test]
    fn an_answer_is_passed_on_as_it_came_and_a_request_is_not() {
        let (mut near, mut far) = pair();
        let mut to_far = Vec::new();
        for _ in 0..2 {
            asked(&mut near, HeaderFlags::END, &mut to_far);
        }
        assert_eq!(events(&mut far, &to_far).len(), 2);
        let block = answer(200);
        let block = HeaderBlock::parse(&block, Message::Answer).unwrap();
        let (mut passed, mut sent) = (Vec::new(), Vec::new());
        far.pass_answer(1, block, HeaderFlags::NONE, &mut passed).unwrap();
        far.send_headers(3, block.bytes(), HeaderFlags::NONE, &mut sent).unwrap();
        assert_eq!(passed.len(), sent.len());
        assert_eq!(events(&mut near, &passed), ["Headers 1 false 0"]);
        assert_eq!(far.pass_answer(1, block, HeaderFlags::NONE, &mut passed), Err(StreamError::State), "twice");
        assert_eq!(near.pass_answer(1, block, HeaderFlags::NONE, &mut passed), Err(StreamError::State), "its own");
        let asked = request();
        let asked = HeaderBlock::parse(&asked, Message::Request).unwrap();
        assert_eq!(far.pass_answer(3, asked, HeaderFlags::NONE, &mut passed), Err(StreamError::State), "no answer");
    }

    #[test]
    fn a_request_and_its_answer_leave_nothing_behind() {
        let (mut near, mut far) = pair();
        let mut to_far = Vec::new();
        let stream = near.open(7, 0).unwrap();
        near.send_headers(stream, &request(), HeaderFlags::NONE, &mut to_far).unwrap();
        assert_eq!(near.send_data(stream, b"hello", true, &mut to_far), Ok(5));
        assert_eq!(events(&mut far, &to_far), ["Headers 1 true 0", "Data 1 5 true"]);
        let mut to_near = Vec::new();
        far.consumed(Time::ZERO, stream, 5, &mut to_near);
        far.send_headers(stream, &answer(103), HeaderFlags::NONE, &mut to_near).unwrap();
        far.send_headers(stream, &answer(200), HeaderFlags::NONE, &mut to_near).unwrap();
        assert_eq!(far.send_data(stream, b"world!", true, &mut to_near), Ok(6));
        assert_eq!(events(&mut near, &to_near), ["Headers 1 false 0", "Headers 1 false 0", "Data 1 6 true"]);
        assert_eq!((near.open_streams(), far.open_streams()), (0, 0));
        assert!(!near.has_queued() && !far.has_queued());
        assert_eq!(near.send_data(stream, b"x", false, &mut to_far), Err(StreamError::Gone));
    }

    #[test]
    fn a_request_may_follow_hello_without_waiting() {
        let mut near = Connection::new(&Settings::new(Side::Initiator, Agent::Terminal), Time::ZERO);
        let mut far = Connection::new(&Settings::new(Side::Acceptor, Agent::Pop), Time::ZERO);
        let mut to_far = Vec::new();
        near.start(&mut to_far);
        for _ in 0..STREAMS_DEFAULT {
            let stream = asked(&mut near, HeaderFlags::NONE, &mut to_far);
            near.send_data(stream, &[0; 20_000], true, &mut to_far).unwrap();
        }
        assert_eq!(near.open(0, 3), Err(OpenError::Limit));
        assert_eq!(near.queued_bytes(), 8 * 20_000 - 65_536);
        let mut to_near = Vec::new();
        far.start(&mut to_near);
        assert_eq!(events(&mut far, &to_far).len(), 1 + 8 + 4);
        assert_eq!(events(&mut near, &to_near), ["Established"]);
        to_far.clear();
        let mut moved_bytes = 0;
        near.drain(&mut to_far, |_, _, bytes| moved_bytes += bytes);
        assert_eq!(moved_bytes, 8 * 20_000 - 65_536);
        assert!(events(&mut far, &to_far).iter().filter(|word| word.ends_with("true")).count() == 8);
    }

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn sent_credit(bytes: &[u8]) -> Option<u32> {
        match decode::frame(bytes).unwrap()?.0 {
            Frame::Credit { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    #[test]
    fn an_idle_connection_is_small_and_holds_no_heap() {
        let (near, far) = pair();
        for connection in [&near, &far] {
            assert_eq!(connection.gathered.capacity() + connection.resets_owed.capacity(), 0);
            assert!(connection.turns.is_none() && connection.hello.is_none());
            assert_eq!(connection.streams.slot_count(), 0);
        }
    }

    #[test]
    fn a_window_that_is_too_small_for_the_path_doubles_up_to_the_limit() {
        let mut settings = Settings::new(Side::Acceptor, Agent::Pop);
        (settings.stream_credit, settings.stream_credit_max) = (20_000, 70_000);
        let mut far = Connection::new(&settings, Time::ZERO);
        let mut near = Connection::new(&Settings::new(Side::Initiator, Agent::Terminal), Time::ZERO);
        let (mut to_far, mut to_near) = (Vec::new(), Vec::new());
        near.start(&mut to_far);
        far.start(&mut to_near);
        far.ping(at(0), &mut to_near);
        let mut input = &to_near[..];
        while near.receive(at(50), &mut input).unwrap().is_some() {}
        let stream = asked(&mut near, HeaderFlags::NONE, &mut to_far);
        near.send_data(stream, &[0; 20_000], false, &mut to_far).unwrap();
        let mut input = &to_far[..];
        while far.receive(at(100), &mut input).unwrap().is_some() {}
        assert_eq!(far.rtt(), Some(Duration::from_millis(100)));
        let mut grants = Vec::new();
        for now in [110, 120, 130, 140, 1000] {
            let mut out = Vec::new();
            let slot = far.streams.find(stream).unwrap();
            let rest = far.streams.get(slot).receive.size() as usize - far.streams.get(slot).receive.held();
            let _ = far.streams.get_mut(slot).receive.arrive(rest); // as if the peer used all it was granted
            let half = far.streams.get(slot).receive.size() as usize / 2;
            far.consumed(at(now), stream, half, &mut out);
            grants.push((sent_credit(&out).unwrap(), far.streams.get(slot).receive.size()));
        }
        assert_eq!(grants, [(30_000, 40_000), (50_000, 70_000), (35_000, 70_000), (35_000, 70_000), (35_000, 70_000)]);
    }

    #[test]
    fn a_window_that_suffices_stays() {
        let (mut near, mut far) = pair();
        let (mut to_far, mut out) = (Vec::new(), Vec::new());
        let stream = asked(&mut near, HeaderFlags::NONE, &mut to_far);
        near.send_data(stream, &[0; 40_000], false, &mut to_far).unwrap();
        events(&mut far, &to_far);
        // Most of what PINGs take now is queues, which larger windows would only feed.
        (far.rtt_micros, far.rtt_least_micros) = (Some(500_000), 10_000);
        far.consumed(at(21), stream, 40_000, &mut out);
        assert_eq!(sent_credit(&out), Some(40_000));
    }

    #[test]
    fn round_trips_are_measured_and_smoothed() {
        let (mut near, mut far) = pair();
        for (sent, answered, rtt) in [(0, 80, 80), (100, 260, 90)] {
            let (mut to_far, mut to_near) = (Vec::new(), Vec::new());
            near.ping(at(sent), &mut to_far);
            let one = to_far.len();
            near.ping(at(sent + 1), &mut to_far);
            assert_eq!(to_far.len(), one, "one at a time");
            assert_eq!(near.ping_outstanding_since(), Some(at(sent)));
            assert_eq!(events(&mut far, &to_far), [] as [&str; 0]);
            assert!(far.has_queued());
            far.drain(&mut to_near, |_, _, _| ());
            let mut input = &to_near[..];
            assert_eq!(near.receive(at(answered), &mut input), Ok(Some(Event::Pong)));
            assert_eq!(near.rtt(), Some(Duration::from_millis(rtt)));
            assert_eq!(near.ping_outstanding_since(), None);
        }
    }

    #[test]
    fn the_shortest_round_trip_falls_at_once_and_rises_slowly() {
        let (mut near, mut far) = pair();
        let mut sent = 0;
        let mut took = |millis: u64| {
            let (mut to_far, mut to_near) = (Vec::new(), Vec::new());
            near.ping(at(sent), &mut to_far);
            assert_eq!(events(&mut far, &to_far), [] as [&str; 0]);
            far.drain(&mut to_near, |_, _, _| ());
            let mut input = &to_near[..];
            assert_eq!(near.receive(at(sent + millis), &mut input), Ok(Some(Event::Pong)));
            sent += 10_000;
            near.rtt_least_micros
        };
        assert_eq!([took(20), took(10)], [20_000, 10_000]);
        assert_eq!(took(150), 10_626, "one PING that waits in a queue changes little");
        let seen: Vec<u32> = (0..60).map(|_| took(150)).collect();
        assert!(seen[9] < 21_000 && seen[59] == 150_000, "the path has changed for good: {seen:?}");
        assert_eq!(took(30), 30_000);
        assert_eq!([took(0), took(1), took(1)], [0, 1, 2], "and from nothing as well");
    }

    /// A sink without room.
    #[derive(Default)]
    struct Full(Vec<u8>);

    impl Sink for Full {
        fn room(&self) -> usize {
            0
        }

        fn put(&mut self, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
        }

        fn position(&self) -> u64 {
            self.0.len() as u64
        }
    }

    #[test]
    fn a_peer_that_pings_and_does_not_read_gets_one_answer_when_it_does() {
        let (_, mut far) = pair();
        let mut full = Full::default();
        for nonce in 0..100u64 {
            let mut ping = Vec::new();
            put_frame(Frame::Ping { pong: false, nonce: nonce.to_be_bytes() }, &mut ping);
            events(&mut far, &ping);
            far.drain(&mut full, |_, _, _| ());
        }
        assert_eq!(full.0, [] as [u8; 0]);
        let mut out = Vec::new();
        far.drain(&mut out, |_, _, _| ());
        assert_eq!(decode::frame(&out), Ok(Some((Frame::Ping { pong: true, nonce: 99u64.to_be_bytes() }, out.len()))));
    }

    /// [M 9.4-1]
    #[test]
    fn floods_end_the_connection_and_patience_refills() {
        let mut ping = Vec::new();
        put_frame(Frame::Ping { pong: false, nonce: [0; 8] }, &mut ping);
        let (_, mut far) = pair();
        let burst = ping.repeat(IDLE_FRAMES_BURST as usize);
        assert_eq!(far.receive(at(0), &mut &burst[..]), Ok(None));
        let more = ping.repeat(IDLE_FRAMES_PER_SECOND as usize);
        assert_eq!(far.receive(at(1000), &mut &more[..]), Ok(None));
        assert_eq!(far.receive(at(1000), &mut &ping[..]), Err(ConnError::Overload(Limit::IdleFrames)));
        assert_eq!(far.receive(at(9000), &mut &[][..]), Err(ConnError::Overload(Limit::IdleFrames)));
        assert_eq!(far.open(0, 0), Err(OpenError::GoingAway));
    }

    /// [M 9.4-1]: what crosses the end of a stream is no flood.
    #[test]
    fn what_was_under_way_when_a_stream_was_reset_is_forgiven() {
        let (mut near, mut far) = pair();
        far.budgets.idle_frames = 0;
        let (mut to_far, mut to_near) = (Vec::new(), Vec::new());
        let stream = asked(&mut near, HeaderFlags::NONE, &mut to_far);
        events(&mut far, &to_far);
        far.reset(stream, Reset { code: Code::OVERLOADED, receipt: Receipt::Refused, wait_ms: 5 }, &mut to_near);
        to_far.clear();
        for _ in 0..500 {
            near.send_data(stream, &[0; 128], false, &mut to_far).unwrap();
        }
        assert_eq!(events(&mut far, &to_far), [] as [&str; 0]);
    }

    #[test]
    fn callers_are_told_what_they_did_wrong() {
        let (mut near, mut far) = pair();
        let mut out = Vec::new();
        let (first, second) = (near.open(0, 9).unwrap(), near.open(0, 3).unwrap());
        assert_eq!(near.send_data(second, b"x", false, &mut out), Err(StreamError::State));
        let missing = StreamError::Block(HeaderError::Missing(Known::Service));
        assert_eq!(near.send_headers(second, &[], HeaderFlags::NONE, &mut out), Err(missing));
        near.send_headers(second, &request(), HeaderFlags::END, &mut out).unwrap();
        assert_eq!(near.send_headers(first, &request(), HeaderFlags::END, &mut out), Err(StreamError::OutOfOrder));
        assert_eq!(near.send_headers(second, &request(), HeaderFlags::END, &mut out), Err(StreamError::State));
        assert_eq!(near.send_data(second, b"x", false, &mut out), Err(StreamError::State));
        assert_eq!(near.send_headers(99, &request(), HeaderFlags::END, &mut out), Err(StreamError::Gone));
        let before = out.len();
        near.reset(first, Reset { code: Code::DONE, receipt: Receipt::Unknown, wait_ms: 0 }, &mut out);
        assert_eq!(out.len(), before, "the peer never heard of it");
        events(&mut far, &out);
        let interim_end = far.send_headers(second, &answer(103), HeaderFlags::END, &mut Vec::new());
        assert_eq!(interim_end, Err(StreamError::Flags));
        let misplaced = far.send_headers(second, &answer(200), HeaderFlags::IDEMPOTENT, &mut Vec::new());
        assert_eq!(misplaced, Err(StreamError::Flags));
        near.own_next = VARINT_MAX + 2;
        assert_eq!(near.open(0, 0), Err(OpenError::Exhausted));
    }

    /// [M 8-2]: seen from outside: a payment overtakes what is queued, and downloads share.
    #[test]
    fn a_payment_overtakes_queued_downloads() {
        let (mut near, mut far) = pair();
        let mut to_far = Vec::new();
        let downloads: Vec<StreamId> = (0..10).map(|_| near.open(0, 5).unwrap()).collect();
        let payment = near.open(0, 0).unwrap();
        for stream in downloads.iter().chain([&payment]) {
            near.send_headers(*stream, &request(), HeaderFlags::NONE, &mut to_far).unwrap();
        }
        let mut full = Full(to_far);
        for stream in &downloads {
            assert_eq!(near.send_data(*stream, &[1; 20_000], true, &mut full), Ok(0));
        }
        assert_eq!(near.send_data(payment, b"pay", true, &mut full), Ok(0));
        let mut order = Vec::new();
        near.drain(&mut full.0, |stream, _, bytes| order.push((stream, bytes)));
        assert_eq!(order[0], (payment, 3));
        assert!(order[1..11].iter().zip(&downloads).all(|(moved, stream)| *moved == (*stream, 3072)));
        assert_eq!(order[1..].iter().map(|(_, bytes)| bytes).sum::<usize>(), 200_000);
        let words = events(&mut far, &full.0);
        assert_eq!(words.iter().filter(|word| word.ends_with("true")).count(), 11);
    }

    #[test]
    fn a_better_priority_need_not_queue_behind_a_worse() {
        let (mut near, _) = pair();
        let mut full = Full::default();
        let (download, payment) = (near.open(0, 5).unwrap(), near.open(0, 0).unwrap());
        for stream in [download, payment] {
            near.send_headers(stream, &request(), HeaderFlags::NONE, &mut full).unwrap();
        }
        assert_eq!(near.send_data(download, &[1; 50_000], true, &mut full), Ok(0));
        let mut out = Vec::new();
        assert_eq!(near.send_data(payment, &[2; 20_000], true, &mut out), Ok(16_384), "its share of the round");
        assert_eq!(near.queued(payment), 20_000 - 16_384);
        let mut order = Vec::new();
        near.drain(&mut out, |stream, _, bytes| order.push((stream, bytes)));
        assert_eq!(order[0], (download, 3072), "then whoever has not had its share");
        assert_eq!(order[1], (payment, 20_000 - 16_384));
    }

    #[test]
    fn memory_comes_back() {
        let (mut near, mut far) = pair();
        let mut to_far = Vec::new();
        for _ in 0..100 {
            let stream = near.open(0, 3).unwrap();
            near.send_headers(stream, &request(), HeaderFlags::END, &mut to_far).unwrap();
        }
        assert_eq!(events(&mut far, &to_far).len(), 100);
        let mut to_near = Vec::new();
        let streams: Vec<StreamId> = far.streams().map(|(stream, _)| stream).collect();
        for stream in streams {
            far.send_headers(stream, &answer(200), HeaderFlags::END, &mut to_near).unwrap();
        }
        assert_eq!(events(&mut near, &to_near).len(), 100);
        for connection in [&mut near, &mut far] {
            assert_eq!(connection.streams.slot_count(), 100);
            assert!(connection.is_spacious());
            connection.trim();
            assert_eq!(connection.streams.slot_count(), 0);
            assert!(!connection.is_spacious());
            assert_eq!(connection.open_streams(), 0);
        }
    }
}
