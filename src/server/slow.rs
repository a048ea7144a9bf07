//! The slow thread's turn: signals, the admin address, the log and the workers' health, one after another.
//!
//! Owns the poll of the slow thread and everything served by it. Never touches a byte of a client and never blocks
//! longer than one turn. What signals ask for is carried out by the caller, who owns the workers.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::admin::Admin;
use super::health::Health;
use super::log::LogWriter;
use super::metrics::CertificateFigures;
use super::signals::{Asked, Signals};

const SIGNALS: Token = Token(0);
const ADMIN_FIRST_TOKEN: usize = 1;

/// Longest wait of one turn: how late a log line is written and a connection's deadline is seen.
pub const TURN_MAX: Duration = Duration::from_millis(100);

/// The slow thread's poll, and what it serves.
pub struct SlowThread {
    poll: Poll,
    events: Events,
    signals: Signals,
    admin: Option<Admin>,
    log: LogWriter,
    health: Health,
}

impl SlowThread {
    /// Installs the signal handlers. From here on SIGTERM no longer ends the process by itself.
    ///
    /// # Errors
    /// Those of epoll_create(2) and of [`Signals::install`].
    pub fn new(health: Health) -> io::Result<SlowThread> {
        let poll = Poll::new()?;
        let signals = Signals::install(poll.registry(), SIGNALS)?;
        let events = Events::with_capacity(2 * Admin::TOKENS);
        Ok(SlowThread { poll, events, signals, admin: None, log: LogWriter::default(), health })
    }

    /// Opens the admin address, and tells where it is.
    ///
    /// # Errors
    /// Those of bind(2); see [`super::problems::Problem::from_bind`].
    pub fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        let admin = Admin::bind(address, self.poll.registry(), ADMIN_FIRST_TOKEN)?;
        let address = admin.address();
        self.admin = Some(admin);
        Ok(address)
    }

    /// What is told of certificates.
    pub fn certificates(&mut self) -> &mut CertificateFigures {
        self.health.certificates()
    }

    /// Waits for something to do, at most [`TURN_MAX`], does it, and returns what signals asked for meanwhile.
    ///
    /// # Errors
    /// Those of epoll_wait(2) other than EINTR.
    pub fn turn(&mut self) -> io::Result<Vec<Asked>> {
        match self.poll.poll(&mut self.events, Some(TURN_MAX)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let now = Instant::now();
        self.health.observe(now);
        if let Some(admin) = &mut self.admin {
            let state = self.health.at(now);
            for event in &self.events {
                admin.handle(self.poll.registry(), event.token(), now, &state);
            }
            admin.tick(self.poll.registry(), now, &state);
        }
        self.log.drain(now, &self.health.shared().logs);
        Ok(self.signals.pending())
    }

    /// Writes the last lines of the log. The workers have ended.
    pub fn finish(mut self) {
        self.log.finish(Instant::now(), &self.health.shared().logs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::health::{Flags, ProcessRole};
    use crate::worker::Shared;
    use std::io::{Read as _, Write as _};
    use std::sync::Arc;

    #[test]
    fn a_turn_serves_the_admin_address() {
        let (flags, shared) = (Arc::new(Flags::default()), Arc::new(Shared::new(1)));
        let health = Health::new(ProcessRole::Gateway, "a", flags, shared, Instant::now());
        let mut slow = SlowThread::new(health).expect("a poll and handlers");
        let address = slow.listen("127.0.0.1:0".parse().expect("an address")).expect("loopback has a free port");
        let client = std::thread::spawn(move || {
            let mut client = std::net::TcpStream::connect(address).expect("it listens");
            client.write_all(b"GET /live HTTP/1.1\r\n\r\n").expect("it reads");
            let mut answer = String::new();
            client.read_to_string(&mut answer).map(|_| answer)
        });
        while !client.is_finished() {
            slow.turn().expect("polling works");
        }
        let answer = client.join().expect("the client did not panic").expect("it was answered");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        slow.finish();
    }
}
