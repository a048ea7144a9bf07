//! Whose turn it is to send: deficit round robin, weighted and ordered by priority (MMTP 8).
//!
//! Owns the lists of streams that have bytes and credit; never touches bytes or credit.
//! In each round every such stream may send as many bytes as its priority weighs, better priorities first. A stream
//! that comes late in a round still has its share of it, at once: a payment waits for the frame under way, not for the
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

#[cfg(test)]
mod tests {
    use super::super::stream::Stream;
    use super::super::window::{ReceiveWindow, SendCredit};
    use super::*;

    fn streams(priorities: &[u8]) -> Streams {
        let mut streams = Streams::new(0);
        for (index, priority) in priorities.iter().enumerate() {
            let id = index as u64 * 2 + 1;
            streams.insert(Stream::new(id, 0, *priority, SendCredit::new(0), ReceiveWindow::new(0)));
        }
        streams
    }

    /// Sends one frame of at most `frame_bytes` for whoever has the turn; everybody always has more. Says who.
    fn turn(turns: &mut Turns, streams: &mut Streams, sent: &mut [usize], frame_bytes: usize) -> u32 {
        let slot = turns.front().unwrap();
        let bytes = turns.share(streams, slot).min(frame_bytes);
        assert!(bytes > 0, "whoever has the turn has a share");
        sent[slot as usize] += bytes;
        turns.spend(streams, slot, bytes);
        if turns.share(streams, slot) == 0 {
            turns.leave(streams, slot);
            turns.enter(streams, slot);
        }
        slot
    }

    /// [M 8-1], [M 8-2]
    #[test]
    fn a_round_gives_each_its_share_and_better_priorities_first() {
        let priorities = [7, 3, 0, 3, 5, 1, 2, 4, 6, 0];
        let mut streams = streams(&priorities);
        let mut turns = Turns::new();
        for slot in 0..priorities.len() as u32 {
            turns.enter(&mut streams, slot);
        }
        let mut sent = [0; 10];
        for round in 1..=50 {
            let mut last_priority = 0;
            while sent
                .iter()
                .zip(priorities)
                .any(|(sent, class)| *sent < round * QUANTUM_BYTES[class as usize] as usize)
            {
                let slot = turn(&mut turns, &mut streams, &mut sent, 1000);
                let priority = priorities[slot as usize];
                assert!(priority >= last_priority, "better priorities come first within a round");
                last_priority = priority;
            }
            for (sent, class) in sent.iter().zip(priorities) {
                assert_eq!(*sent, round * QUANTUM_BYTES[class as usize] as usize);
            }
        }
    }

    /// [M 8-2]
    #[test]
    fn a_late_payment_waits_for_no_round() {
        let mut streams = streams(&[3, 3, 3, 3, 0]);
        let mut turns = Turns::new();
        (0..4).for_each(|slot| turns.enter(&mut streams, slot));
        let mut sent = [0; 5];
        for _ in 0..3 {
            turn(&mut turns, &mut streams, &mut sent, 4096);
        }
        turns.enter(&mut streams, 4);
        assert!(turns.waits_at_or_above(3) && turns.waits_at_or_above(0));
        assert_eq!(turn(&mut turns, &mut streams, &mut sent, 4096), 4);
    }

    /// [M 8-1]: leaving and coming back within a round gives no second share.
    #[test]
    fn coming_back_gives_no_second_share() {
        let mut streams = streams(&[0, 7]);
        let mut turns = Turns::new();
        turns.enter(&mut streams, 0);
        turns.enter(&mut streams, 1);
        let mut sent = [0; 2];
        for _ in 0..16 {
            turn(&mut turns, &mut streams, &mut sent, 1024);
            turns.leave(&mut streams, 0);
            turns.enter(&mut streams, 0);
        }
        assert_eq!(sent, [16 * 1024, 0]);
        assert_eq!(turn(&mut turns, &mut streams, &mut sent, 16_384), 1, "its round's share is used up");
    }

    #[test]
    fn lists_hold_together_whoever_leaves() {
        let mut prng = crate::base::prng::Prng::new(3);
        let mut streams = streams(&[3; 20]);
        let mut turns = Turns::new();
        let mut inside = [false; 20];
        for _ in 0..5000 {
            let slot = prng.below(20) as u32;
            if inside[slot as usize] {
                turns.leave(&mut streams, slot);
            } else {
                turns.enter(&mut streams, slot);
            }
            inside[slot as usize] = !inside[slot as usize];
            let count = inside.iter().filter(|is_inside| **is_inside).count();
            assert_eq!(turns.is_empty(), count == 0);
            assert_eq!(turns.is_single(), count == 1);
            assert_eq!(turns.waits_at_or_above(3), count > 0);
            assert!(!turns.waits_at_or_above(2));
            assert!(turns.front().is_none_or(|slot| inside[slot as usize]));
        }
        for slot in 0..20 {
            turns.leave(&mut streams, slot);
        }
        assert_eq!(turns.front(), None);
    }
}
