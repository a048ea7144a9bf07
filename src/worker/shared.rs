//! What the workers and the slow thread share: the complete list.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use crate::base::counters::Published;
use crate::base::wire::LogLine;
use crate::ring::{Fd, Waker};
use crate::tickets::{Group, Store};
use crate::tls::{ClientSettings, ServerSettings};

/// Commands that may wait for one worker.
const COMMANDS_MAX: usize = 4096;

/// Log lines that may wait for the slow thread.
const LOG_LINES_MAX: usize = 16_384;

/// A worker that has this many connections more than the least loaded one gives new ones away. Below that, moving
/// costs more than it evens out.
const IMBALANCE_MIN: u32 = 8;

/// What another thread may ask of a worker.
#[derive(Clone)]
pub enum Command {
    /// Adopt a connection that another worker accepted.
    Adopt {
        /// The connection.
        fd: Fd,
        /// Index of the listener it came from.
        listener: usize,
    },
    /// Use new certificates for new connections.
    Certificates(Arc<TlsSettings>),
    /// Share tickets with these nodes from now on.
    Group(Arc<Group>),
    /// Take nothing new and end what runs within this time; then the worker returns.
    Drain(Duration),
    /// Return now.
    Stop,
}

/// The TLS side of a configuration snapshot, swapped whole.
pub struct TlsSettings {
    /// Per listener. None: it takes plaintext, and what comes is MMTP.
    pub listeners: Vec<Option<ServerSettings>>,
    /// Per gateway: settings and the name its certificate must carry. None: trunks to it are plaintext.
    pub gateways: Vec<Option<(ClientSettings, String)>>,
}

/// What cores share.
pub struct Shared {
    /// Live accepted connections per worker.
    loads: Vec<AtomicU32>,
    /// Commands per worker.
    commands: Vec<ArrayQueue<Command>>,
    /// How to wake each worker, once its ring exists.
    wakers: Vec<OnceLock<Waker>>,
    /// The last counters of each worker.
    pub published: Vec<Published>,
    /// Log lines of all workers, with the worker's index.
    pub logs: ArrayQueue<(usize, LogLine)>,
    /// Tickets, so that each works once whichever worker gets its user. None where nobody comes back.
    pub(super) tickets: Option<Arc<Store>>,
    /// Whom the workers share tickets with at their start.
    pub(super) group: Option<Arc<Group>>,
}

impl Shared {
    /// For so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Shared {
        Shared {
            loads: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            commands: (0..workers).map(|_| ArrayQueue::new(COMMANDS_MAX)).collect(),
            wakers: (0..workers).map(|_| OnceLock::new()).collect(),
            published: (0..workers).map(|_| Published::default()).collect(),
            logs: ArrayQueue::new(LOG_LINES_MAX),
            tickets: None,
            group: None,
        }
    }

    /// With a group that shares tickets. Also needs a store: for when the group's server is away.
    #[must_use]
    pub fn with_group(self, group: Arc<Group>) -> Shared {
        Shared { group: Some(group), ..self }
    }

    /// With a store of tickets.
    #[must_use]
    pub fn with_tickets(self, store: Arc<Store>) -> Shared {
        Shared { tickets: Some(store), ..self }
    }

    /// Makes a worker reachable.
    pub fn register(&self, worker: usize, waker: Waker) {
        let _ = self.wakers[worker].set(waker);
    }

    /// Hands a command to a worker and wakes it.
    ///
    /// # Errors
    /// Gives the command back when the worker's queue is full.
    pub fn send(&self, worker: usize, command: Command) -> Result<(), Command> {
        self.commands[worker].push(command)?;
        if let Some(waker) = self.wakers[worker].get() {
            waker.wake();
        }
        Ok(())
    }

    pub(super) fn take(&self, worker: usize) -> Option<Command> {
        self.commands[worker].pop()
    }

    /// Live connections of a worker, those on their way to it included.
    pub(super) fn load(&self, worker: usize) -> u32 {
        self.loads[worker].load(Ordering::Relaxed)
    }

    /// Counts a connection for a worker: before it is handed over, so that a burst spreads before its adopters wake.
    pub(super) fn add_load(&self, worker: usize) {
        self.loads[worker].fetch_add(1, Ordering::Relaxed);
    }

    /// Uncounts a connection that is gone, or whose hand-over failed.
    pub(super) fn drop_load(&self, worker: usize) {
        self.loads[worker].fetch_sub(1, Ordering::Relaxed);
    }

    /// The least loaded worker, if `worker` has clearly more than it: an eighth more, and [`IMBALANCE_MIN`] at least.
    pub(super) fn better_worker(&self, worker: usize) -> Option<usize> {
        if self.loads.len() < 2 {
            return None;
        }
        let (least, least_load) =
            (0..self.loads.len()).map(|other| (other, self.load(other))).min_by_key(|(_, load)| *load)?;
        let margin = IMBALANCE_MIN.max(least_load / 8);
        (least != worker && self.load(worker) > least_load.saturating_add(margin)).then_some(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_imbalance_moves_a_connection() {
        let shared = Shared::new(3);
        for (worker, load) in [(0, 20), (1, 15), (2, 13)] {
            (0..load).for_each(|_| shared.add_load(worker));
        }
        assert_eq!(shared.better_worker(0), None);
        shared.add_load(0);
        shared.add_load(0);
        assert_eq!(shared.better_worker(0), Some(2));
        assert_eq!(shared.better_worker(2), None);
        shared.drop_load(0);
        assert_eq!(shared.better_worker(0), None);
        assert_eq!(Shared::new(1).better_worker(0), None);
    }

    #[test]
    fn a_full_queue_gives_the_command_back() {
        let shared = Shared::new(1);
        for _ in 0..COMMANDS_MAX {
            assert!(shared.send(0, Command::Stop).is_ok());
        }
        assert!(shared.send(0, Command::Stop).is_err());
    }
}
