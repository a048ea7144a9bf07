//! How many receive buffers the kernel is given.
//!
//! It fills what it has in turn. So the fewer it has, the sooner a buffer is filled again, and the more of it is still in the
//! core's cache; but when it runs out within a pass, receives end and must be asked for anew.
//! Owns that number. Never sees a buffer. Invariant: it is at least [`LEAST`] or all there are, and all there are after they ran out.

/// Fewest that are given: 2 MiB of the default size, about what a core's own cache holds.
const LEAST: usize = 32;

/// The kernel is given so many times as many as the fullest of the recent passes took.
const MARGIN: usize = 4;

/// So many passes are looked at before the number falls, by an eighth of what is too much.
const WINDOW_PASSES: u32 = 256;

pub(super) struct Supply {
    total: usize,
    wanted: usize,
    /// Taken since the last pass.
    taken: usize,
    /// Most that a pass took, in this window.
    peak: usize,
    passes: u32,
}

impl Supply {
    pub(super) fn new(total: usize) -> Supply {
        Supply { total, wanted: total, taken: 0, peak: 0, passes: 0 }
    }

    /// How many the kernel should have.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// The kernel filled one.
    pub(super) fn taken(&mut self) {
        self.taken += 1;
    }

    /// All that were filled so far have been counted.
    pub(super) fn passed(&mut self) {
        self.peak = self.peak.max(std::mem::take(&mut self.taken));
        let needed = (self.peak * MARGIN).clamp(LEAST.min(self.total), self.total);
        self.wanted = self.wanted.max(needed);
        self.passes += 1;
        if self.passes == WINDOW_PASSES {
            self.wanted -= (self.wanted - needed).div_ceil(8);
            (self.passes, self.peak) = (0, 0);
        }
    }

    /// The kernel had too few.
    pub(super) fn exhausted(&mut self) {
        self.wanted = self.total;
        (self.passes, self.peak) = (0, self.total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes that take so many each; returns what the kernel is to have then.
    fn run(supply: &mut Supply, passes: u32, taken: usize) -> usize {
        for _ in 0..passes {
            (0..taken).for_each(|_| supply.taken());
            supply.passed();
        }
        supply.wanted()
    }

    #[test]
    fn few_buffers_take_turns_while_few_are_needed() {
        let mut supply = Supply::new(512);
        assert_eq!(supply.wanted(), 512, "all at first: nothing is known yet");
        assert_eq!(run(&mut supply, 100 * WINDOW_PASSES, 5), LEAST);
        assert_eq!(run(&mut supply, 100 * WINDOW_PASSES, 20), 20 * MARGIN);
    }

    #[test]
    fn one_full_pass_is_enough_for_more() {
        let mut supply = Supply::new(512);
        run(&mut supply, 100 * WINDOW_PASSES, 1);
        assert_eq!(run(&mut supply, 1, 31), 31 * MARGIN);
        assert_eq!(run(&mut supply, 1, 200), 512);
    }

    #[test]
    fn having_run_out_brings_all_and_a_while_with_all() {
        let mut supply = Supply::new(512);
        run(&mut supply, 100 * WINDOW_PASSES, 1);
        supply.exhausted();
        assert_eq!(supply.wanted(), 512);
        assert_eq!(run(&mut supply, WINDOW_PASSES, 1), 512);
        assert!(run(&mut supply, WINDOW_PASSES, 1) < 512);
    }

    #[test]
    fn fewer_than_the_least_are_all_given() {
        let mut supply = Supply::new(4);
        assert_eq!(run(&mut supply, 10 * WINDOW_PASSES, 1), 4);
    }
}
