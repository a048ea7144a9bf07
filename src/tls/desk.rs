//! What rustls is given, and gives, while it is driven: a desk per thread, laid for one handshake and cleared behind it.
//!
//! Owns the one ticket that was approved for the handshake, the tickets it issues, and the traffic secrets it leads to.
//! rustls knows its store of sessions, its log of keys and its clock only as shared objects without state; this is the
//! state. Never looks a ticket up: who drives the handshake has done so. Invariant: the desk is empty whenever rustls is
//! not being driven, so nothing of one connection is ever seen by another.

use std::cell::Cell;

use rustls::KeyLog;
use rustls::pki_types::UnixTime;
use rustls::server::StoresServerSessions;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};

/// Bytes of a ticket's id: what rustls draws for one.
pub const TICKET_ID_BYTES: usize = 32;
/// Most bytes of a ticket's value. A ticket made under mutual TLS carries the client's chain; one that is longer is not
/// issued, so that stores can hold slots of one size.
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
        clear(&mut self.value);
    }
}

/// A traffic secret (RFC 8446 section 7.1). Cleared on drop.
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
        clear(&mut self.bytes);
    }
}

/// Overwrites what must not stay in memory.
pub(super) fn clear(bytes: &mut [u8]) {
    bytes.fill(0);
    core::hint::black_box(bytes); // somebody might look: the compiler must not leave the writes out
}

/// What lies on the desk.
#[derive(Default)]
pub(super) struct Papers {
    /// The ticket that may be used, until it is. Stays over a HelloRetryRequest, since rustls asks after the second
    /// ClientHello.
    pub(super) approved: Option<IssuedTicket>,
    /// Whether tickets may be issued.
    pub(super) wants_tickets: bool,
    /// Whether the client's handshake secret is wanted too: to tell early data that is skipped from the handshake.
    pub(super) wants_handshake_secret: bool,
    pub(super) issued: Vec<IssuedTicket>,
    pub(super) client_handshake: Option<Secret>,
    pub(super) client_traffic: Option<Secret>,
    pub(super) server_traffic: Option<Secret>,
    /// The wall clock as rustls last read it.
    pub(super) now: Option<UnixTime>,
}

thread_local! {
    static DESK: Cell<Option<Box<Papers>>> = const { Cell::new(None) };
}

/// Runs `work`, which drives rustls, with these papers on the desk.
pub(super) fn with<T>(papers: &mut Box<Papers>, work: impl FnOnce() -> T) -> T {
    DESK.set(Some(core::mem::take(papers)));
    let done = work();
    if let Some(used) = DESK.take() {
        *papers = used;
    }
    done
}

/// Touches the desk; `None` when rustls asks outside [`with`].
fn touch<T>(work: impl FnOnce(&mut Papers) -> T) -> Option<T> {
    let mut papers = DESK.take()?;
    let done = work(&mut papers);
    DESK.set(Some(papers));
    Some(done)
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
        .unwrap_or(false)
    }

    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None // rustls asks this for TLS 1.2 only
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        touch(|papers| {
            let mut ticket = papers.approved.take_if(|ticket| ticket.id == key)?;
            Some(core::mem::take(&mut ticket.value))
        })?
    }

    fn can_cache(&self) -> bool {
        true
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
        match label {
            "CLIENT_TRAFFIC_SECRET_0" | "SERVER_TRAFFIC_SECRET_0" => true,
            "CLIENT_HANDSHAKE_TRAFFIC_SECRET" => touch(|papers| papers.wants_handshake_secret).unwrap_or(false),
            _ => false,
        }
    }
}

impl TimeProvider for Desk {
    fn current_time(&self) -> Option<UnixTime> {
        let now = DefaultTimeProvider.current_time();
        touch(|papers| papers.now = now);
        now
    }
}
