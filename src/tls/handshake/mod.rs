//! rustls driven record by record until the connection leaves it.
//!
//! Owns the handshaking half of a session: the rustls connection and the bytes it has not used up. Never sees a record
//! of application data, early data aside: the record that completes the handshake is the last one it is given.
//! Invariant: rustls is given one record, then asked again without a new one until it waits, so that it can never
//! swallow a record that the record layer should open.

mod client;
mod server;

use rustls::unbuffered::{ConnectionState, EncodeError};
use rustls::{CommonState, HandshakeKind};

pub(super) use client::ClientHandshake;
pub(super) use server::ServerHandshake;

use super::desk::IssuedTicket;
use super::error::{Alert, TlsError, from_rustls};
use super::keepsake::TicketTaker;
use super::record::{ContentType, PLAINTEXT_BYTES_MAX, Protection, RECORD_HEADER_BYTES, put_plain};
use super::settings::ALPN_MMTP;
use super::{Early, Established, Suite};
use crate::base::wire::Protocol;

/// Bytes that a peer may send before its handshake is complete, early data aside: several times the longest chain of
/// certificates seen in practice.
const HANDSHAKE_BYTES_MAX: usize = 128 * 1024;
/// Records that a peer may send before its handshake is complete, early data aside. Keeps a peer that sends one byte per
/// record from having each byte cost a pass over all before it.
const HANDSHAKE_RECORDS_MAX: u32 = 128;
/// Compatibility change_cipher_spec records taken (RFC 8446 D.4). A peer sends one; rustls, which refuses a third
/// without an alert, takes two.
const COMPATIBILITY_RECORDS_MAX: u32 = 2;

/// A handshake of either side. Both are boxed: they are large, and over soon.
pub(super) enum Handshake {
    Server(Box<ServerHandshake>),
    Client(Box<ClientHandshake>),
}

/// Where a record has brought a handshake.
pub(super) enum Progress {
    /// It goes on.
    Nothing,
    /// The ClientHello is whole, and somebody must say how to proceed.
    Hello,
    /// Early data: so many bytes, now at the front of the record.
    Data(usize),
    /// It is over: [`Handshake::complete`] is to be called.
    Complete,
}

pub(super) struct Complete {
    pub(super) receiving: Protection,
    pub(super) sending: Protection,
    /// Some on a client.
    pub(super) tickets: Option<Box<TicketTaker>>,
    pub(super) established: Established,
    /// Tickets that a server gave.
    pub(super) issued: Vec<IssuedTicket>,
    /// This side has said close_notify, in half-RTT data.
    pub(super) sending_closed: bool,
    /// The handshake is in order, but this side does not want its outcome.
    pub(super) refusal: Option<TlsError>,
    pub(super) key_update_records: u64,
}

impl Handshake {
    /// Takes one whole record.
    pub(super) fn receive(&mut self, record: &mut [u8], out: &mut Vec<u8>) -> Result<Progress, TlsError> {
        match self {
            Handshake::Server(handshake) => handshake.receive(record, out),
            Handshake::Client(handshake) => handshake.receive(record, out),
        }
    }

    /// Whether the peer has sent a record.
    pub(super) fn has_received(&self) -> bool {
        match self {
            Handshake::Server(handshake) => handshake.intake.records > 0,
            Handshake::Client(handshake) => handshake.intake.records > 0,
        }
    }

    /// Writes the alert of a fault that rustls did not find.
    pub(super) fn put_alert(&mut self, error: TlsError, out: &mut Vec<u8>) {
        match self {
            Handshake::Server(handshake) => handshake.put_alert(error, out),
            Handshake::Client(handshake) => handshake.put_alert(error, out),
        }
    }

    /// Takes the connection out of rustls.
    pub(super) fn complete(self) -> Result<Complete, TlsError> {
        match self {
            Handshake::Server(handshake) => handshake.complete(),
            Handshake::Client(handshake) => handshake.complete(),
        }
    }
}

/// What comes from the peer, checked before rustls gets it.
#[derive(Default)]
struct Intake {
    /// Bytes received that rustls has not used up: the beginning of a message that spans records.
    input: Vec<u8>,
    bytes: usize,
    records: u32,
    compatibility_records: u32,
}

impl Intake {
    /// Takes one whole record. `has_keys`: rustls protects what it sends.
    fn take(&mut self, record: &[u8], has_keys: bool) -> Result<(), TlsError> {
        let (content, length) = outline(record)?;
        if !has_keys {
            before_keys(content, &record[RECORD_HEADER_BYTES..])?;
        }
        if length > PLAINTEXT_BYTES_MAX && content != ContentType::ApplicationData.code() {
            return Err(TlsError::RecordOverflow); // RFC 8446 5.1
        }
        self.compatibility_records += u32::from(content == ContentType::ChangeCipherSpec.code());
        if self.compatibility_records > COMPATIBILITY_RECORDS_MAX {
            return Err(TlsError::Flood("too many change_cipher_spec records"));
        }
        self.bytes += record.len();
        self.records += 1;
        if self.bytes > HANDSHAKE_BYTES_MAX || self.records > HANDSHAKE_RECORDS_MAX {
            return Err(TlsError::Flood("handshake too long"));
        }
        self.input.extend_from_slice(record);
        Ok(())
    }

    /// For [`Handshake::put_alert`]: what to hand to rustls so that it writes the alert of `error`; `None` when there is
    /// nothing to hand, since the alert is written in the clear already, or none is due.
    fn fault_for(error: TlsError, has_keys: bool, out: &mut Vec<u8>) -> Option<&'static [u8]> {
        let alert = error.alert()?;
        if !has_keys {
            put_plain(ContentType::Alert, &[2, alert.code()], out);
            return None;
        }
        // Under handshake keys only rustls can write one, and offers no way to choose it. Handed a record with such a
        // fault, it does (for a length that is too large, decode_error instead of record_overflow).
        match alert {
            Alert::RecordOverflow => Some(&[23, 3, 3, 0xff, 0xff]),
            Alert::UnexpectedMessage => Some(&[20, 3, 3, 0, 1, 0]),
            _ => None, // no other is found here once there are keys
        }
    }
}

/// The content type of a record and the length of its payload.
fn outline(record: &[u8]) -> Result<(u8, usize), TlsError> {
    let [content, _, _, high, low, ..] = *record else { return Err(TlsError::Misuse("not a whole record")) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if record.len() != RECORD_HEADER_BYTES + length {
        return Err(TlsError::Misuse("not a whole record"));
    }
    Ok((content, length))
}

/// Refuses what rustls would take, or answer, before there are keys.
fn before_keys(content: u8, payload: &[u8]) -> Result<(), TlsError> {
    match (ContentType::from_code(content), payload) {
        (Some(ContentType::Alert), [_, 0]) => Err(TlsError::ClosedInHandshake),
        (Some(ContentType::Alert), &[_, code]) => Err(TlsError::PeerAlert(code)), // RFC 8446 6: whatever its level
        _ => Ok(()),
    }
}

/// Whether rustls has chosen a cipher suite, after which it protects what it sends.
fn has_keys(common: &CommonState) -> bool {
    common.negotiated_cipher_suite().is_some()
}

fn established(
    common: &CommonState,
    server_name: Option<Box<str>>,
    early: Early,
    retried: bool,
) -> Result<Established, TlsError> {
    let protocol = if common.alpn_protocol() == Some(ALPN_MMTP) { Protocol::Mmtp } else { Protocol::Opaque };
    let suite = common.negotiated_cipher_suite().and_then(|suite| Suite::from_code(u16::from(suite.suite())));
    let suite = suite.ok_or(TlsError::Internal("cipher suite without a record layer"))?;
    let digest = |leaf: &[u8]| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
        <[u8; 32]>::try_from(digest.as_ref()).expect("SHA-256 gives 32 bytes")
    };
    Ok(Established {
        protocol,
        resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
        retried: retried || common.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest),
        early,
        suite,
        peer_certificate_sha256: common.peer_certificates().and_then(|chain| chain.first()).map(|leaf| digest(leaf)),
        alpn: common.alpn_protocol().map(Box::from),
        server_name,
    })
}

pub(super) enum Step {
    /// Ask again.
    Again,
    /// It waits for the peer.
    Blocked,
    /// It could carry application data.
    Ready,
}

/// Carries out one step of rustls.
pub(super) fn step<Data>(
    state: Result<ConnectionState<'_, '_, Data>, rustls::Error>,
    out: &mut Vec<u8>,
) -> Result<Step, TlsError> {
    match state {
        Ok(ConnectionState::EncodeTlsData(mut encode)) => {
            let start = out.len();
            let needed = match encode.encode(&mut []) {
                Err(EncodeError::InsufficientSize(size)) => size.required_size,
                Ok(_) | Err(EncodeError::AlreadyEncoded) => 0,
            };
            out.resize(start + needed, 0);
            match encode.encode(&mut out[start..]) {
                Ok(written) => out.truncate(start + written),
                Err(_) => out.truncate(start),
            }
            Ok(Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done(); // the bytes are in `out`, whose order the caller keeps
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Blocked),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Ready),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Err(TlsError::ClosedInHandshake),
        Ok(_) => Err(TlsError::Internal("application data in the handshake")),
        Err(error) => Err(from_rustls(&error)),
    }
}

/// Why a handshake in order leads to nothing: rustls still holds a part of a message.
fn leftover(intake: &Intake) -> Option<TlsError> {
    // RFC 8446 5.1
    (!intake.input.is_empty()).then_some(TlsError::Unexpected("handshake message spans a change of keys"))
}
