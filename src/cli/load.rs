//! `trunkline load`: puts load on a server and tells what it measured. Owns the translation between flags and a
//! [`Plan`], progress, and what goes to which output; measuring is done elsewhere.
//!
//! Standard output carries the summary; standard error progress, each second, when it is a terminal. Exit code: 0 all
//! answers were good; 1 some failed, or there were none; 2 not usable as given, or nothing could be run.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::EXIT_USAGE;
use super::call::parse_duration;
use crate::load::{
    self, BODY_BYTES_MAX, HandshakeKind, Loop, Mix, Mode, Plan, Recipe, Report, Scheme, Standing, Target, TlsPlan,
};
use crate::server::process;
use crate::tls::{ALPN_MMTP, ClientOptions, ClientSettings, Roots};

/// What `trunkline load` is told.
#[derive(clap::Args, Clone, Debug)]
pub struct LoadArgs {
    /// mmtp://HOST:PORT/SERVICE/PATH, https://HOST:PORT/PATH (HTTP/1.1) or http://HOST:PORT/PATH
    #[arg(value_name = "URL")]
    pub url: String,

    /// Certificates to trust, PEM; the system's unless given
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// The name that the server's certificate must carry; the host of the URL unless given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub connections: usize,

    /// Requests at a time on each connection: streams of MMTP, pipelined in HTTP/1.1
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub outstanding: usize,

    /// For how long requests are begun (or, with --idle, connections held): 500ms, 10s, 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,

    /// Begin so many requests (with --handshake: connections) per second whatever the server does, and count from when
    /// each was meant to begin; without it, each begins when one before it has ended
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,

    /// New connections all the time, established in this way
    #[arg(long, value_name = "KIND", value_enum)]
    pub handshake: Option<KindArg>,

    /// With --handshake: requests on each connection [default: 1]
    #[arg(long, value_name = "N", requires = "handshake")]
    pub per_connection: Option<u64>,

    /// Bytes of body in each request
    #[arg(long, visible_alias = "body-size", value_name = "BYTES", default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(0..=BODY_BYTES_MAX as u64))]
    pub size: u64,

    /// Method; GET unless given, POST with a body
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,

    /// Open the connections, ask once on each, hold them, and ask again at the end
    #[arg(long, conflicts_with_all = ["handshake", "rate", "outstanding"])]
    pub idle: bool,

    /// Priorities with their weights, such as 0:1,7:9; MMTP only
    #[arg(long, value_name = "PRIORITY:WEIGHT,...")]
    pub mix: Option<Mix>,

    /// Cores to run on, a worker on each, such as 1 or 2,3; one worker anywhere unless given
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Vec<usize>,

    /// Send the first bytes of a connection with its SYN (TCP Fast Open)
    #[arg(long)]
    pub fast_open: bool,

    /// Write what was measured to a file, as one JSON object; - for standard output, in place of the summary
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Tell no progress
    #[arg(long)]
    pub quiet: bool,
}

/// How new connections are established.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum KindArg {
    /// With certificates.
    Full,
    /// With a ticket of an earlier connection.
    Resumed,
    /// With a ticket, the request being sent before the server has answered.
    Early,
}

impl From<KindArg> for HandshakeKind {
    fn from(kind: KindArg) -> HandshakeKind {
        match kind {
            KindArg::Full => HandshakeKind::Full,
            KindArg::Resumed => HandshakeKind::Resumed,
            KindArg::Early => HandshakeKind::Early,
        }
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: &LoadArgs) -> ExitCode {
    match execute(args) {
        Ok(report) if report.is_good() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(message) => {
            eprintln!("trunkline load: {message}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn execute(args: &LoadArgs) -> Result<Report, String> {
    let plan = plan(args)?;
    let descriptors = process::descriptors_raise().unwrap_or_else(|_| process::descriptors_max());
    plan.check(&process::cores_allowed(), descriptors).map_err(|error| error.to_string())?;
    // Made before measuring: a run whose figures cannot be written is a run for nothing.
    let json = args.json.as_deref().map(Output::open).transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|error| format!("no signal handler is to be had: {error}"))?;
    }
    let tells = !args.quiet && io::stderr().is_terminal();
    let says_held = !matches!(json, Some(Output::Standard));
    let mut last =
        Standing { elapsed: Duration::ZERO, requests: 0, faults: 0, bytes_received: 0, connections: 0, held: None };
    let watch = |standing: Standing| {
        if let (Some(held), true) = (standing.held, says_held) {
            let _ = say(&format!("holding {held} connections\n")); // the summary meets the same error
        }
        if tells {
            eprintln!("{}", progress(&last, &standing));
        }
        last = standing;
    };
    let report = load::run(Arc::new(plan), &stop, watch).map_err(|error| error.to_string())?;
    match json {
        Some(Output::Standard) => say(&report.json())?,
        Some(Output::File(mut file, path)) => {
            let written = file.write_all(report.json().as_bytes());
            written.map_err(|error| format!("--json {}: {error}", path.display()))?;
            say(&report.to_string())?;
        }
        None => say(&report.to_string())?,
    }
    Ok(report)
}

/// Puts text on standard output, at once: whoever waits for a line reads a pipe. That nobody reads it any more (`| head`)
/// is no error.
fn say(text: &str) -> Result<(), String> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("standard output: {error}")),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Where the JSON goes.
enum Output {
    Standard,
    File(std::fs::File, PathBuf),
}

impl Output {
    fn open(path: &Path) -> Result<Output, String> {
        if path == Path::new("-") {
            return Ok(Output::Standard);
        }
        let file = std::fs::File::create(path).map_err(|error| format!("--json {}: {error}", path.display()))?;
        Ok(Output::File(file, path.to_owned()))
    }
}

fn progress(last: &Standing, now: &Standing) -> String {
    let seconds = now.elapsed.saturating_sub(last.elapsed).as_secs_f64().max(1e-3);
    let rate = |now: u64, last: u64| now.saturating_sub(last) as f64 / seconds;
    format!(
        "{:6.1} s  {:10.0} requests/s  {:8.1} MiB/s  {:6} connections  {} errors",
        now.elapsed.as_secs_f64(),
        rate(now.requests, last.requests),
        rate(now.bytes_received, last.bytes_received) / (1024.0 * 1024.0),
        now.connections,
        now.faults
    )
}

/// What goes before a reason: whose it is.
fn of<E: Display>(option: &str) -> impl Fn(E) -> String {
    move |error| format!("{option}: {error}")
}

fn plan(args: &LoadArgs) -> Result<Plan, String> {
    let target = Target::parse(&args.url).map_err(of(&args.url))?;
    let kind = args.handshake.map(HandshakeKind::from);
    let mode = match (kind, args.idle) {
        (Some(kind), _) => Mode::Visit { kind, requests: args.per_connection.unwrap_or(1) },
        (None, true) => Mode::Hold,
        (None, false) => Mode::Stay,
    };
    let mix = args.mix.clone().unwrap_or_default();
    let method = args.method.as_deref().unwrap_or(if args.size > 0 { "POST" } else { "GET" });
    let body_bytes = usize::try_from(args.size).map_err(of("--size"))?;
    let is_early = kind == Some(HandshakeKind::Early);
    let recipe = Recipe::new(&target, method, body_bytes, &mix, is_early).map_err(of("--method"))?;
    Ok(Plan {
        tls: tls(args, &target, kind)?,
        address: address(&target)?,
        target: target.text,
        recipe,
        is_mixed: args.mix.is_some(),
        mix,
        mode,
        pace: args.rate.map_or(Loop::Closed, |rate| Loop::Open { rate }),
        connections: args.connections,
        outstanding: args.outstanding,
        duration: args.duration,
        cores: args.cores.clone(),
        fast_open: args.fast_open,
    })
}

fn address(target: &Target) -> Result<SocketAddr, String> {
    let endpoint = &target.endpoint;
    let mut found = (endpoint.host.as_str(), endpoint.port)
        .to_socket_addrs()
        .map_err(|error| format!("{}: {} cannot be looked up: {error}", target.text, endpoint.host))?;
    found.next().ok_or_else(|| format!("{}: {} has no address", target.text, endpoint.host))
}

fn tls(args: &LoadArgs, target: &Target, kind: Option<HandshakeKind>) -> Result<Option<TlsPlan>, String> {
    if !target.scheme.is_secure() {
        return match (&args.ca, &args.name) {
            (None, None) => Ok(None),
            (Some(_), _) => Err("--ca needs an https:// or mmtp:// address".to_owned()),
            (None, Some(_)) => Err("--name needs an https:// or mmtp:// address".to_owned()),
        };
    }
    let name = args.name.clone().unwrap_or_else(|| target.endpoint.host.clone());
    let keeps_tickets = matches!(kind, Some(HandshakeKind::Resumed | HandshakeKind::Early));
    let options = ClientOptions {
        // A server without a list of protocols of its own refuses none, but takes none either.
        alpn: if target.scheme == Scheme::Mmtp { vec![ALPN_MMTP.to_vec()] } else { Vec::new() },
        sessions: 0,
        keeps_tickets,
        early_data: kind == Some(HandshakeKind::Early),
        ..ClientOptions::new(roots(args.ca.as_deref())?)
    };
    let settings = ClientSettings::new(&options).map_err(of("--ca"))?;
    let mut hello = Vec::new();
    // Tried once: a name that no certificate can have would fail on every connection.
    crate::tls::Session::client(&settings, &name, None, &mut hello)
        .map_err(|error| format!("--name {name}: {error}"))?;
    Ok(Some(TlsPlan { settings, name }))
}

fn roots(ca: Option<&Path>) -> Result<Roots, String> {
    let Some(path) = ca else {
        let found: Vec<Vec<u8>> =
            rustls_native_certs::load_native_certs().certs.iter().map(|certificate| certificate.to_vec()).collect();
        return Roots::from_named_and_found(&[], &found)
            .map_err(|_| "this system has no trusted certificates: name some with --ca FILE".to_owned());
    };
    let pem = std::fs::read(path).map_err(|error| format!("--ca {}: {error}", path.display()))?;
    Roots::from_pem(&pem).map_err(|error| format!("--ca {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: LoadArgs,
    }

    fn args(line: &[&str]) -> Result<LoadArgs, clap::Error> {
        Command::try_parse_from([&["load"], line].concat()).map(|command| command.args)
    }

    fn planned(line: &[&str]) -> Result<Plan, String> {
        plan(&args(line).map_err(|error| error.to_string())?)
    }

    #[test]
    fn what_is_asked_is_what_is_planned() {
        let plan = planned(&["http://127.0.0.1:81/x", "--connections", "64", "--outstanding", "16"]).expect("valid");
        assert_eq!((plan.connections, plan.outstanding, plan.mode, plan.pace), (64, 16, Mode::Stay, Loop::Closed));
        assert_eq!(plan.address, SocketAddr::from(([127, 0, 0, 1], 81)));
        assert!(plan.tls.is_none() && !plan.is_mixed);
        let line = ["https://127.0.0.1/", "--handshake", "early", "--per-connection", "3", "--rate", "0.5"];
        let plan = planned(&[&line[..], &["--cores", "0,1", "--duration", "250ms", "--fast-open"]].concat());
        let plan = plan.expect("valid");
        assert_eq!(plan.mode, Mode::Visit { kind: HandshakeKind::Early, requests: 3 });
        assert_eq!((plan.pace, plan.duration), (Loop::Open { rate: 0.5 }, Duration::from_millis(250)));
        assert_eq!((&plan.cores[..], plan.fast_open), (&[0, 1][..], true));
        assert_eq!(planned(&["http://127.0.0.1/", "--idle"]).expect("valid").mode, Mode::Hold);
    }

    #[test]
    fn a_body_makes_it_a_post() {
        for (line, start) in [
            (&["http://127.0.0.1/"][..], "GET / "),
            (&["http://127.0.0.1/", "--size", "7"], "POST / "),
            (&["http://127.0.0.1/", "--body-size", "7", "--method", "PUT"], "PUT / "),
        ] {
            let plan = planned(line).expect("valid");
            let Recipe::Http { bytes, .. } = &plan.recipe else { panic!("HTTP is spoken") };
            assert!(bytes.starts_with(start.as_bytes()), "{line:?}");
            assert_eq!(bytes.ends_with(b"\r\n\r\nxxxxxxx"), start != "GET / ");
        }
    }

    #[test]
    fn every_bad_value_is_named() {
        let http = "http://127.0.0.1/";
        for (line, named) in [
            (&[][..], "<URL>"),
            (&["gopher://a/"], "gopher://a/"),
            (&["mmtp://a"], "service"),
            (&["http://no.such.name.invalid/"], "no.such.name.invalid"),
            (&[http, "--connections", "x"], "--connections"),
            (&[http, "--connections", "-1"], "-1"),
            (&[http, "--outstanding", "1.5"], "--outstanding"),
            (&[http, "--duration", "soon"], "--duration"),
            (&[http, "--rate", "fast"], "--rate"),
            (&[http, "--handshake", "half"], "--handshake"),
            (&[http, "--per-connection", "2"], "--handshake"),
            (&[http, "--handshake", "full", "--per-connection", "x"], "--per-connection"),
            (&[http, "--size", "1099511627776"], "--size"),
            (&[http, "--method", "GE T"], "--method"),
            (&[http, "--idle", "--rate", "1"], "--rate"),
            (&[http, "--idle", "--outstanding", "2"], "--outstanding"),
            (&[http, "--mix", "9:1"], "--mix"),
            (&[http, "--cores", "a"], "--cores"),
            (&[http, "--ca", "/etc/hosts"], "--ca"),
            (&[http, "--name", "a"], "--name"),
            (&["https://127.0.0.1/", "--ca", "/no/such/file"], "/no/such/file"),
            (&["https://127.0.0.1/", "--ca", "/etc/hosts"], "/etc/hosts"),
            (&["https://127.0.0.1/", "--name", "a b"], "a b"),
        ] {
            let error = planned(line).err().unwrap_or_else(|| panic!("{line:?} is not usable"));
            assert!(error.contains(named), "{line:?}: {error}");
        }
    }
}
