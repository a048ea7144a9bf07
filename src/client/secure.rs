//! TLS as the client uses it: [`tls::Session`](crate::tls::Session), fed from a socket and written to one. Owns the
//! bytes between the two; never owns a socket or a clock, and never chooses a ticket.
//!
//! Invariant: no application byte is handed over before the server's certificate and protocol have been accepted.

use std::io::{self, Read, Write};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::base::wire::Protocol;
use crate::tls::{
    Alert, ClientOptions, ClientSettings, ClientTicket, Early, Established, PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES, Received, Roots, Session, SettingsError, TlsError, record_bytes,
};

use super::error::{BuildError, Failure};

/// Bytes read from the socket at once: several records of a warm connection.
const READ_BYTES: usize = 4 * RECORD_BYTES_MAX;

/// Reads the certificates of a PEM text, as DER.
pub(super) fn read_pem(pem: &[u8]) -> Result<Vec<Vec<u8>>, BuildError> {
    let mut roots = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.push(certificate.map_err(|error| BuildError::Pem(error.to_string()))?.to_vec());
    }
    if roots.is_empty() {
        return Err(BuildError::Pem("it holds no certificate".to_owned()));
    }
    Ok(roots)
}

/// Whom to trust and what to offer: made once per client.
#[derive(Clone)]
pub(super) struct Trust(ClientSettings);

impl Trust {
    /// Trusts exactly these certificates in DER: all of `named` must be usable, and of `found` whatever is.
    pub(super) fn new(named: &[Vec<u8>], found: &[Vec<u8>]) -> Result<Trust, BuildError> {
        if named.is_empty() && found.is_empty() {
            return Err(BuildError::NoRoots);
        }
        let roots = Roots::from_named_and_found(named, found).map_err(|error| BuildError::Root(root_error(error)))?;
        let options = ClientOptions {
            keeps_tickets: true,
            early_data: true,
            chacha_first: !has_aes(),
            ..ClientOptions::new(roots)
        };
        ClientSettings::new(&options).map(Trust).map_err(|error| BuildError::Root(error.to_string()))
    }
}

fn root_error(error: SettingsError) -> String {
    match error {
        SettingsError::BadRoots(why) => why,
        other => other.to_string(),
    }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

/// What one read brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrived {
    /// Something, or a reason to look again at once.
    Bytes,
    /// Nothing for now.
    Nothing,
    /// The end of what the server sends.
    End,
}

/// One TLS connection.
pub(super) struct Secure {
    session: Session,
    /// Received and not opened yet, from `opened` on.
    input: Vec<u8>,
    opened: usize,
    /// Sealed and not written yet, from `written` on.
    out: Vec<u8>,
    written: usize,
    /// Set when the handshake is complete.
    established: Option<Box<Established>>,
    /// Whether an error or the goodbye has been put: nothing more is sealed.
    is_over: bool,
}

impl Secure {
    /// A connection that is about to greet `host`, a name or an IP address, with a ticket if there is one.
    pub(super) fn new(trust: &Trust, host: &str, ticket: Option<ClientTicket>) -> Result<Secure, Failure> {
        let mut out = Vec::new();
        let session = Session::client(&trust.0, host, ticket, &mut out).map_err(|error| match error {
            TlsError::BadServerName => Failure::Certificate(format!("{host} is no name a certificate could have")),
            other => failure(other),
        })?;
        let (input, opened, written, established, is_over) = (Vec::new(), 0, 0, None, false);
        Ok(Secure { session, input, opened, out, written, established, is_over })
    }

    /// Whether application bytes may not flow yet, but for early data.
    pub(super) fn is_handshaking(&self) -> bool {
        self.established.is_none()
    }

    /// After the handshake: whether the server speaks MMTP.
    pub(super) fn speaks_mmtp(&self) -> bool {
        self.established.as_ref().is_some_and(|established| established.protocol == Protocol::Mmtp)
    }

    /// After the handshake: whether it resumed an earlier session.
    pub(super) fn is_resumed(&self) -> bool {
        self.established.as_ref().is_some_and(|established| established.resumed)
    }

    /// After the handshake: what became of early data.
    pub(super) fn early(&self) -> Early {
        self.established.as_ref().map_or(Early::NotOffered, |established| established.early)
    }

    /// Bytes of early data that may still be sealed.
    pub(super) fn early_room(&self) -> usize {
        if self.is_over { 0 } else { self.session.early_room() }
    }

    /// Tickets that came since the last call.
    pub(super) fn tickets(&mut self) -> Vec<ClientTicket> {
        self.session.client_tickets()
    }

    /// Opens the next record that is whole, appending its plaintext, or reads once from the socket. On an error, what is
    /// due to the server (an alert) waits in [`Secure::write_to`].
    pub(super) fn read_from(&mut self, socket: &mut impl Read, plaintext: &mut Vec<u8>) -> Result<Arrived, Failure> {
        match self.open_next(plaintext) {
            Ok(Some(arrived)) => return Ok(arrived),
            Ok(None) => {}
            Err(error) => {
                self.is_over = true;
                return Err(failure(error));
            }
        }
        self.input.drain(..self.opened);
        self.opened = 0;
        let start = self.input.len();
        self.input.resize(start + READ_BYTES, 0);
        let read = socket.read(&mut self.input[start..]);
        self.input.truncate(start + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(0) => Ok(Arrived::End),
            Ok(_) => Ok(Arrived::Bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.input.is_empty() {
                    self.input = Vec::new(); // an idle connection keeps no buffer
                }
                Ok(Arrived::Nothing)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Arrived::Bytes),
            Err(error) => Err(Failure::Lost(error.to_string())),
        }
    }

    /// Opens one record. `None` when none is whole.
    fn open_next(&mut self, plaintext: &mut Vec<u8>) -> Result<Option<Arrived>, TlsError> {
        let input = &mut self.input[self.opened..];
        let length = match record_bytes(input) {
            Ok(Some(length)) if length <= input.len() => length,
            Ok(_) => return Ok(None),
            Err(error) => {
                self.session.fail(error, &mut self.out);
                return Err(error);
            }
        };
        self.opened += length;
        Ok(Some(match self.session.receive(&mut input[..length], &mut self.out)? {
            Received::Data(bytes) => {
                plaintext.extend_from_slice(bytes);
                Arrived::Bytes
            }
            Received::Established(established) => {
                self.established = Some(established);
                Arrived::Bytes
            }
            Received::CloseNotify => Arrived::End,
            _ => Arrived::Bytes,
        }))
    }

    /// Takes plaintext to be sent after the handshake.
    pub(super) fn seal(&mut self, plaintext: &[u8]) -> Result<(), Failure> {
        for chunk in plaintext.chunks(PLAINTEXT_BYTES_MAX) {
            self.seal_record(chunk)?;
            if self.session.key_update_due() {
                self.session.put_key_update(&mut self.out).map_err(failure)?;
            }
        }
        Ok(())
    }

    /// Takes plaintext to be sent before the handshake is complete; how many bytes of it.
    pub(super) fn seal_early(&mut self, plaintext: &[u8]) -> Result<usize, Failure> {
        let mut sealed = 0;
        loop {
            let rest = &plaintext[sealed..];
            let count = rest.len().min(self.early_room()).min(PLAINTEXT_BYTES_MAX);
            if count == 0 {
                return Ok(sealed);
            }
            self.seal_record(&rest[..count])?;
            sealed += count;
        }
    }

    fn seal_record(&mut self, plaintext: &[u8]) -> Result<(), Failure> {
        if self.is_over {
            return Ok(()); // it is lost with the connection, as its callers know
        }
        let start = self.out.len();
        self.out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        self.out.extend_from_slice(plaintext);
        self.session.seal(&mut self.out, start).map_err(failure)
    }

    /// Says that nothing more will be sent.
    pub(super) fn put_close_notify(&mut self) {
        self.session.put_close_notify(&mut self.out);
        self.is_over = true;
    }

    /// Sealed bytes that wait for the socket.
    pub(super) fn pending(&self) -> &[u8] {
        &self.out[self.written..]
    }

    /// The first `count` of the pending bytes have been written.
    pub(super) fn wrote(&mut self, count: usize) {
        self.written += count;
        if self.written == self.out.len() {
            self.out.clear();
            self.out.shrink_to(RECORD_BYTES_MAX);
            self.written = 0;
        }
    }

    /// Writes once to the socket. Zero when the socket takes nothing for now.
    pub(super) fn write_to(&mut self, socket: &mut impl Write) -> Result<usize, Failure> {
        loop {
            match socket.write(self.pending()) {
                Ok(bytes) => {
                    self.wrote(bytes);
                    return Ok(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(Failure::Lost(error.to_string())),
            }
        }
    }
}

/// Sorts what went wrong by what a caller can do about it.
fn failure(error: TlsError) -> Failure {
    const NO_APPLICATION_PROTOCOL: u8 = Alert::NoApplicationProtocol.code();
    match error {
        TlsError::Certificate(_) => Failure::Certificate(error.to_string()),
        TlsError::NoApplicationProtocol | TlsError::PeerAlert(NO_APPLICATION_PROTOCOL) => Failure::NotMmtp,
        other => Failure::Tls(other.to_string()),
    }
}
