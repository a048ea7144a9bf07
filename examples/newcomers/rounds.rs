//! New connections one after another: whether each is of the kind wanted, and how long it takes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustls::ClientConfig;
use serde_json::json;
use trunkline::base::prng::Prng;

use crate::Common;
use crate::connection::{Connection, Kind};
use crate::trust;

/// Failures in a row after which a thread gives up.
const FAILURES_MAX: u32 = 50;

/// Arguments.
#[derive(Args, Debug)]
pub struct Rounds {
    #[command(flatten)]
    common: Common,
    /// How many connections.
    #[arg(long)]
    connections: u64,
    /// Users per thread that return in turn; each comes once before measuring begins.
    #[arg(long, default_value_t = 50)]
    users: usize,
    /// After the users' first visits, print a line and wait for one on standard input.
    #[arg(long)]
    wait: bool,
}

/// What one thread saw.
#[derive(Default)]
struct Tally {
    micros: Vec<u64>,
    kinds: BTreeMap<&'static str, u64>,
    errors: u64,
    first_error: Option<String>,
}

impl Rounds {
    /// Measures and prints. True when every connection was of the kind wanted.
    pub fn run(&self, wanted: Kind) -> io::Result<bool> {
        let users: Vec<Vec<Arc<ClientConfig>>> =
            (0..self.common.threads).map(|_| self.prime(wanted)).collect::<io::Result<_>>()?;
        if self.wait {
            println!("{}", json!({ "kind": "primed" }));
            io::stdout().flush()?;
            io::stdin().read_line(&mut String::new())?;
        }
        let (left, began) = (AtomicU64::new(self.connections), Instant::now());
        let tallies: Vec<Tally> = thread::scope(|scope| {
            let threads: Vec<_> = users.iter().map(|users| scope.spawn(|| self.visits(users, &left))).collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
        });
        Ok(report(wanted, tallies, began.elapsed()))
    }

    /// The configuration of each user, with the tickets of a first visit. Those who come for full handshakes are all alike.
    fn prime(&self, wanted: Kind) -> io::Result<Vec<Arc<ClientConfig>>> {
        let base = trust::config(&self.common)?;
        if wanted == Kind::Full {
            return Ok(vec![Arc::new(base)]);
        }
        let users: Vec<_> = (0..self.users).map(|_| trust::with_tickets(&base, wanted == Kind::Early)).collect();
        let mut random = Prng::new(0);
        for user in &users {
            self.visit(user, &mut random)?;
        }
        Ok(users)
    }

    fn visit(&self, config: &Arc<ClientConfig>, random: &mut Prng) -> io::Result<(Kind, Duration)> {
        let (common, began) = (&self.common, Instant::now());
        let name = trust::name(common)?;
        let target = common.target[random.below(common.target.len() as u64) as usize];
        let (connection, kind) = Connection::visit(common, target, Arc::clone(config), name, &common.path)?;
        let elapsed = began.elapsed();
        connection.close()?;
        Ok((kind, elapsed))
    }

    /// The users return in turn, while any connections are left.
    fn visits(&self, users: &[Arc<ClientConfig>], left: &AtomicU64) -> Tally {
        let mut tally = Tally::default();
        let mut failures = 0;
        let mut random = Prng::new(left.load(Ordering::Relaxed));
        for user in users.iter().cycle() {
            let is_over = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err();
            if is_over || failures >= FAILURES_MAX {
                break;
            }
            match self.visit(user, &mut random) {
                Ok((kind, elapsed)) => {
                    *tally.kinds.entry(kind.name()).or_default() += 1;
                    tally.micros.push(elapsed.as_micros() as u64);
                    failures = 0;
                }
                Err(error) => {
                    failures += 1;
                    tally.errors += 1;
                    tally.first_error.get_or_insert(error.to_string());
                }
            }
        }
        tally
    }
}

/// Prints. True when every connection was of the kind wanted.
fn report(wanted: Kind, tallies: Vec<Tally>, elapsed: Duration) -> bool {
    let mut all = Tally::default();
    for tally in tallies {
        all.micros.extend(tally.micros);
        tally.kinds.iter().for_each(|(name, count)| *all.kinds.entry(name).or_default() += count);
        all.errors += tally.errors;
        all.first_error = all.first_error.or(tally.first_error);
    }
    all.micros.sort_unstable();
    let done = all.micros.len() as u64;
    let is_pure = done > 0 && all.errors == 0 && all.kinds.get(wanted.name()) == Some(&done);
    let line = json!({
        "kind": wanted.name(),
        "connections": done,
        "seconds": elapsed.as_secs_f64(),
        "connections_per_s": done as f64 / elapsed.as_secs_f64(),
        "kinds": all.kinds,
        "errors": all.errors,
        "first_error": all.first_error,
        "micros": percentiles(&all.micros),
    });
    println!("{line}");
    is_pure
}

/// The figures of a sorted list that reports give.
pub fn percentiles(sorted: &[u64]) -> serde_json::Value {
    let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)));
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": sorted.last() })
}
