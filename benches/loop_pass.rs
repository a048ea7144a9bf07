//! Passes of a POP's worker without a kernel: what a small request costs in code of ours, TLS included and left out.
//!
//! A round is a request by each client at once, through two trunks to a gateway that answers all of them at once, and back:
//! three passes, which is as good as coalescing gets. Timed are the passes alone: reap, feed, drain, and what the worker
//! asks of a ring that does nothing. The figure is the time of a round; `elem/s` is requests.
//!
//! Floor, for each request (about 70 bytes that way, 320 back, each with 10 more of frames):
//! - plaintext: every byte moves once, from the receive buffer into the send buffer of the other side: 410 bytes, which is
//!   `floor_copy`; and every byte of two header blocks is looked at once.
//! - TLS: the cipher goes over every byte twice, opening it and sealing it: on the client's side a record each way
//!   (`floor_aes_128_gcm/80` and `/330`), on the trunk's a share of a few records that are full (the same bytes again, but
//!   without what a record costs by itself). So twice the floor of the client's side is too much, and once too little.
//!   With 0.18 µs a record and 0.25 ns a byte (see `record_layer`): 2 * 0.18 µs + 410 * 0.25 ns = 0.46 µs for the client's
//!   side, and 410 * 0.25 ns = 0.10 µs for the trunk's; 0.56 µs in all, plus the trunk's records shared by all requests.

#[allow(dead_code)] // shared with tests that use more of it
#[path = "../tests/tls_support/mod.rs"]
mod tls_support;

mod fake_ring;
#[allow(dead_code)] // each bench takes the floors it has
mod floor;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fake_ring::FakeRing;
use tls_support::{Authority, NAME, feed, seal};
use trunkline::backbone::PoolSettings;
use trunkline::base::prng::Prng;
use trunkline::base::time::Time;
use trunkline::mmtp::{
    Agent, Connection, Event, HeaderFlags, HeaderWriter, Known, PeerHello, Settings, Side, StreamId,
};
use trunkline::relay::{Relay, RelaySettings};
use trunkline::ring::Fd;
use trunkline::tls::{ClientSettings, PLAINTEXT_BYTES_MAX, ServerSettings, Session};
use trunkline::worker::{ListenerPlan, Shared, TlsSettings, Worker, WorkerSettings};

const BODY_BYTES: usize = 281;
const TRUNKS: usize = 2;
const LONG: Duration = Duration::from_secs(3600);

/// The other end of a connection: a client, or a gateway's end of a trunk.
struct Far {
    session: Option<Session>,
    connection: Connection,
    has_started: bool,
    /// What came and is no whole record yet.
    incoming: Vec<u8>,
    /// What goes out: sealed, and to be sealed.
    sealed: Vec<u8>,
    plain: Vec<u8>,
    /// A gateway's: requests to be answered.
    asked: Vec<StreamId>,
    /// A client's: whole answers.
    answered: usize,
}

impl Far {
    fn new(session: Option<Session>, settings: &Settings, sealed: Vec<u8>) -> Far {
        Far {
            session,
            connection: Connection::new(settings, Time::ZERO),
            has_started: false,
            incoming: Vec::new(),
            sealed,
            plain: Vec::new(),
            asked: Vec::new(),
            answered: 0,
        }
    }

    fn peer(&self) -> Option<PeerHello> {
        self.connection.peer()
    }

    /// Takes what has come.
    fn hear(&mut self, now: Time) {
        let data = match &mut self.session {
            None => std::mem::take(&mut self.incoming),
            Some(session) => {
                let said = feed(session, &mut self.incoming, &mut self.sealed);
                assert_eq!((said.error, said.closed), (None, false));
                said.data
            }
        };
        let is_ready = self.session.as_ref().is_none_or(Session::is_established);
        if !is_ready {
            return;
        }
        if !std::mem::replace(&mut self.has_started, true) {
            self.connection.start(&mut self.plain);
        }
        let mut input = &data[..];
        while let Some(event) = self.connection.receive(now, &mut input).expect("the POP keeps the protocol") {
            match event {
                Event::Headers { stream, opened: true, .. } => self.asked.push(stream),
                Event::Data { stream, bytes, end, .. } => {
                    let count = bytes.len();
                    self.answered += usize::from(end);
                    self.connection.consumed(now, stream, count, &mut self.plain);
                }
                Event::Reset { code, .. } => panic!("a request failed with {code:?}"),
                _ => {}
            }
        }
        self.connection.drain(&mut self.plain, |_, _, _| {});
    }

    fn ask(&mut self, block: &[u8]) {
        let stream = self.connection.open(0, 3).expect("one at a time");
        self.connection.send_headers(stream, block, HeaderFlags::END, &mut self.plain).expect("a right request");
    }

    fn answer(&mut self, block: &[u8], body: &[u8]) {
        for stream in std::mem::take(&mut self.asked) {
            self.connection.send_headers(stream, block, HeaderFlags::NONE, &mut self.plain).expect("it was asked");
            self.connection.send_data(stream, body, true, &mut self.plain).expect("it was asked");
        }
    }

    /// What goes out now.
    fn take_out(&mut self) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.sealed);
        let plain = std::mem::take(&mut self.plain);
        let Some(session) = self.session.as_mut() else { return plain };
        for part in plain.chunks(PLAINTEXT_BYTES_MAX) {
            seal(session, part, &mut out).expect("it is established");
            if session.key_update_due() {
                session.put_key_update(&mut out).expect("it is established");
            }
        }
        out
    }
}

/// A POP's worker and everybody it talks to.
struct Site {
    worker: Worker<FakeRing, Relay>,
    far: HashMap<i32, Far>,
    clients: Vec<i32>,
    gateway: Option<ServerSettings>,
    request: Vec<u8>,
    answer: Vec<u8>,
    body: Vec<u8>,
    now: Time,
}

impl Site {
    /// Trunks and clients are up.
    fn new(clients: usize, has_tls: bool) -> Site {
        let authority = Authority::new();
        let server = || ServerSettings::new(&authority.server_options()).expect("the options are good");
        let client = ClientSettings::new(&authority.client_options()).expect("the options are good");
        let tls = TlsSettings {
            listeners: vec![has_tls.then(server)],
            gateways: vec![has_tls.then(|| (client.clone(), NAME.to_owned()))],
        };
        let worker = Worker::new(
            FakeRing::default(),
            Relay::new(relay_settings(), Prng::new(7)),
            worker_settings(tls),
            Arc::new(Shared::new(1)),
        );
        let (mut request, mut answer) = (Vec::new(), Vec::new());
        let mut writer = HeaderWriter::new(&mut request);
        writer.known(Known::Service, b"pay").expect("a label");
        writer.known(Known::Path, b"/v2/orders/81724/payments?currency=EUR").expect("a path");
        let mut writer = HeaderWriter::new(&mut answer);
        writer.number(Known::Status, 200).expect("a status");
        writer.known(Known::ContentType, b"application/json").expect("a text");
        let (far, body) = (HashMap::new(), vec![7; BODY_BYTES]);
        let gateway = has_tls.then(server);
        let mut site = Site { worker, far, clients: Vec::new(), gateway, request, answer, body, now: Time::ZERO };
        site.settle();
        assert_eq!(site.far.values().filter(|far| far.peer().is_some()).count(), TRUNKS);
        for _ in 0..clients {
            let (mut sealed, mut session) = (Vec::new(), None);
            if has_tls {
                session = Some(Session::client(&client, NAME, None, &mut sealed).expect("a name"));
            }
            let fd = site.worker.ring().connect_client().0;
            site.worker.pass().expect("a fake ring does not break"); // accepted, and receiving
            site.far.insert(fd, Far::new(session, &Settings::new(Side::Initiator, Agent::Terminal), sealed));
            site.clients.push(fd);
        }
        site.settle();
        assert!(site.far.values().all(|far| far.peer().is_some()), "everybody has been greeted");
        site
    }

    /// Passes until nothing moves. Gives the time they took.
    fn settle(&mut self) -> Duration {
        let mut taken = Duration::ZERO;
        loop {
            let begun = Instant::now();
            self.worker.pass().expect("a fake ring does not break");
            taken += begun.elapsed();
            self.carry();
            if self.worker.ring().is_idle() {
                return taken;
            }
        }
    }

    /// Brings what was sent to the other ends, and what they say to that back.
    fn carry(&mut self) {
        self.now = self.now + Duration::from_micros(1);
        for Fd(fd) in self.worker.ring().take_dialled() {
            let session = self.gateway.as_ref().map(Session::server);
            self.far.insert(fd, Far::new(session, &Settings::shared(Side::Acceptor, Agent::Gateway), Vec::new()));
        }
        let far = &mut self.far;
        self.worker.ring().fetch_sent(|Fd(fd), bytes| {
            far.get_mut(&fd).expect("whoever is sent to is there").incoming.extend_from_slice(bytes);
        });
        for (&fd, far) in &mut self.far {
            if !self.worker.ring().is_receiving(Fd(fd)) {
                continue;
            }
            far.hear(self.now);
            far.answer(&self.answer, &self.body);
            let out = far.take_out();
            if !out.is_empty() {
                self.worker.ring().deliver(Fd(fd), &out);
            }
        }
    }

    /// A request of every client. Gives the time the worker took.
    fn round(&mut self) -> Duration {
        for fd in &self.clients {
            let far = self.far.get_mut(fd).expect("it is there");
            far.answered = 0;
            far.ask(&self.request);
            let out = far.take_out();
            self.worker.ring().deliver(Fd(*fd), &out);
        }
        let taken = self.settle();
        assert!(self.clients.iter().all(|fd| self.far[fd].answered == 1), "everybody was answered");
        taken
    }
}

fn relay_settings() -> RelaySettings {
    RelaySettings {
        pop_id: "pop-1".to_owned(),
        tunnels: vec![None],
        mmtp: Settings::new(Side::Acceptor, Agent::Pop),
        pool: PoolSettings {
            gateways: vec![SocketAddr::from(([192, 0, 2, 2], 7443))],
            trunks_per_gateway: TRUNKS,
            mmtp: Settings::shared(Side::Initiator, Agent::Pop),
            heartbeat_interval: LONG,
            backoff_min: LONG,
            backoff_max: LONG,
        },
        wait_for_trunk: LONG,
        streams_max: 100_000,
        goaway_wait: LONG,
    }
}

fn worker_settings(tls: TlsSettings) -> WorkerSettings {
    WorkerSettings {
        index: 0,
        listeners: vec![ListenerPlan { fd: Fd(-1), proxy_protocol: false }],
        tls: Arc::new(tls),
        accepted_max: 100_000,
        handshake_timeout: LONG,
        handshake_share: 90,
        handshake_patience: LONG,
        serves_clients: true,
        connect_timeout: LONG,
        idle_timeout: LONG,
        linger_timeout: LONG,
    }
}

fn loop_pass(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("loop_pass");
    for (name, has_tls) in [("plaintext", false), ("tls", true)] {
        for clients in [1, 16, 64, 256] {
            group.throughput(Throughput::Elements(clients as u64));
            group.bench_function(BenchmarkId::new(name, clients), |bencher| {
                let mut site = Site::new(clients, has_tls);
                bencher.iter_custom(|rounds| (0..rounds).map(|_| site.round()).sum());
            });
        }
    }
    for bytes in [80, 330] {
        floor::aes_gcm(&mut group, bytes);
    }
    floor::copy(&mut group, 410);
    group.finish();
}

criterion_group!(benches, loop_pass);
criterion_main!(benches);
