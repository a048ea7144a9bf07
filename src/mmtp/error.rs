//! What can go wrong on a connection: sorted by fault (the peer's violation, or a limit of ours) and by reach (one
//! stream, or the whole connection), each with its wire code (MMTP 9).
//!
//! Owns the mapping from fault to code; never decides what to do about it.

use super::header::Known;

/// How far a fault reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The stream is reset; the connection carries on.
    Stream,
    /// The connection is told why with GOAWAY and closed.
    Connection,
}

/// A code of RESET or GOAWAY on the wire (MMTP 9.2). Codes without a name here are legal and are passed on as they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Code(pub u32);

macro_rules! codes {
    ($($name:ident = $value:literal, $text:literal, $doc:literal;)*) => {
        impl Code {
            $(#[doc = $doc] pub const $name: Code = Code($value);)*

            /// A word for logs and reports.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Code::$name => $text,)*
                    Code(_) => "unknown",
                }
            }

            /// Every code with a name.
            pub const NAMED: &'static [Code] = &[$(Code::$name,)*];
        }
    };
}

codes! {
    DONE = 0, "done", "Nothing is wrong: the sender is finished with the stream or the connection.";
    PROTOCOL = 1, "protocol", "The peer broke a rule of framing.";
    CREDIT = 2, "credit", "The peer sent more than its credit, or granted too much or nothing.";
    FRAME_SIZE = 3, "frame_size", "A frame is longer than its type allows, or its payload is not what its type says.";
    HEADER_BLOCK = 4, "header_block", "A header block is malformed.";
    STREAM_STATE = 5, "stream_state", "A frame came that the state of its stream forbids.";
    STREAM_LIMIT = 6, "stream_limit", "The peer opened more streams than it was allowed.";
    FLOOD = 7, "flood", "The peer sent too much that leads to nothing.";
    VERSION = 8, "version", "The peer speaks another version.";
    CANCELLED = 16, "cancelled", "The opener of the stream no longer wants the answer.";
    OVERLOADED = 17, "overloaded", "Refused for want of capacity; come back after the time to wait.";
    DEADLINE = 18, "deadline", "The deadline of the request passed.";
    SERVICE_UNKNOWN = 19, "service_unknown", "Nobody here offers that service.";
    UPSTREAM_UNREACHABLE = 20, "upstream_unreachable", "The business system could not be reached.";
    UPSTREAM_BROKEN = 21, "upstream_broken", "The business system broke off, or answered what cannot be passed on.";
    NO_ROUTE = 22, "no_route", "No way to a gateway is up.";
    DRAINING = 23, "draining", "This end is about to stop.";
    INTERNAL = 24, "internal", "This end failed in a way that is not the peer's fault.";
    REQUEST_INVALID = 25, "request_invalid", "The request is well-formed but cannot be passed on, or is not allowed.";
    IDLE = 26, "idle", "Nothing happened for too long.";
    TRANSPORT_LOST = 27, "transport_lost", "The connection that carried the stream further on broke.";
    TOO_EARLY = 28, "too_early", "The business system takes no such request from early data; send it again after the handshake.";
}

/// How far the request of a failed stream got (MMTP 9.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Receipt {
    /// No byte of it reached a gateway: sending it again is safe.
    NotForwarded,
    /// It was forwarded and what came of it is unknown: ask by request id.
    Unknown,
    /// It was refused before anything was done; come back after the time to wait.
    Refused,
}

/// What is wrong with a header block (MMTP 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// A length points past the end of the block, or a number is not in its shortest form.
    Truncated,
    /// More fields than [`crate::base::limits::HEADER_FIELDS_MAX`].
    TooManyFields,
    /// The block would be longer than [`crate::base::limits::HEADER_BLOCK_BYTES_MAX`]. Only when writing.
    TooLarge,
    /// A field id that is neither known nor ignorable, or above the largest id.
    FieldUnknown,
    /// A field that may stand once stands twice.
    Duplicate(Known),
    /// The value of a known field is not what the field asks for.
    Value(Known),
    /// A spelled name is empty, too long, or not a lower-case HTTP token.
    Name,
    /// A spelled name that has a number.
    NameNumbered,
    /// A spelled name that belongs to one hop (connection, transfer-encoding, ...).
    NameForbidden,
    /// The value of a spelled field holds a control character or has blanks around it.
    SpelledValue,
    /// A field that this kind of message must have is missing.
    Missing(Known),
    /// A field that this kind of message must not have.
    Misplaced(Known),
}

/// A rule that the peer broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A number not in its shortest form (MMTP 3.2).
    IntegerNotShortest,
    /// An unassigned frame type that is not ignorable (MMTP 3.5).
    FrameUnknown,
    /// A reserved frame whose capability this end never announced (MMTP 4.8).
    FrameReserved,
    /// A flag that the frame type does not define (MMTP 3.3).
    FlagsUnknown,
    /// A payload longer than the frame type allows (MMTP 3.4).
    FrameTooLarge,
    /// A payload that does not hold exactly the fields of its frame type (MMTP 3.4).
    PayloadMalformed,
    /// The first frame is not HELLO (MMTP 2.2).
    HelloMissing,
    /// A second HELLO (MMTP 2.2).
    HelloTwice,
    /// Another version than 1 (MMTP 4.1).
    VersionUnsupported,
    /// HELLO with an unknown agent, an unknown critical parameter, one twice, or a bad value (MMTP 4.1).
    HelloMalformed,
    /// HELLO with a limit below what the peer may assume before it arrives (MMTP 2.3).
    HelloLimitTooLow,
    /// A stream frame on stream 0 (MMTP 5.1).
    StreamZero,
    /// A frame for a stream that nobody opened, other than HEADERS on the peer's next one (MMTP 5.1).
    StreamNotOpened,
    /// More streams open at once than this end allows (MMTP 5.4).
    StreamLimitExceeded,
    /// DATA beyond the credit of the connection (MMTP 6.1).
    ConnectionCreditExceeded,
    /// Credit for the connection above the largest (MMTP 6.2).
    ConnectionCreditOverflow,
    /// CREDIT that grants nothing (MMTP 6.2).
    CreditZero,
    /// RESET with a receipt that does not exist (MMTP 4.4).
    ReceiptUnknown,
    /// GOAWAY that takes back an earlier one (MMTP 4.7).
    GoAwayRaised,
    /// DATA beyond the credit of the stream (MMTP 6.1).
    StreamCreditExceeded,
    /// Credit for a stream above the largest (MMTP 6.2).
    StreamCreditOverflow,
    /// DATA in a direction that has not had its HEADERS (MMTP 5.2).
    DataBeforeHeaders,
    /// HEADERS in a direction that has had its final HEADERS (MMTP 5.2).
    HeadersTwice,
    /// HEADERS or DATA in a direction that has ended (MMTP 5.2).
    AfterEnd,
    /// More interim HEADERS than [`super::frame::INTERIM_MAX`] (MMTP 5.2).
    InterimTooMany,
    /// Interim HEADERS that end the stream (MMTP 5.2).
    InterimEnds,
    /// REPLAY_SAFE or IDEMPOTENT on an answer (MMTP 4.2).
    FlagsMisplaced,
    /// A malformed header block (MMTP 7).
    Block(HeaderError),
}

impl Violation {
    /// How far it reaches (MMTP 9.1).
    #[must_use]
    pub fn scope(self) -> Scope {
        match self {
            Violation::IntegerNotShortest
            | Violation::FrameUnknown
            | Violation::FrameReserved
            | Violation::FlagsUnknown
            | Violation::FrameTooLarge
            | Violation::PayloadMalformed
            | Violation::HelloMissing
            | Violation::HelloTwice
            | Violation::VersionUnsupported
            | Violation::HelloMalformed
            | Violation::HelloLimitTooLow
            | Violation::StreamZero
            | Violation::StreamNotOpened
            | Violation::StreamLimitExceeded
            | Violation::ConnectionCreditExceeded
            | Violation::ConnectionCreditOverflow
            | Violation::CreditZero
            | Violation::ReceiptUnknown
            | Violation::GoAwayRaised => Scope::Connection,
            Violation::StreamCreditExceeded
            | Violation::StreamCreditOverflow
            | Violation::DataBeforeHeaders
            | Violation::HeadersTwice
            | Violation::AfterEnd
            | Violation::InterimTooMany
            | Violation::InterimEnds
            | Violation::FlagsMisplaced
            | Violation::Block(_) => Scope::Stream,
        }
    }

    /// The code that tells the peer (MMTP 9.2).
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Violation::IntegerNotShortest
            | Violation::FrameUnknown
            | Violation::FrameReserved
            | Violation::FlagsUnknown
            | Violation::HelloMissing
            | Violation::HelloTwice
            | Violation::HelloMalformed
            | Violation::HelloLimitTooLow
            | Violation::StreamZero
            | Violation::ReceiptUnknown
            | Violation::GoAwayRaised
            | Violation::FlagsMisplaced => Code::PROTOCOL,
            Violation::FrameTooLarge | Violation::PayloadMalformed => Code::FRAME_SIZE,
            Violation::VersionUnsupported => Code::VERSION,
            Violation::StreamLimitExceeded => Code::STREAM_LIMIT,
            Violation::ConnectionCreditExceeded
            | Violation::ConnectionCreditOverflow
            | Violation::CreditZero
            | Violation::StreamCreditExceeded
            | Violation::StreamCreditOverflow => Code::CREDIT,
            Violation::StreamNotOpened
            | Violation::DataBeforeHeaders
            | Violation::HeadersTwice
            | Violation::AfterEnd
            | Violation::InterimTooMany
            | Violation::InterimEnds => Code::STREAM_STATE,
            Violation::Block(_) => Code::HEADER_BLOCK,
        }
    }

    /// A word for logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Violation::IntegerNotShortest => "integer_not_shortest",
            Violation::FrameUnknown => "frame_unknown",
            Violation::FrameReserved => "frame_reserved",
            Violation::FlagsUnknown => "flags_unknown",
            Violation::FrameTooLarge => "frame_too_large",
            Violation::PayloadMalformed => "payload_malformed",
            Violation::HelloMissing => "hello_missing",
            Violation::HelloTwice => "hello_twice",
            Violation::VersionUnsupported => "version_unsupported",
            Violation::HelloMalformed => "hello_malformed",
            Violation::HelloLimitTooLow => "hello_limit_too_low",
            Violation::StreamZero => "stream_zero",
            Violation::StreamNotOpened => "stream_not_opened",
            Violation::StreamLimitExceeded => "stream_limit_exceeded",
            Violation::ConnectionCreditExceeded => "connection_credit_exceeded",
            Violation::ConnectionCreditOverflow => "connection_credit_overflow",
            Violation::CreditZero => "credit_zero",
            Violation::ReceiptUnknown => "receipt_unknown",
            Violation::GoAwayRaised => "goaway_raised",
            Violation::StreamCreditExceeded => "stream_credit_exceeded",
            Violation::StreamCreditOverflow => "stream_credit_overflow",
            Violation::DataBeforeHeaders => "data_before_headers",
            Violation::HeadersTwice => "headers_twice",
            Violation::AfterEnd => "after_end",
            Violation::InterimTooMany => "interim_too_many",
            Violation::InterimEnds => "interim_ends",
            Violation::FlagsMisplaced => "flags_misplaced",
            Violation::Block(_) => "header_block",
        }
    }
}

/// A bound of ours that the peer ran into without breaking a rule of framing (MMTP 9.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Too many frames that lead to nothing: pings, ignorable frames, frames for forgotten streams.
    IdleFrames,
    /// Too many streams opened and given up.
    StreamChurn,
}

impl Limit {
    /// A word for logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Limit::IdleFrames => "idle_frames",
            Limit::StreamChurn => "stream_churn",
        }
    }
}

/// Why a connection cannot go on. Write GOAWAY with [`ConnError::code`], then close the transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnError {
    /// The peer broke a rule; the violation has [`Scope::Connection`].
    Peer(Violation),
    /// The peer ran into a limit.
    Overload(Limit),
}

impl ConnError {
    /// The code that tells the peer.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            ConnError::Peer(violation) => violation.code(),
            ConnError::Overload(Limit::IdleFrames | Limit::StreamChurn) => Code::FLOOD,
        }
    }

    /// A word for logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ConnError::Peer(violation) => violation.name(),
            ConnError::Overload(limit) => limit.name(),
        }
    }
}

impl From<Violation> for ConnError {
    fn from(violation: Violation) -> ConnError {
        ConnError::Peer(violation)
    }
}

impl core::fmt::Display for ConnError {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(self.name())
    }
}

impl std::error::Error for ConnError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_distinct_numbers_and_names() {
        for (index, code) in Code::NAMED.iter().enumerate() {
            assert_ne!(code.name(), "unknown");
            for other in &Code::NAMED[..index] {
                assert_ne!(code, other);
                assert_ne!(code.name(), other.name());
            }
        }
        assert_eq!(Code(4711).name(), "unknown");
    }
}
