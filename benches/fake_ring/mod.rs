//! A ring without a kernel: what is asked of it is kept for the bench, which says what has happened.
//!
//! Receives are armed for ever, sends take everything and are over when the bench has fetched their bytes, and time moves
//! by a microsecond for each pass. Never copies while a worker is being timed.

use std::net::SocketAddr;
use std::time::Duration;

use trunkline::base::slab::Key;
use trunkline::base::time::Time;
use trunkline::ring::{Calls, Completion, Errno, Fd, Kind, Outcome, Ring, RingError, Token};

/// Receive buffers, of the size that workers have by default.
const BUFFERS: usize = 4096;
const BUFFER_BYTES: usize = 16 * 1024;

/// A bench without a kernel under it.
#[derive(Default)]
pub struct FakeRing {
    now: Time,
    /// The next pass reaps these.
    ready: Vec<Completion<Vec<u8>>>,
    /// Who receives, by descriptor.
    receivers: Vec<Option<Key>>,
    listener: Option<Key>,
    /// Descriptors that were dialled and not told of yet.
    dialled: Vec<Fd>,
    /// Sends whose bytes were not fetched.
    sent: Vec<(Fd, Key, Vec<u8>, usize)>,
    /// Receive buffers that are back.
    spare: Vec<Vec<u8>>,
    lent: usize,
}

impl FakeRing {
    /// Whether the next pass has nothing to do.
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty()
    }

    /// A client connects.
    pub fn connect_client(&mut self) -> Fd {
        let fd = self.open();
        let token = Token::new(Kind::Accept, self.listener.expect("the worker listens"));
        self.ready.push(Completion { token, outcome: Outcome::Accepted { result: Ok(fd), more: true } });
        fd
    }

    /// What was dialled since the last call.
    pub fn take_dialled(&mut self) -> Vec<Fd> {
        std::mem::take(&mut self.dialled)
    }

    /// Whether the worker receives on a connection: what is dialled must be told first that it is connected.
    pub fn is_receiving(&self, fd: Fd) -> bool {
        self.receivers[fd.0 as usize].is_some()
    }

    /// Bytes come from the other end of a connection.
    pub fn deliver(&mut self, fd: Fd, bytes: &[u8]) {
        let key = self.receivers[fd.0 as usize].expect("a link receives as soon as it has a descriptor");
        for part in bytes.chunks(BUFFER_BYTES) {
            let mut lease = self.spare.pop().unwrap_or_default();
            lease.clear();
            lease.extend_from_slice(part);
            self.lent += 1;
            let outcome = Outcome::Received { result: Ok(Some(lease)), more: true };
            self.ready.push(Completion { token: Token::new(Kind::Receive, key), outcome });
        }
    }

    /// Hands what was sent to `take`, and gives the buffers back with the next pass.
    pub fn fetch_sent(&mut self, mut take: impl FnMut(Fd, &[u8])) {
        for (fd, key, bytes, from) in self.sent.drain(..) {
            take(fd, &bytes[from..]);
            let outcome = Outcome::Sent { result: Ok(bytes.len() - from), bytes };
            self.ready.push(Completion { token: Token::new(Kind::Send, key), outcome });
        }
    }

    fn open(&mut self) -> Fd {
        self.receivers.push(None);
        Fd(i32::try_from(self.receivers.len() - 1).expect("a bench has few"))
    }
}

impl Ring for FakeRing {
    type Lease = Vec<u8>;

    fn now(&self) -> Time {
        self.now
    }

    fn clock(&self) -> Time {
        self.now
    }

    fn worked(&self) -> Duration {
        Duration::ZERO
    }

    fn submit(&mut self) -> Result<(), RingError> {
        Ok(())
    }

    fn wait(
        &mut self,
        _: Option<Time>,
        _: Duration,
        completions: &mut Vec<Completion<Vec<u8>>>,
    ) -> Result<(), RingError> {
        self.now = self.now + Duration::from_micros(1);
        completions.append(&mut self.ready);
        Ok(())
    }

    fn accept(&mut self, _: Fd, key: Key) {
        self.listener = Some(key);
    }

    fn accept_one(&mut self, _: Fd, key: Key) {
        self.listener = Some(key);
    }

    fn stop_accepting(&mut self, _: Key) {}

    fn receive(&mut self, fd: Fd, key: Key) {
        self.receivers[fd.0 as usize] = Some(key);
    }

    fn stop_receiving(&mut self, _: Key) {
        unreachable!("nobody is paused by requests as small as these");
    }

    fn send(&mut self, fd: Fd, key: Key, bytes: Vec<u8>, from: usize, _: bool) {
        self.sent.push((fd, key, bytes, from));
    }

    fn connect(&mut self, key: Key, _: SocketAddr) -> Result<Fd, Errno> {
        let fd = self.open();
        self.dialled.push(fd);
        let token = Token::new(Kind::Connect, key);
        self.ready.push(Completion { token, outcome: Outcome::Connected(Ok(())) });
        Ok(fd)
    }

    fn shut_down(&mut self, _: Fd) {}

    fn cancel(&mut self, _: Fd) {}

    fn close(&mut self, _: Fd, _: bool) {
        unreachable!("no connection of a bench ends");
    }

    fn peer(&self, _: Fd) -> Option<SocketAddr> {
        Some(SocketAddr::from(([192, 0, 2, 1], 40_000)))
    }

    fn bytes<'a>(&'a mut self, lease: &'a mut Vec<u8>) -> &'a mut [u8] {
        lease
    }

    fn give_back(&mut self, lease: Vec<u8>) {
        self.lent -= 1;
        self.spare.push(lease);
    }

    fn return_memory(&mut self) {}

    fn calls(&self) -> Calls {
        Calls::default()
    }

    fn buffers_free(&self) -> usize {
        BUFFERS.saturating_sub(self.lent)
    }

    fn buffers_total(&self) -> usize {
        BUFFERS
    }
}
