//! The figures of the workers and of the process as OpenMetrics 1.0 text.
//!
//! Pure text making: reads nothing but what it is handed. Invariant: no figure is told twice within one family, so that
//! summing a family over its labels is right; figures per worker stand in families of their own, `trunkline_worker_…`.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use crate::base::counters::{DESCRIPTIONS, Described, Kind};

use super::process::ProcessFigures;

/// The content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Families that are also told per worker: those that show whether the cores share the work evenly, and whether one
/// of them lacks trunks or buffers.
const PER_WORKER: &[&str] = &[
    "connections_accepted",
    "connections_open",
    "links_open",
    "streams_open",
    "streams_waiting",
    "trunks_ready",
    "buffers_lent",
    "bytes_received",
    "bytes_sent",
    "passes",
    "log_lines_dropped",
];

/// The last figures of one worker, in the order of [`DESCRIPTIONS`].
pub type WorkerFigures = [u64; DESCRIPTIONS.len()];

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Identification {
    /// `pop` or `gateway`.
    pub role: &'static str,
    /// The configured `id`.
    pub id: String,
    /// When the process started.
    pub started: SystemTime,
}

/// What the slow thread knows of certificates and of the keys beside them.
#[derive(Clone, Debug, Default)]
pub struct CertificateFigures {
    /// How often something new was taken into use, or reading again was asked for and found nothing wrong.
    pub reloaded: u64,
    /// Pairs, authorities, staples and key files that were found broken when they were read again.
    pub refused: u64,
    /// When each certificate expires, by the key it stands in.
    pub expiries: Vec<(String, SystemTime)>,
}

/// Everything as one OpenMetrics exposition, `# EOF` included. `process` is None where the operating system does not
/// tell.
#[must_use]
pub fn render(
    identification: &Identification,
    workers: &[WorkerFigures],
    certificates: &CertificateFigures,
    process: Option<&ProcessFigures>,
) -> String {
    let mut text = String::with_capacity(16 * 1024);
    put_identification(&mut text, identification, workers.len());
    for (index, described) in DESCRIPTIONS.iter().enumerate() {
        let is_first = DESCRIPTIONS[..index].iter().all(|earlier| earlier.name != described.name);
        if is_first {
            put_family(&mut text, described, workers);
        }
    }
    for name in PER_WORKER {
        put_family_per_worker(&mut text, name, workers);
    }
    put_certificates(&mut text, certificates);
    if let Some(process) = process {
        put_process(&mut text, process);
    }
    text.push_str("# EOF\n");
    text
}

/// One family summed over workers: the samples of a family stand together, whatever the order of descriptions.
fn put_family(text: &mut String, family: &Described, workers: &[WorkerFigures]) {
    let name = format!("trunkline_{}", family.name);
    put_head(text, &name, family.kind, family.help);
    for (index, described) in DESCRIPTIONS.iter().enumerate().filter(|(_, other)| other.name == family.name) {
        let sum = workers.iter().fold(0u64, |sum, figures| sum.saturating_add(figures[index]));
        put_sample(text, &name, described.kind, described.labels, sum);
    }
}

fn put_family_per_worker(text: &mut String, family: &str, workers: &[WorkerFigures]) {
    let name = format!("trunkline_worker_{family}");
    let found = DESCRIPTIONS.iter().enumerate().filter(|(_, described)| described.name == family);
    for (position, (index, described)) in found.enumerate() {
        if position == 0 {
            put_head(text, &name, described.kind, described.help);
        }
        for (worker, figures) in workers.iter().enumerate() {
            let comma = if described.labels.is_empty() { "" } else { "," };
            let labels = format!("worker=\"{worker}\"{comma}{}", described.labels);
            put_sample(text, &name, described.kind, &labels, figures[index]);
        }
    }
}

fn put_head(text: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    put_head_of(text, name, kind, help);
}

fn put_head_of(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# TYPE {name} {kind}\n# HELP {name} {}", escape(help));
}

fn put_sample(text: &mut String, name: &str, kind: Kind, labels: &str, value: u64) {
    let suffix = match kind {
        Kind::Counter => "_total",
        Kind::Gauge => "",
    };
    let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
    let _ = writeln!(text, "{name}{suffix}{open}{labels}{close} {value}");
}

fn put_identification(text: &mut String, identification: &Identification, worker_count: usize) {
    put_head_of(text, "trunkline_build", "info", "Version of this program, and what this process is.");
    let _ = writeln!(
        text,
        "trunkline_build_info{{version=\"{}\",role=\"{}\",id=\"{}\"}} 1",
        escape(env!("CARGO_PKG_VERSION")),
        identification.role,
        escape(&identification.id)
    );
    put_head_of(text, "trunkline_workers", "gauge", "Workers, one per core.");
    let _ = writeln!(text, "trunkline_workers {worker_count}");
    let started = identification.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    put_head_of(text, "process_start_time_seconds", "gauge", "When the process started, since 1970.");
    let _ = writeln!(text, "# UNIT process_start_time_seconds seconds");
    let _ = writeln!(text, "process_start_time_seconds {:.3}", started.as_secs_f64());
}

fn put_certificates(text: &mut String, certificates: &CertificateFigures) {
    let counters = [
        (
            "trunkline_certificates_reloaded",
            "Times that reread certificates and keys were taken.",
            certificates.reloaded,
        ),
        ("trunkline_certificates_refused", "Reread pairs and files that were broken.", certificates.refused),
    ];
    for (name, help, value) in counters {
        put_head_of(text, name, "counter", help);
        let _ = writeln!(text, "{name}_total {value}");
    }
    let name = "trunkline_certificate_expires_timestamp_seconds";
    put_head_of(text, name, "gauge", "When a certificate, or one of its chain, expires, since 1970.");
    let _ = writeln!(text, "# UNIT {name} seconds");
    for (key, expires) in &certificates.expiries {
        let since = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let _ = writeln!(text, "{name}{{key=\"{}\"}} {}", escape(key), since.as_secs());
    }
}

fn put_process(text: &mut String, process: &ProcessFigures) {
    put_head_of(text, "process_cpu_seconds", "counter", "User and system time of all threads.");
    let _ = writeln!(text, "# UNIT process_cpu_seconds seconds");
    let _ = writeln!(text, "process_cpu_seconds_total {:.2}", process.cpu_seconds);
    let gauges = [
        ("process_resident_memory_bytes", "Resident memory.", process.resident_bytes),
        ("process_open_fds", "Open descriptors.", process.descriptors_open),
        ("process_max_fds", "Descriptors that may be open.", process.descriptors_max),
        ("process_threads", "Threads.", process.threads),
    ];
    for (name, help, value) in gauges {
        put_head_of(text, name, "gauge", help);
        let _ = writeln!(text, "{name} {value}");
    }
}

/// Label values and help texts (OpenMetrics 1.0, "escaped-string").
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::counters::Counters;
    use std::collections::{HashMap, HashSet};

    fn identification() -> Identification {
        Identification {
            role: "pop",
            id: "p\"1\\".to_owned(),
            started: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
        }
    }

    fn text() -> String {
        let one = Counters { connections_accepted: 3, handshakes_full: 2, trunks_ready: 1, ..Counters::default() };
        let two = Counters { connections_accepted: 4, handshakes_resumed: 5, trunks_ready: 2, ..Counters::default() };
        let process = ProcessFigures { cpu_seconds: 1.25, resident_bytes: 4096, ..ProcessFigures::default() };
        let certificates = CertificateFigures {
            reloaded: 2,
            refused: 1,
            expiries: vec![("listen[0].certificate".to_owned(), SystemTime::UNIX_EPOCH + Duration::from_secs(77))],
        };
        render(&identification(), &[one.values(), two.values()], &certificates, Some(&process))
    }

    #[test]
    fn figures_are_summed_and_told_per_worker() {
        let text = text();
        for line in [
            "# TYPE trunkline_connections_accepted counter",
            "trunkline_connections_accepted_total 7",
            "trunkline_handshakes_total{kind=\"full\"} 2",
            "trunkline_handshakes_total{kind=\"resumed\"} 5",
            "# TYPE trunkline_trunks_ready gauge",
            "trunkline_trunks_ready 3",
            "trunkline_worker_trunks_ready{worker=\"0\"} 1",
            "trunkline_worker_trunks_ready{worker=\"1\"} 2",
            "trunkline_worker_connections_accepted_total{worker=\"1\"} 4",
            "trunkline_certificates_reloaded_total 2",
            "trunkline_certificates_refused_total 1",
            "trunkline_certificate_expires_timestamp_seconds{key=\"listen[0].certificate\"} 77",
            "process_cpu_seconds_total 1.25",
            "process_start_time_seconds 1.500",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains(r#"id="p\"1\\""#), "{text}");
        assert!(text.ends_with("\n# EOF\n"));
    }

    #[test]
    fn every_family_told_per_worker_exists() {
        for name in PER_WORKER {
            assert!(DESCRIPTIONS.iter().any(|described| described.name == *name), "{name}");
        }
    }

    /// The rules of OpenMetrics 1.0 that a scraper refuses for: one TYPE and HELP per family, before its samples, which
    /// stand together; suffixes by type; no sample twice; EOF last. `scripts/openmetrics-check.py` asks the reference
    /// parser as well.
    #[test]
    fn the_text_keeps_the_rules_of_openmetrics() {
        let text = text();
        let mut types: HashMap<&str, &str> = HashMap::new();
        let mut helped = HashSet::new();
        let mut samples = HashSet::new();
        let mut family = "";
        for line in text.strip_suffix("# EOF\n").expect("EOF stands last").lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words.as_slice() {
                ["#", "TYPE", name, kind] => {
                    assert!(types.insert(name, kind).is_none(), "{name} has two types");
                    family = name;
                }
                ["#", "HELP", name, _] => assert!(*name == family && helped.insert(*name), "{line}"),
                ["#", "UNIT", name, unit] => assert!(*name == family && name.ends_with(unit), "{line}"),
                _ => {
                    let (sample, value) = line.rsplit_once(' ').expect("name and value");
                    let name = sample.split('{').next().expect("a split has a first part");
                    let suffix = match types[family] {
                        "counter" => "_total",
                        "info" => "_info",
                        _ => "",
                    };
                    assert_eq!(name, format!("{family}{suffix}"), "a sample outside its family");
                    assert!(samples.insert(sample), "{sample} stands twice");
                    assert!(value.parse::<f64>().is_ok(), "{line}");
                    assert!(
                        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                    );
                }
            }
        }
        assert_eq!(types.len(), helped.len());
        assert!(types.len() > 40);
    }
}
