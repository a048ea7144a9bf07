//! From a pool that needs a connection to a connected socket: lookup, the race of addresses, the winner.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Token};

use crate::base::slab::Key;
use crate::base::timers::Deadline;

use super::super::dial::Plan;
use super::super::error::Failure;
use super::super::fast_open;
use super::super::link::{Attempt, Link, Phase, Session, Steps};
use super::super::mailbox::Command;
use super::super::resolve::{Found, Resolver};
use super::super::secure::Secure;
use super::{Driver, Tick};

/// What our HELLO, with its attributes, takes of early data at most.
const HELLO_BYTES: usize = 1024;

/// What every socket is watched for.
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

impl Driver {
    /// Begins a connection for a pool.
    pub(super) fn dial(&mut self, pool_key: Key) {
        let now = self.now;
        let ready_by = now + self.options.connect_timeout;
        let link = Link {
            pool: pool_key,
            phase: Phase::Lookup,
            steps: Steps { begun_at: now, ..Steps::default() },
            deadline: Deadline::default(),
            ready_by,
            is_listed: false,
            opened: 0,
        };
        let key = self.links.insert(link);
        let link = self.links.get_mut(key).expect("inserted just above");
        link.deadline.set(Some(ready_by), &mut self.timers, Tick::Link(key));
        let pool = self.pools.get_mut(pool_key).expect("a pool with waiting calls exists");
        pool.current = Some(key);
        pool.links += 1;
        let endpoint = pool.endpoint.clone();
        if let Some(address) = Resolver::literal(&endpoint) {
            return self.try_addresses(key, vec![address]);
        }
        let mailbox = self.mailbox.clone();
        let report = move |found| {
            mailbox.push(Command::Looked { link: key, found });
        };
        if !self.resolver.start(&endpoint, report) {
            self.lose(key, Failure::TooMany);
        }
    }

    pub(super) fn looked(&mut self, key: Key, found: Found) {
        let Some(link) = self.links.get_mut(key) else { return };
        if !matches!(link.phase, Phase::Lookup) {
            return;
        }
        link.steps.looked_at = Some(self.now);
        match found {
            Ok(addresses) => self.try_addresses(key, addresses),
            Err(why) => self.lose(key, Failure::Lookup(why)),
        }
    }

    fn try_addresses(&mut self, key: Key, addresses: Vec<SocketAddr>) {
        let Some(link) = self.links.get_mut(key) else { return };
        let plan = Plan::new(addresses, self.now);
        link.phase = Phase::Dialing { plan, attempts: Vec::new(), last_error: "no address".to_owned(), head: None };
        self.dial_on(key);
    }

    /// Starts whatever attempts are due, and gives up when none is left.
    pub(super) fn dial_on(&mut self, key: Key) {
        let now = self.now;
        loop {
            let Some(link) = self.links.get_mut(key) else { return };
            let Phase::Dialing { plan, head, attempts, .. } = &mut link.phase else { return };
            let is_first = head.is_none() && attempts.is_empty();
            let Some(address) = plan.take_due(now) else { break };
            let begun = if is_first && self.opens_fast(address) {
                self.begin_ahead(key, address)
            } else {
                self.begin_attempt(key, address)
            };
            let Err(why) = begun else { continue };
            let Some(Link { phase: Phase::Dialing { plan, last_error, .. }, .. }) = self.links.get_mut(key) else {
                return;
            };
            *last_error = why;
            plan.failed(now);
        }
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Dialing { plan, last_error, .. } = &mut link.phase else { return };
        if plan.is_exhausted() {
            let why = std::mem::take(last_error);
            return self.lose(key, Failure::Connect(why));
        }
        let wake_at = plan.next_at().map_or(link.ready_by, |next| next.min(link.ready_by));
        link.deadline.set(Some(wake_at), &mut self.timers, Tick::Link(key));
    }

    fn next_token(&mut self) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        token
    }

    fn opens_fast(&self, address: SocketAddr) -> bool {
        self.options.fast_open && !self.slow_addresses.contains(address, self.now)
    }

    /// Connects to an address as ever.
    fn begin_attempt(&mut self, key: Key, address: SocketAddr) -> Result<(), String> {
        let token = self.next_token();
        let connected = TcpStream::connect(address)
            .and_then(|mut socket| self.poll.registry().register(&mut socket, token, BOTH).map(|()| socket));
        let socket = connected.map_err(|error| format!("{address}: {error}"))?;
        self.link_of.insert(token, key);
        if let Some(Link { phase: Phase::Dialing { attempts, .. }, .. }) = self.links.get_mut(key) {
            attempts.push(Attempt { token, socket, address });
        }
        Ok(())
    }

    /// Connects to an address with TCP Fast Open: the handshake begins, and early data with it, before the socket is
    /// connected. Since a network may eat such a SYN, the address is next in line again, for an attempt without.
    fn begin_ahead(&mut self, key: Key, address: SocketAddr) -> Result<(), String> {
        let Some(socket) = fast_open::socket(address) else { return self.begin_attempt(key, address) };
        let Some(pool) = self.links.get(key).map(|link| link.pool) else { return Ok(()) };
        let token = self.next_token();
        let Ok(mut session) = self.secured(pool, Attempt { token, socket, address }) else {
            return self.begin_attempt(key, address); // whose failure says why
        };
        (session.is_readable, session.is_writable) = (false, false);
        if let Some(Link { phase: Phase::Dialing { plan, head, .. }, .. }) = self.links.get_mut(key) {
            plan.again(address);
            *head = Some(Box::new(session));
        }
        self.link_of.insert(token, key);
        self.admit(key); // what may go out early goes with the first bytes
        let Some(session) = self.links.get_mut(key).and_then(Link::session_mut) else { return Ok(()) };
        let mut opened = session.open_fast(self.options.send_first);
        if opened.is_ok() {
            let registered = self.poll.registry().register(&mut session.socket, token, BOTH);
            opened = registered.map_err(|error| Failure::Connect(format!("{address}: {error}")));
        }
        opened.map_err(|failure| {
            self.drop_head(key, &failure);
            failure.to_string()
        })
    }

    /// A session over a socket, with a ticket if there is one.
    fn secured(&mut self, pool_key: Key, attempt: Attempt) -> Result<Session, Failure> {
        let pool = self.pools.get_mut(pool_key).expect("a link's pool exists");
        let wants_ticket = !std::mem::take(&mut pool.without_ticket);
        let endpoint = pool.endpoint.clone();
        let ticket = if wants_ticket { self.tickets.take(&endpoint) } else { None };
        let pool = self.pools.get(pool_key).expect("a link's pool exists");
        let in_line = || pool.waiting.values().filter_map(|call| self.calls.get(*call));
        // Early data is offered for those in line only: without them it would be a risk for nothing.
        let early_data = self.options.early_data;
        let ticket = ticket.map(|ticket| {
            let room_bytes = (ticket.early_bytes_max() as usize).saturating_sub(HELLO_BYTES);
            let is_wanted = early_data && in_line().any(|entry| entry.fits_early(room_bytes));
            ticket.offering_early_data(is_wanted)
        });
        let has_ticket = ticket.is_some();
        let secure = Secure::new(&self.options.trust, &endpoint.host, ticket)?;
        let mut session = Session::new(attempt, secure, has_ticket, self.now);
        session.start_early(&self.options.settings, self.now);
        Ok(session)
    }

    /// An attempt has connected or failed.
    pub(super) fn attempt_ready(&mut self, key: Key, token: Token) {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Dialing { plan, attempts, last_error, head } = &mut link.phase else { return };
        if let Some(session) = head.as_ref().filter(|session| session.token == token) {
            return match state_of(&session.socket) {
                Ok(true) => self.head_connected(key),
                Ok(false) => {}
                Err(error) => {
                    *last_error = format!("{}: {error}", session.address);
                    plan.failed(now);
                    self.drop_head(key, &Failure::Connect(error.to_string()));
                    self.dial_on(key);
                }
            };
        }
        let Some(index) = attempts.iter().position(|attempt| attempt.token == token) else { return };
        match state_of(&attempts[index].socket) {
            Ok(true) => self.connected(key, index),
            Ok(false) => {}
            Err(error) => {
                let attempt = attempts.swap_remove(index);
                *last_error = format!("{}: {error}", attempt.address);
                plan.failed(now);
                self.discard(attempt);
                self.dial_on(key);
            }
        }
    }

    pub(super) fn discard(&mut self, mut attempt: Attempt) {
        self.link_of.remove(&attempt.token);
        let _ = self.poll.registry().deregister(&mut attempt.socket); // closing it would do the same
    }

    /// The attempt at `index` won: the others are dropped and the handshake begins.
    fn connected(&mut self, key: Key, index: usize) {
        let failure = Failure::Connect("another attempt was faster".to_owned());
        self.drop_head(key, &failure);
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Dialing { attempts, .. } = &mut link.phase else { return };
        let winner = attempts.swap_remove(index);
        let pool = link.pool;
        match self.secured(pool, winner) {
            Ok(session) => self.go_on_with(key, Box::new(session)),
            Err(failure) => self.lose(key, failure),
        }
    }

    /// The attempt with a head start won.
    fn head_connected(&mut self, key: Key) {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Dialing { head, .. } = &mut link.phase else { return };
        if let Some(mut session) = head.take() {
            session.connected(now);
            self.go_on_with(key, session);
        }
    }

    fn go_on_with(&mut self, key: Key, session: Box<Session>) {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return };
        link.steps.connected_at = Some(now);
        let ready_by = link.ready_by;
        link.deadline.set(Some(ready_by), &mut self.timers, Tick::Link(key));
        let before = std::mem::replace(&mut link.phase, Phase::Connected(session));
        if let Phase::Dialing { attempts, .. } = before {
            for loser in attempts {
                self.discard(loser);
            }
        }
        self.list(key);
    }

    /// The attempt with a head start came to nothing: its calls begin again, and its address is spared another.
    fn drop_head(&mut self, key: Key, failure: &Failure) {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Dialing { head, .. } = &mut link.phase else { return };
        let Some(mut session) = head.take() else { return };
        link.opened = 0;
        self.slow_addresses.add(session.address, now);
        self.link_of.remove(&session.token);
        let _ = self.poll.registry().deregister(&mut session.socket); // closing it would do the same
        self.end_calls(key, &session, failure);
    }
}

/// Whether a socket is connected yet.
fn state_of(socket: &TcpStream) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}
