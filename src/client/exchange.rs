//! Carries calls over the streams of one connection: requests into it, answers out of it. Owns the order of those
//! steps; never waits and never opens or closes connections.
//!
//! Invariant: a stream's credit is given back only for what the app has read, so a call that nobody reads holds at most
//! the credit it was granted.

use std::time::Duration;

use crate::base::slab::Key;
use crate::base::wire::Sink;
use crate::mmtp::{
    self, Code, Event, HeaderBlock, HeaderFlags, Known, Name, Receipt as WireReceipt, Reset, StreamId, Tag,
};

use super::call::WRITE_BUFFER_BYTES;
use super::entry::{Calls, Place, Sent};
use super::error::{Failure, Receipt};
use super::link::Session;
use super::message::{Fields, Head};

/// Bytes of one call that may be queued inside the connection; the rest waits with the call, where the app feels it.
const QUEUE_BYTES: usize = 64 * 1024;

const _: () = assert!(QUEUE_BYTES <= WRITE_BUFFER_BYTES);

/// A GOAWAY that arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct GoingAway {
    pub(super) code: u64,
    /// How long to stay away.
    pub(super) wait: Duration,
    /// Up to how much longer, at random.
    pub(super) jitter: Duration,
}

/// What arrived that concerns more than one call.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) goaway: Option<GoingAway>,
    /// Calls that the server says it has not taken.
    pub(super) not_taken: Vec<Key>,
    /// Calls that were sent as early data, and are wanted again after the handshake.
    pub(super) too_early: Vec<Key>,
}

/// Takes in what arrived. On an error, GOAWAY with its reason has been put behind what is to be sent.
pub(super) fn receive(
    session: &mut Session,
    plaintext: &[u8],
    calls: &mut Calls<'_>,
    news: &mut News,
) -> Result<(), Failure> {
    let Some(mmtp) = &mut session.mmtp else { return Ok(()) };
    let mut input = plaintext;
    loop {
        match mmtp.receive(calls.now, &mut input) {
            Ok(None) => return Ok(()),
            Ok(Some(Event::Established)) => session.is_established = true,
            Ok(Some(Event::GoAway { last_stream, code, wait_ms, jitter_ms, .. })) => {
                session.is_leaving = true;
                let milliseconds = |count: u32| Duration::from_millis(u64::from(count));
                let (wait, jitter) = (milliseconds(wait_ms), milliseconds(jitter_ms));
                news.goaway = Some(GoingAway { code: u64::from(code.0), wait, jitter });
                session.taken_last = last_stream;
            }
            Ok(Some(Event::Reset { stream, tag, .. })) if stream > session.taken_last => {
                news.not_taken.extend(calls.key_of(tag, stream)); // MMTP 4.7: begun again elsewhere
            }
            Ok(Some(Event::Reset { stream, tag, code: Code::TOO_EARLY, .. })) if calls.is_early(tag, stream) => {
                news.too_early.extend(calls.key_of(tag, stream));
            }
            Ok(Some(event)) => take(event, calls),
            Err(error) => {
                mmtp.goaway(error.code(), 0, 0, &mut session.out);
                return Err(Failure::Protocol(error.name().to_owned()));
            }
        }
    }
}

/// Takes in what arrived for one call.
fn take(event: Event<'_>, calls: &mut Calls<'_>) {
    match event {
        Event::Headers { block, .. } if block.is_interim() => {}
        Event::Headers { stream, tag, block, flags, .. } => {
            let now = calls.now;
            let Some((shared, sent)) = calls.on_stream(tag, stream) else { return };
            sent.has_head = true;
            shared.put_head(now, head_of(&block));
            if flags.end() {
                answered(tag, stream, calls);
            }
        }
        Event::Data { stream, tag, bytes, end } => {
            let Some((shared, _)) = calls.on_stream(tag, stream) else { return };
            shared.put_bytes(bytes);
            if end {
                answered(tag, stream, calls);
            }
        }
        Event::Reset { stream, tag, code, receipt, wait_ms } => {
            let Some(key) = calls.key_of(tag, stream) else { return };
            let receipt = match receipt {
                WireReceipt::NotForwarded => Receipt::NotForwarded,
                WireReceipt::Unknown => Receipt::Unknown,
                WireReceipt::Refused => Receipt::Refused { wait: Duration::from_millis(u64::from(wait_ms)) },
            };
            calls.fail(key, Failure::Reset { code: u64::from(code.0), name: code.name() }, receipt);
        }
        // Credit moves what is queued: `send` comes next in any case. PONG is the connection's own affair.
        Event::Credit { .. } | Event::Pong => {}
        Event::Established | Event::GoAway { .. } => unreachable!("taken by the caller"),
    }
}

/// The answer of a call is whole.
fn answered(tag: Tag, stream: StreamId, calls: &mut Calls<'_>) {
    let now = calls.now;
    let Some((shared, sent)) = calls.on_stream(tag, stream) else { return };
    sent.is_answered = true;
    shared.put_end(now, sent.is_over());
    if sent.is_over()
        && let Some(key) = calls.key_of(tag, stream)
    {
        calls.book.remove(key);
    }
}

fn head_of(block: &HeaderBlock<'_>) -> Head {
    let mut fields = Fields::default();
    for field in block.fields() {
        match field.name {
            Name::Known(Known::ContentLength) => {
                let length = field.number().unwrap_or(0);
                fields.push("content-length".to_owned(), length.to_string().into_bytes());
            }
            Name::Known(known) => {
                if let Some(name) = known.http_name() {
                    fields.push(name.to_owned(), field.value.to_vec());
                }
            }
            Name::Ignorable(_) => {}
            Name::Spelled(name) => fields.push(String::from_utf8_lossy(name).into_owned(), field.value.to_vec()),
        }
    }
    Head { status: block.status().unwrap_or(0), fields }
}

/// Opens a stream for a call and sends its HEADERS.
pub(super) fn open(session: &mut Session, key: Key, calls: &mut Calls<'_>) -> Result<(), mmtp::OpenError> {
    let Some(mmtp) = &mut session.mmtp else { return Err(mmtp::OpenError::Limit) };
    let Some(entry) = calls.book.get(key) else { return Ok(()) };
    let prepared = &entry.shared.prepared;
    let stream = mmtp.open(key.index, prepared.priority)?;
    let headers_at = session.out.position();
    let result = mmtp.send_headers(stream, &prepared.block, prepared.flags, &mut session.out);
    assert!(result.is_ok(), "a prepared block on a stream opened just now is valid");
    let is_handed_over = prepared.flags.contains(HeaderFlags::END);
    let sent = Sent {
        link: calls.link,
        stream,
        is_early: !session.is_secured,
        headers_at,
        has_head: false,
        is_answered: false,
        is_handed_over,
        queued_bytes: 0,
    };
    if let Some(place) = calls.book.place_mut(key) {
        *place = Place::Sent(sent);
    }
    session.busy_at = calls.now;
    pump(session, key, calls);
    Ok(())
}

/// Does what the app of a call has asked for since the last look: cancel, grant, send.
pub(super) fn pump(session: &mut Session, key: Key, calls: &mut Calls<'_>) {
    let now = calls.now;
    let Some(mmtp) = &mut session.mmtp else { return };
    let Some((shared, sent)) = calls.sent(key) else { return };
    let mut state = shared.look();
    if state.is_cancelled {
        drop(state);
        let reset = Reset { code: Code::CANCELLED, receipt: WireReceipt::Unknown, wait_ms: 0 };
        mmtp.reset(sent.stream, reset, &mut session.out);
        calls.book.remove(key); // its app knows: it has failed the call itself
        return;
    }
    let read_bytes = std::mem::take(&mut state.read_unreported);
    if read_bytes > 0 && !sent.is_answered {
        mmtp.consumed(now, sent.stream, read_bytes, &mut session.out);
    }
    let mut has_moved = false;
    while !sent.is_handed_over && sent.queued_bytes < QUEUE_BYTES {
        let pending = state.outgoing.pending();
        let count = pending.len().min(QUEUE_BYTES - sent.queued_bytes);
        let is_last = state.outgoing.ended && count == pending.len();
        if count == 0 && !is_last {
            break;
        }
        let Ok(moved) = mmtp.send_data(sent.stream, &pending[..count], is_last, &mut session.out) else {
            break; // the peer has reset the stream; the event that says so ends the call
        };
        sent.queued_bytes += count - moved;
        sent.is_handed_over = is_last;
        state.outgoing.take(count);
        state.report.sent_bytes += moved as u64;
        has_moved = true;
    }
    drop(state);
    if has_moved {
        shared.room();
    }
    calls.close_if_over(key);
}

/// Looks at every call whose app has done something.
pub(super) fn look(session: &mut Session, calls: &mut Calls<'_>) {
    let mut touched = std::mem::take(&mut session.touched);
    for key in touched.drain(..) {
        pump(session, key, calls);
    }
    session.touched = touched;
}

/// Looks at every touched call, lets queued streams take their turns, and writes, until nothing moves.
pub(super) fn send(session: &mut Session, calls: &mut Calls<'_>) -> Result<(), Failure> {
    loop {
        look(session, calls);
        let mut touched = std::mem::take(&mut session.touched);
        if let Some(mmtp) = &mut session.mmtp {
            mmtp.drain(&mut session.out, |stream, tag, bytes| {
                if let Some(key) = calls.key_of(tag, stream) {
                    touched.push(key);
                    moved(key, bytes, calls);
                }
            });
        }
        let is_idle = touched.is_empty();
        session.touched = touched;
        session.flush()?;
        if is_idle || !session.is_writable {
            return Ok(());
        }
    }
}

/// Bytes of a call have left the connection's queue.
fn moved(key: Key, bytes: usize, calls: &mut Calls<'_>) {
    if let Some((shared, sent)) = calls.sent(key) {
        sent.queued_bytes = sent.queued_bytes.saturating_sub(bytes);
        shared.lock().report.sent_bytes += bytes as u64;
    }
}
