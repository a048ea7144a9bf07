//! A slab whose keys carry a generation, so that a stale key finds nothing instead of a stranger.

/// Names an entry of a [`Slab`]; never names a later entry in the same slot (until 2^32 reuses of it).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// Slot in the slab.
    pub index: u32,
    /// How often the slot had been given out before.
    pub generation: u32,
}

#[derive(Debug)]
enum Slot<T> {
    Used(T),
    /// Index of the next free slot, or `NONE`.
    Free(u32),
}

const NONE: u32 = u32::MAX;

/// Entries in slots that are reused, last freed first (its memory is warm).
///
/// Invariant: `len` counts the used slots, and every other slot is on the free list exactly once.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<(u32, Slot<T>)>,
    free_head: u32,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { slots: Vec::new(), free_head: NONE, len: 0 }
    }
}

impl<T> Slab<T> {
    /// An empty slab.
    #[must_use]
    pub fn new() -> Slab<T> {
        Slab::default()
    }

    /// Entries in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no entry is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `value` in a slot. The caller keeps its own limit on how many there may be.
    pub fn insert(&mut self, value: T) -> Key {
        self.insert_with(|_| value)
    }

    /// Like [`Slab::insert`], for a value that must know its own key.
    pub fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Key {
        let index = if self.free_head == NONE {
            let index = u32::try_from(self.slots.len()).expect("a slab holds fewer than 2^32 slots");
            assert_ne!(index, NONE, "a slab holds fewer than 2^32 - 1 slots");
            self.slots.push((0, Slot::Free(NONE)));
            index
        } else {
            let index = self.free_head;
            let Slot::Free(next) = self.slots[index as usize].1 else {
                unreachable!("the free list names free slots only");
            };
            self.free_head = next;
            index
        };
        let slot = &mut self.slots[index as usize];
        let key = Key { index, generation: slot.0 };
        slot.1 = Slot::Used(make(key));
        self.len += 1;
        key
    }

    /// The entry, unless it is gone.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&T> {
        match self.slots.get(key.index as usize) {
            Some((generation, Slot::Used(value))) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// The entry, unless it is gone.
    #[must_use]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.slots.get_mut(key.index as usize) {
            Some((generation, Slot::Used(value))) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// Takes the entry out and frees its slot.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let slot = &mut self.slots[key.index as usize];
        let Slot::Used(value) = core::mem::replace(&mut slot.1, Slot::Free(self.free_head)) else {
            unreachable!("checked to be used just above");
        };
        slot.0 = slot.0.wrapping_add(1);
        self.free_head = key.index;
        self.len -= 1;
        Some(value)
    }

    /// Every entry with its key, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, (generation, slot))| match slot {
            Slot::Used(value) => Some((Key { index: index as u32, generation: *generation }, value)),
            Slot::Free(_) => None,
        })
    }

    /// Every entry with its key, in slot order, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, (generation, slot))| match slot {
            Slot::Used(value) => Some((Key { index: index as u32, generation: *generation }, value)),
            Slot::Free(_) => None,
        })
    }

    /// Slots, used and free: every index is below this.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// The key in use at a slot index, if any.
    #[must_use]
    pub fn key_at(&self, index: u32) -> Option<Key> {
        match self.slots.get(index as usize) {
            Some((generation, Slot::Used(_))) => Some(Key { index, generation: *generation }),
            _ => None,
        }
    }
}

/// Values kept beside the entries of somebody else's slab, found by the same keys.
#[derive(Debug)]
pub struct SideTable<T> {
    rows: Vec<Option<(u32, T)>>,
    len: usize,
}

impl<T> Default for SideTable<T> {
    fn default() -> Self {
        SideTable { rows: Vec::new(), len: 0 }
    }
}

impl<T> SideTable<T> {
    /// Values kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps `value` for `key`, in place of whatever a former owner of the slot left.
    pub fn insert(&mut self, key: Key, value: T) {
        let index = key.index as usize;
        if self.rows.len() <= index {
            self.rows.resize_with(index + 1, || None);
        }
        if self.rows[index].replace((key.generation, value)).is_none() {
            self.len += 1;
        }
    }

    /// The value kept for exactly this key.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&T> {
        match self.rows.get(key.index as usize) {
            Some(Some((generation, value))) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// The value kept for exactly this key.
    #[must_use]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.rows.get_mut(key.index as usize) {
            Some(Some((generation, value))) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// Takes the value kept for exactly this key.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        self.len -= 1;
        self.rows[key.index as usize].take().map(|(_, value)| value)
    }

    /// Everything kept, in slot order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.rows.iter_mut().enumerate().filter_map(|(index, row)| {
            row.as_mut().map(|(generation, value)| (Key { index: index as u32, generation: *generation }, value))
        })
    }

    /// Keys of everything kept, in slot order.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.rows.iter().enumerate().filter_map(|(index, row)| {
            row.as_ref().map(|(generation, _)| Key { index: index as u32, generation: *generation })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert("a");
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("b");
        assert_eq!(second.index, first.index);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"b"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn the_last_freed_slot_is_reused_first() {
        let mut slab = Slab::new();
        let keys: Vec<Key> = (0..4).map(|value| slab.insert(value)).collect();
        slab.remove(keys[1]);
        slab.remove(keys[3]);
        assert_eq!(slab.insert(10).index, 3);
        assert_eq!(slab.insert(11).index, 1);
        assert_eq!(slab.insert(12).index, 4);
        let found: Vec<i32> = slab.iter().map(|(_, value)| *value).collect();
        assert_eq!(found, [0, 11, 2, 10, 12]);
    }

    #[test]
    fn an_entry_may_know_its_key() {
        let mut slab = Slab::new();
        let key = slab.insert_with(|key| key);
        assert_eq!(slab.get(key), Some(&key));
        assert_eq!(slab.key_at(key.index), Some(key));
        assert_eq!(slab.key_at(7), None);
    }

    #[test]
    fn a_side_table_knows_exact_keys_only() {
        let mut table = SideTable::default();
        let old = Key { index: 2, generation: 0 };
        let new = Key { index: 2, generation: 1 };
        table.insert(old, 'a');
        table.insert(new, 'b');
        assert_eq!(table.len(), 1);
        assert_eq!((table.get(old), table.get(new)), (None, Some(&'b')));
        assert_eq!(table.keys().collect::<Vec<_>>(), [new]);
        assert_eq!((table.remove(old), table.remove(new)), (None, Some('b')));
        assert!(table.is_empty());
    }
}
