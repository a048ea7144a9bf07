//! A network and a kernel made of queues: sockets, listeners, and the operations that hosts have out on them.
//!
//! Owns time, every socket and every operation. Whatever a real kernel may decide, the generator decides: which
//! operation completes when, how many bytes at once, what breaks. Bytes of one direction of a socket keep their order.
//! Invariant: what the ring's contract forbids is a failed assertion at submit, named `ring_contract`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use trunkline::base::prng::Prng;
use trunkline::base::slab::Key;
use trunkline::base::time::Time;
use trunkline::ring::{Completion, Errno, Fd, Kind, Outcome, Token};

/// How unkind network and kernel are. Each figure is "once in so many", 0 is never.
#[derive(Clone, Debug)]
pub struct Weather {
    /// A completion that could be told is held back in this pass.
    pub hold: u64,
    /// A send takes only a part and is over.
    pub short_send: u64,
    /// A multishot ends without reason.
    pub multishot_end: u64,
    /// A connect fails.
    pub connect_failure: u64,
    /// An accept fails.
    pub accept_failure: u64,
    /// A receive brings a few bytes only, or a send moves a few only.
    pub sliver: u64,
    /// Longest time a segment travels.
    pub latency_max: Duration,
    /// A connection is reset, per round of the world.
    pub reset: u64,
    /// Time jumps, per round of the world.
    pub jump: u64,
}

impl Weather {
    /// Nothing breaks any more.
    pub fn calm() -> Weather {
        Weather {
            hold: 0,
            short_send: 0,
            multishot_end: 0,
            connect_failure: 0,
            accept_failure: 0,
            sliver: 0,
            latency_max: Duration::from_millis(2),
            reset: 0,
            jump: 0,
        }
    }
}

/// Whose socket it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    Host(usize),
    Actor,
}

enum Segment {
    Data(VecDeque<u8>),
    Fin,
}

/// What reading found.
#[derive(PartialEq, Eq, Debug)]
pub enum Read {
    Bytes(Vec<u8>),
    End,
    Reset,
    Nothing,
}

struct Socket {
    owner: Owner,
    /// Address of this end and of the other.
    local: SocketAddr,
    remote: SocketAddr,
    peer: Option<usize>,
    /// The descriptor was not closed yet.
    open: bool,
    listening: bool,
    connected: bool,
    /// Bytes on their way here, and here but unread.
    inbox: VecDeque<(Time, Segment)>,
    inbox_bytes: usize,
    capacity: usize,
    fin_sent: bool,
    fin_read: bool,
    /// A reset arrives then; with true, what is unread is lost.
    reset_at: Option<(Time, bool)>,
    error: Option<Errno>,
    /// A fault was injected here, or followed from one.
    faulted: bool,
    last_arrival: Time,
}

struct Op {
    kind: Kind,
    key: Key,
    fd: usize,
    cancelled: bool,
    /// Of an accept: over after one connection.
    once: bool,
    /// Of a send: the buffer, where it began, how much is gone.
    bytes: Vec<u8>,
    from: usize,
    taken: usize,
    /// Nothing is told before this.
    ready_at: Time,
}

/// What a worker's ring is in the kernel.
pub struct Host {
    ops: Vec<Op>,
    lent: BTreeSet<u64>,
    leases_made: u64,
    pub buffers_total: usize,
    pub buffer_bytes: usize,
    /// When the worker wants to be called.
    pub until: Option<Time>,
    pub woken: bool,
    pub alive: bool,
    /// Completions of the last pass.
    pub told: usize,
}

/// A receive buffer on loan.
#[derive(Debug)]
pub struct Lease {
    pub id: u64,
    pub bytes: Vec<u8>,
}

struct Listening {
    fd: usize,
    backlog: VecDeque<usize>,
}

/// The last events, written down only when somebody will read them.
pub struct Log {
    pub on: bool,
    pub lines: VecDeque<String>,
}

pub struct Net {
    pub now: Time,
    pub prng: Prng,
    pub weather: Weather,
    pub hosts: Vec<Host>,
    pub log: Log,
    sockets: Vec<Socket>,
    listeners: BTreeMap<SocketAddr, Listening>,
    next_port: u16,
}

macro_rules! note {
    ($net:expr, $($arg:tt)*) => {
        if $net.log.on {
            let line = format!("{:>12.6} {}", $net.now.as_nanos() as f64 / 1e9, format_args!($($arg)*));
            $net.log.push(line);
        }
    };
}
pub(crate) use note;

impl Log {
    pub fn push(&mut self, line: String) {
        if std::env::var_os("TRUNKLINE_SIM_PRINT").is_some() {
            eprintln!("{line}");
        }
        if self.lines.len() == 120 {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

impl Net {
    pub fn new(seed: u64, weather: Weather, logging: bool) -> Net {
        Net {
            now: Time::ZERO + Duration::from_secs(1),
            prng: Prng::new(seed),
            weather,
            hosts: Vec::new(),
            log: Log { on: logging, lines: VecDeque::new() },
            sockets: Vec::new(),
            listeners: BTreeMap::new(),
            next_port: 20_000,
        }
    }

    pub fn add_host(&mut self, buffers_total: usize, buffer_bytes: usize) -> usize {
        self.hosts.push(Host {
            ops: Vec::new(),
            lent: BTreeSet::new(),
            leases_made: 0,
            buffers_total,
            buffer_bytes,
            until: Some(self.now),
            woken: false,
            alive: true,
            told: 0,
        });
        self.hosts.len() - 1
    }

    fn socket(&mut self, owner: Owner, local: SocketAddr, remote: SocketAddr) -> usize {
        let capacity = match self.prng.below(4) {
            0 => 700 + self.prng.below(4000) as usize,
            1 => 8 * 1024,
            _ => 64 * 1024,
        };
        self.sockets.push(Socket {
            owner,
            local,
            remote,
            peer: None,
            open: true,
            listening: false,
            connected: false,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            capacity,
            fin_sent: false,
            fin_read: false,
            reset_at: None,
            error: None,
            faulted: false,
            last_arrival: Time::ZERO,
        });
        self.sockets.len() - 1
    }

    // ---- listening and connecting ----

    pub fn listen(&mut self, owner: Owner, address: SocketAddr) -> Fd {
        let fd = self.socket(owner, address, address);
        self.sockets[fd].listening = true;
        let earlier = self.listeners.insert(address, Listening { fd, backlog: VecDeque::new() });
        assert!(earlier.is_none(), "scenario: an address has one listener");
        Fd(fd as i32)
    }

    fn fresh_address(&mut self) -> SocketAddr {
        self.next_port = if self.next_port == u16::MAX { 20_000 } else { self.next_port + 1 };
        SocketAddr::from(([192, 0, 2, 1], self.next_port))
    }

    /// Establishes `fd` with whoever listens.
    fn establish(&mut self, fd: usize) -> Result<(), Errno> {
        let remote = self.sockets[fd].remote;
        if self.prng.chance(self.weather.connect_failure) {
            self.sockets[fd].faulted = true;
            return Err(Errno(if self.prng.chance(2) { libc::ETIMEDOUT } else { libc::ECONNREFUSED }));
        }
        let Some(listener) = self.listeners.get(&remote) else { return Err(Errno(libc::ECONNREFUSED)) };
        let owner = self.sockets[listener.fd].owner;
        let local = self.sockets[fd].local;
        let far = self.socket(owner, remote, local);
        self.sockets[far].peer = Some(fd);
        self.sockets[far].connected = true;
        self.sockets[fd].peer = Some(far);
        self.sockets[fd].connected = true;
        self.listeners.get_mut(&remote).expect("just found").backlog.push_back(far);
        Ok(())
    }

    /// An actor connects.
    pub fn connect(&mut self, remote: SocketAddr) -> Result<Fd, Errno> {
        let local = self.fresh_address();
        let fd = self.socket(Owner::Actor, local, remote);
        match self.establish(fd) {
            Ok(()) => Ok(Fd(fd as i32)),
            Err(errno) => {
                self.sockets[fd].open = false;
                Err(errno)
            }
        }
    }

    /// An actor accepts.
    pub fn accept(&mut self, address: SocketAddr) -> Option<Fd> {
        self.listeners.get_mut(&address)?.backlog.pop_front().map(|fd| Fd(fd as i32))
    }

    // ---- bytes ----

    fn arrival(&mut self, at: usize) -> Time {
        let delay = Duration::from_nanos(self.prng.below(self.weather.latency_max.as_nanos() as u64 + 1));
        let time = (self.now + delay).max(self.sockets[at].last_arrival);
        self.sockets[at].last_arrival = time;
        time
    }

    /// Lets a reset that has arrived take effect.
    fn settle(&mut self, fd: usize) {
        let socket = &mut self.sockets[fd];
        if let Some((at, lossy)) = socket.reset_at
            && at <= self.now
        {
            socket.reset_at = None;
            socket.error = Some(Errno::RESET);
            if lossy {
                socket.inbox.clear();
                socket.inbox_bytes = 0;
            }
        }
    }

    /// Takes what fits of `bytes`.
    pub fn write(&mut self, fd: Fd, bytes: &[u8]) -> Result<usize, Errno> {
        let fd = fd.0 as usize;
        self.settle(fd);
        let socket = &self.sockets[fd];
        assert!(socket.open, "ring_contract: write to a closed descriptor");
        if let Some(error) = socket.error {
            return Err(error);
        }
        let Some(peer) = socket.peer.filter(|_| !socket.fin_sent) else { return Err(Errno(libc::EPIPE)) };
        if !self.sockets[peer].open || self.sockets[peer].error.is_some() {
            // Nobody is there any more: a reset comes back.
            self.send_reset(fd, false);
            return Ok(bytes.len());
        }
        let free = self.sockets[peer].capacity.saturating_sub(self.sockets[peer].inbox_bytes);
        let mut count = free.min(bytes.len());
        if count > 1 && self.prng.chance(self.weather.sliver) {
            count = 1 + self.prng.below(count as u64 - 1) as usize;
        }
        if count > 0 {
            let at = self.arrival(peer);
            let far = &mut self.sockets[peer];
            far.inbox.push_back((at, Segment::Data(bytes[..count].iter().copied().collect())));
            far.inbox_bytes += count;
        }
        Ok(count)
    }

    pub fn finish(&mut self, fd: Fd) {
        let fd = fd.0 as usize;
        let socket = &mut self.sockets[fd];
        if socket.fin_sent || socket.error.is_some() {
            return;
        }
        socket.fin_sent = true;
        if let Some(peer) = socket.peer {
            let at = self.arrival(peer);
            self.sockets[peer].inbox.push_back((at, Segment::Fin));
        }
    }

    /// At most `most` bytes of what has arrived.
    pub fn read(&mut self, fd: Fd, most: usize) -> Read {
        let index = fd.0 as usize;
        self.settle(index);
        let now = self.now;
        let socket = &mut self.sockets[index];
        assert!(socket.open, "ring_contract: read from a closed descriptor");
        let mut found = Vec::new();
        while found.len() < most {
            match socket.inbox.front_mut() {
                Some((at, _)) if *at > now => break,
                Some((_, Segment::Data(data))) => {
                    let count = data.len().min(most - found.len());
                    found.extend(data.drain(..count));
                    if data.is_empty() {
                        socket.inbox.pop_front();
                    }
                }
                Some((_, Segment::Fin)) if found.is_empty() => {
                    // The end is told once; a reset that came behind it is told as well.
                    if socket.fin_read && socket.error.is_some() {
                        return Read::Reset;
                    }
                    socket.fin_read = true;
                    return Read::End;
                }
                Some((_, Segment::Fin)) => break,
                None => break,
            }
        }
        socket.inbox_bytes -= found.len();
        match (found.is_empty(), socket.error) {
            (false, _) => Read::Bytes(found),
            (true, Some(_)) => Read::Reset,
            (true, None) => Read::Nothing,
        }
    }

    /// Whether reading would find something.
    pub fn is_readable(&self, fd: Fd) -> bool {
        let socket = &self.sockets[fd.0 as usize];
        socket.error.is_some()
            || socket.reset_at.is_some_and(|(at, _)| at <= self.now)
            || (!socket.fin_read && socket.inbox.front().is_some_and(|(at, _)| *at <= self.now))
    }

    /// Whether writing would take something, or fail.
    pub fn is_writable(&self, fd: Fd) -> bool {
        let socket = &self.sockets[fd.0 as usize];
        if socket.error.is_some() || socket.reset_at.is_some_and(|(at, _)| at <= self.now) {
            return true;
        }
        match socket.peer {
            Some(peer) => {
                let peer = &self.sockets[peer];
                !peer.open || peer.error.is_some() || peer.inbox_bytes < peer.capacity
            }
            None => true,
        }
    }

    /// Whether a fault was injected on this connection.
    pub fn was_faulted(&self, fd: Fd) -> bool {
        let socket = &self.sockets[fd.0 as usize];
        socket.faulted || socket.peer.is_some_and(|peer| self.sockets[peer].faulted)
    }

    fn send_reset(&mut self, to: usize, lossy: bool) {
        if self.sockets[to].reset_at.is_none() && self.sockets[to].error.is_none() {
            let at = if lossy {
                let within = self.weather.latency_max.as_nanos() as u64 + 1;
                self.now + Duration::from_nanos(self.prng.below(within))
            } else {
                self.arrival(to)
            };
            self.sockets[to].reset_at = Some((at, lossy));
        }
    }

    /// Closes a descriptor as close(2) does: with a reset if asked for, or if something is unread.
    pub fn close(&mut self, fd: Fd, reset: bool) {
        let fd = fd.0 as usize;
        assert!(self.sockets[fd].open, "ring_contract: closed twice");
        note!(self, "close fd {fd} reset {reset}");
        self.settle(fd);
        self.sockets[fd].open = false;
        if self.sockets[fd].listening {
            let address = self.sockets[fd].local;
            let listening = self.listeners.remove(&address).expect("a listening socket is in the table");
            for waiting in listening.backlog {
                self.close(Fd(waiting as i32), true);
            }
            return;
        }
        let unread = self.sockets[fd].inbox_bytes > 0;
        if let Some(peer) = self.sockets[fd].peer
            && self.sockets[fd].error.is_none()
        {
            if reset || unread {
                // Whether what was sent before still arrives is luck.
                let lossy = self.prng.chance(2);
                self.send_reset(peer, lossy);
            } else {
                let end = Fd(fd as i32);
                self.finish(end);
            }
        }
        self.sockets[fd].inbox.clear();
        self.sockets[fd].inbox_bytes = 0;
    }

    /// Breaks a connection from the middle: both ends see a reset.
    pub fn inject_reset(&mut self, fd: usize) {
        note!(self, "fault: reset of fd {fd} {} {}", self.sockets[fd].local, self.sockets[fd].remote);
        for end in [Some(fd), self.sockets[fd].peer].into_iter().flatten() {
            self.sockets[end].faulted = true;
            let lossy = self.prng.chance(2);
            self.send_reset(end, lossy);
        }
    }

    /// Breaks some connection.
    pub fn inject_random_reset(&mut self) {
        let open: Vec<usize> = (0..self.sockets.len())
            .filter(|fd| self.sockets[*fd].open && self.sockets[*fd].connected && self.sockets[*fd].error.is_none())
            .collect();
        if !open.is_empty() {
            let fd = open[self.prng.below(open.len() as u64) as usize];
            self.inject_reset(fd);
        }
    }

    /// The host is gone from one moment to the next.
    pub fn kill_host(&mut self, host: usize) {
        note!(self, "fault: host {host} dies");
        self.hosts[host].alive = false;
        self.hosts[host].ops.clear();
        for fd in 0..self.sockets.len() {
            if self.sockets[fd].owner == Owner::Host(host) && self.sockets[fd].open {
                self.sockets[fd].faulted = true;
                self.close(Fd(fd as i32), true);
            }
        }
    }

    /// Descriptors a host has open.
    pub fn open_descriptors(&self, host: usize) -> usize {
        self.sockets.iter().filter(|socket| socket.open && socket.owner == Owner::Host(host)).count()
    }

    // ---- operations of hosts ----

    fn own(&self, host: usize, fd: Fd) -> usize {
        let index = usize::try_from(fd.0).expect("ring_contract: a descriptor");
        let socket = &self.sockets[index];
        assert!(socket.open, "ring_contract: operation on a closed descriptor");
        assert_eq!(socket.owner, Owner::Host(host), "ring_contract: operation on somebody else's descriptor");
        index
    }

    pub fn submit(&mut self, host: usize, kind: Kind, fd: Fd, key: Key, bytes: Vec<u8>, from: usize) {
        let fd = self.own(host, fd);
        for op in self.hosts[host].ops.iter().filter(|op| op.kind != Kind::Accept && kind != Kind::Accept) {
            let same = op.kind == kind && (op.key.index == key.index || op.fd == fd);
            assert!(!same, "ring_contract: two operations of kind {kind:?} on slot {}", key.index);
            let stranger = op.key.index == key.index && op.key.generation != key.generation;
            assert!(!stranger, "ring_contract: slot {} reused with an operation out", key.index);
        }
        if kind == Kind::Send {
            assert!(from < bytes.len(), "ring_contract: a send of nothing");
            assert!(!self.sockets[fd].fin_sent, "ring_contract: a send behind the end");
        }
        let delay = Duration::from_nanos(self.prng.below(self.weather.latency_max.as_nanos() as u64 / 4 + 1));
        let ready_at = match kind {
            Kind::Connect => self.now + delay * 4,
            Kind::Send if self.prng.chance(self.weather.hold) => self.now + delay,
            _ => self.now,
        };
        self.hosts[host].ops.push(Op { kind, key, fd, cancelled: false, once: false, bytes, from, taken: 0, ready_at });
    }

    pub fn shut_down(&mut self, host: usize, fd: Fd) {
        let index = self.own(host, fd);
        note!(self, "host {host} fd {} shuts down", fd.0);
        let sends = self.hosts[host].ops.iter().any(|op| op.kind == Kind::Send && op.fd == index);
        assert!(!sends, "ring_contract: shutdown beside a send");
        self.finish(fd);
    }

    pub fn submit_connect(&mut self, host: usize, key: Key, remote: SocketAddr) -> Result<Fd, Errno> {
        if self.prng.chance(self.weather.connect_failure * 4) {
            return Err(Errno(libc::EMFILE));
        }
        let local = self.fresh_address();
        let fd = Fd(self.socket(Owner::Host(host), local, remote) as i32);
        note!(self, "host {host} slot {} connects fd {} to {remote}", key.index, fd.0);
        self.submit(host, Kind::Connect, fd, key, Vec::new(), 0);
        Ok(fd)
    }

    pub fn submit_accept_one(&mut self, host: usize, listener: Fd, key: Key) {
        self.submit(host, Kind::Accept, listener, key, Vec::new(), 0);
        self.hosts[host].ops.last_mut().expect("just submitted").once = true;
    }

    pub fn cancel_op(&mut self, host: usize, kind: Kind, key: Key) {
        for op in &mut self.hosts[host].ops {
            op.cancelled |= op.kind == kind && op.key == key;
        }
    }

    pub fn cancel(&mut self, host: usize, fd: Fd) {
        let fd = self.own(host, fd);
        for op in &mut self.hosts[host].ops {
            op.cancelled |= op.fd == fd;
        }
    }

    pub fn close_of_host(&mut self, host: usize, fd: Fd, reset: bool) {
        let index = self.own(host, fd);
        let out = self.hosts[host].ops.iter().find(|op| op.fd == index).map(|op| op.kind);
        assert_eq!(out, None, "ring_contract: closed with an operation out");
        self.close(fd, reset);
    }

    /// The address of this end.
    pub fn local(&self, fd: Fd) -> SocketAddr {
        self.sockets[fd.0 as usize].local
    }

    pub fn peer(&self, fd: Fd) -> Option<SocketAddr> {
        let socket = &self.sockets[fd.0 as usize];
        (socket.error.is_none() && socket.connected).then_some(socket.remote)
    }

    pub fn give_back(&mut self, host: usize, lease: &Lease) {
        assert!(self.hosts[host].lent.remove(&lease.id), "ring_contract: a lease is given back once");
    }

    pub fn buffers_free(&self, host: usize) -> usize {
        self.hosts[host].buffers_total - self.hosts[host].lent.len()
    }

    pub fn ops_out(&self, host: usize) -> usize {
        self.hosts[host].ops.len()
    }

    /// Whether a pass of the host would find something.
    pub fn is_ready(&self, host: usize) -> bool {
        let state = &self.hosts[host];
        state.woken || state.until.is_some_and(|until| until <= self.now) || self.has_completions(host)
    }

    fn has_completions(&self, host: usize) -> bool {
        self.hosts[host].ops.iter().any(|op| {
            op.cancelled
                || (op.ready_at <= self.now
                    && match op.kind {
                        Kind::Receive => self.is_readable(Fd(op.fd as i32)),
                        Kind::Send => self.is_writable(Fd(op.fd as i32)),
                        Kind::Accept => self
                            .listeners
                            .get(&self.sockets[op.fd].local)
                            .is_some_and(|found| !found.backlog.is_empty()),
                        _ => true,
                    })
        })
    }

    /// What the kernel tells the host in this pass.
    pub fn reap(&mut self, host: usize) -> Vec<Completion<Lease>> {
        let mut told = Vec::new();
        if std::mem::take(&mut self.hosts[host].woken) {
            told.push(Completion {
                token: Token::new(Kind::Wake, Key { index: u32::MAX, generation: 0 }),
                outcome: Outcome::Woken,
            });
        }
        let mut order: Vec<usize> = (0..self.hosts[host].ops.len()).collect();
        for index in (1..order.len()).rev() {
            order.swap(index, self.prng.below(index as u64 + 1) as usize);
        }
        let mut over = Vec::new();
        for index in order {
            let op = &self.hosts[host].ops[index];
            let early = op.ready_at > self.now && !op.cancelled;
            if early || self.prng.chance(self.weather.hold) {
                continue;
            }
            if self.advance(host, index, &mut told) {
                over.push(index);
            }
        }
        over.sort_unstable();
        for index in over.into_iter().rev() {
            self.hosts[host].ops.remove(index);
        }
        self.hosts[host].told = told.len();
        told
    }

    /// Moves one operation on; true when it is over.
    fn advance(&mut self, host: usize, index: usize, told: &mut Vec<Completion<Lease>>) -> bool {
        let op = &self.hosts[host].ops[index];
        let token = Token::new(op.kind, op.key);
        match op.kind {
            Kind::Receive => self.advance_receive(host, index, told),
            Kind::Send => self.advance_send(host, index, told),
            Kind::Accept => self.advance_accept(host, index, told),
            Kind::Connect => {
                let (fd, cancelled) = (op.fd, op.cancelled);
                let result = match cancelled && self.prng.chance(2) {
                    true => Err(Errno::CANCELED),
                    false => self.establish(fd),
                };
                note!(self, "host {host} connected fd {fd} {result:?}");
                told.push(Completion { token, outcome: Outcome::Connected(result) });
                true
            }
            Kind::Wake | Kind::Unwatched => unreachable!("never submitted"),
        }
    }

    fn advance_receive(&mut self, host: usize, index: usize, told: &mut Vec<Completion<Lease>>) -> bool {
        let op = &self.hosts[host].ops[index];
        let (fd, key, cancelled) = (Fd(op.fd as i32), op.key, op.cancelled);
        let token = Token::new(Kind::Receive, key);
        if cancelled && self.prng.chance(2) {
            told.push(Completion { token, outcome: Outcome::Received { result: Err(Errno::CANCELED), more: false } });
            return true;
        }
        let bursts = 1 + self.prng.below(4);
        for _ in 0..bursts {
            if !self.is_readable(fd) {
                break;
            }
            if self.sockets[fd.0 as usize].inbox_bytes > 0 && self.buffers_free(host) == 0 {
                note!(self, "host {host} fd {} ENOBUFS", fd.0);
                let result = Err(Errno::NO_BUFFERS);
                told.push(Completion { token, outcome: Outcome::Received { result, more: false } });
                return true;
            }
            let mut most = self.hosts[host].buffer_bytes;
            if self.prng.chance(self.weather.sliver) {
                most = 1 + self.prng.below(most as u64) as usize;
            }
            let (result, mut more) = match self.read(fd, most) {
                Read::Nothing => break,
                Read::End => (Ok(None), false),
                Read::Reset => (Err(Errno::RESET), false),
                Read::Bytes(bytes) => {
                    note!(self, "host {host} slot {} fd {} received {}", key.index, fd.0, bytes.len());
                    let state = &mut self.hosts[host];
                    state.leases_made += 1;
                    let id = state.leases_made;
                    state.lent.insert(id);
                    (Ok(Some(Lease { id, bytes })), true)
                }
            };
            if more && self.prng.chance(self.weather.multishot_end) {
                more = false;
            }
            if !more {
                note!(self, "host {host} slot {} fd {} receive over: {:?}", key.index, fd.0, result.as_ref().err());
            }
            told.push(Completion { token, outcome: Outcome::Received { result, more } });
            if !more {
                return true;
            }
        }
        if cancelled {
            told.push(Completion { token, outcome: Outcome::Received { result: Err(Errno::CANCELED), more: false } });
        }
        cancelled
    }

    fn advance_send(&mut self, host: usize, index: usize, told: &mut Vec<Completion<Lease>>) -> bool {
        let op = &mut self.hosts[host].ops[index];
        let (fd, from, cancelled) = (Fd(op.fd as i32), op.from + op.taken, op.cancelled);
        let bytes = std::mem::take(&mut op.bytes);
        let stopped = cancelled && self.prng.chance(2);
        let result = if stopped { Ok(0) } else { self.write(fd, &bytes[from..]) };
        let op = &mut self.hosts[host].ops[index];
        op.taken += *result.as_ref().unwrap_or(&0);
        let (taken, whole) = (op.taken, op.from + op.taken == bytes.len());
        let short = taken > 0 && self.prng.chance(self.weather.short_send);
        let result = match result {
            Ok(_) if whole || short => Ok(taken),
            Ok(_) if !cancelled => {
                self.hosts[host].ops[index].bytes = bytes;
                return false;
            }
            Ok(_) | Err(_) if taken > 0 => Ok(taken),
            Ok(_) => Err(Errno::CANCELED),
            Err(errno) => Err(errno),
        };
        let op = &self.hosts[host].ops[index];
        let token = Token::new(Kind::Send, op.key);
        note!(self, "host {host} slot {} fd {} sent {result:?} of {}", op.key.index, fd.0, bytes.len() - op.from);
        told.push(Completion { token, outcome: Outcome::Sent { bytes, result } });
        true
    }

    fn advance_accept(&mut self, host: usize, index: usize, told: &mut Vec<Completion<Lease>>) -> bool {
        let op = &self.hosts[host].ops[index];
        let (fd, key, cancelled, once) = (op.fd, op.key, op.cancelled, op.once);
        let token = Token::new(Kind::Accept, key);
        if cancelled && self.prng.chance(2) {
            told.push(Completion { token, outcome: Outcome::Accepted { result: Err(Errno::CANCELED), more: false } });
            return true;
        }
        let address = self.sockets[fd].local;
        for _ in 0..1 + self.prng.below(3) {
            if self.prng.chance(self.weather.accept_failure) {
                let errno = [libc::ECONNABORTED, libc::EMFILE, libc::ENOBUFS][self.prng.below(3) as usize];
                told.push(Completion { token, outcome: Outcome::Accepted { result: Err(Errno(errno)), more: false } });
                return true;
            }
            let Some(new) = self.listeners.get_mut(&address).and_then(|listening| listening.backlog.pop_front()) else {
                break;
            };
            let more = !once && !self.prng.chance(self.weather.multishot_end);
            note!(self, "host {host} accepted fd {new} from {}", self.sockets[new].remote);
            told.push(Completion { token, outcome: Outcome::Accepted { result: Ok(Fd(new as i32)), more } });
            if !more {
                return true;
            }
        }
        if cancelled {
            told.push(Completion { token, outcome: Outcome::Accepted { result: Err(Errno::CANCELED), more: false } });
        }
        cancelled
    }

    // ---- time ----

    /// The next moment at which something happens by itself.
    pub fn next_event(&self) -> Option<Time> {
        let mut next: Option<Time> = None;
        let mut consider = |at: Time| {
            if at > self.now {
                next = Some(next.map_or(at, |other| other.min(at)));
            }
        };
        for socket in self.sockets.iter().filter(|socket| socket.open) {
            if let Some((at, _)) = socket.inbox.front() {
                consider(*at);
            }
            if let Some((at, _)) = socket.reset_at {
                consider(at);
            }
        }
        for host in self.hosts.iter().filter(|host| host.alive) {
            host.until.into_iter().for_each(&mut consider);
            host.ops.iter().for_each(|op| consider(op.ready_at));
        }
        next
    }
}
