//! New connections one after another, each kind by itself: how many a second, and what they cost the server.

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
use crate::connection::{self, Connection};
use crate::trust::{self, Tickets};

/// For the server to finish with the last connections before its time is read.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// Failures in a row after which a thread gives up.
const FAILURES_MAX: u32 = 50;

/// Which kind is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Full,
    Resumed,
    Early,
}

/// Arguments.
#[derive(Args, Debug)]
pub struct Rounds {
    #[command(flatten)]
    common: Common,
    /// How many connections; with --seconds, at most.
    #[arg(long)]
    connections: Option<u64>,
    /// How long.
    #[arg(long)]
    seconds: Option<f64>,
    /// Users per thread that return in turn; each comes once before measuring begins.
    #[arg(long, default_value_t = 50)]
    users: usize,
    /// After the users' first visits, print a line and wait for one on standard input.
    #[arg(long)]
    wait: bool,
    /// Process (or worker of it) whose CPU time is told per connection.
    #[arg(long)]
    pid: Option<u32>,
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
    pub fn run(&self, kind: Kind) -> io::Result<bool> {
        let users: Vec<Arc<ClientConfig>> =
            (0..self.common.threads).map(|_| self.prime(kind)).collect::<io::Result<_>>()?;
        if self.wait {
            println!("{}", json!({ "label": self.common.label, "kind": "primed" }));
            io::stdout().flush()?;
            io::stdin().read_line(&mut String::new())?;
        }
        thread::sleep(SETTLE_TIME);
        let left = AtomicU64::new(self.connections.unwrap_or(u64::MAX));
        let seconds = self.seconds.unwrap_or(if self.connections.is_some() { 3600.0 } else { 5.0 });
        let (began, cpu_before) = (Instant::now(), self.cpu_seconds()?);
        let until = began + Duration::from_secs_f64(seconds);
        let tallies: Vec<Tally> = thread::scope(|scope| {
            let spawn = |config: &Arc<ClientConfig>| {
                let (config, left) = (Arc::clone(config), &left);
                scope.spawn(move || self.visit_until(&config, left, until))
            };
            let threads: Vec<_> = users.iter().map(spawn).collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
        });
        let elapsed = began.elapsed();
        thread::sleep(SETTLE_TIME);
        let cpu = self.cpu_seconds()? - cpu_before;
        self.report(kind, tallies, elapsed, cpu)
    }

    /// A configuration whose store holds the tickets of as many users as wanted.
    fn prime(&self, kind: Kind) -> io::Result<Arc<ClientConfig>> {
        let base = trust::config(&self.common)?;
        if kind == Kind::Full {
            return Ok(Arc::new(base));
        }
        let tickets = Tickets::default();
        let first = trust::with_store(&base, Arc::new(tickets.filling()), false);
        let mut random = Prng::new(0);
        for _ in 0..self.users {
            self.visit(&first, &mut random)?;
        }
        if tickets.len() < self.users {
            return Err(io::Error::other(format!("{} tickets after {} visits", tickets.len(), self.users)));
        }
        Ok(trust::with_store(&base, Arc::new(tickets), kind == Kind::Early))
    }

    fn visit(&self, config: &Arc<ClientConfig>, random: &mut Prng) -> io::Result<(connection::Kind, Duration)> {
        let (common, began) = (&self.common, Instant::now());
        let name = trust::name(common)?;
        let target = common.target[random.below(common.target.len() as u64) as usize];
        let (connection, kind) = Connection::visit(common, target, Arc::clone(config), name, &common.path)?;
        let elapsed = began.elapsed();
        connection.close()?;
        Ok((kind, elapsed))
    }

    fn visit_until(&self, config: &Arc<ClientConfig>, left: &AtomicU64, until: Instant) -> Tally {
        let mut tally = Tally::default();
        let mut failures = 0;
        let mut random = Prng::new(left.load(Ordering::Relaxed));
        while Instant::now() < until && failures < FAILURES_MAX {
            if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
                break;
            }
            match self.visit(config, &mut random) {
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

    fn report(&self, kind: Kind, tallies: Vec<Tally>, elapsed: Duration, cpu: f64) -> io::Result<bool> {
        let mut all = Tally::default();
        for tally in tallies {
            all.micros.extend(tally.micros);
            tally.kinds.iter().for_each(|(name, count)| *all.kinds.entry(name).or_default() += count);
            all.errors += tally.errors;
            all.first_error = all.first_error.or(tally.first_error);
        }
        all.micros.sort_unstable();
        let done = all.micros.len() as u64;
        let wanted = match kind {
            Kind::Full => connection::Kind::Full,
            Kind::Resumed => connection::Kind::Resumed,
            Kind::Early => connection::Kind::Early,
        };
        let is_pure = done > 0 && all.errors == 0 && all.kinds.get(wanted.name()) == Some(&done);
        let line = json!({
            "label": self.common.label,
            "kind": wanted.name(),
            "connections": done,
            "seconds": elapsed.as_secs_f64(),
            "connections_per_s": done as f64 / elapsed.as_secs_f64(),
            "server_cpu_micros": self.pid.map(|_| cpu * 1e6 / done.max(1) as f64),
            "kinds": all.kinds,
            "errors": all.errors,
            "first_error": all.first_error,
            "micros": percentiles(&all.micros),
        });
        println!("{line}");
        Ok(is_pure)
    }

    /// User and system time of the server's process so far.
    fn cpu_seconds(&self) -> io::Result<f64> {
        let Some(pid) = self.pid else { return Ok(0.0) };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may hold blanks and brackets; numbers begin behind the last one.
        let numbers = stat.rsplit_once(')').map_or("", |(_, numbers)| numbers);
        let ticks: u64 =
            numbers.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

/// The figures of a sorted list that reports give.
pub fn percentiles(sorted: &[u64]) -> serde_json::Value {
    let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)));
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": sorted.last() })
}
