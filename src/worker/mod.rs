//! The loop of one core: reap, feed, drain, submit once. Here kernel and pure parts meet, and only here.
//!
//! Owns the ring and the links of its core; carries bytes between ring, TLS and the role. Never blocks but in
//! [`Ring::wait`], never looks into a payload, and never touches another worker's memory.
//!
//! What cores share, completely ([`Shared`]): the number of live connections of each (to balance accepts), a queue of
//! commands to each (adopted connections, new certificates, a new group, drain and stop), how to wake each, the counters
//! that each publishes, the queue of log lines to the slow thread, the store of tickets, and the group whose server has more.

mod admission;
mod engine;
mod group;
mod links;
mod meter;
mod shared;
mod sizing;
mod socket;

pub use links::Links;
pub use shared::{Command, Shared, TlsSettings};
pub use socket::SendLane;

use std::sync::Arc;
use std::time::Duration;

use self::admission::{Accepting, GAP, SLICE, Spent};
use self::engine::Engine;
use self::group::Member;
use self::links::Request;
use self::meter::{Mark, Meter};
use self::socket::{Ending, Phase, Receiving, Stillness};
use crate::base::counters::Counters;
use crate::base::slab::Key;
use crate::base::time::Time;
use crate::base::wire::{CloseReason, LinkId, LogLine, Role, Wire};
use crate::ring::{Completion, Errno, Fd, Outcome, Ring, RingError, Token};

/// How often the counters are published while there is nothing else to do.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(200);

/// How often the account of handshakes is brought up to date while none waits.
const ACCOUNT_INTERVAL: Duration = Duration::from_millis(2);

/// After a failed accept for want of descriptors or memory, the listener rests this long.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// A sweep over all links takes this many intervals of publishing: 5 seconds. A link that two sweeps in a row find still is
/// put to rest, after 5 to 10 seconds: longer than a user looks at one page of a list, shorter than a phone keeps its
/// radio up for nothing. No link needs a timer for it.
const SWEEP_STEPS: usize = 25;

/// A worker with fewer passes than this between two steps of the sweep has nothing to do.
const QUIET_PASSES: u64 = 100;

/// What a stopping worker grants the kernel for handing back what was lent.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// What a worker needs to know.
#[derive(Clone)]
pub struct WorkerSettings {
    /// Its index among the workers of the process.
    pub index: usize,
    /// Its own listening sockets, in the order of the configuration.
    pub listeners: Vec<ListenerPlan>,
    /// TLS of listeners and gateways.
    pub tls: Arc<TlsSettings>,
    /// Most accepted connections at a time; more are closed at once.
    pub accepted_max: usize,
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// Percent of a busy core that handshakes may take, 1 to 90. An idle core is theirs.
    pub handshake_share: u32,
    /// A ClientHello that could not be answered for this long is dropped: its client has most likely given up.
    pub handshake_patience: Duration,
    /// Whether those who connect are clients, behind networks of their own, and not trunks: for them the size of
    /// records follows the connection.
    pub serves_clients: bool,
    /// From dial to the end of connect and TLS handshake.
    pub connect_timeout: Duration,
    /// An accepted connection on which nothing moves is closed after this.
    pub idle_timeout: Duration,
    /// How long a closed connection that has handed over its last bytes waits for the peer's end.
    pub linger_timeout: Duration,
}

/// One listening socket of a worker.
#[derive(Clone, Copy, Debug)]
pub struct ListenerPlan {
    /// The socket.
    pub fd: Fd,
    /// Whether every connection starts with a PROXY protocol v2 header.
    pub proxy_protocol: bool,
}

/// A listener and the state of its accept operation.
struct Listener {
    fd: Option<Fd>,
    armed: bool,
    /// When to arm again after accepting failed.
    rest_until: Option<Time>,
}

/// One core's loop.
pub struct Worker<R: Ring, L: Role<Links>> {
    ring: R,
    engine: Engine<L>,
    listeners: Vec<Listener>,
    completions: Vec<Completion<R::Lease>>,
    starved: Vec<LinkId>,
    /// Scratch: the dirty list of the pass that is being flushed.
    flushing: Vec<LinkId>,
    accepting: Accepting,
    /// A connection was accepted since the last look at how to accept.
    accepted_one: bool,
    /// Passes when the last step of the sweep was made.
    swept_passes: u64,
    /// How many links had been put to rest when memory was last given back.
    returned_rests: u64,
    meter: Meter,
    /// When the account of handshakes was last brought up to date.
    accounted: Mark,
    /// The next step of the sweep for still links, below [`SWEEP_STEPS`].
    sweep_step: usize,
    published_at: Time,
    /// Some once draining: when patience ends.
    drain_until: Option<Time>,
    /// Some once everything left was cut: until when the kernel may hand back what was lent.
    cut_until: Option<Time>,
}

impl<R: Ring, L: Role<Links>> Worker<R, L> {
    /// A worker that accepts at once. `ring` must have been made on this thread.
    pub fn new(ring: R, role: L, settings: WorkerSettings, shared: Arc<Shared>) -> Worker<R, L> {
        let listeners = settings
            .listeners
            .iter()
            .map(|plan| Listener { fd: Some(plan.fd), armed: false, rest_until: None })
            .collect();
        let published_at = ring.now();
        let mut worker = Worker {
            ring,
            engine: Engine::new(role, settings, shared),
            listeners,
            completions: Vec::new(),
            starved: Vec::new(),
            flushing: Vec::new(),
            accepting: Accepting::All,
            accepted_one: false,
            swept_passes: 0,
            returned_rests: 0,
            meter: Meter::default(),
            accounted: Mark::default(),
            sweep_step: 0,
            published_at,
            drain_until: None,
            cut_until: None,
        };
        worker.arm_listeners();
        worker
    }

    /// The role, to look at.
    pub fn role(&self) -> &L {
        &self.engine.role
    }

    /// The links, to look at: counters and what is open.
    pub fn links(&self) -> &Links {
        &self.engine.links
    }

    /// The figures as they stand now; [`Shared::published`] lags behind.
    pub fn counters(&self) -> &Counters {
        &self.engine.links.counters
    }

    /// The ring. Simulations move their network through it.
    pub fn ring(&mut self) -> &mut R {
        &mut self.ring
    }

    /// Runs until told to stop or drained.
    ///
    /// # Errors
    /// When the ring breaks.
    pub fn run(&mut self) -> Result<(), RingError> {
        while self.pass()? {}
        self.publish();
        Ok(())
    }

    /// One pass: waits for something to happen, handles all of it, submits once at the next call. False when the worker is
    /// done.
    ///
    /// # Errors
    /// When the ring breaks.
    pub fn pass(&mut self) -> Result<bool, RingError> {
        self.gate();
        self.arm_listeners();
        let waits = !self.engine.queue.is_empty();
        let is_metered = waits || self.engine.budget.is_low();
        // The end of a pass that was accounted for is the beginning of this one: only listeners were seen to between them.
        let begun = || if self.meter.is_on() { self.accounted } else { mark(&self.ring) };
        self.meter.begin(is_metered.then(begun));
        let until = self.next_deadline();
        let mut completions = std::mem::take(&mut self.completions);
        let patience = self.engine.role.patience(self.ring.now());
        self.ring.wait(Some(until), patience, &mut completions)?;
        let now = self.ring.now();
        (self.engine.now, self.engine.links.now) = (now, now);
        if self.meter.is_on() {
            self.meter.waited(mark(&self.ring));
            completions.drain(..).for_each(|completion| self.complete_metered(completion));
        } else {
            completions.drain(..).for_each(|completion| self.complete(completion));
        }
        self.completions = completions;
        self.engine.expire();
        if self.engine.role.next_deadline().is_some_and(|at| at <= now) {
            self.engine.role.due(now, &mut self.engine.links);
        }
        self.engine.tick_group();
        self.engine.drop_late();
        if !self.engine.queue.is_empty() {
            self.admit()?;
        }
        let is_tick = now.since(self.published_at) >= PUBLISH_INTERVAL;
        if is_tick {
            self.engine.links.touch_patient();
        }
        self.engine.role.pass_ended(now, &mut self.engine.links);
        self.engine.links.touch_later_due();
        self.carry_out();
        self.flush();
        if self.drain_until.is_some() && self.engine.has_group_alone() {
            drop(self.engine.leave_group());
        }
        self.bury();
        self.feed_starved();
        self.engine.links.counters.passes += 1;
        let calls = self.ring.calls();
        let counters = &mut self.engine.links.counters;
        (counters.calls_enter, counters.calls_other) = (calls.enters, calls.others);
        if is_tick {
            self.sweep();
            self.publish();
        }
        self.settle_account(waits);
        Ok(!self.is_over(now))
    }

    fn next_deadline(&self) -> Time {
        let mut until = self.published_at + PUBLISH_INTERVAL;
        let rests = self.listeners.iter().filter_map(|listener| listener.rest_until);
        let others = [
            self.engine.role.next_deadline(),
            self.engine.timers.next(),
            self.engine.links.later_due(),
            self.engine.member.as_ref().and_then(Member::due),
            self.cut_until.or(self.drain_until),
        ];
        for at in others.into_iter().flatten().chain(rests) {
            until = until.min(at);
        }
        if self.engine.queue.is_empty() {
            return until;
        }
        // Handshakes wait: for their turn, which comes now, or else when there is nothing other to do.
        let turn = if self.engine.budget.allows() { self.ring.now() } else { self.meter.busy_at() + GAP };
        until.min(turn)
    }

    /// Writes the counters down for the admin thread.
    fn publish(&mut self) {
        self.published_at = self.ring.now();
        let lent = self.ring.buffers_total() - self.ring.buffers_free();
        let counters = &mut self.engine.links.counters;
        counters.buffers_lent = lent as u64;
        counters.handshakes_waiting = self.engine.queue.len() as u64;
        self.engine.shared.published[self.engine.settings.index].publish(counters);
    }

    /// Looks at a part of all links for those on which nothing moves any more, and puts them to rest.
    fn sweep(&mut self) {
        let slab = &mut self.engine.links.slab;
        let slots = slab.slot_count();
        let part = |step: usize| slots * step / SWEEP_STEPS;
        for slot in part(self.sweep_step)..part(self.sweep_step + 1) {
            let key = slab.key_at(slot as u32);
            if let Some(link) = key.and_then(|key| slab.get_mut(key))
                && link.swept()
            {
                link.rest();
                self.engine.links.counters.links_rested += 1;
            }
        }
        self.sweep_step = (self.sweep_step + 1) % SWEEP_STEPS;
        let counters = &self.engine.links.counters;
        let is_quiet = counters.passes - self.swept_passes < QUIET_PASSES;
        self.swept_passes = counters.passes;
        if is_quiet && self.returned_rests != counters.links_rested {
            self.returned_rests = counters.links_rested;
            self.ring.return_memory();
        }
        // One worker's clock is enough for what all of them share.
        if let (0, Some(store)) = (self.engine.settings.index, &self.engine.shared.tickets) {
            store.tidy(self.engine.now);
        }
    }

    // ---- handshakes beside other work ----

    /// Decides whether to accept: what is accepted has to be read and, if it cannot be answered, to be closed again, which
    /// the kernel spares us by holding connections off.
    fn gate(&mut self) {
        let held = self.engine.queue.len();
        if held == 0 && self.accepting == Accepting::All {
            return;
        }
        let bound = self.engine.budget.accept_bound(self.engine.settings.handshake_patience);
        let accepted = std::mem::take(&mut self.accepted_one);
        let next = self.accepting.next(held, bound, accepted);
        if next == Accepting::None && self.accepting != next {
            self.engine.links.counters.accepts_held_off += 1;
            for (index, _) in self.listeners.iter().enumerate().filter(|(_, listener)| listener.armed) {
                self.ring.stop_accepting(listener_key(index));
            }
        }
        self.accepting = next;
    }

    /// Answers ClientHellos for as long as their budget allows, and at least one if there is nothing else to do.
    fn admit(&mut self) -> Result<(), RingError> {
        if self.meter.is_on() && self.meter.quiet() >= GAP {
            self.engine.budget.forgive();
        }
        if !self.engine.budget.allows() {
            return Ok(());
        }
        if !self.engine.links.dirty.is_empty() || !self.engine.links.requests.is_empty() {
            // What others have done in this pass must not wait for handshakes, which take as long as dozens of requests:
            // worth a system call of its own.
            self.engine.role.pass_ended(self.engine.now, &mut self.engine.links);
            self.flush();
            self.ring.submit()?;
        }
        let begun = self.ring.clock();
        let mut at = begun;
        while self.engine.budget.allows() && at.since(begun) < SLICE {
            let Some(key) = self.engine.queue.pop(self.engine.now) else { break };
            self.engine.answer(key);
            let ended = self.ring.clock();
            self.engine.budget.charge(ended.since(at));
            self.engine.budget.measured(ended.since(at));
            at = ended;
        }
        self.meter.add_setup(at.since(begun));
        Ok(())
    }

    /// Like [`Worker::complete`], with an account of the time that goes into handshakes.
    fn complete_metered(&mut self, completion: Completion<R::Lease>) {
        let is_setup = match completion.outcome {
            Outcome::Accepted { .. } | Outcome::Woken => true,
            _ => self.engine.is_in_setup(completion.token),
        };
        self.meter.saw(is_setup);
        if !is_setup {
            return self.complete(completion);
        }
        let begun = self.ring.clock();
        self.complete(completion);
        let taken = self.ring.clock().since(begun);
        self.meter.add_setup(taken);
        self.engine.budget.charge(taken);
    }

    /// Pays handshakes for what else was done in this pass. `waited`: some waited when it began.
    fn settle_account(&mut self, waited: bool) {
        let budget = &mut self.engine.budget;
        if !self.meter.is_on() {
            // Nobody waits and there is credit: a look now and then is enough, and what handshakes took between two looks
            // may pass for other work.
            if !budget.is_full() && self.ring.now().since(self.accounted.clock) >= ACCOUNT_INTERVAL {
                let ended = mark(&self.ring);
                let total = ended.clock.since(self.accounted.clock);
                let other = ended.worked.saturating_sub(self.accounted.worked);
                budget.earn(Spent { total, other, idle: Duration::ZERO });
                budget.rest(total.saturating_sub(other));
                self.accounted = ended;
            }
            return;
        }
        let ended = mark(&self.ring);
        self.accounted = ended;
        let spent = self.meter.spent(ended, waited);
        budget.charge(self.meter.setup_in_kernel());
        budget.earn(spent);
        if self.engine.queue.is_empty() {
            budget.rest(self.meter.blocked());
        }
    }

    // ---- completions ----

    fn complete(&mut self, completion: Completion<R::Lease>) {
        let Completion { token, outcome } = completion;
        match outcome {
            Outcome::Accepted { result, more } => self.accepted(token.slot() as usize, result, more),
            Outcome::Woken => self.obey(),
            Outcome::Received { result, more } => self.received(token, result, more),
            Outcome::Sent { bytes, result } => self.sent(token, bytes, result),
            Outcome::Connected(result) => self.connected(token, result),
        }
    }

    fn received(&mut self, token: Token, result: Result<Option<R::Lease>, Errno>, more: bool) {
        let Some(key) = self.engine.find(token) else {
            if let Ok(Some(lease)) = result {
                self.ring.give_back(lease);
            }
            return;
        };
        if !more {
            self.engine.links.slab.get_mut(key).expect("just found").receiving = Receiving::Idle;
        }
        match result {
            Ok(Some(mut lease)) => {
                let bytes = self.ring.bytes(&mut lease);
                self.engine.links.counters.receives += 1;
                self.engine.links.counters.bytes_received += bytes.len() as u64;
                self.engine.feed(key, bytes);
                self.ring.give_back(lease);
            }
            Ok(None) => self.engine.peer_cut(key),
            Err(Errno::NO_BUFFERS) => {
                self.engine.links.counters.buffers_exhausted += 1;
                let link = self.engine.links.slab.get_mut(key).expect("just found");
                link.receiving = Receiving::Starved;
                self.starved.push(key);
            }
            Err(Errno::CANCELED) => {}
            Err(errno) => {
                self.engine.links.slab.get_mut(key).expect("just found").receiving = Receiving::Over;
                self.engine.kill(key, CloseReason::Os(errno.0), false);
            }
        }
        self.arm(key);
    }

    fn sent(&mut self, token: Token, bytes: Vec<u8>, result: Result<usize, Errno>) {
        let Some(key) = self.engine.find(token) else { return };
        let links = &mut self.engine.links;
        let link = links.slab.get_mut(key).expect("just found");
        let was_full = link.lane.is_full();
        let out_bytes = std::mem::take(&mut link.lane.in_flight_bytes);
        links.counters.sends += 1;
        match result {
            Ok(taken) if taken >= out_bytes => {
                links.counters.bytes_sent += out_bytes as u64;
                links.keep_spare(bytes);
                links.touch(key);
                self.engine.moved(key, was_full);
            }
            Ok(taken) if taken > 0 && link.phase != Phase::Dying => {
                links.counters.bytes_sent += taken as u64;
                links.counters.sends_short += 1;
                link.lane.in_flight_bytes = out_bytes - taken;
                let from = bytes.len() - (out_bytes - taken);
                let fd = link.fd.expect("a link that sent has a descriptor");
                self.ring.send(fd, key, bytes, from, false);
                // A part can be what brings the lane below its mark; what follows would not be seen to.
                self.engine.moved(key, was_full);
            }
            Ok(_) => self.engine.kill(key, CloseReason::Os(libc::EPIPE), false),
            Err(errno) => self.engine.kill(key, CloseReason::Os(errno.0), false),
        }
    }

    fn connected(&mut self, token: Token, result: Result<(), Errno>) {
        let Some(key) = self.engine.find(token) else { return };
        let link = self.engine.links.slab.get_mut(key).expect("just found");
        link.connect_out = false;
        if link.phase != Phase::Connecting {
            return;
        }
        match result {
            Ok(()) => self.engine.start_dialed(key),
            Err(errno) => self.engine.kill(key, CloseReason::Os(errno.0), false),
        }
        self.arm(key);
    }

    // ---- accepting ----

    fn arm_listeners(&mut self) {
        let now = self.ring.now();
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let rested = listener.rest_until.is_none_or(|until| until <= now);
            if let (Some(fd), false, true) = (listener.fd, listener.armed, rested && self.drain_until.is_none()) {
                listener.rest_until = None;
                match self.accepting {
                    Accepting::All => self.ring.accept(fd, listener_key(index)),
                    Accepting::OneByOne => self.ring.accept_one(fd, listener_key(index)),
                    Accepting::None => continue,
                }
                listener.armed = true;
            }
        }
    }

    fn accepted(&mut self, index: usize, result: Result<Fd, Errno>, more: bool) {
        let draining = self.drain_until.is_some();
        let listener = &mut self.listeners[index];
        listener.armed = more;
        if draining
            && !more
            && let Some(fd) = listener.fd.take()
        {
            self.ring.close(fd, false);
        }
        match result {
            Ok(fd) => {
                self.accepted_one = true;
                self.place(fd, index);
            }
            Err(Errno::CANCELED) => {}
            Err(errno) => {
                self.engine.links.counters.accept_errors += 1;
                // Errors of the connection itself (it was reset meanwhile) need no rest; want of resources does.
                if matches!(errno.0, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) {
                    self.listeners[index].rest_until = Some(self.engine.now + ACCEPT_REST);
                    let code = i64::from(errno.0);
                    let line = LogLine { what: "accept failed", link: None, peer: None, code, detail: "errno" };
                    self.engine.links.log(line);
                }
            }
        }
        if !more {
            self.arm_listeners();
        }
    }

    /// Decides which worker gets a connection.
    fn place(&mut self, fd: Fd, listener: usize) {
        let index = self.engine.settings.index;
        let shared = &self.engine.shared;
        if let Some(better) = shared.better_worker(index) {
            shared.add_load(better);
            match shared.send(better, Command::Adopt { fd, listener }) {
                Ok(()) => {
                    self.engine.links.counters.connections_handed_over += 1;
                    return;
                }
                Err(_) => shared.drop_load(better),
            }
        }
        shared.add_load(index);
        self.adopt(fd, listener);
    }

    /// Makes a link of an accepted connection that is counted for this worker already.
    fn adopt(&mut self, fd: Fd, listener: usize) {
        self.engine.links.counters.connections_accepted += 1;
        let full = self.engine.links.counters.connections_open >= self.engine.settings.accepted_max as u64;
        let peer = self.ring.peer(fd);
        let (Some(peer), false) = (peer, full || self.cut_until.is_some()) else {
            self.engine.links.counters.connections_refused += u64::from(full);
            self.engine.links.counters.accept_errors += u64::from(peer.is_none());
            self.engine.shared.drop_load(self.engine.settings.index);
            self.ring.close(fd, true);
            return;
        };
        let key = self.engine.start_accepted(fd, listener, peer);
        self.arm(key);
    }

    // ---- commands ----

    fn obey(&mut self) {
        while let Some(command) = self.engine.shared.take(self.engine.settings.index) {
            match command {
                Command::Adopt { fd, listener } => self.adopt(fd, listener),
                Command::Certificates(tls) => self.engine.settings.tls = tls,
                Command::Group(group) => self.engine.join_group(group, self.drain_until.is_some()),
                Command::Drain(patience) => self.drain(patience),
                Command::Stop => self.cut(),
            }
        }
    }

    /// Takes nothing new and ends what runs within `patience`.
    pub fn drain(&mut self, patience: Duration) {
        if self.drain_until.is_some() {
            return;
        }
        let until = self.engine.now + patience;
        self.drain_until = Some(until);
        for listener in &mut self.listeners {
            listener.rest_until = None;
            match (listener.armed, listener.fd) {
                (true, Some(fd)) => self.ring.cancel(fd),
                (false, Some(fd)) => {
                    self.ring.close(fd, false);
                    listener.fd = None;
                }
                (_, None) => {}
            }
        }
        self.engine.role.drain(&mut self.engine.links);
    }

    fn is_over(&mut self, now: Time) -> bool {
        let is_silent =
            self.engine.links.slab.is_empty() && self.listeners.iter().all(|listener| listener.fd.is_none());
        match (self.cut_until, self.drain_until) {
            (Some(until), _) => is_silent || now >= until,
            (None, Some(_)) if is_silent && self.engine.role.is_drained() => true,
            (None, Some(until)) => {
                if now >= until {
                    self.cut();
                }
                false
            }
            (None, None) => false,
        }
    }

    /// Ends everything that is left at once.
    fn cut(&mut self) {
        if self.cut_until.is_some() {
            return;
        }
        self.drain(Duration::ZERO);
        drop(self.engine.leave_group());
        self.cut_until = Some(self.engine.now + STOP_GRACE);
        let left: Vec<LinkId> = self.engine.links.slab.iter().map(|(key, _)| key).collect();
        for key in left {
            self.engine.kill(key, CloseReason::TimedOut, true);
        }
        self.bury();
    }

    // ---- what needs the kernel at the end of a pass ----

    fn carry_out(&mut self) {
        while let Some(request) = self.engine.links.requests.pop_front() {
            match request {
                Request::Finish(key) => {
                    if let Some(link) = self.engine.links.touch(key)
                        && link.lane.ending == Ending::Open
                    {
                        link.lane.ending = Ending::Wanted;
                    }
                }
                Request::Close(key) => self.engine.retire(key, CloseReason::Done),
                Request::Abort(key) => self.engine.kill(key, CloseReason::Aborted, true),
                Request::Pause(key) => self.pause(key),
                Request::Resume(key) => {
                    if let Some(link) = self.engine.links.slab.get_mut(key) {
                        link.paused = false;
                    }
                    self.arm(key);
                }
                Request::Dial(key) => self.dial(key),
            }
        }
    }

    fn pause(&mut self, key: LinkId) {
        let Some(link) = self.engine.links.slab.get_mut(key) else { return };
        link.paused = true;
        if link.receiving == Receiving::Armed {
            link.receiving = Receiving::Stopping;
            self.ring.stop_receiving(key);
        }
    }

    /// Starts receiving if the link should and does not.
    fn arm(&mut self, key: LinkId) {
        let Some(link) = self.engine.links.slab.get_mut(key) else { return };
        if let (Receiving::Idle, true, Some(fd)) = (link.receiving, link.wants_receive(), link.fd) {
            link.receiving = Receiving::Armed;
            self.ring.receive(fd, key);
        }
    }

    fn dial(&mut self, key: LinkId) {
        let deadline = self.engine.now + self.engine.settings.connect_timeout;
        let Some(link) = self.engine.links.slab.get_mut(key) else { return };
        if link.phase != Phase::Connecting {
            return;
        }
        match self.ring.connect(key, link.peer) {
            Ok(fd) => {
                link.fd = Some(fd);
                link.connect_out = true;
                link.deadline.set(Some(deadline), &mut self.engine.timers, key);
            }
            Err(errno) => self.engine.kill(key, CloseReason::Os(errno.0), false),
        }
    }

    /// Sends what was put in this pass, one send per link.
    fn flush(&mut self) {
        // Killing a link tells the role, which may put bytes elsewhere: go on until nothing is left.
        while !self.engine.links.dirty.is_empty() || !self.engine.links.requests.is_empty() {
            self.carry_out();
            let mut flushing = std::mem::replace(&mut self.engine.links.dirty, std::mem::take(&mut self.flushing));
            for key in flushing.drain(..) {
                self.flush_one(key);
            }
            self.flushing = flushing;
        }
    }

    fn flush_one(&mut self, key: LinkId) {
        let Some(link) = self.engine.links.slab.get_mut(key) else { return };
        link.lane.dirty = false;
        let sendable = !matches!(link.phase, Phase::Connecting | Phase::Preamble | Phase::Dying);
        link.stillness = Stillness::Moved;
        let (Some(fd), true, 0) = (link.fd, sendable, link.lane.in_flight_bytes) else { return };
        if link.lane.ending == Ending::Wanted {
            link.lane.put_goodbye();
        } else {
            link.lane.seal();
        }
        if link.lane.broken {
            self.engine.kill(key, CloseReason::Protocol, true);
            return;
        }
        if !link.lane.filling.is_empty() {
            let bytes = link.lane.take_filled();
            // Closing follows at once when nothing more is to come.
            let is_last = link.lane.ending == Ending::Said && link.has_heard_out();
            self.ring.send(fd, key, bytes, 0, is_last);
        } else if link.lane.ending == Ending::Said {
            link.lane.ending = Ending::Done;
            // With nothing left to come, closing says the same.
            if !link.has_heard_out() {
                self.ring.shut_down(fd);
            }
            self.engine.settle(key);
        } else {
            let empty = std::mem::take(&mut link.lane.filling);
            self.engine.links.keep_spare(empty);
        }
    }

    /// Cancels what is out on dying links and frees those that nothing is out on.
    fn bury(&mut self) {
        let mut dying = std::mem::take(&mut self.engine.dying);
        dying.retain_mut(|(key, cancelled)| {
            let Some(link) = self.engine.links.slab.get(*key) else { return false };
            if link.is_lent() {
                if let (Some(fd), false) = (link.fd, std::mem::replace(cancelled, true)) {
                    self.ring.cancel(fd);
                }
                return true;
            }
            if let Some((fd, reset)) = self.engine.forget(*key) {
                self.ring.close(fd, reset);
            }
            false
        });
        // Burying tells nobody anything, so nothing was added meanwhile.
        self.engine.dying = dying;
    }

    /// Arms the receives that ended for want of buffers, once a quarter of the buffers is back.
    fn feed_starved(&mut self) {
        if self.starved.is_empty() || self.ring.buffers_free() * 4 < self.ring.buffers_total() {
            return;
        }
        for key in std::mem::take(&mut self.starved) {
            if let Some(link) = self.engine.links.slab.get_mut(key)
                && link.receiving == Receiving::Starved
            {
                link.receiving = Receiving::Idle;
            }
            self.arm(key);
        }
    }
}

/// The key of a listener's accept operation.
fn listener_key(index: usize) -> Key {
    Key { index: index as u32, generation: 0 }
}

/// Both clocks.
fn mark<R: Ring>(ring: &R) -> Mark {
    Mark { clock: ring.clock(), worked: ring.worked() }
}
