//! The seeded simulation: a POP and its gateways, whole but for the kernel, in a world that a seed decides.
//!
//! `TRUNKLINE_SIM_SEED=123 cargo test --test sim` replays one seed and prints its last events;
//! `TRUNKLINE_SIM_SEEDS=10000 cargo test --test sim` runs so many. See `docs/TESTING.md`.

mod clients;
mod doorman;
mod net;
mod origins;
mod plan;
mod regressions;
mod ring;
mod secure;
mod tally;
mod truth;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use plan::Scenario;
use tally::Tally;
use world::World;

/// Seeds of an ordinary test run.
const SEEDS: u64 = 2000;

/// From this many seeds on, everything that can happen must have happened.
const SEEDS_FOR_TALLY: u64 = 1000;

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Runs a scenario; on failure says what failed and what had happened.
fn attempt(scenario: &Scenario, logging: bool, tally: &mut Tally) -> Result<(), String> {
    // What fails is told once, with what led to it.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !message(info.payload()).is_empty() && message(info.payload()).starts_with(TOLD) {
                loud(info);
            } else if let Some(place) = info.location() {
                eprintln!("{place}");
            }
        }));
    });
    let mut world = World::new(scenario.clone(), logging);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let Err(payload) = result else {
        tally.add(&world);
        return Ok(());
    };
    let net = world.net.clone();
    // A world that broke in the middle of something is not put away in order.
    std::mem::forget(world);
    let lines = net.try_borrow().map(|net| net.log.lines.iter().cloned().collect::<Vec<_>>().join("\n"));
    Err(format!("{}\n{}", lines.unwrap_or_default(), message(&*payload)))
}

/// How the message of a failed test begins.
const TOLD: &str = "a world of seed";

/// Runs a scenario, and again with a log when it fails.
fn check(scenario: &Scenario) {
    check_and_tally(scenario, &mut Tally::default());
}

fn check_and_tally(scenario: &Scenario, tally: &mut Tally) {
    let Err(first) = attempt(scenario, false, tally) else { return };
    if std::env::var_os("TRUNKLINE_SIM_LIST").is_some() {
        return eprintln!("seed {}: {}", scenario.seed, first.trim());
    }
    let again = attempt(scenario, true, tally).err();
    let told = again.unwrap_or_else(|| format!("{first}\nIt did not fail again: the run is not deterministic."));
    let replay = match scenario.guests.is_empty() {
        true => format!("TRUNKLINE_SIM_SEED={} cargo test --test sim no_seed", scenario.seed),
        false => "run this test alone".to_owned(),
    };
    panic!("{TOLD} {} violates an invariant. Its last events:\n{told}\n\nTo replay: {replay}", scenario.seed);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

#[test]
fn no_seed_violates_an_invariant() {
    let mut tally = Tally::default();
    if let Some(seed) = number("TRUNKLINE_SIM_SEED") {
        return check(&Scenario::of_seed(seed));
    }
    let from = number("TRUNKLINE_SIM_FROM").unwrap_or(0);
    let count = number("TRUNKLINE_SIM_SEEDS").unwrap_or(SEEDS);
    for seed in from..from + count {
        check_and_tally(&Scenario::of_seed(seed), &mut tally);
    }
    println!("{tally}");
    if count >= SEEDS_FOR_TALLY {
        tally.check();
    }
}

#[test]
fn a_seed_does_the_same_again() {
    for seed in 0..20 {
        let traced = || {
            let mut world = World::new(Scenario::of_seed(seed), true);
            world.run();
            let net = world.net.borrow();
            (net.now, net.log.lines.iter().cloned().collect::<Vec<_>>())
        };
        assert_eq!(traced(), traced(), "replay: seed {seed}");
    }
}
