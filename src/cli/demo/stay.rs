//! `trunkline demo --stay`: the same path, kept until a signal. Owns the directory with the authority's certificate, which
//! goes with it, and the slow thread's turns.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::parties::{HTTP, Parties};
use super::{DemoError, print};
use crate::server::health::{Flags, Health, ProcessRole};
use crate::server::log::LogWriter;
use crate::server::signals::Asked;
use crate::server::slow::SlowThread;

/// A directory for this process alone, removed with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Scratch> {
        let path = std::env::temp_dir().join(format!("trunkline-demo-{}", std::process::id()));
        // An existing one is an error: it is somebody else's.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Scratch(path))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text).map(|()| path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: what is left is a certificate that nobody trusts.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The demo until it is told to end.
pub(super) struct Stay {
    parties: Parties,
    slow: SlowThread,
    flags: Arc<Flags>,
    gateway_log: LogWriter,
}

impl Stay {
    /// Tells the story, tells how to go on, and stays until a signal asks for the end.
    ///
    /// # Errors
    /// What went wrong first; everything has ended by then.
    pub(super) fn run(parties: Parties, tell: fn(&Parties) -> Result<(), DemoError>) -> Result<(), DemoError> {
        let flags = Arc::new(Flags::default());
        flags.listening.store(true, Ordering::Relaxed);
        let shared = parties.pop.shared().clone();
        let health = Health::new(ProcessRole::Pop, "demo-pop", flags.clone(), shared, Instant::now());
        // From here on a signal no longer ends the process at once, so nothing is left behind.
        let slow = SlowThread::new(health).map_err(|error| DemoError::Os("cannot wait for signals", error))?;
        let mut stay = Stay { parties, slow, flags, gateway_log: LogWriter::default() };
        let stayed = stay.serve(tell);
        stayed.and(stay.end())
    }

    fn serve(&mut self, tell: fn(&Parties) -> Result<(), DemoError>) -> Result<(), DemoError> {
        let os = |what| move |error| DemoError::Os(what, error);
        let scratch = Scratch::new().map_err(os("cannot make a directory for the certificate"))?;
        let ca = scratch.write("ca.pem", &self.parties.ca.pem()).map_err(os("cannot write the certificate"))?;
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let admin = self.slow.listen(loopback).map_err(os("cannot open the admin address"))?;
        tell(&self.parties)?;
        print(&commands(&self.parties, &ca.display().to_string(), admin))?;
        loop {
            for asked in self.turn()? {
                match asked {
                    Asked::Drain | Asked::StopNow => return Ok(()),
                    // The certificates are made in memory: there is nothing to read again.
                    Asked::Reload => {}
                }
            }
            if self.parties.has_ended_one() {
                // The end tells how it failed.
                return Ok(());
            }
        }
    }

    fn turn(&mut self) -> Result<Vec<Asked>, DemoError> {
        self.gateway_log.drain(Instant::now(), &self.parties.gateway.shared().logs);
        self.slow.turn().map_err(|error| DemoError::Os("cannot wait for signals", error))
    }

    fn end(self) -> Result<(), DemoError> {
        let Stay { parties, mut slow, flags, mut gateway_log } = self;
        flags.draining.store(true, Ordering::Relaxed);
        // A wait for signals that fails is no reason to wait any longer.
        let is_urgent = || slow.turn().map_or(true, |asked| asked.contains(&Asked::StopNow));
        let gateway_shared = parties.gateway.shared().clone();
        let ended = parties.end(is_urgent).map_err(DemoError::Start);
        gateway_log.finish(Instant::now(), &gateway_shared.logs);
        slow.finish();
        ended
    }
}

/// How to use what runs, to be copied line by line.
fn commands(parties: &Parties, ca: &str, admin: SocketAddr) -> String {
    let port = parties.pop.address().port();
    let program = std::env::args().next().unwrap_or_else(|| "trunkline".to_owned());
    format!(
        "  Try it yourself; Ctrl-C ends it.\n\n\
         curl --cacert {ca} https://localhost:{port}/hello\n\
         curl --cacert {ca} -d 'sent and returned' https://localhost:{port}/echo\n\
         {program} call --ca {ca} mmtp://localhost:{port}/{HTTP}/hello\n\
         {program} call --ca {ca} -d 'sent and returned' --report json mmtp://localhost:{port}/{HTTP}/echo\n\
         curl http://{admin}/metrics\n"
    )
}
