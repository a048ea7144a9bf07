//! The process's tickets: shards with a lock each, of fixed size, every ticket given out once.
//!
//! Owns ids and values; never holds a lock across anything but its own few steps, and takes one per handshake, never per
//! record. Memory is fixed by the capacity ([`ENTRY_BYTES_MAX`] for each entry) and touched when first needed.
//!
//! Half of the places belong to *newcomers*, tickets of full handshakes, which anyone can have; half to *returners*,
//! tickets that were issued on a ticket. Neither takes the other's place, so a flood of full handshakes competes with
//! newcomers only. Among them the victim is drawn by lot: after a flood as large as the newcomers' part, 37 in 100 of
//! the tickets from before it are still there (e^-1), after three times that 5 in 100. The oldest first would
//! leave none, and the newest first would leave nobody who comes during the flood.
//!
//! A used ticket stays as a *tombstone*, without its value, so that a second use is told from a forgery; tombstones are
//! the first to go. A ticket that a server kept and gave out gets one, too ([`Store::spend`]), so that it works once in
//! this process even if the server gives it out again. Invariant: what is not live holds no value.

use std::hash::Hasher;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use zeroize::{Zeroize, Zeroizing};

use super::index::Index;
use super::{Binding, Origin, TicketId, keyed_hasher};
use crate::base::prng::Prng;
use crate::base::time::Time;

/// Longest value in bytes. TLS 1.3 needs 83 and the server's name, with an application protocol of 10: names up to 109.
/// A client's certificate does not fit; who shows one makes full handshakes, or carries on with a server's store.
pub const VALUE_BYTES_MAX: usize = 192;

/// Memory of one entry in bytes: its slot, and its cells in the index.
pub const ENTRY_BYTES_MAX: usize = 256 + 32;

/// Most entries: 4.5 GiB. More belong in a server.
pub const CAPACITY_MAX: usize = 1 << 24;

/// Locks. Two workers meet at one with a chance of 1 in 64, and then for less than a microsecond.
const SHARDS_MAX: usize = 64;

/// A small store has fewer shards, so that chance does not fill one long before the others.
const SHARD_ENTRIES_MIN: usize = 32;

/// Slots each call looks at for expired entries, beside its own work.
const TIDY_SLOTS_PER_CALL: usize = 2;

/// Calls of [`Store::tidy`] that see the whole store once.
const TIDY_CALLS: usize = 1024;

const _: () = assert!(size_of::<Slot>() == 256);
const _: () = assert!(VALUE_BYTES_MAX <= u8::MAX as usize);

/// What became of a ticket handed to [`Store::put`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// It is kept.
    Kept,
    /// It is kept, and one of the same [`Origin`] that could still have been used was dropped for it.
    Evicting,
    /// Not kept: longer than [`VALUE_BYTES_MAX`].
    TooLong,
    /// Not kept: the store has no place for any, or knows this id already, which never becomes good a second time.
    Refused,
}

/// Why [`Store::take`] has nothing to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Miss {
    /// No such id: never issued here, evicted, or forged.
    Unknown,
    /// It was taken before.
    Used,
    /// Its lifetime is over.
    Expired,
    /// It is for another realm or name. It is spent now.
    OtherName,
}

/// A ticket's value, cleared when dropped.
#[derive(Clone)]
pub struct Value {
    bytes: Zeroizing<[u8; VALUE_BYTES_MAX]>,
    len: u8,
}

impl Value {
    /// A copy of these bytes; `None` when they are more than [`VALUE_BYTES_MAX`].
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Value> {
        let mut value = Value { bytes: Zeroizing::new([0; VALUE_BYTES_MAX]), len: u8::try_from(bytes.len()).ok()? };
        value.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(value)
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Value {
    /// Says the length alone: the bytes hold a secret.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Value({} bytes)", self.len)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Live,
    /// Tombstones: the id stays, for the reason of a miss, until the place is needed.
    Used,
    Expired,
}

/// One ticket. Four lines of cache.
struct Slot {
    id: TicketId,
    binding: Binding,
    expires: Time,
    /// The tombstone after this one in age; `NONE` when it is the newest, or no tombstone.
    next: u32,
    state: State,
    len: u8,
    /// Zeros unless the state is `Live`.
    value: Zeroizing<[u8; VALUE_BYTES_MAX]>,
}

const NONE: u32 = u32::MAX;

/// The upper bit of a place in the index says which segment.
const RETURNER_BIT: u32 = 1 << 31;

/// The slots of one origin in one shard. A slot is live, or a tombstone and in the queue of those.
struct Segment {
    /// Grows to its capacity and never beyond; memory is reserved at start and touched here.
    slots: Vec<Slot>,
    slots_max: usize,
    /// Tombstones, oldest first.
    tombs_head: u32,
    tombs_tail: u32,
    /// The next slot to look at for expiry.
    hand: usize,
}

impl Segment {
    fn new(slots_max: usize) -> Segment {
        Segment { slots: Vec::with_capacity(slots_max), slots_max, tombs_head: NONE, tombs_tail: NONE, hand: 0 }
    }

    /// Clears a live slot's value and queues it as a tombstone.
    fn bury(&mut self, index: usize, state: State) {
        let slot = &mut self.slots[index];
        debug_assert!(slot.state == State::Live && state != State::Live);
        slot.value.zeroize();
        slot.state = state;
        self.entomb(index);
    }

    /// Queues a slot without a value as the newest tombstone.
    fn entomb(&mut self, index: usize) {
        self.slots[index].next = NONE;
        let index = index as u32;
        match self.slots.get_mut(self.tombs_tail as usize) {
            Some(tail) => tail.next = index,
            None => self.tombs_head = index,
        }
        self.tombs_tail = index;
    }

    /// Buries what has expired among the next few slots.
    fn tidy(&mut self, now: Time, slots: usize) {
        for _ in 0..slots.min(self.slots.len()) {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &self.slots[self.hand];
            if slot.state == State::Live && slot.expires <= now {
                self.bury(self.hand, State::Expired);
            }
        }
    }

    /// The slot whose place the next ticket takes when all were used before: the oldest tombstone, or one by lot.
    fn victim(&mut self, prng: &mut Prng) -> usize {
        if let Some(tomb) = self.slots.get(self.tombs_head as usize) {
            let index = self.tombs_head as usize;
            self.tombs_head = tomb.next;
            if self.tombs_head == NONE {
                self.tombs_tail = NONE;
            }
            return index;
        }
        prng.below(self.slots.len() as u64) as usize
    }
}

/// What one lock guards.
struct Shard {
    newcomers: Segment,
    returners: Segment,
    index: Index,
    prng: Prng,
}

impl Shard {
    fn segment(&mut self, place: u32) -> (&mut Segment, usize) {
        let segment = if place & RETURNER_BIT == 0 { &mut self.newcomers } else { &mut self.returners };
        (segment, (place & !RETURNER_BIT) as usize)
    }

    // Not in constant time: who does not know the key of the tags cannot aim at an id's neighbours.
    fn find(&self, tag: u32, id: &TicketId) -> Option<(usize, u32)> {
        self.index.find(tag, |place| {
            let segment = if place & RETURNER_BIT == 0 { &self.newcomers } else { &self.returners };
            segment.slots[(place & !RETURNER_BIT) as usize].id == *id
        })
    }

    fn tidy(&mut self, now: Time, slots: usize) {
        self.newcomers.tidy(now, slots);
        self.returners.tidy(now, slots);
    }
}

/// Tickets of this process, shared by its workers.
pub struct Store {
    shards: Vec<Mutex<Shard>>,
    /// Keys of the hash that spreads ids: secret, see [`Index`].
    keys: [u64; 2],
    lifetime: Duration,
    /// Counts calls of `tidy`.
    tidied: AtomicUsize,
    capacity: usize,
}

impl Store {
    /// A store for `capacity` entries (rounded up to whole shards; at most [`CAPACITY_MAX`]; 0: it keeps nothing), each
    /// good for `lifetime`. `seed` is random and secret.
    #[must_use]
    pub fn new(capacity: usize, lifetime: Duration, seed: u64) -> Arc<Store> {
        let capacity = capacity.min(CAPACITY_MAX);
        let shard_count = (capacity / SHARD_ENTRIES_MIN).next_power_of_two().clamp(1, SHARDS_MAX);
        let newcomers = capacity.div_ceil(2).div_ceil(shard_count);
        let returners = (capacity / 2).div_ceil(shard_count);
        let mut prng = Prng::new(seed);
        let keys = [prng.next_u64(), prng.next_u64()];
        let shards = (0..shard_count).map(|_| {
            Mutex::new(Shard {
                newcomers: Segment::new(newcomers),
                returners: Segment::new(returners),
                index: Index::new(newcomers + returners),
                prng: Prng::new(prng.next_u64()),
            })
        });
        let (shards, capacity) = (shards.collect(), (newcomers + returners) * shard_count);
        Arc::new(Store { shards, keys, lifetime, tidied: AtomicUsize::new(0), capacity })
    }

    /// Entries it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn hash(&self, id: &TicketId) -> u64 {
        let mut hasher = keyed_hasher(self.keys[0], self.keys[1]);
        hasher.write(id);
        hasher.finish()
    }

    /// The shard of an id, and its tag there: from different bits, so that a shard's tags spread.
    fn shard(&self, id: &TicketId) -> (MutexGuard<'_, Shard>, u32) {
        let hash = self.hash(id);
        (self.lock(hash as u32 as usize), (hash >> 32) as u32)
    }

    /// A shard by any number. A thread that panicked here left at worst one ticket half written, without its state `Live`.
    fn lock(&self, number: usize) -> MutexGuard<'_, Shard> {
        self.shards[number & (self.shards.len() - 1)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a ticket until it is taken, expires, or its place goes to another.
    pub fn put(&self, now: Time, id: &TicketId, binding: Binding, origin: Origin, value: &[u8]) -> Stored {
        let Some(len) = u8::try_from(value.len()).ok().filter(|len| usize::from(*len) <= VALUE_BYTES_MAX) else {
            return Stored::TooLong;
        };
        let (mut shard, tag) = self.shard(id);
        let shard = &mut *shard;
        shard.tidy(now, TIDY_SLOTS_PER_CALL);
        if shard.find(tag, id).is_some() {
            return Stored::Refused;
        }
        let Some((index, stored)) = self.place(shard, origin) else { return Stored::Refused };
        let (segment, bit) = match origin {
            Origin::Newcomer => (&mut shard.newcomers, 0),
            Origin::Returner => (&mut shard.returners, RETURNER_BIT),
        };
        let slot = &mut segment.slots[index];
        (slot.id, slot.binding, slot.expires, slot.next) = (*id, binding, now + self.lifetime, NONE);
        slot.value.zeroize();
        slot.value[..value.len()].copy_from_slice(value);
        (slot.len, slot.state) = (len, State::Live);
        shard.index.insert(tag, index as u32 | bit);
        stored
    }

    /// A slot that no entry of the index names any more; `None` when this origin has none at all.
    fn place(&self, shard: &mut Shard, origin: Origin) -> Option<(usize, Stored)> {
        let segment = match origin {
            Origin::Newcomer => &mut shard.newcomers,
            Origin::Returner => &mut shard.returners,
        };
        if segment.slots_max == 0 {
            return None;
        }
        if segment.slots.len() < segment.slots_max {
            segment.slots.push(Slot {
                id: [0; 32],
                binding: Binding { realm: 0, name: 0 },
                expires: Time::ZERO,
                next: NONE,
                state: State::Used,
                len: 0,
                value: Zeroizing::new([0; VALUE_BYTES_MAX]),
            });
            return Some((segment.slots.len() - 1, Stored::Kept));
        }
        let index = segment.victim(&mut shard.prng);
        let slot = &mut segment.slots[index];
        let stored = if slot.state == State::Live { Stored::Evicting } else { Stored::Kept };
        (slot.state, slot.next) = (State::Used, NONE);
        slot.value.zeroize();
        let id = slot.id;
        let cell = shard.find((self.hash(&id) >> 32) as u32, &id).map(|(cell, _)| cell);
        shard.index.remove(cell.expect("every slot that was used is in the index"));
        Some((index, stored))
    }

    /// Gives out a ticket, to exactly one caller ever.
    ///
    /// # Errors
    /// [`Miss`] says why there is none.
    pub fn take(&self, now: Time, id: &TicketId, binding: Binding) -> Result<Value, Miss> {
        let (mut shard, tag) = self.shard(id);
        shard.tidy(now, TIDY_SLOTS_PER_CALL);
        let (_, place) = shard.find(tag, id).ok_or(Miss::Unknown)?;
        let (segment, index) = shard.segment(place);
        let slot = &segment.slots[index];
        let (outcome, state) = match slot.state {
            State::Used => return Err(Miss::Used),
            State::Expired => return Err(Miss::Expired),
            State::Live if slot.expires <= now => (Err(Miss::Expired), State::Expired),
            State::Live if slot.binding != binding => (Err(Miss::OtherName), State::Used),
            State::Live => (Value::new(&slot.value[..usize::from(slot.len)]).ok_or(Miss::Unknown), State::Used),
        };
        segment.bury(index, state);
        outcome
    }

    /// Records that a ticket kept elsewhere was used here: [`Store::take`] calls it used from now on, and exactly one
    /// caller ever is told that it is recorded, as [`Stored::Kept`] or [`Stored::Evicting`]. To everyone else it is
    /// [`Stored::Refused`].
    ///
    /// The tombstone takes a newcomer's place: those are for what anyone can have many of.
    pub fn spend(&self, now: Time, id: &TicketId) -> Stored {
        let (mut shard, tag) = self.shard(id);
        let shard = &mut *shard;
        shard.tidy(now, TIDY_SLOTS_PER_CALL);
        if shard.find(tag, id).is_some() {
            return Stored::Refused;
        }
        let Some((index, stored)) = self.place(shard, Origin::Newcomer) else { return Stored::Refused };
        let slot = &mut shard.newcomers.slots[index];
        (slot.id, slot.len, slot.state) = (*id, 0, State::Used);
        shard.newcomers.entomb(index);
        shard.index.insert(tag, index as u32);
        stored
    }

    /// Whether a ticket could be taken, its lifetime aside.
    #[must_use]
    pub fn has(&self, id: &TicketId) -> bool {
        let (mut shard, tag) = self.shard(id);
        let Some((_, place)) = shard.find(tag, id) else { return false };
        let (segment, index) = shard.segment(place);
        segment.slots[index].state == State::Live
    }

    /// Clears expired values in a part of the store. 1024 calls see all of it: for a timer, so that a store without
    /// traffic forgets too. Traffic alone clears what it passes.
    pub fn tidy(&self, now: Time) {
        let call = self.tidied.fetch_add(1, Ordering::Relaxed);
        let calls_per_shard = (TIDY_CALLS / self.shards.len()).max(1);
        let mut shard = self.lock(call);
        let slots = shard.newcomers.slots_max.max(shard.returners.slots_max).div_ceil(calls_per_shard);
        shard.tidy(now, slots);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const BINDING: Binding = Binding { realm: 1, name: 2 };

    fn id(number: u64) -> TicketId {
        let mut prng = Prng::new(number);
        let mut id = [0; 32];
        id.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&prng.next_u64().to_le_bytes()));
        id
    }

    fn at(secs: u64) -> Time {
        Time::from_nanos(secs * 1_000_000_000)
    }

    fn put(store: &Store, number: u64, origin: Origin) -> Stored {
        store.put(at(0), &id(number), BINDING, origin, &number.to_le_bytes())
    }

    fn fill(store: &Store, numbers: std::ops::Range<u64>, origin: Origin) {
        numbers.for_each(|number| assert!(matches!(put(store, number, origin), Stored::Kept | Stored::Evicting)));
    }

    fn take(store: &Store, number: u64) -> Result<Value, Miss> {
        store.take(at(1), &id(number), BINDING)
    }

    /// How many of these tickets could be taken.
    fn alive(store: &Store, numbers: impl Iterator<Item = u64>) -> u64 {
        numbers.filter(|number| store.has(&id(*number))).count() as u64
    }

    /// Whether every slot that is not live is clear.
    fn is_clear(store: &Store) -> bool {
        store.shards.iter().all(|shard| {
            let shard = shard.lock().expect("no test panicked");
            let slots = shard.newcomers.slots.iter().chain(&shard.returners.slots);
            slots.filter(|slot| slot.state != State::Live).all(|slot| slot.value.iter().all(|byte| *byte == 0))
        })
    }

    #[test]
    fn a_ticket_is_given_out_once_and_its_place_is_clear() {
        let store = Store::new(100, DAY, 1);
        assert_eq!(put(&store, 1, Origin::Newcomer), Stored::Kept);
        assert!(store.has(&id(1)));
        assert_eq!(&*take(&store, 1).expect("it is there"), 1_u64.to_le_bytes());
        assert!(!store.has(&id(1)) && is_clear(&store));
        assert_eq!(take(&store, 1).err(), Some(Miss::Used));
        assert_eq!(take(&store, 2).err(), Some(Miss::Unknown));
    }

    #[test]
    fn a_known_id_is_never_good_again() {
        let store = Store::new(100, DAY, 1);
        put(&store, 1, Origin::Newcomer);
        assert_eq!(put(&store, 1, Origin::Returner), Stored::Refused);
        assert!(take(&store, 1).is_ok());
        assert_eq!(put(&store, 1, Origin::Returner), Stored::Refused);
        assert_eq!(take(&store, 1).err(), Some(Miss::Used));
    }

    #[test]
    fn a_ticket_that_was_kept_elsewhere_is_spent_once() {
        let store = Store::new(8, DAY, 1);
        assert_eq!(store.spend(at(0), &id(1)), Stored::Kept);
        assert_eq!(store.spend(at(0), &id(1)), Stored::Refused);
        assert_eq!((take(&store, 1).err(), store.has(&id(1))), (Some(Miss::Used), false));
        assert_eq!(put(&store, 1, Origin::Newcomer), Stored::Refused);
        // What is kept here is not spent as if it were elsewhere.
        assert_eq!(put(&store, 2, Origin::Returner), Stored::Kept);
        assert_eq!(store.spend(at(0), &id(2)), Stored::Refused);
        assert!(take(&store, 2).is_ok() && is_clear(&store));
        assert_eq!(Store::new(0, DAY, 1).spend(at(0), &id(1)), Stored::Refused);
    }

    #[test]
    fn what_was_spent_is_remembered_within_the_newcomers_part_oldest_out_first() {
        let store = Store::new(8, DAY, 1);
        fill(&store, 100..104, Origin::Returner);
        (0..6).for_each(|number| assert_eq!(store.spend(at(0), &id(number)), Stored::Kept));
        let known: Vec<u64> = (0..6).filter(|number| take(&store, *number).err() == Some(Miss::Used)).collect();
        assert_eq!(known, [2, 3, 4, 5]);
        assert_eq!(alive(&store, 100..104), 4, "returners keep their places");
        // Tickets take the places of tombstones, and a tombstone that of a ticket if there is none.
        fill(&store, 6..10, Origin::Newcomer);
        assert_eq!(alive(&store, 6..10), 4);
        assert_eq!(store.spend(at(0), &id(10)), Stored::Evicting);
        assert_eq!((alive(&store, 6..10), take(&store, 10).err()), (3, Some(Miss::Used)));
        assert!(is_clear(&store));
    }

    #[test]
    fn another_realm_or_name_spends_the_ticket() {
        for other in [Binding { realm: 9, ..BINDING }, Binding { name: 9, ..BINDING }] {
            let store = Store::new(100, DAY, 1);
            put(&store, 1, Origin::Newcomer);
            assert_eq!(store.take(at(1), &id(1), other).err(), Some(Miss::OtherName));
            assert_eq!(take(&store, 1).err(), Some(Miss::Used));
            assert!(is_clear(&store));
        }
    }

    #[test]
    fn a_lifetime_ends_on_the_moment_and_clears_the_value() {
        let store = Store::new(100, Duration::from_secs(10), 1);
        put(&store, 1, Origin::Newcomer);
        put(&store, 2, Origin::Returner);
        assert!(store.take(at(9), &id(1), BINDING).is_ok());
        assert_eq!(store.take(at(10), &id(2), BINDING).err(), Some(Miss::Expired));
        assert!(is_clear(&store));
    }

    #[test]
    fn a_store_without_traffic_forgets_with_its_timer() {
        let store = Store::new(10_000, Duration::from_secs(10), 1);
        fill(&store, 0..1000, Origin::Newcomer);
        (0..TIDY_CALLS).for_each(|_| store.tidy(at(9)));
        assert_eq!(alive(&store, 0..1000), 1000);
        (0..TIDY_CALLS).for_each(|_| store.tidy(at(10)));
        assert_eq!(alive(&store, 0..1000), 0);
        assert!(is_clear(&store));
        assert_eq!(take(&store, 1).err(), Some(Miss::Expired));
    }

    #[test]
    fn values_up_to_the_limit_are_kept_whole() {
        let store = Store::new(100, DAY, 1);
        let long = [7; VALUE_BYTES_MAX + 1];
        assert_eq!(store.put(at(0), &id(1), BINDING, Origin::Newcomer, &long), Stored::TooLong);
        assert_eq!(store.put(at(0), &id(1), BINDING, Origin::Newcomer, &[7; 1000]), Stored::TooLong);
        assert_eq!(store.put(at(0), &id(1), BINDING, Origin::Newcomer, &long[1..]), Stored::Kept);
        assert_eq!(&*take(&store, 1).expect("it is there"), &long[1..]);
        assert!(Value::new(&long).is_none() && Value::new(&[0; 300]).is_none());
    }

    #[test]
    fn no_room_at_all_keeps_nothing() {
        let store = Store::new(0, DAY, 1);
        assert_eq!(put(&store, 1, Origin::Newcomer), Stored::Refused);
        assert_eq!(take(&store, 1).err(), Some(Miss::Unknown));
        store.tidy(at(5));
        assert_eq!(put(&Store::new(1, DAY, 1), 1, Origin::Returner), Stored::Refused);
    }

    #[test]
    fn tombstones_go_first_and_oldest_first() {
        let store = Store::new(8, DAY, 1);
        (0..4).for_each(|number| assert_eq!(put(&store, number, Origin::Newcomer), Stored::Kept));
        assert!(take(&store, 2).is_ok() && take(&store, 0).is_ok());
        assert_eq!(put(&store, 4, Origin::Newcomer), Stored::Kept);
        assert_eq!(take(&store, 2).err(), Some(Miss::Unknown));
        assert_eq!(take(&store, 0).err(), Some(Miss::Used));
        assert_eq!(put(&store, 5, Origin::Newcomer), Stored::Kept);
        assert_eq!(take(&store, 0).err(), Some(Miss::Unknown));
        assert_eq!(alive(&store, 0..6), 4);
        assert_eq!(put(&store, 6, Origin::Newcomer), Stored::Evicting);
        assert_eq!(alive(&store, 0..7), 4);
        assert!(store.has(&id(6)));
    }

    /// What the module's contract promises under a flood, in the words of its first lines.
    #[test]
    fn a_flood_of_full_handshakes_leaves_returners_and_some_earlier_newcomers() {
        for (times, expected) in [(1, 0.368), (3, 0.050)] {
            let store = Store::new(20_000, DAY, times);
            let part = store.capacity() as u64 / 2;
            fill(&store, 0..part, Origin::Newcomer);
            fill(&store, part..2 * part, Origin::Returner);
            let newcomers = alive(&store, 0..part);
            let returners = alive(&store, part..2 * part);
            let flood_end = (2 + times) * part;
            fill(&store, 2 * part..flood_end, Origin::Newcomer);
            let left = alive(&store, 0..part) as f64 / newcomers as f64;
            println!("after {times}x: {left:.3} of {newcomers} newcomers, all of {returners} returners");
            assert!((left - expected).abs() < 0.03, "{left} of the newcomers after {times}x");
            assert_eq!(alive(&store, part..2 * part), returners);
            assert_eq!(alive(&store, flood_end - 1..flood_end), 1);
        }
    }

    #[test]
    fn of_racing_threads_exactly_one_gets_a_ticket() {
        let store = Store::new(10_000, DAY, 1);
        (0..2000).for_each(|number| assert_eq!(put(&store, number, Origin::Returner), Stored::Kept));
        let barrier = std::sync::Barrier::new(4);
        let won: u64 = thread::scope(|scope| {
            let run = || {
                barrier.wait();
                (0..2000).filter(|number| take(&store, *number).is_ok()).count() as u64
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it ends")).sum()
        });
        assert_eq!(won, 2000);
        assert!(is_clear(&store));
    }

    #[test]
    fn of_racing_threads_exactly_one_spends_a_ticket() {
        let store = Store::new(10_000, DAY, 1);
        let barrier = std::sync::Barrier::new(4);
        let won: u64 = thread::scope(|scope| {
            let run = || {
                barrier.wait();
                (0..2000).filter(|number| store.spend(at(0), &id(*number)) == Stored::Kept).count() as u64
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it ends")).sum()
        });
        assert_eq!(won, 2000);
    }

    /// Puts, takes and spends at random against what the calls themselves said.
    #[test]
    fn a_long_life_keeps_every_promise() {
        for capacity in [1, 2, 7, 64, 500] {
            let store = Store::new(capacity, Duration::from_secs(300), 3);
            let (mut prng, mut taken) = (Prng::new(capacity as u64), std::collections::BTreeSet::new());
            for step in 0..5000_u64 {
                // Any before, or one of the last few.
                let back_max = if prng.below(2) == 0 { step } else { step.min(4) };
                let number = step - prng.below(back_max + 1);
                match prng.below(4) {
                    0 => match store.take(at(step), &id(number), BINDING) {
                        Ok(value) => {
                            assert_eq!(&*value, number.to_le_bytes());
                            assert!(taken.insert(number), "{number} was taken twice");
                        }
                        Err(Miss::Used) => assert!(taken.contains(&number)),
                        Err(_) => {}
                    },
                    1 => store.tidy(at(step)),
                    2 => {
                        if store.spend(at(step), &id(number + (1 << 32))) != Stored::Refused {
                            let took = store.take(at(step), &id(number + (1 << 32)), BINDING);
                            assert_eq!(took.err(), Some(Miss::Used));
                        }
                    }
                    _ => {
                        let origin = if step % 2 == 0 { Origin::Newcomer } else { Origin::Returner };
                        let stored = store.put(at(step), &id(step), BINDING, origin, &step.to_le_bytes());
                        assert!(capacity < 2 || stored != Stored::Refused);
                    }
                }
            }
            assert!(is_clear(&store) && !taken.is_empty());
        }
    }

    #[test]
    fn an_empty_store_costs_address_space_only() {
        let resident_bytes = || {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
            statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
        };
        let before = resident_bytes();
        let store = Store::new(1 << 20, DAY, 1);
        assert!(!store.has(&id(1)));
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "{grown} bytes for a store of {}", ENTRY_BYTES_MAX << 20);
    }
}
