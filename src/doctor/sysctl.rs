//! The sysctls of this node against the files of `tuning/sysctl.d`, which are built in.
//!
//! Owns the reading of those files: lines `key = value` with a comment above each that says `# why:`, and `# rule: at least`
//! where more is as good; options that are off stand in comments and are not looked at.

use super::facts::Facts;
use super::finding::{Finding, Group};
use crate::server::health::ProcessRole;

const POP: &str = include_str!("../../tuning/sysctl.d/60-trunkline-pop.conf");
const GATEWAY: &str = include_str!("../../tuning/sysctl.d/60-trunkline-gateway.conf");

/// Keys that other checks tell more of.
const TOLD_ELSEWHERE: &[&str] = &["kernel.io_uring_disabled"];

/// Modules without which a value is refused: value, module.
const MODULES: &[(&str, &str)] = &[("bbr", "tcp_bbr"), ("fq", "sch_fq")];

/// A value that `tuning/` recommends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Recommended {
    pub(super) key: String,
    pub(super) value: String,
    /// Whether more is as good, field by field.
    pub(super) at_least: bool,
    /// The first sentence of its reason.
    pub(super) why: String,
}

/// What `tuning/` recommends for a role.
pub(super) fn recommended(role: ProcessRole) -> Vec<Recommended> {
    parse(match role {
        ProcessRole::Pop => POP,
        ProcessRole::Gateway => GATEWAY,
    })
}

/// The file to install for a role.
fn file(role: ProcessRole) -> &'static str {
    match role {
        ProcessRole::Pop => "60-trunkline-pop.conf",
        ProcessRole::Gateway => "60-trunkline-gateway.conf",
    }
}

fn parse(text: &str) -> Vec<Recommended> {
    let mut found = Vec::new();
    let (mut why, mut in_why, mut at_least) = (String::new(), false, false);
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix('#') {
            if let Some(begun) = comment.strip_prefix(" why:") {
                begun.trim().clone_into(&mut why);
                (in_why, at_least) = (true, false);
            } else if in_why && comment.starts_with("   ") {
                why.push(' ');
                why.push_str(comment.trim());
            } else {
                in_why = false;
                at_least |= comment.trim() == "rule: at least";
            }
            continue;
        }
        in_why = false;
        if let Some((key, value)) = line.trim_start_matches('-').split_once('=') {
            let why = first_sentence(&std::mem::take(&mut why));
            let (key, value) = (key.trim().to_owned(), single_spaced(value));
            found.push(Recommended { key, value, at_least: std::mem::take(&mut at_least), why });
        }
    }
    found
}

/// Up to the first full stop behind a whole word, so not behind "e.g.".
fn first_sentence(text: &str) -> String {
    let is_end = |at: &usize| {
        let word = text[..*at].rsplit(' ').next().unwrap_or_default();
        word.len() > 3 || !word.contains('.')
    };
    let end = text.match_indices(". ").map(|(at, _)| at).find(is_end);
    text[..end.unwrap_or(text.trim_end_matches('.').len())].to_owned()
}

/// The same with single spaces: the kernel parts fields with tabs.
pub(super) fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a value serves as well as the recommended one: it is the same, or more where more is as good.
fn serves(found: &str, recommended: &Recommended) -> bool {
    if found == recommended.value {
        return true;
    }
    let fields = |text: &str| text.split(' ').map(|field| field.parse::<u64>().ok()).collect::<Option<Vec<u64>>>();
    match (fields(found), fields(&recommended.value)) {
        (Some(found), Some(least)) if recommended.at_least => {
            found.len() == least.len() && found.iter().zip(&least).all(|(found, least)| found >= least)
        }
        _ => false,
    }
}

/// One finding per value that differs, and one for those that do not.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let file = file(facts.role);
    let mut all = recommended(facts.role);
    all.retain(|each| !TOLD_ELSEWHERE.contains(&each.key.as_str()));
    let (mut findings, mut right) = (Vec::new(), 0);
    for each in &all {
        let Recommended { key, value, at_least, why } = each;
        let finding = match facts.node.sysctls.get(key) {
            Some(Some(found)) if serves(found, each) => {
                right += 1;
                continue;
            }
            Some(Some(found)) => Finding::warning(Group::Sysctl, key, found, remedy(key, value, file)),
            Some(None) => Finding::note(Group::Sysctl, key, "this kernel or network namespace has no such key"),
            None => continue,
        };
        let expected = if *at_least { format!("{value} or more") } else { value.clone() };
        findings.push(finding.expected(expected).why(why));
    }
    if right > 0 {
        let found = format!("{right} of {} values as in {file}", all.len());
        findings.insert(0, Finding::ok(Group::Sysctl, "tuning", found));
    }
    findings
}

fn remedy(key: &str, value: &str, file: &str) -> String {
    let module = MODULES.iter().find(|(needs, _)| *needs == value);
    let module = module.map_or_else(String::new, |(_, module)| format!("modprobe {module}; "));
    format!(
        "{module}sysctl -w {key}=\"{value}\"; for good, with all others: tuning/apply.sh, or {file} in /etc/sysctl.d"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::sample;
    use crate::doctor::finding::Level;

    const SAMPLE: &str = "\
# Tuning of a node.
#
# why: the queue of connections that wait for accept
#   is cut to this, e.g. 128. Bursts are lost.
# effect: bursts fit.
# see: nstat -az TcpExtListenOverflows
# undo: sysctl -w net.core.somaxconn=4096
# rule: at least
net.core.somaxconn = 16384

# why: off by default
# rule: at least
#option net.ipv4.tcp_timestamps = 0

# why: room
net.ipv4.tcp_rmem = 4096  131072\t16777216
";

    #[test]
    fn values_are_read_with_their_reasons_and_options_are_not() {
        let found = parse(SAMPLE);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].key.as_str(), found[0].value.as_str()), ("net.core.somaxconn", "16384"));
        assert_eq!(found[0].why, "the queue of connections that wait for accept is cut to this, e.g. 128");
        assert_eq!((found[1].value.as_str(), found[1].why.as_str()), ("4096 131072 16777216", "room"));
        assert_eq!((found[0].at_least, found[1].at_least), (true, false));
    }

    #[test]
    fn what_fits_only_some_machines_is_not_recommended() {
        for role in [ProcessRole::Pop, ProcessRole::Gateway] {
            let all = recommended(role);
            for key in ["vm.min_free_kbytes", "fs.file-max", "net.ipv4.tcp_mem"] {
                assert!(all.iter().all(|each| each.key != key), "{key}");
            }
        }
    }

    #[test]
    fn the_files_that_are_built_in_can_be_read() {
        for role in [ProcessRole::Pop, ProcessRole::Gateway] {
            let all = recommended(role);
            assert!(!all.is_empty());
            for Recommended { key, value, why, .. } in all {
                assert!(key.contains('.') && !key.contains(char::is_whitespace), "{key}");
                assert!(!value.is_empty() && !why.is_empty(), "{key}");
            }
        }
    }

    fn wanted(value: &str, at_least: bool) -> Recommended {
        Recommended { key: "a.b".to_owned(), value: value.to_owned(), at_least, why: String::new() }
    }

    #[test]
    fn more_serves_where_more_is_as_good() {
        assert!(serves("16384", &wanted("16384", true)) && serves("65535", &wanted("16384", true)));
        assert!(!serves("4096", &wanted("16384", true)) && !serves("1", &wanted("0", false)));
        assert!(serves("4096 131072 33554432", &wanted("4096 131072 16777216", true)));
        assert!(!serves("4096 131072 6291456", &wanted("4096 131072 16777216", true)));
        assert!(!serves("4096 131072", &wanted("4096 131072 16777216", true)));
        assert!(!serves("cubic", &wanted("bbr", false)) && !serves("cubic", &wanted("bbr", true)));
    }

    #[test]
    fn what_differs_is_warned_of_with_the_command_and_what_is_not_there_is_noted() {
        let mut facts = sample();
        let all = recommended(facts.role);
        facts.node.sysctls = all.iter().map(|each| (each.key.clone(), Some(each.value.clone()))).collect();
        let findings = check(&facts);
        assert_eq!(findings.iter().map(|each| each.level).collect::<Vec<_>>(), [Level::Ok]);
        let mut plant = |key: &str, value: Option<&str>| {
            facts.node.sysctls.insert(key.to_owned(), value.map(str::to_owned)).expect("tuning/ has it")
        };
        plant("net.ipv4.tcp_congestion_control", Some("cubic"));
        plant("kernel.numa_balancing", None);
        let findings = check(&facts);
        assert_eq!(
            findings.iter().map(|each| each.level).collect::<Vec<_>>(),
            [Level::Ok, Level::Warning, Level::Note]
        );
        let remedy = &findings[1].remedy;
        assert!(remedy.starts_with("modprobe tcp_bbr; sysctl -w net.ipv4.tcp_congestion_control=\"bbr\""), "{remedy}");
    }
}
