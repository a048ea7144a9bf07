//! TLS as the client uses it: `rustls`, buffered, TLS 1.3 only, ALPN `mmtp/1`. Owns every rustls type of the client, so
//! that nothing else here moves with its releases; never owns a socket or a clock of its own.
//!
//! Invariant: no application byte is handed over before the server's certificate and protocol have been accepted.

use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;

use rustls::client::ClientConnection;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};

use super::error::{BuildError, Failure};

/// The application protocol asked for, and the only one accepted (MMTP 2.1).
const ALPN: &[u8] = b"mmtp/1";

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
pub(super) struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Trusts exactly these certificates in DER: all of `named` must be usable, and of `found` whatever is.
    pub(super) fn new(named: &[Vec<u8>], found: &[Vec<u8>]) -> Result<Trust, BuildError> {
        if named.is_empty() && found.is_empty() {
            return Err(BuildError::NoRoots);
        }
        let mut store = RootCertStore::empty();
        for root in named {
            store.add(CertificateDer::from(root.clone())).map_err(|error| BuildError::Root(error.to_string()))?;
        }
        store.add_parsable_certificates(found.iter().map(|root| CertificateDer::from(root.clone())));
        if store.is_empty() {
            return Err(BuildError::Root("none of those found is one".to_owned()));
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites and groups for TLS 1.3")
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Trust(Arc::new(config)))
    }
}

/// The suites and groups of the MTLS profile (docs/ARCHITECTURE.md): one key share, because a group offered without one
/// can cost a round trip; ChaCha20 first where AES has no hardware.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256 as AES_128, TLS13_AES_256_GCM_SHA384 as AES_256,
        TLS13_CHACHA20_POLY1305_SHA256 as CHACHA,
    };
    let suites = if has_aes() { vec![AES_128, CHACHA, AES_256] } else { vec![CHACHA, AES_128, AES_256] };
    let groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    CryptoProvider { cipher_suites: suites, kx_groups: groups, ..aws_lc_rs::default_provider() }
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

/// What one read from the socket brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrived {
    /// Something; ask for plaintext.
    Bytes,
    /// Nothing for now.
    Nothing,
    /// The end of what the socket will bring.
    End,
}

/// One TLS connection.
pub(super) struct Secure {
    tls: ClientConnection,
}

impl Secure {
    /// A connection that is about to greet `host`, a name or an IP address.
    pub(super) fn new(trust: &Trust, host: &str) -> Result<Secure, Failure> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Failure::Certificate(format!("{host} is no name a certificate could have")))?;
        let mut tls = ClientConnection::new(trust.0.clone(), name).map_err(failure)?;
        tls.set_buffer_limit(None); // the link's own send buffer is the bound
        Ok(Secure { tls })
    }

    /// Whether application bytes may not flow yet.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// After the handshake: whether the server speaks MMTP.
    pub(super) fn speaks_mmtp(&self) -> bool {
        self.tls.alpn_protocol() == Some(ALPN)
    }

    /// After the handshake: whether it resumed an earlier session.
    pub(super) fn is_resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Reads once from the socket and works on what came. On an error, what is due to the server (an alert) waits in
    /// [`Secure::write_to`].
    pub(super) fn read_from(&mut self, socket: &mut impl Read) -> Result<Arrived, Failure> {
        match self.tls.read_tls(socket) {
            Ok(0) => return Ok(Arrived::End),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Arrived::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Arrived::Bytes),
            Err(error) => return Err(Failure::Lost(error.to_string())),
        }
        self.tls.process_new_packets().map_err(failure)?;
        Ok(Arrived::Bytes)
    }

    /// Appends the plaintext that has arrived.
    pub(super) fn plaintext(&mut self, into: &mut Vec<u8>) {
        loop {
            let mut reader = self.tls.reader();
            // An error means "nothing yet", or an end without close_notify, which the socket reports as well.
            let Ok(chunk) = reader.fill_buf() else { return };
            let bytes = chunk.len();
            if bytes == 0 {
                return;
            }
            into.extend_from_slice(chunk);
            reader.consume(bytes);
        }
    }

    /// Takes plaintext to be sent.
    pub(super) fn seal(&mut self, plaintext: &[u8]) {
        self.tls.writer().write_all(plaintext).expect("a writer without a limit takes everything");
    }

    /// Says that nothing more will be sent.
    pub(super) fn put_close_notify(&mut self) {
        self.tls.send_close_notify();
    }

    /// Whether sealed bytes wait for the socket.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    /// Writes once to the socket. Zero when the socket takes nothing for now.
    pub(super) fn write_to(&mut self, socket: &mut impl Write) -> Result<usize, Failure> {
        loop {
            match self.tls.write_tls(socket) {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(Failure::Lost(error.to_string())),
            }
        }
    }
}

/// Sorts what rustls says by what a caller can do about it.
fn failure(error: rustls::Error) -> Failure {
    match error {
        rustls::Error::InvalidCertificate(why) => Failure::Certificate(why.to_string()),
        rustls::Error::NoCertificatesPresented => Failure::Certificate("the server sent none".to_owned()),
        rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)
        | rustls::Error::NoApplicationProtocol => Failure::NotMmtp,
        other => Failure::Tls(other.to_string()),
    }
}
