//! Connections that end at the worst moment: with a reset at every stage, on either side.

use std::io::Write;
use std::sync::mpsc;
use std::thread;

use trunkline::mmtp::HeaderFlags;
use trunkline::mmtp::frame::Frame;

use crate::harness::{SOON, Site, pattern};
use crate::origin::{Http, Scripted, nginx};
use crate::peers::{End, Mmtp, Said, Tls, block, connect, reset, trust};

#[test]
fn a_reset_at_every_stage_leaves_nothing_behind() {
    let content = pattern(16 * 1024 * 1024);
    let origin = nginx(&[("large", &content)]);
    let site = Site::start(origin.address());
    let (tunnel, mmtp) = (trust(&site.ca(), &[]), trust(&site.ca(), &["mmtp/1"]));
    site.until_quiet();
    let descriptors = (site.pop.descriptors(), site.gateway.descriptors());
    for _ in 0..5 {
        // After connecting, and in the middle of the ClientHello.
        reset(connect(site.address));
        let mut socket = connect(site.address);
        socket.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).expect("it is open");
        reset(socket);
        // After the handshake.
        Tls::connect(site.address, tunnel.clone()).reset();
        Tls::connect(site.address, mmtp.clone()).reset();
        Mmtp::connect(site.address, &site.ca()).tls.reset();
        // In the middle of a request.
        let mut client = Tls::connect(site.address, tunnel.clone());
        client
            .send(b"PUT /store/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nonly this")
            .expect("it is open");
        client.reset();
        let mut client = Mmtp::connect(site.address, &site.ca());
        let put = block("pay", "PUT", "/store/x");
        client.send(Frame::Headers { stream: 1, flags: HeaderFlags::NONE, block: &put });
        client.send(Frame::Data { stream: 1, end: false, bytes: b"only this" });
        client.tls.reset();
        // In the middle of an answer: after its first bytes.
        let mut client = Tls::connect(site.address, tunnel.clone());
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").expect("it is open");
        client.receive_exact(1000);
        client.reset();
        let mut client = Mmtp::connect(site.address, &site.ca());
        client.get(1, "pay", "/large");
        client.until("the first bytes", |said| matches!(said, Said::Data(..)));
        client.tls.reset();
        // And with half of the connection closed already.
        let mut client = Tls::connect(site.address, tunnel.clone());
        client.send(b"GET /large HTTP/1.0\r\n\r\n").expect("it is open");
        client.half_close();
        client.receive_exact(1000);
        client.reset();
    }
    site.until_quiet();
    crate::harness::until("descriptors are closed", || {
        let idle = site.gateway.metrics().get("upstream_idle") as usize;
        (site.pop.descriptors() == descriptors.0 && site.gateway.descriptors() <= descriptors.1 + idle).then_some(())
    });
    assert_eq!(site.pop.metrics().get("trunks_failed_total"), 0, "trunks are not harmed by clients");
    assert_eq!(crate::harness::text(&site.curl(&[&site.https("/")])), "hello from nginx\n");
}

#[test]
fn a_reset_from_the_origin_is_a_reset_to_the_client() {
    let origin = Scripted::start(|mut stream, _| {
        stream.write_all(b"the beginning").expect("somebody reads");
        let mut request = [0; 5];
        std::io::Read::read_exact(&mut stream, &mut request).expect("a request");
        reset(stream);
    });
    let site = Site::start(origin.address());
    let mut client = Tls::connect(site.address, trust(&site.ca(), &[]));
    assert_eq!(client.receive_exact(13), b"the beginning");
    client.send(b"hello").expect("it is open");
    // No close_notify: nobody may take this for the end.
    assert_ne!(client.receive_all().1, End::Notified);
    site.until_quiet();
}

#[test]
fn a_client_cut_without_close_notify_is_a_truncation() {
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let origin = Scripted::start(move |stream, _| {
        let tell = tell.lock().expect("one connection");
        let mut connection = Http::new(stream);
        tell.send(connection.head().is_some()).expect("the test waits");
        let end = std::io::Read::read(&mut connection.stream(), &mut [0; 100]);
        tell.send(end.is_err()).expect("the test waits");
    });
    let site = Site::start(origin.address());
    let mut client = Tls::connect(site.address, trust(&site.ca(), &[]));
    client.send(b"PUT / HTTP/1.1\r\nContent-Length: 100\r\n\r\n").expect("it is open");
    assert!(told.recv_timeout(SOON).expect("the origin reads"), "the head arrives");
    client.cut();
    assert!(told.recv_timeout(SOON).expect("the origin hears of it"), "it gets a reset, not an end in order");
    site.until_quiet();
    assert_eq!(site.pop.metrics().get("truncated_ends_total"), 1);
}

#[test]
fn answers_survive_clients_that_come_and_go() {
    let content = pattern(2 * 1024 * 1024);
    let origin = nginx(&[("large", &content)]);
    let site = Site::start(origin.address());
    let tunnel = trust(&site.ca(), &[]);
    thread::scope(|scope| {
        let going = scope.spawn(|| {
            for _ in 0..40 {
                let mut client = Tls::connect(site.address, tunnel.clone());
                client.send(b"GET /large HTTP/1.0\r\n\r\n").expect("it is open");
                client.receive_exact(100_000);
                client.reset();
            }
        });
        for _ in 0..3 {
            let called = site.call(&["--repeat", "8", "--outstanding", "4", &site.url("pay/large")]);
            assert_eq!(called.code, 0, "{}", called.stderr);
            assert!(called.body == content);
        }
        going.join().expect("clients come and go");
    });
    site.until_quiet();
}
