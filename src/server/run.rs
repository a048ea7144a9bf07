//! A POP or a gateway from its configuration to its exit: the settings of its workers, and the slow thread's loop.
//!
//! Owns the translation of a configuration into what workers, roles and TLS are made from. Never touches a byte of a
//! client.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::certificates::{Authorities, Identity};
use super::config::{self, Bind, GatewayConfig, PopConfig, ServiceKind, WorkerConfig};
use super::health::{Flags, Health, ProcessRole};
use super::problems::{Place, Problem, Problems, Severity};
use super::signals::Asked;
use super::slow::SlowThread;
use super::workers::{ListenPlan, Workers, WorkersError, WorkersPlan, random_prng};
use super::{listen, log, process};
use crate::backbone::PoolSettings;
use crate::base::wire::Role;
use crate::gateway::{self, Gateway, GatewaySettings};
use crate::mmtp::{Agent, Attribute, CreditPolicy, Settings, Side};
use crate::relay::{Relay, RelaySettings, TunnelEarly, TunnelSettings};
use crate::ring::RingSettings;
use crate::tickets::Store;
use crate::tls::{
    self, ClientAuth, ClientOptions, ClientSettings, Roots, ServerOptions, ServerSettings, SettingsError,
};
use crate::worker::{Command, Links, Shared, TlsSettings};

/// Streams that may run on one trunk at a time: more than a worker may have by default.
const TRUNK_STREAMS_MAX: u32 = 1 << 20;

/// Credit of a whole trunk. Trunks are shared by strangers, so only the credit of streams holds anybody back.
const TRUNK_CREDIT_BYTES: u32 = 64 << 20;

/// A tunnel in which nothing moves for this long is given up by the gateway. The POP's own `idle_timeout` is meant to
/// come first; this one bounds what a POP that forgets can hold.
const TUNNEL_IDLE_TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// First window of a stream on a trunk.
const TRUNK_STREAM_CREDIT_BYTES: u32 = 128 << 10;

/// What the window of a stream on a trunk may grow to: 2 MiB fill a path of 100 ms at 160 Mbit/s.
const TRUNK_STREAM_CREDIT_BYTES_MAX: u32 = 2 << 20;

/// Percent of a busy core that handshakes may take: a storm of them leaves established connections four fifths.
const HANDSHAKE_SHARE: u32 = 20;

/// How long a client's patience with a connection that does not answer is taken to last.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(3);

/// Tickets kept in memory, for all workers: 29 MB when all are in use.
const TICKETS_CAPACITY: usize = 100_000;

/// How long a ticket is good for: the longest that this design allows.
const TICKETS_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Why a process could not start, or did not end well.
#[derive(Debug)]
pub enum RunError {
    /// The configuration does not fit this machine now: an address is taken, a certificate unusable.
    Config(Problems),
    /// Workers could not start or failed.
    Workers(WorkersError),
    /// The slow thread could not work.
    Slow(io::Error),
    /// The log could not be opened.
    Log(log::LogError),
}

impl std::fmt::Display for RunError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RunError::Config(problems) => problems.fmt(out),
            RunError::Workers(error) => write!(out, "error: {error}"),
            RunError::Slow(error) => write!(out, "error: the slow thread cannot work: {error}"),
            RunError::Log(error) => write!(out, "error: {error}"),
        }
    }
}

impl std::error::Error for RunError {}

/// Runs a POP until it is told to stop and has drained.
///
/// # Errors
/// When it cannot start, or a worker fails.
pub fn pop(config: &PopConfig) -> Result<(), RunError> {
    let tls = pop_tls(config).map_err(RunError::Config)?;
    let settings = relay_settings(config);
    let make_role = move |_| Relay::new(settings.clone(), random_prng());
    let reread = |current: &PopConfig| {
        let (config, warnings) = current.reread_certificates()?;
        let tls = pop_tls(&config)?;
        Ok((config, warnings, tls))
    };
    let process = Process {
        role: ProcessRole::Pop,
        id: &config.id,
        file: &config.file,
        binds: config.binds(),
        cores: &config.cores,
        worker: &config.worker,
        admin: config.admin,
        log: &config.log,
        drain_timeout: config.drain_timeout,
    };
    process.run(config.clone(), tls, make_role, reread)
}

/// Runs a gateway until it is told to stop and has drained.
///
/// # Errors
/// When it cannot start, or a worker fails.
pub fn gateway(config: &GatewayConfig) -> Result<(), RunError> {
    let tls = gateway_tls(config).map_err(RunError::Config)?;
    let settings = gateway_settings(config);
    let make_role = move |_| Gateway::new(settings.clone());
    let reread = |current: &GatewayConfig| {
        let (config, warnings) = current.reread_certificates()?;
        let tls = gateway_tls(&config)?;
        Ok((config, warnings, tls))
    };
    let process = Process {
        role: ProcessRole::Gateway,
        id: &config.id,
        file: &config.file,
        binds: config.binds(),
        cores: &config.cores,
        worker: &config.worker,
        admin: config.admin,
        log: &config.log,
        drain_timeout: config.drain_timeout,
    };
    process.run(config.clone(), tls, make_role, reread)
}

/// A configuration with its certificates read again, warnings, and the TLS that follows.
type Reread<C> = Result<(C, Vec<Problem>, TlsSettings), Problems>;

/// What both kinds of process have in common.
struct Process<'c> {
    role: ProcessRole,
    id: &'c str,
    file: &'c PathBuf,
    binds: Vec<Bind>,
    cores: &'c [usize],
    worker: &'c WorkerConfig,
    admin: Option<std::net::SocketAddr>,
    log: &'c config::LogConfig,
    drain_timeout: Duration,
}

impl Process<'_> {
    fn run<C, L, M, R>(&self, config: C, tls: TlsSettings, make_role: M, reread: R) -> Result<(), RunError>
    where
        L: Role<Links>,
        M: Fn(usize) -> L + Send + Sync + 'static,
        R: Fn(&C) -> Reread<C>,
    {
        log::open(self.log).map_err(RunError::Log)?;
        if let Err(error) = process::descriptors_raise() {
            tracing::warn!("the limit on descriptors stays as it is: {error}");
        }
        listen::check_free(self.file, &self.binds).map_err(RunError::Config)?;
        let cores = self.cores.iter().copied().map(Some).collect();
        let plan = workers_plan(self.role, cores, &self.binds, self.worker, tls);
        let shared = Arc::new(shared(&plan));
        let flags = Arc::new(Flags::default());
        let health = Health::new(self.role, self.id, flags.clone(), shared.clone(), Instant::now());
        let mut slow = SlowThread::new(health).map_err(RunError::Slow)?;
        let listen =
            |address| slow.listen(address).map_err(|error| self.bind_problem("admin.address", address, &error));
        let admin = self.admin.map(listen).transpose()?;
        let workers = Workers::start(&plan, shared, make_role).map_err(|error| match error {
            WorkersError::Bind(index, error) => {
                let bind = &self.binds[index];
                self.bind_problem(&bind.key, bind.address, &io::Error::from_raw_os_error(error.errno.0))
            }
            other => RunError::Workers(other),
        })?;
        flags.listening.store(true, Ordering::Relaxed);
        let (addresses, admin) = (workers.addresses(), admin.map(tracing::field::display));
        tracing::info!(id = self.id, ?addresses, admin, workers = plan.cores.len(), "listening");
        let ended = self.serve(&mut slow, workers, config, &flags, &reread);
        slow.finish();
        ended
    }

    /// The slow thread's loop.
    fn serve<C>(
        &self,
        slow: &mut SlowThread,
        mut workers: Workers,
        mut config: C,
        flags: &Flags,
        reread: &dyn Fn(&C) -> Reread<C>,
    ) -> Result<(), RunError> {
        loop {
            for asked in slow.turn().map_err(RunError::Slow)? {
                match asked {
                    Asked::Drain => self.drain(&workers, flags),
                    Asked::StopNow => workers.tell(&Command::Stop),
                    Asked::Reload => match reread(&config) {
                        Ok((fresh, warnings, tls)) => {
                            for warning in warnings {
                                tracing::warn!("{warning}");
                            }
                            workers.tell(&Command::Certificates(Arc::new(tls)));
                            config = fresh;
                            tracing::info!("certificates reread");
                        }
                        Err(problems) => tracing::error!("the old certificates stay in use: {problems}"),
                    },
                }
            }
            if workers.are_done() {
                tracing::info!("stopped");
                return workers.join().map_err(RunError::Workers);
            }
            if workers.has_ended_one() && !flags.draining.load(Ordering::Relaxed) {
                tracing::error!("a worker has failed: draining the others");
                self.drain(&workers, flags);
            }
        }
    }

    fn drain(&self, workers: &Workers, flags: &Flags) {
        tracing::info!(timeout_ms = self.drain_timeout.as_millis() as u64, "draining");
        flags.draining.store(true, Ordering::Relaxed);
        workers.tell(&Command::Drain(self.drain_timeout));
    }

    fn bind_problem(&self, key: &str, address: std::net::SocketAddr, error: &io::Error) -> RunError {
        let mut problems = Problems::new(self.file.clone());
        problems.push(Problem::from_bind(self.file.clone(), key, address, error));
        RunError::Config(problems)
    }
}

/// The plan for the workers of a process.
#[must_use]
pub fn workers_plan(
    role: ProcessRole,
    cores: Vec<Option<usize>>,
    binds: &[Bind],
    worker: &WorkerConfig,
    tls: TlsSettings,
) -> WorkersPlan {
    let listen =
        |bind: &Bind| ListenPlan { address: bind.address, backlog: bind.backlog, proxy_protocol: bind.proxy_protocol };
    WorkersPlan {
        cores,
        listen: binds.iter().map(listen).collect(),
        tls: Arc::new(tls),
        ring: RingSettings {
            buffers: worker.buffers,
            buffer_bytes: worker.buffer_bytes,
            batch_wait_us: u32::try_from(worker.batch_wait.as_micros()).unwrap_or(u32::MAX),
            ..RingSettings::default()
        },
        accepted_max: worker.clients_max,
        handshake_timeout: worker.handshake_timeout,
        handshake_share: HANDSHAKE_SHARE,
        handshake_patience: HANDSHAKE_PATIENCE,
        serves_clients: role == ProcessRole::Pop,
        connect_timeout: worker.connect_timeout,
        idle_timeout: worker.idle_timeout,
    }
}

/// What the workers of a plan share. Only clients come back with tickets: trunks are few and stay.
#[must_use]
pub fn shared(plan: &WorkersPlan) -> Shared {
    let shared = Shared::new(plan.cores.len());
    if !plan.serves_clients {
        return shared;
    }
    shared.with_tickets(Store::new(TICKETS_CAPACITY, TICKETS_LIFETIME, random_prng().next_u64()))
}

/// TLS of a POP's listeners and trunks.
///
/// # Errors
/// One problem per identity or authority that cannot be used.
pub fn pop_tls(config: &PopConfig) -> Result<TlsSettings, Problems> {
    let mut problems = Problems::new(config.file.clone());
    let mut each = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let made = identity(&listener.identity).and_then(|identity| {
            let options = ServerOptions {
                tunnels: listener.tunnel.is_some(),
                post_quantum: listener.post_quantum,
                ..ServerOptions::new(identity)
            };
            ServerSettings::new(&options)
        });
        each.push(noted(made, &mut problems, &config.file, &format!("listen[{index}].certificate")));
    }
    let backbone = &config.backbone;
    let dialer = identity(&backbone.identity).and_then(|identity| {
        let options = ClientOptions { identity: Some(identity), ..ClientOptions::new(roots(&backbone.ca)?) };
        ClientSettings::new(&options)
    });
    let dialer = noted(dialer, &mut problems, &config.file, "backbone.certificate");
    let each: Option<Vec<ServerSettings>> = each.into_iter().collect();
    match (each, dialer) {
        (Some(each), Some(dialer)) => Ok(TlsSettings {
            listeners: config.binds().iter().map(|bind| each[bind.listener].clone()).collect(),
            gateways: backbone.gateways.iter().map(|gateway| (dialer.clone(), gateway.server_name.clone())).collect(),
        }),
        _ => Err(problems),
    }
}

/// TLS of a gateway's listener.
///
/// # Errors
/// When the identity or the authorities cannot be used.
pub fn gateway_tls(config: &GatewayConfig) -> Result<TlsSettings, Problems> {
    let mut problems = Problems::new(config.file.clone());
    let made = identity(&config.listener.identity).and_then(|identity| {
        let client_auth = ClientAuth::Required(roots(&config.listener.client_ca)?);
        ServerSettings::new(&ServerOptions { client_auth, ..ServerOptions::new(identity) })
    });
    match noted(made, &mut problems, &config.file, "listen.certificate") {
        Some(settings) => Ok(TlsSettings {
            listeners: config.binds().iter().map(|_| settings.clone()).collect(),
            gateways: Vec::new(),
        }),
        None => Err(problems),
    }
}

fn identity(found: &Identity) -> Result<tls::Identity, SettingsError> {
    tls::Identity::from_der(found.chain.clone(), found.key.clone())
}

fn roots(found: &Authorities) -> Result<Roots, SettingsError> {
    Roots::from_der(found.roots.clone())
}

fn noted<T>(made: Result<T, SettingsError>, problems: &mut Problems, file: &std::path::Path, key: &str) -> Option<T> {
    made.map_err(|error| {
        problems.push(Problem {
            severity: Severity::Error,
            file: file.to_path_buf(),
            place: Place::of(key),
            what: error.to_string(),
            remedy: "use a certificate, key and authority that TLS 1.3 can use".to_owned(),
        });
    })
    .ok()
}

/// What a POP's workers relay by.
#[must_use]
pub fn relay_settings(config: &PopConfig) -> RelaySettings {
    let backbone = &config.backbone;
    let tunnel = |bind: &Bind| {
        let service = config.listeners[bind.listener].tunnel.clone()?;
        Some(TunnelSettings { service, early: TunnelEarly::Hold })
    };
    RelaySettings {
        pop_id: config.id.clone(),
        tunnels: config.binds().iter().map(tunnel).collect(),
        mmtp: Settings {
            attributes: vec![(Attribute::App, config.id.clone().into_bytes())],
            hash_seed: random_prng().next_u64(),
            ..Settings::new(Side::Acceptor, Agent::Pop)
        },
        pool: PoolSettings {
            gateways: backbone.gateways.iter().map(|gateway| gateway.address).collect(),
            trunks_per_gateway: backbone.trunks_per_core,
            mmtp: trunk_settings(Side::Initiator, Agent::Pop, &config.id),
            heartbeat_interval: backbone.heartbeat_interval,
            backoff_min: backbone.backoff_min,
            backoff_max: backbone.backoff_max,
        },
        wait_for_trunk: backbone.wait_for_trunk,
        streams_max: config.worker.streams_max,
        goaway_wait: config.goaway_wait,
    }
}

/// What a gateway's workers serve by.
#[must_use]
pub fn gateway_settings(config: &GatewayConfig) -> GatewaySettings {
    let upstream = &config.upstream;
    let service = |service: &config::Service| gateway::Service {
        name: service.name.clone(),
        kind: match service.kind {
            ServiceKind::Tunnel => gateway::ServiceKind::Tunnel,
            ServiceKind::Http => gateway::ServiceKind::Http,
        },
        upstreams: service.upstreams.clone(),
        authority: service.authority.clone(),
        response_timeout: upstream.response_timeout,
        idle_timeout: TUNNEL_IDLE_TIMEOUT,
        keepalive_max: upstream.keepalive_max,
        keepalive_timeout: upstream.keepalive_timeout,
        connections_max: upstream.connections_max,
    };
    GatewaySettings {
        services: config.services.iter().map(service).collect(),
        mmtp: trunk_settings(Side::Acceptor, Agent::Gateway, &config.id),
        streams_max: config.worker.streams_max,
        goaway_wait: config.goaway_wait,
    }
}

/// What both ends of a trunk say in their HELLO.
fn trunk_settings(side: Side, agent: Agent, id: &str) -> Settings {
    let streams_max = if side == Side::Acceptor { TRUNK_STREAMS_MAX } else { 0 };
    Settings {
        streams_max,
        stream_credit: TRUNK_STREAM_CREDIT_BYTES,
        stream_credit_max: TRUNK_STREAM_CREDIT_BYTES_MAX,
        connection_credit: TRUNK_CREDIT_BYTES,
        credit_policy: CreditPolicy::OnArrival,
        attributes: vec![(Attribute::App, id.as_bytes().to_vec())],
        // The peer is a POP or gateway of ours, proven by mutual TLS: clients that come and go are its daily business.
        churn_burst: u32::MAX,
        churn_per_second: u32::MAX,
        hash_seed: random_prng().next_u64(),
        ..Settings::new(side, agent)
    }
}
