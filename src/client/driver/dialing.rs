//! From a pool that needs a connection to a connected socket: lookup, the race of addresses, the winner.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Token};

use crate::base::slab::Key;
use crate::base::timers::Deadline;

use super::super::dial::Plan;
use super::super::error::Failure;
use super::super::link::{Attempt, Link, Phase, Session, Steps};
use super::super::mailbox::Command;
use super::super::resolve::{Found, Resolver};
use super::{Driver, Tick};

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
        link.phase = Phase::Dialing { plan, attempts: Vec::new(), last_error: "no address".to_owned() };
        self.dial_on(key);
    }

    /// Starts whatever attempts are due, and gives up when none is left.
    pub(super) fn dial_on(&mut self, key: Key) {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Dialing { plan, attempts, last_error } = &mut link.phase else { return };
        while let Some(address) = plan.take_due(now) {
            let token = Token(self.next_token);
            self.next_token += 1;
            let connected = TcpStream::connect(address).and_then(|mut socket| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut socket, token, interest).map(|()| socket)
            });
            match connected {
                Ok(socket) => {
                    self.link_of.insert(token, key);
                    attempts.push(Attempt { token, socket, address });
                }
                Err(error) => {
                    *last_error = format!("{address}: {error}");
                    plan.failed(now);
                }
            }
        }
        if plan.is_exhausted() {
            let why = std::mem::take(last_error);
            return self.lose(key, Failure::Connect(why));
        }
        let wake_at = plan.next_at().map_or(link.ready_by, |next| next.min(link.ready_by));
        link.deadline.set(Some(wake_at), &mut self.timers, Tick::Link(key));
    }

    /// An attempt has connected or failed.
    pub(super) fn attempt_ready(&mut self, key: Key, token: Token) {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Dialing { plan, attempts, last_error } = &mut link.phase else { return };
        let Some(index) = attempts.iter().position(|attempt| attempt.token == token) else { return };
        let attempt = &attempts[index];
        let error = match (attempt.socket.take_error(), attempt.socket.peer_addr()) {
            (Ok(Some(error)) | Err(error), _) => error,
            (Ok(None), Ok(_)) => return self.connected(key, index),
            (Ok(None), Err(error)) if error.kind() == io::ErrorKind::NotConnected => return,
            (Ok(None), Err(error)) => error,
        };
        *last_error = format!("{}: {error}", attempt.address);
        let attempt = attempts.swap_remove(index);
        plan.failed(now);
        self.discard(attempt);
        self.dial_on(key);
    }

    pub(super) fn discard(&mut self, mut attempt: Attempt) {
        self.link_of.remove(&attempt.token);
        let _ = self.poll.registry().deregister(&mut attempt.socket); // closing it would do the same
    }

    /// The attempt at `index` won: the others are dropped and the handshake begins.
    fn connected(&mut self, key: Key, index: usize) {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Dialing { attempts, .. } = &mut link.phase else { return };
        let winner = attempts.swap_remove(index);
        let losers = std::mem::take(attempts);
        link.steps.connected_at = Some(now);
        let ready_by = link.ready_by;
        link.deadline.set(Some(ready_by), &mut self.timers, Tick::Link(key));
        let pool = self.pools.get(link.pool).expect("a link's pool exists");
        match Session::new(winner, &self.options.trust, &pool.endpoint.host, now) {
            Ok(session) => link.phase = Phase::Connected(Box::new(session)),
            Err(failure) => self.lose(key, failure),
        }
        for loser in losers {
            self.discard(loser);
        }
        self.list(key);
    }
}
