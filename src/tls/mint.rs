//! Tickets that a client keeps, out of rustls and back in.
//!
//! rustls gives a client its tickets as values that cannot be written down, so an app that starts again would have to
//! shake hands in full. What a ticket consists of is known, however: the NewSessionTicket message, which passes through
//! the record layer of this module, and a pre-shared key, which rustls derives from the session's resumption secret
//! (RFC 8446 4.6.1). rustls's public points of extension are enough to carry both:
//!
//! - **Out.** The suites used here derive keys with [`Noting`], which is the HKDF of [`mod@derive`] and, while a ticket is being
//!   taken in, notes what it derives for the label `resumption`: the key.
//! - **In.** rustls makes its ticket values in one place only: when a connection takes in a NewSessionTicket. So a
//!   connection is made, with a server in memory that proves nothing, has no key and sees nothing of the ticket; it is
//!   handed the message that was kept, [`Noting`] answers with the key that was kept, and the clock says when the
//!   ticket came.
//!
//! rustls ties a ticket to the verifier of its settings. That connection therefore uses the same verifier, which is
//! [`Verifier`]: the usual one, except on this thread and during that exchange, when it takes whoever is there.
//!
//! Owns what is left of rustls after a client's handshake. Invariant: without papers on the desk that say otherwise, a
//! verifier verifies, keys are derived as ever and no ticket is found.

use core::time::Duration;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnectionData, Tls13ClientSessionValue, UnbufferedClientConnection, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs as provider;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::crypto::{CryptoProvider, hmac};
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConnection};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::unbuffered::UnbufferedStatus;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureAlgorithm, SignatureScheme, SupportedCipherSuite,
};

use super::Suite;
use super::derive;
use super::desk::{self, Desk, Papers, Secret};
use super::error::{TlsError, from_rustls};
use super::handshake::{Step, step};
use super::keepsake::{ClientTicket, Stored};

/// Most turns the exchange with the server in memory takes; it takes three.
const TURNS_MAX: usize = 8;

// ---- what rustls is given ----

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
        if desk::touch(|papers| papers.is_minting) {
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
        if desk::touch(|papers| papers.is_minting) {
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
    config.resumption = rustls::client::Resumption::store(Arc::new(Desk));
    config.time_provider = Arc::new(Desk);
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
        let given = desk::touch(|papers| papers.ticket_key.take());
        let given = given.filter(|key| key.as_bytes().len() == self.hash_len());
        let block = given.map_or_else(|| self.0.expand_block(info), |key| OkmBlock::new(key.as_bytes()));
        desk::touch(|papers| papers.ticket_key = Secret::new(block.as_ref()));
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
static SUITES: LazyLock<[SupportedCipherSuite; 3]> = LazyLock::new(|| derive::SUITES.map(noting));

fn noting(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let Some(usual) = suite.tls13() else { return suite };
    derive::with_hashing(usual, usual.common.hash_provider, Box::leak(Box::new(Noting(usual.hkdf_provider))))
}

/// The same suites, with what is needed to keep tickets.
pub(super) fn suites(usual: &[SupportedCipherSuite]) -> Vec<SupportedCipherSuite> {
    derive::counterparts(&*SUITES, usual)
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
        let mut papers = Box::<Papers>::default();
        desk::with(&mut papers, || self.connection.handle_new_session_ticket(body)).map_err(fail)?;
        let (Some(value), Some(key)) = (papers.received.take(), papers.ticket_key.take()) else { return Ok(()) };
        let received_s = papers.now.map_or(0, |now| now.as_secs());
        let stored = Stored::new(issue.suite, received_s, issue.trust, issue.peer, &issue.name, key, body.to_vec());
        let stored = stored.filter(|stored| stored.lifetime_s > 0); // RFC 8446 4.6.1: zero is for none
        let live = Some(value);
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

/// Makes a connection that offers `ticket`, for `name`. Without it, if rustls does not take back what was written down:
/// that costs a full handshake, never a connection.
pub(super) fn connect(
    papers: &mut Box<Papers>,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    ticket: Option<ClientTicket>,
) -> Result<UnbufferedClientConnection, TlsError> {
    papers.offered = match ticket {
        None => None,
        Some(ClientTicket { live: Some(value), .. }) => Some(value),
        Some(ClientTicket { live: None, stored, .. }) => restore(config, stored).ok(),
    };
    let connection = desk::with(papers, || UnbufferedClientConnection::new(config.clone(), name));
    connection.map_err(|error| from_rustls(&error))
}

/// Makes of a ticket written down what rustls takes for one.
fn restore(config: &Arc<ClientConfig>, stored: Stored) -> Result<Box<Tls13ClientSessionValue>, TlsError> {
    let mut papers = Box::new(Papers { is_minting: true, ..Papers::default() });
    let mut kernel = desk::with(&mut papers, || mint(config, stored.suite))?;
    let given_now = Some(UnixTime::since_unix_epoch(Duration::from_secs(stored.received_s)));
    *papers = Papers { given_now, ticket_key: Some(stored.key), ..Papers::default() };
    let taken = desk::with(&mut papers, || kernel.handle_new_session_ticket(&stored.body));
    taken.map_err(|error| from_rustls(&error))?;
    papers.received.take().ok_or(TlsError::Internal("no ticket came of one written down"))
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
    config.cert_compressors = Vec::new(); // there is nothing to compress
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
    use super::super::ServerSettings;
    use super::super::fixture::Authority;
    use super::super::keepsake::tests::{World, client_settings, written};
    use super::*;

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
        let mut papers = Box::new(Papers { is_minting: true, ..Papers::default() });
        let kernel = desk::with(&mut papers, || mint(config, Suite::Aes256Gcm).unwrap());
        assert_eq!(u16::from(kernel.negotiated_cipher_suite().suite()), 0x1302);
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
        assert!(desk::is_clear());
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
