//! Reads a node into [`Facts`]: files below a root directory, the configuration, and trials.
//!
//! Below another root than `/` stand files of another node, or planted ones: then nothing is asked of this machine's
//! files, while trials (io_uring, addresses, peers) are made from here all the same. What the kernel tells through a
//! system call alone is then read from a file with the output of the tool for it: `adjtimex --print > DIR/adjtimex`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::facts::{Certificate, Clock, Config, Facts, Interrupt, Node, Plan, Process, Settings};
use super::network::DROPS;
use super::probe;
use super::root::{Root, core_list, text_of};
use super::sysctl::{recommended, single_spaced};
use crate::ring;
use crate::server::certificates::{Authorities, validity};
use crate::server::config::{ClientAuth, Configuration, GatewayConfig, PopConfig, Surroundings};
use crate::server::health::ProcessRole;
use crate::server::problems::{Problem, Problems};

/// Status bit of adjtimex(2): nothing keeps the clock to the time of others.
const STA_UNSYNC: u32 = 0x40;

/// Bit of CAP_IPC_LOCK in a set of capabilities (capabilities(7)).
const CAP_IPC_LOCK: u64 = 1 << 14;

/// A date from here on, in seconds since 1970, has more than four digits in its year, which the calendar does not tell.
const YEAR_10000_S: u64 = 253_402_300_800;

/// A limit of cgroup v1 from here on is none: it is the largest multiple of a page there is.
const MEMORY_UNLIMITED: u64 = 1 << 60;

/// Cgroups above one another that are looked at.
const CGROUP_DEPTH_MAX: usize = 64;

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration of the node, if there is one.
    pub config: Option<PathBuf>,
    /// What the node is; None: what the configuration says, else a POP.
    pub role: Option<ProcessRole>,
    /// Where `/proc` and `/sys` are.
    pub root: PathBuf,
}

/// Reads the node and makes the trials. Takes a few seconds when a peer does not answer, and as many again for every further
/// sixteen that do not.
///
/// # Errors
/// When the root is no directory.
pub fn gather(options: &Options) -> io::Result<Facts> {
    if !std::fs::metadata(&options.root)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let root = Root::new(&options.root);
    let now = date(&root);
    let mut process = process(&root, "self");
    let role = options.role.unwrap_or_else(|| options.config.as_deref().map_or(ProcessRole::Pop, role_of));
    let (mut settings, config) = match &options.config {
        Some(file) => settings(file, role, &process, now),
        None => (Settings::default(), None),
    };
    let trials = probe::trials(&root, config.as_ref(), &mut settings.problems);
    let holders = trials.listens.iter().filter_map(|listen| listen.holder.as_ref());
    let running = holders.filter(|(_, name)| name == "trunkline").map(|(id, _)| *id).next();
    if let Some(id) = running.filter(|_| root.is_here()) {
        process = of_running(&root, id, &process);
    }
    Ok(Facts { role, now, node: node(&root, role), process, settings, trials })
}

/// What the tables of a configuration say of its role; a POP where they say nothing.
fn role_of(file: &Path) -> ProcessRole {
    let text = text_of(file).unwrap_or_default();
    let is_gateway = |line: &str| line.starts_with("[[service]]") || line.starts_with("[upstream]");
    if text.lines().any(|line| is_gateway(line.trim())) { ProcessRole::Gateway } else { ProcessRole::Pop }
}

/// The node's date. Another root tells it by when it started and how long it has been up.
fn date(root: &Root) -> SystemTime {
    let told = || {
        let stat = root.text("proc/stat")?;
        let started: u64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let up: f64 = root.text("proc/uptime")?.split_whitespace().next()?.parse().ok()?;
        let up = Duration::try_from_secs_f64(up).ok()?;
        let now = Duration::from_secs(started).checked_add(up)?;
        // It may be anything that somebody wrote into a file.
        (now.as_secs() < YEAR_10000_S).then(|| SystemTime::UNIX_EPOCH + now)
    };
    if root.is_here() { SystemTime::now() } else { told().unwrap_or_else(SystemTime::now) }
}

// ---- the configuration ----

fn settings(file: &Path, role: ProcessRole, process: &Process, now: SystemTime) -> (Settings, Option<Config>) {
    let mut here = Surroundings::here();
    here.now = now;
    if let Some(cores) = &process.cores_allowed {
        here.cores.clone_from(cores);
    }
    if let Some((_, hard)) = process.descriptors {
        here.descriptors = hard;
    }
    let mut loaded = load(file, role, &here);
    if let Err(problems) = &loaded
        && problems.list().iter().any(|problem| problem.place.key == "cores")
    {
        // Cores have a check of their own with more to say. What else there is need not go unsaid for their sake.
        let anywhere = Surroundings { cores: Vec::new(), ..here };
        loaded = load(file, role, &anywhere).or(loaded);
    }
    let mut settings = Settings { file: Some(file.to_path_buf()), ..Settings::default() };
    match loaded {
        Ok((config, warnings)) => {
            settings.plan = Some(plan(&config));
            settings.certificates = certificates(&config);
            // As above: the check of limits says more.
            settings.problems =
                warnings.into_iter().filter(|problem| problem.place.key != "worker.clients_max").collect();
            (settings, Some(config))
        }
        Err(problems) => {
            settings.problems = problems.list().to_vec();
            (settings, None)
        }
    }
}

fn load(file: &Path, role: ProcessRole, here: &Surroundings) -> Result<(Config, Vec<Problem>), Problems> {
    Ok(match role {
        ProcessRole::Pop => {
            let (config, warnings) = PopConfig::load_at(file, here)?;
            (Config::Pop(Box::new(config)), warnings)
        }
        ProcessRole::Gateway => {
            let (config, warnings) = GatewayConfig::load_at(file, here)?;
            (Config::Gateway(Box::new(config)), warnings)
        }
    })
}

fn plan(config: &Config) -> Plan {
    let (process, upstream_connections_max, trunks) = match config {
        Config::Pop(config) => {
            let backbone = &config.backbone;
            (&config.process, 0, backbone.trunks_per_core * backbone.gateways.len())
        }
        Config::Gateway(config) => (&config.process, config.upstream.connections_max, 0),
    };
    let worker = &process.worker;
    Plan {
        cores: process.cores.clone(),
        clients_max: worker.clients_max,
        upstream_connections_max,
        trunks,
        buffer_bytes: u64::from(worker.buffers) * u64::from(worker.buffer_bytes),
    }
}

fn certificates(config: &Config) -> Vec<Certificate> {
    let mut found = Vec::new();
    let mut add = |key: String, file: &Path, chain: &[Vec<u8>]| {
        for (index, der) in chain.iter().enumerate() {
            let Some((not_before, not_after)) = validity(der) else { continue };
            found.push(Certificate {
                key: key.clone(),
                file: file.to_path_buf(),
                number: index + 1,
                not_before,
                not_after,
            });
        }
    };
    let (identities, authorities) = match config {
        Config::Pop(config) => (config.identities(), pop_authorities(config)),
        Config::Gateway(config) => {
            let trunks = config.listener.tls.as_ref();
            let authorities = trunks.map(|tls| ("listen.client_ca".to_owned(), &tls.authorities));
            (config.identities(), authorities.into_iter().collect())
        }
    };
    for (table, identity) in identities {
        add(format!("{table}.certificate"), &identity.certificate_file, &identity.chain);
    }
    for (key, authorities) in authorities {
        add(key, &authorities.file, &authorities.roots);
    }
    found
}

fn pop_authorities(config: &PopConfig) -> Vec<(String, &Authorities)> {
    let trunks = config.backbone.tls.as_ref();
    let mut found: Vec<_> = trunks.map(|tls| ("backbone.ca".to_owned(), &tls.authorities)).into_iter().collect();
    for (index, listener) in config.listeners.iter().enumerate() {
        if let ClientAuth::Optional(authorities) | ClientAuth::Required(authorities) = &listener.client_auth {
            found.push((format!("listen[{index}].client_ca"), authorities));
        }
    }
    found
}

// ---- the process ----

/// What the process of this id, or `self`, may use.
fn process(root: &Root, id: &str) -> Process {
    let limits = root.text(&format!("proc/{id}/limits")).unwrap_or_default();
    let status = root.text(&format!("proc/{id}/status")).unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let groups = root.text(&format!("proc/{id}/cgroup")).unwrap_or_default();
    Process {
        running: None,
        descriptors: limit(&limits, "Max open files"),
        descriptors_open: None,
        locked_bytes: limit(&limits, "Max locked memory").map(|(soft, _)| soft),
        may_lock: may_lock(&status),
        cores_allowed: allowed.and_then(core_list),
        quota_millicores: quota(root, &groups),
        memory_bytes_max: memory_max(root, &groups),
    }
}

/// What the process that runs may use; what this user may not see of it stays as it is here.
fn of_running(root: &Root, id: u32, own: &Process) -> Process {
    let found = process(root, &id.to_string());
    let open = root.names(&format!("proc/{id}/fd")).len() as u64;
    Process {
        running: Some(id),
        descriptors_open: (open > 0).then_some(open),
        descriptors: found.descriptors.or(own.descriptors),
        locked_bytes: found.locked_bytes.or(own.locked_bytes),
        // Its threads are pinned to their cores: what it might use is not to be seen from outside.
        cores_allowed: own.cores_allowed.clone(),
        ..found
    }
}

/// Whether CAP_IPC_LOCK is among the effective capabilities in `/proc/PID/status`.
fn may_lock(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits & CAP_IPC_LOCK != 0)
}

/// Soft and hard limit of this name in `/proc/PID/limits`.
fn limit(limits: &str, name: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut fields = line.split_whitespace();
    let mut next = || match fields.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some((next()?, next()?))
}

/// The directories of a controller's cgroups, the process's own first. Version 2 has one hierarchy for all; of version 1,
/// the mount is named by the controllers it has.
fn cgroups(groups: &str, controller: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let is_second = controllers.is_empty();
        let mounts = match is_second {
            true => vec![String::new(), "unified".to_owned()],
            false if controllers.split(',').any(|each| each == controller) => {
                vec![controllers.to_owned(), controller.to_owned()]
            }
            false => continue,
        };
        let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
        for mount in mounts {
            for depth in (0..=parts.len().min(CGROUP_DEPTH_MAX)).rev() {
                found.push((format!("sys/fs/cgroup/{mount}/{}", parts[..depth].join("/")), is_second));
            }
        }
    }
    found
}

/// The strictest quota, in thousandths of a core.
fn quota(root: &Root, groups: &str) -> Option<u64> {
    let each = cgroups(groups, "cpu").into_iter().filter_map(|(directory, is_second)| {
        let (quota, period): (u64, u64) = if is_second {
            let text = root.text(&format!("{directory}/cpu.max"))?;
            let (quota, period) = text.split_once(' ')?;
            (quota.parse().ok()?, period.parse().ok()?)
        } else {
            // A quota of -1 is none, and no u64.
            let quota = root.number(&format!("{directory}/cpu.cfs_quota_us"))?;
            (quota, root.number(&format!("{directory}/cpu.cfs_period_us"))?)
        };
        quota.checked_mul(1000)?.checked_div(period)
    });
    each.min()
}

/// The strictest limit of memory, in bytes.
fn memory_max(root: &Root, groups: &str) -> Option<u64> {
    let each = cgroups(groups, "memory").into_iter().filter_map(|(directory, is_second)| {
        let file = if is_second { "memory.max" } else { "memory.limit_in_bytes" };
        root.number(&format!("{directory}/{file}")).filter(|bytes| *bytes < MEMORY_UNLIMITED)
    });
    each.min()
}

// ---- the machine ----

fn node(root: &Root, role: ProcessRole) -> Node {
    let online = root.cores("sys/devices/system/cpu/online").unwrap_or_default();
    let of_core = |core: usize, file: &str| format!("sys/devices/system/cpu/cpu{core}/{file}");
    let siblings = |core: &usize| Some((*core, root.cores(&of_core(*core, "topology/thread_siblings_list"))?));
    let governor = |core: &usize| Some((*core, root.text(&of_core(*core, "cpufreq/scaling_governor"))?));
    let sysctl = |key: &str| root.text(&format!("proc/sys/{}", key.replace('.', "/")));
    // Without any sysctl there is no /proc to ask.
    let has_sysctls = root.path("proc/sys").is_dir();
    let asked = recommended(role).into_iter().filter(|_| has_sysctls);
    let pair = |text: String| {
        let mut fields = text.split_whitespace().map(str::to_owned);
        Some((fields.next()?, fields.next_back()?))
    };
    Node {
        release: sysctl("kernel.osrelease"),
        io_uring_disabled: sysctl("kernel.io_uring_disabled").and_then(|text| text.parse().ok()),
        cores_isolated: root.cores("sys/devices/system/cpu/isolated").unwrap_or_default(),
        siblings: online.iter().filter_map(siblings).collect(),
        governors: online.iter().filter_map(governor).collect(),
        cores_online: online,
        interrupts: interrupts(root),
        memory_bytes: memory(root),
        huge_pages: root.text("sys/kernel/mm/transparent_hugepage/enabled").and_then(|text| {
            let (_, rest) = text.split_once('[')?;
            Some(rest.split_once(']')?.0.to_owned())
        }),
        sysctls: asked.map(|asked| (asked.key.clone(), sysctl(&asked.key).map(|text| single_spaced(&text)))).collect(),
        congestion_available: sysctl("net.ipv4.tcp_available_congestion_control")
            .map(|text| text.split_whitespace().map(str::to_owned).collect()),
        local_ports: sysctl("net.ipv4.ip_local_port_range")
            .and_then(pair)
            .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?))),
        time_wait: time_wait(root),
        tcp: tcp_figures(&root.text("proc/net/netstat").unwrap_or_default()).collect(),
        files: sysctl("fs.file-nr")
            .and_then(pair)
            .and_then(|(open, max)| Some((open.parse().ok()?, max.parse().ok()?))),
        clock: clock(root),
    }
}

fn memory(root: &Root) -> Option<u64> {
    let text = root.text("proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn time_wait(root: &Root) -> Option<u64> {
    let text = root.text("proc/net/sockstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut fields = line.split_whitespace().skip_while(|field| *field != "tw");
    fields.nth(1)?.parse().ok()
}

/// The figures that are asked for, of the pair of lines that begins with `TcpExt:`.
fn tcp_figures(text: &str) -> impl Iterator<Item = (String, u64)> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let each = names.split_whitespace().zip(values.split_whitespace());
    let asked = |(name, _): &(&str, &str)| DROPS.iter().any(|drop| drop.0 == *name);
    each.filter(asked).filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
}

fn clock(root: &Root) -> Option<Clock> {
    if root.is_here() {
        let clock = ring::clock_state().ok()?;
        return Some(Clock { is_synchronised: clock.is_synchronised, error_max: clock.error_max });
    }
    let text = root.text("adjtimex")?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    };
    let status = u32::try_from(field("status")?).ok()?;
    Some(Clock {
        is_synchronised: status & STA_UNSYNC == 0,
        error_max: Duration::from_micros(field("maxerror").unwrap_or(0)),
    })
}

/// Interrupts that belong to a network interface with a device behind it: by their number, or by the name of the
/// interface or, of a virtual one, of its device.
fn interrupts(root: &Root) -> Vec<Interrupt> {
    let (mut numbers, mut prefixes) = (Vec::new(), Vec::new());
    for interface in root.names("sys/class/net").into_iter().filter(|name| name != "lo") {
        let device = format!("sys/class/net/{interface}/device");
        numbers.extend(root.names(&format!("{device}/msi_irqs")).iter().filter_map(|name| name.parse::<u32>().ok()));
        if root.path(&device).exists() {
            prefixes.extend(root.link_name(&device).map(|device| format!("{device}-")));
            prefixes.push(format!("{interface}-"));
            prefixes.push(interface);
        }
    }
    let text = root.text("proc/interrupts").unwrap_or_default();
    let mut lines = text.lines();
    let cores: Vec<usize> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|name| name.strip_prefix("CPU")?.parse().ok())
        .collect();
    let one = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let number: u32 = number.trim().parse().ok()?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let name = (*fields.last()?).to_owned();
        let is_ours = |prefix: &String| name == *prefix || (prefix.ends_with('-') && name.starts_with(prefix.as_str()));
        if !numbers.contains(&number) && !prefixes.iter().any(is_ours) {
            return None;
        }
        let counts = cores.iter().copied().zip(fields.iter().map_while(|field| field.parse().ok())).collect();
        let cores = root.cores(&format!("proc/irq/{number}/smp_affinity_list")).unwrap_or_default();
        Some(Interrupt { number, name, counts, cores })
    };
    lines.filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A root directory with these files.
    fn planted(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("our own directory");
            std::fs::write(path, text).expect("our own directory");
        }
        let root = Root::new(directory.path());
        (directory, root)
    }

    #[test]
    fn limits_and_cores_of_a_process_are_read() {
        let (_directory, root) = planted(&[
            (
                "proc/self/limits",
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max open files            1024                 unlimited            files\n\
                 Max locked memory         8388608              8388608              bytes\n",
            ),
            ("proc/self/status", "Name:\tx\nCapEff:\t0000000000004000\nCpus_allowed_list:\t0-1,4\n"),
            ("proc/8/status", "CapEff:\t000001ffffffbfff\n"),
        ]);
        let found = process(&root, "self");
        assert!(found.may_lock && !process(&root, "8").may_lock && !process(&root, "9").may_lock);
        assert_eq!(found.descriptors, Some((1024, u64::MAX)));
        assert_eq!((found.locked_bytes, found.cores_allowed), (Some(8_388_608), Some(vec![0, 1, 4])));
        let nothing = process(&root, "7");
        assert_eq!((nothing.descriptors, nothing.quota_millicores, nothing.memory_bytes_max), (None, None, None));
    }

    #[test]
    fn the_strictest_cgroup_counts_in_both_versions() {
        let (_directory, root) = planted(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/cpu.max", "max 100000"),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000"),
            ("sys/fs/cgroup/a/b/cpu.max", "200000 100000"),
            ("sys/fs/cgroup/a/memory.max", "max"),
            ("sys/fs/cgroup/a/b/memory.max", "1048576"),
        ]);
        let found = process(&root, "self");
        assert_eq!((found.quota_millicores, found.memory_bytes_max), (Some(1500), Some(1_048_576)));
        let (_directory, root) = planted(&[
            ("proc/self/cgroup", "4:memory:/x\n2:cpu,cpuacct:/../x\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000"),
            ("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "50000"),
            ("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712"),
        ]);
        let found = process(&root, "self");
        assert_eq!((found.quota_millicores, found.memory_bytes_max), (Some(500), None));
        // A period of nothing is no division by it.
        let (_directory, root) = planted(&[
            ("proc/self/cgroup", "0::/"),
            ("sys/fs/cgroup/cpu.max", "1 0"),
            ("sys/fs/cgroup/memory.max", "x"),
        ]);
        assert_eq!(process(&root, "self").quota_millicores, None);
    }

    #[test]
    fn interrupts_of_interfaces_are_found_by_number_and_by_name() {
        let (directory, root) = planted(&[
            (
                "proc/interrupts",
                "           CPU0       CPU2\n 24:          1          0  IO-APIC   5-edge      ACPI:Ged\n \
                 41:       9505          3 PCI-MSIX-0000:00:04.0   1-edge      virtio3-rx\n \
                 50:          7          8 PCI-MSI 1-edge mlx5_comp0@pci\n \
                 60:          1          1 PCI-MSI 1-edge eth10-rx\nNMI:          0          0   Non-maskable\n",
            ),
            ("proc/irq/41/smp_affinity_list", "0-2"),
            ("sys/class/net/eth1/device/msi_irqs/50", "msi"),
            ("sys/class/net/lo/mtu", "65536"),
            ("devices/virtio3/x", ""),
        ]);
        std::fs::create_dir(directory.path().join("sys/class/net/eth0")).expect("our own directory");
        symlink("../../../../devices/virtio3", directory.path().join("sys/class/net/eth0/device")).expect("a link");
        let found = interrupts(&root);
        let told: Vec<(u32, &str)> = found.iter().map(|each| (each.number, each.name.as_str())).collect();
        assert_eq!(told, [(41, "virtio3-rx"), (50, "mlx5_comp0@pci")]);
        assert_eq!((&found[0].counts, &found[0].cores), (&vec![(0, 9505), (2, 3)], &vec![0, 1, 2]));
    }

    #[test]
    fn figures_date_and_clock_of_another_node_are_read() {
        let (_directory, root) = planted(&[
            (
                "proc/net/netstat",
                "TcpExt: SyncookiesSent ListenOverflows TCPRcvQDrop\nTcpExt: 1 2 3\nIpExt: A\nIpExt: 1\n",
            ),
            ("proc/net/sockstat", "sockets: used 4\nTCP: inuse 18 orphan 0 tw 68 alloc 18 mem 2\n"),
            ("proc/stat", "cpu 1 2\nbtime 1000000\n"),
            ("proc/uptime", "50.25 9.0\n"),
            ("adjtimex", "         mode: 0\n     maxerror: 16000000\n       status: 64\n"),
            ("proc/meminfo", "MemTotal:       1024 kB\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
            ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"),
            ("proc/sys/fs/file-nr", "100\t0\t2000"),
        ]);
        let node = node(&root, ProcessRole::Pop);
        assert_eq!(
            node.tcp.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>(),
            [("ListenOverflows", 2), ("TCPRcvQDrop", 3)]
        );
        assert_eq!((node.time_wait, node.memory_bytes), (Some(68), Some(1 << 20)));
        assert_eq!((node.local_ports, node.files), (Some((32_768, 60_999)), Some((100, 2000))));
        assert_eq!(node.huge_pages.as_deref(), Some("madvise"));
        assert_eq!(date(&root), SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_050_250));
        let clock = node.clock.expect("it is planted");
        assert_eq!((clock.is_synchronised, clock.error_max), (false, Duration::from_secs(16)));
    }

    #[test]
    fn an_empty_root_tells_nothing_and_wrong_ones_are_no_panic() {
        let (_directory, root) = planted(&[]);
        let node = node(&root, ProcessRole::Gateway);
        assert!(node.release.is_none() && node.sysctls.is_empty() && node.tcp.is_empty() && node.clock.is_none());
        let junk = "\u{1b}[2J 99999999999999999999 : \n-1 x\0 TcpExt: a\nTcpExt: 1\nTCP: tw\nMax open files\n";
        let names = [
            "proc/interrupts",
            "proc/net/netstat",
            "proc/net/sockstat",
            "proc/stat",
            "proc/uptime",
            "adjtimex",
            "proc/self/limits",
            "proc/self/status",
            "proc/self/cgroup",
            "sys/devices/system/cpu/online",
            "proc/sys/kernel/osrelease",
            "proc/sys/fs/file-nr",
            "proc/sys/net/ipv4/ip_local_port_range",
        ];
        let (_directory, root) = planted(&names.map(|name| (name, junk)));
        let _ = (super::node(&root, ProcessRole::Pop), process(&root, "self"), date(&root));
        // The last moment of the year 9999, and one that no calendar has a name for.
        for (started, is_taken) in [("253402300798", true), ("253402300799", false), ("18446744073709551615", false)] {
            let text = format!("btime {started}\n");
            let (_directory, root) = planted(&[("proc/stat", &text), ("proc/uptime", "1.00 1.00")]);
            let found = date(&root);
            assert_eq!(time::OffsetDateTime::from(found).year() == 9999, is_taken, "{started}");
        }
        let missing = Options { config: None, role: None, root: PathBuf::from("/nonexistent/root") };
        assert!(gather(&missing).is_err());
    }

    #[test]
    fn the_role_is_what_the_tables_say() {
        let (directory, _) = planted(&[("a", "[[service]]\n"), ("b", "[backbone]\n"), ("c", "nonsense")]);
        let role = |name: &str| role_of(&directory.path().join(name));
        assert_eq!((role("a"), role("b"), role("c")), (ProcessRole::Gateway, ProcessRole::Pop, ProcessRole::Pop));
        // What never ends is no configuration, and nobody waits for its end.
        assert_eq!(role_of(Path::new("/dev/zero")), ProcessRole::Pop);
    }
}
