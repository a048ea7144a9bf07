//! TCP Fast Open, in a network namespace of its own: whether listeners may take data from a SYN is a setting of the
//! namespace, and its counters tell what came of it.

use std::fs;
use std::process::Command;

use crate::harness::{Plan, Site, keys, run, text, until};
use crate::origin::nginx;
use crate::support::Scratch;

/// Set for the test process that runs inside.
const INSIDE: &str = "TRUNKLINE_TEST_INSIDE_NAMESPACE";

/// A counter of this network namespace (/proc/net/netstat).
fn counter(name: &str) -> u64 {
    let all = fs::read_to_string("/proc/net/netstat").expect("/proc is there");
    let mut lines = all.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut each = names.split_whitespace().zip(values.split_whitespace());
    each.find(|(found, _)| *found == name).and_then(|(_, value)| value.parse().ok()).expect("Linux counts it")
}

#[test]
fn a_returning_client_sends_data_in_its_syn() {
    let possible = Command::new("unshare").args(["--net", "ip", "link", "set", "lo", "up"]).output();
    match possible {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            println!("skipped: no network namespace can be made here: {}", text(&output.stderr));
            return;
        }
        Err(error) => {
            println!("skipped: unshare(1) does not run: {error}");
            return;
        }
    }
    let this = std::env::current_exe().expect("a test has a file");
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]).arg(this);
    command.args(["--exact", "fast_open::inside_a_namespace", "--ignored", "--nocapture"]).env(INSIDE, "1");
    let output = run(&mut command, &[]);
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("1 passed"), "{}", text(&output.stdout));
}

#[test]
#[ignore = "run by the test above, in a network namespace of its own"]
fn inside_a_namespace() {
    if std::env::var_os(INSIDE).is_none() {
        println!("skipped: it would change the settings of this machine");
        return;
    }
    fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1").expect("a namespace of our own");
    let origin = nginx(&[]);
    let own = Scratch::new("fast-open");
    keys(&own, &["new", "--kind", "fast-open", "fast-open.keys"]);
    let file = own.path().join("fast-open.keys").display().to_string();
    let plan = Plan { listeners: format!("[fast_open]\nkeys = \"{file}\"\n"), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    assert!(site.pop.log().contains("net.ipv4.tcp_fastopen=3"), "{}", site.pop.log());
    fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").expect("a namespace of our own");

    // Whether the kernel took a ClientHello out of the SYN of a connection that works.
    let took_data = || {
        let before = counter("TCPFastOpenPassive");
        assert_eq!(site.curl(&["--tcp-fastopen", &site.https("/")]), b"hello from nginx\n");
        counter("TCPFastOpenPassive") > before
    };
    assert!(!took_data(), "a new client has no cookie");
    assert!(took_data() && took_data());

    let rotated = |times: usize| {
        let reread = || site.pop.metrics().get("certificates_reloaded_total");
        let before = reread();
        (0..times).for_each(|_| keys(&own, &["rotate", "fast-open.keys"]));
        until("the new keys are taken", || (reread() > before).then_some(()));
    };
    rotated(1);
    assert!(took_data(), "a cookie of the previous key is good");
    rotated(2);
    assert!(!took_data(), "one of neither key costs a normal handshake, and nothing else");
    assert!(took_data(), "and brings a new cookie");
    site.until_quiet();
}
