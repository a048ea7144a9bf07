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
pub(super) use server::{EARLY_RECORDS_MAX, ServerHandshake};

use super::desk::{IssuedTicket, Secret};
use super::digest::sha256;
use super::error::{Alert, TlsError, from_rustls};
use super::mint::TicketTaker;
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

    /// Writes the alert of a fault, unless rustls has written one.
    pub(super) fn put_alert(&mut self, error: TlsError, out: &mut Vec<u8>) {
        match self {
            Handshake::Server(handshake) => handshake.put_alert(error, out),
            Handshake::Client(handshake) => handshake.put_alert(error, out),
        }
    }

    /// Takes the connection out of rustls.
    pub(super) fn complete(self) -> Result<(Established, Complete), TlsError> {
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
    /// Takes one whole record. `has_keys`: the peer's next record may be protected.
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
}

/// Writes an alert as the next record of this side, without rustls, which offers no way to choose one and writes none
/// for some of the faults that it finds. `secret`: what this side seals with by now, if it does, and how many records it
/// has sealed with it. rustls must seal nothing with it afterwards.
fn put_alert(common: Option<&CommonState>, secret: Option<(&Secret, u64)>, alert: Alert, out: &mut Vec<u8>) {
    let Some((secret, sequence)) = secret else {
        return put_plain(ContentType::Alert, &alert.message(), out);
    };
    let Some(suite) = common.and_then(suite) else { return };
    // Should the cipher fail, the peer sees the connection end without the alert.
    let _ = Protection::new(suite, secret.clone(), sequence).put(ContentType::Alert, &alert.message(), out);
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

/// The cipher suite that rustls has chosen, once it has.
fn suite(common: &CommonState) -> Option<Suite> {
    common.negotiated_cipher_suite().and_then(|suite| Suite::from_code(u16::from(suite.suite())))
}

fn established(
    common: &CommonState,
    server_name: Option<Box<str>>,
    early: Early,
    retried: bool,
) -> Result<Established, TlsError> {
    let protocol = if common.alpn_protocol() == Some(ALPN_MMTP) { Protocol::Mmtp } else { Protocol::Opaque };
    let suite = suite(common).ok_or(TlsError::Internal("cipher suite without a record layer"))?;
    Ok(Established {
        protocol,
        resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
        retried: retried || common.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest),
        early,
        suite,
        peer_certificate_sha256: common.peer_certificates().and_then(|chain| chain.first()).map(|leaf| sha256(leaf)),
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

#[cfg(test)]
mod tests {
    use super::super::error::Alert;
    use super::super::fixture::{Authority, NAME};
    use super::super::keepsake::tests::World;
    use super::super::{
        ClientOptions, ClientSettings, ClientTicket, Received, ServerSettings, Session, State, record_bytes,
    };
    use super::*;

    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(length) = record_bytes(bytes).unwrap() {
            let (record, rest) = bytes.split_at(length);
            whole.push(record.to_vec());
            bytes = rest;
        }
        whole
    }

    fn take(session: &mut Session, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        for mut record in records(bytes) {
            if let Received::Hello = session.receive(&mut record, out)? {
                session.proceed(None, out)?;
            }
        }
        Ok(())
    }

    /// What a server says, and what the client is told, when these inner plaintexts come in place of the client's
    /// Finished, and then these bytes as they are.
    fn verdict(
        client: &ClientSettings,
        server: &ServerSettings,
        ticket: Option<ClientTicket>,
        inner: &[&[u8]],
        bytes: &[u8],
    ) -> (Option<TlsError>, Option<TlsError>) {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        let mut client = Session::client(client, NAME, ticket, &mut to_server).unwrap();
        let mut server = Session::server(server);
        take(&mut server, &to_server, &mut to_client).unwrap();
        let flight = records(&to_client);
        take(&mut client, &flight[0], &mut Vec::new()).unwrap();
        let State::Handshaking(Handshake::Client(handshake)) = &client.state else { panic!("it goes on") };
        let mut hostile = handshake.sending_for_test();
        to_server = inner.iter().flat_map(|inner| hostile.seal_inner(inner)).collect();
        to_server.extend_from_slice(bytes);
        let found = take(&mut server, &to_server, &mut to_client).err();
        let told = take(&mut client, &to_client[flight[0].len()..], &mut Vec::new()).err();
        (found, told)
    }

    #[test]
    fn a_fault_that_rustls_has_no_alert_for_gets_one_all_the_same() {
        let authority = Authority::new();
        let options = ClientOptions { keeps_tickets: true, early_data: true, ..authority.client_options() };
        let client = ClientSettings::new(&options).unwrap();
        let server = ServerSettings::new(&authority.server_options()).unwrap();
        let half: &[u8] = &[20, 0, 0, 32, 7, 7, 22];
        let noise = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
        let zeros: &[u8] = &[0; 40];
        let interleaved: &[u8] = &[7, 7, 23];
        for (inner, bytes, alert) in [
            (&[zeros][..], &[][..], Alert::UnexpectedMessage),     // RFC 8446 5.4
            (&[half, interleaved], &[], Alert::UnexpectedMessage), // RFC 8446 5.1
            (&[half], &noise, Alert::BadRecordMac),
        ] {
            let (found, told) = verdict(&client, &server, None, inner, bytes);
            assert_eq!(found.and_then(TlsError::alert), Some(alert), "{found:?}");
            assert_eq!(told, Some(TlsError::PeerAlert(alert.code())));
        }
        // RFC 8446 4.2.10: what is skipped are whole records of early data, before the handshake goes on.
        let ticket = World::with(client.clone(), server.clone()).ticket();
        let (found, told) = verdict(&client, &server, Some(ticket), &[half], &noise);
        assert_eq!((found, told), (Some(TlsError::BadRecordMac), Some(TlsError::PeerAlert(20))));
    }
}
