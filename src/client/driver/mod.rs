//! The client's one thread: waits for sockets, commands and deadlines, and moves every call forward. Owns the
//! connections, the calls under way and their places in line; never runs the app's code.
//!
//! Invariant: every call on the slab ends: by its answer, its failure, its deadline, or with the driver itself.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mio::{Poll, Token};

use crate::base::prng::Prng;
use crate::base::slab::{Key, Slab};
use crate::base::time::Time;
use crate::base::timers::Timers;
use crate::mmtp;

use super::call::Shared;
use super::entry::{Book, Entry, Place};
use super::error::{Failure, Receipt, Stage};
use super::fast_open::Avoided;
use super::link::{Link, Phase};
use super::mailbox::{Command, Mailbox};
use super::resolve::Resolver;
use super::secure::Trust;
use super::tickets::Tickets;
use super::url::Endpoint;

mod dialing;
mod serving;

/// The token of the mailbox's waker. Sockets count up from the next one and never share a number.
pub(super) const WAKER: Token = Token(0);

/// What a client was built with.
pub(super) struct Options {
    pub(super) trust: Trust,
    pub(super) settings: mmtp::Settings,
    pub(super) connect_timeout: Duration,
    pub(super) keep_alive: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) calls_max: usize,
    pub(super) early_data: bool,
    pub(super) fast_open: bool,
    pub(super) send_first: super::SendFirst,
}

/// How long a client that ends waits for the tickets of a server that has not given any yet: without them, the next
/// process could not resume.
const LINGER: Duration = Duration::from_millis(500);

/// Whose deadline came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Tick {
    Link(Key),
    Pool(Key),
}

/// The connections to one endpoint and the calls that wait for one.
struct Pool {
    endpoint: Endpoint,
    /// The link that takes new calls, set up or being set up.
    current: Option<Key>,
    /// Calls in line: by priority, then by when they came.
    waiting: BTreeMap<(u8, u64), Key>,
    /// Until when the server asked to be left alone, and with which code.
    away: Option<(Time, u64)>,
    /// Links that exist, the current one included.
    links: usize,
    /// Whether the next link is to do without a ticket: the last one failed with one.
    without_ticket: bool,
}

/// Everything the thread owns.
pub(super) struct Driver {
    poll: Poll,
    mailbox: Arc<Mailbox>,
    options: Options,
    resolver: Resolver,
    calls: Book,
    links: Slab<Link>,
    pools: Slab<Pool>,
    pool_of: HashMap<Endpoint, Key>,
    link_of: HashMap<Token, Key>,
    timers: Timers<Tick>,
    /// Links to be served in this pass, each once.
    listed: Vec<Key>,
    commands: Vec<Command>,
    plaintext: Vec<u8>,
    tickets: Tickets,
    /// Addresses that are connected to without TCP Fast Open for now.
    slow_addresses: Avoided,
    prng: Prng,
    next_token: usize,
    next_place: u64,
    now: Time,
    /// When the last handle went.
    stopping_since: Option<Time>,
}

/// Fails what is left in the mailbox when the driver ends, however it ends.
struct Closer(Arc<Mailbox>);

impl Drop for Closer {
    fn drop(&mut self) {
        for command in self.0.close() {
            if let Command::Start(shared) = command {
                shared.fail(self.0.now(), Failure::Stopped, Receipt::NotForwarded);
            }
        }
    }
}

impl Driver {
    pub(super) fn new(poll: Poll, mailbox: Arc<Mailbox>, options: Options, tickets: Tickets, seed: u64) -> Driver {
        let now = mailbox.now();
        Driver {
            poll,
            mailbox,
            options,
            resolver: Resolver::default(),
            calls: Book::default(),
            links: Slab::new(),
            pools: Slab::new(),
            pool_of: HashMap::new(),
            link_of: HashMap::new(),
            timers: Timers::default(),
            listed: Vec::new(),
            commands: Vec::new(),
            plaintext: Vec::new(),
            tickets,
            slow_addresses: Avoided::default(),
            prng: Prng::new(seed),
            next_token: WAKER.0 + 1,
            next_place: 0,
            now,
            stopping_since: None,
        }
    }

    /// Runs until the last handle is gone.
    pub(super) fn run(mut self) {
        let _closer = Closer(self.mailbox.clone());
        let mut events = mio::Events::with_capacity(256);
        while !self.is_over() {
            let timeout = self.poll_timeout();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The poll's own descriptor is broken: nothing can work any more. The entries fail as they are dropped.
                Err(_) => return,
            }
            self.now = self.mailbox.now();
            for event in &events {
                self.note(event);
            }
            self.obey();
            while let Some(tick) = self.timers.pop_due(self.now) {
                self.tick(tick);
            }
            self.serve_listed();
            // Last: an answer that is already here is better than a timeout.
            while let Some(call) = self.calls.overdue(self.now) {
                self.call_overdue(call);
            }
        }
        for (_, link) in self.links.iter_mut() {
            if let Phase::Connected(session) = &mut link.phase {
                session.close();
            }
        }
    }

    /// Whether the last handle is gone, and no ticket is worth waiting for.
    fn is_over(&self) -> bool {
        let Some(since) = self.stopping_since else { return false };
        let awaits_tickets = |link: &Link| match &link.phase {
            Phase::Connected(session) => session.is_secured && !session.has_tickets,
            Phase::Lookup | Phase::Dialing { .. } => false,
        };
        let lingers = self.tickets.has_file() && self.links.iter().any(|(_, link)| awaits_tickets(link));
        !lingers || self.mailbox.now() >= since + LINGER
    }

    fn poll_timeout(&self) -> Option<Duration> {
        if !self.listed.is_empty() {
            return Some(Duration::ZERO);
        }
        let linger = self.stopping_since.map(|since| since + LINGER);
        let next = self.timers.next().into_iter().chain(self.calls.next_deadline()).chain(linger).min()?;
        // One more millisecond: the poll rounds down, and would spin until the deadline.
        Some(next.since(self.mailbox.now()) + Duration::from_millis(1))
    }

    fn list(&mut self, key: Key) {
        if let Some(link) = self.links.get_mut(key)
            && !std::mem::replace(&mut link.is_listed, true)
        {
            self.listed.push(key);
        }
    }

    /// A socket is ready for something.
    fn note(&mut self, event: &mio::event::Event) {
        let Some(&key) = self.link_of.get(&event.token()) else { return };
        let Some(link) = self.links.get_mut(key) else { return };
        match &mut link.phase {
            Phase::Lookup => {}
            Phase::Dialing { .. } => self.attempt_ready(key, event.token()),
            Phase::Connected(session) => {
                session.is_readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                session.is_writable |= event.is_writable() || event.is_write_closed() || event.is_error();
                self.list(key);
            }
        }
    }

    fn obey(&mut self) {
        let mut commands = std::mem::take(&mut self.commands);
        self.mailbox.take(&mut commands);
        for command in commands.drain(..) {
            match command {
                Command::Start(shared) => self.begin(shared),
                Command::Touch(shared) => self.touched(&shared),
                Command::Looked { link, found } => self.looked(link, found),
                Command::Stop => self.stopping_since = Some(self.now),
            }
        }
        self.commands = commands;
    }

    fn tick(&mut self, tick: Tick) {
        let now = self.now;
        match tick {
            Tick::Link(key) => {
                let Some(link) = self.links.get_mut(key) else { return };
                if link.deadline.due(now, &mut self.timers, tick) {
                    self.check_link(key);
                }
            }
            Tick::Pool(key) => self.dispatch(key),
        }
    }

    // Calls.

    fn begin(&mut self, shared: Arc<Shared>) {
        if self.calls.len() >= self.options.calls_max {
            return shared.fail(self.now, Failure::TooMany, Receipt::NotForwarded);
        }
        if shared.look().is_cancelled {
            return;
        }
        let pool = self.pool_for(&shared.prepared.endpoint);
        let order = self.order(shared.prepared.priority);
        let deadline = shared.deadline();
        let key = self.calls.insert(Entry {
            shared: shared.clone(),
            pool,
            place: Place::Waiting { order },
            deadline,
            is_exposed: false,
        });
        shared.lock().key = Some(key);
        self.pools.get_mut(pool).expect("a pool with a caller exists").waiting.insert(order, key);
        self.settle_in(pool);
    }

    fn order(&mut self, priority: u8) -> (u8, u64) {
        self.next_place += 1;
        (priority, self.next_place)
    }

    fn pool_for(&mut self, endpoint: &Endpoint) -> Key {
        if let Some(&key) = self.pool_of.get(endpoint) {
            return key;
        }
        let pool = Pool {
            endpoint: endpoint.clone(),
            current: None,
            waiting: BTreeMap::new(),
            away: None,
            links: 0,
            without_ticket: false,
        };
        let key = self.pools.insert(pool);
        self.pool_of.insert(endpoint.clone(), key);
        key
    }

    /// New calls wait: either a link can take them in this pass, or one must be made.
    fn settle_in(&mut self, pool: Key) {
        match self.pools.get(pool).and_then(|pool| pool.current) {
            Some(link) => self.list(link),
            None => self.dispatch(pool),
        }
    }

    fn touched(&mut self, shared: &Arc<Shared>) {
        let Some(key) = shared.look().key else { return };
        let Some(entry) = self.calls.get(key) else { return };
        match &entry.place {
            Place::Waiting { .. } => {
                if shared.lock().is_cancelled {
                    self.forget(key);
                }
            }
            Place::Sent(sent) => {
                let link = sent.link;
                if let Some(session) = self.links.get_mut(link).and_then(Link::session_mut) {
                    session.touched.push(key);
                }
                self.list(link);
            }
        }
    }

    /// Takes a call off the slab and out of its line.
    fn forget(&mut self, key: Key) -> Option<Entry> {
        let entry = self.calls.remove(key)?;
        if let Place::Waiting { order } = entry.place
            && let Some(pool) = self.pools.get_mut(entry.pool)
        {
            pool.waiting.remove(&order);
        }
        Some(entry)
    }

    fn call_overdue(&mut self, key: Key) {
        let Some(entry) = self.calls.get(key) else { return };
        match &entry.place {
            Place::Waiting { .. } => {
                let stage = self.waiting_stage(entry.pool);
                self.fail_call(key, Failure::TimedOut(stage), Receipt::NotForwarded);
            }
            Place::Sent(sent) => {
                let (link, stream) = (sent.link, sent.stream);
                let stage = if sent.has_head { Stage::Body } else { Stage::Answer };
                self.fail_call(key, Failure::TimedOut(stage), Receipt::Unknown);
                if let Some(session) = self.links.get_mut(link).and_then(Link::session_mut) {
                    session.give_up(stream, mmtp::Code::DEADLINE);
                }
                self.list(link);
            }
        }
    }

    fn waiting_stage(&self, pool: Key) -> Stage {
        let link = self.pools.get(pool).and_then(|pool| pool.current).and_then(|link| self.links.get(link));
        link.map_or(Stage::Queued, Link::stage)
    }

    /// Ends a call with a failure.
    fn fail_call(&mut self, key: Key, failure: Failure, receipt: Receipt) {
        if let Some(entry) = self.forget(key) {
            entry.fail(self.now, failure, receipt);
        }
    }

    /// Fails everyone who waits for a pool.
    fn fail_line(&mut self, pool: Key, failure: &Failure, receipt: Receipt) {
        let Some(pool) = self.pools.get_mut(pool) else { return };
        for (_, key) in std::mem::take(&mut pool.waiting) {
            self.fail_call(key, failure.clone(), receipt);
        }
    }

    // Pools.

    /// Calls wait at a pool without a usable link: makes one, unless the server asked to be left alone.
    fn dispatch(&mut self, key: Key) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        if let Some((until, code)) = pool.away {
            if until > self.now {
                return self.turn_away(key, until, code);
            }
            pool.away = None;
        }
        if pool.current.is_none() && !pool.waiting.is_empty() {
            self.dial(key);
        }
        self.drop_empty_pool(key);
    }

    /// The server asked to be left alone: calls that would be over before are told at once, the others wait.
    fn turn_away(&mut self, key: Key, until: Time, code: u64) {
        let Some(pool) = self.pools.get(key) else { return };
        let mut refused = Vec::new();
        for &call in pool.waiting.values() {
            let deadline = self.calls.get(call).and_then(|entry| entry.deadline);
            if deadline.is_some_and(|deadline| deadline < until) {
                refused.push(call);
            }
        }
        let receipt = Receipt::Refused { wait: until.since(self.now) };
        for call in refused {
            self.fail_call(call, Failure::GoingAway { code }, receipt);
        }
    }

    fn drop_empty_pool(&mut self, key: Key) {
        let is_empty = |pool: &Pool| pool.links == 0 && pool.waiting.is_empty() && pool.away.is_none();
        if self.pools.get(key).is_some_and(is_empty)
            && let Some(pool) = self.pools.remove(key)
        {
            self.pool_of.remove(&pool.endpoint);
        }
    }
}
