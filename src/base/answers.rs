//! How long the other side takes to answer, as a measure of what waiting costs.
//!
//! Owns one probe at a time and an estimate of the lower quartile. Never reads a clock and keeps nothing per request.
//! Invariant: a probe that is never answered is given up, so that the estimate keeps moving.

use std::time::Duration;

use crate::base::time::Time;

/// A probe without an answer for this long is given up: its request may have been cancelled.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// The estimate moves by this part of itself: a few dozen answers change it by half.
const STEP_PART: u64 = 32;

/// Smallest step, in nanoseconds.
const STEP_NANOS_MIN: u64 = 100;

/// The lower quartile of the time from a request to its answer. Zero until something was answered.
///
/// The quartile and not the mean: where quick and slow services share a worker, the quick ones count.
#[derive(Default, Debug)]
pub struct AnswerTimes {
    probe: Option<(u32, Time)>,
    quartile_nanos: u64,
}

impl AnswerTimes {
    /// Something was asked on the stream with this tag.
    pub fn asked(&mut self, now: Time, tag: u32) {
        if self.probe.is_none_or(|(_, at)| now.since(at) >= PROBE_MAX) {
            self.probe = Some((tag, now));
        }
    }

    /// The first bytes of an answer came on the stream with this tag.
    pub fn answered(&mut self, now: Time, tag: u32) {
        if let Some((asked, at)) = self.probe
            && asked == tag
        {
            self.probe = None;
            self.learn(u64::try_from(now.since(at).as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// The estimate.
    #[must_use]
    pub fn quartile(&self) -> Duration {
        Duration::from_nanos(self.quartile_nanos)
    }

    /// Steps towards the quartile: three steps down for a sample below it, one up for one above, so that it comes to rest
    /// where a quarter of all samples is below.
    fn learn(&mut self, nanos: u64) {
        if self.quartile_nanos == 0 {
            self.quartile_nanos = nanos;
            return;
        }
        let step = (self.quartile_nanos / STEP_PART).max(STEP_NANOS_MIN);
        self.quartile_nanos = if nanos < self.quartile_nanos {
            self.quartile_nanos.saturating_sub(3 * step).max(nanos)
        } else {
            (self.quartile_nanos + step).min(nanos)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;

    fn at(micros: u64) -> Time {
        Time::ZERO + Duration::from_micros(micros)
    }

    #[test]
    fn the_estimate_comes_to_rest_near_the_quartile() {
        let mut times = AnswerTimes::default();
        assert_eq!(times.quartile(), Duration::ZERO);
        let mut prng = Prng::new(7);
        let mut now = 0;
        for _ in 0..10_000 {
            times.asked(at(now), 1);
            now += 1000 + prng.below(1000);
            times.answered(at(now), 1);
        }
        let quartile = times.quartile().as_micros();
        assert!((1150..1350).contains(&quartile), "{quartile}");
    }

    #[test]
    fn quick_services_count_among_slow_ones() {
        let mut times = AnswerTimes::default();
        let mut now = 0;
        for round in 0..5000 {
            times.asked(at(now), round);
            now += if round % 2 == 0 { 300 } else { 100_000 };
            times.answered(at(now), round);
        }
        assert!(times.quartile() < Duration::from_micros(400), "{:?}", times.quartile());
    }

    #[test]
    fn only_the_probe_is_timed_and_a_lost_one_is_given_up() {
        let mut times = AnswerTimes::default();
        times.asked(at(0), 1);
        times.asked(at(10), 2);
        times.answered(at(20), 2);
        assert_eq!(times.quartile(), Duration::ZERO, "another stream's answer");
        times.asked(at(1_000_000), 3);
        times.answered(at(1_000_500), 3);
        assert_eq!(times.quartile(), Duration::from_micros(500));
        times.answered(at(9_000_000), 3);
        assert_eq!(times.quartile(), Duration::from_micros(500), "nothing was asked");
    }
}
