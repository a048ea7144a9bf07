//! Two workers: connections spread over both, and work wherever they land.

use crate::harness::{Plan, Site, text};
use crate::origin::nginx;
use crate::peers::{Mmtp, trust};

/// Connections opened at most until one was handed over: enough that the kernel's choice alone cannot stay even.
const CONNECTIONS_MAX: usize = 2000;

#[test]
fn connections_spread_over_two_workers_and_are_handed_over() {
    if trunkline::server::process::cores_allowed().len() < 2 {
        println!("skipped: this process may use one core only");
        return;
    }
    trunkline::server::process::descriptors_raise().expect("the limit may be raised up to the hard one");
    let origin = nginx(&[]);
    let site = Site::with(origin.address(), &Plan { workers: 2, ..Plan::default() });
    assert_eq!(site.pop.metrics().per_worker("trunks_ready"), [2, 2]);
    let mut clients = Vec::new();
    let mut tries = 0;
    while clients.len() < 200 || site.pop.metrics().get("connections_handed_over_total") == 0 {
        if clients.len() >= CONNECTIONS_MAX {
            // The kernel's hash happened to spread these evenly: others come from other ports.
            tries += 1;
            assert!(tries < 10, "none was handed over");
            clients.clear();
            site.until_quiet();
        }
        clients.extend((0..100).map(|_| Mmtp::connect(site.address, &site.ca())));
    }
    let spread = site.pop.metrics().per_worker("connections_open");
    let even = clients.len() as u64 / 2;
    // The margin within which nothing is moved is an eighth, and at least eight.
    let margin = (even / 8).max(8) + 8;
    assert!(spread.iter().all(|count| count.abs_diff(even) <= margin), "{spread:?}");
    assert_eq!(spread.iter().sum::<u64>(), clients.len() as u64);
    // Every one of them works, on whichever worker it is.
    for client in &mut clients {
        client.get(1, "pay", "/");
    }
    for client in &mut clients {
        assert_eq!(client.answer(1), (200, b"hello from nginx\n".to_vec()));
    }
    let trust = trust(&site.ca(), &[]);
    for _ in 0..20 {
        let mut tunnel = crate::peers::Tls::connect(site.address, trust.clone());
        tunnel.send(b"GET / HTTP/1.0\r\n\r\n").expect("it is open");
        assert!(text(&tunnel.receive_all().0).ends_with("hello from nginx\n"));
    }
    drop(clients);
    site.until_quiet();
    assert_eq!(site.pop.metrics().per_worker("connections_open"), [0, 0]);
}
