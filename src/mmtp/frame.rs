//! The frames of MMTP/1 (MMTP 3 and 4).
//!
//! Owns the numbers of types and flags and the shape of every frame; never reads or writes bytes.
//! A [`Frame`] that respects the documented ranges can be encoded.

use super::error::{Code, Receipt};
use crate::base::limits::{FRAME_PAYLOAD_BYTES_MAX, HEADER_BLOCK_BYTES_MAX};

/// Names a stream on its connection: odd when the connection's initiator opened it, even when the acceptor did.
pub type StreamId = u64;

/// What the user of a connection wants back with every event of a stream.
pub type Tag = u32;

/// Largest number a variable-length integer holds (MMTP 3.2).
pub const VARINT_MAX: u64 = (1 << 62) - 1;

/// Longest frame header: type and flags, stream id of 8 bytes, length of 4 bytes (MMTP 3.1, 3.4).
pub const FRAME_HEADER_BYTES_MAX: usize = 13;

/// Longest HELLO payload, in bytes (MMTP 4.1).
pub const HELLO_BYTES_MAX: usize = 1024;

/// Longest address in GOAWAY, in bytes (MMTP 4.7).
pub const GOAWAY_ADDRESS_BYTES_MAX: usize = 255;

/// Interim HEADERS allowed before the final ones of an answer (MMTP 5.2).
pub const INTERIM_MAX: u8 = 8;

/// Largest credit a stream or a connection may hold (MMTP 6.2).
pub const CREDIT_MAX: u32 = (1 << 30) - 1;

/// Streams that an initiator may open before the acceptor's HELLO arrives (MMTP 2.3).
pub const STREAMS_DEFAULT: u32 = 8;

/// Credit of a new stream before the peer's HELLO arrives, in bytes (MMTP 2.3): about what a TCP connection may send
/// in its first round trip.
pub const STREAM_CREDIT_DEFAULT: u32 = 16 * 1024;

/// Credit of the connection before the peer's HELLO arrives, in bytes (MMTP 2.3).
pub const CONNECTION_CREDIT_DEFAULT: u32 = 64 * 1024;

/// Lowest priority (a prefetch); 0 is the highest (a payment) (MMTP 8).
pub const PRIORITY_MAX: u8 = 7;

/// Priority of a request that does not say (MMTP 8).
pub const PRIORITY_DEFAULT: u8 = 3;

const _: () = assert!(FRAME_PAYLOAD_BYTES_MAX < 1 << 30, "a payload length fits a four-byte integer");
const _: () = assert!(STREAM_CREDIT_DEFAULT <= CONNECTION_CREDIT_DEFAULT);

/// The type of a frame (MMTP 3.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Version, limits and attributes; the first frame each way.
    Hello,
    /// A header block.
    Headers,
    /// Bytes of a stream.
    Data,
    /// Ends a stream in both directions.
    Reset,
    /// More bytes for a stream or the connection.
    Credit,
    /// Measures and keeps alive.
    Ping,
    /// Announces the end of the connection.
    GoAway,
    /// Reserved: how many sequenced bytes have arrived.
    Ack,
    /// Reserved: continues a session on a new connection.
    Resume,
    /// Advice that may be ignored.
    Advice,
    /// Reserved: something for the user that nobody asked for.
    Push,
    /// Reserved: who the user is.
    Bind,
    /// Measurements that may be ignored.
    Report,
    /// An extension of the connection that may be ignored.
    Extension,
    /// An extension of a stream that may be ignored.
    StreamExtension,
}

/// What a /1 receiver does with a frame type (MMTP 3.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Treatment {
    /// Understood.
    Handle,
    /// Skipped.
    Ignore,
    /// Refused, since its capability was never announced.
    Refuse,
}

impl Kind {
    /// Every type.
    pub const ALL: [Kind; 15] = [
        Kind::Hello,
        Kind::Headers,
        Kind::Data,
        Kind::Reset,
        Kind::Credit,
        Kind::Ping,
        Kind::GoAway,
        Kind::Ack,
        Kind::Resume,
        Kind::Advice,
        Kind::Push,
        Kind::Bind,
        Kind::Report,
        Kind::Extension,
        Kind::StreamExtension,
    ];

    /// The four bits on the wire.
    #[must_use]
    pub const fn nibble(self) -> u8 {
        match self {
            Kind::Hello => 0x0,
            Kind::Headers => 0x1,
            Kind::Data => 0x2,
            Kind::Reset => 0x3,
            Kind::Credit => 0x4,
            Kind::Ping => 0x5,
            Kind::GoAway => 0x6,
            Kind::Ack => 0x7,
            Kind::Resume => 0x8,
            Kind::Advice => 0x9,
            Kind::Push => 0xa,
            Kind::Bind => 0xb,
            Kind::Report => 0xc,
            Kind::Extension => 0xe,
            Kind::StreamExtension => 0xf,
        }
    }

    /// The type with these four bits; 0xd is unassigned.
    #[must_use]
    pub const fn from_nibble(nibble: u8) -> Option<Kind> {
        match nibble {
            0x0 => Some(Kind::Hello),
            0x1 => Some(Kind::Headers),
            0x2 => Some(Kind::Data),
            0x3 => Some(Kind::Reset),
            0x4 => Some(Kind::Credit),
            0x5 => Some(Kind::Ping),
            0x6 => Some(Kind::GoAway),
            0x7 => Some(Kind::Ack),
            0x8 => Some(Kind::Resume),
            0x9 => Some(Kind::Advice),
            0xa => Some(Kind::Push),
            0xb => Some(Kind::Bind),
            0xc => Some(Kind::Report),
            0xe => Some(Kind::Extension),
            0xf => Some(Kind::StreamExtension),
            _ => None,
        }
    }

    /// Whether a stream id follows the first byte (MMTP 3.1).
    #[must_use]
    pub const fn has_stream(self) -> bool {
        matches!(self, Kind::Headers | Kind::Data | Kind::Reset | Kind::Credit | Kind::Push | Kind::StreamExtension)
    }

    /// The flags this type defines (MMTP 3.3).
    #[must_use]
    pub const fn flags(self) -> u8 {
        match self {
            Kind::Headers => FLAG_END | FLAG_REPLAY_SAFE | FLAG_IDEMPOTENT,
            Kind::Data => FLAG_END,
            Kind::Ping => FLAG_PONG,
            Kind::Hello | Kind::Reset | Kind::Credit | Kind::GoAway => 0,
            // Their flags belong to whoever defines them.
            Kind::Ack
            | Kind::Resume
            | Kind::Advice
            | Kind::Push
            | Kind::Bind
            | Kind::Report
            | Kind::Extension
            | Kind::StreamExtension => 0xf,
        }
    }

    /// Longest payload, in bytes (MMTP 3.4).
    #[must_use]
    pub const fn payload_bytes_max(self) -> usize {
        match self {
            Kind::Hello => HELLO_BYTES_MAX,
            Kind::Headers => HEADER_BLOCK_BYTES_MAX,
            Kind::Reset => 4 + 1 + 4 + 4,
            Kind::Credit => 4,
            Kind::Ping => 8,
            Kind::GoAway => 8 + 4 + 4 + 4 + GOAWAY_ADDRESS_BYTES_MAX,
            Kind::Data
            | Kind::Ack
            | Kind::Resume
            | Kind::Advice
            | Kind::Push
            | Kind::Bind
            | Kind::Report
            | Kind::Extension
            | Kind::StreamExtension => FRAME_PAYLOAD_BYTES_MAX,
        }
    }

    /// What this end does with it (MMTP 3.6).
    #[must_use]
    pub const fn treatment(self) -> Treatment {
        match self {
            Kind::Hello | Kind::Headers | Kind::Data | Kind::Reset | Kind::Credit | Kind::Ping | Kind::GoAway => {
                Treatment::Handle
            }
            Kind::Advice | Kind::Report | Kind::Extension | Kind::StreamExtension => Treatment::Ignore,
            Kind::Ack | Kind::Resume | Kind::Push | Kind::Bind => Treatment::Refuse,
        }
    }
}

/// DATA and HEADERS: this direction of the stream ends.
pub const FLAG_END: u8 = 0x1;
/// HEADERS: executing the request again from a replayed early flight does no harm.
pub const FLAG_REPLAY_SAFE: u8 = 0x2;
/// HEADERS: executing the request twice has the effect of executing it once.
pub const FLAG_IDEMPOTENT: u8 = 0x4;
/// PING: the answer to one.
pub const FLAG_PONG: u8 = 0x1;

/// Flags of HEADERS (MMTP 4.2). Combine with `|`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HeaderFlags(u8);

impl HeaderFlags {
    /// None set.
    pub const NONE: HeaderFlags = HeaderFlags(0);
    /// This direction of the stream ends with its headers.
    pub const END: HeaderFlags = HeaderFlags(FLAG_END);
    /// Executing the request again from a replayed early flight does no harm. Requests only.
    pub const REPLAY_SAFE: HeaderFlags = HeaderFlags(FLAG_REPLAY_SAFE);
    /// Executing the request twice has the effect of executing it once. Requests only.
    pub const IDEMPOTENT: HeaderFlags = HeaderFlags(FLAG_IDEMPOTENT);

    /// The flags of a frame header's low nibble, or none where the nibble has others.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<HeaderFlags> {
        (bits & !Kind::Headers.flags() == 0).then_some(HeaderFlags(bits))
    }

    /// The low nibble of the frame header.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `other` are set.
    #[must_use]
    pub fn contains(self, other: HeaderFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the direction ends with these headers.
    #[must_use]
    pub fn end(self) -> bool {
        self.contains(HeaderFlags::END)
    }

    /// These flags without `other`.
    #[must_use]
    pub fn without(self, other: HeaderFlags) -> HeaderFlags {
        HeaderFlags(self.0 & !other.0)
    }
}

impl core::ops::BitOr for HeaderFlags {
    type Output = HeaderFlags;

    fn bitor(self, other: HeaderFlags) -> HeaderFlags {
        HeaderFlags(self.0 | other.0)
    }
}

/// The first bytes of a frame, checked: type known, flags defined, length allowed (MMTP 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Type.
    pub kind: Kind,
    /// Low nibble.
    pub flags: u8,
    /// Stream; 0 on frames of the connection.
    pub stream: StreamId,
    /// Payload, in bytes.
    pub length: usize,
}

/// One whole frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame<'a> {
    /// HELLO with its undecoded payload (see [`super::hello`]).
    Hello(&'a [u8]),
    /// HEADERS with its unchecked block (see [`super::header::HeaderBlock::parse`]).
    Headers {
        /// Stream, not 0.
        stream: StreamId,
        /// Flags.
        flags: HeaderFlags,
        /// Header block, at most [`HEADER_BLOCK_BYTES_MAX`].
        block: &'a [u8],
    },
    /// DATA.
    Data {
        /// Stream, not 0.
        stream: StreamId,
        /// Whether the direction ends.
        end: bool,
        /// At most [`FRAME_PAYLOAD_BYTES_MAX`] bytes.
        bytes: &'a [u8],
    },
    /// RESET.
    Reset {
        /// Stream, not 0.
        stream: StreamId,
        /// Why; below 2^30.
        code: Code,
        /// How far the request got.
        receipt: Receipt,
        /// How long to wait before trying again, in milliseconds, below 2^30; 0 says nothing.
        wait_ms: u32,
    },
    /// CREDIT.
    Credit {
        /// Stream; 0 for the connection.
        stream: StreamId,
        /// How many more, 1 to 2^30 - 1.
        bytes: u32,
    },
    /// PING.
    Ping {
        /// Whether it is the answer.
        pong: bool,
        /// Returned by the answer as it is.
        nonce: [u8; 8],
    },
    /// GOAWAY.
    GoAway {
        /// Highest stream of the receiver of this frame that was or will be handled; 0 for none.
        last_stream: StreamId,
        /// Why; below 2^30.
        code: Code,
        /// How long to wait before connecting again, in milliseconds, below 2^30.
        wait_ms: u32,
        /// Up to how much longer, chosen at random, in milliseconds, below 2^30.
        jitter_ms: u32,
        /// Where to connect instead; empty for the same place.
        address: &'a [u8],
    },
    /// A frame that this version skips or refuses; see [`Kind::treatment`].
    Other {
        /// Its header.
        header: FrameHeader,
        /// Its payload.
        payload: &'a [u8],
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_nibble() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_nibble(kind.nibble()), Some(kind));
        }
        let assigned = (0..=0xff).filter(|nibble| Kind::from_nibble(*nibble).is_some()).count();
        assert_eq!(assigned, Kind::ALL.len());
    }

    #[test]
    fn header_flags_combine() {
        let both = HeaderFlags::END | HeaderFlags::IDEMPOTENT;
        assert!(both.end() && both.contains(HeaderFlags::IDEMPOTENT) && !both.contains(HeaderFlags::REPLAY_SAFE));
        assert_eq!(both.without(HeaderFlags::END), HeaderFlags::IDEMPOTENT);
        assert_eq!(HeaderFlags::from_bits(both.bits()), Some(both));
        assert_eq!(HeaderFlags::from_bits(8), None);
    }
}
