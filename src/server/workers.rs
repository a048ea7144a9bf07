//! The worker threads of a process: started together, pinned, told to drain, joined.
//!
//! Owns the threads. Never touches what they work on: everything goes through [`Shared`].

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::base::prng::Prng;
use crate::base::wire::Role;
use crate::ring::{BindError, ListenerSettings, RingError, RingSettings, Uring, listen};
use crate::worker::{Command, Links, ListenerPlan, Shared, TlsSettings, Worker, WorkerSettings};

/// One address to listen on, by every worker.
#[derive(Clone, Copy, Debug)]
pub struct ListenPlan {
    /// Address and port; port 0 lets the kernel choose one, the same for all workers.
    pub address: SocketAddr,
    /// Connections the kernel may queue per worker before they are accepted.
    pub backlog: u32,
    /// Whether connections begin with a PROXY protocol v2 header.
    pub proxy_protocol: bool,
}

/// What all workers of a process have in common.
#[derive(Clone)]
pub struct WorkersPlan {
    /// One worker each: the core it is pinned to, or none.
    pub cores: Vec<Option<usize>>,
    /// Addresses; the index of each is the listener's index for roles and [`TlsSettings`].
    pub listen: Vec<ListenPlan>,
    /// TLS of listeners and gateways.
    pub tls: Arc<TlsSettings>,
    /// Size of the rings.
    pub ring: RingSettings,
    /// Most accepted connections per worker.
    pub accepted_max: usize,
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// Percent of a busy core that handshakes may take.
    pub handshake_share: u32,
    /// A ClientHello that waited longer for its answer is dropped.
    pub handshake_patience: Duration,
    /// Whether those who connect are clients, and not trunks.
    pub serves_clients: bool,
    /// From dial to the end of connect and TLS handshake.
    pub connect_timeout: Duration,
    /// How long an accepted connection may carry nothing.
    pub idle_timeout: Duration,
}

/// How long a closed connection may take to hand over its last bytes and hear the peer's end.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

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
        let (addresses, listeners) = open_listeners(plan)?;
        let mut workers = Workers { shared, threads: Vec::new(), addresses };
        let (ready, started) = mpsc::channel();
        let (origin, make_role) = (Instant::now(), Arc::new(make_role));
        for (index, (core, listeners)) in plan.cores.iter().copied().zip(listeners).enumerate() {
            let settings = WorkerSettings {
                index,
                listeners,
                tls: plan.tls.clone(),
                accepted_max: plan.accepted_max,
                handshake_timeout: plan.handshake_timeout,
                handshake_share: plan.handshake_share,
                handshake_patience: plan.handshake_patience,
                serves_clients: plan.serves_clients,
                connect_timeout: plan.connect_timeout,
                idle_timeout: plan.idle_timeout,
                linger_timeout: LINGER_TIMEOUT,
            };
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

    /// Sends a command to every worker.
    pub fn tell(&self, command: &Command) {
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

/// Opens every address once per worker. The first worker's sockets decide what port 0 means.
fn open_listeners(plan: &WorkersPlan) -> Result<(Vec<SocketAddr>, Vec<Vec<ListenerPlan>>), WorkersError> {
    let mut addresses: Vec<SocketAddr> = plan.listen.iter().map(|listen| listen.address).collect();
    let mut all = Vec::new();
    for _ in &plan.cores {
        let mut listeners = Vec::new();
        for (index, each) in plan.listen.iter().enumerate() {
            let settings = ListenerSettings {
                address: addresses[index],
                backlog: i32::try_from(each.backlog).unwrap_or(i32::MAX),
                user_timeout: USER_TIMEOUT,
            };
            let listener = listen(&settings).map_err(|error| WorkersError::Bind(index, error))?;
            addresses[index] = listener.address;
            listeners.push(ListenerPlan { fd: listener.fd, proxy_protocol: each.proxy_protocol });
        }
        all.push(listeners);
    }
    Ok((addresses, all))
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
