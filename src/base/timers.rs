//! Deadlines of many things, cheap to push back: each thing has at most a few entries, checked again when they come due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::time::Time;

/// A queue of deadlines with a tag each. An entry is a hint: its owner checks, when it comes due, whether the deadline
/// still stands, and schedules again if it moved.
#[derive(Debug)]
pub struct Timers<T: Ord + Copy> {
    heap: BinaryHeap<Reverse<(Time, T)>>,
}

impl<T: Ord + Copy> Default for Timers<T> {
    fn default() -> Self {
        Timers { heap: BinaryHeap::new() }
    }
}

impl<T: Ord + Copy> Timers<T> {
    /// Adds an entry.
    pub fn schedule(&mut self, at: Time, tag: T) {
        self.heap.push(Reverse((at, tag)));
    }

    /// When the next entry comes due.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes one entry that is due at `now`.
    pub fn pop_due(&mut self, now: Time) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, tag))| tag)
    }

    /// Entries waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

/// A deadline that its owner moves freely while the queue holds at most one entry for it.
///
/// Invariant: when `wanted` is some, an entry at or before it is queued.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// [`NEVER`] for none, which takes half the memory of an option: every link has one of these.
    wanted: Time,
    queued: Time,
}

/// The end of time, 584 years after the origin.
const NEVER: Time = Time::from_nanos(u64::MAX);

impl Default for Deadline {
    fn default() -> Self {
        Deadline { wanted: NEVER, queued: NEVER }
    }
}

impl Deadline {
    /// Moves the deadline (or clears it); queues an entry only when none is early enough.
    pub fn set<T: Ord + Copy>(&mut self, at: Option<Time>, timers: &mut Timers<T>, tag: T) {
        self.wanted = at.unwrap_or(NEVER);
        if self.wanted < self.queued {
            timers.schedule(self.wanted, tag);
            self.queued = self.wanted;
        }
    }

    /// To be called when an entry of this deadline comes due. True when the deadline itself has passed; otherwise the
    /// entry is queued again for where the deadline has moved to.
    pub fn due<T: Ord + Copy>(&mut self, now: Time, timers: &mut Timers<T>, tag: T) -> bool {
        if self.queued > now {
            return false; // an older entry of a deadline that was moved closer: the nearer one has been handled
        }
        let is_due = self.wanted <= now;
        if is_due {
            self.wanted = NEVER;
        } else if self.wanted < NEVER {
            timers.schedule(self.wanted, tag);
        }
        self.queued = self.wanted;
        is_due
    }

    /// Where the deadline stands.
    #[must_use]
    pub fn at(&self) -> Option<Time> {
        Some(self.wanted).filter(|at| *at < NEVER)
    }
}

/// A deadline for each slot of a [`Slab`](super::slab::Slab), by the slot's index: who comes to a slot finds the entry of
/// who was there. However often slots change hands, there are about as many entries as there were ever slots in use.
#[derive(Debug, Default)]
pub struct SlotDeadlines {
    slots: Vec<Deadline>,
    timers: Timers<u32>,
}

impl SlotDeadlines {
    /// Moves the deadline of a slot, or clears it: to be done when what is in the slot goes.
    pub fn set(&mut self, index: u32, at: Option<Time>) {
        let slot = index as usize;
        if slot >= self.slots.len() {
            self.slots.resize(slot + 1, Deadline::default());
        }
        self.slots[slot].set(at, &mut self.timers, index);
    }

    /// When to look again.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        self.timers.next()
    }

    /// A slot whose deadline has passed. It has none any more.
    pub fn pop_due(&mut self, now: Time) -> Option<u32> {
        while let Some(index) = self.timers.pop_due(now) {
            if self.slots[index as usize].due(now, &mut self.timers, index) {
                return Some(index);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_change_hands_share_an_entry() {
        let mut deadlines = SlotDeadlines::default();
        for nanos in 0..1000 {
            let index = nanos as u32 % 3;
            deadlines.set(index, Some(at(nanos + 5000)));
            deadlines.set(index, None);
        }
        assert_eq!(deadlines.timers.len(), 3);
        deadlines.set(1, Some(at(7000)));
        assert_eq!((deadlines.next(), deadlines.pop_due(at(6999))), (Some(at(5000)), None), "of who was there before");
        assert_eq!(deadlines.next(), Some(at(7000)));
        deadlines.set(7, Some(at(6000)));
        assert_eq!([at(7000); 3].map(|now| deadlines.pop_due(now)), [Some(7), Some(1), None]);
        assert_eq!(deadlines.next(), None);
    }

    fn at(nanos: u64) -> Time {
        Time::from_nanos(nanos)
    }

    #[test]
    fn entries_come_due_in_order() {
        let mut timers = Timers::default();
        timers.schedule(at(30), 3);
        timers.schedule(at(10), 1);
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(30)), Some(1));
        assert_eq!(timers.pop_due(at(30)), Some(3));
        assert_eq!(timers.pop_due(at(30)), None);
    }

    #[test]
    fn a_deadline_pushed_back_costs_one_entry() {
        let mut timers = Timers::default();
        let mut deadline = Deadline::default();
        for nanos in 10..1000 {
            deadline.set(Some(at(nanos)), &mut timers, 7);
        }
        assert_eq!(timers.len(), 1);
        assert_eq!(timers.pop_due(at(10)), Some(7));
        assert!(!deadline.due(at(10), &mut timers, 7));
        assert_eq!(timers.next(), Some(at(999)));
        assert_eq!(timers.pop_due(at(999)), Some(7));
        assert!(deadline.due(at(999), &mut timers, 7));
        assert!(timers.is_empty());
    }

    #[test]
    fn a_deadline_pulled_closer_fires_once() {
        let mut timers = Timers::default();
        let mut deadline = Deadline::default();
        deadline.set(Some(at(100)), &mut timers, 0);
        deadline.set(Some(at(50)), &mut timers, 0);
        let mut fired = 0;
        for now in [50, 100, 150] {
            while timers.pop_due(at(now)).is_some() {
                fired += u32::from(deadline.due(at(now), &mut timers, 0));
            }
        }
        assert_eq!(fired, 1);
    }

    #[test]
    fn a_cleared_deadline_does_not_fire() {
        let mut timers = Timers::default();
        let mut deadline = Deadline::default();
        deadline.set(Some(at(5)), &mut timers, 0);
        deadline.set(None, &mut timers, 0);
        assert_eq!(timers.pop_due(at(5)), Some(0));
        assert!(!deadline.due(at(5), &mut timers, 0));
    }
}
