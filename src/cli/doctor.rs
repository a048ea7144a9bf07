//! `trunkline doctor`: what is right and wrong with this node, for people or as JSON.
//!
//! Only prints; what is looked at and judged is in [`crate::doctor`]. Exit codes: 0 nothing is wrong, 1 warnings, 2 faults
//! (clap exits with 2 for wrong arguments, too), 3 it could not look.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::doctor::{Finding, Level, Options, Report, check, gather};
use crate::server::health::ProcessRole;

/// The exit code when nothing could be looked at.
const EXIT_NOT_RUN: u8 = 3;

/// Arguments of `trunkline doctor`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The configuration of the node; without it, only the machine is looked at
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What the node is; without it, what the configuration says, else a POP
    #[arg(long, value_name = "ROLE")]
    role: Option<RoleArg>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Where proc and sys are, such as a copy of another node's; trials are made from this machine all the same
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum RoleArg {
    Pop,
    Gateway,
}

/// `trunkline doctor`.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let role = args.role.map(|role| match role {
        RoleArg::Pop => ProcessRole::Pop,
        RoleArg::Gateway => ProcessRole::Gateway,
    });
    let facts = match gather(&Options { config: args.config.clone(), role, root: args.root.clone() }) {
        Ok(facts) => facts,
        Err(error) => {
            let root = args.root.display();
            eprintln!("error: cannot look at {root}: {error}\n  remedy: give a directory with proc and sys in it");
            return ExitCode::from(EXIT_NOT_RUN);
        }
    };
    let role = match facts.role {
        ProcessRole::Pop => "pop",
        ProcessRole::Gateway => "gateway",
    };
    let report = Report::new(role, check(&facts));
    let text = if args.json { json(&report) } else { text(&report) };
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::from(report.exit_code),
        Err(error) => {
            eprintln!("error: cannot write to standard output: {error}");
            ExitCode::from(EXIT_NOT_RUN)
        }
    }
}

fn json(report: &Report) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("text and numbers only");
    text.push('\n');
    text
}

/// The findings of each group below its name, and how many of each kind there are.
fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut group = None;
    for finding in &report.findings {
        if group != Some(finding.group) {
            group = Some(finding.group);
            let gap = if text.is_empty() { "" } else { "\n" };
            put(&mut text, &format!("{gap}{}\n", finding.group.as_str()));
        }
        put(&mut text, &one(finding));
    }
    let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let counts =
        [count(report.faults, "fault"), count(report.warnings, "warning"), count(report.notes, "note")].join(", ");
    put(&mut text, &format!("\n{}: {counts}, {} ok\n", report.role, report.ok));
    text
}

/// One finding: a line for what is right, and what there is to know of the rest on lines of its own.
fn one(finding: &Finding) -> String {
    let mut text = format!("  {:8} {}: {}\n", finding.level.as_str(), plain(&finding.check), plain(&finding.found));
    if finding.level == Level::Ok {
        return text;
    }
    let lines = [("expected", &finding.expected), ("why", &finding.why), ("do", &finding.remedy)];
    for (word, value) in lines.into_iter().filter(|(_, value)| !value.is_empty()) {
        put(&mut text, &format!("           {word}: {}\n", plain(value)));
    }
    text
}

/// Without control characters: what a file says must not reach a terminal as a command.
fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

fn put(text: &mut String, more: &str) {
    text.write_str(more).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Group;

    #[test]
    fn what_is_right_is_one_line_and_what_is_wrong_says_what_to_do() {
        let findings = vec![
            Finding::ok(Group::Kernel, "release", "6.12.1").expected("6.1 or newer"),
            Finding::fault(Group::Kernel, "io_uring", "refused", "allow it").expected("a ring").why("no worker starts"),
            Finding::note(Group::Limits, "memory", "little"),
        ];
        let told = text(&Report::new("pop", findings));
        assert_eq!(
            told,
            "kernel\n  ok       release: 6.12.1\n  fault    io_uring: refused\n           expected: a ring\n           \
             why: no worker starts\n           do: allow it\n\nlimits\n  note     memory: little\n\n\
             pop: 1 fault, 0 warnings, 1 note, 1 ok\n"
        );
    }

    #[test]
    fn nothing_found_commands_the_terminal() {
        let told = one(&Finding::warning(Group::Kernel, "a\u{1b}[2J", "b\nc\u{9b}2J", "d\r"));
        assert!(!told.contains(['\u{1b}', '\u{9b}', '\r']) && told.lines().count() == 2, "{told:?}");
    }

    #[test]
    fn the_object_has_its_fields() {
        let findings = vec![Finding::warning(Group::Sysctl, "a.b", "1", "sysctl -w a.b=2").expected("2")];
        let told: serde_json::Value = serde_json::from_str(&json(&Report::new("gateway", findings))).expect("JSON");
        assert_eq!((&told["exit_code"], &told["role"]), (&1.into(), &"gateway".into()));
        assert_eq!(
            (&told["findings"][0]["level"], &told["findings"][0]["group"]),
            (&"warning".into(), &"sysctl".into())
        );
        assert_eq!(told["findings"][0]["remedy"], "sysctl -w a.b=2");
    }
}
