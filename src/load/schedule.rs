//! The open loop: when requests are meant to start, whatever became of those before them.
//!
//! Owns the list of intended starts, which is a formula, and how many of them have begun. Never looks at answers: a
//! server that stalls must not slow those down who would have come meanwhile (coordinated omission).
//! Invariant: begun + dropped <= due, and starts are given out in order.

use std::time::Duration;

use crate::base::time::Time;

/// Starts that may wait for a connection at a time. At the bound the oldest is given up and counted as an error: who
/// has that many waiting learns nothing more from waiting longer, and memory is not the reason, since the list is a
/// formula.
pub const BACKLOG_MAX: u64 = 100_000;

/// A start is late when it begins later than this after its time.
pub const LATE_AFTER: Duration = Duration::from_millis(1);

/// Highest rate, starts per second.
pub const RATE_MAX: f64 = 10_000_000.0;

/// The intended starts of one worker of several: every `stride`-th, from the `offset`-th on.
#[derive(Clone, Debug)]
pub struct Schedule {
    origin: Time,
    nanos_per_start: f64,
    offset: u64,
    stride: u64,
    /// Starts given out or given up.
    taken: u64,
}

impl Schedule {
    /// `rate` starts per second in all, from `origin` on, of which this is one of `stride` equal parts.
    #[must_use]
    pub fn new(rate: f64, origin: Time, offset: u64, stride: u64) -> Schedule {
        Schedule { origin, nanos_per_start: 1e9 / rate, offset, stride, taken: 0 }
    }

    fn at(&self, index: u64) -> Time {
        let nanos = (self.offset + index * self.stride) as f64 * self.nanos_per_start;
        self.origin + Duration::from_nanos(nanos as u64)
    }

    /// When the next start is meant to be.
    #[must_use]
    pub fn next(&self) -> Time {
        self.at(self.taken)
    }

    /// Takes the next start if its time has come; when that was.
    pub fn take(&mut self, now: Time) -> Option<Time> {
        let at = self.next();
        (at <= now).then(|| {
            self.taken += 1;
            at
        })
    }

    /// Starts whose time has come and that nobody took.
    #[must_use]
    pub fn backlog(&self, now: Time) -> u64 {
        if self.next() > now {
            return 0;
        }
        // An estimate by division, put right by the formula that decides.
        let elapsed = now.since(self.origin).as_nanos() as f64 / self.nanos_per_start;
        let mut due = ((elapsed as u64).saturating_sub(self.offset) / self.stride).saturating_sub(1);
        while self.at(due) <= now {
            due += 1;
        }
        due.saturating_sub(self.taken)
    }

    /// Gives up the oldest of the backlog until it is within [`BACKLOG_MAX`]; how many.
    pub fn shed(&mut self, now: Time) -> u64 {
        let excess = self.backlog(now).saturating_sub(BACKLOG_MAX);
        self.taken += excess;
        excess
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Time = Time::from_nanos(5_000_000_000);

    fn after(nanos: u64) -> Time {
        ORIGIN + Duration::from_nanos(nanos)
    }

    #[test]
    fn starts_come_at_their_rate_whenever_they_are_asked_for() {
        let mut schedule = Schedule::new(1000.0, ORIGIN, 0, 1);
        assert_eq!(schedule.take(Time::ZERO), None);
        assert_eq!(schedule.take(ORIGIN), Some(ORIGIN));
        assert_eq!(schedule.take(ORIGIN), None);
        assert_eq!(schedule.next(), after(1_000_000));
        // A stall of a second: all that was due is handed out with the times it was due at.
        let now = after(1_000_000_000);
        assert_eq!(schedule.backlog(now), 1000);
        let times: Vec<Time> = std::iter::from_fn(|| schedule.take(now)).collect();
        assert_eq!((times.len(), times[0], times[999]), (1000, after(1_000_000), now));
        assert_eq!(schedule.backlog(now), 0);
    }

    #[test]
    fn workers_share_the_starts_without_gap_or_overlap() {
        let now = after(100_000_000);
        let mut whole = Schedule::new(777.0, ORIGIN, 0, 1);
        let mut parts = [0, 1, 2].map(|offset| Schedule::new(777.0, ORIGIN, offset, 3));
        let mut apart: Vec<Time> =
            parts.iter_mut().flat_map(|part| std::iter::from_fn(|| part.take(now)).collect::<Vec<_>>()).collect();
        apart.sort_unstable();
        assert_eq!(apart, std::iter::from_fn(|| whole.take(now)).collect::<Vec<_>>());
    }

    #[test]
    fn backlog_agrees_with_taking() {
        for rate in [0.5, 3.0, 1e5 / 7.0, 1e7] {
            for nanos in [0, 1, 999_999, 1_000_000, 123_456_789] {
                let mut schedule = Schedule::new(rate, ORIGIN, 1, 2);
                let told = schedule.backlog(after(nanos));
                let taken = std::iter::from_fn(|| schedule.take(after(nanos))).count() as u64;
                assert_eq!(told, taken, "rate {rate}, {nanos} ns");
            }
        }
    }

    #[test]
    fn beyond_the_bound_the_oldest_is_given_up() {
        let mut schedule = Schedule::new(1e6, ORIGIN, 0, 1);
        let now = after(200_000_000);
        assert_eq!(schedule.backlog(now), 200_001);
        assert_eq!(schedule.shed(now), 200_001 - BACKLOG_MAX);
        assert_eq!(schedule.shed(now), 0);
        assert_eq!(schedule.backlog(now), BACKLOG_MAX);
        assert_eq!(schedule.take(now), Some(after((200_001 - BACKLOG_MAX) * 1000)));
    }
}
