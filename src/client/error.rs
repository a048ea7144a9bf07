//! How calls fail. Owns the sorting of failures and what a caller may conclude from each; never prints or retries.
//!
//! Invariant: every [`CallError`] carries a [`Receipt`], and [`Receipt::NotForwarded`] is only said when no byte of the
//! request can have been acted on.

use std::fmt;
use std::time::Duration;

use super::report::Report;

/// How far a failed call got (MMTP 9.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receipt {
    /// Nothing of it reached the service. Sending it again cannot do anything twice.
    NotForwarded,
    /// It may have been carried out, in part or whole. Ask for its outcome by request id, or repeat it only if it
    /// does no harm twice.
    Unknown,
    /// It was turned away before anything was done; the other end asks not to come back before `wait`.
    Refused {
        /// How long to stay away. Zero when the other end did not say.
        wait: Duration,
    },
}

impl Receipt {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Receipt::NotForwarded => "not-forwarded",
            Receipt::Unknown => "unknown",
            Receipt::Refused { .. } => "refused",
        }
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Receipt::NotForwarded => write!(out, "{name} (sending it again is safe)"),
            Receipt::Unknown => write!(out, "{name} (it may have been carried out)"),
            Receipt::Refused { wait } if wait.is_zero() => write!(out, "{name} (nothing was done)"),
            Receipt::Refused { wait } => write!(out, "{name} (nothing was done; come back in {} ms)", wait.as_millis()),
        }
    }
}

/// What a caller may do after a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Send the same call again, no sooner than `after`.
    Retry {
        /// How long to wait first.
        after: Duration,
    },
    /// Send it again only if carrying it out twice does no harm; else ask for its outcome by request id.
    RetryIfRepeatable,
    /// The same call will fail again: the request, the address or the trust settings must change first.
    Change,
}

/// Where a call was when its time was up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stage {
    /// Waiting for its turn: for a stream, or for the server's time to stay away to pass.
    Queued,
    /// Looking up the host.
    Lookup,
    /// Connecting.
    Connect,
    /// Agreeing on keys, or waiting for the server's HELLO.
    Handshake,
    /// Waiting for the head of the answer.
    Answer,
    /// In the middle of the body, either way.
    Body,
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Stage::Queued => "waiting for its turn",
            Stage::Lookup => "looking up the host",
            Stage::Connect => "connecting",
            Stage::Handshake => "in the handshake",
            Stage::Answer => "waiting for the answer",
            Stage::Body => "in the middle of the body",
        })
    }
}

/// Why a request cannot be sent as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RequestError {
    /// The method is not a token.
    Method,
    /// The service's name is not one.
    Service,
    /// The path is not visible ASCII that starts with a slash.
    Path,
    /// The priority is not 0 to 7.
    Priority,
    /// A field's name is not a token.
    FieldName,
    /// A field's value has a line break or a zero byte.
    FieldValue,
    /// The field is about one connection, or is Trunkline's own to set (`connection`, `transfer-encoding`, …).
    FieldReserved,
    /// A field that may appear once appears twice.
    FieldTwice,
    /// `content-length` disagrees with the body that was given.
    ContentLength,
    /// The request id is empty, too long, or has characters outside visible ASCII.
    RequestId,
    /// All fields together are larger than a header block may be, or too many.
    TooLarge,
}

impl fmt::Display for RequestError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            RequestError::Method => "the method is not a token of at most 32 letters",
            RequestError::Service => "the service name may have at most 64 letters, digits, '-', '.' and '_'",
            RequestError::Path => "the path must start with '/', be at most 8 KiB long and percent-encoded",
            RequestError::Priority => "the priority must be 0 (most urgent) to 7",
            RequestError::FieldName => "a field's name is not a token",
            RequestError::FieldValue => "a field's value has a line break, a zero byte or is not valid for its name",
            RequestError::FieldReserved => "a field is about one connection only, or not for callers to set",
            RequestError::FieldTwice => "a field that may appear once appears twice",
            RequestError::ContentLength => "content-length disagrees with the body",
            RequestError::RequestId => "the request id must be 1 to 128 visible ASCII characters",
            RequestError::TooLarge => "the fields together are too large or too many",
        })
    }
}

impl std::error::Error for RequestError {}

/// Why a call failed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The request cannot be sent as it stands.
    Request(RequestError),
    /// The host's name has no address, or could not be looked up.
    Lookup(String),
    /// None of the host's addresses could be connected to: what the last one said.
    Connect(String),
    /// The server's certificate is not acceptable: issuer, name, dates.
    Certificate(String),
    /// The TLS handshake or the record layer failed: not TLS at all, no common version, an alert.
    Tls(String),
    /// The server speaks TLS, but not `mmtp/1`.
    NotMmtp,
    /// The server broke MMTP.
    Protocol(String),
    /// The connection ended under the call.
    Lost(String),
    /// The other end gave the call up with this MMTP code, named for people in `name`.
    Reset {
        /// MMTP error code.
        code: u64,
        /// Its name.
        name: &'static str,
    },
    /// The server is going away and did not take the call: the code of its GOAWAY.
    GoingAway {
        /// MMTP error code.
        code: u64,
    },
    /// The call's time was up.
    TimedOut(Stage),
    /// The answer is longer than [`Client::call`](super::Client::call) was told to hold.
    AnswerTooLong {
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// The caller cancelled it.
    Cancelled,
    /// The request's body has ended already: nothing can be added.
    Finished,
    /// More calls, or lookups, are under way in this client than it allows.
    TooMany,
    /// The client was stopped.
    Stopped,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Request(why) => write!(out, "{why}"),
            Failure::Lookup(why) => write!(out, "cannot look up the host: {why}"),
            Failure::Connect(why) => write!(out, "cannot connect: {why}"),
            Failure::Certificate(why) => write!(out, "the server's certificate is not acceptable: {why}"),
            Failure::Tls(why) => write!(out, "TLS failed: {why}"),
            Failure::NotMmtp => out.write_str("the server speaks TLS, but not mmtp/1"),
            Failure::Protocol(why) => write!(out, "the server broke the protocol: {why}"),
            Failure::Lost(why) => write!(out, "the connection was lost: {why}"),
            Failure::Reset { code, name } => write!(out, "the call was reset: {name} ({code})"),
            Failure::GoingAway { code } => write!(out, "the server is going away (code {code})"),
            Failure::TimedOut(stage) => write!(out, "timed out {stage}"),
            Failure::AnswerTooLong { bytes_max } => write!(out, "the answer is longer than {bytes_max} bytes"),
            Failure::Finished => out.write_str("the request's body has ended already"),
            Failure::Cancelled => out.write_str("cancelled"),
            Failure::TooMany => out.write_str("too many calls or lookups at once"),
            Failure::Stopped => out.write_str("the client was stopped"),
        }
    }
}

#[derive(Clone, Debug)]
struct Inner {
    failure: Failure,
    receipt: Receipt,
    report: Report,
}

/// A call that failed: why, how far it got, and what it took.
#[derive(Clone, Debug)]
pub struct CallError(Box<Inner>);

impl CallError {
    pub(super) fn new(failure: Failure, receipt: Receipt, mut report: Report) -> CallError {
        report.settle(receipt);
        CallError(Box::new(Inner { failure, receipt, report }))
    }

    /// Why it failed.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.0.failure
    }

    /// How far it got.
    #[must_use]
    pub fn receipt(&self) -> Receipt {
        self.0.receipt
    }

    /// What it took until it failed.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.0.report
    }

    /// What the caller may do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match &self.0.failure {
            Failure::Request(_) | Failure::Certificate(_) | Failure::NotMmtp => return Advice::Change,
            Failure::AnswerTooLong { .. } | Failure::Finished => return Advice::Change,
            Failure::Lookup(_) | Failure::Connect(_) | Failure::Tls(_) | Failure::Protocol(_) | Failure::Lost(_) => {}
            Failure::Reset { .. } | Failure::GoingAway { .. } | Failure::TimedOut(_) => {}
            Failure::Cancelled | Failure::TooMany | Failure::Stopped => {}
        }
        match self.0.receipt {
            Receipt::NotForwarded => Advice::Retry { after: Duration::ZERO },
            Receipt::Refused { wait } => Advice::Retry { after: wait },
            Receipt::Unknown => Advice::RetryIfRepeatable,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}; receipt: {}", self.0.failure, self.0.receipt)
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for std::io::Error {
    fn from(error: CallError) -> std::io::Error {
        let kind = match error.failure() {
            Failure::TimedOut(_) => std::io::ErrorKind::TimedOut,
            Failure::Connect(_) => std::io::ErrorKind::ConnectionRefused,
            Failure::Lost(_) | Failure::Reset { .. } => std::io::ErrorKind::ConnectionReset,
            Failure::Request(_) => std::io::ErrorKind::InvalidInput,
            Failure::Protocol(_) | Failure::Tls(_) | Failure::Certificate(_) => std::io::ErrorKind::InvalidData,
            _ => std::io::ErrorKind::Other,
        };
        std::io::Error::new(kind, error)
    }
}

/// Why a [`Client`](super::Client) could not be made.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// No trusted root certificate was given: see [`Builder::ca_pem`](super::Builder::ca_pem).
    NoRoots,
    /// The PEM text holds no certificate, or a broken one.
    Pem(String),
    /// A root certificate cannot be used.
    Root(String),
    /// An attribute is longer than 128 bytes, or not visible ASCII.
    Attribute(&'static str),
    /// The ticket file cannot be used: others may open it, or we may not.
    Tickets(String),
    /// The operating system did not let the driver start.
    Os(String),
}

impl fmt::Display for BuildError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::NoRoots => out.write_str("no trusted root certificate was given"),
            BuildError::Pem(why) => write!(out, "cannot read the PEM certificates: {why}"),
            BuildError::Root(why) => write!(out, "a root certificate cannot be used: {why}"),
            BuildError::Attribute(name) => {
                write!(out, "the attribute {name} is longer than 128 bytes, or not visible ASCII")
            }
            BuildError::Tickets(why) => write!(out, "the ticket file cannot be used: {why}"),
            BuildError::Os(why) => write!(out, "cannot start the client's thread: {why}"),
        }
    }
}

impl std::error::Error for BuildError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_follows_from_failure_and_receipt() {
        let advice = |failure, receipt| CallError::new(failure, receipt, Report::default()).advice();
        let wait = Duration::from_millis(250);
        assert_eq!(
            advice(Failure::Lost("reset".into()), Receipt::NotForwarded),
            Advice::Retry { after: Duration::ZERO }
        );
        assert_eq!(advice(Failure::Lost("reset".into()), Receipt::Unknown), Advice::RetryIfRepeatable);
        assert_eq!(advice(Failure::GoingAway { code: 1 }, Receipt::Refused { wait }), Advice::Retry { after: wait });
        assert_eq!(advice(Failure::NotMmtp, Receipt::NotForwarded), Advice::Change);
        assert_eq!(advice(Failure::Request(RequestError::Method), Receipt::NotForwarded), Advice::Change);
    }

    #[test]
    fn the_text_names_the_receipt() {
        let receipts = [Receipt::NotForwarded, Receipt::Unknown, Receipt::Refused { wait: Duration::from_secs(1) }];
        for receipt in receipts {
            let text = CallError::new(Failure::Stopped, receipt, Report::default()).to_string();
            assert!(text.contains(receipt.name()), "{text}");
        }
    }
}
