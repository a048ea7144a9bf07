//! One stream: its states as a transition table (MMTP 5.2), and the table of all streams of a connection.
//!
//! Owns stream slots and finds them by id; never writes frames and never decides turns.
//! Invariant: a slot is free exactly when its id is 0, and the index, if there is one, names every slot that is not free.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};

use super::frame::{StreamId, Tag};
use super::window::{ReceiveWindow, SendCredit};
use crate::base::time::Time;

/// One direction of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Half {
    /// Its final HEADERS have not passed.
    Waiting,
    /// HEADERS have passed; bytes may.
    Open,
    /// Its end is decided and queued behind bytes. Only the direction that we send.
    Ending,
    /// END has passed.
    Ended,
}

/// What passes in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// HEADERS of an interim answer.
    Interim,
    /// Final HEADERS.
    Head,
    /// Final HEADERS with END.
    HeadEnd,
    /// DATA.
    Data,
    /// The user's end, queued behind bytes.
    EndQueued,
    /// DATA with END.
    End,
}

/// A step that the state forbids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Illegal {
    pub(super) half: Half,
    pub(super) step: Step,
}

impl Half {
    #[cfg(test)]
    pub(super) const ALL: [Half; 4] = [Half::Waiting, Half::Open, Half::Ending, Half::Ended];

    /// The transition table (MMTP 5.2).
    pub(super) fn step(self, step: Step) -> Result<Half, Illegal> {
        match (self, step) {
            (Half::Waiting, Step::Interim) => Ok(Half::Waiting),
            (Half::Waiting, Step::Head) => Ok(Half::Open),
            (Half::Waiting, Step::HeadEnd) => Ok(Half::Ended),
            (Half::Open, Step::Data) => Ok(Half::Open),
            (Half::Open, Step::EndQueued) => Ok(Half::Ending),
            (Half::Open | Half::Ending, Step::End) => Ok(Half::Ended),
            (half, step) => Err(Illegal { half, step }),
        }
    }
}

impl Step {
    #[cfg(test)]
    pub(super) const ALL: [Step; 6] =
        [Step::Interim, Step::Head, Step::HeadEnd, Step::Data, Step::EndQueued, Step::End];
}

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// Which list of the turns a stream stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// None: nothing queued, or no credit.
    Out,
    /// The first or the second set of lists.
    In(u8),
}

/// One stream. Kept small: a shared connection holds thousands for a long time.
#[derive(Debug)]
pub(super) struct Stream {
    /// 0 while the slot is free.
    pub(super) id: StreamId,
    /// Bytes accepted and not sent. Holds no memory while empty.
    pub(super) queue: VecDeque<u8>,
    /// When credit was last granted, or the stream began.
    pub(super) granted_at: Time,
    pub(super) receive: ReceiveWindow,
    pub(super) send: SendCredit,
    pub(super) tag: Tag,
    /// Neighbours in the list of its place; `next` links free slots while the slot is free.
    pub(super) next: u32,
    pub(super) previous: u32,
    /// The round in which `deficit` was given.
    pub(super) round: u32,
    /// Bytes it may still send in that round.
    pub(super) deficit: u32,
    /// What we send.
    pub(super) local: Half,
    /// What the peer sends.
    pub(super) remote: Half,
    pub(super) priority: u8,
    /// Interim HEADERS received.
    pub(super) interims: u8,
    pub(super) place: Place,
}

const _: () = assert!(size_of::<Stream>() <= 96, "a stream that queues nothing is small");

impl Stream {
    pub(super) fn new(id: StreamId, tag: Tag, priority: u8, send: SendCredit, receive: ReceiveWindow) -> Stream {
        Stream {
            id,
            queue: VecDeque::new(),
            granted_at: Time::ZERO,
            receive,
            send,
            tag,
            next: NONE,
            previous: NONE,
            round: 0,
            deficit: 0,
            local: Half::Waiting,
            remote: Half::Waiting,
            priority,
            interims: 0,
            place: Place::Out,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.local == Half::Ended && self.remote == Half::Ended
    }
}

/// Spreads stream ids with a secret seed: one multiplication, and a peer that does not know the seed cannot aim.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdHash {
    seed: u64,
}

/// The state of one hash.
#[derive(Debug)]
pub(super) struct IdHasher {
    state: u64,
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher { state: self.seed }
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let wide = u128::from(self.state ^ value) * 0x9e37_79b9_7f4a_7c15_u128;
        self.state = (wide >> 64) as u64 ^ wide as u64;
    }
}

/// Slots that are looked through one by one. From one more on there is an index: most connections are those of clients,
/// who have a stream or two at a time, and hold no memory for one.
const UNINDEXED_SLOTS_MAX: usize = 8;

/// The streams of one connection. Slots are reused, last freed first; order never depends on hashing.
#[derive(Debug)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    /// Some once there were more than [`UNINDEXED_SLOTS_MAX`] slots.
    #[expect(clippy::box_collection, reason = "the table's own bytes count in every connection that has none")]
    index: Option<Box<HashMap<StreamId, u32, IdHash>>>,
    hash: IdHash,
    len: u32,
    free_head: u32,
    /// The slot found last: events come in runs on one stream.
    found: u32,
}

impl Streams {
    pub(super) fn new(seed: u64) -> Streams {
        Streams { slots: Vec::new(), index: None, hash: IdHash { seed }, len: 0, free_head: NONE, found: NONE }
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// The slot of a stream.
    pub(super) fn find(&mut self, id: StreamId) -> Option<u32> {
        if let Some(stream) = self.slots.get(self.found as usize)
            && stream.id == id
            && id != 0
        {
            return Some(self.found);
        }
        let slot = self.look_up(id)?;
        self.found = slot;
        Some(slot)
    }

    fn look_up(&self, id: StreamId) -> Option<u32> {
        match &self.index {
            Some(index) => index.get(&id).copied(),
            None if id == 0 => None,
            None => self.slots.iter().position(|stream| stream.id == id).map(|slot| slot as u32),
        }
    }

    /// Like [`Streams::find`], without remembering.
    pub(super) fn peek(&self, id: StreamId) -> Option<&Stream> {
        self.look_up(id).map(|slot| &self.slots[slot as usize])
    }

    pub(super) fn insert(&mut self, stream: Stream) -> u32 {
        assert_ne!(stream.id, 0, "0 marks a free slot");
        let id = stream.id;
        let slot = if self.free_head == NONE {
            let slot = u32::try_from(self.slots.len()).expect("open streams are limited to less than 2^31");
            if slot == 0 {
                self.slots.reserve_exact(1); // which may be all there will ever be
            }
            self.slots.push(stream);
            slot
        } else {
            let slot = self.free_head;
            let free = &mut self.slots[slot as usize];
            assert_eq!(free.id, 0, "the free list names free slots only");
            self.free_head = free.next;
            *free = stream;
            slot
        };
        self.len += 1;
        self.found = slot;
        let earlier = self.index.as_mut().and_then(|index| index.insert(id, slot));
        assert!(earlier.is_none(), "stream ids never come again");
        if self.index.is_none() && self.slots.len() > UNINDEXED_SLOTS_MAX {
            let mut index = HashMap::with_capacity_and_hasher(self.slots.len() * 2, self.hash);
            let used = self.slots.iter().enumerate().filter(|(_, stream)| stream.id != 0);
            index.extend(used.map(|(slot, stream)| (stream.id, slot as u32)));
            self.index = Some(Box::new(index));
        }
        slot
    }

    /// Frees a slot that stands in no list, and the memory of what it had queued.
    pub(super) fn remove(&mut self, slot: u32) {
        let free_head = self.free_head;
        let stream = self.get_mut(slot);
        assert!(stream.place == Place::Out, "a stream leaves its list before it goes");
        let id = core::mem::take(&mut stream.id);
        stream.queue = VecDeque::new();
        stream.next = free_head;
        self.free_head = slot;
        self.len -= 1;
        if let Some(index) = &mut self.index {
            index.remove(&id).expect("a used slot is in the index");
        }
    }

    pub(super) fn get(&self, slot: u32) -> &Stream {
        &self.slots[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Stream {
        &mut self.slots[slot as usize]
    }

    /// Whether `slot` holds that stream now.
    pub(super) fn is(&self, slot: u32, id: StreamId) -> bool {
        self.slots.get(slot as usize).is_some_and(|stream| stream.id == id)
    }

    /// Slots, free ones included.
    pub(super) fn slot_count(&self) -> u32 {
        self.slots.len() as u32 // `insert` keeps it below 2^32
    }

    /// Slots there is memory for.
    pub(super) fn slot_capacity(&self) -> usize {
        self.slots.capacity()
    }

    /// Streams in slot order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.slots.iter().filter(|stream| stream.id != 0)
    }

    /// Gives memory back when no stream is open.
    pub(super) fn trim(&mut self) {
        if self.len == 0 {
            self.slots = Vec::new();
            self.index = None;
            self.free_head = NONE;
            self.found = NONE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MMTP 5.2, whole: `[M 5.2-1]`.
    #[test]
    fn the_transition_table_is_this_one() {
        let mut table = String::new();
        for half in Half::ALL {
            for step in Step::ALL {
                let to = half.step(step).map_or("error".to_owned(), |to| format!("{to:?}"));
                table += &format!("{half:?} {step:?} {to}\n");
            }
        }
        let expected = "\
Waiting Interim Waiting
Waiting Head Open
Waiting HeadEnd Ended
Waiting Data error
Waiting EndQueued error
Waiting End error
Open Interim error
Open Head error
Open HeadEnd error
Open Data Open
Open EndQueued Ending
Open End Ended
Ending Interim error
Ending Head error
Ending HeadEnd error
Ending Data error
Ending EndQueued error
Ending End Ended
Ended Interim error
Ended Head error
Ended HeadEnd error
Ended Data error
Ended EndQueued error
Ended End error
";
        assert_eq!(table, expected);
    }

    #[test]
    fn slots_are_reused_and_found() {
        let mut streams = Streams::new(7);
        let new = |id| Stream::new(id, 0, 3, SendCredit::new(1), ReceiveWindow::new(1));
        for id in 1..=100 {
            streams.insert(new(id));
        }
        for id in 1..=100 {
            let slot = streams.find(id).unwrap();
            assert_eq!(streams.get(slot).id, id);
            streams.remove(slot);
            assert_eq!(streams.find(id), None);
        }
        assert_eq!(streams.len(), 0);
        assert_eq!(streams.find(0), None);
        for id in 101..=200 {
            streams.insert(new(id));
        }
        assert_eq!(streams.slot_count(), 100);
        for slot in 0..100 {
            streams.remove(slot);
        }
        streams.trim();
        assert_eq!(streams.slot_count(), 0);
    }
}
