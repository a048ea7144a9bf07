//! `trunkline doctor` as an operator runs it: a node on which all is well, and one thing after the other planted on it.
//!
//! The machine is a planted root, but for what is tried: io_uring, addresses, a gateway, a ticket server are real. Each test
//! asks for exactly what it planted, so that a check that cries too early fails as well as one that is silent.

mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use support::{Process, Scratch, address, wait_until_accepting};
use trunkline::server::certificates::{DEVELOPMENT_VALIDITY, DevelopmentCa, Usage};

const BINARY: &str = env!("CARGO_BIN_EXE_trunkline");
const POP_TUNING: &str = include_str!("../tuning/sysctl.d/60-trunkline-pop.conf");

const POP: &str = r#"
id = "pop-1"
cores = [0, 1]
[worker]
clients_max = 10000
[[listen]]
address = "LISTEN"
certificate = "certs/pop.pem"
key = "certs/pop.key"
[backbone]
ca = "certs/ca.pem"
certificate = "certs/pop.pem"
key = "certs/pop.key"
[[backbone.gateway]]
name = "dc-a"
address = "GATEWAY"
"#;

const GATEWAY: &str = r#"
id = "dc-a-1"
[listen]
address = "GATEWAY"
certificate = "certs/gateway.pem"
key = "certs/gateway.key"
client_ca = "certs/ca.pem"
[[service]]
name = "web"
kind = "http"
upstream = "UPSTREAM"
"#;

/// A POP that is about to be started on a machine where all is well, with a gateway that runs.
struct Node {
    _gateway: Process,
    listen: SocketAddr,
    gateway_address: SocketAddr,
    scratch: Scratch,
}

/// What the doctor said.
struct Said {
    code: i32,
    text: String,
    object: serde_json::Value,
}

impl Node {
    fn new() -> Node {
        let scratch = Scratch::new("doctor");
        certificates(scratch.path(), "certs");
        let (listen, gateway_address) = (address(), address());
        plant_machine(&scratch);
        let config = GATEWAY.replace("GATEWAY", &gateway_address.to_string()).replace("UPSTREAM", "127.0.0.1:1");
        let config = scratch.write("gateway.toml", config);
        let mut command = Command::new(BINARY);
        command.args(["gateway", "--config"]).arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let mut gateway = Process::start(&mut command);
        assert!(wait_until_accepting(gateway_address, &mut gateway), "the gateway starts");
        let node = Node { _gateway: gateway, listen, gateway_address, scratch };
        node.configure(|config| config);
        node
    }

    /// Writes the configuration anew, as `change` has it.
    fn configure(&self, change: impl Fn(String) -> String) {
        let config = POP.replace("LISTEN", &self.listen.to_string());
        self.scratch.write("pop.toml", change(config.replace("GATEWAY", &self.gateway_address.to_string())));
    }

    /// Writes a file of the machine.
    fn plant(&self, name: &str, text: &str) {
        self.scratch.write(&format!("root/{name}"), text);
    }

    fn doctor(&self) -> Said {
        self.doctor_by(&mut Command::new(BINARY), &["--config", "pop.toml", "--root", "root"])
    }

    /// Asks twice, for people and for programs.
    fn doctor_by(&self, command: &mut Command, args: &[&str]) -> Said {
        command.current_dir(self.scratch.path()).arg("doctor").args(args);
        let output = command.output().expect("the binary was built for this test");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("messages are text");
        let output = command.arg("--json").output().expect("it ran before");
        let object = serde_json::from_slice(&output.stdout).unwrap_or_default();
        Said { code: output.status.code().expect("it was not killed"), text, object }
    }
}

impl Said {
    /// Warnings and faults: level, check and what was found, and the remedy.
    fn complaints(&self) -> Vec<(String, String, String)> {
        let field = |finding: &serde_json::Value, name: &str| finding[name].as_str().expect("text").to_owned();
        let all = self.object["findings"].as_array().expect("a list").iter();
        all.filter(|finding| ["warning", "fault"].contains(&finding["level"].as_str().expect("text")))
            .map(|finding| {
                let what = format!("{}: {}", field(finding, "check"), field(finding, "found"));
                (field(finding, "level"), what, field(finding, "remedy"))
            })
            .collect()
    }

    /// That these are the complaints and no others, each with these words in what was found and in its remedy, and that
    /// people are told the same.
    #[track_caller]
    fn complains(&self, expected: &[(&str, &str, &str)]) {
        let complaints = self.complaints();
        assert_eq!(complaints.len(), expected.len(), "{}", self.text);
        for ((level, what, remedy), (wanted, words, mend)) in complaints.iter().zip(expected) {
            assert_eq!(level, wanted, "{}", self.text);
            assert!(what.contains(words), "{words}: {what}");
            assert!(remedy.contains(mend), "{mend}: {remedy}");
            assert!(self.text.contains(&format!("do: {remedy}")), "{remedy}:\n{}", self.text);
        }
        let worst = if expected.iter().any(|(level, ..)| *level == "fault") { 2 } else { 1 };
        assert_eq!((self.code, &self.object["exit_code"]), (worst, &worst.into()));
    }

    /// That this is among what was found, right or wrong.
    #[track_caller]
    fn tells(&self, words: &str) {
        assert!(self.text.contains(words), "{words}:\n{}", self.text);
    }
}

fn certificates(directory: &Path, name: &str) {
    let mut command = Command::new(BINARY);
    command.current_dir(directory).args(["certs", "--name", "localhost", "--out", name]).stdout(Stdio::null());
    assert!(command.status().expect("the binary was built for this test").success());
}

/// Four cores, tuned for a POP, with a clock that is kept.
fn plant_machine(scratch: &Scratch) {
    let plant = |name: &str, text: &str| drop(scratch.write(&format!("root/{name}"), text));
    for line in POP_TUNING.lines().filter(|line| !line.starts_with('#')) {
        if let Some((key, value)) = line.split_once('=') {
            plant(&format!("proc/sys/{}", key.trim().replace('.', "/")), &format!("{}\n", value.trim()));
        }
    }
    let date = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_secs();
    for (name, text) in [
        ("proc/sys/kernel/osrelease", "6.12.5-amd64"),
        ("proc/sys/net/ipv4/tcp_available_congestion_control", "reno cubic bbr"),
        ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"),
        ("proc/sys/fs/file-nr", "1000\t0\t2097152"),
        (
            "proc/self/limits",
            "Max open files            1024                 1048576              files\n\
             Max locked memory         8388608              8388608              bytes\n",
        ),
        ("proc/self/status", "Name:\ttrunkline\nCpus_allowed_list:\t0-3\n"),
        ("proc/self/cgroup", "0::/system.slice/trunkline.service\n"),
        ("sys/fs/cgroup/system.slice/trunkline.service/cpu.max", "max 100000"),
        ("sys/fs/cgroup/system.slice/trunkline.service/memory.max", "max"),
        ("proc/meminfo", "MemTotal:       16777216 kB\n"),
        ("proc/uptime", "1000.00 3000.00"),
        ("proc/net/netstat", "TcpExt: ListenOverflows TCPRcvQDrop\nTcpExt: 0 0\n"),
        ("proc/net/sockstat", "TCP: inuse 18 orphan 0 tw 68 alloc 18 mem 2\n"),
        ("proc/interrupts", "       CPU0 CPU1 CPU2 CPU3\n 41: 900000 900000 900000 900000 PCI-MSIX 1-edge eth0-rx\n"),
        ("sys/class/net/eth0/device/msi_irqs/41", "msix"),
        ("sys/devices/system/cpu/online", "0-3"),
        ("sys/devices/system/cpu/isolated", ""),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
        ("adjtimex", "     maxerror: 1500\n       status: 8193\n"),
    ] {
        plant(name, text);
    }
    plant("proc/stat", &format!("btime {}\n", date - 1000));
    for core in 0..4 {
        plant(&format!("sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"), &core.to_string());
        plant(&format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"), "performance");
    }
}

#[test]
fn a_node_on_which_all_is_well_exits_with_zero() {
    let node = Node::new();
    let said = node.doctor();
    assert_eq!(said.complaints(), [], "{}", said.text);
    assert_eq!(said.code, 0, "{}", said.text);
    for words in [
        "release: 6.12.5-amd64",
        "a ring was set up",
        "1048576 (of this process",
        "cores = [0, 1]; online 0-3",
        "values as in 60-trunkline-pop.conf",
        "yes, off by 1 ms at most",
        "every key, and every file it names, can be used",
        "certs/pop.pem is valid until",
        "free",
        "mutual TLS in",
        "pop: 0 faults, 0 warnings",
    ] {
        said.tells(words);
    }
    assert_eq!((&said.object["version"], &said.object["role"]), (&1.into(), &"pop".into()));
}

#[test]
fn an_expired_certificate_is_found() {
    let node = Node::new();
    let ca = DevelopmentCa::new_at(SystemTime::now() - 2 * DEVELOPMENT_VALIDITY).expect("an authority");
    let issued = ca.issue("pop", &[], Usage::Server).expect("a certificate");
    node.scratch.write("certs/old.pem", issued.chain_pem);
    let key = node.scratch.write("certs/old.key", issued.key_pem);
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).expect("our own file");
    node.configure(|config| config.replacen("certs/pop.", "certs/old.", 2));
    let said = node.doctor();
    said.complains(&[("fault", "certs/old.pem has expired on", "renew certs/old.pem")]);
}

#[test]
fn a_key_of_another_certificate_is_found() {
    let node = Node::new();
    node.configure(|config| config.replacen("certs/pop.key", "certs/gateway.key", 1));
    let said = node.doctor();
    said.complains(&[(
        "fault",
        "does not fit the certificate certs/pop.pem",
        "give the key the certificate was issued for",
    )]);
    said.tells("pop.toml:9: listen[0].key");
    said.tells("not looked at");
}

#[test]
fn a_gateway_that_refuses_is_found() {
    let mut node = Node::new();
    node.gateway_address = address();
    node.configure(|config| config);
    node.doctor().complains(&[("fault", "gateway dc-a", "start the gateway")]);
}

#[test]
fn a_gateway_of_another_authority_is_found_from_either_side() {
    let node = Node::new();
    certificates(node.scratch.path(), "others");
    node.configure(|config| config.replace("ca = \"certs/", "ca = \"others/"));
    let said = node.doctor();
    said.complains(&[(
        "fault",
        "not vouched for by backbone.ca",
        "put the CA that issued it into the file of backbone.ca",
    )]);
    // The gateway's own authorities do not vouch for this POP: only the gateway can tell, and only after the handshake.
    node.configure(|config| {
        let (listen, backbone) = config.split_once("[backbone]").expect("there is one");
        format!("{listen}[backbone]{}", backbone.replace("certs/pop.", "others/pop."))
    });
    node.doctor().complains(&[(
        "fault",
        "its listen.client_ca does not vouch for it",
        "listen.client_ca of the gateway",
    )]);
    node.configure(|config| config + "server_name = \"dc.example\"\n");
    node.doctor().complains(&[("fault", "does not hold the name dc.example", "server_name = \"NAME\"")]);
}

#[test]
fn what_is_no_gateway_is_found() {
    let mut node = Node::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    node.gateway_address = silent.local_addr().expect("it is bound");
    node.configure(|config| config.replace("[worker]", "[worker]\nconnect_timeout = \"200ms\""));
    node.doctor().complains(&[("fault", "no answer within 0.2 s", "openssl s_client -connect")]);
}

#[test]
fn a_limit_of_descriptors_that_is_too_small_is_found() {
    let node = Node::new();
    // Of this very process, through the real /proc: what else is wrong with this machine is not of interest.
    node.configure(|config| config.replace("cores = [0, 1]\n", "").replace("clients_max = 10000", "clients_max = 300"));
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 400; exec \"$0\" \"$@\"", BINARY]);
    let said = node.doctor_by(&mut command, &["--config", "pop.toml"]);
    let complaints = said.complaints();
    let found = complaints.iter().find(|(_, what, _)| what.starts_with("descriptors (RLIMIT_NOFILE): 400"));
    let (level, _, remedy) = found.unwrap_or_else(|| panic!("{}", said.text));
    assert!(level == "fault" && remedy.contains("LimitNOFILE=") && said.code == 2, "{}", said.text);
    said.tells(&format!("do: {remedy}"));
}

#[test]
fn a_core_that_does_not_exist_is_found() {
    let node = Node::new();
    node.configure(|config| config.replace("[0, 1]", "[0, 9]"));
    node.doctor().complains(&[("fault", "core 9 does not exist or is off", "cores = [0, 1, 2, 3]")]);
    // One that exists, and that a cpuset keeps from this process.
    node.configure(|config| config.replace("[0, 1]", "[0, 3]"));
    node.plant("proc/self/status", "Cpus_allowed_list:\t0-2\n");
    node.doctor().complains(&[("fault", "core 3 may not be used", "CPUAffinity=0,3")]);
}

#[test]
fn a_sysctl_that_differs_is_found() {
    let node = Node::new();
    node.plant("proc/sys/net/core/somaxconn", "128");
    node.doctor().complains(&[("warning", "net.core.somaxconn: 128", "sysctl -w net.core.somaxconn=\"16384\"")]);
    node.plant("proc/sys/net/core/somaxconn", "65535");
    assert_eq!(node.doctor().code, 0, "more is as good");
}

#[test]
fn io_uring_that_is_switched_off_is_found() {
    let node = Node::new();
    node.plant("proc/sys/kernel/io_uring_disabled", "2");
    node.doctor().complains(&[("fault", "io_uring_disabled: 2", "sysctl -w kernel.io_uring_disabled=0")]);
}

#[test]
fn io_uring_that_a_filter_refuses_is_found() {
    let node = Node::new();
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", include_str!("support/without_io_uring.py"), BINARY]);
    let said = node.doctor_by(&mut command, &["--config", "pop.toml", "--root", "root"]);
    if said.code == 77 {
        println!("skipped: this machine has no seccomp");
        return;
    }
    said.complains(&[("fault", "seccomp filter most likely forbids it", "allow io_uring_setup, io_uring_enter")]);
}

#[test]
fn a_clock_that_is_wrong_or_not_kept_is_found() {
    let node = Node::new();
    node.plant("adjtimex", "     maxerror: 16000000\n       status: 64\n");
    node.doctor().complains(&[("warning", "nothing keeps this clock", "timedatectl set-ntp true")]);
    node.plant("adjtimex", "     maxerror: 1500\n       status: 8193\n");
    node.plant("proc/stat", "btime 86400\n");
    let said = node.doctor();
    let remedy = "set the clock (timedatectl set-ntp true";
    said.complains(&[
        ("fault", "certs/pop.pem is valid from", remedy),
        ("fault", "certs/ca.pem is valid from", remedy),
    ]);
    said.tells("this machine's date is 1970-01-02");
}

#[test]
fn an_old_kernel_is_found() {
    let node = Node::new();
    node.plant("proc/sys/kernel/osrelease", "5.15.0-91-generic");
    node.doctor().complains(&[("fault", "release: 5.15.0-91-generic", "install Linux 6.1 or newer")]);
}

#[test]
fn an_address_in_use_is_found() {
    let node = Node::new();
    let holder = TcpListener::bind(node.listen).expect("it was free a moment ago");
    let words = format!("address {} is in use, held by", node.listen);
    let remedy = format!("stop process {}", std::process::id());
    node.doctor().complains(&[("fault", &words, &remedy)]);
    // Held by a node of ours, it is right: it runs.
    drop(holder);
    node.configure(|config| config.replace(&node.listen.to_string(), &node.gateway_address.to_string()).replacen(
        &format!("[[backbone.gateway]]\nname = \"dc-a\"\naddress = \"{}\"", node.gateway_address),
        &format!("[[backbone.gateway]]\nname = \"dc-a\"\naddress = \"[::ffff:127.0.0.1]:{}\"\nserver_name = \"localhost\"", node.gateway_address.port()),
        1,
    ));
    let said = node.doctor();
    said.tells("held by trunkline");
    assert_eq!(said.code, 0, "{}", said.text);
}

/// Tickets at a server at this address; the mode of the file of their keys.
fn share_tickets(node: &Node, server: SocketAddr, mode: u32) {
    let mut command = Command::new(BINARY);
    command.args(["keys", "new", "--kind", "tickets", "keys.toml"]).current_dir(node.scratch.path());
    assert!(command.stdout(Stdio::null()).status().expect("the binary is there").success());
    fs::set_permissions(node.scratch.path().join("keys.toml"), fs::Permissions::from_mode(mode)).expect("our own file");
    node.configure(|config| format!("{config}[tickets]\nstore = \"redis://{server}\"\nkeys = \"keys.toml\"\n"));
}

#[test]
fn a_ticket_server_that_is_away_is_found() {
    let node = Node::new();
    share_tickets(&node, address(), 0o600);
    node.doctor().complains(&[("warning", "unreachable", "redis-cli -h 127.0.0.1")]);
}

#[test]
fn ticket_keys_that_everybody_can_read_are_found() {
    let node = Node::new();
    let server = address();
    let mut command = Command::new("/usr/bin/redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &server.port().to_string(), "--save", "", "--appendonly", "no"]);
    let mut redis = Process::start(command.stdout(Stdio::null()));
    assert!(wait_until_accepting(server, &mut redis), "redis-server starts");
    share_tickets(&node, server, 0o644);
    let said = node.doctor();
    said.complains(&[("warning", "every user can read the key keys.toml", "chmod 600 keys.toml")]);
    said.tells("PONG");
}

#[test]
fn a_quota_below_the_workers_is_found() {
    let node = Node::new();
    node.plant("sys/fs/cgroup/system.slice/cpu.max", "150000 100000");
    node.doctor().complains(&[("warning", "1.50 cores", "CPUQuota=200%")]);
    node.plant("sys/fs/cgroup/system.slice/cpu.max", "200000 100000");
    node.plant("sys/fs/cgroup/system.slice/memory.max", "67108864");
    node.doctor().complains(&[("warning", "memory: 64 MiB of the cgroup", "MemoryMax=")]);
}

#[test]
fn too_little_locked_memory_for_the_rings_is_found() {
    let node = Node::new();
    node.plant("proc/self/limits", "Max locked memory         2097151              2097151              bytes\n");
    node.doctor().complains(&[("warning", "locked memory (RLIMIT_MEMLOCK): 2047 KiB", "LimitMEMLOCK=512M")]);
}

#[test]
fn a_date_that_no_calendar_has_is_not_taken() {
    let node = Node::new();
    node.plant("proc/stat", "btime 999999999999\n");
    let said = node.doctor();
    assert_eq!((said.complaints(), said.code), (vec![], 0), "{}", said.text);
}

#[test]
fn bbr_that_is_missing_is_found() {
    let node = Node::new();
    node.plant("proc/sys/net/ipv4/tcp_available_congestion_control", "reno cubic");
    node.plant("proc/sys/net/ipv4/tcp_congestion_control", "cubic");
    node.doctor().complains(&[
        ("warning", "net.ipv4.tcp_congestion_control: cubic", "modprobe tcp_bbr; sysctl -w"),
        ("warning", "available: reno cubic", "modprobe tcp_bbr"),
    ]);
}

#[test]
fn cores_that_are_slow_are_found_and_what_the_kernel_dropped_is_no_verdict() {
    let node = Node::new();
    node.plant("proc/net/netstat", "TcpExt: ListenOverflows TCPRcvQDrop\nTcpExt: 7 0\n");
    node.plant("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never");
    let said = node.doctor();
    assert_eq!(said.code, 0, "{}", said.text);
    said.tells("note     ListenOverflows: 7");
    said.tells("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    node.plant("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave");
    node.doctor().complains(&[("warning", "powersave on 1", "cpupower frequency-set")]);
}

#[test]
fn a_gateway_is_looked_at_as_one() {
    let node = Node::new();
    let said = node.doctor_by(&mut Command::new(BINARY), &["--config", "gateway.toml", "--root", "root"]);
    assert_eq!(said.object["role"], "gateway");
    said.tells("held by trunkline");
    let complaints = said.complaints();
    let is_upstream = |(level, what, remedy): &(String, String, String)| {
        level == "fault" && what.contains("upstream web 127.0.0.1:1") && remedy.contains("start the upstream")
    };
    assert!(complaints.iter().any(is_upstream), "{}", said.text);
}

#[test]
fn mistakes_of_a_configuration_are_told_with_their_lines() {
    let node = Node::new();
    node.configure(|config| config.replace("clients_max", "client_max").replace("certs/ca.pem", "certs/none.pem"));
    node.doctor().complains(&[
        ("fault", "pop.toml:5: worker.client_max: unknown key", "did you mean `clients_max`"),
        ("fault", "no such file: certs/none.pem", "correct the path"),
    ]);
    // Whatever they are called.
    node.configure(|config| config.replace("certs/ca.pem", "certs/has expired on.pem"));
    node.doctor().complains(&[("fault", "no such file: certs/has expired on.pem", "correct the path")]);
}

#[test]
fn without_a_configuration_the_machine_is_looked_at() {
    let node = Node::new();
    let said = node.doctor_by(&mut Command::new(BINARY), &["--root", "root"]);
    assert_eq!(said.code, 0, "{}", said.text);
    said.tells("do: trunkline doctor --config FILE");
    let said = node.doctor_by(&mut Command::new(BINARY), &["--root", "nowhere"]);
    assert_eq!(said.code, 3, "{}", said.text);
    said.tells("remedy: give a directory with proc and sys in it");
    // What a file says does not command a terminal.
    node.plant("proc/sys/kernel/osrelease", "6.12\u{1b}[2J");
    let said = node.doctor_by(&mut Command::new(BINARY), &["--root", "root"]);
    assert!(said.text.contains("6.12") && !said.text.contains('\u{1b}'), "{}", said.text);
}

#[test]
fn a_peer_that_does_not_answer_does_not_hold_the_doctor() {
    let node = Node::new();
    // The ticket server takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    share_tickets(&node, silent.local_addr().expect("it is bound"), 0o600);
    let (began, limit) = (std::time::Instant::now(), Duration::from_secs(60));
    node.doctor().complains(&[("warning", "silent", "look into the log of the server")]);
    assert!(began.elapsed() < limit, "a ceiling, no measurement");
}
