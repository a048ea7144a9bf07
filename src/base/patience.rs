//! How long what has arrived may wait for company: a share of what its sender will not notice, and less the less there is
//! to gain.
//!
//! Owns three estimates: how long answers take and how often a client asks, each with one probe at a time, and how often
//! anything is asked: requests, and pieces of what is sent with them. Never reads a clock and keeps nothing per request.
//! Invariant: a probe that comes to nothing is given up, so that estimates keep moving.

use std::time::Duration;

use crate::base::time::Time;

/// A wait may be this part of the time between two requests of a client: one that asks as soon as it is answered is slowed
/// by no more.
const PACE_PART: u32 = 10;

/// Answers that take long grant no more: a request may wait for so long on its way there, and its answer on the way back.
const ANSWERS_WAIT_MAX: Duration = Duration::from_millis(1);

/// No wait is longer, whatever is granted: what a client with many requests side by side asks for in that time arrives
/// and leaves in one piece.
const WAIT_MAX: Duration = Duration::from_millis(4);

/// Small requests that come at least this often take a quarter of a core or more: there the whole wait is granted. Where
/// they come less often little is gained by making room. Costly ones, handshakes and bodies, fill a core at lower rates, and
/// wait less than would be worth it there.
const DENSE_GAP: Duration = Duration::from_micros(60);

/// How long is counted to tell how often anything is asked.
const COUNT_TIME: Duration = Duration::from_millis(10);

/// A probe without an end for this long is given up: its stream may be gone, its client may have gone quiet.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// An estimate moves by this part of itself: a few dozen samples change it by half.
const STEP_PART: u64 = 32;

/// Smallest step, in nanoseconds.
const STEP_NANOS_MIN: u64 = 100;

/// What is known of the traffic of one worker.
#[derive(Debug)]
pub struct Patience {
    prompt: Duration,
    answers: Probed,
    pace: Probed,
    density: Density,
}

impl Patience {
    /// Nothing is known yet. Answers that take less than `prompt` grant no wait, since it would be much of what a user sees;
    /// what they take beyond it, waits may take again.
    #[must_use]
    pub fn new(prompt: Duration) -> Patience {
        Patience { prompt, answers: Probed::default(), pace: Probed::default(), density: Density::default() }
    }

    /// Something was asked on the stream with this tag.
    pub fn asked(&mut self, now: Time, stream: u32) {
        self.density.count(now);
        if self.answers.is_free(now) {
            self.answers.begin(now, stream);
        }
    }

    /// The client with this tag has asked for something. What it asks for in one pass counts once.
    pub fn client_asked(&mut self, now: Time, client: u32) {
        if self.pace.probe == Some((client, now)) {
            return;
        }
        if let Some(taken) = self.pace.end(now, client) {
            self.pace.learn(taken);
        }
        if self.pace.is_free(now) {
            if self.pace.probe.is_some() {
                self.pace.learn(PROBE_MAX); // it has not asked again: that it is slow is known all the same
            }
            self.pace.begin(now, client);
        }
    }

    /// The first bytes of an answer came on the stream with this tag. They may have waited themselves, for half of what is
    /// granted on average, which is not what the other side took.
    pub fn answered(&mut self, now: Time, stream: u32) {
        if let Some(taken) = self.answers.end(now, stream) {
            self.answers.learn(taken.saturating_sub(self.granted(now) / 2));
        }
    }

    /// How long what arrives may wait. Zero until something is known.
    #[must_use]
    pub fn granted(&self, now: Time) -> Duration {
        self.density.worth(now, self.unnoticed())
    }

    /// What no sender would notice.
    fn unnoticed(&self) -> Duration {
        let beyond = self.answers.quartile().saturating_sub(self.prompt);
        beyond.min(ANSWERS_WAIT_MAX).max(self.pace.quartile() / PACE_PART).min(WAIT_MAX)
    }
}

/// How often anything is asked.
#[derive(Default, Debug)]
struct Density {
    since: Time,
    count: u32,
    /// Mean time between two of them when last counted; none before that.
    gap: Option<Duration>,
}

impl Density {
    fn count(&mut self, now: Time) {
        self.count += 1;
        let elapsed = now.since(self.since);
        if elapsed >= COUNT_TIME {
            *self = Density { since: now, count: 0, gap: Some(elapsed / self.count) };
        }
    }

    /// What of a wait is worth it: all with requests that are dense, and else less by the square of how thin they are.
    /// Once because a wait gathers less, once because what it saves is less of the core.
    fn worth(&self, now: Time, wait: Duration) -> Duration {
        let Some(counted) = self.gap else { return Duration::ZERO };
        let elapsed = now.since(self.since);
        // Nothing was asked for a while: what was counted before is of another time.
        let gap = if elapsed < COUNT_TIME { counted } else { counted.max(elapsed / (self.count + 1)) };
        if gap <= DENSE_GAP {
            return wait;
        }
        let thin = DENSE_GAP.div_duration_f64(gap);
        wait.mul_f64(thin * thin)
    }
}

/// The lower quartile of a time, from one probe after another.
///
/// The quartile and not the mean: where quick and slow services, or clients, share a worker, the quick ones count.
#[derive(Default, Debug)]
struct Probed {
    probe: Option<(u32, Time)>,
    /// Some once there was a sample.
    nanos: Option<u64>,
}

impl Probed {
    fn is_free(&self, now: Time) -> bool {
        self.probe.is_none_or(|(_, at)| now.since(at) >= PROBE_MAX)
    }

    fn begin(&mut self, now: Time, tag: u32) {
        self.probe = Some((tag, now));
    }

    /// Ends the probe with this tag, if it is the one that is out: how long it took.
    fn end(&mut self, now: Time, tag: u32) -> Option<Duration> {
        let (_, at) = self.probe.take_if(|(probed, _)| *probed == tag)?;
        Some(now.since(at))
    }

    fn quartile(&self) -> Duration {
        Duration::from_nanos(self.nanos.unwrap_or(0))
    }

    /// Steps towards the quartile: three steps down for a sample below the estimate, one up for one above, so that it comes
    /// to rest where a quarter of all samples is below.
    fn learn(&mut self, sample: Duration) {
        let nanos = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX);
        let Some(known) = self.nanos else {
            self.nanos = Some(nanos);
            return;
        };
        let step = (known / STEP_PART).max(STEP_NANOS_MIN);
        let next = if nanos < known { known.saturating_sub(3 * step).max(nanos) } else { (known + step).min(nanos) };
        self.nanos = Some(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;

    const PROMPT: Duration = Duration::from_micros(300);

    fn at(micros: u64) -> Time {
        Time::ZERO + Duration::from_micros(micros)
    }

    #[test]
    fn where_requests_are_rare_little_waits() {
        let wait = Duration::from_micros(900);
        let worth = |gap: u64| {
            let mut density = Density::default();
            (0..2000).for_each(|request| density.count(at(gap * request)));
            density.worth(at(gap * 2000), wait)
        };
        assert_eq!(Density::default().worth(at(0), wait), Duration::ZERO, "nothing is known");
        assert_eq!(worth(10), wait);
        assert_eq!(worth(60), wait);
        let thin = worth(120); // half as dense: a quarter
        assert!(thin > Duration::from_micros(215) && thin <= Duration::from_micros(225), "{thin:?}");
        assert!(worth(1000) < Duration::from_micros(4));
        assert_eq!(worth(1_000_000), Duration::ZERO);
    }

    #[test]
    fn an_idle_spell_ends_waits() {
        let mut density = Density::default();
        (0..1000).for_each(|request| density.count(at(20 * request)));
        assert_eq!(density.worth(at(20_000), WAIT_MAX), WAIT_MAX);
        assert!(density.worth(at(5_000_000), WAIT_MAX) < Duration::from_micros(1), "nobody asks");
        density.count(at(5_000_000));
        assert!(density.worth(at(5_000_000), WAIT_MAX) < Duration::from_micros(1), "one asks again");
    }

    #[test]
    fn what_nobody_notices_is_granted_to_a_busy_worker() {
        let mut patience = Patience::new(Duration::ZERO);
        for request in 0..1000 {
            patience.asked(at(50 * request), 1);
            patience.answered(at(50 * request + 40), 1);
        }
        assert!(
            patience.granted(at(50_000)) > Duration::ZERO && patience.granted(at(50_000)) == patience.unnoticed(),
            "{patience:?}"
        );
    }

    #[test]
    fn an_estimate_comes_to_rest_near_the_quartile() {
        let mut probed = Probed::default();
        let mut prng = Prng::new(7);
        let mut sum = Duration::ZERO;
        for _ in 0..10_000 {
            probed.learn(Duration::from_micros(1000 + prng.below(1000)));
            sum += probed.quartile();
        }
        let mean = sum.as_micros() / 10_000; // each estimate by itself swings by some steps
        assert!((1200..1300).contains(&mean), "{mean}");
    }

    #[test]
    fn quick_services_count_among_slow_ones() {
        let mut patience = Patience::new(PROMPT);
        let mut now = 0;
        for round in 0..5000 {
            patience.asked(at(now), round);
            now += if round % 2 == 0 { 400 } else { 100_000 };
            patience.answered(at(now), round);
        }
        assert!(patience.unnoticed() < Duration::from_micros(200), "{patience:?}");
    }

    #[test]
    fn prompt_answers_grant_no_wait_and_slow_ones_do() {
        let mut patience = Patience::new(PROMPT);
        assert_eq!(patience.unnoticed(), Duration::ZERO);
        patience.asked(at(0), 1);
        patience.asked(at(10), 2);
        patience.answered(at(20), 2);
        assert_eq!(patience.unnoticed(), Duration::ZERO, "another stream's answer");
        patience.answered(at(250), 1);
        assert_eq!(patience.unnoticed(), Duration::ZERO, "prompt");
        for round in 0..200 {
            patience.asked(at(1000 * round), 3);
            patience.answered(at(1000 * round + 700), 3);
        }
        let granted = patience.unnoticed();
        assert!(granted > Duration::from_micros(200) && granted <= Duration::from_micros(400), "{granted:?}");
        patience.answered(at(9_000_000), 3);
        assert_eq!(patience.unnoticed(), granted, "nothing was asked");
        for round in 10..2000 {
            patience.asked(at(1_000_000 * round), 3);
            patience.answered(at(1_000_000 * round + 100_000), 3);
        }
        assert_eq!(patience.unnoticed(), ANSWERS_WAIT_MAX);
    }

    /// What is granted makes answers seem slower, which must not grant more and more.
    #[test]
    fn own_waits_do_not_feed_themselves() {
        for answer_micros in [200, 400, 700, 1000] {
            let mut patience = Patience::new(PROMPT);
            let mut prng = Prng::new(answer_micros);
            let (mut now, mut sum) = (0, 0);
            for _ in 0..20_000 {
                patience.asked(at(now), 1);
                patience.density = Density { since: at(now), count: 0, gap: Some(DENSE_GAP) }; // by others
                let wait = patience.granted(at(now)).as_micros() as u64;
                now += answer_micros + prng.below(wait + 1);
                patience.answered(at(now), 1);
                sum += wait;
            }
            let mean = sum / 20_000;
            let fair = answer_micros.saturating_sub(300);
            assert!(mean <= fair && 2 * mean >= fair, "{mean} of {fair} for answers after {answer_micros}");
        }
    }

    #[test]
    fn requests_side_by_side_count_once() {
        let mut patience = Patience::new(PROMPT);
        for round in 0..100 {
            for _ in 0..16 {
                patience.client_asked(at(200 * round), 1);
            }
        }
        assert_eq!(patience.unnoticed(), Duration::from_micros(20));
    }

    #[test]
    fn a_lost_probe_is_given_up() {
        let mut patience = Patience::new(PROMPT);
        patience.asked(at(0), 1);
        patience.asked(at(999_999), 2);
        patience.answered(at(1_000_000), 2);
        assert_eq!(patience.unnoticed(), Duration::ZERO, "the first one was still waited for");
        patience.asked(at(1_000_000), 3);
        patience.answered(at(1_000_800), 3);
        assert_eq!(patience.unnoticed(), Duration::from_micros(500));
    }

    #[test]
    fn clients_that_ask_rarely_grant_more_than_those_that_ask_at_once() {
        let mut quick = Patience::new(PROMPT);
        let mut rare = Patience::new(PROMPT);
        for round in 0..100 {
            quick.client_asked(at(100 * round), 1);
            rare.client_asked(at(3_000_000 * round), round as u32);
        }
        assert_eq!(quick.unnoticed(), Duration::from_micros(10));
        assert_eq!(rare.unnoticed(), WAIT_MAX);
    }
}
