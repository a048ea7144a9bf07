//! A POP, a gateway and what is asked of them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub use crate::support::address;
use crate::support::{Process, Scratch};

/// Ceiling for what should come soon: ends a test that has failed.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `condition` gives something. Panics with `what` when it does not come [`SOON`].
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "not within {} s: {what}", SOON.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}

/// The figures of `/metrics` by name and labels.
pub struct Metrics(HashMap<String, f64>);

impl Metrics {
    /// One figure, without its prefix `trunkline_`, summed over workers.
    pub fn get(&self, name: &str) -> u64 {
        let found = self.0.get(&format!("trunkline_{name}")).or_else(|| self.0.get(name));
        *found.unwrap_or_else(|| panic!("no figure is named {name}")) as u64
    }

    /// One figure of each worker.
    pub fn per_worker(&self, name: &str) -> Vec<u64> {
        let of = |worker: usize| self.0.get(&format!("trunkline_worker_{name}{{worker=\"{worker}\"}}"));
        (0..).map_while(of).map(|value| *value as u64).collect()
    }
}

/// A running POP or gateway.
pub struct Node {
    process: Process,
    admin: SocketAddr,
    log: PathBuf,
    role: &'static str,
    config: PathBuf,
}

impl Node {
    /// Starts one and waits until it listens. `config` lacks the admin address and the log, which are added.
    pub fn start(role: &'static str, scratch: &Scratch, name: &str, config: &str) -> Node {
        let admin = address();
        let config = format!("{config}\n[admin]\naddress = \"{admin}\"\n");
        let config = scratch.write(&format!("{name}.toml"), config);
        Node::run(role, config, scratch.path().join(format!("{name}.log")), admin)
    }

    fn run(role: &'static str, config: PathBuf, log: PathBuf, admin: SocketAddr) -> Node {
        let file = fs::File::options().create(true).append(true).open(&log).expect("scratch is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        command.args([role, "--config"]).arg(&config).stdout(Stdio::null()).stderr(file);
        let mut node = Node { process: Process::start(&mut command), admin, log, role, config };
        until("the process listens", || {
            if let Some(status) = node.process.exit_status() {
                panic!("{role} ended with {status}:\n{}", node.log());
            }
            let (live, _) = node.try_get("/live")?;
            (live == 200 && node.log().contains("listening")).then_some(())
        });
        node
    }

    /// Starts it again after it has ended.
    pub fn restart(&mut self) {
        let again = Node::run(self.role, self.config.clone(), self.log.clone(), self.admin);
        *self = again;
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        until("the process ends", || self.process.exit_status())
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log is text")
    }

    fn try_get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.admin, SOON).ok()?;
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.get(9..12)?.parse().ok()?, body.to_owned()))
    }

    /// Status and body of an admin page.
    pub fn get(&self, path: &str) -> (u16, String) {
        until("the admin address answers", || self.try_get(path))
    }

    /// Its figures, published after this call began: workers publish several times a second.
    pub fn metrics(&self) -> Metrics {
        let before = self.last_metrics().per_worker("passes_total");
        until("every worker publishes", || {
            let now = self.last_metrics().per_worker("passes_total");
            before.iter().zip(&now).all(|(before, now)| now > before).then_some(())
        });
        // Once more, since a worker may have been in the middle of it.
        self.last_metrics()
    }

    /// The figures published last.
    fn last_metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Metrics(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// Waits until its figures are as wanted.
    pub fn until(&self, what: &str, mut wanted: impl FnMut(&Metrics) -> bool) {
        let end = Instant::now() + SOON;
        while !wanted(&self.metrics()) {
            assert!(
                Instant::now() < end,
                "not within {} s: {what}\n{}\n{}",
                SOON.as_secs(),
                self.figures(),
                self.log()
            );
            thread::sleep(Duration::from_millis(25));
        }
    }

    /// Waits until these figures, of no prefix, have these values.
    pub fn until_equal(&self, wanted: &[(&str, u64)]) {
        self.until(&format!("{wanted:?}"), |metrics| wanted.iter().all(|(name, value)| metrics.get(name) == *value));
    }

    /// All figures that are not zero, for messages.
    pub fn figures(&self) -> String {
        let Metrics(all) = self.metrics();
        let mut all: Vec<_> =
            all.into_iter().filter(|(name, value)| *value != 0.0 && !name.contains("worker")).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all.into_iter().fold(String::new(), |mut text, (name, value)| {
            let _ = writeln!(text, "{name} {value}");
            text
        })
    }

    /// Descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("the process runs").count()
    }

    /// Memory that is its own and not a file's, in bytes.
    pub fn anonymous_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("the process runs");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux tells RssAnon");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
    }
}

/// What a site is made from. The texts go into the configurations as they are.
pub struct Plan {
    /// Top-level keys of the POP.
    pub pop: String,
    /// Keys of its `[worker]`.
    pub pop_worker: String,
    /// Keys of its only `[[listen]]`, besides address and certificate.
    pub listen: String,
    /// Further `[[listen]]` sections.
    pub listeners: String,
    /// Keys of its `[backbone]`, besides certificates.
    pub backbone: String,
    /// Top-level keys of the gateway.
    pub gateway: String,
    /// Keys of its `[listen]`, besides address and certificates.
    pub gateway_listen: String,
    /// Keys of its `[worker]`.
    pub gateway_worker: String,
    /// Keys of its `[upstream]`.
    pub upstream: String,
    /// Workers of both.
    pub workers: usize,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            pop: String::new(),
            pop_worker: String::new(),
            listen: "tunnel = \"web\"".to_owned(),
            listeners: String::new(),
            backbone: String::new(),
            gateway: String::new(),
            gateway_listen: String::new(),
            gateway_worker: String::new(),
            upstream: String::new(),
            workers: 1,
        }
    }
}

/// POP and gateway, connected.
pub struct Site {
    // Processes end before their directory goes.
    pub pop: Node,
    pub gateway: Node,
    pub address: SocketAddr,
    pub gateway_address: SocketAddr,
    pub scratch: Scratch,
}

impl Site {
    /// One worker each, services `web` (tunnel) and `pay` (http), both at `origin`.
    pub fn start(origin: SocketAddr) -> Site {
        Site::with(origin, &Plan::default())
    }

    /// As planned. Waits until every trunk is up.
    pub fn with(origin: SocketAddr, plan: &Plan) -> Site {
        let site = Site::unready(origin, plan, "certs");
        site.pop.until("every worker has its trunks", |metrics| metrics.get("trunks_ready") == 2 * plan.workers as u64);
        assert_eq!(site.pop.get("/ready").0, 200);
        site
    }

    /// As planned, with the POP's trunks secured by the certificates of another directory. Waits for nothing.
    pub fn unready(origin: SocketAddr, plan: &Plan, backbone_certificates: &str) -> Site {
        let scratch = Scratch::new("site");
        certificates(scratch.path(), "certs");
        if backbone_certificates != "certs" {
            certificates(scratch.path(), backbone_certificates);
        }
        let (address, gateway_address) = (address(), address());
        let cores = cores(plan.workers);
        let gateway = format!(
            "id = \"dc-a-1\"\ncores = {cores:?}\n{}\n[worker]\n{}\n[listen]\naddress = \"{gateway_address}\"\n\
             certificate = \"certs/gateway.pem\"\nkey = \"certs/gateway.key\"\nclient_ca = \"certs/ca.pem\"\n{}\n\
             [[service]]\nname = \"web\"\nkind = \"tunnel\"\nupstream = [\"{origin}\"]\n\
             [[service]]\nname = \"pay\"\nkind = \"http\"\nupstream = [\"{origin}\"]\n[upstream]\n{}",
            plan.gateway, plan.gateway_worker, plan.gateway_listen, plan.upstream
        );
        let pop = format!(
            "id = \"pop-1\"\ncores = {cores:?}\n{}\n[worker]\n{}\n[[listen]]\naddress = \"{address}\"\n\
             certificate = \"certs/pop.pem\"\nkey = \"certs/pop.key\"\n{}\n{}\n[backbone]\n\
             ca = \"{backbone_certificates}/ca.pem\"\ncertificate = \"{backbone_certificates}/pop.pem\"\n\
             key = \"{backbone_certificates}/pop.key\"\ntrunks_per_core = 2\n{}\n\
             [[backbone.gateway]]\nname = \"dc-a\"\naddress = \"{gateway_address}\"",
            plan.pop, plan.pop_worker, plan.listen, plan.listeners, plan.backbone
        );
        let gateway = Node::start("gateway", &scratch, "gateway", &gateway);
        let pop = Node::start("pop", &scratch, "pop", &pop);
        Site { pop, gateway, address, gateway_address, scratch }
    }

    /// What clients trust, PEM.
    pub fn ca(&self) -> PathBuf {
        self.scratch.path().join("certs/ca.pem")
    }

    /// `mmtp://` address of a path of a service.
    pub fn url(&self, service_and_path: &str) -> String {
        format!("mmtp://localhost:{}/{service_and_path}", self.address.port())
    }

    /// `trunkline call` with these arguments, the trust and `--report json` before them.
    pub fn call(&self, args: &[&str]) -> Called {
        self.call_with(args, &[])
    }

    /// The same with standard input.
    pub fn call_with(&self, args: &[&str], input: &[u8]) -> Called {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        command.args(["call", "--report", "json", "--ca"]).arg(self.ca()).args(args);
        Called::from(run(&mut command, input))
    }

    /// curl with these arguments, the trust before them. Gives standard output; curl must succeed.
    pub fn curl(&self, args: &[&str]) -> Vec<u8> {
        let output = self.curl_output(args);
        assert!(output.status.success(), "curl {args:?}: {}: {}", output.status, text(&output.stderr));
        output.stdout
    }

    /// curl with these arguments, the trust before them.
    pub fn curl_output(&self, args: &[&str]) -> Output {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "120", "--cacert"]).arg(self.ca()).args(args);
        run(&mut command, &[])
    }

    /// `https://` address of a path.
    pub fn https(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// Waits until nothing of a client is left in POP and gateway, and says so if something stays.
    pub fn until_quiet(&self) {
        let gone = [
            ("connections_open", 0),
            ("tunnels_open", 0),
            ("streams_open", 0),
            ("streams_waiting", 0),
            ("streams_held", 0),
        ];
        self.pop.until_equal(&gone);
        // Trunks are all the links that a POP without clients has.
        self.pop.until("only trunks are left", |metrics| metrics.get("links_open") == metrics.get("trunks_ready"));
        self.pop.until_equal(&[("buffers_lent", 0)]);
        self.gateway.until_equal(&[("streams_open", 0), ("buffers_lent", 0)]);
        self.gateway.until("only idle upstreams are left", |metrics| {
            metrics.get("upstream_open") == metrics.get("upstream_idle")
                && metrics.get("links_open") == metrics.get("connections_open") + metrics.get("upstream_open")
        });
    }
}

/// What `trunkline call` came to.
pub struct Called {
    pub code: i32,
    pub body: Vec<u8>,
    /// The line of JSON.
    pub report: serde_json::Value,
    pub stderr: String,
}

impl Called {
    fn from(output: Output) -> Called {
        let stderr = text(&output.stderr);
        let report = stderr.lines().find(|line| line.starts_with('{')).and_then(|line| serde_json::from_str(line).ok());
        let code = output.status.code().expect("it was not killed");
        Called { code, body: output.stdout, report: report.unwrap_or_default(), stderr }
    }

    /// A word of the report.
    pub fn word(&self, key: &str) -> &str {
        self.report[key].as_str().unwrap_or("")
    }

    /// Panics unless it was answered with this status.
    pub fn answered(&self, status: u16) {
        assert_eq!((self.code, &self.report["status"]), (0, &status.into()), "{}", self.stderr);
        assert_eq!(self.word("receipt"), "answered", "{}", self.stderr);
    }

    /// Panics unless it failed with this receipt, for a reason that has `why` in it.
    pub fn failed(&self, receipt: &str, why: &str) {
        assert_eq!((self.code, self.word("receipt")), (1, receipt), "{}", self.stderr);
        assert!(self.word("error").contains(why), "{why}: {}", self.stderr);
    }
}

/// Runs a command to its end with this standard input.
pub fn run(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().display().to_string();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("it was asked for");
    thread::scope(|scope| {
        // It may end without reading all of it.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("a child of ours")
    })
}

/// Bytes as text, whatever they are.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Certificates for loopback, by `trunkline certs`.
pub fn certificates(directory: &Path, name: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    command.current_dir(directory).args(["certs", "--force", "--name", "localhost", "--out", name]);
    let output = run(&mut command, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// `trunkline keys` with these arguments, in a directory.
pub fn keys(scratch: &Scratch, args: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    let output = run(command.current_dir(scratch.path()).arg("keys").args(args), &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// So many cores that this process may use.
pub fn cores(count: usize) -> Vec<usize> {
    let cores = trunkline::server::process::cores_allowed();
    assert!(cores.len() >= count, "this machine has fewer than {count} cores");
    // Not always the first: other tests run at the same time.
    let from = std::process::id() as usize % cores.len();
    let mut chosen: Vec<usize> = (0..count).map(|index| cores[(from + index) % cores.len()]).collect();
    chosen.sort_unstable();
    chosen
}

/// Bytes that differ everywhere, so that lost, doubled and swapped ones show.
pub fn pattern(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut all: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| next()).collect();
    all.truncate(bytes);
    all
}
