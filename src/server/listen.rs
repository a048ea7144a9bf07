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

/// With SO_REUSEADDR, connections of an earlier process that linger in TIME_WAIT do not count as holders.
fn listen_alone(address: SocketAddr) -> io::Result<()> {
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
        Bind { listener: 0, address, backlog: 1, proxy_protocol: false, key: "listen[0].address".to_owned() }
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
    fn every_address_that_cannot_be_had_is_told() {
        let (one, two) = (holder(), holder());
        let problems = check_free(Path::new("a"), &[bind_to(one.1), bind_to(two.1)]).expect_err("both are in use");
        assert_eq!(problems.list().len(), 2, "{problems}");
    }
}
