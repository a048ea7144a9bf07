//! One thing that was looked at: what was found, what was expected, why it matters, and what to do.
//!
//! Owns the words for how bad and of what kind. Invariant: what is made by [`Finding::warning`] or [`Finding::fault`]
//! has a remedy.

use serde::Serialize;

/// How bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is wrong, or it could not be looked at.
    Note,
    /// It works, and worse than it could.
    Warning,
    /// The process does not start, or fails users.
    Fault,
}

impl Level {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Fault => "fault",
        }
    }
}

/// Of what kind, in the order they are told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Kernel and io_uring.
    Kernel,
    /// Descriptors, memory, time of the processor.
    Limits,
    /// Cores, interrupts, frequency.
    Cores,
    /// Against the files of `tuning/sysctl.d`.
    Sysctl,
    /// Congestion control, ports, what was dropped.
    Network,
    /// The clock.
    Clock,
    /// The configuration and the files it names.
    Configuration,
    /// Certificates and keys.
    Certificates,
    /// Where the process listens.
    Addresses,
    /// Gateways, upstreams, the ticket server.
    Peers,
}

impl Group {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Group::Kernel => "kernel",
            Group::Limits => "limits",
            Group::Cores => "cores",
            Group::Sysctl => "sysctl",
            Group::Network => "network",
            Group::Clock => "clock",
            Group::Configuration => "configuration",
            Group::Certificates => "certificates",
            Group::Addresses => "addresses",
            Group::Peers => "peers",
        }
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Of what kind.
    pub group: Group,
    /// What was looked at: a fixed name, or one with an address, a key or a file in it.
    pub check: String,
    /// How bad.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What was expected; empty when there is nothing to compare with.
    pub expected: String,
    /// Why it matters, in a few words; empty for what is right.
    pub why: String,
    /// What to do: a command or a line of a configuration; empty when there is nothing to do.
    pub remedy: String,
}

impl Finding {
    fn new(group: Group, check: impl Into<String>, level: Level, found: impl Into<String>) -> Finding {
        let (check, found) = (check.into(), found.into());
        Finding { group, check, level, found, expected: String::new(), why: String::new(), remedy: String::new() }
    }

    /// As it should be.
    #[must_use]
    pub fn ok(group: Group, check: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding::new(group, check, Level::Ok, found)
    }

    /// Worth knowing.
    #[must_use]
    pub fn note(group: Group, check: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding::new(group, check, Level::Note, found)
    }

    /// It works, and worse than it could.
    #[must_use]
    pub fn warning(
        group: Group,
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding::new(group, check, Level::Warning, found).remedy(remedy)
    }

    /// The process does not start, or fails users.
    #[must_use]
    pub fn fault(
        group: Group,
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding::new(group, check, Level::Fault, found).remedy(remedy)
    }

    /// With what was expected.
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Finding {
        self.expected = expected.into();
        self
    }

    /// With why it matters.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Finding {
        self.why = why.into();
        self
    }

    /// With what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = remedy.into();
        self
    }
}
