//! The server's half of a handshake: it waits when the ClientHello is whole, for somebody to look the ticket up, and may
//! carry early data before it is over.
//!
//! Owns rustls's server and the papers that lie on its desk. Invariant: rustls never sees more early data, accepted or
//! skipped, than the settings allow, and never sees what is skipped at all.

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{CommonState, HandshakeKind};

use super::super::desk::{self, IssuedTicket, Papers, TICKET_ID_BYTES};
use super::super::error::{Alert, TlsError, from_rustls};
use super::super::hello::{self, Gathered, Hello};
use super::super::record::{ContentType, PLAINTEXT_BYTES_MAX, Protection, RECORD_HEADER_BYTES, RECORD_TRAILER_BYTES};
use super::super::settings::ServerSettings;
use super::super::ticket::TicketFacts;
use super::super::{Early, Established, handshake};
use super::{Complete, Intake, Progress, Step, leftover, outline, step};

/// Records of early data that one handshake may bring, taken or skipped. Each costs a pass of the cipher at least.
pub(in crate::tls) const EARLY_RECORDS_MAX: u32 = 512;
/// Early data that is skipped where none is allowed: a client may hold a ticket from when it was (RFC 8446 4.2.10).
const SKIPPED_BYTES_MIN: usize = 1 << 14;

pub(in crate::tls) struct ServerHandshake {
    settings: ServerSettings,
    pub(super) intake: Intake,
    stage: Stage,
    papers: Box<Papers>,
    hello: Hello,
    early: Early,
    skip: Skip,
    early_records: u32,
    skipped_bytes_left: usize,
    retried: bool,
    /// Records of half-RTT data that rustls has sealed.
    sealed_records: u64,
    /// close_notify, or an alert, was put. rustls knows nothing of it.
    sending_closed: bool,
}

enum Stage {
    /// The ClientHello is not whole yet.
    Gathering(hello::Gatherer),
    /// It is, and [`ServerHandshake::proceed`] is waited for.
    Held,
    /// rustls has it. Boxed: most of a handshake's memory, which one that waits does not need.
    Driven(Box<UnbufferedServerConnection>),
}

/// Early data that was refused is thrown away (RFC 8446 4.2.10).
enum Skip {
    Nothing,
    /// After a HelloRetryRequest: until the next ClientHello.
    UntilHello,
    /// Until a record opens with the client's handshake key.
    UntilOpened(Box<Protection>),
}

enum Driven {
    Blocked,
    Data(usize),
    Complete,
}

impl ServerHandshake {
    pub(in crate::tls) fn new(settings: &ServerSettings) -> ServerHandshake {
        let skipped_bytes_left = SKIPPED_BYTES_MIN.max(settings.inner.early_bytes_max as usize);
        ServerHandshake {
            settings: settings.clone(),
            intake: Intake::default(),
            stage: Stage::Gathering(hello::Gatherer::default()),
            papers: Box::default(),
            hello: Hello::default(),
            early: Early::NotOffered,
            skip: Skip::Nothing,
            early_records: 0,
            skipped_bytes_left,
            retried: false,
            sealed_records: 0,
            sending_closed: false,
        }
    }

    fn common(&self) -> Option<&CommonState> {
        match &self.stage {
            Stage::Gathering(_) | Stage::Held => None,
            Stage::Driven(connection) => Some(connection),
        }
    }

    /// Whether the flight has been sent, which ends with this side's Finished: what follows is sealed with the
    /// application's secret.
    fn has_keys(&self) -> bool {
        self.papers.server_traffic.is_some()
    }

    pub(in crate::tls) fn realm(&self) -> u64 {
        self.settings.realm()
    }

    /// What the client said, while [`ServerHandshake::proceed`] is waited for.
    pub(in crate::tls) fn hello(&self) -> Option<&Hello> {
        matches!(self.stage, Stage::Held).then_some(&self.hello)
    }

    pub(super) fn receive(&mut self, record: &mut [u8], out: &mut Vec<u8>) -> Result<Progress, TlsError> {
        match self.take(record) {
            Ok(true) => {}
            Ok(false) => return Ok(Progress::Nothing),
            Err(error) => {
                self.put_alert(error, out);
                return Err(error);
            }
        }
        if let Stage::Gathering(gatherer) = &mut self.stage {
            return match gatherer.add(record) {
                Gathered::Incomplete => Ok(Progress::Nothing),
                Gathered::Whole => self.look(out),
                Gathered::TooLong => Err(self.refuse(TlsError::Malformed("ClientHello too long"), out)),
                Gathered::Unreadable => Err(self.refuse_unread(out)),
            };
        }
        match self.drive_checked(record, out)? {
            Driven::Blocked => Ok(Progress::Nothing),
            Driven::Data(bytes) => Ok(Progress::Data(bytes)),
            Driven::Complete => Ok(Progress::Complete),
        }
    }

    /// Takes a record in; false when it is early data to be skipped.
    fn take(&mut self, record: &[u8]) -> Result<bool, TlsError> {
        if matches!(self.stage, Stage::Held) {
            return Err(TlsError::Misuse("record before Session::proceed"));
        }
        let (content, length) = outline(record)?;
        let is_data = content == ContentType::ApplicationData.code();
        if matches!(self.stage, Stage::Gathering(_)) && content == ContentType::ChangeCipherSpec.code() {
            return Err(TlsError::Unexpected("change_cipher_spec before ClientHello")); // RFC 8446 5
        }
        if content == ContentType::Handshake.code() && matches!(self.skip, Skip::UntilHello) {
            self.skip = Skip::Nothing;
        }
        if is_data && self.is_skipped(record) {
            let trailer_bytes = RECORD_TRAILER_BYTES.min(length);
            let left = self.skipped_bytes_left.checked_sub(length - trailer_bytes);
            self.skipped_bytes_left = left.ok_or(TlsError::Flood("too much early data"))?;
            self.count_early()?;
            return Ok(false);
        }
        if is_data && self.early == Early::Accepted {
            self.count_early()?;
            self.intake.input.extend_from_slice(record); // rustls counts the bytes
            return Ok(true);
        }
        self.intake.take(record, self.has_keys())?;
        Ok(true)
    }

    fn count_early(&mut self) -> Result<(), TlsError> {
        self.early_records += 1;
        if self.early_records > EARLY_RECORDS_MAX {
            return Err(TlsError::Flood("too many records of early data"));
        }
        Ok(())
    }

    /// Whether a record of application data is early data that was refused.
    fn is_skipped(&mut self, record: &[u8]) -> bool {
        match &mut self.skip {
            Skip::Nothing => false,
            Skip::UntilHello => true,
            Skip::UntilOpened(protection) => {
                let opens = protection.open(&mut record.to_vec()).is_ok();
                if opens {
                    self.skip = Skip::Nothing;
                }
                !opens
            }
        }
    }

    /// Reads the whole ClientHello and refuses what cannot be served.
    fn look(&mut self, out: &mut Vec<u8>) -> Result<Progress, TlsError> {
        let Some(hello) = hello::read(&self.intake.input) else {
            return Err(self.refuse_unread(out));
        };
        if let Some(refusal) = hello.refusal(!self.settings.inner.tunnels) {
            return Err(self.refuse(refusal, out));
        }
        self.intake.input.shrink_to_fit(); // it may wait for long
        self.early = if hello.offers_early_data { Early::Refused } else { Early::NotOffered };
        self.hello = hello;
        self.stage = Stage::Held;
        Ok(Progress::Hello)
    }

    fn refuse(&mut self, refusal: TlsError, out: &mut Vec<u8>) -> TlsError {
        self.put_alert(refusal, out);
        refusal
    }

    /// Refuses what is no ClientHello, with the alert that rustls finds for it. Should rustls make sense of it, it is
    /// refused all the same: nothing is answered that was not admitted.
    fn refuse_unread(&mut self, out: &mut Vec<u8>) -> TlsError {
        let start = out.len();
        if let Err(error) = self.begin(out) {
            return error;
        }
        out.truncate(start);
        self.sending_closed = true;
        super::put_alert(None, None, Alert::DecodeError, out);
        TlsError::Malformed("ClientHello cannot be parsed")
    }

    /// Hands the ClientHello to rustls, with the ticket's value if there is one. What early data led to is for
    /// [`ServerHandshake::early`] to say.
    pub(in crate::tls) fn proceed(&mut self, value: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if !matches!(self.stage, Stage::Held) {
            return Err(TlsError::Misuse("nothing waits for Session::proceed"));
        }
        let takes_early = self.hello.offers_early_data && self.settings.inner.early_bytes_max > 0;
        let facts = value.filter(|_| takes_early).and_then(TicketFacts::read);
        let approve = |(id, value): ([u8; TICKET_ID_BYTES], &[u8])| IssuedTicket { id, value: value.to_vec() };
        self.papers.approved = self.hello.ticket.zip(value).map(approve);
        self.papers.wants_tickets = self.settings.inner.tickets > 0;
        self.begin(out)?;
        self.settle_early(facts.as_ref())
    }

    /// Finds out what rustls made of the early data that was offered.
    fn settle_early(&mut self, facts: Option<&TicketFacts>) -> Result<(), TlsError> {
        let Some(common) = self.common() else { return Err(TlsError::Internal("handshake not begun")) };
        let (kind, alpn) = (common.handshake_kind(), common.alpn_protocol());
        let suite = common.negotiated_cipher_suite().map(|suite| u16::from(suite.suite()));
        let (now, age) = (self.papers.now, self.hello.ticket_age);
        let takes = |facts: &TicketFacts| now.is_some_and(|now| facts.allows_early_data(now, age, alpn));
        let is_taken = kind == Some(HandshakeKind::Resumed) && facts.is_some_and(takes);
        self.retried = kind == Some(HandshakeKind::FullWithHelloRetryRequest);
        if self.early == Early::NotOffered {
            return Ok(());
        }
        if is_taken {
            self.early = Early::Accepted;
        } else if self.retried {
            self.skip = Skip::UntilHello;
        } else {
            let secret = self.papers.client_handshake.take().ok_or(TlsError::Internal("no handshake secret"))?;
            let suite = suite.and_then(handshake::Suite::from_code).ok_or(TlsError::Internal("no suite"))?;
            self.skip = Skip::UntilOpened(Box::new(Protection::new(suite, secret, 0)));
        }
        Ok(())
    }

    /// What became of early data, so far.
    pub(in crate::tls) fn early(&self) -> Early {
        self.early
    }

    /// What the handshake has led to so far: for a link that opens with early data.
    pub(in crate::tls) fn established(&self) -> Result<Established, TlsError> {
        let Some(common) = self.common() else { return Err(TlsError::Misuse("handshake not begun")) };
        handshake::established(common, self.hello.server_name.clone(), self.early, self.retried)
    }

    /// Makes rustls's connection and lets it have the ClientHello.
    fn begin(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        let config = self.settings.inner.config(self.hello.chacha_first, self.papers.approved.is_some());
        let connection = UnbufferedServerConnection::new(config).map_err(|error| from_rustls(&error))?;
        self.stage = Stage::Driven(Box::new(connection));
        match self.drive_checked(&mut [], out)? {
            Driven::Blocked => Ok(()),
            Driven::Data(_) | Driven::Complete => Err(TlsError::Internal("handshake over at the ClientHello")),
        }
    }

    fn drive_checked(&mut self, record: &mut [u8], out: &mut Vec<u8>) -> Result<Driven, TlsError> {
        let driven = self.drive(record, out);
        driven.inspect_err(|&error| {
            // rustls writes the alert of what it finds itself, except for a few faults.
            if !self.flush(out) {
                self.put_alert(error, out);
            }
        })
    }

    /// Lets rustls work until it waits for the client. Early data is copied to the front of `record`.
    fn drive(&mut self, record: &mut [u8], out: &mut Vec<u8>) -> Result<Driven, TlsError> {
        let ServerHandshake { papers, stage, intake, .. } = self;
        let Stage::Driven(connection) = stage else { return Err(TlsError::Misuse("handshake not begun")) };
        desk::with(papers, || drive(connection, &mut intake.input, record, out))
    }

    /// After a failure, what rustls has queued: its alert. False when there is none. It is asked only while it has
    /// something to send: given the same input again it would find the same fault again.
    fn flush(&mut self, out: &mut Vec<u8>) -> bool {
        let Stage::Driven(connection) = &mut self.stage else { return false };
        if self.sending_closed {
            return false; // what it has sealed comes too late, and under a number that is taken
        }
        let is_queued = connection.wants_write();
        while connection.wants_write() && step(connection.process_tls_records(&mut []).state, out).is_ok() {}
        is_queued
    }

    pub(super) fn put_alert(&mut self, error: TlsError, out: &mut Vec<u8>) {
        if let Some(alert) = error.alert() {
            self.put(alert, out);
        }
    }

    /// Puts an alert, after which nothing more is sent. Puts nothing after an earlier one.
    fn put(&mut self, alert: Alert, out: &mut Vec<u8>) {
        if !core::mem::replace(&mut self.sending_closed, true) {
            let secret = self.papers.server_traffic.as_ref().map(|secret| (secret, self.sealed_records));
            super::put_alert(self.common(), secret, alert, out);
        }
    }

    /// Seals what stands behind a header's place at `out[start..]` as half-RTT data (RFC 8446 2.3), through rustls,
    /// which numbers the records until the handshake is over.
    pub(in crate::tls) fn seal(&mut self, out: &mut Vec<u8>, start: usize) -> Result<(), TlsError> {
        let plaintext_at = start.saturating_add(RECORD_HEADER_BYTES);
        let Some(plaintext) = out.get(plaintext_at..) else {
            return Err(TlsError::Misuse("no place for a record header"));
        };
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            return Err(TlsError::Misuse("more plaintext than a record may hold"));
        }
        if self.early != Early::Accepted {
            return Err(TlsError::Misuse("sealed before the handshake is complete"));
        }
        if self.sending_closed {
            return Err(TlsError::Misuse("sealed after the end"));
        }
        let plaintext = plaintext.to_vec();
        out.resize(out.len() + RECORD_TRAILER_BYTES, 0);
        let written = self.write(|traffic| traffic.encrypt(&plaintext, &mut out[start..]).ok());
        match written {
            Some(written) => out.truncate(start + written),
            None => out.truncate(plaintext_at + plaintext.len()),
        }
        written.map(|_| self.sealed_records += 1).ok_or(TlsError::Internal("TLS library sealed no half-RTT data"))
    }

    /// Says close_notify in half-RTT data. No tickets follow it: rustls, which does not know, seals nothing more.
    pub(in crate::tls) fn put_close_notify(&mut self, out: &mut Vec<u8>) {
        if self.early == Early::Accepted {
            self.papers.wants_tickets = false;
            self.put(Alert::CloseNotify, out);
        }
    }

    /// Does something with rustls's writing side.
    fn write<T>(&mut self, work: impl FnOnce(&mut WriteTraffic<'_>) -> Option<T>) -> Option<T> {
        let Stage::Driven(connection) = &mut self.stage else { return None };
        // rustls counts on finding what it has not used up: a part of the client's Finished may lie there.
        let UnbufferedStatus { discard, state } = connection.process_tls_records(&mut self.intake.input);
        let done = match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => work(&mut traffic),
            _ => None,
        };
        self.intake.input.drain(..discard);
        done
    }

    pub(super) fn complete(self) -> Result<(Established, Complete), TlsError> {
        let established = self.established()?;
        let refusal = leftover(&self.intake);
        let Stage::Driven(connection) = self.stage else { return Err(TlsError::Misuse("handshake not begun")) };
        let (secrets, _) = connection.dangerous_into_kernel_connection().map_err(|error| from_rustls(&error))?;
        let Papers { client_traffic: Some(receiving), server_traffic: Some(sending), issued, .. } = *self.papers else {
            return Err(TlsError::Internal("no traffic secrets"));
        };
        let sent_records = secrets.tx.0 + u64::from(self.sending_closed); // rustls knows nothing of close_notify
        let complete = Complete {
            receiving: Protection::derived(established.suite, receiving, secrets.rx)?,
            sending: Protection::derived(established.suite, sending, (sent_records, secrets.tx.1))?,
            tickets: None,
            issued,
            sending_closed: self.sending_closed,
            refusal,
            key_update_records: self.settings.inner.key_update_records,
        };
        Ok((established, complete))
    }
}

type WriteTraffic<'c> = rustls::unbuffered::WriteTraffic<'c, rustls::server::ServerConnectionData>;

/// Asks rustls until it waits for the client.
fn drive(
    connection: &mut UnbufferedServerConnection,
    input: &mut Vec<u8>,
    record: &mut [u8],
    out: &mut Vec<u8>,
) -> Result<Driven, TlsError> {
    let mut early_bytes = 0;
    loop {
        let UnbufferedStatus { discard, state } = connection.process_tls_records(input);
        let step = match state {
            Ok(ConnectionState::ReadEarlyData(mut data)) => {
                while let Some(Ok(chunk)) = data.next_record() {
                    let end = early_bytes + chunk.payload.len();
                    let place = record.get_mut(early_bytes..end);
                    place.ok_or(TlsError::Internal("early data out of nothing"))?.copy_from_slice(chunk.payload);
                    early_bytes = end;
                }
                Ok(Step::Again)
            }
            other => step(other, out),
        };
        input.drain(..discard);
        match step? {
            Step::Again => {}
            Step::Blocked | Step::Ready if early_bytes > 0 => return Ok(Driven::Data(early_bytes)),
            Step::Blocked => return Ok(Driven::Blocked),
            Step::Ready if connection.is_handshaking() => return Ok(Driven::Blocked),
            Step::Ready => return Ok(Driven::Complete),
        }
    }
}
