//! Checks of limits: descriptors, locked memory, memory, and time of the processor, against what the configuration
//! asks for.

use super::facts::{Facts, Plan};
use super::finding::{Finding, Group};
use crate::server::defaults::DESCRIPTORS_RESERVED;
use crate::server::health::ProcessRole;

/// Memory of an idle connection, in bytes, as docs/CONFIG.md reckons it.
const CONNECTION_BYTES: u64 = 4096;

/// Memory of a process without connections and receive buffers, in bytes: a generous guess.
const PROCESS_BYTES: u64 = 64 << 20;

/// A process that has more of its descriptors open than this, in percent, is told of.
const DESCRIPTORS_OPEN_PERCENT: u64 = 80;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let all = [
        descriptors(facts),
        descriptors_open(facts),
        files(facts),
        locked(facts),
        memory(facts),
        quota(facts),
        disks_full(facts),
    ];
    all.into_iter().flatten().collect()
}

/// Whose limits were read.
fn whose(facts: &Facts) -> String {
    match facts.process.running {
        Some(id) => format!("of the running process {id}"),
        None => "of this process; a service has its own".to_owned(),
    }
}

/// Descriptors that the whole process needs when its workers are full.
fn descriptors_needed(role: ProcessRole, plan: &Plan) -> u64 {
    let each = match role {
        // Trunks are among the reserved.
        ProcessRole::Pop => plan.clients_max,
        // Trunks are few; what fills a gateway are connections to upstreams.
        ProcessRole::Gateway => plan.upstream_connections_max,
    };
    plan.cores.len() as u64 * each as u64 + DESCRIPTORS_RESERVED
}

fn limit_text(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

fn descriptors(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Limits, "descriptors (RLIMIT_NOFILE)");
    let (soft, hard) = facts.process.descriptors?;
    // A process that runs has raised its soft limit, or could not.
    let limit = if facts.process.running.is_some() { soft } else { hard };
    let found = format!("{} ({})", limit_text(limit), whose(facts));
    let Some(plan) = &facts.settings.plan else { return Some(Finding::ok(group, name, found)) };
    let needed = descriptors_needed(facts.role, plan);
    let workers = match plan.cores.len() {
        1 => "1 worker".to_owned(),
        workers => format!("{workers} workers"),
    };
    let what = match facts.role {
        ProcessRole::Pop => format!("{workers} with {} clients each", plan.clients_max),
        ProcessRole::Gateway => format!("{workers} with {} upstream connections each", plan.upstream_connections_max),
    };
    let finding = if limit < needed {
        let remedy = format!(
            "LimitNOFILE={} in the service's unit (ulimit -n for a shell), or less in worker.clients_max \
             or upstream.connections_max",
            needed.next_power_of_two()
        );
        Finding::fault(group, name, found, remedy).why("at the limit, new connections are refused")
    } else {
        Finding::ok(group, name, found)
    };
    Some(finding.expected(format!("{needed} or more for {what}")))
}

fn descriptors_open(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Limits, "descriptors open");
    let (open, (limit, _)) = (facts.process.descriptors_open?, facts.process.descriptors?);
    let found = format!("{open} of {}", limit_text(limit));
    Some(if open >= limit / 100 * DESCRIPTORS_OPEN_PERCENT {
        let remedy = "raise LimitNOFILE in the service's unit, or add a node";
        Finding::warning(group, name, found, remedy)
            .expected(format!("less than {DESCRIPTORS_OPEN_PERCENT} %"))
            .why("at the limit, new connections are refused")
    } else {
        Finding::ok(group, name, found)
    })
}

fn files(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Limits, "descriptors of the machine");
    let (open, max) = facts.node.files?;
    let found = format!("{open} of {}", limit_text(max));
    Some(if open >= max / 100 * DESCRIPTORS_OPEN_PERCENT {
        Finding::warning(group, name, found, format!("sysctl -w fs.file-max={}", max.saturating_mul(2)))
            .why("at the limit, no process of this machine opens anything")
    } else {
        Finding::ok(group, name, found)
    })
}

fn locked(facts: &Facts) -> Option<Finding> {
    let bytes = facts.process.locked_bytes?;
    let found = if bytes == u64::MAX { "unlimited".to_owned() } else { format!("{} KiB", bytes >> 10) };
    let about = "rings count towards it, about 1 MiB a worker, for all processes of the user";
    Some(Finding::ok(Group::Limits, "locked memory (RLIMIT_MEMLOCK)", format!("{found}; {about}")))
}

fn memory(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Limits, "memory");
    let (process, machine) = (facts.process.memory_bytes_max, facts.node.memory_bytes);
    let (bytes, of) = match (process, machine) {
        (Some(process), machine) if machine.is_none_or(|machine| process < machine) => (process, "of the cgroup"),
        (_, Some(machine)) => (machine, "of the machine"),
        (_, None) => return None,
    };
    let found = format!("{} MiB {of}", bytes >> 20);
    let Some(plan) = &facts.settings.plan else { return Some(Finding::ok(group, name, found)) };
    let each = plan.buffer_bytes + CONNECTION_BYTES * plan.clients_max as u64;
    let needed = PROCESS_BYTES + each * plan.cores.len() as u64;
    let finding = if bytes < needed {
        let remedy = format!(
            "MemoryMax={}M in the service's unit, or less in worker.clients_max or worker.buffers",
            (needed >> 20).next_multiple_of(64)
        );
        Finding::warning(group, name, found, remedy).why("the kernel kills a process that is over its limit")
    } else {
        Finding::ok(group, name, found)
    };
    Some(finding.expected(format!("{} MiB or more when all workers are full of idle connections", needed >> 20)))
}

fn quota(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Limits, "time of the processor (cgroup)");
    let quota = facts.process.quota_millicores?;
    let found = format!("{}.{:02} cores", quota / 1000, quota % 1000 / 10);
    let workers = facts.settings.plan.as_ref().map_or(1, |plan| plan.cores.len()) as u64;
    Some(if quota < workers * 1000 {
        let cores = (quota / 1000).max(1);
        let remedy = format!(
            "CPUQuota={}% in the service's unit (Kubernetes: a cpu limit of {workers}, or none), or only {cores} in cores",
            workers * 100
        );
        Finding::warning(group, name, found, remedy)
            .expected(format!("{workers}.00, one for each worker"))
            .why("a worker that is out of quota stands still for up to 100 ms with all its connections")
    } else {
        Finding::ok(group, name, found)
    })
}

/// Bytes that should be free, at least, and so much of the file system, in percent.
const FREE_BYTES_MIN: u64 = 64 << 20;
const FREE_PERCENT_MIN: u64 = 2;

fn disks_full(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Limits, "disk");
    let is_full = |free: u64, bytes: u64| free < FREE_BYTES_MIN.min(bytes / 4) || free < bytes / 100 * FREE_PERCENT_MIN;
    let disks = &facts.trials.disks;
    let text = |free: u64| format!("{} MiB free", free >> 20);
    let full = disks.iter().find(|disk| disk.bytes > 0 && is_full(disk.free_bytes, disk.bytes));
    if let Some(disk) = full {
        let (path, purpose) = (disk.path.display(), disk.purpose);
        let found = format!("{} in {path} ({purpose})", text(disk.free_bytes));
        return Some(
            Finding::warning(group, name, found, format!("make room there: `du -xh {path} | sort -h | tail`"))
                .expected(format!("{} MiB and {FREE_PERCENT_MIN} %", FREE_BYTES_MIN >> 20))
                .why("new keys and certificates cannot be written, log lines are lost"),
        );
    }
    let each: Vec<String> =
        disks.iter().map(|disk| format!("{} in {}", text(disk.free_bytes), disk.path.display())).collect();
    (!each.is_empty()).then(|| Finding::ok(group, name, each.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Disk;
    use crate::doctor::facts::sample as facts;
    use crate::doctor::finding::Level;

    #[test]
    fn a_limit_below_what_the_workers_need_is_a_fault_with_the_number_to_set() {
        let mut facts = facts();
        let plan = facts.settings.plan.as_mut().expect("there is one");
        (plan.cores, plan.clients_max) = (vec![0, 1], 10_000);
        facts.process.descriptors = Some((1024, 20_512));
        assert_eq!(descriptors(&facts).expect("known").level, Level::Ok);
        facts.process.descriptors = Some((1024, 20_511));
        let finding = descriptors(&facts).expect("known");
        assert_eq!(finding.level, Level::Fault);
        assert!(finding.remedy.contains("LimitNOFILE=32768"), "{finding:?}");
        // One that runs has what it has.
        facts.process.descriptors = Some((1024, u64::MAX));
        facts.process.running = Some(7);
        assert_eq!(descriptors(&facts).expect("known").level, Level::Fault);
        facts.role = ProcessRole::Gateway;
        assert_eq!(descriptors(&facts).expect("known").level, Level::Ok, "its upstreams need none here");
    }

    #[test]
    fn open_descriptors_near_the_limit_are_warned_of() {
        let mut facts = facts();
        facts.process.descriptors = Some((1000, 1000));
        for (open, level) in [(799, Level::Ok), (800, Level::Warning)] {
            facts.process.descriptors_open = Some(open);
            assert_eq!(descriptors_open(&facts).expect("known").level, level);
            facts.node.files = Some((open, 1000));
            assert_eq!(files(&facts).expect("known").level, level);
        }
    }

    #[test]
    fn a_quota_below_the_workers_is_warned_of() {
        let mut facts = facts();
        facts.settings.plan.as_mut().expect("there is one").cores = vec![0, 1];
        for (quota, level) in [(2000, Level::Ok), (1999, Level::Warning), (500, Level::Warning)] {
            facts.process.quota_millicores = Some(quota);
            let finding = quota_of(&facts);
            assert_eq!(finding.level, level);
            assert!(level == Level::Ok || finding.remedy.contains("CPUQuota=200%"), "{finding:?}");
        }
    }

    fn quota_of(facts: &Facts) -> Finding {
        quota(facts).expect("known")
    }

    #[test]
    fn memory_is_that_of_the_cgroup_where_it_is_less() {
        let mut facts = facts();
        facts.node.memory_bytes = Some(64 << 30);
        facts.process.memory_bytes_max = Some(70 << 20);
        let finding = memory(&facts).expect("known");
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.found.contains("70 MiB of the cgroup") && finding.remedy.contains("MemoryMax="), "{finding:?}");
        facts.process.memory_bytes_max = Some(65 << 30);
        assert_eq!(memory(&facts).expect("known").level, Level::Ok);
    }

    #[test]
    fn a_full_disk_is_warned_of_and_a_small_one_is_not() {
        let disk = |free_bytes, bytes| Disk { path: "/etc/x".into(), purpose: "keys", free_bytes, bytes };
        let mut facts = facts();
        for (disk, level) in [
            (disk(63 << 20, 1 << 40), Level::Warning),
            (disk(1 << 30, 1 << 40), Level::Warning),
            (disk(100 << 30, 1 << 40), Level::Ok),
            (disk(20 << 20, 32 << 20), Level::Ok),
        ] {
            facts.trials.disks = vec![disk.clone()];
            assert_eq!(disks_full(&facts).expect("known").level, level, "{disk:?}");
        }
        facts.trials.disks.clear();
        assert_eq!(disks_full(&facts), None);
    }
}
