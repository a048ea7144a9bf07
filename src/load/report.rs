//! What was measured, as people and programs read it: a summary in lines, and one JSON object.
//!
//! Owns names and units. Never measures. Invariant: every count of the tally stands in the JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::tally::{HandshakeKind, Tally, Times};

/// Names of receipts, in the order of [`Tally::receipts`].
const RECEIPTS: [&str; 3] = ["not forwarded", "unknown", "refused"];

/// What was asked for, as far as the report repeats it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Asked {
    /// The address.
    pub target: String,
    /// Connections at a time.
    pub connections: usize,
    /// Requests at a time on each.
    pub outstanding: usize,
    /// Starts per second.
    pub rate: Option<f64>,
    /// The kind of new connections.
    pub handshake: Option<HandshakeKind>,
    /// Requests on each of those.
    pub per_connection: Option<u64>,
    /// Whether several priorities were drawn.
    pub is_mixed: bool,
}

/// The JSON object. Times are in microseconds.
#[derive(Serialize)]
struct Object<'t> {
    target: &'t str,
    connections: usize,
    outstanding: usize,
    rate: Option<f64>,
    handshake: Option<&'static str>,
    per_connection: Option<u64>,
    seconds: f64,
    requests: u64,
    requests_per_s: f64,
    bytes_received: u64,
    bytes_sent: u64,
    connections_opened: u64,
    kinds: BTreeMap<&'static str, u64>,
    latency_micros: Option<Percentiles>,
    first_answer_micros: Option<Percentiles>,
    connect_micros: Option<Percentiles>,
    handshake_micros: Option<Percentiles>,
    by_priority: Option<BTreeMap<String, Option<Percentiles>>>,
    errors: BTreeMap<String, u64>,
    receipts: BTreeMap<&'static str, u64>,
    late_starts: u64,
    cpu_micros: u64,
    idle: Option<Idle>,
}

#[derive(Serialize)]
struct Idle {
    held: u64,
    lost: u64,
    answered: u64,
}

#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
struct Percentiles {
    count: u64,
    min: f64,
    mean: f64,
    p50: f64,
    p75: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p99_9: f64,
    #[serde(rename = "p99.99")]
    p99_99: f64,
    max: f64,
}

impl Percentiles {
    /// None when nothing was recorded.
    fn of(times: &Times) -> Option<Percentiles> {
        let histogram = times.histogram();
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let at = |quantile: f64| micros(histogram.value_at_quantile(quantile));
        (!histogram.is_empty()).then(|| Percentiles {
            count: histogram.len(),
            min: micros(histogram.min()),
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: micros(histogram.max()),
        })
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was asked for.
    pub asked: Asked,
    /// What was measured.
    pub tally: Tally,
}

impl Report {
    /// Good answers per second, of those that came within the duration.
    #[must_use]
    pub fn requests_per_s(&self) -> f64 {
        let seconds = self.tally.elapsed.as_secs_f64();
        if seconds > 0.0 { self.tally.requests_in_time as f64 / seconds } else { 0.0 }
    }

    /// Whether there were answers, all of them good, and nothing else went wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.tally.requests > 0 && self.tally.faults.is_empty() && self.tally.held.is_none_or(|held| held.lost == 0)
    }

    /// The JSON object, with a line end.
    #[must_use]
    pub fn json(&self) -> String {
        let Report { asked, tally } = self;
        let by_priority = || {
            let some = (0..).zip(&tally.by_priority).filter_map(|(priority, times): (u8, _)| {
                times.as_ref().map(|times| (priority.to_string(), Percentiles::of(times)))
            });
            some.collect()
        };
        let object = Object {
            target: &asked.target,
            connections: asked.connections,
            outstanding: asked.outstanding,
            rate: asked.rate,
            handshake: asked.handshake.map(HandshakeKind::name),
            per_connection: asked.per_connection,
            seconds: tally.elapsed.as_secs_f64(),
            requests: tally.requests,
            requests_per_s: self.requests_per_s(),
            bytes_received: tally.bytes_received,
            bytes_sent: tally.bytes_sent,
            connections_opened: tally.connections_opened,
            kinds: HandshakeKind::ALL.iter().map(|kind| kind.name()).zip(tally.kinds).collect(),
            latency_micros: Percentiles::of(&tally.latency),
            first_answer_micros: Percentiles::of(&tally.first_answer),
            connect_micros: Percentiles::of(&tally.connect),
            handshake_micros: Percentiles::of(&tally.handshake),
            by_priority: asked.is_mixed.then(by_priority),
            errors: tally.faults.iter().map(|(fault, entry)| (fault.to_string(), entry.count)).collect(),
            receipts: RECEIPTS.into_iter().zip(tally.receipts).collect(),
            late_starts: tally.late_starts,
            cpu_micros: u64::try_from(tally.cpu.as_micros()).unwrap_or(u64::MAX),
            idle: tally.held.map(|held| Idle { held: held.held, lost: held.lost, answered: held.answered }),
        };
        let mut text = serde_json::to_string(&object).expect("names and numbers are always valid JSON");
        text.push('\n');
        text
    }

    fn put_connections(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { connections_opened, kinds, .. } = self.tally;
        write!(out, "connections  {connections_opened} opened")?;
        for (kind, count) in HandshakeKind::ALL.into_iter().zip(kinds).filter(|(_, count)| *count > 0) {
            write!(out, ", {count} {}", kind.name())?;
        }
        writeln!(out)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { asked, tally } = self;
        let seconds = tally.elapsed.as_secs_f64();
        write!(out, "{}: {} connections", asked.target, asked.connections)?;
        if asked.outstanding > 1 {
            write!(out, " with {} outstanding each", asked.outstanding)?;
        }
        writeln!(out, ", {seconds:.2} s")?;
        writeln!(out, "requests     {} good, {:.1} per second", tally.requests, self.requests_per_s())?;
        if tally.late_starts > 0 {
            writeln!(out, "late starts  {}", tally.late_starts)?;
        }
        self.put_connections(out)?;
        if let Some(held) = tally.held {
            writeln!(out, "held         {}, {} lost, {} answered at the end", held.held, held.lost, held.answered)?;
        }
        writeln!(
            out,
            "bytes        {} received, {} sent, TLS included",
            Bytes(tally.bytes_received),
            Bytes(tally.bytes_sent)
        )?;
        let per_request = tally.cpu.as_secs_f64() * 1e6 / tally.requests.max(1) as f64;
        writeln!(out, "own CPU      {:.2} s, {per_request:.2} us per request", tally.cpu.as_secs_f64())?;
        put_times(tally, asked.is_mixed, out)?;
        for (fault, entry) in &tally.faults {
            write!(out, "error        {} x {fault}", entry.count)?;
            match &entry.detail {
                Some(detail) => writeln!(out, " ({detail})")?,
                None => writeln!(out)?,
            }
        }
        for (name, count) in RECEIPTS.into_iter().zip(tally.receipts).filter(|(_, count)| *count > 0) {
            writeln!(out, "receipt      {count} x {name}")?;
        }
        Ok(())
    }
}

fn put_times(tally: &Tally, is_mixed: bool, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let line = |out: &mut fmt::Formatter<'_>, name: &str, times: &Times| -> fmt::Result {
        let Some(times) = Percentiles::of(times) else { return Ok(()) };
        let cells = [times.p50, times.p90, times.p99, times.p99_9, times.p99_99, times.max];
        write!(out, "{name:<12}")?;
        for cell in cells {
            write!(out, " {:>9}", Micros(cell).to_string())?;
        }
        writeln!(out)
    };
    writeln!(out, "{:<12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}", "", "p50", "p90", "p99", "p99.9", "p99.99", "max")?;
    line(out, "latency", &tally.latency)?;
    for (priority, times) in tally.by_priority.iter().enumerate().filter(|_| is_mixed) {
        if let Some(times) = times {
            line(out, &format!("  priority {priority}"), times)?;
        }
    }
    line(out, "first answer", &tally.first_answer)?;
    line(out, "connect", &tally.connect)?;
    line(out, "handshake", &tally.handshake)
}

/// A time in the unit that suits it.
struct Micros(f64);

impl fmt::Display for Micros {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            micros if micros < 1e3 => write!(out, "{micros:.0}us"),
            micros if micros < 1e6 => write!(out, "{:.2}ms", micros / 1e3),
            micros => write!(out, "{:.2}s", micros / 1e6),
        }
    }
}

/// A number of bytes in the unit that suits it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0.max(1).ilog2() {
            0..10 => write!(out, "{} B", self.0),
            10..20 => write!(out, "{:.1} KiB", bytes / 1024.0),
            20..30 => write!(out, "{:.1} MiB", bytes / (1024.0 * 1024.0)),
            _ => write!(out, "{:.1} GiB", bytes / (1024.0 * 1024.0 * 1024.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tally::Fault;
    use super::*;
    use crate::mmtp::Receipt;

    fn report() -> Report {
        let mut tally = Tally { elapsed: Duration::from_secs(2), ..Tally::default() };
        for micros in 1..=1000 {
            tally.answered(Duration::from_micros(micros), 3, micros > 100);
        }
        let asked = Asked { target: "http://a/\"".to_owned(), connections: 4, outstanding: 1, ..Asked::default() };
        Report { asked, tally }
    }

    #[test]
    fn the_json_has_what_was_measured_and_null_for_what_was_not() {
        let json: serde_json::Value = serde_json::from_str(&report().json()).expect("valid JSON");
        assert_eq!((&json["target"], &json["connections"]), (&"http://a/\"".into(), &4.into()));
        assert_eq!((json["requests"].as_u64(), json["requests_per_s"].as_f64()), (Some(1000), Some(450.0)));
        let latency = |name: &str| json["latency_micros"][name].as_f64().expect(name);
        for (name, expected) in [
            ("count", 1000.0),
            ("min", 1.0),
            ("mean", 500.5),
            ("p50", 500.0),
            ("p75", 750.0),
            ("p90", 900.0),
            ("p99", 990.0),
            ("p99.9", 999.0),
            ("p99.99", 1000.0),
            ("max", 1000.0),
        ] {
            assert!((latency(name) / expected - 1.0).abs() < 0.002, "{name}: {}", latency(name));
        }
        for absent in ["rate", "handshake", "per_connection", "first_answer_micros", "connect_micros", "by_priority"] {
            assert!(json[absent].is_null(), "{absent}");
        }
        assert_eq!(json["kinds"], serde_json::json!({"full": 0, "resumed": 0, "early": 0}));
        assert_eq!(json["errors"], serde_json::json!({}));
    }

    #[test]
    fn faults_and_priorities_are_told_by_name() {
        let mut report = report();
        report.asked.is_mixed = true;
        report.tally.by_priority[0] = Some(Times::default());
        report.tally.answered(Duration::from_millis(1), 0, true);
        report.tally.fault(Fault::Status(503), 2, || None);
        report.tally.fault(Fault::Certificate, 1, || Some("no chain".to_owned()));
        report.tally.receipt(Receipt::NotForwarded);
        assert!(!report.is_good());
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("valid JSON");
        assert_eq!(json["errors"], serde_json::json!({"certificate refused": 1, "status 503": 2}));
        assert_eq!(json["receipts"], serde_json::json!({"not forwarded": 1, "unknown": 0, "refused": 0}));
        assert_eq!(json["by_priority"]["0"]["count"], 1);
        let text = report.to_string();
        for part in ["1001 good", "error        1 x certificate refused (no chain)", "priority 0", "1 x not forwarded"]
        {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn nothing_answered_is_not_good() {
        assert!(report().is_good());
        let mut nothing = report();
        nothing.tally = Tally::default();
        assert!(!nothing.is_good());
        assert_eq!(nothing.requests_per_s(), 0.0);
        assert!(nothing.json().contains("\"latency_micros\":null"));
    }
}
