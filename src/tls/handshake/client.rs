//! The client's half of a handshake.
//!
//! Owns rustls's client until the connection leaves it. Invariant: the ClientHello is written when it is made.

use rustls::CommonState;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};

use super::super::desk::{self, Papers};
use super::super::error::{TlsError, from_rustls};
use super::super::keepsake::ClientTicket;
use super::super::mint::{self, Issue, TicketTaker};
use super::super::record::{ContentType, PLAINTEXT_BYTES_MAX, Protection, RECORD_HEADER_BYTES, RECORD_TRAILER_BYTES};
use super::super::settings::{ClientInner, ClientSettings};
use super::super::{Early, Established, handshake};
use super::{Complete, Intake, Progress, Step, leftover, step};

/// What a record of early data costs of the server's limit beside its plaintext. A server that skips early data counts
/// ciphertext (RFC 8446 4.2.10), and some count the header.
const EARLY_RECORD_BYTES: usize = RECORD_HEADER_BYTES + RECORD_TRAILER_BYTES;

/// Length of an encrypted EndOfEarlyData message: a header without a body.
const END_OF_EARLY_DATA_BYTES: u8 = (4 + RECORD_TRAILER_BYTES) as u8;

pub(in crate::tls) struct ClientHandshake {
    pub(super) intake: Intake,
    connection: UnbufferedClientConnection,
    papers: Box<Papers>,
    settings: ClientSettings,
    name: Box<str>,
    /// With a ticket: the certificate that the server showed when it proved itself.
    ticket_peer: Option<[u8; 32]>,
    has_ticket: bool,
    early: Early,
    /// Bytes of the server's limit that early data has left.
    early_left: usize,
}

impl ClientHandshake {
    pub(in crate::tls) fn new(
        settings: &ClientSettings,
        name: &str,
        ticket: Option<ClientTicket>,
        out: &mut Vec<u8>,
    ) -> Result<ClientHandshake, TlsError> {
        let server_name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::BadServerName)?;
        let inner = &settings.inner;
        let ticket = ticket.filter(|ticket| inner.keeps_tickets && ticket.fits(&inner.trust, name));
        let offers_early_data = inner.early_data && ticket.as_ref().is_some_and(ClientTicket::offers_early_data);
        let config = if offers_early_data { &inner.early_config } else { &inner.config };
        let (has_ticket, ticket_peer) = (ticket.is_some(), ticket.as_ref().and_then(ClientTicket::peer));
        let early_left = ticket.as_ref().map_or(0, |ticket| ticket.early_bytes_max() as usize);
        let mut papers = Box::default();
        let connection = mint::connect(&mut papers, config, server_name, ticket)?;
        let mut handshake = ClientHandshake {
            intake: Intake::default(),
            connection,
            papers,
            settings: settings.clone(),
            name: name.into(),
            ticket_peer,
            has_ticket,
            early: Early::NotOffered,
            early_left,
        };
        handshake.greet(out)?;
        Ok(handshake)
    }

    fn inner(&self) -> &ClientInner {
        &self.settings.inner
    }

    /// Writes the ClientHello. rustls is not told that it has been transmitted: it seals early data until then.
    fn greet(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        loop {
            match self.connection.process_tls_records(&mut []).state {
                Ok(ConnectionState::TransmitTlsData(mut transmit)) => {
                    if transmit.may_encrypt_early_data().is_some() {
                        self.early = Early::Refused; // until it turns out to have been taken
                    } else {
                        self.early_left = 0;
                    }
                    return Ok(());
                }
                state => step(state, out)?,
            };
        }
    }

    pub(in crate::tls) fn early_room(&self) -> usize {
        let offered = self.early != Early::NotOffered && self.intake.records == 0;
        if offered { self.early_left.saturating_sub(EARLY_RECORD_BYTES) } else { 0 }
    }

    /// Completes a record of early data in place.
    pub(in crate::tls) fn seal(&mut self, out: &mut Vec<u8>, start: usize) -> Result<(), TlsError> {
        let end = out.len();
        let plaintext = match out.get(start..).and_then(|record| record.get(RECORD_HEADER_BYTES..)) {
            Some(_) if self.early == Early::NotOffered => {
                return Err(TlsError::Misuse("sealed before the handshake is complete"));
            }
            Some(plaintext) if plaintext.len() <= self.early_room().min(PLAINTEXT_BYTES_MAX) => plaintext.to_vec(),
            _ => return Err(TlsError::Misuse("more early data than there is room for")),
        };
        out.resize(end + RECORD_TRAILER_BYTES, 0);
        let sealed = match self.connection.process_tls_records(&mut []).state {
            Ok(ConnectionState::TransmitTlsData(mut transmit)) => transmit
                .may_encrypt_early_data()
                .and_then(|mut early| early.encrypt(&plaintext, &mut out[start..]).ok()),
            _ => None,
        };
        if sealed != Some(plaintext.len() + EARLY_RECORD_BYTES) {
            out.truncate(end);
            return Err(TlsError::Internal("early data was not sealed"));
        }
        self.early_left -= plaintext.len() + EARLY_RECORD_BYTES;
        Ok(())
    }

    fn common(&self) -> &CommonState {
        &self.connection
    }

    pub(super) fn receive(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<Progress, TlsError> {
        if let Err(error) = self.intake.take(record, self.has_keys()) {
            self.put_alert(error, out);
            return Err(error);
        }
        let before = out.len();
        let driven = self.drive(out).inspect_err(|&error| {
            // rustls writes the alert of what it finds itself, except for a few faults.
            if !self.flush(out) {
                self.put_alert(error, out);
            }
        });
        let is_complete = driven?;
        // rustls does not say whether the server took early data, but its answer does: the client's last flight begins
        // with EndOfEarlyData exactly then (RFC 8446 4.5), in a record of its own, shorter than any other it may send.
        const ANSWER: [u8; RECORD_HEADER_BYTES] =
            [ContentType::ApplicationData.code(), 3, 3, 0, END_OF_EARLY_DATA_BYTES];
        if is_complete && self.early != Early::NotOffered && out[before..].starts_with(&ANSWER) {
            self.early = Early::Accepted;
        }
        Ok(if is_complete { Progress::Complete } else { Progress::Nothing })
    }

    /// Lets rustls work until it waits for the peer. True when the handshake is complete.
    fn drive(&mut self, out: &mut Vec<u8>) -> Result<bool, TlsError> {
        let ClientHandshake { papers, connection, intake, .. } = self;
        desk::with(papers, || drive(connection, &mut intake.input, out))
    }

    /// After a failure, what rustls has queued: its alert. False when there is none. It is asked only while it has
    /// something to send: given the same input again it would find the same fault again.
    fn flush(&mut self, out: &mut Vec<u8>) -> bool {
        let connection = &mut self.connection;
        let is_queued = connection.wants_write();
        while connection.wants_write() && step(connection.process_tls_records(&mut []).state, out).is_ok() {}
        is_queued
    }

    /// Whether ServerHello has come.
    fn has_keys(&self) -> bool {
        self.papers.client_handshake.is_some()
    }

    pub(super) fn put_alert(&mut self, error: TlsError, out: &mut Vec<u8>) {
        let Some(alert) = error.alert() else { return };
        if self.has_keys() && self.early != Early::NotOffered {
            return; // whether the server expects it under the key of early data or that of the handshake is not known
        }
        // Nothing is sealed with that secret before the last flight, which ends the handshake.
        let secret = self.papers.client_handshake.as_ref().map(|secret| (secret, 0));
        super::put_alert(Some(self.common()), secret, alert, out);
    }

    pub(super) fn complete(self) -> Result<(Established, Complete), TlsError> {
        let mut established = handshake::established(self.common(), None, self.early, false)?;
        if established.resumed && self.has_ticket {
            established.peer_certificate_sha256 = self.ticket_peer;
        }
        let no_alpn = self.inner().alpn_required && established.alpn.is_none();
        let key_update_records = self.inner().key_update_records;
        let issue = self.inner().keeps_tickets.then(|| Issue {
            suite: established.suite,
            trust: self.inner().trust,
            peer: established.peer_certificate_sha256,
            name: self.name.clone(),
        });
        let refusal = leftover(&self.intake).or(no_alpn.then_some(TlsError::NoApplicationProtocol));
        let (secrets, kernel) =
            self.connection.dangerous_into_kernel_connection().map_err(|error| from_rustls(&error))?;
        let Papers { client_traffic: Some(sending), server_traffic: Some(receiving), .. } = *self.papers else {
            return Err(TlsError::Internal("no traffic secrets"));
        };
        let complete = Complete {
            receiving: Protection::derived(established.suite, receiving, secrets.rx)?,
            sending: Protection::derived(established.suite, sending, secrets.tx)?,
            tickets: Some(Box::new(TicketTaker::new(kernel, issue))),
            issued: Vec::new(),
            sending_closed: false,
            refusal,
            key_update_records,
        };
        Ok((established, complete))
    }
}

#[cfg(test)]
impl ClientHandshake {
    /// What the client seals with after ServerHello.
    pub(super) fn sending_for_test(&self) -> Protection {
        let suite = super::suite(self.common()).unwrap();
        Protection::new(suite, self.papers.client_handshake.clone().unwrap(), 0)
    }
}

/// Asks rustls until it waits for the server. True when the handshake is complete.
fn drive(
    connection: &mut UnbufferedClientConnection,
    input: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<bool, TlsError> {
    loop {
        let UnbufferedStatus { discard, state } = connection.process_tls_records(input);
        let step = step(state, out);
        input.drain(..discard);
        match step? {
            Step::Again => {}
            Step::Blocked => return Ok(false),
            Step::Ready => return Ok(!connection.is_handshaking()),
        }
    }
}
