//! Checks of the network stack: congestion control, local ports, and what the kernel dropped since it started.

use super::facts::Facts;
use super::finding::{Finding, Group};
use crate::server::health::ProcessRole;

/// The congestion control that `tuning/` recommends.
const CONGESTION: &str = "bbr";

/// Part of the local ports that waiting connections may take before it is told of, in percent.
const TIME_WAIT_PERCENT: u64 = 80;

/// Figures of `/proc/net/netstat` that should stay at zero: name, what it counts, what to do.
pub(super) const DROPS: &[(&str, &str, &str)] = &[
    (
        "ListenOverflows",
        "connections that met a full accept queue",
        "raise backlog in [[listen]] and net.core.somaxconn, or add cores",
    ),
    (
        "TCPReqQFullDrop",
        "SYNs that met a full queue of half-open connections",
        "sysctl -w net.ipv4.tcp_max_syn_backlog=16384",
    ),
    ("TCPFastOpenListenOverflow", "SYNs with data that met a full queue", "raise fast_open in [[listen]]"),
    ("TCPRcvQDrop", "segments that met a full receive queue", "raise the last value of net.ipv4.tcp_rmem"),
    ("TCPBacklogDrop", "segments dropped while the socket was busy", "raise net.core.rmem_max and net.ipv4.tcp_rmem"),
    (
        "TCPTimeWaitOverflow",
        "connections that found no place in TIME_WAIT",
        "sysctl -w net.ipv4.tcp_max_tw_buckets=1048576",
    ),
    ("TCPAbortOnMemory", "connections reset for want of memory", "raise net.ipv4.tcp_mem, or add memory"),
    ("TCPMemoryPressures", "times that TCP had to save memory", "raise net.ipv4.tcp_mem, or add memory"),
];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        [congestion(facts), ports(facts), time_wait(facts)].into_iter().flatten().collect();
    findings.extend(drops(facts));
    findings
}

fn congestion(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Network, "congestion control available");
    let available = facts.node.congestion_available.as_ref()?;
    let found = available.join(" ");
    Some(if available.iter().any(|each| each == CONGESTION) {
        Finding::ok(group, name, found)
    } else {
        Finding::warning(
            group,
            name,
            found,
            format!(
                "modprobe tcp_{CONGESTION}; for good: echo tcp_{CONGESTION} > /etc/modules-load.d/{CONGESTION}.conf"
            ),
        )
        .expected(CONGESTION)
        .why("cubic takes every loss of a mobile network for congestion, and slows down")
    })
}

fn ports(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Network, "local ports");
    let (first, last) = facts.node.local_ports?;
    let there = u64::from(last.saturating_sub(first)) + 1;
    let found = format!("{there} ({first} to {last})");
    let plan = facts.settings.plan.as_ref();
    let needed = match (facts.role, plan) {
        (_, None) => return Some(Finding::ok(group, name, found)),
        // To each gateway: the ports of connections to different addresses are counted apart.
        (ProcessRole::Pop, Some(plan)) => plan.trunks as u64 * plan.cores.len() as u64,
        (ProcessRole::Gateway, Some(plan)) => plan.upstream_connections_max as u64 * plan.cores.len() as u64,
    };
    Some(if there < needed {
        let remedy = "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\", or less in upstream.connections_max, or \
                      more upstream addresses";
        // All connections to one address are the worst case, and the sum of what is allowed.
        Finding::note(group, name, found)
            .remedy(remedy)
            .expected(format!("{needed} when all connections go to one address"))
            .why("without a port, dialing fails with EADDRNOTAVAIL")
    } else {
        Finding::ok(group, name, found)
    })
}

fn time_wait(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Network, "connections in TIME_WAIT");
    let waiting = facts.node.time_wait?;
    let (first, last) = facts.node.local_ports?;
    let ports = u64::from(last.saturating_sub(first)) + 1;
    let found = waiting.to_string();
    Some(if waiting > ports / 100 * TIME_WAIT_PERCENT {
        Finding::note(group, name, format!("{found}, and {ports} local ports"))
            .why("if they are this machine's own to one address, dialing it will fail")
            .remedy("`ss -tan state time-wait | head` shows whose they are; keep connections alive to upstreams")
    } else {
        Finding::ok(group, name, found)
    })
}

/// One note for each figure that is not zero, and one word for those that are. They count since the machine started, so
/// they are facts and no verdict.
fn drops(facts: &Facts) -> Vec<Finding> {
    let group = Group::Network;
    let known: Vec<_> = DROPS.iter().filter_map(|drop| Some((drop, *facts.node.tcp.get(drop.0)?))).collect();
    let mut findings: Vec<Finding> = known
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|((name, what, remedy), count)| {
            Finding::note(group, *name, format!("{count} {what}, since the machine started"))
                .expected("0, or standing still")
                .remedy(format!("if `nstat -az TcpExt{name}` grows: {remedy}"))
        })
        .collect();
    let zero: Vec<&str> = known.iter().filter(|(_, count)| *count == 0).map(|(drop, _)| drop.0).collect();
    if !zero.is_empty() {
        findings.insert(0, Finding::ok(group, "drops", format!("none in {}", zero.join(", "))));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::sample as facts;
    use crate::doctor::finding::Level;

    #[test]
    fn bbr_that_is_missing_is_warned_of_with_the_module() {
        let mut facts = facts();
        facts.node.congestion_available = Some(vec!["reno".into(), "cubic".into()]);
        let finding = congestion(&facts).expect("known");
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.remedy.starts_with("modprobe tcp_bbr"), "{finding:?}");
        facts.node.congestion_available = Some(vec!["cubic".into(), "bbr".into()]);
        assert_eq!(congestion(&facts).expect("known").level, Level::Ok);
    }

    #[test]
    fn too_few_ports_for_a_gateways_upstreams_are_noted() {
        let mut facts = facts();
        facts.node.local_ports = Some((32_768, 60_999));
        let plan = facts.settings.plan.as_mut().expect("there is one");
        (plan.cores, plan.upstream_connections_max) = (vec![0, 1], 14_116);
        assert_eq!(ports(&facts).expect("known").level, Level::Ok, "a POP dials only gateways");
        facts.role = ProcessRole::Gateway;
        assert_eq!(ports(&facts).expect("known").level, Level::Ok);
        facts.settings.plan.as_mut().expect("there is one").upstream_connections_max = 14_117;
        let finding = ports(&facts).expect("known");
        assert_eq!(finding.level, Level::Note);
        assert!(finding.remedy.contains("ip_local_port_range"), "{finding:?}");
        facts.node.local_ports = Some((9, 3));
        assert!(ports(&facts).expect("known").found.starts_with("1 "), "nonsense is no panic");
    }

    #[test]
    fn connections_that_wait_are_noted_when_they_are_as_many_as_ports() {
        let mut facts = facts();
        facts.node.local_ports = Some((1, 1000));
        for (waiting, level) in [(800, Level::Ok), (801, Level::Note)] {
            facts.node.time_wait = Some(waiting);
            assert_eq!(time_wait(&facts).expect("known").level, level);
        }
    }

    #[test]
    fn drops_are_facts_and_no_verdict() {
        let mut facts = facts();
        facts.node.tcp = [("ListenOverflows".to_owned(), 7), ("TCPRcvQDrop".to_owned(), 0)].into_iter().collect();
        let findings = drops(&facts);
        assert_eq!(findings.iter().map(|each| each.level).collect::<Vec<_>>(), [Level::Ok, Level::Note]);
        assert!(findings[1].remedy.contains("nstat -az TcpExtListenOverflows"), "{findings:?}");
        facts.node.tcp.clear();
        assert_eq!(drops(&facts), []);
    }
}
