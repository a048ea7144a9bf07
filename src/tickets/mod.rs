//! Tickets: what a server must remember to resume a session, kept so that each works once.
//!
//! Owns the process's store ([`store`]), the sealed form for a store that nodes share ([`seal`]) and the client of that
//! store ([`remote`]). Knows neither TLS nor sockets: a value is bytes here. A ticket lives in exactly one place, and
//! every way of getting it removes it.

pub mod index;
pub mod store;

use std::hash::Hasher;

pub use store::{Miss, Store, Stored, Value};

/// Bytes of a ticket's id.
pub const TICKET_ID_BYTES: usize = 32;

/// Names a ticket: random bytes that TLS chose. Secret until the ticket was used, since whoever knows it can spend it.
pub type TicketId = [u8; TICKET_ID_BYTES];

/// What a ticket is good for. With anything else it is spent for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// Digest of the listener's demands; equal on all nodes with the same configuration.
    pub realm: u64,
    /// Digest of the server's name; 0 for none.
    pub name: u64,
}

impl Binding {
    /// For a realm and a server name as the client wrote it, in whatever case.
    ///
    /// The digest is SipHash without a secret, so that all nodes agree. Names with one digest can be made; they gain
    /// nothing, because TLS compares the names themselves when it reads the value.
    #[must_use]
    pub fn new(realm: u64, name: Option<&str>) -> Binding {
        Binding { realm, name: name.map_or(0, digest) }
    }
}

fn digest(name: &str) -> u64 {
    let mut hasher = keyed_hasher(0, 0);
    name.bytes().for_each(|byte| hasher.write_u8(byte.to_ascii_lowercase()));
    hasher.finish().max(1)
}

/// SipHash-2-4, whose key is what this module needs it for.
// Deprecated in favour of a hasher of which no release promises the algorithm; nodes must agree on this one.
#[expect(deprecated)]
fn keyed_hasher(key: u64, more_key: u64) -> impl Hasher {
    std::hash::SipHasher::new_with_keys(key, more_key)
}

/// How the client that gets a ticket had come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// With a full handshake: anyone can.
    Newcomer,
    /// With a ticket.
    Returner,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_ignores_case_and_tells_names_apart() {
        let bound = Binding::new(7, Some("Shop.Example"));
        assert_eq!(bound, Binding::new(7, Some("shop.example")));
        assert_ne!(bound, Binding::new(8, Some("shop.example")));
        assert_ne!(bound, Binding::new(7, Some("shop.example.")));
        assert_ne!(bound, Binding::new(7, None));
        assert_eq!(Binding::new(7, None).name, 0);
        assert_ne!(Binding::new(7, Some("")).name, 0);
    }

    #[test]
    fn the_digest_is_the_published_siphash() {
        // The paper's example: key 00..0f, message 00..0e.
        let mut hasher = keyed_hasher(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        (0..15).for_each(|byte| hasher.write_u8(byte));
        assert_eq!(hasher.finish(), 0xa129_ca61_49be_45e5);
    }
}
