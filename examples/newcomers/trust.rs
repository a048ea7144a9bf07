//! What a client trusts and keeps, as a rustls configuration.

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::Common;

/// A configuration that offers X25519 alone, so that every server does the same work, and keeps no ticket: every
/// handshake is full.
pub fn config(common: &Common) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&common.ca).map_err(io::Error::other)? {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(io::Error::other)?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = common.alpn.protocols();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The same for one who keeps tickets, and uses each once: in memory of its own.
pub fn with_tickets(base: &ClientConfig, early_data: bool) -> Arc<ClientConfig> {
    let mut config = base.clone();
    config.resumption = Resumption::in_memory_sessions(1);
    config.enable_early_data = early_data;
    Arc::new(config)
}

/// The name as rustls wants it.
pub fn name(common: &Common) -> io::Result<ServerName<'static>> {
    ServerName::try_from(common.name.clone()).map_err(io::Error::other)
}
