//! A POP or a gateway with one worker, beside others in one process: no slow thread of its own, no file behind it.
//!
//! Owns its worker and what that shares. Made by the same translation of a configuration as a process of its own
//! ([`super::run`]). Invariant: whoever starts one also drains or stops it, and joins it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{Configuration as _, GatewayConfig, PopConfig, TicketsConfig};
use super::health::ProcessRole;
use super::keys::FastOpenKeys;
use super::listen;
use super::log::LogWriter;
use super::run::{self, RunError};
use super::workers::{Workers, WorkersError, WorkersPlan, random_prng};
use crate::base::counters::{DESCRIPTIONS, Published};
use crate::base::wire::Role;
use crate::gateway::Gateway;
use crate::relay::Relay;
use crate::worker::{Command, Links, Shared};

/// How often a thread that waits for figures looks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long figures may take: a worker publishes them several times a second.
const FIGURES_WITHIN: Duration = Duration::from_secs(1);

/// See the module.
pub struct Party {
    workers: Workers,
    shared: Arc<Shared>,
    core: Option<usize>,
}

impl Party {
    /// Starts a POP on `config.process.cores`' first core, if there is one. `source` names in messages what said where to
    /// listen: a file or a program, and its key.
    ///
    /// # Errors
    /// As [`run::pop`].
    pub fn pop(config: &PopConfig, source: (&str, &str)) -> Result<Party, RunError> {
        let mut binds = config.binds();
        for bind in &mut binds {
            source.1.clone_into(&mut bind.key);
        }
        listen::check_free(Path::new(source.0), &binds).map_err(RunError::Config)?;
        let settings = run::relay_settings(config);
        let tls = run::pop_tls(config).map_err(RunError::Config)?;
        let process = &config.process;
        let plan = WorkersPlan {
            fast_open_keys: config.fast_open_keys.as_ref().map_or_else(Vec::new, FastOpenKeys::bytes),
            ..run::workers_plan(ProcessRole::Pop, cores(&process.cores), &binds, &process.worker, tls)
        };
        Party::start(&plan, Some(&config.tickets), move |_| Relay::new(settings.clone(), random_prng()))
    }

    /// Starts a gateway on `config.process.cores`' first core, if there is one.
    ///
    /// # Errors
    /// As [`run::gateway`].
    pub fn gateway(config: &GatewayConfig) -> Result<Party, RunError> {
        let settings = run::gateway_settings(config);
        let tls = run::gateway_tls(config).map_err(RunError::Config)?;
        let process = &config.process;
        let plan =
            run::workers_plan(ProcessRole::Gateway, cores(&process.cores), &config.binds(), &process.worker, tls);
        Party::start(&plan, None, move |_| Gateway::new(settings.clone()))
    }

    /// Starts the plan's worker; where pinning is not allowed, wherever the kernel likes.
    fn start<L, M>(plan: &WorkersPlan, tickets: Option<&TicketsConfig>, role: M) -> Result<Party, RunError>
    where
        L: Role<Links>,
        M: Fn(usize) -> L + Clone + Send + Sync + 'static,
    {
        let shared = Arc::new(run::shared(plan.cores.len(), tickets));
        match Workers::start(plan, shared.clone(), role.clone()) {
            Ok(workers) => Ok(Party { workers, shared, core: plan.cores[0] }),
            Err(WorkersError::Pin(_)) => {
                let unpinned = WorkersPlan { cores: vec![None], ..plan.clone() };
                Party::start(&unpinned, tickets, role)
            }
            Err(error) => Err(RunError::Workers(error)),
        }
    }

    /// Where it listens first.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.workers.addresses()[0]
    }

    /// The core it is pinned to.
    #[must_use]
    pub fn core(&self) -> Option<usize> {
        self.core
    }

    /// What its worker shares.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A figure of [`DESCRIPTIONS`] as last published, summed over workers and labels; 0 when there is none of that name.
    #[must_use]
    pub fn figure(&self, name: &str) -> u64 {
        let of_worker = |published: &Published| -> u64 {
            let figures = DESCRIPTIONS.iter().zip(published.read());
            figures.filter(|(described, _)| described.name == name).map(|(_, value)| value).sum()
        };
        self.shared.published.iter().map(of_worker).sum()
    }

    /// Waits until figures were published that are younger than this call.
    pub fn refresh(&self) {
        let until = Instant::now() + FIGURES_WITHIN;
        let passes = self.figure("passes");
        while self.figure("passes") == passes && Instant::now() < until {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Whether its worker has ended, which before a drain means that it failed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.workers.are_done()
    }

    /// Tells it to take nothing new, and to end when what runs has ended or `timeout` is over.
    pub fn drain(&self, timeout: Duration) {
        self.workers.tell(&Command::Drain(timeout));
    }

    /// Tells it to end now.
    pub fn stop(&self) {
        self.workers.tell(&Command::Stop);
    }

    /// Writes the log lines that wait. Where the log was not opened, they are dropped.
    pub fn write_log(&self) {
        LogWriter::default().finish(Instant::now(), &self.shared.logs);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// How its worker failed.
    pub fn join(mut self) -> Result<(), RunError> {
        self.workers.join().map_err(RunError::Workers)
    }
}

/// One worker, on the first of these cores if there is one.
fn cores(cores: &[usize]) -> Vec<Option<usize>> {
    vec![cores.first().copied()]
}
