//! What one worker of a load generator does, without the ring: who connects, who asks, what becomes of it.
//!
//! Owns links, seats and the tally. Never enters the kernel: what needs it is left in `to_dial`, `dirty` and `dying` for
//! the driver. Invariant: every request that was begun is counted once, as an answer or as a fault.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::lane::Lane;
use super::link::{Ending, Link, Phase, Receiving};
use super::plan::{Mode, Plan};
use super::schedule::{LATE_AFTER, Schedule};
use super::speech::{self, Answer, Asked, Heard, Prospect, Speech};
use super::tally::{Fault, HandshakeKind, Held, Tally, Times};
use crate::base::prng::Prng;
use crate::base::slab::{Key, Slab};
use crate::base::time::Time;
use crate::base::timers::{Deadline, Timers};
use crate::mmtp;
use crate::ring::{Errno, Fd};
use crate::tls::{self, ClientTicket, Cut, Early, Established, Received, Session, TlsError};

/// Time to connect and shake hands.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection that said goodbye waits for the server's.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a server is listened to when nothing can be sent to it any more.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a ticket is waited for when all else is done.
const TICKET_TIMEOUT: Duration = Duration::from_secs(1);

/// After a failure its seat rests so long: a server that refuses everybody is not asked a million times.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Connections that are set up at a time when many are wanted at once: most servers have room for a few hundred that
/// were not accepted yet.
const OPENING_MAX: usize = 256;

/// Connections that are woken at a time.
const WAKING_MAX: usize = 256;

/// Links that may wait for the server's goodbye; more are cut off.
const RETIRING_MAX: usize = 4096;

/// Tickets a seat keeps.
const TICKETS_MAX: usize = 4;

/// Where a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// First tickets are fetched.
    Preparing,
    /// Requests are begun.
    Running,
    /// Connections are held.
    Holding,
    /// They are woken.
    Waking,
    /// Nothing is begun; what is under way may end.
    Finishing,
    /// Goodbyes are said.
    Closing,
}

/// What a deadline is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Wake {
    Link(Key),
    Seat(u32),
}

/// One of the connections at a time.
#[derive(Default)]
struct Seat {
    tickets: Vec<ClientTicket>,
    /// Requests that were begun and could not be sent, or must be sent again.
    again: VecDeque<Asked>,
}

/// See the module.
pub(super) struct Engine {
    plan: Arc<Plan>,
    pub(super) now: Time,
    pub(super) stage: Stage,
    pub(super) tally: Tally,
    pub(super) links: Slab<Link>,
    seats: Vec<Seat>,
    pub(super) timers: Timers<Wake>,
    schedule: Option<Schedule>,
    /// Every start is meant to be before this.
    pub(super) end: Time,
    /// Seats whose connection is to be opened when fewer than [`OPENING_MAX`] are being set up.
    to_open: VecDeque<u32>,
    /// Seats that may begin a visit.
    free_seats: VecDeque<u32>,
    /// Links that may begin a request: as often as there is room for one.
    free_links: VecDeque<Key>,
    /// Links that may take what they could not take before.
    roomy: VecDeque<Key>,
    /// Links that are being set up; links that are of use.
    opening: usize,
    live: usize,
    retiring: usize,
    /// Requests that were begun and have not ended.
    pub(super) outstanding: usize,
    /// Held links still to be woken.
    to_wake: Vec<Key>,
    /// Seats of which it is known whether they are held.
    settled: usize,
    mmtp: mmtp::Settings,
    prng: Prng,
    pub(super) to_dial: Vec<Key>,
    pub(super) dirty: Vec<Key>,
    pub(super) dying: Vec<(Key, bool)>,
    heard: Heard,
    replies: Vec<u8>,
    /// An empty buffer for the next record that comes in pieces.
    spare: Vec<u8>,
}

impl Engine {
    pub(super) fn new(plan: Arc<Plan>, seats: usize, seed: u64) -> Engine {
        let mut tally = Tally::default();
        for priority in plan.mix.priorities().filter(|_| plan.is_mixed) {
            tally.by_priority[usize::from(priority)] = Some(Times::default());
        }
        if plan.mode == Mode::Hold {
            tally.held = Some(Held::default());
        }
        Engine {
            plan,
            now: Time::ZERO,
            stage: Stage::Preparing,
            tally,
            links: Slab::new(),
            seats: (0..seats).map(|_| Seat::default()).collect(),
            timers: Timers::default(),
            schedule: None,
            end: Time::ZERO,
            to_open: VecDeque::new(),
            free_seats: VecDeque::new(),
            free_links: VecDeque::new(),
            roomy: VecDeque::new(),
            opening: 0,
            live: 0,
            retiring: 0,
            outstanding: 0,
            to_wake: Vec::new(),
            settled: 0,
            mmtp: speech::settings(seed),
            prng: Prng::new(seed),
            to_dial: Vec::new(),
            dirty: Vec::new(),
            dying: Vec::new(),
            heard: Heard::default(),
            replies: Vec::new(),
            spare: Vec::new(),
        }
    }

    // ---- stages ----

    fn wanted_kind(&self) -> Option<HandshakeKind> {
        match self.plan.mode {
            Mode::Visit { kind, .. } => Some(kind),
            Mode::Stay | Mode::Hold => None,
        }
    }

    fn needs_tickets(&self) -> bool {
        self.wanted_kind().is_some_and(|kind| kind != HandshakeKind::Full)
    }

    /// Opens connections that stay, so that no request waits for a handshake that is none of its own, or fetches first
    /// tickets, if they are needed.
    pub(super) fn prepare(&mut self) {
        if self.plan.mode == Mode::Stay || self.needs_tickets() {
            self.to_open.extend(0..self.seats.len() as u32);
        }
    }

    /// Whether all that should come before the start has, or has failed.
    pub(super) fn is_prepared(&self) -> bool {
        let under_way = if self.plan.mode == Mode::Stay { self.opening } else { self.live };
        self.to_open.is_empty() && under_way == 0
    }

    /// Begins. With a schedule, this worker's part of it.
    pub(super) fn start(&mut self, now: Time, end: Time, schedule: Option<Schedule>) {
        (self.now, self.end, self.schedule, self.stage) = (now, end, schedule, Stage::Running);
        let seats = 0..self.seats.len() as u32;
        match self.plan.mode {
            Mode::Stay => {
                let mut is_open = vec![false; self.seats.len()];
                let live = self.links.iter().filter(|(_, link)| link.phase.is_live());
                live.for_each(|(_, link)| is_open[link.seat as usize] = true);
                self.to_open.extend(seats.filter(|seat| !is_open[*seat as usize]));
            }
            Mode::Hold => self.to_open.extend(seats),
            Mode::Visit { .. } => self.free_seats.extend(seats),
        }
    }

    /// Held connections: whether all were opened, or failed to.
    pub(super) fn is_settled(&self) -> bool {
        self.settled == self.seats.len()
    }

    /// Begins to wake what is held.
    pub(super) fn wake(&mut self) {
        self.stage = Stage::Waking;
        self.to_wake = self.links.iter().filter(|(_, link)| link.phase == Phase::Open).map(|(key, _)| key).collect();
    }

    /// Begins nothing new from now on, but for what was due before.
    pub(super) fn finish(&mut self, end: Time) {
        self.stage = Stage::Finishing;
        self.end = self.end.min(end);
        self.to_open.clear();
    }

    /// Whether nothing is left that finishing (or waking) waits for.
    pub(super) fn is_finished(&self) -> bool {
        let is_begun = self.schedule.as_ref().is_none_or(|schedule| schedule.backlog(before(self.end)) == 0);
        let is_idle = match self.plan.mode {
            Mode::Stay => true,
            Mode::Hold => self.to_wake.is_empty(),
            Mode::Visit { .. } => self.live == 0,
        };
        self.outstanding == 0 && is_begun && is_idle
    }

    /// Counts what is not over, and says goodbye to everybody.
    pub(super) fn close(&mut self) {
        self.stage = Stage::Closing;
        let not_begun = self.schedule.as_ref().map_or(0, |schedule| schedule.backlog(before(self.end)));
        let is_visit = matches!(self.plan.mode, Mode::Visit { .. });
        let is_silent = |link: &Link| is_visit && link.is_counted && link.speech.under_way() == 0;
        let on_their_way = self.links.iter().filter(|(_, link)| link.phase.is_setup() && is_silent(link)).count();
        self.tally.fault(Fault::NotBegun, not_begun, || None);
        self.tally.fault(Fault::Unanswered, (self.outstanding + on_their_way) as u64, || None);
        self.outstanding = 0;
        self.free_links.clear();
        self.free_seats.clear();
        self.to_open.clear();
        let left: Vec<Key> = self.links.iter().filter(|(_, link)| link.phase.is_live()).map(|(key, _)| key).collect();
        for key in left {
            let is_open = self.links.get(key).is_some_and(|link| link.phase == Phase::Open);
            if is_open { self.retire(key) } else { self.kill(key) }
        }
    }

    // ---- beginning ----

    /// Begins whatever may begin now. `clock` is read for each request, so that no answer looks slower for the work on
    /// those before it.
    pub(super) fn begin(&mut self, clock: impl Fn() -> Time) {
        if self.stage == Stage::Closing {
            return;
        }
        while self.opening < OPENING_MAX
            && let Some(seat) = self.to_open.pop_front()
        {
            let is_counted = self.stage != Stage::Preparing || self.plan.mode == Mode::Stay;
            self.open(seat, clock(), is_counted);
        }
        if matches!(self.plan.mode, Mode::Visit { .. }) {
            self.begin_visits(&clock);
        }
        while self.stage == Stage::Waking
            && self.outstanding < WAKING_MAX
            && let Some(key) = self.to_wake.pop()
        {
            // Some were lost since the waking began.
            if self.links.get(key).is_some_and(Link::takes_requests) {
                let asked = self.new_request(clock());
                self.ask(key, asked);
            }
        }
        self.ask_again();
        self.begin_requests(&clock);
        if let Some(schedule) = &mut self.schedule {
            let dropped = schedule.shed(self.now.min(before(self.end)));
            self.tally.fault(Fault::BacklogFull, dropped, || None);
        }
    }

    fn begin_visits(&mut self, clock: &impl Fn() -> Time) {
        if !matches!(self.stage, Stage::Running | Stage::Finishing) {
            return;
        }
        while let Some(&seat) = self.free_seats.front() {
            let is_primed = !self.needs_tickets() || !self.seats[seat as usize].tickets.is_empty();
            let now = clock();
            if is_primed {
                let Some(at) = self.next_start(now) else { return };
                self.free_seats.pop_front();
                self.open(seat, at, true);
            } else if self.stage == Stage::Running {
                self.free_seats.pop_front();
                self.open(seat, now, false);
            } else {
                self.free_seats.pop_front(); // there is no time to come back
            }
        }
    }

    fn begin_requests(&mut self, clock: &impl Fn() -> Time) {
        while let Some(&key) = self.free_links.front() {
            let Some(link) = self.links.get(key).filter(|link| link.takes_requests()) else {
                self.free_links.pop_front();
                continue;
            };
            if link.todo == 0 {
                self.free_links.pop_front();
                continue;
            }
            let now = clock();
            let is_visit = matches!(self.plan.mode, Mode::Visit { .. });
            let Some(at) = (if is_visit { Some(now) } else { self.next_start(now) }) else { return };
            self.links.get_mut(key).expect("found above").todo -= 1;
            self.free_links.pop_front();
            let asked = self.new_request(at);
            self.ask(key, asked);
        }
    }

    /// When the next request or visit starts, if it may now.
    fn next_start(&mut self, now: Time) -> Option<Time> {
        let Some(schedule) = &mut self.schedule else {
            return (self.stage == Stage::Running).then_some(now);
        };
        let at = schedule.take(now.min(before(self.end)))?;
        self.tally.late_starts += u64::from(now.since(at) > LATE_AFTER);
        Some(at)
    }

    fn new_request(&mut self, at: Time) -> Asked {
        self.outstanding += 1;
        Asked { at, priority: self.plan.mix.draw(&mut self.prng) }
    }

    /// When something is meant to start that could, if a time is set for it.
    pub(super) fn next_due(&self) -> Option<Time> {
        let schedule = self.schedule.as_ref()?;
        let is_free = !self.free_links.is_empty() || !self.free_seats.is_empty();
        let next = schedule.next();
        (is_free && next < self.end && self.stage == Stage::Running).then_some(next)
    }

    /// Begins a request on a link. False when the link cannot take it now: it waits with the seat.
    fn ask(&mut self, key: Key, asked: Asked) -> bool {
        let Some(link) = self.links.get_mut(key) else { return false };
        let is_taken = link.speech.ask(&self.plan.recipe, asked, &mut link.lane);
        if !is_taken {
            self.seats[link.seat as usize].again.push_front(asked);
        }
        touch(&mut self.dirty, link, key);
        is_taken
    }

    /// Begins what links could not take before and may take now.
    fn ask_again(&mut self) {
        while let Some(key) = self.roomy.pop_front() {
            while let Some(link) = self.links.get(key).filter(|link| link.takes_requests())
                && let Some(asked) = self.seats[link.seat as usize].again.pop_front()
                && self.ask(key, asked)
            {}
        }
    }

    // ---- connections ----

    /// Begins a connection of a seat.
    fn open(&mut self, seat: u32, began: Time, is_counted: bool) {
        let plan = self.plan.clone();
        let lane = match &plan.tls {
            None => Ok(Lane::plain()),
            Some(tls) => {
                let is_early = self.wanted_kind() == Some(HandshakeKind::Early);
                let ticket = self.seats[seat as usize].tickets.pop().filter(|_| is_counted);
                let ticket = ticket.map(|ticket| ticket.offering_early_data(is_early));
                let mut hello = Vec::new();
                Session::client(&tls.settings, &tls.name, ticket, &mut hello)
                    .map(|session| Lane::secure(session, hello))
            }
        };
        let mut lane = match lane {
            Ok(lane) => lane,
            Err(error) => {
                self.tally.fault(Fault::Handshake, 1, || Some(error.to_string()));
                return self.rest_seat(seat);
            }
        };
        let speech = Speech::new(&plan.recipe, &self.mmtp, self.now, &mut lane);
        let todo = match plan.mode {
            Mode::Visit { requests, .. } if is_counted => requests,
            Mode::Visit { .. } | Mode::Hold => 1,
            Mode::Stay => u64::MAX,
        };
        let key = self.links.insert(Link {
            fd: None,
            phase: Phase::Connecting,
            seat,
            lane,
            speech,
            receiving: Receiving::Idle,
            carry: Vec::new(),
            ending: Ending::Open,
            began,
            connected: began,
            is_counted,
            todo,
            has_heard: false,
            awaits_ticket: false,
            send_fault: None,
            connect_out: false,
            is_dirty: false,
            deadline: Deadline::default(),
        });
        (self.opening, self.live) = (self.opening + 1, self.live + 1);
        self.to_dial.push(key);
        if is_counted && self.wanted_kind() == Some(HandshakeKind::Early) {
            self.ask_first(key);
            let link = self.links.get_mut(key).expect("just inserted");
            link.lane.put_early(); // what does not fit goes after the handshake
        }
    }

    /// Begins the first requests of a visit: they count from when the visit began.
    fn ask_first(&mut self, key: Key) {
        let link = self.links.get_mut(key).expect("the caller has it");
        let count = link.todo.min(self.plan.outstanding as u64);
        link.todo -= count;
        let began = link.began;
        for _ in 0..count {
            let asked = self.new_request(began);
            self.ask(key, asked);
        }
    }

    /// A link was dialled.
    pub(super) fn dialled(&mut self, key: Key, dialled: Result<Fd, Errno>) {
        let Some(link) = self.links.get_mut(key) else { return };
        match dialled {
            Ok(fd) => {
                link.fd = Some(fd);
                link.connect_out = true;
                link.deadline.set(Some(self.now + SETUP_TIMEOUT), &mut self.timers, Wake::Link(key));
            }
            Err(errno) => self.lose(key, Fault::NoSocket, Some(errno.to_string())),
        }
    }

    /// A connect is over.
    pub(super) fn connected(&mut self, key: Key, result: Result<(), Errno>) {
        let Some(link) = self.links.get_mut(key) else { return };
        link.connect_out = false;
        if link.phase != Phase::Connecting {
            return;
        }
        if let Err(errno) = result {
            return self.lose(key, connect_fault(errno), Some(errno.to_string()));
        }
        link.connected = self.now;
        if link.is_counted {
            self.tally.connect.record(self.now.since(link.began));
        }
        if link.lane.is_secure() {
            link.phase = Phase::Handshaking;
            touch(&mut self.dirty, link, key);
        } else {
            self.opened(key);
        }
    }

    /// A handshake is complete.
    fn established(&mut self, key: Key, established: &Established) {
        let link = self.links.get_mut(key).expect("the caller found it");
        let got = match (established.early, established.resumed) {
            (Early::Accepted, _) => HandshakeKind::Early,
            (_, true) => HandshakeKind::Resumed,
            (_, false) => HandshakeKind::Full,
        };
        if link.is_counted {
            self.tally.handshake.record(self.now.since(link.connected));
            self.tally.kinds[got as usize] += 1;
            if let Mode::Visit { kind: wanted, .. } = self.plan.mode
                && wanted != got
            {
                return self.lose(key, Fault::WrongKind { wanted, got }, None);
            }
        }
        link.lane.open();
        self.opened(key);
    }

    /// Requests may flow.
    fn opened(&mut self, key: Key) {
        let link = self.links.get_mut(key).expect("the caller found it");
        link.phase = Phase::Open;
        link.deadline.set(None, &mut self.timers, Wake::Link(key));
        self.opening -= 1;
        self.tally.connections_opened += u64::from(link.is_counted);
        if link.speech.has_queued() {
            link.speech.drain(&self.plan.recipe, &mut link.lane); // all that was put before may have gone early
        }
        touch(&mut self.dirty, link, key);
        match self.plan.mode {
            Mode::Stay => {
                let waiting = self.seats[link.seat as usize].again.len();
                (waiting..self.plan.outstanding).for_each(|_| self.free_links.push_back(key));
                self.roomy.push_back(key);
            }
            // With early data the first requests have gone already.
            Mode::Visit { .. } | Mode::Hold if link.speech.under_way() == 0 => self.ask_first(key),
            Mode::Visit { .. } | Mode::Hold => {}
        }
    }

    // ---- bytes in ----

    /// Bytes arrived.
    pub(super) fn feed(&mut self, key: Key, bytes: &mut [u8]) {
        let Some(link) = self.links.get(key) else { return };
        if !matches!(link.phase, Phase::Handshaking | Phase::Open | Phase::Retiring) {
            return;
        }
        if link.lane.is_secure() { self.feed_records(key, bytes) } else { self.hear(key, bytes) }
    }

    /// Cuts the stream into records: whole ones are opened where they lie, a partial one is carried over.
    fn feed_records(&mut self, key: Key, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let Some(link) = self.links.get_mut(key).filter(|link| link.phase != Phase::Dying) else { return };
            match tls::cut(&mut link.carry, bytes, || std::mem::take(&mut self.spare)) {
                Ok(Cut::Whole(record, rest)) => {
                    self.record(key, record);
                    bytes = rest;
                }
                Ok(Cut::Gathered(mut record, rest)) => {
                    self.record(key, &mut record);
                    record.clear();
                    self.spare = record;
                    bytes = rest;
                }
                Ok(Cut::Partial) => return,
                Err(error) => return self.miscut(key, error),
            }
        }
    }

    /// What arrived is not a record.
    fn miscut(&mut self, key: Key, error: TlsError) {
        if let Some(link) = self.links.get_mut(key) {
            link.lane.fail(error);
        }
        self.tls_failed(key, error);
    }

    /// One whole record.
    fn record(&mut self, key: Key, record: &mut [u8]) {
        let Some(link) = self.links.get_mut(key) else { return };
        let session = link.lane.session().expect("records are cut for links with a session only");
        let mut replies = std::mem::take(&mut self.replies);
        let received = session.receive(record, &mut replies);
        if !replies.is_empty() {
            link.lane.put_ahead(&replies);
            touch(&mut self.dirty, link, key);
            replies.clear();
        }
        self.replies = replies;
        match received {
            Ok(Received::Data(plain)) => self.hear(key, plain),
            Ok(Received::Established(established)) => self.established(key, &established),
            Ok(Received::CloseNotify) => self.peer_ended(key),
            Ok(Received::Nothing | Received::Hello | Received::Early(_)) if self.needs_tickets() => {
                self.take_tickets(key)
            }
            Ok(Received::Nothing | Received::Hello | Received::Early(_)) => {}
            Err(error) => self.tls_failed(key, error),
        }
    }

    fn take_tickets(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key) else { return };
        let tickets = link.lane.session().map(Session::client_tickets).unwrap_or_default();
        let seat = &mut self.seats[link.seat as usize];
        seat.tickets.extend(tickets);
        let excess = seat.tickets.len().saturating_sub(TICKETS_MAX);
        seat.tickets.drain(..excess);
        if link.awaits_ticket && link.phase == Phase::Open && !seat.tickets.is_empty() {
            self.leave(key);
        }
    }

    fn tls_failed(&mut self, key: Key, error: TlsError) {
        let Some(link) = self.links.get(key) else { return };
        let fault = match (link.phase, error) {
            (_, TlsError::Certificate(_)) => Fault::Certificate,
            (Phase::Handshaking, _) => Fault::Handshake,
            _ => Fault::Tls,
        };
        self.lose(key, fault, Some(error.to_string()));
    }

    /// Bytes of the application arrived.
    fn hear(&mut self, key: Key, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(key).filter(|link| link.phase == Phase::Open) else { return };
        let mut heard = std::mem::take(&mut self.heard);
        let result = link.speech.receive(self.now, bytes, &self.plan.recipe, &mut link.lane, &mut heard);
        if link.lane.has_pending() {
            touch(&mut self.dirty, link, key);
        }
        self.digest(key, &mut heard);
        self.heard = heard;
        match result {
            Ok(Prospect::Open) => {}
            Ok(Prospect::Leaving) => self.left(key),
            Err(fault) => self.lose(key, fault, None),
        }
    }

    /// Counts what was heard, and lets what follows from it begin.
    fn digest(&mut self, key: Key, heard: &mut Heard) {
        let Some(link) = self.links.get_mut(key) else { return };
        if std::mem::take(&mut heard.has_begun) && !link.has_heard {
            link.has_heard = true;
            // Connections that stay are opened before the start, so of them this would tell how long they waited for it.
            let is_told = self.plan.mode != Mode::Stay;
            if link.is_counted && is_told {
                self.tally.first_answer.record(self.now.since(link.began));
            }
        }
        if std::mem::take(&mut heard.has_room) && !self.seats[link.seat as usize].again.is_empty() {
            self.roomy.push_back(key);
        }
        let is_counted = link.is_counted;
        for answer in heard.answers.drain(..) {
            self.outstanding -= 1;
            self.count(answer, is_counted);
            match self.plan.mode {
                Mode::Stay => self.free_links.push_back(key),
                Mode::Visit { .. } => self.visited(key),
                Mode::Hold => self.held(key, answer.result.is_ok()),
            }
        }
    }

    fn count(&mut self, answer: Answer, is_counted: bool) {
        if let Some(receipt) = answer.receipt {
            self.tally.receipt(receipt);
        }
        match answer.result {
            // What is opened to be held is told by the time of its first answer.
            Ok(()) if self.plan.mode == Mode::Hold && self.stage != Stage::Waking => self.tally.requests += 1,
            Ok(()) if is_counted => {
                let latency = self.now.since(answer.asked.at);
                self.tally.answered(latency, answer.asked.priority, self.now <= self.end);
            }
            Ok(()) => {}
            Err(fault) => self.tally.fault(fault, 1, || None),
        }
    }

    /// A request of a visit was answered.
    fn visited(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key) else { return };
        if link.todo > 0 {
            self.free_links.push_back(key);
        } else if link.speech.under_way() == 0 && link.phase == Phase::Open {
            self.take_leave(key);
        }
    }

    /// A visit is over but for its ticket.
    fn take_leave(&mut self, key: Key) {
        let needs_ticket = self.needs_tickets() && self.stage != Stage::Finishing;
        let link = self.links.get_mut(key).expect("the caller found it");
        if needs_ticket && self.seats[link.seat as usize].tickets.is_empty() {
            link.awaits_ticket = true;
            link.deadline.set(Some(self.now + TICKET_TIMEOUT), &mut self.timers, Wake::Link(key));
        } else {
            self.leave(key);
        }
    }

    /// Ends a visit; its seat may begin another one.
    fn leave(&mut self, key: Key) {
        let Some(link) = self.links.get(key) else { return };
        let seat = link.seat;
        self.retire(key);
        if self.stage != Stage::Preparing {
            self.free_seats.push_back(seat);
        }
    }

    /// A connection to be held answered, or one that was held did.
    fn held(&mut self, key: Key, is_good: bool) {
        let is_waking = self.stage == Stage::Waking;
        let Some(held) = &mut self.tally.held else { return };
        if is_waking {
            held.answered += u64::from(is_good);
            return;
        }
        self.settled += 1;
        if is_good {
            held.held += 1;
            if let Some(link) = self.links.get_mut(key) {
                link.speech.rest();
                link.lane.rest();
            }
        } else {
            self.retire(key);
        }
    }

    // ---- ends ----

    /// The server takes no more requests on a connection.
    fn left(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key).filter(|link| link.phase == Phase::Open) else { return };
        let seat = link.seat;
        self.seats[seat as usize].again.extend(link.speech.take_unread());
        if link.speech.under_way() > 0 || link.awaits_ticket {
            return;
        }
        match self.plan.mode {
            Mode::Stay => {
                self.retire(key);
                self.to_open.push_back(seat);
            }
            Mode::Visit { .. } => {
                self.abandon(seat, Fault::Closed);
                self.take_leave(key);
            }
            Mode::Hold => self.end_held(key),
        }
    }

    /// Requests of a seat that can be sent nowhere.
    fn abandon(&mut self, seat: u32, fault: Fault) {
        let count = std::mem::take(&mut self.seats[seat as usize].again).len();
        self.outstanding -= count;
        self.tally.fault(fault, count as u64, || None);
    }

    /// The server ended its direction in order.
    pub(super) fn peer_ended(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key) else { return };
        match link.phase {
            Phase::Open => {}
            Phase::Handshaking => return self.lose(key, Fault::Handshake, Some("closed in the handshake".to_owned())),
            Phase::Connecting | Phase::Retiring | Phase::Dying => return,
        }
        let mut heard = std::mem::take(&mut self.heard);
        link.speech.ended(&mut heard);
        self.digest(key, &mut heard);
        self.heard = heard;
        if self.links.get(key).is_some_and(|link| link.phase == Phase::Open) {
            self.lose(key, Fault::Closed, None);
        }
    }

    /// The socket's receiving direction is over (FIN).
    pub(super) fn peer_cut(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key) else { return };
        link.receiving = Receiving::Over;
        match link.phase {
            Phase::Retiring => self.settle(key),
            _ => self.peer_ended(key),
        }
    }

    /// A send failed on an open connection, and a receive is out: what the server said before it broke off tells more
    /// than the broken send, if it said anything.
    pub(super) fn send_failed(&mut self, key: Key, errno: Errno) {
        let Some(link) = self.links.get_mut(key).filter(|link| link.phase == Phase::Open) else { return };
        link.send_fault = Some(errno);
        link.deadline.set(Some(self.now + LISTEN_TIMEOUT), &mut self.timers, Wake::Link(key));
    }

    /// A connection is over before its time: what is under way on it fails.
    pub(super) fn lose(&mut self, key: Key, fault: Fault, detail: Option<String>) {
        let Some(link) = self.links.get(key).filter(|link| link.phase.is_live()) else { return };
        let (seat, under_way, is_setup) = (link.seat, link.speech.under_way(), link.phase.is_setup());
        let is_used = link.has_heard;
        self.outstanding -= under_way;
        // A connection on which nothing is due may end: that is for the server to say.
        let may_end = self.plan.mode == Mode::Stay || self.is_holding();
        let is_orderly = fault == Fault::Closed && under_way == 0 && may_end;
        let count = if is_orderly { 0 } else { under_way.max(1) };
        self.tally.fault(fault, count as u64, || detail);
        match self.plan.mode {
            Mode::Hold => self.end_held(key),
            Mode::Visit { .. } => {
                self.abandon(seat, fault);
                self.rest_seat(seat);
            }
            Mode::Stay if is_orderly && is_used => self.to_open.push_back(seat),
            Mode::Stay => self.rest_seat(seat),
        }
        // What is due to the server (an alert, GOAWAY) goes first.
        let has_words = self.links.get(key).is_some_and(|link| link.lane.has_pending() && link.fd.is_some());
        if has_words && !is_setup { self.retire(key) } else { self.kill(key) }
    }

    fn is_holding(&self) -> bool {
        self.plan.mode == Mode::Hold && self.stage == Stage::Holding
    }

    /// A connection that was to be held, or was, is over.
    fn end_held(&mut self, key: Key) {
        let is_held = matches!(self.stage, Stage::Holding | Stage::Waking)
            || self.links.get(key).is_some_and(|link| link.has_heard && link.speech.under_way() == 0);
        match &mut self.tally.held {
            Some(held) if is_held => held.lost += 1,
            _ => self.settled += 1,
        }
        self.retire(key);
    }

    /// A seat begins anew after a pause.
    fn rest_seat(&mut self, seat: u32) {
        if matches!(self.stage, Stage::Running | Stage::Finishing) {
            self.timers.schedule(self.now + RETRY_PAUSE, Wake::Seat(seat));
        }
    }

    /// Ends a link gently.
    fn retire(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key).filter(|link| link.phase.is_live()) else { return };
        if link.phase != Phase::Open || self.retiring >= RETIRING_MAX {
            return self.kill(key);
        }
        link.phase = Phase::Retiring;
        link.ending = Ending::Wanted;
        link.deadline.set(Some(self.now + LINGER_TIMEOUT), &mut self.timers, Wake::Link(key));
        touch(&mut self.dirty, link, key);
        (self.live, self.retiring) = (self.live - 1, self.retiring + 1);
    }

    /// Closes a link whose both directions have ended.
    pub(super) fn settle(&mut self, key: Key) {
        let Some(link) = self.links.get(key) else { return };
        if link.phase == Phase::Retiring && link.ending == Ending::Done && link.receiving == Receiving::Over {
            self.kill(key);
        }
    }

    /// Ends a link at once.
    pub(super) fn kill(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key) else { return };
        match link.phase {
            Phase::Dying => return,
            Phase::Connecting | Phase::Handshaking => (self.opening, self.live) = (self.opening - 1, self.live - 1),
            Phase::Open => self.live -= 1,
            Phase::Retiring => self.retiring -= 1,
        }
        link.phase = Phase::Dying;
        link.deadline.set(None, &mut self.timers, Wake::Link(key));
        self.dying.push((key, false));
    }

    // ---- time ----

    /// Acts on every deadline that has passed.
    pub(super) fn expire(&mut self) {
        while let Some(wake) = self.timers.pop_due(self.now) {
            match wake {
                Wake::Seat(seat) => self.rested(seat),
                Wake::Link(key) => {
                    let Some(link) = self.links.get_mut(key) else { continue };
                    if link.deadline.due(self.now, &mut self.timers, wake) {
                        self.late(key);
                    }
                }
            }
        }
    }

    fn rested(&mut self, seat: u32) {
        match (self.stage, self.plan.mode) {
            (Stage::Running, Mode::Stay) => self.to_open.push_back(seat),
            (Stage::Running | Stage::Finishing, Mode::Visit { .. }) => self.free_seats.push_back(seat),
            _ => {}
        }
    }

    fn late(&mut self, key: Key) {
        let link = self.links.get(key).expect("the caller found it");
        match link.phase {
            Phase::Connecting | Phase::Handshaking => self.lose(key, Fault::SetupTimedOut, None),
            Phase::Open if link.send_fault.is_some() => {
                let detail = link.send_fault.map(|errno| errno.to_string());
                self.lose(key, Fault::Reset, detail);
            }
            Phase::Open if link.awaits_ticket => {
                self.tally.fault(Fault::NoTicket, 1, || None);
                let seat = link.seat;
                self.retire(key);
                self.rest_seat(seat);
            }
            Phase::Open | Phase::Dying => {}
            Phase::Retiring => self.kill(key),
        }
    }
}

/// The last moment before another.
fn before(at: Time) -> Time {
    Time::from_nanos(at.as_nanos().saturating_sub(1))
}

/// Puts a link on the list of those that may have something to send.
pub(super) fn touch(dirty: &mut Vec<Key>, link: &mut Link, key: Key) {
    if !std::mem::replace(&mut link.is_dirty, true) {
        dirty.push(key);
    }
}

fn connect_fault(errno: Errno) -> Fault {
    match std::io::Error::from_raw_os_error(errno.0).kind() {
        std::io::ErrorKind::ConnectionRefused => Fault::ConnectRefused,
        std::io::ErrorKind::TimedOut => Fault::SetupTimedOut,
        std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => Fault::Unreachable,
        std::io::ErrorKind::AddrNotAvailable => Fault::NoSocket,
        std::io::ErrorKind::ConnectionReset => Fault::Reset,
        _ => Fault::Connect,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// An engine without a ring: what the driver would do is done by the test.
    struct Bench {
        engine: Engine,
    }

    impl Bench {
        fn new(plan: Plan) -> Bench {
            let seats = plan.connections;
            let mut engine = Engine::new(Arc::new(plan), seats, 0);
            engine.now = Time::from_nanos(1_000_000_000);
            Bench { engine }
        }

        fn start(&mut self) {
            self.engine.start(self.engine.now, self.engine.now + Duration::from_secs(10), None);
        }

        /// One pass, in which everybody who dials is connected.
        fn pass(&mut self) {
            let now = self.engine.now;
            self.engine.begin(|| now);
            for key in std::mem::take(&mut self.engine.to_dial) {
                self.engine.dialled(key, Ok(Fd(-1)));
                self.engine.connected(key, Ok(()));
            }
            self.engine.begin(|| now);
        }

        fn wait(&mut self, time: Duration) {
            self.engine.now = self.engine.now + time;
            self.engine.expire();
        }

        /// Links that are open.
        fn open(&self) -> Vec<Key> {
            let open = self.engine.links.iter().filter(|(_, link)| link.phase == Phase::Open);
            open.map(|(key, _)| key).collect()
        }

        fn is_asked(&self, key: Key) -> bool {
            self.engine.links.get(key).is_some_and(|link| link.speech.under_way() > 0)
        }

        fn answer(&mut self, key: Key) {
            self.engine.feed(key, &mut ANSWER.to_vec());
        }

        fn faults(&self) -> Vec<(Fault, u64)> {
            self.engine.tally.faults.iter().map(|(fault, counted)| (*fault, counted.count)).collect()
        }
    }

    #[test]
    fn first_answers_are_told_of_connections_that_ask_at_once() {
        for (mode, told) in [(Mode::Stay, 0), (Mode::Hold, 1)] {
            let mut bench = Bench::new(Plan { connections: 1, mode, ..plan("http://a/") });
            bench.engine.prepare();
            bench.pass();
            bench.wait(Duration::from_millis(500)); // for the others
            bench.start();
            bench.pass();
            let [key] = bench.open()[..] else { panic!("one connection is open") };
            bench.answer(key);
            assert_eq!((bench.engine.tally.requests, bench.engine.tally.first_answer.count()), (1, told), "{mode:?}");
        }
    }

    #[test]
    fn held_connections_that_are_lost_before_their_turn_are_not_woken() {
        let count = WAKING_MAX + 2;
        let mut bench = Bench::new(Plan { connections: count, mode: Mode::Hold, ..plan("http://a/") });
        bench.start();
        while !bench.engine.is_settled() {
            bench.pass();
            let open = bench.open();
            let asked = open.into_iter().filter(|key| bench.is_asked(*key));
            asked.collect::<Vec<_>>().into_iter().for_each(|key| bench.answer(key));
        }
        bench.engine.stage = Stage::Holding;
        let held = bench.open();
        assert_eq!(held.len(), count);
        bench.engine.wake();
        bench.pass();
        assert_eq!(bench.engine.outstanding, WAKING_MAX);
        let (woken, waiting): (Vec<_>, Vec<_>) = held.into_iter().partition(|key| bench.is_asked(*key));
        waiting.into_iter().for_each(|key| bench.engine.peer_ended(key));
        woken.into_iter().for_each(|key| bench.answer(key));
        bench.pass();
        assert!(bench.engine.is_finished());
        let all = Held { held: count as u64, lost: 2, answered: WAKING_MAX as u64 };
        assert_eq!(bench.engine.tally.held, Some(all));
    }

    #[test]
    fn a_connection_that_cannot_send_is_asked_nothing_and_lost_soon() {
        let mut bench = Bench::new(Plan { connections: 1, outstanding: 2, ..plan("http://a/") });
        bench.start();
        bench.pass();
        let [key] = bench.open()[..] else { panic!("one connection is open") };
        assert_eq!(bench.engine.outstanding, 2);
        bench.engine.send_failed(key, Errno(105));
        // What was answered before counts; nothing follows it on this connection.
        bench.answer(key);
        bench.pass();
        assert_eq!((bench.engine.tally.requests, bench.engine.outstanding), (1, 1));
        bench.wait(LISTEN_TIMEOUT);
        assert_eq!((bench.faults(), bench.engine.outstanding), (vec![(Fault::Reset, 1)], 0));
        assert_eq!(bench.engine.tally.faults[&Fault::Reset].detail, Some(Errno(105).to_string()));
        assert!(bench.open().is_empty());
        // Another one takes its place.
        bench.wait(RETRY_PAUSE);
        bench.pass();
        assert_eq!((bench.open().len(), bench.engine.outstanding), (1, 2));
    }
}
