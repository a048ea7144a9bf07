//! Looks up hosts away from the driver's thread, because the system's resolver blocks. Owns the short-lived threads
//! that do it and their number; never caches (the system does).
//!
//! Invariant: at most [`LOOKUPS_MAX`] threads exist, and each reports exactly once.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::url::Endpoint;

/// Most lookups at once. A resolver that hangs holds its thread for as long as it likes, so they must be counted.
const LOOKUPS_MAX: usize = 16;

/// Counts the lookups under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolver {
    under_way: Arc<AtomicUsize>,
}

/// Gives a place back when its thread ends, however it ends.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The addresses of an endpoint, or what the resolver said.
pub(super) type Found = Result<Vec<SocketAddr>, String>;

impl Resolver {
    /// The address of an endpoint that needs no lookup.
    pub(super) fn literal(endpoint: &Endpoint) -> Option<SocketAddr> {
        endpoint.host.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, endpoint.port))
    }

    /// Starts a lookup; `report` is called once, from another thread. False when too many are under way.
    pub(super) fn start(&self, endpoint: &Endpoint, report: impl FnOnce(Found) + Send + 'static) -> bool {
        let place = Place(self.under_way.clone());
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= LOOKUPS_MAX {
            return false;
        }
        let endpoint = endpoint.clone();
        let work = move || {
            let found = (endpoint.host.as_str(), endpoint.port).to_socket_addrs();
            drop(place);
            report(match found.map(Iterator::collect::<Vec<_>>) {
                Ok(addresses) if addresses.is_empty() => Err("the name has no address".to_owned()),
                Ok(addresses) => Ok(addresses),
                Err(error) => Err(error.to_string()),
            });
        };
        std::thread::Builder::new().name("trunkline-lookup".to_owned()).spawn(work).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: &str) -> Endpoint {
        Endpoint { host: host.to_owned(), port: 7 }
    }

    #[test]
    fn a_literal_needs_no_lookup() {
        assert_eq!(Resolver::literal(&endpoint("::1")), Some(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 7))));
        assert_eq!(Resolver::literal(&endpoint("127.0.0.1")), Some(SocketAddr::from(([127, 0, 0, 1], 7))));
        assert_eq!(Resolver::literal(&endpoint("localhost")), None);
    }

    #[test]
    fn lookups_are_counted_and_places_come_back() {
        let resolver = Resolver::default();
        resolver.under_way.store(LOOKUPS_MAX, Ordering::Relaxed);
        assert!(!resolver.start(&endpoint("localhost"), |_| unreachable!("refused lookups report nothing")));
        assert_eq!(resolver.under_way.load(Ordering::Relaxed), LOOKUPS_MAX);
        resolver.under_way.store(0, Ordering::Relaxed);
        let (sender, receiver) = std::sync::mpsc::channel();
        assert!(resolver.start(&endpoint("localhost"), move |found| sender.send(found).expect("the test waits")));
        let addresses = receiver.recv().expect("it reports").expect("localhost resolves");
        assert!(addresses.iter().all(|address| address.port() == 7 && address.ip().is_loopback()));
        assert_eq!(resolver.under_way.load(Ordering::Relaxed), 0);
    }
}
