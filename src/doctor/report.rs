//! Findings as a whole: their worst, the exit code, and the object that `--json` prints.
//!
//! Owns the form of that object. Never prints.

use serde::Serialize;

use super::finding::{Finding, Level};

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// Version of this form: it changes when a field is renamed or removed.
    pub version: u32,
    /// What the node was looked at as: `pop` or `gateway`.
    pub role: &'static str,
    /// Findings that are as they should be.
    pub ok: usize,
    /// Findings worth knowing.
    pub notes: usize,
    /// Findings that should be mended.
    pub warnings: usize,
    /// Findings that must be mended.
    pub faults: usize,
    /// What the process exits with.
    pub exit_code: u8,
    /// All of them, group by group.
    pub findings: Vec<Finding>,
}

/// The version of [`Report`].
const VERSION: u32 = 1;

impl Report {
    /// Counts them.
    #[must_use]
    pub fn new(role: &'static str, findings: Vec<Finding>) -> Report {
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let exit_code = match findings.iter().map(|finding| finding.level).max() {
            Some(Level::Fault) => 2,
            Some(Level::Warning) => 1,
            Some(Level::Note | Level::Ok) | None => 0,
        };
        let (ok, notes) = (count(Level::Ok), count(Level::Note));
        let (warnings, faults) = (count(Level::Warning), count(Level::Fault));
        Report { version: VERSION, role, ok, notes, warnings, faults, exit_code, findings }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Group;

    #[test]
    fn the_worst_finding_decides_the_exit_code() {
        let ok = Finding::ok(Group::Kernel, "a", "b");
        let note = Finding::note(Group::Kernel, "a", "b");
        let warning = Finding::warning(Group::Kernel, "a", "b", "c");
        let fault = Finding::fault(Group::Kernel, "a", "b", "c");
        let code = |findings: &[&Finding]| {
            Report::new("pop", findings.iter().map(|finding| (*finding).clone()).collect()).exit_code
        };
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[&ok, &note]), 0);
        assert_eq!(code(&[&warning, &note]), 1);
        assert_eq!(code(&[&warning, &fault, &ok]), 2);
    }
}
