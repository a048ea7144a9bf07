//! What a client trusts and keeps: a rustls configuration, and tickets in the order they came.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, NamedGroup, RootCertStore};

use crate::Common;

/// Tickets of one server, oldest out first: as many users that return in turn. Each is handed out once.
#[derive(Clone, Debug, Default)]
pub struct Tickets {
    all: Arc<Mutex<VecDeque<Tls13ClientSessionValue>>>,
    only_in: bool,
}

impl Tickets {
    /// The same tickets, for users that come for the first time: they go in, none comes out.
    pub fn filling(&self) -> Tickets {
        Tickets { only_in: true, ..self.clone() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.queue().len()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Tls13ClientSessionValue>> {
        self.all.lock().expect("nobody panics with it")
    }
}

impl ClientSessionStore for Tickets {
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
        self.queue().push_back(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.only_in { None } else { self.queue().pop_front() }
    }
}

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

/// The same with tickets. It must come from the very configuration under which they were issued: rustls uses a ticket
/// only with the verifier that saw the certificate.
pub fn with_store(base: &ClientConfig, store: Arc<dyn ClientSessionStore>, early_data: bool) -> Arc<ClientConfig> {
    let mut config = base.clone();
    config.resumption = Resumption::store(store);
    config.enable_early_data = early_data;
    Arc::new(config)
}

/// The name as rustls wants it.
pub fn name(common: &Common) -> io::Result<ServerName<'static>> {
    ServerName::try_from(common.name.clone()).map_err(io::Error::other)
}
