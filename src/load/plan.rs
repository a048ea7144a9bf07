//! What a run is to do: decided before it starts, and the same for all its workers.
//!
//! Owns nothing but values. Invariant: a plan that [`Plan::check`] takes can be carried out as far as it is for us to say.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::mix::Mix;
use super::report::Asked;
use super::request::Recipe;
use super::schedule::RATE_MAX;
use super::tally::HandshakeKind;
use crate::tls::ClientSettings;

/// Most connections at a time. One worker reaches no server with more: a pair of addresses has some 28 000 ports.
pub const CONNECTIONS_MAX: usize = 1_000_000;

/// Most requests at a time on one connection.
pub const OUTSTANDING_MAX: usize = 10_000;

/// Longest run.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Descriptors that are not connections: ring, wake-up, standard streams, files.
const DESCRIPTORS_BESIDE: u64 = 64;

/// What connections are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// They stay, and requests follow each other on them.
    Stay,
    /// They come, ask, and go.
    Visit {
        /// How they are to be established.
        kind: HandshakeKind,
        /// Requests on each.
        requests: u64,
    },
    /// They ask once, are held, and ask again at the end.
    Hold,
}

/// What decides when something starts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Loop {
    /// The end of what was before.
    Closed,
    /// A schedule of so many starts per second.
    Open {
        /// Starts per second.
        rate: f64,
    },
}

/// TLS of a run.
#[derive(Clone, Debug)]
pub struct TlsPlan {
    /// Whom to trust and what to offer.
    pub settings: ClientSettings,
    /// The name that the server must prove to have.
    pub name: String,
}

/// See the module.
pub struct Plan {
    /// The address as it was written.
    pub target: String,
    /// Where to connect.
    pub address: SocketAddr,
    /// None for plain HTTP.
    pub tls: Option<TlsPlan>,
    /// What is asked.
    pub recipe: Recipe,
    /// Priorities of requests.
    pub mix: Mix,
    /// Whether times are told by priority.
    pub is_mixed: bool,
    /// What connections are for.
    pub mode: Mode,
    /// What decides when something starts.
    pub pace: Loop,
    /// Connections at a time.
    pub connections: usize,
    /// Requests at a time on each.
    pub outstanding: usize,
    /// How long requests are begun, or connections held.
    pub duration: Duration,
    /// A worker on each; none: one worker, wherever it runs.
    pub cores: Vec<usize>,
    /// Whether the first bytes go with the SYN.
    pub fast_open: bool,
}

/// Why a plan cannot be carried out.
#[derive(Clone, PartialEq, Debug)]
pub enum PlanError {
    /// A number outside its bounds.
    Range {
        /// Of which option.
        option: &'static str,
        /// What it may be.
        allowed: String,
    },
    /// Two options that exclude each other.
    Conflict(&'static str),
    /// The limit of open descriptors is too low for so many connections.
    Descriptors {
        /// What is needed.
        needed: u64,
        /// What is allowed.
        allowed: u64,
    },
    /// A core that this process may not use, or one named twice.
    Core(usize),
}

impl fmt::Display for PlanError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Range { option, allowed } => write!(out, "{option} must be {allowed}"),
            PlanError::Conflict(what) => out.write_str(what),
            PlanError::Descriptors { needed, allowed } => write!(
                out,
                "{needed} descriptors are needed and {allowed} may be open: raise the hard limit (ulimit -Hn, or \
                 LimitNOFILE= of the service), or ask for fewer --connections"
            ),
            PlanError::Core(core) => {
                write!(out, "--cores: core {core} is not one this process may use, or is named twice (see taskset -p)")
            }
        }
    }
}

impl std::error::Error for PlanError {}

impl Plan {
    /// Workers there will be.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.cores.len().max(1)
    }

    /// The part of [`Plan::connections`] that is one worker's.
    #[must_use]
    pub fn connections_of(&self, worker: usize) -> usize {
        self.connections / self.workers() + usize::from(worker < self.connections % self.workers())
    }

    /// Looks for what cannot be. `cores` this process may use (none: unknown), and `descriptors` it may have open.
    ///
    /// # Errors
    /// The first thing found.
    pub fn check(&self, cores: &[usize], descriptors: u64) -> Result<(), PlanError> {
        let range = |option: &'static str, allowed: String| Err(PlanError::Range { option, allowed });
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return range("--connections", format!("1 to {CONNECTIONS_MAX}"));
        }
        if !(1..=OUTSTANDING_MAX).contains(&self.outstanding) {
            return range("--outstanding", format!("1 to {OUTSTANDING_MAX}"));
        }
        if self.duration.is_zero() || self.duration > DURATION_MAX {
            return range("--duration", "above 0 and at most 24 hours".to_owned());
        }
        if let Loop::Open { rate } = self.pace
            && !(rate > 0.0 && rate <= RATE_MAX)
        {
            return range("--rate", format!("above 0 and at most {RATE_MAX} per second"));
        }
        if matches!(self.mode, Mode::Visit { requests: 0, .. }) {
            return range("--per-connection", "at least 1".to_owned());
        }
        if matches!(self.mode, Mode::Visit { .. }) && self.tls.is_none() {
            return Err(PlanError::Conflict("--handshake needs TLS: an https:// or mmtp:// address"));
        }
        if self.mode == Mode::Hold && self.pace != Loop::Closed {
            return Err(PlanError::Conflict("--idle and --rate exclude each other"));
        }
        if self.is_mixed && matches!(self.recipe, Recipe::Http { .. }) {
            return Err(PlanError::Conflict("--mix needs an mmtp:// address: HTTP/1.1 has no priorities"));
        }
        for (index, core) in self.cores.iter().enumerate() {
            if self.cores[..index].contains(core) || !(cores.is_empty() || cores.contains(core)) {
                return Err(PlanError::Core(*core));
            }
        }
        if self.connections < self.workers() {
            return range("--connections", format!("at least {}: one for each of --cores", self.workers()));
        }
        let needed = self.connections as u64 + DESCRIPTORS_BESIDE + self.workers() as u64 * 4;
        if needed > descriptors {
            return Err(PlanError::Descriptors { needed, allowed: descriptors });
        }
        Ok(())
    }

    /// What the report repeats.
    #[must_use]
    pub fn asked(&self) -> Asked {
        let (handshake, per_connection) = match self.mode {
            Mode::Visit { kind, requests } => (Some(kind), Some(requests)),
            Mode::Stay | Mode::Hold => (None, None),
        };
        Asked {
            target: self.target.clone(),
            connections: self.connections,
            outstanding: self.outstanding,
            rate: match self.pace {
                Loop::Closed => None,
                Loop::Open { rate } => Some(rate),
            },
            handshake,
            per_connection,
            is_mixed: self.is_mixed,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::target::Target;
    use super::*;

    pub(in super::super) fn plan(url: &str) -> Plan {
        let target = Target::parse(url).expect("valid");
        let mix = Mix::default();
        Plan {
            target: url.to_owned(),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            tls: None,
            recipe: Recipe::new(&target, "GET", 0, &mix, false).expect("valid"),
            mix,
            is_mixed: false,
            mode: Mode::Stay,
            pace: Loop::Closed,
            connections: 10,
            outstanding: 1,
            duration: Duration::from_secs(1),
            cores: Vec::new(),
            fast_open: false,
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_option() {
        let good = || plan("http://a/");
        assert_eq!(good().check(&[0, 1], 1000), Ok(()));
        for (plan, named) in [
            (Plan { connections: 0, ..good() }, "--connections"),
            (Plan { connections: CONNECTIONS_MAX + 1, ..good() }, "--connections"),
            (Plan { connections: 1, cores: vec![0, 1], ..good() }, "--connections"),
            (Plan { connections: 990, ..good() }, "--connections"),
            (Plan { outstanding: 0, ..good() }, "--outstanding"),
            (Plan { duration: Duration::ZERO, ..good() }, "--duration"),
            (Plan { duration: DURATION_MAX * 2, ..good() }, "--duration"),
            (Plan { pace: Loop::Open { rate: 0.0 }, ..good() }, "--rate"),
            (Plan { pace: Loop::Open { rate: f64::NAN }, ..good() }, "--rate"),
            (Plan { pace: Loop::Open { rate: 1e9 }, ..good() }, "--rate"),
            (Plan { mode: Mode::Hold, pace: Loop::Open { rate: 1.0 }, ..good() }, "--idle"),
            (Plan { mode: Mode::Visit { kind: HandshakeKind::Full, requests: 1 }, ..good() }, "--handshake"),
            (Plan { mode: Mode::Visit { kind: HandshakeKind::Full, requests: 0 }, ..good() }, "--per-connection"),
            (Plan { is_mixed: true, ..good() }, "--mix"),
            (Plan { cores: vec![2], ..good() }, "--cores"),
            (Plan { cores: vec![1, 1], ..good() }, "--cores"),
        ] {
            let error = plan.check(&[0, 1], 1000).expect_err(named);
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn workers_share_connections() {
        let plan = Plan { connections: 11, cores: vec![0, 1, 2], ..plan("http://a/") };
        assert_eq!((0..3).map(|worker| plan.connections_of(worker)).collect::<Vec<_>>(), [4, 4, 3]);
    }
}
