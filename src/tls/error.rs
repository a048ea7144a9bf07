//! What can go wrong on a TLS connection, sorted by fault, and the alert each one calls for.
//!
//! Invariant: the alert follows from the value alone, in one `match` without a catch-all arm.

use core::fmt;

/// An alert of TLS 1.3 that this side may send (RFC 8446 section 6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Alert {
    /// The sender will send no more (section 6.1).
    CloseNotify = 0,
    /// A message that does not belong here (section 6.2).
    UnexpectedMessage = 10,
    /// A record that does not decrypt.
    BadRecordMac = 20,
    /// A record that is too long.
    RecordOverflow = 22,
    /// No parameters in common.
    HandshakeFailure = 40,
    /// A certificate that is corrupt, or stands for another name.
    BadCertificate = 42,
    /// A certificate of a kind that is not taken here.
    UnsupportedCertificate = 43,
    /// A certificate that was revoked.
    CertificateRevoked = 44,
    /// A certificate out of its time.
    CertificateExpired = 45,
    /// A certificate refused for another reason.
    CertificateUnknown = 46,
    /// A field with a value that is not allowed.
    IllegalParameter = 47,
    /// A certificate whose issuer is not known here.
    UnknownCa = 48,
    /// A message that cannot be parsed.
    DecodeError = 50,
    /// A signature or Finished that does not verify.
    DecryptError = 51,
    /// The peer does not speak TLS 1.3.
    ProtocolVersion = 70,
    /// A fault of this side.
    InternalError = 80,
    /// A required extension is missing.
    MissingExtension = 109,
    /// A client certificate is required.
    CertificateRequired = 116,
    /// No application protocol in common (RFC 7301 section 3.2).
    NoApplicationProtocol = 120,
}

impl Alert {
    /// The byte on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The whole message: level, then description.
    pub(super) const fn message(self) -> [u8; 2] {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let level = match self {
            Alert::CloseNotify => WARNING,
            _ => FATAL,
        };
        [level, self.code()]
    }
}

/// What is wrong with a certificate that the peer showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CertificateFault {
    /// None was shown where one is required.
    Missing,
    /// Not parsable, or with extensions that are not understood.
    Malformed,
    /// Its time is over, or has not begun.
    Expired,
    /// Revoked by its issuer.
    Revoked,
    /// No chain to a trusted root.
    UnknownIssuer,
    /// It stands for other names.
    WrongName,
    /// It may not be used for this purpose.
    WrongPurpose,
    /// The handshake's or the issuer's signature does not verify.
    BadSignature,
    /// Anything else.
    Other,
}

/// Why a TLS connection cannot go on. `&'static str` details are fixed words, fit for a log line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsError {
    /// The peer sent what looks like an HTTP request without TLS.
    PlainHttp,
    /// The peer sent something that is neither TLS nor HTTP.
    NotTls,
    /// The peer offers no TLS 1.3.
    ProtocolVersion,
    /// The peer offers none of the application protocols taken here.
    NoApplicationProtocol,
    /// The peer and this side have something else not in common.
    Incompatible(&'static str),
    /// The peer left out an extension that TLS 1.3 requires.
    MissingExtension(&'static str),
    /// The peer's certificate is refused.
    Certificate(CertificateFault),
    /// The peer's signature or Finished does not verify.
    BadFinished,
    /// The peer sent a record that does not decrypt.
    BadRecordMac,
    /// The peer sent a record or plaintext that is too long.
    RecordOverflow,
    /// The peer sent something that cannot be parsed.
    Malformed(&'static str),
    /// The peer sent a field with a value that is not allowed.
    IllegalParameter(&'static str),
    /// The peer sent something that does not belong here.
    Unexpected(&'static str),
    /// The peer sends too much that carries nothing: a limit of this module was reached.
    Flood(&'static str),
    /// The peer sent a fatal alert with this code.
    PeerAlert(u8),
    /// The peer ended the connection in the middle of the handshake.
    ClosedInHandshake,
    /// This side used the session wrongly: before the handshake, after its end, or with a record that is too large.
    Misuse(&'static str),
    /// This side sealed as many records as its key may, and no key update was put.
    KeyExhausted,
    /// The name of the server to connect to is neither a DNS name nor an address.
    BadServerName,
    /// The cryptographic library or the system's random source failed.
    Internal(&'static str),
}

/// Whose fault an error is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The peer broke the protocol, or cannot be served.
    Peer,
    /// This side did.
    Local,
}

impl TlsError {
    /// The alert to send for it, if one is due.
    #[must_use]
    pub const fn alert(self) -> Option<Alert> {
        match self {
            TlsError::PlainHttp | TlsError::NotTls => None, // whoever sent this reads no alerts
            TlsError::PeerAlert(_) | TlsError::ClosedInHandshake => None, // RFC 8446 6: the connection is over
            TlsError::Misuse(_) | TlsError::BadServerName => None,
            TlsError::ProtocolVersion => Some(Alert::ProtocolVersion),
            TlsError::NoApplicationProtocol => Some(Alert::NoApplicationProtocol),
            TlsError::Incompatible(_) => Some(Alert::HandshakeFailure),
            TlsError::MissingExtension(_) => Some(Alert::MissingExtension),
            TlsError::Certificate(fault) => Some(fault.alert()),
            TlsError::BadFinished => Some(Alert::DecryptError),
            TlsError::BadRecordMac => Some(Alert::BadRecordMac),
            TlsError::RecordOverflow => Some(Alert::RecordOverflow),
            TlsError::Malformed(_) => Some(Alert::DecodeError),
            TlsError::IllegalParameter(_) => Some(Alert::IllegalParameter),
            TlsError::Unexpected(_) | TlsError::Flood(_) => Some(Alert::UnexpectedMessage),
            TlsError::KeyExhausted | TlsError::Internal(_) => Some(Alert::InternalError),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(self) -> Fault {
        match self {
            TlsError::Misuse(_) | TlsError::KeyExhausted | TlsError::BadServerName | TlsError::Internal(_) => {
                Fault::Local
            }
            TlsError::PlainHttp
            | TlsError::NotTls
            | TlsError::ProtocolVersion
            | TlsError::NoApplicationProtocol
            | TlsError::Incompatible(_)
            | TlsError::MissingExtension(_)
            | TlsError::Certificate(_)
            | TlsError::BadFinished
            | TlsError::BadRecordMac
            | TlsError::RecordOverflow
            | TlsError::Malformed(_)
            | TlsError::IllegalParameter(_)
            | TlsError::Unexpected(_)
            | TlsError::Flood(_)
            | TlsError::PeerAlert(_)
            | TlsError::ClosedInHandshake => Fault::Peer,
        }
    }

    /// A few fixed words for a log line.
    #[must_use]
    pub const fn detail(self) -> &'static str {
        match self {
            TlsError::PlainHttp => "plain HTTP on a TLS port",
            TlsError::NotTls => "not TLS",
            TlsError::ProtocolVersion => "peer offers no TLS 1.3",
            TlsError::NoApplicationProtocol => "no application protocol in common",
            TlsError::Certificate(fault) => fault.detail(),
            TlsError::BadFinished => "signature or Finished does not verify",
            TlsError::BadRecordMac => "record does not decrypt",
            TlsError::RecordOverflow => "record too long",
            TlsError::PeerAlert(_) => "peer sent a fatal alert",
            TlsError::ClosedInHandshake => "peer closed during the handshake",
            TlsError::KeyExhausted => "key used up",
            TlsError::BadServerName => "server name is neither a DNS name nor an address",
            TlsError::Incompatible(detail)
            | TlsError::MissingExtension(detail)
            | TlsError::Malformed(detail)
            | TlsError::IllegalParameter(detail)
            | TlsError::Unexpected(detail)
            | TlsError::Flood(detail)
            | TlsError::Misuse(detail)
            | TlsError::Internal(detail) => detail,
        }
    }
}

impl CertificateFault {
    const fn alert(self) -> Alert {
        match self {
            CertificateFault::Missing => Alert::CertificateRequired,
            CertificateFault::Malformed | CertificateFault::WrongName => Alert::BadCertificate,
            CertificateFault::Expired => Alert::CertificateExpired,
            CertificateFault::Revoked => Alert::CertificateRevoked,
            CertificateFault::UnknownIssuer => Alert::UnknownCa,
            CertificateFault::WrongPurpose => Alert::UnsupportedCertificate,
            CertificateFault::BadSignature => Alert::DecryptError,
            CertificateFault::Other => Alert::CertificateUnknown,
        }
    }

    const fn detail(self) -> &'static str {
        match self {
            CertificateFault::Missing => "peer showed no certificate",
            CertificateFault::Malformed => "peer's certificate is malformed",
            CertificateFault::Expired => "peer's certificate is out of its time",
            CertificateFault::Revoked => "peer's certificate is revoked",
            CertificateFault::UnknownIssuer => "peer's certificate has no chain to a trusted root",
            CertificateFault::WrongName => "peer's certificate is for other names",
            CertificateFault::WrongPurpose => "peer's certificate is for another purpose",
            CertificateFault::BadSignature => "signature of the peer's certificate does not verify",
            CertificateFault::Other => "peer's certificate is refused",
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::PeerAlert(code) => write!(f, "peer sent fatal alert {code}"),
            other => f.write_str(other.detail()),
        }
    }
}

impl core::error::Error for TlsError {}

/// Maps a fault that rustls found. Mostly rustls has chosen and sealed its alert already, and the mapping keeps to the
/// same choice; where it has not, what the fault is mapped to says which one is written.
pub(super) fn from_rustls(error: &rustls::Error) -> TlsError {
    use rustls::{Error, PeerMisbehaved};
    match error {
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            TlsError::Unexpected("message out of place in the handshake")
        }
        Error::InvalidMessage(invalid) => from_invalid(invalid),
        Error::NoCertificatesPresented => TlsError::Certificate(CertificateFault::Missing),
        Error::InvalidCertificate(fault) => TlsError::Certificate(from_certificate(fault)),
        Error::DecryptError => TlsError::BadRecordMac,
        Error::PeerIncompatible(what) => from_incompatible(what),
        Error::PeerMisbehaved(what) => match what {
            PeerMisbehaved::IllegalMiddleboxChangeCipherSpec
            | PeerMisbehaved::IllegalTlsInnerPlaintext // RFC 8446 5.4
            | PeerMisbehaved::KeyEpochWithPendingFragment
            | PeerMisbehaved::MessageInterleavedWithHandshakeMessage
            | PeerMisbehaved::TooManyEmptyFragments
            | PeerMisbehaved::TooMuchEarlyDataReceived
            | PeerMisbehaved::TooManyWarningAlertsReceived => TlsError::Unexpected("peer misbehaved in the handshake"),
            PeerMisbehaved::IncorrectBinder => TlsError::BadFinished,
            // RFC 8446 4.2.10: what does not decrypt after the client's first handshake record is no early data.
            PeerMisbehaved::RejectedEarlyDataInterleavedWithHandshakeMessage => TlsError::BadRecordMac,
            _ => TlsError::IllegalParameter("peer misbehaved in the handshake"),
        },
        Error::AlertReceived(rustls::AlertDescription::CloseNotify) => TlsError::ClosedInHandshake,
        Error::AlertReceived(description) => TlsError::PeerAlert(u8::from(*description)),
        Error::PeerSentOversizedRecord => TlsError::RecordOverflow,
        Error::NoApplicationProtocol => TlsError::NoApplicationProtocol,
        Error::UnsupportedNameType => TlsError::BadServerName,
        Error::FailedToGetRandomBytes => TlsError::Internal("no random bytes"),
        Error::FailedToGetCurrentTime => TlsError::Internal("no current time"),
        _ => TlsError::Internal("TLS library failed"),
    }
}

fn from_invalid(invalid: &rustls::InvalidMessage) -> TlsError {
    use rustls::InvalidMessage;
    match invalid {
        InvalidMessage::HandshakePayloadTooLarge => TlsError::Malformed("handshake message too long"),
        _ => TlsError::Malformed("handshake message malformed"),
    }
}

fn from_incompatible(what: &rustls::PeerIncompatible) -> TlsError {
    use rustls::PeerIncompatible;
    match what {
        PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => TlsError::ProtocolVersion,
        PeerIncompatible::NoCipherSuitesInCommon => TlsError::Incompatible("no cipher suite in common"),
        PeerIncompatible::NoKxGroupsInCommon => TlsError::Incompatible("no key exchange group in common"),
        PeerIncompatible::NoSignatureSchemesInCommon => TlsError::Incompatible("no signature scheme in common"),
        PeerIncompatible::NullCompressionRequired => TlsError::IllegalParameter("null compression is not offered"),
        _ => TlsError::Incompatible("nothing in common with the peer"),
    }
}

fn from_certificate(fault: &rustls::CertificateError) -> CertificateFault {
    use rustls::CertificateError;
    match fault {
        CertificateError::BadEncoding | CertificateError::UnhandledCriticalExtension => CertificateFault::Malformed,
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => CertificateFault::Expired,
        CertificateError::Revoked => CertificateFault::Revoked,
        CertificateError::UnknownIssuer => CertificateFault::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CertificateFault::WrongName
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            CertificateFault::WrongPurpose
        }
        CertificateError::BadSignature
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => CertificateFault::BadSignature,
        _ => CertificateFault::Other,
    }
}
