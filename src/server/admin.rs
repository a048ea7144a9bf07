//! The admin address: `/metrics`, `/live` and `/ready` over HTTP/1.1, served by the slow thread between its other work.
//!
//! Owns its listener and a few connections, all non-blocking: no client can hold the thread. Serves GET and HEAD, one
//! request per connection, and never reads a body. Invariant: at most [`CONNECTIONS_MAX`] connections, each with a
//! bounded request and a deadline; a new one takes the place of the oldest when all are taken, so silent clients
//! cannot lock out a scraper.
//!
//! Small on purpose: `tiny_http` starts a thread per connection, without timeouts or limits, and an asynchronous
//! framework is a runtime for three pages. `httparse` does the parsing that is hard to get right.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::metrics;

/// Connections at a time: a scraper, a balancer's health check, an operator, and room.
pub const CONNECTIONS_MAX: usize = 16;

/// Largest request head, in bytes: none of the three pages needs more than a few hundred.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most header fields of a request.
const FIELDS_MAX: usize = 64;

/// From accept to close.
const DEADLINE: Duration = Duration::from_secs(5);

/// Bytes that are read and thrown away after the answer, so that closing does not reset the connection under it.
const LINGER_BYTES_MAX: usize = 64 * 1024;

/// Connections accepted in one turn: a flood waits its turn behind the thread's other work.
const ACCEPTS_PER_TURN: usize = 64;

/// What the pages tell. Called on the slow thread; must not block.
pub trait State {
    /// Whether the process works; else why not.
    ///
    /// # Errors
    /// A sentence for people.
    fn live(&self) -> Result<(), String>;

    /// Whether it should be sent clients; else why not.
    ///
    /// # Errors
    /// A sentence for people.
    fn ready(&self) -> Result<(), String>;

    /// The OpenMetrics text.
    fn metrics(&self) -> String;
}

/// The admin address and its connections.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    /// Tokens `first_token` (the listener) to `first_token + CONNECTIONS_MAX` (connections) are ours.
    first_token: usize,
    slots: [Option<Connection>; CONNECTIONS_MAX],
    /// Slots in use, the oldest connection first.
    by_age: VecDeque<usize>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    deadline: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The head so far.
    Reading(Vec<u8>),
    /// The answer, and how much of it has gone.
    Writing { answer: Vec<u8>, sent: usize },
    /// The answer has gone and FIN with it; bytes that may still come and be thrown away.
    Lingering { bytes_left: usize },
}

/// What is to become of a connection.
#[derive(PartialEq, Eq)]
enum Fate {
    Stay,
    Close,
}

impl Admin {
    /// How many tokens of the poll are used, from `first_token` on.
    pub const TOKENS: usize = CONNECTIONS_MAX + 1;

    /// Listens on `address` and registers with the poll of the slow thread.
    ///
    /// # Errors
    /// Those of bind(2); see [`super::problems::Problem::from_bind`].
    pub fn bind(address: SocketAddr, registry: &Registry, first_token: usize) -> io::Result<Admin> {
        let mut listener = TcpListener::bind(address)?;
        registry.register(&mut listener, Token(first_token), Interest::READABLE)?;
        let address = listener.local_addr()?;
        let slots = std::array::from_fn(|_| None);
        Ok(Admin { listener, address, first_token, slots, by_age: VecDeque::with_capacity(CONNECTIONS_MAX) })
    }

    /// Where it listens: the port the kernel chose, if the configured one was 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves what an event of the poll is about. Tokens of others are ignored.
    pub fn handle(&mut self, registry: &Registry, token: Token, now: Instant, state: &impl State) {
        match token.0.checked_sub(self.first_token) {
            Some(0) => self.accept(registry, now, state),
            Some(number) if number <= CONNECTIONS_MAX => self.advance(number - 1, state),
            _ => {}
        }
    }

    /// Closes what is over its deadline, and accepts what a full turn or a lack of descriptors left waiting. To be
    /// called some times a second.
    pub fn tick(&mut self, registry: &Registry, now: Instant, state: &impl State) {
        while let Some(&slot) = self.by_age.front() {
            if self.slots[slot].as_ref().is_some_and(|connection| connection.deadline > now) {
                break;
            }
            self.close(slot);
        }
        self.accept(registry, now, state);
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.by_age.len()
    }

    fn accept(&mut self, registry: &Registry, now: Instant, state: &impl State) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((stream, _)) => self.take(registry, stream, now, state),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // Nothing waits, or no descriptor is free: the next tick tries again.
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, registry: &Registry, mut stream: TcpStream, now: Instant, state: &impl State) {
        if self.by_age.len() == CONNECTIONS_MAX
            && let Some(&oldest) = self.by_age.front()
        {
            self.close(oldest);
        }
        let slot = self.slots.iter().position(Option::is_none).expect("a slot was freed above when none was");
        let token = Token(self.first_token + 1 + slot);
        if registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_err() {
            return;
        }
        self.slots[slot] = Some(Connection { stream, deadline: now + DEADLINE, stage: Stage::Reading(Vec::new()) });
        self.by_age.push_back(slot);
        self.advance(slot, state);
    }

    fn advance(&mut self, slot: usize, state: &impl State) {
        let Some(connection) = &mut self.slots[slot] else { return };
        if connection.advance(state) == Fate::Close {
            self.close(slot);
        }
    }

    /// Dropping the stream closes it, which also takes it out of the poll.
    fn close(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.by_age.retain(|&other| other != slot);
    }
}

impl Connection {
    /// Goes on until the socket would block or the connection is over.
    fn advance(&mut self, state: &impl State) -> Fate {
        loop {
            let step = match &mut self.stage {
                Stage::Reading(head) => read_head(&mut self.stream, head, state),
                Stage::Writing { answer, sent } => write_answer(&mut self.stream, answer, sent),
                Stage::Lingering { bytes_left } => linger(&mut self.stream, bytes_left),
            };
            match step {
                Ok(Some(stage)) => self.stage = stage,
                Ok(None) => return Fate::Close,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Stay,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Fate::Close,
            }
        }
    }
}

/// The next stage, or None when the client is gone.
fn read_head(stream: &mut TcpStream, head: &mut Vec<u8>, state: &impl State) -> io::Result<Option<Stage>> {
    let mut chunk = [0; 2048];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&chunk[..count]);
        if let Some(answer) = answer(head, state) {
            return Ok(Some(Stage::Writing { answer, sent: 0 }));
        }
    }
}

fn write_answer(stream: &mut TcpStream, answer: &[u8], sent: &mut usize) -> io::Result<Option<Stage>> {
    while *sent < answer.len() {
        *sent += stream.write(&answer[*sent..])?;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(Some(Stage::Lingering { bytes_left: LINGER_BYTES_MAX }))
}

fn linger(stream: &mut TcpStream, bytes_left: &mut usize) -> io::Result<Option<Stage>> {
    let mut chunk = [0; 2048];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 || count >= *bytes_left {
            return Ok(None);
        }
        *bytes_left -= count;
    }
}

/// The answer to a request head, or None while it is not complete.
fn answer(head: &[u8], state: &impl State) -> Option<Vec<u8>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if head.len() <= HEAD_BYTES_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(page("431 Request Header Fields Too Large", TEXT, "the request is too large\n", true));
        }
        Err(_) => return Some(page("400 Bad Request", TEXT, "this is not an HTTP/1.1 request\n", true)),
    }
    let with_body = match request.method {
        Some("GET") => true,
        Some("HEAD") => false,
        _ => return Some(page("405 Method Not Allowed\r\nAllow: GET, HEAD", TEXT, "use GET or HEAD\n", true)),
    };
    let path = request.path.unwrap_or("").split('?').next().unwrap_or("");
    Some(match path {
        "/metrics" => page("200 OK", metrics::CONTENT_TYPE, &state.metrics(), with_body),
        "/live" => health_page(state.live(), with_body),
        "/ready" => health_page(state.ready(), with_body),
        _ => page("404 Not Found", TEXT, "there are /metrics, /live and /ready\n", with_body),
    })
}

const TEXT: &str = "text/plain; charset=utf-8";

fn health_page(health: Result<(), String>, with_body: bool) -> Vec<u8> {
    match health {
        Ok(()) => page("200 OK", TEXT, "ok\n", with_body),
        Err(why) => page("503 Service Unavailable", TEXT, &format!("{why}\n"), with_body),
    }
}

fn page(status: &str, content_type: &str, body: &str, with_body: bool) -> Vec<u8> {
    let length = body.len();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    if with_body {
        answer.push_str(body);
    }
    answer.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream as Client;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Fixed {
        ready: bool,
        metrics: String,
    }

    impl State for Fixed {
        fn live(&self) -> Result<(), String> {
            Ok(())
        }

        fn ready(&self) -> Result<(), String> {
            if self.ready { Ok(()) } else { Err("no trunk is up on worker 0".to_owned()) }
        }

        fn metrics(&self) -> String {
            self.metrics.clone()
        }
    }

    /// An admin address with a thread that does nothing else, until dropped.
    struct Running {
        address: SocketAddr,
        stop: Arc<AtomicBool>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Running {
        fn start(state: Fixed) -> Running {
            let mut poll = mio::Poll::new().expect("a poll");
            let loopback = "127.0.0.1:0".parse().expect("an address");
            let mut admin = Admin::bind(loopback, poll.registry(), 10).expect("loopback has a free port");
            let (address, stop) = (admin.address(), Arc::new(AtomicBool::new(false)));
            let stopped = Arc::clone(&stop);
            let thread = std::thread::spawn(move || {
                let mut events = mio::Events::with_capacity(64);
                while !stopped.load(Ordering::Relaxed) {
                    poll.poll(&mut events, Some(Duration::from_millis(5))).expect("polling works");
                    let now = Instant::now();
                    for event in &events {
                        admin.handle(poll.registry(), event.token(), now, &state);
                    }
                    admin.tick(poll.registry(), now, &state);
                    assert!(admin.connections() <= CONNECTIONS_MAX);
                }
            });
            Running { address, stop, thread: Some(thread) }
        }

        fn ask(&self, request: &[u8]) -> String {
            let mut client = Client::connect(self.address).expect("it listens");
            client.write_all(request).expect("it reads");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("it answers and closes in order");
            answer
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            let ended = self.thread.take().map(std::thread::JoinHandle::join);
            assert!(std::thread::panicking() || ended.is_some_and(|result| result.is_ok()));
        }
    }

    fn running(ready: bool) -> Running {
        Running::start(Fixed { ready, metrics: "# EOF\n".to_owned() })
    }

    #[test]
    fn the_three_pages_answer() {
        let admin = running(true);
        let metrics = admin.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n") && metrics.ends_with("\r\n\r\n# EOF\n"), "{metrics}");
        assert!(metrics.contains("application/openmetrics-text; version=1.0.0; charset=utf-8"), "{metrics}");
        assert!(admin.ask(b"GET /live HTTP/1.0\r\n\r\n").ends_with("\r\n\r\nok\n"));
        assert!(admin.ask(b"GET /ready?verbose HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        let head = admin.ask(b"HEAD /live HTTP/1.1\r\n\r\n");
        assert!(head.contains("Content-Length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn what_is_not_ready_says_why() {
        let answer = running(false).ask(b"GET /ready HTTP/1.1\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("no trunk is up on worker 0\n"), "{answer}");
    }

    #[test]
    fn other_paths_methods_and_nonsense_are_refused() {
        let admin = running(true);
        assert!(admin.ask(b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        let posted = admin.ask(b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
        assert!(posted.starts_with("HTTP/1.1 405 ") && posted.contains("Allow: GET, HEAD\r\n"), "{posted}");
        assert!(admin.ask(b"\x16\x03\x01\x02\x00\x01\x00").starts_with("HTTP/1.1 400 "));
        let long = [b"GET /live HTTP/1.1\r\nA: ".as_slice(), &[b'x'; HEAD_BYTES_MAX]].concat();
        assert!(admin.ask(&long).starts_with("HTTP/1.1 431 "));
        let many = format!("GET /live HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(FIELDS_MAX + 1));
        assert!(admin.ask(many.as_bytes()).starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn a_request_may_come_byte_by_byte_and_an_answer_may_be_large() {
        let admin = Running::start(Fixed { ready: true, metrics: "x".repeat(8 * 1024 * 1024) });
        let mut client = Client::connect(admin.address).expect("it listens");
        for byte in b"GET /metrics HTTP/1.1\r\n\r\n" {
            client.write_all(&[*byte]).expect("it reads");
        }
        std::thread::sleep(Duration::from_millis(20));
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("all of it");
        assert!(answer.len() > 8 * 1024 * 1024);
    }

    #[test]
    fn silent_clients_neither_block_nor_lock_out_others() {
        let admin = running(true);
        let silent: Vec<Client> =
            (0..3 * CONNECTIONS_MAX).map(|_| Client::connect(admin.address).expect("it listens")).collect();
        assert!(admin.ask(b"GET /live HTTP/1.1\r\n\r\n").ends_with("ok\n"));
        drop(silent);
        assert!(admin.ask(b"GET /live HTTP/1.1\r\n\r\n").ends_with("ok\n"));
    }

    #[test]
    fn a_connection_is_closed_at_its_deadline() {
        let poll = mio::Poll::new().expect("a poll");
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let mut admin = Admin::bind(loopback, poll.registry(), 0).expect("loopback has a free port");
        let state = Fixed { ready: true, metrics: String::new() };
        let _client = Client::connect(admin.address()).expect("it listens");
        let now = Instant::now();
        admin.tick(poll.registry(), now, &state);
        assert_eq!(admin.connections(), 1);
        admin.tick(poll.registry(), now + DEADLINE - Duration::from_millis(1), &state);
        assert_eq!(admin.connections(), 1);
        admin.tick(poll.registry(), now + DEADLINE, &state);
        assert_eq!(admin.connections(), 0);
    }
}
