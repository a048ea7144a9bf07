//! Configurations as people write them, right and wrong.

use std::time::{Duration, SystemTime};

use super::*;
use crate::server::certificates::{DEVELOPMENT_VALIDITY, DevelopmentCa, Usage};
use crate::server::keys::TicketKey;
use crate::server::problems::{Problem, Problems};

const POP: &str = include_str!("../../../docs/examples/pop.toml");
const GATEWAY: &str = include_str!("../../../docs/examples/gateway.toml");

/// A directory with the certificates the examples name.
struct Fixture {
    dir: tempfile::TempDir,
    here: Surroundings,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let here = Surroundings { cores: vec![0, 1], descriptors: 20_000, now: SystemTime::now() };
        let fixture = Fixture { dir, here };
        let ca = DevelopmentCa::new().expect("an authority");
        fixture.write("certs/ca.pem", &ca.pem());
        for name in ["pop", "gateway"] {
            let issued = ca.issue(name, &[], Usage::ServerAndClient).expect("a certificate");
            fixture.write(&format!("certs/{name}.pem"), &issued.chain_pem);
            fixture.write(&format!("certs/{name}.key"), &issued.key_pem);
        }
        fixture
    }

    fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a name in a directory")).expect("our own directory");
        std::fs::write(&path, text).expect("our own file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
    }

    fn pop(&self, text: &str) -> Result<(PopConfig, Vec<Problem>), Problems> {
        PopConfig::parse(text, &self.dir.path().join("pop.toml"), &self.here)
    }

    fn gateway(&self, text: &str) -> Result<(GatewayConfig, Vec<Problem>), Problems> {
        GatewayConfig::parse(text, &self.dir.path().join("gateway.toml"), &self.here)
    }

    /// The one mistake of the POP example after `from` was replaced by `to`.
    #[track_caller]
    fn pop_mistake(&self, from: &str, to: &str) -> Problem {
        assert!(POP.contains(from), "the example does not hold {from}");
        one(self.pop(&POP.replacen(from, to, 1)).map(|_| ()))
    }

    /// The one mistake of the gateway example after `from` was replaced by `to`.
    #[track_caller]
    fn gateway_mistake(&self, from: &str, to: &str) -> Problem {
        assert!(GATEWAY.contains(from), "the example does not hold {from}");
        one(self.gateway(&GATEWAY.replacen(from, to, 1)).map(|_| ()))
    }
}

#[track_caller]
fn one(result: Result<(), Problems>) -> Problem {
    let problems = result.expect_err("a mistake was made");
    assert_eq!(problems.list().len(), 1, "{problems}");
    let problem = problems.list()[0].clone();
    assert!(!problem.remedy.is_empty());
    problem
}

#[track_caller]
fn says(problem: &Problem, key: &str, what: &str, remedy: &str) {
    assert_eq!(problem.place.key, key, "{problem}");
    assert!(problem.what.contains(what), "{problem}");
    assert!(problem.remedy.contains(remedy), "{problem}");
}

#[test]
fn the_examples_of_the_documentation_are_right() {
    let fixture = Fixture::new();
    let (pop, warnings) = fixture.pop(POP).expect("the example is right");
    assert_eq!(warnings, vec![]);
    assert_eq!((pop.process.id.as_str(), pop.process.cores.as_slice()), ("pop-1", [0].as_slice()));
    assert_eq!(pop.listeners[0].tunnel.as_deref(), Some("web"));
    assert_eq!(pop.backbone.gateways[0].server_name, "127.0.0.1", "the address's IP, unless given");
    assert_eq!(pop.process.worker.clients_max, 20_000 - 512);
    assert_eq!(pop.backbone.wait_for_trunk, Duration::from_secs(2));
    let (gateway, warnings) = fixture.gateway(GATEWAY).expect("the example is right");
    assert_eq!(warnings, vec![]);
    assert_eq!(gateway.process.cores, [1]);
    let kinds: Vec<ServiceKind> = gateway.services.iter().map(|service| service.kind).collect();
    assert_eq!(kinds, [ServiceKind::Tunnel, ServiceKind::Http]);
    assert_eq!(gateway.services[1].authority, "127.0.0.1:9000", "the first upstream, unless given");
    assert_eq!(gateway.upstream.connections_max, (20_000 - 512) / 2);
}

/// Every table closes with a complaint that lists its known keys: each of them must be documented.
#[test]
fn every_key_is_documented() {
    const DOCUMENTATION: &str = include_str!("../../../docs/CONFIG.md");
    let fixture = Fixture::new();
    let stray = |text: &str, before: &[&str]| {
        before.iter().fold(format!("zzzzzz = 1\n{text}"), |text, header| {
            let line = format!("\n{header}"); // not where it is commented out
            assert!(text.contains(&line), "{header}");
            text.replace(&line, &format!("{line}\nzzzzzz = 1"))
        })
    };
    let identity = "[[listen.identity]]\ncertificate = \"certs/pop.pem\"\nkey = \"certs/pop.key\"\n[backbone]";
    let more = "\n[worker]\n[log]\n[tickets]\n[fast_open]\nkeys = \"fast-open.keys\"\n";
    fixture.write("fast-open.keys", &"ab".repeat(16));
    let pop = stray(
        &format!("{}{more}", POP.replace("[backbone]", identity)),
        &[
            "[[listen]]",
            "[[listen.identity]]",
            "[tickets]",
            "[fast_open]",
            "[backbone]",
            "[[backbone.gateway]]",
            "[admin]",
            "[worker]",
            "[log]",
        ],
    );
    let gateway = stray(&format!("{GATEWAY}\n[upstream]\n"), &["[listen]", "[[service]]", "[upstream]"]);
    let pop = fixture.pop(&pop).expect_err("unknown keys everywhere");
    let gateway = fixture.gateway(&gateway).expect_err("unknown keys everywhere");
    assert_eq!((pop.list().len(), gateway.list().len()), (10, 5), "{pop}\n{gateway}");
    for problem in pop.list().iter().chain(gateway.list()) {
        let (_, keys) = problem.remedy.split_once("one of ").expect("no known key is near zzzzzz");
        for key in keys.split(", ") {
            let is_table = DOCUMENTATION.contains(&format!("[{}]", key.trim_matches('`')))
                || DOCUMENTATION.contains(&format!(".{}]", key.trim_matches('`')));
            assert!(is_table || DOCUMENTATION.contains(&format!("| {key} |")), "{key} is not in docs/CONFIG.md");
        }
    }
}

#[test]
fn omitted_cores_are_all_that_may_be_used() {
    let fixture = Fixture::new();
    let (pop, _) = fixture.pop(&POP.replace("cores = [0]", "")).expect("cores may be omitted");
    assert_eq!(pop.process.cores, [0, 1]);
    assert_eq!(pop.process.worker.clients_max, (20_000 - 512) / 2);
}

#[test]
fn every_key_is_read() {
    let fixture = Fixture::new();
    let text = POP
        .replace("id = ", "drain_timeout = \"7s\"\ngoaway_wait = \"8s\"\nid = ")
        .replace(
            "address = \"127.0.0.1:8443\"",
            "address = [\"127.0.0.1:8443\", \"[::1]:8443\"]\nbacklog = 9\npost_quantum = true",
        )
        .replace(
            "trunks_per_core = 2",
            "trunks_per_core = 3\nheartbeat_interval = \"1s\"\n\
             backoff_min = \"200ms\"\nbackoff_max = \"9s\"\nwait_for_trunk = \"1s\"",
        )
        .replace("name = \"dc-a\"", "name = \"dc-a\"\nserver_name = \"gateway\"")
        + "\n[worker]\nclients_max = 5\nstreams_max = 6\nbuffers = 64\nbuffer_bytes = 4096\nbatch_wait = \"20us\"\n\
           handshake_timeout = \"3s\"\nhandshake_share = 35\nhandshake_patience = \"2s\"\nconnect_timeout = \"4s\"\nidle_timeout = \"1m\"\n\
           [log]\nformat = \"json\"\nlevel = \"debug\"\n";
    let (pop, warnings) = fixture.pop(&text).expect("all of these exist");
    assert_eq!(warnings, vec![]);
    let listener = &pop.listeners[0];
    assert_eq!((listener.endpoint.addresses.len(), listener.endpoint.backlog, listener.post_quantum), (2, 9, true));
    let worker = WorkerConfig {
        clients_max: 5,
        streams_max: 6,
        buffers: 64,
        buffer_bytes: 4096,
        batch_wait: Duration::from_micros(20),
        handshake_timeout: 3 * SECOND,
        handshake_share: 35,
        handshake_patience: 2 * SECOND,
        connect_timeout: 4 * SECOND,
        idle_timeout: MINUTE,
    };
    assert_eq!(pop.process.worker, worker);
    let keys: Vec<(usize, String)> = pop.binds().into_iter().map(|bind| (bind.listener, bind.key)).collect();
    assert_eq!(keys, [(0, "listen[0].address".to_owned()), (0, "listen[0].address".to_owned())]);
    assert_eq!((pop.process.drain_timeout, pop.process.goaway_wait), (7 * SECOND, 8 * SECOND));
    let backbone = &pop.backbone;
    assert_eq!((backbone.trunks_per_core, backbone.wait_for_trunk), (3, SECOND));
    assert_eq!(backbone.heartbeat_interval, SECOND);
    assert_eq!((backbone.backoff_min, backbone.backoff_max), (200 * MILLISECOND, 9 * SECOND));
    assert_eq!(backbone.gateways[0].server_name, "gateway");
    assert_eq!(pop.process.log, LogConfig { format: LogFormat::Json, level: tracing::Level::DEBUG });

    let text = GATEWAY.replace("kind = \"http\"", "kind = \"http\"\nauthority = \"pay.example\"")
        + "\n[upstream]\nconnections_max = 9\nresponse_timeout = \"5s\"\nkeepalive_max = 0\n\
           keepalive_timeout = \"7s\"\n";
    let (gateway, _) = fixture.gateway(&text).expect("all of these exist");
    assert_eq!(gateway.services[1].authority, "pay.example");
    let upstream = UpstreamConfig {
        connections_max: 9,
        response_timeout: 5 * SECOND,
        keepalive_max: 0,
        keepalive_timeout: 7 * SECOND,
    };
    assert_eq!(gateway.upstream, upstream);
}

#[test]
fn five_mistakes_are_told_at_once() {
    let fixture = Fixture::new();
    let text = POP
        .replace("id = \"pop-1\"", "id = \"pop 1\"")
        .replace("cores = [0]", "cores = [7]")
        .replace("proxy_protocol = false", "proxy_protocol = \"no\"")
        .replace("trunks_per_core = 2", "trunks_per_cor = 2")
        .replace("address = \"127.0.0.1:7443\"", "address = \"gateway.example:7443\"");
    let problems = fixture.pop(&text).expect_err("five mistakes");
    let keys: Vec<&str> = problems.list().iter().map(|problem| problem.place.key.as_str()).collect();
    let five = ["id", "cores", "listen[0].proxy_protocol", "backbone.trunks_per_cor", "backbone.gateway[0].address"];
    assert_eq!(keys, five, "{problems}");
    let lines: Vec<usize> = problems.list().iter().map(|problem| problem.place.line).collect();
    assert!(lines.is_sorted() && lines[0] > 0, "{problems}");
    for (message, key) in problems.to_string().split("error: ").skip(1).zip(five) {
        assert!(message.contains("pop.toml:") && message.contains(key) && message.contains("remedy: "), "{message}");
    }
}

#[test]
fn unknown_keys_are_refused_with_a_suggestion() {
    let fixture = Fixture::new();
    let wrong = fixture.pop_mistake("proxy_protocol", "proxy_protcol");
    says(&wrong, "listen[0].proxy_protcol", "unknown key", "did you mean `proxy_protocol`");
    let wrong = fixture.pop_mistake("id = ", "zebra = 1\nid = ");
    says(&wrong, "zebra", "unknown key", "`backbone`");
    let wrong = fixture.gateway_mistake("kind = \"http\"", "kind = \"http\"\nretries = 3");
    says(&wrong, "service[1].retries", "unknown key", "use one of");
}

#[test]
fn missing_keys_are_named() {
    let fixture = Fixture::new();
    says(&fixture.pop_mistake("id = \"pop-1\"", ""), "id", "is missing", "id = ");
    let key = "key = \"certs/pop.key\"\ntunnel";
    says(&fixture.pop_mistake(key, "tunnel"), "listen[0].key", "is missing", "trunkline certs");
    let name = "name = \"dc-a\"\n";
    says(&fixture.pop_mistake(name, ""), "backbone.gateway[0].name", "is missing", "dc-a");
    says(&fixture.gateway_mistake("kind = \"http\"\n", ""), "service[1].kind", "is missing", "tunnel");
    let listen = "address = \"127.0.0.1:7443\"\n";
    says(&fixture.gateway_mistake(listen, ""), "listen.address", "is missing", "0.0.0.0:8443");
    let admin = "address = \"127.0.0.1:9901\"";
    says(&fixture.pop_mistake(admin, ""), "admin.address", "is missing", "remove [admin]");
}

#[test]
fn an_empty_file_says_all_that_is_needed() {
    let fixture = Fixture::new();
    let keys = |problems: Problems| -> Vec<String> {
        problems.list().iter().map(|problem| problem.place.key.clone()).collect()
    };
    assert_eq!(keys(fixture.pop("").expect_err("nothing there")), ["id", "listen", "backbone"]);
    assert_eq!(keys(fixture.gateway("").expect_err("nothing there")), ["id", "listen", "service"]);
    let empty = "id = \"a\"\nlisten = []\n[backbone]\ngateway = []";
    let problems = fixture.pop(empty).expect_err("nothing in them").to_string();
    assert!(problems.contains("listen: is missing") && problems.contains("backbone.gateway: is missing"));
}

#[test]
fn wrong_types_say_what_was_found_and_wanted() {
    let fixture = Fixture::new();
    let cases = [
        ("id = \"pop-1\"", "id = 7", "id", "is an integer, not text"),
        ("cores = [0]", "cores = \"all\"", "cores", "is a string, not whole numbers"),
        ("cores = [0]", "cores = [-1]", "cores", "is an array, not whole numbers"),
        ("proxy_protocol = false", "proxy_protocol = 0", "listen[0].proxy_protocol", "not true or false"),
        ("trunks_per_core = 2", "trunks_per_core = 2.5", "backbone.trunks_per_core", "is a float, not a whole"),
        ("trunks_per_core = 2", "heartbeat_interval = 5", "backbone.heartbeat_interval", "not a duration"),
        ("address = \"127.0.0.1:9901\"", "address = 9901", "admin.address", "is an integer, not text"),
        ("[[backbone.gateway]]", "[backbone.gateway]", "backbone.gateway", "is a table, not a list of tables"),
    ];
    for (from, to, key, what) in cases {
        says(&fixture.pop_mistake(from, to), key, what, "write");
    }
    let problem = one(fixture
        .gateway(
            "listen = 7\nid = \"a\"\n[[service]]\nname = \"a\"\nkind = \"http\"\n\
         upstream = \"127.0.0.1:1\"",
        )
        .map(|_| ()));
    says(&problem, "listen", "is an integer, not a table", "[listen]");
}

#[test]
fn addresses_are_an_ip_and_a_port() {
    let fixture = Fixture::new();
    let address = "\"127.0.0.1:8443\"";
    let key = "listen[0].address";
    says(&fixture.pop_mistake(address, "\"127.0.0.1\""), key, "not an address", "add the port");
    says(&fixture.pop_mistake(address, "\"localhost:8443\""), key, "not an address", "names are not looked up");
    says(&fixture.pop_mistake(address, "\"127.0.0.1:99999\""), key, "not an address", "port");
    says(&fixture.pop_mistake(address, "\"127.0.0.1:0\""), key, "port 0", "1 to 65535");
    says(&fixture.pop_mistake(address, "[]"), key, "holds no address", "write address");
    says(&fixture.pop_mistake(address, "[\"[::1]:1\", \"[::1]:1\"]"), key, "stands twice", "remove");
    let gateway = "\"127.0.0.1:7443\"";
    let key = "backbone.gateway[0].address";
    says(&fixture.pop_mistake(gateway, "\"0.0.0.0:7443\""), key, "no address to connect to", "other end");
    let upstream = "[\"127.0.0.1:9000\"]";
    says(&fixture.gateway_mistake(upstream, "[]"), "service[0].upstream", "holds no address", "10.0.0.7");
}

#[test]
fn what_must_be_unique_is() {
    let fixture = Fixture::new();
    let admin = fixture.pop_mistake("\"127.0.0.1:9901\"", "\"127.0.0.1:8443\"");
    says(&admin, "admin.address", "stands already in listen[0].address", "another port");
    let second = "[[listen]]\naddress = \"127.0.0.1:8443\"\ncertificate = \"certs/pop.pem\"\n\
                  key = \"certs/pop.key\"\n[backbone]";
    says(&fixture.pop_mistake("[backbone]", second), "listen[1].address", "stands already", "another port");
    let service = fixture.gateway_mistake("name = \"pay\"", "name = \"web\"");
    says(&service, "service[1].name", "web stands already in service[0].name", "of its own");
    let gateway = "[[backbone.gateway]]\nname = \"dc-a\"\naddress = \"127.0.0.1:7444\"\n[admin]";
    says(&fixture.pop_mistake("[admin]", gateway), "backbone.gateway[1].name", "stands already", "of its own");
    let gateway = "[[backbone.gateway]]\nname = \"dc-b\"\naddress = \"127.0.0.1:7443\"\n[admin]";
    let gateway = fixture.pop_mistake("[admin]", gateway);
    says(&gateway, "backbone.gateway[1].address", "stands already", "trunks_per_core");
}

#[test]
fn names_have_plain_characters() {
    let fixture = Fixture::new();
    for bad in ["a b", "a/b", "-a", "ä", "a\\n", &"a".repeat(65)] {
        let problem = fixture.gateway_mistake("name = \"pay\"", &format!("name = \"{bad}\""));
        says(&problem, "service[1].name", "is not a name", "letters, digits");
    }
    says(&fixture.gateway_mistake("name = \"pay\"", "name = \"\""), "service[1].name", "is empty", "give a value");
    let problem = fixture.pop_mistake("tunnel = \"web\"", "tunnel = \"w/b\"");
    says(&problem, "listen[0].tunnel", "is not a name", "letters, digits");
    let problem = fixture.pop_mistake("name = \"dc-a\"", "name = \"dc-a\"\nserver_name = \"a b\"");
    says(&problem, "backbone.gateway[0].server_name", "not a name a certificate can hold", "DNS name");
}

#[test]
fn numbers_and_durations_have_limits() {
    let fixture = Fixture::new();
    let key = "backbone.trunks_per_core";
    let trunks = "trunks_per_core = 2";
    for huge in ["0", "65", "-1", "99999999999999999999999999"] {
        let problem = fixture.pop_mistake(trunks, &format!("trunks_per_core = {huge}"));
        says(&problem, key, "out of range", "use 1 to 64");
    }
    let problem = fixture.pop_mistake(trunks, "heartbeat_interval = \"0s\"");
    says(&problem, "backbone.heartbeat_interval", "out of range", "use 100ms to 1h");
    let problem = fixture.pop_mistake(trunks, "heartbeat_interval = \"5\"");
    says(&problem, "backbone.heartbeat_interval", "is not a duration", "\"5s\"");
    let problem = fixture.pop_mistake(trunks, "backoff_min = \"2s\"");
    says(&problem, "backbone.backoff_max", "less than backoff_min", "raise");
    let problem = fixture.pop_mistake("[admin]", "[worker]\nbuffers = 100\n[admin]");
    says(&problem, "worker.buffers", "not a power of two", "use 128");
    let problem = fixture.pop_mistake("[admin]", "[worker]\nbuffer_bytes = 12\n[admin]");
    says(&problem, "worker.buffer_bytes", "out of range", "use 1024");
}

#[test]
fn more_clients_than_descriptors_are_warned_of() {
    let fixture = Fixture::new();
    let text = POP.replace("[admin]", "[worker]\nclients_max = 30000\n[admin]");
    let (pop, warnings) = fixture.pop(&text).expect("only a warning");
    assert_eq!((pop.process.worker.clients_max, warnings.len()), (30_000, 1));
    says(&warnings[0], "worker.clients_max", "more descriptors", "LimitNOFILE");
}

#[test]
fn cores_must_be_ones_this_process_may_use() {
    let fixture = Fixture::new();
    let cores = "cores = [0]";
    says(&fixture.pop_mistake(cores, "cores = [0, 5]"), "cores", "may not use core 5", "0, 1");
    says(&fixture.pop_mistake(cores, "cores = []"), "cores", "holds no core", "remove the key");
    says(&fixture.pop_mistake(cores, "cores = [1, 1]"), "cores", "twice", "once");
    let unknown = Fixture { here: Surroundings { cores: vec![], ..fixture.here.clone() }, ..fixture };
    says(&unknown.pop_mistake(cores, ""), "cores", "not known", "cores = [0]");
}

#[test]
fn files_must_exist_and_fit() {
    let fixture = Fixture::new();
    let wrong = fixture.pop_mistake("certs/pop.pem", "certs/nowhere.pem");
    says(&wrong, "listen[0].certificate", "no such file", "trunkline certs");
    assert!(wrong.what.contains(&fixture.dir.path().display().to_string()), "relative to the file: {wrong}");
    let wrong = fixture.pop_mistake("certs/pop.key", "certs/gateway.key");
    says(&wrong, "listen[0].key", "does not fit", "issued for");
    let wrong = fixture.pop_mistake("ca = \"certs/ca.pem\"", "ca = \"certs/pop.key\"");
    says(&wrong, "backbone.ca", "holds a key and no certificate", "PEM");
    let wrong = fixture.gateway_mistake("certs/gateway.pem", "certs");
    says(&wrong, "listen.certificate", "cannot read", "file of the certificate");
    fixture.write("certs/ca.pem", "-----BEGIN CERTIFICATE-----\nx");
    let wrong = fixture.gateway_mistake("id = \"dc-a-1\"", "id = \"a\"");
    says(&wrong, "listen.client_ca", "not readable PEM", "BEGIN CERTIFICATE");
}

#[test]
fn an_expired_certificate_is_a_warning() {
    let mut fixture = Fixture::new();
    fixture.here.now += 2 * DEVELOPMENT_VALIDITY;
    let (_, warnings) = fixture.gateway(GATEWAY).expect("only warnings");
    let keys: Vec<&str> = warnings.iter().map(|warning| warning.place.key.as_str()).collect();
    assert_eq!(keys, ["listen.certificate", "listen.client_ca"]);
    says(&warnings[0], "listen.certificate", "has expired", "renew");
}

#[test]
fn plaintext_trunks_are_for_loopback_unless_allowed() {
    let fixture = Fixture::new();
    // The keys of TLS may go or stay: nothing reads the files.
    let pop = POP.replace("[backbone]", "[backbone]\ntls = false").replace("certs/ca.pem", "certs/nowhere.pem");
    let gateway = GATEWAY.replace("[listen]", "[listen]\ntls = false").replace("client_ca = \"certs/ca.pem\"\n", "");
    let (read, warnings) = fixture.pop(&pop).expect("its gateway is on loopback");
    assert!(read.has_plaintext_trunks() && read.files().iter().all(|file| !file.ends_with("nowhere.pem")));
    assert_eq!((warnings.len(), warnings[0].place.line), (1, 15));
    says(&warnings[0], "backbone.tls", "can read, change and forge", "remove tls = false");
    assert!(!read.renewed(fixture.here.now).is_changed);
    let (read, warnings) = fixture.gateway(&gateway).expect("it listens on loopback");
    assert!(read.has_plaintext_trunks() && read.files().is_empty() && read.identities().is_empty());
    says(&warnings[0], "listen.tls", "can read, change and forge", "remove tls = false");
    assert!(!read.renewed(fixture.here.now).is_changed);

    let (local, forced) = ("127.0.0.1:7443", "tls = false\nplaintext_trunks_allowed = true");
    for outside in ["10.0.0.7:7443", "[fd00::7]:7443", "[::ffff:10.0.0.7]:7443"] {
        let wrong = one(fixture.pop(&pop.replace(local, outside)).map(|_| ()));
        says(&wrong, "backbone.tls", "beyond loopback, which", "plaintext_trunks_allowed = true");
        assert_eq!(wrong.place.line, 15);
        let allowed = pop.replace(local, outside).replace("tls = false", forced);
        assert_eq!(fixture.pop(&allowed).expect("it is allowed").1.len(), 1, "and warned of");
    }
    for outside in ["0.0.0.0:7443", "[::]:7443"] {
        let wrong = one(fixture.gateway(&gateway.replace(local, outside)).map(|_| ()));
        says(&wrong, "listen.tls", outside, "plaintext_trunks_allowed = true");
        let allowed = gateway.replace(local, outside).replace("tls = false", forced);
        assert_eq!(fixture.gateway(&allowed).expect("it is allowed").1.len(), 1, "and warned of");
    }
    for inside in ["[::1]:7443", "[::ffff:127.0.0.1]:7443"] {
        fixture.gateway(&gateway.replace(local, inside)).expect("that is loopback");
    }
    // One of two addresses is enough to refuse both.
    let both = "[\"127.0.0.1:7443\", \"10.0.0.7:7443\"]";
    let wrong = one(fixture.gateway(&gateway.replace(&format!("\"{local}\""), both)).map(|_| ()));
    says(&wrong, "listen.tls", "which 10.0.0.7:7443 is not", "remove tls = false");

    let wrong = fixture.pop_mistake("[backbone]", "[backbone]\nplaintext_trunks_allowed = true");
    says(&wrong, "backbone.plaintext_trunks_allowed", "no meaning without tls = false", "remove");
    let wrong = fixture.gateway_mistake("[listen]", "[listen]\ntls = true\nplaintext_trunks_allowed = false");
    says(&wrong, "listen.plaintext_trunks_allowed", "no meaning without tls = false", "remove");
    says(&fixture.pop_mistake("[backbone]", "[backbone]\ntls = \"no\""), "backbone.tls", "true or false", "");
}

#[test]
fn keys_of_http_are_refused_for_a_tunnel() {
    let fixture = Fixture::new();
    let wrong = fixture.gateway_mistake("kind = \"tunnel\"", "kind = \"tunnel\"\nauthority = \"a\"");
    says(&wrong, "service[0].authority", "no meaning for a tunnel", "kind = \"http\"");
    let wrong = fixture.gateway_mistake("kind = \"http\"", "kind = \"http\"\nauthority = \"a b\"");
    says(&wrong, "service[1].authority", "is not a host", "shop.example:8080");
    let wrong = fixture.gateway_mistake("kind = \"tunnel\"", "kind = \"tunel\"");
    says(&wrong, "service[0].kind", "not known", "did you mean \"tunnel\"");
}

#[test]
fn every_broken_line_is_told() {
    let fixture = Fixture::new();
    let problems = fixture.pop("id = \n[listen\ncores = [0\n").expect_err("not TOML");
    assert!(problems.list().len() >= 2, "{problems}");
    assert!(problems.list().iter().all(|problem| problem.what.starts_with("is not TOML")), "{problems}");
    let doubled = fixture.pop_mistake("cores = [0]", "cores = [0]\ncores = [1]");
    says(&doubled, "", "duplicate key", "toml.io");
}

#[test]
fn a_file_that_cannot_be_read_is_one_message() {
    let fixture = Fixture::new();
    let missing = PopConfig::load(&fixture.dir.path().join("none.toml")).map(|_| ());
    says(&one(missing), "", "no such file", "--config");
    says(&one(PopConfig::load(fixture.dir.path()).map(|_| ())), "", "cannot be read", "--config");
    let path = fixture.dir.path().join("binary.toml");
    std::fs::write(&path, [0xff, 0xfe]).expect("our own file");
    says(&one(GatewayConfig::load(&path).map(|_| ())), "", "not UTF-8", "TOML");
}

#[test]
fn certificates_are_read_again() {
    let fixture = Fixture::new();
    let (pop, _) = fixture.pop(POP).expect("the example is right");
    let (gateway, _) = fixture.gateway(GATEWAY).expect("the example is right");
    let ca = DevelopmentCa::new().expect("an authority");
    fixture.write("certs/ca.pem", &ca.pem());
    let issued = ca.issue("new", &[], Usage::ServerAndClient).expect("a certificate");
    fixture.write("certs/pop.pem", &issued.chain_pem);
    let half = pop.renewed(fixture.here.now);
    assert_eq!((half.refused, half.is_changed), (2, true), "the pair, named twice, stays; the authority is new");
    assert_eq!(half.problems.list()[0].place.key, "listen[0].key", "{}", half.problems);
    assert_eq!(half.config.backbone.tls.as_ref().expect("by default").authorities.roots, [ca.der()]);
    assert_eq!(half.config.listeners[0].identity, pop.listeners[0].identity);
    fixture.write("certs/pop.key", &issued.key_pem);
    let whole = half.config.renewed(fixture.here.now);
    assert_eq!((whole.refused, whole.is_changed, whole.problems.list().len()), (0, true, 0));
    assert_eq!(whole.config.listeners[0].identity.chain, issued.chain);
    assert_eq!(whole.config.backbone.tls.as_ref().expect("by default").identity.key, issued.key);
    let again = whole.config.renewed(fixture.here.now);
    assert_eq!((again.refused, again.is_changed), (0, false));
    let gateway = gateway.renewed(fixture.here.now);
    assert_eq!((gateway.refused, gateway.is_changed), (0, true));
    assert_eq!(gateway.config.listener.tls.as_ref().expect("by default").authorities.roots, [ca.der()]);
}

const LISTEN: &str = "tunnel = \"web\"";

#[test]
fn every_key_of_returning_users_is_read() {
    let fixture = Fixture::new();
    fixture.write("fast-open.keys", &format!("{}\n{}\n", "ab".repeat(16), "cd".repeat(16)));
    fixture
        .write("ticket-keys.toml", &format!("current = \"{}\"\nnext = \"{}\"", "abcd".repeat(16), "cdef".repeat(16)));
    let listen = "tunnel = \"web\"\nearly_data = false\ntunnel_early_data = \"allow\"\nfast_open = 7\n\
                  client_auth = \"optional\"\nclient_ca = \"certs/ca.pem\"\n[[listen.identity]]\n\
                  certificate = \"certs/gateway.pem\"\nkey = \"certs/gateway.key\"\nnames = [\"A.example\", \"*.b.example\"]\n\
                  [tickets]\ncapacity = 9\nlifetime = \"2h\"\nlookup_timeout = \"7ms\"\nkeys = \"ticket-keys.toml\"\n\
                  store = \"redis://pop:geheim@127.0.0.1:6379/3\"\n[fast_open]\nkeys = \"fast-open.keys\"";
    let text = POP.replace(&format!("{LISTEN}  "), &format!("{listen}\n#"));
    let text = text.replace("\nproxy_protocol = false", "");
    let (pop, warnings) = fixture.pop(&text).expect("all of these exist");
    assert_eq!(warnings, vec![]);
    let listener = &pop.listeners[0];
    assert_eq!((listener.early_data, listener.tunnel_early_data), (false, TunnelEarlyData::Allow));
    assert!(matches!(listener.client_auth, ClientAuth::Optional(_)));
    assert_eq!(listener.identities[0].names(), ["a.example", "*.b.example"]);
    assert_eq!(pop.binds()[0].fast_open, 7);
    assert_eq!((pop.tickets.capacity, pop.tickets.lifetime), (9, 2 * HOUR));
    let TicketStore::Remote(remote) = &pop.tickets.store else { panic!("a server is named") };
    let server = &remote.server;
    assert_eq!((server.server.port(), server.database, server.lookup_timeout), (6379, 3, 7 * MILLISECOND));
    assert_eq!((server.user.as_str(), server.password.as_str(), server.lifetime), ("pop", "geheim", 2 * HOUR));
    let first = |key: &TicketKey| [key[0], key[1]];
    assert_eq!((first(&remote.keys.current), remote.keys.next.as_ref().map(first)), ([0xab, 0xcd], Some([0xcd, 0xef])));
    assert_eq!(pop.fast_open_keys.as_ref().expect("named").bytes(), [[0xab; 16], [0xcd; 16]].concat());
    let shown = format!("{pop:?}");
    assert!(!shown.contains("geheim") && !shown.contains("171, 171") && !shown.contains("abcd"), "{shown}");
    for name in ["certs/pop.pem", "certs/gateway.key", "certs/ca.pem", "ticket-keys.toml", "fast-open.keys"] {
        assert!(pop.files().contains(&fixture.dir.path().join(name)), "{name} is watched");
    }
    let names: Vec<String> = pop.identities().into_iter().map(|(table, _)| table).collect();
    assert_eq!(names, ["listen[0]", "listen[0].identity[0]", "backbone"]);

    // What is broken stays as it was; the rest is renewed.
    fixture.write("ticket-keys.toml", "current = \"");
    fixture.write("fast-open.keys", &"ef".repeat(16));
    let renewed = pop.renewed(fixture.here.now);
    assert_eq!((renewed.refused, renewed.is_changed), (1, true), "{}", renewed.problems);
    assert_eq!(renewed.problems.list()[0].place.key, "tickets.keys");
    assert_eq!(renewed.config.tickets.keys(), pop.tickets.keys());
    assert_eq!(renewed.config.fast_open_keys.expect("named").bytes(), [0xef; 16]);
}

#[test]
fn mistakes_of_returning_users_are_told() {
    let fixture = Fixture::new();
    let listen = |more: &str| fixture.pop_mistake("proxy_protocol = false", more);
    says(&listen("client_auth = \"required\""), "listen[0].client_ca", "is missing", "client_ca = ");
    let without = listen("client_ca = \"certs/ca.pem\"");
    says(&without, "listen[0].client_ca", "no meaning without client_auth", "optional");
    says(&listen("client_auth = \"maybe\""), "listen[0].client_auth", "not known", "\"required\"");
    says(&listen("fast_open = 70000"), "listen[0].fast_open", "out of range", "use 0 to 65535");
    says(&listen("tunnel_early_data = \"held\""), "listen[0].tunnel_early_data", "not known", "\"hold\"");
    says(&listen("ocsp = \"none.der\""), "listen[0].ocsp", "none.der: No such file", "in DER");
    says(&listen("ocsp = \"certs/pop.pem\""), "listen[0].ocsp", "is not an OCSP response", "in DER");
    let mistake = fixture.pop_mistake("tunnel = \"web\"", "tunnel_early_data = \"hold\"");
    says(&mistake, "listen[0].tunnel_early_data", "no meaning without a tunnel", "tunnel");
    let identity = "[[listen.identity]]\ncertificate = \"certs/pop.pem\"\nkey = \"certs/pop.key\"\n";
    for names in ["[]", "[\"\"]", "[\"a b\"]", "[\"10.0.0.1\"]", "[\"*.*.a\"]", "7"] {
        let problem = fixture.pop_mistake("[backbone]", &format!("{identity}names = {names}\n[backbone]"));
        assert_eq!(problem.place.key, "listen[0].identity[0].names", "{problem}");
    }
    let worker = fixture.pop_mistake("[admin]", "[worker]\nhandshake_share = 0\n[admin]");
    says(&worker, "worker.handshake_share", "out of range", "use 1 to 90");
    let worker = fixture.pop_mistake("[admin]", "[worker]\nhandshake_share = 91\n[admin]");
    says(&worker, "worker.handshake_share", "out of range", "use 1 to 90");
    let tickets = |text: &str| fixture.pop_mistake("[admin]", &format!("[tickets]\n{text}\n[admin]"));
    says(&tickets("lifetime = \"25h\""), "tickets.lifetime", "out of range", "use 1s to 24h");
    says(&tickets("store = \"redis://127.0.0.1:1\""), "tickets.keys", "is missing", "trunkline keys new");
    says(&tickets("store = \"memry\""), "tickets.store", "neither", "\"memory\"");
    says(&tickets("capacity = 16777217"), "tickets.capacity", "out of range", "use 1 to 16777216");
    for (key, value) in [("keys", "none.toml"), ("lookup_timeout", "7ms")] {
        for store in ["", "store = \"memory\"\n"] {
            let ignored = tickets(&format!("{store}{key} = \"{value}\""));
            says(&ignored, &format!("tickets.{key}"), "no meaning for tickets in memory", "redis://IP:PORT/DB");
        }
    }
    let fast_open = fixture.pop_mistake("[admin]", "[fast_open]\n[admin]");
    says(&fast_open, "fast_open.keys", "is missing", "trunkline keys new");
}

#[test]
fn a_name_of_two_certificates_is_warned_of() {
    let fixture = Fixture::new();
    let identity = "[[listen.identity]]\ncertificate = \"certs/pop.pem\"\nkey = \"certs/pop.key\"\n";
    let text = POP.replace("[backbone]", &format!("{identity}{identity}[backbone]"));
    let (_, warnings) = fixture.pop(&text).expect("only a warning");
    assert_eq!(warnings.len(), 1);
    says(&warnings[0], "listen[0]", "identity[1] is never shown for localhost", "remove one");
}
