//! Finds out, before any worker starts, whether every configured address can be listened on.
//!
//! Workers share a port by SO_REUSEPORT, and so would a second process of the same user, without an error: clients
//! would be spread over both. So each address is first bound alone, without that option, and let go again. Owns nothing
//! afterwards. A process that takes over the listeners of another must not ask this.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::config::Bind;
use super::problems::{Problem, Problems};

/// How long an address in use may take to become free. The kernel takes the ring of a killed process down a moment
/// after the process is gone, and with the ring the listeners it accepted on: who is started again at once meets them.
const RELEASE_TIME_MAX: Duration = Duration::from_secs(1);

/// How often it is tried meanwhile.
const RELEASE_TRY_INTERVAL: Duration = Duration::from_millis(10);

/// Tries every address. Waits up to `RELEASE_TIME_MAX` for those in use.
///
/// # Errors
/// One problem for each address that cannot be had.
pub fn check_free(file: &Path, binds: &[Bind]) -> Result<(), Problems> {
    let mut problems = Problems::new(file.to_path_buf());
    let until = Instant::now() + RELEASE_TIME_MAX;
    for bind in binds {
        let mut tried = listen_alone(bind.address);
        while tried.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) && Instant::now() < until {
            thread::sleep(RELEASE_TRY_INTERVAL);
            tried = listen_alone(bind.address);
        }
        if let Err(error) = tried {
            problems.push(Problem::from_bind(file.to_path_buf(), &bind.key, bind.address, &error));
        }
    }
    if problems.has_errors() { Err(problems) } else { Ok(()) }
}

/// The bit of `net.ipv4.tcp_fastopen` that lets listeners take data from a SYN.
const FAST_OPEN_SERVER: u32 = 2;

/// Says in the log that the kernel does without TCP Fast Open, when a listener asks for it.
pub fn warn_of_fast_open(binds: &[Bind]) {
    let allowed =
        std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").ok().and_then(|text| text.trim().parse().ok());
    if let Some(remedy) = fast_open_remedy(binds, allowed) {
        tracing::warn!(
            "TCP Fast Open is switched off in this kernel: returning clients wait a round trip longer; {remedy}"
        );
    }
}

/// What to do about `net.ipv4.tcp_fastopen`, None when it is right, not known, or of no matter.
fn fast_open_remedy(binds: &[Bind], allowed: Option<u32>) -> Option<String> {
    let allowed = allowed.filter(|bits| bits & FAST_OPEN_SERVER == 0)?;
    binds.iter().any(|bind| bind.fast_open > 0).then(|| {
        let bits = allowed | FAST_OPEN_SERVER;
        format!("sysctl -w net.ipv4.tcp_fastopen={bits}, or set fast_open = 0 in [[listen]]")
    })
}

/// Lets two sockets listen on one port of this machine, as the workers of a process do.
///
/// # Errors
/// Those of socket(2), setsockopt(2), bind(2) and listen(2): the first that was refused.
pub fn share_port() -> io::Result<()> {
    let listen = |address: SocketAddr| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(1)?;
        Ok(socket)
    };
    let first: io::Result<Socket> = listen(SocketAddr::from(([127, 0, 0, 1], 0)));
    let first = first?;
    let address = first.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    listen(address).map(drop)
}

/// Listens on an address for a moment, not shared with anybody. With SO_REUSEADDR, connections of an earlier process that
/// linger in TIME_WAIT do not count as holders.
///
/// # Errors
/// Those of socket(2), bind(2) and listen(2); `AddrInUse` when somebody listens there, by SO_REUSEPORT or without it.
pub fn listen_alone(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind_to(address: SocketAddr) -> Bind {
        Bind {
            listener: 0,
            address,
            backlog: 1,
            proxy_protocol: false,
            fast_open: 0,
            key: "listen[0].address".to_owned(),
        }
    }

    /// A socket that holds a port as our own workers do.
    fn holder() -> (Socket, SocketAddr) {
        let holder = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        holder.set_reuse_port(true).expect("every Linux has it");
        holder.set_reuse_address(true).expect("every Linux has it");
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        holder.bind(&loopback.into()).expect("loopback has a free port");
        holder.listen(8).expect("it can listen");
        let address = holder.local_addr().expect("it is bound").as_socket().expect("an IP address");
        (holder, address)
    }

    #[test]
    fn an_address_that_is_shared_by_port_counts_as_in_use() {
        let (holder, address) = holder();
        let problems = check_free(Path::new("pop.toml"), &[bind_to(address)]).expect_err("it is in use");
        let text = problems.to_string();
        assert!(text.contains("pop.toml: listen[0].address") && text.contains("in use"), "{text}");
        drop(holder);
        assert_eq!(check_free(Path::new("pop.toml"), &[bind_to(address)]), Ok(()));
    }

    #[test]
    fn an_address_that_becomes_free_in_a_moment_is_waited_for() {
        let (holder, address) = holder();
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(holder);
        });
        assert_eq!(check_free(Path::new("a"), &[bind_to(address)]), Ok(()));
        release.join().expect("it only drops");
    }

    #[test]
    fn a_kernel_without_fast_open_is_told_of_where_it_is_wanted() {
        let without = bind_to(SocketAddr::from(([127, 0, 0, 1], 1)));
        let with = Bind { fast_open: 1, ..without.clone() };
        let remedy = fast_open_remedy(&[without.clone(), with.clone()], Some(1)).expect("only clients may");
        assert!(remedy.contains("net.ipv4.tcp_fastopen=3"), "{remedy}");
        assert_eq!(fast_open_remedy(&[without], Some(1)), None);
        assert_eq!(fast_open_remedy(std::slice::from_ref(&with), Some(3)), None);
        assert_eq!(fast_open_remedy(&[with], None), None);
    }

    #[test]
    fn a_port_can_be_shared() {
        share_port().expect("every Linux since 3.9 lets sockets of one user share a port");
    }

    #[test]
    fn every_address_that_cannot_be_had_is_told() {
        let (one, two) = (holder(), holder());
        let problems = check_free(Path::new("a"), &[bind_to(one.1), bind_to(two.1)]).expect_err("both are in use");
        assert_eq!(problems.list().len(), 2, "{problems}");
    }
}
