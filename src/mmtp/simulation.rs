//! Two connections against each other under a seed: random splits, sizes, resets, stalls and full sinks.
//!
//! Each end has a user that keeps its own books. What must hold whatever happens: no byte is lost, duplicated or
//! reordered on a stream that nobody reset; neither end ever catches the other breaking a rule, so credit and limits
//! are never exceeded; events carry the tag their stream was given; and once every stream has ended nothing is left,
//! neither slots nor queued bytes nor credit.

use core::time::Duration;
use std::collections::BTreeMap;

use super::conn::{Connection, Event, Reset};
use super::error::{Code, Receipt};
use super::frame::{HeaderFlags, StreamId, Tag};
use super::header::{HeaderWriter, Known};
use super::hello::{Agent, CreditPolicy, Settings, Side};
use crate::base::prng::Prng;
use crate::base::time::Time;
use crate::base::wire::Sink;

/// What one end put and the other has not received.
#[derive(Default)]
struct Pipe {
    bytes: Vec<u8>,
    taken: usize,
    room: usize,
    put: u64,
    /// Of all bytes ever put, in order.
    digest: u64,
}

impl Sink for Pipe {
    fn room(&self) -> usize {
        self.room
    }

    fn put(&mut self, bytes: &[u8]) {
        self.room = self.room.saturating_sub(bytes.len());
        self.put += bytes.len() as u64;
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn position(&self) -> u64 {
        self.put
    }
}

/// What a user knows of one stream.
#[derive(Clone, Debug, Default)]
struct Book {
    tag: Tag,
    sent_head: bool,
    sent: u64,
    sent_end: bool,
    got_head: bool,
    got: u64,
    got_end: bool,
    held: usize,
    was_reset: bool,
}

impl Book {
    fn is_over(&self) -> bool {
        self.was_reset || (self.sent_end && self.got_end)
    }
}

struct End {
    connection: Connection,
    to_peer: Pipe,
    books: BTreeMap<StreamId, Book>,
    tags: Tag,
    /// Consumes nothing while it stalls.
    stalls: bool,
    moved: u64,
    queued: u64,
}

/// The byte at a place of a stream: different for every stream, direction and place.
fn byte_at(stream: StreamId, from: Side, place: u64) -> u8 {
    let direction = u64::from(from == Side::Acceptor);
    (stream.wrapping_mul(31) ^ direction.wrapping_mul(0x5b) ^ place ^ (place >> 8).wrapping_mul(7)) as u8
}

fn block(write: impl FnOnce(&mut HeaderWriter<'_>)) -> Vec<u8> {
    let mut block = Vec::new();
    write(&mut HeaderWriter::new(&mut block));
    block
}

fn answer(status: u64) -> Vec<u8> {
    block(|writer| {
        writer.number(Known::Status, status).unwrap().spelled(b"x-a", b"b").unwrap();
    })
}

impl End {
    fn new(settings: &Settings) -> End {
        End {
            connection: Connection::new(settings, Time::ZERO),
            to_peer: Pipe { room: usize::MAX, ..Pipe::default() },
            books: BTreeMap::new(),
            tags: 0,
            stalls: false,
            moved: 0,
            queued: 0,
        }
    }

    fn side(&self) -> Side {
        if self.connection.is_own(1) { Side::Initiator } else { Side::Acceptor }
    }

    /// A stream that is not over, for something to happen on.
    fn pick(&self, prng: &mut Prng) -> Option<StreamId> {
        let open: Vec<StreamId> = self.books.iter().filter(|(_, book)| !book.is_over()).map(|(id, _)| *id).collect();
        (!open.is_empty()).then(|| open[prng.below(open.len() as u64) as usize])
    }

    fn open(&mut self, prng: &mut Prng) {
        let priority = prng.below(8);
        self.tags += 1;
        let Ok(stream) = self.connection.open(self.tags, priority as u8) else { return };
        let end = prng.chance(4);
        let mut flags = if end { HeaderFlags::END } else { HeaderFlags::NONE };
        if prng.chance(2) {
            flags = flags | HeaderFlags::IDEMPOTENT;
        }
        let block = block(|writer| {
            writer.known(Known::Service, b"pay").unwrap().number(Known::Priority, priority).unwrap();
        });
        self.connection.send_headers(stream, &block, flags, &mut self.to_peer).unwrap();
        self.books.insert(stream, Book { tag: self.tags, sent_head: true, sent_end: end, ..Book::default() });
    }

    fn send(&mut self, prng: &mut Prng, stream: StreamId, end: bool) {
        let side = self.side();
        let book = self.books.get_mut(&stream).unwrap();
        if !book.sent_head {
            if prng.chance(4) {
                let _ = self.connection.send_headers(stream, &answer(103), HeaderFlags::NONE, &mut self.to_peer);
                return;
            }
            book.sent_head = true;
            book.sent_end = prng.chance(8);
            let flags = if book.sent_end { HeaderFlags::END } else { HeaderFlags::NONE };
            self.connection.send_headers(stream, &answer(200), flags, &mut self.to_peer).unwrap();
            return;
        }
        if book.sent_end {
            return;
        }
        let length = match prng.below(4) {
            0 => 0,
            1 => prng.below(100),
            2 => prng.below(5_000),
            _ => prng.below(60_000),
        };
        let bytes: Vec<u8> = (book.sent..book.sent + length).map(|place| byte_at(stream, side, place)).collect();
        let now = self.connection.send_data(stream, &bytes, end, &mut self.to_peer).unwrap();
        book.sent += length;
        book.sent_end = end;
        self.moved += now as u64;
        self.queued += length;
    }

    fn consume(&mut self, now: Time, prng: &mut Prng, stream: StreamId, all: bool) {
        let book = self.books.get_mut(&stream).unwrap();
        let bytes = if all { book.held } else { prng.below(book.held as u64 + 1) as usize };
        book.held -= bytes;
        self.connection.consumed(now, stream, bytes, &mut self.to_peer);
    }

    fn reset(&mut self, stream: StreamId) {
        let reset = Reset { code: Code::CANCELLED, receipt: Receipt::Unknown, wait_ms: 0 };
        self.queued -= self.connection.queued(stream) as u64;
        self.connection.reset(stream, reset, &mut self.to_peer);
        self.books.get_mut(&stream).unwrap().was_reset = true;
    }

    fn drain(&mut self, room: usize) {
        self.to_peer.room = room;
        let (books, moved) = (&self.books, &mut self.moved);
        self.connection.drain(&mut self.to_peer, |stream, tag, bytes| {
            assert_eq!(books[&stream].tag, tag);
            assert!(bytes > 0);
            *moved += bytes as u64;
        });
        self.to_peer.room = usize::MAX;
    }

    fn receive(&mut self, now: Time, mut input: &[u8]) {
        let from = if self.side() == Side::Initiator { Side::Acceptor } else { Side::Initiator };
        loop {
            let queued_before = self.connection.queued_bytes() as u64;
            let (retag, lost) = match self.connection.receive(now, &mut input).expect("nobody breaks a rule") {
                None => break,
                Some(event) => note(&mut self.books, &mut self.tags, from, event),
            };
            if let Some((stream, tag)) = retag {
                self.connection.set_tag(stream, tag);
            }
            if lost {
                self.queued -= queued_before - self.connection.queued_bytes() as u64;
            }
        }
        assert!(input.is_empty());
    }

    fn check(&self) {
        let sum: usize = self.connection.streams().map(|(stream, _)| self.connection.queued(stream)).sum();
        assert_eq!(self.connection.queued_bytes(), sum);
        assert_eq!(self.queued - self.moved, sum as u64, "what was accepted went out or is queued");
        assert!(self.connection.has_queued() || sum == 0);
        self.connection.check_books();
    }
}

/// Enters an event in the books. Returns the tag to give to a new stream, and whether a stream was lost.
fn note(
    books: &mut BTreeMap<StreamId, Book>,
    tags: &mut Tag,
    from: Side,
    event: Event<'_>,
) -> (Option<(StreamId, Tag)>, bool) {
    match event {
        Event::Headers { stream, opened: true, flags, .. } => {
            *tags += 1;
            let book = Book { tag: *tags, got_head: true, got_end: flags.end(), ..Book::default() };
            assert!(books.insert(stream, book).is_none(), "a stream opens once");
            return (Some((stream, *tags)), false);
        }
        Event::Headers { stream, tag, opened: false, flags, block } => {
            let book = books.get_mut(&stream).unwrap();
            assert_eq!((book.tag, book.got_head, book.was_reset), (tag, false, false));
            book.got_head = !block.is_interim();
            book.got_end = flags.end();
        }
        Event::Data { stream, tag, bytes, end } => {
            let book = books.get_mut(&stream).unwrap();
            assert_eq!((book.tag, book.got_head, book.got_end, book.was_reset), (tag, true, false, false));
            assert!(end || !bytes.is_empty());
            for byte in bytes {
                assert_eq!(*byte, byte_at(stream, from, book.got), "stream {stream} at {}", book.got);
                book.got += 1;
            }
            book.held += bytes.len();
            book.got_end = end;
        }
        Event::Reset { stream, tag, code, .. } => {
            assert_eq!(code, Code::CANCELLED, "nobody breaks a rule");
            let book = books.get_mut(&stream).unwrap();
            assert_eq!((book.tag, book.was_reset), (tag, false));
            book.was_reset = true;
            return (None, true);
        }
        Event::Credit { stream, tag } => {
            assert!(stream == 0 || books[&stream].tag == tag);
        }
        Event::Established | Event::Pong => {}
        Event::GoAway { .. } => panic!("nobody goes away"),
    }
    (None, false)
}

struct World {
    prng: Prng,
    now: Time,
    ends: [End; 2],
    resets: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut prng = Prng::new(seed);
        let mut settings = [Settings::new(Side::Initiator, Agent::Pop), Settings::new(Side::Acceptor, Agent::Gateway)];
        for settings in &mut settings {
            settings.streams_max = prng.below(20) as u32;
            settings.stream_credit = 16_384 + prng.below(100_000) as u32;
            settings.stream_credit_max = 16_384 << prng.below(6);
            settings.connection_credit = 65_536 + prng.below(200_000) as u32;
            settings.credit_policy = if prng.chance(2) { CreditPolicy::OnArrival } else { CreditPolicy::OnConsumption };
            settings.churn_burst = u32::MAX;
            settings.hash_seed = seed;
        }
        let mut ends = [End::new(&settings[0]), End::new(&settings[1])];
        for end in &mut ends {
            end.connection.start(&mut end.to_peer);
        }
        let resets = prng.chance(2);
        World { prng, now: Time::ZERO, ends, resets }
    }

    /// Something happens at a random end.
    fn step(&mut self) {
        let at = self.prng.below(2) as usize;
        let (prng, now) = (&mut self.prng, self.now);
        let end = &mut self.ends[at];
        let stream = end.pick(prng);
        match (prng.below(12), stream) {
            (0, _) => end.open(prng),
            (1..=3, Some(stream)) => {
                let is_last = prng.chance(6);
                end.send(prng, stream, is_last);
            }
            (4..=5, Some(stream)) if !end.stalls => end.consume(now, prng, stream, false),
            (6, Some(stream)) if self.resets && prng.chance(8) => end.reset(stream),
            (7, _) => end.connection.ping(now, &mut end.to_peer),
            (8, _) => end.stalls = prng.chance(3),
            (9, _) => {
                let room = prng.below(40_000) as usize;
                end.drain(room);
            }
            _ => self.carry(at),
        }
        self.now = self.now + Duration::from_micros(self.prng.below(2_000));
        self.ends[at].check();
    }

    /// Some of what one end put arrives at the other.
    fn carry(&mut self, from: usize) {
        let waiting = self.ends[from].to_peer.bytes.len() - self.ends[from].to_peer.taken;
        let most = if self.prng.chance(3) { 8 } else { 50_000 };
        let length = self.prng.below(most.min(waiting as u64) + 1) as usize;
        self.carry_bytes(from, length);
    }

    fn carry_bytes(&mut self, from: usize, length: usize) {
        let [first, second] = &mut self.ends;
        let (sender, receiver) = if from == 0 { (first, second) } else { (second, first) };
        let pipe = &mut sender.to_peer;
        receiver.receive(self.now, &pipe.bytes[pipe.taken..pipe.taken + length]);
        pipe.taken += length;
        if pipe.taken == pipe.bytes.len() {
            pipe.bytes.clear();
            pipe.taken = 0;
        }
    }

    /// Lets everything come to its end.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut is_quiet = true;
            for at in 0..2 {
                let end = &mut self.ends[at];
                let open: Vec<StreamId> = end.books.keys().copied().collect();
                for stream in open {
                    if !end.books[&stream].is_over() {
                        end.send(&mut self.prng, stream, true);
                        is_quiet = false;
                    }
                    end.consume(self.now, &mut self.prng, stream, true);
                }
                if end.connection.has_queued() {
                    end.drain(20_000); // nobody drains who is told that there is nothing to drain
                }
                end.check();
                let waiting = end.to_peer.bytes.len() - end.to_peer.taken;
                is_quiet &= waiting == 0;
                self.carry_bytes(at, waiting);
            }
            self.now = self.now + Duration::from_millis(1);
            if is_quiet {
                return;
            }
        }
        panic!("the streams do not come to their end");
    }

    /// Everything has ended: nothing is left, and nothing went missing.
    fn check_end(&self) {
        let [near, far] = &self.ends;
        for (stream, mine) in &near.books {
            let theirs = &far.books.get(stream).cloned().unwrap_or_default();
            if !mine.was_reset && !theirs.was_reset {
                assert_eq!((mine.sent, theirs.sent), (theirs.got, mine.got), "stream {stream}");
            }
            assert!(theirs.got <= mine.sent && mine.got <= theirs.sent);
        }
        for end in &self.ends {
            assert_eq!(end.connection.open_streams(), 0);
            assert_eq!(end.connection.queued_bytes(), 0);
            assert!(!end.connection.has_queued());
            end.connection.check_idle();
        }
    }
}

fn run(seed: u64, steps: usize) -> [u64; 2] {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
    }
    world.settle();
    world.check_end();
    world.ends.each_ref().map(|end| end.to_peer.digest)
}

#[test]
fn two_ends_agree_whatever_happens() {
    for seed in 0..120 {
        let outcome = std::panic::catch_unwind(|| run(seed, 600));
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

#[test]
fn long_lives_leave_nothing_behind() {
    for seed in 1_000..1_003 {
        let outcome = std::panic::catch_unwind(|| run(seed, 12_000));
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

#[test]
fn a_seed_is_one_history() {
    for seed in 2_000..2_010 {
        assert_eq!(run(seed, 400), run(seed, 400), "seed {seed}");
    }
}
