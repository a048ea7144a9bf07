//! The worker threads of a process: started together, pinned, told to drain, joined.
//!
//! Owns the threads. Never touches what they work on: everything goes through [`Shared`].

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::base::prng::Prng;
use crate::base::wire::Role;
use crate::ring::{
    BindError, Errno, FastOpen, ListenerSettings, RingError, RingSettings, Uring, ask_for_short_turns, listen,
};
use crate::worker::{Command, Links, ListenerPlan, Shared, Worker, WorkerSettings};

/// One address to listen on, by every worker.
#[derive(Clone, Copy, Debug)]
pub struct ListenPlan {
    /// Address and port; port 0 lets the kernel choose one, the same for all workers.
    pub address: SocketAddr,
    /// Connections the kernel may queue per worker before they are accepted.
    pub backlog: u32,
    /// Whether connections begin with a PROXY protocol v2 header.
    pub proxy_protocol: bool,
    /// Connections that may wait with data that came in their SYN, per worker; 0: TCP Fast Open is off.
    pub fast_open: u32,
}

/// What all workers of a process have in common.
#[derive(Clone)]
pub struct WorkersPlan {
    /// One worker each: the core it is pinned to, or none.
    pub cores: Vec<Option<usize>>,
    /// Addresses; the index of each is the listener's index for roles and TLS.
    pub listen: Vec<ListenPlan>,
    /// Keys of TCP Fast Open, as [`FastOpen::set_keys`] takes them; empty: the kernel's own.
    pub fast_open_keys: Vec<u8>,
    /// Size of the rings.
    pub ring: RingSettings,
    /// What every worker is told; its index and its listeners are filled in.
    pub worker: WorkerSettings,
}

/// After how long unacknowledged data ends a connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why workers could not be started, or did not end well.
#[derive(Debug)]
pub enum WorkersError {
    /// An address could not be listened on; the index is that of the plan.
    Bind(usize, BindError),
    /// The kernel refused a ring, or broke one.
    Ring(RingError),
    /// The core cannot be pinned to.
    Pin(usize),
    /// A thread could not be started.
    Spawn(std::io::Error),
    /// A worker panicked: a bug of ours.
    Panicked(usize),
}

impl std::fmt::Display for WorkersError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WorkersError::Bind(_, error) => error.fmt(out),
            WorkersError::Ring(error) => error.fmt(out),
            WorkersError::Pin(core) => write!(
                out,
                "cannot pin a worker to core {core}: this process may not use it; choose among those that `taskset -p $$` \
                 or the service's CPUAffinity allow"
            ),
            WorkersError::Spawn(error) => write!(out, "cannot start a thread: {error}; raise the limit on tasks"),
            WorkersError::Panicked(worker) => {
                write!(
                    out,
                    "worker {worker} panicked: a bug in Trunkline; the message above says where, please report it"
                )
            }
        }
    }
}

impl std::error::Error for WorkersError {}

/// Running worker threads.
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<(), RingError>>>,
    addresses: Vec<SocketAddr>,
    /// Of every listener that has it; empty once workers were told to take nothing new.
    fast_open: Mutex<Vec<FastOpen>>,
}

/// A generator seeded from the system's randomness.
#[must_use]
pub fn random_prng() -> Prng {
    Prng::new(std::hash::RandomState::new().build_hasher().finish())
}

impl Workers {
    /// Starts a worker per core. `make_role` is called on each worker's thread with the worker's index. Returns when
    /// all of them listen.
    ///
    /// # Errors
    /// The first thing that went wrong; whatever had been started has ended by then.
    pub fn start<L, M>(plan: &WorkersPlan, shared: Arc<Shared>, make_role: M) -> Result<Workers, WorkersError>
    where
        L: Role<Links>,
        M: Fn(usize) -> L + Send + Sync + 'static,
    {
        let Opened { addresses, listeners, fast_open } = open_listeners(plan)?;
        let mut workers = Workers { shared, threads: Vec::new(), addresses, fast_open: Mutex::new(fast_open) };
        let (ready, started) = mpsc::channel();
        let (origin, make_role) = (Instant::now(), Arc::new(make_role));
        for (index, (core, listeners)) in plan.cores.iter().copied().zip(listeners).enumerate() {
            let settings = WorkerSettings { index, listeners, ..plan.worker.clone() };
            let (shared, make_role, ready, ring) =
                (workers.shared.clone(), make_role.clone(), ready.clone(), plan.ring);
            let run = move || work(settings, core, &ring, origin, shared, make_role.as_ref(), &ready);
            match std::thread::Builder::new().name(format!("worker-{index}")).spawn(run) {
                Ok(thread) => workers.threads.push(thread),
                Err(error) => return Err(workers.give_up(WorkersError::Spawn(error))),
            }
        }
        drop(ready);
        for _ in 0..workers.threads.len() {
            match started.recv() {
                Ok(None) => {}
                Ok(Some(error)) => return Err(workers.give_up(error)),
                Err(_) => return Err(workers.give_up(WorkersError::Panicked(0))),
            }
        }
        Ok(workers)
    }

    fn give_up(mut self, error: WorkersError) -> WorkersError {
        self.tell(&Command::Stop);
        let _ = self.join();
        error
    }

    /// The addresses that are listened on, in the order of the plan.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Replaces the keys of TCP Fast Open of every listener.
    ///
    /// # Errors
    /// Those of [`FastOpen::set_keys`]; the first one ends it.
    pub fn set_fast_open_keys(&self, keys: &[u8]) -> Result<(), Errno> {
        let listeners = self.fast_open.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().try_for_each(|listener| listener.set_keys(keys))
    }

    /// Sends a command to every worker.
    pub fn tell(&self, command: &Command) {
        if matches!(command, Command::Drain(_) | Command::Stop) {
            // These are descriptors of the listeners too: a worker that closes its own would still be connected to.
            self.fast_open.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        for worker in 0..self.threads.len() {
            // A worker whose queue is full is stuck, which the admin address tells.
            let _ = self.shared.send(worker, command.clone());
        }
    }

    /// Whether every worker has ended.
    #[must_use]
    pub fn are_done(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Whether any worker has ended, which before a drain means that it failed.
    #[must_use]
    pub fn has_ended_one(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits for every worker to end.
    ///
    /// # Errors
    /// How the first of those that failed did.
    pub fn join(&mut self) -> Result<(), WorkersError> {
        let mut result = Ok(());
        for (index, thread) in self.threads.drain(..).enumerate() {
            let ended = match thread.join() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(WorkersError::Ring(error)),
                Err(_) => Err(WorkersError::Panicked(index)),
            };
            result = result.and(ended);
        }
        result
    }
}

/// The sockets of all workers.
struct Opened {
    /// Of the first worker's sockets, which decide what port 0 means.
    addresses: Vec<SocketAddr>,
    /// Per worker.
    listeners: Vec<Vec<ListenerPlan>>,
    fast_open: Vec<FastOpen>,
}

/// Opens every address once per worker.
fn open_listeners(plan: &WorkersPlan) -> Result<Opened, WorkersError> {
    let addresses = plan.listen.iter().map(|listen| listen.address).collect();
    let mut opened = Opened { addresses, listeners: Vec::new(), fast_open: Vec::new() };
    for _ in &plan.cores {
        let mut listeners = Vec::new();
        for (index, each) in plan.listen.iter().enumerate() {
            let settings = ListenerSettings {
                address: opened.addresses[index],
                backlog: i32::try_from(each.backlog).unwrap_or(i32::MAX),
                user_timeout: USER_TIMEOUT,
                fast_open: each.fast_open,
                fast_open_keys: &plan.fast_open_keys,
            };
            let listener = listen(&settings).map_err(|error| WorkersError::Bind(index, error))?;
            opened.addresses[index] = listener.address;
            opened.fast_open.extend(listener.fast_open);
            listeners.push(ListenerPlan { fd: listener.fd, proxy_protocol: each.proxy_protocol });
        }
        opened.listeners.push(listeners);
    }
    Ok(opened)
}

/// A worker thread from beginning to end.
fn work<L: Role<Links>>(
    settings: WorkerSettings,
    core: Option<usize>,
    ring: &RingSettings,
    origin: Instant,
    shared: Arc<Shared>,
    make_role: &dyn Fn(usize) -> L,
    ready: &mpsc::Sender<Option<WorkersError>>,
) -> Result<(), RingError> {
    let index = settings.index;
    if let Some(core) = core
        && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
    {
        let _ = ready.send(Some(WorkersError::Pin(core)));
        return Ok(());
    }
    // Without it the worker only waits longer where others share its core.
    let _ = ask_for_short_turns();
    let ring = match Uring::new(ring, origin) {
        Ok(ring) => ring,
        Err(error) => {
            let _ = ready.send(Some(WorkersError::Ring(error)));
            return Ok(());
        }
    };
    shared.register(index, ring.waker());
    let mut worker = Worker::new(ring, make_role(index), settings, shared);
    let _ = ready.send(None);
    worker.run()
}
