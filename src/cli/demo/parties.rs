//! The demo's parties in one process on loopback: origin, gateway and POP, from their certificates to their end.
//!
//! Owns their threads and what is needed to ask how they do. Everything is made by the same functions that `trunkline pop`
//! and `trunkline gateway` use, from configurations that no file holds. Invariant: nothing listens but on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::DemoError;
use super::origin::Origin;
use crate::base::counters::{DESCRIPTIONS, Published};
use crate::base::wire::Role;
use crate::gateway::Gateway;
use crate::relay::Relay;
use crate::server::certificates::{DevelopmentCa, Issued, Usage};
use crate::server::config::{
    self, Backbone, GatewayConfig, Listener, PopConfig, Service, ServiceKind, Surroundings, TrunkListener,
};
use crate::server::defaults::TRUNKS_PER_CORE;
use crate::server::log::LogWriter;
use crate::server::run::{self, RunError};
use crate::server::workers::{Workers, WorkersError, WorkersPlan, random_prng};
use crate::server::{listen, process};
use crate::worker::{Command, Links, Shared};

/// How long the trunks may take to come up.
const TRUNKS_WITHIN: Duration = Duration::from_secs(10);

/// How long what runs may go on after the end was asked for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a thread that waits looks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The service of bytes as they are.
pub(super) const TUNNEL: &str = "web";

/// The service of HTTP requests.
pub(super) const HTTP: &str = "pay";

/// A POP or a gateway with one worker.
pub(super) struct Party {
    workers: Workers,
    shared: Arc<Shared>,
    /// The core it is pinned to.
    pub(super) core: Option<usize>,
}

impl Party {
    /// Starts the plan's worker on `core`; where pinning is not allowed, wherever the kernel likes.
    fn start<L, M>(core: Option<usize>, plan: WorkersPlan, role: M) -> Result<Party, RunError>
    where
        L: Role<Links>,
        M: Fn(usize) -> L + Clone + Send + Sync + 'static,
    {
        let shared = Arc::new(Shared::new(1));
        match Workers::start(&plan, shared.clone(), role.clone()) {
            Ok(workers) => Ok(Party { workers, shared, core }),
            Err(WorkersError::Pin(_)) => {
                let (shared, plan) = (Arc::new(Shared::new(1)), WorkersPlan { cores: vec![None], ..plan });
                let workers = Workers::start(&plan, shared.clone(), role).map_err(RunError::Workers)?;
                Ok(Party { workers, shared, core: None })
            }
            Err(error) => Err(RunError::Workers(error)),
        }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.workers.addresses()[0]
    }

    /// What its worker shares.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A figure of [`DESCRIPTIONS`] as last published, summed over workers and labels.
    pub(super) fn figure(&self, name: &str) -> u64 {
        let of_worker = |published: &Published| -> u64 {
            let figures = DESCRIPTIONS.iter().zip(published.read());
            figures.filter(|(described, _)| described.name == name).map(|(_, value)| value).sum()
        };
        self.shared.published.iter().map(of_worker).sum()
    }

    /// Waits until figures were published that are younger than this call.
    pub(super) fn refresh(&self) {
        let until = Instant::now() + Duration::from_secs(1);
        let passes = self.figure("passes");
        while self.figure("passes") == passes && Instant::now() < until {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Whether its worker has ended, which before a drain means that it failed.
    pub(super) fn has_ended(&self) -> bool {
        self.workers.are_done()
    }

    /// Tells it to take nothing new and to end.
    pub(super) fn drain(&self) {
        self.workers.tell(&Command::Drain(DRAIN_TIMEOUT));
    }

    /// Tells it to end now.
    pub(super) fn stop(&self) {
        self.workers.tell(&Command::Stop);
    }

    fn join(mut self) -> Result<(), RunError> {
        self.workers.join().map_err(RunError::Workers)
    }
}

/// Everybody on the path.
pub(super) struct Parties {
    pub(super) ca: DevelopmentCa,
    pub(super) origin: Origin,
    pub(super) gateway: Party,
    pub(super) pop: Party,
}

impl Parties {
    /// Starts them, the last of the path first, and waits until the trunks are up. Port 0 of the POP lets the kernel
    /// choose.
    ///
    /// # Errors
    /// What could not be had; nothing of it matters to anybody else, and it ends with the process.
    pub(super) fn start(port: u16) -> Result<Parties, DemoError> {
        // A low limit suits the demo as well.
        let _ = process::descriptors_raise();
        let here = Surroundings::here();
        let cores = match here.cores.as_slice() {
            [first, second, ..] => [Some(*first), Some(*second)],
            _ => [None, None],
        };
        let ca = DevelopmentCa::new().map_err(DemoError::Certificates)?;
        let issue = |name, usage| ca.issue(name, &[], usage).map_err(DemoError::Certificates);
        let pop = issue("Trunkline demo POP", Usage::ServerAndClient)?;
        let gateway = issue("Trunkline demo gateway", Usage::Server)?;
        let origin = Origin::start().map_err(DemoError::Origin)?;
        let gateway = start_gateway(&ca, &gateway, origin.address(), &here, cores[1]).map_err(DemoError::Start)?;
        let pop = start_pop(&ca, &pop, port, gateway.address(), &here, cores[0]).map_err(DemoError::Start)?;
        let parties = Parties { ca, origin, gateway, pop };
        parties.wait_for_trunks()?;
        Ok(parties)
    }

    fn wait_for_trunks(&self) -> Result<(), DemoError> {
        let until = Instant::now() + TRUNKS_WITHIN;
        while self.trunks() < TRUNKS_PER_CORE as u64 {
            if self.has_ended_one() || Instant::now() >= until {
                let failed = self.pop.figure("trunks_failed");
                self.write_log();
                return Err(DemoError::Trunks { failed });
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// Trunks that are up.
    pub(super) fn trunks(&self) -> u64 {
        self.pop.figure("trunks_ready")
    }

    /// Whether POP or gateway have ended, which before a drain means that they failed.
    pub(super) fn has_ended_one(&self) -> bool {
        self.pop.has_ended() || self.gateway.has_ended()
    }

    /// Writes the log lines that wait. Where nobody asked for a log, they are dropped.
    fn write_log(&self) {
        for party in [&self.pop, &self.gateway] {
            LogWriter::default().finish(Instant::now(), &party.shared.logs);
        }
    }

    /// Drains and ends them, the first of the path first. While it waits it asks `is_urgent` some times a second whether
    /// to wait no longer.
    ///
    /// # Errors
    /// How the first of those that failed did.
    pub(super) fn end(self, mut is_urgent: impl FnMut() -> bool) -> Result<(), RunError> {
        for party in [&self.pop, &self.gateway] {
            party.drain();
            while !party.has_ended() {
                if is_urgent() {
                    self.pop.stop();
                    self.gateway.stop();
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
        }
        self.write_log();
        let ended = self.pop.join();
        let ended = ended.and(self.gateway.join());
        self.origin.stop();
        ended
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn start_gateway(
    ca: &DevelopmentCa,
    issued: &Issued,
    origin: SocketAddr,
    here: &Surroundings,
    core: Option<usize>,
) -> Result<Party, RunError> {
    let listener = TrunkListener::new(loopback(0), issued.identity(), ca.authorities());
    let services =
        vec![Service::new(TUNNEL, ServiceKind::Tunnel, origin), Service::new(HTTP, ServiceKind::Http, origin)];
    let config = GatewayConfig::new("demo-gateway", core.into_iter().collect(), here, listener, services);
    let settings = run::gateway_settings(&config);
    let tls = run::gateway_tls(&config).map_err(RunError::Config)?;
    let plan = run::workers_plan(vec![core], &config.binds(), &config.worker, tls);
    Party::start(core, plan, move |_| Gateway::new(settings.clone()))
}

fn start_pop(
    ca: &DevelopmentCa,
    issued: &Issued,
    port: u16,
    gateway: SocketAddr,
    here: &Surroundings,
    core: Option<usize>,
) -> Result<Party, RunError> {
    let listener = Listener::new(loopback(port), issued.identity(), Some(TUNNEL));
    let backbone =
        Backbone::new(ca.authorities(), issued.identity(), vec![config::Gateway::new("demo-gateway", gateway)]);
    let config = PopConfig::new("demo-pop", core.into_iter().collect(), here, listener, backbone);
    let mut binds = config.binds();
    binds[0].key = "--port".to_owned();
    listen::check_free(Path::new("trunkline demo"), &binds).map_err(RunError::Config)?;
    let settings = run::relay_settings(&config);
    let tls = run::pop_tls(&config).map_err(RunError::Config)?;
    let plan = run::workers_plan(vec![core], &binds, &config.worker, tls);
    Party::start(core, plan, move |_| Relay::new(settings.clone(), random_prng()))
}
