//! The door to the kernel: io_uring behind a small trait.
//!
//! Owns descriptors' operations and the memory lent to them. Knows neither TLS nor MMTP nor roles.
//! Invariant: memory named in an operation stays where it is until the *final* completion of that operation.

mod batching;
mod op;
mod setup;
mod sockets;
mod supply;
#[allow(unsafe_code)] // the one place: see the module's contract
mod sys;
mod uring;

pub use op::{Completion, Errno, Fd, Kind, Outcome, Token};
pub use setup::{RingError, RingSettings};
pub use sockets::{BindError, FastOpen, Listener, ListenerSettings, listen};
pub use sys::{ClockState, Waker, ask_for_short_turns, clock_state};
pub use uring::{Lease, Uring};

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::slab::Key;
use crate::base::time::Time;

/// System calls that a ring has made since it was set up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Calls {
    /// io_uring_enter(2): one for each [`Ring::wait`] and [`Ring::submit`], and for each time that the queue was full.
    pub enters: u64,
    /// All others: of sockets that are dialled, shut down, reset or asked for their peer, and of clocks and wakers.
    pub others: u64,
}

/// What a worker asks of the kernel. Implemented by [`Uring`], and by simulations.
///
/// Contract of ownership: what is submitted is lent. A slot that has an operation out must not be reused for another
/// descriptor until the operation's final completion was reaped; per slot at most one receive, one send and one connect
/// are out at a time.
pub trait Ring {
    /// A receive buffer on loan.
    type Lease;

    /// The time of the last [`Ring::wait`].
    fn now(&self) -> Time;

    /// The time, read afresh.
    fn clock(&self) -> Time;

    /// CPU time that the calling thread has used, the kernel's on its behalf included. A system call: for when it matters.
    fn worked(&self) -> Duration;

    /// Submits everything asked for since the last call, without waiting and without looking at completions. For what
    /// should not wait until the next [`Ring::wait`].
    ///
    /// # Errors
    /// As for [`Ring::wait`].
    fn submit(&mut self) -> Result<(), RingError>;

    /// Submits everything asked for since the last call, waits for a completion or for `until` (forever if `None`), and
    /// appends all completions at hand. A completion may be left waiting for up to `patience` while more are on their way.
    ///
    /// # Errors
    /// When the ring itself cannot go on; nothing about single operations.
    fn wait(
        &mut self,
        until: Option<Time>,
        patience: Duration,
        completions: &mut Vec<Completion<Self::Lease>>,
    ) -> Result<(), RingError>;

    /// Accepts connections until told otherwise.
    fn accept(&mut self, listener: Fd, key: Key);

    /// Accepts one connection.
    fn accept_one(&mut self, listener: Fd, key: Key);

    /// Asks the accept of this listener to end. Its final completion follows, possibly with a last connection.
    fn stop_accepting(&mut self, key: Key);

    /// Receives until told otherwise.
    fn receive(&mut self, fd: Fd, key: Key);

    /// Asks the receive of this slot to end. Its final completion follows.
    fn stop_receiving(&mut self, key: Key);

    /// Sends `bytes[from..]`, whole unless the connection breaks. `is_last`: the end of the sending direction follows as
    /// soon as this is over, so that both may share a packet.
    fn send(&mut self, fd: Fd, key: Key, bytes: Vec<u8>, from: usize, is_last: bool);

    /// Makes a socket and starts to connect it.
    ///
    /// # Errors
    /// When the socket cannot be made; then no completion follows.
    fn connect(&mut self, key: Key, address: SocketAddr) -> Result<Fd, Errno>;

    /// Ends the sending direction, at once: what was sent goes first, and no send may be out. A system call of its own,
    /// since io_uring would have a thread of the kernel make it, which costs many times as much.
    fn shut_down(&mut self, fd: Fd);

    /// Asks everything that is out on the descriptor to end. Final completions follow.
    fn cancel(&mut self, fd: Fd);

    /// Closes the descriptor. Nothing may be out on it. With `reset` the peer is told at once that what was in flight is lost.
    fn close(&mut self, fd: Fd, reset: bool);

    /// Address of the other end, if the socket still has one.
    fn peer(&self, fd: Fd) -> Option<SocketAddr>;

    /// The bytes received into a buffer.
    fn bytes<'a>(&'a mut self, lease: &'a mut Self::Lease) -> &'a mut [u8];

    /// Gives a buffer back to the kernel.
    fn give_back(&mut self, lease: Self::Lease);

    /// Gives memory that was freed back to the system. It may take a millisecond: for a worker that has nothing to do, whose
    /// allocator would do nothing about it because it is not called.
    fn return_memory(&mut self);

    /// System calls so far.
    fn calls(&self) -> Calls;

    /// Buffers that hold nothing: those the kernel has at hand, and those kept from it until they are needed.
    fn buffers_free(&self) -> usize;

    /// Buffers there are.
    fn buffers_total(&self) -> usize;
}
