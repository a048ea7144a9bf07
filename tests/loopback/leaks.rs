//! Many connections, opened and closed again and again: afterwards everything is where it was.

use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::harness::{Plan, Site};
use crate::origin::{Scripted, response};
use crate::peers::{Mmtp, Tls, trust};

/// Connections at a time.
const CONNECTIONS: usize = 1000;

/// Of these, how many are tunnels: each has a connection to the origin as well.
const TUNNELS: usize = 500;

const ROUNDS: usize = 3;

/// How often the descriptors are counted after a round.
const LOOKS: usize = 50;

#[test]
fn a_thousand_connections_come_and_go_and_leave_nothing() {
    trunkline::server::process::descriptors_raise().expect("the limit may be raised up to the hard one");
    let held: Mutex<Vec<TcpStream>> = Mutex::new(Vec::new());
    let held: &'static Mutex<Vec<TcpStream>> = Box::leak(Box::new(held));
    // Connections are kept without a thread; each answers at once.
    let origin = Scripted::start(move |mut stream, _| {
        let _ = std::io::Write::write_all(&mut stream, &response("200 OK", "", b"hello"));
        held.lock().expect("nobody panics with it").push(stream);
    });
    let plan = Plan { gateway: "drain_timeout = \"1s\"".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    let mut figures = Vec::new();
    for round in 0..ROUNDS {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (tunnel, ca) = (trust(&site.ca(), &[]), site.ca());
                    let mut tunnels: Vec<Tls> =
                        (0..TUNNELS / 4).map(|_| Tls::connect(site.address, tunnel.clone())).collect();
                    let clients: Vec<Mmtp> =
                        (0..(CONNECTIONS - TUNNELS) / 4).map(|_| Mmtp::connect(site.address, &ca)).collect();
                    for client in &mut tunnels {
                        assert_eq!(client.receive_exact(5), b"HTTP/");
                    }
                    // Some go in order, some do not.
                    for (index, client) in tunnels.into_iter().enumerate() {
                        if index % 2 == 0 { client.close() } else { client.reset() }
                    }
                    for (index, client) in clients.into_iter().enumerate() {
                        if index % 2 == 0 { client.tls.close() } else { client.tls.reset() }
                    }
                });
            }
        });
        held.lock().expect("nobody panics with it").clear();
        site.until_quiet();
        let metrics = site.pop.metrics();
        assert_eq!(metrics.get("connections_accepted_total"), ((round + 1) * CONNECTIONS) as u64);
        let descriptors = descriptors_at_rest(&site);
        figures.push((metrics.get("links_open"), metrics.get("buffers_lent"), descriptors, site.pop.anonymous_bytes()));
    }
    println!("links, buffers lent, descriptors, bytes after each round: {figures:?}");
    let (first, last) = (figures[0], figures[ROUNDS - 1]);
    assert_eq!((first.0, first.1), (last.0, last.1));
    assert!(last.2 <= first.2, "descriptors leak: {figures:?}");
    // What the first round allocated is used again: it does not grow with every round.
    assert!(last.3 < first.3 + first.3 / 4, "memory grows: {figures:?}");
}

/// The fewest descriptors seen while nothing happens: the admin address still closes connections of whoever asked it.
fn descriptors_at_rest(site: &Site) -> usize {
    let look = || {
        thread::sleep(Duration::from_millis(10));
        site.pop.descriptors()
    };
    let fewest = (0..LOOKS).map(|_| look()).min().expect("it looks more than once");
    assert!(fewest < 100, "{fewest} descriptors are open");
    fewest
}
