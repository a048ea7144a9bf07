//! Checks of cores: whether those of the configuration are there and alone, what shares them, and how fast they run.

use super::facts::{Facts, Interrupt};
use super::finding::{Finding, Group};
use super::root::core_text;

/// Interrupts of network interfaces since the start, from which on their spread says something.
const INTERRUPTS_MIN: u64 = 100_000;

/// A core that takes more than this of them, in percent, is told of when there are others.
const INTERRUPTS_PERCENT_MAX: u64 = 80;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let all = [workers(facts), siblings(facts), isolated(facts), governors(facts), interrupts(facts)];
    all.into_iter().flatten().collect()
}

fn planned(facts: &Facts) -> &[usize] {
    facts.settings.plan.as_ref().map_or(&[], |plan| &plan.cores)
}

fn workers(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Cores, "workers' cores");
    let online = &facts.node.cores_online;
    let allowed = facts.process.cores_allowed.as_ref().unwrap_or(online);
    if allowed.is_empty() {
        return None;
    }
    let there = format!("online {}, allowed {}", core_text(online), core_text(allowed));
    let cores = planned(facts);
    if cores.is_empty() {
        return Some(Finding::ok(group, name, there));
    }
    let absent: Vec<usize> =
        cores.iter().copied().filter(|core| !online.is_empty() && !online.contains(core)).collect();
    let refused: Vec<usize> = cores.iter().copied().filter(|core| !allowed.contains(core)).collect();
    let found = format!("cores = [{}]; {there}", list(cores));
    let why = "a worker that cannot be pinned does not start";
    let remedy = format!("cores = [{}]", list(allowed));
    Some(if !absent.is_empty() {
        let found = format!("core {} does not exist or is off: {found}", core_text(&absent));
        Finding::fault(group, name, found, remedy).expected("cores of this machine").why(why)
    } else if !refused.is_empty() {
        let found = format!("core {} may not be used: {found}", core_text(&refused));
        let remedy = format!("{remedy}, or CPUAffinity={} in the service's unit", core_text(cores));
        Finding::fault(group, name, found, remedy).expected("cores that affinity and cpuset allow").why(why)
    } else {
        Finding::ok(group, name, found)
    })
}

fn list(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

fn siblings(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Cores, "SMT siblings");
    let siblings = &facts.node.siblings;
    if siblings.is_empty() {
        return None;
    }
    let shared: Vec<&Vec<usize>> = siblings.values().filter(|of| of.len() > 1).collect();
    if shared.is_empty() {
        return Some(Finding::ok(group, name, "none: every core is a whole one"));
    }
    let cores = planned(facts);
    let together = |of: &&&Vec<usize>| of.iter().filter(|core| cores.contains(core)).count() > 1;
    let mut both: Vec<String> = shared.iter().filter(together).map(|of| core_text(of)).collect();
    both.dedup();
    both.sort_unstable();
    both.dedup();
    Some(if both.is_empty() {
        Finding::ok(group, name, "no two workers share the execution units of a core")
    } else {
        let whole: Vec<usize> =
            siblings.iter().filter(|(core, of)| of.first() == Some(core)).map(|(core, _)| *core).collect();
        Finding::note(group, name, format!("workers share execution units: {}", both.join(" and ")))
            .why("two workers on one core do less than twice the work of one")
            .remedy(format!("for a worker on each whole core: cores = [{}]", list(&whole)))
    })
}

fn isolated(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Cores, "isolated cores");
    let isolated = &facts.node.cores_isolated;
    if isolated.is_empty() {
        return None;
    }
    let unused: Vec<usize> = isolated.iter().copied().filter(|core| !planned(facts).contains(core)).collect();
    let found = core_text(isolated);
    Some(if planned(facts).is_empty() || unused.is_empty() {
        Finding::ok(group, name, found)
    } else {
        Finding::note(group, name, format!("{found}, of which no worker uses {}", core_text(&unused)))
            .why("the scheduler puts nothing on them by itself")
            .remedy(format!("add them: cores = [{}]", list(isolated)))
    })
}

fn governors(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Cores, "frequency governor");
    let governors = &facts.node.governors;
    let cores = planned(facts);
    let slow: Vec<usize> = governors
        .iter()
        .filter(|(core, governor)| *governor == "powersave" && (cores.is_empty() || cores.contains(core)))
        .map(|(core, _)| *core)
        .collect();
    if governors.is_empty() {
        return None;
    }
    let mut kinds: Vec<&str> = governors.values().map(String::as_str).collect();
    kinds.sort_unstable();
    kinds.dedup();
    Some(if slow.is_empty() {
        Finding::ok(group, name, kinds.join(", "))
    } else {
        Finding::warning(
            group,
            name,
            format!("powersave on {}", core_text(&slow)),
            "cpupower frequency-set --governor performance (package linux-cpupower)",
        )
        .expected("performance, or schedutil")
        .why("cores stay slow, or speed up late, while requests wait")
    })
}

/// Where interrupts of network interfaces come, by core.
fn interrupts(facts: &Facts) -> Option<Finding> {
    let (group, name) = (Group::Cores, "network interrupts");
    let all = &facts.node.interrupts;
    if all.is_empty() {
        return None;
    }
    let mut by_core: Vec<(usize, u64)> = facts.node.cores_online.iter().map(|core| (*core, 0)).collect();
    for (core, count) in all.iter().flat_map(|interrupt| &interrupt.counts) {
        match by_core.iter_mut().find(|(known, _)| known == core) {
            Some((_, sum)) => *sum = sum.saturating_add(*count),
            None => by_core.push((*core, *count)),
        }
    }
    let total = by_core.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
    let told: Vec<String> =
        by_core.iter().filter(|(_, count)| *count > 0).map(|(core, count)| format!("core {core}: {count}")).collect();
    let found =
        format!("{} interrupts; {}", all.len(), if told.is_empty() { "none yet".to_owned() } else { told.join(", ") });
    let busiest = by_core.iter().max_by_key(|(_, count)| *count).copied()?;
    let cores = planned(facts);
    let is_uneven = total >= INTERRUPTS_MIN && busiest.1 > total / 100 * INTERRUPTS_PERCENT_MAX;
    Some(if is_uneven && cores.contains(&busiest.0) && by_core.len() > 1 {
        Finding::note(group, name, found)
            .expected("spread over the workers' cores, or on cores without a worker")
            .why(format!("the worker of core {} has less time than the others", busiest.0))
            .remedy(remedy(all, facts, busiest.0))
    } else {
        Finding::ok(group, name, found)
    })
}

/// How to move the busiest interrupt off a core: to one without a worker if there is one, else packets to all cores.
fn remedy(all: &[Interrupt], facts: &Facts, core: usize) -> String {
    let count_on =
        |interrupt: &&Interrupt| interrupt.counts.iter().find(|(of, _)| *of == core).map_or(0, |(_, count)| *count);
    let free = facts.node.cores_online.iter().find(|core| !planned(facts).contains(core));
    match (all.iter().max_by_key(count_on), free) {
        (Some(busiest), Some(free)) => {
            let number = busiest.number;
            format!("echo {free} > /proc/irq/{number}/smp_affinity_list ({}); tuning/ has more", busiest.name)
        }
        _ => "more queues (ethtool -L DEVICE combined N), or RPS: see tuning/".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::sample as facts;
    use crate::doctor::finding::Level;

    /// With these workers on cores 0 to 3, of which this process may use 0 to 2.
    fn facts_with(cores: &[usize]) -> Facts {
        let mut facts = facts();
        facts.node.cores_online = vec![0, 1, 2, 3];
        facts.process.cores_allowed = Some(vec![0, 1, 2]);
        facts.settings.plan.as_mut().expect("there is one").cores = cores.to_vec();
        facts
    }

    #[test]
    fn cores_that_are_absent_or_refused_are_faults_of_their_own() {
        for (cores, level, words) in [
            (&[0, 2][..], Level::Ok, "online 0-3, allowed 0-2"),
            (&[0, 9], Level::Fault, "core 9 does not exist"),
            (&[2, 3], Level::Fault, "core 3 may not be used"),
            (&[], Level::Ok, "online 0-3"),
        ] {
            let finding = workers(&facts_with(cores)).expect("known");
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
            assert!(level == Level::Ok || finding.remedy.contains("cores = [0, 1, 2]"), "{finding:?}");
        }
    }

    #[test]
    fn two_workers_on_one_core_are_noted() {
        let mut facts = facts_with(&[0, 2]);
        facts.node.siblings =
            [(0, vec![0, 2]), (1, vec![1, 3]), (2, vec![0, 2]), (3, vec![1, 3])].into_iter().collect();
        let finding = siblings(&facts).expect("known");
        assert_eq!(finding.level, Level::Note);
        assert!(finding.found.ends_with("units: 0,2") && finding.remedy.contains("cores = [0, 1]"), "{finding:?}");
        facts.settings.plan.as_mut().expect("there is one").cores = vec![0, 1];
        assert_eq!(siblings(&facts).expect("known").level, Level::Ok);
    }

    #[test]
    fn a_slow_governor_counts_where_a_worker_is() {
        let mut facts = facts_with(&[0, 1]);
        facts.node.governors = [(0, "performance".to_owned()), (2, "powersave".to_owned())].into_iter().collect();
        assert_eq!(governors(&facts).expect("known").level, Level::Ok);
        facts.node.governors.insert(1, "powersave".to_owned());
        let finding = governors(&facts).expect("known");
        assert_eq!((finding.level, finding.found.as_str()), (Level::Warning, "powersave on 1"));
    }

    #[test]
    fn isolated_cores_without_a_worker_are_noted() {
        let mut facts = facts_with(&[0, 1]);
        facts.node.cores_isolated = vec![1, 2];
        assert!(isolated(&facts).expect("known").found.contains("no worker uses 2"));
        facts.node.cores_isolated = vec![1];
        assert_eq!(isolated(&facts).expect("known").level, Level::Ok);
    }

    #[test]
    fn interrupts_on_one_worker_are_noted_with_where_to_move_them() {
        let mut facts = facts_with(&[0, 1]);
        let queue = |number, counts| Interrupt { number, name: "eth0-rx-0".to_owned(), counts, cores: vec![0] };
        facts.node.interrupts = vec![queue(41, vec![(0, 900_000), (1, 5)]), queue(42, vec![(1, 100_000)])];
        let finding = interrupts(&facts).expect("known");
        assert_eq!(finding.level, Level::Note);
        assert!(finding.remedy.starts_with("echo 2 > /proc/irq/41/smp_affinity_list"), "{finding:?}");
        facts.node.interrupts = vec![queue(41, vec![(0, 900_000)]), queue(42, vec![(1, 800_000)])];
        assert_eq!(interrupts(&facts).expect("known").level, Level::Ok);
        facts.node.interrupts = vec![queue(41, vec![(0, 99_999)])];
        assert_eq!(interrupts(&facts).expect("known").level, Level::Ok, "too few to say anything");
    }
}
