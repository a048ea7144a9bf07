//! The configuration of a POP and of a gateway: read from TOML, checked as a whole, every mistake told at once.
//!
//! Owns the keys and their limits, documented for users in `docs/CONFIG.md`; the defaults are in [`super::defaults`].
//! Opens no socket and starts nothing. Invariant: a [`PopConfig`] or [`GatewayConfig`] that was read is usable: its
//! files were read, its keys fit their certificates, its numbers are within limits. Only what the kernel decides later
//! can still fail, such as an address in use ([`super::problems::Problem::from_bind`]).
//!
//! Here stands what both have in common; `pop` and `gateway` hold what is their own, `tickets` the resumption of a POP,
//! `trunks` the security between the two, `reader` what all of them read with, `renewal` what is read again while the
//! process runs.

mod gateway;
mod pop;
mod reader;
mod renewal;
mod tickets;
mod trunks;

pub use gateway::{GatewayConfig, Service, ServiceKind, TrunkListener, UpstreamConfig};
pub use pop::{Backbone, ClientAuth, Gateway, Listener, NamedIdentity, PopConfig, TunnelEarlyData};
pub use renewal::Renewed;
pub use tickets::{RemoteStore, TicketStore, TicketsConfig};
pub use trunks::TrunkTls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::certificates::Identity;
use super::keys::FastOpenKeys;
use super::process;

/// Longest name of a process, gateway or service, in bytes: it travels in header blocks and log lines.
pub const NAME_BYTES_MAX: usize = 64;

/// Most connections of one worker: they must fit a slab and a token.
const CLIENTS_LIMIT: u64 = 1_000_000;

/// Most streams of one worker: they must fit a slab and a tag.
const STREAMS_LIMIT: u64 = 16_000_000;

/// Most buffers in a provided-buffer ring: the kernel's limit (io_uring_register_buf_ring(3)).
const BUFFERS_LIMIT: u64 = 32_768;

/// Most that handshakes may take of a busy core, in percent: they earn their time beside other work, of which some must
/// be left.
const HANDSHAKE_SHARE_LIMIT: u64 = 90;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What every process is told: the keys outside of tables, `[worker]`, `[admin]` and `[log]`.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// The file it came from.
    pub file: PathBuf,
    /// Name of this process: `id`.
    pub id: String,
    /// Cores, one worker each, in ascending order: `cores`.
    pub cores: Vec<usize>,
    /// How long streams in flight may go on after SIGTERM: `drain_timeout`.
    pub drain_timeout: Duration,
    /// What peers are told after SIGTERM: come back after this, and up to as much longer at random: `goaway_wait`.
    pub goaway_wait: Duration,
    /// Sizes of each worker: `[worker]`.
    pub worker: WorkerConfig,
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
    /// Part of a busy core that handshakes may take, in percent, at most 90: `handshake_share`.
    pub handshake_share: u8,
    /// A ClientHello that waited longer for its turn is dropped: `handshake_patience`.
    pub handshake_patience: Duration,
    /// From dial to the end of connect and TLS handshake: `connect_timeout`.
    pub connect_timeout: Duration,
    /// How long an accepted connection may carry nothing: `idle_timeout`.
    pub idle_timeout: Duration,
}

/// Where a process listens: what `[[listen]]` of a POP and `[listen]` of a gateway share.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// At least one: `address`.
    pub addresses: Vec<SocketAddr>,
    /// Connections the kernel may queue per worker before they are accepted: `backlog`.
    pub backlog: u32,
}

impl Endpoint {
    /// One bind per address; `key` is the key that holds the addresses.
    fn binds(&self, listener: usize, key: &str) -> impl Iterator<Item = Bind> {
        self.addresses.iter().map(move |&address| Bind {
            listener,
            address,
            backlog: self.backlog,
            proxy_protocol: false,
            fast_open: 0,
            key: key.to_owned(),
        })
    }
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
    /// Connections that may wait with data that came in their SYN, per worker; 0: TCP Fast Open is off.
    pub fast_open: u32,
    /// The key that holds the address, for messages.
    pub key: String,
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

/// What a process asks of its configuration, whichever of the two it is.
pub trait Configuration: Clone {
    /// What every process is told.
    fn process(&self) -> &ProcessConfig;

    /// The sockets each worker listens with, in the order of the configuration.
    #[must_use]
    fn binds(&self) -> Vec<Bind>;

    /// The same configuration with certificates, authorities and keys read again; see [`Renewed`].
    #[must_use]
    fn renewed(&self, now: SystemTime) -> Renewed<Self>;

    /// Every file that [`Configuration::renewed`] reads.
    #[must_use]
    fn files(&self) -> Vec<PathBuf>;

    /// Every identity with the table it stands in.
    #[must_use]
    fn identities(&self) -> Vec<(String, &Identity)>;

    /// Whether nothing secures trunks: `tls = false`.
    #[must_use]
    fn has_plaintext_trunks(&self) -> bool;

    /// The keys of TCP Fast Open. A gateway's peers stay: it has none.
    fn fast_open_keys(&self) -> Option<&FastOpenKeys> {
        None
    }

    /// How users come back. Only a POP has users.
    fn tickets(&self) -> Option<&TicketsConfig> {
        None
    }
}

#[cfg(test)]
mod tests;
