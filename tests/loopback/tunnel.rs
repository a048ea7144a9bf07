//! curl and other strangers through the tunnel.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread;

use crate::harness::{Plan, Site, address, pattern, run, text};
use crate::origin::{Scripted, nginx};
use crate::peers::{End, Tls, connect, trust};

const LARGE_BYTES: usize = 64 * 1024 * 1024;

fn file_of(site: &Site, name: &str) -> String {
    site.scratch.path().join(name).display().to_string()
}

/// SHA-256 in hexadecimal, by somebody else's code.
fn sha256(path: &str) -> String {
    let output = run(Command::new("sha256sum").arg(path), &[]);
    text(&output.stdout).split_whitespace().next().expect("a digest comes first").to_owned()
}

#[test]
fn curl_gets_a_page() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    assert_eq!(text(&site.curl(&[&site.https("/")])), "hello from nginx\n");
    let verbose = site.curl_output(&["--verbose", &site.https("/")]);
    assert!(text(&verbose.stderr).contains("TLSv1.3"), "{}", text(&verbose.stderr));
    site.until_quiet();
    let metrics = site.pop.metrics();
    assert_eq!((metrics.get("streams_done_total"), metrics.get("truncated_ends_total")), (2, 0));
}

#[test]
fn a_large_file_arrives_intact_both_ways() {
    let content = pattern(LARGE_BYTES);
    let origin = nginx(&[("large", &content)]);
    let site = Site::start(origin.address());
    let sent = site.scratch.write("sent", &content);
    let (sent, got) = (sent.display().to_string(), file_of(&site, "got"));
    site.curl(&["--output", &got, &site.https("/large")]);
    assert_eq!(sha256(&got), sha256(&sent));
    site.curl(&["--fail", "--upload-file", &sent, &site.https("/store/large")]);
    let stored = origin.scratch().path().join("files/store/large").display().to_string();
    assert_eq!(sha256(&stored), sha256(&sent));
    site.until_quiet();
}

#[test]
fn eight_large_files_at_a_time_arrive_intact_both_ways() {
    let content = pattern(LARGE_BYTES / 8);
    let origin = nginx(&[("large", &content)]);
    let site = Site::start(origin.address());
    let sent = site.scratch.write("sent", &content).display().to_string();
    thread::scope(|scope| {
        for index in 0..8 {
            let (site, sent, origin) = (&site, &sent, &origin);
            scope.spawn(move || {
                let got = file_of(site, &format!("got-{index}"));
                site.curl(&["--output", &got, &site.https("/large")]);
                assert_eq!(sha256(&got), sha256(sent));
                let name = format!("large-{index}");
                site.curl(&["--fail", "--upload-file", sent, &site.https(&format!("/store/{name}"))]);
                let stored = origin.scratch().path().join("files/store").join(name).display().to_string();
                assert_eq!(sha256(&stored), sha256(sent));
            });
        }
    });
    site.until_quiet();
}

#[test]
fn wrk_runs_without_an_error() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let url = site.https("/");
    let output =
        run(Command::new("wrk").args(["--threads", "1", "--connections", "64", "--duration", "2s", &url]), &[]);
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("requests in"), "{said}");
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    site.until_quiet();
}

#[test]
fn one_listener_has_ipv6_and_another_has_no_tunnel() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: this machine has no IPv6");
        return;
    }
    let origin = nginx(&[]);
    let second = address();
    let port = address().port();
    let listeners = format!(
        "[[listen]]\naddress = [\"{second}\", \"[::1]:{port}\"]\ncertificate = \"certs/pop.pem\"\nkey = \"certs/pop.key\"\n\
         tunnel = \"web\""
    );
    let plan = Plan { listen: String::new(), listeners, ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    for url in [format!("https://localhost:{}/", second.port()), format!("https://[::1]:{port}/")] {
        assert_eq!(text(&site.curl(&[&url])), "hello from nginx\n", "{url}");
    }
    let called = site.call(&[&format!("mmtp://[::1]:{port}/pay/who")]);
    called.answered(200);
    assert!(text(&called.body).starts_with("::1|https|"), "{}", text(&called.body));
    let refused = site.curl_output(&["--no-alpn", &site.https("/")]);
    assert!(!refused.status.success(), "the first listener has no tunnel");
    site.until_quiet();
}

/// A PROXY protocol v2 header for TCP over IPv4 (the protocol's text, section 2.2).
fn proxy_header(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("the test uses IPv4") };
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend_from_slice(&from.ip().octets());
    header.extend_from_slice(&to.ip().octets());
    header.extend_from_slice(&from.port().to_be_bytes());
    header.extend_from_slice(&to.port().to_be_bytes());
    header
}

#[test]
fn a_proxy_header_decides_which_client_the_origin_sees() {
    let origin = nginx(&[]);
    let plan = Plan { listen: "proxy_protocol = true\ntunnel = \"web\"".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    let header = proxy_header("192.0.2.77:4711".parse().expect("an address"), site.address);

    // In one piece, and byte by byte.
    for piece_bytes in [header.len(), 1] {
        let mut socket = connect(site.address);
        for piece in header.chunks(piece_bytes) {
            socket.write_all(piece).expect("it is open");
        }
        let tls = Tls::over(socket, trust(&site.ca(), &["mmtp/1"])).expect("the handshake succeeds");
        let mut client = crate::peers::Mmtp::over(tls);
        client.get(1, "pay", "/who");
        let (status, body) = client.answer(1);
        assert_eq!(status, 200);
        assert!(text(&body).starts_with("192.0.2.77|https|"), "{}", text(&body));
    }

    // A client that writes none is refused, and so is one that writes nonsense.
    let without = connect(site.address);
    assert!(Tls::over(without, trust(&site.ca(), &["mmtp/1"])).is_err());
    let mut wrong = connect(site.address);
    wrong.write_all(b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x0c------------").expect("it is open");
    assert!(Tls::over(wrong, trust(&site.ca(), &["mmtp/1"])).is_err());
    site.pop.until_equal(&[("proxy_headers_refused_total", 2)]);
    site.until_quiet();
}

#[test]
fn a_client_that_ends_first_still_gets_the_whole_answer() {
    let answer = pattern(3 * 1024 * 1024);
    let expected = answer.clone();
    // It answers only when it has seen the end of the request.
    let origin = Scripted::start(move |mut stream, _| {
        let mut request = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut request).expect("the request ends in order");
        assert_eq!(request, b"the whole question");
        stream.write_all(&answer).expect("somebody reads");
    });
    let site = Site::start(origin.address());
    let mut client = Tls::connect(site.address, trust(&site.ca(), &[]));
    client.send(b"the whole question").expect("it is open");
    client.half_close();
    let (got, end) = client.receive_all();
    assert_eq!((got.len(), end), (expected.len(), End::Notified));
    assert!(got == expected);
    site.until_quiet();
}

#[test]
fn an_origin_that_ends_first_still_gets_the_whole_request() {
    let request = pattern(3 * 1024 * 1024);
    let expected = request.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let origin = Scripted::start(move |mut stream, _| {
        stream.write_all(b"enough for you").expect("somebody reads");
        stream.shutdown(std::net::Shutdown::Write).expect("it is open");
        let mut request = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut request).expect("the request ends in order");
        tell.lock().expect("no other test has it").send(request).expect("the test waits");
    });
    let site = Site::start(origin.address());
    let mut client = Tls::connect(site.address, trust(&site.ca(), &[]));
    assert_eq!(client.receive_all(), (b"enough for you".to_vec(), End::Notified));
    client.send(&request).expect("the direction to the origin is still open");
    client.half_close();
    let got = told.recv_timeout(crate::harness::SOON).expect("the origin sees the end");
    assert!(got == expected);
    site.until_quiet();
}

#[test]
fn s_client_with_its_input_at_an_end_gets_the_whole_page() {
    let content = pattern(1024 * 1024);
    let origin = nginx(&[("page", &content)]);
    let site = Site::start(origin.address());
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error", "-servername", "localhost", "-CAfile"]);
    command.arg(site.ca()).arg("-connect").arg(site.address.to_string());
    let output = run(&mut command, b"GET /page HTTP/1.0\r\n\r\n");
    let at = output.stdout.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    assert!(output.stdout[at..] == content, "{}", text(&output.stderr));
    site.until_quiet();
}
