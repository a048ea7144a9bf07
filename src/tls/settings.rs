//! What listeners and dialers need to know about TLS: built once, shared by every connection, replaced whole.
//!
//! Owns certificates, keys, trusted roots and the resumption secrets of one listener or dialer. Reads no files: PEM and
//! DER come from the caller. Invariant: settings never change; a new certificate means new settings, and connections
//! that began with the old ones finish with them.

use core::fmt;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::compress::CompressionCache;
use rustls::crypto::aws_lc_rs::{self as provider, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite};

use super::derive;
use super::desk::Desk;
use super::digest::sha256;
use super::mint;
use super::record::KEY_UPDATE_RECORDS;

/// ALPN of MMTP/1 (MMTP 2).
pub const ALPN_MMTP: &[u8] = b"mmtp/1";
/// ALPN of HTTP/1.1 (RFC 7301 section 6): taken by listeners that take tunnels.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Tickets given after a full handshake. Two let a client that opens two connections at once come back on both; one that
/// comes back gets one for the one it used.
const TICKETS: usize = 2;
/// Tickets given after a resumption, at most.
const TICKETS_RETURNING: usize = 1;
/// Tickets given to a client that asks for a number (RFC 9149), at most.
const TICKETS_REQUESTED_MAX: usize = 4;
/// Ways to compress a certificate: brotli and zlib.
const COMPRESSIONS: usize = 2;
/// Bytes of early data that a ticket allows, unless set.
pub(super) const EARLY_BYTES_MAX: u32 = 1 << 14;

/// Why settings cannot be built: the operator's mistakes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// No certificate in what should be a chain.
    NoCertificate,
    /// The chain is not PEM, or its first certificate is not one.
    BadCertificate(String),
    /// No private key in what should be one.
    NoKey,
    /// The key cannot be parsed, or is of a kind that is not supported.
    BadKey(String),
    /// The key belongs to another certificate.
    KeyMismatch,
    /// Not a DNS name, nor one with a star for its first label.
    BadName(String),
    /// No usable root certificate.
    BadRoots(String),
    /// The combination is refused by the TLS library.
    Refused(String),
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettingsError::NoCertificate => f.write_str("no certificate found: expected PEM, leaf first"),
            SettingsError::BadCertificate(why) => write!(f, "certificate cannot be read: {why}"),
            SettingsError::NoKey => f.write_str("no private key found: expected PEM (PKCS#8, SEC1 or PKCS#1)"),
            SettingsError::BadKey(why) => write!(f, "private key cannot be used: {why}"),
            SettingsError::KeyMismatch => f.write_str("private key does not belong to the certificate"),
            SettingsError::BadName(name) => write!(f, "{name:?} is neither a DNS name nor a wildcard"),
            SettingsError::BadRoots(why) => write!(f, "trusted roots cannot be used: {why}"),
            SettingsError::Refused(why) => write!(f, "TLS settings refused: {why}"),
        }
    }
}

impl core::error::Error for SettingsError {}

/// A certificate chain with its private key.
#[derive(Clone)]
pub struct Identity {
    /// With its OCSP response, if it has one.
    certified: Arc<CertifiedKey>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("chain_certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

impl Identity {
    /// From PEM: a chain, leaf first, and its key (PKCS#8, SEC1 or PKCS#1).
    ///
    /// # Errors
    /// When either is missing or unusable, or they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Identity, SettingsError> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| SettingsError::BadCertificate(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => SettingsError::NoKey,
            other => SettingsError::BadKey(other.to_string()),
        })?;
        Identity::new(chain, key)
    }

    /// From DER: a chain, leaf first, and its key (PKCS#8, SEC1 or PKCS#1).
    ///
    /// # Errors
    /// When either is missing or unusable, or they do not belong together.
    pub fn from_der(chain: Vec<Vec<u8>>, key: Vec<u8>) -> Result<Identity, SettingsError> {
        let key = PrivateKeyDer::try_from(key).map_err(|why| SettingsError::BadKey(why.to_string()))?;
        Identity::new(chain.into_iter().map(CertificateDer::from).collect(), key)
    }

    /// The same with an OCSP response in DER, shown to clients that ask for one (RFC 6066 section 8). It is passed on
    /// unread.
    #[must_use]
    pub fn with_ocsp(self, response: Vec<u8>) -> Identity {
        let mut certified = CertifiedKey::clone(&self.certified);
        certified.ocsp = Some(response);
        Identity { certified: Arc::new(certified), ..self }
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Identity, SettingsError> {
        if chain.is_empty() {
            return Err(SettingsError::NoCertificate);
        }
        let provider = provider::default_provider();
        let signing = provider
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|error| SettingsError::BadKey(error.to_string()))?;
        let certified = CertifiedKey::new(chain.clone(), signing);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(SettingsError::KeyMismatch),
            Err(error) => return Err(SettingsError::BadCertificate(error.to_string())),
        }
        Ok(Identity { certified: Arc::new(certified), chain, key: Arc::new(key) })
    }
}

/// Certificates trusted to sign the peer's.
#[derive(Clone, Debug)]
pub struct Roots {
    store: Arc<RootCertStore>,
    /// SHA-256 of the certificates' sorted SHA-256s.
    digest: [u8; 32],
}

impl Roots {
    /// From PEM: one certificate or more.
    ///
    /// # Errors
    /// When there is none, or one of them is unusable.
    pub fn from_pem(pem: &[u8]) -> Result<Roots, SettingsError> {
        let certificates = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| SettingsError::BadRoots(error.to_string()))?;
        Roots::new(certificates)
    }

    /// From DER: one certificate or more.
    ///
    /// # Errors
    /// When there is none, or one of them is unusable.
    pub fn from_der(certificates: Vec<Vec<u8>>) -> Result<Roots, SettingsError> {
        Roots::new(certificates.into_iter().map(CertificateDer::from).collect())
    }

    /// From DER: all of `named` must be usable; of `found`, such as a system's, whatever is.
    ///
    /// # Errors
    /// When one of `named` is unusable, or there is none in all.
    pub fn from_named_and_found(named: &[Vec<u8>], found: &[Vec<u8>]) -> Result<Roots, SettingsError> {
        let der = |roots: &[Vec<u8>]| roots.iter().cloned().map(CertificateDer::from).collect::<Vec<_>>();
        let usable = der(found).into_iter().filter(|root| RootCertStore::empty().add(root.clone()).is_ok());
        let roots: Vec<_> = der(named).into_iter().chain(usable).collect();
        if roots.is_empty() {
            return Err(SettingsError::BadRoots("none of those found is one".to_owned()));
        }
        Roots::new(roots)
    }

    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Roots, SettingsError> {
        let mut store = RootCertStore::empty();
        let mut digests: Vec<[u8; 32]> = certificates.iter().map(|certificate| sha256(certificate)).collect();
        digests.sort_unstable();
        for certificate in certificates {
            store.add(certificate).map_err(|error| SettingsError::BadRoots(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(SettingsError::BadRoots("no certificate found".to_owned()));
        }
        Ok(Roots { store: Arc::new(store), digest: sha256(&digests.concat()) })
    }
}

/// The names that an identity is shown for, in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    exact: Vec<String>,
    /// What stands behind the star, with its dot.
    wildcard: Vec<String>,
}

impl Names {
    /// From DNS names, of which the first label may be `*`: it stands for any one label. Case does not matter.
    ///
    /// # Errors
    /// [`SettingsError::BadName`] for what is neither.
    pub fn new<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Result<Names, SettingsError> {
        let mut found = Names::default();
        for name in names {
            let name = name.as_ref().to_ascii_lowercase();
            let host = name.strip_prefix('*').map_or(Some(&name[..]), |suffix| suffix.strip_prefix('.'));
            if host.is_none_or(|host| DnsName::try_from(host).is_err()) {
                return Err(SettingsError::BadName(name));
            }
            match name.strip_prefix('*') {
                Some(suffix) => found.wildcard.push(suffix.to_owned()),
                None => found.exact.push(name),
            }
        }
        Ok(found)
    }
}

/// Whether clients show certificates (mutual TLS).
#[derive(Clone, Debug, Default)]
pub enum ClientAuth {
    /// They are not asked.
    #[default]
    None,
    /// They are asked, and one without a certificate is taken; one that shows a certificate needs a chain to these roots.
    Optional(Roots),
    /// They must show a certificate with a chain to these roots.
    Required(Roots),
}

/// What a listener wants.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What it shows to clients, by the name they ask for: exact names before wildcards. The first is also shown to those
    /// who ask for no name, or one that nothing here stands for. Not empty.
    pub identities: Vec<(Names, Identity)>,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
    /// Whether a client that offers `http/1.1` or no application protocol at all is taken as a tunnel. Otherwise only
    /// `mmtp/1` is taken, and anything else ends with no_application_protocol.
    pub tunnels: bool,
    /// Whether X25519MLKEM768 is taken, before X25519, from clients that prefer it.
    pub post_quantum: bool,
    /// Tickets after a full handshake, for resumption. Zero: none. After a resumption there is one, and a client may ask
    /// for up to four (RFC 9149).
    pub tickets: usize,
    /// Bytes of early data that a client with a ticket may send, for [`super::Session::proceed`] to accept or refuse.
    /// Zero: none.
    pub early_bytes_max: u32,
    /// Records sealed with one key before [`super::Session::key_update_due`] says so.
    pub key_update_records: u64,
}

impl ServerOptions {
    /// The defaults for a listener that shows `identity` whatever name is asked for: no client certificates, no tunnels.
    #[must_use]
    pub fn new(identity: Identity) -> ServerOptions {
        ServerOptions {
            identities: vec![(Names::default(), identity)],
            client_auth: ClientAuth::None,
            tunnels: false,
            post_quantum: false,
            tickets: TICKETS,
            early_bytes_max: EARLY_BYTES_MAX,
            key_update_records: KEY_UPDATE_RECORDS,
        }
    }
}

/// What a dialer wants.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Who may have signed the server's certificate.
    pub roots: Roots,
    /// What is shown to a server that asks for a certificate.
    pub identity: Option<Identity>,
    /// The application protocols offered, most wanted first. The server must take one of them unless the list is empty.
    pub alpn: Vec<Vec<u8>>,
    /// Whether X25519MLKEM768 is offered. Its ClientHello does not fit one mobile packet.
    pub post_quantum: bool,
    /// Servers whose tickets are remembered. Zero: no resumption.
    pub sessions: usize,
    /// Whether tickets are handed to the caller ([`super::Session::client_tickets`]), who offers them again, instead of
    /// being remembered here; `sessions` then means nothing. For clients that dial from afar: they ask for compressed
    /// certificates too (RFC 8879).
    pub keeps_tickets: bool,
    /// With kept tickets: whether early data may be offered.
    pub early_data: bool,
    /// Whether ChaCha20 is put first: for devices without AES in hardware.
    pub chacha_first: bool,
    /// Records sealed with one key before [`super::Session::key_update_due`] says so.
    pub key_update_records: u64,
}

impl ClientOptions {
    /// The defaults for a dialer that trusts `roots`: `mmtp/1` only, no certificate of its own.
    #[must_use]
    pub fn new(roots: Roots) -> ClientOptions {
        ClientOptions {
            roots,
            identity: None,
            alpn: vec![ALPN_MMTP.to_vec()],
            post_quantum: false,
            sessions: 32,
            keeps_tickets: false,
            early_data: false,
            chacha_first: false,
            key_update_records: KEY_UPDATE_RECORDS,
        }
    }
}

/// Settings of a listener. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct ServerSettings {
    pub(super) inner: Arc<ServerInner>,
}

pub(super) struct ServerInner {
    /// For clients that put another suite than ChaCha20 first; full handshakes, then resumptions.
    aes_first: [Arc<ServerConfig>; 2],
    /// For clients that put ChaCha20 first: phones without AES in hardware.
    chacha_first: [Arc<ServerConfig>; 2],
    pub(super) tunnels: bool,
    pub(super) tickets: usize,
    pub(super) early_bytes_max: u32,
    pub(super) key_update_records: u64,
    realm: u64,
}

impl ServerInner {
    pub(super) fn config(&self, chacha_first: bool, returning: bool) -> Arc<ServerConfig> {
        let configs = if chacha_first { &self.chacha_first } else { &self.aes_first };
        Arc::clone(&configs[usize::from(returning)])
    }
}

impl fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSettings").field("tunnels", &self.inner.tunnels).finish_non_exhaustive()
    }
}

impl ServerSettings {
    /// Builds settings.
    ///
    /// # Errors
    /// When the TLS library refuses the combination.
    pub fn new(options: &ServerOptions) -> Result<ServerSettings, SettingsError> {
        let shared = Shared::new(options)?;
        let both = |suites: &[SupportedCipherSuite]| -> Result<_, SettingsError> {
            let full = server_config(options, &shared, suites)?;
            let mut returning = full.clone();
            returning.send_tls13_tickets = options.tickets.min(TICKETS_RETURNING);
            Ok([Arc::new(full), Arc::new(returning)])
        };
        Ok(ServerSettings {
            inner: Arc::new(ServerInner {
                aes_first: both(&AES_FIRST)?,
                chacha_first: both(&CHACHA_FIRST)?,
                tunnels: options.tunnels,
                tickets: options.tickets,
                early_bytes_max: options.early_bytes_max,
                key_update_records: options.key_update_records,
                realm: realm(options),
            }),
        })
    }

    /// A digest of what a ticket must never cross: who may be a client, and what is spoken. Equal on all nodes with the
    /// same options.
    #[must_use]
    pub fn realm(&self) -> u64 {
        self.inner.realm
    }
}

fn realm(options: &ServerOptions) -> u64 {
    let (kind, roots) = match &options.client_auth {
        ClientAuth::None => (0, [0; 32]),
        ClientAuth::Optional(roots) => (1, roots.digest),
        ClientAuth::Required(roots) => (2, roots.digest),
    };
    let mut told = vec![kind];
    told.extend_from_slice(&roots);
    for protocol in protocols(options) {
        told.push(u8::try_from(protocol.len()).unwrap_or(u8::MAX)); // RFC 7301 3.1: at most 255
        told.extend_from_slice(protocol);
    }
    u64::from_be_bytes(*sha256(&told).first_chunk().expect("SHA-256 gives 32 bytes"))
}

/// The application protocols that a listener takes, most wanted first.
fn protocols(options: &ServerOptions) -> &'static [&'static [u8]] {
    if options.tunnels { &[ALPN_MMTP, ALPN_HTTP1] } else { &[ALPN_MMTP] }
}

/// What the configs of one listener share.
struct Shared {
    resolver: Arc<Resolver>,
    verifier: Arc<dyn ClientCertVerifier>,
    compressed: Arc<CompressionCache>,
}

impl Shared {
    fn new(options: &ServerOptions) -> Result<Shared, SettingsError> {
        let verifier = |roots: &Roots, is_required: bool| {
            let crypto = crypto(&AES_FIRST, options.post_quantum);
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots.store), crypto);
            let builder = if is_required { builder } else { builder.allow_unauthenticated() };
            builder.build().map_err(|error| SettingsError::BadRoots(error.to_string()))
        };
        Ok(Shared {
            resolver: Arc::new(Resolver::new(&options.identities)?),
            verifier: match &options.client_auth {
                ClientAuth::None => WebPkiClientVerifier::no_client_auth(),
                ClientAuth::Optional(roots) => verifier(roots, false)?,
                ClientAuth::Required(roots) => verifier(roots, true)?,
            },
            compressed: Arc::new(CompressionCache::new(options.identities.len() * COMPRESSIONS)),
        })
    }
}

/// Chooses what is shown to a client.
#[derive(Debug)]
struct Resolver {
    default: Arc<CertifiedKey>,
    /// Sorted by name, as the next; names in lower case.
    exact: Vec<(String, Arc<CertifiedKey>)>,
    /// By what stands behind the star, with its dot.
    wildcard: Vec<(String, Arc<CertifiedKey>)>,
}

impl Resolver {
    fn new(identities: &[(Names, Identity)]) -> Result<Resolver, SettingsError> {
        let (_, default) = identities.first().ok_or(SettingsError::NoCertificate)?;
        let sorted = |names: fn(&Names) -> &Vec<String>| {
            let each = |(given, identity): &(Names, Identity)| {
                let certified = Arc::clone(&identity.certified);
                names(given).iter().map(|name| (name.clone(), Arc::clone(&certified))).collect::<Vec<_>>()
            };
            let mut all: Vec<_> = identities.iter().flat_map(each).collect();
            all.sort_by(|one, other| one.0.cmp(&other.0)); // stable: the first of equal names stays
            all.dedup_by(|later, earlier| later.0 == earlier.0);
            all
        };
        Ok(Resolver {
            default: Arc::clone(&default.certified),
            exact: sorted(|names| &names.exact),
            wildcard: sorted(|names| &names.wildcard),
        })
    }

    fn choose(&self, name: &str) -> &Arc<CertifiedKey> {
        let name = name.to_ascii_lowercase();
        let find = |sorted: &'_ [(String, Arc<CertifiedKey>)], name: &str| {
            sorted.binary_search_by(|(known, _)| known[..].cmp(name)).ok()
        };
        let suffix = name.find('.').map_or("", |dot| &name[dot..]);
        if let Some(index) = find(&self.exact, &name) {
            &self.exact[index].1
        } else if let Some(index) = find(&self.wildcard, suffix) {
            &self.wildcard[index].1
        } else {
            &self.default
        }
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(hello.server_name().map_or(&self.default, |name| self.choose(name))))
    }
}

/// Settings of a dialer. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct ClientSettings {
    pub(super) inner: Arc<ClientInner>,
}

pub(super) struct ClientInner {
    pub(super) config: Arc<ClientConfig>,
    /// The same, offering early data with a ticket that allows it.
    pub(super) early_config: Arc<ClientConfig>,
    pub(super) keeps_tickets: bool,
    pub(super) early_data: bool,
    /// Digest of whom is trusted, what is shown and what is spoken: a ticket got under other settings is not offered.
    pub(super) trust: [u8; 32],
    pub(super) alpn_required: bool,
    pub(super) key_update_records: u64,
}

impl fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSettings").finish_non_exhaustive()
    }
}

impl ClientSettings {
    /// Builds settings.
    ///
    /// # Errors
    /// When the TLS library refuses the combination.
    pub fn new(options: &ClientOptions) -> Result<ClientSettings, SettingsError> {
        let mut suites = if options.chacha_first { CHACHA_FIRST } else { AES_FIRST }.to_vec();
        if options.keeps_tickets {
            suites = mint::suites(&suites);
        }
        let crypto = crypto(&suites, options.post_quantum);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&crypto))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(refused)?;
        let roots = Arc::clone(&options.roots.store);
        let builder = if options.keeps_tickets {
            let usual = WebPkiServerVerifier::builder_with_provider(roots, crypto)
                .build()
                .map_err(|error| SettingsError::BadRoots(error.to_string()))?;
            builder.dangerous().with_custom_certificate_verifier(mint::verifier(usual))
        } else {
            builder.with_root_certificates(roots)
        };
        let mut config = match &options.identity {
            Some(identity) => {
                builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).map_err(refused)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&options.alpn);
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(Desk); // the traffic secrets
        if !options.keeps_tickets {
            config.cert_decompressors = Vec::new(); // trunks are few and last: not worth a decompressor
        }
        config.resumption = match options.sessions {
            0 => Resumption::disabled(),
            sessions => Resumption::in_memory_sessions(sessions),
        };
        if options.keeps_tickets {
            mint::attach(&mut config);
        }
        let mut early_config = config.clone();
        early_config.enable_early_data = true;
        Ok(ClientSettings {
            inner: Arc::new(ClientInner {
                config: Arc::new(config),
                early_config: Arc::new(early_config),
                keeps_tickets: options.keeps_tickets,
                early_data: options.early_data,
                trust: trust_digest(options),
                alpn_required: !options.alpn.is_empty(),
                key_update_records: options.key_update_records,
            }),
        })
    }
}

fn trust_digest(options: &ClientOptions) -> [u8; 32] {
    let shown = options.identity.as_ref().and_then(|identity| identity.chain.first());
    let shown = sha256(shown.map_or(&[][..], |leaf| leaf.as_ref()));
    let spoken: Vec<u8> = options.alpn.iter().flat_map(|protocol| sha256(protocol)).collect();
    sha256(&[options.roots.digest, shown, sha256(&spoken)].concat())
}

/// The server's order: the cheapest handshake and bulk cipher first, SHA-384 (the dearest part of a resumed handshake)
/// last.
const AES_FIRST: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
];

/// The server's order for a client that puts ChaCha20 first.
const CHACHA_FIRST: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
];

fn crypto(suites: &[SupportedCipherSuite], post_quantum: bool) -> Arc<CryptoProvider> {
    let mut kx_groups: Vec<&'static dyn SupportedKxGroup> = Vec::new();
    if post_quantum {
        kx_groups.push(kx_group::X25519MLKEM768);
    }
    kx_groups.extend([kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]);
    Arc::new(CryptoProvider { cipher_suites: suites.to_vec(), kx_groups, ..provider::default_provider() })
}

fn server_config(
    options: &ServerOptions,
    shared: &Shared,
    suites: &[SupportedCipherSuite],
) -> Result<ServerConfig, SettingsError> {
    let mut config = ServerConfig::builder_with_provider(crypto(&derive::suites(suites), options.post_quantum))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_client_cert_verifier(Arc::clone(&shared.verifier))
        .with_cert_resolver(Arc::clone(&shared.resolver) as Arc<_>);
    config.alpn_protocols = protocols(options).iter().map(|protocol| protocol.to_vec()).collect();
    config.cert_compression_cache = Arc::clone(&shared.compressed);
    config.cert_decompressors = Vec::new(); // clients with certificates are trunks, and few: not worth a decompressor
    config.ignore_client_order = true;
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = options.tickets;
    config.max_tls13_tickets = if options.tickets > 0 { TICKETS_REQUESTED_MAX } else { 0 };
    config.max_early_data_size = options.early_bytes_max;
    config.send_half_rtt_data = true; // the answer to early data
    config.session_storage = Arc::new(Desk);
    config.key_log = Arc::new(Desk);
    config.time_provider = Arc::new(Desk);
    Ok(config)
}

fn refused(error: rustls::Error) -> SettingsError {
    SettingsError::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::super::fixture::NAME;
    use super::*;

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn identity(chain: &str, key: &str) -> Result<Identity, SettingsError> {
        Identity::from_pem(chain.as_bytes(), key.as_bytes())
    }

    #[test]
    fn a_chain_and_its_key_make_settings() {
        let (chain, key) = pair();
        let identity = identity(&chain, &key).unwrap();
        let roots = Roots::from_pem(chain.as_bytes()).unwrap();
        for (tunnels, post_quantum, tickets) in [(false, false, 0), (true, true, 2)] {
            let client_auth = if tunnels { ClientAuth::Required(roots.clone()) } else { ClientAuth::None };
            let defaults = ServerOptions::new(identity.clone());
            let options = ServerOptions { tunnels, post_quantum, tickets, client_auth, ..defaults };
            ServerSettings::new(&options).unwrap();
        }
        let defaults = ClientOptions::new(roots);
        ClientSettings::new(&ClientOptions { identity: Some(identity), sessions: 0, ..defaults }).unwrap();
    }

    #[test]
    fn an_identity_is_chosen_by_its_names() {
        let made = |names: &[&str]| {
            let (chain, key) = pair();
            (Names::new(names).unwrap(), identity(&chain, &key).unwrap())
        };
        let identities =
            [made(&["default.example"]), made(&["*.Example"]), made(&["a.example", "b.test"]), made(&["a.example"])];
        let resolver = Resolver::new(&identities).unwrap();
        let index = |name: &str| {
            let chosen = resolver.choose(name);
            identities.iter().position(|(_, identity)| Arc::ptr_eq(&identity.certified, chosen)).unwrap()
        };
        for (name, expected) in [
            ("a.example", 2), // exact before wildcard, and the first of two
            ("A.EXAMPLE", 2),
            ("b.test", 2),
            ("c.example", 1),
            ("C.eXample", 1),
            ("default.example", 0),
            ("b.c.example", 0), // a star is one label
            ("example", 0),
            (".example", 1),
            ("other.test", 0),
        ] {
            assert_eq!(index(name), expected, "{name}");
        }
        for name in ["", "*", "*.", "a*.example", "*.*.example", "a b", "ä.example"] {
            assert!(matches!(Names::new([name]), Err(SettingsError::BadName(_))), "{name:?}");
        }
        assert!(matches!(Resolver::new(&[]), Err(SettingsError::NoCertificate)));
    }

    #[test]
    fn a_realm_follows_from_authentication_and_protocols_alone() {
        let (chain, key) = pair();
        let (other, _) = pair();
        let defaults = ServerOptions::new(identity(&chain, &key).unwrap());
        let roots = |pem: &str| Roots::from_pem(pem.as_bytes()).unwrap();
        let realm = |options: &ServerOptions| ServerSettings::new(options).unwrap().realm();
        let with = |client_auth| realm(&ServerOptions { client_auth, ..defaults.clone() });
        let both = [&chain[..], &other].concat();
        let swapped = [&other[..], &chain].concat();
        let realms = [
            realm(&defaults),
            realm(&ServerOptions { tunnels: true, ..defaults.clone() }),
            with(ClientAuth::Required(roots(&chain))),
            with(ClientAuth::Optional(roots(&chain))),
            with(ClientAuth::Required(roots(&other))),
            with(ClientAuth::Required(roots(&both))),
        ];
        for (index, realm) in realms.iter().enumerate() {
            assert!(!realms[index + 1..].contains(realm));
        }
        assert_eq!(with(ClientAuth::Required(roots(&swapped))), realms[5]);
        let (chain, key) = pair();
        let defaults = ServerOptions::new(identity(&chain, &key).unwrap());
        assert_eq!(realm(&ServerOptions { tickets: 0, early_bytes_max: 0, post_quantum: true, ..defaults }), realms[0]);
    }

    #[test]
    fn each_mistake_is_named() {
        let (chain, key) = pair();
        let (other, _) = pair();
        assert_eq!(identity("", &key).unwrap_err(), SettingsError::NoCertificate);
        assert_eq!(identity(&key, &key).unwrap_err(), SettingsError::NoCertificate);
        assert_eq!(identity(&chain, "").unwrap_err(), SettingsError::NoKey);
        assert_eq!(identity(&chain, &chain).unwrap_err(), SettingsError::NoKey);
        assert_eq!(identity(&other, &key).unwrap_err(), SettingsError::KeyMismatch);
        assert!(matches!(identity(&chain, &key[..100]), Err(SettingsError::BadKey(_) | SettingsError::NoKey)));
        assert!(matches!(identity(&chain[..100], &key), Err(SettingsError::BadCertificate(_))));
        assert!(matches!(Identity::from_der(vec![vec![0; 9]], vec![0; 9]), Err(SettingsError::BadKey(_))));
        let der = KeyPair::generate().unwrap().serialize_der();
        assert!(matches!(Identity::from_der(vec![vec![0; 9]], der), Err(SettingsError::BadCertificate(_))));
        assert!(matches!(Roots::from_pem(b""), Err(SettingsError::BadRoots(_))));
        assert!(matches!(Roots::from_der(vec![vec![0; 9]]), Err(SettingsError::BadRoots(_))));
    }
}
