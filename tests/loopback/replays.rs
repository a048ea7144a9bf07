//! First flights that somebody recorded, shown again byte for byte: on every core, on another node, after a restart.
//! What they carry is forwarded at once where their ticket is good, so that every copy that gets through is counted at
//! the origin.

use std::io::{Read, Write};
use std::iter::once;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use rustls::ClientConfig;
use trunkline::mmtp::frame::Frame;
use trunkline::mmtp::{HeaderFlags, encode};

use crate::harness::{Metrics, Node, Plan, Site, address, keys, text, until};
use crate::origin::{Scripted, nginx};
use crate::peers::{Mmtp, Tls, block, connect, early_flight, hello, trust};
use crate::returning::{REQUEST, ask, counting, openssl};
use crate::support::Scratch;
use crate::tickets::Redis;

/// Copies of a flight that are shown to each address: enough to reach every worker.
const COPIES: usize = 16;

/// What a flight carries.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A request in a tunnel whose service allows early data.
    Tunnel,
    /// A replay-safe request by MMTP.
    Mmtp,
}

const KINDS: [Kind; 2] = [Kind::Tunnel, Kind::Mmtp];

impl Kind {
    /// A new user who asks once, and has two tickets then.
    fn user(self, site: &Site) -> Arc<ClientConfig> {
        let protocol = match self {
            Kind::Tunnel => "http/1.1",
            Kind::Mmtp => "mmtp/1",
        };
        let mut config = Arc::unwrap_or_clone(trust(&site.ca(), &[protocol]));
        config.enable_early_data = true;
        let config = Arc::new(config);
        let mut tls = Tls::connect(site.address, config.clone());
        match self {
            Kind::Tunnel => {
                ask(&mut tls);
                tls.close();
            }
            Kind::Mmtp => {
                let mut mmtp = Mmtp::over(tls);
                mmtp.get(1, "pay", "/");
                assert_eq!(mmtp.answer(1).0, 200);
            }
        }
        config
    }

    /// A first flight of that user's with one request.
    fn flight(self, user: &Arc<ClientConfig>) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Kind::Tunnel => bytes.extend_from_slice(REQUEST),
            Kind::Mmtp => {
                bytes = hello();
                let flags = HeaderFlags::END | HeaderFlags::REPLAY_SAFE;
                let block = block("pay", "GET", "/");
                encode::put_frame(Frame::Headers { stream: 1, flags, block: &block }, &mut bytes);
            }
        }
        early_flight(user.clone(), &bytes).1
    }
}

/// An origin that counts, and a site before it.
struct Counted {
    site: Site,
    requests: Arc<AtomicUsize>,
    _origin: Scripted,
    _own: Scratch,
}

impl Counted {
    /// With so many workers, and tickets in the process or at a server.
    fn start(workers: usize, redis: Option<&Redis>) -> Counted {
        let (origin, requests) = counting();
        let own = Scratch::new("replays");
        let listeners = redis.map_or(String::new(), |redis| shared(redis, &own));
        let listen = "tunnel = \"web\"\ntunnel_early_data = \"allow\"".to_owned();
        let site = Site::with(origin.address(), &Plan { workers, listen, listeners, ..Plan::default() });
        let counted = Counted { site, requests, _origin: origin, _own: own };
        if redis.is_some() {
            until_up(&counted.site.pop, 1);
        }
        counted
    }

    /// How many requests have come since there were so many, when nothing is under way any more.
    fn requests_since(&self, before: usize) -> usize {
        until_idle(&self.site.pop);
        // All that nodes sent on has come this far: streams and tunnels end at the gateway before they do at a POP.
        self.site.gateway.until_equal(&[("streams_open", 0)]);
        self.requests.load(Ordering::Acquire) - before
    }

    /// Shows flights ([`show`]), after which so many requests more must have come than `before`.
    fn shown<'a>(&self, to: &[SocketAddr], flights: impl Iterator<Item = &'a Vec<u8>>, before: usize, expected: usize) {
        let sockets: Vec<_> = flights.flat_map(|flight| show(to, flight)).collect();
        // Who leaves may take along what has not reached the origin.
        until("what is good is forwarded", || {
            (self.requests.load(Ordering::Acquire) - before >= expected).then_some(())
        });
        drop(sockets);
        assert_eq!(self.requests_since(before), expected);
    }

    fn requests(&self) -> usize {
        self.requests_since(0)
    }

    /// Ends the POP and starts it again.
    fn restart(&mut self) {
        self.site.pop.signal("TERM");
        assert!(self.site.pop.ended().success());
        self.site.pop.restart();
        self.site.pop.until("the trunks are up", |metrics| metrics.get("trunks_ready") == 2);
    }
}

/// The section of a configuration that shares tickets at a server, with new keys.
fn shared(redis: &Redis, own: &Scratch) -> String {
    keys(own, &["new", "--kind", "tickets", "keys.toml"]);
    let file = own.path().join("keys.toml").display().to_string();
    format!("[tickets]\nstore = \"redis://{}\"\nkeys = \"{file}\"\n", redis.address)
}

/// Waits until a node has had a connection to the server of tickets so many times.
fn until_up(node: &Node, times: usize) {
    until("the server is up", || (node.log().matches("ticket server up").count() >= times).then_some(()));
}

/// Waits until no client of a node is left, nor anything of one. Its links to the gateway and to the server of tickets are.
fn until_idle(node: &Node) {
    let gone = ["connections_open", "tunnels_open", "streams_open", "streams_waiting", "streams_held"];
    node.until_equal(&gone.map(|name| (name, 0)));
}

/// Another node, of the same configuration but for its name and address.
fn second(site: &Site) -> (Node, SocketAddr) {
    let listen = address();
    let config = text(&site.scratch.read("pop.toml"));
    let (config, _) = config.split_once("[admin]").expect("there is one");
    let config = config.replace("pop-1", "pop-2").replace(&site.address.to_string(), &listen.to_string());
    let node = Node::start("pop", &site.scratch, "pop-2", &config);
    node.until("the trunks are up", |metrics| metrics.get("trunks_ready") == 2);
    (node, listen)
}

/// Shows [`COPIES`] copies of a flight to each of these addresses, all at about the same time. Whoever recorded it cannot
/// go on with what it is answered, and holds the line.
fn show(addresses: &[SocketAddr], flight: &[u8]) -> Vec<TcpStream> {
    let to_all = || addresses.iter().cycle().take(COPIES * addresses.len());
    let sockets: Vec<_> = to_all().map(|address| connect(*address)).collect();
    sockets.iter().for_each(|mut socket| socket.write_all(flight).expect("it is open"));
    for mut socket in &sockets {
        assert_eq!(socket.read(&mut [0; 1]).expect("a ServerHello"), 1);
    }
    sockets
}

#[test]
fn a_flight_shown_to_every_core_is_forwarded_once() {
    let counted = Counted::start(2, None);
    let site = &counted.site;
    for (index, kind) in KINDS.into_iter().enumerate() {
        let flight = kind.flight(&kind.user(site));
        let before = (counted.requests(), site.pop.metrics());
        // All at the same time, and all when it has been used.
        for _ in 0..2 {
            counted.shown(&[site.address], once(&flight), before.0, 1);
        }
        let accepted = |metrics: &Metrics| metrics.per_worker("connections_accepted_total");
        let after = site.pop.metrics();
        let mut shares = accepted(&before.1).into_iter().zip(accepted(&after)).map(|(before, after)| after - before);
        assert!(shares.all(|share| share > 0), "every worker was shown some");
        let copies = 2 * COPIES * (index + 1);
        let figures = ["tickets_taken_total", "tickets_missed_total{reason=\"used\"}"].map(|name| after.get(name));
        assert_eq!(figures, [index as u64 + 1, (copies - index - 1) as u64], "{kind:?}");
    }
}

#[test]
fn a_flight_shown_to_two_nodes_at_once_is_forwarded_once() {
    const ROUNDS: usize = 3;
    let redis = Redis::start(address());
    let counted = Counted::start(1, Some(&redis));
    let (other, other_address) = second(&counted.site);
    until_up(&other, 1);
    let (nodes, both) = ([&counted.site.pop, &other], [counted.site.address, other_address]);
    let hits = || nodes.map(|node| node.metrics().get("ticket_lookups_total{result=\"hit\"}")).iter().sum::<u64>();
    for (index, kind) in KINDS.into_iter().enumerate() {
        for round in 1..=ROUNDS {
            let tickets = redis.tickets();
            let flight = kind.flight(&kind.user(&counted.site));
            until("they are at the server", || (redis.tickets() == tickets + 2).then_some(()));
            let before = counted.requests();
            // All at the same time, and all when it has been used.
            for _ in 0..2 {
                counted.shown(&both, once(&flight), before, 1);
                until_idle(&other);
                assert_eq!(counted.requests_since(before), 1, "{kind:?}");
                assert_eq!(hits(), (index * ROUNDS + round) as u64);
            }
        }
    }
    assert_eq!(nodes.map(|node| node.metrics().get("tickets_taken_total")), [0, 0], "all were at the server");
}

#[test]
fn of_connections_that_race_for_one_ticket_on_two_nodes_exactly_one_resumes() {
    const RACERS: usize = 6;
    let redis = Redis::start(address());
    let (origin, own) = (nginx(&[]), Scratch::new("race"));
    let listeners = shared(&redis, &own);
    let site = Site::with(origin.address(), &Plan { listeners, ..Plan::default() });
    let (other, other_address) = second(&site);
    until_up(&site.pop, 1);
    until_up(&other, 1);
    let session = own.path().join("session.pem").display().to_string();
    assert!(!openssl(&site, site.address, "localhost", &["-sess_out", &session]));
    until("its tickets are at the server", || (redis.tickets() == 2).then_some(()));
    let barrier = Barrier::new(RACERS);
    let resumed = thread::scope(|scope| {
        let race = |address: SocketAddr| {
            barrier.wait();
            openssl(&site, address, "localhost", &["-sess_in", &session])
        };
        let addresses = [site.address, other_address].into_iter().cycle().take(RACERS);
        let racers: Vec<_> = addresses.map(|address| scope.spawn(move || race(address))).collect();
        racers.into_iter().map(|racer| racer.join().expect("each is answered")).filter(|is| *is).count()
    });
    assert_eq!(resumed, 1);
}

#[test]
fn a_flight_shown_after_a_restart_is_not_forwarded_again() {
    let mut counted = Counted::start(1, None);
    let flights = KINDS.map(|kind| {
        let user = kind.user(&counted.site);
        [kind.flight(&user), kind.flight(&user)]
    });
    let (before, to) = (counted.requests(), [counted.site.address]);
    let (used, unused) = (flights.each_ref().map(|[used, _]| used), flights.each_ref().map(|[_, unused]| unused));
    counted.shown(&to, used.into_iter(), before, 2);
    counted.restart();
    // The tickets went with the process, used or not.
    counted.shown(&to, used.into_iter().chain(unused), before, 2);
    let copies = 4 * COPIES as u64;
    assert_eq!(counted.site.pop.metrics().get("tickets_missed_total{reason=\"unknown\"}"), copies);
}

#[test]
fn a_flight_shown_after_a_restart_is_forwarded_once_if_its_ticket_is_still_at_the_server() {
    let redis = Redis::start(address());
    let mut counted = Counted::start(1, Some(&redis));
    let flights = KINDS.map(|kind| {
        let user = kind.user(&counted.site);
        [kind.flight(&user), kind.flight(&user)]
    });
    let (before, to) = (counted.requests(), [counted.site.address]);
    let (used, unused) = (flights.each_ref().map(|[used, _]| used), flights.each_ref().map(|[_, unused]| unused));
    counted.shown(&to, used.into_iter(), before, 2);
    counted.restart();
    until_up(&counted.site.pop, 2);
    // Those that were used are gone, those that were not work once.
    counted.shown(&to, used.into_iter(), before, 2);
    counted.shown(&to, unused.into_iter(), before, 4);
}

#[test]
fn a_ticket_for_another_name_or_listener_is_spent_on_a_full_handshake() {
    let (origin, requests) = counting();
    let second = address();
    let listeners = format!(
        "[[listen]]\naddress = \"{second}\"\ntunnel = \"web\"\ntunnel_early_data = \"allow\"\nclient_auth = \"optional\"\n\
         certificate = \"certs/pop.pem\"\nkey = \"certs/pop.key\"\nclient_ca = \"certs/ca.pem\"\n"
    );
    let site = Site::with(origin.address(), &Plan { listeners, ..Plan::default() });
    let user = Kind::Tunnel.user(&site);
    // One name and one certificate, but this listener asks for the client's.
    let (tls, flight) = Tls::early(second, user, REQUEST);
    assert!(!tls.is_resumed() && !tls.is_early_accepted());
    tls.close();
    show(&[site.address], &flight);
    let other_name = "tickets_missed_total{reason=\"other_name\"}";
    let used = "tickets_missed_total{reason=\"used\"}";
    site.pop.until_equal(&[(other_name, 1), (used, COPIES as u64)]);
    site.until_quiet();
    assert_eq!(requests.load(Ordering::Acquire), 1, "the first visit's");

    let nginx = nginx(&[]);
    let site = Site::start(nginx.address());
    let session = site.scratch.path().join("session.pem").display().to_string();
    assert!(!openssl(&site, site.address, "localhost", &["-sess_out", &session]));
    assert!(!openssl(&site, site.address, "other.example", &["-sess_in", &session]));
    assert!(!openssl(&site, site.address, "localhost", &["-sess_in", &session]));
    let metrics = site.pop.metrics();
    assert_eq!([other_name, used, "tickets_taken_total"].map(|name| metrics.get(name)), [1, 1, 0]);
}
