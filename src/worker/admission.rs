//! Which ClientHello is answered next, when, and whether more are wanted: what keeps a storm of handshakes from the
//! connections that are established.
//!
//! Owns the queue of held links, the account of time that handshakes may take, and the decision how to accept. Never reads
//! a clock and never touches a link. Invariant: while other work waits, handshakes take their share of the core and no
//! more than one handshake beyond it; while none does, nothing in the queue waits.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::time::Time;
use crate::base::wire::LinkId;

/// Most links in the queue of one worker. At 100 to 200 microseconds a handshake a core serves as many in half a second
/// to a second, and one client's flight takes some KiB of memory while it waits.
pub(super) const QUEUE_MAX: usize = 4096;

/// While the oldest has waited for less, it goes first: so long nobody gives up.
const ORDERLY_MAX: Duration = Duration::from_millis(100);

/// Credit is saved up to this: a burst of a few dozen clients on a quiet core is answered at once.
const CREDIT_NANOS_MAX: i64 = 5_000_000;

/// Debt is forgotten beyond this, so that a handshake during which another process had the core is not paid for long.
const DEBT_NANOS_MAX: i64 = 2_000_000;

/// Handshakes of one pass end after this: longer, and requests of established connections would wait for too many.
pub(super) const SLICE: Duration = Duration::from_micros(500);

/// A core on which nothing else happened for this long has nothing else to do. What comes while the ring waits for a
/// fuller batch is seen before that is asked, so such a wait does not pass for idleness.
pub(super) const GAP: Duration = Duration::from_micros(200);

/// How long the time left idle is watched before the share is moved.
const WINDOW_NANOS: u64 = 20_000_000;

/// Idle time beyond this part of a window, in percent, is worth being given to handshakes.
const IDLE_PERCENT_MAX: u64 = 5;

/// What the share grows by while there is idle time, in percent of the core.
const SHARE_STEP: u64 = 10;

/// The share never grows beyond this: credit comes from other work, of which some must be left.
const SHARE_MAX: u64 = 90;

/// Fewest held links at which accepting stops, whatever handshakes cost.
const ACCEPT_BOUND_MIN: usize = 32;

/// Most held links at which accepting still goes on: half of what may be held, so that shedding comes before dropping.
const ACCEPT_BOUND_MAX: usize = QUEUE_MAX / 2;

/// What a handshake is taken to cost before one was measured.
const COST_NANOS_FIRST: u64 = 200_000;

/// What decides who goes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// A ticket was found: the handshake is cheap, and the user was here before.
    Resuming,
    /// Everything else.
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    link: LinkId,
    since: Time,
}

/// Held links: resumptions before full handshakes, and in order while nobody waits for long. Once somebody does, the newest
/// go first: whoever waited longest has most likely given up ("adaptive LIFO", B. Maurer, Fail at Scale, ACM Queue 13.8, 2015).
///
/// Invariant: in both lists the oldest is in front.
pub(super) struct Queue {
    resuming: VecDeque<Waiting>,
    full: VecDeque<Waiting>,
    patience: Duration,
    length_max: usize,
}

impl Queue {
    /// For links that are of no use after so long.
    pub(super) fn new(patience: Duration, length_max: usize) -> Queue {
        Queue { resuming: VecDeque::new(), full: VecDeque::new(), patience, length_max }
    }

    pub(super) fn len(&self) -> usize {
        self.resuming.len() + self.full.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a link whose ClientHello became whole at `since`. Returns the link that must go for it, if the queue is full:
    /// the oldest full handshake, or the oldest resumption when there is none.
    pub(super) fn push(&mut self, class: Class, link: LinkId, since: Time) -> Option<LinkId> {
        let list = match class {
            Class::Resuming => &mut self.resuming,
            Class::Full => &mut self.full,
        };
        list.push_back(Waiting { link, since });
        if self.len() <= self.length_max {
            return None;
        }
        self.full.pop_front().or_else(|| self.resuming.pop_front()).map(|waiting| waiting.link)
    }

    /// Takes the link whose turn it is.
    pub(super) fn pop(&mut self, now: Time) -> Option<LinkId> {
        let list = if self.resuming.is_empty() { &mut self.full } else { &mut self.resuming };
        let is_orderly = now.since(list.front()?.since) < ORDERLY_MAX;
        if is_orderly { list.pop_front() } else { list.pop_back() }.map(|waiting| waiting.link)
    }

    /// Takes a link that waited too long.
    pub(super) fn pop_late(&mut self, now: Time) -> Option<LinkId> {
        let patience = self.patience;
        let is_late = |list: &VecDeque<Waiting>| list.front().is_some_and(|first| first.since + patience <= now);
        let list = if is_late(&self.full) { &mut self.full } else { &mut self.resuming };
        if is_late(list) { list.pop_front().map(|waiting| waiting.link) } else { None }
    }

    /// Forgets a link that is gone. Looks from the newest on: a client that waits for long gives up rarely, as others do.
    pub(super) fn remove(&mut self, link: LinkId) {
        for list in [&mut self.full, &mut self.resuming] {
            if let Some(index) = list.iter().rposition(|waiting| waiting.link == link) {
                list.remove(index);
                return;
            }
        }
    }
}

/// What one pass of the loop was spent on.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Spent {
    /// From the last pass's end to this one's.
    pub(super) total: Duration,
    /// CPU time on anything but handshakes.
    pub(super) other: Duration,
    /// Time in which the core had nothing to do though handshakes waited.
    pub(super) idle: Duration,
}

/// The account of handshakes: they are granted time in proportion to the time that other work takes.
///
/// The proportion follows the core: the configured share while it is busy, more while time is left idle although
/// handshakes wait, and back. Idle time itself is not credited, because it is over: with clients that wait for
/// answers, handshakes on top of it would slow everybody down, while in its place they slow nobody.
pub(super) struct Budget {
    /// Percent of the core, as configured.
    share_min: u64,
    /// Percent of the core, as of now.
    share: u64,
    /// What handshakes may take, in nanoseconds; negative when they took more.
    credit_nanos: i64,
    /// Mean cost of a handshake.
    cost_nanos: u64,
    window_nanos: u64,
    window_idle_nanos: u64,
}

impl Budget {
    /// An account that is full, for so many percent of a busy core.
    pub(super) fn new(share: u32) -> Budget {
        let share = u64::from(share).clamp(1, SHARE_MAX);
        Budget {
            share_min: share,
            share,
            credit_nanos: CREDIT_NANOS_MAX,
            cost_nanos: COST_NANOS_FIRST,
            window_nanos: 0,
            window_idle_nanos: 0,
        }
    }

    /// Whether a handshake may run beside other work.
    pub(super) fn allows(&self) -> bool {
        self.credit_nanos > 0
    }

    /// Whether so little is left that each pass has to be accounted for.
    pub(super) fn is_low(&self) -> bool {
        self.credit_nanos < CREDIT_NANOS_MAX / 2
    }

    /// Whether nothing is owed and nothing is to be saved.
    pub(super) fn is_full(&self) -> bool {
        self.credit_nanos == CREDIT_NANOS_MAX
    }

    /// Handshakes took this long: accepting and reading for them is part of it.
    pub(super) fn charge(&mut self, taken: Duration) {
        let nanos = i64::try_from(taken.as_nanos()).unwrap_or(i64::MAX);
        self.credit_nanos = self.credit_nanos.saturating_sub(nanos).max(-DEBT_NANOS_MAX);
    }

    /// One ClientHello was answered in this time.
    pub(super) fn measured(&mut self, taken: Duration) {
        let nanos = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX).min(10 * COST_NANOS_FIRST);
        self.cost_nanos = (7 * self.cost_nanos + nanos) / 8;
    }

    /// There is nothing else to do: debts are forgotten.
    pub(super) fn forgive(&mut self) {
        self.credit_nanos = self.credit_nanos.max(1);
    }

    /// A pass is over.
    pub(super) fn earn(&mut self, spent: Spent) {
        let other = u64::try_from(spent.other.as_nanos()).unwrap_or(u64::MAX);
        let earned = other.saturating_mul(self.share) / (100 - self.share);
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        self.credit_nanos = self.credit_nanos.saturating_add(earned).min(CREDIT_NANOS_MAX);
        self.window_nanos = self.window_nanos.saturating_add(spent.total.as_nanos() as u64);
        self.window_idle_nanos = self.window_idle_nanos.saturating_add(spent.idle.as_nanos() as u64);
        if self.window_nanos >= WINDOW_NANOS {
            self.close_window();
        }
    }

    fn close_window(&mut self) {
        let has_idle = self.window_idle_nanos.saturating_mul(100) > self.window_nanos.saturating_mul(IDLE_PERCENT_MAX);
        self.share = if has_idle {
            (self.share + SHARE_STEP).min(SHARE_MAX)
        } else {
            // Slowly back, rounded down: what is not idle any more belongs to others again.
            (3 * self.share + self.share_min) / 4
        };
        (self.window_nanos, self.window_idle_nanos) = (0, 0);
    }

    /// Nobody waits: what was learned about idle time is void, and time passed on an idle core fills the account.
    pub(super) fn rest(&mut self, idle: Duration) {
        self.share = self.share_min;
        (self.window_nanos, self.window_idle_nanos) = (0, 0);
        let nanos = i64::try_from(idle.as_nanos()).unwrap_or(i64::MAX);
        self.credit_nanos = self.credit_nanos.saturating_add(nanos).min(CREDIT_NANOS_MAX);
    }

    /// How many held links are worth having: those that a busy core serves in a quarter of their patience. The rest is
    /// held off more cheaply by the kernel.
    pub(super) fn accept_bound(&self, patience: Duration) -> usize {
        let time = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX) / 4 / 100 * self.share_min;
        let served = time / self.cost_nanos.max(1);
        usize::try_from(served).unwrap_or(usize::MAX).clamp(ACCEPT_BOUND_MIN, ACCEPT_BOUND_MAX)
    }
}

/// How connections are accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Accepting {
    /// All that come.
    All,
    /// One per listener and pass: a backlog that has grown is not taken in one gulp.
    OneByOne,
    /// None: the kernel's backlog and SYN queue hold them off.
    None,
}

impl Accepting {
    /// How to go on with so many links held. `accepted`: a connection was there to be accepted in the last pass, so that
    /// the kernel may hold more, up to the whole backlog.
    pub(super) fn next(self, held: usize, bound: usize, accepted: bool) -> Accepting {
        match self {
            Accepting::All if held > bound => Accepting::None,
            Accepting::None if held <= bound / 2 => Accepting::OneByOne,
            Accepting::OneByOne if held > bound => Accepting::None,
            Accepting::OneByOne if held == 0 && !accepted => Accepting::All,
            same => same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn link(index: u32) -> LinkId {
        LinkId { index, generation: 0 }
    }

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn queue() -> Queue {
        Queue::new(PATIENCE, 4)
    }

    #[test]
    fn resumptions_go_first_in_order_or_newest_first_once_they_wait_for_long() {
        let mut queue = queue();
        assert_eq!(queue.push(Class::Full, link(0), at(0)), None);
        assert_eq!(queue.push(Class::Resuming, link(1), at(1)), None);
        assert_eq!(queue.push(Class::Full, link(2), at(2)), None);
        assert_eq!(queue.push(Class::Resuming, link(3), at(3)), None);
        assert_eq!([queue.pop(at(100)), queue.pop(at(103))], [1, 3].map(|index| Some(link(index))));
        queue.push(Class::Resuming, link(4), at(103));
        let order: Vec<LinkId> = std::iter::from_fn(|| queue.pop(at(103))).collect();
        assert_eq!(order, [4, 2, 0].map(link), "the first full handshake has waited for long; the second is alone");
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_drops_the_oldest_full_handshake() {
        let mut queue = queue();
        for (index, class) in [Class::Resuming, Class::Full, Class::Full, Class::Full].into_iter().enumerate() {
            assert_eq!(queue.push(class, link(index as u32), at(0)), None);
        }
        for (index, dropped) in [(4, 1), (5, 2), (6, 3), (7, 0)] {
            assert_eq!(queue.push(Class::Resuming, link(index), at(1)), Some(link(dropped)));
            assert_eq!(queue.len(), 4);
        }
        assert_eq!(queue.push(Class::Full, link(8), at(1)), Some(link(8)), "no resumption goes for a full handshake");
    }

    #[test]
    fn who_waited_too_long_is_dropped_in_order_of_age() {
        let mut queue = queue();
        queue.push(Class::Resuming, link(0), at(10));
        queue.push(Class::Full, link(1), at(20));
        queue.push(Class::Full, link(2), at(30));
        assert_eq!(queue.pop_late(at(3009)), None);
        assert_eq!(queue.pop_late(at(3010)), Some(link(0)));
        assert_eq!(queue.pop_late(at(3010)), None);
        assert_eq!(queue.pop_late(at(3029)), Some(link(1)));
        assert_eq!(queue.pop(at(3029)), Some(link(2)));
        assert_eq!(queue.pop_late(at(9999)), None);
    }

    #[test]
    fn a_link_that_is_gone_is_forgotten() {
        let mut queue = queue();
        queue.push(Class::Resuming, link(0), at(0));
        queue.push(Class::Full, link(1), at(0));
        queue.remove(link(7));
        queue.remove(link(0));
        assert_eq!((queue.pop(at(1)), queue.pop(at(1))), (Some(link(1)), None));
    }

    /// A core with a fake clock: passes of other work, and a storm that never ends. Returns the parts of the time that
    /// handshakes and other work took, in percent. `other` is what a pass has to do; what it leaves of `pass` is idle
    /// unless a handshake runs in its place.
    fn storm(budget: &mut Budget, passes: u32, other: Duration, pass: Duration) -> (u64, u64) {
        let handshake = micros(150);
        let (mut total, mut shaken, mut worked) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for _ in 0..passes {
            let mut taken = Duration::ZERO;
            while budget.allows() && taken < SLICE {
                budget.charge(handshake);
                budget.measured(handshake);
                taken += handshake;
            }
            let idle = pass.saturating_sub(other).saturating_sub(taken);
            let spent = Spent { total: other + taken + idle, other, idle };
            budget.earn(spent);
            total += spent.total;
            shaken += taken;
            worked += other;
        }
        let percent = |part: Duration| (part.as_nanos() * 100 / total.as_nanos()) as u64;
        (percent(shaken), percent(worked))
    }

    #[test]
    fn handshakes_take_their_share_of_a_busy_core() {
        let mut budget = Budget::new(20);
        storm(&mut budget, 1000, micros(200), micros(200));
        let (shaken, worked) = storm(&mut budget, 10_000, micros(200), micros(200));
        assert!((19..=21).contains(&shaken), "{shaken} % for handshakes");
        assert!((79..=81).contains(&worked), "{worked} % for the rest");
    }

    #[test]
    fn handshakes_fill_what_a_core_leaves_idle() {
        let mut budget = Budget::new(20);
        storm(&mut budget, 1000, micros(60), micros(200));
        let (shaken, worked) = storm(&mut budget, 10_000, micros(60), micros(200));
        assert!(shaken >= 50, "{shaken} % for handshakes of 70 % that are free");
        assert!(worked >= 25, "{worked} % for the rest, which wants 30 %");
        // When the others come back, they get what is theirs within a fraction of a second.
        storm(&mut budget, 1000, micros(200), micros(200));
        let (shaken, _) = storm(&mut budget, 1000, micros(200), micros(200));
        assert!(shaken <= 21, "{shaken} % for handshakes");
    }

    #[test]
    fn a_core_with_nothing_else_to_do_owes_nothing() {
        let mut budget = Budget::new(20);
        budget.charge(Duration::from_secs(1));
        assert!(!budget.allows());
        budget.forgive();
        assert!(budget.allows());
        budget.charge(micros(150));
        assert!(!budget.allows());
        budget.rest(Duration::from_secs(1));
        assert!(budget.is_full());
    }

    #[test]
    fn a_debt_is_bounded() {
        let mut budget = Budget::new(50);
        budget.charge(Duration::from_secs(100));
        budget.earn(Spent { total: micros(2001), other: micros(2001), idle: Duration::ZERO });
        assert!(budget.allows(), "half of the core pays 2 ms of debt in 2 ms");
    }

    #[test]
    fn accepting_stops_at_the_bound_and_resumes_gently() {
        let mut accepting = Accepting::All;
        let mut seen = Vec::new();
        for held in [0, 100, 101, 60, 50, 80, 101, 51, 50, 1, 0, 7] {
            accepting = accepting.next(held, 100, false);
            seen.push(accepting);
        }
        use Accepting::{All, None, OneByOne};
        let expected = [All, All, None, None, OneByOne, OneByOne, None, None, OneByOne, OneByOne, All, All];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_backlog_is_not_taken_in_one_gulp() {
        let one_by_one = Accepting::OneByOne;
        assert_eq!(one_by_one.next(0, 100, true), Accepting::OneByOne, "there may be thousands more");
        assert_eq!(one_by_one.next(0, 100, false), Accepting::All, "there are none");
    }

    #[test]
    fn the_bound_follows_patience_and_cost() {
        let mut budget = Budget::new(20);
        assert_eq!(budget.accept_bound(PATIENCE), 750);
        for _ in 0..100 {
            budget.measured(micros(400));
        }
        assert_eq!(budget.accept_bound(PATIENCE), 375);
        assert_eq!(budget.accept_bound(Duration::ZERO), ACCEPT_BOUND_MIN);
        assert_eq!(budget.accept_bound(Duration::from_secs(3600)), ACCEPT_BOUND_MAX);
    }
}
