//! What rustls is given, and gives, while it is driven: a desk per thread, laid for one connection and cleared behind it.
//!
//! Owns the one ticket that was approved for the handshake, the tickets it issues or is given, and the traffic secrets it
//! leads to. rustls knows its stores of sessions, its log of keys and its clock only as shared objects without state; this
//! is the state. Never looks a ticket up: who drives the handshake has done so. Invariant: the desk is empty whenever
//! rustls is not being driven, so nothing of one connection is ever seen by another.

use std::cell::Cell;

use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::StoresServerSessions;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{KeyLog, NamedGroup};
use zeroize::Zeroize;

/// Bytes of a ticket's id: what rustls draws for one.
pub const TICKET_ID_BYTES: usize = 32;
/// Most bytes of a ticket's value. A ticket made under mutual TLS carries the client's chain; one that is longer is not
/// issued. A store may take less: that of this process has slots for tickets without a chain.
pub const TICKET_VALUE_BYTES_MAX: usize = 1024;

const SECRET_BYTES_MAX: usize = 48;

/// A ticket that a handshake issued, to be stored.
#[derive(PartialEq, Eq)]
pub struct IssuedTicket {
    /// What the client will show.
    pub id: [u8; TICKET_ID_BYTES],
    /// What resumption needs: a secret, and what it is bound to. At most [`TICKET_VALUE_BYTES_MAX`]. Cleared on drop.
    pub value: Vec<u8>,
}

impl core::fmt::Debug for IssuedTicket {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("IssuedTicket").finish_non_exhaustive()
    }
}

impl Drop for IssuedTicket {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

/// A secret of the key schedule (RFC 8446 section 7.1): a traffic secret, or a ticket's key. Cleared on drop.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret {
    bytes: [u8; SECRET_BYTES_MAX],
    length: u8,
}

impl Secret {
    /// `None` when it is longer than any hash of TLS 1.3.
    pub(super) fn new(secret: &[u8]) -> Option<Secret> {
        let mut bytes = [0; SECRET_BYTES_MAX];
        bytes.get_mut(..secret.len())?.copy_from_slice(secret);
        Some(Secret { bytes, length: u8::try_from(secret.len()).ok()? })
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// What lies on the desk.
#[derive(Default)]
pub(super) struct Papers {
    /// On a server: the ticket that may be used, until it is. Stays over a HelloRetryRequest, since rustls asks after the second
    /// ClientHello.
    pub(super) approved: Option<IssuedTicket>,
    /// Whether tickets may be issued.
    pub(super) wants_tickets: bool,
    pub(super) issued: Vec<IssuedTicket>,
    /// Seals a client's alerts, and tells a server the handshake from early data that it skips.
    pub(super) client_handshake: Option<Secret>,
    pub(super) client_traffic: Option<Secret>,
    pub(super) server_traffic: Option<Secret>,
    /// The wall clock as rustls last read it.
    pub(super) now: Option<UnixTime>,
    /// What rustls reads instead of the wall clock: when a ticket that is brought back came.
    pub(super) given_now: Option<UnixTime>,
    /// On a client that keeps tickets: the one approved for this handshake.
    pub(super) offered: Option<Box<Tls13ClientSessionValue>>,
    /// On a client that keeps tickets: one that came.
    pub(super) received: Option<Box<Tls13ClientSessionValue>>,
    /// The key of a ticket: used instead of deriving it if it lies there, and left there once it is derived.
    pub(super) ticket_key: Option<Secret>,
    /// Whether the server is the one in memory, which proves nothing.
    pub(super) is_minting: bool,
}

thread_local! {
    /// Some exactly while [`with`] runs.
    static DESK: Cell<Option<Box<Papers>>> = const { Cell::new(None) };
}

/// Takes the papers back, however their use ends: another connection would find what is left behind.
struct Clear<'a>(&'a mut Box<Papers>);

impl Drop for Clear<'_> {
    fn drop(&mut self) {
        if let Some(used) = DESK.take() {
            *self.0 = used;
        }
    }
}

/// Runs `work`, which drives rustls, with these papers on the desk.
pub(super) fn with<T>(papers: &mut Box<Papers>, work: impl FnOnce() -> T) -> T {
    DESK.set(Some(core::mem::take(papers)));
    let _clear = Clear(papers);
    work()
}

/// What `work` makes of the desk; the default when rustls asks outside [`with`].
pub(super) fn touch<T: Default>(work: impl FnOnce(&mut Papers) -> T) -> T {
    let Some(mut papers) = DESK.take() else { return T::default() };
    let done = work(&mut papers);
    DESK.set(Some(papers));
    done
}

/// The desk as rustls knows it.
#[derive(Debug)]
pub(super) struct Desk;

impl StoresServerSessions for Desk {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let Ok(id) = key.try_into() else { return false };
        let ticket = IssuedTicket { id, value };
        touch(|papers| {
            let takes = papers.wants_tickets && ticket.value.len() <= TICKET_VALUE_BYTES_MAX;
            if takes {
                papers.issued.push(ticket);
            }
            takes
        })
    }

    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None // rustls asks this for TLS 1.2 only
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        touch(|papers| {
            let mut ticket = papers.approved.take_if(|ticket| ticket.id == key)?;
            Some(core::mem::take(&mut ticket.value))
        })
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl ClientSessionStore for Desk {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        touch(|papers| papers.received = Some(Box::new(value)));
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        touch(|papers| papers.offered.take()).map(|value| *value)
    }
}

impl KeyLog for Desk {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        touch(|papers| match label {
            "CLIENT_HANDSHAKE_TRAFFIC_SECRET" => papers.client_handshake = Secret::new(secret),
            "CLIENT_TRAFFIC_SECRET_0" => papers.client_traffic = Secret::new(secret),
            "SERVER_TRAFFIC_SECRET_0" => papers.server_traffic = Secret::new(secret),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, "CLIENT_HANDSHAKE_TRAFFIC_SECRET" | "CLIENT_TRAFFIC_SECRET_0" | "SERVER_TRAFFIC_SECRET_0")
    }
}

impl TimeProvider for Desk {
    fn current_time(&self) -> Option<UnixTime> {
        let now = touch(|papers| papers.given_now).or_else(|| DefaultTimeProvider.current_time());
        touch(|papers| papers.now = now);
        now
    }
}

/// Whether nothing lies there.
#[cfg(test)]
pub(super) fn is_clear() -> bool {
    DESK.take().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_desk_is_cleared_even_by_a_panic() {
        let mut papers = Box::new(Papers { is_minting: true, ..Papers::default() });
        let failed = std::panic::AssertUnwindSafe(|| with(&mut papers, || panic!("a bug")));
        let panicked = std::panic::catch_unwind(failed).is_err();
        assert!(panicked && is_clear() && papers.is_minting);
        let seen = with(&mut papers, || touch(|papers| papers.is_minting));
        assert!(seen && !touch(|papers| papers.is_minting), "nothing lies there outside");
    }
}
