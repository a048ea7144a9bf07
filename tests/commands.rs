//! The commands as a user runs them: exit codes and messages.

use std::path::Path;
use std::process::{Command, Output};

const POP: &str = include_str!("../docs/examples/pop.toml");
const GATEWAY: &str = include_str!("../docs/examples/gateway.toml");

fn trunkline(directory: &Path, args: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .current_dir(directory)
        .args(args)
        .output()
        .expect("the binary was built for this test");
    let text = String::from_utf8([stdout, stderr].concat()).expect("messages are text");
    (status.code().expect("it was not killed"), text)
}

/// A directory with the documented examples and the certificates they name. Which cores there are is the machine's.
fn examples() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in [("pop.toml", POP), ("gateway.toml", GATEWAY)] {
        let without_cores: String =
            text.lines().filter(|line| !line.starts_with("cores")).map(|l| format!("{l}\n")).collect();
        std::fs::write(directory.path().join(name), without_cores).expect("our own directory");
    }
    let (code, text) = trunkline(directory.path(), &["certs", "--out", "certs", "--name", "localhost"]);
    assert_eq!(code, 0, "{text}");
    for file in ["ca.pem", "pop.pem", "pop.key", "gateway.pem", "gateway.key", "365 days"] {
        assert!(text.contains(file), "{text}");
    }
    directory
}

#[test]
fn the_examples_with_their_certificates_pass_the_check() {
    let directory = examples();
    for role in ["pop", "gateway"] {
        let file = format!("{role}.toml");
        let (code, text) = trunkline(directory.path(), &[role, "--config", &file, "--check"]);
        assert_eq!((code, text.as_str()), (0, format!("{file}: ok\n").as_str()));
    }
}

#[test]
fn several_mistakes_are_told_together_and_exit_with_two() {
    let directory = examples();
    let text =
        GATEWAY.replace("[[service]]", "[[servise]]").replace("gateway.key", "pop.key").replace("cores = [1]", "");
    std::fs::write(directory.path().join("wrong.toml"), text).expect("our own directory");
    let (code, text) = trunkline(directory.path(), &["gateway", "--config", "wrong.toml", "--check"]);
    assert_eq!(code, 2, "{text}");
    for words in ["listen.key: the key certs/pop.key does not fit", "did you mean `service`", "service: is missing"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(text.matches("remedy: ").count(), 3, "{text}");
}

#[test]
fn a_missing_file_and_wrong_usage_exit_with_two() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (code, text) = trunkline(directory.path(), &["pop", "--config", "none.toml"]);
    assert!(code == 2 && text.contains("none.toml: no such file"), "{text}");
    assert_eq!(trunkline(directory.path(), &["pop"]).0, 2);
    assert_eq!(trunkline(directory.path(), &["certs", "--out", "x", "--name", "http://x"]).0, 2);
}

#[test]
fn certificates_are_not_overwritten() {
    let directory = examples();
    let (code, text) = trunkline(directory.path(), &["certs", "--out", "certs", "--name", "localhost"]);
    assert!(code == 2 && text.contains("certs/ca.pem exists") && text.contains("--force"), "{text}");
    assert_eq!(trunkline(directory.path(), &["certs", "--out", "certs", "--name", "localhost", "--force"]).0, 0);
}

#[test]
fn a_full_disk_under_the_log_does_not_stop_the_process() {
    let directory = examples();
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let free = free.expect("loopback has a free port").to_string();
    let text = std::fs::read_to_string(directory.path().join("gateway.toml")).expect("just written");
    let text = text.replace("127.0.0.1:7443", &free).replace("127.0.0.1:9902", "127.0.0.1:0");
    std::fs::write(directory.path().join("gateway.toml"), text).expect("our own directory");
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut gateway = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .current_dir(directory.path())
        .args(["gateway", "--config", "gateway.toml"])
        .stderr(full)
        .spawn()
        .expect("the binary was built for this test");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(gateway.try_wait().expect("our own child").is_none(), "it ended with its log");
    let asked = Command::new("kill").arg(gateway.id().to_string()).status().expect("every system has kill");
    assert!(asked.success());
    assert_eq!(gateway.wait().expect("our own child").code(), Some(0));
}

#[test]
fn the_version_is_told() {
    let (code, text) = trunkline(Path::new("."), &["--version"]);
    assert_eq!((code, text), (0, format!("trunkline {}\n", env!("CARGO_PKG_VERSION"))));
}
