//! `trunkline demo`: the whole path in one process, on loopback, with certificates made in memory. Owns the story that is
//! told; the parties on the path are those of `trunkline pop` and `trunkline gateway`.
//!
//! Asks nothing, installs nothing and writes no file, but for the authority's certificate with `--stay`, in a directory
//! of its own that goes when the demo ends. Invariant: whatever happens after the start, the parties are drained before
//! the process ends.

mod http;
mod origin;
mod parties;
mod picture;
mod stay;
mod tunnel;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::client::{BuildError, Call, CallError, Client, Receipt, Report, Request, Response, Url};
use crate::server::certificates::IssueError;
use crate::server::config::LogConfig;
use crate::server::log;
use crate::server::process;
use crate::server::run::RunError;

use parties::{HTTP, Parties};
use picture::{Burst, Path, Step, Style};
use stay::Stay;
use tunnel::TunnelError;

/// Calls of the burst.
const BURST_CALLS: usize = 2000;

/// How many of them are under way at a time, where descriptors allow it.
const BURST_OUTSTANDING_MAX: usize = 100;

/// Descriptors that one call under way may hold: both ends of a connection between gateway and origin, and as many again
/// for one that is closing.
const DESCRIPTORS_PER_CALL: u64 = 4;

/// Descriptors of everything else.
const DESCRIPTORS_RESERVED: u64 = 64;

/// A service that no gateway here has.
const NO_SERVICE: &str = "nosuch";

/// Longest time of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Arguments of `trunkline demo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Keep running until Ctrl-C or SIGTERM, and tell how to use it with curl
    #[arg(long)]
    stay: bool,
    /// Port of the POP; any free one unless given
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    port: u16,
}

/// Why the demo did not come to its end.
#[derive(Debug)]
enum DemoError {
    /// A certificate could not be made.
    Certificates(IssueError),
    /// The origin could not start.
    Origin(io::Error),
    /// POP or gateway could not start, or failed.
    Start(RunError),
    /// The trunks did not come up; so many attempts have failed.
    Trunks { failed: u64 },
    /// The client could not start.
    Client(BuildError),
    /// A call failed.
    Call(&'static str, CallError),
    /// The request through the tunnel failed.
    Tunnel(TunnelError),
    /// An answer was not the one expected.
    Unexpected(&'static str, String),
    /// Standard output, the directory for the certificate, or the wait for signals.
    Os(&'static str, io::Error),
}

impl fmt::Display for DemoError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // It begins with `error: ` by itself.
            DemoError::Start(error) => error.fmt(out),
            DemoError::Certificates(error) => write!(out, "error: {error}"),
            DemoError::Origin(error) => write!(out, "error: the origin cannot start: {error}"),
            DemoError::Trunks { failed } => {
                write!(
                    out,
                    "error: no trunk to the gateway came up, {failed} attempts have failed; TRUNKLINE_LOG=info tells more"
                )
            }
            DemoError::Client(error) => write!(out, "error: {error}"),
            DemoError::Call(what, error) => write!(out, "error: {what}: {error}"),
            DemoError::Tunnel(error) => write!(out, "error: the request through the tunnel: {error}"),
            DemoError::Unexpected(what, found) => write!(out, "error: {what}: {found}"),
            DemoError::Os(what, error) => write!(out, "error: {what}: {error}"),
        }
    }
}

/// `trunkline demo`.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    match play(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn play(args: &Args) -> Result<(), DemoError> {
    // The story is on standard output; the log is for those who ask.
    if std::env::var_os(log::LEVEL_VARIABLE).is_some() {
        log::open(&LogConfig::default()).map_err(|error| DemoError::Start(RunError::Log(error)))?;
    }
    let parties = Parties::start(args.port)?;
    if args.stay {
        return Stay::run(parties, tell);
    }
    let told =
        tell(&parties).and_then(|()| print("  To keep it running, and to try it with curl: trunkline demo --stay\n"));
    told.and(parties.end(|| false).map_err(DemoError::Start))
}

/// Sends everything, and shows the path and what each step took.
fn tell(parties: &Parties) -> Result<(), DemoError> {
    let is_terminal = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = Style { is_terminal };
    let path = Path {
        pop: parties.pop.address(),
        pop_core: parties.pop.core(),
        gateway: parties.gateway.address(),
        gateway_core: parties.gateway.core(),
        origin: parties.origin.address(),
        trunks: parties.trunks(),
    };
    let title = style.bold("Trunkline demo: a request from a client to an origin and back");
    print(&format!("{title}\n  one process, loopback only, certificates made in memory\n\n{}\n", path.draw()))?;
    let teller = Teller::new(parties)?;
    print(&format!("{}\n", style.bold(&Step::heading())))?;
    for (index, step) in [Teller::call, Teller::call_again, Teller::tunnel, Teller::refusal].into_iter().enumerate() {
        print(&format!("{}\n", step(&teller)?.line(index + 1)))?;
    }
    print(&format!("\n{}\n{}\n", style.bold("  5. A burst"), teller.burst()?.text()))
}

/// Writes to standard output. Unlike `println!` it does not panic when nobody reads any more.
fn print(text: &str) -> Result<(), DemoError> {
    let mut output = io::stdout().lock();
    let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    written.map_err(|error| DemoError::Os("cannot write to standard output", error))
}

/// The client's side of the story.
struct Teller<'p> {
    parties: &'p Parties,
    client: Client,
}

impl<'p> Teller<'p> {
    fn new(parties: &'p Parties) -> Result<Teller<'p>, DemoError> {
        let client = Client::builder().roots([parties.ca.der()]);
        let client = client.attributes("trunkline-demo", env!("CARGO_PKG_VERSION"), std::env::consts::OS, "");
        Ok(Teller { parties, client: client.build().map_err(DemoError::Client)? })
    }

    fn request(&self, service: &str) -> Result<Request, DemoError> {
        let url = format!("mmtp://{}/{service}/hello", self.parties.pop.address());
        let url = Url::parse(&url).map_err(|error| DemoError::Unexpected("the demo's own URL", error.to_string()))?;
        Ok(Request::get(url).timeout(CALL_TIMEOUT))
    }

    fn answer(&self, what: &'static str) -> Result<Response, DemoError> {
        let response = self.client.call(self.request(HTTP)?).map_err(|error| DemoError::Call(what, error))?;
        expect_hello(what, response.status, &response.body)?;
        Ok(response)
    }

    fn call(&self) -> Result<Step, DemoError> {
        let response = self.answer("the first call")?;
        Ok(step("mmtp:// call, new connection", &response.report, answered(response.status, &response.body)))
    }

    fn call_again(&self) -> Result<Step, DemoError> {
        let response = self.answer("the second call")?;
        if !response.report.reused {
            return Err(DemoError::Unexpected(
                "the second call",
                "it did not use the first one's connection".to_owned(),
            ));
        }
        Ok(step("mmtp:// call, same connection", &response.report, answered(response.status, &response.body)))
    }

    fn tunnel(&self) -> Result<Step, DemoError> {
        let ca = self.parties.ca.der();
        let answer = tunnel::get(self.parties.pop.address(), ca, "/hello").map_err(DemoError::Tunnel)?;
        expect_hello("the request through the tunnel", answer.status, &answer.body)?;
        let ms = |duration: Duration| Some(duration.as_secs_f64() * 1000.0);
        Ok(Step {
            what: "https:// request, as a tunnel".to_owned(),
            connect_ms: ms(answer.connect),
            tls_ms: ms(answer.tls),
            first_byte_ms: ms(answer.first_byte),
            total_ms: ms(answer.total),
            outcome: answered(answer.status, &answer.body),
        })
    }

    fn refusal(&self) -> Result<Step, DemoError> {
        let what = "the call to a service that is not there";
        match self.client.call(self.request(NO_SERVICE)?) {
            Ok(response) => Err(DemoError::Unexpected(what, format!("it was answered with {}", response.status))),
            Err(error) if matches!(error.receipt(), Receipt::Unknown) => Err(DemoError::Call(what, error)),
            Err(error) => {
                let outcome = format!("receipt: {}", error.receipt().name());
                Ok(step("mmtp:// call, unknown service", error.report(), outcome))
            }
        }
    }

    /// Many calls on the connection that is there, and what the POP counted meanwhile.
    fn burst(&self) -> Result<Burst, DemoError> {
        let (pop, gateway) = (&self.parties.pop, &self.parties.gateway);
        pop.refresh();
        let names = ["streams_opened", "receives", "sends", "passes"];
        let before = names.map(|name| pop.figure(name));
        let (request, outstanding) = (self.request(HTTP)?, burst_outstanding());
        let (mut under_way, mut times_ms) = (VecDeque::new(), Vec::with_capacity(BURST_CALLS));
        let started = Instant::now();
        for _ in 0..BURST_CALLS {
            if under_way.len() == outstanding
                && let Some(call) = under_way.pop_front()
            {
                times_ms.push(finish(&call)?);
            }
            under_way.push_back(self.client.start(request.clone()));
        }
        for call in under_way {
            times_ms.push(finish(&call)?);
        }
        let seconds = started.elapsed().as_secs_f64();
        times_ms.sort_by(f64::total_cmp);
        pop.refresh();
        gateway.refresh();
        let after = names.map(|name| pop.figure(name));
        let counted = |index: usize| after[index] - before[index];
        Ok(Burst {
            calls: BURST_CALLS,
            outstanding,
            seconds,
            p50_ms: times_ms[BURST_CALLS / 2],
            p99_ms: times_ms[BURST_CALLS * 99 / 100],
            streams: counted(0),
            receives: counted(1),
            sends: counted(2),
            passes: counted(3),
            trunks: self.parties.trunks(),
            upstreams: gateway.figure("upstream_open"),
        })
    }
}

/// How many calls of the burst may be under way at a time.
fn burst_outstanding() -> usize {
    let affordable = process::descriptors_max().saturating_sub(DESCRIPTORS_RESERVED) / DESCRIPTORS_PER_CALL;
    usize::try_from(affordable).unwrap_or(usize::MAX).clamp(1, BURST_OUTSTANDING_MAX)
}

/// Waits for a call of the burst, and gives what it took in milliseconds.
fn finish(call: &Call) -> Result<f64, DemoError> {
    let what = "a call of the burst";
    let response = call.response(1024 * 1024).map_err(|error| DemoError::Call(what, error))?;
    expect_hello(what, response.status, &response.body)?;
    Ok(response.report.total_ms.unwrap_or_default())
}

fn expect_hello(what: &'static str, status: u16, body: &[u8]) -> Result<(), DemoError> {
    if status == 200 && body.starts_with(b"Hello from the origin.") {
        return Ok(());
    }
    let found = format!("status {status} and not the origin's answer: {}", body[..body.len().min(200)].escape_ascii());
    Err(DemoError::Unexpected(what, found))
}

fn answered(status: u16, body: &[u8]) -> String {
    format!("{status}, {} bytes", body.len())
}

fn step(what: &str, report: &Report, outcome: String) -> Step {
    Step {
        what: what.to_owned(),
        connect_ms: report.connect_ms,
        tls_ms: report.tls_ms,
        first_byte_ms: report.first_byte_ms,
        total_ms: report.total_ms,
        outcome,
    }
}
