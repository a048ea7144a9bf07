//! One call as both sides see it: the app's threads on one side, the driver on the other. Owns the bytes between them
//! and their bounds; never touches a socket.
//!
//! Invariant: once `failure` is set, or both directions have ended, the driver changes nothing more, and every thread
//! that waits has been woken.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::base::slab::Key;
use crate::base::time::Time;

use super::error::{CallError, Failure, Receipt};
use super::mailbox::{Command, Handle, Mailbox};
use super::message::{Head, Response};
use super::report::{Outcome, Report, milliseconds};
use super::request::Prepared;

/// Bytes a streamed request body may wait in, before [`Call::write`] waits too.
pub(super) const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// Bytes the app may have read before the driver is told, so that it can grant the server more.
const READ_REPORT_BYTES: usize = 32 * 1024;

// Credit is due when half a window has been read; a server that waits for it has sent the whole window.
const _: () = assert!(READ_REPORT_BYTES <= super::STREAM_CREDIT_BYTES as usize / 4);

/// Request bytes on their way from the app to the driver.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    taken: usize,
    /// Whether nothing more will be added.
    pub(super) ended: bool,
    /// Whether it was given whole, so that it can be sent again from the start.
    whole: bool,
}

impl Outgoing {
    pub(super) fn whole(bytes: Vec<u8>) -> Outgoing {
        Outgoing { bytes, taken: 0, ended: true, whole: true }
    }

    /// The bytes the driver has not taken.
    pub(super) fn pending(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// The driver took the first `count` of the pending bytes.
    pub(super) fn take(&mut self, count: usize) {
        self.taken += count;
        if !self.whole && (self.taken == self.bytes.len() || self.taken >= WRITE_BUFFER_BYTES / 2) {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// Length of a body given whole, which can be sent again.
    pub(super) fn whole_bytes(&self) -> Option<usize> {
        self.whole.then_some(self.bytes.len())
    }

    /// Goes back to the first byte. False when it is not there any more.
    fn rewind(&mut self, sent_bytes: u64) -> bool {
        if self.whole {
            self.taken = 0;
        }
        self.whole || sent_bytes == 0
    }
}

/// What the app's threads and the driver share about one call.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The driver's name for the call, from the moment it took it.
    pub(super) key: Option<Key>,
    /// Whether a [`Command::Touch`] is on its way.
    touched: bool,
    /// What the app has written.
    pub(super) outgoing: Outgoing,
    /// Whether the app has given the call up.
    pub(super) is_cancelled: bool,
    /// Bytes the app has read and the driver has not heard of.
    pub(super) read_unreported: usize,
    head: Option<Head>,
    incoming: VecDeque<u8>,
    is_answered: bool,
    /// Whether the driver has let go of the call: both directions ended, or it failed.
    is_closed: bool,
    failure: Option<(Failure, Receipt)>,
    /// What it took so far.
    pub(super) report: Report,
}

impl State {
    /// Whether nothing that happens can change how the call ended.
    fn is_settled(&self) -> bool {
        self.failure.is_some() || self.is_closed
    }
}

/// One call, shared.
#[derive(Debug)]
pub(super) struct Shared {
    mailbox: Arc<Mailbox>,
    /// When the app began it.
    pub(super) started_at: Time,
    /// What to send and how.
    pub(super) prepared: Prepared,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// The state. A thread that panicked while it held it leaves plain data behind, which stays usable.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// When its time is up.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.prepared.timeout.map(|timeout| self.started_at + timeout)
    }

    fn elapsed_ms(&self, now: Time) -> f64 {
        milliseconds(now.since(self.started_at))
    }

    /// The head of the answer arrived.
    pub(super) fn put_head(&self, now: Time, head: Head) {
        let mut state = self.lock();
        if state.failure.is_some() {
            return; // it has been given up
        }
        state.report.status = Some(head.status);
        state.report.first_byte_ms = Some(self.elapsed_ms(now));
        state.head = Some(head);
        self.changed.notify_all();
    }

    /// Part of the answer's body arrived. Its bound is the credit that was granted for it.
    pub(super) fn put_bytes(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if state.failure.is_some() {
            return; // it has been given up
        }
        state.report.received_bytes += bytes.len() as u64;
        state.incoming.extend(bytes);
        self.changed.notify_all();
    }

    /// The answer is whole. `is_closed`: so is the request, and the driver lets go.
    pub(super) fn put_end(&self, now: Time, is_closed: bool) {
        let mut state = self.lock();
        if state.failure.is_some() {
            return; // it has been given up
        }
        state.is_answered = true;
        state.is_closed |= is_closed;
        state.report.receipt = Outcome::Answered;
        state.report.total_ms = Some(self.elapsed_ms(now));
        self.changed.notify_all();
    }

    /// The call failed. After a whole answer this only stops the sending of the rest of the request.
    pub(super) fn fail(&self, now: Time, failure: Failure, receipt: Receipt) {
        self.fail_locked(&mut self.lock(), now, failure, receipt);
    }

    fn fail_locked(&self, state: &mut State, now: Time, failure: Failure, receipt: Receipt) {
        if state.is_settled() {
            return;
        }
        if !state.is_answered {
            state.report.settle(receipt);
            state.report.total_ms = Some(self.elapsed_ms(now));
        }
        state.failure = Some((failure, receipt));
        self.changed.notify_all();
    }

    /// The driver lets go of the call, whose answer is whole.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// The driver drops the call without having settled it: it has ended early.
    pub(super) fn fail_unsettled(&self, failure: Failure, receipt: Receipt) {
        self.fail(self.mailbox.now(), failure, receipt);
    }

    /// Room was made for more of the request's body.
    pub(super) fn room(&self) {
        self.changed.notify_all();
    }

    /// Goes back to before anything was sent, for another connection. False when what was sent cannot be sent again.
    pub(super) fn rewind(&self) -> bool {
        let mut state = self.lock();
        let sent_bytes = state.report.sent_bytes;
        if state.is_cancelled || state.head.is_some() || !state.outgoing.rewind(sent_bytes) {
            return false;
        }
        state.report.sent_bytes = 0;
        state.report.restarts += 1;
        true
    }

    /// Tells the driver to look at the call.
    fn touch(self: &Arc<Shared>, mut state: MutexGuard<'_, State>) {
        if !std::mem::replace(&mut state.touched, true) {
            drop(state);
            self.mailbox.push(Command::Touch(self.clone()));
        }
    }

    /// The driver looks at the call: from now on another touch is sent.
    pub(super) fn look(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.touched = false;
        state
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn error_of(state: &State) -> Option<CallError> {
    let (failure, receipt) = state.failure.clone()?;
    Some(CallError::new(failure, receipt, state.report.clone()))
}

/// A call that is under way. Reading and writing block, and may be done from two threads at once through shared
/// references (`std::thread::scope`, or an `Arc`). Dropping it cancels what has not ended.
///
/// It also is [`std::io::Read`] and [`std::io::Write`], by value and by reference; errors then carry the [`CallError`].
#[derive(Debug)]
pub struct Call {
    shared: Arc<Shared>,
    /// Keeps the driver running.
    _handle: Arc<Handle>,
}

impl Call {
    pub(super) fn start(handle: &Arc<Handle>, prepared: Result<Prepared, Failure>, body: Outgoing) -> Call {
        let mailbox = handle.mailbox().clone();
        let started_at = mailbox.now();
        let (prepared, failure) = match prepared {
            Ok(prepared) => (prepared, None),
            Err(failure) => (Prepared::default(), Some(failure)),
        };
        let state = Mutex::new(State { outgoing: body, ..State::default() });
        let shared = Arc::new(Shared { mailbox, started_at, prepared, state, changed: Condvar::new() });
        match failure {
            Some(failure) => shared.fail(started_at, failure, Receipt::NotForwarded),
            None => {
                if !shared.mailbox.push(Command::Start(shared.clone())) {
                    shared.fail(started_at, Failure::Stopped, Receipt::NotForwarded);
                }
            }
        }
        Call { shared, _handle: handle.clone() }
    }

    /// Waits for the head of the answer. Interim answers (1xx) are passed over.
    ///
    /// # Errors
    /// The call failed before it came.
    pub fn response_head(&self) -> Result<Head, CallError> {
        let mut state = self.shared.lock();
        loop {
            if let Some(head) = &state.head {
                return Ok(head.clone());
            }
            if let Some(error) = error_of(&state) {
                return Err(error);
            }
            state = self.shared.wait(state);
        }
    }

    /// Reads from the answer's body, waiting for at least one byte. Zero at its end, or when `buffer` is empty. What is
    /// read makes room for the server to send more; a call that nobody reads holds a bounded number of bytes.
    ///
    /// # Errors
    /// The call failed; bytes that had arrived before are given out first.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, CallError> {
        let mut state = self.shared.lock();
        loop {
            if !state.incoming.is_empty() {
                let count = io::Read::read(&mut state.incoming, buffer).unwrap_or(0);
                state.read_unreported += count;
                if state.read_unreported >= READ_REPORT_BYTES && !state.is_answered && state.failure.is_none() {
                    self.shared.touch(state);
                }
                return Ok(count);
            }
            if state.is_answered || buffer.is_empty() {
                return Ok(0);
            }
            if let Some(error) = error_of(&state) {
                return Err(error);
            }
            state = self.shared.wait(state);
        }
    }

    /// Reads the rest of the answer's body.
    ///
    /// # Errors
    /// The call failed, or more than `bytes_max` bytes came, which cancels it.
    pub fn body(&self, bytes_max: usize) -> Result<Vec<u8>, CallError> {
        let mut body = Vec::new();
        let mut chunk = vec![0; 16 * 1024];
        loop {
            let count = self.read(&mut chunk)?;
            if count == 0 {
                return Ok(body);
            }
            if body.len() + count > bytes_max {
                self.give_up(Failure::AnswerTooLong { bytes_max });
                let state = self.shared.lock();
                let report = state.report.clone();
                return Err(CallError::new(Failure::AnswerTooLong { bytes_max }, Receipt::Unknown, report));
            }
            body.extend_from_slice(&chunk[..count]);
        }
    }

    /// Writes to the body of a request that was made with [`Request::streamed`](super::Request::streamed) or
    /// [`Request::tunnel`](super::Request::tunnel). Waits while the other end takes nothing.
    ///
    /// # Errors
    /// The call failed. Writing after [`Call::finish`], or to a request whose body was given whole, is
    /// [`Failure::Finished`].
    pub fn write(&self, mut bytes: &[u8]) -> Result<(), CallError> {
        while !bytes.is_empty() {
            let mut state = self.shared.lock();
            loop {
                if let Some(error) = error_of(&state) {
                    return Err(error);
                }
                if state.outgoing.ended {
                    return Err(CallError::new(Failure::Finished, Receipt::Unknown, state.report.clone()));
                }
                if state.outgoing.pending().len() < WRITE_BUFFER_BYTES {
                    break;
                }
                state = self.shared.wait(state);
            }
            let count = bytes.len().min(WRITE_BUFFER_BYTES - state.outgoing.pending().len());
            state.outgoing.bytes.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.shared.touch(state);
        }
        Ok(())
    }

    /// Ends the request's body; the answer can still be read. Doing it again changes nothing.
    pub fn finish(&self) {
        let mut state = self.shared.lock();
        if !state.outgoing.ended {
            state.outgoing.ended = true;
            self.shared.touch(state);
        }
    }

    /// Gives the call up: the other end is told, and every thread that waits on it gets [`Failure::Cancelled`]. It may
    /// have been carried out all the same. Changes nothing once the whole answer is here and the request is sent.
    pub fn cancel(&self) {
        self.give_up(Failure::Cancelled);
    }

    fn give_up(&self, failure: Failure) {
        let now = self.shared.mailbox.now();
        let mut state = self.shared.lock();
        if state.is_settled() {
            return;
        }
        // Both before the driver is told: it must find a failed call, and not explain its end in its own way.
        self.shared.fail_locked(&mut state, now, failure, Receipt::Unknown);
        state.is_cancelled = true;
        self.shared.touch(state);
    }

    /// What it took so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.lock().report.clone()
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// As [`Call::response_head`] and [`Call::body`].
    pub fn response(&self, bytes_max: usize) -> Result<Response, CallError> {
        let head = self.response_head()?;
        let body = self.body(bytes_max)?;
        Ok(Response { status: head.status, fields: head.fields, body, report: self.report() })
    }
}

#[cfg(test)]
impl Call {
    /// To see whether the driver is gone.
    pub(super) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.shared.mailbox
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl io::Read for &Call {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(Call::read(self, buffer)?)
    }
}

impl io::Write for &Call {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Call::write(self, bytes)?;
        Ok(bytes.len())
    }

    /// Does nothing: what is written is sent without being asked.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Read for Call {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &*self, buffer)
    }
}

impl io::Write for Call {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut &*self, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
