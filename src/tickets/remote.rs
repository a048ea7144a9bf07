//! Client of a Redis-compatible server that keeps the tickets of several nodes, over one byte stream.
//!
//! Owns what was asked and not yet answered, and the bytes of an unfinished reply; never a socket, a clock or a key (values
//! are sealed before they come here, and opened by the caller). Requests are pipelined and replies come in order. The
//! server is not trusted: it can make a lookup fail, never a handshake. A lookup ends at its deadline whatever
//! it does; a reply that comes after that is dropped; anything but the expected reply ends the connection. What it is trusted
//! with is to give a value out once: one that does not lets early data be replayed by whoever recorded it.
//!
//! ```text
//! Down --Dial--> Dialing --connected--> Greeting --PONG--> Ready
//!   ^               |                      |                 |
//!   +---------------+--- any fault: jittered exponential back-off
//! ```
//! A ticket that was shown here and that the server may still have is *owed* to it: its lookup was not taken, or the
//! connection ended before the reply. Its client goes on without it and repeats its early data, so whoever recorded the
//! first flight must not find it there. It is deleted as soon as the server takes requests again.
//!
//! Invariant: lookups are in `pending` in the order of their deadlines, and each gets exactly one [`Answer`]; every
//! ticket that [`Remote::lookup`] was ever asked for was deleted for certain, is in `pending`, is owed, or was owed for
//! longer than [`OWED_AGE_MAX`] or beside [`OWED_MAX`] newer ones.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::resp::{Garbage, Parser, Reply, command};
use super::seal::SEALED_BYTES_MAX;
use super::{TICKET_ID_BYTES, TicketId};
use crate::base::backoff::Backoff;
use crate::base::hex;
use crate::base::prng::Prng;
use crate::base::slab::Key;
use crate::base::time::Time;

/// Begins every key, so that an access rule of the server can name them (`~trunkline:ticket:*`).
pub const KEY_PREFIX: &[u8] = b"trunkline:ticket:";

/// Requests in flight. A server that answers in 1 ms then serves a million of them in a second to each worker.
pub const REQUESTS_MAX: usize = 1024;

/// Bytes of requests in flight, wherever they wait: here, in a send buffer or in the kernel.
pub const REQUEST_BYTES_MAX: usize = 512 * 1024;

/// Tickets owed to the server, 40 bytes each. The oldest goes first: it is of use for the shortest time.
pub const OWED_MAX: usize = 1024;

/// How long a ticket is owed. The ages that client and server tell of it may differ by a minute, either way: longer after
/// its first flight, no early data is taken with it.
pub const OWED_AGE_MAX: Duration = Duration::from_secs(120);

/// What is owed is paid while fewer requests than this are in flight: half is left to those who wait.
const PAYING_REQUESTS_MAX: usize = REQUESTS_MAX / 2;

/// A connection on which nothing came for so many deadlines, although something was asked, is given up.
const SILENT_DEADLINES_MAX: u32 = 8;

/// A server that does other work for this long (a fork, a slow command) is not yet dead.
const SILENCE_MIN: Duration = Duration::from_millis(200);

/// Longest time from a dial to the answer to our greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

const KEY_BYTES: usize = KEY_PREFIX.len() + 2 * TICKET_ID_BYTES;
const _: () = assert!(REQUEST_BYTES_MAX > 2 * SEALED_BYTES_MAX);

/// Which server, and how to use it.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteSettings {
    /// Its address. The connection is plain TCP: values are sealed, ids worth nothing without what they name.
    pub server: SocketAddr,
    /// User; empty for the server's default user.
    pub user: String,
    /// Password; empty for none.
    pub password: Zeroizing<String>,
    /// Number of the database; 0 is what every connection starts with.
    pub database: u32,
    /// How long a handshake waits for a lookup.
    pub lookup_timeout: Duration,
    /// How long the server keeps a ticket; whole seconds, at least one.
    pub lifetime: Duration,
}

impl fmt::Debug for RemoteSettings {
    /// All but the password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RemoteSettings { server, user, database, lookup_timeout, lifetime, .. } = self;
        write!(formatter, "RemoteSettings({server}/{database}, user {user:?}, {lookup_timeout:?}, {lifetime:?})")
    }
}

/// What came of a lookup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The sealed value; the server no longer has it.
    Hit(Vec<u8>),
    /// The server has no such ticket.
    Miss,
    /// No answer in time for this ticket, which may be gone or not.
    Late(TicketId),
    /// The connection ended first; the same.
    Down(TicketId),
}

/// Why a connection to the server ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It could not be reached, or did not answer the greeting in time.
    Unreachable,
    /// It closed.
    Closed,
    /// It said nothing for too long.
    Silent,
    /// It said what is no reply, or not the reply to what was asked.
    Garbage,
    /// It refused a request; the first word of its complaint, if it is a known one.
    Refused(&'static str),
}

impl Fault {
    /// For a log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Unreachable => "unreachable",
            Fault::Closed => "closed",
            Fault::Silent => "silent",
            Fault::Garbage => "garbage",
            Fault::Refused(word) => word,
        }
    }
}

/// What the caller must do or know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Connect to the server; then [`Remote::connected`] or [`Remote::broken`].
    Dial,
    /// Close the connection, or give up connecting. Nothing more of it may be reported.
    Close,
    /// A lookup ended.
    Answer(Key, Answer),
    /// The server takes requests.
    Up,
    /// It no longer does.
    Lost(Fault),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Dialled at this time.
    Down(Time),
    /// Given up at this time.
    Dialing(Time),
    /// Given up at this time. What was asked is `Hello`s.
    Greeting(Time),
    Ready,
}

#[derive(Clone, Copy)]
enum Asked {
    /// AUTH or SELECT.
    Hello,
    Ping,
    Set,
    /// `asker` is `None` once it got its answer.
    Lookup {
        asker: Option<Key>,
        id: TicketId,
        deadline: Time,
    },
    /// Nobody waits for the reply.
    Debt(Owed),
}

#[derive(Clone, Copy)]
struct Pending {
    asked: Asked,
    bytes: u32,
}

/// A ticket that the server may still have.
#[derive(Clone, Copy)]
struct Owed {
    id: TicketId,
    since: Time,
}

/// The client. See the module. Not to be printed: it holds ids, and a password on its way.
pub struct Remote {
    settings: RemoteSettings,
    state: State,
    /// Oldest first.
    pending: VecDeque<Pending>,
    /// Sum over `pending`.
    pending_bytes: usize,
    /// So many of `pending` need no look at their deadlines any more. The next one, if any, is a lookup.
    checked: usize,
    /// Oldest first.
    owed: VecDeque<Owed>,
    /// When the server last answered, or was first asked after it had answered everything.
    silent_since: Time,
    parser: Parser,
    output: Vec<u8>,
    events: VecDeque<Event>,
    backoff: Backoff,
    prng: Prng,
}

impl Remote {
    /// Dials as soon as [`Remote::tick`] is called. `seed` is for jitter.
    #[must_use]
    pub fn new(settings: RemoteSettings, seed: u64) -> Remote {
        Remote {
            settings,
            state: State::Down(Time::ZERO),
            pending: VecDeque::new(),
            pending_bytes: 0,
            checked: 0,
            owed: VecDeque::new(),
            silent_since: Time::ZERO,
            parser: Parser::default(),
            output: Vec::new(),
            events: VecDeque::new(),
            backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX),
            prng: Prng::new(seed),
        }
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &RemoteSettings {
        &self.settings
    }

    /// Whether requests are taken (but for the bounds on those in flight).
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == State::Ready
    }

    /// Asks for a ticket and has the server forget it. `true`: `asker` gets one [`Answer`], at its deadline at the latest.
    /// `false`: the server is down, or too much is in flight. It is told to forget the ticket as soon as it can be.
    #[must_use]
    pub fn lookup(&mut self, now: Time, asker: Key, id: &TicketId) -> bool {
        let deadline = now + self.settings.lookup_timeout;
        let is_taken = self.take(now, Asked::Lookup { asker: Some(asker), id: *id, deadline }, id);
        if !is_taken {
            self.owe(Owed { id: *id, since: now });
        }
        is_taken
    }

    fn take(&mut self, now: Time, asked: Asked, id: &TicketId) -> bool {
        self.ask(now, asked, &[b"GETDEL", &key(id)])
    }

    fn owe(&mut self, owed: Owed) {
        if self.owed.len() >= OWED_MAX {
            self.owed.pop_front();
        }
        self.owed.push_back(owed);
    }

    /// Has the server forget what is owed, as far as there is room.
    fn pay(&mut self, now: Time) {
        while self.is_up() && self.pending.len() < PAYING_REQUESTS_MAX {
            let Some(owed) = self.owed.pop_front() else { return };
            if owed.since + OWED_AGE_MAX > now && !self.take(now, Asked::Debt(owed), &owed.id) {
                return self.owed.push_front(owed);
            }
        }
    }

    /// Takes over what another client owed, which nobody can tell any more.
    pub fn inherit(&mut self, other: Remote) {
        other.owed.into_iter().for_each(|owed| self.owe(owed));
    }

    /// Has the server keep a sealed ticket. `false`: it does not, and the caller may keep it elsewhere. What becomes of one
    /// that was accepted here is not told: a ticket that is lost costs a full handshake.
    #[must_use]
    pub fn store(&mut self, now: Time, id: &TicketId, sealed: &[u8]) -> bool {
        let seconds = self.settings.lifetime.as_secs().max(1).to_string();
        sealed.len() <= SEALED_BYTES_MAX
            && self.ask(now, Asked::Set, &[b"SET", &key(id), sealed, b"EX", seconds.as_bytes()])
    }

    fn ask(&mut self, now: Time, asked: Asked, words: &[&[u8]]) -> bool {
        // Each word costs at most 10 bytes around it, and the command as much.
        let bytes = words.iter().map(|word| word.len() + 10).sum::<usize>() + 10;
        if !self.is_up() || self.pending.len() >= REQUESTS_MAX || self.pending_bytes + bytes > REQUEST_BYTES_MAX {
            return false;
        }
        self.push(now, asked, bytes, words);
        true
    }

    fn push(&mut self, now: Time, asked: Asked, bytes: usize, words: &[&[u8]]) {
        if self.pending.is_empty() {
            self.silent_since = now;
        }
        self.pending.push_back(Pending { asked, bytes: bytes as u32 });
        self.pending_bytes += bytes;
        self.skip();
        command(&mut self.output, words);
    }

    /// The connection that [`Event::Dial`] asked for stands.
    pub fn connected(&mut self, now: Time) {
        let State::Dialing(until) = self.state else { return };
        self.state = State::Greeting(until);
        let RemoteSettings { user, password, database, .. } = self.settings.clone();
        if !user.is_empty() {
            self.push(now, Asked::Hello, 0, &[b"AUTH", user.as_bytes(), password.as_bytes()]);
        } else if !password.is_empty() {
            self.push(now, Asked::Hello, 0, &[b"AUTH", password.as_bytes()]);
        }
        if database != 0 {
            self.push(now, Asked::Hello, 0, &[b"SELECT", database.to_string().as_bytes()]);
        }
        // A connection that the kernel of a stopped server accepted is none: it must answer.
        self.push(now, Asked::Ping, 0, &[b"PING"]);
    }

    /// The connection ended, or could not be made. Not to be called for one that [`Event::Close`] ended.
    pub fn broken(&mut self, now: Time) {
        match self.state {
            State::Down(_) => {}
            State::Dialing(_) => self.lose(now, Fault::Unreachable),
            State::Greeting(_) | State::Ready => self.lose(now, Fault::Closed),
        }
    }

    /// The server said this.
    pub fn received(&mut self, now: Time, mut input: &[u8]) {
        while matches!(self.state, State::Greeting(_) | State::Ready) {
            let mut parser = std::mem::take(&mut self.parser);
            let outcome = match parser.next(&mut input) {
                Ok(None) => {
                    self.parser = parser;
                    return;
                }
                Ok(Some(reply)) => self.replied(now, reply),
                Err(Garbage) => Err(Fault::Garbage),
            };
            self.parser = parser;
            if let Err(fault) = outcome {
                self.give_up(now, fault);
            }
        }
    }

    fn replied(&mut self, now: Time, reply: Reply<'_>) -> Result<(), Fault> {
        let Some(Pending { asked, bytes }) = self.pending.pop_front() else { return Err(Fault::Garbage) };
        let outcome = self.settle(now, asked, bytes, reply);
        if outcome.is_ok() {
            self.pay(now);
        }
        outcome
    }

    /// Makes of a reply what it means for what was asked first.
    fn settle(&mut self, now: Time, asked: Asked, bytes: u32, reply: Reply<'_>) -> Result<(), Fault> {
        self.pending_bytes -= bytes as usize;
        self.checked = self.checked.saturating_sub(1);
        self.skip();
        self.silent_since = now;
        let answer = match (asked, reply) {
            (Asked::Hello, Reply::Okay) => return Ok(()),
            (Asked::Ping, Reply::Pong) => {
                self.state = State::Ready;
                self.events.push_back(Event::Up);
                return Ok(());
            }
            (Asked::Set, Reply::Okay) => {
                // Not before: a server that greets but refuses all else must not be dialled without pause.
                self.backoff.succeeded();
                return Ok(());
            }
            (Asked::Debt(_), Reply::Nil | Reply::Bulk(_)) => return Ok(()),
            (Asked::Lookup { .. }, Reply::Nil) => Ok(Answer::Miss),
            (Asked::Lookup { .. }, Reply::Bulk(sealed)) => Ok(Answer::Hit(sealed.to_vec())),
            (_, Reply::Error(text)) => Err(Fault::Refused(first_word(text))),
            _ => Err(Fault::Garbage),
        };
        match &answer {
            Ok(answer) => self.tell(asked, answer.clone()),
            Err(_) => self.fail(now, asked),
        }
        answer.map(drop)
    }

    fn tell(&mut self, asked: Asked, answer: Answer) {
        if let Asked::Lookup { asker: Some(asker), .. } = asked {
            self.events.push_back(Event::Answer(asker, answer));
        }
    }

    /// There will be no reply, or none that says what became of this.
    fn fail(&mut self, now: Time, asked: Asked) {
        match asked {
            Asked::Lookup { id, .. } => {
                self.tell(asked, Answer::Down(id));
                self.owe(Owed { id, since: now });
            }
            Asked::Debt(owed) => self.owe(owed),
            Asked::Hello | Asked::Ping | Asked::Set => {}
        }
    }

    /// Does what is due: dials, ends lookups, gives up on a silent server.
    pub fn tick(&mut self, now: Time) {
        match self.state {
            State::Down(until) if until <= now => {
                self.state = State::Dialing(now + GREETING_TIMEOUT);
                self.events.push_back(Event::Dial);
            }
            State::Dialing(until) | State::Greeting(until) if until <= now => self.give_up(now, Fault::Unreachable),
            State::Ready => {
                self.end_late_lookups(now);
                if !self.pending.is_empty() && self.silent_since + self.silence_max() <= now {
                    self.give_up(now, Fault::Silent);
                }
            }
            State::Down(_) | State::Dialing(_) | State::Greeting(_) => {}
        }
    }

    fn end_late_lookups(&mut self, now: Time) {
        while let Some(Pending { asked, .. }) = self.pending.get_mut(self.checked) {
            if let Asked::Lookup { asker, id, deadline } = asked {
                if *deadline > now {
                    break;
                }
                self.events.extend(asker.take().map(|asker| Event::Answer(asker, Answer::Late(*id))));
            }
            self.checked += 1;
        }
    }

    /// Goes on to the next lookup, so that [`Remote::due`] finds its deadline at once.
    fn skip(&mut self) {
        while self.pending.get(self.checked).is_some_and(|each| !matches!(each.asked, Asked::Lookup { .. })) {
            self.checked += 1;
        }
    }

    fn silence_max(&self) -> Duration {
        self.settings.lookup_timeout.saturating_mul(SILENT_DEADLINES_MAX).max(SILENCE_MIN)
    }

    /// When [`Remote::tick`] has something to do, if nothing else happens.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        match self.state {
            State::Down(until) | State::Dialing(until) | State::Greeting(until) => Some(until),
            State::Ready => {
                let silent = (!self.pending.is_empty()).then(|| self.silent_since + self.silence_max());
                let late = self.pending.get(self.checked).and_then(|each| match each.asked {
                    Asked::Lookup { deadline, .. } => Some(deadline),
                    Asked::Hello | Asked::Ping | Asked::Set | Asked::Debt(_) => None,
                });
                [silent, late].into_iter().flatten().min()
            }
        }
    }

    /// What happened, in order. To be called until `None` after every other call.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Moves what is to be sent behind `into`. At most [`REQUEST_BYTES_MAX`] are on their way at any time, whoever holds
    /// them, and a greeting.
    pub fn drain(&mut self, into: &mut Vec<u8>) {
        into.append(&mut self.output);
    }

    /// Whether [`Remote::drain`] would move anything.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    fn give_up(&mut self, now: Time, fault: Fault) {
        self.lose(now, fault);
        self.events.push_back(Event::Close);
    }

    fn lose(&mut self, now: Time, fault: Fault) {
        self.state = State::Down(now + self.backoff.failed(&mut self.prng));
        for Pending { asked, .. } in std::mem::take(&mut self.pending) {
            self.fail(now, asked);
        }
        (self.pending_bytes, self.checked) = (0, 0);
        self.output.clear();
        self.parser = Parser::default();
        self.events.push_back(Event::Lost(fault));
    }
}

fn key(id: &TicketId) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..KEY_PREFIX.len()].copy_from_slice(KEY_PREFIX);
    hex::write(id, &mut key[KEY_PREFIX.len()..]);
    key
}

/// The error codes that tell an operator what to do.
fn first_word(text: &[u8]) -> &'static str {
    const KNOWN: &[&str] = &[
        "NOAUTH",
        "WRONGPASS",
        "NOPERM",
        "LOADING",
        "READONLY",
        "MISCONF",
        "OOM",
        "BUSY",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "MOVED",
        "ERR",
    ];
    let word = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    KNOWN.iter().find(|known| known.as_bytes() == word).copied().unwrap_or("refused")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: TicketId = [0xa5; 32];

    fn settings() -> RemoteSettings {
        RemoteSettings {
            server: SocketAddr::from(([127, 0, 0, 1], 6379)),
            user: String::new(),
            password: Zeroizing::new(String::new()),
            database: 0,
            lookup_timeout: Duration::from_millis(25),
            lifetime: Duration::from_secs(3600),
        }
    }

    fn ms(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    fn asker(index: u32) -> Key {
        Key { index, generation: 1 }
    }

    fn events(remote: &mut Remote) -> Vec<Event> {
        std::iter::from_fn(|| remote.event()).collect()
    }

    fn sent(remote: &mut Remote) -> String {
        let mut bytes = Vec::new();
        remote.drain(&mut bytes);
        bytes.escape_ascii().to_string()
    }

    /// One that is up at time 0, with nothing left to read from it.
    fn up() -> Remote {
        let mut remote = Remote::new(settings(), 1);
        remote.tick(ms(0));
        remote.connected(ms(0));
        remote.received(ms(0), b"+PONG\r\n");
        assert_eq!(events(&mut remote), [Event::Dial, Event::Up]);
        assert_eq!(sent(&mut remote), "*1\\r\\n$4\\r\\nPING\\r\\n");
        assert!(remote.is_up() && remote.due().is_none());
        remote
    }

    #[test]
    fn replies_reach_who_asked_in_order() {
        let mut remote = up();
        assert!(remote.lookup(ms(1), asker(1), &ID));
        assert!(remote.store(ms(1), &ID, b"sealed"));
        assert!(remote.lookup(ms(1), asker(2), &ID));
        let key = format!("trunkline:ticket:{}", "a5".repeat(32));
        let get = format!("*2\\r\\n$6\\r\\nGETDEL\\r\\n$81\\r\\n{key}\\r\\n");
        let set = format!(
            "*5\\r\\n$3\\r\\nSET\\r\\n$81\\r\\n{key}\\r\\n$6\\r\\nsealed\\r\\n$2\\r\\nEX\\r\\n$4\\r\\n3600\\r\\n"
        );
        assert_eq!(sent(&mut remote), format!("{get}{set}{get}"));
        remote.received(ms(2), b"$-1\r\n+OK\r\n$5\r\nva");
        remote.received(ms(3), b"lue\r\n");
        let (miss, hit) =
            (Event::Answer(asker(1), Answer::Miss), Event::Answer(asker(2), Answer::Hit(b"value".into())));
        assert_eq!(events(&mut remote), [miss, hit]);
        assert_eq!((remote.pending_bytes, remote.due()), (0, None));
    }

    #[test]
    fn a_greeting_logs_in_and_chooses_the_database() {
        let login = |user: &str, password: &str, database: u32| {
            let password = Zeroizing::new(password.to_owned());
            let mut remote = Remote::new(RemoteSettings { user: user.into(), password, database, ..settings() }, 1);
            remote.tick(ms(0));
            remote.connected(ms(0));
            (sent(&mut remote), remote)
        };
        let (said, mut remote) = login("me", "pw", 3);
        assert_eq!(
            said,
            "*3\\r\\n$4\\r\\nAUTH\\r\\n$2\\r\\nme\\r\\n$2\\r\\npw\\r\\n*2\\r\\n$6\\r\\nSELECT\\r\\n$1\\r\\n3\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n"
        );
        remote.received(ms(1), b"+OK\r\n+OK\r\n");
        assert!(!remote.is_up() && !remote.lookup(ms(1), asker(1), &ID));
        remote.received(ms(1), b"+PONG\r\n");
        assert!(remote.is_up());
        let (said, mut remote) = login("", "pw", 0);
        assert!(said.starts_with("*2\\r\\n$4\\r\\nAUTH\\r\\n$2\\r\\npw\\r\\n*1"), "{said}");
        remote.received(ms(1), b"-WRONGPASS invalid username-password pair\r\n");
        assert_eq!(events(&mut remote)[1..], [Event::Lost(Fault::Refused("WRONGPASS")), Event::Close]);
        assert!(!format!("{:?}", remote.settings()).contains("pw"));
    }

    #[test]
    fn a_lookup_ends_at_its_deadline_and_its_reply_is_dropped() {
        let mut remote = up();
        assert!(remote.lookup(ms(0), asker(1), &ID) && remote.store(ms(0), &ID, b"x"));
        assert!(remote.lookup(ms(5), asker(2), &ID));
        assert_eq!(remote.due(), Some(ms(25)));
        remote.tick(ms(24));
        assert_eq!(events(&mut remote), []);
        remote.tick(ms(25));
        assert_eq!(events(&mut remote), [Event::Answer(asker(1), Answer::Late(ID))]);
        assert_eq!(remote.due(), Some(ms(30)));
        remote.received(ms(26), b"$1\r\nv\r\n+OK\r\n$1\r\nw\r\n");
        assert_eq!(events(&mut remote), [Event::Answer(asker(2), Answer::Hit(b"w".into()))]);
        assert_eq!(remote.due(), None);
    }

    #[test]
    fn a_silent_server_is_given_up_and_dialled_again_ever_more_rarely() {
        let mut remote = up();
        assert!(remote.lookup(ms(0), asker(1), &ID));
        remote.tick(ms(199));
        assert!(remote.is_up());
        assert_eq!(remote.due(), Some(ms(200)));
        remote.tick(ms(200));
        let late = Event::Answer(asker(1), Answer::Late(ID));
        assert_eq!(events(&mut remote), [late, Event::Lost(Fault::Silent), Event::Close]);
        let (mut now, mut waits) = (ms(200), Vec::new());
        for _ in 0..12 {
            let due = remote.due().expect("it dials again");
            waits.push(due.since(now));
            remote.tick(due);
            assert_eq!(events(&mut remote), [Event::Dial]);
            remote.connected(due);
            // The kernel of a stopped process accepts, and nobody answers.
            now = remote.due().expect("it gives up");
            assert_eq!(now, due + GREETING_TIMEOUT);
            remote.tick(now);
            assert_eq!(events(&mut remote), [Event::Lost(Fault::Unreachable), Event::Close]);
        }
        assert!(waits[0] <= BACKOFF_MIN && waits[11] >= BACKOFF_MAX / 2 && waits[11] <= BACKOFF_MAX, "{waits:?}");
    }

    #[test]
    fn a_server_that_keeps_answering_is_not_silent() {
        let mut remote = up();
        (0..100).for_each(|_| assert!(remote.store(ms(0), &ID, b"x")));
        for at in 1..100 {
            remote.received(ms(at * 150), b"+OK\r\n");
            remote.tick(ms(at * 150));
            assert!(remote.is_up());
        }
    }

    #[test]
    fn whatever_is_not_the_answer_ends_the_connection_and_not_the_asker() {
        let garbage = Fault::Garbage;
        let cases: [(&[u8], Fault); 9] = [
            (b"+OK\r\n", garbage),
            (b"+PONG\r\n", garbage),
            (b":1\r\n", garbage),
            (b"$9999\r\n", garbage),
            (b"$3\r\nabcd", garbage),
            (b"-READONLY You can't write\r\n", Fault::Refused("READONLY")),
            (b"-\r\n", Fault::Refused("refused")),
            (b"-ERR unknown command 'GETDEL'\r\n", Fault::Refused("ERR")),
            (&[0xff; 5000], garbage),
        ];
        for (bytes, fault) in cases {
            let mut remote = up();
            assert!(remote.lookup(ms(1), asker(1), &ID) && remote.lookup(ms(1), asker(2), &ID));
            remote.received(ms(2), bytes);
            let down = |index| Event::Answer(asker(index), Answer::Down(ID));
            assert_eq!(events(&mut remote), [down(1), down(2), Event::Lost(fault), Event::Close]);
            assert!(!remote.lookup(ms(2), asker(3), &ID) && !remote.store(ms(2), &ID, b"x") && !remote.has_output());
            // What the old connection still says is not heard.
            remote.received(ms(2), b"$1\r\nv\r\n");
            assert_eq!(events(&mut remote), []);
        }
        let mut remote = up();
        remote.received(ms(1), b"$1\r\nv\r\n");
        assert_eq!(events(&mut remote), [Event::Lost(garbage), Event::Close]);
        let mut remote = up();
        assert!(remote.store(ms(1), &ID, b"x"));
        remote.received(ms(1), b"$-1\r\n");
        assert_eq!(events(&mut remote), [Event::Lost(garbage), Event::Close]);
    }

    #[test]
    fn a_broken_connection_answers_everybody_once() {
        let mut remote = up();
        assert!(remote.lookup(ms(0), asker(1), &ID) && remote.lookup(ms(10), asker(2), &ID));
        remote.tick(ms(25));
        remote.broken(ms(26));
        remote.broken(ms(26));
        let expected = [
            Event::Answer(asker(1), Answer::Late(ID)),
            Event::Answer(asker(2), Answer::Down(ID)),
            Event::Lost(Fault::Closed),
        ];
        assert_eq!(events(&mut remote), expected);
        let due = remote.due().expect("it dials again");
        remote.tick(due);
        remote.broken(due);
        assert_eq!(events(&mut remote), [Event::Dial, Event::Lost(Fault::Unreachable)]);
    }

    #[test]
    fn what_is_in_flight_is_bounded_in_number_and_bytes() {
        let mut remote = up();
        let taken = (0..3000).filter(|index| remote.lookup(ms(0), asker(*index), &ID)).count();
        assert_eq!(taken, REQUESTS_MAX);
        remote.received(ms(1), b"$-1\r\n");
        assert!(remote.store(ms(1), &ID, b"x") && !remote.store(ms(1), &ID, b"x"));
        let mut remote = up();
        let taken = (0..3000).filter(|_| remote.store(ms(0), &ID, &[1; SEALED_BYTES_MAX])).count();
        assert!(taken > 200 && remote.output.len() <= REQUEST_BYTES_MAX, "{taken}: {}", remote.output.len());
        assert!(!remote.store(ms(0), &ID, &[1; SEALED_BYTES_MAX + 1]));
    }

    /// One that has just come up again at `now`: what it said since, and the events of it.
    fn up_again(remote: &mut Remote, now: u64) -> String {
        remote.tick(ms(now));
        remote.connected(ms(now));
        assert_eq!(events(remote), [Event::Dial]);
        assert_eq!(sent(remote), "*1\\r\\n$4\\r\\nPING\\r\\n");
        remote.received(ms(now), b"+PONG\r\n");
        assert_eq!(events(remote), [Event::Up]);
        sent(remote)
    }

    fn id(number: u32) -> TicketId {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        id
    }

    /// The tickets that these bytes, escaped, ask for.
    fn asked_for(said: &str) -> Vec<u32> {
        let keys = said.split("GETDEL\\r\\n$81\\r\\ntrunkline:ticket:").skip(1);
        keys.map(|key| u32::from_str_radix(&key[..8], 16).expect("digits")).collect()
    }

    #[test]
    fn what_was_not_certainly_deleted_is_deleted_before_anything_else_is_asked() {
        let mut remote = up();
        for number in 1..=4 {
            assert!(remote.lookup(ms(0), asker(number), &id(number)));
        }
        // One is answered in time, one too late, one not at all, one with a refusal; a fifth is not even asked for.
        remote.received(ms(1), b"$1\r\nv\r\n");
        remote.tick(ms(25));
        remote.received(ms(26), b"$1\r\nw\r\n-LOADING\r\n");
        assert!(!remote.lookup(ms(27), asker(5), &id(5)));
        let late = |number| Event::Answer(asker(number), Answer::Late(id(number)));
        let hit = Event::Answer(asker(1), Answer::Hit(b"v".into()));
        let lost = Event::Lost(Fault::Refused("LOADING"));
        assert_eq!(events(&mut remote), [hit, late(2), late(3), late(4), lost, Event::Close]);
        sent(&mut remote);
        assert_eq!(asked_for(&up_again(&mut remote, 200)), [3, 4, 5]);
        // That connection ends too soon as well: what it did not answer is still owed.
        remote.received(ms(200), b"$-1\r\n");
        remote.broken(ms(200));
        assert_eq!(events(&mut remote), [Event::Lost(Fault::Closed)], "nobody waits for these answers");
        assert_eq!(asked_for(&up_again(&mut remote, 600)), [4, 5]);
        assert!(remote.lookup(ms(600), asker(6), &id(6)));
        remote.received(ms(601), b"$-1\r\n$1\r\nv\r\n$1\r\nw\r\n");
        assert_eq!(events(&mut remote), [Event::Answer(asker(6), Answer::Hit(b"w".into()))]);
        remote.broken(ms(602));
        assert_eq!(events(&mut remote), [Event::Lost(Fault::Closed)]);
        assert_eq!(up_again(&mut remote, 9000), "", "it is paid once");
    }

    #[test]
    fn what_is_owed_is_bounded_in_number_and_age() {
        let mut remote = Remote::new(settings(), 1);
        assert!(!remote.lookup(ms(0), asker(0), &id(1)) && !remote.lookup(ms(1), asker(0), &id(2)));
        assert_eq!(asked_for(&up_again(&mut remote, OWED_AGE_MAX.as_millis() as u64)), [2], "the other is too old");
        let mut remote = Remote::new(settings(), 1);
        let owed_max = OWED_MAX as u32;
        (0..=owed_max).for_each(|number| assert!(!remote.lookup(ms(0), asker(0), &id(number))));
        assert_eq!(remote.owed.len(), OWED_MAX);
        // A part at a time, so that who waits has room beside it.
        let said = asked_for(&up_again(&mut remote, 1));
        assert_eq!((said[0], said.len()), (1, PAYING_REQUESTS_MAX));
        assert!(remote.lookup(ms(1), asker(7), &ID));
        let mut paid = said;
        while !remote.owed.is_empty() {
            remote.received(ms(2), b"$-1\r\n");
            paid.extend(asked_for(&sent(&mut remote)).into_iter().filter(|number| *number <= owed_max));
        }
        assert_eq!(paid, (1..=owed_max).collect::<Vec<_>>());
    }

    #[test]
    fn a_lookup_refused_for_want_of_room_is_paid_when_there_is_some() {
        let mut remote = up();
        (0..REQUESTS_MAX as u32).for_each(|number| assert!(remote.lookup(ms(0), asker(number), &id(number))));
        assert!(!remote.lookup(ms(0), asker(0), &id(7777)));
        sent(&mut remote);
        for _ in 0..=REQUESTS_MAX - PAYING_REQUESTS_MAX {
            assert!(!remote.has_output());
            remote.received(ms(1), b"$-1\r\n");
        }
        assert_eq!(asked_for(&sent(&mut remote)), [7777]);
    }

    #[test]
    fn a_client_with_other_settings_pays_what_the_former_owed() {
        let mut former = Remote::new(settings(), 1);
        assert!(!former.lookup(ms(0), asker(0), &id(3)));
        let mut remote = Remote::new(settings(), 2);
        remote.inherit(former);
        assert_eq!(asked_for(&up_again(&mut remote, 1)), [3]);
    }

    proptest! {
        /// A server that says anything at any time: every lookup that was taken ends once and in time, and nothing grows.
        #[test]
        fn no_server_leaves_a_lookup_without_an_answer(
            steps in prop::collection::vec((0..8_u8, 0..40_u64, any::<u8>()), 1..200),
            words in prop::collection::vec(
                prop_oneof![
                    Just(b"+PONG\r\n".to_vec()),
                    Just(b"+OK\r\n".to_vec()),
                    Just(b"$-1\r\n".to_vec()),
                    Just(b"$3\r\nabc\r\n".to_vec()),
                    Just(b"-LOADING\r\n".to_vec()),
                    prop::collection::vec(any::<u8>(), 0..20),
                ],
                1..8,
            ),
        ) {
            let (mut remote, mut now, mut asked) = (up(), 0, std::collections::BTreeMap::new());
            for (step, wait, word) in steps {
                now += wait;
                let index = asked.len() as u32;
                match step {
                    0 => remote.connected(ms(now)),
                    1 if word < 20 => remote.broken(ms(now)),
                    2 | 3 => {
                        if remote.lookup(ms(now), asker(index), &ID) {
                            asked.insert(index, (now, 0));
                        }
                    }
                    4 => drop(remote.store(ms(now), &ID, b"x")),
                    _ => remote.received(ms(now), &words[usize::from(word) % words.len()]),
                }
                remote.tick(ms(now));
                for event in events(&mut remote) {
                    if let Event::Answer(who, _) = event {
                        asked.get_mut(&who.index).expect("it asked").1 += 1;
                    }
                }
                prop_assert!(asked.values().all(|(since, answers)| *answers == 1 || (*answers == 0 && now < since + 25)));
                prop_assert!(remote.owed.len() <= OWED_MAX);
                prop_assert!(remote.parser.held_bytes() <= super::super::resp::REPLY_BYTES_MAX);
                prop_assert!(remote.due().is_none_or(|due| due > ms(now)));
            }
        }
    }
}
