//! What a configuration means where nothing is said: the defaults, and configurations made of them without a file.
//!
//! Owns every default value that docs/CONFIG.md states. Reads nothing. Invariant: a configuration made here is what
//! reading a file that names only the required keys would give.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::certificates::{Authorities, Identity};
use super::config::{
    Backbone, ClientAuth, Endpoint, Gateway, GatewayConfig, Listener, LogConfig, PopConfig, ProcessConfig, Service,
    ServiceKind, Surroundings, TicketsConfig, TrunkListener, TrunkTls, TunnelEarlyData, UpstreamConfig, WorkerConfig,
};
use crate::ring::RingSettings;

/// Descriptors a process needs besides connections: rings, listeners, trunks, files, the admin address.
pub const DESCRIPTORS_RESERVED: u64 = 512;

/// Accepted connections per worker when nothing is said and descriptors allow it: about 256 MiB of idle connections.
pub(super) const CLIENTS_DEFAULT_MAX: u64 = 65_536;

/// Streams per worker when nothing is said: every client a tunnel, and as many MMTP streams again.
const STREAMS_DEFAULT_MAX: usize = 2 * CLIENTS_DEFAULT_MAX as usize;

/// Connections to the upstreams of one service when descriptors allow it: a little over half of the local ports
/// Linux uses by default, so that another service still finds some.
const UPSTREAM_CONNECTIONS_DEFAULT_MAX: u64 = 16_384;

/// `drain_timeout`: under the 30 s after which Kubernetes kills.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// `goaway_wait`.
pub(super) const GOAWAY_WAIT: Duration = Duration::from_secs(1);

/// `backlog` of a listener.
pub(super) const BACKLOG: u32 = 4096;

/// `fast_open` of a listener: a worker takes hundreds of connections per pass.
pub(super) const FAST_OPEN_QUEUE: u32 = 256;

/// `tickets.capacity`: 29 MB, once it is full.
pub(super) const TICKETS_CAPACITY: usize = 100_000;

/// `tickets.lifetime`: the longest that is allowed.
pub(super) const TICKETS_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// `tickets.lookup_timeout`: less than the round trip that a ticket saves.
pub(super) const TICKETS_LOOKUP_TIMEOUT: Duration = Duration::from_millis(25);

/// `backbone.trunks_per_core`: two, so that one can be lost without waiting for a dial.
pub const TRUNKS_PER_CORE: usize = 2;

/// `backbone.heartbeat_interval`.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);

/// `backbone.backoff_min`.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// `backbone.backoff_max`.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// `backbone.wait_for_trunk`.
pub(super) const WAIT_FOR_TRUNK: Duration = Duration::from_secs(2);

/// Whose workers they are: some defaults differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// Trunks go far away and shake hands; clients may be silent for as long as a phone sleeps.
    Pop,
    /// Upstreams are near and speak plain TCP; a trunk without heartbeats is dead.
    Gateway,
}

impl Surroundings {
    /// What is left of the limit of descriptors for connections of one worker.
    pub(super) fn descriptors_per_worker(&self, worker_count: usize) -> u64 {
        self.descriptors.saturating_sub(DESCRIPTORS_RESERVED) / worker_count.max(1) as u64
    }
}

impl WorkerConfig {
    pub(super) fn of(side: Side, here: &Surroundings, worker_count: usize) -> WorkerConfig {
        let (connect_s, idle_s) = match side {
            Side::Pop => (5, 600),
            Side::Gateway => (2, 60),
        };
        let ring = RingSettings::default();
        WorkerConfig {
            clients_max: here.descriptors_per_worker(worker_count).clamp(64, CLIENTS_DEFAULT_MAX) as usize,
            streams_max: STREAMS_DEFAULT_MAX,
            buffers: ring.buffers,
            buffer_bytes: ring.buffer_bytes,
            batch_wait: Duration::from_micros(u64::from(ring.batch_wait_us)),
            handshake_timeout: Duration::from_secs(10),
            handshake_share: 20,
            handshake_patience: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(connect_s),
            idle_timeout: Duration::from_secs(idle_s),
        }
    }
}

impl UpstreamConfig {
    pub(super) fn of(here: &Surroundings, worker_count: usize) -> UpstreamConfig {
        let share = here.descriptors_per_worker(worker_count) / 2;
        UpstreamConfig {
            connections_max: share.clamp(64, UPSTREAM_CONNECTIONS_DEFAULT_MAX) as usize,
            response_timeout: Duration::from_secs(60),
            keepalive_max: 1024,
            keepalive_timeout: Duration::from_secs(4),
        }
    }
}

impl Endpoint {
    fn new(address: SocketAddr) -> Endpoint {
        Endpoint { addresses: vec![address], backlog: BACKLOG }
    }
}

impl Listener {
    /// Clients at `address`; those that do not speak `mmtp/1` are refused unless `tunnel` names a service.
    #[must_use]
    pub fn new(address: SocketAddr, identity: Identity, tunnel: Option<&str>) -> Listener {
        Listener {
            endpoint: Endpoint::new(address),
            identity,
            identities: Vec::new(),
            client_auth: ClientAuth::None,
            tunnel: tunnel.map(str::to_owned),
            proxy_protocol: false,
            post_quantum: false,
            early_data: true,
            tunnel_early_data: TunnelEarlyData::Hold,
            fast_open: FAST_OPEN_QUEUE,
        }
    }
}

impl TrunkListener {
    /// POPs that `client_ca` vouches for, at `address`.
    #[must_use]
    pub fn new(address: SocketAddr, identity: Identity, client_ca: Authorities) -> TrunkListener {
        TrunkListener { endpoint: Endpoint::new(address), tls: Some(TrunkTls { authorities: client_ca, identity }) }
    }
}

impl Gateway {
    /// A gateway whose certificate holds the IP of its address.
    #[must_use]
    pub fn new(name: &str, address: SocketAddr) -> Gateway {
        Gateway { name: name.to_owned(), address, server_name: address.ip().to_string() }
    }
}

impl Backbone {
    /// Trunks to `gateways`.
    #[must_use]
    pub fn new(ca: Authorities, identity: Identity, gateways: Vec<Gateway>) -> Backbone {
        Backbone {
            tls: Some(TrunkTls { authorities: ca, identity }),
            trunks_per_core: TRUNKS_PER_CORE,
            heartbeat_interval: HEARTBEAT_INTERVAL,
            backoff_min: BACKOFF_MIN,
            backoff_max: BACKOFF_MAX,
            wait_for_trunk: WAIT_FOR_TRUNK,
            gateways,
        }
    }
}

impl Service {
    /// A service with one upstream.
    #[must_use]
    pub fn new(name: &str, kind: ServiceKind, upstream: SocketAddr) -> Service {
        Service { name: name.to_owned(), kind, upstreams: vec![upstream], authority: upstream.to_string() }
    }
}

/// The place of a configuration that no file holds.
fn in_memory() -> PathBuf {
    PathBuf::from("(in memory)")
}

impl ProcessConfig {
    fn new(side: Side, id: &str, cores: Vec<usize>, here: &Surroundings) -> ProcessConfig {
        ProcessConfig {
            file: in_memory(),
            id: id.to_owned(),
            worker: WorkerConfig::of(side, here, cores.len()),
            cores,
            drain_timeout: DRAIN_TIMEOUT,
            goaway_wait: GOAWAY_WAIT,
            admin: None,
            log: LogConfig::default(),
        }
    }
}

impl PopConfig {
    /// A POP on `cores` without a file, everything else by default.
    #[must_use]
    pub fn new(id: &str, cores: Vec<usize>, here: &Surroundings, listener: Listener, backbone: Backbone) -> PopConfig {
        PopConfig {
            process: ProcessConfig::new(Side::Pop, id, cores, here),
            listeners: vec![listener],
            backbone,
            tickets: TicketsConfig::default(),
            fast_open_keys: None,
        }
    }
}

impl GatewayConfig {
    /// A gateway on `cores` without a file, everything else by default.
    #[must_use]
    pub fn new(
        id: &str,
        cores: Vec<usize>,
        here: &Surroundings,
        listener: TrunkListener,
        services: Vec<Service>,
    ) -> GatewayConfig {
        GatewayConfig {
            upstream: UpstreamConfig::of(here, cores.len()),
            process: ProcessConfig::new(Side::Gateway, id, cores, here),
            listener,
            services,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::certificates::{DevelopmentCa, Usage};
    use std::path::Path;

    const POP: &str = r#"
        id = "a"
        cores = [0]
        [[listen]]
        address = "127.0.0.1:1"
        certificate = "a.pem"
        key = "a.key"
        tunnel = "web"
        [backbone]
        ca = "ca.pem"
        certificate = "a.pem"
        key = "a.key"
        [[backbone.gateway]]
        name = "b"
        address = "127.0.0.1:2"
    "#;

    const GATEWAY: &str = r#"
        id = "b"
        cores = [0]
        [listen]
        address = "127.0.0.1:2"
        certificate = "a.pem"
        key = "a.key"
        client_ca = "ca.pem"
        [[service]]
        name = "web"
        kind = "tunnel"
        upstream = "127.0.0.1:3"
    "#;

    /// A configuration as text, without what tells where certificates came from.
    fn told(config: &impl std::fmt::Debug, directory: &Path) -> String {
        let text = format!("{config:#?}").replace(&format!("{}/", directory.display()), "");
        let is_file = |line: &&str| !["_file: ", "file: "].iter().any(|key| line.trim_start().contains(key));
        let lines: Vec<&str> = text.lines().filter(is_file).collect();
        lines.join("\n")
    }

    #[test]
    fn without_a_file_everything_is_as_with_the_shortest_one() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let directory = directory.path();
        let ca = DevelopmentCa::new().expect("an authority");
        let issued = ca.issue("a", &[], Usage::ServerAndClient).expect("a certificate");
        for (name, text) in [("a.pem", &issued.chain_pem), ("a.key", &issued.key_pem), ("ca.pem", &ca.pem())] {
            std::fs::write(directory.join(name), text).expect("our own directory");
        }
        let here = Surroundings { cores: vec![0], descriptors: 4096, now: std::time::SystemTime::now() };
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));

        let (read, _) = PopConfig::parse(POP, &directory.join("pop.toml"), &here).expect("a right one");
        let listener = Listener::new(address(1), issued.identity(), Some("web"));
        let backbone = Backbone::new(ca.authorities(), issued.identity(), vec![Gateway::new("b", address(2))]);
        let made = PopConfig::new("a", vec![0], &here, listener, backbone);
        assert_eq!(told(&made, directory), told(&read, directory));

        let (read, _) = GatewayConfig::parse(GATEWAY, &directory.join("gateway.toml"), &here).expect("a right one");
        let listener = TrunkListener::new(address(2), issued.identity(), ca.authorities());
        let services = vec![Service::new("web", ServiceKind::Tunnel, address(3))];
        let made = GatewayConfig::new("b", vec![0], &here, listener, services);
        assert_eq!(told(&made, directory), told(&read, directory));
    }
}
