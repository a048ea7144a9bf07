//! What was measured: counts, times, and what went wrong, of one worker or of all together.
//!
//! Owns histograms of fixed size (three digits, up to an hour) and counts by kind. Never reads a clock.
//! Invariant: recording an answer allocates nothing; only faults do, once per kind.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::mix::PRIORITIES;
use crate::mmtp::{Code, Receipt};

/// Longest time that is told apart, in nanoseconds: an hour. Longer ones count as that.
const TIME_NANOS_MAX: u64 = 3_600_000_000_000;

/// Digits that are kept of a time.
const DIGITS: u8 = 3;

/// How a connection was established.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum HandshakeKind {
    /// With certificates.
    Full,
    /// With a ticket.
    Resumed,
    /// With a ticket, the first request in the first flight, and that request taken.
    Early,
}

impl HandshakeKind {
    /// All of them.
    pub const ALL: [HandshakeKind; 3] = [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Early];

    /// Its name in reports and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            HandshakeKind::Full => "full",
            HandshakeKind::Resumed => "resumed",
            HandshakeKind::Early => "early",
        }
    }
}

/// What can go wrong with a connection or a request, by kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// Nobody listens.
    ConnectRefused,
    /// Connecting and shaking hands took too long.
    SetupTimedOut,
    /// The network has no way there.
    Unreachable,
    /// This machine has no port, descriptor or memory left for it.
    NoSocket,
    /// Connecting failed otherwise.
    Connect,
    /// The server's certificate is not trusted.
    Certificate,
    /// The handshake failed otherwise.
    Handshake,
    /// The connection came about in another way than asked for.
    WrongKind {
        /// Asked for.
        wanted: HandshakeKind,
        /// Got.
        got: HandshakeKind,
    },
    /// The server gave no ticket to come back with.
    NoTicket,
    /// The connection was reset.
    Reset,
    /// The server ended the connection while an answer was due.
    Closed,
    /// What came is no TLS that belongs here.
    Tls,
    /// What came is no HTTP/1.1 that belongs here.
    Http(&'static str),
    /// What came is no MMTP that belongs here.
    Mmtp(&'static str),
    /// An answer with a status that is not good.
    Status(u16),
    /// A stream was reset with this code.
    Stream(u32),
    /// The request was begun but not answered by the end.
    Unanswered,
    /// The schedule wanted it to start, and no connection was free until the end.
    NotBegun,
    /// The schedule wanted it to start, and too many others waited.
    BacklogFull,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::ConnectRefused => out.write_str("connect refused"),
            Fault::SetupTimedOut => out.write_str("connect timed out"),
            Fault::Unreachable => out.write_str("unreachable"),
            Fault::NoSocket => out.write_str("no socket to be had"),
            Fault::Connect => out.write_str("connect failed"),
            Fault::Certificate => out.write_str("certificate refused"),
            Fault::Handshake => out.write_str("handshake failed"),
            Fault::WrongKind { wanted, got } => write!(out, "wanted {}, got {}", wanted.name(), got.name()),
            Fault::NoTicket => out.write_str("no ticket"),
            Fault::Reset => out.write_str("connection reset"),
            Fault::Closed => out.write_str("closed by the server"),
            Fault::Tls => out.write_str("broken TLS"),
            Fault::Http(what) => write!(out, "HTTP: {what}"),
            Fault::Mmtp(what) => write!(out, "MMTP: {what}"),
            Fault::Status(status) => write!(out, "status {status}"),
            Fault::Stream(code) => match Code(*code).name() {
                "unknown" => write!(out, "stream reset: code {code}"),
                name => write!(out, "stream reset: {name}"),
            },
            Fault::Unanswered => out.write_str("unanswered at the end"),
            Fault::NotBegun => out.write_str("not begun by the end"),
            Fault::BacklogFull => out.write_str("backlog full"),
        }
    }
}

/// Times, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Times {
        Times(Histogram::new_with_bounds(1, TIME_NANOS_MAX, DIGITS).expect("the bounds are constants that fit"))
    }
}

impl Times {
    /// Adds one.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Times) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The histogram, to read.
    #[must_use]
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

/// How often a fault occurred, and what was said of it first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FaultCount {
    /// How often.
    pub count: u64,
    /// What more was known of the first one, if anything.
    pub detail: Option<String>,
}

/// What became of connections that were opened and held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Those that answered once and were held.
    pub held: u64,
    /// Of those, the ones that ended while they were held.
    pub lost: u64,
    /// Of those, the ones that answered again at the end.
    pub answered: u64,
}

/// What one worker measured, or all.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Good answers.
    pub requests: u64,
    /// Of those, the ones that came before the end of the duration.
    pub requests_in_time: u64,
    /// Bytes from sockets, TLS included.
    pub bytes_received: u64,
    /// Bytes to sockets, TLS included.
    pub bytes_sent: u64,
    /// Connections that came to carry requests.
    pub connections_opened: u64,
    /// How those were established; by the order of [`HandshakeKind::ALL`].
    pub kinds: [u64; 3],
    /// Of good answers, to their last byte.
    pub latency: Times,
    /// The same by priority, where there are several.
    pub by_priority: [Option<Times>; PRIORITIES],
    /// From the start of connecting to the first byte of the connection's first answer.
    pub first_answer: Times,
    /// Of connecting (TCP).
    pub connect: Times,
    /// Of the TLS handshake, after connecting.
    pub handshake: Times,
    /// What went wrong.
    pub faults: BTreeMap<Fault, FaultCount>,
    /// Receipts of streams that were reset: not forwarded, unknown, refused.
    pub receipts: [u64; 3],
    /// Starts that began later than `LATE_AFTER` (a millisecond) after their time.
    pub late_starts: u64,
    /// CPU time used by the workers.
    pub cpu: Duration,
    /// From the first start to the end.
    pub elapsed: Duration,
    /// Some when connections were held.
    pub held: Option<Held>,
}

impl Tally {
    /// Counts a fault. `detail` is asked for only the first time.
    pub fn fault(&mut self, fault: Fault, count: u64, detail: impl FnOnce() -> Option<String>) {
        if count > 0 {
            let entry = self.faults.entry(fault).or_insert_with(|| FaultCount { count: 0, detail: detail() });
            entry.count += count;
        }
    }

    /// Counts a receipt.
    pub fn receipt(&mut self, receipt: Receipt) {
        let index = match receipt {
            Receipt::NotForwarded => 0,
            Receipt::Unknown => 1,
            Receipt::Refused => 2,
        };
        self.receipts[index] += 1;
    }

    /// Records a good answer.
    pub fn answered(&mut self, latency: Duration, priority: u8, is_in_time: bool) {
        self.requests += 1;
        self.requests_in_time += u64::from(is_in_time);
        self.latency.record(latency);
        if let Some(times) = &mut self.by_priority[usize::from(priority)] {
            times.record(latency);
        }
    }

    /// Faults of all kinds.
    #[must_use]
    pub fn faults_total(&self) -> u64 {
        self.faults.values().map(|entry| entry.count).sum()
    }

    /// Adds what another worker measured.
    pub fn merge(&mut self, other: &Tally) {
        self.requests += other.requests;
        self.requests_in_time += other.requests_in_time;
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.connections_opened += other.connections_opened;
        self.late_starts += other.late_starts;
        self.cpu += other.cpu;
        self.elapsed = self.elapsed.max(other.elapsed);
        for (mine, theirs) in self.kinds.iter_mut().zip(other.kinds) {
            *mine += theirs;
        }
        for (mine, theirs) in self.receipts.iter_mut().zip(other.receipts) {
            *mine += theirs;
        }
        self.latency.merge(&other.latency);
        self.first_answer.merge(&other.first_answer);
        self.connect.merge(&other.connect);
        self.handshake.merge(&other.handshake);
        for (mine, theirs) in self.by_priority.iter_mut().zip(&other.by_priority) {
            if let Some(theirs) = theirs {
                mine.get_or_insert_default().merge(theirs);
            }
        }
        for (fault, entry) in &other.faults {
            self.fault(*fault, entry.count, || entry.detail.clone());
        }
        if let Some(theirs) = other.held {
            let mine = self.held.get_or_insert_default();
            mine.held += theirs.held;
            mine.lost += theirs.lost;
            mine.answered += theirs.answered;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_workers_measured_adds_up() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        one.by_priority[0] = Some(Times::default());
        other.by_priority[7] = Some(Times::default());
        one.answered(Duration::from_millis(1), 0, true);
        other.answered(Duration::from_millis(3), 7, false);
        one.fault(Fault::Status(500), 2, || None);
        other.fault(Fault::Status(500), 1, || Some("late".to_owned()));
        other.fault(Fault::Handshake, 1, || Some("why".to_owned()));
        other.fault(Fault::Reset, 0, || None);
        other.receipt(Receipt::Refused);
        other.held = Some(Held { held: 3, lost: 1, answered: 2 });
        one.elapsed = Duration::from_secs(2);
        other.elapsed = Duration::from_secs(1);
        one.merge(&other);
        assert_eq!((one.requests, one.requests_in_time, one.latency.count()), (2, 1, 2));
        assert_eq!(one.by_priority.iter().flatten().map(Times::count).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(one.faults[&Fault::Status(500)], FaultCount { count: 3, detail: None });
        assert_eq!(one.faults[&Fault::Handshake].detail.as_deref(), Some("why"));
        assert_eq!((one.faults.len(), one.faults_total(), one.receipts), (2, 4, [0, 0, 1]));
        assert_eq!(one.held, Some(Held { held: 3, lost: 1, answered: 2 }));
        assert_eq!(one.elapsed, Duration::from_secs(2));
    }

    #[test]
    fn times_beyond_the_bounds_count_as_the_bounds() {
        let mut times = Times::default();
        times.record(Duration::ZERO);
        times.record(Duration::MAX);
        assert_eq!((times.count(), times.histogram().min()), (2, 1));
        assert!(times.histogram().max() >= TIME_NANOS_MAX);
    }
}
