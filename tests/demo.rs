//! `trunkline demo` as a user runs it: what it shows, that the commands it prints work, and that nothing is left behind.

mod support;

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use support::{Process, Scratch};

/// The last line that `--stay` prints.
const LAST_WORDS: &str = "/metrics\n";

/// How long it may take to tell its story on a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    command.arg("demo").env_remove("TRUNKLINE_LOG");
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program is there");
    let text = |bytes| String::from_utf8(bytes).expect("messages are text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn the_path_and_every_step_are_shown() {
    let (code, text, errors) = run(&mut demo());
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{text}");
    let line =
        |words: &str| text.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {text}"));
    for party in ["client", "POP", "gateway", "origin"] {
        assert!(line("TLS both").contains(party), "{text}");
    }
    assert_eq!(line("========>").matches("127.0.0.1:").count(), 3);
    assert!(line("1. mmtp:// call, new connection").contains("200, "));
    let second = line("2. mmtp:// call, same connection");
    assert!(second.contains("200, ") && second.matches(" - ").count() == 2, "no connect and no TLS: {second}");
    assert!(line("3. https:// request, as a tunnel").contains("200, "));
    assert!(line("4. mmtp:// call, unknown service").contains("receipt: refused"));
    assert!(line("2000 calls, 100 at a time").contains("requests/s"));
    assert_eq!(line("    streams").split_ascii_whitespace().nth(1), Some("2000"));
    let sends: f64 =
        line("    sends").split_ascii_whitespace().nth(2).and_then(|each| each.parse().ok()).expect("a figure");
    assert!(sends < 2.0, "calls that move together share sends: {text}");
    assert!(text.contains("--stay") && !text.contains('\u{1b}'), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

/// The demo with `--stay`, its story told.
struct Staying {
    process: Process,
    scratch: Scratch,
    text: String,
}

fn stay() -> Staying {
    let scratch = Scratch::new("demo");
    let output = scratch.write("output", "");
    fs::create_dir(scratch.path().join("tmp")).expect("scratch is writable");
    let mut command = demo();
    command.arg("--stay").env("TMPDIR", scratch.path().join("tmp"));
    command.stdout(File::create(&output).expect("scratch is writable"));
    let mut process = Process::start(&mut command);
    let until = Instant::now() + TOLD_WITHIN;
    loop {
        let text = String::from_utf8(scratch.read("output")).expect("messages are text");
        if text.ends_with(LAST_WORDS) {
            return Staying { process, scratch, text };
        }
        assert!(process.exit_status().is_none() && Instant::now() < until, "{text}");
        thread::sleep(Duration::from_millis(20));
    }
}

impl Staying {
    /// The first line that it printed with `words` in it.
    fn line(&self, words: &str) -> &str {
        self.text.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {}", self.text))
    }

    fn is_tidy(&self) -> bool {
        fs::read_dir(self.scratch.path().join("tmp")).expect("it was made").count() == 0
    }
}

#[test]
fn the_commands_it_prints_work_until_it_is_told_to_end() {
    let mut staying = stay();
    for (words, answer) in [
        ("https://localhost:", "Hello from the origin."),
        ("-d 'sent and returned' https://", "sent and returned"),
        ("mmtp://localhost:", "Hello from the origin."),
        ("--report json", "sent and returned"),
        ("/metrics", "trunkline_trunks_ready 2"),
    ] {
        let line = staying.line(words);
        let (code, out, errors) = run(Command::new("sh").arg("-c").arg(line));
        assert_eq!(code, Some(0), "{line}: {errors}");
        assert!(out.contains(answer), "{line}: {out}");
    }
    assert!(!staying.is_tidy(), "the certificate is there");
    assert_eq!(staying.process.terminate().code(), Some(0));
    assert!(staying.is_tidy());
}

#[test]
fn a_large_body_comes_back_whole_and_ctrl_c_ends_it() {
    let mut staying = stay();
    let body: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let file = staying.scratch.write("body", &body);
    let line = staying.line("https://localhost:");
    // The second field makes curl send it in chunks.
    for field in ["x-framing: length", "transfer-encoding: chunked"] {
        let line = format!("{line} --silent --show-error --upload-file {} --header '{field}'", file.display());
        let Output { status, stdout, stderr } = Command::new("sh").arg("-c").arg(line).output().expect("a shell");
        assert!(status.success(), "{field}: {}", String::from_utf8_lossy(&stderr));
        assert!(stdout == body, "{field}: {} bytes of {}", stdout.len(), body.len());
    }
    staying.process.signal("INT");
    let until = Instant::now() + TOLD_WITHIN;
    while staying.process.exit_status().is_none() && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(staying.process.exit_status().and_then(|status| status.code()), Some(0));
    assert!(staying.is_tidy());
}

#[test]
fn a_port_that_is_taken_is_told() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = holder.local_addr().expect("it is bound").port();
    let (code, text, errors) = run(demo().args(["--port", &port.to_string()]));
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(errors.contains("--port: address 127.0.0.1:") && errors.contains("is in use"), "{errors}");
    assert!(errors.contains("remedy: "), "{errors}");
}
