//! The link itself: packets in with a time, packets out with a time. Owns every packet between its two ends and what is
//! decided about it; knows no clock, no device and no entropy but its seed.
//! Invariants: the fate of the n-th packet of a direction follows from seed and n where it is a matter of chance; unless
//! reordering is asked for, packets of a direction and phase leave in the order they came, and never faster than its rate.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use serde::Serialize;
use trunkline::base::prng::Prng;

/// Nanoseconds since the link began.
pub type Nanos = u64;

/// Nanoseconds in a millisecond.
pub const NANOS_PER_MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Packets that may be under way in one direction; more are dropped and counted. At 1500 bytes 96 MiB, or 2.6 s of 300 Mbit/s.
pub const PACKETS_IN_FLIGHT_MAX: usize = 65_536;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the side nearer to the phone.
    ToOrigin,
    /// From the side nearer to the data center.
    ToClient,
}

impl Direction {
    /// Both, in the order of everything that is kept per direction.
    pub const BOTH: [Direction; 2] = [Direction::ToOrigin, Direction::ToClient];
}

/// How packets are lost on the way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Each packet by itself with this chance.
    Independent {
        /// Chance of each packet, 0 to 1.
        chance: f64,
    },
    /// Gilbert-Elliott: good spells without loss and bad spells with much; packets move it from one to the other.
    Bursts {
        /// Chance that a packet ends a good spell.
        enter: f64,
        /// Chance that a packet ends a bad spell: one over the mean length of a bad spell in packets.
        leave: f64,
        /// Chance that a packet in a bad spell is lost.
        inside: f64,
    },
}

/// What one direction does to packets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Course {
    /// Mean time from the end of sending to arrival.
    pub delay_ns: u64,
    /// How far the delay strays from its mean, at most, either way; at most the delay.
    pub jitter_ns: u64,
    /// Each packet strays by itself, so that packets overtake; otherwise the delay wanders and order is kept.
    pub jitter_reorders: bool,
    /// Losses on the way, after the queue: a lost packet has taken its time on the link.
    pub loss: Loss,
    /// Chance of a packet to be held back by `reorder_delay_ns`, so that later ones overtake it.
    pub reorder_chance: f64,
    /// How long such a packet is held back.
    pub reorder_delay_ns: u64,
    /// Bits per second that leave the queue, counted from the IP header on. None: no limit and no queue.
    pub rate_bits_per_s: Option<u64>,
    /// Bytes that may wait for the link, with the packet being sent. A packet that would exceed it is dropped.
    pub queue_bytes_max: u64,
    /// Nothing enters and nothing arrives.
    pub is_blackout: bool,
}

impl Default for Course {
    fn default() -> Course {
        Course {
            delay_ns: 0,
            jitter_ns: 0,
            jitter_reorders: false,
            loss: Loss::Independent { chance: 0.0 },
            reorder_chance: 0.0,
            reorder_delay_ns: 0,
            rate_bits_per_s: None,
            queue_bytes_max: u64::MAX,
            is_blackout: false,
        }
    }
}

impl Course {
    /// How long a packet of `size` bytes occupies the link, rounded up, so that the rate is never exceeded.
    pub fn sending_ns(&self, size: usize) -> u64 {
        let bits_ns = u128::from(size as u64) * 8 * u128::from(NANOS_PER_SECOND);
        self.rate_bits_per_s.map_or(0, |rate| bits_ns.div_ceil(u128::from(rate)) as u64)
    }

    /// How many bytes leave in `span_ns`, rounded up.
    fn bytes_in(&self, span_ns: u64) -> u64 {
        let rate = self.rate_bits_per_s.unwrap_or(0);
        (u128::from(span_ns) * u128::from(rate)).div_ceil(8 * u128::from(NANOS_PER_SECOND)) as u64
    }
}

/// A path for a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// What it is called in reports.
    pub name: String,
    /// How long it lasts. None: until the end; only the last phase.
    pub duration_ns: Option<u64>,
    /// By direction, in the order of [`Direction::BOTH`].
    pub courses: [Course; 2],
}

/// What a link does over time: its phases one after the other, and again from the first unless the last one stays.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// At least one; all but the last have a duration.
    pub phases: Vec<Phase>,
}

impl Plan {
    /// The phase at `at`, and how many phases have begun before it.
    pub fn phase_at(&self, at: Nanos) -> (u64, &Phase) {
        let cycle_ns: u64 = self.phases.iter().filter_map(|phase| phase.duration_ns).sum();
        let is_cycle = self.phases.iter().all(|phase| phase.duration_ns.is_some());
        let (mut left_ns, round) = if is_cycle { (at % cycle_ns, at / cycle_ns) } else { (at, 0) };
        let mut index = 0;
        while let Some(duration_ns) = self.phases[index].duration_ns
            && left_ns >= duration_ns
        {
            left_ns -= duration_ns;
            index += 1;
        }
        (round * self.phases.len() as u64 + index as u64, &self.phases[index])
    }
}

/// What became of a packet that was offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It arrives then, unless a blackout has begun by that time.
    Due(Nanos),
    /// Lost on the way.
    Lost,
    /// The queue was full.
    QueueFull,
    /// Offered in a blackout.
    Blackout,
    /// [`PACKETS_IN_FLIGHT_MAX`] were under way.
    TooMany,
}

/// What happened in one direction so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Counts {
    /// Packets that came in.
    pub offered: u64,
    /// Packets that went out, and their bytes.
    pub delivered: u64,
    /// Bytes of the packets that went out.
    pub delivered_bytes: u64,
    /// Packets lost by chance.
    pub lost: u64,
    /// Packets that found the queue full.
    pub queue_full: u64,
    /// Packets offered or due in a blackout.
    pub blackout: u64,
    /// Packets above [`PACKETS_IN_FLIGHT_MAX`].
    pub too_many: u64,
}

/// A packet under way.
struct Flying {
    due: Nanos,
    /// Numbers packets in the order they came: ties leave in that order.
    number: u64,
    packet: Vec<u8>,
}

impl Ord for Flying {
    fn cmp(&self, other: &Flying) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Flying) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Flying {
    fn eq(&self, other: &Flying) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Flying {}

/// The four draws of one packet. Every packet draws all of them, whatever becomes of it.
struct Draws {
    spell: f64,
    loss: f64,
    reorder: f64,
    jitter: f64,
}

/// One direction.
struct Lane {
    draws: Prng,
    /// What the wandering of the delay is made from.
    wander_seed: u64,
    /// In a bad spell of [`Loss::Bursts`].
    is_bad_spell: bool,
    /// When the link has sent what it was given; in the past when it is idle.
    sender_free_at: Nanos,
    /// When the last packet that keeps the order is due.
    due_last: Nanos,
    /// The phase of the last packet, as [`Plan::phase_at`] numbers them.
    phase_number: u64,
    flying: BinaryHeap<Reverse<Flying>>,
    counts: Counts,
}

impl Lane {
    fn new(seed: u64) -> Lane {
        let mut seeds = Prng::new(seed);
        Lane {
            draws: Prng::new(seeds.next_u64()),
            wander_seed: seeds.next_u64(),
            is_bad_spell: false,
            sender_free_at: 0,
            due_last: 0,
            phase_number: 0,
            flying: BinaryHeap::new(),
            counts: Counts::default(),
        }
    }

    fn draw(&mut self) -> Draws {
        let mut next = || unit(self.draws.next_u64());
        Draws { spell: next(), loss: next(), reorder: next(), jitter: next() }
    }

    fn offer(&mut self, now: Nanos, phase_number: u64, course: &Course, packet: Vec<u8>) -> Fate {
        let draws = self.draw();
        let is_lost = self.is_lost(course.loss, &draws);
        if phase_number != self.phase_number {
            // Another path: it knows nothing of the queue of the one before, and may be faster than what that still carries.
            self.phase_number = phase_number;
            self.sender_free_at = now;
            self.due_last = now;
        }
        let fate = self.decide(now, course, &draws, is_lost, packet.len());
        self.counts.offered += 1;
        match fate {
            Fate::Due(due) => self.flying.push(Reverse(Flying { due, number: self.counts.offered, packet })),
            Fate::Lost => self.counts.lost += 1,
            Fate::QueueFull => self.counts.queue_full += 1,
            Fate::Blackout => self.counts.blackout += 1,
            Fate::TooMany => self.counts.too_many += 1,
        }
        fate
    }

    /// Moves from spell to spell and says whether this packet is lost on the way.
    fn is_lost(&mut self, loss: Loss, draws: &Draws) -> bool {
        match loss {
            Loss::Independent { chance } => draws.loss < chance,
            Loss::Bursts { enter, leave, inside } => {
                let change = if self.is_bad_spell { leave } else { enter };
                self.is_bad_spell ^= draws.spell < change;
                self.is_bad_spell && draws.loss < inside
            }
        }
    }

    fn decide(&mut self, now: Nanos, course: &Course, draws: &Draws, is_lost: bool, size: usize) -> Fate {
        if course.is_blackout {
            return Fate::Blackout;
        }
        if self.flying.len() >= PACKETS_IN_FLIGHT_MAX {
            return Fate::TooMany;
        }
        let waiting_bytes = course.bytes_in(self.sender_free_at.saturating_sub(now));
        if waiting_bytes.saturating_add(size as u64) > course.queue_bytes_max {
            return Fate::QueueFull;
        }
        let sending_ns = course.sending_ns(size);
        self.sender_free_at = self.sender_free_at.max(now) + sending_ns;
        if is_lost {
            return Fate::Lost;
        }
        let sent_at = self.sender_free_at;
        if course.jitter_reorders {
            let due = sent_at + course.delay_ns - course.jitter_ns + scaled(2 * course.jitter_ns, draws.jitter);
            return Fate::Due(self.held_back(course, draws, due));
        }
        let due = sent_at + course.delay_ns - course.jitter_ns + self.wander(course.jitter_ns, sent_at);
        // The delay shrinks at times: what was spaced by the rate stays spaced.
        let due = due.max(self.due_last + sending_ns);
        let held_back = self.held_back(course, draws, due);
        if held_back == due {
            self.due_last = due;
        }
        Fate::Due(held_back)
    }

    fn held_back(&self, course: &Course, draws: &Draws, due: Nanos) -> Nanos {
        if draws.reorder < course.reorder_chance { due + course.reorder_delay_ns } else { due }
    }

    /// Between zero and twice the jitter, on straight lines between random points that are twice the jitter apart in time: it
    /// falls by at most a nanosecond in a nanosecond, so that no packet would overtake the one before, and its mean over
    /// time is the jitter however often it is looked at.
    fn wander(&self, jitter_ns: u64, at: Nanos) -> u64 {
        if jitter_ns == 0 {
            return 0;
        }
        let step_ns = 2 * jitter_ns;
        let point = |index: u64| {
            let seed = self.wander_seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            scaled(step_ns, unit(Prng::new(seed).next_u64())) as f64
        };
        let (index, part) = (at / step_ns, (at % step_ns) as f64 / step_ns as f64);
        (point(index) * (1.0 - part) + point(index + 1) * part) as u64
    }
}

/// A number from 0 up to, but not, 1, from 64 random bits.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

fn scaled(span_ns: u64, part: f64) -> u64 {
    (span_ns as f64 * part) as u64
}

/// Two ends and what lies between them.
pub struct Link {
    plan: Plan,
    lanes: [Lane; 2],
}

impl Link {
    /// A link whose every chance follows from `seed`.
    pub fn new(plan: Plan, seed: u64) -> Link {
        let mut seeds = Prng::new(seed);
        let lanes = [Lane::new(seeds.next_u64()), Lane::new(seeds.next_u64())];
        Link { plan, lanes }
    }

    /// Takes a packet that came at `now`, which never goes back.
    pub fn offer(&mut self, now: Nanos, direction: Direction, packet: Vec<u8>) -> Fate {
        let (phase_number, phase) = self.plan.phase_at(now);
        self.lanes[direction as usize].offer(now, phase_number, &phase.courses[direction as usize], packet)
    }

    /// When the next packet is due.
    pub fn due_next(&self) -> Option<Nanos> {
        self.lanes.iter().filter_map(|lane| lane.flying.peek()).map(|Reverse(flying)| flying.due).min()
    }

    /// The next packet that is due by `now`, and when it was; call until None.
    pub fn deliver(&mut self, now: Nanos) -> Option<(Direction, Nanos, Vec<u8>)> {
        loop {
            let due = self.due_next().filter(|due| *due <= now)?;
            let direction = Direction::BOTH.into_iter().find(|direction| self.due_in(*direction) == Some(due))?;
            let lane = &mut self.lanes[direction as usize];
            let Reverse(Flying { packet, .. }) = lane.flying.pop()?;
            if self.plan.phase_at(due).1.courses[direction as usize].is_blackout {
                lane.counts.blackout += 1;
                continue;
            }
            lane.counts.delivered += 1;
            lane.counts.delivered_bytes += packet.len() as u64;
            return Some((direction, due, packet));
        }
    }

    /// What happened so far, by direction, in the order of [`Direction::BOTH`].
    pub fn counts(&self) -> [Counts; 2] {
        [self.lanes[0].counts, self.lanes[1].counts]
    }

    fn due_in(&self, direction: Direction) -> Option<Nanos> {
        self.lanes[direction as usize].flying.peek().map(|Reverse(flying)| flying.due)
    }
}
