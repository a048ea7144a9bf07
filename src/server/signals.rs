//! Signals as requests that the slow thread reads with its other events: SIGTERM and SIGINT drain, a second one stops
//! at once, SIGHUP reads certificates again.
//!
//! Owns the handlers of these three signals while it exists. Does nothing in a handler but note the signal and wake the
//! poll.

use std::io;

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// What somebody asked of the process by a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Take nothing new, let what runs end: the first SIGTERM or SIGINT.
    Drain,
    /// End now: a SIGTERM or SIGINT after the first.
    StopNow,
    /// Read certificates again: SIGHUP.
    Reload,
}

/// The signals that arrived.
#[derive(Debug)]
pub struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    /// Whether [`Asked::Drain`] was told.
    draining: bool,
}

impl Signals {
    /// Installs the handlers; `token` becomes readable in the poll when a signal has arrived.
    ///
    /// # Errors
    /// Those of socketpair(2), sigaction(2) and epoll_ctl(2).
    pub fn install(registry: &Registry, token: Token) -> io::Result<Signals> {
        let (read, write) = std::os::unix::net::UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let mut read = UnixStream::from_std(read);
        registry.register(&mut read, token, Interest::READABLE)?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, [SIGTERM, SIGINT, SIGHUP])?;
        Ok(Signals { delivery, draining: false })
    }

    /// What was asked since the last call. Equal signals that arrive together count once, as in the kernel.
    pub fn pending(&mut self) -> Vec<Asked> {
        let arrived: Vec<i32> = self.delivery.pending().collect();
        arrived.into_iter().map(|signal| self.asked(signal)).collect()
    }

    fn asked(&mut self, signal: i32) -> Asked {
        match signal {
            SIGHUP => Asked::Reload,
            _ if self.draining => Asked::StopNow,
            _ => {
                self.draining = true;
                Asked::Drain
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// One test for all, because signals reach the whole process.
    #[test]
    fn signals_become_requests_and_wake_the_poll() {
        let mut poll = mio::Poll::new().expect("a poll");
        let mut signals = Signals::install(poll.registry(), Token(7)).expect("handlers can be installed");
        let mut events = mio::Events::with_capacity(8);
        for (signal, asked) in [
            (SIGHUP, Asked::Reload),
            (SIGTERM, Asked::Drain),
            (SIGHUP, Asked::Reload),
            (SIGINT, Asked::StopNow),
            (SIGTERM, Asked::StopNow),
        ] {
            assert_eq!(signals.pending(), []);
            signal_hook::low_level::raise(signal).expect("a signal to ourselves");
            poll.poll(&mut events, Some(Duration::from_secs(5))).expect("polling works");
            assert!(events.iter().any(|event| event.token() == Token(7)), "the poll wakes");
            assert_eq!(signals.pending(), [asked]);
        }
    }
}
