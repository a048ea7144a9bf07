//! What is asked of the kernel, how its answers are recognised, and what they say.

use crate::base::slab::Key;

/// A descriptor, owned by whoever holds the slot that names it; closed through [`super::Ring::close`] alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Fd(pub i32);

/// An error number of the operating system.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Errno(pub i32);

impl Errno {
    /// The provided buffers are used up.
    pub const NO_BUFFERS: Errno = Errno(libc::ENOBUFS);
    /// The peer reset the connection.
    pub const RESET: Errno = Errno(libc::ECONNRESET);
    /// The operation was cancelled.
    pub const CANCELED: Errno = Errno(libc::ECANCELED);
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(formatter)
    }
}

/// The kinds of operation, as far as their completions matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Multishot accept on a listener.
    Accept = 1,
    /// Multishot receive into provided buffers.
    Receive = 2,
    /// Send of one buffer.
    Send = 3,
    /// Connect.
    Connect = 4,
    /// Poll of the wake-up descriptor.
    Wake = 5,
    /// Close or cancel: nobody waits for it.
    Unwatched = 6,
}

/// How a completion is recognised: kind, slot and generation of whoever asked, in the 64 bits that the kernel carries.
///
/// Layout, high to low: 8 bits kind, 24 bits generation, 32 bits slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token(u64);

const GENERATION_MASK: u32 = 0x00ff_ffff;

impl Token {
    /// The token of an operation of this kind on the slot.
    #[must_use]
    pub fn new(kind: Kind, key: Key) -> Token {
        Token(((kind as u64) << 56) | (u64::from(key.generation & GENERATION_MASK) << 32) | u64::from(key.index))
    }

    /// Back from the kernel's 64 bits; `None` if they were never a token.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Token> {
        let token = Token(bits);
        (1..=6).contains(&(bits >> 56)).then_some(token)
    }

    /// The 64 bits for the kernel.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// What was asked.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self.0 >> 56 {
            1 => Kind::Accept,
            2 => Kind::Receive,
            3 => Kind::Send,
            4 => Kind::Connect,
            5 => Kind::Wake,
            _ => Kind::Unwatched,
        }
    }

    /// The slot it was asked for.
    #[must_use]
    pub fn slot(self) -> u32 {
        self.0 as u32
    }

    /// Whether `key` is the entry it was asked for (up to 2^24 reuses of the slot).
    #[must_use]
    pub fn names(self, key: Key) -> bool {
        self.slot() == key.index && (self.0 >> 32) as u32 & GENERATION_MASK == key.generation & GENERATION_MASK
    }
}

/// An answer of the kernel. `L` is the ring's receive buffer on loan.
#[derive(Debug)]
pub struct Completion<L> {
    /// Who asked.
    pub token: Token,
    /// What happened.
    pub outcome: Outcome<L>,
}

/// What happened to an operation.
#[derive(Debug)]
pub enum Outcome<L> {
    /// A connection was accepted, or accepting failed. `more`: the multishot goes on.
    Accepted {
        /// The new connection.
        result: Result<Fd, Errno>,
        /// Whether the multishot accept is still armed.
        more: bool,
    },
    /// Bytes arrived; `Ok(None)` is the end of the peer's direction. `more`: the multishot goes on.
    Received {
        /// The buffer that holds them; must be given back.
        result: Result<Option<L>, Errno>,
        /// Whether the multishot receive is still armed.
        more: bool,
    },
    /// A send is over and its buffer is back.
    Sent {
        /// The buffer as it was lent.
        bytes: Vec<u8>,
        /// How many bytes of what was to be sent the socket took.
        result: Result<usize, Errno>,
    },
    /// A connect is over.
    Connected(Result<(), Errno>),
    /// Another thread called for attention.
    Woken,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel_and_knows_its_owner() {
        for kind in [Kind::Accept, Kind::Receive, Kind::Send, Kind::Connect, Kind::Wake, Kind::Unwatched] {
            let key = Key { index: 0xdead_beef, generation: 0x00ab_cdef };
            let token = Token::from_bits(Token::new(kind, key).bits()).expect("made by Token::new");
            assert_eq!(token.kind(), kind);
            assert!(token.names(key));
            assert!(!token.names(Key { generation: key.generation + 1, ..key }));
            assert!(!token.names(Key { index: 1, ..key }));
        }
        assert_eq!(Token::from_bits(0), None);
        assert_eq!(Token::from_bits(u64::MAX), None);
    }
}
