//! When waiting a little for a fuller batch pays.
//!
//! Owns two estimates: how close together arrivals come, and what prolonged waits have gathered. An arrival is a completion
//! that others cause; those of sends come with the submission and tell nothing. Never reads a clock.
//! Invariant: waits that gather too little are followed by many passes without one, so only trials hold a lone request up.

use std::time::Duration;

/// Fewest arrivals that must be expected within a prolonged wait for it to be tried.
const EXPECTED_MIN: u64 = 2;

/// Prolonged waits must gather so many arrivals on average to go on: one request alone makes one a pass, so this takes two
/// requests that share the pass.
const GATHERED_MIN: u64 = 2;

/// A prolonged wait ends before its time once so many times as many arrivals are there as were expected: one that ended
/// with what is expected would last half of its time.
const ASKED_TIMES: u64 = 4;

/// Most arrivals that a prolonged wait asks for: what a pass costs by itself is little of what so many cost.
const ASKED_MAX: u64 = 32;

/// After waits that gathered too little, so many passes go without.
const REST_PASSES: u32 = 1024;

/// The gap before anything was seen.
const IDLE_GAP_NANOS: u64 = 1_000_000_000;

/// Gathered arrivals are averaged in fractions of one.
const FRACTION: u64 = 256;

pub(super) struct Batching {
    wait_us: u32,
    /// Mean time between arrivals, in nanoseconds, over the last few passes.
    gap_nanos: u64,
    /// Mean arrivals in prolonged waits, in [`FRACTION`]s.
    gathered: u64,
    /// The last wait was prolonged.
    prolonged: bool,
    /// Passes yet to go without.
    rest_passes: u32,
}

impl Batching {
    /// For prolonged waits of so many microseconds at most; none with 0.
    pub(super) fn new(wait_us: u32) -> Batching {
        let gathered = 2 * GATHERED_MIN * FRACTION;
        Batching { wait_us, gap_nanos: IDLE_GAP_NANOS, gathered, prolonged: false, rest_passes: 0 }
    }

    /// How many arrivals the next wait should ask for, within how many microseconds; none for an ordinary wait.
    /// `patience`: how long an arrival may be left waiting. `timeout`: when the wait is to end anyhow; the kernel would let a
    /// prolonged one go beyond it.
    pub(super) fn plan(&mut self, patience: Duration, timeout: Option<Duration>) -> Option<(usize, u32)> {
        let patience = timeout.map_or(patience, |timeout| timeout.min(patience));
        let wait_us = u32::try_from(patience.as_micros()).map_or(self.wait_us, |patience| patience.min(self.wait_us));
        let expected = u64::from(wait_us) * 1000 / self.gap_nanos.max(1);
        self.prolonged = expected >= EXPECTED_MIN && self.rest_passes == 0;
        self.rest_passes = self.rest_passes.saturating_sub(1);
        self.prolonged.then(|| ((ASKED_TIMES * expected).min(ASKED_MAX) as usize, wait_us))
    }

    /// A pass took `nanos` from the last one and brought so many arrivals.
    pub(super) fn passed(&mut self, nanos: u64, arrivals: usize) {
        let arrivals = arrivals as u64;
        let gap_nanos = nanos / arrivals.max(1);
        // An idle spell counts at once, so that the first requests after it do not wait.
        let is_idle = gap_nanos > u64::from(self.wait_us) * 1000;
        self.gap_nanos = if is_idle { gap_nanos } else { (3 * self.gap_nanos + gap_nanos) / 4 };
        if self.prolonged {
            self.gathered = (31 * self.gathered + FRACTION * arrivals) / 32;
            if self.gathered < GATHERED_MIN * FRACTION {
                // Not worth it now; a later trial starts with some credit.
                self.gathered = GATHERED_MIN * FRACTION * 5 / 4;
                self.rest_passes = REST_PASSES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1);

    /// Passes that come one each `nanos` with so many arrivals; returns how many of them waited longer.
    fn run(batching: &mut Batching, passes: u32, nanos: u64, arrivals: usize) -> u32 {
        let mut prolonged = 0;
        for _ in 0..passes {
            prolonged += u32::from(batching.plan(LONG, None).is_some());
            batching.passed(nanos, arrivals);
        }
        prolonged
    }

    #[test]
    fn a_steady_stream_is_gathered() {
        let mut batching = Batching::new(200);
        assert_eq!(batching.plan(LONG, None), None, "nothing is known yet");
        run(&mut batching, 100, 40_000, 8); // one each 5 microseconds
        assert_eq!(batching.plan(LONG, None), Some((32, 200)));
        assert!(run(&mut batching, 1000, 200_000, 12) > 990);
    }

    #[test]
    fn one_request_after_another_is_not_held_up() {
        let mut batching = Batching::new(200);
        let prolonged = run(&mut batching, 100_000, 60_000, 1);
        assert!(prolonged > 0 && prolonged < 2000, "only trials: {prolonged}");
    }

    #[test]
    fn after_an_idle_spell_the_first_request_goes_at_once() {
        let mut batching = Batching::new(200);
        run(&mut batching, 100, 40_000, 8);
        batching.passed(10_000_000, 1);
        assert_eq!(batching.plan(LONG, None), None);
    }

    #[test]
    fn no_wait_is_longer_than_patience() {
        let mut batching = Batching::new(200);
        run(&mut batching, 100, 40_000, 8);
        assert_eq!(batching.plan(Duration::from_micros(50), None), Some((32, 50)));
        assert_eq!(batching.plan(Duration::from_micros(25), None), Some((20, 25)), "four times what is expected");
        assert_eq!(batching.plan(Duration::from_micros(5), None), None, "nothing to gather in that");
        assert_eq!(batching.plan(Duration::ZERO, None), None);
        assert_eq!(batching.plan(LONG, Some(Duration::from_micros(50))), Some((32, 50)), "nor than the timeout");
    }

    #[test]
    fn zero_switches_it_off() {
        assert_eq!(run(&mut Batching::new(0), 1000, 1000, 50), 0);
    }
}
