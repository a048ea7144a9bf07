//! What is wrong with a configuration: every mistake at once, each with the file, the key and the remedy.
//!
//! Owns the collected messages. Never prints and never ends the process. Invariant: a [`Problems`] that is returned as
//! an error holds at least one [`Severity::Error`].

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// How bad a problem is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// The configuration is not used.
    Error,
    /// The configuration is used; somebody should look.
    Warning,
}

/// Where in a configuration a value stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The key with its tables, such as `listen[0].certificate`; empty for the file as a whole.
    pub key: String,
    /// Line in the file, from 1; 0 when it is not known or the value does not stand in the file.
    pub line: usize,
}

impl Place {
    /// A key whose line is not known.
    #[must_use]
    pub fn of(key: impl Into<String>) -> Place {
        Place { key: key.into(), line: 0 }
    }
}

/// One mistake, with what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Whether the configuration can be used all the same.
    pub severity: Severity,
    /// The configuration file.
    pub file: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What is wrong, without a full stop.
    pub what: String,
    /// What to do, without a full stop.
    pub remedy: String,
    /// Whether it is that a certificate is out of its time: for whoever judges the dates himself.
    pub tells_validity: bool,
}

impl Problem {
    /// The message for a listener that could not be opened, found only when the process starts. `key` is the key that
    /// holds the address, such as `listen[0].address`.
    #[must_use]
    pub fn from_bind(file: PathBuf, key: &str, address: SocketAddr, error: &io::Error) -> Problem {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "stop the process that holds it (`ss -ltnp 'sport = :{}'` names it), or choose another port",
                address.port()
            ),
            io::ErrorKind::AddrNotAvailable => {
                "use an address of this machine (`ip address` lists them), or 0.0.0.0 or [::] for all".to_owned()
            }
            io::ErrorKind::PermissionDenied => format!(
                "choose a port of 1024 or more, or allow port {} by CAP_NET_BIND_SERVICE or \
                 `sysctl net.ipv4.ip_unprivileged_port_start`",
                address.port()
            ),
            _ => "correct the address".to_owned(),
        };
        let what = match error.kind() {
            io::ErrorKind::AddrInUse => format!("address {address} is in use"),
            _ => format!("cannot listen on {address}: {error}"),
        };
        Problem { severity: Severity::Error, file, place: Place::of(key), what, remedy, tells_validity: false }
    }
}

impl fmt::Display for Problem {
    /// `error: pop.toml:7: listen[0].certificate: what` and, on a line of its own, the remedy.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        })?;
        write!(out, "{}", self.file.display())?;
        if self.place.line > 0 {
            write!(out, ":{}", self.place.line)?;
        }
        if !self.place.key.is_empty() {
            write!(out, ": {}", self.place.key)?;
        }
        write!(out, ": {}\n  remedy: {}", self.what, self.remedy)
    }
}

/// The mistakes found so far in one file, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems {
    file: PathBuf,
    list: Vec<Problem>,
}

impl Problems {
    /// None yet, for `file`.
    #[must_use]
    pub fn new(file: PathBuf) -> Problems {
        Problems { file, list: Vec::new() }
    }

    /// Adds a mistake that keeps the configuration from being used.
    pub fn error(&mut self, place: &Place, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, place, what.into(), remedy.into());
    }

    /// Adds something that somebody should look at.
    pub fn warning(&mut self, place: &Place, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, place, what.into(), remedy.into());
    }

    /// Adds that a certificate is out of its time: something that somebody should look at.
    pub(super) fn out_of_time(&mut self, place: &Place, what: impl Into<String>, remedy: impl Into<String>) {
        self.warning(place, what, remedy);
        self.list.last_mut().expect("just added").tells_validity = true;
    }

    /// Adds a problem that was made elsewhere.
    pub fn push(&mut self, problem: Problem) {
        self.list.push(problem);
    }

    /// Everything found, in the order of the lines; what has no line comes first.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// Whether anything found keeps the configuration from being used.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// The warnings when `value` is there and nothing is wrong, else all problems.
    ///
    /// # Errors
    /// `self`, when it holds an error.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<(T, Vec<Problem>), Problems> {
        self.list.sort_by_key(|problem| problem.place.line);
        match value {
            Some(value) if !self.has_errors() => Ok((value, self.list)),
            Some(_) => Err(self),
            None => {
                assert!(self.has_errors(), "a value is missing only when a problem says why");
                Err(self)
            }
        }
    }

    fn add(&mut self, severity: Severity, place: &Place, what: String, remedy: String) {
        let (file, place) = (self.file.clone(), place.clone());
        self.list.push(Problem { severity, file, place, what, remedy, tells_validity: false });
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                out.write_str("\n")?;
            }
            write!(out, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_names_address_key_and_remedy() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = holder.local_addr().expect("a bound socket has an address");
        let error = std::net::TcpListener::bind(address).expect_err("the address is taken");
        let message = Problem::from_bind("pop.toml".into(), "listen[0].address", address, &error).to_string();
        assert!(message.contains("pop.toml: listen[0].address: address"), "{message}");
        assert!(message.contains(&address.to_string()), "{message}");
        assert!(message.contains("in use"), "{message}");
        assert!(message.contains("remedy: stop the process"), "{message}");
    }

    #[test]
    fn a_foreign_address_and_a_privileged_port_have_remedies_of_their_own() {
        let address = "192.0.2.1:80".parse().expect("an address");
        for (kind, word) in
            [(io::ErrorKind::AddrNotAvailable, "ip address"), (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE")]
        {
            let message = Problem::from_bind("p".into(), "listen[0].address", address, &kind.into()).to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn warnings_alone_do_not_refuse() {
        let mut problems = Problems::new("a.toml".into());
        problems.warning(&Place::of("id"), "odd", "look");
        assert!(!problems.has_errors());
        let (value, warnings) = problems.finish(Some(1)).expect("only a warning");
        assert_eq!((value, warnings.len()), (1, 1));
    }

    #[test]
    fn problems_come_in_the_order_of_the_file() {
        let mut problems = Problems::new("a.toml".into());
        problems.error(&Place { key: "b".into(), line: 9 }, "late", "x");
        problems.error(&Place { key: "a".into(), line: 2 }, "early", "x");
        let problems = problems.finish(Some(())).expect_err("two errors");
        assert_eq!(problems.to_string().find("a.toml:2: a: early").map(|_| ()), Some(()));
        assert_eq!(problems.list()[0].place.line, 2);
    }
}
