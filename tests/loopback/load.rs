//! `trunkline load` against Debian's nginx, a POP with its gateway, and servers that misbehave as told: what it says it did is
//! what they saw.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Plan, Site, certificates, cores, run, text, until};
use crate::origin::{Scripted, chunked, nginx, response};
use crate::support::{NGINX_HTTP_PATHS, Nginx, Scratch};

/// What a run came to.
struct Loaded {
    code: i32,
    json: Value,
    stderr: String,
}

impl Loaded {
    fn number(&self, pointer: &str) -> f64 {
        self.json.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer} in {}", self.json))
    }

    fn count(&self, pointer: &str) -> usize {
        self.number(pointer) as usize
    }

    fn error(&self, kind: &str) -> usize {
        self.json["errors"][kind].as_u64().unwrap_or(0) as usize
    }

    /// Panics unless all answers were good.
    #[track_caller]
    fn good(self) -> Loaded {
        assert_eq!(self.code, 0, "{}\n{}", self.json, self.stderr);
        assert_eq!(self.json["errors"], serde_json::json!({}));
        self
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    command.arg("load").args(args);
    command
}

/// `trunkline load` with these arguments, to its end.
fn load(args: &[&str]) -> Loaded {
    let output = run(&mut command(&[args, &["--json", "-"]].concat()), &[]);
    let code = output.status.code().expect("it was not killed");
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Loaded { code, json, stderr: text(&output.stderr) }
}

/// nginx that writes down each request it answered, with TLS if asked for.
struct Counting {
    nginx: Nginx,
    ca: PathBuf,
}

impl Counting {
    fn start(is_secure: bool) -> Counting {
        let nginx = Nginx::start(|address, scratch| {
            scratch.write("files/small", [b'x'; 281]);
            certificates(scratch.path(), "certs");
            let tls = "ssl_certificate certs/pop.pem; ssl_certificate_key certs/pop.key; ssl_protocols TLSv1.3; \
                       ssl_session_cache shared:tls:1m; ssl_session_tickets on; ssl_early_data on;";
            let (kind, tls) = if is_secure { ("ssl", tls) } else { ("", "") };
            let paths = NGINX_HTTP_PATHS.replace("access_log off;", "");
            let early = if is_secure { "$ssl_session_reused$ssl_early_data" } else { "-" };
            format!(
                "http {{ {paths} log_format seen '$status {early}'; access_log logs/seen.log seen;
                    server {{ listen {address} {kind} backlog=4096; keepalive_requests 50; root {root}/files; {tls}
                        location /echo {{ return 200; }} location /fail {{ return 500; }} }} }}",
                root = scratch.path().display()
            )
        });
        let ca = nginx.scratch().path().join("certs/ca.pem");
        Counting { nginx, ca }
    }

    fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://localhost:{}{path}", self.nginx.address().port())
    }

    fn ca(&self) -> &str {
        self.ca.to_str().expect("ASCII")
    }

    /// What it has seen, once that are so many requests; more would show as well.
    fn seen(&self, count: usize) -> Vec<String> {
        until("nginx has written down every request", || {
            let lines: Vec<String> =
                text(&self.nginx.scratch().read("logs/seen.log")).lines().map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        })
    }
}

#[test]
fn answers_over_http_are_those_that_nginx_gave() {
    let server = Counting::start(false);
    let url = server.url("http", "/small");
    let loaded = load(&[&url, "--connections", "4", "--duration", "500ms"]).good();
    let requests = loaded.count("/requests");
    assert!(requests > 200, "{}", loaded.json);
    assert_eq!(server.seen(requests).len(), requests);
    assert_eq!(loaded.count("/latency_micros/count"), requests);
    // nginx ends a connection after 50 requests, and says so: nothing is lost by that.
    assert!(loaded.count("/connections_opened") >= requests / 50, "{}", loaded.json);
    assert_eq!(loaded.count("/connect_micros/count"), loaded.count("/connections_opened"));
    assert!(loaded.json["handshake_micros"].is_null());
    // They were open before the clock started: their first answer is one like any other.
    assert!(loaded.json["first_answer_micros"].is_null());
    assert!(loaded.number("/bytes_received") > 281.0 * requests as f64);
    assert!(loaded.number("/cpu_micros") > 0.0);
}

#[test]
fn pipelined_requests_survive_the_end_of_a_connection() {
    let server = Counting::start(false);
    let url = server.url("http", "/small");
    let loaded = load(&[&url, "--connections", "3", "--outstanding", "7", "--duration", "300ms"]).good();
    assert_eq!(server.seen(loaded.count("/requests")).len(), loaded.count("/requests"));
}

#[test]
fn new_connections_are_of_the_kind_asked_for() {
    let server = Counting::start(true);
    let url = server.url("https", "/small");
    let mut before = 0;
    // The first connection of each seat fetches a ticket: nginx sees it, the report does not count it.
    for (kind, uncounted) in [("full", 0), ("resumed", 3), ("early", 3)] {
        let args = [&url[..], "--ca", server.ca(), "--handshake", kind, "--connections", "3", "--duration", "400ms"];
        let loaded = load(&[&args[..], &["--per-connection", "2"]].concat()).good();
        let (requests, opened) = (loaded.count("/requests"), loaded.count("/connections_opened"));
        assert_eq!(loaded.count(&format!("/kinds/{kind}")), opened, "{}", loaded.json);
        assert_eq!(requests, 2 * opened);
        assert_eq!(loaded.count("/first_answer_micros/count"), opened);
        assert_eq!(loaded.count("/handshake_micros/count"), opened);
        let seen = server.seen(before + requests + uncounted);
        let since = &seen[before..];
        assert_eq!(since.len(), requests + uncounted);
        let marked = |mark: &str| since.iter().filter(|line| line.contains(mark)).count();
        match kind {
            "full" => assert_eq!(marked(" .-"), requests),
            "resumed" => assert_eq!(marked(" r-"), requests),
            // nginx says so of requests that it answered before the handshake was complete: of two on a connection, the
            // first, unless the rest of the handshake was there as well.
            _ => assert!(marked(" r") == requests && (1..=requests / 2).contains(&marked(" r1")), "{since:?}"),
        }
        before = seen.len();
    }
}

#[test]
fn another_kind_than_asked_for_is_an_error() {
    // nginx without tickets of any kind: nobody can come back.
    let server = Nginx::start(|address, scratch| {
        certificates(scratch.path(), "certs");
        format!(
            "http {{ {NGINX_HTTP_PATHS} server {{ listen {address} ssl; ssl_certificate certs/pop.pem;
                ssl_certificate_key certs/pop.key; ssl_protocols TLSv1.3; ssl_early_data off; return 200; }} }}"
        )
    });
    let ca = server.scratch().path().join("certs/ca.pem");
    let url = format!("https://localhost:{}/", server.address().port());
    let args = [&url[..], "--ca", ca.to_str().expect("ASCII"), "--connections", "2", "--duration", "300ms"];
    // Its tickets allow no early data.
    let loaded = load(&[&args[..], &["--handshake", "early"]].concat());
    assert_eq!(loaded.code, 1, "{}", loaded.json);
    assert!(loaded.error("wanted early, got resumed") > 0, "{}", loaded.json);
    assert_eq!(loaded.count("/kinds/early"), 0);
}

#[test]
fn requests_over_mmtp_are_those_that_the_gateway_passed_on() {
    let origin = nginx(&[("small", &[b'x'; 281])]);
    let site = Site::start(origin.address());
    let ca = site.ca();
    let base = [&site.url("pay/small"), "--ca", ca.to_str().expect("ASCII"), "--connections", "3"];
    let mut requests = 0;
    // More at a time than a server allows before its HELLO.
    let args = ["--outstanding", "20", "--duration", "500ms", "--mix", "0:1,7:3"];
    let loaded = load(&[&base[..], &args].concat()).good();
    requests += loaded.count("/requests");
    let of = |priority: u8| loaded.count(&format!("/by_priority/{priority}/count"));
    assert_eq!(of(0) + of(7), requests);
    assert!(of(0) > 0 && of(7) > of(0), "{}", loaded.json);
    let mut opened = loaded.count("/connections_opened");
    assert_eq!((opened, loaded.count("/kinds/full")), (3, 3));
    for kind in ["full", "resumed", "early"] {
        let loaded = load(&[&base[..], &["--handshake", kind, "--duration", "300ms"]].concat()).good();
        assert_eq!(loaded.count(&format!("/kinds/{kind}")), loaded.count("/connections_opened"), "{}", loaded.json);
        assert_eq!(loaded.count("/requests"), loaded.count("/connections_opened"));
        let uncounted = if kind == "full" { 0 } else { 3 };
        requests += loaded.count("/requests") + uncounted;
        opened += loaded.count("/connections_opened") + uncounted;
    }
    site.until_quiet();
    site.gateway.until_equal(&[("requests_total", requests as u64)]);
    site.pop.until_equal(&[("connections_accepted_total", opened as u64), ("truncated_ends_total", 0)]);
    site.pop.until_equal(&[("handshakes_failed_total", 0), ("mmtp_errors_total", 0)]);
}

#[test]
fn bodies_are_sent_whole() {
    const BODY_BYTES: usize = 300_000;
    let wrong = Arc::new(AtomicUsize::new(0));
    let count = wrong.clone();
    let origin = Scripted::http(move |asked| {
        let is_right = asked.line.starts_with("POST ") && asked.body.len() == BODY_BYTES;
        count.fetch_add(usize::from(!is_right), Ordering::Relaxed);
        chunked("", &asked.body[..10_000], 777)
    });
    let site = Site::start(origin.address());
    let (ca, size) = (site.ca(), BODY_BYTES.to_string());
    let ca = ["--ca", ca.to_str().expect("ASCII")];
    let args = ["--connections", "2", "--size", &size, "--duration", "1s"];
    for (url, trust) in
        [(format!("http://{}/x", origin.address()), &[][..]), (site.https("/x"), &ca), (site.url("pay/x"), &ca)]
    {
        let loaded = load(&[&[&url[..]], &args[..], trust].concat()).good();
        let requests = loaded.number("/requests");
        assert!(requests >= 2.0 && loaded.number("/bytes_received") > requests * 10_000.0, "{}", loaded.json);
        assert!(loaded.number("/bytes_sent") > requests * BODY_BYTES as f64);
    }
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
}

#[test]
fn an_open_loop_shows_a_stall_that_a_closed_one_hides() {
    const STALL: Duration = Duration::from_millis(600);
    let stalls = || {
        let (began, is_stalled) = (Instant::now(), AtomicBool::new(false));
        let until = AtomicUsize::new(0);
        Scripted::http(move |_| {
            // Once, in the middle, nobody is answered for a while.
            if began.elapsed() > Duration::from_millis(500) && !is_stalled.swap(true, Ordering::AcqRel) {
                until.store((began.elapsed() + STALL).as_millis() as usize, Ordering::Release);
            }
            let left = until.load(Ordering::Acquire).saturating_sub(began.elapsed().as_millis() as usize);
            thread::sleep(Duration::from_millis(left as u64));
            response("200 OK", "", b"ok")
        })
    };
    let (closed, open) = (stalls(), stalls());
    let url = |server: &Scripted| format!("http://{}/", server.address());
    let args = ["--connections", "2", "--duration", "1500ms"];
    let closed = load(&[&[&url(&closed)[..]], &args[..]].concat()).good();
    // Two answers were slow, whatever came between.
    assert!(closed.number("/latency_micros/max") >= 500_000.0, "{}", closed.json);
    assert!(closed.count("/requests") > 300 && closed.number("/latency_micros/p99") < 300_000.0, "{}", closed.json);
    let open = load(&[&[&url(&open)[..]], &args[..], &["--rate", "200"]].concat()).good();
    // 600 ms of 1500 ms are 40 in 100 of those who came.
    assert_eq!(open.count("/requests"), 300);
    assert!(open.number("/latency_micros/p99") >= 500_000.0, "{}", open.json);
    assert!(open.number("/latency_micros/p75") >= 100_000.0, "{}", open.json);
    assert!(open.count("/late_starts") >= 100, "{}", open.json);
}

#[test]
fn what_goes_wrong_is_told_by_its_kind() {
    let server = Counting::start(true);
    let other = Scratch::new("authority");
    certificates(other.path(), "certs");
    let stranger = other.path().join("certs/ca.pem");
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let refused = format!("http://{}/", nobody.local_addr().expect("bound"));
    drop(nobody);
    let broken = Scripted::http(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n".to_vec());
    let broken_url = format!("http://{}/", broken.address());
    let closing = Scripted::start(|stream, _| drop(stream));
    let closing_url = format!("http://{}/", closing.address());
    let (fail, small) = (server.url("https", "/fail"), server.url("https", "/small"));
    let plain = server.url("http", "/small");
    let no_mmtp = server.url("mmtp", "/pay");
    let trust = ["--ca", server.ca()];
    let distrust = ["--ca", stranger.to_str().expect("ASCII")];
    for (url, more, kind) in [
        (&refused, &[][..], "connect refused"),
        (&small, &distrust, "certificate refused"),
        (&small, &["--ca", server.ca(), "--name", "elsewhere"], "certificate refused"),
        (&fail, &trust, "status 500"),
        (&plain, &[], "status 400"),
        (&no_mmtp, &trust, "handshake failed"),
        (&broken_url, &[], "HTTP: content lengths differ"),
    ] {
        let loaded = load(&[&[&url[..], "--connections", "2", "--duration", "250ms"], more].concat());
        assert_eq!((loaded.code, loaded.count("/requests")), (1, 0), "{url}: {}", loaded.json);
        assert!(loaded.error(kind) > 0, "{url}: no '{kind}' in {}", loaded.json);
        // Who fails is not asked again at once.
        assert!(kind.starts_with("status") || loaded.error(kind) <= 20, "{url}: {}", loaded.json);
    }
    let loaded = load(&[&closing_url, "--connections", "2", "--duration", "250ms"]);
    let lost = loaded.error("closed by the server") + loaded.error("connection reset");
    assert!(loaded.code == 1 && (1..=20).contains(&lost), "{}", loaded.json);
}

#[test]
fn receipts_are_counted() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let origin = nobody.local_addr().expect("bound");
    drop(nobody);
    let site = Site::start(origin);
    let ca = site.ca();
    let args = ["--ca", ca.to_str().expect("ASCII"), "--connections", "1", "--duration", "200ms"];
    let loaded = load(&[&[&site.url("pay/x")[..]], &args[..]].concat());
    let failed = loaded.error("stream reset: upstream_unreachable");
    assert!(loaded.code == 1 && failed > 0, "{}", loaded.json);
    let receipts = ["not forwarded", "unknown", "refused"].map(|name| loaded.count(&format!("/receipts/{name}")));
    assert_eq!(receipts.iter().sum::<usize>(), failed, "{}", loaded.json);
    let loaded = load(&[&[&site.url("nonesuch/x")[..]], &args[..]].concat());
    assert!(loaded.error("stream reset: service_unknown") > 0, "{}", loaded.json);
}

#[test]
fn idle_connections_are_held_and_answer_at_the_end() {
    let origin = nginx(&[("small", &[b'x'; 281])]);
    let site = Site::with(origin.address(), &Plan { workers: 2, ..Plan::default() });
    let both = cores(2).iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (url, ca) = (site.url("pay/small"), site.ca());
    let args = [&url, "--ca", ca.to_str().expect("ASCII"), "--idle", "--connections", "301", "--cores", &both];
    let mut process = command(&args);
    process.args(["--duration", "2s", "--json", "-"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = process.spawn().expect("it starts");
    site.pop.until("all are held", |metrics| metrics.get("connections_open") == 301);
    let output = child.wait_with_output().expect("a child of ours");
    let loaded = Loaded {
        code: output.status.code().expect("it was not killed"),
        json: serde_json::from_slice(&output.stdout).expect("JSON"),
        stderr: String::new(),
    }
    .good();
    assert_eq!(loaded.json["idle"], serde_json::json!({"held": 301, "lost": 0, "answered": 301}));
    assert_eq!((loaded.count("/requests"), loaded.count("/latency_micros/count")), (602, 301));
    assert_eq!(loaded.count("/first_answer_micros/count"), 301);
    site.gateway.until_equal(&[("requests_total", 602)]);
}

#[test]
fn a_held_connection_that_ends_is_lost() {
    let server = Nginx::start(|address, _| {
        format!("http {{ {NGINX_HTTP_PATHS} keepalive_timeout 1s; server {{ listen {address}; return 200; }} }}")
    });
    let url = format!("http://{}/", server.address());
    let loaded = load(&[&url, "--idle", "--connections", "5", "--duration", "3s"]);
    assert_eq!(loaded.code, 1);
    assert_eq!(loaded.json["idle"], serde_json::json!({"held": 5, "lost": 5, "answered": 0}));
}

#[test]
fn that_nothing_can_be_held_is_said_as_well() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/", nobody.local_addr().expect("bound"));
    drop(nobody);
    let output = run(&mut command(&[&url, "--idle", "--connections", "2", "--duration", "100ms"]), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).starts_with("holding 0 connections\n"), "{}", text(&output.stdout));
}

#[test]
fn a_summary_that_nobody_reads_is_no_failure() {
    let server = Counting::start(false);
    let url = server.url("http", "/small");
    let mut process = command(&[&url, "--connections", "1", "--duration", "100ms"]);
    let mut child = process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("a child of ours");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn an_interrupted_run_tells_what_it_measured() {
    let server = Counting::start(false);
    let file = server.nginx.scratch().path().join("report.json");
    let url = server.url("http", "/small");
    let file_text = file.to_str().expect("ASCII");
    let mut process = command(&[&url, "--duration", "60s", "--json", file_text, "--quiet"]);
    let child = process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    server.seen(100);
    let status = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    assert!(status.expect("kill(1) is part of every Debian").success());
    let output = child.wait_with_output().expect("a child of ours");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let json: Value = serde_json::from_slice(&std::fs::read(&file).expect("it was written")).expect("JSON");
    let requests = json["requests"].as_u64().expect("a number");
    assert!(text(&output.stdout).contains(&format!("{requests} good")), "{}", text(&output.stdout));
    assert_eq!(server.seen(requests as usize).len(), requests as usize);
    assert!(json["seconds"].as_f64().expect("a number") < 30.0);
}

#[test]
fn first_bytes_with_the_syn_are_answered_all_the_same() {
    let origin = nginx(&[("small", &[b'x'; 281])]);
    let site = Site::start(origin.address());
    let ca = site.ca();
    let args = ["--ca", ca.to_str().expect("ASCII"), "--connections", "2", "--duration", "300ms", "--fast-open"];
    for more in [&[][..], &["--handshake", "early"]] {
        load(&[&[&site.url("pay/small")[..]], &args[..], more].concat()).good();
    }
    load(&[&format!("http://{}/small", origin.address()), "--duration", "200ms", "--fast-open"]).good();
}

#[test]
fn what_cannot_be_run_exits_with_two_and_says_why() {
    let missing = Path::new("/no/such/directory/report.json").to_str().expect("ASCII");
    for (args, why) in [
        (&["http://127.0.0.1:1/", "--connections", "0"][..], "--connections"),
        (&["http://127.0.0.1:1/", "--connections", "999999"], "descriptors"),
        (&["http://127.0.0.1:1/", "--rate", "0"], "--rate"),
        (&["http://127.0.0.1:1/", "--duration", "0s"], "--duration"),
        (&["http://127.0.0.1:1/", "--cores", "4095"], "core 4095"),
        (&["http://127.0.0.1:1/", "--handshake", "full"], "--handshake"),
        (&["http://127.0.0.1:1/", "--mix", "0:1"], "--mix"),
        (&["http://127.0.0.1:1/", "--json", missing], missing),
        (&["https://127.0.0.1:1/", "--ca", missing], missing),
        (&["127.0.0.1:1"], "mmtp://"),
    ] {
        let output = run(&mut command(args), &[]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(why), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}
