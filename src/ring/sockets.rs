//! Sockets as Trunkline wants them: listeners shared by port, connections without Nagle's delay.

use std::net::SocketAddr;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::op::{Errno, Fd};

/// How a listener is made.
#[derive(Clone, Copy, Debug)]
pub struct ListenerSettings {
    /// Address and port; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Connections the kernel completes ahead of accept.
    pub backlog: i32,
    /// After how long unacknowledged data ends a connection (TCP_USER_TIMEOUT), inherited by accepted sockets.
    pub user_timeout: Duration,
}

/// A listening socket.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// Its descriptor.
    pub fd: Fd,
    /// The address it got.
    pub address: SocketAddr,
}

/// Why an address could not be listened on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Which call failed.
    pub step: &'static str,
    /// With which error.
    pub errno: Errno,
}

impl core::fmt::Display for BindError {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(formatter, "cannot listen on {}: {} failed: {}", self.address, self.step, self.errno)
    }
}

impl std::error::Error for BindError {}

/// Opens a listener that shares its port with the other workers' (SO_REUSEPORT). Options that accepted sockets inherit
/// are set here once, so that accepting costs no further system call.
///
/// # Errors
/// When the address cannot be had; the error names it.
pub fn listen(settings: &ListenerSettings) -> Result<Listener, BindError> {
    let address = settings.address;
    let failed = |step: &'static str| move |error: std::io::Error| BindError { address, step, errno: error.into() };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))
        .map_err(failed("socket"))?;
    if address.is_ipv6() {
        socket.set_only_v6(true).map_err(failed("IPV6_V6ONLY"))?;
    }
    socket.set_reuse_address(true).map_err(failed("SO_REUSEADDR"))?;
    socket.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
    tune(&socket, settings.user_timeout).map_err(failed("setsockopt"))?;
    socket.bind(&address.into()).map_err(failed("bind"))?;
    socket.listen(settings.backlog).map_err(failed("listen"))?;
    let bound = socket.local_addr().map_err(failed("getsockname"))?.as_socket().unwrap_or(address);
    Ok(Listener { fd: Fd(socket.into_raw_fd()), address: bound })
}

/// A socket to connect with.
pub(super) fn dialler(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    tune(&socket, Duration::from_secs(30))?;
    Ok(socket)
}

fn tune(socket: &Socket, user_timeout: Duration) -> std::io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(user_timeout))?;
    // A peer that vanished without a word is noticed within about two minutes even if nothing is sent.
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(75)).with_interval(Duration::from_secs(15)).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_nobody_is_refused_by_name() {
        let settings = ListenerSettings {
            address: "192.0.2.1:0".parse().expect("a documentation address"),
            backlog: 16,
            user_timeout: Duration::from_secs(1),
        };
        let error = listen(&settings).expect_err("TEST-NET-1 is nobody's");
        assert!(error.to_string().contains("192.0.2.1:0"), "{error}");
        assert_eq!(error.errno, Errno(libc::EADDRNOTAVAIL));
    }
}
