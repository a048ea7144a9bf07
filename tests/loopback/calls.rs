//! `trunkline call` and MMTP clients, through POP and gateway, to HTTP servers.

use std::net::Shutdown;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use trunkline::client::{Client, Request, Url};

use crate::harness::{Plan, SOON, Site, address, pattern, text};
use crate::origin::{Asked, Http, Scripted, chunked, nginx, response};
use crate::peers::{Mmtp, reset};

#[test]
fn nginx_answers_calls_of_every_kind() {
    let content = pattern(3 * 1024 * 1024);
    let origin = nginx(&[("file", &content)]);
    let site = Site::start(origin.address());

    let called = site.call(&[&site.url("pay/")]);
    called.answered(200);
    assert_eq!(text(&called.body), "hello from nginx\n");

    let called = site.call(&["-H", "x-app: seven", &site.url("pay/who")]);
    called.answered(200);
    assert_eq!(text(&called.body), "127.0.0.1|https|localhost|seven\n");

    let called = site.call(&["-X", "HEAD", &site.url("pay/file")]);
    called.answered(200);
    assert!(called.body.is_empty());

    let called = site.call(&[&site.url("pay/nothing")]);
    called.answered(204);
    assert!(called.body.is_empty());

    let called = site.call(&["-H", "if-modified-since: Thu, 01 Jan 2099 00:00:00 GMT", &site.url("pay/file")]);
    called.answered(304);
    assert!(called.body.is_empty());

    let called = site.call(&[&site.url("pay/missing")]);
    called.answered(404);

    // A body of known length, and one from standard input of unknown length.
    let file = site.scratch.write("sent", &content).display().to_string();
    site.call(&["-X", "PUT", "-d", &format!("@{file}"), &site.url("pay/store/one")]).answered(201);
    site.call_with(&["-X", "PUT", "-d", "@-", &site.url("pay/store/two")], &content).answered(201);
    for name in ["one", "two"] {
        assert!(origin.scratch().read(&format!("files/store/{name}")) == content, "{name}");
        let called = site.call(&[&site.url(&format!("pay/store/{name}"))]);
        called.answered(200);
        assert!(called.body == content, "{name}");
    }
    site.until_quiet();
}

/// Answers with what it was asked, as text, then the body.
fn mirror(asked: &Asked) -> Vec<u8> {
    let fields = asked.fields.iter().map(|(name, value)| format!("{name}: {value}\n"));
    let head = format!("{}\nchunked: {}\n{}\n", asked.line, asked.chunked, fields.collect::<String>());
    response("200 OK", "X-Mirror: yes\r\n", &[head.as_bytes(), &asked.body].concat())
}

#[test]
fn a_request_reaches_the_origin_as_it_was_meant() {
    let origin = Scripted::http(mirror);
    let site = Site::start(origin.address());
    let called = site.call(&[
        "-d",
        "hello=1",
        "-H",
        "Content-Type: text/x",
        "--request-id",
        "r-1",
        &site.url("pay/a%20b?c=d&e"),
    ]);
    called.answered(200);
    let mirrored = text(&called.body);
    for line in [
        "POST /a%20b?c=d&e HTTP/1.1\n",
        "\ncontent-type: text/x\n",
        "\ncontent-length: 7\n",
        "\nx-forwarded-for: 127.0.0.1\n",
        "\nx-forwarded-proto: https\n",
        "\nx-request-id: r-1\n",
        "\n\nhello=1",
    ] {
        assert!(mirrored.contains(line), "{line:?} is missing in {mirrored}");
    }
    // What a client says about itself in the gateway's own fields is not believed.
    let called = site.call(&["-H", "x-forwarded-for: 10.9.9.9", "-H", "x-real-ip: 10.9.9.9", &site.url("pay/")]);
    called.answered(200);
    let mirrored = text(&called.body);
    assert!(mirrored.contains("\nx-forwarded-for: 127.0.0.1\n"), "{mirrored}");
    assert_eq!(mirrored.matches("x-forwarded-for").count(), 1, "{mirrored}");
    site.until_quiet();
}

#[test]
fn chunks_become_a_stream_and_trailers_are_counted() {
    let content = pattern(2 * 1024 * 1024);
    let expected = content.clone();
    let origin = Scripted::http(move |asked| match asked.line.split(' ').nth(1) {
        Some("/trailers") => {
            let mut all = chunked("Trailer: x-sum\r\n", b"with trailers", 5);
            all.truncate(all.len() - 2);
            all.extend_from_slice(b"X-Sum: 1\r\nX-More: 2\r\n\r\n");
            all
        }
        Some("/interim") => {
            let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
            [interim.as_slice(), &response("200 OK", "", b"at last")].concat()
        }
        Some("/until-close") => [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".as_slice(), b"to the end"].concat(),
        _ => chunked("", &content, 7001),
    });
    let site = Site::start(origin.address());
    let called = site.call(&[&site.url("pay/")]);
    called.answered(200);
    assert!(called.body == expected);
    let called = site.call(&[&site.url("pay/trailers")]);
    called.answered(200);
    assert_eq!(text(&called.body), "with trailers");
    site.gateway.until_equal(&[("trailers_dropped_total", 2)]);
    let called = site.call(&[&site.url("pay/interim")]);
    called.answered(200);
    assert_eq!(text(&called.body), "at last");
    // All four used one connection, which had been kept.
    assert_eq!(origin.accepted(), 1);
    site.until_quiet();
}

#[test]
fn a_body_that_ends_with_its_connection_is_whole() {
    let content = pattern(300_000);
    let expected = content.clone();
    let origin = Scripted::start(move |stream, _| {
        let mut connection = Http::new(stream);
        if connection.asked().is_some() {
            connection.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            connection.write(&content);
        }
    });
    let site = Site::start(origin.address());
    for _ in 0..3 {
        let called = site.call(&[&site.url("pay/")]);
        called.answered(200);
        assert!(called.body == expected);
    }
    assert_eq!(origin.accepted(), 3);
    site.until_quiet();
}

#[test]
fn a_thousand_calls_with_a_hundred_outstanding_are_all_answered() {
    let content = pattern(281);
    let origin = nginx(&[("small", &content)]);
    let site = Site::start(origin.address());
    let called = site.call(&["--repeat", "1000", "--outstanding", "100", &site.url("pay/small")]);
    assert_eq!(called.code, 0, "{}", called.stderr);
    assert!(called.body == content);
    for (key, value) in [("calls", 1000), ("answered", 1000), ("failed", 0), ("differing", 0), ("connections", 1)] {
        assert_eq!(called.report[key], value, "{key}: {}", called.stderr);
    }
    site.until_quiet();
    let reused = site.gateway.metrics().get("upstream_reused_total");
    assert!(reused >= 500, "connections to the origin are kept: {reused} of 1000");
}

#[test]
fn what_cannot_be_carried_out_says_so() {
    let origin = Scripted::http(mirror);
    let site = Site::start(origin.address());
    let called = site.call(&[&site.url("nobody/")]);
    called.failed("refused", "service_unknown");
    // Injection: neither a line break nor a field of the connection gets past the client.
    for field in ["x-a: 1\r\nx-b: 2", "transfer-encoding: chunked", "connection: close", "x a: 1"] {
        let called = site.call(&["-H", field, &site.url("pay/")]);
        assert_eq!(called.code, 2, "{field:?}: {}", called.stderr);
    }
    assert_eq!(origin.accepted(), 0);
    // A certificate of somebody else.
    crate::harness::certificates(site.scratch.path(), "others");
    let others = site.scratch.path().join("others/ca.pem").display().to_string();
    let called = site.call(&["--ca", &others, &site.url("pay/")]);
    assert_ne!(called.code, 0, "{}", called.stderr);
    site.until_quiet();
}

#[test]
fn an_upstream_that_is_down_is_a_refusal() {
    let site = Site::start(address());
    site.call(&[&site.url("pay/")]).failed("refused", "upstream_unreachable");
    let many = site.call(&["--repeat", "5", &site.url("pay/")]);
    assert_eq!(many.code, 1, "{}", many.stderr);
    for (key, value) in [("failed", 5), ("refused", 5), ("unknown", 0), ("not_forwarded", 0), ("answered", 0)] {
        assert_eq!(many.report[key], value, "{key}: {}", many.stderr);
    }
    // In a tunnel it is a reset: nobody may take it for an empty answer.
    assert!(!site.curl_output(&[&site.https("/")]).status.success());
    site.until_quiet();
    assert!(site.gateway.metrics().get("upstream_failed_total") >= 2);
}

#[test]
fn an_upstream_that_is_slow_is_given_up() {
    let origin = Scripted::start(|stream, number| {
        let mut connection = Http::new(stream);
        let _ = connection.asked();
        if number == 1 {
            connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        }
        // Nothing more, until the gateway has had enough.
        let _ = connection.head();
    });
    let plan = Plan { upstream: "response_timeout = \"500ms\"".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    site.call(&[&site.url("pay/")]).failed("unknown", "deadline");
    let called = site.call(&[&site.url("pay/")]);
    called.failed("unknown", "deadline");
    assert_eq!(called.report["status"], 200, "its head had come");
    // A caller that is less patient has its own clock.
    let called = site.call(&["--timeout", "100ms", &site.url("pay/")]);
    called.failed("unknown", "timed out");
    site.until_quiet();
}

#[test]
fn an_upstream_that_closes_early_is_an_unknown_outcome() {
    let origin = Scripted::start(|stream, number| {
        let mut connection = Http::new(stream);
        let _ = connection.asked();
        match number {
            // With nothing said, in the middle of a head, of a body and of a chunk.
            0 => {}
            1 => connection.write(b"HTTP/1.1 200 OK\r\nContent-Le"),
            2 => connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
            3 => connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf"),
            _ => reset(connection.stream().try_clone().expect("a descriptor")),
        }
    });
    let site = Site::start(origin.address());
    for case in 0..5 {
        let called = site.call(&[&site.url("pay/")]);
        called.failed("unknown", "upstream_broken");
        let status = if matches!(case, 2 | 3) { 200.into() } else { serde_json::Value::Null };
        assert_eq!(called.report["status"], status, "case {case}");
    }
    site.until_quiet();
}

#[test]
fn nonsense_from_an_upstream_goes_no_further() {
    let nonsense: [&[u8]; 8] = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
    ];
    let origin = Scripted::start(move |stream, number| {
        let mut connection = Http::new(stream);
        let _ = connection.asked();
        connection.write(nonsense[number]);
        let _ = connection.head();
    });
    let site = Site::start(origin.address());
    for (case, bytes) in nonsense.iter().enumerate() {
        let called = site.call(&[&site.url("pay/")]);
        assert_eq!((called.code, called.word("receipt")), (1, "unknown"), "case {case}, {bytes:?}: {}", called.stderr);
        assert!(called.body.is_empty(), "case {case}");
    }
    site.until_quiet();
    assert_eq!(site.gateway.metrics().get("responses_invalid_total"), nonsense.len() as u64);
}

/// An origin that answers one request per connection and closes it when told to, as a server's idle timeout does.
fn stale_after_one(closes: mpsc::Receiver<()>) -> Scripted {
    let closes = Mutex::new(closes);
    Scripted::start(move |stream, number| {
        let mut connection = Http::new(stream);
        let Some(asked) = connection.asked() else { return };
        connection.write(&response("200 OK", "", format!("{number} {}", asked.line).as_bytes()));
        if number == 0 {
            // The next request meets a connection that is closed as it arrives: it is read, and never answered.
            let _ = connection.head();
            let _ = closes.lock().expect("one connection at a time").recv_timeout(SOON);
            let _ = connection.stream().shutdown(Shutdown::Both);
        } else {
            while let Some(asked) = connection.asked() {
                connection.write(&response("200 OK", "", format!("{number} {}", asked.line).as_bytes()));
            }
        }
    })
}

#[test]
fn a_get_that_met_a_stale_connection_is_moved() {
    let (close, closes) = mpsc::channel();
    let origin = stale_after_one(closes);
    let site = Site::start(origin.address());
    site.call(&[&site.url("pay/")]).answered(200);
    close.send(()).expect("the origin waits");
    let called = site.call(&[&site.url("pay/again")]);
    called.answered(200);
    assert_eq!(text(&called.body), "1 GET /again HTTP/1.1");
    site.gateway.until_equal(&[("upstream_moved_total", 1), ("upstream_reused_total", 1)]);
    site.until_quiet();
}

#[test]
fn a_post_that_met_a_stale_connection_is_not_repeated() {
    let (close, closes) = mpsc::channel();
    let origin = stale_after_one(closes);
    let site = Site::start(origin.address());
    site.call(&[&site.url("pay/")]).answered(200);
    close.send(()).expect("the origin waits");
    site.call(&["-d", "amount=1", &site.url("pay/transfer")]).failed("unknown", "upstream_broken");
    assert_eq!(origin.accepted(), 1, "it was not sent again");
    // The next one has a connection of its own.
    let called = site.call(&["-d", "amount=2", &site.url("pay/transfer")]);
    called.answered(200);
    assert_eq!(text(&called.body), "1 POST /transfer HTTP/1.1");
    site.gateway.until_equal(&[("upstream_moved_total", 0)]);
    site.until_quiet();
}

#[test]
fn an_answer_before_the_end_of_the_request_ends_the_call() {
    // As servers do with what is too large: an answer at once, and no more reading.
    let origin = Scripted::start(|stream, _| {
        let mut connection = Http::new(stream);
        let _ = connection.head();
        connection.write(&response("413 Content Too Large", "Connection: close\r\n", b"too much"));
        let _ = connection.stream().shutdown(Shutdown::Write);
        let mut rest = vec![0; 64 * 1024];
        while std::io::Read::read(&mut connection.stream(), &mut rest).is_ok_and(|count| count > 0) {}
    });
    let site = Site::start(origin.address());
    let content = pattern(8 * 1024 * 1024);
    let called = site.call_with(&["-X", "PUT", "-d", "@-", &site.url("pay/")], &content);
    called.answered(413);
    assert_eq!(text(&called.body), "too much");
    site.until_quiet();
}

#[test]
fn a_large_body_goes_both_ways_at_once() {
    // The origin answers with what it reads, while it reads.
    let origin = Scripted::start(|stream, _| {
        let mut connection = Http::new(stream);
        let Some(asked) = connection.head() else { return };
        let length: usize = asked.field("content-length").expect("its length is known").parse().expect("a number");
        connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes());
        let mut left = length;
        while left > 0 {
            let Some(piece) = connection.piece(left) else { return };
            left -= piece.len();
            connection.write(&piece);
        }
    });
    let site = Site::start(origin.address());
    let content = pattern(16 * 1024 * 1024);
    let file = site.scratch.write("sent", &content).display().to_string();
    let called = site.call(&["-d", &format!("@{file}"), &site.url("pay/")]);
    called.answered(200);
    assert!(called.body == content);
    site.until_quiet();
}

#[test]
fn urgent_calls_do_not_wait_for_large_ones() {
    let content = pattern(8 * 1024 * 1024);
    let origin = nginx(&[("large", &content)]);
    let site = Site::start(origin.address());
    let client = Client::builder().ca_pem(&std::fs::read(site.ca()).expect("it exists")).build().expect("a client");
    let url = |path: &str| Url::parse(&site.url(path)).expect("a URL");
    let large: Vec<_> = (0..8).map(|_| client.start(Request::get(url("pay/large")).priority(7))).collect();
    let heads: Vec<_> = large.iter().map(|call| call.response_head().expect("an answer").status).collect();
    assert_eq!(heads, [200; 8]);
    // All of them are stuck behind their windows; this one is not.
    let urgent = client.call(Request::get(url("pay/")).priority(0).timeout(SOON)).expect("an answer");
    assert_eq!(urgent.status, 200);
    for call in large {
        assert!(call.body(content.len()).expect("the whole of it") == content);
    }
    drop(client);
    site.until_quiet();
}

#[test]
fn a_cancelled_call_is_cancelled_all_the_way() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let origin = Scripted::start(move |stream, _| {
        let mut connection = Http::new(stream);
        let _ = connection.asked();
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        // The end of the gateway's interest shows as the end of the connection.
        tell.lock().expect("one connection").send(connection.head().is_none()).expect("the test waits");
    });
    let site = Site::start(origin.address());
    let mut client = Mmtp::connect(site.address, &site.ca());
    client.get(1, "pay", "/");
    client.until("the first bytes", |said| matches!(said, crate::peers::Said::Data(1, ..)));
    client.send(trunkline::mmtp::frame::Frame::Reset {
        stream: 1,
        code: trunkline::mmtp::Code::CANCELLED,
        receipt: trunkline::mmtp::Receipt::Unknown,
        wait_ms: 0,
    });
    assert!(told.recv_timeout(SOON).expect("the origin hears of it"));
    site.pop.until_equal(&[("streams_cancelled_total", 1), ("streams_open", 0)]);
    drop(client);
    site.until_quiet();
}

#[test]
fn a_tunnel_service_is_open_to_mmtp_clients_as_well() {
    let origin = Scripted::start(|mut stream, _| {
        let mut copy = stream.try_clone().expect("a descriptor");
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let site = Site::start(origin.address());
    let client = Client::builder().ca_pem(&std::fs::read(site.ca()).expect("it exists")).build().expect("a client");
    let call = Arc::new(client.start(Request::tunnel(Url::parse(&site.url("web")).expect("a URL"))));
    assert_eq!(call.response_head().expect("it opens").status, 200);
    let content = pattern(2 * 1024 * 1024);
    let writer = {
        let (call, content) = (call.clone(), content.clone());
        thread::spawn(move || {
            call.write(&content).expect("it is open");
            call.finish();
        })
    };
    assert!(call.body(content.len()).expect("the whole of it") == content);
    writer.join().expect("it wrote");
    drop(call);
    drop(client);
    site.until_quiet();
}

#[test]
fn without_a_gateway_nothing_was_forwarded() {
    let origin = nginx(&[]);
    let plan = Plan { backbone: "wait_for_trunk = \"300ms\"".to_owned(), ..Plan::default() };
    let mut site = Site::with(origin.address(), &plan);
    site.gateway.process().kill();
    site.pop.until_equal(&[("trunks_ready", 0)]);
    let (status, why) = site.pop.get("/ready");
    assert_eq!((status, why.as_str()), (503, "no trunk is up on worker 0\n"));
    site.call(&["-d", "amount=1", &site.url("pay/")]).failed("not-forwarded", "no_route");
    site.pop.until_equal(&[("streams_failed_total{receipt=\"not_forwarded\"}", 1)]);
    assert!(!site.curl_output(&[&site.https("/")]).status.success());
    site.gateway.restart();
    site.pop.until_equal(&[("trunks_ready", 2)]);
    site.call(&["--timeout", "10s", &site.url("pay/")]).answered(200);
    site.until_quiet();
}
