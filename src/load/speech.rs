//! What is spoken on one connection: HTTP/1.1 or MMTP. Requests in, answers out.
//!
//! Owns what is known of every request that is under way on a connection. Never enters the kernel and never chooses when
//! a request starts. Invariant: every request that was begun ends as one [`Answer`], or is among [`Speech::take_unread`].

use std::collections::VecDeque;

use super::lane::Lane;
use super::request::Recipe;
use super::tally::Fault;
use crate::base::time::Time;
use crate::base::wire::Sink;
use crate::gateway::http1::{ResponseEvent, ResponseReader};
use crate::mmtp::{self, Agent, Code, CreditPolicy, Event, OpenError, Receipt, Reset, Side, StreamId};

/// Bytes of one request's body that may wait inside the MMTP connection; the rest waits for credit outside.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of an answer that a server may send before any is acknowledged, and what that may grow to: as the client of the
/// terminal library grants them.
const STREAM_CREDIT_BYTES: (u32, u32) = (256 * 1024, 2 * 1024 * 1024);

/// Bytes that may be on their way on one connection.
const CONNECTION_CREDIT_BYTES: u32 = 4 * 1024 * 1024;

/// A request that was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    /// When it was begun, or was meant to be.
    pub(super) at: Time,
    pub(super) priority: u8,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) asked: Asked,
    pub(super) result: Result<(), Fault>,
    /// What the peer said of a stream that it reset.
    pub(super) receipt: Option<Receipt>,
}

/// What arrived.
#[derive(Default)]
pub(super) struct Heard {
    /// Requests that ended.
    pub(super) answers: Vec<Answer>,
    /// The first byte of an answer came.
    pub(super) has_begun: bool,
    /// More requests may be begun than before.
    pub(super) has_room: bool,
}

/// What a connection does after what it said last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Prospect {
    /// It goes on.
    Open,
    /// It takes no more requests: it ends when those under way have.
    Leaving,
}

/// One side of one connection.
pub(super) enum Speech {
    Http(Http),
    Mmtp(Box<Mmtp>),
}

impl Speech {
    /// A connection about to speak what `recipe` asks for. MMTP says HELLO at once.
    pub(super) fn new(recipe: &Recipe, settings: &mmtp::Settings, now: Time, lane: &mut Lane) -> Speech {
        match recipe {
            Recipe::Http { method_is_head, .. } => Speech::Http(Http::new(*method_is_head)),
            Recipe::Mmtp { .. } => {
                let mut connection = mmtp::Connection::new(settings, now);
                connection.start(lane);
                Speech::Mmtp(Box::new(Mmtp {
                    connection,
                    slots: Vec::new(),
                    free: Vec::new(),
                    prospect: Prospect::Open,
                }))
            }
        }
    }

    /// Begins a request. False when the connection cannot take one now.
    pub(super) fn ask(&mut self, recipe: &Recipe, asked: Asked, lane: &mut Lane) -> bool {
        match (self, recipe) {
            (Speech::Http(http), Recipe::Http { bytes, .. }) => {
                if http.prospect == Prospect::Leaving {
                    return false;
                }
                http.unsaid_bytes += bytes.len() as u64;
                http.asked.push_back(asked);
                http.say(bytes, lane);
                true
            }
            (Speech::Mmtp(mmtp), recipe) => mmtp.ask(recipe, asked, lane),
            (Speech::Http(_), Recipe::Mmtp { .. }) => unreachable!("a connection speaks what its recipe says"),
        }
    }

    /// Takes in what arrived. On an error the connection is over, and what is due to the peer has been put.
    pub(super) fn receive(
        &mut self,
        now: Time,
        bytes: &[u8],
        recipe: &Recipe,
        lane: &mut Lane,
        heard: &mut Heard,
    ) -> Result<Prospect, Fault> {
        match self {
            Speech::Http(http) => http.receive(bytes, heard),
            Speech::Mmtp(mmtp) => mmtp.receive(now, bytes, recipe, lane, heard),
        }
    }

    /// The peer will send no more: an answer that lasts until then ends.
    pub(super) fn ended(&mut self, heard: &mut Heard) {
        let Speech::Http(http) = self else { return };
        if let Ok(Some(ResponseEvent::End { .. })) = http.reader.eof() {
            http.answer(heard);
        }
    }

    /// Puts what waits for room in the lane.
    pub(super) fn drain(&mut self, recipe: &Recipe, lane: &mut Lane) {
        match (self, recipe) {
            (Speech::Http(http), Recipe::Http { bytes, .. }) => http.say(bytes, lane),
            (Speech::Mmtp(mmtp), recipe) => mmtp.drain(recipe, lane),
            (Speech::Http(_), Recipe::Mmtp { .. }) => unreachable!("a connection speaks what its recipe says"),
        }
    }

    /// Whether [`Speech::drain`] has something to do.
    pub(super) fn has_queued(&self) -> bool {
        match self {
            Speech::Http(http) => http.unsaid_bytes > 0,
            Speech::Mmtp(mmtp) => mmtp.connection.has_queued(),
        }
    }

    /// Requests under way.
    pub(super) fn under_way(&self) -> usize {
        match self {
            Speech::Http(http) => http.asked.len(),
            Speech::Mmtp(mmtp) => mmtp.slots.len() - mmtp.free.len(),
        }
    }

    /// The server takes what was asked last no more, and said so in time: these may be asked again elsewhere.
    pub(super) fn take_unread(&mut self) -> VecDeque<Asked> {
        match self {
            Speech::Http(http) if http.prospect == Prospect::Leaving => {
                http.unsaid_bytes = 0;
                std::mem::take(&mut http.asked)
            }
            Speech::Http(_) | Speech::Mmtp(_) => VecDeque::new(),
        }
    }

    /// Lets go of what an idle connection does not need.
    pub(super) fn rest(&mut self) {
        match self {
            Speech::Http(http) => http.asked.shrink_to_fit(),
            Speech::Mmtp(mmtp) => mmtp.connection.trim(),
        }
    }
}

/// HTTP/1.1: answers come in the order of requests.
pub(super) struct Http {
    reader: ResponseReader,
    asked: VecDeque<Asked>,
    /// Bytes of requests that were begun and wait for room in the lane.
    unsaid_bytes: u64,
    /// Of the answer that is being read.
    status: u16,
    method_is_head: bool,
    prospect: Prospect,
}

impl Http {
    fn new(method_is_head: bool) -> Http {
        Http {
            reader: ResponseReader::new(method_is_head),
            asked: VecDeque::new(),
            unsaid_bytes: 0,
            status: 0,
            method_is_head,
            prospect: Prospect::Open,
        }
    }

    /// Puts what there is room for. All requests are the same, so what is unsaid ends with a whole one.
    fn say(&mut self, request: &[u8], lane: &mut Lane) {
        let request_bytes = request.len() as u64;
        while self.unsaid_bytes > 0 && lane.room() > 0 {
            // At most a request, so it fits what a slice of it can have.
            let rest_bytes = match self.unsaid_bytes % request_bytes {
                0 => request.len(),
                rest => rest as usize,
            };
            let rest = &request[request.len() - rest_bytes..];
            let part = &rest[..rest_bytes.min(lane.room())];
            lane.put(part);
            self.unsaid_bytes -= part.len() as u64;
        }
    }

    fn receive(&mut self, mut bytes: &[u8], heard: &mut Heard) -> Result<Prospect, Fault> {
        loop {
            if self.asked.is_empty() || self.prospect == Prospect::Leaving {
                return if bytes.is_empty() {
                    Ok(self.prospect)
                } else {
                    Err(Fault::Http("bytes behind the response"))
                };
            }
            match self.reader.receive(&mut bytes) {
                Ok(None) => return Ok(self.prospect),
                Ok(Some(ResponseEvent::Interim { .. } | ResponseEvent::Body(_))) => {}
                Ok(Some(ResponseEvent::Head { status, .. })) => {
                    heard.has_begun = true;
                    self.status = status;
                }
                // With more of it there, the reader cannot know of a pipelined answer behind this one: it is read on.
                Ok(Some(ResponseEvent::End { reusable, .. })) => {
                    if !reusable && bytes.is_empty() {
                        self.prospect = Prospect::Leaving;
                    }
                    self.answer(heard);
                }
                Err(error) => return Err(Fault::Http(error.what())),
            }
        }
    }

    /// The answer to the oldest request is whole.
    fn answer(&mut self, heard: &mut Heard) {
        self.reader = ResponseReader::new(self.method_is_head);
        if let Some(asked) = self.asked.pop_front() {
            heard.answers.push(Answer { asked, result: judge(self.status), receipt: None });
        }
    }
}

fn judge(status: u16) -> Result<(), Fault> {
    if (200..400).contains(&status) { Ok(()) } else { Err(Fault::Status(status)) }
}

/// MMTP: a stream for each request.
pub(super) struct Mmtp {
    connection: mmtp::Connection,
    slots: Vec<Slot>,
    free: Vec<u32>,
    prospect: Prospect,
}

/// A request on its stream. Its tag is its index.
#[derive(Clone, Copy)]
struct Slot {
    asked: Asked,
    stream: StreamId,
    /// Of the answer, once its head has come.
    status: u16,
    /// Bytes of the body that were handed to the connection, and of those, the ones that wait there.
    body_bytes: usize,
    queued_bytes: usize,
    is_used: bool,
}

/// How a load generator introduces itself.
pub(super) fn settings(hash_seed: u64) -> mmtp::Settings {
    let mut settings = mmtp::Settings::new(Side::Initiator, Agent::Terminal);
    (settings.stream_credit, settings.stream_credit_max) = STREAM_CREDIT_BYTES;
    settings.connection_credit = CONNECTION_CREDIT_BYTES;
    settings.credit_policy = CreditPolicy::OnArrival;
    settings.hash_seed = hash_seed;
    settings
}

impl Mmtp {
    fn ask(&mut self, recipe: &Recipe, asked: Asked, lane: &mut Lane) -> bool {
        let Recipe::Mmtp { blocks, flags, .. } = recipe else {
            unreachable!("a connection speaks what its recipe says")
        };
        let index = self.free.last().copied().unwrap_or(self.slots.len() as u32);
        let stream = match self.connection.open(index, asked.priority) {
            Ok(stream) => stream,
            Err(OpenError::Limit) => return false,
            Err(OpenError::GoingAway | OpenError::Exhausted) => {
                self.prospect = Prospect::Leaving;
                return false;
            }
        };
        let block = &blocks[usize::from(asked.priority)];
        let sent = self.connection.send_headers(stream, block, *flags, lane);
        assert!(sent.is_ok(), "a block of the recipe on a stream opened just now is valid");
        let slot = Slot { asked, stream, status: 0, body_bytes: 0, queued_bytes: 0, is_used: true };
        if self.free.pop().is_some() {
            self.slots[index as usize] = slot;
        } else {
            self.slots.push(slot);
        }
        self.feed(index, recipe, lane);
        true
    }

    /// Hands over as much of a request's body as may wait.
    fn feed(&mut self, index: u32, recipe: &Recipe, lane: &mut Lane) {
        let Recipe::Mmtp { body, .. } = recipe else { return };
        let slot = &mut self.slots[index as usize];
        while slot.is_used && slot.body_bytes < body.len() && slot.queued_bytes < QUEUE_BYTES_MAX {
            let part = &body[slot.body_bytes..];
            let part = &part[..part.len().min(QUEUE_BYTES_MAX - slot.queued_bytes)];
            let is_last = slot.body_bytes + part.len() == body.len();
            let Ok(moved) = self.connection.send_data(slot.stream, part, is_last, lane) else {
                return; // the peer has ended the stream; the event that says so has come or will
            };
            slot.body_bytes += part.len();
            slot.queued_bytes += part.len() - moved;
        }
    }

    fn drain(&mut self, recipe: &Recipe, lane: &mut Lane) {
        loop {
            let Mmtp { connection, slots, .. } = self;
            let mut moved_index = None;
            connection.drain(lane, |stream, tag, bytes| {
                if let Some(slot) = slots.get_mut(tag as usize).filter(|slot| slot.is_used && slot.stream == stream) {
                    slot.queued_bytes = slot.queued_bytes.saturating_sub(bytes);
                    moved_index = Some(tag);
                }
            });
            if moved_index.is_none() {
                return;
            }
            let indices = 0..self.slots.len() as u32;
            indices.for_each(|index| self.feed(index, recipe, lane));
            if lane.room() == 0 {
                return;
            }
        }
    }

    fn receive(
        &mut self,
        now: Time,
        mut bytes: &[u8],
        recipe: &Recipe,
        lane: &mut Lane,
        heard: &mut Heard,
    ) -> Result<Prospect, Fault> {
        loop {
            let Mmtp { connection, slots, free, prospect } = self;
            match connection.receive(now, &mut bytes) {
                Ok(None) => break,
                Ok(Some(Event::Established | Event::Credit { .. } | Event::Pong)) => heard.has_room = true,
                Ok(Some(Event::GoAway { .. })) => *prospect = Prospect::Leaving,
                Ok(Some(Event::Headers { stream, tag, block, flags, .. })) => {
                    let Some(slot) = find(slots, tag, stream) else { continue };
                    if !block.is_interim() {
                        heard.has_begun = true;
                        slot.status = block.status().unwrap_or(0);
                    }
                    if flags.end() {
                        close(slot, tag, free, None, heard);
                        give_up_body(slot, recipe, connection, lane);
                    }
                }
                Ok(Some(Event::Data { stream, tag, bytes, end })) => {
                    let count = bytes.len();
                    if let (Some(slot), true) = (find(slots, tag, stream), end) {
                        close(slot, tag, free, None, heard);
                        give_up_body(slot, recipe, connection, lane);
                    } else if count > 0 {
                        connection.consumed(now, stream, count, lane);
                    }
                }
                Ok(Some(Event::Reset { stream, tag, code, receipt, .. })) => {
                    let Some(slot) = find(slots, tag, stream) else { continue };
                    close(slot, tag, free, Some((Fault::Stream(code.0), receipt)), heard);
                }
                Err(error) => {
                    let name = error.name();
                    connection.goaway(error.code(), 0, 0, lane);
                    return Err(Fault::Mmtp(name));
                }
            }
        }
        if self.connection.has_queued() {
            self.drain(recipe, lane);
        }
        Ok(self.prospect)
    }
}

fn find(slots: &mut [Slot], tag: u32, stream: StreamId) -> Option<&mut Slot> {
    slots.get_mut(tag as usize).filter(|slot| slot.is_used && slot.stream == stream)
}

/// What an answered request had still to say is not said.
fn give_up_body(slot: &Slot, recipe: &Recipe, connection: &mut mmtp::Connection, lane: &mut Lane) {
    let Recipe::Mmtp { body, .. } = recipe else { return };
    if slot.body_bytes < body.len() {
        let reset = Reset { code: Code::CANCELLED, receipt: Receipt::Unknown, wait_ms: 0 };
        connection.reset(slot.stream, reset, lane);
    }
}

/// A stream is over from the peer's side.
fn close(slot: &mut Slot, tag: u32, free: &mut Vec<u32>, reset: Option<(Fault, Receipt)>, heard: &mut Heard) {
    slot.is_used = false;
    free.push(tag);
    heard.has_room = true;
    let result = match reset {
        Some((fault, _)) => Err(fault),
        None => judge(slot.status),
    };
    heard.answers.push(Answer { asked: slot.asked, result, receipt: reset.map(|(_, receipt)| receipt) });
}

#[cfg(test)]
mod tests {
    use super::super::mix::Mix;
    use super::super::target::Target;
    use super::*;
    use crate::base::limits::SEND_HIGH_WATER_BYTES;
    use crate::mmtp::{Connection, HeaderFlags, HeaderWriter, Known, Settings};

    const NOW: Time = Time::from_nanos(7);

    fn recipe(url: &str, method: &str, body_bytes: usize) -> Recipe {
        let target = Target::parse(url).expect("valid");
        Recipe::new(&target, method, body_bytes, &Mix::default(), false).expect("valid")
    }

    fn asked(nanos: u64) -> Asked {
        Asked { at: Time::from_nanos(nanos), priority: 3 }
    }

    /// What comes of an answer that arrives in pieces of so many bytes, to so many requests of HTTP.
    fn http(method: &str, requests: u64, answer: &[u8], piece_bytes: usize) -> (Vec<Answer>, Result<Prospect, Fault>) {
        let recipe = recipe("http://a/", method, 0);
        let (mut lane, mut heard) = (Lane::plain(), Heard::default());
        let mut speech = Speech::new(&recipe, &settings(0), NOW, &mut lane);
        assert!((0..requests).all(|at| speech.ask(&recipe, asked(at), &mut lane)));
        let mut result = Ok(Prospect::Open);
        for piece in answer.chunks(piece_bytes) {
            result = speech.receive(NOW, piece, &recipe, &mut lane, &mut heard);
            if result.is_err() {
                break;
            }
        }
        (heard.answers, result)
    }

    #[test]
    fn answers_of_http_end_where_they_say_however_they_are_cut() {
        let lengths = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let empty = b"HTTP/1.1 204 No Content\r\n\r\n";
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
        let all = [&lengths[..], chunks, empty, interim].concat();
        for piece_bytes in [1, 2, 7, 40, all.len()] {
            let (answers, result) = http("GET", 4, &all, piece_bytes);
            assert_eq!(result, Ok(Prospect::Open), "pieces of {piece_bytes}");
            let results: Vec<_> = answers.iter().map(|answer| answer.result).collect();
            assert_eq!(results, [Ok(()), Ok(()), Ok(()), Err(Fault::Status(503))]);
            assert!((0..).zip(&answers).all(|(at, answer)| answer.asked == asked(at)));
        }
        let (answers, result) = http("HEAD", 1, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 100);
        assert_eq!((answers.len(), result), (1, Ok(Prospect::Open)));
    }

    #[test]
    fn what_is_no_answer_of_http_is_a_fault() {
        for (requests, answer, what) in [
            (1, &b"SSH-2.0-x\r\n"[..], "answer is not HTTP/1"),
            (1, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nx", "bytes behind the response"),
            (0, b"HTTP/1.1 200 OK\r\n", "bytes behind the response"),
            (1, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "malformed chunk size"),
            (1, b"HTTP/1.1 101 Switching\r\n\r\n", "status 101 was not asked for"),
        ] {
            assert_eq!(http("GET", requests, answer, 1000).1, Err(Fault::Http(what)));
        }
    }

    #[test]
    fn a_server_that_says_close_leaves_the_rest_to_be_asked_again() {
        let recipe = recipe("http://a/", "GET", 0);
        let (mut lane, mut heard) = (Lane::plain(), Heard::default());
        let mut speech = Speech::new(&recipe, &settings(0), NOW, &mut lane);
        assert!((0..3).all(|at| speech.ask(&recipe, asked(at), &mut lane)));
        let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
        assert_eq!(speech.receive(NOW, answer, &recipe, &mut lane, &mut heard), Ok(Prospect::Leaving));
        assert_eq!((heard.answers.len(), speech.take_unread()), (1, VecDeque::from([asked(1), asked(2)])));
        assert!(!speech.ask(&recipe, asked(9), &mut lane));
        assert_eq!(speech.under_way(), 0);
    }

    #[test]
    fn an_answer_may_last_until_the_server_closes() {
        let recipe = recipe("http://a/", "GET", 0);
        let (mut lane, mut heard) = (Lane::plain(), Heard::default());
        let mut speech = Speech::new(&recipe, &settings(0), NOW, &mut lane);
        assert!(speech.ask(&recipe, asked(1), &mut lane));
        let answer = b"HTTP/1.1 200 OK\r\n\r\nall of this";
        assert_eq!(speech.receive(NOW, answer, &recipe, &mut lane, &mut heard), Ok(Prospect::Open));
        assert!(heard.answers.is_empty() && heard.has_begun);
        speech.ended(&mut heard);
        assert_eq!(heard.answers.iter().map(|answer| answer.result).collect::<Vec<_>>(), [Ok(())]);
    }

    #[test]
    fn bodies_of_http_wait_for_room_whatever_their_size() {
        const BODY_BYTES: usize = 3 * SEND_HIGH_WATER_BYTES + 7;
        let recipe = recipe("http://a/", "POST", BODY_BYTES);
        let Recipe::Http { bytes: request, .. } = &recipe else { panic!("HTTP is spoken") };
        let mut lane = Lane::plain();
        let mut speech = Speech::new(&recipe, &settings(0), NOW, &mut lane);
        assert!((0..3).all(|at| speech.ask(&recipe, asked(at), &mut lane)));
        let mut sent = Vec::new();
        while let Some(bytes) = lane.take() {
            assert!(bytes.len() <= SEND_HIGH_WATER_BYTES, "a lane holds {} bytes", bytes.len());
            sent.extend_from_slice(&bytes);
            speech.drain(&recipe, &mut lane);
            lane.sent(bytes, usize::MAX);
            speech.drain(&recipe, &mut lane);
        }
        assert!(sent == request.repeat(3) && !speech.has_queued());
        assert_eq!(speech.under_way(), 3);
    }

    /// A server of MMTP that answers every request with this status, or resets it without one.
    fn serve(server: &mut Connection, mut input: &[u8], status: Option<u64>, out: &mut Vec<u8>) -> usize {
        let mut asked = Vec::new();
        let mut body_bytes = 0;
        while let Some(event) = server.receive(NOW, &mut input).expect("a right client") {
            match event {
                Event::Headers { stream, flags, .. } if flags.end() => asked.push(stream),
                Event::Data { stream, bytes, end, .. } => {
                    body_bytes += bytes.len();
                    asked.extend(end.then_some(stream));
                    let count = bytes.len();
                    server.consumed(NOW, stream, count, out);
                }
                _ => {}
            }
        }
        for stream in asked {
            let Some(status) = status else {
                let reset = Reset { code: Code::OVERLOADED, receipt: Receipt::Refused, wait_ms: 0 };
                server.reset(stream, reset, out);
                continue;
            };
            let mut block = Vec::new();
            HeaderWriter::new(&mut block).number(Known::Status, status).expect("a status");
            server.send_headers(stream, &block, HeaderFlags::NONE, out).expect("it is open");
            server.send_data(stream, b"answer", true, out).expect("it is open");
        }
        server.drain(out, |_, _, _| ());
        body_bytes
    }

    #[test]
    fn requests_of_mmtp_wait_for_room_and_bodies_for_credit() {
        const BODY_BYTES: usize = 200_000;
        let recipe = recipe("mmtp://a/pay", "POST", BODY_BYTES);
        let (mut lane, mut heard) = (Lane::plain(), Heard::default());
        let mut client = Speech::new(&recipe, &settings(0), NOW, &mut lane);
        let mut server = Connection::new(&Settings::new(Side::Acceptor, Agent::Pop), NOW);
        let mut to_client = Vec::new();
        server.start(&mut to_client);
        // MMTP 2.3: eight streams until the server has spoken.
        let taken = (0..12).filter(|at| client.ask(&recipe, asked(*at), &mut lane)).count();
        assert_eq!((taken, client.under_way()), (8, 8));
        let mut received_bytes = 0;
        for _ in 0..10_000 {
            let to_server = lane.take().unwrap_or_default();
            received_bytes += serve(&mut server, &to_server, Some(200), &mut to_client);
            lane.sent(to_server, usize::MAX);
            let bytes = std::mem::take(&mut to_client);
            client.receive(NOW, &bytes, &recipe, &mut lane, &mut heard).expect("a right server");
            client.drain(&recipe, &mut lane);
        }
        assert_eq!(received_bytes, 8 * BODY_BYTES);
        assert_eq!((heard.answers.len(), heard.has_room, client.under_way()), (8, true, 0));
        assert!(heard.answers.iter().all(|answer| answer.result.is_ok()));
        assert!(client.ask(&recipe, asked(9), &mut lane));
    }

    #[test]
    fn a_reset_is_told_with_its_receipt_and_a_bad_status_as_such() {
        let recipe = recipe("mmtp://a/pay", "GET", 0);
        for (status, result, receipt) in [
            (None, Err(Fault::Stream(Code::OVERLOADED.0)), Some(Receipt::Refused)),
            (Some(404), Err(Fault::Status(404)), None),
            (Some(302), Ok(()), None),
        ] {
            let (mut lane, mut heard) = (Lane::plain(), Heard::default());
            let mut client = Speech::new(&recipe, &settings(0), NOW, &mut lane);
            let mut server = Connection::new(&Settings::new(Side::Acceptor, Agent::Pop), NOW);
            let mut to_client = Vec::new();
            server.start(&mut to_client);
            assert!(client.ask(&recipe, asked(1), &mut lane));
            serve(&mut server, &lane.take().expect("a request"), status, &mut to_client);
            client.receive(NOW, &to_client, &recipe, &mut lane, &mut heard).expect("a right server");
            assert_eq!(heard.answers, [Answer { asked: asked(1), result, receipt }]);
        }
    }

    #[test]
    fn what_is_no_mmtp_ends_the_connection_with_its_reason() {
        let recipe = recipe("mmtp://a/pay", "GET", 0);
        let (mut lane, mut heard) = (Lane::plain(), Heard::default());
        let mut client = Speech::new(&recipe, &settings(0), NOW, &mut lane);
        let hello = lane.take().expect("HELLO goes first");
        assert_eq!(lane.sent(hello, usize::MAX), None);
        let result = client.receive(NOW, b"HTTP/1.1 400 Bad\r\n\r\n", &recipe, &mut lane, &mut heard);
        assert!(matches!(result, Err(Fault::Mmtp(_))), "{result:?}");
        assert!(lane.has_pending(), "GOAWAY says why");
    }
}
