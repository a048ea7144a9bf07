//! `trunkline load`: a load generator on the same ring and record layer as the proxy it measures.
//!
//! Owns its own loop over [`crate::ring`], [`crate::tls`] and [`crate::mmtp`], and is no role of the worker, on purpose:
//! what it measures is what the contract of roles hides (when a connect ended, which kind a handshake was, why it failed,
//! tickets, early data), the server would carry all that for nothing; and a tool that measures should not change whenever
//! the engine that is measured does. Never decides what is printed.
//! Invariant: a request that was begun ends as an answer or as an error, and both are counted.
//!
//! ```text
//! schedule -> engine (seats, links, speech) -> driver (ring) -> tally -> report
//! ```
//!
//! Latency is to the last byte of an answer: from the moment a request is handed to the kernel in a closed loop, and
//! from the moment it was meant to start in an open one, so that whoever had to wait is told. The first request of a
//! visit counts from the start of connecting.

mod driver;
mod engine;
mod lane;
mod link;
mod mix;
mod plan;
mod report;
mod request;
mod schedule;
mod speech;
mod tally;
mod target;

pub use mix::{Mix, MixError};
pub use plan::{Loop, Mode, Plan, PlanError, TlsPlan};
pub use report::{Asked, Report};
pub use request::{BODY_BYTES_MAX, Recipe, RecipeError};
pub use tally::{Fault, FaultCount, HandshakeKind, Held, Tally, Times};
pub use target::{Scheme, Target, TargetError};

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::time::Time;
use crate::ring::{RingError, ask_for_short_turns};
use driver::{Driver, Progress};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How often the end of the workers is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How exact the kernel's timers are for a worker, in nanoseconds: an open loop is to start when it should.
const TIMER_SLACK_NANOS: NonZeroU64 = NonZeroU64::MIN;

/// Why nothing could be measured.
#[derive(Debug)]
pub enum LoadError {
    /// The ring was refused or broke.
    Ring(RingError),
    /// A worker cannot be kept on this core.
    Pin(usize),
    /// No thread is to be had.
    Thread(std::io::Error),
    /// Another worker could not be started.
    Abandoned,
    /// A worker panicked: a bug.
    Panicked,
}

impl fmt::Display for LoadError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Ring(error) => error.fmt(out),
            LoadError::Pin(core) => write!(out, "--cores: a worker cannot be kept on core {core}"),
            LoadError::Thread(error) => write!(out, "no thread is to be had: {error}"),
            LoadError::Abandoned => out.write_str("another worker could not be started"),
            LoadError::Panicked => out.write_str("a worker panicked, which is a bug; its message is above"),
        }
    }
}

impl std::error::Error for LoadError {}

/// How a run stands, for whoever watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Since all workers began.
    pub elapsed: Duration,
    /// Good answers so far.
    pub requests: u64,
    /// Errors so far.
    pub faults: u64,
    /// Bytes received so far.
    pub bytes_received: u64,
    /// Connections there are.
    pub connections: u64,
    /// Connections that are held, told once: when each was opened or has failed.
    pub held: Option<u64>,
}

/// Carries a plan out, and returns when it is over, or soon after `stop` was set. `watch` is told how it stands each
/// second, and once when all connections that can be held are.
///
/// # Errors
/// Nothing could be measured.
pub fn run(plan: Arc<Plan>, stop: &AtomicBool, watch: impl FnMut(Standing)) -> Result<Report, LoadError> {
    let workers = plan.workers();
    let origin = Instant::now();
    let progress: Vec<Progress> = (0..workers).map(|_| Progress::default()).collect();
    let tallies = thread::scope(|scope| {
        let (ready, readies) = mpsc::channel();
        let mut threads = Vec::new();
        for (worker, progress) in progress.iter().enumerate() {
            let (start, started) = mpsc::channel();
            let (plan, ready) = (plan.clone(), Ready(ready.clone()));
            let work = move || work(plan, worker, origin, ready, &started, progress, stop);
            let thread = thread::Builder::new().name(format!("load-{worker}")).spawn_scoped(scope, work);
            // On an error, those that were spawned find that nobody will tell them to start, and end.
            threads.push((thread.map_err(LoadError::Thread)?, start));
        }
        for _ in &threads {
            let _ = readies.recv(); // each tells once, even if it fails
        }
        let now = Time::from_nanos(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        for (_, start) in &threads {
            let _ = start.send(now); // one that failed to prepare has gone
        }
        watch_over(&progress, origin, || threads.iter().all(|(thread, _)| thread.is_finished()), watch);
        let join = |(thread, _): (Worker<'_>, mpsc::Sender<Time>)| thread.join().unwrap_or(Err(LoadError::Panicked));
        threads.into_iter().map(join).collect::<Result<Vec<Tally>, LoadError>>()
    })?;
    let mut whole = Tally::default();
    tallies.iter().for_each(|tally| whole.merge(tally));
    Ok(Report { asked: plan.asked(), tally: whole })
}

type Worker<'s> = thread::ScopedJoinHandle<'s, Result<Tally, LoadError>>;

/// Tells, when it is dropped, that a worker is prepared or will never be.
struct Ready(mpsc::Sender<()>);

impl Drop for Ready {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

fn work(
    plan: Arc<Plan>,
    worker: usize,
    origin: Instant,
    ready: Ready,
    started: &mpsc::Receiver<Time>,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<Tally, LoadError> {
    let driver = prepare(plan, worker, origin, progress, stop)?;
    drop(ready);
    // All begin at one time, so that their parts of a schedule fit together.
    let now = started.recv().map_err(|_| LoadError::Abandoned)?;
    driver.run(worker, now).map_err(LoadError::Ring)
}

fn prepare<'r>(
    plan: Arc<Plan>,
    worker: usize,
    origin: Instant,
    progress: &'r Progress,
    stop: &'r AtomicBool,
) -> Result<Driver<'r>, LoadError> {
    if let Some(&core) = plan.cores.get(worker)
        && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
    {
        return Err(LoadError::Pin(core));
    }
    // Failing to set these makes starts less exact, which late starts would tell; and who waits long for a turn of its own
    // takes that for the server's time.
    let _ = ask_for_short_turns();
    let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NANOS));
    // The standard library's own source of random keys.
    let seed = RandomState::new().build_hasher().finish();
    let mut driver = Driver::new(plan, worker, seed, origin, progress, stop).map_err(LoadError::Ring)?;
    driver.prepare().map_err(LoadError::Ring)?;
    Ok(driver)
}

/// Tells how it stands until the workers have ended.
fn watch_over(progress: &[Progress], origin: Instant, is_over: impl Fn() -> bool, mut watch: impl FnMut(Standing)) {
    let (mut told_at, mut has_told_held) = (Instant::now(), false);
    while !is_over() {
        thread::sleep(POLL_INTERVAL);
        let sum = |figure: fn(&Progress) -> &std::sync::atomic::AtomicU64| {
            progress.iter().map(|each| figure(each).load(Ordering::Relaxed)).sum()
        };
        let held = if has_told_held { None } else { held(progress) };
        if told_at.elapsed() < PROGRESS_INTERVAL && held.is_none() {
            continue;
        }
        has_told_held |= held.is_some();
        told_at = Instant::now();
        watch(Standing {
            elapsed: origin.elapsed(),
            requests: sum(|each| &each.requests),
            faults: sum(|each| &each.faults),
            bytes_received: sum(|each| &each.bytes_received),
            connections: sum(|each| &each.connections),
            held,
        });
    }
}

/// Connections that all workers hold together, once none of them is opening any. A worker may hold none.
fn held(progress: &[Progress]) -> Option<u64> {
    let is_settled = progress.iter().all(|each| each.is_settled.load(Ordering::Acquire));
    is_settled.then(|| progress.iter().map(|each| each.held.load(Ordering::Relaxed)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_holds_none_keeps_the_others_from_nothing() {
        let progress = [Progress::default(), Progress::default()];
        progress[0].held.store(3, Ordering::Relaxed);
        progress[0].is_settled.store(true, Ordering::Release);
        assert_eq!(held(&progress), None, "the second one still opens");
        progress[1].is_settled.store(true, Ordering::Release);
        assert_eq!(held(&progress), Some(3));
        let mut told = Vec::new();
        let told_count = std::cell::Cell::new(0);
        let watch = |standing: Standing| {
            told_count.set(told_count.get() + 1);
            told.push(standing.held);
        };
        watch_over(&progress, Instant::now(), || told_count.get() > 0, watch);
        assert_eq!(told, [Some(3)]);
    }
}
