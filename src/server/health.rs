//! Whether the process works and should be sent clients, from what its workers publish.
//!
//! Owns what was last seen of every worker, and two flags of the process. Only reads what workers share, and asks
//! nothing of them. Invariant: a worker whose loop stands still is found within [`LIVE_WITHIN`], whatever it is stuck
//! in: a worker counts its passes and publishes them several times a second, also when idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::base::counters::{DESCRIPTIONS, Published};
use crate::worker::Shared;

use super::admin::State;
use super::metrics::{self, CertificateFigures, Identification, WorkerFigures};
use super::process::ProcessFigures;

/// A worker that has not passed through its loop for this long is stuck.
pub const LIVE_WITHIN: Duration = Duration::from_secs(5);

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
pub struct Health {
    role: ProcessRole,
    identification: Identification,
    flags: Arc<Flags>,
    shared: Arc<Shared>,
    workers: Vec<Watched>,
    certificates: CertificateFigures,
}

#[derive(Clone, Debug)]
struct Watched {
    passes_seen: u64,
    /// When the passes were last seen to change.
    heard: Instant,
}

impl Health {
    /// Watches the workers, which count as heard of at `now`.
    #[must_use]
    pub fn new(role: ProcessRole, id: &str, flags: Arc<Flags>, shared: Arc<Shared>, now: Instant) -> Health {
        let name = match role {
            ProcessRole::Pop => "pop",
            ProcessRole::Gateway => "gateway",
        };
        let workers = vec![Watched { passes_seen: 0, heard: now }; shared.published.len()];
        let identification = Identification { role: name, id: id.to_owned(), started: SystemTime::now() };
        Health { role, identification, flags, shared, workers, certificates: CertificateFigures::default() }
    }

    /// Looks which workers have passed through their loop since the last call. To be called some times a second.
    pub fn observe(&mut self, now: Instant) {
        for (worker, published) in self.workers.iter_mut().zip(&self.shared.published) {
            let passes = figure(&published.read(), "passes");
            if passes != worker.passes_seen {
                worker.passes_seen = passes;
                worker.heard = now;
            }
        }
    }

    /// What is told of certificates.
    pub fn certificates(&mut self) -> &mut CertificateFigures {
        &mut self.certificates
    }

    /// What the workers share.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The health as it is at `now`.
    #[must_use]
    pub fn at(&self, now: Instant) -> HealthAt<'_> {
        HealthAt { health: self, now }
    }
}

fn figure(figures: &WorkerFigures, name: &str) -> u64 {
    let index = DESCRIPTIONS.iter().position(|described| described.name == name);
    figures[index.expect("`passes` and `trunks_ready` are among the counters; tests here read both")]
}

/// The health at one moment: what the admin pages are made from.
#[derive(Clone, Copy)]
pub struct HealthAt<'h> {
    health: &'h Health,
    now: Instant,
}

impl State for HealthAt<'_> {
    fn live(&self) -> Result<(), String> {
        if self.health.flags.draining.load(Ordering::Relaxed) {
            return Ok(()); // workers that are done fall silent one by one
        }
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
            for (index, published) in self.health.shared.published.iter().enumerate() {
                if figure(&published.read(), "trunks_ready") == 0 {
                    return Err(format!("no trunk is up on worker {index}"));
                }
            }
        }
        Ok(())
    }

    fn metrics(&self) -> String {
        let figures: Vec<_> = self.health.shared.published.iter().map(Published::read).collect();
        let process = ProcessFigures::read().ok();
        metrics::render(&self.health.identification, &figures, &self.health.certificates, process.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::counters::Counters;

    fn health(role: ProcessRole) -> (Health, Arc<Shared>, Arc<Flags>, Instant) {
        let (shared, flags, now) = (Arc::new(Shared::new(2)), Arc::new(Flags::default()), Instant::now());
        (Health::new(role, "a", Arc::clone(&flags), Arc::clone(&shared), now), shared, flags, now)
    }

    #[test]
    fn a_silent_worker_is_found_and_forgiven() {
        let (mut health, shared, _, start) = health(ProcessRole::Gateway);
        let late = start + LIVE_WITHIN + Duration::from_secs(1);
        assert_eq!(health.at(start + LIVE_WITHIN).live(), Ok(()));
        shared.published[0].publish(&Counters { passes: 1, ..Counters::default() });
        health.observe(late);
        assert_eq!(health.at(late).live(), Err("worker 1 has been silent for 6 s".to_owned()));
        shared.published[1].publish(&Counters { passes: 1, ..Counters::default() });
        health.observe(late);
        assert_eq!(health.at(late).live(), Ok(()));
    }

    #[test]
    fn a_pop_is_ready_with_a_trunk_on_every_worker_until_it_drains() {
        let (health, shared, flags, now) = health(ProcessRole::Pop);
        assert_eq!(health.at(now).ready(), Err("not listening yet".to_owned()));
        flags.listening.store(true, Ordering::Relaxed);
        shared.published[0].publish(&Counters { trunks_ready: 1, ..Counters::default() });
        assert_eq!(health.at(now).ready(), Err("no trunk is up on worker 1".to_owned()));
        shared.published[1].publish(&Counters { trunks_ready: 1, ..Counters::default() });
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
