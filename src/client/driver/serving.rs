//! One connected link in one pass: read, sort out what arrived, take in waiting calls, write; and the end of links.

use std::time::Duration;

use crate::base::slab::Key;
use crate::mmtp::{self, Code};
use crate::tls::{ClientTicket, Early};

use super::super::entry::{Book, Calls, Place};
use super::super::error::{Failure, Receipt, Stage};
use super::super::exchange::{self, GoingAway, News};
use super::super::link::{Link, Phase, Session, Steps};
use super::super::report::{EarlyData, Handshake, Report, milliseconds};
use super::{Driver, Pool, Tick};

/// How often one call may be begun again because a connection had not taken it.
const RESTARTS_MAX: u32 = 2;

/// Longest time a server's GOAWAY keeps this client away; what asks for more is a mistake or an attack.
const STAY_AWAY_MAX: Duration = Duration::from_secs(10 * 60);

impl Driver {
    /// Serves every link on the list once.
    pub(super) fn serve_listed(&mut self) {
        for key in std::mem::take(&mut self.listed) {
            if let Some(link) = self.links.get_mut(key) {
                link.is_listed = false;
                self.serve(key);
            }
        }
    }

    /// Reads, answers and writes on one connection.
    fn serve(&mut self, key: Key) {
        let result = self.receive(key).and_then(|is_ended| {
            if is_ended {
                return Err(Failure::Lost("the server closed it".to_owned())); // those in line must not be sent into it
            }
            self.admit(key);
            self.send(key)
        });
        match result {
            Ok(()) => self.after_service(key),
            Err(failure) => self.lose(key, failure),
        }
    }

    /// True at the end of what the server sends.
    fn receive(&mut self, key: Key) -> Result<bool, Failure> {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return Ok(false) };
        let Phase::Connected(session) = &mut link.phase else { return Ok(false) };
        let mut plaintext = std::mem::take(&mut self.plaintext);
        plaintext.clear();
        let read = session.read(now, &mut plaintext);
        let is_new = read.is_ok() && session.start(&self.options.settings, now)?;
        if is_new {
            link.steps.secured_at = Some(self.mailbox.now()); // checking the certificate took time as well
        }
        let tickets = session.tickets();
        // What arrived before a failure still counts: it may hold whole answers.
        let mut calls = Calls { book: &mut self.calls, link: key, now };
        let mut news = News::default();
        let result = exchange::receive(session, &plaintext, &mut calls, &mut news);
        self.plaintext = plaintext;
        if is_new {
            self.describe_early(key);
        }
        if !tickets.is_empty() {
            self.keep(key, tickets);
        }
        for call in news.too_early {
            let failure = Failure::Reset { code: u64::from(Code::TOO_EARLY.0), name: Code::TOO_EARLY.name() };
            self.begin_again(call, &failure, Receipt::Refused { wait: Duration::ZERO });
        }
        if let Some(goaway) = news.goaway {
            self.sent_away(key, goaway, news.not_taken);
        }
        result.and(read)
    }

    fn send(&mut self, key: Key) -> Result<(), Failure> {
        let Some(session) = self.links.get_mut(key).and_then(Link::session_mut) else { return Ok(()) };
        let mut calls = Calls { book: &mut self.calls, link: key, now: self.now };
        exchange::send(session, &mut calls)
    }

    /// Opens streams for the calls in line, as many as the server allows; before the handshake is complete, for those
    /// that may go out as early data.
    pub(super) fn admit(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key) else { return };
        let (pool_key, steps, is_reused) = (link.pool, link.steps, link.opened > 0);
        let Some(session) = link.session_mut().filter(|session| session.mmtp.is_some()) else { return };
        let Some(pool) = self.pools.get_mut(pool_key).filter(|pool| pool.current == Some(key)) else { return };
        let mut calls = Calls { book: &mut self.calls, link: key, now: self.now };
        exchange::look(session, &mut calls); // what was cancelled makes room for what waits
        let mut opened = 0;
        let mut refused = None;
        while let Some((order, call)) = next_in_line(pool, calls.book, session) {
            if let Some(entry) = calls.book.get(call) {
                let mut state = entry.shared.lock();
                describe(&mut state.report, &steps, session, is_reused || opened > 0);
            }
            match exchange::open(session, call, &mut calls) {
                Ok(()) => {
                    pool.waiting.remove(&order);
                    opened += 1;
                }
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let is_leaving = matches!(refused, Some(mmtp::OpenError::GoingAway | mmtp::OpenError::Exhausted));
        session.is_leaving |= is_leaving;
        link.opened += opened;
        if is_leaving {
            pool.current = None;
            self.dispatch(pool_key);
        }
    }

    /// Keeps what tickets a server gave.
    fn keep(&mut self, key: Key, tickets: Vec<ClientTicket>) {
        let pool = self.links.get(key).and_then(|link| self.pools.get(link.pool));
        if let Some(pool) = pool {
            self.tickets.put(&pool.endpoint, tickets);
        }
    }

    /// The handshake is complete: the calls that did not wait for it learn what it was.
    fn describe_early(&mut self, key: Key) {
        let Some(Link { phase: Phase::Connected(session), steps, .. }) = self.links.get(key) else { return };
        let early = match session.early() {
            Early::Accepted => EarlyData::Accepted,
            Early::NotOffered | Early::Refused => EarlyData::Refused,
        };
        for (_, entry) in self.calls.iter() {
            if let Place::Sent(sent) = &entry.place
                && sent.link == key
            {
                let report = &mut entry.shared.lock().report;
                report.early = early;
                describe(report, steps, session, report.reused);
            }
        }
    }

    /// The server said GOAWAY: new calls go elsewhere, those it has not taken begin again.
    fn sent_away(&mut self, key: Key, goaway: GoingAway, not_taken: Vec<Key>) {
        let now = self.now;
        let Some(link) = self.links.get(key) else { return };
        let (pool_key, has_taken_any) = (link.pool, link.opened > not_taken.len() as u64);
        let jitter_ms = u64::try_from(goaway.jitter.as_millis()).unwrap_or(u64::MAX);
        let jitter = Duration::from_millis(self.prng.below(jitter_ms.saturating_add(1)));
        let wait = (goaway.wait + jitter).min(STAY_AWAY_MAX);
        let Some(pool) = self.pools.get_mut(pool_key) else { return };
        if pool.current == Some(key) {
            pool.current = None;
        }
        if !wait.is_zero() {
            pool.away = Some((now + wait, goaway.code));
            self.timers.schedule(now + wait, Tick::Pool(pool_key));
        }
        let receipt = if wait.is_zero() { Receipt::NotForwarded } else { Receipt::Refused { wait } };
        let failure = Failure::GoingAway { code: goaway.code };
        for call in not_taken {
            self.begin_again(call, &failure, receipt);
        }
        if wait.is_zero() && !has_taken_any {
            // It turned everyone away and named no time: the calls in line would meet the same, for ever.
            self.fail_line(pool_key, &failure, receipt);
        }
        self.dispatch(pool_key);
    }

    /// A call that the server certainly has not taken goes back in line, or fails with `receipt`.
    fn begin_again(&mut self, key: Key, failure: &Failure, receipt: Receipt) {
        let Some(entry) = self.calls.get(key) else { return };
        let (shared, pool_key) = (entry.shared.clone(), entry.pool);
        let may_restart = shared.lock().report.restarts < RESTARTS_MAX;
        if !may_restart || !shared.rewind() {
            return self.fail_call(key, failure.clone(), receipt);
        }
        let order = self.order(shared.prepared.priority);
        if let Some(place) = self.calls.place_mut(key) {
            *place = Place::Waiting { order };
        }
        if let Some(pool) = self.pools.get_mut(pool_key) {
            pool.waiting.insert(order, key);
        }
    }

    /// What remains to be decided after bytes have moved.
    fn after_service(&mut self, key: Key) {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Connected(session) = &mut link.phase else { return };
        let open_streams = session.mmtp.as_ref().map_or(0, mmtp::Connection::open_streams);
        if open_streams > 0 {
            session.busy_at = now;
        } else if session.is_leaving {
            return self.retire(key);
        }
        let is_readable = session.is_readable;
        if session.is_established {
            self.schedule_check(key);
        }
        if is_readable {
            self.list(key);
        }
    }

    /// When an established link must be looked at again.
    fn schedule_check(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key) else { return };
        let Phase::Connected(session) = &mut link.phase else { return };
        let Some(mmtp) = &session.mmtp else { return };
        let quiet_until = match mmtp.ping_outstanding_since() {
            Some(since) => since + self.options.connect_timeout,
            None => session.received_at + session.keep_alive(self.options.keep_alive),
        };
        let check_at = if mmtp.open_streams() > 0 {
            quiet_until
        } else {
            quiet_until.min(session.busy_at + self.options.idle_timeout)
        };
        link.deadline.set(Some(check_at), &mut self.timers, Tick::Link(key));
    }

    /// A link's deadline came: its set-up is overdue, the next address is due, or it has been quiet for long.
    pub(super) fn check_link(&mut self, key: Key) {
        let now = self.now;
        let Some(link) = self.links.get_mut(key) else { return };
        let stage = link.stage();
        let is_overdue = now >= link.ready_by;
        match &mut link.phase {
            Phase::Lookup if is_overdue => self.lose(key, Failure::TimedOut(stage)),
            Phase::Dialing { .. } if is_overdue => self.lose(key, Failure::TimedOut(stage)),
            Phase::Lookup => {}
            Phase::Dialing { .. } => self.dial_on(key),
            Phase::Connected(session) if !session.is_established => {
                if is_overdue {
                    self.lose(key, Failure::TimedOut(Stage::Handshake));
                }
            }
            Phase::Connected(session) => {
                let quiet_until = session.received_at + session.keep_alive(self.options.keep_alive);
                let Some(mmtp) = &mut session.mmtp else { return };
                if mmtp.open_streams() == 0 && now >= session.busy_at + self.options.idle_timeout {
                    return self.retire(key);
                }
                match mmtp.ping_outstanding_since() {
                    Some(since) if now >= since + self.options.connect_timeout => {
                        return self.lose(key, Failure::Lost("the server does not answer PING".to_owned()));
                    }
                    Some(_) => {}
                    None if now >= quiet_until => mmtp.ping(now, &mut session.out),
                    None => {}
                }
                self.schedule_check(key);
                self.list(key);
            }
        }
    }

    /// Closes a link that nobody uses.
    fn retire(&mut self, key: Key) {
        if let Some(Link { phase: Phase::Connected(session), .. }) = self.links.get_mut(key) {
            session.close();
        }
        self.lose(key, Failure::Lost("it was not used".to_owned()));
    }

    /// A link is over: its calls end by how far they got, and the calls in line get another link if that can help.
    pub(super) fn lose(&mut self, key: Key, failure: Failure) {
        let Some(mut link) = self.links.remove(key) else { return };
        let pool_key = link.pool;
        let is_ticket_doubted = matches!(&failure, Failure::Tls(_) | Failure::Lost(_))
            && link.session_mut().is_some_and(|session| session.has_ticket && !session.is_secured);
        if let Some(pool) = self.pools.get_mut(pool_key) {
            pool.links -= 1;
            if pool.current == Some(key) {
                pool.current = None;
                if is_ticket_doubted {
                    pool.without_ticket = true; // those in line try again, as if there had been none
                } else if link.opened == 0 {
                    // It took nobody: another would fare no better now, and the callers should know why.
                    self.describe_line(pool_key, &link);
                    self.fail_line(pool_key, &failure, Receipt::NotForwarded);
                }
            }
        }
        match &mut link.phase {
            Phase::Lookup => {}
            Phase::Dialing { attempts, head, .. } => {
                for attempt in attempts.drain(..) {
                    self.discard(attempt);
                }
                if let Some(session) = head {
                    self.link_of.remove(&session.token);
                    self.end_calls(key, session, &failure);
                }
            }
            Phase::Connected(session) => {
                session.close();
                if session.is_fast_opened && !session.is_secured {
                    self.slow_addresses.add(session.address, self.now);
                }
                self.link_of.remove(&session.token);
                let _ = self.poll.registry().deregister(&mut session.socket); // closing it would do the same
                self.end_calls(key, session, &failure);
            }
        }
        self.dispatch(pool_key);
    }

    /// Ends the calls of a connection that is gone.
    pub(super) fn end_calls(&mut self, key: Key, session: &Session, failure: &Failure) {
        let mut not_sent = Vec::new();
        let mut exposed = Vec::new();
        let mut unknown = Vec::new();
        for (call, entry) in self.calls.iter() {
            match &entry.place {
                Place::Sent(sent) if sent.link != key => {}
                Place::Sent(sent) if !session.has_submitted_beyond(sent.headers_at) => not_sent.push(call),
                // Early data is only what does no harm twice. Before the server's HELLO, the handshake may be what failed.
                Place::Sent(sent) if sent.is_early && !session.is_established => exposed.push(call),
                Place::Sent(_) => unknown.push(call),
                Place::Waiting { .. } => {}
            }
        }
        for call in unknown {
            self.fail_call(call, failure.clone(), Receipt::Unknown);
        }
        for &call in &exposed {
            if let Some(entry) = self.calls.get_mut(call) {
                entry.is_exposed = true;
            }
        }
        for call in exposed.into_iter().chain(not_sent) {
            self.begin_again(call, failure, Receipt::NotForwarded);
        }
    }

    /// Says in the reports of those in line how far their connection got.
    fn describe_line(&self, pool: Key, link: &Link) {
        let Some(pool) = self.pools.get(pool) else { return };
        for entry in pool.waiting.values().filter_map(|&call| self.calls.get(call)) {
            describe_steps(&mut entry.shared.lock().report, &link.steps);
        }
    }
}

/// The call that comes next on this session.
fn next_in_line(pool: &Pool, book: &Book, session: &Session) -> Option<((u8, u64), Key)> {
    if session.is_secured {
        return pool.waiting.first_key_value().map(|(order, call)| (*order, *call));
    }
    let room_bytes = session.early_room();
    let fits = |call: &Key| book.get(*call).is_some_and(|entry| entry.fits_early(room_bytes));
    pool.waiting.iter().find(|(_, call)| fits(call)).map(|(order, call)| (*order, *call))
}

/// Says in a call's report what connection it goes on.
fn describe(report: &mut Report, steps: &Steps, session: &Session, is_reused: bool) {
    report.reused = is_reused;
    report.handshake = session.is_secured.then(|| match (session.early(), session.is_resumed()) {
        (Early::Accepted, _) => Handshake::Early,
        (_, true) => Handshake::Resumed,
        (_, false) => Handshake::Full,
    });
    report.fast_open = session.is_fast_opened;
    report.address = Some(session.address.to_string());
    if !is_reused {
        describe_steps(report, steps);
    }
}

fn describe_steps(report: &mut Report, steps: &Steps) {
    let looked_at = steps.looked_at.unwrap_or(steps.begun_at);
    report.dns_ms = steps.looked_at.map(|at| milliseconds(at.since(steps.begun_at)));
    report.connect_ms = steps.connected_at.map(|at| milliseconds(at.since(looked_at)));
    let secured = steps.connected_at.zip(steps.secured_at);
    report.tls_ms = secured.map(|(connected_at, at)| milliseconds(at.since(connected_at)));
}
