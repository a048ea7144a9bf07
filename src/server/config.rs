//! The configuration of a POP and of a gateway: read from TOML, checked as a whole, every mistake told at once.
//!
//! Owns the keys and their limits, documented for users in `docs/CONFIG.md`; the defaults are in [`super::defaults`].
//! Opens no socket and starts nothing. Invariant: a [`PopConfig`] or [`GatewayConfig`] that was read is usable: its
//! files were read, its keys fit their certificates, its numbers are within limits. Only what the kernel decides later
//! can still fail, such as an address in use ([`Problem::from_bind`]).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use toml::de::DeTable;

use super::certificates::{Authorities, Identity, is_server_name, located, read_bounded};
use super::defaults::{self, Side};
use super::problems::{Place, Problem, Problems};
use super::process;
use super::section::{AddressUse, Located, Section, line_of};

/// Largest configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Longest name of a process, gateway or service, in bytes: it travels in header blocks and log lines.
pub const NAME_BYTES_MAX: usize = 64;

/// Most connections of one worker: they must fit a slab and a token.
const CLIENTS_LIMIT: u64 = 1_000_000;

/// Most streams of one worker: they must fit a slab and a tag.
const STREAMS_LIMIT: u64 = 16_000_000;

/// Most buffers in a provided-buffer ring: the kernel's limit (io_uring_register_buf_ring(3)).
const BUFFERS_LIMIT: u64 = 32_768;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The configuration of a POP.
#[derive(Clone, Debug)]
pub struct PopConfig {
    /// The file it came from.
    pub file: PathBuf,
    /// Name of this POP: `id`.
    pub id: String,
    /// Cores, one worker each, in ascending order: `cores`.
    pub cores: Vec<usize>,
    /// How long streams in flight may go on after SIGTERM: `drain_timeout`.
    pub drain_timeout: Duration,
    /// What peers are told after SIGTERM: come back after this, and up to as much longer at random: `goaway_wait`.
    pub goaway_wait: Duration,
    /// Sizes of each worker: `[worker]`.
    pub worker: WorkerConfig,
    /// Where clients connect: `[[listen]]`, at least one.
    pub listeners: Vec<Listener>,
    /// The way to the gateways: `[backbone]`.
    pub backbone: Backbone,
    /// Where metrics and health are served: `admin.address`.
    pub admin: Option<SocketAddr>,
    /// The log: `[log]`.
    pub log: LogConfig,
}

/// The configuration of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The file it came from.
    pub file: PathBuf,
    /// Name of this gateway: `id`.
    pub id: String,
    /// Cores, one worker each, in ascending order: `cores`.
    pub cores: Vec<usize>,
    /// How long streams in flight may go on after SIGTERM: `drain_timeout`.
    pub drain_timeout: Duration,
    /// What peers are told after SIGTERM: come back after this, and up to as much longer at random: `goaway_wait`.
    pub goaway_wait: Duration,
    /// Sizes of each worker: `[worker]`.
    pub worker: WorkerConfig,
    /// Where POPs connect: `[listen]`.
    pub listener: TrunkListener,
    /// How it deals with upstreams: `[upstream]`.
    pub upstream: UpstreamConfig,
    /// What it serves: `[[service]]`, at least one, each name once.
    pub services: Vec<Service>,
    /// Where metrics and health are served: `admin.address`.
    pub admin: Option<SocketAddr>,
    /// The log: `[log]`.
    pub log: LogConfig,
}

/// Sizes and limits of each worker: `[worker]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerConfig {
    /// Accepted connections at a time, more are refused: `clients_max`.
    pub clients_max: usize,
    /// Streams at a time, tunnels included; more are refused: `streams_max`.
    pub streams_max: usize,
    /// Receive buffers shared with the kernel, a power of two: `buffers`.
    pub buffers: u16,
    /// Size of each: `buffer_bytes`.
    pub buffer_bytes: u32,
    /// Under load, how long a wait may last to gather a fuller batch: `batch_wait`.
    pub batch_wait: Duration,
    /// From accept to the end of the TLS handshake: `handshake_timeout`.
    pub handshake_timeout: Duration,
    /// From dial to the end of connect and TLS handshake: `connect_timeout`.
    pub connect_timeout: Duration,
    /// How long an accepted connection may carry nothing: `idle_timeout`.
    pub idle_timeout: Duration,
}

/// An address for clients: `[[listen]]`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// At least one: `address`.
    pub addresses: Vec<SocketAddr>,
    /// Connections the kernel may queue per worker before they are accepted: `backlog`.
    pub backlog: u32,
    /// `certificate` and `key`.
    pub identity: Identity,
    /// The service of connections that do not speak `mmtp/1`; None refuses them: `tunnel`.
    pub tunnel: Option<String>,
    /// Whether connections begin with a PROXY protocol v2 header: `proxy_protocol`.
    pub proxy_protocol: bool,
    /// Whether X25519MLKEM768 is offered: `post_quantum`.
    pub post_quantum: bool,
}

/// One socket of each worker: listeners with several addresses have several.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bind {
    /// Index of the listener in the configuration.
    pub listener: usize,
    /// The address.
    pub address: SocketAddr,
    /// Connections the kernel may queue per worker before they are accepted.
    pub backlog: u32,
    /// Whether connections begin with a PROXY protocol v2 header.
    pub proxy_protocol: bool,
    /// The key that holds the address, for messages.
    pub key: String,
}

/// The way to the gateways: `[backbone]`.
#[derive(Clone, Debug)]
pub struct Backbone {
    /// Who may vouch for a gateway: `ca`.
    pub ca: Authorities,
    /// How the POP proves itself: `certificate` and `key`.
    pub identity: Identity,
    /// Trunks per worker and gateway: `trunks_per_core`.
    pub trunks_per_core: usize,
    /// How often a trunk is pinged; one that stays silent for three of these is given up: `heartbeat_interval`.
    pub heartbeat_interval: Duration,
    /// Wait before the first redial: `backoff_min`.
    pub backoff_min: Duration,
    /// Longest wait between redials, at least `backoff_min`: `backoff_max`.
    pub backoff_max: Duration,
    /// How long streams wait when no trunk is up before they end with *not forwarded*: `wait_for_trunk`.
    pub wait_for_trunk: Duration,
    /// At least one, names and addresses each once: `[[backbone.gateway]]`.
    pub gateways: Vec<Gateway>,
}

/// A gateway as a POP knows it: `[[backbone.gateway]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Name in logs and metrics: `name`.
    pub name: String,
    /// Where to dial: `address`.
    pub address: SocketAddr,
    /// The DNS name or IP address its certificate must hold: `server_name`, else the IP of `address`.
    pub server_name: String,
}

/// An address for POPs: `[listen]` of a gateway.
#[derive(Clone, Debug)]
pub struct TrunkListener {
    /// At least one: `address`.
    pub addresses: Vec<SocketAddr>,
    /// Connections the kernel may queue per worker before they are accepted: `backlog`.
    pub backlog: u32,
    /// `certificate` and `key`.
    pub identity: Identity,
    /// Who may vouch for a POP: `client_ca`.
    pub client_ca: Authorities,
}

/// What a service does with a stream: `kind`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceKind {
    /// A stream is a TCP connection to an upstream.
    Tunnel,
    /// A stream is an HTTP/1.1 request to an upstream.
    Http,
}

/// A service of a gateway: `[[service]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// What streams ask for: `name`.
    pub name: String,
    /// `kind`.
    pub kind: ServiceKind,
    /// At least one, each once: `upstream`.
    pub upstreams: Vec<SocketAddr>,
    /// Host of requests that name no authority, `http` only: `authority`, else the first upstream.
    pub authority: String,
}

/// How a gateway deals with upstreams, per worker: `[upstream]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpstreamConfig {
    /// Connections to the upstreams of one service: `connections_max`.
    pub connections_max: usize,
    /// An HTTP exchange in which nothing moves for this long is given up: `response_timeout`.
    pub response_timeout: Duration,
    /// Kept-alive connections per service that wait for a request: `keepalive_max`.
    pub keepalive_max: usize,
    /// How long such a connection waits before it is closed: `keepalive_timeout`.
    pub keepalive_timeout: Duration,
}

/// How log lines are written: `[log]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// `format`.
    pub format: LogFormat,
    /// Lines of this level and above are written: `level`.
    pub level: tracing::Level,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { format: LogFormat::Text, level: tracing::Level::INFO }
    }
}

/// The form of log lines: `log.format`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What the machine allows, which decides some defaults and mistakes.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Cores this process may use; empty when that is not known.
    pub cores: Vec<usize>,
    /// Descriptors this process may open.
    pub descriptors: u64,
    /// The time, for the validity of certificates.
    pub now: SystemTime,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn here() -> Surroundings {
        Surroundings {
            cores: process::cores_allowed(),
            descriptors: process::descriptors_max(),
            now: SystemTime::now(),
        }
    }
}

impl PopConfig {
    /// Reads and checks a configuration file and every file it names. With it come the warnings.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(file: &Path) -> Result<(PopConfig, Vec<Problem>), Problems> {
        let text = read_config(file)?;
        PopConfig::parse(&text, file, &Surroundings::here())
    }

    /// Like [`PopConfig::load`] for a text that is already here. Paths in it are relative to the directory of `file`.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn parse(text: &str, file: &Path, here: &Surroundings) -> Result<(PopConfig, Vec<Problem>), Problems> {
        let mut reader = Reader { problems: Problems::new(file.to_path_buf()), file, here };
        let config = reader.document(text, Reader::pop);
        reader.problems.finish(config)
    }

    /// The sockets each worker listens with, in the order of the configuration.
    #[must_use]
    pub fn binds(&self) -> Vec<Bind> {
        let each = self.listeners.iter().enumerate();
        each.flat_map(|(index, listener)| {
            listener.addresses.iter().map(move |&address| Bind {
                listener: index,
                address,
                backlog: listener.backlog,
                proxy_protocol: listener.proxy_protocol,
                key: format!("listen[{index}].address"),
            })
        })
        .collect()
    }

    /// The same configuration with its certificates, keys and authorities read again. The configuration file itself is
    /// not read again.
    ///
    /// # Errors
    /// All mistakes at once; the old ones stay good.
    pub fn reread_certificates(&self) -> Result<(PopConfig, Vec<Problem>), Problems> {
        let mut problems = Problems::new(self.file.clone());
        let now = SystemTime::now();
        let mut config = self.clone();
        for (index, listener) in config.listeners.iter_mut().enumerate() {
            reread_identity(&mut problems, &mut listener.identity, &format!("listen[{index}]"), now);
        }
        reread_identity(&mut problems, &mut config.backbone.identity, "backbone", now);
        reread_authorities(&mut problems, &mut config.backbone.ca, "backbone.ca", now);
        problems.finish(Some(config))
    }
}

impl GatewayConfig {
    /// Reads and checks a configuration file and every file it names. With it come the warnings.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(file: &Path) -> Result<(GatewayConfig, Vec<Problem>), Problems> {
        let text = read_config(file)?;
        GatewayConfig::parse(&text, file, &Surroundings::here())
    }

    /// Like [`GatewayConfig::load`] for a text that is already here. Paths in it are relative to the directory of
    /// `file`.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn parse(text: &str, file: &Path, here: &Surroundings) -> Result<(GatewayConfig, Vec<Problem>), Problems> {
        let mut reader = Reader { problems: Problems::new(file.to_path_buf()), file, here };
        let config = reader.document(text, Reader::gateway);
        reader.problems.finish(config)
    }

    /// The sockets each worker listens with, in the order of the configuration.
    #[must_use]
    pub fn binds(&self) -> Vec<Bind> {
        let bind = |&address| Bind {
            listener: 0,
            address,
            backlog: self.listener.backlog,
            proxy_protocol: false,
            key: "listen.address".to_owned(),
        };
        self.listener.addresses.iter().map(bind).collect()
    }

    /// The same configuration with its certificates, keys and authorities read again. The configuration file itself is
    /// not read again.
    ///
    /// # Errors
    /// All mistakes at once; the old ones stay good.
    pub fn reread_certificates(&self) -> Result<(GatewayConfig, Vec<Problem>), Problems> {
        let mut problems = Problems::new(self.file.clone());
        let now = SystemTime::now();
        let mut config = self.clone();
        reread_identity(&mut problems, &mut config.listener.identity, "listen", now);
        reread_authorities(&mut problems, &mut config.listener.client_ca, "listen.client_ca", now);
        problems.finish(Some(config))
    }
}

fn read_config(file: &Path) -> Result<String, Problems> {
    let (what, remedy) = match read_bounded(file, CONFIG_BYTES_MAX) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => return Ok(text),
            Err(_) => ("is not UTF-8 text".to_owned(), "give a TOML file"),
        },
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound => ("no such file".to_owned(), "correct the path given with --config"),
            std::io::ErrorKind::PermissionDenied => {
                ("may not be read".to_owned(), "let the user this process runs as read it")
            }
            _ => (format!("cannot be read: {error}"), "give a TOML file of at most 1 MiB with --config"),
        },
    };
    let mut problems = Problems::new(file.to_path_buf());
    problems.error(&Place::default(), what, remedy);
    Err(problems)
}

fn reread_identity(problems: &mut Problems, identity: &mut Identity, table: &str, now: SystemTime) {
    let certificate = located(&identity.certificate_file, format!("{table}.certificate"));
    let key = located(&identity.key_file, format!("{table}.key"));
    if let Some(read) = Identity::load(problems, &certificate, &key, now) {
        *identity = read;
    }
}

fn reread_authorities(problems: &mut Problems, authorities: &mut Authorities, key: &str, now: SystemTime) {
    if let Some(read) = Authorities::load(problems, &located(&authorities.file, key), now) {
        *authorities = read;
    }
}

/// Builds a configuration from a document. Each function reads its whole part before it gives up, so that every
/// mistake is noted; None means that one was.
struct Reader<'r> {
    problems: Problems,
    file: &'r Path,
    here: &'r Surroundings,
}

/// What POP and gateway have in common.
struct Common {
    id: Option<String>,
    cores: Option<Vec<usize>>,
    drain_timeout: Duration,
    goaway_wait: Duration,
    worker: WorkerConfig,
    admin: Option<Located<SocketAddr>>,
    log: LogConfig,
}

impl Reader<'_> {
    fn document<T>(&mut self, text: &str, read: fn(&mut Self, Section<'_>) -> Option<T>) -> Option<T> {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map_or(0, |span| line_of(text, span.start));
            let what = format!("is not TOML: {}", error.message().replace('\n', ", "));
            self.problems.error(&Place { key: String::new(), line }, what, "see https://toml.io for how to write it");
        }
        // What a broken line leaves behind would only be reported as missing or unknown.
        if errors.is_empty() { read(self, Section::root(table.get_ref(), text)) } else { None }
    }

    fn pop(&mut self, mut root: Section<'_>) -> Option<PopConfig> {
        let common = self.common(&mut root, Side::Pop);
        let listeners = self.listeners(&mut root);
        let backbone = self.backbone(&mut root);
        let taken = listeners.iter().flatten().flat_map(|(_, addresses)| addresses);
        self.check_addresses_once(taken.chain(&common.admin));
        root.close(&mut self.problems);
        Some(PopConfig {
            file: self.file.to_path_buf(),
            id: common.id?,
            cores: common.cores?,
            drain_timeout: common.drain_timeout,
            goaway_wait: common.goaway_wait,
            worker: common.worker,
            listeners: listeners.into_iter().map(|found| found.map(|(listener, _)| listener)).collect::<Option<_>>()?,
            backbone: backbone?,
            admin: common.admin.map(|address| address.value),
            log: common.log,
        })
    }

    fn gateway(&mut self, mut root: Section<'_>) -> Option<GatewayConfig> {
        let common = self.common(&mut root, Side::Gateway);
        let upstream = self.upstream(&mut root, common.cores.as_ref().map_or(1, Vec::len));
        let listener = self.trunk_listener(&mut root);
        let services = self.services(&mut root);
        let taken = listener.iter().flat_map(|(_, addresses)| addresses);
        self.check_addresses_once(taken.chain(&common.admin));
        root.close(&mut self.problems);
        Some(GatewayConfig {
            file: self.file.to_path_buf(),
            id: common.id?,
            cores: common.cores?,
            drain_timeout: common.drain_timeout,
            goaway_wait: common.goaway_wait,
            worker: common.worker,
            listener: listener?.0,
            upstream,
            services: services?,
            admin: common.admin.map(|address| address.value),
            log: common.log,
        })
    }

    fn common(&mut self, root: &mut Section<'_>, side: Side) -> Common {
        let id = self.name(root, "id", "write a name for this process, such as id = \"pop-1\"");
        let cores = self.cores(root);
        let worker_count = cores.as_ref().map_or(1, Vec::len);
        let problems = &mut self.problems;
        let drain_timeout = root.duration(problems, "drain_timeout", defaults::DRAIN_TIMEOUT, Duration::ZERO..=HOUR);
        let goaway_wait = root.duration(problems, "goaway_wait", defaults::GOAWAY_WAIT, Duration::ZERO..=HOUR);
        let worker = self.worker(root, worker_count, side);
        Common {
            id: id.map(|id| id.value),
            cores,
            drain_timeout,
            goaway_wait,
            worker,
            admin: self.admin(root),
            log: self.log(root),
        }
    }

    fn name(&mut self, section: &mut Section<'_>, key: &'static str, remedy: &str) -> Option<Located<String>> {
        let name = section.text_required(&mut self.problems, key, remedy)?;
        self.check_name(name)
    }

    fn check_name(&mut self, name: Located<String>) -> Option<Located<String>> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let value = &name.value;
        if value.len() > NAME_BYTES_MAX || !value.bytes().all(good) || !value.as_bytes()[0].is_ascii_alphanumeric() {
            let remedy = format!(
                "use at most {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`, with a letter or a digit first"
            );
            self.problems.error(&name.place, format!("\"{}\" is not a name", value.escape_default()), remedy);
            return None;
        }
        Some(name)
    }

    fn cores(&mut self, root: &mut Section<'_>) -> Option<Vec<usize>> {
        let allowed = &self.here.cores;
        let allowed_text = allowed.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let Some(given) = root.numbers(&mut self.problems, "cores") else {
            let unreadable = root.has("cores");
            if allowed.is_empty() && !unreadable {
                let remedy = "write the cores to use, such as cores = [0]";
                self.problems.error(&Place::of("cores"), "the cores of this process are not known", remedy);
            }
            return (!unreadable && !allowed.is_empty()).then(|| allowed.clone());
        };
        let mut cores = given.value.clone();
        cores.sort_unstable();
        cores.dedup();
        if cores.is_empty() {
            let remedy = "name at least one core, or remove the key to use all";
            self.problems.error(&given.place, "holds no core", remedy);
            return None;
        }
        if cores.len() != given.value.len() {
            self.problems.error(&given.place, "names a core twice", "name each core once");
        }
        let strangers: Vec<String> =
            cores.iter().filter(|core| !allowed.contains(core)).map(usize::to_string).collect();
        if !strangers.is_empty() && !allowed.is_empty() {
            let what = format!("this process may not use core {}", strangers.join(", "));
            let remedy = format!("it may use {allowed_text}: name some of these, or remove the key to use all");
            self.problems.error(&given.place, what, remedy);
            return None;
        }
        Some(cores)
    }

    fn worker(&mut self, root: &mut Section<'_>, worker_count: usize, side: Side) -> WorkerConfig {
        let share = self.here.descriptors_per_worker(worker_count);
        let default = WorkerConfig::of(side, self.here, worker_count);
        let problems = &mut self.problems;
        let Some(mut section) = root.table(problems, "worker") else { return default };
        let clients = section.number(problems, "clients_max", 1..=CLIENTS_LIMIT);
        let streams = section.number(problems, "streams_max", 1..=STREAMS_LIMIT);
        let buffers = section.number(problems, "buffers", 16..=BUFFERS_LIMIT);
        let buffer_bytes = section.number(problems, "buffer_bytes", 1024..=1024 * 1024);
        let batch_wait = section.duration(problems, "batch_wait", default.batch_wait, Duration::ZERO..=MILLISECOND);
        let wait = 10 * MILLISECOND..=5 * MINUTE;
        let handshake_timeout =
            section.duration(problems, "handshake_timeout", default.handshake_timeout, wait.clone());
        let connect_timeout = section.duration(problems, "connect_timeout", default.connect_timeout, wait);
        let idle_timeout = section.duration(problems, "idle_timeout", default.idle_timeout, SECOND..=DAY);
        if let Some(found) = clients.as_ref().filter(|found| found.value > share) {
            let what = format!("{} clients need more descriptors than this process may open", found.value);
            let remedy = format!("raise the limit (LimitNOFILE in systemd, ulimit -n), or use at most {share}");
            problems.warning(&found.place, what, remedy);
        }
        if let Some(found) = buffers.as_ref().filter(|found| !found.value.is_power_of_two()) {
            let remedy = format!("use {}", found.value.next_power_of_two());
            problems.error(&found.place, format!("{} is not a power of two", found.value), remedy);
        }
        section.close(problems);
        WorkerConfig {
            clients_max: clients.map_or(default.clients_max, |found| found.value as usize),
            streams_max: streams.map_or(default.streams_max, |found| found.value as usize),
            buffers: buffers.and_then(|found| u16::try_from(found.value).ok()).unwrap_or(default.buffers),
            buffer_bytes: buffer_bytes
                .and_then(|found| u32::try_from(found.value).ok())
                .unwrap_or(default.buffer_bytes),
            batch_wait,
            handshake_timeout,
            connect_timeout,
            idle_timeout,
        }
    }

    fn admin(&mut self, root: &mut Section<'_>) -> Option<Located<SocketAddr>> {
        let mut section = root.table(&mut self.problems, "admin")?;
        let address = section.address(&mut self.problems, "address", AddressUse::ListenOnce);
        if !section.has("address") {
            let remedy = "write address = \"127.0.0.1:9901\", or remove [admin]";
            self.problems.error(&section.place_of("address"), "is missing", remedy);
        }
        section.close(&mut self.problems);
        address
    }

    fn log(&mut self, root: &mut Section<'_>) -> LogConfig {
        let default = LogConfig::default();
        let problems = &mut self.problems;
        let Some(mut section) = root.table(problems, "log") else { return default };
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let levels = [
            ("error", tracing::Level::ERROR),
            ("warn", tracing::Level::WARN),
            ("info", tracing::Level::INFO),
            ("debug", tracing::Level::DEBUG),
            ("trace", tracing::Level::TRACE),
        ];
        let format = section.choice(problems, "format", default.format, &formats);
        let level = section.choice(problems, "level", default.level, &levels);
        section.close(problems);
        LogConfig { format, level }
    }

    /// Each listener with its addresses and where they stand.
    fn listeners(&mut self, root: &mut Section<'_>) -> Vec<Option<(Listener, Vec<Located<SocketAddr>>)>> {
        let remedy = "write [[listen]] with address, certificate and key";
        let sections = root.tables_required(&mut self.problems, "listen", remedy);
        sections.into_iter().map(|section| self.listener(section)).collect()
    }

    fn listener(&mut self, mut section: Section<'_>) -> Option<(Listener, Vec<Located<SocketAddr>>)> {
        let identity = self.identity(&mut section);
        let problems = &mut self.problems;
        let addresses = section.addresses(problems, "address", AddressUse::Listen);
        let backlog = backlog(&mut section, problems);
        let proxy_protocol = section.boolean(problems, "proxy_protocol", false);
        let post_quantum = section.boolean(problems, "post_quantum", false);
        let tunnel = section.text(problems, "tunnel");
        let tunnel_named = tunnel.is_some();
        let tunnel = tunnel.and_then(|name| self.check_name(name)).map(|name| name.value);
        section.close(&mut self.problems);
        let addresses = addresses?;
        let listener = Listener {
            addresses: addresses.iter().map(|address| address.value).collect(),
            backlog,
            identity: identity?,
            tunnel: if tunnel_named { Some(tunnel?) } else { None },
            proxy_protocol,
            post_quantum,
        };
        Some((listener, addresses))
    }

    fn trunk_listener(&mut self, root: &mut Section<'_>) -> Option<(TrunkListener, Vec<Located<SocketAddr>>)> {
        let missing = !root.has("listen");
        let Some(mut section) = root.table(&mut self.problems, "listen") else {
            if missing {
                let remedy = "write [listen] with address, certificate, key and client_ca";
                self.problems.error(&Place::of("listen"), "is missing", remedy);
            }
            return None;
        };
        let identity = self.identity(&mut section);
        let client_ca = self.authorities(&mut section, "client_ca");
        let problems = &mut self.problems;
        let addresses = section.addresses(problems, "address", AddressUse::Listen);
        let backlog = backlog(&mut section, problems);
        section.close(problems);
        let (identity, client_ca, addresses) = (identity?, client_ca?, addresses?);
        let listener = TrunkListener {
            addresses: addresses.iter().map(|address| address.value).collect(),
            backlog,
            identity,
            client_ca,
        };
        Some((listener, addresses))
    }

    fn backbone(&mut self, root: &mut Section<'_>) -> Option<Backbone> {
        let missing = !root.has("backbone");
        let Some(mut section) = root.table(&mut self.problems, "backbone") else {
            if missing {
                let remedy = "write [backbone] with ca, certificate and key, and a [[backbone.gateway]]";
                self.problems.error(&Place::of("backbone"), "is missing", remedy);
            }
            return None;
        };
        let ca = self.authorities(&mut section, "ca");
        let identity = self.identity(&mut section);
        let gateways = self.gateways(&mut section);
        let problems = &mut self.problems;
        let trunks = section.number(problems, "trunks_per_core", 1..=64);
        let mut wait = |key, default, range| section.duration(problems, key, default, range);
        let heartbeat_interval = wait("heartbeat_interval", defaults::HEARTBEAT_INTERVAL, 100 * MILLISECOND..=HOUR);
        let backoff_min = wait("backoff_min", defaults::BACKOFF_MIN, 10 * MILLISECOND..=MINUTE);
        let backoff_max = wait("backoff_max", defaults::BACKOFF_MAX, 10 * MILLISECOND..=HOUR);
        let wait_for_trunk = wait("wait_for_trunk", defaults::WAIT_FOR_TRUNK, Duration::ZERO..=MINUTE);
        if backoff_min > backoff_max {
            let what = "backoff_max is less than backoff_min";
            problems.error(&section.place_of("backoff_max"), what, "raise backoff_max or lower backoff_min");
        }
        section.close(problems);
        Some(Backbone {
            ca: ca?,
            identity: identity?,
            trunks_per_core: trunks.map_or(defaults::TRUNKS_PER_CORE, |found| found.value as usize),
            heartbeat_interval,
            backoff_min,
            backoff_max,
            wait_for_trunk,
            gateways: gateways?,
        })
    }

    fn gateways(&mut self, backbone: &mut Section<'_>) -> Option<Vec<Gateway>> {
        let remedy = "write [[backbone.gateway]] with name and address";
        let sections = backbone.tables_required(&mut self.problems, "gateway", remedy);
        let mut names = Once::default();
        let mut addresses = Once::default();
        let mut gateways = Some(Vec::new());
        for mut section in sections {
            let name = self.name(&mut section, "name", "write a name, such as name = \"dc-a\"");
            if !section.has("address") {
                let remedy = "write where the gateway listens, such as address = \"10.0.0.7:7443\"";
                self.problems.error(&section.place_of("address"), "is missing", remedy);
            }
            let problems = &mut self.problems;
            let address = section.address(problems, "address", AddressUse::Connect);
            let server_name = section.text(problems, "server_name");
            if let Some(found) = server_name.as_ref().filter(|found| !is_server_name(&found.value)) {
                let what = format!("\"{}\" is not a name a certificate can hold", found.value.escape_default());
                problems.error(&found.place, what, "give a DNS name or an IP address of the gateway's certificate");
            }
            section.close(problems);
            names.check(problems, name.as_ref(), "give each gateway a name of its own");
            addresses.check(problems, address.as_ref(), "remove one; for more trunks raise trunks_per_core");
            gateways = gateways.zip(name.zip(address)).map(|(mut gateways, (name, address))| {
                let server_name = server_name.map_or_else(|| address.value.ip().to_string(), |found| found.value);
                gateways.push(Gateway { name: name.value, address: address.value, server_name });
                gateways
            });
        }
        gateways
    }

    fn upstream(&mut self, root: &mut Section<'_>, worker_count: usize) -> UpstreamConfig {
        let default = UpstreamConfig::of(self.here, worker_count);
        let problems = &mut self.problems;
        let Some(mut section) = root.table(problems, "upstream") else { return default };
        let connections = section.number(problems, "connections_max", 1..=CLIENTS_LIMIT);
        let wait = 10 * MILLISECOND..=DAY;
        let response_timeout = section.duration(problems, "response_timeout", default.response_timeout, wait.clone());
        let keepalive_max = section.number(problems, "keepalive_max", 0..=65_536);
        let keepalive_timeout = section.duration(problems, "keepalive_timeout", default.keepalive_timeout, wait);
        section.close(problems);
        UpstreamConfig {
            connections_max: connections.map_or(default.connections_max, |found| found.value as usize),
            response_timeout,
            keepalive_max: keepalive_max.map_or(default.keepalive_max, |found| found.value as usize),
            keepalive_timeout,
        }
    }

    fn services(&mut self, root: &mut Section<'_>) -> Option<Vec<Service>> {
        let remedy = "write [[service]] with name, kind and upstream";
        let sections = root.tables_required(&mut self.problems, "service", remedy);
        let mut names = Once::default();
        let mut services = Some(Vec::new());
        for section in sections {
            let service = self.service(section, &mut names);
            services = services.zip(service).map(|(mut services, service)| {
                services.push(service);
                services
            });
        }
        services
    }

    fn service(&mut self, mut section: Section<'_>, names: &mut Once<String>) -> Option<Service> {
        let name = self.name(&mut section, "name", "write the name that streams ask for, such as name = \"web\"");
        let problems = &mut self.problems;
        names.check(problems, name.as_ref(), "give each service a name of its own");
        let kinds = [("tunnel", Some(ServiceKind::Tunnel)), ("http", Some(ServiceKind::Http))];
        if !section.has("kind") {
            problems.error(&section.place_of("kind"), "is missing", "write kind = \"tunnel\" or kind = \"http\"");
        }
        let kind = section.choice(problems, "kind", None, &kinds);
        let upstreams = section.addresses(problems, "upstream", AddressUse::Connect);
        if kind == Some(ServiceKind::Tunnel) && section.has("authority") {
            let remedy = "remove it, or set kind = \"http\"";
            problems.error(&section.place_of("authority"), "has no meaning for a tunnel", remedy);
        }
        let authority = section.text(problems, "authority");
        if let Some(found) = authority.as_ref().filter(|found| !is_authority(&found.value)) {
            let what = format!("\"{}\" is not a host", found.value.escape_default());
            problems.error(&found.place, what, "give a host with or without port, such as \"shop.example:8080\"");
        }
        section.close(problems);
        let upstreams: Vec<SocketAddr> = upstreams?.into_iter().map(|address| address.value).collect();
        let authority = authority.map_or_else(|| upstreams[0].to_string(), |found| found.value);
        Some(Service { name: name?.value, kind: kind?, upstreams, authority })
    }

    fn identity(&mut self, section: &mut Section<'_>) -> Option<Identity> {
        let certificate = self.path(section, "certificate");
        let key = self.path(section, "key");
        match (certificate, key) {
            (Some(certificate), Some(key)) => Identity::load(&mut self.problems, &certificate, &key, self.here.now),
            _ => None,
        }
    }

    fn authorities(&mut self, section: &mut Section<'_>, key: &'static str) -> Option<Authorities> {
        let file = self.path(section, key)?;
        Authorities::load(&mut self.problems, &file, self.here.now)
    }

    fn path(&mut self, section: &mut Section<'_>, key: &'static str) -> Option<Located<PathBuf>> {
        let remedy = format!("write {key} = \"FILE\" (PEM, relative to this file); `trunkline certs` makes some");
        let found = section.text_required(&mut self.problems, key, &remedy)?;
        let directory = self.file.parent().unwrap_or(Path::new(""));
        Some(Located { value: directory.join(found.value), place: found.place })
    }

    fn check_addresses_once<'l>(&mut self, addresses: impl Iterator<Item = &'l Located<SocketAddr>>) {
        let mut once = Once::default();
        for address in addresses.filter(|address| address.value.port() != 0) {
            once.check(&mut self.problems, Some(address), "choose another port for one of the two");
        }
    }
}

fn backlog(section: &mut Section<'_>, problems: &mut Problems) -> u32 {
    let found = section.number(problems, "backlog", 1..=65_535);
    found.and_then(|found| u32::try_from(found.value).ok()).unwrap_or(defaults::BACKLOG)
}

/// A host with or without a port (RFC 9110 section 7.2), in the characters that need no care in a head.
fn is_authority(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
}

/// Values that may stand once, and where they were first seen.
struct Once<T> {
    seen: Vec<Located<T>>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Once { seen: Vec::new() }
    }
}

impl<T: PartialEq + Clone + std::fmt::Display> Once<T> {
    fn check(&mut self, problems: &mut Problems, found: Option<&Located<T>>, remedy: &str) {
        let Some(found) = found else { return };
        match self.seen.iter().find(|other| other.value == found.value) {
            Some(other) => {
                let (key, line) = (&other.place.key, other.place.line);
                let what = format!("{} stands already in {key} (line {line})", found.value);
                problems.error(&found.place, what, remedy);
            }
            None => self.seen.push(found.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::certificates::{DEVELOPMENT_VALIDITY, DevelopmentCa, Usage};

    const POP: &str = include_str!("../../docs/examples/pop.toml");
    const GATEWAY: &str = include_str!("../../docs/examples/gateway.toml");

    /// A directory with the certificates the examples name.
    struct Fixture {
        dir: tempfile::TempDir,
        here: Surroundings,
    }

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let here = Surroundings { cores: vec![0, 1], descriptors: 20_000, now: SystemTime::now() };
            let fixture = Fixture { dir, here };
            let ca = DevelopmentCa::new().expect("an authority");
            fixture.write("certs/ca.pem", &ca.pem());
            for name in ["pop", "gateway"] {
                let issued = ca.issue(name, &[], Usage::ServerAndClient).expect("a certificate");
                fixture.write(&format!("certs/{name}.pem"), &issued.chain_pem);
                fixture.write(&format!("certs/{name}.key"), &issued.key_pem);
            }
            fixture
        }

        fn write(&self, name: &str, text: &str) {
            use std::os::unix::fs::PermissionsExt as _;
            let path = self.dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a name in a directory")).expect("our own directory");
            std::fs::write(&path, text).expect("our own file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
        }

        fn pop(&self, text: &str) -> Result<(PopConfig, Vec<Problem>), Problems> {
            PopConfig::parse(text, &self.dir.path().join("pop.toml"), &self.here)
        }

        fn gateway(&self, text: &str) -> Result<(GatewayConfig, Vec<Problem>), Problems> {
            GatewayConfig::parse(text, &self.dir.path().join("gateway.toml"), &self.here)
        }

        /// The one mistake of the POP example after `from` was replaced by `to`.
        #[track_caller]
        fn pop_mistake(&self, from: &str, to: &str) -> Problem {
            assert!(POP.contains(from), "the example does not hold {from}");
            one(self.pop(&POP.replacen(from, to, 1)).map(|_| ()))
        }

        /// The one mistake of the gateway example after `from` was replaced by `to`.
        #[track_caller]
        fn gateway_mistake(&self, from: &str, to: &str) -> Problem {
            assert!(GATEWAY.contains(from), "the example does not hold {from}");
            one(self.gateway(&GATEWAY.replacen(from, to, 1)).map(|_| ()))
        }
    }

    #[track_caller]
    fn one(result: Result<(), Problems>) -> Problem {
        let problems = result.expect_err("a mistake was made");
        assert_eq!(problems.list().len(), 1, "{problems}");
        let problem = problems.list()[0].clone();
        assert!(!problem.remedy.is_empty());
        problem
    }

    #[track_caller]
    fn says(problem: &Problem, key: &str, what: &str, remedy: &str) {
        assert_eq!(problem.place.key, key, "{problem}");
        assert!(problem.what.contains(what), "{problem}");
        assert!(problem.remedy.contains(remedy), "{problem}");
    }

    #[test]
    fn the_examples_of_the_documentation_are_right() {
        let fixture = Fixture::new();
        let (pop, warnings) = fixture.pop(POP).expect("the example is right");
        assert_eq!(warnings, vec![]);
        assert_eq!((pop.id.as_str(), pop.cores.as_slice()), ("pop-1", [0].as_slice()));
        assert_eq!(pop.listeners[0].tunnel.as_deref(), Some("web"));
        assert_eq!(pop.backbone.gateways[0].server_name, "127.0.0.1", "the address's IP, unless given");
        assert_eq!(pop.worker.clients_max, 20_000 - 512);
        assert_eq!(pop.backbone.wait_for_trunk, Duration::from_secs(2));
        let (gateway, warnings) = fixture.gateway(GATEWAY).expect("the example is right");
        assert_eq!(warnings, vec![]);
        assert_eq!(gateway.cores, [1]);
        let kinds: Vec<ServiceKind> = gateway.services.iter().map(|service| service.kind).collect();
        assert_eq!(kinds, [ServiceKind::Tunnel, ServiceKind::Http]);
        assert_eq!(gateway.services[1].authority, "127.0.0.1:9000", "the first upstream, unless given");
        assert_eq!(gateway.upstream.connections_max, (20_000 - 512) / 2);
    }

    /// Every table closes with a complaint that lists its known keys: each of them must be documented.
    #[test]
    fn every_key_is_documented() {
        const DOCUMENTATION: &str = include_str!("../../docs/CONFIG.md");
        let fixture = Fixture::new();
        let stray = |text: &str, before: &[&str]| {
            before.iter().fold(format!("zzzzzz = 1\n{text}"), |text, header| {
                assert!(text.contains(header), "{header}");
                text.replace(header, &format!("{header}\nzzzzzz = 1"))
            })
        };
        let more = "\n[worker]\n[log]\n";
        let pop = stray(
            &format!("{POP}{more}"),
            &["[[listen]]", "[backbone]", "[[backbone.gateway]]", "[admin]", "[worker]", "[log]"],
        );
        let gateway = stray(&format!("{GATEWAY}\n[upstream]\n"), &["[listen]", "[[service]]", "[upstream]"]);
        let pop = fixture.pop(&pop).expect_err("unknown keys everywhere");
        let gateway = fixture.gateway(&gateway).expect_err("unknown keys everywhere");
        assert_eq!((pop.list().len(), gateway.list().len()), (7, 5), "{pop}\n{gateway}");
        for problem in pop.list().iter().chain(gateway.list()) {
            let (_, keys) = problem.remedy.split_once("one of ").expect("no known key is near zzzzzz");
            for key in keys.split(", ") {
                let is_table = DOCUMENTATION.contains(&format!("[{}]", key.trim_matches('`')))
                    || DOCUMENTATION.contains(&format!(".{}]", key.trim_matches('`')));
                assert!(is_table || DOCUMENTATION.contains(&format!("| {key} |")), "{key} is not in docs/CONFIG.md");
            }
        }
    }

    #[test]
    fn omitted_cores_are_all_that_may_be_used() {
        let fixture = Fixture::new();
        let (pop, _) = fixture.pop(&POP.replace("cores = [0]", "")).expect("cores may be omitted");
        assert_eq!(pop.cores, [0, 1]);
        assert_eq!(pop.worker.clients_max, (20_000 - 512) / 2);
    }

    #[test]
    fn every_key_is_read() {
        let fixture = Fixture::new();
        let text = POP
            .replace("id = ", "drain_timeout = \"7s\"\ngoaway_wait = \"8s\"\nid = ")
            .replace(
                "address = \"127.0.0.1:8443\"",
                "address = [\"127.0.0.1:8443\", \"[::1]:8443\"]\nbacklog = 9\npost_quantum = true",
            )
            .replace(
                "trunks_per_core = 2",
                "trunks_per_core = 3\nheartbeat_interval = \"1s\"\n\
                 backoff_min = \"200ms\"\nbackoff_max = \"9s\"\nwait_for_trunk = \"1s\"",
            )
            .replace("name = \"dc-a\"", "name = \"dc-a\"\nserver_name = \"gateway\"")
            + "\n[worker]\nclients_max = 5\nstreams_max = 6\nbuffers = 64\nbuffer_bytes = 4096\nbatch_wait = \"20us\"\n\
               handshake_timeout = \"3s\"\nconnect_timeout = \"4s\"\nidle_timeout = \"1m\"\n\
               [log]\nformat = \"json\"\nlevel = \"debug\"\n";
        let (pop, warnings) = fixture.pop(&text).expect("all of these exist");
        assert_eq!(warnings, vec![]);
        let listener = &pop.listeners[0];
        assert_eq!((listener.addresses.len(), listener.backlog, listener.post_quantum), (2, 9, true));
        let worker = WorkerConfig {
            clients_max: 5,
            streams_max: 6,
            buffers: 64,
            buffer_bytes: 4096,
            batch_wait: Duration::from_micros(20),
            handshake_timeout: 3 * SECOND,
            connect_timeout: 4 * SECOND,
            idle_timeout: MINUTE,
        };
        assert_eq!(pop.worker, worker);
        let keys: Vec<(usize, String)> = pop.binds().into_iter().map(|bind| (bind.listener, bind.key)).collect();
        assert_eq!(keys, [(0, "listen[0].address".to_owned()), (0, "listen[0].address".to_owned())]);
        assert_eq!((pop.drain_timeout, pop.goaway_wait), (7 * SECOND, 8 * SECOND));
        let backbone = &pop.backbone;
        assert_eq!((backbone.trunks_per_core, backbone.wait_for_trunk), (3, SECOND));
        assert_eq!(backbone.heartbeat_interval, SECOND);
        assert_eq!((backbone.backoff_min, backbone.backoff_max), (200 * MILLISECOND, 9 * SECOND));
        assert_eq!(backbone.gateways[0].server_name, "gateway");
        assert_eq!(pop.log, LogConfig { format: LogFormat::Json, level: tracing::Level::DEBUG });

        let text = GATEWAY.replace("kind = \"http\"", "kind = \"http\"\nauthority = \"pay.example\"")
            + "\n[upstream]\nconnections_max = 9\nresponse_timeout = \"5s\"\nkeepalive_max = 0\n\
               keepalive_timeout = \"7s\"\n";
        let (gateway, _) = fixture.gateway(&text).expect("all of these exist");
        assert_eq!(gateway.services[1].authority, "pay.example");
        let upstream = UpstreamConfig {
            connections_max: 9,
            response_timeout: 5 * SECOND,
            keepalive_max: 0,
            keepalive_timeout: 7 * SECOND,
        };
        assert_eq!(gateway.upstream, upstream);
    }

    #[test]
    fn five_mistakes_are_told_at_once() {
        let fixture = Fixture::new();
        let text = POP
            .replace("id = \"pop-1\"", "id = \"pop 1\"")
            .replace("cores = [0]", "cores = [7]")
            .replace("proxy_protocol = false", "proxy_protocol = \"no\"")
            .replace("trunks_per_core = 2", "trunks_per_cor = 2")
            .replace("address = \"127.0.0.1:7443\"", "address = \"gateway.example:7443\"");
        let problems = fixture.pop(&text).expect_err("five mistakes");
        let keys: Vec<&str> = problems.list().iter().map(|problem| problem.place.key.as_str()).collect();
        let five =
            ["id", "cores", "listen[0].proxy_protocol", "backbone.trunks_per_cor", "backbone.gateway[0].address"];
        assert_eq!(keys, five, "{problems}");
        let lines: Vec<usize> = problems.list().iter().map(|problem| problem.place.line).collect();
        assert!(lines.is_sorted() && lines[0] > 0, "{problems}");
        for (message, key) in problems.to_string().split("error: ").skip(1).zip(five) {
            assert!(
                message.contains("pop.toml:") && message.contains(key) && message.contains("remedy: "),
                "{message}"
            );
        }
    }

    #[test]
    fn unknown_keys_are_refused_with_a_suggestion() {
        let fixture = Fixture::new();
        let wrong = fixture.pop_mistake("proxy_protocol", "proxy_protcol");
        says(&wrong, "listen[0].proxy_protcol", "unknown key", "did you mean `proxy_protocol`");
        let wrong = fixture.pop_mistake("id = ", "zebra = 1\nid = ");
        says(&wrong, "zebra", "unknown key", "`backbone`");
        let wrong = fixture.gateway_mistake("kind = \"http\"", "kind = \"http\"\nretries = 3");
        says(&wrong, "service[1].retries", "unknown key", "use one of");
    }

    #[test]
    fn missing_keys_are_named() {
        let fixture = Fixture::new();
        says(&fixture.pop_mistake("id = \"pop-1\"", ""), "id", "is missing", "id = ");
        let key = "key = \"certs/pop.key\"\ntunnel";
        says(&fixture.pop_mistake(key, "tunnel"), "listen[0].key", "is missing", "trunkline certs");
        let name = "name = \"dc-a\"\n";
        says(&fixture.pop_mistake(name, ""), "backbone.gateway[0].name", "is missing", "dc-a");
        says(&fixture.gateway_mistake("kind = \"http\"\n", ""), "service[1].kind", "is missing", "tunnel");
        let listen = "address = \"127.0.0.1:7443\"\n";
        says(&fixture.gateway_mistake(listen, ""), "listen.address", "is missing", "0.0.0.0:8443");
        let admin = "address = \"127.0.0.1:9901\"";
        says(&fixture.pop_mistake(admin, ""), "admin.address", "is missing", "remove [admin]");
    }

    #[test]
    fn an_empty_file_says_all_that_is_needed() {
        let fixture = Fixture::new();
        let keys = |problems: Problems| -> Vec<String> {
            problems.list().iter().map(|problem| problem.place.key.clone()).collect()
        };
        assert_eq!(keys(fixture.pop("").expect_err("nothing there")), ["id", "listen", "backbone"]);
        assert_eq!(keys(fixture.gateway("").expect_err("nothing there")), ["id", "listen", "service"]);
        let empty = "id = \"a\"\nlisten = []\n[backbone]\ngateway = []";
        let problems = fixture.pop(empty).expect_err("nothing in them").to_string();
        assert!(problems.contains("listen: is missing") && problems.contains("backbone.gateway: is missing"));
    }

    #[test]
    fn wrong_types_say_what_was_found_and_wanted() {
        let fixture = Fixture::new();
        let cases = [
            ("id = \"pop-1\"", "id = 7", "id", "is an integer, not text"),
            ("cores = [0]", "cores = \"all\"", "cores", "is a string, not whole numbers"),
            ("cores = [0]", "cores = [-1]", "cores", "is an array, not whole numbers"),
            ("proxy_protocol = false", "proxy_protocol = 0", "listen[0].proxy_protocol", "not true or false"),
            ("trunks_per_core = 2", "trunks_per_core = 2.5", "backbone.trunks_per_core", "is a float, not a whole"),
            ("trunks_per_core = 2", "heartbeat_interval = 5", "backbone.heartbeat_interval", "not a duration"),
            ("address = \"127.0.0.1:9901\"", "address = 9901", "admin.address", "is an integer, not text"),
            ("[[backbone.gateway]]", "[backbone.gateway]", "backbone.gateway", "is a table, not a list of tables"),
        ];
        for (from, to, key, what) in cases {
            says(&fixture.pop_mistake(from, to), key, what, "write");
        }
        let problem = one(fixture
            .gateway(
                "listen = 7\nid = \"a\"\n[[service]]\nname = \"a\"\nkind = \"http\"\n\
             upstream = \"127.0.0.1:1\"",
            )
            .map(|_| ()));
        says(&problem, "listen", "is an integer, not a table", "[listen]");
    }

    #[test]
    fn addresses_are_an_ip_and_a_port() {
        let fixture = Fixture::new();
        let address = "\"127.0.0.1:8443\"";
        let key = "listen[0].address";
        says(&fixture.pop_mistake(address, "\"127.0.0.1\""), key, "not an address", "add the port");
        says(&fixture.pop_mistake(address, "\"localhost:8443\""), key, "not an address", "names are not looked up");
        says(&fixture.pop_mistake(address, "\"127.0.0.1:99999\""), key, "not an address", "port");
        says(&fixture.pop_mistake(address, "\"127.0.0.1:0\""), key, "port 0", "1 to 65535");
        says(&fixture.pop_mistake(address, "[]"), key, "holds no address", "write address");
        says(&fixture.pop_mistake(address, "[\"[::1]:1\", \"[::1]:1\"]"), key, "stands twice", "remove");
        let gateway = "\"127.0.0.1:7443\"";
        let key = "backbone.gateway[0].address";
        says(&fixture.pop_mistake(gateway, "\"0.0.0.0:7443\""), key, "no address to connect to", "other end");
        let upstream = "[\"127.0.0.1:9000\"]";
        says(&fixture.gateway_mistake(upstream, "[]"), "service[0].upstream", "holds no address", "10.0.0.7");
    }

    #[test]
    fn what_must_be_unique_is() {
        let fixture = Fixture::new();
        let admin = fixture.pop_mistake("\"127.0.0.1:9901\"", "\"127.0.0.1:8443\"");
        says(&admin, "admin.address", "stands already in listen[0].address", "another port");
        let second = "[[listen]]\naddress = \"127.0.0.1:8443\"\ncertificate = \"certs/pop.pem\"\n\
                      key = \"certs/pop.key\"\n[backbone]";
        says(&fixture.pop_mistake("[backbone]", second), "listen[1].address", "stands already", "another port");
        let service = fixture.gateway_mistake("name = \"pay\"", "name = \"web\"");
        says(&service, "service[1].name", "web stands already in service[0].name", "of its own");
        let gateway = "[[backbone.gateway]]\nname = \"dc-a\"\naddress = \"127.0.0.1:7444\"\n[admin]";
        says(&fixture.pop_mistake("[admin]", gateway), "backbone.gateway[1].name", "stands already", "of its own");
        let gateway = "[[backbone.gateway]]\nname = \"dc-b\"\naddress = \"127.0.0.1:7443\"\n[admin]";
        let gateway = fixture.pop_mistake("[admin]", gateway);
        says(&gateway, "backbone.gateway[1].address", "stands already", "trunks_per_core");
    }

    #[test]
    fn names_have_plain_characters() {
        let fixture = Fixture::new();
        for bad in ["a b", "a/b", "-a", "ä", "a\\n", &"a".repeat(65)] {
            let problem = fixture.gateway_mistake("name = \"pay\"", &format!("name = \"{bad}\""));
            says(&problem, "service[1].name", "is not a name", "letters, digits");
        }
        says(&fixture.gateway_mistake("name = \"pay\"", "name = \"\""), "service[1].name", "is empty", "give a value");
        let problem = fixture.pop_mistake("tunnel = \"web\"", "tunnel = \"w/b\"");
        says(&problem, "listen[0].tunnel", "is not a name", "letters, digits");
        let problem = fixture.pop_mistake("name = \"dc-a\"", "name = \"dc-a\"\nserver_name = \"a b\"");
        says(&problem, "backbone.gateway[0].server_name", "not a name a certificate can hold", "DNS name");
    }

    #[test]
    fn numbers_and_durations_have_limits() {
        let fixture = Fixture::new();
        let key = "backbone.trunks_per_core";
        let trunks = "trunks_per_core = 2";
        for huge in ["0", "65", "-1", "99999999999999999999999999"] {
            let problem = fixture.pop_mistake(trunks, &format!("trunks_per_core = {huge}"));
            says(&problem, key, "out of range", "use 1 to 64");
        }
        let problem = fixture.pop_mistake(trunks, "heartbeat_interval = \"0s\"");
        says(&problem, "backbone.heartbeat_interval", "out of range", "use 100ms to 1h");
        let problem = fixture.pop_mistake(trunks, "heartbeat_interval = \"5\"");
        says(&problem, "backbone.heartbeat_interval", "is not a duration", "\"5s\"");
        let problem = fixture.pop_mistake(trunks, "backoff_min = \"2s\"");
        says(&problem, "backbone.backoff_max", "less than backoff_min", "raise");
        let problem = fixture.pop_mistake("[admin]", "[worker]\nbuffers = 100\n[admin]");
        says(&problem, "worker.buffers", "not a power of two", "use 128");
        let problem = fixture.pop_mistake("[admin]", "[worker]\nbuffer_bytes = 12\n[admin]");
        says(&problem, "worker.buffer_bytes", "out of range", "use 1024");
    }

    #[test]
    fn more_clients_than_descriptors_are_warned_of() {
        let fixture = Fixture::new();
        let text = POP.replace("[admin]", "[worker]\nclients_max = 30000\n[admin]");
        let (pop, warnings) = fixture.pop(&text).expect("only a warning");
        assert_eq!((pop.worker.clients_max, warnings.len()), (30_000, 1));
        says(&warnings[0], "worker.clients_max", "more descriptors", "LimitNOFILE");
    }

    #[test]
    fn cores_must_be_ones_this_process_may_use() {
        let fixture = Fixture::new();
        let cores = "cores = [0]";
        says(&fixture.pop_mistake(cores, "cores = [0, 5]"), "cores", "may not use core 5", "0, 1");
        says(&fixture.pop_mistake(cores, "cores = []"), "cores", "holds no core", "remove the key");
        says(&fixture.pop_mistake(cores, "cores = [1, 1]"), "cores", "twice", "once");
        let unknown = Fixture { here: Surroundings { cores: vec![], ..fixture.here.clone() }, ..fixture };
        says(&unknown.pop_mistake(cores, ""), "cores", "not known", "cores = [0]");
    }

    #[test]
    fn files_must_exist_and_fit() {
        let fixture = Fixture::new();
        let wrong = fixture.pop_mistake("certs/pop.pem", "certs/nowhere.pem");
        says(&wrong, "listen[0].certificate", "no such file", "trunkline certs");
        assert!(wrong.what.contains(&fixture.dir.path().display().to_string()), "relative to the file: {wrong}");
        let wrong = fixture.pop_mistake("certs/pop.key", "certs/gateway.key");
        says(&wrong, "listen[0].key", "does not fit", "issued for");
        let wrong = fixture.pop_mistake("ca = \"certs/ca.pem\"", "ca = \"certs/pop.key\"");
        says(&wrong, "backbone.ca", "holds a key and no certificate", "PEM");
        let wrong = fixture.gateway_mistake("certs/gateway.pem", "certs");
        says(&wrong, "listen.certificate", "cannot read", "file of the certificate");
        fixture.write("certs/ca.pem", "-----BEGIN CERTIFICATE-----\nx");
        let wrong = fixture.gateway_mistake("id = \"dc-a-1\"", "id = \"a\"");
        says(&wrong, "listen.client_ca", "not readable PEM", "BEGIN CERTIFICATE");
    }

    #[test]
    fn an_expired_certificate_is_a_warning() {
        let mut fixture = Fixture::new();
        fixture.here.now += 2 * DEVELOPMENT_VALIDITY;
        let (_, warnings) = fixture.gateway(GATEWAY).expect("only warnings");
        let keys: Vec<&str> = warnings.iter().map(|warning| warning.place.key.as_str()).collect();
        assert_eq!(keys, ["listen.certificate", "listen.client_ca"]);
        says(&warnings[0], "listen.certificate", "has expired", "renew");
    }

    #[test]
    fn keys_of_http_are_refused_for_a_tunnel() {
        let fixture = Fixture::new();
        let wrong = fixture.gateway_mistake("kind = \"tunnel\"", "kind = \"tunnel\"\nauthority = \"a\"");
        says(&wrong, "service[0].authority", "no meaning for a tunnel", "kind = \"http\"");
        let wrong = fixture.gateway_mistake("kind = \"http\"", "kind = \"http\"\nauthority = \"a b\"");
        says(&wrong, "service[1].authority", "is not a host", "shop.example:8080");
        let wrong = fixture.gateway_mistake("kind = \"tunnel\"", "kind = \"tunel\"");
        says(&wrong, "service[0].kind", "not known", "did you mean \"tunnel\"");
    }

    #[test]
    fn every_broken_line_is_told() {
        let fixture = Fixture::new();
        let problems = fixture.pop("id = \n[listen\ncores = [0\n").expect_err("not TOML");
        assert!(problems.list().len() >= 2, "{problems}");
        assert!(problems.list().iter().all(|problem| problem.what.starts_with("is not TOML")), "{problems}");
        let doubled = fixture.pop_mistake("cores = [0]", "cores = [0]\ncores = [1]");
        says(&doubled, "", "duplicate key", "toml.io");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_one_message() {
        let fixture = Fixture::new();
        let missing = PopConfig::load(&fixture.dir.path().join("none.toml")).map(|_| ());
        says(&one(missing), "", "no such file", "--config");
        says(&one(PopConfig::load(fixture.dir.path()).map(|_| ())), "", "cannot be read", "--config");
        let path = fixture.dir.path().join("binary.toml");
        std::fs::write(&path, [0xff, 0xfe]).expect("our own file");
        says(&one(GatewayConfig::load(&path).map(|_| ())), "", "not UTF-8", "TOML");
    }

    #[test]
    fn certificates_are_read_again() {
        let fixture = Fixture::new();
        let (pop, _) = fixture.pop(POP).expect("the example is right");
        let (gateway, _) = fixture.gateway(GATEWAY).expect("the example is right");
        let ca = DevelopmentCa::new().expect("an authority");
        fixture.write("certs/ca.pem", &ca.pem());
        let issued = ca.issue("new", &[], Usage::ServerAndClient).expect("a certificate");
        fixture.write("certs/pop.pem", &issued.chain_pem);
        let wrong = pop.reread_certificates().expect_err("only half of the pair was replaced");
        assert_eq!(wrong.list()[0].place.key, "listen[0].key", "{wrong}");
        fixture.write("certs/pop.key", &issued.key_pem);
        let (pop, _) = pop.reread_certificates().expect("both were replaced");
        assert_eq!(pop.listeners[0].identity.chain, issued.chain);
        assert_eq!(pop.backbone.identity.key, issued.key);
        assert_eq!(pop.backbone.ca.roots, [ca.der()]);
        let (gateway, _) = gateway.reread_certificates().expect("nothing wrong");
        assert_eq!(gateway.listener.client_ca.roots, [ca.der()]);
    }
}
