//! The seeded simulation: a POP and its gateways, whole but for the kernel, in a world that a seed decides.
//!
//! `TRUNKLINE_SIM_SEED=123 cargo test --test sim` replays one seed and prints its last events;
//! `TRUNKLINE_SIM_SEEDS=10000 cargo test --test sim` runs so many. See `docs/TESTING.md`.

mod clients;
mod net;
mod origins;
mod plan;
mod regressions;
mod ring;
mod secure;
mod truth;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use plan::Scenario;
use world::World;

/// Seeds of an ordinary test run.
const SEEDS: u64 = 2000;

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Runs a scenario; on failure says what failed and what had happened.
fn attempt(scenario: &Scenario, logging: bool) -> Result<(), String> {
    let mut world = World::new(scenario.clone(), logging);
    catch_unwind(AssertUnwindSafe(|| world.run())).map_err(|payload| {
        let net = world.net.clone();
        // A world that broke in the middle of something is not put away in order.
        std::mem::forget(world);
        let lines = net.try_borrow().map(|net| net.log.lines.iter().cloned().collect::<Vec<_>>().join("\n"));
        format!("{}\n{}", lines.unwrap_or_default(), message(&*payload))
    })
}

/// Runs a scenario, and again with a log when it fails.
fn check(scenario: &Scenario) {
    if std::env::var_os("TRUNKLINE_SIM_LIST").is_some() {
        if let Err(told) = attempt(scenario, false) {
            eprintln!("seed {}: {}", scenario.seed, told.trim());
        }
        return;
    }
    if attempt(scenario, false).is_ok() {
        return;
    }
    let told =
        attempt(scenario, true).err().unwrap_or_else(|| "the second run did not fail: not deterministic".to_owned());
    panic!(
        "seed {} violates an invariant. Its last events:\n{told}\n\nTo replay: TRUNKLINE_SIM_SEED={} cargo test --test sim",
        scenario.seed, scenario.seed
    );
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

#[test]
fn no_seed_violates_an_invariant() {
    if let Some(seed) = number("TRUNKLINE_SIM_SEED") {
        return check(&Scenario::of_seed(seed));
    }
    let from = number("TRUNKLINE_SIM_FROM").unwrap_or(0);
    for seed in from..from + number("TRUNKLINE_SIM_SEEDS").unwrap_or(SEEDS) {
        check(&Scenario::of_seed(seed));
    }
}
