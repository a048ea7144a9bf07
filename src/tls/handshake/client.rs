//! The client's half of a handshake.
//!
//! Owns rustls's client until the connection leaves it. Invariant: the ClientHello is written when it is made.

use rustls::CommonState;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::UnbufferedStatus;

use super::super::error::{TlsError, from_rustls};
use super::super::settings::ClientSettings;
use super::super::{Early, handshake};
use super::{Complete, Intake, Kernel, Progress, Step, has_keys, leftover, step};

pub(in crate::tls) struct ClientHandshake {
    pub(super) intake: Intake,
    connection: UnbufferedClientConnection,
    alpn_required: bool,
    key_update_records: u64,
}

impl ClientHandshake {
    pub(in crate::tls) fn new(
        settings: &ClientSettings,
        name: &str,
        out: &mut Vec<u8>,
    ) -> Result<ClientHandshake, TlsError> {
        let server_name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::BadServerName)?;
        let connection = UnbufferedClientConnection::new(settings.inner.config.clone(), server_name)
            .map_err(|error| from_rustls(&error))?;
        let mut handshake = ClientHandshake {
            intake: Intake::default(),
            connection,
            alpn_required: settings.inner.alpn_required,
            key_update_records: settings.inner.key_update_records,
        };
        handshake.drive(out)?; // writes the ClientHello
        Ok(handshake)
    }

    fn common(&self) -> &CommonState {
        &self.connection
    }

    pub(super) fn receive(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<Progress, TlsError> {
        if let Err(error) = self.intake.take(record, has_keys(self.common())) {
            self.put_alert(error, out);
            return Err(error);
        }
        let before = out.len();
        let driven = self.drive(out).inspect_err(|&error| {
            // rustls writes the alert of what it finds itself, except for a few faults.
            if out.len() == before {
                self.put_alert(error, out);
            }
        });
        driven.map(|is_complete| if is_complete { Progress::Complete } else { Progress::Nothing })
    }

    /// Lets rustls work until it waits for the peer. True when the handshake is complete.
    fn drive(&mut self, out: &mut Vec<u8>) -> Result<bool, TlsError> {
        loop {
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(&mut self.intake.input);
            let step = step(state, out);
            self.intake.input.drain(..discard);
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Blocked) => return Ok(false),
                Ok(Step::Ready) => return Ok(!self.common().is_handshaking()),
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
        while self.common().wants_write() {
            if step(self.connection.process_tls_records(&mut []).state, out).is_err() {
                return;
            }
        }
    }

    pub(super) fn put_alert(&mut self, error: TlsError, out: &mut Vec<u8>) {
        if let Some(faulty) = Intake::fault_for(error, has_keys(self.common()), out) {
            self.intake.input.extend_from_slice(faulty);
            let _ = self.drive(out);
        }
    }

    pub(super) fn complete(self) -> Result<Complete, TlsError> {
        let established = handshake::established(self.common(), None, Early::NotOffered, false)?;
        let no_alpn = self.alpn_required && established.alpn.is_none();
        let refusal = leftover(&self.intake).or(no_alpn.then_some(TlsError::NoApplicationProtocol));
        let (secrets, kernel) =
            self.connection.dangerous_into_kernel_connection().map_err(|error| from_rustls(&error))?;
        Ok(Complete {
            secrets,
            kernel: Kernel::Client(Box::new(kernel)),
            established,
            issued: Vec::new(),
            sending_closed: false,
            refusal,
            key_update_records: self.key_update_records,
        })
    }
}
