//! Client of a Redis-compatible server that keeps the tickets of several nodes, over one byte stream.
//!
//! Owns what was asked and not yet answered, and the bytes of an unfinished reply; never a socket, a clock or a key (values
//! are sealed before they come here, and opened by the caller). Requests are pipelined and replies come in order. The
//! server is not trusted: it can make a lookup fail, never a handshake. A lookup ends at its deadline whatever
//! it does; a reply that comes later is dropped; anything but the expected reply ends the connection.
//!
//! ```text
//! Down --Dial--> Dialing --connected--> Greeting --PONG--> Ready
//!   ^               |                      |                 |
//!   +---------------+--- any fault: jittered exponential back-off
//! ```
//! Invariant: lookups are in `pending` in the order of their deadlines, and each gets exactly one [`Answer`].

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::resp::{Garbage, Parser, Reply, command};
use super::seal::SEALED_BYTES_MAX;
use super::{TICKET_ID_BYTES, TicketId};
use crate::base::backoff::Backoff;
use crate::base::prng::Prng;
use crate::base::slab::Key;
use crate::base::time::Time;

/// Begins every key, so that an access rule of the server can name them (`~trunkline:ticket:*`).
pub const KEY_PREFIX: &[u8] = b"trunkline:ticket:";

/// Requests in flight. A server that answers in 1 ms then serves a million of them in a second to each worker.
pub const REQUESTS_MAX: usize = 1024;

/// Bytes of requests in flight, wherever they wait: here, in a send buffer or in the kernel.
pub const REQUEST_BYTES_MAX: usize = 512 * 1024;

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
    /// No answer in time.
    Late,
    /// The connection ended first.
    Down,
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

#[derive(Clone, Copy, Debug)]
enum Asked {
    /// AUTH or SELECT.
    Hello,
    Ping,
    Set,
    /// `asker` is `None` once it got its answer.
    Lookup {
        asker: Option<Key>,
        deadline: Time,
    },
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    asked: Asked,
    bytes: u32,
}

/// The client. See the module.
#[derive(Debug)]
pub struct Remote {
    settings: RemoteSettings,
    state: State,
    /// Oldest first.
    pending: VecDeque<Pending>,
    /// Sum over `pending`.
    pending_bytes: usize,
    /// So many of `pending` need no look at their deadlines any more.
    checked: usize,
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
    /// `false`: the server is down, or too much is in flight.
    #[must_use]
    pub fn lookup(&mut self, now: Time, asker: Key, id: &TicketId) -> bool {
        let deadline = now + self.settings.lookup_timeout;
        self.ask(now, Asked::Lookup { asker: Some(asker), deadline }, &[b"GETDEL", &key(id)])
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
        self.pending_bytes -= bytes as usize;
        self.checked = self.checked.saturating_sub(1);
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
            (Asked::Lookup { .. }, Reply::Nil) => Ok(Answer::Miss),
            (Asked::Lookup { deadline, .. }, Reply::Bulk(_)) if deadline <= now => Ok(Answer::Late),
            (Asked::Lookup { .. }, Reply::Bulk(sealed)) => Ok(Answer::Hit(sealed.to_vec())),
            (_, Reply::Error(text)) => Err(Fault::Refused(first_word(text))),
            _ => Err(Fault::Garbage),
        };
        if let Asked::Lookup { asker: Some(asker), .. } = asked {
            self.events.push_back(Event::Answer(asker, answer.clone().unwrap_or(Answer::Down)));
        }
        answer.map(drop)
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
            if let Asked::Lookup { asker, deadline } = asked {
                if *deadline > now {
                    break;
                }
                self.events.extend(asker.take().map(|asker| Event::Answer(asker, Answer::Late)));
            }
            self.checked += 1;
        }
    }

    fn silence_max(&self) -> Duration {
        self.settings.lookup_timeout.saturating_mul(SILENT_DEADLINES_MAX).max(SILENCE_MIN)
    }

    /// When [`Remote::tick`] has something to do, if nothing else happens.
    #[must_use]
    pub fn due(&mut self) -> Option<Time> {
        match self.state {
            State::Down(until) | State::Dialing(until) | State::Greeting(until) => Some(until),
            State::Ready => {
                let silent = (!self.pending.is_empty()).then(|| self.silent_since + self.silence_max());
                while self.pending.get(self.checked).is_some_and(|each| !matches!(each.asked, Asked::Lookup { .. })) {
                    self.checked += 1;
                }
                let late = self.pending.get(self.checked).and_then(|each| match each.asked {
                    Asked::Lookup { deadline, .. } => Some(deadline),
                    Asked::Hello | Asked::Ping | Asked::Set => None,
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
        for Pending { asked, .. } in self.pending.drain(..) {
            if let Asked::Lookup { asker: Some(asker), .. } = asked {
                self.events.push_back(Event::Answer(asker, Answer::Down));
            }
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
    for (pair, byte) in key[KEY_PREFIX.len()..].chunks_exact_mut(2).zip(id) {
        let digit = |value: u8| b"0123456789abcdef"[usize::from(value & 15)];
        pair.copy_from_slice(&[digit(byte >> 4), digit(*byte)]);
    }
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
