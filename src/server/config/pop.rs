//! The configuration of a POP.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::reader::{self, Once, Reader};
use super::renewal::{Renewal, Renewed};
use super::tickets::TicketsConfig;
use super::trunks::{TrunkEnd, TrunkTls};
use super::{Bind, Configuration, Endpoint, HOUR, MILLISECOND, MINUTE, ProcessConfig, Surroundings};
use crate::server::certificates::{Authorities, Identity, is_certificate_name, is_server_name};
use crate::server::defaults::{self, Side};
use crate::server::keys::FastOpenKeys;
use crate::server::problems::{Place, Problem, Problems};
use crate::server::section::{AddressUse, Located, Section};

/// The configuration of a POP.
#[derive(Clone, Debug)]
pub struct PopConfig {
    /// What every process is told.
    pub process: ProcessConfig,
    /// Where clients connect: `[[listen]]`, at least one.
    pub listeners: Vec<Listener>,
    /// The way to the gateways: `[backbone]`.
    pub backbone: Backbone,
    /// How users come back: `[tickets]`.
    pub tickets: TicketsConfig,
    /// The keys of TCP Fast Open, None: the kernel makes its own: `fast_open.keys`.
    pub fast_open_keys: Option<FastOpenKeys>,
}

/// An address for clients: `[[listen]]`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// What it shows to clients whose server name fits none of `identities`: `certificate`, `key` and `ocsp`.
    pub identity: Identity,
    /// What it shows to clients that ask for certain names: `[[listen.identity]]`.
    pub identities: Vec<NamedIdentity>,
    /// Whether clients show certificates: `client_auth` and `client_ca`.
    pub client_auth: ClientAuth,
    /// The service of connections that do not speak `mmtp/1`; None refuses them: `tunnel`.
    pub tunnel: Option<String>,
    /// Whether connections begin with a PROXY protocol v2 header: `proxy_protocol`.
    pub proxy_protocol: bool,
    /// Whether X25519MLKEM768 is offered: `post_quantum`.
    pub post_quantum: bool,
    /// Whether early data is taken at all: `early_data`.
    pub early_data: bool,
    /// What happens to early data of a tunnel: `tunnel_early_data`.
    pub tunnel_early_data: TunnelEarlyData,
    /// Connections that may wait with data that came in their SYN, per worker; 0: TCP Fast Open is off: `fast_open`.
    pub fast_open: u32,
}

/// A certificate for clients that ask for one of its names: `[[listen.identity]]`.
#[derive(Clone, Debug)]
pub struct NamedIdentity {
    /// `certificate`, `key` and `ocsp`.
    pub identity: Identity,
    /// Lower-case DNS names, `*.` in front for every name one label longer; None: those of the certificate: `names`.
    pub names: Option<Vec<String>>,
}

impl NamedIdentity {
    /// The names it is chosen for.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.names.clone().unwrap_or_else(|| self.identity.dns_names())
    }
}

/// Whether clients show certificates: `client_auth`.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// They are not asked.
    None,
    /// They are asked; one without is taken, one with a certificate that these do not vouch for is not.
    Optional(Authorities),
    /// They must.
    Required(Authorities),
}

impl ClientAuth {
    fn authorities_mut(&mut self) -> Option<&mut Authorities> {
        match self {
            ClientAuth::None => None,
            ClientAuth::Optional(authorities) | ClientAuth::Required(authorities) => Some(authorities),
        }
    }

    fn authorities(&self) -> Option<&Authorities> {
        match self {
            ClientAuth::None => None,
            ClientAuth::Optional(authorities) | ClientAuth::Required(authorities) => Some(authorities),
        }
    }
}

/// What happens to early data of a tunnel, of which nobody but the service knows what a replay would do:
/// `tunnel_early_data`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelEarlyData {
    /// It waits for the client's Finished.
    Hold,
    /// It is forwarded at once.
    Allow,
    /// A listener with a tunnel takes no early data.
    Refuse,
}

/// The way to the gateways: `[backbone]`.
#[derive(Clone, Debug)]
pub struct Backbone {
    /// What secures trunks, None: nothing does: `tls`.
    pub tls: Option<TrunkTls>,
    /// Trunks per worker and gateway: `trunks_per_core`.
    pub trunks_per_core: usize,
    /// How often a trunk is pinged; one that stays silent for three of these is given up: `heartbeat_interval`.
    pub heartbeat_interval: Duration,
    /// Wait before the first redial: `backoff_min`.
    pub backoff_min: Duration,
    /// Longest wait between redials, at least `backoff_min`: `backoff_max`.
    pub backoff_max: Duration,
    /// How long streams wait when no trunk is up before they end with *not forwarded*: `wait_for_trunk`.
    pub wait_for_trunk: Duration,
    /// At least one, names and addresses each once: `[[backbone.gateway]]`.
    pub gateways: Vec<Gateway>,
}

/// A gateway as a POP knows it: `[[backbone.gateway]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Name in logs and metrics: `name`.
    pub name: String,
    /// Where to dial: `address`.
    pub address: SocketAddr,
    /// The DNS name or IP address its certificate must hold: `server_name`, else the IP of `address`.
    pub server_name: String,
}

impl PopConfig {
    /// Reads and checks a configuration file and every file it names. With it come the warnings.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(file: &Path) -> Result<(PopConfig, Vec<Problem>), Problems> {
        reader::load(file, |reader, root| reader.pop(root))
    }

    /// Like [`PopConfig::load`] for a text that is already here. Paths in it are relative to the directory of `file`.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn parse(text: &str, file: &Path, here: &Surroundings) -> Result<(PopConfig, Vec<Problem>), Problems> {
        reader::parse(text, file, here, |reader, root| reader.pop(root))
    }
}

impl Configuration for PopConfig {
    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn binds(&self) -> Vec<Bind> {
        let each = self.listeners.iter().enumerate();
        let of = |(index, listener): (usize, &Listener)| -> Vec<Bind> {
            let key = format!("listen[{index}].address");
            let plain = listener.endpoint.binds(index, &key);
            let (proxy_protocol, fast_open) = (listener.proxy_protocol, listener.fast_open);
            plain.map(|bind| Bind { proxy_protocol, fast_open, ..bind }).collect()
        };
        each.flat_map(of).collect()
    }

    fn renewed(&self, now: SystemTime) -> Renewed<PopConfig> {
        let mut renewal = Renewal::new(&self.process.file, now);
        let mut config = self.clone();
        for (index, listener) in config.listeners.iter_mut().enumerate() {
            renewal.identity(&mut listener.identity, &format!("listen[{index}]"));
            for (second, named) in listener.identities.iter_mut().enumerate() {
                renewal.identity(&mut named.identity, &format!("listen[{index}].identity[{second}]"));
            }
            if let Some(authorities) = listener.client_auth.authorities_mut() {
                renewal.authorities(authorities, &format!("listen[{index}].client_ca"));
            }
        }
        if let Some(tls) = &mut config.backbone.tls {
            renewal.identity(&mut tls.identity, "backbone");
            renewal.authorities(&mut tls.authorities, "backbone.ca");
        }
        if let Some(keys) = config.tickets.keys_mut() {
            renewal.ticket_keys(keys);
        }
        if let Some(keys) = &mut config.fast_open_keys {
            renewal.fast_open_keys(keys);
        }
        renewal.finish(config)
    }

    fn identities(&self) -> Vec<(String, &Identity)> {
        let mut all = Vec::new();
        for (index, listener) in self.listeners.iter().enumerate() {
            all.push((format!("listen[{index}]"), &listener.identity));
            let named = listener.identities.iter().enumerate();
            all.extend(named.map(|(second, named)| (format!("listen[{index}].identity[{second}]"), &named.identity)));
        }
        all.extend(self.backbone.tls.iter().map(|tls| ("backbone".to_owned(), &tls.identity)));
        all
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.identities().iter().flat_map(|(_, identity)| identity.files()).collect();
        let trusted = self.listeners.iter().filter_map(|listener| listener.client_auth.authorities());
        let of_gateways = self.backbone.tls.iter().map(|tls| &tls.authorities);
        files.extend(trusted.chain(of_gateways).map(|authorities| authorities.file.clone()));
        files.extend(self.tickets.keys().map(|keys| keys.file.clone()));
        files.extend(self.fast_open_keys.as_ref().map(|keys| keys.file.clone()));
        files
    }

    fn has_plaintext_trunks(&self) -> bool {
        self.backbone.tls.is_none()
    }

    fn fast_open_keys(&self) -> Option<&FastOpenKeys> {
        self.fast_open_keys.as_ref()
    }

    fn tickets(&self) -> Option<&TicketsConfig> {
        Some(&self.tickets)
    }
}

/// A listener with where its addresses stand.
type PlacedListener = (Listener, Vec<Located<SocketAddr>>);

impl Reader<'_> {
    fn pop(&mut self, mut root: Section<'_>) -> Option<PopConfig> {
        let common = self.common(&mut root, Side::Pop);
        let listeners = self.listeners(&mut root);
        let backbone = self.backbone(&mut root);
        let tickets = self.tickets(&mut root);
        let fast_open_keys = self.fast_open(&mut root);
        let taken = listeners.iter().flatten().flat_map(|(_, addresses)| addresses);
        self.check_addresses_once(taken.chain(&common.admin));
        root.close(&mut self.problems);
        Some(PopConfig {
            process: common.process?,
            listeners: listeners.into_iter().map(|found| found.map(|(listener, _)| listener)).collect::<Option<_>>()?,
            backbone: backbone?,
            tickets: tickets?,
            fast_open_keys: fast_open_keys?,
        })
    }

    fn listeners(&mut self, root: &mut Section<'_>) -> Vec<Option<PlacedListener>> {
        let remedy = "write [[listen]] with address, certificate and key";
        let sections = root.tables_required(&mut self.problems, "listen", remedy);
        sections.into_iter().map(|section| self.listener(section)).collect()
    }

    fn listener(&mut self, mut section: Section<'_>) -> Option<PlacedListener> {
        let place = section.place().clone();
        let ocsp = self.ocsp_path(&mut section);
        let identity = self.identity(&mut section, ocsp);
        let endpoint = self.endpoint(&mut section);
        let identities = self.named_identities(&mut section);
        let client_auth = self.client_auth(&mut section);
        let problems = &mut self.problems;
        let proxy_protocol = section.boolean(problems, "proxy_protocol", false);
        let post_quantum = section.boolean(problems, "post_quantum", false);
        let early_data = section.boolean(problems, "early_data", true);
        let choices =
            [("hold", TunnelEarlyData::Hold), ("allow", TunnelEarlyData::Allow), ("refuse", TunnelEarlyData::Refuse)];
        let tunnel_early_data = section.choice(problems, "tunnel_early_data", TunnelEarlyData::Hold, &choices);
        let fast_open = section.number(problems, "fast_open", 0..=65_535);
        if section.has("tunnel_early_data") && !section.has("tunnel") {
            let remedy = "remove it, or name a service with tunnel";
            problems.error(&section.place_of("tunnel_early_data"), "has no meaning without a tunnel", remedy);
        }
        let tunnel = section.text(problems, "tunnel");
        let tunnel_named = tunnel.is_some();
        let tunnel = tunnel.and_then(|name| self.check_name(name)).map(|name| name.value);
        section.close(&mut self.problems);
        let (endpoint, addresses) = endpoint?;
        let listener = Listener {
            endpoint,
            identity: identity?,
            identities: identities?,
            client_auth: client_auth?,
            tunnel: if tunnel_named { Some(tunnel?) } else { None },
            proxy_protocol,
            post_quantum,
            early_data,
            tunnel_early_data,
            fast_open: fast_open.and_then(|found| u32::try_from(found.value).ok()).unwrap_or(defaults::FAST_OPEN_QUEUE),
        };
        listener.warn_of_names_that_lose(&mut self.problems, &place);
        Some((listener, addresses))
    }

    fn named_identities(&mut self, listen: &mut Section<'_>) -> Option<Vec<NamedIdentity>> {
        let sections = listen.tables(&mut self.problems, "identity");
        let mut all = Some(Vec::new());
        for mut section in sections {
            let place = section.place().clone();
            let ocsp = self.ocsp_path(&mut section);
            let identity = self.identity(&mut section, ocsp);
            let names = self.server_names(&mut section);
            section.close(&mut self.problems);
            let named = identity.zip(names).map(|(identity, names)| NamedIdentity { identity, names });
            if named.as_ref().is_some_and(|named| named.names().is_empty()) {
                let what = "the certificate holds no DNS name: no client can ask for it";
                self.problems.warning(&place, what, "name those it is for with names, or remove it");
            }
            all = all.zip(named).map(|(mut all, named)| {
                all.push(named);
                all
            });
        }
        all
    }

    /// `names`: None when something is wrong, else those that were given, if any.
    fn server_names(&mut self, section: &mut Section<'_>) -> Option<Option<Vec<String>>> {
        let Some(found) = section.texts(&mut self.problems, "names") else {
            return (!section.has("names")).then_some(None);
        };
        let is_dns = |name: &&String| is_certificate_name(name) && name.parse::<std::net::IpAddr>().is_err();
        if let Some(wrong) = found.value.iter().find(|name| !is_dns(name)) {
            let what = format!("\"{}\" is not a DNS name", wrong.escape_default());
            self.problems.error(&found.place, what, "give names such as \"a.example\" or \"*.b.example\"");
            return None;
        }
        Some(Some(found.value.iter().map(|name| name.to_ascii_lowercase()).collect()))
    }

    fn client_auth(&mut self, section: &mut Section<'_>) -> Option<ClientAuth> {
        type Make = fn(Authorities) -> ClientAuth;
        let choices: [(&str, Option<Make>); 3] =
            [("none", None), ("optional", Some(ClientAuth::Optional)), ("required", Some(ClientAuth::Required))];
        match section.choice(&mut self.problems, "client_auth", None, &choices) {
            Some(make) => self.authorities(section, "client_ca").map(make),
            None => {
                // Asked for, so that it is known here: what is wrong is not its name.
                let given = section.text(&mut self.problems, "client_ca");
                if let Some(given) = given {
                    let remedy = "write client_auth = \"optional\" or \"required\", or remove it";
                    self.problems.error(&given.place, "has no meaning without client_auth", remedy);
                }
                Some(ClientAuth::None)
            }
        }
    }

    fn fast_open(&mut self, root: &mut Section<'_>) -> Option<Option<FastOpenKeys>> {
        let Some(mut section) = root.table(&mut self.problems, "fast_open") else {
            return (!root.has("fast_open")).then_some(None);
        };
        let remedy =
            "write keys = \"FILE\" (relative to this file); `trunkline keys new --kind fast-open FILE` makes it";
        let file = section.text_required(&mut self.problems, "keys", remedy).map(|found| self.relative(found));
        section.close(&mut self.problems);
        FastOpenKeys::load(&mut self.problems, &file?).map(Some)
    }

    fn backbone(&mut self, root: &mut Section<'_>) -> Option<Backbone> {
        let remedy = "write [backbone] with ca, certificate and key, and a [[backbone.gateway]]";
        let mut section = self.table_required(root, "backbone", remedy)?;
        let tls = self.trunk_tls(&mut section, TrunkEnd::Pop);
        let gateways = self.gateways(&mut section);
        let addresses = gateways.iter().flatten().map(|gateway| gateway.address);
        self.check_plaintext(&mut section, matches!(tls, Some(None)), addresses);
        let problems = &mut self.problems;
        let trunks = section.number(problems, "trunks_per_core", 1..=64);
        let mut wait = |key, default, range| section.duration(problems, key, default, range);
        let heartbeat_interval = wait("heartbeat_interval", defaults::HEARTBEAT_INTERVAL, 100 * MILLISECOND..=HOUR);
        let backoff_min = wait("backoff_min", defaults::BACKOFF_MIN, 10 * MILLISECOND..=MINUTE);
        let backoff_max = wait("backoff_max", defaults::BACKOFF_MAX, 10 * MILLISECOND..=HOUR);
        let wait_for_trunk = wait("wait_for_trunk", defaults::WAIT_FOR_TRUNK, Duration::ZERO..=MINUTE);
        if backoff_min > backoff_max {
            let what = "backoff_max is less than backoff_min";
            problems.error(&section.place_of("backoff_max"), what, "raise backoff_max or lower backoff_min");
        }
        section.close(problems);
        Some(Backbone {
            tls: tls?,
            trunks_per_core: trunks.map_or(defaults::TRUNKS_PER_CORE, |found| found.value as usize),
            heartbeat_interval,
            backoff_min,
            backoff_max,
            wait_for_trunk,
            gateways: gateways?,
        })
    }

    fn gateways(&mut self, backbone: &mut Section<'_>) -> Option<Vec<Gateway>> {
        let remedy = "write [[backbone.gateway]] with name and address";
        let sections = backbone.tables_required(&mut self.problems, "gateway", remedy);
        let mut names = Once::default();
        let mut addresses = Once::default();
        let mut gateways = Some(Vec::new());
        for mut section in sections {
            let name = self.name(&mut section, "name", "write a name, such as name = \"dc-a\"");
            if !section.has("address") {
                let remedy = "write where the gateway listens, such as address = \"10.0.0.7:7443\"";
                self.problems.error(&section.place_of("address"), "is missing", remedy);
            }
            let problems = &mut self.problems;
            let address = section.address(problems, "address", AddressUse::Connect);
            let server_name = section.text(problems, "server_name");
            if let Some(found) = server_name.as_ref().filter(|found| !is_server_name(&found.value)) {
                let what = format!("\"{}\" is not a name a certificate can hold", found.value.escape_default());
                problems.error(&found.place, what, "give a DNS name or an IP address of the gateway's certificate");
            }
            section.close(problems);
            names.check(problems, name.as_ref(), "give each gateway a name of its own");
            addresses.check(problems, address.as_ref(), "remove one; for more trunks raise trunks_per_core");
            gateways = gateways.zip(name.zip(address)).map(|(mut gateways, (name, address))| {
                let server_name = server_name.map_or_else(|| address.value.ip().to_string(), |found| found.value);
                gateways.push(Gateway { name: name.value, address: address.value, server_name });
                gateways
            });
        }
        gateways
    }
}

impl Listener {
    /// Of two certificates for one name only the first is ever shown.
    fn warn_of_names_that_lose(&self, problems: &mut Problems, place: &Place) {
        let mut taken = Vec::new();
        for (index, named) in self.identities.iter().enumerate() {
            for name in named.names() {
                if taken.contains(&name) {
                    let what = format!("identity[{index}] is never shown for {name}: one before it has that name too");
                    problems.warning(place, what, "remove one of the two, or tell them apart with names");
                } else {
                    taken.push(name);
                }
            }
        }
    }
}
