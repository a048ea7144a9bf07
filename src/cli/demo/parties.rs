//! The demo's parties in one process on loopback: origin, gateway and POP, from their certificates to their end.
//!
//! Owns their threads and what is needed to ask how they do. Everything is made by the same functions that `trunkline pop`
//! and `trunkline gateway` use, from configurations that no file holds. Invariant: nothing listens but on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::DemoError;
use super::origin::Origin;
use crate::server::certificates::{DevelopmentCa, Issued, Usage};
use crate::server::config::{
    Backbone, Gateway, GatewayConfig, Listener, PopConfig, Service, ServiceKind, Surroundings, TrunkListener,
};
use crate::server::defaults::TRUNKS_PER_CORE;
use crate::server::party::Party;
use crate::server::process;
use crate::server::run::RunError;

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
        let gateway = gateway_config(&ca, &gateway, origin.address(), &here, cores[1]);
        let gateway = Party::gateway(&gateway).map_err(DemoError::Start)?;
        let pop = pop_config(&ca, &pop, port, gateway.address(), &here, cores[0]);
        let pop = Party::pop(&pop, ("trunkline demo", "--port")).map_err(DemoError::Start)?;
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

    fn write_log(&self) {
        self.pop.write_log();
        self.gateway.write_log();
    }

    /// Drains and ends them, the first of the path first. While it waits it asks `is_urgent` some times a second whether
    /// to wait no longer.
    ///
    /// # Errors
    /// How the first of those that failed did.
    pub(super) fn end(self, mut is_urgent: impl FnMut() -> bool) -> Result<(), RunError> {
        for party in [&self.pop, &self.gateway] {
            party.drain(DRAIN_TIMEOUT);
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

fn gateway_config(
    ca: &DevelopmentCa,
    issued: &Issued,
    origin: SocketAddr,
    here: &Surroundings,
    core: Option<usize>,
) -> GatewayConfig {
    let listener = TrunkListener::new(loopback(0), issued.identity(), ca.authorities());
    let services =
        vec![Service::new(TUNNEL, ServiceKind::Tunnel, origin), Service::new(HTTP, ServiceKind::Http, origin)];
    GatewayConfig::new("demo-gateway", core.into_iter().collect(), here, listener, services)
}

fn pop_config(
    ca: &DevelopmentCa,
    issued: &Issued,
    port: u16,
    gateway: SocketAddr,
    here: &Surroundings,
    core: Option<usize>,
) -> PopConfig {
    let listener = Listener::new(loopback(port), issued.identity(), Some(TUNNEL));
    let gateways = vec![Gateway::new("demo-gateway", gateway)];
    let backbone = Backbone::new(ca.authorities(), issued.identity(), gateways);
    PopConfig::new("demo-pop", core.into_iter().collect(), here, listener, backbone)
}
