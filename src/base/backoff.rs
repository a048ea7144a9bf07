//! Delays between dials. Jitter comes from the caller's generator.

use core::time::Duration;

use super::prng::Prng;

/// Doubling delays with jitter: between half and all of `min * 2^failures`, at most `max`.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts with `min` after the first failure, and never waits longer than `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max: max.max(min), failures: 0 }
    }

    /// The delay after one more failure.
    pub fn failed(&mut self, prng: &mut Prng) -> Duration {
        let full = self.min.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        let full_nanos = u64::try_from(full.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(full_nanos / 2 + prng.below(full_nanos / 2 + 1))
    }

    /// What was dialled works: the next failure waits `min` again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_with_jitter() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut prng = Prng::new(1);
        for expected_ms in [50, 100, 200, 400, 800, 1000, 1000, 1000] {
            let delay = backoff.failed(&mut prng);
            let full = Duration::from_millis(expected_ms);
            assert!(delay >= full / 2 && delay <= full, "{delay:?} of {full:?}");
        }
        backoff.succeeded();
        assert!(backoff.failed(&mut prng) <= Duration::from_millis(50));
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX);
        let mut prng = Prng::new(1);
        for _ in 0..1000 {
            backoff.failed(&mut prng);
        }
    }
}
