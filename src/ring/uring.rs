//! The real ring: one submit-and-wait per pass, completions as [`Outcome`]s.
//!
//! Owns the queue and the clock. Never touches memory the kernel holds; `sys.rs` does the lending.

use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::batching::Batching;
use super::op::{Completion, Errno, Fd, Kind, Outcome, Token};
use super::setup::{RingError, RingSettings};
use super::sys::{self, Queue, Raw, Waker};
use super::{Calls, Ring, sockets};
use crate::base::slab::Key;
use crate::base::time::Time;

pub use super::sys::Lease;

const NOBODY: Key = Key { index: u32::MAX, generation: 0 };

/// The ring of one worker. Must be made and used on that worker's thread.
pub struct Uring {
    queue: Queue,
    waker: Waker,
    origin: Instant,
    now: Time,
    batching: Batching,
    /// Calls of io_uring_enter(2) that the set-up took.
    enters_before: u64,
    /// Other system calls. In a cell, since looking at a clock or a peer changes nothing else.
    calls_other: Cell<u64>,
}

impl Uring {
    /// Sets a ring up and proves by a real exchange over a socket pair that the kernel lets us work: submission,
    /// multishot receive and provided buffers. `origin` is the zero of [`Time`]; workers of a process share it.
    ///
    /// # Errors
    /// When the kernel refuses; the error says why and what to do.
    pub fn new(settings: &RingSettings, origin: Instant) -> Result<Uring, RingError> {
        let queue = Queue::new(settings).map_err(|(step, error)| RingError::refused(step, error))?;
        let waker = Waker::new().map_err(|error| RingError::refused("eventfd", error))?;
        let wait_us = if queue.can_batch() { settings.batch_wait_us } else { 0 };
        let batching = Batching::new(wait_us);
        let calls_other = Cell::new(0);
        let mut ring = Uring { queue, waker, origin, now: Time::ZERO, batching, enters_before: 0, calls_other };
        ring.prove()?;
        ring.enters_before = ring.queue.enters();
        ring.queue.push_poll(ring.waker.fd(), NOBODY);
        ring.tick();
        Ok(ring)
    }

    /// A handle by which other threads wake this ring's worker.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Like [`Ring::connect`], with TCP Fast Open (RFC 7413): to a server whose cookie the kernel has, this completes at
    /// once and the first send goes with the SYN. A receive must not be asked for before that send is over.
    ///
    /// # Errors
    /// As [`Ring::connect`].
    pub fn connect_fast(&mut self, key: Key, address: SocketAddr) -> Result<Fd, Errno> {
        self.count(sockets::DIALLER_CALLS + 1);
        let socket = sockets::fast_dialler(address)?;
        let fd = Fd(socket.into_raw_fd());
        self.queue.push_connect(fd, key, address.into());
        Ok(fd)
    }

    fn tick(&mut self) {
        self.now = self.clock();
    }

    fn count(&self, calls: u64) {
        self.calls_other.set(self.calls_other.get() + calls);
    }

    fn prove(&mut self) -> Result<(), RingError> {
        let refused = |error: std::io::Error| RingError::refused("trial exchange", error);
        let (near, far) = UnixStream::pair().map_err(refused)?;
        let (near, far) = (Fd(near.into_raw_fd()), Fd(far.into_raw_fd()));
        let key = Key { index: 0, generation: 0 };
        self.queue.push_nop(key);
        self.queue.push_receive(near, key);
        self.queue.push_send(far, key, b"trunkline".to_vec(), 0, false);
        let (mut received, mut ended) = (Vec::new(), None);
        let mut closing = false;
        for _ in 0..100 {
            self.queue.enter(Some(Duration::from_millis(20)), None).map_err(refused)?;
            while let Some(raw) = self.queue.reap() {
                if let Some(mut lease) = raw.lease {
                    received.extend_from_slice(self.queue.bytes(&mut lease));
                    self.queue.give_back(lease);
                }
                if raw.token.kind() == Kind::Receive && !raw.more {
                    ended = Some(raw.result);
                }
            }
            if ended.is_some() {
                break;
            }
            if !received.is_empty() && !closing {
                closing = true;
                self.queue.push_close(far, NOBODY);
            }
        }
        sys::close_now(near);
        if !closing {
            sys::close_now(far);
        }
        match ended {
            Some(0) if received == b"trunkline" => Ok(()),
            Some(result) if result < 0 => Err(refused(std::io::Error::from_raw_os_error(-result))),
            _ => Err(refused(std::io::Error::from_raw_os_error(libc::EINVAL))),
        }
    }

    fn translate(&mut self, raw: Raw) -> Option<Completion<Lease>> {
        let Raw { token, result, more, lease, bytes } = raw;
        let number = usize::try_from(result).map_err(|_| Errno(-result));
        let outcome = match token.kind() {
            Kind::Accept => Outcome::Accepted { result: number.map(|_| Fd(result)), more },
            Kind::Receive => {
                if let Some(lease) = lease {
                    if result > 0 {
                        return Some(Completion {
                            token,
                            outcome: Outcome::Received { result: Ok(Some(lease)), more },
                        });
                    }
                    self.queue.give_back(lease);
                }
                if number == Err(Errno::NO_BUFFERS) {
                    self.queue.supply_all();
                }
                // A final completion of a multishot without bytes: the end, or why it stopped.
                Outcome::Received { result: number.map(|_| None), more }
            }
            Kind::Send => {
                let bytes = bytes.expect("a send's bytes are held until its only completion");
                Outcome::Sent { bytes, result: number }
            }
            Kind::Connect => Outcome::Connected(number.map(|_| ())),
            Kind::Wake => {
                self.count(1);
                self.waker.clear();
                if !more {
                    self.queue.push_poll(self.waker.fd(), NOBODY);
                }
                Outcome::Woken
            }
            Kind::Unwatched => return None,
        };
        Some(Completion { token, outcome })
    }
}

impl Ring for Uring {
    type Lease = Lease;

    fn now(&self) -> Time {
        self.now
    }

    fn clock(&self) -> Time {
        Time::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn worked(&self) -> Duration {
        self.count(1);
        sys::thread_time()
    }

    fn submit(&mut self) -> Result<(), RingError> {
        self.queue.submit().map_err(|error| RingError::Broken(error.into()))
    }

    fn wait(
        &mut self,
        until: Option<Time>,
        patience: Duration,
        completions: &mut Vec<Completion<Lease>>,
    ) -> Result<(), RingError> {
        let (before, mut arrived) = (self.now, 0);
        let timeout = until.map(|until| {
            self.tick();
            until.since(self.now)
        });
        // Who does not wait does not gather either, and learns nothing about gathering.
        let batch = if timeout == Some(Duration::ZERO) { None } else { self.batching.plan(patience, timeout) };
        self.queue.enter(timeout, batch).map_err(|error| RingError::Broken(error.into()))?;
        self.tick();
        while let Some(raw) = self.queue.reap() {
            if let Some(completion) = self.translate(raw) {
                arrived += usize::from(!matches!(completion.outcome, Outcome::Sent { .. }));
                completions.push(completion);
            }
        }
        self.queue.supply();
        let nanos = self.now.as_nanos() - before.as_nanos();
        if timeout != Some(Duration::ZERO) {
            self.batching.passed(nanos, arrived);
        }
        Ok(())
    }

    fn accept(&mut self, listener: Fd, key: Key) {
        self.queue.push_accept(listener, key);
    }

    fn accept_one(&mut self, listener: Fd, key: Key) {
        self.queue.push_accept_one(listener, key);
    }

    fn stop_accepting(&mut self, key: Key) {
        self.queue.push_cancel(Token::new(Kind::Accept, key));
    }

    fn receive(&mut self, fd: Fd, key: Key) {
        self.queue.push_receive(fd, key);
    }

    fn stop_receiving(&mut self, key: Key) {
        self.queue.push_cancel(Token::new(Kind::Receive, key));
    }

    fn send(&mut self, fd: Fd, key: Key, bytes: Vec<u8>, from: usize, is_last: bool) {
        self.queue.push_send(fd, key, bytes, from, is_last);
    }

    fn connect(&mut self, key: Key, address: SocketAddr) -> Result<Fd, Errno> {
        self.count(sockets::DIALLER_CALLS);
        let socket = sockets::dialler(address)?;
        let fd = Fd(socket.into_raw_fd());
        self.queue.push_connect(fd, key, address.into());
        Ok(fd)
    }

    fn shut_down(&mut self, fd: Fd) {
        self.count(1);
        // It fails for a connection that is gone already.
        let _ = sys::with_socket(fd, |socket| socket.shutdown(std::net::Shutdown::Write));
    }

    fn cancel(&mut self, fd: Fd) {
        self.queue.push_cancel_fd(fd, NOBODY);
    }

    fn close(&mut self, fd: Fd, reset: bool) {
        if reset {
            self.count(1);
            // Failing to set it only makes the close a gentle one.
            let _ = sys::with_socket(fd, |socket| socket.set_linger(Some(Duration::ZERO)));
        }
        self.queue.push_close(fd, NOBODY);
    }

    fn peer(&self, fd: Fd) -> Option<SocketAddr> {
        self.count(1);
        sys::with_socket(fd, |socket| socket.peer_addr()).ok()?.as_socket()
    }

    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        self.queue.bytes(lease)
    }

    fn give_back(&mut self, lease: Lease) {
        self.queue.give_back(lease);
    }

    fn return_memory(&mut self) {
        sys::return_memory();
    }

    fn calls(&self) -> Calls {
        Calls { enters: self.queue.enters() - self.enters_before, others: self.calls_other.get() }
    }

    fn buffers_free(&self) -> usize {
        self.queue.buffers_free()
    }

    fn buffers_total(&self) -> usize {
        self.queue.buffers_total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{ListenerSettings, listen};
    use std::io::{Read, Write};
    use std::net::TcpStream;

    type Seen = Vec<Completion<Lease>>;

    const SMALL: RingSettings =
        RingSettings { submissions: 8, completions: 16, buffers: 4, buffer_bytes: 64, batch_wait_us: 0 };

    fn ring(settings: &RingSettings) -> Uring {
        Uring::new(settings, Instant::now()).expect("the machine that runs the tests has io_uring")
    }

    fn key(index: u32) -> Key {
        Key { index, generation: 3 }
    }

    /// Waits until `wanted` has been seen, with everything else seen on the way.
    fn until(ring: &mut Uring, mut wanted: impl FnMut(&Completion<Lease>) -> bool) -> Seen {
        let mut seen = Vec::new();
        for _ in 0..500 {
            let from = seen.len();
            let soon = ring.now() + Duration::from_millis(10);
            ring.wait(Some(soon), Duration::ZERO, &mut seen).expect("the ring works");
            if seen[from..].iter().any(&mut wanted) {
                return seen;
            }
        }
        panic!("not seen within five seconds");
    }

    fn accepted(seen: &Seen) -> Fd {
        seen.iter()
            .find_map(|completion| match completion.outcome {
                Outcome::Accepted { result: Ok(fd), .. } => Some(fd),
                _ => None,
            })
            .expect("a connection was accepted")
    }

    fn connected(ring: &mut Uring, index: u32) -> (TcpStream, Fd) {
        let settings = ListenerSettings {
            address: "127.0.0.1:0".parse().expect("an address"),
            backlog: 64,
            user_timeout: Duration::from_secs(5),
            fast_open: 0,
            fast_open_keys: &[],
        };
        let listener = listen(&settings).expect("loopback has ports");
        ring.accept(listener.fd, key(1000 + index));
        let stream = TcpStream::connect(listener.address).expect("somebody listens");
        let seen = until(ring, |completion| matches!(completion.outcome, Outcome::Accepted { .. }));
        ring.cancel(listener.fd);
        until(ring, |completion| matches!(completion.outcome, Outcome::Accepted { more: false, .. }));
        ring.close(listener.fd, false);
        (stream, accepted(&seen))
    }

    #[test]
    fn bytes_travel_both_ways_and_the_end_is_told() {
        let mut ring = ring(&RingSettings::default());
        let (mut stream, fd) = connected(&mut ring, 0);
        assert_eq!(ring.peer(fd), Some(stream.local_addr().expect("bound")));
        ring.receive(fd, key(5));
        stream.write_all(b"hello").expect("open");
        let seen = until(&mut ring, |completion| matches!(completion.outcome, Outcome::Received { .. }));
        for completion in seen {
            let Outcome::Received { result: Ok(Some(mut lease)), more: true } = completion.outcome else { continue };
            assert!(completion.token.names(key(5)));
            assert_eq!(ring.bytes(&mut lease), b"hello");
            assert_eq!(ring.buffers_free(), ring.buffers_total() - 1);
            ring.give_back(lease);
        }
        assert_eq!(ring.buffers_free(), ring.buffers_total());
        ring.send(fd, key(5), b"..world".to_vec(), 2, false);
        let mut answer = [0; 5];
        until(&mut ring, |completion| matches!(completion.outcome, Outcome::Sent { result: Ok(5), .. }));
        stream.read_exact(&mut answer).expect("five bytes were sent");
        assert_eq!(&answer, b"world");
        stream.shutdown(std::net::Shutdown::Write).expect("open");
        until(&mut ring, |completion| {
            matches!(completion.outcome, Outcome::Received { result: Ok(None), more: false })
        });
        ring.shut_down(fd);
        assert_eq!(stream.read(&mut answer).expect("an orderly end"), 0);
        ring.close(fd, false);
    }

    #[test]
    fn system_calls_are_counted() {
        let mut ring = ring(&SMALL);
        assert_eq!(ring.calls(), Calls::default(), "the set-up does not count");
        let (_stream, fd) = connected(&mut ring, 0);
        let calls = |ring: &Uring, before: Calls| {
            let now = ring.calls();
            (now.enters - before.enters, now.others - before.others)
        };
        let before = ring.calls();
        ring.receive(fd, key(5));
        assert_eq!(calls(&ring, before), (0, 0), "what is asked for waits for the next submit");
        ring.submit().expect("the ring works");
        let now = ring.clock();
        ring.wait(Some(now), Duration::ZERO, &mut Vec::new()).expect("the ring works");
        assert_eq!(calls(&ring, before), (2, 0));
        let before = ring.calls();
        for _ in 0..=SMALL.submissions {
            ring.cancel(fd);
        }
        assert_eq!(calls(&ring, before), (1, 0), "the queue was full once");
        let before = ring.calls();
        let _ = (ring.peer(fd), ring.worked());
        ring.shut_down(fd);
        ring.close(fd, true);
        assert_eq!(calls(&ring, before), (0, 4));
        let nobody = "127.0.0.1:1".parse().expect("an address");
        let dialled = ring.connect(key(6), nobody).expect("a socket can be made");
        assert_eq!(calls(&ring, before), (0, 4 + sockets::DIALLER_CALLS));
        until(&mut ring, |completion| matches!(completion.outcome, Outcome::Connected(_)));
        ring.close(dialled, false);
    }

    #[test]
    fn exhausted_buffers_end_the_receive_and_rearming_continues_it() {
        let mut ring = ring(&SMALL);
        let (mut stream, fd) = connected(&mut ring, 0);
        let sent: Vec<u8> = (0..10_000u32).map(|value| value as u8).collect();
        stream.write_all(&sent).expect("the socket buffer holds it");
        ring.receive(fd, key(1));
        let mut received = Vec::new();
        let mut exhausted = 0;
        let mut held = Vec::new();
        while received.len() < sent.len() {
            let seen = until(&mut ring, |completion| matches!(completion.outcome, Outcome::Received { .. }));
            for completion in seen {
                match completion.outcome {
                    Outcome::Received { result: Ok(Some(lease)), .. } => held.push(lease),
                    Outcome::Received { result: Err(Errno::NO_BUFFERS), more } => {
                        assert!(!more);
                        exhausted += 1;
                        for mut lease in held.drain(..) {
                            received.extend_from_slice(ring.bytes(&mut lease));
                            ring.give_back(lease);
                        }
                        ring.receive(fd, key(1));
                    }
                    _ => {}
                }
            }
            if received.len() + held.len() * 64 >= sent.len() {
                for mut lease in held.drain(..) {
                    received.extend_from_slice(ring.bytes(&mut lease));
                    ring.give_back(lease);
                }
            }
        }
        assert_eq!(received, sent);
        assert!(exhausted > 10, "four buffers of 64 bytes run out often");
        ring.cancel(fd);
        until(&mut ring, |completion| matches!(completion.outcome, Outcome::Received { more: false, .. }));
        ring.close(fd, false);
    }

    #[test]
    fn more_operations_than_the_queues_hold_all_complete() {
        let mut ring = ring(&SMALL);
        let (_stream, fd) = connected(&mut ring, 0);
        for index in 0..200 {
            ring.send(fd, key(index), vec![7], 0, false);
        }
        let mut sent = 0;
        for _ in 0..500 {
            let mut seen = Vec::new();
            let soon = ring.now() + Duration::from_millis(5);
            ring.wait(Some(soon), Duration::ZERO, &mut seen).expect("the ring works");
            sent += seen.iter().filter(|completion| matches!(completion.outcome, Outcome::Sent { .. })).count();
            if sent == 200 {
                break;
            }
        }
        assert_eq!(sent, 200);
        assert_eq!(ring.queue.overflowed(), 0, "the kernel keeps overflow for us and drops nothing");
        ring.close(fd, false);
    }

    #[test]
    fn one_connection_may_be_accepted_and_accepting_be_stopped() {
        let mut ring = ring(&SMALL);
        let settings = ListenerSettings {
            address: "127.0.0.1:0".parse().expect("an address"),
            backlog: 64,
            user_timeout: Duration::from_secs(5),
            fast_open: 0,
            fast_open_keys: &[],
        };
        let listener = listen(&settings).expect("loopback has ports");
        let _streams = [(); 3].map(|()| TcpStream::connect(listener.address).expect("the backlog has room"));
        let is_accept = |completion: &Completion<Lease>| matches!(completion.outcome, Outcome::Accepted { .. });
        ring.accept_one(listener.fd, key(7));
        let seen = until(&mut ring, is_accept);
        assert!(matches!(seen[..], [Completion { outcome: Outcome::Accepted { result: Ok(_), more: false }, .. }]));
        ring.close(accepted(&seen), true);
        ring.accept(listener.fd, key(7));
        let seen = until(&mut ring, is_accept);
        ring.close(accepted(&seen), true);
        ring.stop_accepting(key(7));
        until(&mut ring, |completion| {
            completion.token.names(key(7)) && matches!(completion.outcome, Outcome::Accepted { more: false, .. })
        });
        let _unseen = TcpStream::connect(listener.address).expect("the backlog has room");
        let mut seen = Vec::new();
        let soon = ring.clock() + Duration::from_millis(50);
        while ring.clock() < soon {
            ring.wait(Some(soon), Duration::ZERO, &mut seen).expect("the ring works");
        }
        assert!(seen.is_empty(), "nothing is accepted any more: {seen:?}");
        ring.close(listener.fd, false);
    }

    #[test]
    fn completions_are_seen_without_waiting() {
        let mut ring = ring(&SMALL);
        let (mut stream, fd) = connected(&mut ring, 0);
        ring.receive(fd, key(3));
        ring.submit().expect("the ring works");
        stream.write_all(b"x").expect("open");
        let mut seen = Vec::new();
        let end = Instant::now() + Duration::from_secs(5);
        while seen.is_empty() && Instant::now() < end {
            let now = ring.clock();
            ring.wait(Some(now), Duration::ZERO, &mut seen).expect("the ring works");
        }
        assert!(!seen.is_empty(), "deferred work is carried out by passes that do not block");
        for completion in seen {
            if let Outcome::Received { result: Ok(Some(lease)), .. } = completion.outcome {
                ring.give_back(lease);
            }
        }
        ring.cancel(fd);
        until(&mut ring, |completion| matches!(completion.outcome, Outcome::Received { more: false, .. }));
        ring.close(fd, false);
    }

    #[test]
    fn the_time_a_thread_works_is_told_apart_from_the_time_it_waits() {
        let mut ring = ring(&SMALL);
        let (clock, worked) = (ring.clock(), ring.worked());
        let until = clock + Duration::from_millis(50);
        while ring.clock() < until {
            ring.wait(Some(until), Duration::ZERO, &mut Vec::new()).expect("the ring works");
        }
        assert!(ring.clock().since(clock) >= Duration::from_millis(50));
        assert!(ring.worked() - worked < Duration::from_millis(25));
    }

    #[test]
    fn a_cancelled_receive_tells_its_end() {
        let mut ring = ring(&SMALL);
        let (_stream, fd) = connected(&mut ring, 0);
        ring.receive(fd, key(9));
        ring.stop_receiving(key(9));
        until(&mut ring, |completion| {
            completion.token.names(key(9))
                && matches!(completion.outcome, Outcome::Received { result: Err(Errno::CANCELED), more: false })
        });
        ring.close(fd, true);
    }

    #[test]
    fn a_refused_connect_says_so() {
        let mut ring = ring(&SMALL);
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = free.local_addr().expect("bound");
        drop(free);
        let fd = ring.connect(key(2), address).expect("a socket can be made");
        until(&mut ring, |completion| matches!(completion.outcome, Outcome::Connected(Err(Errno(libc::ECONNREFUSED)))));
        ring.close(fd, false);
    }

    #[test]
    fn another_thread_wakes_the_ring_again_and_again() {
        let mut ring = ring(&SMALL);
        let waker = ring.waker();
        for _ in 0..5 {
            let waker = waker.clone();
            let thread = std::thread::spawn(move || waker.wake());
            until(&mut ring, |completion| matches!(completion.outcome, Outcome::Woken));
            thread.join().expect("waking does not panic");
        }
    }

    #[test]
    fn dropping_a_ring_with_operations_out_is_safe() {
        let mut ring = ring(&SMALL);
        let (mut stream, fd) = connected(&mut ring, 0);
        ring.receive(fd, key(1));
        ring.send(fd, key(1), vec![7; 8 << 20], 0, false);
        stream.write_all(b"left behind").expect("open");
        drop(ring);
    }
}
