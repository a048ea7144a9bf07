//! An attacker who records first flights and sends them again, and the origin that counts what reached it.
//!
//! Users return with a ticket each and put a request into early data, with an id in its path that is never used twice.
//! Of every so many first flights a copy, byte for byte, goes out on connections of its own: before the flight itself,
//! right behind it, up to seconds later, and after everything. A user whose early data is refused asks under another
//! path: whatever comes twice under one id came from a copy.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustls::ClientConfig;
use serde_json::json;
use trunkline::base::prng::Prng;

use crate::Common;
use crate::connection::{self, Connection, Kind};
use crate::speech::Speech;
use crate::trust;

/// Failures in a row after which a thread gives up.
const FAILURES_MAX: u32 = 50;
/// How long a copy's connection is kept, for the server to do what it will.
const COPY_LINGER: Duration = Duration::from_millis(300);
/// Flights kept to be sent again after everything.
const KEPT_MAX: usize = 2_000;
/// For what is under way at the end.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// Arguments.
#[derive(Args, Debug)]
pub struct Replay {
    #[command(flatten)]
    common: Common,
    /// Where the origin that counts listens; the service under test must lead there.
    #[arg(long)]
    origin: SocketAddr,
    /// Handshakes of users.
    #[arg(long, default_value_t = 100_000)]
    connections: u64,
    /// A copy of every so manieth first flight.
    #[arg(long, default_value_t = 10)]
    every: u64,
    /// Chooses copies, times and targets.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// When all is done, print a line, wait for one on standard input, and send the last flights once more: for a
    /// restart of the server in between.
    #[arg(long)]
    after: bool,
}

/// When a copy goes out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum When {
    Before,
    Behind,
    Later,
    After,
}

struct Copy {
    due: Instant,
    target: SocketAddr,
    flight: Arc<Vec<u8>>,
}

/// What all threads share.
struct Shared {
    next: AtomicU64,
    arrived: Vec<AtomicU8>,
    arrived_again: AtomicU64,
    kinds: Mutex<BTreeMap<&'static str, u64>>,
    copies: Mutex<BTreeMap<When, u64>>,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
    kept: Mutex<VecDeque<Arc<Vec<u8>>>>,
}

impl Replay {
    /// Runs users and attacker, prints. True when nothing came twice, and nothing was lost.
    pub fn run(&self) -> io::Result<bool> {
        let shared = Arc::new(Shared {
            next: AtomicU64::new(0),
            arrived: (0..self.connections).map(|_| AtomicU8::new(0)).collect(),
            arrived_again: AtomicU64::new(0),
            kinds: Mutex::default(),
            copies: Mutex::default(),
            errors: AtomicU64::new(0),
            first_error: Mutex::default(),
            kept: Mutex::default(),
        });
        serve(self.origin, &shared)?;
        let began = Instant::now();
        let (later, copies) = channel();
        let attacker = thread::spawn(move || send_later(&copies));
        let base = trust::config(&self.common)?;
        thread::scope(|scope| {
            for index in 0..self.common.threads {
                let (later, shared, base) = (later.clone(), &shared, &base);
                scope.spawn(move || self.users(index as u64, base, shared, &later));
            }
        });
        drop(later);
        attacker.join().expect("it does not panic");
        self.send_kept(&shared);
        if self.after {
            println!("{}", json!({ "kind": "waiting" }));
            io::stdout().flush()?;
            io::stdin().read_line(&mut String::new())?;
            self.send_kept(&shared);
        }
        thread::sleep(SETTLE_TIME);
        Ok(self.report(&shared, began.elapsed()))
    }

    /// One user after another, each with the ticket of one before.
    fn users(&self, index: u64, base: &ClientConfig, shared: &Shared, later: &Sender<Copy>) {
        let config = trust::with_tickets(base, true);
        let mut random = Prng::new(self.seed.wrapping_mul(1_000_003).wrapping_add(index));
        let mut failures = 0;
        while failures < FAILURES_MAX {
            let id = shared.next.fetch_add(1, Ordering::Relaxed);
            if id >= self.connections {
                return;
            }
            match self.user(id, &config, &mut random, shared, later) {
                Ok(kind) => {
                    *shared.kinds.lock().expect("nobody panics with it").entry(kind.name()).or_default() += 1;
                    failures = 0;
                }
                Err(error) => {
                    failures += 1;
                    shared.errors.fetch_add(1, Ordering::Relaxed);
                    let mut first = shared.first_error.lock().expect("nobody panics with it");
                    first.get_or_insert(error.to_string());
                }
            }
        }
    }

    fn user(
        &self,
        id: u64,
        config: &Arc<ClientConfig>,
        random: &mut Prng,
        shared: &Shared,
        later: &Sender<Copy>,
    ) -> io::Result<Kind> {
        let common = &self.common;
        let socket = connection::connect(self.target(random))?;
        let path = format!("/id/{id}");
        let (mut user, flight) = Connection::begin(common, socket, config.clone(), trust::name(common)?, &path)?;
        let is_copied = id.is_multiple_of(self.every);
        let flight = Arc::new(flight);
        let when = [When::Before, When::Behind, When::Later, When::After][random.below(4) as usize];
        if is_copied && when == When::Before {
            self.copy(&flight, Duration::ZERO, random, shared, later, when);
            thread::sleep(Duration::from_micros(random.below(400))); // sometimes it wins
        }
        user.socket.write_all(&flight)?;
        if is_copied && when != When::Before {
            let delay = if when == When::Behind { 0 } else { random.below(3_000) };
            self.copy(&flight, Duration::from_millis(delay), random, shared, later, when);
        }
        let kind = user.complete()?;
        match kind {
            Kind::Early => user.answer()?,
            Kind::Refused => {
                user.speech = Speech::new(common.alpn);
                user.ask(common, &format!("/again/{id}"))?;
            }
            _ => user.ask(common, &path)?,
        }
        user.close()?;
        Ok(kind)
    }

    fn target(&self, random: &mut Prng) -> SocketAddr {
        self.common.target[random.below(self.common.target.len() as u64) as usize]
    }

    /// Has a flight sent again: up to three times, now or later, to any of the targets.
    fn copy(
        &self,
        flight: &Arc<Vec<u8>>,
        delay: Duration,
        random: &mut Prng,
        shared: &Shared,
        later: &Sender<Copy>,
        when: When,
    ) {
        let mut kept = shared.kept.lock().expect("nobody panics with it");
        kept.push_back(Arc::clone(flight));
        if kept.len() > KEPT_MAX {
            kept.pop_front();
        }
        drop(kept);
        for _ in 0..1 + random.below(3) {
            let copy = Copy { due: Instant::now() + delay, target: self.target(random), flight: Arc::clone(flight) };
            *shared.copies.lock().expect("nobody panics with it").entry(when).or_default() += 1;
            // Its end is after ours.
            let _ = later.send(copy);
        }
    }

    /// Sends what was kept once more, when all is over.
    fn send_kept(&self, shared: &Shared) {
        let (later, copies) = channel();
        let kept = shared.kept.lock().expect("nobody panics with it");
        for (index, flight) in kept.iter().enumerate() {
            let target = self.common.target[index % self.common.target.len()];
            let _ = later.send(Copy { due: Instant::now(), target, flight: Arc::clone(flight) });
        }
        *shared.copies.lock().expect("nobody panics with it").entry(When::After).or_default() += kept.len() as u64;
        drop(later);
        send_later(&copies);
    }

    fn report(&self, shared: &Shared, elapsed: Duration) -> bool {
        let counts: Vec<u8> = shared.arrived.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let of = |wanted: fn(u8) -> bool| counts.iter().filter(|count| wanted(**count)).count();
        let twice = of(|count| count > 1);
        let errors = shared.errors.load(Ordering::Relaxed);
        let kinds = shared.kinds.lock().expect("nobody panics with it").clone();
        let refused = kinds.get(Kind::Refused.name()).copied().unwrap_or(0);
        let again = shared.arrived_again.load(Ordering::Relaxed);
        let copies = shared.copies.lock().expect("nobody panics with it").clone();
        let copies: BTreeMap<String, u64> = copies.iter().map(|(when, count)| (format!("{when:?}"), *count)).collect();
        let line = json!({
            "kind": "replay",
            "handshakes": counts.len(),
            "seconds": elapsed.as_secs_f64(),
            "kinds": kinds,
            "errors": errors,
            "first_error": *shared.first_error.lock().expect("nobody panics with it"),
            "copies_sent": copies,
            "arrived_never": of(|count| count == 0),
            "arrived_once": of(|count| count == 1),
            "arrived_twice_or_more": twice,
            "asked_again_after_refusal": refused,
            "arrived_again": again,
        });
        println!("{line}");
        twice == 0 && errors == 0 && again == refused
    }
}

/// Sends copies when they are due, until nobody makes any.
fn send_later(copies: &Receiver<Copy>) {
    let (mut waiting, mut lingering) = (Vec::<Copy>::new(), VecDeque::<(Instant, TcpStream)>::new());
    let mut is_over = false;
    while !is_over || !waiting.is_empty() || !lingering.is_empty() {
        match copies.recv_timeout(Duration::from_millis(1)) {
            Ok(copy) => {
                waiting.push(copy);
                waiting.extend(copies.try_iter());
            }
            Err(error) => is_over |= error == std::sync::mpsc::RecvTimeoutError::Disconnected,
        }
        let now = Instant::now();
        let (due, left): (Vec<Copy>, Vec<Copy>) = waiting.into_iter().partition(|copy| copy.due <= now);
        waiting = left;
        for copy in due {
            // A server that refuses copies at the door is in its right.
            if let Ok(mut socket) = connection::connect(copy.target) {
                let _ = socket.write_all(&copy.flight);
                lingering.push_back((now, socket));
            }
        }
        while lingering.front().is_some_and(|(since, _)| since.elapsed() > COPY_LINGER) {
            lingering.pop_front();
        }
        if is_over {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The origin: HTTP/1.1, a thread for each connection, 281 bytes for every path.
fn serve(address: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(move || {
                    // A connection that breaks is the other end's business; what it asked for is counted.
                    let _ = answer(&socket, &shared);
                })
                .expect("the system has threads");
        }
    });
    Ok(())
}

fn answer(socket: &TcpStream, shared: &Shared) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    let response = format!("HTTP/1.1 200 OK\r\nContent-Length: 281\r\n\r\n{}", "x".repeat(281));
    while reader.read_line(&mut line)? > 0 {
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut body_bytes = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line)? <= 2 {
                break;
            }
            if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                body_bytes = length.trim().parse().unwrap_or(0);
            }
        }
        line.clear();
        io::copy(&mut (&mut reader).take(body_bytes), &mut io::sink())?;
        if let Some(id) = path.strip_prefix("/id/").and_then(|id| id.parse::<usize>().ok()) {
            shared.arrived.get(id).map(|count| count.fetch_add(1, Ordering::Relaxed));
        } else if path.starts_with("/again/") {
            shared.arrived_again.fetch_add(1, Ordering::Relaxed);
        }
        (&mut &*socket).write_all(response.as_bytes())?;
    }
    Ok(())
}
