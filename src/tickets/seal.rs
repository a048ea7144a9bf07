//! The sealed form of a ticket's value, for a store outside the process: it can neither be read there, nor changed, nor
//! put in another ticket's place.
//!
//! Owns the keys of a group of nodes. Layout: version, key id (4 bytes), nonce (12), AES-256-GCM ciphertext with tag (16).
//! Authenticated beside it: ticket id, realm and name.
//!
//! The nonce is the first 12 bytes of the ticket's id. An id is 32 random bytes that TLS drew for one ticket, and a
//! ticket is sealed once, by the node that issued it: so nonces are as good as if they were drawn for the purpose, and
//! one key is good for 2^32 values (NIST SP 800-38D, 8.3), 49 days at 1000 a second.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use zeroize::{Zeroize, Zeroizing};

use super::{Binding, TICKET_ID_BYTES, TicketId};

/// Bytes of a nonce.
const NONCE_BYTES: usize = 12;

/// Longest sealed value in bytes: room for a client's certificates, and an end to what a server may make us hold.
pub const SEALED_BYTES_MAX: usize = 2048;

/// What sealing adds, in bytes.
pub const OVERHEAD_BYTES: usize = HEAD_BYTES + TAG_BYTES;

/// Bytes of a key: AES-256.
pub const KEY_BYTES: usize = 32;

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const HEAD_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;
const TAG_BYTES: usize = 16;
const ASSOCIATED_BYTES: usize = TICKET_ID_BYTES + 16;

/// Why a sealed value was not opened. Whoever sent it, the ticket is spent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unopened {
    /// Too short, too long, or of another version.
    Malformed,
    /// Sealed with none of our keys.
    UnknownKey,
    /// Changed, or sealed for another ticket, realm or name.
    Forged,
}

/// A value as it was before it was sealed, cleared when dropped.
pub type Unsealed = Zeroizing<Vec<u8>>;

struct Key {
    id: [u8; KEY_ID_BYTES],
    cipher: LessSafeKey,
}

/// The keys of a group of nodes that share a store. Seals with `current`; opens with any.
///
/// Rotation takes two steps, each on all nodes in any order: give a key as `next`; later make it `current` and the old
/// one `previous`. Then no node ever meets a value of a key it has not got.
pub struct Keys {
    current: Key,
    others: Vec<Key>,
}

impl Keys {
    /// From the bytes of `current` and of the others, `next` and `previous`, in any order.
    #[must_use]
    pub fn new(current: &[u8; KEY_BYTES], others: &[&[u8; KEY_BYTES]]) -> Keys {
        Keys { current: Key::new(current), others: others.iter().map(|bytes| Key::new(bytes)).collect() }
    }

    /// Seals the value of a ticket, whose id is random and which was not sealed before: the id gives the nonce. `None`
    /// when the value is too long ([`SEALED_BYTES_MAX`]).
    #[must_use]
    pub fn seal(&self, id: &TicketId, binding: Binding, value: &[u8]) -> Option<Vec<u8>> {
        if value.len() > SEALED_BYTES_MAX - OVERHEAD_BYTES {
            return None;
        }
        let nonce: [u8; NONCE_BYTES] = *id.first_chunk().expect("an id is longer than a nonce");
        // Reserved whole, so that the plaintext is never left behind by a larger buffer.
        let mut sealed = Vec::with_capacity(value.len() + OVERHEAD_BYTES);
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.current.id);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from(associated(id, binding));
        let Ok(tag) = self.current.cipher.seal_in_place_separate_tag(nonce, aad, &mut sealed[HEAD_BYTES..]) else {
            sealed.zeroize();
            return None;
        };
        sealed.extend_from_slice(tag.as_ref());
        Some(sealed)
    }

    /// Opens what was sealed for this ticket.
    ///
    /// # Errors
    /// [`Unopened`] says why it cannot be.
    pub fn open(&self, id: &TicketId, binding: Binding, sealed: &[u8]) -> Result<Unsealed, Unopened> {
        let (head, cipher_text) = sealed.split_first_chunk::<HEAD_BYTES>().ok_or(Unopened::Malformed)?;
        if sealed.len() > SEALED_BYTES_MAX || head[0] != VERSION {
            return Err(Unopened::Malformed);
        }
        let nonce = <[u8; NONCE_BYTES]>::try_from(&head[1 + KEY_ID_BYTES..]).map_err(|_| Unopened::Malformed)?;
        let mut outcome = Unopened::UnknownKey;
        // Two keys may have the same id by chance: every one that fits is tried.
        for key in std::iter::once(&self.current).chain(&self.others).filter(|key| key.id == head[1..1 + KEY_ID_BYTES])
        {
            let mut value = Zeroizing::new(cipher_text.to_vec());
            let aad = Aad::from(associated(id, binding));
            let opened = key.cipher.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut value);
            match opened.map(|plain| plain.len()) {
                Ok(length) => {
                    value.truncate(length);
                    return Ok(value);
                }
                Err(_) => outcome = Unopened::Forged,
            }
        }
        Err(outcome)
    }
}

impl fmt::Debug for Keys {
    /// The ids alone.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others: Vec<_> = self.others.iter().map(|key| key.id).collect();
        formatter.debug_struct("Keys").field("current", &self.current.id).field("others", &others).finish()
    }
}

impl Key {
    fn new(bytes: &[u8; KEY_BYTES]) -> Key {
        // The id shows nothing of the key: 4 bytes of a digest over 32 random ones, for this purpose alone.
        let mut labelled = Zeroizing::new(b"trunkline ticket key id".to_vec());
        let mut whole = Zeroizing::new(Vec::with_capacity(labelled.len() + KEY_BYTES));
        whole.append(&mut labelled);
        whole.extend_from_slice(&bytes[..]);
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&digest(&SHA256, &whole).as_ref()[..KEY_ID_BYTES]);
        let key = UnboundKey::new(&AES_256_GCM, &bytes[..]).expect("AES-256 takes 32 bytes");
        Key { id, cipher: LessSafeKey::new(key) }
    }
}

fn associated(id: &TicketId, binding: Binding) -> [u8; ASSOCIATED_BYTES] {
    let mut bytes = [0; ASSOCIATED_BYTES];
    bytes[..TICKET_ID_BYTES].copy_from_slice(id);
    bytes[TICKET_ID_BYTES..TICKET_ID_BYTES + 8].copy_from_slice(&binding.realm.to_be_bytes());
    bytes[TICKET_ID_BYTES + 8..].copy_from_slice(&binding.name.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINDING: Binding = Binding { realm: 3, name: 4 };
    const ID: TicketId = [7; 32];

    fn keys(current: u8, others: &[u8]) -> Keys {
        let others: Vec<_> = others.iter().map(|byte| [*byte; KEY_BYTES]).collect();
        Keys::new(&[current; KEY_BYTES], &others.iter().collect::<Vec<_>>())
    }

    #[test]
    fn what_was_sealed_opens_for_the_same_ticket_only() {
        let keys = keys(1, &[]);
        let sealed = keys.seal(&ID, BINDING, b"secret").expect("it is short");
        assert_eq!(sealed.len(), 6 + OVERHEAD_BYTES);
        assert_eq!(keys.open(&ID, BINDING, &sealed).expect("it opens").as_slice(), b"secret");
        assert_eq!(sealed[1 + KEY_ID_BYTES..HEAD_BYTES], ID[..NONCE_BYTES], "another ticket, another nonce");
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        for (id, binding) in
            [([8; 32], BINDING), (ID, Binding { realm: 4, ..BINDING }), (ID, Binding { name: 3, ..BINDING })]
        {
            assert_eq!(keys.open(&id, binding, &sealed).err(), Some(Unopened::Forged));
        }
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_found() {
        let keys = keys(1, &[2]);
        let sealed = keys.seal(&ID, BINDING, b"secret").expect("it is short");
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.open(&ID, BINDING, &changed).is_err(), "bit {bit}");
        }
        (0..sealed.len()).for_each(|length| assert!(keys.open(&ID, BINDING, &sealed[..length]).is_err()));
        assert_eq!(keys.open(&ID, BINDING, &[1; SEALED_BYTES_MAX + 1]).err(), Some(Unopened::Malformed));
    }

    #[test]
    fn a_value_has_a_longest_length() {
        let keys = keys(1, &[]);
        let long = vec![5; SEALED_BYTES_MAX - OVERHEAD_BYTES + 1];
        assert!(keys.seal(&ID, BINDING, &long).is_none());
        let sealed = keys.seal(&ID, BINDING, &long[1..]).expect("it fits");
        assert_eq!(sealed.len(), SEALED_BYTES_MAX);
        assert_eq!(keys.open(&ID, BINDING, &sealed).expect("it opens").len(), long.len() - 1);
        let empty = keys.seal(&ID, BINDING, b"").expect("it fits");
        assert!(keys.open(&ID, BINDING, &empty).expect("it opens").is_empty());
    }

    #[test]
    fn nodes_in_the_middle_of_a_rotation_open_each_others_values() {
        let stages = [keys(1, &[]), keys(1, &[3]), keys(3, &[1]), keys(3, &[])];
        for (stage, node) in stages.iter().enumerate() {
            for other in &stages[stage.saturating_sub(1)..(stage + 2).min(4)] {
                let sealed = other.seal(&ID, BINDING, b"secret").expect("it is short");
                assert!(node.open(&ID, BINDING, &sealed).is_ok(), "stage {stage}");
            }
        }
        let sealed = stages[0].seal(&ID, BINDING, b"secret").expect("it is short");
        assert_eq!(stages[3].open(&ID, BINDING, &sealed).err(), Some(Unopened::UnknownKey));
    }

    #[test]
    fn what_is_shown_of_keys_is_their_ids() {
        let keys = keys(1, &[3, 5]);
        assert_eq!(keys.others.len(), 2);
        let shown = format!("{keys:?}");
        assert!(shown.len() < 120 && shown.starts_with("Keys { current: ["), "{shown}");
    }
}
