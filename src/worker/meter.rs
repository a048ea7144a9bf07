//! What one pass of the loop was spent on: handshakes, everything else, or nothing.
//!
//! Owns the sums of the pass; readings of the clocks are handed in. Used only while handshakes wait or are paid for: a
//! worker without any reads no clock but the ring's own.

use std::time::Duration;

use super::admission::Spent;
use crate::base::time::Time;

/// Both clocks at one moment.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Mark {
    pub(super) clock: Time,
    /// CPU time of the thread.
    pub(super) worked: Duration,
}

/// The account of one pass.
#[derive(Default)]
pub(super) struct Meter {
    is_on: bool,
    /// Before the wait.
    begun: Mark,
    /// After the wait.
    waited: Mark,
    /// Time spent on links that are being set up.
    setup: Duration,
    completions: u32,
    setup_completions: u32,
    /// The last moment at which there was something else to do.
    busy_at: Time,
}

impl Meter {
    /// Whether this pass is accounted for.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// A pass begins; `mark` is none when it is not accounted for.
    pub(super) fn begin(&mut self, mark: Option<Mark>) {
        if let Some(mark) = mark {
            // What was not watched counts as busy.
            let busy_at = if self.is_on { self.busy_at } else { mark.clock };
            *self = Meter { is_on: true, begun: mark, waited: mark, busy_at, ..Meter::default() };
        } else {
            self.is_on = false;
        }
    }

    /// The wait is over.
    pub(super) fn waited(&mut self, mark: Mark) {
        self.waited = mark;
    }

    /// A completion was seen.
    pub(super) fn saw(&mut self, is_setup: bool) {
        self.completions += 1;
        self.setup_completions += u32::from(is_setup);
        if !is_setup {
            self.busy_at = self.waited.clock;
        }
    }

    /// Time was spent on a link that is being set up.
    pub(super) fn add_setup(&mut self, taken: Duration) {
        self.setup += taken;
    }

    /// How long there has been nothing else to do.
    pub(super) fn quiet(&self) -> Duration {
        self.waited.clock.since(self.busy_at)
    }

    /// When that was last so.
    pub(super) fn busy_at(&self) -> Time {
        self.busy_at
    }

    /// The kernel's part of handshakes in the wait: accepts, receives and sends are carried out there. By the number of
    /// completions, since all of them cost much the same.
    pub(super) fn setup_in_kernel(&self) -> Duration {
        self.worked_in_wait() * self.setup_completions / self.completions.max(1)
    }

    fn worked_in_wait(&self) -> Duration {
        self.waited.worked.saturating_sub(self.begun.worked)
    }

    /// Time for which the wait blocked.
    pub(super) fn blocked(&self) -> Duration {
        self.waited.clock.since(self.begun.clock).saturating_sub(self.worked_in_wait())
    }

    /// The pass is over. `waits`: handshakes waited through it.
    pub(super) fn spent(&self, ended: Mark, waits: bool) -> Spent {
        let worked = ended.worked.saturating_sub(self.begun.worked);
        Spent {
            total: ended.clock.since(self.begun.clock),
            other: worked.saturating_sub(self.setup + self.setup_in_kernel()),
            idle: if waits { self.blocked() } else { Duration::ZERO },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(clock: u64, worked: u64) -> Mark {
        Mark { clock: Time::ZERO + Duration::from_micros(clock), worked: Duration::from_micros(worked) }
    }

    #[test]
    fn a_pass_is_divided_among_handshakes_the_rest_and_nothing() {
        let mut meter = Meter::default();
        meter.begin(Some(mark(1000, 500)));
        meter.waited(mark(1150, 540)); // 150 us passed, 40 worked: 110 blocked
        meter.saw(true);
        meter.saw(false);
        meter.saw(false);
        meter.saw(true);
        meter.add_setup(Duration::from_micros(200));
        let spent = meter.spent(mark(1450, 840), true);
        assert_eq!(meter.setup_in_kernel(), Duration::from_micros(20));
        assert_eq!(spent.total, Duration::from_micros(450));
        assert_eq!(spent.other, Duration::from_micros(340 - 200 - 20));
        assert_eq!(spent.idle, Duration::from_micros(110));
        assert_eq!(meter.spent(mark(1450, 840), false).idle, Duration::ZERO);
    }

    #[test]
    fn quiet_lasts_from_the_last_other_completion() {
        let mut meter = Meter::default();
        meter.begin(Some(mark(100, 0)));
        meter.waited(mark(150, 10));
        assert_eq!(meter.quiet(), Duration::from_micros(50), "the unwatched time before counts as busy");
        meter.saw(false);
        assert_eq!(meter.quiet(), Duration::ZERO);
        meter.begin(Some(mark(200, 20)));
        meter.waited(mark(450, 20));
        meter.saw(true);
        assert_eq!(meter.quiet(), Duration::from_micros(300));
        meter.begin(None);
        assert!(!meter.is_on());
        meter.begin(Some(mark(9000, 30)));
        meter.waited(mark(9001, 30));
        assert_eq!(meter.quiet(), Duration::from_micros(1));
    }
}
