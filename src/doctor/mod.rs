//! The doctor: what a node is like, and what about it would hurt a POP or a gateway.
//!
//! In two steps that know nothing of each other's means: `gather` reads the node into [`Facts`] (files below a root
//! directory, the configuration, and trials against the kernel and the peers), and [`check`] makes [`Finding`]s of them
//! without looking at anything else. Never changes the node: a trial listens for a moment, connects, greets and goes.
//! Invariant: a warning or a fault says what to do, and nothing found in a file reaches a terminal with its control
//! characters.

mod configuration;
mod cores;
mod facts;
mod finding;
mod gather;
mod kernel;
mod limits;
mod network;
mod peers;
mod probe;
mod report;
mod root;
mod sysctl;

pub use facts::Facts;
pub use finding::{Finding, Group, Level};
pub use gather::{Options, gather};
pub use report::Report;

/// What is right and wrong, group by group.
#[must_use]
pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = [
        kernel::check(facts),
        limits::check(facts),
        cores::check(facts),
        sysctl::check(facts),
        network::check(facts),
        configuration::check(facts),
        peers::check(facts),
    ]
    .concat();
    findings.sort_by_key(|finding| finding.group); // stable: within a group as the checks gave them
    findings
}
