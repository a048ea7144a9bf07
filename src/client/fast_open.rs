//! TCP Fast Open (RFC 7413): the first bytes of a connection go out with its SYN, when the kernel has a cookie of that
//! server; when it has none, it asks for one and connects as ever. Owns which addresses to keep away from; never a
//! socket.
//!
//! Invariant: where the system has no such thing, nothing here does anything.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::time::Time;

pub(super) use system::{First, send, socket};

/// How long an address at which it brought no connection in time is connected to without it. Networks that eat data in
/// a SYN do so for all; a phone leaves them behind within minutes.
const AVOIDED_FOR: Duration = Duration::from_secs(10 * 60);

/// Addresses kept away from at most; beyond that, all are forgiven.
const AVOIDED_MAX: usize = 256;

/// Addresses that are connected to without it for a while.
#[derive(Debug, Default)]
pub(super) struct Avoided(HashMap<SocketAddr, Time>);

impl Avoided {
    /// It did not work with this address.
    pub(super) fn add(&mut self, address: SocketAddr, now: Time) {
        if self.0.len() >= AVOIDED_MAX {
            self.0.clear();
        }
        self.0.insert(address, now + AVOIDED_FOR);
    }

    /// Whether to do without it.
    pub(super) fn contains(&self, address: SocketAddr, now: Time) -> bool {
        self.0.get(&address).is_some_and(|until| *until > now)
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;
    use std::net::SocketAddr;

    use mio::net::TcpStream;
    use socket2::{Domain, Protocol, SockRef, Socket, Type};

    /// `MSG_FASTOPEN`: connect, with these bytes in the SYN if that can be done.
    const MSG_FASTOPEN: i32 = 0x2000_0000;

    /// `EINPROGRESS`: the connection is being made, without the bytes.
    const IN_PROGRESS: i32 = 115;

    /// What became of the first bytes.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(in super::super) enum First {
        /// So many of them are on their way with the SYN.
        Sent(usize),
        /// None: the connection is being made as ever.
        Held,
    }

    /// A socket that [`send`] will connect.
    pub(in super::super) fn socket(address: SocketAddr) -> Option<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(TcpStream::from_std(socket.into()))
    }

    /// Connects, without waiting, with these first bytes.
    pub(in super::super) fn send(socket: &TcpStream, address: SocketAddr, bytes: &[u8]) -> io::Result<First> {
        let socket = SockRef::from(socket);
        let address = address.into();
        match socket.send_to_with_flags(bytes, &address, MSG_FASTOPEN) {
            Ok(count) => return Ok(First::Sent(count)),
            Err(error) if error.raw_os_error() == Some(IN_PROGRESS) => return Ok(First::Held),
            Err(_) => {} // switched off in this kernel: as ever
        }
        match socket.connect(&address) {
            Err(error) if error.raw_os_error() != Some(IN_PROGRESS) => Err(error),
            Ok(()) | Err(_) => Ok(First::Held),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;
    use std::net::SocketAddr;

    use mio::net::TcpStream;

    /// What became of the first bytes.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(in super::super) enum First {
        /// So many of them are on their way with the SYN.
        Sent(usize),
        /// None: the connection is being made as ever.
        Held,
    }

    /// None here: sockets are connected as ever.
    pub(in super::super) fn socket(_: SocketAddr) -> Option<TcpStream> {
        None
    }

    /// Never called, for want of a socket.
    pub(in super::super) fn send(_: &TcpStream, _: SocketAddr, _: &[u8]) -> io::Result<First> {
        Ok(First::Held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_avoided_for_a_while() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut avoided = Avoided::default();
        let now = Time::from_nanos(1);
        assert!(!avoided.contains(address, now));
        avoided.add(address, now);
        assert!(avoided.contains(address, now + AVOIDED_FOR / 2));
        assert!(!avoided.contains(address, now + AVOIDED_FOR));
        for port in 0..=AVOIDED_MAX as u16 {
            avoided.add(SocketAddr::from(([127, 0, 0, 1], port)), now);
        }
        assert!(avoided.0.len() <= AVOIDED_MAX);
    }
}
