//! Time as pure code sees it: a number of nanoseconds that somebody else read from a clock.

use core::time::Duration;

/// A moment of the monotonic clock, in nanoseconds since an origin that only its maker knows.
///
/// Pure modules never read a clock: they are handed one of these, which is what lets a simulation own time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(u64);

impl Time {
    /// The origin.
    pub const ZERO: Time = Time(0);

    /// A moment from nanoseconds since the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Time {
        Time(nanos)
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for Time {
    type Output = Time;

    /// Saturates at the end of time (584 years after the origin).
    fn add(self, delay: Duration) -> Time {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_and_measuring_agree_and_saturate() {
        let start = Time::from_nanos(5);
        let later = start + Duration::from_millis(3);
        assert_eq!(later.since(start), Duration::from_millis(3));
        assert_eq!(start.since(later), Duration::ZERO);
        assert_eq!((start + Duration::MAX).as_nanos(), u64::MAX);
    }
}
