//! What happened over many runs: a simulation in which something never happens does not test it.

use core::fmt;
use std::collections::BTreeMap;

use trunkline::base::counters::{Counters, DESCRIPTIONS};
use trunkline::mmtp::Receipt;

use crate::truth::Outcome;
use crate::world::World;

/// Counters that must have moved, on a POP or a gateway, once enough seeds were played.
const MUST_MOVE: [&str; 25] = [
    "accept_errors",
    "handshakes_failed",
    "tls_errors",
    "truncated_ends",
    "receives",
    "sends_short",
    "buffers_exhausted",
    "streams_done",
    "streams_cancelled",
    "mmtp_errors",
    "fields_dropped",
    "trunks_failed",
    "heartbeats_sent",
    "upstream_failed",
    "upstream_reused",
    "upstream_moved",
    "requests",
    "responses_invalid",
    "trailers_dropped",
    "connections_accepted",
    "upstream_dialed",
    "streams_early action=\"forwarded\"",
    "streams_early action=\"held\"",
    "streams_early action=\"repeated\"",
    "streams_early action=\"refused\"",
];

/// Sums over runs.
#[derive(Default)]
pub struct Tally {
    outcomes: BTreeMap<&'static str, u64>,
    counters: BTreeMap<String, u64>,
}

impl Tally {
    pub fn add(&mut self, world: &World) {
        for call in &world.truth.borrow().calls {
            *self.outcomes.entry(call.outcome.map_or("none (hostile)", name)).or_default() += 1;
        }
        world.final_counters.iter().for_each(|counters| self.add_counters(counters));
    }

    fn add_counters(&mut self, counters: &Counters) {
        for (described, value) in DESCRIPTIONS.iter().zip(counters.values()) {
            let name = match described.labels {
                "" => described.name.to_owned(),
                labels => format!("{} {labels}", described.name),
            };
            *self.counters.entry(name).or_default() += value;
        }
    }

    /// Asserts that nothing is missing.
    pub fn check(&self) {
        for name in ["done", "not forwarded", "unknown", "refused", "lost", "cancelled", "unsent"] {
            assert!(self.outcomes.contains_key(name), "coverage: no call ended with {name}");
        }
        for name in MUST_MOVE {
            let moved = self.counters.get(name).copied().unwrap_or_else(|| panic!("coverage: no counter named {name}"));
            assert!(moved > 0, "coverage: {name} never moved");
        }
        let stale = self.counters["stale_completions"];
        assert_eq!(stale, 0, "no_stale_completion");
    }
}

fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Failed { receipt: Receipt::NotForwarded, .. } => "not forwarded",
        Outcome::Failed { receipt: Receipt::Unknown, .. } => "unknown",
        Outcome::Failed { receipt: Receipt::Refused, .. } => "refused",
        Outcome::Lost => "lost",
        Outcome::Cancelled => "cancelled",
        Outcome::Unsent => "unsent",
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "calls: {:?}", self.outcomes)?;
        write!(formatter, "workers: {:?}", self.counters)
    }
}
