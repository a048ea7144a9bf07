//! What is known of a node, as plain values: what `gather` fills in and the checks judge.
//!
//! Never reads anything itself. What could not be found out is None or empty, and no check takes that for wrong.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::server::config::{GatewayConfig, PopConfig};
use crate::server::health::ProcessRole;
use crate::server::problems::Problem;

/// See the module.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the node is, or is to be.
    pub role: ProcessRole,
    /// The node's date.
    pub now: SystemTime,
    /// The machine.
    pub node: Node,
    /// The process that was looked at.
    pub process: Process,
    /// The configuration and what is wrong with it.
    pub settings: Settings,
    /// What trials against the kernel and the peers told.
    pub trials: Trials,
}

/// The machine.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The kernel's release, as uname gives it.
    pub release: Option<String>,
    /// `kernel.io_uring_disabled`.
    pub io_uring_disabled: Option<u8>,
    /// Cores that are switched on.
    pub cores_online: Vec<usize>,
    /// Cores that the kernel's scheduler leaves alone (`isolcpus`).
    pub cores_isolated: Vec<usize>,
    /// Per core that is on: those that share its execution units, itself included.
    pub siblings: BTreeMap<usize, Vec<usize>>,
    /// Per core that is on: its frequency governor.
    pub governors: BTreeMap<usize, String>,
    /// Interrupts of network interfaces.
    pub interrupts: Vec<Interrupt>,
    /// Memory of the machine, in bytes.
    pub memory_bytes: Option<u64>,
    /// The word in brackets in `transparent_hugepage/enabled`.
    pub huge_pages: Option<String>,
    /// Values of the sysctls that are asked for, white space made single. None: this kernel has no such key.
    pub sysctls: BTreeMap<String, Option<String>>,
    /// `net.ipv4.tcp_available_congestion_control`.
    pub congestion_available: Option<Vec<String>>,
    /// `net.ipv4.ip_local_port_range`.
    pub local_ports: Option<(u16, u16)>,
    /// Connections in TIME_WAIT.
    pub time_wait: Option<u64>,
    /// Figures of `TcpExt` in `/proc/net/netstat`, since the machine started.
    pub tcp: BTreeMap<String, u64>,
    /// Descriptors open on the whole machine, and how many may be.
    pub files: Option<(u64, u64)>,
    /// The clock as the kernel keeps it.
    pub clock: Option<Clock>,
}

/// An interrupt of a network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// Its number.
    pub number: u32,
    /// What it is for, such as `eth0-rx-0`.
    pub name: String,
    /// How often it came, by core.
    pub counts: Vec<(usize, u64)>,
    /// The cores it may come to.
    pub cores: Vec<usize>,
}

/// The clock as the kernel keeps it (adjtimex(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Whether something keeps it to the time of others.
    pub is_synchronised: bool,
    /// How far it may be off, at most.
    pub error_max: Duration,
}

/// What a process may use: the one that runs by the configuration, else the doctor itself.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Some: the process that runs by the configuration.
    pub running: Option<u32>,
    /// Soft and hard limit of descriptors; `u64::MAX`: none.
    pub descriptors: Option<(u64, u64)>,
    /// Descriptors that the running process has open.
    pub descriptors_open: Option<u64>,
    /// Soft limit of locked memory, in bytes; `u64::MAX`: none.
    pub locked_bytes: Option<u64>,
    /// Whether that limit does not bind it, as it has CAP_IPC_LOCK.
    pub may_lock: bool,
    /// Cores it may run on.
    pub cores_allowed: Option<Vec<usize>>,
    /// The strictest quota of time of its cgroups, in thousandths of a core.
    pub quota_millicores: Option<u64>,
    /// The strictest limit of memory of its cgroups, in bytes.
    pub memory_bytes_max: Option<u64>,
}

/// The configuration and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The file, when one was given.
    pub file: Option<PathBuf>,
    /// What was read; None without a file, or when it holds a mistake.
    pub plan: Option<Plan>,
    /// Mistakes and warnings.
    pub problems: Vec<Problem>,
    /// Certificates that are shown or trusted.
    pub certificates: Vec<Certificate>,
}

/// What the configuration asks of the node.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Cores with a worker each.
    pub cores: Vec<usize>,
    /// Accepted connections of each worker.
    pub clients_max: usize,
    /// Connections of each worker to the upstreams of one service; 0 on a POP.
    pub upstream_connections_max: usize,
    /// Trunks of each worker; 0 on a gateway.
    pub trunks: usize,
    /// Bytes of receive buffers of each worker.
    pub buffer_bytes: u64,
}

/// A certificate that is shown or trusted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// The key that names its file, such as `listen[0].certificate`.
    pub key: String,
    /// The file.
    pub file: PathBuf,
    /// Which of the file, from 1.
    pub number: usize,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

/// What trials told.
#[derive(Clone, Debug, Default)]
pub struct Trials {
    /// A ring was set up and used; else the kernel's refusal with its remedy.
    pub ring: Option<Result<(), String>>,
    /// Two sockets shared a port (SO_REUSEPORT).
    pub port_sharing: Option<Result<(), String>>,
    /// Addresses to listen on.
    pub listens: Vec<Listen>,
    /// The admin address, when something listens there.
    pub admin: Option<(SocketAddr, Answer)>,
    /// Gateways, upstreams.
    pub peers: Vec<Peer>,
    /// The ticket server.
    pub ticket_server: Option<(SocketAddr, Result<Duration, String>)>,
    /// Where files of the process are.
    pub disks: Vec<Disk>,
}

/// An address to listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The key that names it.
    pub key: String,
    /// The address.
    pub address: SocketAddr,
    /// What is wrong with it; None: it is free.
    pub problem: Option<Problem>,
    /// Who holds it: id and name of the process, as far as this user may see.
    pub holder: Option<(u32, String)>,
}

/// What an admin address answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is a node, and ready; or why it is not.
    Node(Result<(), String>),
    /// Something else, or nothing that could be understood.
    Stranger(String),
}

/// Somebody to connect to.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What it is.
    pub kind: PeerKind,
    /// Name in the configuration.
    pub name: String,
    /// Where.
    pub address: SocketAddr,
    /// What came of it.
    pub outcome: Outcome,
}

/// What somebody to connect to is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerKind {
    /// A gateway, which must prove to be this name.
    Gateway {
        /// The name its certificate must hold.
        server_name: String,
    },
    /// An upstream of a service.
    Upstream,
}

/// What came of connecting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All went well.
    Good {
        /// Round trip: the shortest time to connect.
        round_trip: Duration,
        /// The TLS handshake, if there was one.
        handshake: Option<Duration>,
    },
    /// No connection.
    NotConnected(Unconnected),
    /// A connection, but its TLS handshake failed.
    NotShaken(Unshaken),
}

/// Why there is no connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unconnected {
    /// Nobody listens.
    Refused,
    /// No answer within this time.
    Silent(Duration),
    /// Anything else.
    Other(String),
}

/// Why a handshake failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unshaken {
    /// The peer's certificate is not vouched for by our authorities.
    UnknownIssuer,
    /// It is for other names.
    WrongName,
    /// It is out of its time.
    OutOfTime,
    /// The peer refuses our certificate, with this alert.
    Refused(u8),
    /// The peer is no gateway: not TLS, or another protocol.
    NotGateway(String),
    /// Anything else.
    Other(String),
}

/// A place for files of the process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// The directory.
    pub path: PathBuf,
    /// What it is for.
    pub purpose: &'static str,
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// Bytes of the file system.
    pub bytes: u64,
}

/// A configuration that was read.
#[derive(Clone, Debug)]
pub(super) enum Config {
    Pop(Box<PopConfig>),
    Gateway(Box<GatewayConfig>),
}

/// A node of which little is known: one worker of a POP.
#[cfg(test)]
pub(super) fn sample() -> Facts {
    let plan =
        Plan { cores: vec![0], clients_max: 1000, upstream_connections_max: 0, trunks: 2, buffer_bytes: 8 << 20 };
    Facts {
        role: ProcessRole::Pop,
        now: SystemTime::UNIX_EPOCH,
        node: Node::default(),
        process: Process::default(),
        settings: Settings { plan: Some(plan), ..Settings::default() },
        trials: Trials::default(),
    }
}
