//! Whose turn it is to send: deficit round robin, weighted and ordered by priority (MMTP 8).
//!
//! Owns the lists of streams that have bytes and credit; never touches bytes or credit.
//! In each round every such stream may send as many bytes as its priority weighs, better priorities first. A stream that
//! comes late in a round still has its share of it, at once: a payment waits for the frame under way, not for the
//! round of every download. Nobody has more than its share in one round, so nobody starves.
//! Invariant: a stream stands in at most one list, the one its `place` and priority name.

use super::frame::PRIORITY_MAX;
use super::stream::{NONE, Place, Streams};

/// Bytes a stream may send per round, by priority: one full frame for a payment, a sixteenth of it for a prefetch.
const QUANTUM_BYTES: [u32; CLASSES] = [16_384, 12_288, 8192, 6144, 4096, 3072, 2048, 1024];

const CLASSES: usize = PRIORITY_MAX as usize + 1;

/// One set of lists, one list per priority.
#[derive(Clone, Copy, Debug)]
struct Lists {
    heads: [u32; CLASSES],
    tails: [u32; CLASSES],
    /// Bit per list that is not empty.
    filled: u8,
}

impl Lists {
    const EMPTY: Lists = Lists { heads: [NONE; CLASSES], tails: [NONE; CLASSES], filled: 0 };
}

/// The lists of one connection.
#[derive(Debug)]
pub(super) struct Turns {
    sets: [Lists; 2],
    /// The set of those that have some of this round's share left; the other waits for the next round.
    current: u8,
    round: u32,
    len: u32,
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns { sets: [Lists::EMPTY; 2], current: 0, round: 1, len: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a stream of this priority or a better one waits.
    pub(super) fn waits_at_or_above(&self, priority: u8) -> bool {
        let mask = (2u16 << priority) as u8; // bits 0..=priority are those below it
        (self.sets[0].filled | self.sets[1].filled) & mask.wrapping_sub(1) != 0
    }

    /// What a stream may still send in this round.
    pub(super) fn share(&mut self, streams: &mut Streams, slot: u32) -> usize {
        let stream = streams.get_mut(slot);
        if stream.round != self.round {
            stream.round = self.round;
            stream.deficit = QUANTUM_BYTES[usize::from(stream.priority)];
        }
        stream.deficit as usize
    }

    /// Notes that a stream sent, which may be more than its share when nobody else waited.
    pub(super) fn spend(&mut self, streams: &mut Streams, slot: u32, bytes: usize) {
        let stream = streams.get_mut(slot);
        stream.deficit = stream.deficit.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Lines a stream up: for this round while it has a share left, else for the next.
    pub(super) fn enter(&mut self, streams: &mut Streams, slot: u32) {
        if streams.get(slot).place != Place::Out {
            return;
        }
        let set = if self.share(streams, slot) > 0 { self.current } else { 1 - self.current };
        let stream = streams.get_mut(slot);
        stream.place = Place::In(set);
        stream.next = NONE;
        let class = usize::from(stream.priority);
        let lists = &mut self.sets[usize::from(set)];
        let tail = lists.tails[class];
        stream.previous = tail;
        if tail == NONE {
            lists.heads[class] = slot;
            lists.filled |= 1 << class;
        } else {
            streams.get_mut(tail).next = slot;
        }
        lists.tails[class] = slot;
        self.len += 1;
    }

    /// Takes a stream out of its list, if it is in one.
    pub(super) fn leave(&mut self, streams: &mut Streams, slot: u32) {
        let stream = streams.get_mut(slot);
        let Place::In(set) = stream.place else { return };
        stream.place = Place::Out;
        let (next, previous, class) = (stream.next, stream.previous, usize::from(stream.priority));
        let lists = &mut self.sets[usize::from(set)];
        if previous == NONE {
            lists.heads[class] = next;
        } else {
            streams.get_mut(previous).next = next;
        }
        if next == NONE {
            lists.tails[class] = previous;
        } else {
            streams.get_mut(next).previous = previous;
        }
        if lists.heads[class] == NONE {
            lists.filled &= !(1 << class);
        }
        self.len -= 1;
    }

    /// The stream whose turn it is. Starts the next round when this one is over.
    pub(super) fn front(&mut self) -> Option<u32> {
        if self.sets[usize::from(self.current)].filled == 0 {
            if self.sets[usize::from(1 - self.current)].filled == 0 {
                return None;
            }
            self.current = 1 - self.current;
            self.round = self.round.wrapping_add(1);
        }
        let lists = &self.sets[usize::from(self.current)];
        Some(lists.heads[lists.filled.trailing_zeros() as usize])
    }

    /// Whether only one stream waits: it need not share.
    pub(super) fn is_single(&self) -> bool {
        self.len == 1
    }
}
