//! The loop of one worker of a load generator: begin, submit, wait, take in. Here [`Engine`] and the ring meet.
//!
//! Owns the ring. Never looks into a payload. Invariant: one entry into the kernel per pass, which carries every send of
//! the pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::engine::{Engine, Stage, touch};
use super::link::{Ending, Phase, Receiving};
use super::plan::{Loop, Mode, Plan};
use super::schedule::Schedule;
use super::tally::{Fault, Tally};
use crate::base::slab::Key;
use crate::base::time::Time;
use crate::ring::{Completion, Errno, Lease, Outcome, Ring, RingError, RingSettings, Token, Uring};

/// The longest wait: how soon a stop is noticed and progress told.
const TICK: Duration = Duration::from_millis(50);

/// What is under way at the end may take so long.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for held connections to answer when they are woken.
const WAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for goodbyes.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// What a worker tells while it runs.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) requests: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) bytes_received: AtomicU64,
    pub(super) connections: AtomicU64,
    /// Connections that are held, once `is_settled`.
    pub(super) held: AtomicU64,
    /// Of each connection that was to be held it is known whether it is.
    pub(super) is_settled: AtomicBool,
}

/// Ring settings that suit one who measures: no wait is prolonged to gather more, since each would be told as latency.
fn ring_settings() -> RingSettings {
    RingSettings { batch_wait_us: 0, ..RingSettings::default() }
}

/// One worker.
pub(super) struct Driver<'r> {
    ring: Uring,
    engine: Engine,
    plan: Arc<Plan>,
    progress: &'r Progress,
    stop: &'r AtomicBool,
    completions: Vec<Completion<Lease>>,
    starved: Vec<Key>,
    flushing: Vec<Key>,
    /// When the present stage is over, if by time.
    stage_until: Option<Time>,
}

impl<'r> Driver<'r> {
    /// On the thread that will run it.
    ///
    /// # Errors
    /// When the kernel refuses a ring.
    pub(super) fn new(
        plan: Arc<Plan>,
        worker: usize,
        seed: u64,
        origin: Instant,
        progress: &'r Progress,
        stop: &'r AtomicBool,
    ) -> Result<Driver<'r>, RingError> {
        let ring = Uring::new(&ring_settings(), origin)?;
        let engine = Engine::new(plan.clone(), plan.connections_of(worker), seed);
        Ok(Driver {
            ring,
            engine,
            plan,
            progress,
            stop,
            completions: Vec::new(),
            starved: Vec::new(),
            flushing: Vec::new(),
            stage_until: None,
        })
    }

    /// Opens connections that stay; fetches first tickets, if they are needed.
    ///
    /// # Errors
    /// When the ring breaks.
    pub(super) fn prepare(&mut self) -> Result<(), RingError> {
        self.engine.now = self.ring.clock();
        self.engine.prepare();
        while !self.engine.is_prepared() && !self.is_stopped() {
            self.pass()?;
        }
        Ok(())
    }

    /// Runs from `origin`, which is now for all workers, to the end.
    ///
    /// # Errors
    /// When the ring breaks.
    pub(super) fn run(mut self, worker: usize, origin: Time) -> Result<Tally, RingError> {
        let workers = self.plan.workers() as u64;
        let schedule = match self.plan.pace {
            Loop::Closed => None,
            Loop::Open { rate } => Some(Schedule::new(rate, origin, worker as u64, workers)),
        };
        let is_holding = self.plan.mode == Mode::Hold;
        let end = if is_holding { Time::from_nanos(u64::MAX) } else { origin + self.plan.duration };
        self.engine.start(origin, end, schedule);
        self.stage_until = (!is_holding).then_some(end);
        let worked = self.ring.worked();
        while self.engine.stage != Stage::Closing {
            self.pass()?;
            self.advance();
        }
        self.engine.tally.cpu = self.ring.worked().saturating_sub(worked);
        let ended = if is_holding { self.engine.now } else { self.engine.end };
        self.engine.tally.elapsed = ended.since(origin);
        while !self.engine.links.is_empty() && self.stage_until.is_some_and(|until| self.engine.now < until) {
            self.pass()?;
        }
        self.publish();
        Ok(self.engine.tally)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Goes on to the next stage when it is time.
    fn advance(&mut self) {
        let now = self.engine.now;
        let is_over = self.stage_until.is_some_and(|until| now >= until);
        let is_stopped = self.is_stopped();
        match self.engine.stage {
            Stage::Running if self.plan.mode == Mode::Hold => {
                if is_stopped {
                    self.close();
                } else if self.engine.is_settled() {
                    self.engine.stage = Stage::Holding;
                    self.stage_until = Some(now + self.plan.duration);
                    let held = self.engine.tally.held.map_or(0, |held| held.held);
                    self.progress.held.store(held, Ordering::Relaxed);
                    self.progress.is_settled.store(true, Ordering::Release);
                }
            }
            Stage::Running if is_over || is_stopped => {
                self.engine.finish(now);
                self.stage_until = Some(now + FINISH_TIMEOUT);
            }
            Stage::Holding if is_over || is_stopped => {
                self.engine.wake();
                self.stage_until = Some(now + WAKE_TIMEOUT);
            }
            Stage::Finishing | Stage::Waking if is_over || self.engine.is_finished() => self.close(),
            Stage::Preparing | Stage::Running | Stage::Holding => {}
            Stage::Finishing | Stage::Waking | Stage::Closing => {}
        }
    }

    fn close(&mut self) {
        self.engine.close();
        self.stage_until = Some(self.engine.now + CLOSE_TIMEOUT);
    }

    fn publish(&self) {
        let tally = &self.engine.tally;
        self.progress.requests.store(tally.requests, Ordering::Relaxed);
        self.progress.faults.store(tally.faults_total(), Ordering::Relaxed);
        self.progress.bytes_received.store(tally.bytes_received, Ordering::Relaxed);
        self.progress.connections.store(self.engine.links.len() as u64, Ordering::Relaxed);
    }

    /// Begins what may begin, hands it to the kernel, waits, and takes in what came.
    fn pass(&mut self) -> Result<(), RingError> {
        let ring = &self.ring;
        self.engine.begin(|| ring.clock());
        self.flush();
        self.bury();
        self.feed_starved();
        let mut until = self.engine.now + TICK;
        for at in [self.stage_until, self.engine.timers.next(), self.engine.next_due()].into_iter().flatten() {
            until = until.min(at);
        }
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.wait(Some(until), Duration::ZERO, &mut completions)?;
        self.engine.now = self.ring.now();
        completions.drain(..).for_each(|completion| self.complete(completion));
        self.completions = completions;
        self.engine.expire();
        self.publish();
        Ok(())
    }

    // ---- completions ----

    fn complete(&mut self, completion: Completion<Lease>) {
        let Completion { token, outcome } = completion;
        let key = self.engine.links.key_at(token.slot()).filter(|key| token.names(*key));
        match (outcome, key) {
            (Outcome::Received { result, more }, _) => self.received(token, key, result, more),
            (Outcome::Sent { bytes, result }, Some(key)) => self.sent(key, bytes, result),
            (Outcome::Connected(result), Some(key)) => {
                self.engine.connected(key, result);
                if !self.plan.fast_open {
                    self.arm(key);
                }
            }
            (Outcome::Accepted { .. } | Outcome::Woken, _) | (_, None) => {}
        }
    }

    fn received(&mut self, token: Token, key: Option<Key>, result: Result<Option<Lease>, Errno>, more: bool) {
        let Some(key) = key else {
            if let Ok(Some(lease)) = result {
                self.ring.give_back(lease);
            }
            return;
        };
        debug_assert!(token.names(key), "it was looked up by its token");
        if !more {
            self.engine.links.get_mut(key).expect("the caller found it").receiving = Receiving::Idle;
        }
        match result {
            Ok(Some(mut lease)) => {
                let bytes = self.ring.bytes(&mut lease);
                self.engine.tally.bytes_received += bytes.len() as u64;
                self.engine.feed(key, bytes);
                self.ring.give_back(lease);
            }
            Ok(None) => self.engine.peer_cut(key),
            Err(Errno::NO_BUFFERS) => {
                self.engine.links.get_mut(key).expect("the caller found it").receiving = Receiving::Starved;
                self.starved.push(key);
            }
            Err(Errno::CANCELED) => {}
            Err(errno) => self.broken(key, errno),
        }
        if !more {
            self.arm(key);
        }
    }

    /// The operating system says that a connection is over.
    fn broken(&mut self, key: Key, errno: Errno) {
        let Some(link) = self.engine.links.get_mut(key) else { return };
        link.receiving = if link.receiving == Receiving::Armed { Receiving::Armed } else { Receiving::Over };
        match link.phase {
            Phase::Retiring => self.engine.kill(key),
            Phase::Handshaking => self.engine.lose(key, Fault::Handshake, Some(errno.to_string())),
            _ => self.engine.lose(key, Fault::Reset, Some(errno.to_string())),
        }
    }

    fn sent(&mut self, key: Key, bytes: Vec<u8>, result: Result<usize, Errno>) {
        let link = self.engine.links.get_mut(key).expect("the caller found it");
        match result {
            Ok(taken) if taken > 0 => {
                self.engine.tally.bytes_sent += taken as u64;
                if let (Some((rest, from)), Some(fd)) = (link.lane.sent(bytes, taken), link.fd) {
                    if link.phase == Phase::Dying {
                        link.lane.cut();
                    } else {
                        self.ring.send(fd, key, rest, from, false);
                    }
                } else {
                    if link.speech.has_queued() && link.phase == Phase::Open {
                        link.speech.drain(&self.plan.recipe, &mut link.lane);
                    }
                    if link.lane.has_pending() || link.ending != Ending::Open {
                        touch(&mut self.engine.dirty, link, key);
                    }
                }
                self.arm(key);
            }
            Ok(_) | Err(_) => {
                link.lane.cut();
                let errno = result.err().unwrap_or(Errno::RESET);
                if link.phase == Phase::Open && link.receiving == Receiving::Armed {
                    self.engine.send_failed(key, errno);
                } else {
                    self.broken(key, errno);
                }
            }
        }
    }

    // ---- what needs the kernel ----

    /// Starts receiving if the link should and does not.
    fn arm(&mut self, key: Key) {
        let Some(link) = self.engine.links.get_mut(key) else { return };
        let wants = matches!(link.phase, Phase::Handshaking | Phase::Open | Phase::Retiring);
        if let (Receiving::Idle, true, Some(fd)) = (link.receiving, wants, link.fd) {
            link.receiving = Receiving::Armed;
            self.ring.receive(fd, key);
        }
    }

    /// Dials, and sends what was put in this pass, one send per link.
    fn flush(&mut self) {
        while let Some(key) = self.engine.to_dial.pop() {
            if self.engine.links.get(key).is_none_or(|link| link.phase != Phase::Connecting) {
                continue;
            }
            let address = self.plan.address;
            let dialled = if self.plan.fast_open {
                self.ring.connect_fast(key, address)
            } else {
                self.ring.connect(key, address)
            };
            self.engine.dialled(key, dialled);
        }
        let mut flushing = std::mem::replace(&mut self.engine.dirty, std::mem::take(&mut self.flushing));
        for key in flushing.drain(..) {
            self.flush_one(key);
        }
        self.flushing = flushing;
    }

    fn flush_one(&mut self, key: Key) {
        let Some(link) = self.engine.links.get_mut(key) else { return };
        link.is_dirty = false;
        let (Some(fd), true) = (link.fd, !matches!(link.phase, Phase::Connecting | Phase::Dying)) else { return };
        if link.lane.is_lent() {
            return; // its completion comes back here
        }
        if link.ending == Ending::Wanted {
            link.lane.put_goodbye();
            link.ending = Ending::Said;
        }
        let bytes = link.lane.take();
        if link.lane.is_broken() {
            self.engine.lose(key, Fault::Tls, Some("a record could not be sealed".to_owned()));
            return self.engine.kill(key); // there is no goodbye without a seal
        }
        if let Some(bytes) = bytes {
            self.ring.send(fd, key, bytes, 0, link.ending == Ending::Said);
        } else if link.ending == Ending::Said {
            link.ending = Ending::Done;
            self.ring.shut_down(fd);
            self.engine.settle(key);
        }
    }

    /// Cancels what is out on dying links and frees those that nothing is out on.
    fn bury(&mut self) {
        let mut dying = std::mem::take(&mut self.engine.dying);
        dying.retain_mut(|(key, is_cancelled)| {
            let Some(link) = self.engine.links.get(*key) else { return false };
            if link.is_lent() {
                if let (Some(fd), false) = (link.fd, std::mem::replace(is_cancelled, true)) {
                    self.ring.cancel(fd);
                }
                return true;
            }
            let link = self.engine.links.remove(*key).expect("found above");
            if let Some(fd) = link.fd {
                let is_orderly = link.ending == Ending::Done && link.receiving == Receiving::Over;
                self.ring.close(fd, !is_orderly);
            }
            false
        });
        dying.append(&mut self.engine.dying);
        self.engine.dying = dying;
    }

    /// Arms the receives that ended for want of buffers, once a quarter of the buffers is back.
    fn feed_starved(&mut self) {
        if self.starved.is_empty() || self.ring.buffers_free() * 4 < self.ring.buffers_total() {
            return;
        }
        for key in std::mem::take(&mut self.starved) {
            if let Some(link) = self.engine.links.get_mut(key)
                && link.receiving == Receiving::Starved
            {
                link.receiving = Receiving::Idle;
            }
            self.arm(key);
        }
    }
}
