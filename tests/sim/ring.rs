//! The ring of a simulated worker: every call goes to the common network.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use trunkline::base::slab::Key;
use trunkline::base::time::Time;
use trunkline::ring::{Calls, Completion, Errno, Fd, Kind, Ring, RingError};

use crate::net::{Lease, Net, note};

pub struct FakeRing {
    net: Rc<RefCell<Net>>,
    host: usize,
    now: Time,
}

impl FakeRing {
    pub fn new(net: Rc<RefCell<Net>>, host: usize) -> FakeRing {
        let now = net.borrow().now;
        FakeRing { net, host, now }
    }
}

impl Ring for FakeRing {
    type Lease = Lease;

    fn now(&self) -> Time {
        self.now
    }

    fn clock(&self) -> Time {
        self.net.borrow().now
    }

    // Work takes no time here.
    fn worked(&self) -> Duration {
        Duration::ZERO
    }

    // What was asked for is under way already.
    fn submit(&mut self) -> Result<(), RingError> {
        Ok(())
    }

    fn wait(
        &mut self,
        until: Option<Time>,
        _patience: Duration,
        completions: &mut Vec<Completion<Lease>>,
    ) -> Result<(), RingError> {
        let mut net = self.net.borrow_mut();
        net.hosts[self.host].until = until;
        self.now = net.now;
        completions.extend(net.reap(self.host));
        Ok(())
    }

    fn accept(&mut self, listener: Fd, key: Key) {
        self.net.borrow_mut().submit(self.host, Kind::Accept, listener, key, Vec::new(), 0);
    }

    fn accept_one(&mut self, listener: Fd, key: Key) {
        self.net.borrow_mut().submit_accept_one(self.host, listener, key);
    }

    fn stop_accepting(&mut self, key: Key) {
        self.net.borrow_mut().cancel_op(self.host, Kind::Accept, key);
    }

    fn receive(&mut self, fd: Fd, key: Key) {
        self.net.borrow_mut().submit(self.host, Kind::Receive, fd, key, Vec::new(), 0);
    }

    fn stop_receiving(&mut self, key: Key) {
        self.net.borrow_mut().cancel_op(self.host, Kind::Receive, key);
    }

    fn send(&mut self, fd: Fd, key: Key, bytes: Vec<u8>, from: usize, _is_last: bool) {
        let mut net = self.net.borrow_mut();
        note!(net, "host {} slot {} fd {} sends {}", self.host, key.index, fd.0, bytes.len() - from);
        net.submit(self.host, Kind::Send, fd, key, bytes, from);
    }

    fn connect(&mut self, key: Key, address: SocketAddr) -> Result<Fd, Errno> {
        self.net.borrow_mut().submit_connect(self.host, key, address)
    }

    fn shut_down(&mut self, fd: Fd) {
        self.net.borrow_mut().shut_down(self.host, fd);
    }

    fn cancel(&mut self, fd: Fd) {
        self.net.borrow_mut().cancel(self.host, fd);
    }

    fn close(&mut self, fd: Fd, reset: bool) {
        self.net.borrow_mut().close_of_host(self.host, fd, reset);
    }

    fn peer(&self, fd: Fd) -> Option<SocketAddr> {
        self.net.borrow().peer(fd)
    }

    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        &mut lease.bytes
    }

    fn give_back(&mut self, lease: Lease) {
        self.net.borrow_mut().give_back(self.host, &lease);
    }

    fn return_memory(&mut self) {}

    fn calls(&self) -> Calls {
        Calls::default()
    }

    fn buffers_free(&self) -> usize {
        self.net.borrow().buffers_free(self.host)
    }

    fn buffers_total(&self) -> usize {
        self.net.borrow().hosts[self.host].buffers_total
    }
}
