//! The configuration of a gateway.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::reader::{self, Once, Reader};
use super::renewal::{Renewal, Renewed};
use super::trunks::{TrunkEnd, TrunkTls};
use super::{Bind, CLIENTS_LIMIT, Configuration, DAY, Endpoint, MILLISECOND, ProcessConfig, Surroundings};
use crate::server::certificates::Identity;
use crate::server::defaults::Side;
use crate::server::problems::{Problem, Problems};
use crate::server::section::{AddressUse, Located, Section};

/// The configuration of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// What every process is told.
    pub process: ProcessConfig,
    /// Where POPs connect: `[listen]`.
    pub listener: TrunkListener,
    /// How it deals with upstreams: `[upstream]`.
    pub upstream: UpstreamConfig,
    /// What it serves: `[[service]]`, at least one, each name once.
    pub services: Vec<Service>,
}

/// An address for POPs: `[listen]` of a gateway.
#[derive(Clone, Debug)]
pub struct TrunkListener {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// What secures trunks, None: nothing does: `tls`.
    pub tls: Option<TrunkTls>,
}

/// What a service does with a stream: `kind`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceKind {
    /// A stream is a TCP connection to an upstream.
    Tunnel,
    /// A stream is an HTTP/1.1 request to an upstream.
    Http,
}

/// A service of a gateway: `[[service]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// What streams ask for: `name`.
    pub name: String,
    /// `kind`.
    pub kind: ServiceKind,
    /// At least one, each once: `upstream`.
    pub upstreams: Vec<SocketAddr>,
    /// Host of requests that name no authority, `http` only: `authority`, else the first upstream.
    pub authority: String,
}

/// How a gateway deals with upstreams, per worker: `[upstream]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpstreamConfig {
    /// Connections to the upstreams of one service: `connections_max`.
    pub connections_max: usize,
    /// An HTTP exchange in which nothing moves for this long is given up: `response_timeout`.
    pub response_timeout: Duration,
    /// Kept-alive connections per service that wait for a request: `keepalive_max`.
    pub keepalive_max: usize,
    /// How long such a connection waits before it is closed: `keepalive_timeout`.
    pub keepalive_timeout: Duration,
}

impl GatewayConfig {
    /// Reads and checks a configuration file and every file it names. With it come the warnings.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(file: &Path) -> Result<(GatewayConfig, Vec<Problem>), Problems> {
        reader::load(file, |reader, root| reader.gateway(root))
    }

    /// Like [`GatewayConfig::load`] for a text that is already here. Paths in it are relative to the directory of
    /// `file`.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn parse(text: &str, file: &Path, here: &Surroundings) -> Result<(GatewayConfig, Vec<Problem>), Problems> {
        reader::parse(text, file, here, |reader, root| reader.gateway(root))
    }
}

impl Configuration for GatewayConfig {
    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn binds(&self) -> Vec<Bind> {
        self.listener.endpoint.binds(0, "listen.address").collect()
    }

    fn renewed(&self, now: SystemTime) -> Renewed<GatewayConfig> {
        let mut renewal = Renewal::new(&self.process.file, now);
        let mut config = self.clone();
        if let Some(tls) = &mut config.listener.tls {
            renewal.identity(&mut tls.identity, "listen");
            renewal.authorities(&mut tls.authorities, "listen.client_ca");
        }
        renewal.finish(config)
    }

    fn identities(&self) -> Vec<(String, &Identity)> {
        self.listener.tls.iter().map(|tls| ("listen".to_owned(), &tls.identity)).collect()
    }

    fn has_plaintext_trunks(&self) -> bool {
        self.listener.tls.is_none()
    }

    fn files(&self) -> Vec<PathBuf> {
        let Some(tls) = &self.listener.tls else { return Vec::new() };
        let mut files = tls.identity.files();
        files.push(tls.authorities.file.clone());
        files
    }
}

impl Reader<'_> {
    fn gateway(&mut self, mut root: Section<'_>) -> Option<GatewayConfig> {
        let common = self.common(&mut root, Side::Gateway);
        let upstream = self.upstream(&mut root, common.worker_count);
        let listener = self.trunk_listener(&mut root);
        let services = self.services(&mut root);
        let taken = listener.iter().flat_map(|(_, addresses)| addresses);
        self.check_addresses_once(taken.chain(&common.admin));
        root.close(&mut self.problems);
        Some(GatewayConfig { process: common.process?, listener: listener?.0, upstream, services: services? })
    }

    fn trunk_listener(&mut self, root: &mut Section<'_>) -> Option<(TrunkListener, Vec<Located<SocketAddr>>)> {
        let remedy = "write [listen] with address, certificate, key and client_ca";
        let mut section = self.table_required(root, "listen", remedy)?;
        let endpoint = self.endpoint(&mut section);
        let tls = self.trunk_tls(&mut section, TrunkEnd::Gateway);
        let addresses = endpoint.iter().flat_map(|(_, addresses)| addresses).map(|address| address.value);
        self.check_plaintext(&mut section, matches!(tls, Some(None)), addresses);
        section.close(&mut self.problems);
        let ((endpoint, addresses), tls) = (endpoint?, tls?);
        Some((TrunkListener { endpoint, tls }, addresses))
    }

    fn upstream(&mut self, root: &mut Section<'_>, worker_count: usize) -> UpstreamConfig {
        let default = UpstreamConfig::of(self.here, worker_count);
        let problems = &mut self.problems;
        let Some(mut section) = root.table(problems, "upstream") else { return default };
        let connections = section.number(problems, "connections_max", 1..=CLIENTS_LIMIT);
        let wait = 10 * MILLISECOND..=DAY;
        let response_timeout = section.duration(problems, "response_timeout", default.response_timeout, wait.clone());
        let keepalive_max = section.number(problems, "keepalive_max", 0..=65_536);
        let keepalive_timeout = section.duration(problems, "keepalive_timeout", default.keepalive_timeout, wait);
        section.close(problems);
        UpstreamConfig {
            connections_max: connections.map_or(default.connections_max, |found| found.value as usize),
            response_timeout,
            keepalive_max: keepalive_max.map_or(default.keepalive_max, |found| found.value as usize),
            keepalive_timeout,
        }
    }

    fn services(&mut self, root: &mut Section<'_>) -> Option<Vec<Service>> {
        let remedy = "write [[service]] with name, kind and upstream";
        let sections = root.tables_required(&mut self.problems, "service", remedy);
        let mut names = Once::default();
        let mut services = Some(Vec::new());
        for section in sections {
            let service = self.service(section, &mut names);
            services = services.zip(service).map(|(mut services, service)| {
                services.push(service);
                services
            });
        }
        services
    }

    fn service(&mut self, mut section: Section<'_>, names: &mut Once<String>) -> Option<Service> {
        let name = self.name(&mut section, "name", "write the name that streams ask for, such as name = \"web\"");
        let problems = &mut self.problems;
        names.check(problems, name.as_ref(), "give each service a name of its own");
        let kinds = [("tunnel", Some(ServiceKind::Tunnel)), ("http", Some(ServiceKind::Http))];
        if !section.has("kind") {
            problems.error(&section.place_of("kind"), "is missing", "write kind = \"tunnel\" or kind = \"http\"");
        }
        let kind = section.choice(problems, "kind", None, &kinds);
        let upstreams = section.addresses(problems, "upstream", AddressUse::Connect);
        if kind == Some(ServiceKind::Tunnel) && section.has("authority") {
            let remedy = "remove it, or set kind = \"http\"";
            problems.error(&section.place_of("authority"), "has no meaning for a tunnel", remedy);
        }
        let authority = section.text(problems, "authority");
        if let Some(found) = authority.as_ref().filter(|found| !is_authority(&found.value)) {
            let what = format!("\"{}\" is not a host", found.value.escape_default());
            problems.error(&found.place, what, "give a host with or without port, such as \"shop.example:8080\"");
        }
        section.close(problems);
        let upstreams: Vec<SocketAddr> = upstreams?.into_iter().map(|address| address.value).collect();
        let authority = authority.map_or_else(|| upstreams[0].to_string(), |found| found.value);
        Some(Service { name: name?.value, kind: kind?, upstreams, authority })
    }
}

/// A host with or without a port (RFC 9110 section 7.2), in the characters that need no care in a head.
fn is_authority(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
}
