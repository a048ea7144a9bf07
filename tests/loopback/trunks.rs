//! Trunks: who may be at their ends, and what happens when a gateway dies.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use trunkline::client::{Client, Failure, Receipt, Request, Url};

use crate::harness::{Plan, SOON, Site, pattern, text, until};
use crate::origin::{Http, Scripted, nginx};
use crate::peers::{Tls, connect, trust};

/// Longest that a POP may take to serve again once its gateway listens: a redial, a handshake, and a busy machine.
const RECOVERY_MAX: Duration = Duration::from_secs(5);

#[test]
fn a_gateway_takes_no_one_without_the_right_certificate() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    // TLS 1.3 clients are done before the server has seen their certificate: the refusal comes with the first bytes.
    let mut nobody = Tls::connect(site.gateway_address, trust(&site.ca(), &["mmtp/1"]));
    let _ = nobody.send(&crate::peers::hello());
    assert_eq!(nobody.receive_all(), (Vec::new(), crate::peers::End::Broken));
    let mut plain = connect(site.gateway_address);
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it is open");
    drop(plain);
    site.gateway.until_equal(&[("handshakes_failed_total", 2), ("connections_open", 2)]);
    site.call(&[&site.url("pay/")]).answered(200);
}

#[test]
fn a_pop_of_another_authority_gets_no_trunk() {
    let origin = nginx(&[]);
    // The POP trusts and shows what another authority has signed: it refuses the gateway.
    let plan = Plan { backbone: "wait_for_trunk = \"200ms\"".to_owned(), ..Plan::default() };
    let site = Site::unready(origin.address(), &plan, "others");
    site.pop.until("the gateway is refused", |metrics| metrics.get("trunks_failed_total") >= 2);
    assert_eq!(site.pop.metrics().get("trunks_ready"), 0);
    assert_eq!(site.pop.get("/ready").0, 503);
    assert_eq!(site.pop.get("/live").0, 200);
    site.call(&[&site.url("pay/")]).failed("not-forwarded", "no_route");
    assert!(site.pop.log().contains("TLS handshake failed"), "{}", site.pop.log());
}

#[test]
fn a_pop_with_a_certificate_of_another_authority_is_refused_by_the_gateway() {
    let origin = nginx(&[]);
    let plan = Plan { backbone: "wait_for_trunk = \"200ms\"".to_owned(), ..Plan::default() };
    let mut site = Site::unready(origin.address(), &plan, "others");
    // Now it trusts the gateway, and still shows the wrong certificate.
    let trusted = std::fs::read(site.ca()).expect("it exists");
    site.scratch.write("others/ca.pem", trusted);
    site.pop.process().kill();
    site.pop.restart();
    site.gateway.until("the POP is refused", |metrics| metrics.get("handshakes_failed_total") >= 2);
    assert_eq!(site.pop.metrics().get("trunks_ready"), 0);
    site.call(&[&site.url("pay/")]).failed("not-forwarded", "no_route");
}

#[test]
fn plaintext_trunks_carry_requests_and_are_warned_of() {
    let origin = nginx(&[]);
    let plain = "tls = false".to_owned();
    let plan = Plan { backbone: plain.clone(), gateway_listen: plain, ..Plan::default() };
    let mut site = Site::with(origin.address(), &plan);
    assert_eq!(site.call(&["--repeat", "3", &site.url("pay/")]).report["answered"], 3);
    assert_eq!(text(&site.curl(&[&site.https("/")])), "hello from nginx\n");
    for node in [&site.pop, &site.gateway] {
        let log = node.log();
        assert!(log.contains("TRUNKS ARE PLAINTEXT"), "{log}");
        assert!(log.contains("warning: ") && log.contains("tls: trunks are plaintext"), "{log}");
    }
    let (pop, gateway) = (site.pop.metrics(), site.gateway.metrics());
    assert_eq!((pop.get("trunks_ready"), pop.get("handshakes_total{kind=\"full\"}")), (2, 2), "of clients only");
    let handshakes = gateway.get("handshakes_total{kind=\"full\"}") + gateway.get("handshakes_failed_total");
    assert_eq!((gateway.get("connections_open"), handshakes), (2, 0));
    site.until_quiet();
    // What a POP with TLS says there is no MMTP.
    let mut stranger = connect(site.gateway_address);
    stranger.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).expect("it is open");
    let _ = stranger.read_to_end(&mut Vec::new());
    drop(stranger);
    site.gateway.until_equal(&[("mmtp_errors_total", 1), ("connections_open", 2)]);
    // Trunks end in order without close_notify.
    assert_eq!(site.gateway.process().terminate().code(), Some(0), "{}", site.gateway.log());
    site.pop.until_equal(&[("trunks_ready", 0)]);
    site.gateway.restart();
    site.pop.until_equal(&[("trunks_ready", 2)]);
    site.call(&[&site.url("pay/")]).answered(200);
}

#[test]
fn a_gateway_that_dies_mid_stream_leaves_a_receipt() {
    let origin = Scripted::start(|stream, _| {
        let mut connection = Http::new(stream);
        let _ = connection.asked();
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        let _ = connection.head();
    });
    let mut site = Site::start(origin.address());
    let client = Client::builder().ca_pem(&std::fs::read(site.ca()).expect("it exists")).build().expect("a client");
    let call = client.start(Request::get(Url::parse(&site.url("pay/")).expect("a URL")));
    assert_eq!(call.response_head().expect("it has begun").status, 200);
    site.gateway.process().kill();
    let error = call.body(1000).expect_err("half of it is missing");
    assert_eq!(error.receipt(), Receipt::Unknown, "{error}");
    assert!(matches!(error.failure(), Failure::Reset { name: "transport_lost", .. }), "{error}");
    site.pop.until_equal(&[("streams_failed_total{receipt=\"unknown\"}", 1), ("streams_open", 0), ("trunks_ready", 0)]);
}

#[test]
fn a_gateway_killed_under_load_costs_receipts_and_nothing_else() {
    let content = pattern(20_000);
    let origin = nginx(&[("page", &content)]);
    let mut site = Site::start(origin.address());
    let url = Url::parse(&site.url("pay/page")).expect("a URL");
    let ca = std::fs::read(site.ca()).expect("it exists");
    let stop = AtomicBool::new(false);
    let (https, tunnel) = (site.address, trust(&site.ca(), &[]));
    let (answered, failed, recovery) = thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (url, ca, stop, content) = (&url, &ca, &stop, &content);
                scope.spawn(move || {
                    let client = Client::builder().ca_pem(ca).build().expect("a client");
                    let (mut answered, mut failed) = (0, 0);
                    while !stop.load(Ordering::Acquire) {
                        let calls: Vec<_> = (0..8).map(|_| client.start(Request::get(url.clone()))).collect();
                        for call in calls {
                            match call.response(content.len()) {
                                Ok(response) => {
                                    assert!(response.status == 200 && response.body == *content);
                                    answered += 1;
                                }
                                Err(error) => {
                                    // A receipt it always has; here it must be one of these two, and for this reason.
                                    let known = matches!(error.receipt(), Receipt::Unknown | Receipt::NotForwarded);
                                    let reset = matches!(error.failure(), Failure::Reset { .. });
                                    assert!(known && reset, "{error}");
                                    failed += 1;
                                }
                            }
                        }
                    }
                    (answered, failed)
                })
            })
            .collect();
        let tunnels = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let mut client = Tls::connect(https, tunnel.clone());
                let _ = client.send(b"GET /page HTTP/1.0\r\n\r\n");
                let _ = client.receive_all();
            }
        });
        let mut recovery = Duration::ZERO;
        for _ in 0..2 {
            let served = site.gateway.metrics().get("streams_done_total");
            site.gateway.until("the load runs", |metrics| metrics.get("streams_done_total") > served + 50);
            site.gateway.process().kill();
            site.pop.until_equal(&[("trunks_ready", 0)]);
            site.gateway.restart();
            let back = Instant::now();
            let probe = Client::builder().ca_pem(&ca).build().expect("a client");
            until("a call is answered again", || probe.call(Request::get(url.clone()).timeout(SOON)).ok());
            recovery = recovery.max(back.elapsed());
            site.pop.until_equal(&[("trunks_ready", 2)]);
        }
        stop.store(true, Ordering::Release);
        tunnels.join().expect("tunnels come and go");
        let sums = callers.into_iter().map(|caller| caller.join().expect("every failure had its receipt"));
        let (answered, failed) = sums.fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1));
        (answered, failed, recovery)
    });
    println!("{answered} answered, {failed} failed with a receipt, back after {recovery:?}");
    assert!(answered > 0);
    assert!(recovery < RECOVERY_MAX, "{recovery:?}");
    site.until_quiet();
}

#[test]
fn a_gateway_that_drains_hands_over_without_a_failed_call() {
    let content = pattern(20_000);
    let origin = nginx(&[("page", &content)]);
    let mut site = Site::start(origin.address());
    let url = Url::parse(&site.url("pay/page")).expect("a URL");
    let ca = std::fs::read(site.ca()).expect("it exists");
    let client = Client::builder().ca_pem(&ca).build().expect("a client");
    let running = client.start(Request::get(url.clone()));
    assert_eq!(running.response_head().expect("it has begun").status, 200);
    site.gateway.signal("TERM");
    assert!(running.body(content.len()).expect("what runs may end") == content);
    assert!(site.gateway.ended().success());
    // What comes meanwhile waits for a trunk.
    let waiting = client.start(Request::get(url).timeout(SOON));
    site.gateway.restart();
    assert_eq!(waiting.response(content.len()).expect("it waited").status, 200);
    drop((running, waiting, client));
    site.until_quiet();
}
