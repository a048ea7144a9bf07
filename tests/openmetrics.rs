//! The metrics text against the reference parser of OpenMetrics, where that is installed (`scripts/test.sh` installs it).

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use trunkline::base::counters::Counters;
use trunkline::server::metrics::{CertificateFigures, Identification, render};
use trunkline::server::process::ProcessFigures;

#[test]
fn the_reference_parser_takes_the_text() {
    // Debian's own Python, which is the one Debian's packages belong to.
    let installed =
        Command::new("/usr/bin/python3").args(["-c", "import prometheus_client.openmetrics.parser"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        println!("skipped: python3-prometheus-client is not installed");
        return;
    }
    let counters = Counters { connections_accepted: u64::MAX, streams_open: 3, ..Counters::default() };
    let identification = Identification { role: "pop", id: "p\"o\\p\n1".to_owned(), started: SystemTime::now() };
    let process = ProcessFigures::read().expect("/proc is there");
    let expiries = vec![("listen[0].certificate".to_owned(), std::time::SystemTime::UNIX_EPOCH)];
    let certificates = CertificateFigures { reloaded: 1, refused: 2, expiries };
    let text =
        render(&identification, &[counters.values(), Counters::default().values()], &certificates, Some(&process));
    let mut parser = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/openmetrics-check.py"))
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 was just there");
    let mut input = parser.stdin.take().expect("it was asked for");
    input.write_all(text.as_bytes()).expect("the parser reads everything first");
    drop(input);
    let output = parser.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
}
