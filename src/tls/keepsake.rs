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

/// Hands rustls a NewSessionTicket; the ticket, if it is to be kept.
pub(super) fn receive(
    kernel: &mut KernelConnection<ClientConnectionData>,
    issue: Option<&Issue>,
    body: &[u8],
) -> Result<Option<ClientTicket>, TlsError> {
    let fail = |error: Error| from_rustls(&error);
    let Some(issue) = issue else {
        return kernel.handle_new_session_ticket(body).map(|()| None).map_err(fail);
    };
    let noting = Desk { key: Key::Noted(Secret::default()), ..Desk::default() };
    let (result, mut desk) = at_desk(noting, || kernel.handle_new_session_ticket(body));
    result.map_err(fail)?;
    let (Some(value), Key::Noted(key)) = (desk.received.pop(), core::mem::take(&mut desk.key)) else { return Ok(None) };
    let received_s = desk.time.map_or(0, |time| time.as_secs());
    let stored = Stored::new(issue.suite, received_s, issue.trust, issue.peer, &issue.name, key, body.to_vec());
    let stored = stored.filter(|stored| stored.lifetime_s > 0); // RFC 8446 4.6.1: zero is for none
    Ok(stored.map(|stored| ClientTicket { live: Some(Box::new(value)), stored, offers_early_data: true }))
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
