//! Checks of the kernel: its release, io_uring, ports shared by workers, huge pages, and the clock.

use super::facts::Facts;
use super::finding::{Finding, Group};

/// What io_uring needs of the kernel (`ring::setup`).
const RELEASE_MIN: (u32, u32) = (6, 1);

/// From here on a wait can be told to last a little for a fuller batch.
const RELEASE_BATCHES: (u32, u32) = (6, 12);

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let all = [release(facts), switch(facts), ring(facts), port_sharing(facts), huge_pages(facts), clock(facts)];
    all.into_iter().flatten().collect()
}

fn release(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Kernel, "release");
    let release = facts.node.release.as_deref()?;
    let expected = "6.1 or newer, better 6.12";
    let finding = match version(release) {
        None => Finding::note(group, name, format!("{release}: not a version that can be compared")),
        Some(version) if version < RELEASE_MIN => {
            Finding::fault(group, name, release, "install Linux 6.1 or newer, better 6.12, and reboot")
                .why("multishot receive, provided buffers and deferred task work are missing: no worker starts")
        }
        Some(version) if version < RELEASE_BATCHES => Finding::note(group, name, release).why(
            "batch_wait has no effect before 6.12, so passes carry less each, and workers get no short turns on \
                 cores that they share",
        ),
        Some(_) => Finding::ok(group, name, release),
    };
    Some(finding.expected(expected))
}

/// Major and minor of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn switch(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Kernel, "kernel.io_uring_disabled");
    let remedy = "sysctl -w kernel.io_uring_disabled=0; for good: a file in /etc/sysctl.d";
    let finding = match facts.node.io_uring_disabled? {
        0 => Finding::ok(group, name, "0"),
        1 => Finding::warning(
            group,
            name,
            "1: only for processes with CAP_SYS_ADMIN or in the group of kernel.io_uring_group",
            format!("{remedy}; or put the user of the service into that group"),
        ),
        other => Finding::fault(group, name, format!("{other}: for nobody"), remedy),
    };
    Some(finding.expected("0").why("there is no fallback: without io_uring no worker starts"))
}

fn ring(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Kernel, "io_uring");
    Some(match facts.trials.ring.as_ref()? {
        Ok(()) => Finding::ok(group, name, "a ring was set up, and received what it sent"),
        Err(refusal) => {
            let (found, remedy) = refusal.split_once("Remedy: ").unwrap_or((refusal, "allow io_uring to this process"));
            Finding::fault(group, name, found.trim(), remedy.trim_end_matches('.'))
                .expected("set-up, submission, multishot receive and provided buffers")
                .why("there is no fallback: without io_uring no worker starts")
        }
    })
}

fn port_sharing(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Kernel, "SO_REUSEPORT");
    Some(match facts.trials.port_sharing.as_ref()? {
        Ok(()) => Finding::ok(group, name, "two sockets shared a port"),
        Err(error) => Finding::fault(group, name, error, "run it outside of the sandbox that refuses SO_REUSEPORT")
            .why("each worker listens by itself on every address"),
    })
}

fn huge_pages(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Kernel, "transparent huge pages");
    let found = facts.node.huge_pages.as_deref()?;
    Some(if found == "always" {
        Finding::note(group, name, found)
            .expected("madvise")
            .why("memory of idle connections may grow to whole huge pages")
            .remedy("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
    } else {
        Finding::ok(group, name, found)
    })
}

fn clock(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Clock, "synchronised");
    let clock = facts.node.clock?;
    let error = clock.error_max;
    Some(if clock.is_synchronised {
        Finding::ok(group, name, format!("yes, off by {} ms at most", error.as_millis()))
    } else {
        let remedy = "timedatectl set-ntp true, or apt-get install chrony; then `timedatectl` must say \
                      \"System clock synchronized: yes\"";
        Finding::warning(group, name, "no: nothing keeps this clock to the time of others", remedy)
            .expected("yes")
            .why("certificates are judged by it, tickets refuse early data when clocks are a minute apart")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Clock;
    use crate::doctor::facts::sample as facts;
    use crate::doctor::finding::Level;
    use std::time::Duration;

    #[test]
    fn releases_are_told_apart() {
        for (release, level) in [
            ("5.15.0-91-generic", Level::Fault),
            ("6.0.19", Level::Fault),
            ("6.1.0-18-amd64", Level::Note),
            ("6.12.1", Level::Ok),
            ("7.0-rc1", Level::Ok),
            ("what", Level::Note),
        ] {
            let mut facts = facts();
            facts.node.release = Some(release.to_owned());
            assert_eq!(super::release(&facts).expect("it is known").level, level, "{release}");
        }
    }

    #[test]
    fn a_ring_that_is_refused_gives_the_remedy_of_the_refusal() {
        let mut facts = facts();
        facts.trials.ring = Some(Err("this kernel refused io_uring. A filter. Remedy: allow it.".to_owned()));
        let finding = ring(&facts).expect("it was tried");
        assert_eq!((finding.level, finding.remedy.as_str()), (Level::Fault, "allow it"));
        assert_eq!(finding.found, "this kernel refused io_uring. A filter.");
        for (disabled, level) in [(0, Level::Ok), (1, Level::Warning), (2, Level::Fault)] {
            facts.node.io_uring_disabled = Some(disabled);
            assert_eq!(switch(&facts).expect("it is known").level, level);
        }
    }

    #[test]
    fn a_clock_that_nobody_keeps_is_warned_of() {
        let mut facts = facts();
        let mut level = |is_synchronised| {
            facts.node.clock = Some(Clock { is_synchronised, error_max: Duration::from_millis(3) });
            clock(&facts).expect("it is known").level
        };
        assert_eq!((level(true), level(false)), (Level::Ok, Level::Warning));
    }

    #[test]
    fn huge_pages_always_are_noted_and_what_is_not_known_is_not_told() {
        let mut facts = facts();
        facts.node.huge_pages = Some("always".to_owned());
        assert_eq!(huge_pages(&facts).expect("it is known").level, Level::Note);
        facts.trials.port_sharing = Some(Err("EPERM".to_owned()));
        assert_eq!(port_sharing(&facts).expect("it was tried").level, Level::Fault);
        facts.node = crate::doctor::facts::Node::default();
        facts.trials = crate::doctor::facts::Trials::default();
        assert_eq!(check(&facts), []);
    }
}
