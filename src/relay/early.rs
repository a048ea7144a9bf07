//! What arrives before the client's handshake is complete: forwarded at once, held, refused, or sent again (MMTP 2.5).
//!
//! Owns, per client, the list of its held streams and the count of bytes held and kept for it. Never lets anything of a
//! stream that is not replay-safe out before [`Relay::release`], and never lets a client make the POP hold more than
//! [`EARLY_STREAMS_MAX`] such streams and [`EARLY_BYTES_MAX`].
//! Invariant: `EarlySide::held` names every stream of its client that is held, in the order in which they will go;
//! `EarlySide::bytes` is what the held streams and the copies of its client add up to.

use super::stream::{Client, Head, Kept, Stream, Waiting};
use super::{OVERLOADED_WAIT_MS, Party, Relay, forward};
use crate::base::slab::{Key, SideTable, Slab};
use crate::base::time::Time;
use crate::base::wire::{LinkId, Wire};
use crate::mmtp::{Code, Receipt, Reset};

/// Streams of one client that are held at a time; one more is refused. Early data is a first flight: an app that has
/// more to ask for waits for the handshake, and 16 heads are about what 16 KiB of early data hold.
pub const EARLY_STREAMS_MAX: usize = 16;

/// Bytes of header blocks and DATA held and kept for one client: the early data that listeners take by default (16 KiB),
/// as much again for fields that the POP adds and for copies of what was forwarded.
pub const EARLY_BYTES_MAX: usize = 32 * 1024;

/// A request that was forwarded early is kept, to be sent again if its upstream says 425, up to this size.
pub(super) const EARLY_COPY_BYTES_MAX: usize = 16 * 1024;

const _: () = assert!(EARLY_COPY_BYTES_MAX <= EARLY_BYTES_MAX);

/// What a tunnel's early data is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelEarly {
    /// It waits until the client's handshake is complete, which proves that it is no replay.
    Hold,
    /// It is forwarded at once: the service knows what a replay is.
    Allow,
}

/// What a client has that came early. There is one while its handshake is not complete or copies are kept.
#[derive(Debug, Default)]
pub(super) struct EarlySide {
    pub(super) confirmed: bool,
    pub(super) held: Vec<Key>,
    bytes: usize,
    kept: usize,
}

impl EarlySide {
    /// Counts bytes that are to be held. False when they would be too many.
    pub(super) fn charge(&mut self, bytes: usize) -> bool {
        let fits = self.bytes + bytes <= EARLY_BYTES_MAX;
        self.bytes += if fits { bytes } else { 0 };
        fits
    }

    fn is_over(&self) -> bool {
        self.confirmed && self.kept == 0
    }
}

/// What a client has that came early, if anything.
pub(super) type MaybeEarly = Option<Box<EarlySide>>;

/// Whether what a client sends may be a replay.
pub(super) fn is_unconfirmed(early: &MaybeEarly) -> bool {
    early.as_ref().is_some_and(|early| !early.confirmed)
}

/// A copy of a request is kept no longer.
fn drop_kept(side: &mut MaybeEarly, kept: &Kept) {
    let Some(early) = side else { return };
    early.bytes -= kept.bytes();
    early.kept -= 1;
    if early.is_over() {
        *side = None;
    }
}

/// What a stream of early data is told for which there is no room.
pub(super) fn refusal() -> Reset {
    Reset { code: Code::OVERLOADED, receipt: Receipt::Refused, wait_ms: OVERLOADED_WAIT_MS }
}

/// The early side of a stream's MMTP client.
fn side_of(parties: &mut SideTable<Party>, client: Client) -> Option<&mut MaybeEarly> {
    let Client::Stream(link, _) = client else { return None };
    match parties.get_mut(link) {
        Some(Party::Client(client)) => Some(&mut client.early),
        Some(Party::Tunnel(_) | Party::Trunk(_)) | None => None,
    }
}

/// The request will not be sent again: its answer has begun, or it is over.
pub(super) fn forget_kept(parties: &mut SideTable<Party>, stream: &mut Stream) {
    if let Some(kept) = stream.kept.take()
        && let Some(side) = side_of(parties, stream.client)
    {
        drop_kept(side, &kept);
    }
}

/// Counts bytes that join a waiting stream. False when that is held and they are too many.
pub(super) fn may_hold(side: &mut MaybeEarly, unconfirmed: bool, waiting: &Waiting, bytes: usize) -> bool {
    match side {
        Some(early) if waiting.is_held() => early.charge(bytes),
        Some(_) => true,
        // A tunnel has one stream, whose bytes are all it holds.
        None => !unconfirmed || waiting.bytes() + bytes <= EARLY_BYTES_MAX,
    }
}

/// Adds bytes that go out to the copy of their request, or drops the copy when it grows too large.
pub(super) fn keep(side: &mut MaybeEarly, stream: &mut Stream, bytes: &[u8], end: bool) {
    let (Some(kept), Some(early)) = (&mut stream.kept, side.as_mut()) else { return };
    if kept.has_room(bytes.len()) && early.charge(bytes.len()) {
        kept.data.extend_from_slice(bytes);
        kept.ended |= end;
    } else {
        drop_kept(side, kept);
        stream.kept = None;
    }
}

impl Relay {
    /// Holds the stream whose block for the trunk stands in `self.block` until its client's handshake is complete.
    ///
    /// # Errors
    /// What the client is to be told when too much is held for it.
    pub(super) fn hold<W: Wire>(&mut self, wire: &mut W, client: Client, head: Head) -> Result<Key, Reset> {
        let early = side_of(&mut self.parties, client).and_then(Option::as_mut);
        if let Some(early) = &early
            && (early.held.len() >= EARLY_STREAMS_MAX || early.bytes + self.block.len() > EARLY_BYTES_MAX)
        {
            wire.counters().streams_early_refused += 1;
            return Err(refusal());
        }
        let block = std::mem::take(&mut self.block);
        let ended = head.flags.end();
        let waiting = Waiting { head, block, data: Vec::new(), ended, until: None };
        let mut stream = Stream::new(client);
        stream.to_origin_ended = ended;
        let bytes = waiting.bytes();
        stream.waiting = Some(Box::new(waiting));
        let key = self.streams.insert(stream);
        if let Some(early) = early {
            early.bytes += bytes;
            early.held.push(key);
        }
        wire.counters().streams_open += 1;
        wire.counters().streams_held += 1;
        wire.counters().streams_early_held += 1;
        Ok(key)
    }

    /// A request went out early: a copy of it is kept while there is room.
    pub(super) fn keep_request(&mut self, key: Key, block: &[u8], head: Head) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let Some(Some(early)) = side_of(&mut self.parties, stream.client) else { return };
        let block = forward::without_early(block);
        if block.len() > EARLY_COPY_BYTES_MAX || !early.charge(block.len()) {
            return;
        }
        early.kept += 1;
        stream.kept = Some(Box::new(Kept {
            head: Head { early: false, ..head },
            block: block.to_vec(),
            data: Vec::new(),
            ended: head.flags.end(),
            credited_bytes: 0,
        }));
    }

    /// Like [`keep`], for bytes that had waited.
    pub(super) fn keep_data(&mut self, key: Key, bytes: &[u8], end: bool) {
        if let Some(stream) = self.streams.get_mut(key)
            && let Some(side) = side_of(&mut self.parties, stream.client)
        {
            keep(side, stream, bytes, end);
        }
    }

    /// A stream leaves the table: so does what was held of it.
    pub(super) fn forget_early<W: Wire>(&mut self, wire: &mut W, key: Key, stream: &mut Stream) {
        forget_kept(&mut self.parties, stream);
        let Some(waiting) = stream.waiting.as_ref().filter(|waiting| waiting.is_held()) else { return };
        wire.counters().streams_held -= 1;
        if let Some(Some(early)) = side_of(&mut self.parties, stream.client) {
            early.held.retain(|held| *held != key);
            early.bytes -= waiting.bytes();
        }
    }

    /// The client's handshake is complete: what was held goes, in its order, and nothing is early any more.
    pub(super) fn release<W: Wire>(&mut self, now: Time, wire: &mut W, link: LinkId) {
        match self.parties.get_mut(link) {
            Some(Party::Tunnel(key)) => {
                let key = *key;
                if let Some(stream) = self.streams.get_mut(key) {
                    stream.unconfirmed = false;
                }
                self.line_up(now, wire, key);
            }
            Some(Party::Client(side)) => {
                let Some(early) = &mut side.early else { return };
                early.confirmed = true;
                let held = std::mem::take(&mut early.held);
                for (_, tag) in side.connection.streams() {
                    if let Some(key) = self.streams.key_at(tag) {
                        not_early(&mut self.streams, key);
                    }
                }
                let waiting = |key: &Key| self.streams.get(*key)?.waiting.as_ref();
                early.bytes -= held.iter().filter_map(waiting).map(|waiting| waiting.bytes()).sum::<usize>();
                if early.is_over() {
                    side.early = None;
                }
                held.into_iter().for_each(|key| self.line_up(now, wire, key));
            }
            Some(Party::Trunk(_)) | None => return,
        }
        self.place_waiting(now, wire);
    }

    /// Lets a stream that was held wait for a trunk, behind those that do already.
    fn line_up<W: Wire>(&mut self, now: Time, wire: &mut W, key: Key) {
        not_early(&mut self.streams, key);
        let until = now + self.settings.wait_for_trunk;
        let Some(waiting) = self.streams.get_mut(key).and_then(|stream| stream.waiting.as_mut()) else { return };
        if waiting.is_held() {
            waiting.until = Some(until);
            self.waiting.push_back(key);
            wire.counters().streams_held -= 1;
            wire.counters().streams_waiting += 1;
        }
    }

    /// The upstream of a stream wants its request after the handshake (RFC 8470 5.2). Sends it again then, or at once
    /// if the handshake is complete. False when that cannot be: it was not early, or was sent again already, or not all
    /// of it is kept.
    pub(super) fn repeat<W: Wire>(&mut self, now: Time, wire: &mut W, key: Key) -> bool {
        let Some(stream) = self.streams.get_mut(key) else { return false };
        let Some(Some(early)) = side_of(&mut self.parties, stream.client) else { return false };
        if !early.confirmed && early.held.len() >= EARLY_STREAMS_MAX {
            return false;
        }
        let Some(kept) = stream.kept.take() else { return false };
        early.kept -= 1;
        early.held.push(key);
        let is_confirmed = early.confirmed;
        let Kept { head, block, data, ended, credited_bytes } = *kept;
        stream.on_trunk = None;
        stream.repeated = true;
        stream.credited_ahead_bytes = credited_bytes;
        stream.waiting = Some(Box::new(Waiting { head, block, data, ended, until: None }));
        wire.counters().streams_held += 1;
        wire.counters().streams_early_repeated += 1;
        if is_confirmed && let Client::Stream(link, _) = stream.client {
            self.release(now, wire, link);
        }
        true
    }
}

/// What still waits for a trunk when the handshake is complete goes out like anything else.
fn not_early(streams: &mut Slab<Stream>, key: Key) {
    if let Some(waiting) = streams.get_mut(key).and_then(|stream| stream.waiting.as_mut())
        && std::mem::take(&mut waiting.head.early)
    {
        let bytes = forward::without_early(&waiting.block).len();
        waiting.block.truncate(bytes);
    }
}
