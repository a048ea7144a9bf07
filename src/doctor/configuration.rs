//! Checks of the configuration, the files it names, and the addresses it listens on.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::facts::{Answer, Certificate, Facts, Listen};
use super::finding::{Finding, Group};
use crate::server::problems::{Problem, Severity};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate that expires within this should have been renewed.
const EXPIRES_SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// One that expires within this is told of.
const EXPIRES: Duration = Duration::from_secs(30 * 24 * 3600);

/// The name under which a process of ours shows in `/proc/PID/comm`.
const PROGRAM: &str = "trunkline";

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = problems(facts);
    findings.extend(certificates(facts));
    findings.extend(facts.trials.listens.iter().map(|listen| listens(listen, facts)));
    findings.extend(admin(facts));
    findings
}

fn problems(facts: &Facts) -> Vec<Finding> {
    let settings = &facts.settings;
    let group = Group::Configuration;
    let Some(file) = &settings.file else {
        let note = Finding::note(group, "configuration", "none given: only the machine was looked at");
        return vec![note.remedy("trunkline doctor --config FILE")];
    };
    // Dates are judged below, with more to say.
    let mut findings: Vec<Finding> =
        settings.problems.iter().filter(|problem| !problem.tells_validity).map(of_problem).collect();
    if settings.plan.is_none() {
        findings.push(Finding::note(group, "not looked at", "whatever the configuration asks for: it cannot be used"));
    } else if findings.is_empty() {
        findings.push(Finding::ok(
            group,
            file.display().to_string(),
            "every key, and every file it names, can be used",
        ));
    }
    findings
}

fn of_problem(problem: &Problem) -> Finding {
    let place = |file: &Path| match problem.place.line {
        0 => file.display().to_string(),
        line => format!("{}:{line}", file.display()),
    };
    let name = match problem.place.key.as_str() {
        "" => place(&problem.file),
        key => format!("{}: {key}", place(&problem.file)),
    };
    match problem.severity {
        Severity::Error => Finding::fault(Group::Configuration, name, &problem.what, &problem.remedy)
            .why("the process does not start with it"),
        Severity::Warning => Finding::warning(Group::Configuration, name, &problem.what, &problem.remedy),
    }
}

fn certificates(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for certificate in &facts.settings.certificates {
        let finding = validity(certificate, facts.now);
        // The same file may be named by several keys: its own words once are enough.
        if !findings.iter().any(|other: &Finding| other.found == finding.found && other.level == finding.level) {
            findings.push(finding);
        }
    }
    findings
}

fn validity(certificate: &Certificate, now: SystemTime) -> Finding {
    let Certificate { key, file, number, not_before, not_after } = certificate;
    let (group, path) = (Group::Certificates, file.display());
    let which = if *number > 1 { format!("certificate {number} of {path}") } else { path.to_string() };
    let (from, until, today) = (date(*not_before), date(*not_after), date(now));
    let renew = format!("renew {path}; the process takes a new file by itself");
    if *not_before > now {
        let found = format!("{which} is valid from {from}, and this machine's date is {today}");
        let remedy = "set the clock (timedatectl set-ntp true; date --utc), or issue the certificate again";
        return Finding::fault(group, key, found, remedy)
            .expected(format!("a date from {from} to {until}"))
            .why("peers with a right clock take it and this node takes nobody's, or the other way round");
    }
    match not_after.duration_since(now) {
        Err(_) => Finding::fault(group, key, format!("{which} has expired on {until}"), renew)
            .expected(format!("a date before {until}; this machine's is {today}"))
            .why("peers refuse it"),
        Ok(left) if left < EXPIRES_SOON => Finding::warning(
            group,
            key,
            format!("{which} expires on {until}, in {} days", left.as_secs() / DAY.as_secs()),
            renew,
        )
        .expected("7 days or more")
        .why("peers will refuse it"),
        Ok(left) if left < EXPIRES => {
            Finding::note(group, key, format!("{which} expires on {until}, in {} days", left.as_secs() / DAY.as_secs()))
                .remedy(renew)
        }
        Ok(_) => Finding::ok(group, key, format!("{which} is valid until {until}")),
    }
}

fn date(time: SystemTime) -> String {
    time::OffsetDateTime::from(time).date().to_string()
}

fn listens(listen: &Listen, facts: &Facts) -> Finding {
    let (group, name) = (Group::Addresses, format!("{} {}", listen.key, listen.address));
    let Some(problem) = &listen.problem else { return Finding::ok(group, name, "free") };
    let is_ours = |name: &str| name == PROGRAM;
    match &listen.holder {
        Some((id, program)) if is_ours(program) => {
            Finding::ok(group, name, format!("held by {program}, process {id}: a node is running"))
        }
        Some((id, program)) => {
            let remedy = format!("stop process {id} ({program}), or choose another port for {}", listen.key);
            Finding::fault(group, name, format!("{}, held by {program}, process {id}", problem.what), remedy)
                .expected("free, or held by this node")
                .why("the process does not start")
        }
        None if matches!(facts.trials.admin, Some((_, Answer::Node(_)))) => {
            Finding::ok(group, name, "in use, most likely by the node that answers on the admin address")
        }
        None => Finding::fault(group, name, &problem.what, &problem.remedy)
            .expected("free, or held by this node")
            .why("the process does not start"),
    }
}

fn admin(facts: &Facts) -> Option<Finding> {
    let (address, answer) = facts.trials.admin.as_ref()?;
    let (group, name) = (Group::Addresses, format!("admin {address}"));
    Some(match answer {
        Answer::Node(Ok(())) => Finding::ok(group, name, "a node answers, and is ready"),
        Answer::Node(Err(why)) => {
            let remedy = format!("curl http://{address}/ready tells why; its log, and the peers below, tell more");
            Finding::warning(group, name, format!("a node answers, and is not ready: {why}"), remedy)
                .expected("ready")
                .why("balancers send it no clients")
        }
        Answer::Stranger(what) => {
            let remedy = format!(
                "`ss -ltnp 'sport = :{}'` names the process: stop it, or choose another admin.address",
                address.port()
            );
            Finding::fault(group, name, format!("something that is no node answers: {what}"), remedy)
                .expected("a node, or nobody")
                .why("the process does not start while another holds the address")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::sample as facts;
    use crate::doctor::finding::Level;
    use crate::server::problems::Place;

    fn certificate(from_days: u64, until_days: u64) -> Certificate {
        let at = |days: u64| SystemTime::UNIX_EPOCH + DAY * u32::try_from(days).expect("few");
        Certificate {
            key: "listen[0].certificate".to_owned(),
            file: "pop.pem".into(),
            number: 1,
            not_before: at(from_days),
            not_after: at(until_days),
        }
    }

    #[test]
    fn dates_of_certificates_are_judged_by_how_near_they_are() {
        let now = SystemTime::UNIX_EPOCH + DAY * 100;
        for (from, until, level, words) in [
            (50, 99, Level::Fault, "has expired on 1970-04-10"),
            (101, 500, Level::Fault, "valid from 1970-04-12, and this machine's date is 1970-04-11"),
            (50, 106, Level::Warning, "in 6 days"),
            (50, 129, Level::Note, "in 29 days"),
            (50, 131, Level::Ok, "valid until"),
        ] {
            let finding = validity(&certificate(from, until), now);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn one_file_under_two_keys_is_told_once() {
        let mut facts = facts();
        facts.now = SystemTime::UNIX_EPOCH + DAY;
        facts.settings.certificates = vec![
            certificate(0, 500),
            Certificate { key: "backbone.certificate".to_owned(), ..certificate(0, 500) },
            Certificate { number: 2, ..certificate(0, 500) },
        ];
        assert_eq!(certificates(&facts).len(), 2);
    }

    #[test]
    fn mistakes_keep_their_place_and_remedy() {
        let mut facts = facts();
        facts.settings.file = Some("pop.toml".into());
        assert_eq!(problems(&facts)[0].level, Level::Ok);
        let problem = |severity, what: &str| Problem {
            severity,
            file: "pop.toml".into(),
            place: Place { key: "id".to_owned(), line: 3 },
            what: what.to_owned(),
            remedy: "mend it".to_owned(),
            tells_validity: false,
        };
        facts.settings.problems = vec![problem(Severity::Error, "is odd"), problem(Severity::Warning, "is old")];
        facts.settings.plan = None;
        let findings = problems(&facts);
        let levels: Vec<Level> = findings.iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Fault, Level::Warning, Level::Note]);
        assert_eq!((findings[0].check.as_str(), findings[0].remedy.as_str()), ("pop.toml:3: id", "mend it"));
        facts.settings.file = None;
        assert_eq!(problems(&facts)[0].level, Level::Note);
    }

    #[test]
    fn an_address_in_use_is_right_when_a_node_holds_it() {
        let mut facts = facts();
        let address = "127.0.0.1:8443".parse().expect("an address");
        let error = std::io::ErrorKind::AddrInUse.into();
        let problem = Problem::from_bind("pop.toml".into(), "listen[0].address", address, &error);
        let listen = |problem: Option<&Problem>, holder: Option<(u32, &str)>| Listen {
            key: "listen[0].address".to_owned(),
            address,
            problem: problem.cloned(),
            holder: holder.map(|(id, name)| (id, name.to_owned())),
        };
        assert_eq!(listens(&listen(None, None), &facts).level, Level::Ok);
        assert_eq!(listens(&listen(Some(&problem), Some((7, "trunkline"))), &facts).level, Level::Ok);
        let finding = listens(&listen(Some(&problem), Some((7, "nginx"))), &facts);
        assert_eq!(finding.level, Level::Fault);
        assert!(finding.remedy.contains("stop process 7 (nginx)"), "{finding:?}");
        assert_eq!(listens(&listen(Some(&problem), None), &facts).level, Level::Fault);
        facts.trials.admin = Some((address, Answer::Node(Ok(()))));
        assert_eq!(listens(&listen(Some(&problem), None), &facts).level, Level::Ok);
    }

    #[test]
    fn an_admin_address_answers_as_a_node_or_is_told_of() {
        let mut facts = facts();
        let address = "127.0.0.1:9901".parse().expect("an address");
        for (answer, level) in [
            (Answer::Node(Ok(())), Level::Ok),
            (Answer::Node(Err("no trunk".to_owned())), Level::Warning),
            (Answer::Stranger("404".to_owned()), Level::Fault),
        ] {
            facts.trials.admin = Some((address, answer));
            assert_eq!(admin(&facts).expect("it answers").level, level);
        }
        facts.trials.admin = None;
        assert_eq!(admin(&facts), None);
    }
}
