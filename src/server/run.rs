//! A POP or a gateway from its configuration to its exit: the settings of its workers, and the slow thread's loop.
//!
//! Owns the translation of a configuration into what workers, roles and TLS are made from. Never touches a byte of a
//! client.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::certificates::{Authorities, Identity};
use super::config::{
    self, Bind, ClientAuth, Configuration, GatewayConfig, Listener, PopConfig, Renewed, ServiceKind, TicketStore,
    TicketsConfig, TrunkTls, TunnelEarlyData, WorkerConfig,
};
use super::health::{Flags, Health, ProcessRole};
use super::keys::FastOpenKeys;
use super::problems::{Place, Problem, Problems, Severity};
use super::signals::Asked;
use super::slow::SlowThread;
use super::watch::Watch;
use super::workers::{ListenPlan, Workers, WorkersError, WorkersPlan, random_prng};
use super::{listen, log, process};
use crate::backbone::PoolSettings;
use crate::base::wire::Role;
use crate::gateway::{self, Gateway, GatewaySettings};
use crate::mmtp::{Agent, Attribute, CreditPolicy, Settings, Side};
use crate::relay::{Relay, RelaySettings, TunnelEarly, TunnelSettings};
use crate::ring::RingSettings;
use crate::tickets::seal::Keys;
use crate::tickets::{Group, Store};
use crate::tls::{self, ClientOptions, ClientSettings, Names, Roots, ServerOptions, ServerSettings, SettingsError};
use crate::worker::{Command, Links, Shared, TlsSettings, WorkerSettings};

/// Streams that may run on one trunk at a time: more than a worker may have by default.
const TRUNK_STREAMS_MAX: u32 = 1 << 20;

/// Credit of a whole trunk. Trunks are shared by strangers, so only the credit of streams holds anybody back.
const TRUNK_CREDIT_BYTES: u32 = 64 << 20;

/// A tunnel in which nothing moves for this long is given up by the gateway. The POP's own `idle_timeout` is meant to
/// come first; this one bounds what a POP that forgets can hold.
const TUNNEL_IDLE_TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// How long a closed connection may take to hand over its last bytes and hear the peer's end.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// First window of a stream on a trunk.
const TRUNK_STREAM_CREDIT_BYTES: u32 = 128 << 10;

/// What the window of a stream on a trunk may grow to: 2 MiB fill a path of 100 ms at 160 Mbit/s.
const TRUNK_STREAM_CREDIT_BYTES_MAX: u32 = 2 << 20;

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
    let settings = relay_settings(config);
    run(config, move |_| Relay::new(settings.clone(), random_prng()))
}

/// Runs a gateway until it is told to stop and has drained.
///
/// # Errors
/// When it cannot start, or a worker fails.
pub fn gateway(config: &GatewayConfig) -> Result<(), RunError> {
    let settings = gateway_settings(config);
    run(config, move |_| Gateway::new(settings.clone()))
}

/// A configuration that a process runs by.
trait Configured: Configuration {
    const ROLE: ProcessRole;
    fn tls(&self) -> Result<TlsSettings, Problems>;
}

impl Configured for PopConfig {
    const ROLE: ProcessRole = ProcessRole::Pop;

    fn tls(&self) -> Result<TlsSettings, Problems> {
        pop_tls(self)
    }
}

impl Configured for GatewayConfig {
    const ROLE: ProcessRole = ProcessRole::Gateway;

    fn tls(&self) -> Result<TlsSettings, Problems> {
        gateway_tls(self)
    }
}

/// A process from its start to its end.
fn run<C, L, M>(config: &C, make_role: M) -> Result<(), RunError>
where
    C: Configured,
    L: Role<Links>,
    M: Fn(usize) -> L + Send + Sync + 'static,
{
    let (process, binds) = (config.process(), config.binds());
    let watch = Watch::new(config.files(), Instant::now());
    let tls = config.tls().map_err(RunError::Config)?;
    log::open(&process.log).map_err(RunError::Log)?;
    if let Err(error) = process::descriptors_raise() {
        tracing::warn!("the limit on descriptors stays as it is: {error}");
    }
    if config.has_plaintext_trunks() {
        tracing::warn!(
            "TRUNKS ARE PLAINTEXT (tls = false): whoever reaches them can read, change and forge every request"
        );
    }
    listen::warn_of_fast_open(&binds);
    listen::check_free(&process.file, &binds).map_err(RunError::Config)?;
    let cores = process.cores.iter().copied().map(Some).collect();
    let plan = WorkersPlan {
        fast_open_keys: config.fast_open_keys().map_or_else(Vec::new, FastOpenKeys::bytes),
        ..workers_plan(C::ROLE, cores, &binds, &process.worker, tls)
    };
    let shared = Arc::new(shared(plan.cores.len(), config.tickets()));
    let flags = Arc::new(Flags::default());
    let health = Health::new(C::ROLE, &process.id, flags.clone(), shared.clone(), Instant::now());
    let mut slow = SlowThread::new(health).map_err(RunError::Slow)?;
    let listen =
        |address| slow.listen(address).map_err(|error| bind_problem(&process.file, "admin.address", address, &error));
    let admin = process.admin.map(listen).transpose()?;
    let workers = Workers::start(&plan, shared, make_role).map_err(|error| match error {
        WorkersError::Bind(index, error) => {
            let bind = &binds[index];
            let error = io::Error::from_raw_os_error(error.errno.0);
            bind_problem(&process.file, &bind.key, bind.address, &error)
        }
        other => RunError::Workers(other),
    })?;
    flags.listening.store(true, Ordering::Relaxed);
    let (addresses, admin) = (workers.addresses(), admin.map(tracing::field::display));
    tracing::info!(id = process.id, ?addresses, admin, workers = plan.cores.len(), "listening");
    let renewed_at = SystemTime::now();
    let mut serving = Serving { config: config.clone(), renewed_at, workers, slow, flags, watch };
    serving.tell_expiries();
    let ended = serving.serve();
    serving.slow.finish();
    ended
}

fn bind_problem(file: &Path, key: &str, address: SocketAddr, error: &io::Error) -> RunError {
    let mut problems = Problems::new(file.to_path_buf());
    problems.push(Problem::from_bind(file.to_path_buf(), key, address, error));
    RunError::Config(problems)
}

/// A process that serves, seen from its slow thread.
struct Serving<C> {
    /// As it was read, with what was renewed since.
    config: C,
    /// When its files were last read, or tried to be.
    renewed_at: SystemTime,
    workers: Workers,
    slow: SlowThread,
    flags: Arc<Flags>,
    watch: Watch,
}

/// Why files are read again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Somebody asked, and is told what came of it in any case.
    Asked,
    /// The files are not what they were, or something in them is out of date.
    Noticed,
}

impl<C: Configured> Serving<C> {
    /// The slow thread's loop.
    fn serve(&mut self) -> Result<(), RunError> {
        loop {
            for asked in self.slow.turn().map_err(RunError::Slow)? {
                match asked {
                    Asked::Drain => self.drain(),
                    Asked::StopNow => self.workers.tell(&Command::Stop),
                    Asked::Reload => {
                        self.watch.note_read();
                        self.renew(Cause::Asked);
                    }
                }
            }
            if self.watch.is_due(Instant::now()) || self.has_stale_staple() {
                self.renew(Cause::Noticed);
            }
            if self.workers.are_done() {
                tracing::info!("stopped");
                return self.workers.join().map_err(RunError::Workers);
            }
            if self.workers.has_ended_one() && !self.flags.draining.load(Ordering::Relaxed) {
                tracing::error!("a worker has failed: draining the others");
                self.drain();
            }
        }
    }

    fn drain(&self) {
        let timeout = self.config.process().drain_timeout;
        tracing::info!(timeout_ms = timeout.as_millis() as u64, "draining");
        self.flags.draining.store(true, Ordering::Relaxed);
        self.workers.tell(&Command::Drain(timeout));
    }

    /// Reads certificates, authorities and keys again. What can be used is, from the next handshake on.
    fn renew(&mut self, cause: Cause) {
        self.renewed_at = SystemTime::now();
        let Renewed { config, is_changed, refused, problems } = self.config.renewed(self.renewed_at);
        if cause == Cause::Noticed && !is_changed && refused == 0 {
            return;
        }
        for warning in problems.list().iter().filter(|problem| problem.severity == Severity::Warning) {
            tracing::warn!("{warning}");
        }
        tell_refused(&problems);
        self.slow.certificates().refused += refused;
        if refused == 0 || is_changed {
            self.swap(config);
        }
    }

    fn swap(&mut self, config: C) {
        match config.tls() {
            Ok(tls) => self.workers.tell(&Command::Certificates(Arc::new(tls))),
            Err(problems) => {
                self.slow.certificates().refused += 1;
                tell_refused(&problems);
                return;
            }
        }
        if let Some(keys) = config.fast_open_keys()
            && let Err(errno) = self.workers.set_fast_open_keys(&keys.bytes())
        {
            tracing::error!("the old keys of TCP Fast Open stay in use: {errno}");
        }
        if let Some(group) = config.tickets().and_then(group) {
            self.workers.tell(&Command::Group(group));
        }
        self.config = config;
        self.slow.certificates().reloaded += 1;
        self.tell_expiries();
        tracing::info!("keys and certificates reread");
    }

    fn tell_expiries(&mut self) {
        let each = self.config.identities().into_iter();
        let expiries = each.map(|(table, identity)| (format!("{table}.certificate"), identity.expires)).collect();
        self.slow.certificates().expiries = expiries;
    }

    /// Whether an OCSP response has become due to be left out since files were last read. Reading again leaves it out;
    /// where that cannot be used, it is not tried again for that.
    fn has_stale_staple(&self) -> bool {
        let identities = self.config.identities();
        let until = identities.into_iter().filter_map(|(_, identity)| identity.staple_until());
        has_come_due(until, self.renewed_at, SystemTime::now())
    }
}

fn has_come_due(mut each: impl Iterator<Item = SystemTime>, since: SystemTime, now: SystemTime) -> bool {
    each.any(|at| since < at && at <= now)
}

/// Says of what was read again that it cannot be used: a line for each kind of file.
fn tell_refused(problems: &Problems) {
    for kind in ["certificates", "authorities", "OCSP responses", "shared keys"] {
        let of_kind =
            |problem: &&Problem| problem.severity == Severity::Error && kind_of_file(&problem.place.key) == kind;
        let told: Vec<String> = problems.list().iter().filter(of_kind).map(ToString::to_string).collect();
        if !told.is_empty() {
            tracing::error!("the old {kind} stay in use: {}", told.join("\n"));
        }
    }
}

/// What the file is that this key of the configuration names.
fn kind_of_file(key: &str) -> &'static str {
    match key.rsplit('.').next() {
        Some("ca" | "client_ca") => "authorities",
        Some("ocsp") => "OCSP responses",
        Some("keys") => "shared keys",
        _ => "certificates",
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
    let listen = |bind: &Bind| ListenPlan {
        address: bind.address,
        backlog: bind.backlog,
        proxy_protocol: bind.proxy_protocol,
        fast_open: bind.fast_open,
    };
    WorkersPlan {
        cores,
        listen: binds.iter().map(listen).collect(),
        fast_open_keys: Vec::new(),
        ring: RingSettings {
            buffers: worker.buffers,
            buffer_bytes: worker.buffer_bytes,
            batch_wait_us: u32::try_from(worker.batch_wait.as_micros()).unwrap_or(u32::MAX),
            ..RingSettings::default()
        },
        worker: WorkerSettings {
            index: 0,
            listeners: Vec::new(),
            tls: Arc::new(tls),
            accepted_max: worker.clients_max,
            handshake_timeout: worker.handshake_timeout,
            handshake_share: u32::from(worker.handshake_share),
            handshake_patience: worker.handshake_patience,
            serves_clients: role == ProcessRole::Pop,
            connect_timeout: worker.connect_timeout,
            idle_timeout: worker.idle_timeout,
            linger_timeout: LINGER_TIMEOUT,
        },
    }
}

/// What so many workers share. Only clients come back with tickets: trunks are few and stay.
#[must_use]
pub fn shared(workers: usize, tickets: Option<&TicketsConfig>) -> Shared {
    let shared = Shared::new(workers);
    let Some(tickets) = tickets else { return shared };
    let store = Store::new(tickets.capacity, tickets.lifetime, random_prng().next_u64());
    let shared = shared.with_tickets(store);
    match group(tickets) {
        Some(group) => shared.with_group(group),
        None => shared,
    }
}

/// The nodes that tickets are shared with.
fn group(tickets: &TicketsConfig) -> Option<Arc<Group>> {
    let TicketStore::Remote(remote) = &tickets.store else { return None };
    let others: Vec<_> = [&remote.keys.next, &remote.keys.previous].into_iter().flatten().map(|key| &**key).collect();
    let keys = Keys::new(&remote.keys.current, &others);
    Some(Arc::new(Group { settings: remote.server.clone(), keys, seed: random_prng().next_u64() }))
}

/// TLS of a POP's listeners and trunks.
///
/// # Errors
/// One problem per identity or authority that cannot be used.
pub fn pop_tls(config: &PopConfig) -> Result<TlsSettings, Problems> {
    let mut problems = Problems::new(config.process.file.clone());
    let mut each = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let made = server_options(listener).and_then(|options| ServerSettings::new(&options));
        each.push(noted(made, &mut problems, &config.process.file, &format!("listen[{index}].certificate")));
    }
    let backbone = &config.backbone;
    let dialer = backbone.tls.as_ref().map(dialer_settings).transpose();
    let dialer = noted(dialer, &mut problems, &config.process.file, "backbone.certificate");
    let each: Option<Vec<ServerSettings>> = each.into_iter().collect();
    match (each, dialer) {
        (Some(each), Some(dialer)) => Ok(TlsSettings {
            listeners: config.binds().iter().map(|bind| Some(each[bind.listener].clone())).collect(),
            gateways: {
                let of = |gateway: &config::Gateway| Some((dialer.clone()?, gateway.server_name.clone()));
                backbone.gateways.iter().map(of).collect()
            },
        }),
        _ => Err(problems),
    }
}

/// TLS of a POP towards its gateways.
fn dialer_settings(tls: &TrunkTls) -> Result<ClientSettings, SettingsError> {
    let (identity, roots) = (identity(&tls.identity)?, roots(&tls.authorities)?);
    // Trunks are few and stay: a gateway issues no tickets, so there is nothing to remember.
    ClientSettings::new(&ClientOptions { identity: Some(identity), sessions: 0, ..ClientOptions::new(roots) })
}

/// TLS of a gateway's listener.
///
/// # Errors
/// When the identity or the authorities cannot be used.
pub fn gateway_tls(config: &GatewayConfig) -> Result<TlsSettings, Problems> {
    let mut problems = Problems::new(config.process.file.clone());
    let settings = |trunks: &TrunkTls| {
        let client_auth = tls::ClientAuth::Required(roots(&trunks.authorities)?);
        // A gateway keeps no tickets, so it issues none, and nothing can come early on one.
        let defaults = ServerOptions::new(identity(&trunks.identity)?);
        ServerSettings::new(&ServerOptions { client_auth, tickets: 0, early_bytes_max: 0, ..defaults })
    };
    let made = config.listener.tls.as_ref().map(settings).transpose();
    match noted(made, &mut problems, &config.process.file, "listen.certificate") {
        Some(settings) => Ok(TlsSettings {
            listeners: config.binds().iter().map(|_| settings.clone()).collect(),
            gateways: Vec::new(),
        }),
        None => Err(problems),
    }
}

/// What a listener of a POP asks of TLS.
fn server_options(listener: &Listener) -> Result<ServerOptions, SettingsError> {
    let own = &listener.identity;
    // Shown to whoever asks for none of the others' names: it needs none of its own.
    let mut identities = vec![(Names::default(), identity(own)?)];
    for named in &listener.identities {
        identities.push((Names::new(named.names())?, identity(&named.identity)?));
    }
    let client_auth = match &listener.client_auth {
        ClientAuth::None => tls::ClientAuth::None,
        ClientAuth::Optional(authorities) => tls::ClientAuth::Optional(roots(authorities)?),
        ClientAuth::Required(authorities) => tls::ClientAuth::Required(roots(authorities)?),
    };
    let refuses = listener.tunnel.is_some() && listener.tunnel_early_data == TunnelEarlyData::Refuse;
    let defaults = ServerOptions::new(identity(own)?);
    Ok(ServerOptions {
        identities,
        client_auth,
        tunnels: listener.tunnel.is_some(),
        post_quantum: listener.post_quantum,
        early_bytes_max: if listener.early_data && !refuses { defaults.early_bytes_max } else { 0 },
        ..defaults
    })
}

fn identity(found: &Identity) -> Result<tls::Identity, SettingsError> {
    let made = tls::Identity::from_der(found.chain.clone(), found.key.clone())?;
    Ok(match &found.staple {
        Some(staple) => made.with_ocsp(staple.der.clone()),
        None => made,
    })
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
            tells_validity: false,
        });
    })
    .ok()
}

/// What a POP's workers relay by.
#[must_use]
pub fn relay_settings(config: &PopConfig) -> RelaySettings {
    let backbone = &config.backbone;
    let tunnel = |bind: &Bind| {
        let listener = &config.listeners[bind.listener];
        let early = match listener.tunnel_early_data {
            // Refused, TLS takes none: what came all the same would wait.
            TunnelEarlyData::Hold | TunnelEarlyData::Refuse => TunnelEarly::Hold,
            TunnelEarlyData::Allow => TunnelEarly::Allow,
        };
        Some(TunnelSettings { service: listener.tunnel.clone()?, early })
    };
    RelaySettings {
        pop_id: config.process.id.clone(),
        tunnels: config.binds().iter().map(tunnel).collect(),
        mmtp: Settings {
            attributes: vec![(Attribute::App, config.process.id.clone().into_bytes())],
            hash_seed: random_prng().next_u64(),
            ..Settings::new(Side::Acceptor, Agent::Pop)
        },
        pool: PoolSettings {
            gateways: backbone.gateways.iter().map(|gateway| gateway.address).collect(),
            trunks_per_gateway: backbone.trunks_per_core,
            mmtp: trunk_settings(Side::Initiator, Agent::Pop, &config.process.id),
            heartbeat_interval: backbone.heartbeat_interval,
            backoff_min: backbone.backoff_min,
            backoff_max: backbone.backoff_max,
        },
        wait_for_trunk: backbone.wait_for_trunk,
        streams_max: config.process.worker.streams_max,
        goaway_wait: config.process.goaway_wait,
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
        mmtp: trunk_settings(Side::Acceptor, Agent::Gateway, &config.process.id),
        streams_max: config.process.worker.streams_max,
        goaway_wait: config.process.goaway_wait,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::certificates::{DevelopmentCa, Usage};
    use crate::server::config::{Backbone, Gateway as GatewayAddress, Service, Surroundings, TrunkListener};
    use crate::tls::{Received, Session, record_bytes};

    /// Tickets that a listener issues to a dialer.
    fn issued(listener: &ServerSettings, (dialer, name): &(ClientSettings, String)) -> usize {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        let mut client = Session::client(dialer, name, None, &mut to_server).expect("a name of the certificate");
        let mut server = Session::server(listener);
        loop {
            let sent = std::mem::take(&mut to_server);
            for mut record in records(sent) {
                match server.receive(&mut record, &mut to_client).expect("our own client") {
                    Received::Hello => drop(server.proceed(None, &mut to_client).expect("our own client")),
                    Received::Established(_) => return server.issued().len(),
                    _ => {}
                }
            }
            for mut record in records(std::mem::take(&mut to_client)) {
                client.receive(&mut record, &mut to_server).expect("our own server");
            }
            assert!(!to_server.is_empty(), "the handshake goes on");
        }
    }

    fn records(mut bytes: Vec<u8>) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while let Some(length) = record_bytes(&bytes).expect("records") {
            let behind = bytes.split_off(length);
            found.push(std::mem::replace(&mut bytes, behind));
        }
        found
    }

    #[test]
    fn clients_get_tickets_and_trunks_get_none() {
        let ca = DevelopmentCa::new().expect("an authority");
        let own = ca.issue("a", &[], Usage::ServerAndClient).expect("a certificate").identity();
        let here = Surroundings { cores: vec![0], descriptors: 4096, now: SystemTime::now() };
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let backbone = Backbone::new(ca.authorities(), own.clone(), vec![GatewayAddress::new("b", address)]);
        let listener = Listener::new(address, own.clone(), Some("web"));
        let pop = pop_tls(&PopConfig::new("a", vec![0], &here, listener, backbone)).expect("a right one");
        let listener = TrunkListener::new(address, own, ca.authorities());
        let services = vec![Service::new("web", ServiceKind::Tunnel, address)];
        let gateway = gateway_tls(&GatewayConfig::new("b", vec![0], &here, listener, services)).expect("a right one");
        let (dialer, listeners) = (&pop.gateways[0], [&pop.listeners[0], &gateway.listeners[0]]);
        let dialer = dialer.as_ref().expect("trunks have TLS");
        let issued_by = |listener: &Option<_>| issued(listener.as_ref().expect("so do listeners"), dialer);
        assert_eq!(listeners.map(issued_by), [2, 0]);
    }

    #[test]
    fn an_old_response_makes_files_be_read_once() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let due = |since, now| has_come_due([at(10), at(20)].into_iter(), at(since), at(now));
        assert!(!due(5, 9) && due(5, 10) && due(9, 15));
        // Read at 10, and what came of it could not be used: the response of 10 is still there.
        assert!(!due(10, 11) && !due(15, 19) && due(15, 20) && !due(20, 1000));
    }

    #[test]
    fn every_key_that_names_a_file_has_its_kind() {
        for (key, kind) in [
            ("listen[0].certificate", "certificates"),
            ("listen[0].identity[1].key", "certificates"),
            ("listen.ocsp", "OCSP responses"),
            ("backbone.ca", "authorities"),
            ("listen[0].client_ca", "authorities"),
            ("tickets.keys", "shared keys"),
            ("fast_open.keys", "shared keys"),
        ] {
            assert_eq!(kind_of_file(key), kind, "{key}");
        }
    }
}
