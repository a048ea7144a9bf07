//! What no decent client sends, at the POP's door and behind it: refused with the right word, nothing left behind, nobody
//! else harmed.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use trunkline::mmtp::frame::Frame;
use trunkline::mmtp::{Code, HeaderFlags, HeaderWriter, Known, Receipt};

use crate::harness::{Plan, SOON, Site, pattern, run, text};
use crate::origin::{Scripted, nginx};
use crate::peers::{End, Mmtp, Said, Tls, block, connect, hello, trust};

/// Everything that comes until the end, whatever end it is.
fn all_of(socket: &mut std::net::TcpStream) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(count) = socket.read(&mut piece)
        && count > 0
    {
        all.extend_from_slice(&piece[..count]);
    }
    all
}

#[test]
fn what_is_not_tls_13_is_refused_with_an_alert() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let address = site.address.to_string();

    // Plain HTTP: whatever comes back is no HTTP answer, and the connection ends.
    let mut plain = connect(site.address);
    plain.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it is open");
    let answer = all_of(&mut plain);
    assert!(answer.len() <= 7 && !answer.starts_with(b"HTTP"), "{answer:?}");
    let url = format!("http://localhost:{}/", site.address.port());
    assert!(!site.curl_output(&[&url]).status.success());

    // TLS 1.2 only.
    let mut command = Command::new("openssl");
    let output = run(command.args(["s_client", "-tls1_2", "-connect", &address]), &[]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("alert protocol version"), "{said}");
    let output = site.curl_output(&["--tls-max", "1.2", &site.https("/")]);
    assert!(text(&output.stderr).contains("protocol version"), "{}", text(&output.stderr));

    // Garbage, and an alert as first record.
    for garbage in
        [pattern(2000).as_slice(), &[0x15, 3, 3, 0, 2, 2, 40], &[0x16, 3, 1, 0xff, 0xff], &[0x17, 3, 3, 0, 1, 0]]
    {
        let mut socket = connect(site.address);
        socket.write_all(garbage).expect("it is open");
        let answer = all_of(&mut socket);
        assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
    }
    // A record that is over with its header, which comes in two pieces.
    let mut socket = connect(site.address);
    for piece in [[0x16, 3, 1].as_slice(), &[0, 0]] {
        socket.write_all(piece).expect("it is open");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(all_of(&mut socket).starts_with(&[0x15]), "an alert");
    site.until_quiet();
    // http:// of the socket and of curl, TLS 1.2 of openssl and of curl, four times garbage, one empty record.
    assert_eq!(site.pop.metrics().get("handshakes_failed_total"), 9);
    assert_eq!(text(&site.curl(&[&site.https("/")])), "hello from nginx\n");
}

#[test]
fn a_listener_without_a_tunnel_takes_mmtp_alone() {
    let origin = nginx(&[]);
    let site = Site::with(origin.address(), &Plan { listen: String::new(), ..Plan::default() });
    for alpn in [&[][..], &["http/1.1"], &["h2", "http/1.1"]] {
        let socket = connect(site.address);
        let error = Tls::over(socket, trust(&site.ca(), alpn)).err().expect("nothing in common").to_string();
        assert!(error.contains("NoApplicationProtocol"), "{alpn:?}: {error}");
    }
    site.call(&[&site.url("pay/")]).answered(200);
    site.until_quiet();
}

#[test]
fn a_listener_with_a_tunnel_takes_what_is_offered() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    for (alpn, agreed) in [
        (&[][..], None),
        (&["http/1.1"][..], Some(b"http/1.1".as_slice())),
        (&["h2", "http/1.1"], Some(b"http/1.1")),
        (&["http/1.1", "mmtp/1"], Some(b"mmtp/1")),
    ] {
        let client = Tls::connect(site.address, trust(&site.ca(), alpn));
        assert_eq!(client.alpn(), agreed, "{alpn:?}");
    }
    // Only protocols that nobody here speaks.
    let error =
        Tls::over(connect(site.address), trust(&site.ca(), &["h2"])).err().expect("nothing in common").to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    site.until_quiet();
}

#[test]
fn a_client_hello_that_takes_too_long_is_given_up() {
    let origin = nginx(&[]);
    let plan = Plan { pop_worker: "handshake_timeout = \"500ms\"".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    // One sends nothing, one byte by byte: time runs from accept, so the trickle buys nothing.
    let mut silent = connect(site.address);
    let mut slow = connect(site.address);
    let began = Instant::now();
    let mut hello = vec![0x16, 3, 1, 0x01, 0x00];
    hello.extend_from_slice(&[1, 0, 0, 0xfc]);
    hello.resize(5 + 256, 0);
    let cut = hello.iter().position(|byte| {
        let sent = slow.write_all(std::slice::from_ref(byte));
        thread::sleep(Duration::from_millis(20));
        sent.is_err()
    });
    assert!(cut.is_some() || all_of(&mut slow).is_empty(), "the whole trickle takes five seconds");
    assert!(all_of(&mut silent).is_empty());
    assert!(began.elapsed() < SOON);
    site.until_quiet();
    assert_eq!(site.pop.metrics().get("handshakes_failed_total"), 2);
    assert!(site.pop.log().contains("set-up timed out"), "{}", site.pop.log());
}

#[test]
fn a_client_hello_in_single_bytes_is_as_good_as_any() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let config = trust(&site.ca(), &["http/1.1"]);
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let mut session = rustls::ClientConnection::new(config, name).expect("a client");
    let mut first_flight = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut first_flight).expect("a vector takes everything");
    }
    let mut socket = connect(site.address);
    for byte in &first_flight {
        socket.write_all(std::slice::from_ref(byte)).expect("it is open");
    }
    while session.is_handshaking() {
        session.complete_io(&mut socket).expect("the handshake goes on");
    }
    session.writer().write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a buffer takes it");
    let mut answer = String::new();
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    stream.read_to_string(&mut answer).expect("an answer that ends in order");
    assert!(answer.ends_with("hello from nginx\n"), "{answer}");
    drop(socket);
    site.until_quiet();
}

#[test]
fn peers_that_fall_silent_are_closed_after_a_while() {
    let origin = Scripted::start(|mut stream, _| drop(all_of(&mut stream)));
    let plan = Plan { pop_worker: "idle_timeout = \"1s\"".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    let mut tunnel = Tls::connect(site.address, trust(&site.ca(), &[]));
    let mut mmtp = Mmtp::connect(site.address, &site.ca());
    site.pop.until("both are there", |metrics| metrics.get("handshakes_total{kind=\"full\"}") >= 2);
    // They hear the end of it in order; a half-open peer would not, and is gone all the same.
    assert_eq!(tunnel.receive_all().1, End::Notified);
    let (said, end) = mmtp.rest();
    assert_eq!(end, End::Notified, "{said:?}");
    drop((tunnel, mmtp));
    site.until_quiet();
}

/// Sends frames behind a good HELLO, and gives what the POP said until the end.
fn after_hello(site: &Site, frames: impl FnOnce(&mut Mmtp)) -> (Vec<Said>, End) {
    let mut client = Mmtp::connect(site.address, &site.ca());
    frames(&mut client);
    client.rest()
}

fn data(stream: u64, bytes: &[u8], end: bool) -> Frame<'_> {
    Frame::Data { stream, end, bytes }
}

#[test]
fn clients_that_break_mmtp_are_told_and_closed() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let request = block("pay", "GET", "/");
    let headers = |stream, flags| Frame::Headers { stream, flags, block: &request };

    // The first frame is not HELLO; HELLO comes twice; HTTP inside TLS.
    let first_not_hello = {
        let mut client = Mmtp::silent(site.address, &site.ca());
        client.send(headers(1, HeaderFlags::END));
        client.rest()
    };
    let hello_twice = after_hello(&site, |client| client.tls.send(&hello()).expect("it is open"));
    let http = {
        let mut client = Mmtp::silent(site.address, &site.ca());
        client.tls.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it is open");
        client.rest()
    };
    // Streams with wrong ids: of the other side, and backwards.
    let even = after_hello(&site, |client| client.send(headers(2, HeaderFlags::END)));
    let unopened = after_hello(&site, |client| client.send(data(7, b"x", false)));
    // More credit than there can be.
    let overflow = after_hello(&site, |client| {
        for _ in 0..5 {
            client.send(Frame::Credit { stream: 0, bytes: (1 << 30) - 1 });
        }
    });
    // A frame that is too large, and one that is cut off inside its header by the end of the connection.
    let oversized = after_hello(&site, |client| {
        // DATA, stream 1, length 2^20.
        client.tls.send(&[0x20, 0x01, 0x80, 0x10, 0x00, 0x00]).expect("it is open");
    });

    for (what, (said, end)) in [
        ("first frame", &first_not_hello),
        ("second HELLO", &hello_twice),
        ("HTTP", &http),
        ("even stream", &even),
        ("stream that was not opened", &unopened),
        ("credit overflow", &overflow),
        ("oversized frame", &oversized),
    ] {
        let told = said.iter().any(|said| matches!(said, Said::GoAway(code) if *code != Code::DONE));
        assert!(told || *end == End::Broken, "{what}: {said:?} {end:?}");
        if *end != End::Broken {
            assert_eq!(*end, End::Notified, "{what}: {said:?}");
        }
    }
    assert!(hello_twice.0.contains(&Said::GoAway(Code::PROTOCOL)), "{hello_twice:?}");

    let cut = Mmtp::connect(site.address, &site.ca());
    drop(cut);
    site.until_quiet();
    assert!(site.pop.metrics().get("mmtp_errors_total") >= 7);
    site.call(&[&site.url("pay/")]).answered(200);
}

#[test]
fn more_than_the_credit_is_not_taken() {
    // The origin reads nothing, so no credit is granted anew.
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let origin = Scripted::start(move |_stream, _| {
        let _ = released.lock().expect("one connection").recv_timeout(SOON);
    });
    let site = Site::start(origin.address());
    let mut client = Mmtp::connect(site.address, &site.ca());
    client.send(Frame::Headers { stream: 1, flags: HeaderFlags::NONE, block: &block("pay", "POST", "/") });
    // Enough to get past the windows of POP and gateway and the origin's socket.
    for _ in 0..1024 {
        client.send(data(1, &[0; 16_384], false));
    }
    let said = client.until("the end of the stream or of the connection", |said| {
        matches!(said, Said::Reset(1, ..) | Said::GoAway(_))
    });
    assert!(matches!(said, Said::Reset(1, code, _) | Said::GoAway(code) if code == Code::CREDIT), "{said:?}");
    drop((client, release));
    site.until_quiet();
}

#[test]
fn a_stream_that_breaks_the_rules_is_reset_and_the_others_carry_on() {
    let origin = Scripted::http(|asked| {
        let answer = format!("{} bytes", asked.body.len());
        crate::origin::response("200 OK", "", answer.as_bytes())
    });
    let site = Site::start(origin.address());
    let mut client = Mmtp::connect(site.address, &site.ca());
    let post = block("pay", "POST", "/");
    let headers = |stream, flags, block| Frame::Headers { stream, flags, block };
    let reset_of = |client: &mut Mmtp, wanted| match client
        .until("a reset", |said| matches!(said, Said::Reset(stream, ..) if *stream == wanted))
    {
        Said::Reset(_, code, _) => code,
        other => unreachable!("{other:?} was not waited for"),
    };

    // HEADERS twice.
    client.send(headers(1, HeaderFlags::NONE, &post));
    client.send(headers(1, HeaderFlags::NONE, &post));
    assert_eq!(reset_of(&mut client, 1), Code::STREAM_STATE);
    // DATA after END: in one send, so that the stream is still known.
    client.send(headers(3, HeaderFlags::NONE, &post));
    client.send(data(3, b"all", true));
    client.send(data(3, b"more", false));
    let after_end =
        client.until("an answer or a reset", |said| matches!(said, Said::Reset(3, ..) | Said::Data(3, _, true)));
    assert!(
        matches!(after_end, Said::Reset(3, code, _) if code == Code::STREAM_STATE)
            || matches!(after_end, Said::Data(..))
    );
    // A block that lies about its lengths, one without a service, one with a field twice, one with an upper-case name.
    let mut lying = post.clone();
    lying.extend_from_slice(&[10, 40, b'x']);
    let mut nameless = Vec::new();
    HeaderWriter::new(&mut nameless).known(Known::Method, b"GET").expect("valid");
    let twice = [post.as_slice(), &post].concat();
    let mut upper = post.clone();
    upper.extend_from_slice(&[0, 3, b'X', b'-', b'A', 1, b'1']);
    for (stream, block) in [(5, &lying), (7, &nameless), (9, &twice), (11, &upper)] {
        client.send(headers(stream, HeaderFlags::END, block));
        assert_eq!(reset_of(&mut client, stream), Code::HEADER_BLOCK, "stream {stream}");
    }
    // A body that is longer than its length says: HTTP would take the rest for another request.
    let mut long = Vec::new();
    let mut writer = HeaderWriter::new(&mut long);
    writer.known(Known::Service, b"pay").and_then(|writer| writer.known(Known::Method, b"POST")).expect("valid");
    writer.known(Known::Path, b"/").and_then(|writer| writer.number(Known::ContentLength, 3)).expect("valid");
    client.send(headers(13, HeaderFlags::NONE, &long));
    client.send(data(13, b"abcGET /smuggled HTTP/1.1\r\n\r\n", true));
    assert_eq!(reset_of(&mut client, 13), Code::REQUEST_INVALID);
    // And the connection is as good as new.
    client.send(headers(15, HeaderFlags::NONE, &post));
    client.send(data(15, b"1234567", true));
    assert_eq!(client.answer(15), (200, b"7 bytes".to_vec()));
    drop(client);
    site.until_quiet();
}

#[test]
fn fields_that_only_a_pop_may_set_are_replaced() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let mut client = Mmtp::connect(site.address, &site.ca());
    let mut block = block("pay", "GET", "/who");
    let mut lies = Vec::new();
    let mut writer = HeaderWriter::new(&mut lies);
    writer.known(Known::ClientAddress, b"10.1.2.3:4").expect("valid");
    writer.known(Known::PopId, b"pop-666").expect("valid");
    writer.number(Known::Early, 1).expect("valid");
    block.extend_from_slice(&lies);
    client.send(Frame::Headers { stream: 1, flags: HeaderFlags::END, block: &block });
    let (status, body) = client.answer(1);
    assert_eq!((status, text(&body).as_str()), (200, "127.0.0.1|https|127.0.0.1|\n"));
    site.pop.until_equal(&[("fields_dropped_total", 3)]);
    drop(client);
    site.until_quiet();
}

#[test]
fn more_streams_than_allowed_and_resets_without_end_are_refused() {
    let origin = Scripted::start(|mut stream, _| drop(all_of(&mut stream)));
    let site = Site::start(origin.address());
    let request = block("pay", "GET", "/");
    let (said, _) = after_hello(&site, |client| {
        for stream in (1..4000).step_by(2) {
            client.send(Frame::Headers { stream, flags: HeaderFlags::END, block: &request });
        }
    });
    assert!(said.iter().any(|said| matches!(said, Said::GoAway(_) | Said::Reset(..))), "{said:?}");
    // Open and reset, as fast as can be.
    let (said, _) = after_hello(&site, |client| {
        for stream in (1..20_000).step_by(2) {
            client.send(Frame::Headers { stream, flags: HeaderFlags::END, block: &request });
            client.send(Frame::Reset { stream, code: Code::CANCELLED, receipt: Receipt::Unknown, wait_ms: 0 });
        }
    });
    let flooded = said.iter().any(|said| matches!(said, Said::GoAway(code) if *code == Code::FLOOD));
    assert!(flooded || site.pop.log().contains("MMTP broken"), "{said:?}\n{}", site.pop.log());
    site.until_quiet();
}

/// How much a process may grow for so many streams that are stuck. What one stream may hold is its window on the trunk,
/// which a fast start lets grow to 2 MiB, and a queue's memory doubles as it grows. The rest is the worker's, however many
/// streams are stuck: 64 receive buffers of 64 KiB, of which the first time need not have touched all, 5 MiB of spare send
/// buffers, and what the allocator keeps.
fn growth_bytes_max(streams: u64) -> u64 {
    (2 * 2 * streams + 4 + 5 + 4) * 1024 * 1024
}

#[test]
fn a_client_that_stops_reading_costs_little_and_harms_nobody() {
    let content = pattern(64 * 1024 * 1024);
    let origin = nginx(&[("large", &content)]);
    // Few buffers: they are touched one after the other, and should not look like growth.
    let plan = Plan { pop_worker: "buffers = 64".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    let null = ["--output", "/dev/null"];
    site.curl(&[&null[..], &[&site.https("/large")]].concat());
    site.call(&[&site.url("pay/large")]).answered(200);
    site.until_quiet();
    let before = site.pop.anonymous_bytes();

    let mut tunnel = Tls::connect(site.address, trust(&site.ca(), &[]));
    tunnel.send(b"GET /large HTTP/1.0\r\n\r\n").expect("it is open");
    let mut stuck = Mmtp::connect(site.address, &site.ca());
    stuck.get(1, "pay", "/large");
    // Both answers run until nothing moves any more.
    let mut sent = 0;
    site.pop.until("both answers are stuck", |metrics| {
        let now = metrics.get("bytes_sent_total");
        std::mem::replace(&mut sent, now) == now && metrics.get("streams_open") == 2
    });
    let growth = site.pop.anonymous_bytes().saturating_sub(before);
    assert!(growth < growth_bytes_max(2), "the POP grew by {growth} bytes");

    // Others are served meanwhile, small and large.
    assert_eq!(text(&site.curl(&[&site.https("/")])), "hello from nginx\n");
    let called = site.call(&[&site.url("pay/large")]);
    called.answered(200);
    assert!(called.body == content);
    let growth = site.pop.anonymous_bytes().saturating_sub(before);
    assert!(growth < growth_bytes_max(3), "the POP grew by {growth} bytes");

    // One that reads on after all gets the rest; one that is gone is forgotten.
    let (got, _) = tunnel.receive_all();
    assert!(got.ends_with(&content));
    drop((tunnel, stuck));
    site.until_quiet();
}

#[test]
fn an_origin_that_stops_reading_holds_its_client_back() {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let origin = Scripted::start(move |mut stream, _| {
        let _ = released.lock().expect("one connection").recv_timeout(SOON);
        let all = all_of(&mut stream);
        let _ = stream.write_all(all.len().to_string().as_bytes());
    });
    let plan =
        Plan { pop_worker: "buffers = 64".to_owned(), gateway_worker: "buffers = 64".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    let content = pattern(32 * 1024 * 1024);
    // Once without a pause, so that buffers and spare memory are there.
    release.send(()).expect("the origin waits");
    let mut first = Tls::connect(site.address, trust(&site.ca(), &[]));
    first.send(&content).expect("the origin reads");
    first.half_close();
    first.receive_all();
    drop(first);
    site.until_quiet();
    let before = (site.pop.anonymous_bytes(), site.gateway.anonymous_bytes());
    let mut client = Tls::connect(site.address, trust(&site.ca(), &[]));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            client.send(&content).expect("the origin reads in the end");
            client.half_close();
            client.receive_all()
        });
        let mut received = 0;
        site.pop.until("nothing moves", |metrics| {
            let now = metrics.get("bytes_received_total");
            std::mem::replace(&mut received, now) == now && now > 128 * 1024
        });
        let growth = site.pop.anonymous_bytes().saturating_sub(before.0);
        assert!(growth < growth_bytes_max(1), "the POP grew by {growth} bytes");
        let growth = site.gateway.anonymous_bytes().saturating_sub(before.1);
        assert!(growth < growth_bytes_max(1), "the gateway grew by {growth} bytes");
        release.send(()).expect("the origin waits");
        let (answer, end) = writer.join().expect("it wrote");
        assert_eq!((text(&answer), end), (content.len().to_string(), End::Notified));
    });
    drop(client);
    site.until_quiet();
}
