//! The way from the app's threads to the driver. Owns the queue, the wake-up and the count of those who may still use
//! it; never looks into a command.
//!
//! Invariant: after [`Mailbox::close`] nothing is queued any more, and every push says so.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::base::slab::Key;
use crate::base::time::Time;

use super::call::Shared;
use super::resolve::Found;

/// What the driver is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Take on a call.
    Start(Arc<Shared>),
    /// Look at a call: its app wrote, read or cancelled.
    Touch(Arc<Shared>),
    /// A lookup for a link has ended.
    Looked {
        /// The link that waits for it.
        link: Key,
        /// What was found.
        found: Found,
    },
    /// Nobody can ask for anything any more.
    Stop,
}

#[derive(Debug, Default)]
struct Queue {
    commands: Vec<Command>,
    is_closed: bool,
}

/// The queue of commands. Every thread may push; the driver alone takes.
#[derive(Debug)]
pub(super) struct Mailbox {
    queue: Mutex<Queue>,
    waker: mio::Waker,
    origin: Instant,
}

impl Mailbox {
    pub(super) fn new(waker: mio::Waker) -> Mailbox {
        Mailbox { queue: Mutex::new(Queue::default()), waker, origin: Instant::now() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The clock that the driver and the calls share.
    pub(super) fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Queues a command and wakes the driver. False when the driver has stopped.
    pub(super) fn push(&self, command: Command) -> bool {
        let mut queue = self.lock();
        if queue.is_closed {
            return false;
        }
        let was_empty = queue.commands.is_empty();
        queue.commands.push(command);
        drop(queue);
        if was_empty {
            // A wake-up can only fail for want of memory in the kernel; the driver then finds the command at its next
            // timeout.
            let _ = self.waker.wake();
        }
        true
    }

    /// Takes everything queued, leaving `into`'s memory for what comes next.
    pub(super) fn take(&self, into: &mut Vec<Command>) {
        into.clear();
        std::mem::swap(&mut self.lock().commands, into);
    }

    /// Refuses everything from now on and returns what had been queued.
    pub(super) fn close(&self) -> Vec<Command> {
        let mut queue = self.lock();
        queue.is_closed = true;
        std::mem::take(&mut queue.commands)
    }
}

/// Held by the client and by every call; the driver stops when the last one goes.
#[derive(Debug)]
pub(super) struct Handle {
    mailbox: Arc<Mailbox>,
    driver: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    pub(super) fn new(mailbox: Arc<Mailbox>, driver: JoinHandle<()>) -> Handle {
        Handle { mailbox, driver: Mutex::new(Some(driver)) }
    }

    pub(super) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.mailbox.push(Command::Stop);
        let driver = self.driver.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(driver) = driver {
            let _ = driver.join(); // its panic, if any, has been reported by the panic hook; its calls have failed
        }
    }
}
