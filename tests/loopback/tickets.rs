//! Tickets that nodes share through a server: Debian's redis-server, and a scripted one that lies. POPs here have no
//! gateway: resumption does not need one.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use crate::harness::{Node, address, certificates, cores, keys, until};
use crate::origin::Scripted;
use crate::peers::{connect, hello, trust};
use crate::support::{Process, Scratch, wait_until_accepting};

/// What a look-up that fails may add to a handshake, with all that a loaded machine adds.
const DELAY_MAX: Duration = Duration::from_secs(2);

/// `tickets.lookup_timeout`, which nobody sets here.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(25);

/// A redis-server of the test's own.
pub struct Redis {
    process: Process,
    pub address: SocketAddr,
}

impl Redis {
    pub fn start(address: SocketAddr) -> Redis {
        let mut command = Command::new("/usr/bin/redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"]);
        let mut process = Process::start(command.stdout(Stdio::null()));
        assert!(wait_until_accepting(address, &mut process), "redis-server starts");
        Redis { process, address }
    }

    /// Tickets it keeps.
    pub fn tickets(&self) -> usize {
        let mut stream = connect(self.address);
        stream.write_all(b"DBSIZE\r\n").expect("it is open");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("it answers");
        line.trim_start_matches(':').trim_end().parse().expect("a number")
    }
}

/// POPs with one certificate, and a client that keeps its tickets.
struct Pops {
    nodes: Vec<(Node, SocketAddr)>,
    client: Arc<ClientConfig>,
    scratch: Scratch,
}

/// How a handshake went.
struct Visit {
    is_resumed: bool,
    took: Duration,
    /// The client's first flight.
    hello: Vec<u8>,
}

impl Pops {
    /// So many, that share tickets at `server`. Every node has a file of keys of its own, with the same keys.
    fn start(count: usize, server: &str) -> Pops {
        let scratch = Scratch::new("tickets");
        certificates(scratch.path(), "certs");
        keys(&scratch, &["new", "--kind", "tickets", "keys-0.toml"]);
        let first = scratch.read("keys-0.toml");
        let start = |index: usize| {
            scratch.write(&format!("keys-{index}.toml"), &first);
            let listen = address();
            let config = format!(
                "id = \"pop-{index}\"\ncores = {:?}\n[tickets]\nstore = \"redis://{server}\"\n\
                 keys = \"keys-{index}.toml\"\n[[listen]]\naddress = \"{listen}\"\ncertificate = \"certs/pop.pem\"\n\
                 key = \"certs/pop.key\"\n[backbone]\nca = \"certs/ca.pem\"\ncertificate = \"certs/pop.pem\"\n\
                 key = \"certs/pop.key\"\n[[backbone.gateway]]\nname = \"none\"\naddress = \"{}\"",
                cores(1),
                address()
            );
            (Node::start("pop", &scratch, &format!("pop-{index}"), &config), listen)
        };
        let nodes = (0..count).map(start).collect();
        let client = trust(&scratch.path().join("certs/ca.pem"), &["mmtp/1"]);
        Pops { nodes, client, scratch }
    }

    /// A visit that must succeed, with the last ticket if there is one. Its tickets have arrived when it returns.
    fn visit(&self, node: usize) -> Visit {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut session = ClientConnection::new(self.client.clone(), name).expect("a client");
        let mut socket = connect(self.nodes[node].1);
        let (start, mut hello_sent) = (Instant::now(), Vec::new());
        session.write_tls(&mut hello_sent).expect("memory takes it");
        socket.write_all(&hello_sent).expect("it is open");
        while session.is_handshaking() {
            session.complete_io(&mut socket).expect("no handshake fails");
        }
        let took = start.elapsed();
        session.writer().write_all(&hello()).expect("memory takes it");
        let mut stream = rustls::Stream::new(&mut session, &mut socket);
        assert!(stream.read(&mut [0; 100]).expect("the POP says HELLO, its tickets come before it") > 0);
        stream.conn.send_close_notify();
        let _ = stream.flush();
        let is_resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        Visit { is_resumed, took, hello: hello_sent }
    }

    /// A ClientHello with the client's ticket, that was not sent.
    fn unused(&self) -> Vec<u8> {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut session = ClientConnection::new(self.client.clone(), name).expect("a client");
        let mut hello = Vec::new();
        session.write_tls(&mut hello).expect("memory takes it");
        hello
    }

    /// Sends a recorded ClientHello. It is answered.
    fn show(&self, node: usize, hello: &[u8]) {
        let mut socket = connect(self.nodes[node].1);
        socket.write_all(hello).expect("it is open");
        assert_eq!(socket.read(&mut [0; 1]).expect("a ServerHello"), 1);
    }

    /// A client without tickets.
    fn forget(&mut self) {
        self.client = trust(&self.scratch.path().join("certs/ca.pem"), &["mmtp/1"]);
    }

    /// Waits until a node has had a connection to the server so many times.
    fn until_up(&self, node: usize, times: usize) {
        let count = || self.nodes[node].0.log().matches("ticket server up").count();
        until("the server is up", || (count() >= times).then_some(()));
    }

    fn figure(&self, node: usize, name: &str) -> u64 {
        self.nodes[node].0.metrics().get(name)
    }

    fn lookups(&self, node: usize, result: &str) -> u64 {
        self.figure(node, &format!("ticket_lookups_total{{result=\"{result}\"}}"))
    }

    /// Makes visits until the server takes a node's tickets; the client has one then.
    fn until_shared(&mut self, node: usize) {
        let before = self.figure(node, "tickets_shared_total");
        until("tickets are shared", || {
            self.forget();
            self.visit(node);
            (self.figure(node, "tickets_shared_total") > before).then_some(())
        });
    }
}

#[test]
fn a_ticket_of_one_node_resumes_at_another_and_works_once() {
    let redis = Redis::start(address());
    let mut pops = Pops::start(2, &redis.address.to_string());
    pops.until_shared(1);
    pops.until_shared(0);
    until("the server has them", || (redis.tickets() >= 4).then_some(()));
    let tickets = redis.tickets();

    let visit = pops.visit(1);
    assert!(visit.is_resumed, "{}", pops.nodes[1].0.log());
    assert_eq!(pops.lookups(1, "hit"), 1);
    // One went, and a resumption gives one.
    until("the next one is there", || (redis.tickets() == tickets).then_some(()));
    assert!(pops.visit(0).is_resumed);
    assert!(pops.visit(1).is_resumed);

    // The same ClientHello again, at either node: its ticket is gone. Where it was used, it is known to be.
    for (node, figure) in [(0, "ticket_lookups_total{result=\"miss\"}"), (1, "tickets_missed_total{reason=\"used\"}")] {
        pops.show(node, &visit.hello);
        pops.nodes[node].0.until_equal(&[(figure, 1)]);
    }
    for node in [0, 1] {
        assert_eq!((pops.lookups(node, "bad"), pops.lookups(node, "late")), (0, 0));
        assert_eq!(pops.figure(node, "tickets_taken_total"), 0, "nothing was kept here");
    }
}

#[test]
fn a_password_and_a_database_are_used() {
    let redis = Redis::start(address());
    let mut stream = connect(redis.address);
    let rule = "ACL SETUSER pop on >geh%eim ~trunkline:ticket:* +set +getdel +ping +select\r\n";
    stream.write_all(rule.as_bytes()).expect("it is open");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("it answers");
    assert_eq!(&answer, b"+OK\r\n");
    let mut pops = Pops::start(1, &format!("pop:geh%25eim@{}/3", redis.address));
    pops.until_shared(0);
    assert!(pops.visit(0).is_resumed);
    assert_eq!(redis.tickets(), 0, "they are in database 3");
    stream.write_all(b"ACL SETUSER pop off\r\nCLIENT KILL USER pop\r\n").expect("it is open");
    until("the server refuses us", || pops.nodes[0].0.log().contains("WRONGPASS").then_some(()));
    assert!(!pops.nodes[0].0.log().contains("geh"));
    pops.visit(0);
}

#[test]
fn a_server_that_stops_costs_a_moment_and_no_handshake() {
    let mut redis = Redis::start(address());
    let mut pops = Pops::start(1, &redis.address.to_string());
    // On a loaded machine a single handshake may take any time.
    let is_short = (0..5).any(|_| {
        pops.until_shared(0);
        redis.process.signal("STOP");
        let visit = pops.visit(0);
        assert!(!visit.is_resumed && visit.took >= LOOKUP_TIMEOUT, "{:?}", visit.took);
        redis.process.signal("CONT");
        visit.took < LOOKUP_TIMEOUT * 4
    });
    assert!(is_short && pops.lookups(0, "late") >= 1, "{}", pops.nodes[0].0.figures());
    pops.until_shared(0);
    redis.process.signal("STOP");
    pops.visit(0);
    // It is given up, and tickets stay here meanwhile.
    pops.nodes[0].0.until("it is given up", |metrics| metrics.get("ticket_server_lost_total") >= 1);
    pops.forget();
    assert!(!pops.visit(0).is_resumed);
    assert!(pops.visit(0).is_resumed);
    assert_eq!(pops.figure(0, "tickets_taken_total"), 1);
    redis.process.signal("CONT");
    pops.until_shared(0);
    assert!(pops.visit(0).is_resumed);

    // A server that ends and is started again.
    let address = redis.address;
    redis.process.kill();
    assert!(!pops.visit(0).is_resumed);
    assert!(pops.visit(0).is_resumed, "by the store of the process");
    let _redis = Redis::start(address);
    pops.until_shared(0);
    assert!(pops.visit(0).is_resumed);
    // A server that goes does not keep the process.
    pops.nodes[0].0.signal("TERM");
    assert!(pops.nodes[0].0.ended().success(), "{}", pops.nodes[0].0.log());
}

#[test]
fn keys_are_rotated_node_by_node() {
    let redis = Redis::start(address());
    let mut pops = Pops::start(2, &redis.address.to_string());
    let rotate = |pops: &Pops, node: usize, is_told: bool| {
        let reread = || pops.nodes[node].0.log().matches("certificates reread").count();
        let before = reread();
        keys(&pops.scratch, &["rotate", &format!("keys-{node}.toml")]);
        if is_told {
            pops.nodes[node].0.signal("HUP");
        }
        until("the keys are read again", || (reread() > before).then_some(()));
    };
    pops.until_shared(1);
    pops.until_shared(0);
    rotate(&pops, 0, true);
    // Sealed before the rotation, opened after it; and the other way round.
    assert!(pops.visit(0).is_resumed);
    assert!(pops.visit(1).is_resumed);
    assert!(pops.visit(0).is_resumed);
    assert_eq!(pops.figure(0, "ticket_server_lost_total"), 0, "new keys need no new connection");
    // Two rotations ahead is too far: no ticket is good, and no handshake fails.
    rotate(&pops, 0, false);
    pops.until_shared(0);
    assert!(!pops.visit(1).is_resumed);
    assert_eq!(pops.lookups(1, "bad"), 1);
}

#[test]
fn a_server_that_comes_back_empty_costs_full_handshakes_until_it_has_tickets_again() {
    let mut redis = Redis::start(address());
    let mut pops = Pops::start(1, &redis.address.to_string());
    pops.until_shared(0);
    redis.process.kill();
    let redis = Redis::start(redis.address);
    pops.until_up(0, 2);
    assert_eq!(redis.tickets(), 0);
    assert!(!pops.visit(0).is_resumed, "the ticket of before is gone");
    assert_eq!((pops.lookups(0, "miss"), pops.lookups(0, "hit")), (1, 0));
    assert!(pops.visit(0).is_resumed);
    assert_eq!(pops.figure(0, "handshakes_failed_total"), 0);
}

/// A ClientHello whose ticket comes behind so many others that nobody issued.
fn crowded(hello: &[u8], others: usize) -> Vec<u8> {
    const IDENTITY_BYTES: usize = 2 + 32 + 4;
    let length = |bytes: usize| u16::try_from(bytes).expect("it fits").to_be_bytes();
    let mut message = hello[5..].to_vec();
    // The last extension: a list with one identity, and one with a binder as long as the suite's hash.
    let at = [32, 48].map(|binder| message.len() - (4 + 2 + IDENTITY_BYTES + 2 + 1 + binder));
    let at = at.into_iter().find(|at| message[*at..].starts_with(&[0, 41])).expect("a ticket is shown");
    let shown = message[at + 6..][..IDENTITY_BYTES].to_vec();
    message.truncate(at);
    let mut identities: Vec<u8> =
        (0..others).flat_map(|other| [&[0, 32][..], &[7; 30], &length(other), &[0; 4]].concat()).collect();
    identities.extend_from_slice(&shown);
    let binders = [&[32][..], &[9; 32]].concat().repeat(others + 1);
    message.extend_from_slice(&[0, 41]);
    message.extend_from_slice(&length(identities.len() + binders.len() + 4));
    for list in [identities, binders] {
        message.extend_from_slice(&length(list.len()));
        message.extend_from_slice(&list);
    }
    let suites_at = 4 + 2 + 32 + 1 + usize::from(message[38]);
    let compression_at = suites_at + 2 + usize::from(u16::from_be_bytes([message[suites_at], message[suites_at + 1]]));
    let extensions_at = compression_at + 1 + usize::from(message[compression_at]);
    let extensions_bytes = length(message.len() - extensions_at - 2);
    message[extensions_at..][..2].copy_from_slice(&extensions_bytes);
    let body_bytes = length(message.len() - 4);
    message[1..4].copy_from_slice(&[0, body_bytes[0], body_bytes[1]]);
    let record = |piece: &[u8]| [&[22, 3, 1][..], &length(piece.len()), piece].concat();
    message.chunks(1 << 14).flat_map(record).collect()
}

#[test]
fn a_hello_full_of_tickets_has_one_of_them_looked_up() {
    // As many as 32 KiB hold beside the rest of a ClientHello.
    const OTHERS: usize = 440;
    let redis = Redis::start(address());
    let mut pops = Pops::start(1, &redis.address.to_string());
    pops.until_shared(0);
    let hello = pops.unused();
    let tickets = redis.tickets();
    pops.show(0, &crowded(&hello, OTHERS));
    let lookups = || ["hit", "miss", "late", "down", "bad"].map(|result| pops.lookups(0, result));
    assert_eq!(lookups(), [0, 1, 0, 0, 0]);
    assert_eq!(redis.tickets(), tickets, "the good one, which comes last, is not spent");
    pops.show(0, &hello);
    assert_eq!(lookups(), [1, 1, 0, 0, 0]);
}

/// What a lying server does when it is asked for a ticket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lie {
    None,
    WrongValue,
    ValueOfAnother,
    /// The right value, however often.
    Again,
    Nil,
    Error,
    Truncated,
    Hangs,
    Closes,
    Garbage,
    Gigabytes,
}

fn number(stream: &mut BufReader<TcpStream>, mark: char) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    line.trim_end().strip_prefix(mark)?.parse().ok()
}

/// The words of one command.
fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<Vec<u8>>> {
    let count = number(stream, '*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(stream, '$')?;
        let mut word = vec![0; length + 2];
        stream.read_exact(&mut word).ok()?;
        word.truncate(length);
        words.push(word);
    }
    Some(words)
}

/// Answers one connection. Lies when asked for a ticket, and is a good server otherwise.
fn serve(stream: TcpStream, lie: &Mutex<Lie>, kept: &Mutex<HashMap<Vec<u8>, Vec<u8>>>) {
    let mut to_pop = stream.try_clone().expect("a descriptor");
    let mut from_pop = BufReader::new(stream);
    while let Some(words) = command(&mut from_pop) {
        let bulk = |value: &[u8]| [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat();
        let lie = *lie.lock().expect("no script panicked");
        let mut kept = kept.lock().expect("no script panicked");
        let answer = match (words[0].as_slice(), lie) {
            (b"PING", _) => b"+PONG\r\n".to_vec(),
            (b"SET", _) => {
                kept.insert(words[1].clone(), words[2].clone());
                b"+OK\r\n".to_vec()
            }
            (_, Lie::None) => kept.remove(&words[1]).map_or(b"$-1\r\n".to_vec(), |value| bulk(&value)),
            (_, Lie::WrongValue) => {
                let mut value = kept.remove(&words[1]).expect("it was kept");
                *value.last_mut().expect("it is not empty") ^= 1;
                bulk(&value)
            }
            (_, Lie::ValueOfAnother) => {
                bulk(kept.iter().find(|(key, _)| **key != words[1]).expect("there are several").1)
            }
            (_, Lie::Again) => bulk(kept.get(&words[1]).expect("it was kept")),
            (_, Lie::Nil) => b"$-1\r\n".to_vec(),
            (_, Lie::Error) => b"-OOM command not allowed when used memory > 'maxmemory'.\r\n".to_vec(),
            (_, Lie::Truncated) => b"$200\r\nabc".to_vec(),
            (_, Lie::Hangs) => Vec::new(),
            (_, Lie::Closes) => return,
            (_, Lie::Garbage) => b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
            (_, Lie::Gigabytes) => b"$2000000000\r\n".to_vec(),
        };
        drop(kept);
        if to_pop.write_all(&answer).is_err() || lie == Lie::Truncated {
            return;
        }
        while lie == Lie::Gigabytes && to_pop.write_all(&[b'g'; 64 * 1024]).is_ok() {}
    }
}

#[test]
fn a_lying_server_fails_no_handshake_and_resumes_none() {
    let (lie, kept) = (Arc::new(Mutex::new(Lie::None)), Arc::new(Mutex::new(HashMap::new())));
    let server = Scripted::start({
        let lie = lie.clone();
        move |stream, _| serve(stream, &lie, &kept)
    });
    let mut pops = Pops::start(1, &server.address().to_string());
    let tell = |next: Lie| *lie.lock().expect("no script panicked") = next;
    pops.until_shared(0);
    assert!(pops.visit(0).is_resumed, "as long as it does not lie");
    let lies = [
        (Lie::WrongValue, "bad"),
        (Lie::ValueOfAnother, "bad"),
        (Lie::Nil, "miss"),
        (Lie::Error, "down"),
        (Lie::Truncated, "down"),
        (Lie::Hangs, "late"),
        (Lie::Closes, "down"),
        (Lie::Garbage, "down"),
        (Lie::Gigabytes, "down"),
    ];
    for (next, result) in lies {
        tell(Lie::None);
        pops.until_shared(0);
        let before = pops.lookups(0, result);
        tell(next);
        let visit = pops.visit(0);
        assert!(!visit.is_resumed && visit.took < DELAY_MAX, "{next:?}: {:?}", visit.took);
        assert!(pops.lookups(0, result) > before, "{next:?} {}", pops.nodes[0].0.figures());
    }
    assert!(pops.nodes[0].0.anonymous_bytes() < 200 << 20);
    assert_eq!(pops.figure(0, "handshakes_failed_total"), 0);
}

#[test]
fn a_ticket_that_a_server_gives_out_again_resumes_once_on_a_node() {
    const COPIES: u64 = 8;
    let server = Scripted::start({
        let (lie, kept) = (Mutex::new(Lie::Again), Mutex::new(HashMap::new()));
        move |stream, _| serve(stream, &lie, &kept)
    });
    let mut pops = Pops::start(1, &server.address().to_string());
    pops.until_shared(0);
    let visit = pops.visit(0);
    assert!(visit.is_resumed);
    (0..COPIES).for_each(|_| pops.show(0, &visit.hello));
    pops.nodes[0].0.until_equal(&[("tickets_missed_total{reason=\"used\"}", COPIES), ("connections_open", 0)]);
    assert_eq!(pops.lookups(0, "hit"), 1, "it is not even asked for again");

    // Copies that are asked for at the same time, before there is an answer to remember.
    let hello = pops.unused();
    let sockets: Vec<_> = (0..COPIES).map(|_| connect(pops.nodes[0].1)).collect();
    sockets.iter().for_each(|mut socket| socket.write_all(&hello).expect("it is open"));
    // On a busy machine some answers are late, and resume nobody either.
    until("all but one find the ticket used, or hear of it too late", || {
        let used = pops.nodes[0].0.metrics().get("tickets_missed_total{reason=\"used\"}");
        (used + pops.lookups(0, "late") == 2 * COPIES - 1).then_some(())
    });
    assert_eq!(pops.lookups(0, "hit"), 2);
}
