//! The process: signals, certificates read again, the admin address, and why it does not start.

use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use trunkline::client::{Client, Request, Url};
use trunkline::mmtp::Code;

use crate::harness::{Called, Plan, SOON, Site, certificates, run, text, until};
use crate::origin::{Http, Scripted, nginx};
use crate::peers::{End, Mmtp, Said, Tls, connect, trust};
use crate::support::Process;

/// An origin that sends half of an answer, and the rest when told to.
fn halting() -> (Scripted, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    let origin = Scripted::start(move |stream, _| {
        let mut connection = Http::new(stream);
        while connection.asked().is_some() {
            connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
            let _ = released.lock().expect("one answer at a time").recv_timeout(SOON);
            connection.write(b"half");
        }
    });
    (origin, release)
}

fn client(site: &Site) -> Client {
    Client::builder().ca_pem(&std::fs::read(site.ca()).expect("it exists")).build().expect("a client")
}

fn request(site: &Site) -> Request {
    Request::get(Url::parse(&site.url("pay/")).expect("a URL"))
}

#[test]
fn sigterm_lets_what_runs_end_and_takes_nothing_new() {
    let (origin, release) = halting();
    let mut site = Site::start(origin.address());
    let client = client(&site);
    let call = client.start(request(&site));
    assert_eq!(call.response_head().expect("it has begun").status, 200);
    let mut idle = Mmtp::connect(site.address, &site.ca());
    idle.until("HELLO", |said| *said == Said::Hello);

    site.pop.signal("TERM");
    // Idle clients are told to go elsewhere, and closed in order.
    idle.until("GOAWAY", |said| *said == Said::GoAway(Code::DRAINING));
    assert_eq!(idle.rest().1, End::Notified);
    until("nothing new is accepted", || TcpStream::connect(site.address).is_err().then_some(()));
    let (status, why) = site.pop.get("/ready");
    assert_eq!((status, why.as_str()), (503, "draining\n"));
    assert_eq!(site.pop.get("/live").0, 200);
    assert!(site.pop.process().exit_status().is_none(), "an answer is under way");

    release.send(()).expect("the origin waits");
    assert_eq!(call.body(100).expect("it may end"), b"halfhalf");
    assert!(site.pop.ended().success(), "{}", site.pop.log());
    // The gateway saw its trunks end in order.
    site.gateway.until_equal(&[("connections_open", 0), ("truncated_ends_total", 0)]);
    assert_eq!(site.gateway.process().terminate().code(), Some(0), "{}", site.gateway.log());
}

#[test]
fn sigterm_does_not_wait_longer_than_it_should() {
    let (origin, _release) = halting();
    let plan = Plan { pop: "drain_timeout = \"300ms\"".to_owned(), ..Plan::default() };
    let mut site = Site::with(origin.address(), &plan);
    let client = client(&site);
    let call = client.start(request(&site));
    assert_eq!(call.response_head().expect("it has begun").status, 200);
    let mut tunnel = Tls::connect(site.address, trust(&site.ca(), &[]));
    tunnel.send(b"GET / HTTP/1.1\r\n\r\n").expect("it is open");
    site.pop.signal("TERM");
    assert!(site.pop.ended().success(), "{}", site.pop.log());
    let error = call.body(100).expect_err("it was cut");
    assert_eq!(error.receipt(), trunkline::client::Receipt::Unknown, "{error}");
    assert_ne!(tunnel.receive_all().1, End::Notified);
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let (origin, _release) = halting();
    let plan = Plan { pop: "drain_timeout = \"10m\"".to_owned(), ..Plan::default() };
    let mut site = Site::with(origin.address(), &plan);
    let client = client(&site);
    let call = client.start(request(&site));
    assert_eq!(call.response_head().expect("it has begun").status, 200);
    site.pop.signal("TERM");
    until("it drains", || site.pop.log().contains("draining").then_some(()));
    assert!(site.pop.process().exit_status().is_none());
    site.pop.signal("TERM");
    assert!(site.pop.ended().success(), "{}", site.pop.log());
    assert!(call.body(100).is_err());
}

#[test]
fn sighup_swaps_certificates_under_running_connections() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let old_ca = std::fs::read(site.ca()).expect("it exists");
    let old_trust = trust(&site.ca(), &["http/1.1"]);
    let mut old = Tls::connect(site.address, old_trust.clone());
    let shown = old.certificate();

    // The new pair is of a new authority.
    certificates(site.scratch.path(), "certs");
    site.pop.signal("HUP");
    until("the log says so", || site.pop.log().contains("certificates reread").then_some(()));
    let fresh = until("new connections see the new one", || {
        Tls::over(connect(site.address), trust(&site.ca(), &["http/1.1"])).ok()
    });
    assert_ne!(fresh.certificate(), shown);
    assert!(Tls::over(connect(site.address), old_trust).is_err());
    // Connections that exist live on, trunks among them.
    old.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("it is open");
    assert!(text(&old.receive_all().0).ends_with("hello from nginx\n"));
    assert_eq!(site.pop.metrics().get("trunks_failed_total"), 0);

    // A broken pair changes nothing, and the log says why.
    let key = std::fs::read(site.scratch.path().join("certs/pop.key")).expect("it exists");
    site.scratch.write("certs/pop.key", "this is no key");
    site.pop.signal("HUP");
    until("the log says why", || site.pop.log().contains("the old certificates stay in use").then_some(()));
    assert!(site.pop.log().contains("certs/pop.key"), "{}", site.pop.log());
    let still = Tls::connect(site.address, trust(&site.ca(), &["http/1.1"]));
    assert_eq!(still.certificate(), fresh.certificate());
    assert!(!site.pop.log().contains("this is no key"), "keys are no matter for logs");

    // Mended, it is taken again.
    site.scratch.write("certs/pop.key", key);
    site.scratch.write("old.pem", old_ca);
    site.pop.signal("HUP");
    until("it is taken", || (site.pop.log().matches("certificates reread").count() >= 2).then_some(()));
    drop((old, fresh, still));
    site.until_quiet();
}

#[test]
fn the_admin_address_tells_the_truth() {
    let origin = nginx(&[]);
    let mut site = Site::start(origin.address());
    for node in [&site.pop, &site.gateway] {
        assert_eq!(node.get("/live"), (200, "ok\n".to_owned()));
        assert_eq!(node.get("/ready"), (200, "ok\n".to_owned()));
        assert_eq!(node.get("/other").0, 404);
    }
    site.curl(&[&site.https("/"), &site.https("/")]);
    site.call(&["--repeat", "3", &site.url("pay/")]);
    site.until_quiet();
    let pop = site.pop.metrics();
    for (name, value) in [
        ("connections_accepted_total", 2),
        ("connections_refused_total", 0),
        // Two clients and two trunks.
        ("handshakes_total{kind=\"full\"}", 4),
        ("handshakes_failed_total", 0),
        ("streams_opened_total", 4),
        ("streams_done_total", 4),
        ("streams_cancelled_total", 0),
        ("truncated_ends_total", 0),
        ("trunks_dialed_total", 2),
        ("links_open", 2),
    ] {
        assert_eq!(pop.get(name), value, "{name}\n{}", site.pop.figures());
    }
    let gateway = site.gateway.metrics();
    for (name, value) in [
        ("connections_open", 2),
        ("requests_total", 3),
        ("upstream_dialed_total", 2),
        ("upstream_reused_total", 2),
        ("streams_done_total", 4),
        ("responses_invalid_total", 0),
    ] {
        assert_eq!(gateway.get(name), value, "{name}\n{}", site.gateway.figures());
    }
    // The connection that asks, and the look into /proc, may count or not.
    let (told, seen) = (gateway.get("process_open_fds"), site.gateway.descriptors() as u64);
    assert!(told.abs_diff(seen) <= 3, "{told} {seen}");
    site.gateway.process().terminate();
    until("the POP is not ready without a trunk", || (site.pop.get("/ready").0 == 503).then_some(()));
    assert_eq!(site.pop.get("/live").0, 200);
}

#[test]
fn an_admin_port_that_the_kernel_chose_is_told() {
    let origin = nginx(&[]);
    let mut site = Site::start(origin.address());
    site.gateway.process().terminate();
    let config = text(&site.scratch.read("gateway.toml"));
    let (before, _) = config.split_once("[admin]").expect("there is one");
    let config = site.scratch.write("chosen.toml", format!("{before}[admin]\naddress = \"127.0.0.1:0\"\n"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    let log = std::fs::File::create(site.scratch.path().join("chosen.log")).expect("scratch is writable");
    let _gateway = Process::start(command.args(["gateway", "--config"]).arg(config).stderr(log));
    let address = until("the log tells", || {
        let log = text(&site.scratch.read("chosen.log"));
        let (_, rest) = log.split_once("admin=")?;
        rest.split_whitespace().next()?.parse::<std::net::SocketAddr>().ok()
    });
    assert_ne!(address.port(), 0);
    assert!(TcpStream::connect(address).is_ok());
}

fn trunkline(site: &Site, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    let output = run(command.current_dir(site.scratch.path()).args(args), &[]);
    (output.status.code().expect("it was not killed"), text(&output.stderr))
}

#[test]
fn an_address_in_use_is_told_with_its_key() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    // The very same POP again: the kernel alone would let both share the port.
    let (code, said) = trunkline(&site, &["pop", "--config", "pop.toml"]);
    assert_ne!(code, 0, "{said}");
    let address = site.address.to_string();
    for words in ["pop.toml", "listen[0].address", address.as_str(), "in use", "remedy:"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // Checking does not bind, so it passes while the POP runs.
    let (code, said) = trunkline(&site, &["pop", "--config", "pop.toml", "--check"]);
    assert_eq!((code, said.as_str()), (0, ""));
    // Only the admin address is taken.
    let holder = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let taken = holder.local_addr().expect("it is bound").to_string();
    let config = text(&site.scratch.read("pop.toml")).replace(&address, &crate::harness::address().to_string());
    let (before, _) = config.split_once("[admin]").expect("there is one");
    site.scratch.write("other.toml", format!("{before}[admin]\naddress = \"{taken}\"\n"));
    let (code, said) = trunkline(&site, &["pop", "--config", "other.toml"]);
    assert_ne!(code, 0, "{said}");
    assert!(said.contains("admin.address") && said.contains(&taken) && said.contains("in use"), "{said}");
}

#[test]
fn mistakes_are_told_together_with_file_key_and_remedy() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let config = text(&site.scratch.read("pop.toml"))
        .replace("trunks_per_core", "trunks_per_cor")
        .replace("certs/pop.key\"\ntunnel", "certs/gateway.key\"\ntunnel")
        .replace(&format!("\"{}\"", site.gateway_address), "\"gateway.example:7443\"");
    let config = config.replacen("ca = \"certs/ca.pem\"", "ca = \"certs/none.pem\"", 1);
    site.scratch.write("wrong.toml", config);
    for check in [&["--check"][..], &[]] {
        let (code, said) = trunkline(&site, &[&["pop", "--config", "wrong.toml"], check].concat());
        assert_eq!(code, 2, "{said}");
        for words in [
            "trunks_per_cor: unknown key",
            "did you mean `trunks_per_core`",
            "does not fit",
            "gateway.example:7443",
            "certs/none.pem",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert!(said.matches("remedy:").count() >= 4, "{said}");
        assert_eq!(said.matches("error: wrong.toml").count(), said.matches("error:").count(), "{said}");
    }
}

/// Starts a command in which io_uring_setup(2) fails with EPERM, as under the seccomp profile of a container.
const WITHOUT_IO_URING: &str = include_str!("../support/without_io_uring.py");

#[test]
fn a_kernel_that_refuses_io_uring_is_explained() {
    let origin = nginx(&[]);
    let mut site = Site::start(origin.address());
    site.pop.process().kill();
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", WITHOUT_IO_URING, env!("CARGO_BIN_EXE_trunkline"), "pop", "--config", "pop.toml"]);
    let output = run(command.current_dir(site.scratch.path()), &[]);
    let said = text(&output.stderr);
    if output.status.code() == Some(77) {
        println!("skipped: this machine has no seccomp");
        return;
    }
    assert!(!output.status.success());
    for words in ["refused io_uring", "seccomp filter most likely forbids it", "Remedy: allow io_uring_setup"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn more_clients_than_allowed_are_closed_at_the_door() {
    let origin = nginx(&[]);
    let plan = Plan { pop_worker: "clients_max = 3".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    let held: Vec<Mmtp> = (0..3).map(|_| Mmtp::connect(site.address, &site.ca())).collect();
    // The reset may come while it connects, or later.
    let refused = TcpStream::connect(site.address).and_then(|socket| Tls::over(socket, trust(&site.ca(), &["mmtp/1"])));
    assert!(refused.is_err());
    site.pop.until_equal(&[("connections_refused_total", 1), ("connections_open", 3)]);
    drop(held);
    site.until_quiet();
    let called: Called = site.call(&[&site.url("pay/")]);
    called.answered(200);
}

#[test]
fn more_streams_than_allowed_are_refused_with_a_time_to_wait() {
    let (origin, release) = halting();
    let plan = Plan { pop_worker: "streams_max = 1".to_owned(), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    let client = client(&site);
    let first = client.start(request(&site));
    assert_eq!(first.response_head().expect("it has begun").status, 200);
    let error = client.call(request(&site)).expect_err("there is room for one");
    let trunkline::client::Receipt::Refused { wait } = error.receipt() else { panic!("{error}") };
    assert!(wait > Duration::ZERO, "{error}");
    release.send(()).expect("the origin waits");
    assert_eq!(first.body(100).expect("it ends"), b"halfhalf");
    drop((first, client));
    site.until_quiet();
}
