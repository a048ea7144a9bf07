//! TLS 1.3 as a session that is handed records and answers with records.
//!
//! Owns, per connection: the handshake while it lasts (driven by rustls), then the record layer. Never touches a socket
//! or a file, and never keeps application data: records are opened and sealed in the caller's buffers. rustls draws
//! randomness and reads the wall clock (for certificates and tickets) by itself; nothing else here does.
//! Invariant: no type of rustls leaves this module.
//!
//! ```text
//! socket -> cut (where does the record end?) -> Session::receive -> Received::Data
//! Vec<u8> <- RECORD_HEADER_BYTES of place, plaintext, Session::seal
//! ```

mod cut;
mod derive;
mod desk;
mod digest;
mod error;
#[cfg(test)]
mod fixture;
mod handshake;
mod hello;
mod keepsake;
mod mint;
mod reader;
mod record;
mod schedule;
mod settings;
mod ticket;
mod traffic;

pub use cut::{Cut, cut};
pub use desk::{IssuedTicket, TICKET_ID_BYTES, TICKET_VALUE_BYTES_MAX};
pub use error::{Alert, CertificateFault, Fault, TlsError};
pub use keepsake::ClientTicket;
pub use record::{
    KEY_UPDATE_RECORDS, PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RECORD_TRAILER_BYTES, record_bytes,
};
pub use settings::{
    ALPN_HTTP1, ALPN_MMTP, ClientAuth, ClientOptions, ClientSettings, Identity, Names, Roots, ServerOptions,
    ServerSettings, SettingsError,
};

use handshake::{ClientHandshake, EARLY_RECORDS_MAX, Handshake, Progress, ServerHandshake};
use settings::EARLY_BYTES_MAX;
use traffic::Traffic;

use crate::base::wire::Protocol;

/// Most bytes that follow a ClientHello before it is answered: the early data that a ticket allows unless set otherwise,
/// in as many records as a handshake may bring, and the ChangeCipherSpec of a client that is wary of middleboxes.
pub const EARLY_FLIGHT_BYTES_MAX: usize = EARLY_BYTES_MAX as usize
    + EARLY_RECORDS_MAX as usize * (RECORD_HEADER_BYTES + RECORD_TRAILER_BYTES)
    + RECORD_HEADER_BYTES
    + 1;

/// One TLS connection, either side.
pub struct Session {
    state: State,
    /// Some only between [`Received::Established`] and [`Session::issued`].
    issued: Option<Box<[IssuedTicket]>>,
}

/// Handshaking -> Established -> Failed; Handshaking -> Failed.
enum State {
    Handshaking(Handshake),
    Established(Traffic),
    /// After an error; nothing more is taken or given.
    Failed,
}

/// What a record brought.
#[derive(Debug)]
pub enum Received<'a> {
    /// Nothing for the application: handshake, key update, ticket, empty record.
    Nothing,
    /// On a server: the ClientHello is whole. [`Session::hello`] says what it asks for, and [`Session::proceed`] must come
    /// before the next record.
    Hello,
    /// On a server, from [`Session::proceed`] only: early data is accepted. Data may come and be sealed from now on, and
    /// what comes may be a replay until [`Received::Established`] follows.
    Early(Box<Established>),
    /// The handshake is complete, and application data may be sealed.
    Established(Box<Established>),
    /// Application data, never empty. Early data before [`Received::Established`].
    Data(&'a [u8]),
    /// The peer will send no more. This side still may.
    CloseNotify,
}

/// What a client asks for, in its ClientHello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello<'a> {
    /// The name it wants to reach (SNI), as it was written.
    pub server_name: Option<&'a str>,
    /// The first ticket it shows, if its length is that of ours.
    pub ticket: Option<[u8; TICKET_ID_BYTES]>,
    /// [`ServerSettings::realm`] of the settings that this session began with, and finishes with.
    pub realm: u64,
}

/// What became of early data (RFC 8446 section 2.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Early {
    /// There was none.
    #[default]
    NotOffered,
    /// It was skipped: the server's application saw nothing of it.
    Refused,
    /// It was taken.
    Accepted,
}

/// What the handshake led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Established {
    /// What the connection speaks.
    pub protocol: Protocol,
    /// Whether a ticket spared the full handshake.
    pub resumed: bool,
    /// Whether a HelloRetryRequest cost a round trip more.
    pub retried: bool,
    /// What became of early data.
    pub early: Early,
    /// The cipher suite.
    pub suite: Suite,
    /// SHA-256 of the certificate the peer showed, in DER. On a server: none unless client certificates are asked
    /// for.
    pub peer_certificate_sha256: Option<[u8; 32]>,
    /// The application protocol agreed on, as in ALPN.
    pub alpn: Option<Box<[u8]>>,
    /// On a server, the name the client asked for (SNI).
    pub server_name: Option<Box<str>>,
}

/// A cipher suite of TLS 1.3 (RFC 8446 appendix B.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    /// TLS_AES_128_GCM_SHA256.
    Aes128Gcm,
    /// TLS_AES_256_GCM_SHA384.
    Aes256Gcm,
    /// TLS_CHACHA20_POLY1305_SHA256.
    Chacha20Poly1305,
}

impl Suite {
    const ALL: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Chacha20Poly1305];

    /// Length of its hash.
    const fn hash_bytes(self) -> usize {
        match self {
            Suite::Aes128Gcm | Suite::Chacha20Poly1305 => 32,
            Suite::Aes256Gcm => 48,
        }
    }

    const fn from_code(code: u16) -> Option<Suite> {
        match code {
            0x1301 => Some(Suite::Aes128Gcm),
            0x1302 => Some(Suite::Aes256Gcm),
            0x1303 => Some(Suite::Chacha20Poly1305),
            _ => None,
        }
    }
}

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self.state {
            State::Handshaking(_) => "Session::Handshaking",
            State::Established(_) => "Session::Established",
            State::Failed => "Session::Failed",
        })
    }
}

impl Session {
    /// A session for a connection that was accepted. It waits for the ClientHello.
    #[must_use]
    pub fn server(settings: &ServerSettings) -> Session {
        Session::new(Handshake::Server(Box::new(ServerHandshake::new(settings))))
    }

    /// A session for a connection that was dialled, whose server must prove to be `server_name` (a DNS name or an
    /// address). Appends the ClientHello to `out`.
    ///
    /// With a ticket that was got for that name, under the same settings, the full handshake may be spared; another one
    /// is let go of. Whatever becomes of it, a ticket is used up.
    ///
    /// # Errors
    /// [`TlsError::BadServerName`], and [`TlsError::Internal`] when the system gives no randomness.
    pub fn client(
        settings: &ClientSettings,
        server_name: &str,
        ticket: Option<ClientTicket>,
        out: &mut Vec<u8>,
    ) -> Result<Session, TlsError> {
        Ok(Session::new(Handshake::Client(Box::new(ClientHandshake::new(settings, server_name, ticket, out)?))))
    }

    /// On a client: bytes of early data that may be sealed now. Zero unless a ticket was offered that allows it, and
    /// from the server's first record on.
    #[must_use]
    pub fn early_room(&self) -> usize {
        match &self.state {
            State::Handshaking(Handshake::Client(handshake)) => handshake.early_room(),
            State::Handshaking(Handshake::Server(_)) | State::Established(_) | State::Failed => 0,
        }
    }

    /// On a client whose settings say so: the tickets that came since the last call. To be asked after any
    /// [`Session::receive`]; the newest few are kept until then.
    pub fn client_tickets(&mut self) -> Vec<ClientTicket> {
        match &mut self.state {
            State::Established(traffic) => traffic.taken_tickets(),
            State::Handshaking(_) | State::Failed => Vec::new(),
        }
    }

    fn new(handshake: Handshake) -> Session {
        Session { state: State::Handshaking(handshake), issued: None }
    }

    /// Takes exactly one whole record (see [`record_bytes`]), header included, and opens it in place. Appends to `out`
    /// what must be sent back: handshake, answer to a KeyUpdate, alert. Never call it between the beginning of a record
    /// in `out` and its [`Session::seal`].
    ///
    /// # Errors
    /// The connection is over. The alert, if one is due, has been appended to `out`.
    pub fn receive<'a>(&mut self, record: &'a mut [u8], out: &mut Vec<u8>) -> Result<Received<'a>, TlsError> {
        match &mut self.state {
            State::Established(traffic) => match traffic.receive(record, out) {
                Ok(received) => Ok(received),
                Err(error) => {
                    self.fail(error, out);
                    Err(error)
                }
            },
            State::Handshaking(handshake) => match handshake.receive(record, out) {
                Ok(Progress::Nothing) => Ok(Received::Nothing),
                Ok(Progress::Hello) => Ok(Received::Hello),
                Ok(Progress::Data(bytes)) => Ok(Received::Data(&record[..bytes])),
                Ok(Progress::Complete) => {
                    self.establish(out).map(|established| Received::Established(Box::new(established)))
                }
                Err(error) => {
                    self.state = State::Failed;
                    Err(error)
                }
            },
            State::Failed => Err(TlsError::Misuse("session has failed")),
        }
    }

    /// What the client asks for; `Some` between [`Received::Hello`] and [`Session::proceed`].
    #[must_use]
    pub fn hello(&self) -> Option<Hello<'_>> {
        let State::Handshaking(Handshake::Server(handshake)) = &self.state else { return None };
        handshake.hello().map(|hello| Hello {
            server_name: hello.server_name.as_deref(),
            ticket: hello.ticket,
            realm: handshake.realm(),
        })
    }

    /// Goes on after [`Received::Hello`]. `ticket`: the value stored for [`Hello::ticket`] when it was issued, if one was
    /// found; it must have been taken from its store, so that it never serves again. With it goes early data, where the
    /// settings allow it. Gives [`Received::Early`] when it was accepted, [`Received::Nothing`] otherwise.
    ///
    /// # Errors
    /// As [`Session::receive`].
    pub fn proceed(&mut self, ticket: Option<&[u8]>, out: &mut Vec<u8>) -> Result<Received<'static>, TlsError> {
        let State::Handshaking(Handshake::Server(handshake)) = &mut self.state else {
            return Err(TlsError::Misuse("nothing waits for Session::proceed"));
        };
        let opened = handshake.proceed(ticket, out).and_then(|()| match handshake.early() {
            Early::Accepted => handshake.established().map(|opened| Received::Early(Box::new(opened))),
            Early::NotOffered | Early::Refused => Ok(Received::Nothing),
        });
        opened.inspect_err(|_| self.state = State::Failed)
    }

    /// The tickets that the handshake issued, to be stored. To be called right after [`Received::Established`]; later it
    /// gives none.
    pub fn issued(&mut self) -> Vec<IssuedTicket> {
        self.issued.take().unwrap_or_default().into_vec()
    }

    /// Lets go of what an idle connection does not need. The next use gets it back.
    pub fn rest(&mut self) {
        if let State::Established(traffic) = &mut self.state {
            traffic.rest();
        }
    }

    fn establish(&mut self, out: &mut Vec<u8>) -> Result<Established, TlsError> {
        let State::Handshaking(handshake) = core::mem::replace(&mut self.state, State::Failed) else {
            return Err(TlsError::Misuse("session is not handshaking"));
        };
        let (established, mut complete) = handshake.complete()?;
        let (refusal, issued) = (complete.refusal, core::mem::take(&mut complete.issued));
        self.state = State::Established(Traffic::new(complete));
        match refusal {
            None => {
                self.issued = (!issued.is_empty()).then(|| issued.into_boxed_slice());
                Ok(established)
            }
            Some(refusal) => {
                self.fail(refusal, out);
                Err(refusal)
            }
        }
    }

    /// Ends the session for `error`: appends its alert to `out`, if one is due and can be sent. For faults that the
    /// caller finds, such as those of [`record_bytes`]; those of [`Session::receive`] have been through here.
    pub fn fail(&mut self, error: TlsError, out: &mut Vec<u8>) {
        let error = match error {
            // After a first record the peer has shown that it speaks TLS: what follows is a bad record of its own.
            TlsError::PlainHttp | TlsError::NotTls if self.has_received() => TlsError::Unexpected("not a record"),
            other => other,
        };
        match (core::mem::replace(&mut self.state, State::Failed), error.alert()) {
            (State::Handshaking(mut handshake), Some(_)) => handshake.put_alert(error, out),
            (State::Established(mut traffic), Some(alert)) => traffic.put_alert(alert, out),
            (State::Handshaking(_) | State::Established(_), None) | (State::Failed, _) => {}
        }
    }

    fn has_received(&self) -> bool {
        match &self.state {
            State::Handshaking(handshake) => handshake.has_received(),
            State::Established(_) | State::Failed => true,
        }
    }

    /// Whether the handshake is complete and the session has not failed.
    #[must_use]
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Established(_))
    }

    /// Completes a record in place. Before: the caller appended [`RECORD_HEADER_BYTES`] of place at `out[start..]`, and
    /// at most [`PLAINTEXT_BYTES_MAX`] bytes of plaintext behind it, which ends `out`. Appends
    /// [`RECORD_TRAILER_BYTES`].
    ///
    /// # Errors
    /// [`TlsError::Misuse`] when that is not so, before the handshake is complete (or, on a server, early data accepted)
    /// and after close_notify, and
    /// [`TlsError::KeyExhausted`] when [`Session::key_update_due`] was ignored for too long. `out` is then unchanged.
    pub fn seal(&mut self, out: &mut Vec<u8>, start: usize) -> Result<(), TlsError> {
        match &mut self.state {
            State::Established(traffic) => traffic.seal(out, start),
            State::Handshaking(Handshake::Server(handshake)) => handshake.seal(out, start),
            State::Handshaking(Handshake::Client(handshake)) => handshake.seal(out, start),
            State::Failed => Err(TlsError::Misuse("session has failed")),
        }
    }

    /// Whether a key has been used for long enough that [`Session::put_key_update`] should follow, between records.
    #[must_use]
    pub fn key_update_due(&self) -> bool {
        match &self.state {
            State::Established(traffic) => traffic.key_update_due(),
            State::Handshaking(_) | State::Failed => false,
        }
    }

    /// Appends a KeyUpdate to `out` and seals with the next key from then on. Asks the peer for the same when its key
    /// has been used for long (RFC 8446 4.6.3).
    ///
    /// # Errors
    /// [`TlsError::Misuse`] before the handshake is complete and after close_notify.
    pub fn put_key_update(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        match &mut self.state {
            State::Established(traffic) => traffic.put_key_update(out),
            State::Handshaking(_) => Err(TlsError::Misuse("key update before the handshake is complete")),
            State::Failed => Err(TlsError::Misuse("session has failed")),
        }
    }

    /// Appends close_notify to `out`: nothing can be sealed after it, while records are still taken. Does nothing when
    /// nothing can be sealed yet, and the second time (RFC 8446 6.1).
    pub fn put_close_notify(&mut self, out: &mut Vec<u8>) {
        match &mut self.state {
            State::Established(traffic) => traffic.put_close_notify(out),
            State::Handshaking(Handshake::Server(handshake)) => handshake.put_close_notify(out),
            State::Handshaking(Handshake::Client(_)) | State::Failed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{Authority, Pair};
    use super::*;

    #[test]
    fn a_session_is_small_and_may_move_between_threads() {
        fn assert_send<T: Send>(_: &T) {}
        assert_send(&Pair::established().server);
        assert!(size_of::<Session>() <= 192, "{} bytes", size_of::<Session>());
        assert!(size_of::<Received<'_>>() <= 24, "{} bytes", size_of::<Received<'_>>());
    }

    #[test]
    fn garbage_is_an_alert_once_the_peer_has_spoken_tls() {
        let settings = ServerSettings::new(&Authority::new().server_options()).unwrap();
        let mut out = Vec::new();
        Session::server(&settings).fail(TlsError::NotTls, &mut out);
        assert!(out.is_empty());
        let mut session = Session::server(&settings);
        assert!(matches!(session.receive(&mut [22, 3, 1, 0, 1, 1], &mut out), Ok(Received::Nothing)));
        session.fail(TlsError::NotTls, &mut out);
        assert_eq!(out, [21, 3, 3, 0, 2, 2, Alert::UnexpectedMessage.code()]);
        let mut pair = Pair::established();
        let mut to_client = Vec::new();
        pair.server.fail(TlsError::PlainHttp, &mut to_client);
        let told = pair.client_reads(&mut to_client).unwrap_err();
        assert_eq!(told, TlsError::PeerAlert(Alert::UnexpectedMessage.code()));
        pair.server.fail(TlsError::RecordOverflow, &mut to_client);
        assert!(to_client.is_empty(), "it has failed before");
    }
}
