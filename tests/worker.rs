//! A worker on a real ring, with a role that is busy: handshakes beside other work, more ClientHellos than there is time
//! for, and connections that rest.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use trunkline::base::counters::{Counters, DESCRIPTIONS};
use trunkline::base::time::Time;
use trunkline::base::wire::{Closed, LinkId, Opened, Role, Sink, Wire};
use trunkline::ring::{ListenerSettings, RingSettings, Uring, listen};
use trunkline::tls::{ServerOptions, ServerSettings};
use trunkline::worker::{Command, ListenerPlan, Shared, TlsSettings, Worker, WorkerSettings};

use crate::tls_support::{Authority, NAME};

#[allow(dead_code)] // shared with tests that use more of it
mod tls_support;

/// Ceiling for what should come soon: ends a test that has failed.
const SOON: Duration = Duration::from_secs(30);

/// Nobody waits for the echo of this.
const LATER: &[u8] = b"later";

/// Sends every byte back, and takes its time over it.
struct Slow {
    spin: Duration,
}

impl<W: Wire> Role<W> for Slow {
    fn opened(&mut self, _: Time, _: &mut W, _: LinkId, _: Opened) {}

    fn bytes(&mut self, _: Time, wire: &mut W, link: LinkId, bytes: &[u8]) {
        let begun = Instant::now();
        while begun.elapsed() < self.spin {
            std::hint::spin_loop();
        }
        let waits = bytes == LATER;
        if let Some(out) = if waits { wire.out_later(link) } else { wire.out(link) } {
            out.put(bytes);
        }
    }

    fn ended(&mut self, _: Time, wire: &mut W, link: LinkId) {
        wire.close(link);
    }

    fn room(&mut self, _: Time, _: &mut W, _: LinkId) {}

    fn closed(&mut self, _: Time, _: &mut W, _: LinkId, _: Closed) {}

    fn pass_ended(&mut self, _: Time, _: &mut W) {}

    fn next_deadline(&self) -> Option<Time> {
        None
    }

    fn due(&mut self, _: Time, _: &mut W) {}

    fn drain(&mut self, _: &mut W) {}

    fn is_drained(&self) -> bool {
        true
    }
}

/// A worker on a thread of its own, and what its clients need.
struct Node {
    address: SocketAddr,
    shared: Arc<Shared>,
    client: Arc<ClientConfig>,
    thread: JoinHandle<Counters>,
}

impl Node {
    fn start(patience: Duration, timeout: Duration) -> Node {
        let authority = Authority::new();
        let tls = ServerSettings::new(&ServerOptions { tunnels: true, ..authority.server_options() });
        let tls = TlsSettings { listeners: vec![Some(tls.expect("they are valid"))], gateways: Vec::new() };
        let listener = listen(&ListenerSettings {
            address: "127.0.0.1:0".parse().expect("an address"),
            backlog: 4096,
            user_timeout: SOON,
            fast_open: 0,
            fast_open_keys: &[],
        });
        let listener = listener.expect("loopback has ports");
        let settings = WorkerSettings {
            index: 0,
            listeners: vec![ListenerPlan { fd: listener.fd, proxy_protocol: false }],
            tls: Arc::new(tls),
            accepted_max: 10_000,
            handshake_timeout: timeout,
            handshake_share: 1,
            handshake_patience: patience,
            serves_clients: true,
            connect_timeout: SOON,
            idle_timeout: SOON,
            linger_timeout: Duration::from_millis(100),
        };
        let shared = Arc::new(Shared::new(1));
        let of_worker = shared.clone();
        let thread = thread::spawn(move || {
            let ring = Uring::new(&RingSettings::default(), Instant::now()).expect("this machine has io_uring");
            of_worker.register(0, ring.waker());
            let role = Slow { spin: Duration::from_millis(1) };
            let mut worker = Worker::new(ring, role, settings, of_worker);
            worker.run().expect("the ring works");
            worker.counters().clone()
        });
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.root_der.clone())).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3 is there")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Node { address: listener.address, shared, client: Arc::new(client), thread }
    }

    fn session(&self) -> ClientConnection {
        let name = ServerName::try_from(NAME).expect("a name");
        ClientConnection::new(self.client.clone(), name).expect("a client")
    }

    fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect_timeout(&self.address, SOON).expect("it listens");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        socket
    }

    /// A client that keeps the worker busy until told to stop, several requests ahead; returns how many were answered.
    fn keep_busy(&self, stop: Arc<AtomicBool>, answered: Arc<AtomicU64>) -> JoinHandle<()> {
        let mut stream = StreamOwned::new(self.session(), self.socket());
        stream.write_all(&[b'x'; 16]).expect("it is open");
        stream.read_exact(&mut [0]).expect("an answer");
        thread::spawn(move || {
            while !stop.load(Ordering::Acquire) {
                stream.write_all(b"x").expect("it is open");
                stream.read_exact(&mut [0]).expect("an answer");
                answered.fetch_add(1, Ordering::AcqRel);
            }
        })
    }

    /// Sockets on which a ClientHello was sent, and nothing more will be.
    fn storm(&self, count: usize) -> Vec<TcpStream> {
        let mut hello = Vec::new();
        self.session().write_tls(&mut hello).expect("memory");
        let each = |_| {
            let mut socket = self.socket();
            socket.write_all(&hello).expect("the socket buffer has room");
            socket
        };
        (0..count).map(each).collect()
    }

    /// A figure as last published, summed over labels.
    fn figure(&self, name: &str) -> u64 {
        let figures = DESCRIPTIONS.iter().zip(self.shared.published[0].read());
        figures.filter(|(described, _)| described.name == name).map(|(_, value)| value).sum()
    }

    fn until(&self, what: &str, wanted: impl Fn(&Node) -> bool) {
        let end = Instant::now() + SOON;
        while !wanted(self) {
            let figures = DESCRIPTIONS.iter().zip(self.shared.published[0].read()).filter(|(_, value)| *value > 0);
            let figures: Vec<_> = figures.map(|(described, value)| (described.name, described.labels, value)).collect();
            assert!(Instant::now() < end, "not within {} s: {what}: {figures:?}", SOON.as_secs());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(self) -> Counters {
        assert!(self.shared.send(0, Command::Stop).is_ok());
        self.thread.join().expect("the worker does not panic")
    }
}

/// A worker that is kept busy by one established connection.
struct Busy {
    node: Node,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Busy {
    fn start(patience: Duration, timeout: Duration) -> Busy {
        let node = Node::start(patience, timeout);
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = node.keep_busy(stop.clone(), answered.clone());
        Busy { node, stop, answered, thread }
    }

    fn end(self) -> Node {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the busy client was answered to the end");
        self.node
    }
}

#[test]
fn one_pass_is_one_submit() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 100;
    let node = Node::start(SOON, SOON);
    // One handshake after another: those that wait beside other work may take submits of their own.
    let streams: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut stream = StreamOwned::new(node.session(), node.socket());
            stream.write_all(b"x").expect("it is open");
            stream.read_exact(&mut [0]).expect("an answer");
            stream
        })
        .collect();
    let ask = |mut stream: StreamOwned<ClientConnection, TcpStream>| {
        thread::spawn(move || {
            for _ in 0..REQUESTS {
                stream.write_all(b"x").expect("it is open");
                stream.read_exact(&mut [0]).expect("an answer");
            }
            stream
        })
    };
    let asking: Vec<_> = streams.into_iter().map(ask).collect();
    let streams: Vec<_> = asking.into_iter().map(|thread| thread.join().expect("all are answered")).collect();
    let counters = node.stop();
    drop(streams);
    assert_eq!(counters.calls_enter, counters.passes);
    let requests = (CLIENTS * REQUESTS) as u64;
    assert!(counters.receives >= requests && counters.sends >= requests, "{counters:?}");
    // Whose connection it is was asked once for each.
    assert!(counters.calls_other >= CLIENTS as u64, "{counters:?}");
}

#[test]
fn what_nobody_waits_for_goes_with_what_follows_or_else_soon() {
    const ROUNDS: u64 = 50;
    let node = Node::start(SOON, SOON);
    let mut stream = StreamOwned::new(node.session(), node.socket());
    stream.write_all(b"x").expect("it is open");
    stream.read_exact(&mut [0]).expect("an answer");
    for _ in 0..ROUNDS {
        // Two records in one segment, so that both are there in the same pass.
        let mut records = Vec::new();
        for bytes in [LATER, b"now"] {
            stream.conn.writer().write_all(bytes).expect("memory");
            stream.conn.write_tls(&mut records).expect("memory");
        }
        stream.sock.write_all(&records).expect("it is open");
        let mut echo = [0; 8];
        stream.read_exact(&mut echo).expect("both come back");
        assert_eq!(&echo, b"laternow", "in the order in which they were put");
    }
    // And with nothing to go with.
    stream.write_all(LATER).expect("it is open");
    stream.read_exact(&mut [0; 5]).expect("it comes back all the same");
    let counters = node.stop();
    // One send of the handshake, one with tickets and the first answer, one a round, and one for the last. A machine that
    // stands still before the first request sees the tickets go by themselves.
    assert!((ROUNDS + 3..=ROUNDS + 4).contains(&counters.sends), "{counters:?}");
}

#[test]
fn a_storm_is_held_off_and_who_waited_too_long_is_dropped() {
    let busy = Busy::start(Duration::from_millis(200), Duration::from_secs(1));
    let before = busy.answered.load(Ordering::Acquire);
    let storm = busy.node.storm(400);
    busy.node.until("accepting stops", |node| node.figure("accepts_held_off") > 0);
    busy.node.until("every one of the storm is gone", |node| {
        node.figure("connections_accepted") == 401 && node.figure("connections_open") == 1
    });
    assert!(busy.answered.load(Ordering::Acquire) > before + 100, "the established connection was served meanwhile");
    let node = busy.end();
    // Once the storm is over, a handshake is answered at once.
    let mut stream = StreamOwned::new(node.session(), node.socket());
    stream.write_all(b"y").expect("it is open");
    stream.read_exact(&mut [0]).expect("an answer");
    drop(stream);
    drop(storm);
    let counters = node.stop();
    assert_eq!(counters.handshakes_late + counters.handshakes_timed_out, 400);
    assert!(counters.handshakes_late > 0, "{} waited too long", counters.handshakes_late);
    assert_eq!((counters.handshakes_full, counters.handshakes_waiting), (2, 0));
}

#[test]
fn held_connections_that_die_leave_nothing_behind() {
    let busy = Busy::start(SOON, SOON);
    let mut storm = busy.node.storm(100);
    busy.node.until("some are held", |node| node.figure("handshakes_waiting") > 0);
    for socket in storm.drain(..50) {
        let socket = socket2::Socket::from(socket);
        socket.set_linger(Some(Duration::ZERO)).expect("an option"); // a reset
    }
    drop(storm); // the end, in order
    busy.node.until("they are gone", |node| {
        node.figure("handshakes_waiting") == 0
            && node.figure("connections_accepted") == 101
            && node.figure("links_open") == 1
    });
    let counters = busy.end().stop();
    assert_eq!((counters.handshakes_full, counters.handshakes_late, counters.connections_open), (1, 0, 0));
}

#[test]
fn a_held_connection_has_no_longer_than_any_handshake() {
    let busy = Busy::start(SOON, Duration::from_millis(500));
    let storm = busy.node.storm(100);
    busy.node.until("all have had their time", |node| {
        node.figure("handshakes_timed_out") == 100 && node.figure("connections_open") == 1
    });
    drop(storm);
    assert_eq!(busy.end().stop().handshakes_late, 0);
}

#[test]
fn what_comes_behind_a_held_hello_is_bounded_and_read_later() {
    let busy = Busy::start(SOON, SOON);
    let mut storm = busy.node.storm(400);
    busy.node.until("many are held", |node| node.figure("handshakes_waiting") >= 30);
    // The newest go first, so the oldest that have no answer have the others before them.
    let is_held = |socket: &TcpStream| {
        socket.set_nonblocking(true).expect("an option");
        let held = socket.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        socket.set_nonblocking(false).expect("an option");
        held
    };
    let oldest = storm.iter().position(is_held).expect("many are held");
    let mut patient = storm.remove(oldest);
    let mut greedy = storm.remove(oldest);
    // Behind their hellos comes what no hello announced. What could be early data is kept, and nothing of it is looked at
    // before its turn.
    let record = [&[23, 3, 3, 0x40, 0][..], &[0; 0x4000]].concat();
    patient.write_all(&record).expect("it is held and not ended");
    // A full receive buffer is more than any client has to say before it is answered: it is closed and not kept. That may
    // be before the last byte has left.
    let _ = greedy.write_all(&[&record[..]; 4].concat());
    busy.node.until("the greedy one is closed", |node| node.figure("handshakes_failed") == 1);
    let end = greedy.read(&mut [0]);
    assert!(matches!(&end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "no answer");
    assert!(is_held(&patient), "the other has its place in the queue");
    // When its turn comes, what is behind it is read, and is no handshake.
    let node = busy.end();
    node.until("what came behind is read", |node| node.figure("handshakes_failed") == 2);
    drop((storm, patient, greedy));
    node.until("they are gone", |node| node.figure("links_open") == 0);
    let counters = node.stop();
    assert_eq!((counters.handshakes_timed_out, counters.handshakes_late, counters.connections_open), (0, 0, 0));
}

#[test]
fn an_idle_connection_rests_and_wakes_again() {
    let node = Node::start(SOON, SOON);
    let mut stream = StreamOwned::new(node.session(), node.socket());
    let begun = Instant::now();
    stream.write_all(b"x").expect("it is open");
    stream.read_exact(&mut [0]).expect("an answer");
    node.until("it rests", |node| node.figure("links_rested") == 1);
    assert!(begun.elapsed() > Duration::from_secs(4), "it has been idle for a while");
    stream.write_all(b"x").expect("it is open");
    stream.read_exact(&mut [0]).expect("an answer");
    drop(stream);
    assert_eq!(node.stop().tls_errors, 0);
}
