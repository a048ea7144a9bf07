//! Whether the process works and should be sent clients, from what its workers publish.
//!
//! Owns the published figures of every worker and two flags of the process. Workers write without waiting; only the
//! slow thread reads. Invariant: a worker that stops beating is found within [`LIVE_WITHIN`], whatever it is stuck in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::base::counters::{Counters, DESCRIPTIONS, Published};

use super::admin::State;
use super::metrics::{self, Identification};
use super::process::ProcessFigures;

/// A worker that has not published for this long is stuck. Workers publish at least once a second, also when idle.
pub const LIVE_WITHIN: Duration = Duration::from_secs(5);

/// What one worker tells the slow thread.
#[derive(Debug, Default)]
pub struct Vitals {
    published: Published,
    /// Written by the worker alone; only that it changes means something.
    beats: AtomicU64,
}

impl Vitals {
    /// Publishes the worker's figures. To be called by that worker at least once a second.
    pub fn publish(&self, counters: &Counters) {
        self.published.publish(counters);
        self.beats.store(self.beats.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// What the process is, which decides what being ready asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcessRole {
    /// Ready with a trunk up on every worker.
    Pop,
    /// Ready when it listens.
    Gateway,
}

/// Flags that the process sets and every thread may read.
#[derive(Debug, Default)]
pub struct Flags {
    /// Every worker listens.
    pub listening: AtomicBool,
    /// SIGTERM has come.
    pub draining: AtomicBool,
}

/// The health of the process, as the admin address tells it.
#[derive(Debug)]
pub struct Health {
    role: ProcessRole,
    identification: Identification,
    flags: Arc<Flags>,
    workers: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    vitals: Arc<Vitals>,
    beats_seen: u64,
    /// When the beats were last seen to change.
    heard: Instant,
}

impl Health {
    /// Watches `workers`, which count as heard of at `now`.
    #[must_use]
    pub fn new(role: ProcessRole, id: &str, flags: Arc<Flags>, workers: &[Arc<Vitals>], now: Instant) -> Health {
        let name = match role {
            ProcessRole::Pop => "pop",
            ProcessRole::Gateway => "gateway",
        };
        let watch = |vitals: &Arc<Vitals>| Watched { vitals: Arc::clone(vitals), beats_seen: 0, heard: now };
        Health {
            role,
            identification: Identification { role: name, id: id.to_owned(), started: SystemTime::now() },
            flags,
            workers: workers.iter().map(watch).collect(),
        }
    }

    /// Looks which workers have published since the last call. To be called some times a second.
    pub fn observe(&mut self, now: Instant) {
        for worker in &mut self.workers {
            let beats = worker.vitals.beats.load(Ordering::Relaxed);
            if beats != worker.beats_seen {
                worker.beats_seen = beats;
                worker.heard = now;
            }
        }
    }

    /// The health as it is at `now`.
    #[must_use]
    pub fn at(&self, now: Instant) -> HealthAt<'_> {
        HealthAt { health: self, now }
    }
}

/// The health at one moment: what the admin pages are made from.
#[derive(Clone, Copy, Debug)]
pub struct HealthAt<'h> {
    health: &'h Health,
    now: Instant,
}

impl State for HealthAt<'_> {
    fn live(&self) -> Result<(), String> {
        for (index, worker) in self.health.workers.iter().enumerate() {
            let silent = self.now.saturating_duration_since(worker.heard);
            if silent > LIVE_WITHIN {
                return Err(format!("worker {index} has been silent for {} s", silent.as_secs()));
            }
        }
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        let flags = &self.health.flags;
        if flags.draining.load(Ordering::Relaxed) {
            return Err("draining".to_owned());
        }
        if !flags.listening.load(Ordering::Relaxed) {
            return Err("not listening yet".to_owned());
        }
        self.live()?;
        if self.health.role == ProcessRole::Pop {
            let trunks_ready = DESCRIPTIONS.iter().position(|described| described.name == "trunks_ready");
            let trunks_ready = trunks_ready.expect("the counter is one of those described; a test says so");
            for (index, worker) in self.health.workers.iter().enumerate() {
                if worker.vitals.published.read()[trunks_ready] == 0 {
                    return Err(format!("no trunk is up on worker {index}"));
                }
            }
        }
        Ok(())
    }

    fn metrics(&self) -> String {
        let figures: Vec<_> = self.health.workers.iter().map(|worker| worker.vitals.published.read()).collect();
        let process = ProcessFigures::read().ok();
        metrics::render(&self.health.identification, &figures, process.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(role: ProcessRole) -> (Health, Vec<Arc<Vitals>>, Arc<Flags>, Instant) {
        let vitals = vec![Arc::new(Vitals::default()), Arc::new(Vitals::default())];
        let flags = Arc::new(Flags::default());
        let now = Instant::now();
        (Health::new(role, "a", Arc::clone(&flags), &vitals, now), vitals, flags, now)
    }

    #[test]
    fn a_silent_worker_is_found_and_forgiven() {
        let (mut health, vitals, _, start) = health(ProcessRole::Gateway);
        let late = start + LIVE_WITHIN + Duration::from_secs(1);
        assert_eq!(health.at(start + LIVE_WITHIN).live(), Ok(()));
        vitals[0].publish(&Counters::default());
        health.observe(late);
        assert_eq!(health.at(late).live(), Err("worker 1 has been silent for 6 s".to_owned()));
        vitals[1].publish(&Counters::default());
        health.observe(late);
        assert_eq!(health.at(late).live(), Ok(()));
    }

    #[test]
    fn a_pop_is_ready_with_a_trunk_on_every_worker_until_it_drains() {
        let (health, vitals, flags, now) = health(ProcessRole::Pop);
        assert_eq!(health.at(now).ready(), Err("not listening yet".to_owned()));
        flags.listening.store(true, Ordering::Relaxed);
        vitals[0].publish(&Counters { trunks_ready: 1, ..Counters::default() });
        assert_eq!(health.at(now).ready(), Err("no trunk is up on worker 1".to_owned()));
        vitals[1].publish(&Counters { trunks_ready: 1, ..Counters::default() });
        assert_eq!(health.at(now).ready(), Ok(()));
        flags.draining.store(true, Ordering::Relaxed);
        assert_eq!(health.at(now).ready(), Err("draining".to_owned()));
        assert_eq!(health.at(now).live(), Ok(()), "draining is no illness");
    }

    #[test]
    fn a_gateway_is_ready_when_it_listens() {
        let (health, _, flags, now) = health(ProcessRole::Gateway);
        flags.listening.store(true, Ordering::Relaxed);
        assert_eq!(health.at(now).ready(), Ok(()));
        assert!(health.at(now).metrics().contains("role=\"gateway\""));
        assert!(health.at(now).metrics().contains("process_open_fds"));
    }
}
