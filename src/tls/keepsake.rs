//! Tickets that a client keeps: taken out of rustls, carried anywhere as bytes, and brought back in.
//!
//! rustls gives a client its tickets as values that cannot be written down, so an app that starts again would have to
//! shake hands in full. What a ticket consists of is known, however: the NewSessionTicket message, which passes through
//! the record layer of this module, and a pre-shared key, which rustls derives from the session's resumption secret
//! (RFC 8446 4.6.1). rustls's public points of extension are enough to carry both:
//!
//! - **Out.** The suites used here derive keys with [`Noting`], which is aws-lc-rs's HKDF and, while a ticket is being
//!   taken in, notes what it derives for the label `resumption`: the key.
//! - **In.** rustls makes its ticket values in one place only: when a connection takes in a NewSessionTicket. So a
//!   connection is made, with a server in memory that proves nothing, has no key and sees nothing of the ticket; it is
//!   handed the message that was kept, [`Noting`] answers with the key that was kept, and the clock says when the
//!   ticket came.
//!
//! rustls ties a ticket to the verifier of its settings. That connection therefore uses the same verifier, which is
//! [`Verifier`]: the usual one, except on this thread and during that exchange, when it takes whoever is there.
//!
//! Owns the *desk*: what rustls may take and put on this thread while one connection is driven. Never keeps anything
//! between two calls. Invariant: without a desk, a verifier verifies, keys are derived as ever and no ticket is found.

use core::cell::Cell;
use core::fmt;
use core::time::Duration;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConnectionData, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
    UnbufferedClientConnection, WebPkiServerVerifier,
};
use rustls::crypto::aws_lc_rs::{self as provider, cipher_suite};
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::crypto::{CryptoProvider, hmac};
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConnection};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::unbuffered::UnbufferedStatus;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, NamedGroup, ServerConfig, SignatureAlgorithm, SignatureScheme,
    SupportedCipherSuite, Tls13CipherSuite,
};

use super::Suite;
use super::desk::clear;
use super::error::{TlsError, from_rustls};
use super::handshake::{Step, step};

/// First byte of a ticket written down.
const FORMAT: u8 = 1;
/// A digest ends a ticket written down: a damaged one would cost a handshake that fails.
const DIGEST_BYTES: usize = 32;
/// Extension of a NewSessionTicket that allows early data (RFC 8446 4.2.10).
const EXTENSION_EARLY_DATA: u16 = 42;
/// Longest time a ticket may be used, whatever its server says (RFC 8446 4.6.1), in seconds.
const LIFETIME_S_MAX: u32 = 7 * 24 * 60 * 60;
/// Most turns the exchange with the server in memory takes; it takes three.
const TURNS_MAX: usize = 8;

// ---- the desk ----

/// What rustls finds, and leaves, while one connection is driven on this thread.
#[derive(Default)]
struct Desk {
    /// The ticket approved for this handshake.
    offered: Option<Tls13ClientSessionValue>,
    /// Tickets that came.
    received: Vec<Tls13ClientSessionValue>,
    /// The clock's answer: set by a ticket that is brought back, noted from one that comes.
    time: Option<UnixTime>,
    key: Key,
    /// Whether the peer is the server in memory.
    is_minting: bool,
}

/// What is to happen to the pre-shared key of a ticket.
#[derive(Default)]
enum Key {
    #[default]
    Derived,
    /// Derived, and noted here.
    Noted(Secret),
    /// Not derived: this one is given.
    Given(Secret),
}

thread_local! {
    /// Set exactly while [`at_desk`] runs.
    static DESK: Cell<Option<Box<Desk>>> = const { Cell::new(None) };
}

/// Takes the desk away again, however its use ends: one left behind would be found by another connection.
struct Clear;

impl Drop for Clear {
    fn drop(&mut self) {
        DESK.take();
    }
}

fn at_desk<R>(desk: Desk, work: impl FnOnce() -> R) -> (R, Desk) {
    DESK.set(Some(Box::new(desk)));
    let clear = Clear;
    let result = work();
    let desk = DESK.take().map_or_else(Desk::default, |desk| *desk);
    drop(clear);
    (result, desk)
}

/// What `use_it` makes of the desk; the default without one.
fn desk<R: Default>(use_it: impl FnOnce(&mut Desk) -> R) -> R {
    let Some(mut desk) = DESK.take() else { return R::default() };
    let result = use_it(&mut desk);
    DESK.set(Some(desk));
    result
}

// ---- what rustls is given ----

/// The store: the desk.
#[derive(Debug)]
struct DeskStore;

impl ClientSessionStore for DeskStore {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        desk(|desk| desk.received.push(value));
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        desk(|desk| desk.offered.take())
    }
}

/// The clock: the system's, unless the desk has an answer.
#[derive(Debug)]
struct DeskClock;

impl TimeProvider for DeskClock {
    fn current_time(&self) -> Option<UnixTime> {
        if let Some(time) = desk(|desk| desk.time) {
            return Some(time);
        }
        let time = DefaultTimeProvider.current_time();
        desk(|desk| {
            if matches!(desk.key, Key::Noted(_)) {
                desk.time = time;
            }
        });
        time
    }
}

/// Verifies servers as rustls does, except the one in memory.
#[derive(Debug)]
struct Verifier(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if desk(|desk| desk.is_minting) {
            return Ok(ServerCertVerified::assertion());
        }
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if desk(|desk| desk.is_minting) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The verifier for settings whose tickets are kept here.
pub(super) fn verifier(usual: Arc<WebPkiServerVerifier>) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Verifier(usual))
}

/// Has rustls look for tickets, and leave them, at the desk.
pub(super) fn attach(config: &mut ClientConfig) {
    config.resumption = rustls::client::Resumption::store(Arc::new(DeskStore));
    config.time_provider = Arc::new(DeskClock);
}

/// HKDF of a suite, which notes or replaces what is derived for a ticket.
struct Noting(&'static dyn Hkdf);

impl Hkdf for Noting {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.0.extract_from_zero_ikm(salt)
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        self.0.extract_from_secret(salt, secret)
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(NotingExpander(self.0.expander_for_okm(okm)))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> hmac::Tag {
        self.0.hmac_sign(key, message)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct NotingExpander(Box<dyn HkdfExpander>);

impl HkdfExpander for NotingExpander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        self.0.expand_slice(info, output)
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        if !is_for_ticket(info) {
            return self.0.expand_block(info);
        }
        let given = desk(|desk| match &desk.key {
            Key::Given(secret) if secret.0.len() == self.hash_len() => Some(OkmBlock::new(&secret.0)),
            Key::Given(_) | Key::Noted(_) | Key::Derived => None,
        });
        let block = given.unwrap_or_else(|| self.0.expand_block(info));
        desk(|desk| {
            if let Key::Noted(secret) = &mut desk.key {
                *secret = Secret(block.as_ref().to_vec());
            }
        });
        block
    }

    fn hash_len(&self) -> usize {
        self.0.hash_len()
    }
}

/// Whether an HkdfLabel (RFC 8446 7.1) is that of a ticket's key: a length of 2 bytes, then the label with its own.
fn is_for_ticket(info: &[&[u8]]) -> bool {
    const LABEL: &[u8] = b"\x10tls13 resumption";
    let label = info.iter().flat_map(|part| part.iter()).skip(2);
    label.take(LABEL.len()).eq(LABEL.iter())
}

/// AES-128, ChaCha20 and AES-256, with [`Noting`] in them. Made once per process: rustls wants them for ever.
static SUITES: LazyLock<[SupportedCipherSuite; 3]> = LazyLock::new(|| {
    [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    ]
    .map(noting)
});

fn noting(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let Some(usual) = suite.tls13() else { return suite };
    let noting = Tls13CipherSuite {
        common: rustls::crypto::CipherSuiteCommon {
            suite: usual.common.suite,
            hash_provider: usual.common.hash_provider,
            confidentiality_limit: usual.common.confidentiality_limit,
        },
        hkdf_provider: Box::leak(Box::new(Noting(usual.hkdf_provider))),
        aead_alg: usual.aead_alg,
        quic: None,
    };
    SupportedCipherSuite::Tls13(Box::leak(Box::new(noting)))
}

/// The same suites, with what is needed to keep tickets.
pub(super) fn suites(usual: &[SupportedCipherSuite]) -> Vec<SupportedCipherSuite> {
    let kept = |suite: &SupportedCipherSuite| SUITES.iter().find(|kept| kept.suite() == suite.suite()).copied();
    usual.iter().filter_map(kept).collect()
}

// ---- tickets ----

fn sha256(bytes: &[u8]) -> aws_lc_rs::digest::Digest {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
}

/// Bytes that are wiped when they are let go.
#[derive(Clone, Default)]
struct Secret(Vec<u8>);

impl Drop for Secret {
    fn drop(&mut self) {
        clear(&mut self.0);
    }
}

/// A ticket that a client was given: works once, for the same server's name, under the same trust.
pub struct ClientTicket {
    /// The value itself, in the process that was given it.
    live: Option<Box<Tls13ClientSessionValue>>,
    stored: Stored,
    offers_early_data: bool,
}

/// What a ticket consists of.
struct Stored {
    suite: Suite,
    received_s: u64,
    /// Digest of the settings it was given under.
    trust: [u8; 32],
    /// SHA-256 of the certificate that the server showed when it proved itself.
    peer: Option<[u8; 32]>,
    name: Box<str>,
    key: Secret,
    /// The NewSessionTicket message without its header.
    body: Vec<u8>,
    lifetime_s: u32,
    early_bytes_max: u32,
}

impl fmt::Debug for ClientTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTicket")
            .field("name", &self.stored.name)
            .field("received_s", &self.stored.received_s)
            .field("lifetime_s", &self.stored.lifetime_s)
            .field("early_bytes_max", &self.stored.early_bytes_max)
            .finish_non_exhaustive()
    }
}

impl ClientTicket {
    /// The server it is for: the name that the server proved to have.
    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.stored.name
    }

    /// When it came, in seconds since 1970, by the system's clock.
    #[must_use]
    pub fn received_s(&self) -> u64 {
        self.stored.received_s
    }

    /// Until when it may be used, in seconds since 1970.
    #[must_use]
    pub fn expires_s(&self) -> u64 {
        self.stored.received_s.saturating_add(u64::from(self.stored.lifetime_s.min(LIFETIME_S_MAX)))
    }

    /// Bytes of early data that the server said it takes; zero when it takes none.
    #[must_use]
    pub fn early_bytes_max(&self) -> u32 {
        self.stored.early_bytes_max
    }

    /// Whether early data is offered with it, as far as settings and server allow. True unless set.
    #[must_use]
    pub fn offering_early_data(mut self, offers_early_data: bool) -> ClientTicket {
        self.offers_early_data = offers_early_data;
        self
    }

    /// Everything needed to use it in another process: **secret**, whoever has it is taken for this client, and can
    /// read what is sent early with it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Stored { suite, received_s, trust, peer, name, key, body, .. } = &self.stored;
        let mut bytes = vec![FORMAT, *suite as u8];
        bytes.extend_from_slice(&received_s.to_be_bytes());
        bytes.extend_from_slice(trust);
        bytes.push(u8::from(peer.is_some()));
        bytes.extend_from_slice(&peer.unwrap_or_default());
        for short in [name.as_bytes(), &key.0] {
            bytes.push(u8::try_from(short.len()).unwrap_or(0)); // names have at most 253 bytes, keys 48
            bytes.extend_from_slice(short);
        }
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(sha256(&bytes).as_ref());
        bytes
    }

    /// From [`ClientTicket::to_bytes`]; `None` when it is nothing of the kind.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<ClientTicket> {
        let (bytes, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
        if sha256(bytes).as_ref() != digest {
            return None;
        }
        let mut reader = Reader(bytes);
        let [FORMAT, suite] = *reader.array::<2>()? else { return None };
        let suite = Suite::ALL.into_iter().find(|known| *known as u8 == suite)?;
        let received_s = u64::from_be_bytes(*reader.array::<8>()?);
        let trust = *reader.array::<32>()?;
        let [has_peer] = *reader.array::<1>()?;
        let peer = Some(*reader.array::<32>()?).filter(|_| has_peer == 1);
        let name = core::str::from_utf8(reader.vector8()?).ok().filter(|name| !name.is_empty())?;
        let key = Secret(reader.vector8()?.to_vec());
        if key.0.len() != suite.hash_bytes() || received_s > u64::from(u32::MAX) {
            return None;
        }
        let body = reader.0.to_vec();
        let stored = Stored::new(suite, received_s, trust, peer, name, key, body)?;
        Some(ClientTicket { live: None, stored, offers_early_data: true })
    }

    /// Whether a handshake with these settings and this name may use it.
    pub(super) fn fits(&self, trust: &[u8; 32], name: &str) -> bool {
        self.stored.trust == *trust && self.stored.name.eq_ignore_ascii_case(name)
    }

    pub(super) fn offers_early_data(&self) -> bool {
        self.offers_early_data
    }

    /// The certificate that the server showed when it proved itself.
    pub(super) fn peer(&self) -> Option<[u8; 32]> {
        self.stored.peer
    }
}

impl Stored {
    /// `None` when the message is malformed.
    fn new(
        suite: Suite,
        received_s: u64,
        trust: [u8; 32],
        peer: Option<[u8; 32]>,
        name: &str,
        key: Secret,
        body: Vec<u8>,
    ) -> Option<Stored> {
        // RFC 8446 4.6.1
        let mut reader = Reader(&body);
        let lifetime_s = u32::from_be_bytes(*reader.array::<4>()?);
        reader.array::<4>()?; // ticket_age_add
        reader.vector8()?; // ticket_nonce
        reader.vector16()?; // ticket
        let mut extensions = Reader(reader.vector16()?);
        let mut early_bytes_max = 0;
        while !extensions.0.is_empty() {
            let kind = u16::from_be_bytes(*extensions.array::<2>()?);
            let content = extensions.vector16()?;
            if kind == EXTENSION_EARLY_DATA {
                early_bytes_max = u32::from_be_bytes(content.try_into().ok()?);
            }
        }
        Some(Stored { suite, received_s, trust, peer, name: name.into(), key, body, lifetime_s, early_bytes_max })
    }
}

/// Takes bytes from the front; `None` when there are too few.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(taken)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let [length] = *self.array::<1>()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_be_bytes(*self.array::<2>()?);
        self.take(usize::from(length))
    }
}

// ---- out of rustls ----

/// To whom and under what the tickets of one connection are given.
#[derive(Clone)]
pub(super) struct Issue {
    pub(super) suite: Suite,
    pub(super) trust: [u8; 32],
    pub(super) peer: Option<[u8; 32]>,
    pub(super) name: Box<str>,
}

/// Tickets kept until they are asked for: the newest.
const TICKETS_WAITING_MAX: usize = 8;

/// What is left of rustls after a client's handshake: it takes tickets.
pub(super) struct TicketTaker {
    connection: KernelConnection<ClientConnectionData>,
    /// Some when tickets are kept for the caller; otherwise rustls keeps them.
    issue: Option<Issue>,
    /// Tickets that came and were not asked for yet.
    waiting: Vec<ClientTicket>,
}

impl TicketTaker {
    pub(super) fn new(connection: KernelConnection<ClientConnectionData>, issue: Option<Issue>) -> TicketTaker {
        TicketTaker { connection, issue, waiting: Vec::new() }
    }

    /// Hands rustls a NewSessionTicket, without its header.
    pub(super) fn take(&mut self, body: &[u8]) -> Result<(), TlsError> {
        let fail = |error: Error| from_rustls(&error);
        let Some(issue) = &self.issue else {
            return self.connection.handle_new_session_ticket(body).map_err(fail);
        };
        let noting = Desk { key: Key::Noted(Secret::default()), ..Desk::default() };
        let (result, mut desk) = at_desk(noting, || self.connection.handle_new_session_ticket(body));
        result.map_err(fail)?;
        let (Some(value), Key::Noted(key)) = (desk.received.pop(), core::mem::take(&mut desk.key)) else {
            return Ok(());
        };
        let received_s = desk.time.map_or(0, |time| time.as_secs());
        let stored = Stored::new(issue.suite, received_s, issue.trust, issue.peer, &issue.name, key, body.to_vec());
        let stored = stored.filter(|stored| stored.lifetime_s > 0); // RFC 8446 4.6.1: zero is for none
        let live = Some(Box::new(value));
        self.waiting.extend(stored.map(|stored| ClientTicket { live, stored, offers_early_data: true }));
        let excess = self.waiting.len().saturating_sub(TICKETS_WAITING_MAX);
        self.waiting.drain(..excess);
        Ok(())
    }

    /// The tickets that came since the last call.
    pub(super) fn taken(&mut self) -> Vec<ClientTicket> {
        core::mem::take(&mut self.waiting)
    }
}

// ---- into rustls ----

/// Makes a connection that offers `ticket`, for `name`.
pub(super) fn connect(
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    ticket: Option<ClientTicket>,
) -> Result<UnbufferedClientConnection, TlsError> {
    let offered = match ticket {
        None => None,
        Some(ClientTicket { live: Some(value), .. }) => Some(*value),
        Some(ClientTicket { live: None, stored, .. }) => Some(restore(config, stored)?),
    };
    let (connection, _) =
        at_desk(Desk { offered, ..Desk::default() }, || UnbufferedClientConnection::new(config.clone(), name));
    connection.map_err(|error| from_rustls(&error))
}

/// Makes of a ticket written down what rustls takes for one.
fn restore(config: &Arc<ClientConfig>, stored: Stored) -> Result<Tls13ClientSessionValue, TlsError> {
    let (kernel, _) = at_desk(Desk { is_minting: true, ..Desk::default() }, || mint(config, stored.suite));
    let mut kernel = kernel?;
    let time = Some(UnixTime::since_unix_epoch(Duration::from_secs(stored.received_s)));
    let restoring = Desk { time, key: Key::Given(stored.key), ..Desk::default() };
    let (result, mut desk) = at_desk(restoring, || kernel.handle_new_session_ticket(&stored.body));
    result.map_err(|error| from_rustls(&error))?;
    desk.received.pop().ok_or(TlsError::Internal("no ticket came of one written down"))
}

/// A connection of this suite with the server in memory.
fn mint(config: &Arc<ClientConfig>, suite: Suite) -> Result<KernelConnection<ClientConnectionData>, TlsError> {
    let fail = |error: Error| from_rustls(&error);
    let nobody = ServerName::try_from("nobody.invalid").map_err(|_| TlsError::BadServerName)?;
    let mut client = UnbufferedClientConnection::new(config.clone(), nobody).map_err(fail)?;
    let mut server = ServerConnection::new(Arc::new(server_in_memory(suite)?)).map_err(fail)?;
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    for _ in 0..TURNS_MAX {
        loop {
            let UnbufferedStatus { discard, state } = client.process_tls_records(&mut to_client);
            let step = step(state, &mut to_server);
            to_client.drain(..discard);
            match step? {
                Step::Again => {}
                Step::Blocked => break,
                Step::Ready if !client.is_handshaking() => {
                    return client.dangerous_into_kernel_connection().map(|(_, kernel)| kernel).map_err(fail);
                }
                Step::Ready => break,
            }
        }
        let mut input = &to_server[..];
        let lost = |_| TlsError::Internal("the exchange in memory failed");
        while !input.is_empty() {
            server.read_tls(&mut input).map_err(lost)?;
            server.process_new_packets().map_err(fail)?;
        }
        to_server.clear();
        while server.wants_write() {
            server.write_tls(&mut to_client).map_err(lost)?;
        }
    }
    Err(TlsError::Internal("the exchange in memory does not end"))
}

fn server_in_memory(suite: Suite) -> Result<ServerConfig, TlsError> {
    let cipher_suites = SUITES.iter().filter(|known| Suite::from_code(known.suite().into()) == Some(suite)).copied();
    let crypto = CryptoProvider { cipher_suites: cipher_suites.collect(), ..provider::default_provider() };
    let mut config = ServerConfig::builder_with_provider(Arc::new(crypto))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| from_rustls(&error))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Nobody));
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Stands for the certificate, the key and the signature of a server that nobody checks.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::new(CertifiedKey::new(vec![CertificateDer::from(vec![0])], Arc::new(Nobody))))
    }
}

impl SigningKey for Nobody {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256).then(|| Box::new(Nobody) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Nobody {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(vec![0])
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::fixture::{Authority, NAME};
    use super::super::{
        ClientOptions, ClientSettings, Early, Established, RECORD_HEADER_BYTES, Received, ServerOptions,
        ServerSettings, Session, TICKET_ID_BYTES, record_bytes,
    };
    use super::*;

    /// A server with its store, and clients of it.
    struct World {
        authority: Authority,
        server: ServerSettings,
        client: ClientSettings,
        store: HashMap<[u8; TICKET_ID_BYTES], Vec<u8>>,
        takes_early_data: bool,
    }

    /// What one connection came to.
    struct Outcome {
        client: Established,
        server: Established,
        tickets: Vec<ClientTicket>,
        early_data: Vec<u8>,
        late_data: Vec<u8>,
    }

    fn client_settings(authority: &Authority, chacha_first: bool) -> ClientSettings {
        let options = authority.client_options();
        let kept = ClientOptions { keeps_tickets: true, early_data: true, chacha_first, ..options };
        ClientSettings::new(&kept).unwrap()
    }

    fn records(bytes: &mut Vec<u8>) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(length) = record_bytes(bytes).unwrap() {
            let rest = bytes.split_off(length);
            whole.push(core::mem::replace(bytes, rest));
        }
        whole
    }

    fn put(session: &mut Session, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let start = out.len();
        out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        out.extend_from_slice(plaintext);
        session.seal(out, start)
    }

    impl World {
        fn new() -> World {
            let authority = Authority::new();
            let options = ServerOptions { early_bytes_max: 16_384, ..authority.server_options() };
            let (server, client) = (ServerSettings::new(&options).unwrap(), client_settings(&authority, false));
            World { authority, server, client, store: HashMap::new(), takes_early_data: true }
        }

        fn connect(&mut self, ticket: Option<ClientTicket>, early: &[u8]) -> Result<Outcome, TlsError> {
            let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
            let mut client = Session::client(&self.client, NAME, ticket, &mut to_server)?;
            for part in early.chunks(client.early_room().max(1)) {
                put(&mut client, part, &mut to_server)?;
            }
            let mut server = Session::server(&self.server);
            let (mut client_said, mut server_said) = (None, None);
            let (mut early_data, mut late_data, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..4 {
                for mut record in records(&mut to_server) {
                    let received = match server.receive(&mut record, &mut to_client)? {
                        Received::Hello => {
                            let id = server.hello().and_then(|hello| hello.ticket);
                            let value = id.and_then(|id| self.store.remove(&id));
                            server.proceed(value.as_deref(), self.takes_early_data, &mut to_client)?
                        }
                        other => other,
                    };
                    match received {
                        Received::Data(bytes) if server_said.is_none() => early_data.extend_from_slice(bytes),
                        Received::Data(bytes) => late_data.extend_from_slice(bytes),
                        Received::Established(established) => server_said = Some(*established),
                        _ => {}
                    }
                    self.store.extend(server.issued().into_iter().map(|ticket| (ticket.id, ticket.value.clone())));
                }
                for mut record in records(&mut to_client) {
                    if let Received::Established(established) = client.receive(&mut record, &mut to_server)? {
                        client_said = Some(*established);
                        put(&mut client, b"late", &mut to_server)?;
                    }
                    tickets.extend(client.client_tickets());
                }
            }
            let (client, server) = (client_said.expect("the client is done"), server_said.expect("so is the server"));
            Ok(Outcome { client, server, tickets, early_data, late_data })
        }

        fn ticket(&mut self) -> ClientTicket {
            self.connect(None, b"").unwrap().tickets.pop().unwrap()
        }
    }

    /// What a ticket is after its process has ended.
    fn written(ticket: &ClientTicket) -> ClientTicket {
        ClientTicket::from_bytes(&ticket.to_bytes()).unwrap()
    }

    #[test]
    fn a_ticket_resumes_once_in_this_process_and_in_another() {
        let mut world = World::new();
        let full = world.connect(None, b"").unwrap();
        assert!(!full.client.resumed && full.tickets.len() == 2);
        for ticket in full.tickets {
            let (twice, again) = (written(&ticket), written(&ticket));
            assert_eq!((ticket.server_name(), ticket.early_bytes_max()), (NAME, 16_384));
            assert!(ticket.expires_s() > ticket.received_s() && ticket.received_s() > 1_700_000_000);
            let resumed = world.connect(Some(twice), b"").unwrap();
            assert!(resumed.client.resumed && resumed.server.resumed);
            assert_eq!(resumed.client.peer_certificate_sha256, full.client.peer_certificate_sha256);
            assert_eq!(resumed.late_data, b"late");
            // Its tickets work as well, in either form.
            let next = resumed.tickets.into_iter().next().unwrap();
            assert!(world.connect(Some(next), b"").unwrap().client.resumed);
            // The server knows that it was used.
            assert!(!world.connect(Some(again), b"").unwrap().client.resumed);
            assert!(!world.connect(Some(ticket), b"").unwrap().client.resumed);
        }
    }

    #[test]
    fn every_suite_is_kept() {
        for (chacha_first, suite) in [(false, Suite::Aes128Gcm), (true, Suite::Chacha20Poly1305)] {
            let mut world = World::new();
            world.client = client_settings(&world.authority, chacha_first);
            let ticket = written(&world.ticket());
            assert_eq!(ticket.stored.suite, suite);
            assert!(world.connect(Some(ticket), b"early").unwrap().client.resumed);
        }
        // No server of ours prefers it: the exchange in memory, alone.
        let config = &World::new().client.inner.config.clone();
        let (kernel, _) =
            at_desk(Desk { is_minting: true, ..Desk::default() }, || mint(config, Suite::Aes256Gcm).unwrap());
        assert_eq!(u16::from(kernel.negotiated_cipher_suite().suite()), 0x1302);
    }

    #[test]
    fn early_data_is_taken_or_refused_and_the_client_knows() {
        let mut world = World::new();
        for is_written in [false, true] {
            for takes_early_data in [true, false] {
                let ticket = world.ticket();
                let ticket = if is_written { written(&ticket) } else { ticket };
                world.takes_early_data = takes_early_data;
                let outcome = world.connect(Some(ticket), b"early").unwrap();
                let (early, seen) =
                    if takes_early_data { (Early::Accepted, &b"early"[..]) } else { (Early::Refused, &b""[..]) };
                assert_eq!((outcome.client.early, outcome.server.early), (early, early));
                assert_eq!((&outcome.early_data[..], &outcome.late_data[..]), (seen, &b"late"[..]));
                assert!(outcome.client.resumed);
            }
        }
    }

    #[test]
    fn early_data_that_a_full_handshake_skips_is_known_as_refused() {
        let mut world = World::new();
        let ticket = world.ticket();
        world.store.clear();
        let outcome = world.connect(Some(ticket), b"early").unwrap();
        assert_eq!((outcome.client.resumed, outcome.client.early), (false, Early::Refused));
        assert_eq!((&outcome.early_data[..], &outcome.late_data[..]), (&b""[..], &b"late"[..]));
    }

    #[test]
    fn early_data_fills_its_room_and_no_more_whether_taken_or_skipped() {
        for is_known in [true, false] {
            let mut world = World::new();
            let ticket = world.ticket();
            if !is_known {
                world.store.clear();
            }
            let mut out = Vec::new();
            let mut client = Session::client(&world.client, NAME, Some(written(&ticket)), &mut out).unwrap();
            let room = client.early_room();
            assert!((16_000..=16_384).contains(&room), "{room}");
            put(&mut client, &vec![1; room], &mut out).unwrap();
            assert_eq!(client.early_room(), 0);
            assert!(matches!(put(&mut client, b"x", &mut out.clone()), Err(TlsError::Misuse(_))));
            let outcome = world.connect(Some(ticket), &vec![1; room]).unwrap();
            assert_eq!(outcome.early_data.len(), if is_known { room } else { 0 });
        }
    }

    #[test]
    fn without_a_ticket_that_allows_it_there_is_no_early_data() {
        let mut world = World::new();
        let ticket = world.ticket().offering_early_data(false);
        let mut out = Vec::new();
        let mut client = Session::client(&world.client, NAME, None, &mut out).unwrap();
        assert_eq!(client.early_room(), 0);
        assert!(matches!(put(&mut client, b"x", &mut out), Err(TlsError::Misuse(_))));
        let outcome = world.connect(Some(ticket), b"").unwrap();
        assert_eq!((outcome.client.resumed, outcome.client.early), (true, Early::NotOffered));
    }

    #[test]
    fn a_ticket_is_offered_to_nobody_but_its_server_under_its_trust() {
        let mut world = World::new();
        let hello = |settings: &ClientSettings, name: &str, ticket: Option<ClientTicket>| {
            let mut out = Vec::new();
            Session::client(settings, name, ticket, &mut out).unwrap();
            out.len()
        };
        let plain = hello(&world.client, NAME, None);
        let ticket = world.ticket();
        let twin = || Some(written(&ticket));
        assert!(hello(&world.client, NAME, twin()) > plain);
        assert!(hello(&client_settings(&world.authority, false), NAME, twin()) > plain, "the same trust, made again");
        assert_eq!(hello(&world.client, "localhosu", twin()), plain);
        assert_eq!(hello(&client_settings(&Authority::new(), false), NAME, twin()), plain);
        let keepless = ClientSettings::new(&world.authority.client_options()).unwrap();
        assert_eq!(hello(&keepless, NAME, twin()), hello(&keepless, NAME, None));
    }

    #[test]
    fn a_server_that_is_not_trusted_is_refused_right_after_a_ticket_was_brought_back() {
        let mut world = World::new();
        let ticket = written(&world.ticket());
        let stranger = ServerSettings::new(&Authority::new().server_options()).unwrap();
        world.server = stranger;
        world.store.clear();
        let refused = world.connect(Some(ticket), b"early").err();
        assert!(matches!(refused, Some(TlsError::Certificate(_))), "{refused:?}");
        assert!(DESK.take().is_none());
    }

    #[test]
    fn the_desk_is_cleared_even_by_a_panic() {
        let fail = || at_desk(Desk { is_minting: true, ..Desk::default() }, || panic!("a bug"));
        let panicked = std::panic::catch_unwind(fail).is_err();
        assert!(panicked && DESK.take().is_none());
    }

    #[test]
    fn what_is_damaged_is_no_ticket() {
        let ticket = World::new().ticket();
        let bytes = ticket.to_bytes();
        assert_eq!(written(&ticket).to_bytes(), bytes);
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert!(ClientTicket::from_bytes(&damaged).is_none(), "byte {index}");
            assert!(ClientTicket::from_bytes(&bytes[..index]).is_none(), "cut at {index}");
        }
        assert!(!format!("{ticket:?}").contains("key"));
    }

    #[test]
    fn a_ticket_past_its_time_is_not_offered() {
        let mut world = World::new();
        let mut ticket = written(&world.ticket());
        ticket.stored.received_s -= u64::from(ticket.stored.lifetime_s) + 1;
        assert!(!world.connect(Some(written(&ticket)), b"").unwrap().client.resumed);
    }

    #[test]
    fn the_label_of_a_tickets_key_is_known_from_all_others() {
        assert!(is_for_ticket(&[&[0, 32], &[16], b"tls13 ", b"resumption", &[1], &[0]]));
        assert!(is_for_ticket(&[b"\0\x20\x10tls13 resumption\x01\0"]));
        for label in [&b"res master"[..], b"key", b"", b"resumptioN"] {
            assert!(!is_for_ticket(&[&[0, 32], &[6 + label.len() as u8], b"tls13 ", label, &[0]]));
        }
    }
}
