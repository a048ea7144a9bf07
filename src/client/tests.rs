//! The client against servers that behave, and servers that do not.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::testing::{Got, Peer, Server, identity, new_identity, pattern, resuming, ticket_store};
use super::*;
use crate::base::prng::Prng;
use crate::base::time::Time;
use crate::mmtp::encode::put_frame;
use crate::mmtp::frame::Frame;
use crate::mmtp::{Code, Connection, HeaderFlags, Receipt as WireReceipt, Settings, StreamId};

fn builder() -> Builder {
    let builder = Client::builder().ca_pem(identity().ca_pem.as_bytes());
    builder.attributes("tests", "1", "any", "loopback").connect_timeout(Duration::from_secs(5))
}

fn client() -> Client {
    builder().build().expect("a valid client")
}

fn failed(client: &Client, request: Request) -> (Failure, Receipt) {
    let error = client.call(request).expect_err("the server does not answer");
    assert!(error.report().total_ms.is_some());
    (error.failure().clone(), error.receipt())
}

#[test]
fn calls_are_answered_and_share_a_connection() {
    let server = Server::serving();
    let client = client();
    let first = client.call(Request::get(server.url("/one?x=1"))).expect("an answer");
    assert_eq!((first.status, &first.body[..]), (200, &b"/one?x=1"[..]));
    assert_eq!(first.fields.get("X-Served-By"), Some(&b"test"[..]));
    assert!(!first.report.reused && first.report.early == EarlyData::No);
    assert!(first.report.tls_ms.is_some() && first.report.first_byte_ms.is_some());
    assert_eq!(first.report.receipt, Outcome::Answered);
    let body = pattern(100_000);
    let second = client.call(Request::post(server.url("/echo"), body.clone())).expect("an answer");
    assert!(second.body == body);
    assert!(second.report.reused && second.report.tls_ms.is_none());
    assert_eq!((second.report.sent_bytes, second.report.received_bytes), (100_000, 100_000));
    assert_eq!(server.accepted(), 1);
}

#[test]
fn many_outstanding_calls_over_one_connection_all_get_their_own_answer() {
    let server = Server::serving();
    let client = client();
    let mut under_way = VecDeque::new();
    for number in 0..10_000 {
        if under_way.len() == 100 {
            let (number, call): (usize, Call) = under_way.pop_front().expect("just counted");
            let response = call.response(1000).expect("an answer");
            assert_eq!(response.body, format!("/call/{number}").into_bytes());
        }
        under_way.push_back((number, client.start(Request::get(server.url(&format!("/call/{number}"))))));
    }
    for (number, call) in under_way {
        assert_eq!(call.response(1000).expect("an answer").body, format!("/call/{number}").into_bytes());
    }
    assert_eq!(server.accepted(), 1);
}

#[test]
fn more_calls_than_the_server_allows_wait_their_turn_by_priority() {
    let (sender, order) = mpsc::channel();
    let server = Server::talking(move |mut peer| {
        let mut held = Vec::new();
        while let Some((stream, path)) = peer.request() {
            sender.send(path).expect("the test waits");
            held.push(stream);
            if held.len() >= 100 {
                // Everyone the limit allows is here: let one go, so that one more comes.
                let stream = held.remove(0);
                peer.answer(stream, 200, b"x");
            }
        }
    });
    let client = client();
    let get = |path: &str| Request::get(server.url(path)).no_timeout();
    let fillers: Vec<Call> = (0..99).map(|_| client.start(get("/filler"))).collect();
    for _ in 0..99 {
        assert_eq!(order.recv().expect("the server runs"), "/filler");
    }
    let blocker = client.start(get("/blocker").priority(7));
    assert_eq!(order.recv().expect("the server runs"), "/blocker");
    assert_eq!(fillers[0].response(10).expect("an answer").body, b"x");
    // The blocker's arrival freed one place; it and what follows come one at a time.
    let late = client.start(get("/late").priority(7));
    assert_eq!(order.recv().expect("the server runs"), "/late");
    drop((late, blocker));
}

#[test]
fn bodies_stream_both_ways() {
    let server = Server::serving();
    let client = client();
    let call = client.start(Request::new("PUT", server.url("/echo")).streamed());
    let body = pattern(8 * 1024 * 1024);
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            for chunk in body.chunks(10_000) {
                call.write(chunk).expect("it is taken");
            }
            call.finish();
        });
        assert_eq!(call.response_head().expect("a head").status, 200);
        call.body(usize::MAX).expect("the whole body")
    });
    assert!(received == body);
    let report = call.report();
    assert_eq!((report.sent_bytes, report.received_bytes), (8 << 20, 8 << 20));
    assert!(matches!(call.write(b"more").expect_err("ended").failure(), Failure::Finished));
}

#[test]
fn a_call_is_a_reader_and_a_writer() {
    let server = Server::serving();
    let mut call = client().start(Request::tunnel(server.url("/echo")));
    // A tunnel has no path: the server echoes nothing, and answers at once.
    let mut text = String::new();
    call.finish();
    call.read_to_string(&mut text).expect("the answer");
    assert_eq!(text, "");
    let mut call = client().start(Request::new("POST", server.url("/echo")).streamed());
    call.write_all(b"hello").expect("taken");
    call.finish();
    call.read_to_string(&mut text).expect("the answer");
    assert_eq!(text, "hello");
}

#[test]
fn an_answer_that_nobody_reads_is_held_back_and_blocks_nobody() {
    let server = Server::serving();
    let client = client();
    let big = client.start(Request::get(server.url(&format!("/size/{}", 6 << 20))));
    assert_eq!(big.response_head().expect("a head").status, 200);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(client.call(Request::get(server.url("/small"))).expect("an answer").body, b"/small");
    let held = big.report().received_bytes;
    assert!(held <= u64::from(STREAM_CREDIT_BYTES), "{held} bytes held");
    assert!(big.body(usize::MAX).expect("the rest") == pattern(6 << 20));
}

#[test]
fn a_writer_waits_while_the_server_takes_nothing() {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let server = Server::talking(move |mut peer| {
        let _ = peer.request();
        let _ = released.lock().expect("one connection").recv();
        let mut total = 0;
        while let Some(got) = peer.next() {
            if let Got::Data { stream, bytes, end } = got {
                total += bytes.len();
                peer.consumed(stream, bytes.len());
                if end {
                    peer.answer(stream, 200, total.to_string().as_bytes());
                }
            }
        }
    });
    let client = client();
    let call = client.start(Request::new("PUT", server.url("/x")).streamed());
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..64 {
                call.write(&[7; 64 * 1024]).expect("taken in the end");
                written.fetch_add(64 * 1024, Ordering::SeqCst);
            }
            call.finish();
        });
        std::thread::sleep(Duration::from_millis(300));
        let taken = written.load(Ordering::SeqCst);
        assert!(taken < 1 << 20, "{taken} bytes taken while the server takes nothing");
        release.send(()).expect("the server waits");
        assert_eq!(call.response(100).expect("an answer").body, (64 * 64 * 1024).to_string().as_bytes());
    });
}

#[test]
fn a_tunnel_keeps_its_halves_apart() {
    let server = Server::talking(|mut peer| {
        let (stream, path) = peer.request().expect("a stream");
        assert_eq!(path, "");
        peer.head(stream, 200, false);
        peer.mmtp.send_data(stream, b"welcome", false, &mut peer.out).expect("open");
        let mut heard = Vec::new();
        while let Some(got) = peer.next() {
            if let Got::Data { bytes, end, .. } = got {
                heard.extend(bytes);
                if end {
                    heard.reverse();
                    peer.mmtp.send_data(stream, &heard, true, &mut peer.out).expect("open this way");
                }
            }
        }
    });
    let call = client().start(Request::tunnel(server.url("/")));
    let mut buffer = [0; 7];
    call.write(b"ab").expect("taken");
    (&call).read_exact(&mut buffer).expect("the greeting");
    assert_eq!(&buffer, b"welcome");
    call.write(b"cd").expect("taken");
    call.finish();
    assert_eq!(call.body(100).expect("the rest"), b"dcba");
}

#[test]
fn interim_answers_are_passed_over() {
    let server = Server::talking(|mut peer| {
        let (stream, _) = peer.request().expect("a request");
        peer.head(stream, 103, false);
        peer.answer(stream, 204, b"");
        while peer.next().is_some() {}
    });
    let response = client().call(Request::get(server.url("/"))).expect("an answer");
    assert_eq!((response.status, response.body.len()), (204, 0));
}

#[test]
fn every_receipt_of_a_reset_reaches_the_caller() {
    for (wire, wait_ms, receipt) in [
        (WireReceipt::NotForwarded, 0, Receipt::NotForwarded),
        (WireReceipt::Unknown, 0, Receipt::Unknown),
        (WireReceipt::Refused, 1500, Receipt::Refused { wait: Duration::from_millis(1500) }),
    ] {
        let server = Server::talking(move |mut peer| {
            let (stream, _) = peer.request().expect("a request");
            peer.reset(stream, wire, wait_ms);
            while peer.next().is_some() {}
        });
        let (failure, got) = failed(&client(), Request::get(server.url("/")));
        assert_eq!(got, receipt);
        assert_eq!(failure, Failure::Reset { code: 17, name: "overloaded" });
    }
}

#[test]
fn a_reset_in_the_middle_of_a_body_gives_what_came_first() {
    let server = Server::talking(|mut peer| {
        let (stream, _) = peer.request().expect("a request");
        peer.head(stream, 200, false);
        peer.mmtp.send_data(stream, b"part", false, &mut peer.out).expect("open");
        peer.flush();
        peer.reset(stream, WireReceipt::Unknown, 0);
        while peer.next().is_some() {}
    });
    let call = client().start(Request::get(server.url("/")));
    let mut buffer = [0; 16];
    assert_eq!(call.read(&mut buffer).expect("what came"), 4);
    let error = call.read(&mut buffer).expect_err("then the failure");
    assert_eq!(error.receipt(), Receipt::Unknown);
    assert_eq!(call.response_head().expect("it did come").status, 200);
}

#[test]
fn an_early_answer_ends_the_upload() {
    let server = Server::talking(|mut peer| {
        let (stream, _) = peer.request().expect("a request");
        peer.answer(stream, 413, b"too large");
        assert_eq!(peer.until_reset(), Some(Code::CANCELLED));
        peer.serve();
    });
    let client = client();
    let response = client.call(Request::post(server.url("/x"), vec![1; 4 << 20])).expect("an answer");
    assert_eq!((response.status, &response.body[..]), (413, &b"too large"[..]));
    assert_eq!(client.call(Request::get(server.url("/next"))).expect("an answer").body, b"/next");
    assert_eq!(server.accepted(), 1);
}

#[test]
fn cancelled_and_dropped_calls_are_reset() {
    let (sender, heard) = mpsc::channel();
    let server = Server::talking(move |mut peer| {
        while let Some(got) = peer.next() {
            let code = match got {
                Got::Headers { .. } => None,
                Got::Reset { code } => Some(code),
                Got::Data { .. } | Got::Other => continue,
            };
            sender.send(code).expect("the test waits");
        }
    });
    let client = client();
    let call = client.start(Request::get(server.url("/")));
    assert_eq!(heard.recv(), Ok(None));
    call.cancel();
    assert_eq!(*call.response_head().expect_err("cancelled").failure(), Failure::Cancelled);
    assert_eq!(heard.recv(), Ok(Some(Code::CANCELLED)));
    let call = client.start(Request::get(server.url("/")));
    assert_eq!(heard.recv(), Ok(None));
    drop(call);
    assert_eq!(heard.recv(), Ok(Some(Code::CANCELLED)));
}

#[test]
fn a_timeout_resets_the_stream_and_leaves_the_connection() {
    let (sender, codes) = mpsc::channel();
    let server = Server::talking(move |mut peer| {
        sender.send(peer.until_reset()).expect("the test waits");
        peer.serve();
    });
    let client = client();
    let begun = Instant::now();
    let request = Request::get(server.url("/")).timeout(Duration::from_millis(200));
    assert_eq!(failed(&client, request), (Failure::TimedOut(Stage::Answer), Receipt::Unknown));
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(codes.recv(), Ok(Some(Code::DEADLINE)));
    assert_eq!(client.call(Request::get(server.url("/next"))).expect("an answer").body, b"/next");
    assert_eq!(server.accepted(), 1);
}

#[test]
fn credit_that_is_never_granted_ends_in_the_timeout() {
    let server = Server::talking(|mut peer| while peer.next().is_some() {});
    let request = Request::post(server.url("/"), vec![0; 1 << 20]).timeout(Duration::from_millis(300));
    assert_eq!(failed(&client(), request), (Failure::TimedOut(Stage::Answer), Receipt::Unknown));
}

#[test]
fn a_server_that_stops_reading_ends_in_the_timeout() {
    let server = Server::talking(|mut peer| {
        let (stream, _) = peer.request().expect("a request");
        peer.consumed(stream, 0);
        // Much credit, and then nobody reads: the bytes pile up in the sockets and then at the client.
        peer.send_raw(&credit(stream, 64 << 20));
        peer.send_raw(&credit(0, 64 << 20));
        std::thread::sleep(Duration::from_secs(5));
    });
    let begun = Instant::now();
    let request = Request::post(server.url("/"), vec![0; 48 << 20]).timeout(Duration::from_millis(700));
    assert_eq!(failed(&client(), request), (Failure::TimedOut(Stage::Answer), Receipt::Unknown));
    assert!(begun.elapsed() < Duration::from_secs(4));
}

/// A CREDIT frame by hand.
fn credit(stream: StreamId, bytes: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    put_frame(Frame::Credit { stream, bytes }, &mut frame);
    frame
}

#[test]
fn nothing_listens() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = Url::parse(&format!("mmtp://{}/pay/", closed.local_addr().expect("bound"))).expect("valid");
    drop(closed);
    let (failure, receipt) = failed(&client(), Request::get(url));
    assert!(matches!(failure, Failure::Connect(_)), "{failure:?}");
    assert_eq!(receipt, Receipt::NotForwarded);
}

#[test]
fn a_name_without_an_address() {
    let url = Url::parse("mmtp://no-such-host.invalid:1/pay/").expect("valid");
    let (failure, receipt) = failed(&client(), Request::get(url).timeout(Duration::from_secs(20)));
    assert!(matches!(failure, Failure::Lookup(_) | Failure::TimedOut(Stage::Lookup)), "{failure:?}");
    assert_eq!(receipt, Receipt::NotForwarded);
}

#[test]
fn a_server_that_dies_before_the_request_is_sent() {
    // While connecting, in the middle of the handshake.
    for bytes in [0, 100] {
        let server = Server::new(move |_, mut socket| {
            let mut buffer = vec![0; bytes];
            let _ = socket.read_exact(&mut buffer);
        });
        let (failure, receipt) = failed(&client(), Request::get(server.url("/")));
        assert!(matches!(failure, Failure::Lost(_)), "{failure:?}");
        assert_eq!(receipt, Receipt::NotForwarded);
    }
}

#[test]
fn a_server_that_dies_after_the_request_is_sent() {
    // After its HELLO; after the request; after the head; in the middle of the body.
    for stage in 0..4 {
        let server = Server::talking(move |mut peer| {
            let (stream, _) = peer.request().expect("a request");
            if stage >= 2 {
                peer.head(stream, 200, false);
            }
            if stage >= 3 {
                peer.mmtp.send_data(stream, b"part", false, &mut peer.out).expect("open");
            }
            if stage >= 1 {
                peer.flush();
            }
            if stage == 1 {
                let _ = peer.socket.shutdown(Shutdown::Both);
            }
        });
        let (failure, receipt) = failed(&client(), Request::get(server.url("/")));
        assert!(matches!(failure, Failure::Lost(_)), "{stage}: {failure:?}");
        assert_eq!(receipt, Receipt::Unknown, "{stage}");
    }
}

#[test]
fn a_connection_that_died_idle_is_replaced_without_notice() {
    let server = Server::talking(|mut peer| {
        let (stream, path) = peer.request().expect("a request");
        peer.answer(stream, 200, path.as_bytes());
    });
    let client = client();
    for number in 0..3 {
        assert_eq!(client.call(Request::get(server.url("/x"))).expect("an answer").status, 200);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(server.accepted(), number + 1);
    }
}

#[test]
fn a_server_that_goes_away_lets_what_it_took_finish() {
    let server = Server::new(|number, socket| {
        let Some(mut peer) = Peer::mmtp(socket) else { return };
        if number > 0 {
            return peer.serve();
        }
        let (first, _) = peer.request().expect("a request");
        peer.mmtp.goaway(Code::DRAINING, 0, 0, &mut peer.out);
        peer.flush();
        std::thread::sleep(Duration::from_millis(100));
        peer.answer(first, 200, b"late");
        assert!(peer.next().is_none(), "the client closes when nothing is left");
    });
    let client = client();
    let first = client.start(Request::get(server.url("/first")));
    std::thread::sleep(Duration::from_millis(50));
    let second = client.start(Request::get(server.url("/second")));
    assert_eq!(second.response(100).expect("from the new connection").body, b"/second");
    assert_eq!(first.response(100).expect("from the old one").body, b"late");
    assert_eq!(server.accepted(), 2);
}

#[test]
fn calls_that_a_server_going_away_did_not_take_are_begun_again() {
    let (go, told) = mpsc::channel::<()>();
    let (seen, first_seen) = mpsc::channel();
    let told = Mutex::new(told);
    let server = Server::new(move |number, socket| {
        let Some(mut peer) = Peer::mmtp(socket) else { return };
        if number > 0 {
            return peer.serve();
        }
        let (first, _) = peer.request().expect("a request");
        seen.send(()).expect("the test waits");
        told.lock().expect("one connection").recv().expect("the test goes on"); // the second request is on its way
        peer.mmtp.goaway(Code::DRAINING, 0, 0, &mut peer.out);
        peer.answer(first, 200, b"first");
        while peer.next().is_some() {}
    });
    let client = client();
    let first = client.start(Request::get(server.url("/first")));
    first_seen.recv().expect("the server runs");
    let second = client.start(Request::post(server.url("/echo"), "second"));
    while second.report().sent_bytes == 0 {
        std::thread::yield_now();
    }
    go.send(()).expect("the server waits");
    assert_eq!(first.response(100).expect("an answer").body, b"first");
    let response = second.response(100).expect("an answer");
    assert_eq!((&response.body[..], response.report.restarts), (&b"second"[..], 1));
}

#[test]
fn a_server_that_turns_everyone_away_is_believed() {
    let server = Server::talking(|mut peer| {
        peer.mmtp.goaway(Code::DRAINING, 0, 0, &mut peer.out);
        while peer.next().is_some() {}
    });
    let (failure, receipt) = failed(&client(), Request::get(server.url("/")));
    assert_eq!((failure, receipt), (Failure::GoingAway { code: 23 }, Receipt::NotForwarded));
    assert!(server.accepted() <= 3, "{} connections", server.accepted());
}

#[test]
fn a_server_that_wants_to_be_left_alone_is() {
    let server = Server::talking(|mut peer| {
        peer.mmtp.goaway(Code::OVERLOADED, 60_000, 1000, &mut peer.out);
        while peer.next().is_some() {}
    });
    let client = client();
    let begun = Instant::now();
    for _ in 0..3 {
        let (failure, receipt) = failed(&client, Request::get(server.url("/")).timeout(Duration::from_secs(5)));
        assert_eq!(failure, Failure::GoingAway { code: 17 });
        let Receipt::Refused { wait } = receipt else { panic!("{receipt:?}") };
        assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(61), "{wait:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(server.accepted(), 1);
}

#[test]
fn calls_with_time_wait_until_the_server_wants_them_again() {
    let server = Server::new(|number, socket| {
        let Some(mut peer) = Peer::mmtp(socket) else { return };
        if number == 0 {
            peer.mmtp.goaway(Code::OVERLOADED, 300, 0, &mut peer.out);
        }
        peer.serve();
    });
    let begun = Instant::now();
    let response = client().call(Request::get(server.url("/x"))).expect("an answer");
    assert_eq!(response.body, b"/x");
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn garbage_instead_of_tls() {
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0; 64], &[0x16, 3, 3, 0xff, 0xff, 1]] {
        let server = Server::new(move |_, mut socket| {
            let _ = socket.write_all(garbage);
            std::thread::sleep(Duration::from_secs(1));
        });
        let (failure, receipt) = failed(&client(), Request::get(server.url("/")).timeout(Duration::from_secs(3)));
        assert!(matches!(failure, Failure::Tls(_) | Failure::Lost(_)), "{failure:?}");
        assert_eq!(receipt, Receipt::NotForwarded);
    }
}

#[test]
fn a_server_that_says_nothing_at_all() {
    let server = Server::new(|_, _socket| std::thread::sleep(Duration::from_secs(3)));
    let client = builder().connect_timeout(Duration::from_millis(200)).build().expect("valid");
    let (failure, receipt) = failed(&client, Request::get(server.url("/")));
    assert_eq!((failure, receipt), (Failure::TimedOut(Stage::Handshake), Receipt::NotForwarded));
}

#[test]
fn a_certificate_of_another_ca_is_refused() {
    let server = Server::serving();
    let other = new_identity("localhost");
    let client = Client::builder().ca_pem(other.ca_pem.as_bytes()).build().expect("valid");
    let error = client.call(Request::get(server.url("/"))).expect_err("not trusted");
    assert!(matches!(error.failure(), Failure::Certificate(_)), "{error}");
    assert_eq!((error.receipt(), error.advice()), (Receipt::NotForwarded, Advice::Change));
}

#[test]
fn a_certificate_of_another_name_is_refused() {
    let server = Server::serving();
    let url = Url::parse(&format!("mmtp://127.0.0.2:{}/pay/", server.address.port())).expect("valid");
    // The listener is on 127.0.0.1; a name that leads there and is not in the certificate is what is needed.
    let listener = TcpListener::bind(("127.0.0.2", server.address.port()));
    let Ok(listener) = listener else { return }; // a system without 127.0.0.2
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            drop(Peer::mmtp(socket));
        }
    });
    let (failure, receipt) = failed(&client(), Request::get(url));
    assert!(matches!(failure, Failure::Certificate(_)), "{failure:?}");
    assert_eq!(receipt, Receipt::NotForwarded);
}

#[test]
fn a_server_without_mmtp_is_named_as_such() {
    for alpn in [vec![], vec![&b"http/1.1"[..]]] {
        let server = Server::new(move |_, socket| {
            let _ = Peer::accept(socket, &alpn).map(|mut peer| peer.next());
        });
        let (failure, receipt) = failed(&client(), Request::get(server.url("/")));
        assert_eq!((failure, receipt), (Failure::NotMmtp, Receipt::NotForwarded));
    }
}

#[test]
fn a_server_without_hello() {
    // It says something else first; it says nothing.
    let server = Server::new(|_, socket| {
        let Some(mut peer) = Peer::accept(socket, &[b"mmtp/1"]) else { return };
        peer.send_raw(&credit(0, 1));
        while peer.fill().is_some() {}
    });
    let (failure, receipt) = failed(&client(), Request::get(server.url("/")));
    assert_eq!(failure, Failure::Protocol("hello_missing".into()));
    assert_eq!(receipt, Receipt::Unknown);
    let server = Server::new(|_, socket| {
        let Some(mut peer) = Peer::accept(socket, &[b"mmtp/1"]) else { return };
        while peer.fill().is_some() {}
    });
    let client = builder().connect_timeout(Duration::from_millis(300)).build().expect("valid");
    let (failure, receipt) = failed(&client, Request::get(server.url("/")));
    assert_eq!((failure, receipt), (Failure::TimedOut(Stage::Handshake), Receipt::Unknown));
}

#[test]
fn broken_frames_end_the_connection_with_a_reason() {
    let mut headers_on_unknown = Vec::new();
    put_frame(
        Frame::Headers { stream: 41, flags: HeaderFlags::NONE, block: &[5, 2, 0x40, 200] },
        &mut headers_on_unknown,
    );
    let mut credit_of_nothing = credit(0, 1);
    *credit_of_nothing.last_mut().expect("a payload") = 0;
    for (bytes, name) in [
        (credit_of_nothing, "credit_zero"),
        (credit(0, u32::MAX >> 2), ""),
        (headers_on_unknown, "stream_not_opened"),
        (vec![0xff; 64], ""),
        (vec![0; 64], ""),
        (pattern(5000), ""),
    ] {
        let server = Server::talking(move |mut peer| {
            let _ = peer.request();
            for _ in 0..4 {
                peer.send_raw(&bytes);
            }
            while peer.fill().is_some() {}
        });
        let request = Request::get(server.url("/")).timeout(Duration::from_secs(5));
        let (failure, receipt) = failed(&client(), request);
        let Failure::Protocol(why) = failure else { panic!("{failure:?}") };
        assert!(why.contains(name), "{why}");
        assert_eq!(receipt, Receipt::Unknown);
    }
}

#[test]
fn bytes_that_were_changed_on_the_way_never_hang_or_panic() {
    // A whole conversation of the server with some bits turned, cut off somewhere; TLS would notice, a broken server
    // not.
    let server = Server::new(|number, socket| {
        let Some(mut peer) = Peer::accept(socket, &[b"mmtp/1"]) else { return };
        let mut prng = Prng::new(number as u64);
        let _ = peer.fill(); // its HELLO and a request on stream 1, which nobody reads
        let mut bytes = Vec::new();
        Connection::new(&Settings::new(Side::Acceptor, Agent::Pop), Time::ZERO).start(&mut bytes);
        let block = [5, 2, 0x40, 200, 10, 4, b't', b'e', b'x', b't'];
        put_frame(Frame::Headers { stream: 1, flags: HeaderFlags::NONE, block: &block }, &mut bytes);
        bytes.extend_from_slice(&credit(1, 1000));
        bytes.extend_from_slice(&[0x21, 1, 3, 1, 2, 3]);
        for _ in 0..1 + prng.below(4) {
            let index = prng.below(bytes.len() as u64) as usize;
            bytes[index] ^= 1 << prng.below(8);
        }
        let (first, second) = bytes.split_at(prng.below(bytes.len() as u64) as usize);
        peer.send_raw(first);
        peer.send_raw(second);
    });
    let client = client();
    for _ in 0..200 {
        let begun = Instant::now();
        let _ = client.call(Request::get(server.url("/")).timeout(Duration::from_secs(5)));
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
    assert!(server.accepted() >= 100);
}

#[test]
fn a_stream_on_which_the_server_breaks_the_rules_is_reset_alone() {
    let server = Server::talking(|mut peer| {
        let (stream, _) = peer.request().expect("a request");
        let mut frame = Vec::new();
        let data = Frame::Headers { stream, flags: HeaderFlags::NONE, block: b"\x05\x09lies" };
        put_frame(data, &mut frame);
        peer.send_raw(&frame);
        assert!(peer.until_reset().is_some());
        peer.serve();
    });
    let client = client();
    let (failure, receipt) = failed(&client, Request::get(server.url("/")));
    assert_eq!(failure, Failure::Reset { code: 4, name: "header_block" });
    assert_eq!(receipt, Receipt::Unknown);
    assert_eq!(client.call(Request::get(server.url("/next"))).expect("an answer").body, b"/next");
    assert_eq!(server.accepted(), 1);
}

#[test]
fn a_quiet_connection_is_asked_and_a_dead_one_found() {
    let server = Server::new(|number, socket| {
        let Some(mut peer) = Peer::mmtp(socket) else { return };
        if number > 0 {
            return peer.serve();
        }
        let (stream, _) = peer.request().expect("a request");
        peer.answer(stream, 200, b"");
        let _ = peer.request(); // another one comes, and from then on nothing is read or answered
        std::thread::sleep(Duration::from_secs(30));
    });
    let timing = |builder: Builder| builder.keep_alive(Duration::from_millis(100));
    let client = timing(builder()).connect_timeout(Duration::from_millis(500)).build().expect("valid");
    assert_eq!(client.call(Request::get(server.url("/"))).expect("an answer").status, 200);
    let begun = Instant::now();
    let (failure, receipt) = failed(&client, Request::get(server.url("/")).timeout(Duration::from_secs(25)));
    assert_eq!(failure, Failure::Lost("the server does not answer PING".into()));
    assert_eq!(receipt, Receipt::Unknown);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn an_idle_connection_is_closed() {
    let (sender, closed) = mpsc::channel();
    let server = Server::talking(move |peer| {
        peer.serve();
        sender.send(()).expect("the test waits");
    });
    let client = builder().idle_timeout(Duration::from_millis(150)).build().expect("valid");
    assert!(client.call(Request::get(server.url("/"))).is_ok());
    assert_eq!(closed.recv_timeout(Duration::from_secs(5)), Ok(()));
}

#[test]
fn an_answer_longer_than_one_cares_to_hold_is_given_up() {
    let server = Server::serving();
    let client = builder().answer_bytes_max(1000).build().expect("valid");
    let (failure, _) = failed(&client, Request::get(server.url("/size/1001")));
    assert_eq!(failure, Failure::AnswerTooLong { bytes_max: 1000 });
    assert_eq!(client.call(Request::get(server.url("/size/1000"))).expect("it fits").body.len(), 1000);
}

#[test]
fn a_request_that_cannot_be_sent_fails_without_a_connection() {
    let server = Server::serving();
    let (failure, receipt) = failed(&client(), Request::get(server.url("/")).field("x-a", "1\r\nx-b: 2"));
    assert_eq!(failure, Failure::Request(RequestError::FieldValue));
    assert_eq!(receipt, Receipt::NotForwarded);
    assert_eq!(server.accepted(), 0);
}

#[test]
fn a_client_without_trust_is_not_built() {
    assert_eq!(Client::builder().build().err(), Some(BuildError::NoRoots));
    assert!(matches!(Client::builder().ca_pem(b"nothing").build(), Err(BuildError::Pem(_))));
    assert!(matches!(Client::builder().roots([vec![1, 2, 3]]).build(), Err(BuildError::Root(_))));
    let long = "x".repeat(200);
    assert_eq!(builder().attributes(&long, "", "", "").build().err(), Some(BuildError::Attribute("app")));
}

#[test]
fn a_call_outlives_its_client_and_the_thread_ends_with_the_last() {
    let server = Server::serving();
    let call = client().start(Request::get(server.url("/x"))); // the client is gone after this line
    assert_eq!(call.response(100).expect("an answer").body, b"/x");
    let mailbox = Arc::downgrade(client().start(Request::get(server.url("/x"))).mailbox());
    assert!(mailbox.upgrade().is_none(), "dropping waits for the thread, which held it");
}

#[test]
fn the_thread_can_be_used_from_many() {
    let server = Server::serving();
    let client = client();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (client, server) = (&client, &server);
            scope.spawn(move || {
                for number in 0..50 {
                    let path = format!("/{thread}/{number}");
                    let response = client.call(Request::get(server.url(&path))).expect("an answer");
                    assert_eq!(response.body, path.as_bytes());
                }
            });
        }
    });
    assert_eq!(server.accepted(), 1);
}

// Tickets, early data, TCP Fast Open.

/// A server that answers one call on each connection and closes it, resuming with what `config` says for that
/// connection's number. Tells how many bytes came early, and the path asked for.
fn one_call_each(
    config: impl Fn(usize) -> Arc<rustls::ServerConfig> + Send + Sync + 'static,
) -> (Server, mpsc::Receiver<(usize, String)>) {
    let (sender, told) = mpsc::channel();
    let server = Server::new(move |number, socket| {
        let Some(mut peer) = Peer::mmtp_as(socket, config(number)) else { return };
        let Some((stream, path)) = peer.request() else { return };
        sender.send((peer.early_bytes, path.clone())).expect("the test waits");
        peer.answer(stream, 200, path.as_bytes());
    });
    (server, told)
}

/// Calls until the connection that the last call used is known to be gone: the next one needs another.
fn call_anew(client: &Client, request: Request) -> Response {
    std::thread::sleep(Duration::from_millis(50));
    client.call(request).expect("an answer")
}

#[test]
fn a_returning_client_resumes_and_sends_early_what_is_replay_safe() {
    let store = ticket_store();
    let (server, told) = one_call_each(move |_| resuming(&store, true));
    let client = client();
    let get = |path: &str| Request::get(server.url(path));
    for (path, is_safe, handshake, early) in [
        ("/full", true, Handshake::Full, EarlyData::No),
        ("/held", false, Handshake::Resumed, EarlyData::No),
        ("/early", true, Handshake::Early, EarlyData::Accepted),
        ("/early/again", true, Handshake::Early, EarlyData::Accepted),
    ] {
        let response = call_anew(&client, get(path).replay_safe(is_safe));
        assert_eq!((&response.body[..], response.report.restarts), (path.as_bytes(), 0));
        assert_eq!((response.report.handshake, response.report.early), (Some(handshake), early), "{path}");
        let (early_bytes, asked) = told.recv().expect("the server runs");
        assert_eq!((early_bytes > 0, &asked[..]), (early == EarlyData::Accepted, path));
    }
    let cautious = builder().early_data(false).build().expect("valid");
    for handshake in [Handshake::Full, Handshake::Resumed] {
        assert_eq!(call_anew(&cautious, get("/x").replay_safe(true)).report.handshake, Some(handshake));
        assert_eq!(told.recv().expect("the server runs").0, 0);
    }
}

#[test]
fn early_data_that_is_refused_is_sent_again_and_nobody_notices() {
    for forgets in [false, true] {
        let store = ticket_store();
        let config = move |number: usize| match (number, forgets) {
            (0, _) => resuming(&store, true),
            (_, true) => resuming(&ticket_store(), true),
            (_, false) => resuming(&store, false),
        };
        let (server, _told) = one_call_each(config);
        let client = client();
        call_anew(&client, Request::get(server.url("/first")));
        let body = pattern(1000); // little: rustls counts what it skips again with each read
        let request = Request::post(server.url("/second"), body).replay_safe(true);
        let response = call_anew(&client, request);
        assert_eq!((&response.body[..], response.report.restarts), (&b"/second"[..], 0));
        assert_eq!(response.report.early, EarlyData::Refused);
        let handshake = if forgets { Handshake::Full } else { Handshake::Resumed };
        assert_eq!(response.report.handshake, Some(handshake));
        assert!(response.report.tls_ms.is_some());
    }
}

/// Three calls at once on the second connection of a client, of which one may go early. Gives what became of that one,
/// and what the server was asked in its order, with the bytes that came early.
fn three_at_once() -> (EarlyData, Vec<(usize, String)>) {
    let store = ticket_store();
    let (sender, paths) = mpsc::channel();
    let server = Server::new(move |number, socket| {
        let Some(mut peer) = Peer::mmtp_as(socket, resuming(&store, true)) else { return };
        let early_bytes = peer.early_bytes;
        while let Some((stream, path)) = peer.request() {
            sender.send((number, early_bytes, path.clone())).expect("the test waits");
            peer.answer(stream, 200, path.as_bytes());
            if number == 0 {
                return;
            }
        }
    });
    let client = client();
    call_anew(&client, Request::get(server.url("/first")));
    assert_eq!(paths.recv().expect("the server runs").2, "/first");
    std::thread::sleep(Duration::from_millis(50));
    let big = Request::post(server.url("/big"), pattern(20_000)).replay_safe(true); // more than early data may be
    let urgent = Request::get(server.url("/urgent")).priority(0);
    let safe = Request::get(server.url("/safe")).replay_safe(true);
    let calls = [urgent, big, safe].map(|request| client.start(request));
    let [urgent, big, safe] = calls.each_ref().map(|call| call.response(100).expect("an answer").report.early);
    assert_eq!([urgent, big], [EarlyData::No; 2]);
    let seen: Vec<_> = paths.try_iter().collect();
    assert!(seen.iter().all(|(number, ..)| *number == 1), "{seen:?}");
    (safe, seen.into_iter().map(|(_, early_bytes, path)| (early_bytes, path)).collect())
}

#[test]
fn only_replay_safe_calls_leave_before_the_handshake_and_the_others_follow() {
    // The third call may come when the connection was begun for the others, or even after its handshake.
    let all = std::iter::repeat_with(three_at_once).take(50);
    let seen = all.into_iter().find_map(|(early, seen)| (early == EarlyData::Accepted).then_some(seen));
    let seen = seen.expect("all three are in line when the connection is begun, one time in fifty");
    let paths: Vec<_> = seen.iter().map(|(_, path)| path.as_str()).collect();
    assert_eq!(paths, ["/safe", "/urgent", "/big"]);
    assert!(seen[0].0 > 0 && seen[0].0 < 1000, "{seen:?}");
}

#[test]
fn a_call_that_came_too_early_is_repeated_once() {
    let store = ticket_store();
    let server = Server::new(move |number, socket| {
        let Some(mut peer) = Peer::mmtp_as(socket, resuming(&store, true)) else { return };
        let mut is_early = peer.early_bytes > 0;
        while let Some((stream, path)) = peer.request() {
            if is_early || path == "/never" {
                is_early = false;
                peer.reset_as(stream, Code::TOO_EARLY, WireReceipt::Refused, 0);
                continue;
            }
            peer.answer(stream, 200, b"in time");
            if number % 2 == 0 {
                return;
            }
        }
    });
    let client = client();
    call_anew(&client, Request::get(server.url("/")));
    let response = call_anew(&client, Request::get(server.url("/")).replay_safe(true));
    assert_eq!((&response.body[..], response.report.restarts), (&b"in time"[..], 1));
    let (failure, receipt) = failed(&client, Request::get(server.url("/never")).replay_safe(true));
    assert_eq!(failure, Failure::Reset { code: 28, name: "too_early" });
    assert_eq!(receipt, Receipt::Refused { wait: Duration::ZERO });
}

#[test]
fn a_connection_that_dies_with_early_data_costs_a_repetition_and_not_the_call() {
    let store = ticket_store();
    let server = Server::new(move |number, mut socket| {
        if number == 1 || number == 3 || number == 4 {
            let _ = socket.read(&mut [0; 4096]); // the ClientHello and the early data, unanswered
            return;
        }
        let Some(mut peer) = Peer::mmtp_as(socket, resuming(&store, true)) else { return };
        if let Some((stream, _)) = peer.request() {
            peer.answer(stream, 200, b"done");
        }
    });
    let client = client();
    call_anew(&client, Request::get(server.url("/")));
    let response = call_anew(&client, Request::get(server.url("/")).replay_safe(true));
    assert_eq!((&response.body[..], response.report.restarts), (&b"done"[..], 1));
    // The second time, both the early attempt and the next one come to nothing: it may have been acted on.
    std::thread::sleep(Duration::from_millis(50));
    let (failure, receipt) = failed(&client, Request::get(server.url("/")).replay_safe(true));
    assert!(matches!(failure, Failure::Lost(_) | Failure::Tls(_)), "{failure:?}");
    assert_eq!(receipt, Receipt::Unknown);
}

#[test]
fn a_ticket_that_a_server_chokes_on_is_not_insisted_on() {
    let store = ticket_store();
    let server = Server::new(move |number, mut socket| {
        if number == 1 {
            let _ = socket.write_all(&[21, 3, 3, 0, 2, 2, 51]); // decrypt_error: a wrong binder
            return;
        }
        if let Some(mut peer) = Peer::mmtp_as(socket, resuming(&store, true))
            && let Some((stream, _)) = peer.request()
        {
            peer.answer(stream, 200, b"done");
        }
    });
    let client = client();
    call_anew(&client, Request::get(server.url("/")));
    let response = call_anew(&client, Request::get(server.url("/")));
    assert_eq!((&response.body[..], response.report.handshake), (&b"done"[..], Some(Handshake::Full)));
}

#[test]
fn tickets_in_a_file_serve_the_next_process_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tickets");
    let store = ticket_store();
    // Two of the connections begin when both are there: neither has been given anything when the other chose its ticket.
    let both = Barrier::new(2);
    let (server, told) = one_call_each(move |number| {
        if number == 3 || number == 4 {
            both.wait();
        }
        resuming(&store, true)
    });
    let anew = || builder().tickets_file(&path).build().expect("valid");
    let request = || Request::get(server.url("/x")).replay_safe(true);
    let call = |client: Client| {
        let response = client.call(request()).expect("an answer");
        assert_eq!(response.report.restarts, 0);
        (response.report.handshake, client.tickets_notice()) // the client is dropped: that waits for tickets
    };
    for handshake in [Handshake::Full, Handshake::Early, Handshake::Early] {
        assert_eq!(call(anew()), (Some(handshake), None));
    }
    // Two processes at once never use one ticket: what one has taken, the other does not find.
    let kept = std::fs::read(&path).expect("it is there");
    let handshakes = std::thread::scope(|scope| {
        let calls = [anew(), anew()].map(|client| scope.spawn(|| call(client)));
        calls.map(|call| call.join().expect("it is answered"))
    });
    for (handshake, notice) in handshakes {
        assert_eq!(handshake, Some(Handshake::Early));
        // While one keeps what it was given, for which it waits for the disk, the other may find the file locked for long,
        // and say so: that costs what it was given, not what it had. Nothing else may be said.
        assert!(notice.is_none_or(|notice| notice.contains("another process holds its lock")));
    }
    assert_eq!(told.try_iter().filter(|(early_bytes, _)| *early_bytes > 0).count(), 4);
    // A file put back as it was holds tickets that are used: they cost their time, and no call.
    std::fs::write(&path, &kept).expect("it is ours");
    assert_eq!(call(anew()), (Some(Handshake::Full), None));
    assert_eq!(
        call(anew()),
        (Some(Handshake::Early), None),
        "the tickets that came then go before those that were there"
    );
}

/// A call of a client of its own, which is gone afterwards: its handshake, and what was wrong with the ticket file.
fn call_of_a_new_client(server: &Server, path: &Path) -> (Option<Handshake>, Option<String>) {
    let client = builder().tickets_file(path).build().expect("valid");
    let response = client.call(Request::get(server.url("/"))).expect("an answer");
    (response.report.handshake, client.tickets_notice())
}

#[test]
fn a_ticket_file_that_stays_locked_costs_nothing_but_resumption() {
    let store = ticket_store();
    let (server, _told) = one_call_each(move |_| resuming(&store, true));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tickets");
    let call = || call_of_a_new_client(&server, &path);
    assert_eq!(call(), (Some(Handshake::Full), None));
    let lock = std::fs::File::open(folder.path().join("tickets.lock")).expect("it came with the tickets");
    lock.lock().expect("nobody holds it");
    let (handshake, notice) = call();
    assert_eq!(handshake, Some(Handshake::Full), "what may be used by another is not used");
    assert!(notice.expect("something is said").contains("another process holds its lock"));
    drop(lock);
    assert_eq!(call(), (Some(Handshake::Resumed), None));
}

#[test]
fn a_damaged_ticket_file_costs_nothing_but_resumption() {
    let store = ticket_store();
    let (server, _told) = one_call_each(move |_| resuming(&store, true));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tickets");
    let call = || call_of_a_new_client(&server, &path);
    call();
    let good = std::fs::read(&path).expect("it is there");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for damaged in
        [&good[..good.len() - 3], &good[..good.len() / 2], &flipped, b"", b"\xff\n", b"trunkline-tickets 2\n"]
    {
        std::fs::write(&path, damaged).expect("it is ours");
        let (handshake, notice) = call();
        assert_eq!(handshake, Some(Handshake::Full));
        let notice = notice.expect("something is said");
        assert!(notice.contains("damaged"), "{notice}");
        assert_eq!(call().0, Some(Handshake::Resumed), "the file was made anew");
    }
}

#[cfg(unix)]
#[test]
fn a_ticket_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::serving();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tickets");
    let build = || builder().tickets_file(&path).build();
    drop(build().expect("valid").call(Request::get(server.url("/"))).expect("an answer"));
    let mode = || std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    for open in [0o640, 0o604, 0o620] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(open)).expect("it is ours");
        let error = build().err();
        assert!(matches!(&error, Some(BuildError::Tickets(why)) if why.contains("mode 600")), "{error:?}");
    }
    let nowhere = builder().tickets_file(folder.path().join("no/such/folder")).build().expect("not known yet");
    nowhere.call(Request::get(server.url("/"))).expect("an answer");
    assert!(nowhere.tickets_notice().is_some());
}

#[test]
fn connections_are_the_same_without_fast_open() {
    let server = Server::serving();
    for fast_open in [true, false] {
        let client = builder().fast_open(fast_open).build().expect("valid");
        let response = client.call(Request::get(server.url("/x"))).expect("an answer");
        assert_eq!(&response.body, b"/x");
        assert!(fast_open || !response.report.fast_open);
    }
}

/// A middlebox that swallows what a SYN carries, and the SYN with it.
fn swallowed(_: &mio::net::TcpStream, _: SocketAddr, bytes: &[u8]) -> std::io::Result<fast_open::First> {
    Ok(fast_open::First::Sent(bytes.len()))
}

#[test]
fn a_network_that_eats_the_first_packet_costs_the_stagger_once() {
    let store = ticket_store();
    let (server, told) = one_call_each(move |_| resuming(&store, true));
    let mut builder = builder();
    builder.send_first = swallowed;
    let client = builder.build().expect("valid");
    let call = |path: &str| {
        let begun = Instant::now();
        let response = call_anew(&client, Request::get(server.url(path)).replay_safe(true));
        assert_eq!(response.body, path.as_bytes());
        assert!(!response.report.fast_open);
        begun.elapsed()
    };
    let first = call("/first");
    assert!(first >= Duration::from_millis(250) && first < Duration::from_secs(2), "{first:?}");
    // From then on the address is connected to as ever, and early data is none the worse for it.
    assert!(call("/second") < Duration::from_millis(250));
    let early: Vec<bool> = told.try_iter().map(|(early_bytes, _)| early_bytes > 0).collect();
    assert_eq!(early, [false, true]);
}

#[test]
fn early_calls_that_went_into_the_void_are_made_again() {
    let store = ticket_store();
    let (server, _told) = one_call_each(move |_| resuming(&store, true));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tickets");
    drop(builder().tickets_file(&file).build().expect("valid").call(Request::get(server.url("/"))).expect("an answer"));
    let mut builder = builder().tickets_file(&file);
    builder.send_first = swallowed;
    let client = builder.build().expect("valid");
    let response = client.call(Request::get(server.url("/x")).replay_safe(true)).expect("an answer");
    assert_eq!((&response.body[..], response.report.restarts), (&b"/x"[..], 1));
    assert_eq!(response.report.early, EarlyData::No);
}

/// Whether this kernel opens listeners and connections with TCP Fast Open unasked: see docs/TESTING.md.
#[cfg(target_os = "linux")]
fn kernel_opens_fast() -> bool {
    const CLIENT_SERVER_AND_EVERY_LISTENER: u32 = 1 | 2 | 0x400;
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").unwrap_or_default();
    let bits: u32 = text.trim().parse().unwrap_or(0);
    bits & CLIENT_SERVER_AND_EVERY_LISTENER == CLIENT_SERVER_AND_EVERY_LISTENER
}

#[cfg(target_os = "linux")]
#[test]
fn with_fast_open_the_first_bytes_leave_with_the_syn() {
    if !kernel_opens_fast() {
        println!("skipped: net.ipv4.tcp_fastopen is not 1027");
        return;
    }
    let store = ticket_store();
    let (server, told) = one_call_each(move |_| resuming(&store, true));
    let client = client();
    let mut opened = Vec::new();
    for _ in 0..4 {
        let response = call_anew(&client, Request::get(server.url("/x")).replay_safe(true));
        opened.push((response.report.fast_open, response.report.early));
        told.recv().expect("the server runs");
    }
    // The first connection asks for the cookie, unless another test has.
    assert_eq!(opened[0].1, EarlyData::No);
    assert!(opened[1..].iter().all(|outcome| *outcome == (true, EarlyData::Accepted)), "{opened:?}");
    let plain = builder().fast_open(false).build().expect("valid");
    assert!(!plain.call(Request::get(server.url("/x"))).expect("an answer").report.fast_open);
}
