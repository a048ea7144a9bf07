//! Finds a slot by a tag in expected constant time: open addressing, linear probing, no marks left by removals.
//!
//! Owns tags and places, never entries. The caller makes tags with a keyed hash: who cannot predict tags cannot pile
//! entries up behind one another, neither by keeping the tickets that suit and spending the others, nor by asking for
//! ids of his choice. Invariant: at most half of the table is in use, so that a search ends after a few steps.

/// A table of places. A place is whatever 32-bit number the caller gives, below `u32::MAX`.
#[derive(Debug)]
pub struct Index {
    /// Tag in the upper half, place plus one in the lower; 0 is empty. Zeros come from the kernel untouched.
    cells: Vec<u64>,
    len: usize,
    len_max: usize,
}

fn tag_of(cell: u64) -> u32 {
    (cell >> 32) as u32
}

fn place_of(cell: u64) -> u32 {
    // No underflow: only cells in use are asked, and those are not 0 in their lower half.
    (cell as u32).wrapping_sub(1)
}

impl Index {
    /// For so many places; takes 16 to 32 bytes for each.
    #[must_use]
    pub fn new(places: usize) -> Index {
        Index { cells: vec![0; (places.max(1) * 2).next_power_of_two()], len: 0, len_max: places.max(1) }
    }

    fn home(&self, tag: u32) -> usize {
        tag as usize & (self.cells.len() - 1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }

    /// The cell and place with this tag that `is_it` accepts.
    pub fn find(&self, tag: u32, is_it: impl Fn(u32) -> bool) -> Option<(usize, u32)> {
        let mut at = self.home(tag);
        while self.cells[at] != 0 {
            let cell = self.cells[at];
            if tag_of(cell) == tag && is_it(place_of(cell)) {
                return Some((at, place_of(cell)));
            }
            at = self.next(at);
        }
        None
    }

    /// Enters a place that is not in the table.
    ///
    /// # Panics
    /// When the table holds as many places as it was made for: the caller's own limit failed.
    pub fn insert(&mut self, tag: u32, place: u32) {
        assert!(self.len < self.len_max && place < u32::MAX, "an index is made for all slots of its shard");
        let mut at = self.home(tag);
        while self.cells[at] != 0 {
            at = self.next(at);
        }
        self.cells[at] = u64::from(tag) << 32 | u64::from(place + 1);
        self.len += 1;
    }

    /// Removes the cell that [`Index::find`] named, and moves up what stood behind it.
    pub fn remove(&mut self, cell: usize) {
        let mask = self.cells.len() - 1;
        let (mut hole, mut at) = (cell, self.next(cell));
        while self.cells[at] != 0 {
            // What stands at `at` may fill the hole unless its home lies between the two.
            let home = self.home(tag_of(self.cells[at]));
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.cells[hole] = self.cells[at];
                hole = at;
            }
            at = self.next(at);
        }
        self.cells[hole] = 0;
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::base::prng::Prng;

    /// Against a map, with tags that collide a lot.
    #[test]
    fn it_agrees_with_a_map_through_many_removals() {
        let mut prng = Prng::new(5);
        for tags in [1, 3, 16, u64::from(u32::MAX)] {
            let (mut index, mut model) = (Index::new(50), BTreeMap::new());
            for place in 0..5000_u32 {
                if model.len() == 50 || prng.chance(3) {
                    if let Some((gone, tag)) = model.iter().nth(prng.below(50) as usize).map(|(a, b)| (*a, *b)) {
                        let (cell, place) = index.find(tag, |place| place == gone).expect("it is there");
                        assert_eq!(place, gone);
                        index.remove(cell);
                        model.remove(&gone);
                    }
                    continue;
                }
                let tag = prng.below(tags) as u32;
                index.insert(tag, place);
                model.insert(place, tag);
                assert!(model.iter().all(|(place, tag)| index.find(*tag, |found| found == *place).is_some()));
            }
            for (place, tag) in model {
                let (cell, _) = index.find(tag, |found| found == place).expect("it is there");
                index.remove(cell);
            }
            assert!(index.cells.iter().all(|cell| *cell == 0));
        }
    }
}
