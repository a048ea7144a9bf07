//! rustls driven record by record until the connection leaves it.
//!
//! Owns the handshaking half of a session: the rustls connection and the bytes it has not used up. Never sees a record
//! of application data: the record that completes the handshake is the last one it is given.
//! Invariant: rustls is given one record, then asked again without a new one until it waits, so that it can never
//! swallow a record that the record layer should open.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{CommonState, ExtractedSecrets, HandshakeKind};

use super::error::{Alert, TlsError, from_rustls};
use super::hello::{self, Peek};
use super::record::{ContentType, PLAINTEXT_BYTES_MAX, RECORD_HEADER_BYTES, put_plain};
use super::settings::{ALPN_MMTP, ClientSettings, ServerSettings};
use super::{Established, Suite};
use crate::base::wire::Protocol;

/// Bytes that a peer may send before its handshake is complete: several times the longest chain of certificates seen
/// in practice.
const HANDSHAKE_BYTES_MAX: usize = 128 * 1024;
/// Records that a peer may send before its handshake is complete. Keeps a peer that sends one byte per record from
/// having each byte cost a pass over all before it.
const HANDSHAKE_RECORDS_MAX: u32 = 128;
/// Compatibility change_cipher_spec records taken (RFC 8446 D.4). A peer sends one; rustls, which refuses a third
/// without an alert, takes two.
const COMPATIBILITY_RECORDS_MAX: u32 = 2;

pub(super) struct Handshake {
    party: Party,
    /// Bytes received that rustls has not used up: the beginning of a message that spans records.
    input: Vec<u8>,
    received_bytes: usize,
    received_records: u32,
    compatibility_records: u32,
    server_name: Option<Box<str>>,
    alpn_required: bool,
    pub(super) key_update_records: u64,
}

enum Party {
    /// A server whose client's ClientHello is not whole yet.
    Waiting(ServerSettings),
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What is left of rustls after the handshake: it derives the next traffic secrets, and a client's takes tickets.
pub(super) enum Kernel {
    Server(Box<KernelConnection<ServerConnectionData>>),
    Client(Box<KernelConnection<ClientConnectionData>>),
}

pub(super) struct Complete {
    pub(super) secrets: ExtractedSecrets,
    pub(super) kernel: Kernel,
    pub(super) established: Established,
    /// The handshake is in order, but this side does not want its outcome.
    pub(super) refusal: Option<TlsError>,
}

enum Step {
    /// Ask again.
    Again,
    /// It waits for the peer.
    Blocked,
    /// It could carry application data.
    Ready,
}

impl Handshake {
    pub(super) fn server(settings: &ServerSettings) -> Handshake {
        // A server asks for ALPN when it sees the ClientHello.
        Handshake::new(Party::Waiting(settings.clone()), false, settings.inner.key_update_records)
    }

    pub(super) fn client(settings: &ClientSettings, name: &str, out: &mut Vec<u8>) -> Result<Handshake, TlsError> {
        let server_name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::BadServerName)?;
        let connection = UnbufferedClientConnection::new(settings.inner.config.clone(), server_name)
            .map_err(|error| from_rustls(&error))?;
        let mut handshake =
            Handshake::new(Party::Client(connection), settings.inner.alpn_required, settings.inner.key_update_records);
        handshake.drive(out)?; // writes the ClientHello
        Ok(handshake)
    }

    fn new(party: Party, alpn_required: bool, key_update_records: u64) -> Handshake {
        let (received_bytes, received_records, compatibility_records) = (0, 0, 0);
        let (input, server_name) = (Vec::new(), None);
        Handshake {
            party,
            input,
            received_bytes,
            received_records,
            compatibility_records,
            server_name,
            alpn_required,
            key_update_records,
        }
    }

    /// Takes one whole record. True when the handshake is complete and [`Handshake::complete`] is to be called.
    pub(super) fn receive(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<bool, TlsError> {
        match self.take(record) {
            Ok(()) => {}
            Err(error) => {
                self.put_alert(error, out);
                return Err(error);
            }
        }
        let before = out.len();
        let driven = self.look().and_then(|look| if look { self.drive(out) } else { Ok(false) });
        driven.inspect_err(|&error| {
            // rustls writes the alert of what it finds itself, except for a few faults.
            if out.len() == before {
                self.put_alert(error, out);
            }
        })
    }

    /// Whether the peer has sent a record.
    pub(super) fn has_received(&self) -> bool {
        self.received_records > 0
    }

    fn take(&mut self, record: &[u8]) -> Result<(), TlsError> {
        let [content, _, _, high, low, ..] = *record else { return Err(TlsError::Misuse("not a whole record")) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if record.len() != RECORD_HEADER_BYTES + length {
            return Err(TlsError::Misuse("not a whole record"));
        }
        if !self.has_keys() {
            self.before_keys(content, &record[RECORD_HEADER_BYTES..])?;
        }
        if length > PLAINTEXT_BYTES_MAX && content != ContentType::ApplicationData.code() {
            return Err(TlsError::RecordOverflow); // RFC 8446 5.1
        }
        self.compatibility_records += u32::from(content == ContentType::ChangeCipherSpec.code());
        if self.compatibility_records > COMPATIBILITY_RECORDS_MAX {
            return Err(TlsError::Flood("too many change_cipher_spec records"));
        }
        self.received_bytes += record.len();
        self.received_records += 1;
        if self.received_bytes > HANDSHAKE_BYTES_MAX || self.received_records > HANDSHAKE_RECORDS_MAX {
            return Err(TlsError::Flood("handshake too long"));
        }
        self.input.extend_from_slice(record);
        Ok(())
    }

    /// Refuses what rustls would take, or answer, before there are keys.
    fn before_keys(&self, content: u8, payload: &[u8]) -> Result<(), TlsError> {
        match (ContentType::from_code(content), payload) {
            (Some(ContentType::ChangeCipherSpec), _) if matches!(self.party, Party::Waiting(_)) => {
                Err(TlsError::Unexpected("change_cipher_spec before ClientHello")) // RFC 8446 5
            }
            (Some(ContentType::Alert), [_, 0]) => Err(TlsError::ClosedInHandshake),
            (Some(ContentType::Alert), &[_, code]) => Err(TlsError::PeerAlert(code)), // RFC 8446 6: whatever its level
            _ => Ok(()),
        }
    }

    /// Whether rustls has chosen a cipher suite, after which it protects what it sends.
    fn has_keys(&self) -> bool {
        self.common().is_some_and(|common| common.negotiated_cipher_suite().is_some())
    }

    /// Chooses the settings once the ClientHello is whole. True when there is a connection to drive.
    fn look(&mut self) -> Result<bool, TlsError> {
        let Party::Waiting(settings) = &self.party else { return Ok(true) };
        let hello = match hello::peek(&self.input) {
            Peek::Incomplete => return Ok(false),
            Peek::Whole(hello) => Some(hello),
            Peek::Unreadable => None, // rustls finds what is wrong
        };
        let chacha_first = hello.as_ref().is_some_and(|hello| hello.chacha_first);
        if let Some(hello) = hello {
            if let Some(refusal) = hello.refusal(!settings.inner.tunnels) {
                return Err(refusal);
            }
            self.server_name = hello.server_name;
        }
        let config = if chacha_first { &settings.inner.chacha_first } else { &settings.inner.aes_first };
        let connection = UnbufferedServerConnection::new(config.clone()).map_err(|error| from_rustls(&error))?;
        self.party = Party::Server(connection);
        Ok(true)
    }

    /// Lets rustls work until it waits for the peer. True when the handshake is complete.
    fn drive(&mut self, out: &mut Vec<u8>) -> Result<bool, TlsError> {
        loop {
            let (discard, step) = match &mut self.party {
                Party::Waiting(_) => return Ok(false),
                Party::Server(connection) => step(connection.process_tls_records(&mut self.input), out),
                Party::Client(connection) => step(connection.process_tls_records(&mut self.input), out),
            };
            self.input.drain(..discard);
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Blocked) => return Ok(false),
                Ok(Step::Ready) => return Ok(!self.common().is_some_and(|common| common.is_handshaking())),
                Err(error) => {
                    self.flush_alert(out);
                    return Err(error);
                }
            }
        }
    }

    /// After a failure, the alert that rustls has queued. It is asked only while it has something to send: given the
    /// same input again it would find the same fault again.
    fn flush_alert(&mut self, out: &mut Vec<u8>) {
        while self.common().is_some_and(CommonState::wants_write) {
            let (_, step) = match &mut self.party {
                Party::Waiting(_) => return,
                Party::Server(connection) => step(connection.process_tls_records(&mut []), out),
                Party::Client(connection) => step(connection.process_tls_records(&mut []), out),
            };
            if step.is_err() {
                return;
            }
        }
    }

    /// Writes the alert of a fault that rustls did not find.
    pub(super) fn put_alert(&mut self, error: TlsError, out: &mut Vec<u8>) {
        let Some(alert) = error.alert() else { return };
        if !self.has_keys() {
            put_plain(ContentType::Alert, &[2, alert.code()], out);
            return;
        }
        // Under handshake keys only rustls can write one, and offers no way to choose it. Handed a record with such a
        // fault, it does (for a length that is too large, decode_error instead of record_overflow).
        let faulty: &[u8] = match alert {
            Alert::RecordOverflow => &[23, 3, 3, 0xff, 0xff],
            Alert::UnexpectedMessage => &[20, 3, 3, 0, 1, 0],
            _ => return, // no other is found here once there are keys
        };
        self.input.extend_from_slice(faulty);
        let _ = self.drive(out);
    }

    fn common(&self) -> Option<&CommonState> {
        match &self.party {
            Party::Waiting(_) => None,
            Party::Server(connection) => Some(connection),
            Party::Client(connection) => Some(connection),
        }
    }

    /// Takes the connection out of rustls.
    pub(super) fn complete(self) -> Result<Complete, TlsError> {
        let Some(common) = self.common() else { return Err(TlsError::Misuse("handshake not begun")) };
        let established = established(common, self.server_name.clone())?;
        let refusal = if !self.input.is_empty() {
            Some(TlsError::Unexpected("handshake message spans a change of keys")) // RFC 8446 5.1
        } else if self.alpn_required && established.alpn.is_none() {
            Some(TlsError::NoApplicationProtocol)
        } else {
            None
        };
        let fail = |error: rustls::Error| from_rustls(&error);
        let (secrets, kernel) = match self.party {
            Party::Waiting(_) => return Err(TlsError::Misuse("handshake not begun")),
            Party::Server(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(fail)?;
                (secrets, Kernel::Server(Box::new(kernel)))
            }
            Party::Client(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(fail)?;
                (secrets, Kernel::Client(Box::new(kernel)))
            }
        };
        Ok(Complete { secrets, kernel, established, refusal })
    }
}

fn established(common: &CommonState, server_name: Option<Box<str>>) -> Result<Established, TlsError> {
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
        retried: common.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest),
        suite,
        peer_certificate_sha256: common.peer_certificates().and_then(|chain| chain.first()).map(|leaf| digest(leaf)),
        alpn: common.alpn_protocol().map(Box::from),
        server_name,
    })
}

/// Carries out one step of rustls: how many bytes of input are used up, and what comes next.
fn step<Data>(status: UnbufferedStatus<'_, '_, Data>, out: &mut Vec<u8>) -> (usize, Result<Step, TlsError>) {
    let UnbufferedStatus { discard, state } = status;
    let step = match state {
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
    };
    (discard, step)
}
