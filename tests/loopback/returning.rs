//! Users who come back: tickets that work once, whoever shows them, and early data that arrives once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use rustls::ClientConfig;

use crate::harness::{Plan, Site, pattern, run, text};
use crate::origin::{Scripted, nginx};
use crate::peers::{End, Tls, connect, early_flight, trust};

pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const LAST_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A client of its own with a place for tickets.
fn client(site: &Site) -> Arc<ClientConfig> {
    let mut config = Arc::unwrap_or_clone(trust(&site.ca(), &["http/1.1"]));
    config.enable_early_data = true;
    Arc::new(config)
}

/// An origin that answers requests and counts them.
pub fn counting() -> (Scripted, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let origin = Scripted::start(move |mut stream: TcpStream, _| {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(bytes @ 1..) = stream.read(&mut piece) {
            all.extend_from_slice(&piece[..bytes]);
            while let Some(end) = memchr::memmem::find(&all, b"\r\n\r\n") {
                all.drain(..end + 4);
                count.fetch_add(1, Ordering::AcqRel);
                stream.write_all(ANSWER).expect("the gateway reads");
            }
        }
    });
    (origin, requests)
}

/// One request and its answer, which the tickets come before.
pub fn ask(tls: &mut Tls) {
    tls.send(REQUEST).expect("it is open");
    assert_eq!(tls.receive_exact(ANSWER.len()), ANSWER);
}

/// `openssl s_client` with these arguments and one request, to an address of the site and for a name; whether it resumed.
pub fn openssl(site: &Site, address: SocketAddr, name: &str, args: &[&str]) -> bool {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address.to_string(), "-servername", name, "-ign_eof", "-CAfile"]);
    command.arg(site.ca()).args(args);
    let output = run(&mut command, LAST_REQUEST);
    let said = text(&output.stdout);
    assert!(said.contains("hello from nginx"), "{said}\n{}", text(&output.stderr));
    let is_resumed = said.contains("Reused, TLSv1.3");
    assert!(is_resumed || said.contains("New, TLSv1.3"), "{said}");
    is_resumed
}

#[test]
fn a_ticket_resumes_once_and_shown_again_costs_a_full_handshake() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let session = site.scratch.path().join("session.pem").display().to_string();
    assert!(!openssl(&site, site.address, "localhost", &["-sess_out", &session]));
    assert!(openssl(&site, site.address, "localhost", &["-sess_in", &session]));
    assert!(!openssl(&site, site.address, "localhost", &["-sess_in", &session]));
    let metrics = site.pop.metrics();
    let figures =
        ["handshakes_total{kind=\"resumed\"}", "tickets_taken_total", "tickets_missed_total{reason=\"used\"}"];
    assert_eq!(figures.map(|name| metrics.get(name)), [1, 1, 1], "{}", site.pop.figures());
    assert_eq!(metrics.get("tickets_missed_total{reason=\"unknown\"}"), 0);
}

#[test]
fn of_connections_that_race_for_one_ticket_exactly_one_resumes() {
    const RACERS: usize = 6;
    let origin = nginx(&[]);
    let site = Site::with(origin.address(), &Plan { workers: 2, ..Plan::default() });
    let session = site.scratch.path().join("session.pem").display().to_string();
    assert!(!openssl(&site, site.address, "localhost", &["-sess_out", &session]));
    let barrier = Barrier::new(RACERS);
    let resumed = thread::scope(|scope| {
        let race = || {
            barrier.wait();
            openssl(&site, site.address, "localhost", &["-sess_in", &session])
        };
        let racers: Vec<_> = (0..RACERS).map(|_| scope.spawn(race)).collect();
        racers.into_iter().map(|racer| racer.join().expect("each is answered")).filter(|is| *is).count()
    });
    assert_eq!(resumed, 1);
    let metrics = site.pop.metrics();
    assert_eq!(metrics.get("tickets_taken_total"), 1);
    assert_eq!(metrics.get("tickets_missed_total{reason=\"used\"}"), RACERS as u64 - 1);
}

#[test]
fn a_stock_client_resumes_every_time_it_comes_back() {
    let (origin, requests) = counting();
    let site = Site::with(origin.address(), &Plan { workers: 2, ..Plan::default() });
    let config = client(&site);
    for visit in 0..10 {
        let mut tls = Tls::connect(site.address, config.clone());
        assert_eq!(tls.is_resumed(), visit > 0, "visit {visit}");
        ask(&mut tls);
        tls.close();
    }
    assert_eq!(requests.load(Ordering::Acquire), 10);
    site.pop.until_equal(&[("tickets_taken_total", 9), ("connections_open", 0), ("handshakes_failed_total", 0)]);
}

#[test]
fn early_data_to_a_tunnel_arrives_once_whoever_sends_it_again() {
    let (origin, requests) = counting();
    let site = Site::start(origin.address());
    let config = client(&site);
    let mut tls = Tls::connect(site.address, config.clone());
    ask(&mut tls);
    tls.close();
    let (mut tls, flight) = Tls::early(site.address, config.clone(), REQUEST);
    assert!(tls.is_resumed() && tls.is_early_accepted());
    assert_eq!(tls.receive_exact(ANSWER.len()), ANSWER);
    ask(&mut tls);
    tls.close();
    assert_eq!(requests.load(Ordering::Acquire), 3);
    for _ in 0..3 {
        let mut socket = connect(site.address);
        socket.write_all(&flight).expect("it is open");
        // The answer is that of a full handshake, which whoever recorded the flight cannot finish.
        assert_ne!(socket.read(&mut [0; 1024]).expect("an answer"), 0);
    }
    site.pop.until_equal(&[
        ("handshakes_total{kind=\"early\"}", 1),
        ("tickets_missed_total{reason=\"used\"}", 3),
        ("early_data_bytes_total{outcome=\"accepted\"}", REQUEST.len() as u64),
        ("handshakes_failed_total", 3),
        ("connections_open", 0),
    ]);
    assert_eq!(requests.load(Ordering::Acquire), 3, "nothing that was sent again was forwarded");
    site.until_quiet();
}

#[test]
fn refused_early_data_is_sent_again_by_the_client_and_counted() {
    let (origin, requests) = counting();
    let mut site = Site::start(origin.address());
    let config = client(&site);
    let mut tls = Tls::connect(site.address, config.clone());
    ask(&mut tls);
    tls.close();
    // The tickets go with the process.
    site.pop.signal("TERM");
    assert!(site.pop.ended().success());
    site.pop.restart();
    site.pop.until("the trunks are up", |metrics| metrics.get("trunks_ready") == 2);
    let (mut tls, _) = Tls::early(site.address, config, REQUEST);
    assert!(!tls.is_resumed() && !tls.is_early_accepted());
    ask(&mut tls);
    tls.half_close();
    assert_eq!(tls.receive_all().1, End::Notified);
    assert_eq!(requests.load(Ordering::Acquire), 2);
    let metrics = site.pop.metrics();
    assert_eq!(metrics.get("tickets_missed_total{reason=\"unknown\"}"), 1);
    let record_bytes = REQUEST.len() as u64 + 22;
    assert_eq!(metrics.get("early_data_bytes_total{outcome=\"refused\"}"), record_bytes);
}

#[test]
fn an_early_client_that_never_finishes_is_given_up() {
    let (origin, requests) = counting();
    let plan = Plan { pop_worker: "handshake_timeout = \"1s\"".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    let config = client(&site);
    let mut tls = Tls::connect(site.address, config.clone());
    ask(&mut tls);
    tls.close();
    let (_, flight) = early_flight(config, REQUEST);
    let mut socket = connect(site.address);
    socket.write_all(&flight).expect("it is open");
    site.pop.until_equal(&[("early_data_bytes_total{outcome=\"accepted\"}", REQUEST.len() as u64)]);
    site.pop.until_equal(&[("handshakes_timed_out_total", 1), ("connections_open", 0)]);
    assert_eq!(requests.load(Ordering::Acquire), 1, "a tunnel's early data waits for the end of the handshake");
    assert_eq!(site.pop.metrics().get("handshakes_total{kind=\"early\"}"), 0);
    site.until_quiet();
}

#[test]
fn records_are_a_packet_long_until_the_connection_is_warm_and_after_a_pause() {
    const COLD_BYTES_MAX: usize = 1370 + 22;
    let content = pattern(256 * 1024);
    let origin = nginx(&[("large", &content)]);
    let site = Site::start(origin.address());
    let mut tls = Tls::connect(site.address, trust(&site.ca(), &["http/1.1"]));
    let request = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for visit in 0..2 {
        tls.send(request).expect("it is open");
        let lengths = tls.record_lengths(&content[content.len() - 64..]);
        let cold = lengths.iter().take_while(|length| **length <= COLD_BYTES_MAX).count();
        assert!((40..60).contains(&cold), "visit {visit}: {cold} records of a packet: {lengths:?}");
        assert!(lengths.iter().any(|length| *length > 8 * 1024), "visit {visit}: full records follow: {lengths:?}");
        // The pause itself is what is tested.
        thread::sleep(Duration::from_millis(1200));
    }
}
