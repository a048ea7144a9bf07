//! Trials: what cannot be read must be tried. A ring that carries bytes, a port that two sockets share, addresses that
//! are free, peers that answer.
//!
//! Owns its sockets, for as long as a trial takes. Never asks for work: it greets and goes. Every wait has an end.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::facts::{Answer, Config, Disk, Listen, Outcome, Peer, PeerKind, Trials, Unconnected, Unshaken};
use super::root::Root;
use crate::base::time::Time;
use crate::ring::{RingSettings, Uring};
use crate::server::config::{Configuration, ProcessConfig, TicketStore};
use crate::server::problems::{Problem, Problems};
use crate::server::{listen, run};
use crate::tickets::remote::{Event, Fault, Remote, RemoteSettings};
use crate::tls::{Alert, CertificateFault, ClientSettings, Received, Session, TlsError, record_bytes};

/// Connections whose shortest time gives the round trip.
const CONNECTS: usize = 3;

/// Peers that are tried at a time.
const PEERS_AT_A_TIME: usize = 16;

/// How long the ticket server and the admin address may take: they are near.
const NEAR_TIMEOUT: Duration = Duration::from_secs(2);

/// Most that is read of an answer of the admin address, in bytes.
const ADMIN_BYTES_MAX: u64 = 1024 * 1024;

/// Alerts about the certificate that was shown (RFC 8446 section 6.2): bad_certificate to unknown_ca, access_denied,
/// decrypt_error (its signature does not verify), and certificate_required.
const ALERTS_OF_CERTIFICATES: &[u8] = &[42, 43, 44, 45, 46, 48, 49, 51, 116];

/// Makes every trial that the configuration asks for. What turns out to be wrong with the configuration itself is added to
/// its problems.
pub(super) fn trials(root: &Root, config: Option<&Config>, problems: &mut Vec<Problem>) -> Trials {
    let mut trials =
        Trials { port_sharing: Some(listen::share_port().map_err(|error| error.to_string())), ..Trials::default() };
    trials.ring = Some(ring(config.map(|config| config.process())));
    let Some(config) = config else { return trials };
    let (process, binds) = (config.process(), config.binds());
    trials.admin = process.admin.and_then(|address| Some((address, admin(address)?)));
    for (key, address) in binds {
        trials.listens.extend(bind(&process.file, key, address));
    }
    if let (Some(address), None) = (process.admin, &trials.admin) {
        trials.listens.extend(bind(&process.file, "admin.address".to_owned(), address));
    }
    trials.peers = peers(config, problems);
    if let Config::Pop(config) = config
        && let TicketStore::Remote(remote) = &config.tickets.store
    {
        trials.ticket_server = Some((remote.server.server, ticket_server(&remote.server)));
    }
    trials.disks = disks(root, config);
    trials
}

impl Config {
    fn process(&self) -> &ProcessConfig {
        match self {
            Config::Pop(config) => &config.process,
            Config::Gateway(config) => &config.process,
        }
    }

    /// Addresses to listen on, with the keys that name them.
    fn binds(&self) -> Vec<(String, SocketAddr)> {
        let binds = match self {
            Config::Pop(config) => config.binds(),
            Config::Gateway(config) => config.binds(),
        };
        binds.into_iter().map(|bind| (bind.key, bind.address)).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        match self {
            Config::Pop(config) => config.files(),
            Config::Gateway(config) => config.files(),
        }
    }
}

/// A ring as a worker would have it, proven by an exchange.
fn ring(process: Option<&ProcessConfig>) -> Result<(), String> {
    let settings = match process {
        Some(process) => RingSettings {
            buffers: process.worker.buffers,
            buffer_bytes: process.worker.buffer_bytes,
            ..RingSettings::default()
        },
        None => RingSettings::default(),
    };
    Uring::new(&settings, Instant::now()).map(drop).map_err(|error| error.to_string())
}

// ---- addresses ----

/// Tries an address, and finds out who holds it if it is taken. None for a port that the kernel is to choose.
fn bind(file: &Path, key: String, address: SocketAddr) -> Option<Listen> {
    if address.port() == 0 {
        return None;
    }
    let failed = listen::listen_alone(address).err();
    let is_taken = failed.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    let holder = if is_taken { holder(address) } else { None };
    let problem = failed.map(|error| Problem::from_bind(file.to_path_buf(), &key, address, &error));
    Some(Listen { key, address, problem, holder })
}

/// Who listens on this address, on this machine whatever the root is: that is where it was tried.
fn holder(address: SocketAddr) -> Option<(u32, String)> {
    let here = Root::new(Path::new("/"));
    let tables = ["proc/net/tcp", "proc/net/tcp6"].map(|name| here.text(name).unwrap_or_default());
    let sockets: Vec<String> = tables.iter().flat_map(|table| listeners(table, address)).collect();
    let ids = here.names("proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    let holds = |id: &u32| {
        let descriptors = format!("proc/{id}/fd");
        let names = here.names(&descriptors);
        names.iter().any(|name| {
            let target = std::fs::read_link(here.path(&format!("{descriptors}/{name}")));
            target.is_ok_and(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
        })
    };
    let id = ids.into_iter().find(holds)?;
    Some((id, here.text(&format!("proc/{id}/comm")).unwrap_or_default()))
}

/// What descriptors of the sockets that listen on this address, or on its port of every address, point to.
fn listeners(table: &str, address: SocketAddr) -> Vec<String> {
    const LISTENS: &str = "0A";
    let one = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        let is_port = u16::from_str_radix(port, 16).ok()? == address.port();
        let ip = table_ip(ip)?;
        let is_ip = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
        (is_port && is_ip && *fields.get(3)? == LISTENS).then(|| Some(format!("socket:[{}]", fields.get(9)?)))?
    };
    table.lines().filter_map(one).collect()
}

/// An address as `/proc/net/tcp` writes it: words of 32 bits in hexadecimal, each in the machine's own order of bytes.
fn table_ip(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let bytes: Vec<u8> = (0..4).map(word).collect::<Option<Vec<_>>>()?.concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
        }
        _ => None,
    }
}

/// What an admin address answers; None when nobody listens there.
fn admin(address: SocketAddr) -> Option<Answer> {
    if address.port() == 0 {
        return None;
    }
    let metrics = match get(address, "/metrics") {
        Ok((_, metrics)) => metrics,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return None,
        Err(error) => return Some(Answer::Stranger(error.to_string())),
    };
    if !metrics.contains("# TYPE trunkline_") {
        return Some(Answer::Stranger("its /metrics are not those of a node".to_owned()));
    }
    Some(match get(address, "/ready") {
        Ok((200, _)) => Answer::Node(Ok(())),
        Ok((_, why)) => Answer::Node(Err(why.trim().chars().take(200).collect())),
        Err(error) => Answer::Node(Err(error.to_string())),
    })
}

/// One request; status and body.
fn get(address: SocketAddr, page: &str) -> io::Result<(u16, String)> {
    let deadline = Instant::now() + NEAR_TIMEOUT;
    let mut stream = TcpStream::connect_timeout(&address, NEAR_TIMEOUT)?;
    stream.set_write_timeout(Some(NEAR_TIMEOUT))?;
    stream.write_all(format!("GET {page} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 16 * 1024]);
    while (bytes.len() as u64) < ADMIN_BYTES_MAX {
        match read_until(&mut stream, &mut piece, deadline)? {
            0 => break,
            count => bytes.extend_from_slice(&piece[..count]),
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

/// Reads once, until a deadline at the latest.
fn read_until(stream: &mut TcpStream, piece: &mut [u8], deadline: Instant) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    match stream.read(piece) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        result => result,
    }
}

// ---- peers ----

/// Connects to whom the configuration names, several at a time.
fn peers(config: &Config, problems: &mut Vec<Problem>) -> Vec<Peer> {
    let timeout = config.process().worker.connect_timeout;
    let plan: Vec<(PeerKind, String, SocketAddr, Option<ClientSettings>)> = match config {
        Config::Pop(config) => {
            let Some(tls) = noted(run::pop_tls(config), problems) else { return Vec::new() };
            let each = config.backbone.gateways.iter().zip(&tls.gateways);
            let of = |(gateway, tls): (&crate::server::config::Gateway, &Option<(ClientSettings, String)>)| {
                // Without TLS there is no name to prove: that it takes connections is all that can be tried.
                let (settings, server_name) = tls.clone().unzip();
                let kind = PeerKind::Gateway { server_name: server_name.unwrap_or_default() };
                (kind, gateway.name.clone(), gateway.address, settings)
            };
            each.map(of).collect()
        }
        Config::Gateway(config) => {
            let _ = noted(run::gateway_tls(config), problems);
            let each = config.services.iter();
            let of = |service: &crate::server::config::Service| {
                let name = service.name.clone();
                service
                    .upstreams
                    .iter()
                    .map(move |address| (PeerKind::Upstream, name.clone(), *address, None))
                    .collect::<Vec<_>>()
            };
            each.flat_map(of).collect()
        }
    };
    let mut peers = Vec::new();
    for some in plan.chunks(PEERS_AT_A_TIME) {
        thread::scope(|scope| {
            let started: Vec<_> = some
                .iter()
                .map(|(kind, _, address, tls)| scope.spawn(move || outcome(kind, *address, tls.as_ref(), timeout)))
                .collect();
            for ((kind, name, address, _), thread) in some.iter().zip(started) {
                let failed = || Outcome::NotConnected(Unconnected::Other("the trial failed".to_owned()));
                let outcome = thread.join().unwrap_or_else(|_| failed());
                peers.push(Peer { kind: kind.clone(), name: name.clone(), address: *address, outcome });
            }
        });
    }
    peers
}

fn noted<T>(made: Result<T, Problems>, problems: &mut Vec<Problem>) -> Option<T> {
    made.map_err(|wrong| problems.extend_from_slice(wrong.list())).ok()
}

fn outcome(kind: &PeerKind, address: SocketAddr, tls: Option<&ClientSettings>, timeout: Duration) -> Outcome {
    let (mut stream, round_trip) = match connect(address, timeout) {
        Ok(connected) => connected,
        Err(error) => {
            return Outcome::NotConnected(match error.kind() {
                io::ErrorKind::ConnectionRefused => Unconnected::Refused,
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Unconnected::Silent(timeout),
                _ => Unconnected::Other(error.to_string()),
            });
        }
    };
    match (kind, tls) {
        (PeerKind::Gateway { server_name }, Some(settings)) => {
            match shake_hands(&mut stream, settings, server_name, timeout) {
                Ok(handshake) => Outcome::Good { round_trip, handshake: Some(handshake) },
                Err(cause) => Outcome::NotShaken(cause),
            }
        }
        _ => Outcome::Good { round_trip, handshake: None },
    }
}

/// Connects a few times; the last connection, and the shortest time.
fn connect(address: SocketAddr, timeout: Duration) -> io::Result<(TcpStream, Duration)> {
    let (mut shortest, mut last) = (Duration::MAX, None);
    for _ in 0..CONNECTS {
        let began = Instant::now();
        last = Some(TcpStream::connect_timeout(&address, timeout)?);
        shortest = shortest.min(began.elapsed());
    }
    last.map(|stream| (stream, shortest)).ok_or_else(|| io::ErrorKind::NotConnected.into())
}

/// Mutual TLS, as a trunk would. A server hears of the client's certificate after the client thinks that all is done, so
/// only its first word of MMTP, which it says unasked, is the proof. How long the handshake took.
fn shake_hands(
    stream: &mut TcpStream,
    settings: &ClientSettings,
    name: &str,
    timeout: Duration,
) -> Result<Duration, Unshaken> {
    let (mut out, mut input, mut piece) = (Vec::new(), Vec::new(), [0; 16 * 1024]);
    let mut session = Session::client(settings, name, None, &mut out).map_err(unshaken)?;
    let (began, broken) = (Instant::now(), |error: io::Error| Unshaken::Other(error.to_string()));
    let _ = stream.set_nodelay(true); // without it, it takes longer
    stream.set_write_timeout(Some(timeout)).map_err(broken)?;
    let mut took = None;
    loop {
        // One that has refused us may have closed: what it said counts, and is read below.
        let sent = stream.write_all(&out);
        out.clear();
        let count = match read_until(stream, &mut piece, began + timeout) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(Unshaken::Other(format!("no answer within {} s", timeout.as_secs_f64())));
            }
            Err(error) => return Err(broken(sent.err().unwrap_or(error))),
        };
        if count == 0 {
            return Err(Unshaken::Other("it closed the connection without a word".to_owned()));
        }
        input.extend_from_slice(&piece[..count]);
        while let Some(length) = record_bytes(&input).map_err(unshaken)?.filter(|length| *length <= input.len()) {
            let mut record: Vec<u8> = input.drain(..length).collect();
            match session.receive(&mut record, &mut out) {
                Ok(Received::Established(_)) => took = Some(began.elapsed()),
                Ok(Received::Data(_)) => {
                    session.put_close_notify(&mut out);
                    let _ = stream.write_all(&out); // it has said all we asked
                    return Ok(took.unwrap_or_else(|| began.elapsed()));
                }
                Ok(Received::CloseNotify) => return Err(Unshaken::Other("it closed the connection".to_owned())),
                Ok(Received::Nothing | Received::Hello | Received::Early(_)) => {}
                Err(error) => {
                    let _ = stream.write_all(&out); // its alert, if it is still heard
                    return Err(unshaken(error));
                }
            }
        }
    }
}

/// Sorts what went wrong by what an operator can do about it.
fn unshaken(error: TlsError) -> Unshaken {
    const NO_APPLICATION_PROTOCOL: u8 = Alert::NoApplicationProtocol.code();
    match error {
        // A CA that was made anew under its old name: it is found, and its key is another.
        TlsError::Certificate(CertificateFault::UnknownIssuer | CertificateFault::BadSignature) => {
            Unshaken::UnknownIssuer
        }
        TlsError::Certificate(CertificateFault::WrongName) => Unshaken::WrongName,
        TlsError::Certificate(CertificateFault::Expired) => Unshaken::OutOfTime,
        TlsError::PeerAlert(alert) if ALERTS_OF_CERTIFICATES.contains(&alert) => Unshaken::Refused(alert),
        TlsError::PeerAlert(NO_APPLICATION_PROTOCOL)
        | TlsError::NoApplicationProtocol
        | TlsError::ProtocolVersion
        | TlsError::PlainHttp
        | TlsError::NotTls => Unshaken::NotGateway(error.to_string()),
        other => Unshaken::Other(other.to_string()),
    }
}

/// Greets the ticket server as a worker would. How long it took from the beginning of connecting, else what is wrong.
fn ticket_server(settings: &RemoteSettings) -> Result<Duration, String> {
    let began = Instant::now();
    let now = || Time::ZERO + began.elapsed();
    let word = |fault: Fault| fault.as_str().to_owned();
    let mut remote = Remote::new(settings.clone(), 0);
    remote.tick(now());
    let connected = TcpStream::connect_timeout(&settings.server, NEAR_TIMEOUT);
    let mut stream = connected.map_err(|_| word(Fault::Unreachable))?;
    stream.set_write_timeout(Some(NEAR_TIMEOUT)).map_err(|error| error.to_string())?;
    remote.connected(now());
    let (mut out, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        while let Some(event) = remote.event() {
            match event {
                Event::Up => return Ok(began.elapsed()),
                Event::Lost(fault) => return Err(word(fault)),
                Event::Dial | Event::Close | Event::Answer(..) => {}
            }
        }
        remote.drain(&mut out);
        let sent = stream.write_all(&out);
        out.clear();
        match sent.and_then(|()| read_until(&mut stream, &mut piece, began + NEAR_TIMEOUT)) {
            Ok(0) => return Err(word(Fault::Closed)),
            Ok(count) => remote.received(now(), &piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(word(Fault::Silent)),
            Err(error) => return Err(error.to_string()),
        }
    }
}

// ---- disks ----

/// Room where the process's files are, and where the system's log goes.
fn disks(root: &Root, config: &Config) -> Vec<Disk> {
    let parent = |file: &PathBuf| match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut places = vec![(parent(&config.process().file), "configuration")];
    places.extend(config.files().iter().map(|file| (parent(file), "certificates and keys")));
    if root.is_here() {
        places.push((PathBuf::from("/var/log"), "log of the system"));
    }
    let mut disks: Vec<Disk> = Vec::new();
    for (path, purpose) in places {
        if disks.iter().any(|disk| disk.path == path) {
            continue;
        }
        let Ok(found) = rustix::fs::statvfs(&path) else { continue };
        let (free_bytes, bytes) =
            (found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize));
        disks.push(Disk { path, purpose, free_bytes, bytes });
    }
    disks
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn who_listens_is_found_in_the_tables() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 x\n\
            1: 00000000:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 78 1 x\n\
            2: 0100007F:20FB 0100007F:0001 01 00000000:00000000 00:00000000 00000000     0        0 79 1 x\n\
            3: 0200007F:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 80 1 x\nzz\n";
        let found = listeners(table, "127.0.0.1:8443".parse().expect("an address"));
        if cfg!(target_endian = "little") {
            assert_eq!(found, ["socket:[77]", "socket:[78]"]);
            assert_eq!(table_ip("00000000000000000000000001000000"), Some(Ipv6Addr::LOCALHOST.into()));
        }
        assert_eq!(table_ip("é000000"), None);
        assert_eq!(table_ip("0"), None);
    }

    #[test]
    fn an_address_that_this_process_holds_is_told_with_its_name() {
        let held = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = held.local_addr().expect("it is bound");
        let found = bind(Path::new("pop.toml"), "listen[0].address".to_owned(), address).expect("it has a port");
        assert!(found.problem.expect("it is taken").to_string().contains("in use"));
        assert_eq!(found.holder.expect("it is our own").0, std::process::id());
        drop(held);
        let found = bind(Path::new("pop.toml"), "listen[0].address".to_owned(), address).expect("it has a port");
        assert!(found.problem.is_none() && found.holder.is_none());
        assert!(bind(Path::new("a"), String::new(), "127.0.0.1:0".parse().expect("an address")).is_none());
    }

    #[test]
    fn whatever_is_said_on_the_admin_address_has_an_end() {
        let server = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = server.local_addr().expect("it is bound");
        let served = thread::spawn(move || {
            let (mut stream, _) = server.accept().expect("somebody comes");
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(b"\x1b[2J no HTTP at all").expect("it is read");
        });
        assert!(matches!(admin(address), Some(Answer::Stranger(_))));
        served.join().expect("it only writes");
        assert_eq!(admin(address), None, "nobody is there any more");
    }

    #[test]
    fn alerts_are_sorted_by_what_can_be_done() {
        assert_eq!(unshaken(TlsError::PeerAlert(48)), Unshaken::Refused(48));
        assert!(matches!(unshaken(TlsError::PeerAlert(120)), Unshaken::NotGateway(_)));
        assert!(matches!(unshaken(TlsError::PeerAlert(80)), Unshaken::Other(_)));
        assert_eq!(unshaken(TlsError::Certificate(CertificateFault::WrongName)), Unshaken::WrongName);
        assert!(matches!(unshaken(TlsError::NotTls), Unshaken::NotGateway(_)));
    }
}
