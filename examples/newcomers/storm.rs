//! A flood of full handshakes, cheap for who sends it: hellos made beforehand, the server's flight read and thrown away,
//! no answer. Open loop: connections begin when they are due, whatever became of those before.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use clap::Args;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConnection;
use serde_json::json;

use crate::Common;
use crate::connection;
use crate::rounds::percentiles;
use crate::trust;

/// Hellos made beforehand and used in turn. A server cannot tell that it saw one before.
const HELLOS: usize = 256;
const CONTENT_HANDSHAKE: u8 = 22;
const CONTENT_ALERT: u8 = 21;

/// Arguments.
#[derive(Args, Debug)]
pub struct Storm {
    #[command(flatten)]
    common: Common,
    /// Handshakes begun per second.
    #[arg(long)]
    rate: f64,
    /// How long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long a connection waits for the server's flight.
    #[arg(long, default_value_t = 5.0)]
    patience: f64,
    /// Connections at a time; while there are so many, what is due is left out, and counted.
    #[arg(long, default_value_t = 15_000)]
    outstanding: usize,
}

/// A connection that waits for its flight.
struct Waiting {
    socket: TcpStream,
    hello: usize,
    sent: bool,
    begun: Instant,
}

#[derive(Default)]
struct Tally {
    begun: u64,
    left_out: u64,
    flights: u64,
    alerts: u64,
    closed: u64,
    unanswered: u64,
    micros: Vec<u64>,
}

struct Flood {
    poll: Poll,
    slots: Vec<Option<Waiting>>,
    free: Vec<usize>,
    hellos: Vec<Vec<u8>>,
    tally: Tally,
}

impl Storm {
    /// Floods and prints. True unless nothing was answered.
    pub fn run(&self) -> io::Result<bool> {
        let mut flood = Flood {
            poll: Poll::new()?,
            slots: (0..self.outstanding).map(|_| None).collect(),
            free: (0..self.outstanding).rev().collect(),
            hellos: self.hellos()?,
            tally: Tally::default(),
        };
        let mut events = Events::with_capacity(4096);
        let (began, mut due_before, mut swept) = (Instant::now(), 0, Instant::now());
        let (length, patience) = (Duration::from_secs_f64(self.seconds), Duration::from_secs_f64(self.patience));
        while began.elapsed() < length {
            let due = (began.elapsed().as_secs_f64() * self.rate) as u64;
            for _ in due_before..due {
                flood.begin(self.common.target[0])?;
            }
            due_before = due;
            flood.poll.poll(&mut events, Some(Duration::from_millis(1)))?;
            for event in &events {
                flood.advance(event.token().0);
            }
            if swept.elapsed() > Duration::from_millis(100) {
                flood.sweep(patience);
                swept = Instant::now();
            }
        }
        self.report(flood, began.elapsed())
    }

    fn hellos(&self) -> io::Result<Vec<Vec<u8>>> {
        let config = std::sync::Arc::new(trust::config(&self.common)?);
        let hello = |_| {
            let mut session =
                ClientConnection::new(config.clone(), trust::name(&self.common)?).map_err(io::Error::other)?;
            let mut bytes = Vec::new();
            session.write_tls(&mut bytes)?;
            Ok(bytes)
        };
        (0..HELLOS).map(hello).collect()
    }

    fn report(&self, flood: Flood, elapsed: Duration) -> io::Result<bool> {
        let waiting = flood.slots.iter().flatten().count();
        let Tally { begun, left_out, flights, alerts, closed, unanswered, mut micros } = flood.tally;
        micros.sort_unstable();
        let line = json!({
            "kind": "storm",
            "seconds": elapsed.as_secs_f64(),
            "begun_per_s": begun as f64 / elapsed.as_secs_f64(),
            "flights_per_s": flights as f64 / elapsed.as_secs_f64(),
            "begun": begun,
            "left_out": left_out,
            "flights": flights,
            "alerts": alerts,
            "closed_without_a_word": closed,
            "unanswered": unanswered,
            "waiting_at_the_end": waiting,
            "flight_micros": percentiles(&micros),
        });
        println!("{line}");
        Ok(flights > 0)
    }
}

impl Flood {
    fn begin(&mut self, target: std::net::SocketAddr) -> io::Result<()> {
        let Some(index) = self.free.pop() else {
            self.tally.left_out += 1;
            return Ok(());
        };
        let socket = connection::socket(target)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(_) => {
                self.tally.closed += 1;
                self.free.push(index);
                return Ok(());
            }
        }
        let mut socket = TcpStream::from_std(socket.into());
        self.poll.registry().register(&mut socket, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        let hello = self.tally.begun as usize % HELLOS;
        self.tally.begun += 1;
        self.slots[index] = Some(Waiting { socket, hello, sent: false, begun: Instant::now() });
        // On loopback it is connected by now, and no event need be waited for.
        self.advance(index);
        Ok(())
    }

    fn advance(&mut self, index: usize) {
        let Some(waiting) = &mut self.slots[index] else { return };
        if !waiting.sent {
            match waiting.socket.write(&self.hellos[waiting.hello]) {
                Ok(_) => waiting.sent = true, // a hello fits an empty send buffer
                Err(error) if is_for_later(&error) => return,
                Err(_) => return self.end(index, None),
            }
        }
        let mut piece = [0; 8192];
        match waiting.socket.read(&mut piece) {
            Ok(0) => self.end(index, None),
            Ok(_) => self.end(index, Some(piece[0])),
            Err(error) if is_for_later(&error) => {}
            Err(_) => self.end(index, None),
        }
    }

    fn end(&mut self, index: usize, first: Option<u8>) {
        let waiting = self.slots[index].take().expect("it is looked at");
        match first {
            Some(CONTENT_HANDSHAKE) => {
                self.tally.flights += 1;
                self.tally.micros.push(waiting.begun.elapsed().as_micros() as u64);
            }
            Some(CONTENT_ALERT) => self.tally.alerts += 1,
            _ => self.tally.closed += 1,
        }
        self.free.push(index);
    }

    fn sweep(&mut self, patience: Duration) {
        for index in 0..self.slots.len() {
            if self.slots[index].as_ref().is_some_and(|waiting| waiting.begun.elapsed() > patience) {
                self.slots[index] = None;
                self.free.push(index);
                self.tally.unanswered += 1;
            }
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected | ErrorKind::Interrupted)
}
