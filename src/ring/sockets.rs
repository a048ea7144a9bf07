//! Sockets as Trunkline wants them: listeners shared by port and open to data in the SYN, connections without Nagle's
//! delay.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, IntoRawFd as _};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::op::{Errno, Fd};
use super::sys;

/// For how long the kernel keeps a connection to itself whose first bytes have not come, in seconds (TCP_DEFER_ACCEPT, see
/// tcp(7)); it rounds up to the next retransmission of its SYN-ACK. In everything spoken here the client speaks first, so
/// that accepting and receiving become one step, and connections that say nothing cost no descriptor meanwhile.
const DEFER_ACCEPT_S: i32 = 1;

/// How a listener is made.
#[derive(Clone, Copy, Debug)]
pub struct ListenerSettings<'k> {
    /// Address and port; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Connections the kernel completes ahead of accept.
    pub backlog: i32,
    /// After how long unacknowledged data ends a connection (TCP_USER_TIMEOUT), inherited by accepted sockets.
    pub user_timeout: Duration,
    /// Connections that may wait with data that came in their SYN (TCP Fast Open, RFC 7413); 0: none may.
    pub fast_open: u32,
    /// Its keys, 16 bytes each: the current one and, if there is one, the previous. Empty: the kernel's own.
    pub fast_open_keys: &'k [u8],
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    /// Its descriptor.
    pub fd: Fd,
    /// The address it got.
    pub address: SocketAddr,
    /// Some with TCP Fast Open.
    pub fast_open: Option<FastOpen>,
}

/// TCP Fast Open of a listening socket, for whoever does not own its descriptor. Holds a descriptor of its own: the
/// socket goes on listening until this is dropped, too.
#[derive(Debug)]
pub struct FastOpen {
    socket: Socket,
}

impl FastOpen {
    /// Replaces the keys: 16 bytes for the current one, 32 for it and the previous. Connections are not touched; a client
    /// with a cookie of neither gets a new one by a normal handshake.
    ///
    /// # Errors
    /// Those of setsockopt(2): EINVAL for any other length.
    pub fn set_keys(&self, keys: &[u8]) -> Result<(), Errno> {
        sys::set_option(self.socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, keys).map_err(Errno::from)
    }

    /// The keys as they are, and the length of the queue.
    #[cfg(test)]
    fn read_back(&self) -> (Vec<u8>, u32) {
        let get = |option| sys::get_option::<64>(self.socket.as_fd(), libc::IPPROTO_TCP, option).expect("Linux has it");
        let queue = get(libc::TCP_FASTOPEN);
        (get(libc::TCP_FASTOPEN_KEY), u32::from_ne_bytes(queue.try_into().expect("an int")))
    }
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
pub fn listen(settings: &ListenerSettings<'_>) -> Result<Listener, BindError> {
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
    sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &DEFER_ACCEPT_S.to_ne_bytes())
        .map_err(failed("TCP_DEFER_ACCEPT"))?;
    socket.bind(&address.into()).map_err(failed("bind"))?;
    let fast_open = fast_open(&socket, settings).map_err(failed("TCP_FASTOPEN"))?;
    socket.listen(settings.backlog).map_err(failed("listen"))?;
    let bound = socket.local_addr().map_err(failed("getsockname"))?.as_socket().unwrap_or(address);
    Ok(Listener { fd: Fd(socket.into_raw_fd()), address: bound, fast_open })
}

/// To be called before listen(2), so that no SYN meets a socket without its keys.
fn fast_open(socket: &Socket, settings: &ListenerSettings<'_>) -> std::io::Result<Option<FastOpen>> {
    if settings.fast_open == 0 {
        return Ok(None);
    }
    let queue = i32::try_from(settings.fast_open).unwrap_or(i32::MAX);
    sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &queue.to_ne_bytes())?;
    if !settings.fast_open_keys.is_empty() {
        sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, settings.fast_open_keys)?;
    }
    Ok(Some(FastOpen { socket: socket.try_clone()? }))
}

/// System calls of [`dialler`]: socket(2), and an option each for TCP_NODELAY, TCP_USER_TIMEOUT, SO_KEEPALIVE and its three
/// figures.
pub(super) const DIALLER_CALLS: u64 = 7;

/// A socket to connect with.
pub(super) fn dialler(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    tune(&socket, Duration::from_secs(30))?;
    Ok(socket)
}

/// A socket to connect with that waits for its first bytes, to send them with the SYN: one option more.
pub(super) fn fast_dialler(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = dialler(address)?;
    sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &1i32.to_ne_bytes())?;
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

    fn settings(address: &str) -> ListenerSettings<'static> {
        ListenerSettings {
            address: address.parse().expect("an address"),
            backlog: 16,
            user_timeout: Duration::from_secs(1),
            fast_open: 0,
            fast_open_keys: &[],
        }
    }

    #[test]
    fn an_address_of_nobody_is_refused_by_name() {
        let error = listen(&settings("192.0.2.1:0")).expect_err("TEST-NET-1 is nobody's");
        assert!(error.to_string().contains("192.0.2.1:0"), "{error}");
        assert_eq!(error.errno, Errno(libc::EADDRNOTAVAIL));
    }

    #[test]
    fn keys_of_fast_open_are_set_and_replaced_while_it_listens() {
        let (one, two) = ([7; 16], [9; 32]);
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let plain = listen(&settings(address)).expect("loopback has a free port");
            assert!(plain.fast_open.is_none());
            sys::close_now(plain.fd);
            let with = ListenerSettings { fast_open: 33, fast_open_keys: &one, ..settings(address) };
            let listener = listen(&with).expect("loopback has a free port");
            let fast_open = listener.fast_open.expect("it was asked for");
            assert_eq!(fast_open.read_back(), (one.to_vec(), 33));
            fast_open.set_keys(&two).expect("two keys");
            assert_eq!(fast_open.read_back(), (two.to_vec(), 33));
            assert_eq!(fast_open.set_keys(&two[..20]), Err(Errno(libc::EINVAL)));
            sys::close_now(listener.fd);
        }
    }
}
