//! What the configurations are read with: the document, the tables every process has, and values with rules of their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use super::{
    BUFFERS_LIMIT, CLIENTS_LIMIT, DAY, Endpoint, HANDSHAKE_SHARE_LIMIT, HOUR, LogConfig, LogFormat, MILLISECOND,
    MINUTE, NAME_BYTES_MAX, ProcessConfig, SECOND, STREAMS_LIMIT, Surroundings, WorkerConfig,
};
use crate::server::certificates::{Authorities, Identity, IdentityFiles, read_bounded};
use crate::server::defaults::{self, Side};
use crate::server::problems::{Place, Problem, Problems};
use crate::server::section::{AddressUse, Located, Section, line_of};

/// Largest configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Reads and checks a configuration file with `read`. With it come the warnings.
///
/// # Errors
/// All mistakes at once.
pub(super) fn load<T>(file: &Path, here: &Surroundings, read: Read<T>) -> Result<(T, Vec<Problem>), Problems> {
    parse(&read_config(file)?, file, here, read)
}

/// Like [`load`] for a text that is already here.
///
/// # Errors
/// All mistakes at once.
pub(super) fn parse<T>(
    text: &str,
    file: &Path,
    here: &Surroundings,
    read: Read<T>,
) -> Result<(T, Vec<Problem>), Problems> {
    let mut reader = Reader { problems: Problems::new(file.to_path_buf()), file, here };
    let config = reader.document(text, read);
    reader.problems.finish(config)
}

/// Reads a whole document.
pub(super) type Read<T> = fn(&mut Reader<'_>, Section<'_>) -> Option<T>;

/// Builds a configuration from a document. Each function reads its whole part before it gives up, so that every
/// mistake is noted; None means that one was.
pub(super) struct Reader<'r> {
    pub(super) problems: Problems,
    pub(super) file: &'r Path,
    pub(super) here: &'r Surroundings,
}

/// What stands outside of the tables of one kind of process.
pub(super) struct Common {
    /// None when something in it is wrong.
    pub(super) process: Option<ProcessConfig>,
    /// Where the admin address stands.
    pub(super) admin: Option<Located<SocketAddr>>,
    /// One at least.
    pub(super) worker_count: usize,
}

impl Reader<'_> {
    fn document<T>(&mut self, text: &str, read: Read<T>) -> Option<T> {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map_or(0, |span| line_of(text, span.start));
            let what = format!("is not TOML: {}", error.message().replace('\n', ", "));
            self.problems.error(&Place { key: String::new(), line }, what, "see https://toml.io for how to write it");
        }
        // What a broken line leaves behind would only be reported as missing or unknown.
        if errors.is_empty() { read(self, Section::root(table.get_ref(), text)) } else { None }
    }

    pub(super) fn common(&mut self, root: &mut Section<'_>, side: Side) -> Common {
        let id = self.name(root, "id", "write a name for this process, such as id = \"pop-1\"");
        let cores = self.cores(root);
        let worker_count = cores.as_ref().map_or(1, Vec::len);
        let problems = &mut self.problems;
        let drain_timeout = root.duration(problems, "drain_timeout", defaults::DRAIN_TIMEOUT, Duration::ZERO..=HOUR);
        let goaway_wait = root.duration(problems, "goaway_wait", defaults::GOAWAY_WAIT, Duration::ZERO..=HOUR);
        let worker = self.worker(root, worker_count, side);
        let (admin, log) = (self.admin(root), self.log(root));
        let process = id.zip(cores).map(|(id, cores)| ProcessConfig {
            file: self.file.to_path_buf(),
            id: id.value,
            cores,
            drain_timeout,
            goaway_wait,
            worker,
            admin: admin.as_ref().map(|address| address.value),
            log,
        });
        Common { process, admin, worker_count }
    }

    pub(super) fn name(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        remedy: &str,
    ) -> Option<Located<String>> {
        let name = section.text_required(&mut self.problems, key, remedy)?;
        self.check_name(name)
    }

    pub(super) fn check_name(&mut self, name: Located<String>) -> Option<Located<String>> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let value = &name.value;
        if value.len() > NAME_BYTES_MAX || !value.bytes().all(good) || !value.as_bytes()[0].is_ascii_alphanumeric() {
            let remedy = format!(
                "use at most {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`, with a letter or a digit first"
            );
            self.problems.error(&name.place, format!("\"{}\" is not a name", value.escape_default()), remedy);
            return None;
        }
        Some(name)
    }

    fn cores(&mut self, root: &mut Section<'_>) -> Option<Vec<usize>> {
        let allowed = &self.here.cores;
        let allowed_text = allowed.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let Some(given) = root.numbers(&mut self.problems, "cores") else {
            let unreadable = root.has("cores");
            if allowed.is_empty() && !unreadable {
                let remedy = "write the cores to use, such as cores = [0]";
                self.problems.error(&Place::of("cores"), "the cores of this process are not known", remedy);
            }
            return (!unreadable && !allowed.is_empty()).then(|| allowed.clone());
        };
        let mut cores = given.value.clone();
        cores.sort_unstable();
        cores.dedup();
        if cores.is_empty() {
            let remedy = "name at least one core, or remove the key to use all";
            self.problems.error(&given.place, "holds no core", remedy);
            return None;
        }
        if cores.len() != given.value.len() {
            self.problems.error(&given.place, "names a core twice", "name each core once");
        }
        let strangers: Vec<String> =
            cores.iter().filter(|core| !allowed.contains(core)).map(usize::to_string).collect();
        if !strangers.is_empty() && !allowed.is_empty() {
            let what = format!("this process may not use core {}", strangers.join(", "));
            let remedy = format!("it may use {allowed_text}: name some of these, or remove the key to use all");
            self.problems.error(&given.place, what, remedy);
            return None;
        }
        Some(cores)
    }

    fn worker(&mut self, root: &mut Section<'_>, worker_count: usize, side: Side) -> WorkerConfig {
        let share = self.here.descriptors_per_worker(worker_count);
        let default = WorkerConfig::of(side, self.here, worker_count);
        let problems = &mut self.problems;
        let Some(mut section) = root.table(problems, "worker") else { return default };
        let clients = section.number(problems, "clients_max", 1..=CLIENTS_LIMIT);
        let streams = section.number(problems, "streams_max", 1..=STREAMS_LIMIT);
        let buffers = section.number(problems, "buffers", 16..=BUFFERS_LIMIT);
        let buffer_bytes = section.number(problems, "buffer_bytes", 1024..=1024 * 1024);
        let batch_wait = section.duration(problems, "batch_wait", default.batch_wait, Duration::ZERO..=4 * MILLISECOND);
        let wait = 10 * MILLISECOND..=5 * MINUTE;
        let handshake_timeout =
            section.duration(problems, "handshake_timeout", default.handshake_timeout, wait.clone());
        let handshake_share = section.number(problems, "handshake_share", 1..=HANDSHAKE_SHARE_LIMIT);
        let handshake_patience =
            section.duration(problems, "handshake_patience", default.handshake_patience, wait.clone());
        let connect_timeout = section.duration(problems, "connect_timeout", default.connect_timeout, wait);
        let idle_timeout = section.duration(problems, "idle_timeout", default.idle_timeout, SECOND..=DAY);
        if let Some(found) = clients.as_ref().filter(|found| found.value > share) {
            let what = format!("{} clients need more descriptors than this process may open", found.value);
            let remedy = format!("raise the limit (LimitNOFILE in systemd, ulimit -n), or use at most {share}");
            problems.warning(&found.place, what, remedy);
        }
        if let Some(found) = buffers.as_ref().filter(|found| !found.value.is_power_of_two()) {
            let remedy = format!("use {}", found.value.next_power_of_two());
            problems.error(&found.place, format!("{} is not a power of two", found.value), remedy);
        }
        section.close(problems);
        WorkerConfig {
            clients_max: clients.map_or(default.clients_max, |found| found.value as usize),
            streams_max: streams.map_or(default.streams_max, |found| found.value as usize),
            buffers: buffers.and_then(|found| u16::try_from(found.value).ok()).unwrap_or(default.buffers),
            buffer_bytes: buffer_bytes
                .and_then(|found| u32::try_from(found.value).ok())
                .unwrap_or(default.buffer_bytes),
            batch_wait,
            handshake_timeout,
            handshake_share: handshake_share
                .and_then(|found| u8::try_from(found.value).ok())
                .unwrap_or(default.handshake_share),
            handshake_patience,
            connect_timeout,
            idle_timeout,
        }
    }

    fn admin(&mut self, root: &mut Section<'_>) -> Option<Located<SocketAddr>> {
        let mut section = root.table(&mut self.problems, "admin")?;
        let address = section.address(&mut self.problems, "address", AddressUse::ListenOnce);
        if !section.has("address") {
            let remedy = "write address = \"127.0.0.1:9901\", or remove [admin]";
            self.problems.error(&section.place_of("address"), "is missing", remedy);
        }
        section.close(&mut self.problems);
        address
    }

    fn log(&mut self, root: &mut Section<'_>) -> LogConfig {
        let default = LogConfig::default();
        let problems = &mut self.problems;
        let Some(mut section) = root.table(problems, "log") else { return default };
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let levels = [
            ("error", tracing::Level::ERROR),
            ("warn", tracing::Level::WARN),
            ("info", tracing::Level::INFO),
            ("debug", tracing::Level::DEBUG),
            ("trace", tracing::Level::TRACE),
        ];
        let format = section.choice(problems, "format", default.format, &formats);
        let level = section.choice(problems, "level", default.level, &levels);
        section.close(problems);
        LogConfig { format, level }
    }

    /// `ocsp`, for those who may be asked for it: servers.
    pub(super) fn ocsp_path(&mut self, section: &mut Section<'_>) -> Option<Located<PathBuf>> {
        section.text(&mut self.problems, "ocsp").map(|found| self.relative(found))
    }

    /// `certificate` and `key`.
    pub(super) fn identity(&mut self, section: &mut Section<'_>, ocsp: Option<Located<PathBuf>>) -> Option<Identity> {
        let certificate = self.pem_path(section, "certificate");
        let key = self.pem_path(section, "key");
        let files = IdentityFiles { certificate: certificate?, key: key?, ocsp };
        Identity::load(&mut self.problems, &files, self.here.now)
    }

    /// `address` and `backlog`. With it, where the addresses stand.
    pub(super) fn endpoint(&mut self, section: &mut Section<'_>) -> Option<(Endpoint, Vec<Located<SocketAddr>>)> {
        let addresses = section.addresses(&mut self.problems, "address", AddressUse::Listen);
        let backlog = section.number(&mut self.problems, "backlog", 1..=65_535);
        let addresses = addresses?;
        let endpoint = Endpoint {
            addresses: addresses.iter().map(|address| address.value).collect(),
            backlog: backlog.and_then(|found| u32::try_from(found.value).ok()).unwrap_or(defaults::BACKLOG),
        };
        Some((endpoint, addresses))
    }

    /// A table that must be there. `remedy` says what to write.
    pub(super) fn table_required<'t>(
        &mut self,
        root: &mut Section<'t>,
        key: &'static str,
        remedy: &str,
    ) -> Option<Section<'t>> {
        if !root.has(key) {
            self.problems.error(&Place::of(key), "is missing", remedy);
        }
        root.table(&mut self.problems, key)
    }

    pub(super) fn authorities(&mut self, section: &mut Section<'_>, key: &'static str) -> Option<Authorities> {
        let file = self.pem_path(section, key)?;
        Authorities::load(&mut self.problems, &file, self.here.now)
    }

    fn pem_path(&mut self, section: &mut Section<'_>, key: &'static str) -> Option<Located<PathBuf>> {
        let remedy = format!("write {key} = \"FILE\" (PEM, relative to this file); `trunkline certs` makes some");
        let found = section.text_required(&mut self.problems, key, &remedy)?;
        Some(self.relative(found))
    }

    /// A path as it stands in the file, from where the process runs.
    pub(super) fn relative(&self, found: Located<String>) -> Located<PathBuf> {
        let directory = self.file.parent().unwrap_or(Path::new(""));
        Located { value: directory.join(found.value), place: found.place }
    }

    pub(super) fn check_addresses_once<'l>(&mut self, addresses: impl Iterator<Item = &'l Located<SocketAddr>>) {
        let mut once = Once::default();
        for address in addresses.filter(|address| address.value.port() != 0) {
            once.check(&mut self.problems, Some(address), "choose another port for one of the two");
        }
    }
}

fn read_config(file: &Path) -> Result<String, Problems> {
    let (what, remedy) = match read_bounded(file, CONFIG_BYTES_MAX) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => return Ok(text),
            Err(_) => ("is not UTF-8 text".to_owned(), "give a TOML file"),
        },
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound => ("no such file".to_owned(), "correct the path given with --config"),
            std::io::ErrorKind::PermissionDenied => {
                ("may not be read".to_owned(), "let the user this process runs as read it")
            }
            _ => (format!("cannot be read: {error}"), "give a TOML file of at most 1 MiB with --config"),
        },
    };
    let mut problems = Problems::new(file.to_path_buf());
    problems.error(&Place::default(), what, remedy);
    Err(problems)
}

/// Values that may stand once, and where they were first seen.
pub(super) struct Once<T> {
    seen: Vec<Located<T>>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Once { seen: Vec::new() }
    }
}

impl<T: PartialEq + Clone + std::fmt::Display> Once<T> {
    pub(super) fn check(&mut self, problems: &mut Problems, found: Option<&Located<T>>, remedy: &str) {
        let Some(found) = found else { return };
        match self.seen.iter().find(|other| other.value == found.value) {
            Some(other) => {
                let (key, line) = (&other.place.key, other.place.line);
                let what = format!("{} stands already in {key} (line {line})", found.value);
                problems.error(&found.place, what, remedy);
            }
            None => self.seen.push(found.clone()),
        }
    }
}
